"""What becomes of proposals: decided by people, taken by plans region by region, tried again, closed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from inscan.callbacks.profile import BeamlineProfile, load_profile
from inscan.callbacks.rescan_section import Rescan, SoftLimit
from inscan.service.journal import Journal
from inscan.service.messages import InferenceJob, InferenceResult, job_key
from inscan.service.rescan_states import NotAllowed, Rescans

START = {
    "uid": "survey",
    "beamline_id": "sim_xrf",
    "sample": {"name": "cells"},
    "scan": {"energy": 12.0},
}
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
BOXES = [
    {"box": [10, 14, 20, 24], "score": 30.0, "reason": "Fe_K excess", "element_name": "Fe_K"},
    {"box": [30, 33, 5, 9], "score": 50.0, "reason": "Ca_K excess", "element_name": "Ca_K"},
]


def job(
    uid: str = "survey", geometry: dict[str, Any] | None = None, dwell: float = 0.01
) -> InferenceJob:
    return InferenceJob(
        key=job_key(uid, "primary", "n2n", {}),
        run_uid=uid,
        stream="primary",
        kind="final",
        recipe="n2n",
        parameters={},
        meta={"profile": "sim_xrf", "geometry": geometry or GEOMETRY, "dwell": dwell},
        spool="/nowhere",
        arrays={},
        input_digest="",
        result_path="/nowhere.h5",
        host_id="here",
    )


def result(
    boxes: list[dict[str, Any]] | None = None, verdict: str = "pass", **report: Any
) -> InferenceResult:
    return InferenceResult(
        key="0" * 64,
        fence=1,
        result_path="/nowhere.h5",
        digest="sha256:0",
        report={"verdict": verdict, **report},
        regions=BOXES if boxes is None else boxes,
        timings={},
    )


def profile(**rules: Any) -> BeamlineProfile:
    shipped = load_profile("sim_xrf")
    return shipped.model_copy(update={"rescan": shipped.rescan.model_copy(update=rules)})


class Clock:
    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "journal.db")
    journal.record_run("survey", 1, "sim_xrf", START)
    yield journal
    journal.close()


def rescans(journal: Journal, clock: Clock | None = None, **rules: Any) -> Rescans:
    return Rescans(journal, [profile(**rules)], now=clock or Clock())


def suggested(journal: Journal, found: Rescans) -> str:
    (proposal,) = found.propose(job(), result())
    assert journal.add_proposal(proposal)
    return proposal["id"]


def test_a_person_approves_and_a_plan_takes_it_once(journal: Journal) -> None:
    ours = rescans(journal, mode="approve")
    name = suggested(journal, ours)
    refused = ours.update(name, "one", "running")
    assert not refused["ok"]
    assert "suggested" in refused["reason"]
    assert ours.approve(name[:8], "ada", "worth it")["state"] == "approved"
    assert ours.update(name, "one", "running")["ok"]
    assert ours.update(name, "one", "running")["ok"], "the answer may have been lost"
    late = ours.update(name, "two", "running")
    assert not late["ok"]
    assert "is running" in late["reason"]
    assert not ours.update(name, "two", "done")["ok"]
    assert ours.update(name, "one", "done", ["fine-1", "fine-2"])["ok"]
    assert ours.update(name, "one", "done", ["fine-1", "fine-2"])["ok"]
    found = ours.find(name)
    assert "fine-1, fine-2" in found["reason"]
    assert [(step["state"], step["who"]) for step in found["history"]] == [
        ("suggested", "inscan"),
        ("approved", "ada"),
        ("running", "plan one"),
        ("done", "plan one"),
    ]
    with pytest.raises(NotAllowed, match="is done"):
        ours.refuse(name, "ada")


def test_in_mode_suggest_nobody_can_approve(journal: Journal) -> None:
    ours = rescans(journal, mode="suggest")
    with pytest.raises(NotAllowed, match=r"mode: rescan\.mode is suggest"):
        ours.approve(suggested(journal, ours), "ada")


def test_a_refusal_sticks(journal: Journal) -> None:
    ours = rescans(journal, mode="auto")
    name = suggested(journal, ours)
    assert ours.refuse(name, "ada", "radiation damage")["state"] == "refused"
    answer = ours.update(name, "one", "running")
    assert not answer["ok"]
    assert "radiation damage" in answer["reason"]
    assert ours.propose(job(), result()) == []


def test_a_changed_beamline_refuses_also_after_approval(journal: Journal) -> None:
    ours = rescans(journal, mode="approve")
    name = suggested(journal, ours)
    ours.approve(name, "ada")
    answer = ours.update(name, "one", "running", context={"scan.energy": 7.2})
    assert answer == {
        "ok": False,
        "reason": "state_changed: scan.energy was 12.0 when this was proposed and is 7.2 now",
    }
    other = {**START, "uid": "next", "sample": {"name": "another"}}
    journal.record_run("next", 2, "sim_xrf", other)
    answer = ours.update(name, "one", "running")
    assert not answer["ok"]
    assert answer["reason"].startswith("state_changed: sample was")
    assert ours.find(name)["state"] == "approved"


def test_runs_of_other_beamlines_change_nothing(journal: Journal) -> None:
    ours = rescans(journal)
    name = suggested(journal, ours)
    journal.record_run("x", 2, "sim_txm", {"beamline_id": "sim_txm", "sample": "other"})
    assert ours.update(name, "one", "running")["ok"]


def test_old_proposals_expire(journal: Journal) -> None:
    clock = Clock()
    ours = rescans(journal, clock)
    name = suggested(journal, ours)
    assert ours.expire() == 0
    clock.now += Rescan().expires + 1
    answer = ours.update(name, "one", "running")
    assert not answer["ok"]
    assert "expired" in answer["reason"]
    assert ours.find(name)["state"] == "expired"
    assert ours.expire() == 0


def test_a_plan_that_was_stopped_says_so(journal: Journal) -> None:
    ours = rescans(journal)
    name = suggested(journal, ours)
    assert ours.update(name, "one", "running")["ok"]
    assert ours.update(name, "one", "refused", ["fine-1"], "Ctrl-C")["ok"]
    assert ours.find(name)["reason"] == "Ctrl-C; fine runs: fine-1"
    assert not ours.update(name, "one", "bogus")["ok"]


def test_ids_are_found_by_their_beginning_or_not_at_all(journal: Journal) -> None:
    ours = rescans(journal)
    name = suggested(journal, ours)
    assert ours.find(name[:6])["id"] == name
    with pytest.raises(LookupError, match="no proposal 'zzz'"):
        ours.find("zzz")
    with pytest.raises(LookupError, match="no proposal ''"):
        ours.find("")


def test_a_person_may_stop_what_is_being_measured(journal: Journal) -> None:
    ours = rescans(journal)
    name = suggested(journal, ours)
    assert ours.update(name, "one", "running", region="1-Ca_K")["ok"]
    ours.refuse(name, "ada", "damage")
    answer = ours.update(name, "one", "running", ["fine-1"], region="2-Fe_K")
    assert not answer["ok"] and "damage" in answer["reason"]
    assert not ours.update(name, "one", "refused", ["fine-1"])["ok"]
    found = ours.find(name)
    assert (found["state"], found["fine_uids"]) == ("refused", ["fine-1"])
    assert [one["region"] for one in found["begun"]] == ["1-Ca_K"]


# Regions, one by one


def test_every_region_is_allowed_once(journal: Journal) -> None:
    ours = rescans(journal, retries=0)
    name = suggested(journal, ours)
    first, second = "1-Ca_K", "2-Fe_K"
    assert ours.update(name, "one", "running", region=first)["ok"]
    assert ours.update(name, "one", "running", region=first)["ok"], "the answer was lost"
    assert ours.find(name)["covered"] == []
    moved = ours.update(name, "one", "running", ["fine-1"], region=first)
    assert moved["reason"].startswith("attempt: attempt 1 at region 1-Ca_K was begun already")
    again = ours.update(name, "one", "running", ["fine-1"], region=first, attempt=2)
    assert again["reason"] == ("retries: region 1-Ca_K was begun 1 times, 0 retries are allowed")
    assert ours.update(name, "one", "running", ["fine-1"], region=second)["ok"]
    back = ours.update(name, "one", "running", ["fine-1"], region=first)
    assert back["reason"].startswith("attempt: ")
    other = ours.update(name, "one", "running", ["fine-1"], region="9-Zn_K")
    assert other["reason"].startswith(
        "region: '9-Zn_K' is none of this proposal's (1-Ca_K, 2-Fe_K)"
    )
    assert ours.update(name, "one", "done", ["fine-1", "fine-2"])["ok"]
    found = ours.find(name)
    assert (found["covered"], found["left"]) == ([first, second], [])
    assert found["fine_uids"] == ["fine-1", "fine-2"]


def test_a_region_that_failed_may_be_tried_again_so_often(journal: Journal) -> None:
    ours = rescans(journal, retries=1)
    name = suggested(journal, ours)
    label = "1-Ca_K"
    assert ours.update(name, "one", "running", region=label)["ok"]
    assert ours.update(name, "one", "running", ["a"], region=label, attempt=2)["ok"]
    third = ours.update(name, "one", "running", ["a", "b"], region=label, attempt=3)
    assert third["reason"].startswith("retries: ")
    assert ours.find(name)["covered"] == [], "it failed, as far as is known"


def test_a_word_after_a_scan_says_that_it_is_measured(journal: Journal) -> None:
    ours = rescans(journal)
    name = suggested(journal, ours)
    assert ours.update(name, "one", "running", region="1-Ca_K")["ok"]
    assert ours.update(name, "one", "running", ["fine-1"])["ok"]
    assert ours.find(name)["covered"] == ["1-Ca_K"]


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"shift": [0.0, 2.5]}, "max_shift: a drift of 2.5 survey pixels, 2 are followed"),
        ({"shift": [float("nan"), 0.0]}, "max_shift: "),
        ({"shift": [1.0]}, "shift: expected [slow, fast]"),
        ({"shift": "ab"}, "shift: expected [slow, fast]"),
        ({"attempt": 0}, "attempt: expected 1 or more"),
        ({"context": {"sample_x": 900.0}}, "soft_limits: sample_x would go to 900 um"),
        ({"context": {"sample_x": float("nan")}}, "soft_limits: sample_x would go to nan"),
        ({"context": ["theta"]}, "context: expected a mapping"),
        ({"runs": [1]}, "runs: a uid is a text"),
        ({"runs": "abc"}, "runs: expected at most"),
    ],
)
def test_nothing_moves_where_a_region_may_not_be_measured(
    journal: Journal, fields: dict[str, Any], rule: str
) -> None:
    ours = rescans(journal)
    name = suggested(journal, ours)
    answer = ours.update(name, "one", "running", region="1-Ca_K", **fields)
    assert not answer["ok"] and answer["reason"].startswith(rule)
    assert ours.find(name)["begun"] == []
    assert ours.find(name)["state"] == "approved", "somebody else may still take it"


def test_limits_hold_for_a_region_that_follows_a_drift(journal: Journal) -> None:
    limits = {
        "sample_x": SoftLimit(low=-500, high=500, units="um"),
        "sample_y": SoftLimit(low=-500, high=15.0, units="um"),
    }
    ours = rescans(journal, soft_limits=limits)
    name = suggested(journal, ours)
    # It ends at 13.5, and goes half a micrometre on.
    assert ours.update(name, "one", "running", region="1-Ca_K", shift=[0.9, 0.0])["ok"]
    answer = ours.update(name, "one", "running", ["a"], region="1-Ca_K", shift=[1.1, 0], attempt=2)
    assert answer["reason"].startswith("soft_limits: sample_y would go to 15.1 um")


def test_a_drift_is_not_followed_where_the_profile_says_so(journal: Journal) -> None:
    ours = rescans(journal, follow_drift=False)
    name = suggested(journal, ours)
    assert ours.find(name)["follow_drift"] is False
    answer = ours.update(name, "one", "running", region="1-Ca_K", shift=[0.1, 0.0])
    assert answer["reason"].startswith("follow_drift: ")


def test_the_beamline_is_compared_before_every_region(journal: Journal) -> None:
    ours = rescans(journal, tolerance={"theta": 0.1})
    start = {**START, "uid": "survey-2", "theta": 1.0}
    journal.record_run("survey-2", 2, "sim_xrf", start)
    (proposal,) = ours.propose(job("survey-2"), result())
    journal.add_proposal(proposal)
    name = proposal["id"]
    assert proposal["context"]["theta"] == 1.0
    state = {"theta": 1.05, "motor": 5.0}
    assert ours.update(name, "one", "running", region="1-Ca_K", context=state)["ok"]
    answer = ours.update(name, "one", "running", ["a"], region="2-Fe_K", context={"theta": 1.2})
    assert answer["reason"].startswith("state_changed: theta was 1.0")
    journal.record_run("later", 3, "sim_xrf", {**start, "uid": "later"})
    tilted = job("later").model_copy(update={"meta": {**job().meta, "baseline": {"sample_z": 3.0}}})
    journal.add_job(tilted)
    assert ours.update(name, "one", "running", ["a"], region="2-Fe_K", context=state)["ok"]


def test_the_baseline_of_later_runs_is_compared(journal: Journal) -> None:
    ours = rescans(journal)

    def surveyed(uid: str, height: float) -> None:
        journal.record_run(uid, 2, "sim_xrf", {**START, "uid": uid})
        base = job(uid)
        meta = {**base.meta, "baseline": {"sample_z": height}}
        journal.add_job(base.model_copy(update={"meta": meta}))

    surveyed("survey-2", 3.0)
    (proposal,) = ours.propose(job("survey-2"), result())
    journal.add_proposal(proposal)
    assert proposal["context"]["sample_z"] == 3.0
    surveyed("later", 3.0)
    assert ours.update(proposal["id"], "one", "running", region="1-Ca_K")["ok"]
    surveyed("latest", 3.4)
    answer = ours.update(proposal["id"], "one", "running", ["a"], region="2-Fe_K")
    assert answer["reason"].startswith("state_changed: sample_z was 3.0")


# All of a survey


def places(ours: Rescans, journal: Journal, *boxes: list[int]) -> dict[str, Any]:
    journal.add_job(job())
    found = journal.leases.lease("w", 10.0)
    if found is not None:
        journal.computed(found[0].key, found[0].fence, result())
        journal.committed(found[0].key, "result-1")
    given = [{"box": list(box), "score": 5.0, "reason": "like that one"} for box in boxes]
    return ours.propose_places("survey", given, "ada", "more like these")["proposal"]


def test_places_that_a_person_chose_are_suggested_within_the_same_limits(journal: Journal) -> None:
    ours = rescans(journal, mode="auto", max_regions=2)
    proposal = places(ours, journal, [0, 4, 0, 4])
    assert (proposal["state"], proposal["who"], proposal["result_uid"]) == (
        "suggested",
        "ada",
        "result-1",
    )
    assert proposal["regions"][0]["target"] == "like"
    assert proposal["reason"].startswith("more like these; 1 of 1 regions")
    assert places(ours, journal, [0, 4, 0, 4])["id"] == proposal["id"], "asked again"
    assert ours.approve(proposal["id"], "ada")["state"] == "approved"
    other = places(ours, journal, [20, 24, 0, 4], [30, 34, 0, 4])
    assert len(other["regions"]) == 1, "one of two is taken"
    assert other["dropped"][0]["rule"] == "max_regions"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "expected 1 to 100"),
        ("ab", "expected 1 to 100"),
        ([{"score": 1.0}], "needs a box"),
        ([{"box": [0, 1, 2]}], "needs a box"),
        ([{"box": [0, 1.5, 0, 2]}], "whole survey pixels"),
        ([{"box": [0, 400, 0, 2]}], "within"),
    ],
)
def test_places_must_be_boxes_of_the_map(journal: Journal, given: Any, said: str) -> None:
    ours = rescans(journal)
    places(ours, journal, [0, 4, 0, 4])
    with pytest.raises(ValueError, match=said):
        ours.propose_places("survey", given, "ada")
    with pytest.raises(LookupError, match="no result"):
        ours.propose_places("nobody", [{"box": [0, 1, 0, 1]}], "ada")


def test_budgets_are_of_the_survey_and_looked_at_again_when_somebody_approves(
    journal: Journal,
) -> None:
    ours = rescans(journal, mode="approve", max_regions=3)
    name = suggested(journal, ours)
    other = places(ours, journal, [0, 4, 40, 44], [0, 4, 30, 34])
    assert len(other["regions"]) == 2, "what is only suggested costs nothing"
    ours.approve(name, "ada")
    with pytest.raises(NotAllowed, match=r"max_regions: 3 regions of this survey are taken, 3 "):
        ours.approve(other["id"], "ada")


def composite(journal: Journal, *fine: tuple[str, str, str]) -> InferenceJob:
    """A composite of the survey and fine runs (uid, proposal, region), as the service records it."""
    for uid, proposal, region in fine:
        start = {
            **START,
            "uid": uid,
            "purpose": "fine",
            "rescan_proposal": proposal,
            "region": region,
        }
        journal.record_run(uid, None, "sim_xrf", {**start, "parent_uid": "survey"})
    uid = f"composite-{len(fine)}"
    start = {"uid": uid, "purpose": "composite", "parent_uid": "survey", "beamline_id": "sim_xrf"}
    journal.record_run(uid, None, "sim_xrf", {**start, "raw_uids": [one[0] for one in fine]})
    return job(uid)


def test_rounds_follow_each_other_within_the_budgets_of_the_survey(journal: Journal) -> None:
    ours = rescans(journal, retries=0, max_regions=3, max_rounds=2)
    journal.add_job(job())
    name = suggested(journal, ours)
    short = [{**box, "target": "precision"} for box in BOXES]
    first, second = ("fine-1", name, "1-Ca_K"), ("fine-2", name, "2-Fe_K")
    assert ours.update(name, "one", "running", region="1-Ca_K")["ok"]
    assert ours.propose(composite(journal, first), result(short)) == [], "not all is measured yet"
    assert ours.update(name, "one", "running", ["fine-1"], region="2-Fe_K")["ok"]
    assert ours.update(name, "one", "done", ["fine-1", "fine-2"])["ok"]
    (again,) = ours.propose(composite(journal, first, second), result(short))
    assert (again["round"], again["survey_uid"], again["run_uid"]) == (2, "survey", "composite-2")
    assert len(again["regions"]) == 1, "three regions are allowed in all"
    assert journal.add_proposal(again)
    assert ours.propose(job("composite-2"), result(short)) == [], "once for each composite"
    label = again["regions"][0]["label"]
    assert ours.update(again["id"], "two", "running", region=label)["ok"]
    assert ours.update(again["id"], "two", "done", ["fine-3"])["ok"]
    third = composite(journal, first, second, ("fine-3", again["id"], label))
    (last,) = ours.propose(third, result(short))
    assert (last["state"], last["round"]) == ("refused", 3)
    assert last["reason"].startswith("max_rounds: ")


def test_what_lies_on_what_was_measured_is_not_measured_again_unless_for_precision(
    journal: Journal,
) -> None:
    ours = rescans(journal, retries=0)
    journal.add_job(job())
    name = suggested(journal, ours)
    assert ours.update(name, "one", "running")["ok"]
    assert ours.update(name, "one", "done", ["fine-1"])["ok"]
    made = composite(journal, ("fine-1", name, "1-Ca_K"))
    (again,) = ours.propose(made, result())
    assert (again["state"], again["dropped"][0]["rule"]) == ("refused", "overlap")
    ours = rescans(journal, retries=0, max_dose=50.0)
    (again,) = ours.propose(made, result([{**box, "target": "precision"} for box in BOXES]))
    assert again["dropped"][0]["rule"] == "max_dose"
    assert again["dropped"][0]["value"] == pytest.approx(64.0), "twice 32"


def test_the_best_that_waits_is_of_all_surveys(journal: Journal) -> None:
    ours = rescans(journal, least_worth=0.5)
    strong = {"light": {"Fe_K": 500.0}, "background": {"Fe_K": 1.0}, "element_name": "Fe_K"}
    weak = {"light": {"Fe_K": 1.1}, "background": {"Fe_K": 1.0}, "element_name": "Fe_K"}
    (first,) = ours.propose(job(), result([{**BOXES[0], **strong}]))
    assert journal.add_proposal(first)
    journal.record_run("survey-2", 2, "sim_xrf", {**START, "uid": "survey-2"})
    (second,) = ours.propose(job("survey-2"), result([{**BOXES[0], **weak}]))
    assert second["reason"].startswith("least_worth: ")
    assert f"the best that waits (region 1-Fe_K of proposal {first['id'][:8]})" in second["reason"]
    ours.refuse(first["id"], "ada")
    (second,) = ours.propose(job("survey-2"), result([{**BOXES[0], **weak}]))
    assert second["state"] == "approved", "nothing better waits any more"


# Queue, failures, silence


def test_what_is_queued_was_looked_at_again(journal: Journal) -> None:
    ours = rescans(journal, through="queue")
    name = suggested(journal, ours)
    assert [one["id"] for one in ours.to_queue()] == [name]
    assert rescans(journal).to_queue() == [], "its profile has plans that wait"
    assert ours.queue(name, "queue", "item 1")["state"] == "queued"
    assert ours.to_queue() == []
    with pytest.raises(NotAllowed, match="is queued"):
        ours.queue(name, "queue")
    assert ours.unqueue(name, "queue", "the item is gone")["state"] == "approved"
    journal.record_run("next", 2, "sim_xrf", {**START, "uid": "next", "sample": "another"})
    with pytest.raises(NotAllowed, match="state_changed: sample"):
        ours.queue(name, "queue")


def test_a_queued_proposal_is_taken_by_its_plan(journal: Journal) -> None:
    ours = rescans(journal)
    name = suggested(journal, ours)
    ours.queue(name, "queue")
    assert ours.update(name, "one", "running", region="1-Ca_K")["ok"]


def fail(ours: Rescans, name: str, execution: str, reason: str) -> None:
    """The first region is measured, the second fails."""
    labels = [one["label"] for one in ours.find(name)["regions"]]
    runs: list[str] = []
    for label in labels[:2]:
        assert ours.update(name, execution, "running", runs, region=label)["ok"]
        runs = [*runs, f"{execution}-{label}"]
    assert ours.update(name, execution, "failed", runs, reason)["ok"]
    assert ours.update(name, execution, "failed", runs, reason)["ok"], "the answer was lost"


def test_in_mode_auto_a_failed_rescan_is_taken_again_where_it_was_not_measured(
    journal: Journal,
) -> None:
    ours = rescans(journal, mode="auto", retries=1)
    name = suggested(journal, ours)
    fail(ours, name, "one", "the fine scan failed: timeout")
    found = ours.find(name)
    assert (found["state"], found["who"], found["attempts"]) == ("approved", "inscan", 1)
    assert found["covered"] == ["1-Ca_K"]
    assert [one["label"] for one in found["regions"]] == ["2-Fe_K"], "what is left of it"
    assert [one["label"] for one in found["all_regions"]] == ["1-Ca_K", "2-Fe_K"]
    measured = ours.update(name, "two", "running", region="1-Ca_K")
    assert not measured["ok"]
    assert ours.update(name, "two", "running", region="2-Fe_K")["ok"]
    assert ours.update(name, "two", "failed", ["x"], "the fine scan failed: again")["ok"]
    assert ours.find(name)["state"] == "failed", "once is enough"
    with pytest.raises(NotAllowed, match="retries: it was taken 2 times"):
        ours.approve(name, "ada")


@pytest.mark.parametrize(
    "reason", ["the plan was stopped (RequestAbort)", "drift: it was not found in the survey"]
)
def test_what_somebody_stopped_does_not_begin_again_by_itself(
    journal: Journal, reason: str
) -> None:
    ours = rescans(journal, mode="auto", retries=2)
    name = suggested(journal, ours)
    fail(ours, name, "one", reason)
    assert ours.find(name)["state"] == "failed"
    assert ours.approve(name, "ada", "go on")["state"] == "approved"


def test_in_mode_approve_a_person_lets_a_failed_rescan_be_taken_again(journal: Journal) -> None:
    ours = rescans(journal, mode="approve", retries=1)
    name = suggested(journal, ours)
    ours.approve(name, "ada")
    fail(ours, name, "one", "the fine scan failed: timeout")
    assert ours.find(name)["state"] == "failed"
    assert ours.approve(name, "ada")["state"] == "approved"
    assert ours.update(name, "two", "running", region="2-Fe_K")["ok"]


def test_without_retries_a_failure_is_the_end(journal: Journal) -> None:
    ours = rescans(journal, mode="auto", retries=0)
    name = suggested(journal, ours)
    fail(ours, name, "one", "the fine scan failed: timeout")
    assert ours.find(name)["state"] == "failed"
    with pytest.raises(NotAllowed, match="retries: "):
        ours.approve(name, "ada")


def test_a_plan_that_is_not_heard_of_has_failed(journal: Journal) -> None:
    clock = Clock()
    ours = rescans(journal, clock, retries=1, expires=100.0)
    name = suggested(journal, ours)
    assert ours.update(name, "one", "running")["ok"]
    clock.now += 99
    assert ours.expire() == 0
    assert ours.update(name, "one", "running")["ok"], "it is alive"
    clock.now += 99
    assert ours.expire() == 0
    clock.now += 2
    assert ours.expire() == 1
    found = ours.find(name)
    assert found["state"] == "failed"
    assert found["reason"] == "expires: its plan was not heard of for 100 s"
    assert [one["region"] for one in found["begun"]] == ["1-Ca_K", "2-Fe_K"], "it may have moved"
    late = ours.update(name, "one", "running", ["a"], region="2-Fe_K")
    assert not late["ok"], "and it must not move any more"


def test_a_run_of_a_silent_plan_is_a_sign_of_life(journal: Journal) -> None:
    clock = Clock()
    ours = rescans(journal, clock, expires=100.0)
    name = suggested(journal, ours)
    assert ours.update(name, "one", "running", region="1-Ca_K")["ok"]
    start = {**START, "uid": "fine", "rescan_proposal": name, "region": "1-Ca_K", "purpose": "fine"}
    journal.record_run("fine", None, "sim_xrf", start)  # now, long after the clock of this test
    clock.now += 200
    assert ours.expire() == 0


def test_the_mode_of_now_counts(journal: Journal) -> None:
    name = suggested(journal, rescans(journal, mode="auto"))
    for mode, rule in (
        ("off", "mode: rescan.mode is off"),
        ("suggest", "mode: rescan.mode is sug"),
    ):
        answer = rescans(journal, mode=mode).update(name, "one", "running")
        assert answer["reason"].startswith(rule)
    foreign = Rescans(journal, [], now=Clock())
    assert foreign.update(name, "one", "running")["reason"].startswith("profile: 'sim_xrf' is none")
