"""Pause, resume, abort, stop, halt and a dead service, with the simulated microscope and a real service."""

from typing import Any

import bluesky.plan_stubs as bps
import pytest
from bluesky.utils import RunEngineInterrupted

from inscan.callbacks.plans import measure_proposal


@pytest.fixture
def waiting(microscope, until):
    """A plan in a worker thread that waits for the survey's outcome, while no worker works on it."""
    workers = microscope.workers()
    assert workers
    for worker in workers:
        worker.suspend()
    before = len(microscope.starts)
    running = microscope.begin(microscope.names["survey_and_fine"](step=1.0, dwell=0.1, timeout=60))
    until(lambda: len(microscope.stops) == before + 1)
    try:
        yield running
    finally:
        for worker in workers:
            worker.resume()
        running.join()


def resumed(microscope: Any) -> None:
    for worker in microscope.workers():
        worker.resume()


def interrupted(microscope: Any, how: str) -> None:
    """Stop what the RunEngine does, at once or after a pause, from another thread than its own."""
    engine = microscope.engine
    if how.startswith("pause"):
        engine.request_pause()
        microscope.until(lambda: engine.state == "paused")
    getattr(engine, how.rsplit(" ", 1)[-1])()
    microscope.until(lambda: engine.state == "idle")


def test_a_pause_while_waiting_and_going_on(microscope, waiting, until):
    engine, moved = microscope.engine, microscope.moved
    engine.request_pause()
    waiting.join()
    assert isinstance(waiting.error, RunEngineInterrupted) and engine.state == "paused"
    survey = microscope.starts[-1]["uid"]
    resumed(microscope)
    microscope.names["inscan"].future(survey).result(60)  # the outcome comes during the pause
    assert microscope.moved == moved
    engine.resume()
    (done,) = waiting.found
    assert done.survey_uids == [survey] and len(done.fine_uids) >= 1, done.notes
    assert microscope.moved > moved
    until(lambda: microscope.proposal(done.measured[0].proposal)["state"] in ("done", "failed"))


@pytest.mark.parametrize("how", ["abort", "pause and halt"])
def test_ended_while_waiting_nothing_moves_and_the_proposal_stays_open(
    microscope, waiting, until, how
):
    moved, survey = microscope.moved, microscope.starts[-1]["uid"]
    interrupted(microscope, how)
    waiting.join()
    resumed(microscope)
    outcome = microscope.names["inscan"].future(survey).result(60)
    assert microscope.moved == moved and waiting.found == []
    (proposal,) = outcome["proposals"]
    # Nobody has taken it: somebody else may.
    assert microscope.proposal(proposal["id"])["state"] == "approved"
    microscope.ask("refuse", proposal=proposal["id"], who="test", reason="")


@pytest.mark.parametrize("how", ["pause and abort", "stop", "halt"])
def test_ended_in_a_fine_scan_the_service_knows(microscope, survey, until, how):
    name = microscope.approved(survey)
    inside = []

    def fine(region: dict[str, Any], proposal: dict[str, Any]) -> Any:
        yield from bps.open_run()
        inside.append(region)
        yield from bps.sleep(60)
        yield from bps.close_run()

    plan = measure_proposal(microscope.names["inscan"], microscope.still(name), fine)
    running = microscope.begin(plan)
    until(lambda: inside)
    interrupted(microscope, how)
    running.join()
    assert running.found == [] and len(inside) == 1
    until(lambda: microscope.proposal(name)["state"] == "failed")
    told = microscope.proposal(name)
    word = "halted" if how.endswith("halt") else "stopped"
    assert f"the plan was {word}" in told["reason"], told["reason"]
    assert told["fine_uids"] == [microscope.starts[-1]["uid"]]
    assert microscope.stops[-1]["exit_status"] == ("success" if how == "stop" else "abort")
    assert microscope.engine.suspenders == ()


def test_paused_and_resumed_in_a_fine_scan_it_goes_on(microscope, survey):
    name = microscope.approved(survey)
    paused = []

    def fine(region: dict[str, Any], proposal: dict[str, Any]) -> Any:
        yield from microscope.names["fine"](region, proposal)
        yield from bps.checkpoint()
        if not paused:
            paused.append(region)
            yield from bps.pause()

    plan = measure_proposal(microscope.names["inscan"], microscope.still(name), fine)
    running = microscope.begin(plan)
    running.join()
    assert isinstance(running.error, RunEngineInterrupted)
    assert microscope.proposal(name)["state"] == "running"
    microscope.engine.resume()
    assert running.found[0].state == "done" and len(running.found[0].regions) == 2
    microscope.until(lambda: microscope.proposal(name)["state"] == "done")


def test_without_light_nothing_is_begun_and_the_queue_goes_on(microscope, survey):
    name, moved = microscope.approved(survey, regions=1), microscope.moved
    microscope.names["shutter"].put(0)
    try:
        done = microscope.run(microscope.names["inscan_rescan"](name))
    finally:
        microscope.names["shutter"].put(1)
    assert done.state == "refused" and "the shutter is open" in done.reason
    assert microscope.moved == moved
    # Not even begun: it may be taken when there is beam.
    assert microscope.proposal(name)["state"] == "approved"
    done = microscope.run(microscope.names["inscan_rescan"](name))
    assert done.state == "done" and len(done.regions) == 1


def test_the_energy_has_changed_since(microscope, survey):
    name, moved = microscope.approved(survey), microscope.moved
    plan = measure_proposal(
        microscope.names["inscan"],
        name,
        microscope.names["fine"],
        context={"scan.energy": microscope.names["ring_current"]},
    )
    done = microscope.run(plan)
    assert done.state == "refused" and "scan.energy" in done.reason and microscope.moved == moved
