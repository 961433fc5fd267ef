"""What a worker makes of a job: the arrays of each recipe, doubt, regions of doubt, weights that come with the job."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inscan.callbacks.link import host_id
from inscan.models.weights import SHIPPED, load_weights
from inscan.profiles.samples import battery_xanes, cells, ni_energies_ev
from inscan.service.messages import InferenceJob, Recipe, job_key
from inscan.service.processed import Processed, ResultArray
from inscan.service.recipes import process

NAMES = ["P_K", "S_K", "K_K", "Ca_K", "Fe_K", "Zn_K"]
RESCAN = {"elements": ["Fe_K"], "scale": 1.0, "max_regions": 4, "min_score": 8.0}


def job(recipe: Recipe, kind: str = "final", refines: str = "", **meta: Any) -> InferenceJob:
    return InferenceJob(
        key=job_key("run-1", "primary", recipe, {}),
        run_uid="run-1",
        stream="primary",
        kind="final" if kind == "final" else "snapshot",
        recipe=recipe,
        parameters={},
        meta={"elements": NAMES, "run_uid": "run-1", **meta},
        spool="/nowhere",
        arrays={},
        input_digest="",
        result_path="/nowhere.h5",
        refines=refines,
        host_id=host_id(),
    )


@pytest.fixture(scope="module")
def counts() -> dict[str, np.ndarray]:
    """A small map of two channels; one corner was not measured."""
    axis = np.linspace(-6, 6, 24)
    rate = np.stack([cells(1).rate(np.full(24, y), axis) for y in axis], axis=1)
    drawn = np.random.default_rng(0).poisson(np.repeat(rate[None] * 0.02, 2, axis=0))
    measured = np.ones((24, 24), bool)
    measured[:3, :3] = False
    return {
        "counts": np.where(measured, drawn, 0).astype("f4"),
        "exposure": np.where(measured, 1.0, 0.0).astype("f4") * np.ones((2, 1, 1), "f4"),
        "measured": measured,
    }


def by_name(processed: Processed) -> dict[str, ResultArray]:
    return {array.name: array for array in processed.arrays}


def silent(fraction: float) -> None:
    assert 0 <= fraction <= 1


def test_a_map_has_its_doubt_beside_its_sigma(counts: dict[str, np.ndarray]) -> None:
    made = process(job("n2n", rescan=RESCAN | {"targets": ["spots", "doubt"]}), counts, silent)
    arrays = by_name(made)
    doubtful = arrays["doubtful"]
    assert doubtful.values.dtype == bool and doubtful.dims == ("element", "row", "col")
    assert doubtful.values.shape == arrays["sigma"].values.shape and doubtful.labels == NAMES
    assert "fine_tuned" not in made.report and made.weights is None
    assert not any("element " in text for text in made.report["doubt"]["reasons"])
    assert {region["target"] for region in made.regions} <= {"spots", "doubt"}


def test_only_first_results_name_regions(counts: dict[str, np.ndarray]) -> None:
    wanted: dict[str, Any] = {"rescan": RESCAN | {"targets": ["spots"], "min_score": 0.5}}
    first = process(job("n2n", **wanted), counts, silent)
    assert first.regions and all(region["target"] == "spots" for region in first.regions)
    for other in (
        job("n2n", "snapshot", **wanted),
        job("n2n", refines="a" * 64, **wanted),
        job("n2n", parent_uid="run-0", **wanted),
    ):
        assert process(other, counts, silent).regions == []


def test_a_finer_map_is_made_with_the_weights_that_came_with_the_job(
    counts: dict[str, np.ndarray],
) -> None:
    shipped = load_weights("superres_x2")
    card = json.dumps(dict(shipped.card) | {"born_of": {"runs": [["a", "b"]]}}).encode()
    named = {
        "named_weights": np.frombuffer(Path(SHIPPED, "superres_x2.safetensors").read_bytes(), "u1"),
        "named_card": np.frombuffer(card, "u1"),
    }
    plain = process(job("superres"), counts, silent)
    request = job("superres").model_copy(update={"parameters": {"weights": shipped.sha256}})
    made = process(request, counts | named, silent)
    np.testing.assert_array_equal(by_name(made)["values"].values, by_name(plain)["values"].values)
    assert by_name(made)["values"].values.shape == (6, 48, 48)
    assert made.report["born_of"]["runs"] == [["a", "b"]] and "born_of" not in plain.report
    damaged = named | {"named_weights": named["named_weights"][:-1]}
    with pytest.raises(ValueError, match="SHA-256"):
        process(request, counts | damaged, silent)


def test_a_stack_takes_energies_and_flats(tmp_path: Path) -> None:
    at = ni_energies_ev(30)
    stack = np.exp(-battery_xanes(0, size=32).optical_density(at))
    rng = np.random.default_rng(0)
    arrays = {
        "transmission": (rng.poisson(3000 * stack) / 3000).astype("f4"),
        "variance": (stack / 3000).astype("f4"),
        "measured": np.ones(stack.shape, bool),
        "flats": rng.poisson(3000, (4, 32, 32)).astype("f4"),
    }
    made = by_name(process(job("subspace", energies_ev=at.tolist()), arrays, silent))
    assert made["doubtful"].values.shape == made["values"].values.shape == stack.shape
    assert np.sqrt(np.mean((made["values"].values - stack) ** 2)) < 0.5 * np.sqrt(
        arrays["variance"].mean()
    )


def test_a_stack_names_the_place_that_denoising_would_leave_out() -> None:
    at = np.linspace(8310.0, 8390.0, 24)
    r, c = np.indices((48, 48))
    other = np.exp(-((r - 30) ** 2 + (c - 18) ** 2) / (2 * 2.5**2))
    thick = np.clip((21 - np.hypot(r - 24, c - 24)) / 5, 0, 1)
    pure, mixed = (
        0.2 + 0.9 / (1 + np.exp(-(at - edge) / 1.5))[:, None, None] for edge in (8345.0, 8347.0)
    )
    stack = np.exp(-thick * (pure * (1 - other) + mixed * other))
    drawn = (np.random.default_rng(0).poisson(800 * stack) / 800).astype("f4")
    arrays = {"transmission": drawn, "variance": (stack / 800).astype("f4")}
    wanted = RESCAN | {"targets": ["chemistry"], "scale": 1.5}
    made = process(job("subspace", energies_ev=at.tolist(), rescan=wanted), arrays, silent)
    assert made.regions and "eV" in made.regions[0]["reason"]
    for region in made.regions:
        r0, r1, c0, c1 = region["box"]
        assert r0 <= 30 < r1 and c0 <= 18 < c1 and region["target"] == "chemistry"
        assert set(region["relative_sigma"]) == {"transmission"}
    again = job("subspace", "snapshot", energies_ev=at.tolist(), rescan=wanted)
    assert process(again, arrays, silent).regions == []
