"""Waiting in a plan can be paused, aborted and given up; motion needs an approved proposal."""

import threading
from typing import Any

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import pytest
from bluesky.utils import FailedStatus, RunEngineInterrupted

from inscan.callbacks import plan_waiting
from inscan.callbacks.devices import RoiDevice
from inscan.callbacks.plans import OutcomeTimeout, coarse_to_fine, wait_for_outcome
from inscan.service.mailbox import Outcome

_REGION = {
    "slow_range": [0.2, 0.4],
    "fast_range": [0.1, 0.3],
    "box": [2, 4, 1, 3],
    "score": 12.5,
    "reason": "counts unlike the rest",
    "label": "A",
}
_PROPOSAL = {"id": "p1", "state": "approved", "step": 0.1, "regions": [_REGION]}


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(plan_waiting, "SLICE", 0.1)
    monkeypatch.setattr(plan_waiting, "ANSWER", 0.6)


@pytest.fixture
def connected(serve, link, beamline, wait_until):
    """(connection subscribed to the RunEngine, running service)"""
    service = serve()
    connection = link(service.address)
    beamline.engine.subscribe(connection)
    wait_until(lambda: connection.connected)
    return connection, service


def done(*proposals: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "status": "done",
        "result_uid": "r",
        "verdict": "pass",
        "proposals": list(proposals),
        **more,
    }


def accept(fields: dict[str, Any]) -> dict[str, Any]:
    return {}


def waiting_plan(connection: Any, run_uid: str, timeout: float, found: list[Any], **kw: Any) -> Any:
    found.append((yield from wait_for_outcome(connection, run_uid, timeout, **kw)))


def test_the_outcome_comes_while_the_plan_waits(connected, beamline, wait_until):
    connection, service = connected
    found: list[Any] = []

    def answer() -> None:
        wait_until(lambda: service.ingest.counts["WATCH"] == 1)
        service.mailbox.post(Outcome("run", done()))

    helper = threading.Thread(target=answer)
    helper.start()
    beamline.engine(waiting_plan(connection, "run", 30, found))
    helper.join()
    assert found[0]["result_uid"] == "r" and found[0]["run"] == "run"


def test_no_outcome_in_time_is_an_error_that_the_plan_can_catch(connected, beamline):
    connection, _ = connected
    with pytest.raises(OutcomeTimeout, match="no outcome of run run within 0.3 s"):
        beamline.engine(waiting_plan(connection, "run", 0.3, []))
    caught = []

    def plan():
        try:
            yield from wait_for_outcome(connection, "run", 0.3)
        except OutcomeTimeout as error:
            caught.append(str(error))
            yield from bps.mv(beamline.fast, 5)

    beamline.engine(plan())
    assert len(caught) == 1 and beamline.fast.position == 5


def test_without_a_service_waiting_ends_early_and_says_where_the_documents_are(link, beamline):
    connection = link("tcp://127.0.0.1:1")
    with pytest.raises(OutcomeTimeout, match=r"no inscan service for 0.3 s.*log"):
        beamline.engine(waiting_plan(connection, "run", 600, [], lost_after=0.3))


def test_a_pause_and_resume_while_waiting(connected, beamline, wait_until):
    connection, service = connected
    engine, found = beamline.engine, []

    def pause() -> None:
        wait_until(lambda: service.ingest.counts["WATCH"] == 1)
        engine.request_pause()

    helper = threading.Thread(target=pause)
    helper.start()
    with pytest.raises(RunEngineInterrupted):
        engine(waiting_plan(connection, "run", 30, found))
    helper.join()
    assert engine.state == "paused"

    def answer() -> None:
        wait_until(lambda: engine.state == "running")
        # Several slices of waiting pass before the answer.
        threading.Event().wait(0.35)
        service.mailbox.post(Outcome("run", done()))

    helper = threading.Thread(target=answer)
    helper.start()
    engine.resume()
    helper.join()
    assert found[0]["status"] == "done" and engine.state == "idle"


def test_an_outcome_that_came_during_a_pause_counts(connected, beamline, wait_until):
    connection, service = connected
    engine, found = beamline.engine, []

    def pause() -> None:
        wait_until(lambda: service.ingest.counts["WATCH"] == 1)
        engine.request_pause()

    helper = threading.Thread(target=pause)
    helper.start()
    with pytest.raises(RunEngineInterrupted):
        engine(waiting_plan(connection, "run", 1.0, found))
    helper.join()
    service.mailbox.post(Outcome("run", done()))
    wait_until(connection.future("run").done)
    threading.Event().wait(1.0)  # longer than the plan's timeout
    engine.resume()
    assert found[0]["status"] == "done"


