"""What was predicted of rescans is compared with what they gave; what the times say corrects the next prediction."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from inscan.callbacks.profile import load_profile
from inscan.service.journal import Journal
from inscan.service.messages import InferenceJob, InferenceResult, job_key
from inscan.service.rescan_record import pace_of, records_of, summary
from inscan.service.rescan_states import Rescans
from inscan.service.rescan_worth import light_of

START = {"uid": "survey", "beamline_id": "sim_xrf", "sample": {"name": "cells"}}
GEOMETRY = {
    "shape": [40, 50],
    "slow_motor": "sample_y",
    "fast_motor": "sample_x",
    "slow_units": "um",
    "fast_units": "um",
    "slow_first": -20.0,
    "slow_last": 19.0,
    "fast_first": 0.0,
    "fast_last": 49.0,
    "snaking": True,
}
LIT = {
    "box": [10, 14, 20, 24],
    "score": 30.0,
    "target": "spots",
    "element_name": "Fe_K",
    "light": {"Fe_K": 25.0},
    "background": {"Fe_K": 5.0},
    "relative_sigma": {"Fe_K": 0.3},
}
PROPOSAL = {
    "profile": "sim_xrf",
    "regions": [
        {
            "label": "1-Fe_K",
            "target": "spots",
            "predicted": {
                "line": "Fe_K",
                "scan_s": 20.0,
                "time_s": 30.0,
                "counts": 50.0,
                "background": 10.0,
                "relative_sigma": 0.05,
                "relative_sigma_before": 0.3,
                "information": 100.0,
                "pixels": 16.0,
                "per_pixel": 16.0,
                "share": 0.5,
                "dose": 32.0,
            },
        }
    ],
}


def layer(**more: Any) -> dict[str, Any]:
    seen = {"counts": 40.0, "background": 12.0, "likelihood_ratio": 9.0, "relative_sigma": 0.06}
    return {
        "uid": "fine-1",
        "region": "1-Fe_K",
        "found": True,
        "shift": [0.2, -0.1],
        "agrees": True,
        "observed": {"Fe_K": seen},
        **more,
    }


def test_a_record_has_both_sides() -> None:
    (one,) = records_of(PROPOSAL, [layer()], lambda uid: (100.0, 130.0), min_score=8.0)
    assert (one["region"], one["run_uid"], one["profile"]) == ("1-Fe_K", "fine-1", "sim_xrf")
    assert one["predicted"]["time_s"] == 20.0, "of the scan, without the way there"
    measured = one["measured"]
    assert measured["time_s"] == 30.0
    assert (measured["counts"], measured["relative_sigma"]) == (40.0, 0.06)
    assert (measured["shift"], measured["found"], measured["agrees"]) == ([0.2, -0.1], True, True)
    assert (measured["likelihood_ratio"], measured["confirmed"]) == (9.0, True)
    assert measured["information"] > 0


def test_the_information_gained_is_what_was_predicted_where_the_counts_are() -> None:
    light = light_of(LIT)
    predicted = light.information(pixels=16.0, per_pixel=16.0, dose=32.0)
    proposal = {**PROPOSAL, "regions": [dict(PROPOSAL["regions"][0])]}
    seen = {"counts": (20.0 / 2 + 5.0) * 2, "background": 5.0 * 2}  # half of the map is margin
    (one,) = records_of(
        proposal, [layer(observed={"Fe_K": seen})], lambda uid: (None, None), min_score=8.0
    )
    assert one["measured"]["information"] == pytest.approx(predicted)


@pytest.mark.parametrize(
    ("more", "timing", "missing"),
    [
        ({"observed": None}, (1.0, 2.0), {"counts", "likelihood_ratio", "confirmed"}),
        ({"observed": {"Zn_K": {"counts": 3.0}}}, (1.0, 2.0), {"counts", "information"}),
        ({"observed": {"Fe_K": {"counts": float("nan")}}}, (1.0, 2.0), {"counts"}),
        ({}, (None, 2.0), {"time_s"}),
        ({}, (3.0, 2.0), {"time_s"}),
    ],
)
def test_what_is_not_known_is_left_out(more: Any, timing: Any, missing: set[str]) -> None:
    (one,) = records_of(PROPOSAL, [layer(**more)], lambda uid: timing, min_score=8.0)
    assert not missing & one["measured"].keys()


def test_layers_of_no_region_of_the_proposal_have_no_record() -> None:
    assert records_of(PROPOSAL, [layer(region="7-Ca_K")], lambda uid: (1, 2), min_score=8) == []


def record(ratio: float, **measured: Any) -> dict[str, Any]:
    return {"predicted": {"time_s": 10.0}, "measured": {"time_s": 10.0 * ratio, **measured}}


def test_a_correction_needs_several_records_and_is_bounded() -> None:
    assert pace_of([record(2.0)] * 4) == 1.0
    assert pace_of([record(2.0)] * 5) == 2.0
    assert pace_of([record(ratio) for ratio in (1.0, 1.1, 1.2, 9.0, 99.0)]) == pytest.approx(1.2)
    assert pace_of([record(50.0)] * 9) == 3.0
    assert pace_of([record(0.01)] * 9) == 0.5
    assert pace_of([{"predicted": {}, "measured": {"time_s": 5.0}}] * 9) == 1.0


def test_the_summary_says_what_predictions_were_worth() -> None:
    records = [record(1.5, confirmed=True, found=True)] * 3 + [record(2.5, confirmed=False)]
    told = summary(records)
    assert (told["records"], told["pace"], told["confirmed"]) == (4, 1.0, 0.75)
    assert told["time"] == {"n": 4, "median": 1.5, "low": 1.5, "high": 2.5}
    assert (told["found"], told["agrees"], told["counts"]) == (1.0, None, {"n": 0})
    assert "4 fine maps, time 1.5 of what was predicted, 75 % of the spots" in told["text"]
    assert summary([])["text"] == "nothing was measured again yet"


# In the service


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "journal.db")
    yield journal
    journal.close()


def job(uid: str, **meta: Any) -> InferenceJob:
    return InferenceJob(
        key=job_key(uid, "primary", "n2n", {}),
        run_uid=uid,
        stream="primary",
        kind="final",
        recipe="n2n",
        parameters={},
        meta={"profile": "sim_xrf", "geometry": GEOMETRY, "dwell": 0.01, **meta},
        spool="/nowhere",
        arrays={},
        input_digest="",
        result_path="/nowhere.h5",
        host_id="here",
    )


def committed(journal: Journal, one: InferenceJob, report: dict[str, Any]) -> None:
    assert journal.add_job(one)
    found = journal.leases.lease("w", 10.0)
    assert found is not None
    result = InferenceResult(
        key=one.key,
        fence=found[0].fence,
        result_path="/nowhere.h5",
        digest="",
        report={"verdict": "pass", **report},
        regions=[LIT],
        timings={},
    )
    assert journal.computed(one.key, found[0].fence, result) == "accepted"
    journal.synced(one.key, "sha256:in")
    assert journal.committed(one.key, f"result-of-{one.run_uid}")


def rescanned(journal: Journal, ours: Rescans, number: int, slower: float) -> dict[str, Any]:
    """A survey, its rescan and their composite."""
    survey, fine, both = (f"{name}-{number}" for name in ("survey", "fine", "composite"))
    journal.record_run(survey, number, "sim_xrf", {**START, "uid": survey})
    committed(journal, job(survey), {})
    (proposal,) = ours.propose(
        job(survey),
        InferenceResult(
            key="0" * 64,
            fence=1,
            result_path="",
            digest="",
            report={"verdict": "pass"},
            regions=[LIT],
            timings={},
        ),
    )
    assert journal.add_proposal(proposal)
    name, (region,) = proposal["id"], proposal["regions"]
    assert ours.update(name, "one", "running", region=region["label"])["ok"]
    marks = {
        "purpose": "fine",
        "parent_uid": survey,
        "rescan_proposal": name,
        "region": region["label"],
    }
    journal.record_run(fine, number, "sim_xrf", {**START, "uid": fine, **marks})
    took = region["predicted"]["scan_s"] * slower
    assert journal.add_job(job(fine, start_time=1000.0, stop_time=1000.0 + took))
    assert journal.fail(job(fine).key, "x", "its own result is not waited for")
    assert ours.update(name, "one", "done", [fine])["ok"]
    start = {"uid": both, "purpose": "composite", "parent_uid": survey, "raw_uids": [survey, fine]}
    journal.record_run(both, None, "sim_xrf", start)
    told = {"layers": [layer(uid=fine), layer(uid="unknown")]}
    committed(journal, job(both), {"composite": told})
    (kept,) = ours.record(both)
    assert ours.record(both) == [kept], "asked again"
    assert kept["region"] == region["label"]
    (noted,) = journal.proposals(prefix=name)[0]["measured"]
    assert noted["measured"]["time_s"] == pytest.approx(took)
    return proposal


def test_what_past_rescans_took_corrects_what_is_predicted(journal: Journal) -> None:
    shipped = load_profile("sim_xrf")
    ours = Rescans(journal, [shipped])
    first = rescanned(journal, ours, 1, 2.0)
    for number in range(2, 6):
        again = rescanned(journal, ours, number, 2.0)
        assert again["time_s"] == first["time_s"]
    told = ours.past("sim_xrf")
    assert (told["records"], told["pace"], told["profile"]) == (5, pytest.approx(2.0), "sim_xrf")
    assert told["confirmed"] == 1.0
    assert ours.past("another")["records"] == 0
    assert ours.past()["records"] == 5
    slower = rescanned(journal, ours, 6, 2.0)
    scan = first["regions"][0]["predicted"]["scan_s"]
    assert slower["time_s"] == pytest.approx(first["time_s"] + scan)
    assert ours.past("sim_xrf")["pace"] == pytest.approx(2.0), "corrections do not pile up"


def test_a_composite_that_nobody_knows_has_no_record(journal: Journal) -> None:
    assert Rescans(journal, [load_profile("sim_xrf")]).record("nobody") == []
