"""Approved proposals in a real queue: at the front, once, and never started with somebody else's plans."""

import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from bluesky_queueserver_api import BPlan

from inscan.callbacks.profile import shipped_profiles
from inscan.callbacks.request import request
from inscan.service import doctor
from inscan.service.queue_client import QueueClient
from inscan.service.queue_doctor import look
from inscan.service.queue_items import marks_of
from inscan.service.queue_rescans import OPEN
from inscan.service.settings import load_settings

# The official client leaves its ZeroMQ contexts to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Unclosed context:ResourceWarning"),
    pytest.mark.timeout(240),
]


def uids(server) -> list[str]:
    return [item["item_uid"] for item in server.items()]


def write_profile(path: Path) -> None:
    """The simulated beamline, with two regions at most, which go through the queue."""
    content = yaml.safe_load(shipped_profiles()["sim_xrf"].read_text())
    content["rescan"] |= {"through": "queue", "max_regions": 2, "follow_drift": False}
    path.write_text(yaml.safe_dump(content))


def test_a_closed_environment_is_waited_for(server, proposals):
    if server.person.status(reload=True)["worker_environment_exists"]:
        server.tidy()
        server.person.environment_close()
        server.until(lambda: not server.person.status(reload=True)["worker_environment_exists"])
        server.idle()
    name = proposals.approve("waits")
    queue = proposals.start()
    proposals.says(name, "environment is closed; open it")
    assert queue.status()["environment"] == "closed" and queue.status()["approved"] == 1
    assert server.items() == [] and proposals[name]["state"] == "approved"
    told, remedy = look(server.settings, ["rescan_for_test"])
    assert "idle, environment closed, 0 items" in told and "qserver environment open" in remedy
    server.open_environment()
    found = proposals.becomes(name, "queued")
    (item,) = server.items()
    assert found["reason"].startswith(f"item {item['item_uid']} at the front of the queue")
    assert found["who"] == item["user"] == "inscan"
    assert (item["name"], item["kwargs"]) == ("rescan_for_test", {"proposal": name})
    marks = dict(item["meta"])
    assert set(marks.pop("inscan")) == {"version", "attempt"}
    assert marks == {
        "parent_uid": "survey-of-waits",
        "rescan_proposal": name,
        "regions": ["1-Fe_K", "2"],
    }
    proposals.stop()
    server.tidy()


def test_the_front_of_somebody_elses_queue_which_is_not_started(opened, proposals):
    hers = opened.add_somebody_elses()
    first = proposals.approve("first")
    proposals.start(start=True)
    proposals.becomes(first, "queued")
    proposals.says(first, "behind 0 items; the queue is not started")
    # Her plan is gone, but the queue was hers when the item came: whether it may run is not ours to say.
    opened.person.item_remove(uid=hers)
    second = proposals.approve("second")
    proposals.becomes(second, "queued")
    proposals.says(first, "behind 1 items; the queue is not started")
    third = proposals.approve("third")
    proposals.becomes(third, "queued")
    assert [item["kwargs"]["proposal"] for item in opened.items()] == [third, second, first]
    assert opened.ran == [] and opened.person.status(reload=True)["manager_state"] == "idle"


def test_one_that_comes_later_does_not_start_a_queue_with_hers(opened, proposals):
    opened.tell("hold")
    proposals.start(start=True)
    first = proposals.approve("first")
    opened.until(lambda: opened.ran == [first])
    hers = opened.add_somebody_elses()
    second = proposals.approve("second")
    proposals.becomes(second, "queued")
    assert uids(opened)[1] == hers, "in front of hers, behind what is running"
    opened.person.queue_stop()
    opened.tell()
    opened.idle()
    proposals.becomes(first, "failed")
    proposals.says(second, "the queue is not started")
    assert opened.ran == [first] and len(opened.items()) == 2
    opened.person.queue_start()
    opened.until(lambda: len(opened.ran) == 3)
    assert opened.ran == [first, second, "somebody_elses"]


def test_a_queue_of_our_own_is_started_once(opened, proposals):
    for name in ("older", "newer"):
        proposals.approve(name)
    opened.tell("hold")
    proposals.start(start=True)
    opened.until(lambda: opened.ran == ["older"])
    opened.person.queue_stop()
    opened.tell()
    # Nothing came from the plan: it can have measured nothing that anybody knows of.
    proposals.becomes("older", "failed", "ended (completed), and its plan reported nothing")
    opened.idle()
    # Somebody has stopped the queue; it is not for us to go on.
    proposals.says("newer", "the queue is not started")
    third = proposals.approve("third")
    proposals.becomes(third, "queued")
    assert opened.ran == ["older"]


def test_a_plan_that_fails_is_over_and_does_not_stay_in_the_queue(opened, proposals):
    opened.tell("fail")
    name = proposals.approve("fails")
    proposals.start(start=True)
    found = proposals.becomes(name, "failed", "ended (failed)")
    assert "the stage is stuck" in found["reason"] and opened.ran == [name]
    # The manager puts failed items back to the front.
    opened.until(lambda: opened.items() == [])


