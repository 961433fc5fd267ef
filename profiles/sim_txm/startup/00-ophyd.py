"""Devices of the simulated transmission microscope.

The files of this folder are executed in the order of their names in one namespace, by IPython or by
bluesky-queueserver. Parameters come from the environment, see `inscan.profiles.simulation.Parameters`:
INSCAN_SIM_SAMPLE (battery_smooth, battery_fine, battery_random), _SEED, _DWELL, _TIME_SCALE, _SIZE,
_DATA and INSCAN_STATE.
"""

from inscan.profiles.samples import xanes_sample
from inscan.profiles.simulation import Parameters, sim_txm

parameters = Parameters.read(dwell=0.05)
_sample = xanes_sample(
    parameters.sample or "battery_smooth", seed=parameters.seed, size=parameters.size
)
_devices = sim_txm(
    _sample, parameters.data_dir, seed=parameters.seed, time_scale=parameters.time_scale
)
mono_energy, zps_sx, zps_sy = _devices.mono_energy, _devices.zps_sx, _devices.zps_sy
shutter, txm, microscope = _devices.shutter, _devices.txm, _devices.microscope

# Who mounts a sample knows what it is called; what is in it stays in the camera.
sample_name = _sample.name
del _sample, _devices