def test_an_abort_while_waiting(connected, beamline, wait_until):
    connection, service = connected
    engine, found = beamline.engine, []

    def pause() -> None:
        wait_until(lambda: service.ingest.counts["WATCH"] == 1)
        engine.request_pause()

    helper = threading.Thread(target=pause)
    helper.start()
    with pytest.raises(RunEngineInterrupted):
        engine(waiting_plan(connection, "run", 30, found))
    helper.join()
    engine.abort()
    assert engine.state == "idle" and found == []
    # The future is everybody's: it still takes the outcome.
    service.mailbox.post(Outcome("run", done()))
    assert connection.future("run").result(30)["status"] == "done"


def test_survey_then_fine_scans_of_what_is_approved(connected, beamline, store):
    connection, service = connected
    store.answers["rescan_update"] = accept
    second = {**_REGION, "label": "B", "slow_range": [0.6, 0.8]}
    store.coming.append(
        done(
            {**_PROPOSAL, "regions": [_REGION, second]},
            {**_PROPOSAL, "id": "p2", "state": "suggested"},
        ),
    )
    said: list[str] = []
    found: list[Any] = []

    def plan():
        found.append(
            (
                yield from coarse_to_fine(
                    beamline.survey(), connection, beamline.fine, timeout=30, report=said.append
                )
            )
        )

    beamline.engine(plan())
    (result,) = found
    survey = beamline.starts[0]["uid"]
    assert result.survey_uids == [survey]
    assert result.fine_uids == [start["uid"] for start in beamline.fine_starts]
    marks = [
        (start["purpose"], start["parent_uid"], start["rescan_proposal"], start["region"])
        for start in beamline.fine_starts
    ]
    assert marks == [("fine", survey, "p1", "A"), ("fine", survey, "p1", "B")]
    assert "purpose" not in beamline.starts[0]
    assert beamline.slow.position == 0.8 and beamline.fast.position == 0.3
    assert result.notes == ["Proposal p2 is not measured: suggested, not approved"]
    assert any("counts unlike the rest" in text for text in said)
    updates = [fields for op, fields in store.requests if op == "rescan_update"]
    assert connection.close()
    updates = [fields for op, fields in store.requests if op == "rescan_update"]
    assert [(u["proposal"], u["state"], u["runs"], u.get("region")) for u in updates] == [
        ("p1", "running", [], "A"),
        ("p1", "running", result.fine_uids[:1], "B"),
        ("p1", "done", result.fine_uids, None),
    ]
    assert len({update["execution"] for update in updates}) == 1


def run_coarse_to_fine(beamline: Any, connection: Any, survey: Any = None, **options: Any) -> Any:
    survey = beamline.survey() if survey is None else survey
    found: list[Any] = []

    def plan():
        found.append(
            (
                yield from coarse_to_fine(
                    survey, connection, beamline.fine, **{"timeout": 30, **options}
                )
            )
        )

    beamline.engine(plan())
    return found[0]


def test_at_most_so_many_regions(connected, beamline, store):
    connection, service = connected
    store.answers["rescan_update"] = accept
    store.coming.append(done({**_PROPOSAL, "regions": [_REGION] * 3}))
    result = run_coarse_to_fine(beamline, connection, max_regions=2)
    assert len(beamline.fine_starts) == 2
    assert result.notes == ["Only 2 of 3 regions are measured (max_regions)"]


@pytest.mark.parametrize(
    ("outcome", "note"),
    [
        (done(), "nothing is proposed"),
        ({"status": "failed", "reason": "disk"}, "failed, disk"),
        ({"status": "passed_by", "reason": "no profile"}, "passed_by, no profile"),
        (done({**_PROPOSAL, "state": "refused", "reason": "too long"}), "refused, too long"),
    ],
)
def test_nothing_moves_without_an_approved_proposal(connected, beamline, store, outcome, note):
    connection, service = connected
    store.coming.append(outcome)
    result = run_coarse_to_fine(beamline, connection)
    assert beamline.fine_starts == [] and result.fine_uids == []
    assert note in result.notes[0] and store.requests == []


