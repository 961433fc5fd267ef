"""A stack of fluorescence maps: chemistry without a logarithm, from maps to edge energies."""

from typing import Any

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from inscan.callbacks.geometry import ScanGeometry
from inscan.callbacks.link import host_id
from inscan.callbacks.map_series import stack_of_maps
from inscan.callbacks.updates import Update
from inscan.models import xanes
from inscan.profiles.xanes_samples import ni_energies_ev
from inscan.profiles.xanes_standards import absorption
from inscan.service.messages import InferenceJob, job_key
from inscan.service.processed import Processed
from inscan.service.recipes import process

SHAPE = (24, 30)
ENERGIES = ni_energies_ev(31)
STATES = ("NiO", "LiNiO2")


def truth() -> tuple[np.ndarray, np.ndarray]:
    """Share of the second state, (row, col), and counts per second, (energy, row, col)."""
    rng = np.random.default_rng(3)
    share, amount = (gaussian_filter(rng.normal(size=SHAPE), width) for width in (4, 2))
    share = np.clip(0.5 + share / np.ptp(share), 0, 1)
    amount = 400.0 * (1 + 1.5 * amount / np.ptp(amount))
    states = [absorption(name, ENERGIES)[:, None, None] for name in STATES]
    return share, amount * (0.05 + (1 - share) * states[0] + share * states[1])


def maps(rate: np.ndarray, seed: int = 0) -> list[Update]:
    rng = np.random.default_rng(seed)
    geometry = ScanGeometry(SHAPE, "sy", "sx", "um", "um", 0.0, 23.0, 0.0, 29.0, False)
    light = np.array([0.8, 1.2], np.float32)[:, None, None]
    found = []
    for k, energy in enumerate(ENERGIES):
        counts = rng.poisson(light * np.clip(rate[k], 0, None) / 2)[:, None]
        meta: dict[str, Any] = {
            "elements": ["Ni_K"],
            "channels": [1, 2],
            "geometry": geometry.to_dict(),
            "incident_energy_ev": float(energy),
            "i0_reference": None,
            "complete": True,
        }
        arrays = {
            "counts": counts.astype(np.float32),
            "exposure": np.broadcast_to(light, (2, *SHAPE)).astype(np.float32),
            "measured": np.ones(SHAPE, bool),
        }
        found.append(Update("final", f"run-{k}", "stream0", meta, arrays))
    return found


def run(update: Update, **changed: Any) -> Processed:
    references = [
        {
            "name": name,
            "energies_ev": ENERGIES.tolist(),
            "absorption": absorption(name, ENERGIES).tolist(),
        }
        for name in STATES
    ]
    job = InferenceJob(
        key=job_key(update.run_uid, update.stream, "subspace", {}),
        run_uid=update.run_uid,
        stream=update.stream,
        kind="final",
        recipe="subspace",
        parameters={},
        meta=update.meta | {"references": references} | changed,
        spool="/nowhere",
        arrays={},
        input_digest="",
        result_path="/nowhere.h5",
        host_id=host_id(),
    )
    return process(job, update.arrays, lambda fraction: None)


def test_a_series_of_maps_becomes_a_map_of_the_edge():
    share, rate = truth()
    update = stack_of_maps(maps(rate), "Ni_K")
    processed = run(update)
    arrays = {array.name: array for array in processed.arrays}
    assert arrays["values"].units == arrays["raw"].units == "counts/s"
    np.testing.assert_array_equal(arrays["raw"].values, update.arrays["signal"])
    error = {
        name: float(np.sqrt(np.mean((arrays[name].values - rate) ** 2)))
        for name in ("values", "raw")
    }
    assert error["values"] < 0.5 * error["raw"]
    expected = xanes.edge_energy(rate, ENERGIES).energy
    found = arrays["edge_energy"].values
    assert np.isfinite(found).mean() > 0.99
    assert np.nanmedian(np.abs(found - expected)) < 0.3
    fractions = arrays["fractions"].values[1]
    assert np.nanmedian(np.abs(fractions - share)) < 0.03
    # Noise as large as said: the observed error over sigma is of order one.
    pull = (arrays["values"].values - rate) / arrays["sigma"].values
    assert 0.5 < pull.std() < 1.5


def test_no_logarithm_is_taken_of_fluorescence():
    _, rate = truth()
    update = stack_of_maps(maps(rate), "Ni_K")
    arrays = {array.name: array.values for array in run(update).arrays}
    density, variance = xanes.fluorescence(arrays["values"], np.square(arrays["sigma"]))
    expected = xanes.edge_energy(density, ENERGIES, variance=variance)
    np.testing.assert_array_equal(arrays["edge_energy"], expected.energy)
    as_frames = Update(
        "final",
        update.run_uid,
        update.stream,
        update.meta | {"quantity": "transmission"},
        update.arrays | {"transmission": update.arrays["signal"]},
    )
    logged = {array.name: array.values for array in run(as_frames).arrays}
    assert "edge_energy" not in logged or not np.array_equal(
        logged["edge_energy"], arrays["edge_energy"], equal_nan=True
    )


def test_what_was_not_measured_is_no_number_in_the_raw_maps():
    _, rate = truth()
    series = maps(rate)
    series[3].arrays["measured"][4, 5] = False
    arrays = {array.name: array.values for array in run(stack_of_maps(series, "Ni_K")).arrays}
    assert np.isnan(arrays["raw"][3, 4, 5])
    assert np.isnan(arrays["raw"]).sum() == 1


def test_the_wrong_arrays_are_named():
    _, rate = truth()
    update = stack_of_maps(maps(rate), "Ni_K")
    with pytest.raises(ValueError, match="transmission"):
        run(update, quantity="transmission")


def test_a_signal_is_taken_as_it_is():
    values, variance = xanes.fluorescence([[-1.0, 2.0]], 4.0)
    np.testing.assert_array_equal(values, np.array([[-1, 2]], np.float32))
    np.testing.assert_array_equal(np.asarray(variance), np.full((1, 2), 4, np.float32))
    assert xanes.fluorescence([1.0])[1] is None
