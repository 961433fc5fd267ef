"""The recipe of composites: channels, beams and runs that do not fit, with the shipped denoiser."""

from typing import Any

import numpy as np
import pytest
import torch

from inscan.profiles.samples import cells
from inscan.service.messages import InferenceJob, job_key
from inscan.service.recipe_composite import composite_maps

NAMES = ["P_K", "Ca_K"]
SIDE, CELLS, PEAK = 24, 20, 60.0
WANTED = {
    "targets": ["spots", "precision"],
    "precision": {"Ca_K": 0.02},
    "elements": [],
    "max_regions": 3,
    "scale": 1.5,
    "min_score": 8.0,
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def sample() -> np.ndarray:
    maps = np.asarray(cells(20).maps)[[0, 3], : SIDE * CELLS, : SIDE * CELLS]
    return maps / maps.max(axis=(1, 2), keepdims=True)


def run(
    sample: np.ndarray,
    number: int,
    box: tuple[int, int, int, int],
    parts: int,
    light: float,
    beam: float = 1.0,
    **meta: Any,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A run's description and arrays; of three channels the last one is dead."""
    rng = np.random.default_rng(number)
    r0, r1, c0, c1 = box
    size = CELLS // parts
    part = sample[:, r0 * CELLS : r1 * CELLS, c0 * CELLS : c1 * CELLS]
    shape = ((r1 - r0) * parts, (c1 - c0) * parts)
    rate = part.reshape(2, shape[0], size, shape[1], size).mean((2, 4)) * PEAK
    counts = rng.poisson(rate * light * beam / 2, (3, 2, *shape)).astype(np.float32)
    counts[2] = 0
    first = [start - 0.5 + 0.5 / parts for start in (r0, c0)]
    last = [stop - 0.5 - 0.5 / parts for stop in (r1, c1)]
    described = {
        "uid": f"run-{number}",
        "region": f"{number}" if number else "",
        "start_time": float(number),
        "elements": NAMES,
        "channels": [1, 2, 4],
        "dwell": light,
        # The monitor counts over the dwell.
        "i0_reference": 1000.0 * light * beam,
        "geometry": {
            "shape": list(shape),
            "slow_motor": "y",
            "fast_motor": "x",
            "slow_units": "um",
            "fast_units": "um",
            "slow_first": first[0],
            "slow_last": last[0],
            "fast_first": first[1],
            "fast_last": last[1],
            "snaking": False,
        },
        **meta,
    }
    arrays = {
        "counts": counts,
        "exposure": np.full((3, *shape), light, np.float32),
        "measured": np.ones(shape, bool),
    }
    return described, {f"{number}.{name}": values for name, values in arrays.items()}


def job_of(*runs: tuple[dict[str, Any], dict[str, np.ndarray]]) -> tuple[InferenceJob, Any]:
    meta = {"technique": "xrf", "layers": [one for one, _ in runs], "rescan": WANTED}
    arrays = {name: values for _, own in runs for name, values in own.items()}
    job = InferenceJob(
        key=job_key("c", "composite", "composite", {}),
        run_uid="c",
        stream="composite",
        kind="final",
        recipe="composite",
        parameters={"max_shift": 2.0},
        meta=meta,
        spool="/s",
        arrays={},
        input_digest="",
        result_path="/r",
        host_id="h",
    )
    return job, arrays


def test_one_estimate_with_an_uncertainty_that_holds(sample: np.ndarray) -> None:
    survey = run(sample, 0, (0, SIDE, 0, SIDE), 1, 1.0)
    fine = run(sample, 1, (6, 16, 8, 18), 4, 2.0, beam=0.9)
    odd = run(sample, 2, (6, 16, 8, 18), 4, 2.0, elements=["Zn_K"])
    lame = run(sample, 3, (6, 7, 8, 18), 1, 2.0)
    job, arrays = job_of(survey, fine, odd, lame)
    told: list[float] = []
    made = composite_maps(job, arrays, told.append)
    named = {one.name: one.values for one in made.arrays}
    values, sigma, source = named["values"], named["sigma"], named["source"]
    assert values.shape == (2, 96, 96) and told == sorted(told)
    truth = sample.reshape(2, 96, 5, 96, 5).mean((2, 4)) * PEAK
    again = source == 3
    assert again.sum() == 1600 and (source > 0).all()
    z = (values - truth)[:, again] / sigma[:, again]
    assert np.sqrt((z**2).mean()) < 1.5
    covered = ((named["lower"] <= truth) & (truth <= named["upper"]))[:, again].mean()
    assert 0.8 < covered <= 1
    raw = np.sqrt(((named["raw"] - truth)[:, again] ** 2).mean())
    assert np.sqrt(((values - truth)[:, again] ** 2).mean()) < 0.7 * raw
    report = made.report
    assert report["channels_used"] == [1, 2] and report["weights_sha256"]
    layers = {one["uid"]: one for one in report["composite"]["layers"]}
    assert layers["run-1"]["agrees"] and layers["run-1"]["found"]
    # That the monitor counts over the dwell is told by the counts: the beam was 0.9, not 1.8.
    assert layers["run-1"]["beam"] == pytest.approx(0.9, abs=0.04)
    assert "its elements are" in layers["run-2"]["reason"] and not layers["run-2"]["used"]
    assert "two at least" in layers["run-3"]["reason"]
    assert report["composite"]["sigma"]["Ca_K"]["share_above"] > 0.5
    assert made.regions and {one["target"] for one in made.regions} == {"precision"}
    assert all(one["box"][1] <= SIDE for one in made.regions), "named in survey pixels"


def test_the_same_bytes_again(sample: np.ndarray) -> None:
    runs = [run(sample, 0, (0, SIDE, 0, SIDE), 1, 1.0), run(sample, 1, (6, 16, 8, 18), 1, 2.0)]
    first, second = (composite_maps(*job_of(*runs), lambda share: None) for _ in range(2))
    for one, other in zip(first.arrays, second.arrays, strict=True):
        np.testing.assert_array_equal(one.values, other.values)
    assert first.arrays[0].values.shape == (2, SIDE, SIDE)
    assert first.report["composite"] == second.report["composite"]


def test_a_survey_that_is_no_map_is_refused(sample: np.ndarray) -> None:
    survey = run(sample, 0, (0, SIDE, 0, SIDE), 1, 1.0, geometry=None)
    with pytest.raises(ValueError, match="no raster"):
        composite_maps(*job_of(survey), lambda share: None)