def test_nothing_moves_when_the_service_refuses_at_the_last_moment(connected, beamline, store):
    connection, service = connected

    def refuse(fields: dict[str, Any]) -> dict[str, Any]:
        raise RuntimeError("the sample has changed")

    store.answers["rescan_update"] = refuse
    store.coming.append(done(_PROPOSAL))
    result = run_coarse_to_fine(beamline, connection)
    assert beamline.fine_starts == []
    assert result.notes == ["Proposal p1 is not measured: the sample has changed"]
    # It may be another's by now: the refused do not report on it.
    assert [fields["state"] for _, fields in store.requests] == ["running"]


def test_nothing_moves_when_the_service_is_gone_before_it_confirms(
    connected, beamline, store, serve, wait_until
):
    connection, service = connected
    store.coming.append(done(_PROPOSAL))
    # The outcome is there before the plan asks, then the service stops.
    stopped = []

    def stop_at_outcome(text: str) -> None:
        if text.startswith("Survey done"):
            uid = beamline.starts[0]["uid"]
            connection.future(uid).result(30)
            service.stop()
            stopped.append(uid)

    result = run_coarse_to_fine(beamline, connection, report=stop_at_outcome)
    assert stopped and beamline.fine_starts == []
    assert "could not be confirmed" in result.notes[0]
    # The withdrawal waits for the next service.
    store.answers["rescan_update"] = accept
    serve(service.address)
    wait_until(lambda: store.requests)
    assert {fields["state"] for _, fields in store.requests} == {"refused"}


def test_a_person_may_approve_or_refuse_while_the_plan_waits(connected, beamline, store):
    connection, _ = connected
    asked = [
        {**_PROPOSAL, "id": name, "state": "suggested", "mode": mode}
        for name, mode in (("yes", "approve"), ("no", "approve"), ("shown", "suggest"))
    ]
    store.coming.append(done(*asked))
    store.answers["rescan_update"] = accept
    decisions = iter([{}, {"no": "refused"}, {"yes": "approved"}])

    def proposals(fields: dict[str, Any]) -> dict[str, Any]:
        assert fields == {"run_uid": beamline.starts[0]["uid"]}
        for name, state in next(decisions).items():
            next(one for one in asked if one["id"] == name)["state"] = state
        return {"proposals": asked}

    store.answers["proposals"] = proposals
    said: list[str] = []
    result = run_coarse_to_fine(beamline, connection, approval_timeout=60, report=said.append)
    assert [start["rescan_proposal"] for start in beamline.fine_starts] == ["yes"]
    assert any("inscan approve yes" in text and "approve no" in text for text in said)
    assert result.notes == [
        "Proposal no is not measured: refused, not approved",
        "Proposal shown is not measured: suggested, not approved (rescan.mode is suggest: regions are only shown)",
    ]


def test_an_approval_that_does_not_come_means_no_motion(connected, beamline, store):
    connection, _ = connected
    waiting = {**_PROPOSAL, "state": "suggested", "mode": "approve"}
    store.coming.append(done(waiting))
    store.answers["proposals"] = lambda fields: {"proposals": [waiting]}
    result = run_coarse_to_fine(beamline, connection, approval_timeout=0.3)
    assert beamline.fine_starts == []
    assert result.notes == [
        "Proposal p1 is not measured: suggested, not approved (inscan approve p1)"
    ]


def test_the_state_of_the_beamline_is_told_before_motion(connected, beamline, store):
    connection, _ = connected
    store.coming.append(done(_PROPOSAL))
    store.answers["rescan_update"] = accept
    run_coarse_to_fine(beamline, connection, context=lambda: {"scan.energy": 12.5})
    assert store.requests[0][1]["context"] == {"scan.energy": 12.5}


def test_a_timeout_means_no_motion_unless_a_plan_is_given(connected, beamline):
    connection, _ = connected
    result = run_coarse_to_fine(beamline, connection, timeout=0.3)
    assert beamline.fine_starts == [] and "No rescan: no outcome" in result.notes[0]
    result = run_coarse_to_fine(
        beamline, connection, timeout=0.3, on_timeout=lambda: beamline.fine(_REGION, {})
    )
    survey, fine = beamline.starts[1:]
    assert result.fine_uids == [fine["uid"]] and fine["parent_uid"] == survey["uid"]


