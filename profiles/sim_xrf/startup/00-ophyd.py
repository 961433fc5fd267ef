"""Devices of the simulated fluorescence microscope.

The files of this folder are executed in the order of their names in one namespace, by IPython or by
bluesky-queueserver. Parameters come from the environment, see `inscan.profiles.simulation.Parameters`:
INSCAN_SIM_SAMPLE, _SEED, _CHANNELS, _DWELL, _TIME_SCALE, _SPECTRA, _DRIFT, _DATA and INSCAN_STATE.
"""

from inscan.profiles.samples import xrf_sample
from inscan.profiles.simulation import Parameters, sim_xrf
from inscan.profiles.stage_drift import StageDrift

parameters = Parameters.read(dwell=0.01)
_sample = xrf_sample(parameters.sample or "cells", seed=parameters.seed)
_devices = sim_xrf(
    _sample,
    parameters.data_dir,
    channels=parameters.channels,
    seed=parameters.seed,
    time_scale=parameters.time_scale,
    dwell=parameters.dwell,
    drift=StageDrift.parse(parameters.drift, parameters.seed),
)
sample_x, sample_y = _devices.sample_x, _devices.sample_y
xs, xs_fly, sclr = _devices.xs, _devices.xs_fly, _devices.sclr
shutter, ring_current = _devices.shutter, _devices.ring_current  # 1: open; mA
xs.spectra.put(int(parameters.spectra))
xs_fly.spectra.put(int(parameters.spectra))

# Who mounts a sample knows what it is called and where it ends; what is in it stays in the detectors.
sample_name, sample_field = _sample.name, _sample.field
del _sample, _devices