def test_an_item_that_a_person_takes_out_is_refused_and_stays_out(opened, proposals):
    name = proposals.approve("unwanted")
    proposals.start()
    proposals.becomes(name, "queued")
    opened.person.item_remove(uid=uids(opened)[0])
    found = proposals.becomes(name, "refused", "taken out of the queue before it ran")
    assert [step["state"] for step in found["history"]] == [
        "approved",
        "queued",
        "queued",
        "refused",
    ]
    assert opened.items() == []


@pytest.mark.parametrize("state", ["refused", "expired"])
def test_what_is_over_is_taken_out_and_nothing_else(opened, proposals, state):
    name = proposals.approve("over")
    # Her own plan, another service's, and this one's as she asks for it herself.
    hers = [opened.add_somebody_elses()]
    for theirs in ("of-another-service", name):
        plan = BPlan("rescan_for_test", proposal=theirs)
        added = opened.person.item_add(plan, user="her", user_group="primary")
        hers.append(added["item"]["item_uid"])
    proposals.start()
    proposals.becomes(name, "queued")
    assert uids(opened)[1:] == hers
    assert proposals.journal.set_proposal(name, state, "somebody", "enough")
    opened.until(lambda: uids(opened) == hers)


def test_a_plan_that_is_not_allowed_is_named(opened, proposals):
    name = proposals.approve("forbidden")
    proposals.start("forbidden_rescan")
    proposals.says(name, "'forbidden_rescan' (rescan.plan) is not allowed to user group 'primary'")
    other = proposals.approve("other")
    proposals.start(user_group="strangers")
    proposals.says(other, "strangers")
    assert proposals[name]["state"] == "approved" and opened.items() == []
    assert look(opened.settings, ["rescan_for_test"])[1] == ""
    told, remedy = look(opened.settings, ["rescan_for_test", "forbidden_rescan"])
    assert "not allowed to group primary: forbidden_rescan" in told and "rescan.plan" in remedy


@pytest.mark.parametrize("what", ["queue", "environment"])
def test_a_lock_is_respected(opened, proposals, what):
    opened.person.lock("key", user="her", note="changing the sample", **{what: True})
    name = proposals.approve("locked-out")
    proposals.start(start=True)
    proposals.says(name, f"{what} locked by her: changing the sample")
    assert proposals[name]["state"] == "approved" and opened.items() == []
    opened.person.unlock("key")
    opened.until(lambda: opened.ran == [name])


def test_a_service_that_was_away_adds_nothing_twice(opened, proposals):
    hers = opened.add_somebody_elses()
    known = proposals.approve("known")
    proposals.start()
    proposals.becomes(known, "queued")
    (item, _) = uids(opened)
    proposals.stop()
    # Killed before the item was added, and between the manager's answer and the journal.
    proposals.rescans.queue(proposals.approve("announced"), "inscan")
    added = proposals.rescans.queue(proposals.approve("added"), "inscan")
    client = QueueClient(opened.settings)
    theirs = client.add("rescan_for_test", "added", marks_of(added)).uid
    client.close()
    proposals.start(start=True)
    proposals.becomes("added", "queued", f"item {theirs} ")
    opened.until(lambda: len(opened.items()) == 4)
    assert uids(opened)[1:] == [theirs, item, hers]
    proposals.becomes("announced", "queued", f"item {uids(opened)[0]} ")
    assert [step["state"] for step in proposals["announced"]["history"]] == [
        *("approved", "queued", "approved", "queued", "queued")
    ]
    assert opened.ran == [], "what an earlier process added may have waited for a person"


def test_what_may_not_be_measured_any_more_is_not_added(opened, proposals):
    name = proposals.approve("too-far", units=["mm", "um"])
    proposals.start()
    proposals.says(name, "soft_limits: ")
    energies = proposals.approve("energies", kind="energies")
    proposals.says(energies, "added by the plan that waits for them")
    assert proposals[name]["state"] == "approved" and opened.items() == []


def test_a_paused_queue_gets_nothing_and_an_aborted_item_is_over(opened, proposals):
    opened.tell("hold")
    first = proposals.approve("first")
    proposals.start(start=True)
    opened.until(lambda: opened.ran == [first])
    opened.person.re_pause(option="immediate")
    opened.until(lambda: opened.person.status(reload=True)["manager_state"] == "paused")
    second = proposals.approve("second")
    proposals.says(second, "is paused; items are added when it is idle or executing_queue")
    assert opened.items() == [] and proposals[second]["state"] == "approved"
    opened.person.re_abort()
    proposals.becomes(first, "failed", "ended (aborted)")
    proposals.becomes(second, "queued")
    assert [item["kwargs"]["proposal"] for item in opened.items()] == [second]