def test_an_aborted_fine_scan_is_reported(connected, beamline, store):
    connection, service = connected
    store.answers["rescan_update"] = accept
    store.coming.append(done(_PROPOSAL))

    def fine(region: dict[str, Any], proposal: dict[str, Any]) -> Any:
        yield from bps.open_run()
        yield from bps.pause()
        yield from bps.close_run()

    with pytest.raises(RunEngineInterrupted):
        beamline.engine(coarse_to_fine(beamline.survey(), connection, fine, timeout=30))
    beamline.engine.abort()
    assert connection.close()
    updates = [fields for _, fields in store.requests]
    assert [u["state"] for u in updates] == ["running", "failed"]
    assert updates[1]["runs"] == [beamline.fine_starts[0]["uid"]]
    assert updates[1]["reason"] == "the plan was stopped (RequestAbort)"
    assert beamline.stops[-1]["exit_status"] == "abort"


def test_a_pause_in_the_survey_and_one_in_the_fine_scan(connected, beamline, store):
    connection, service = connected
    store.answers["rescan_update"] = accept
    store.coming.append(done(_PROPOSAL))
    found: list[Any] = []

    def interrupted(plan: Any) -> Any:
        yield from plan
        yield from bps.checkpoint()
        yield from bps.pause()

    def whole():
        found.append(
            (
                yield from coarse_to_fine(
                    interrupted(beamline.survey()),
                    connection,
                    lambda region, proposal: interrupted(beamline.fine(region, proposal)),
                    timeout=30,
                )
            )
        )

    engine = beamline.engine
    with pytest.raises(RunEngineInterrupted):
        engine(whole())
    with pytest.raises(RunEngineInterrupted):
        engine.resume()
    engine.resume()
    assert found[0].survey_uids == [beamline.starts[0]["uid"]]
    assert found[0].fine_uids == [beamline.starts[1]["uid"]] and len(beamline.starts) == 2


def test_a_survey_of_several_runs_is_followed_run_by_run(connected, beamline, store):
    connection, service = connected
    store.answers["rescan_update"] = accept
    store.coming.extend([done(_PROPOSAL), done({**_PROPOSAL, "id": "p2"})])

    def two_surveys():
        yield from beamline.survey()
        yield from beamline.survey()

    result = run_coarse_to_fine(beamline, connection, survey=two_surveys())
    assert len(result.survey_uids) == 2
    parents = [start["parent_uid"] for start in beamline.starts[2:]]
    assert parents == result.survey_uids


def test_the_device_completes_with_the_outcome_and_records_the_regions(connected, beamline, store):
    connection, service = connected
    store.coming.append(done(_PROPOSAL, {**_PROPOSAL, "state": "suggested"}))
    roi: Any = RoiDevice(connection, timeout=30, name="roi")

    def plan():
        uid = yield from beamline.survey()
        yield from bps.mv(roi.run_uid, uid)
        yield from bps.trigger(roi, wait=True)
        low, high = roi.regions[0]["fast_range"]
        yield from bp.scan([beamline.detector, roi], beamline.fast, low, high, 3)

    beamline.engine(plan())
    event = beamline.events[-1]["data"]
    assert event["roi_run_uid"] == beamline.starts[0]["uid"]
    assert (event["roi_count"], event["roi_verdict"], event["roi_result_uid"]) == (1, "pass", "r")
    assert event["roi_proposal"] == "p1" == roi.proposals[0]["id"]
    assert list(event["roi_boxes"][0]) == [0.2, 0.4, 0.1, 0.3]
    assert event["roi_scores"][0] == 12.5 and len(event["roi_boxes"]) == 16
    assert beamline.fast.position == 0.3


def test_the_device_fails_with_the_reason(connected, beamline, store):
    connection, _ = connected
    store.outcomes["bad"] = {"status": "failed", "reason": "no I0"}
    roi: Any = RoiDevice(connection, timeout=0.3, name="roi")

    def plan(uid: str):
        yield from bps.mv(roi.run_uid, uid)
        yield from bps.trigger(roi, wait=True)

    no_run: Any = None  # what a plan returns that forgets to return its run's uid
    for uid, reason in (
        ("bad", "no I0"),
        ("late", "specified timeout"),
        ("", "uid is empty"),
        (no_run, "uid is None"),
    ):
        with pytest.raises(FailedStatus) as caught:
            beamline.engine(plan(uid))
        assert reason in str(caught.value.__cause__)
