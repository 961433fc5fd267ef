"""A survey and added energies are one stack: the same as if it had been taken at once, and told when it is not."""

from typing import Any

import numpy as np
import pytest

from inscan.profiles.samples import NI_STATES, battery_xanes, ni_energies_ev
from inscan.profiles.xanes_standards import energy_grid
from inscan.service.messages import InferenceJob, job_key
from inscan.service.processed import Processed
from inscan.service.recipes import process

SAMPLE = battery_xanes(4, size=32)
SURVEY = ni_energies_ev(12)
ADDED = np.array([8343.0, 8346.0, 8348.0, 8349.0, 8352.0])
PHOTONS = 2000.0
WANTED = {"low_ev": 8240.0, "high_ev": 8470.0, "step_ev": 1.0, "most": 6, "precision_ev": 0.01}


def frames(energies, *, damage: float = 0.0, seed: int = 7) -> dict[str, np.ndarray]:
    """Transmission of counts; `damage` makes half of the sample thinner than it was."""
    mean = np.exp(-SAMPLE.optical_density(energies))
    mean[:, :16] *= 1 + damage
    counts = np.stack(
        [
            np.random.default_rng([seed, round(100 * e)]).poisson(PHOTONS * one)
            for e, one in zip(energies, mean, strict=True)
        ]
    ).astype(np.float32)
    return {
        "transmission": counts / np.float32(PHOTONS),
        "variance": np.maximum(counts, 1) / np.float32(PHOTONS**2),
        "measured": np.ones(counts.shape, bool),
    }


def job(recipe: Any, energies, **meta: Any) -> InferenceJob:
    table = energy_grid()
    parameters: dict[str, Any] = {"max_shift": 2.0} if recipe == "composite" else {}
    return InferenceJob(
        key=job_key("run", "primary", recipe, parameters),
        run_uid="run",
        stream="primary",
        kind="final",
        recipe=recipe,
        parameters=parameters,
        meta={
            "technique": "txm",
            "quantity": "transmission",
            "purpose": "survey",
            "energies_ev": list(energies),
            "references": [
                {"name": one.name, "energies_ev": table.tolist(), "absorption": one(table).tolist()}
                for one in NI_STATES
            ],
            "rescan": {"targets": [], "energies": WANTED},
            **meta,
        },
        spool="/nowhere",
        arrays={},
        input_digest="",
        result_path="/nowhere.h5",
        host_id="here",
    )


def together(*layers: tuple[Any, dict[str, np.ndarray]], **meta: Any) -> Processed:
    described = [
        {"uid": f"run-{k}", "region": f"energies-{k}" if k else "", "energies_ev": list(energies)}
        for k, (energies, _) in enumerate(layers)
    ]
    arrays = {f"{k}.{name}": one for k, (_, of) in enumerate(layers) for name, one in of.items()}
    made = job("composite", layers[0][0], purpose="composite", layers=described, **meta)
    return process(made, arrays, lambda _: None)


def named(processed: Processed) -> dict[str, np.ndarray]:
    return {one.name: one.values for one in processed.arrays}


@pytest.fixture(scope="module")
def survey() -> Processed:
    return process(job("subspace", SURVEY), frames(SURVEY), lambda _: None)


@pytest.fixture(scope="module")
def composite() -> Processed:
    return together((SURVEY, frames(SURVEY)), (ADDED, frames(ADDED)))


def test_it_is_the_stack_of_all_energies(composite: Processed) -> None:
    energies = np.union1d(SURVEY, ADDED)
    whole = process(job("subspace", energies), frames(energies), lambda _: None)
    assert composite.report["energies_ev"] == energies.tolist()
    assert named(composite).keys() == named(whole).keys()
    for name, values in named(whole).items():
        np.testing.assert_allclose(named(composite)[name], values, rtol=1e-4, atol=1e-5)
    assert composite.report["energies"] == whole.report["energies"]
    told = composite.report["composite"]
    assert [one["uid"] for one in told["layers"]] == ["run-0", "run-1"]
    assert all(one["found"] and one["agrees"] and one["used"] for one in told["layers"])
    assert told["text"] == "One stack of 17 energies, 5 of them added to the survey."


def test_it_says_which_energies_are_still_worth_it(survey: Processed, composite: Processed) -> None:
    before, after = (one.report["energies"] for one in (survey, composite))
    assert len(before["energies_ev"]) == len(after["energies_ev"]) == WANTED["most"]
    assert not np.isin(after["energies_ev"], [*SURVEY, *ADDED]).any()
    now = [one["predicted"]["edge_sigma_ev"][0] for one in (before, after)]
    assert now[1] < 0.5 * now[0]
    assert not after["predicted"]["reached"] and "6 more energies" in after["text"]


def test_frames_at_one_energy_are_averaged() -> None:
    twice = together((SURVEY, frames(SURVEY)), (SURVEY[4:7] + 0.01, frames(SURVEY[4:7], seed=8)))
    assert len(twice.report["energies_ev"]) == len(SURVEY)
    assert all(one["agrees"] for one in twice.report["composite"]["layers"])
    both = [frames(SURVEY, seed=seed)["transmission"] for seed in (7, 8)]
    expected = both[0].copy()
    expected[4:7] = np.mean(both, axis=0)[4:7]
    np.testing.assert_allclose(named(twice)["raw"], expected, rtol=0.03)


def test_what_changed_in_between_is_named() -> None:
    again = np.append(ADDED, SURVEY[5])
    changed = together((SURVEY, frames(SURVEY)), (again, frames(again, damage=0.1, seed=8)))
    first, second = changed.report["composite"]["layers"]
    assert first["agrees"] and not second["agrees"]
    assert "have changed" in second["reason"] and changed.report["verdict"] != "pass"
    assert any(text.startswith("energies-1: ") for text in changed.report["reasons"])


def test_a_run_that_gave_nothing_or_another_field_is_left_out() -> None:
    small = {name: one[:, :20] for name, one in frames(ADDED).items()}
    gone = {"uid": "run-9", "region": "energies-2", "reason": "it has no frames"}
    made = together((SURVEY, frames(SURVEY)), (ADDED, small), missing=[gone])
    assert made.report["energies_ev"] == SURVEY.tolist()
    layers = {one["uid"]: one for one in made.report["composite"]["layers"]}
    assert [one["used"] for one in layers.values()] == [True, False, False]
    assert "(20, 32), the survey's (32, 32)" in layers["run-1"]["reason"]
    assert layers["run-9"]["reason"] == "it has no frames"
    with pytest.raises(ValueError, match="no energy stack"):
        together((SURVEY, {}))