def test_an_autostart_of_the_managers_is_its_own_affair(opened, proposals):
    opened.person.queue_autostart(True)
    try:
        name = proposals.approve("by-itself")
        proposals.start()
        opened.until(lambda: opened.ran == [name])
        proposals.becomes(name, "failed", "ended (completed)")
        assert opened.person.status(reload=True)["queue_autostart_enabled"]
    finally:
        opened.person.queue_autostart(False)


@pytest.mark.slow
def test_a_manager_and_a_redis_that_die_lose_nothing(opened, proposals):
    opened.tell("hold")
    first, second = proposals.approve("first"), proposals.approve("second")
    queue = proposals.start()
    proposals.becomes(first, "queued")
    proposals.becomes(second, "queued")
    opened.person.queue_start()
    opened.until(lambda: opened.ran == [first])
    kept = uids(opened)
    opened.kill("redis")
    third = proposals.approve("third")
    proposals.says(third, "queue_get")
    assert queue.status()["state"] == "away" and proposals[second]["state"] == "queued"
    opened.kill("manager")
    opened.start_redis()
    proposals.says(third, f"no answer from {opened.settings.control}")
    opened.start_manager()
    # What was running when the worker died has reported nothing, and is not run again.
    proposals.becomes(first, "failed", "and its plan reported nothing")
    proposals.says(third, "environment is closed")
    opened.until(lambda: uids(opened) == kept)
    assert proposals[second]["state"] == "queued"
    opened.open_environment()
    proposals.becomes(third, "queued")
    assert [item["kwargs"]["proposal"] for item in opened.items()] == [third, second]


def test_a_manager_that_wants_a_key_is_not_taken_for_one_that_is_away(server, tmp_path):
    write_profile(tmp_path / "profile.yaml")
    keyless = server.settings.model_dump() | {"public_key": None}
    settings = load_settings(profiles=[str(tmp_path / "profile.yaml")], queueserver=keyless)
    (check,) = doctor._queueserver(settings)
    assert not check.ok and "wants a key (queueserver.public_key)" in check.detail
    assert server.settings.control in check.remedy


@pytest.fixture
def service(opened, tmp_path) -> Iterator[Path]:
    """`inscan serve` with a worker, whose approved rescans go through the queue; its state directory."""
    write_profile(tmp_path / "profile.yaml")
    anywhere = "tcp://127.0.0.1:0"
    given = {
        "state_dir": str(opened.state),
        "profiles": [str(tmp_path / "profile.yaml")],
        **dict.fromkeys(("ingest", "broker", "spool"), anywhere),
        "min_free": 0,
        "data_roots": [str(opened.state / "data")],
        "queueserver": {**opened.settings.model_dump(), "start": True},
    }
    (tmp_path / "service.yaml").write_text(yaml.safe_dump(given))
    command = [str(Path(sys.executable).with_name("inscan")), "serve"]
    with (tmp_path / "service.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, str(tmp_path / "service.yaml")], stdout=log, stderr=log
        )
    try:
        opened.until(
            lambda: (opened.state / "service.json").exists() or process.poll() is not None, 60.0
        )
        assert process.poll() is None, (tmp_path / "service.log").read_text()
        yield opened.state
    finally:
        process.terminate()
        process.wait(30)


def test_a_survey_in_the_queue_is_followed_by_its_fine_runs(opened, service):
    survey = BPlan("survey", step=0.8, dwell=0.1)
    opened.person.item_add(survey, user="her", user_group="primary")
    opened.person.queue_start()

    def over() -> dict[str, Any] | None:
        found = request(service, "proposals")["proposals"]
        return found[0] if found and found[0]["state"] not in OPEN else None

    proposal = opened.until(over, 120.0)
    assert proposal["state"] == "done", proposal
    states = [step["state"] for step in proposal["history"]]
    assert states[:2] == ["approved", "queued"] and states[-2:] == ["running", "done"]
    assert request(service, "status")["queueserver"]["environment"] == "open"
    opened.idle()
    first, second = opened.person.history_get(reload=True)["items"]
    assert [first["name"], second["name"]] == ["survey", "inscan_rescan"]
    (survey_uid,) = first["result"]["run_uids"]
    fine_uids = second["result"]["run_uids"]
    assert proposal["run_uid"] == survey_uid and proposal["fine_uids"] == fine_uids
    labels = [region["label"] for region in proposal["regions"]]
    assert len(fine_uids) == len(labels) >= 1 and opened.items() == []
    with closing(sqlite3.connect(service / "journal.db")) as journal:
        rows = journal.execute("SELECT run_uid, start FROM runs").fetchall()
    starts = {uid: json.loads(start) for uid, start in rows}
    for uid, label in zip(fine_uids, labels, strict=True):
        start = starts[uid]
        assert (start["purpose"], start["parent_uid"]) == ("fine", survey_uid)
        assert (start["rescan_proposal"], start["region"]) == (proposal["id"], label)
        assert start["regions"] == labels and start["inscan"]["attempt"] == 1
