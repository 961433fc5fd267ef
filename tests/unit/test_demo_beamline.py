"""The demo's side of the beamline: startup files, interruptions, progress, what it tells about its course."""

import os
import signal
import threading

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import pytest
from bluesky import RunEngine
from ophyd.sim import SynAxis

from inscan.service.demo_beamline import RowWatch, StartupError, load_startup, run_plan
from inscan.service.demo_course import Course
from inscan.service.demo_interrupt import Interrupts


@pytest.fixture
def run_engine():
    return RunEngine({})


def startup(monkeypatch, folder, **files):
    """Make a profile whose startup folder holds these files; names begin with `n`."""
    (folder / "startup").mkdir()
    for name, text in files.items():
        (folder / "startup" / f"{name[1:].replace('_', '-')}.py").write_text(text)
    monkeypatch.setattr(
        "inscan.service.demo_beamline.shipped_profiles", lambda: {"mine": folder / "profile.yaml"}
    )


def test_startup_files_share_a_namespace_and_see_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("INSCAN_TEST_A", "before")
    monkeypatch.delenv("INSCAN_TEST_B", raising=False)
    startup(
        monkeypatch,
        tmp_path,
        n00_first="import os\na = os.environ['INSCAN_TEST_A']\norder = ['00']",
        n59_second="order.append('59')\nb = os.environ['INSCAN_TEST_B']",
        n60_third="order.append('60')",
        n90_fourth="order.append('90')",
        readme="raise RuntimeError",
    )
    seen = []
    namespace = load_startup(
        "mine", {"INSCAN_TEST_A": "1", "INSCAN_TEST_B": "2"}, lambda: seen.append("connecting")
    )
    assert (namespace["a"], namespace["b"]) == ("1", "2")
    assert namespace["order"] == ["00", "59", "60", "90"] and seen == ["connecting"]
    assert os.environ["INSCAN_TEST_A"] == "before" and "INSCAN_TEST_B" not in os.environ


def test_bad_input_comes_to_light_before_anything_connects(monkeypatch, tmp_path):
    startup(monkeypatch, tmp_path, n00_first="raise ValueError('no such sample')", n60_last="")
    with pytest.raises(ValueError, match="no such sample"):
        load_startup("mine", {}, lambda: pytest.fail("too early"))


def test_other_errors_name_the_file(monkeypatch, tmp_path):
    startup(monkeypatch, tmp_path, n15_plans="1 / 0")
    with pytest.raises(StartupError, match=r"15-plans\.py: ZeroDivisionError: division by zero"):
        load_startup("mine", {}, lambda: None)


def test_a_plan_runs_to_its_end(run_engine):
    motor = SynAxis(name="x")
    documents = []
    with Interrupts() as interrupts:
        run_engine.subscribe(lambda name, doc: documents.append((name, doc)))
        run_plan(run_engine, bp.scan([], motor, 0, 1, 3), interrupts)
    assert not interrupts.asked
    assert documents[-1][1]["exit_status"] == "success"


def test_the_first_signal_closes_the_run_and_the_second_changes_nothing(run_engine):
    documents = []

    def plan():
        yield from bps.open_run()
        yield from bps.checkpoint()
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        yield from bps.sleep(60)
        yield from bps.close_run()

    before = signal.getsignal(signal.SIGINT)
    course = Course()
    with Interrupts() as interrupts:
        run_engine.subscribe(lambda name, doc: documents.append((name, doc)))
        run_engine.subscribe(course.record)
        run_plan(run_engine, plan(), interrupts)
        assert interrupts.asked
        assert run_engine.state == "idle"
    assert signal.getsignal(signal.SIGINT) is before
    name, stop = documents[-1]
    assert (name, stop["exit_status"]) == ("stop", "abort")
    (uid,) = course.starts
    assert course.exits == {uid: "abort"}
    assert f"scan (scan 1, run {uid}) ended early (abort); it has no result" in course.missing()


def test_a_failing_plan_is_the_callers(run_engine):
    def plan():
        yield from bps.null()
        raise OSError("disk full")

    with Interrupts() as interrupts, pytest.raises(OSError, match="disk full"):
        run_plan(run_engine, plan(), interrupts)


def test_a_signal_outside_a_plan_is_keyboard_interrupt():
    with Interrupts() as interrupts:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)  # no more
        assert interrupts.asked


def test_a_signal_while_held_is_noted():
    with Interrupts() as interrupts:
        with interrupts.held():
            signal.raise_signal(signal.SIGINT)
        assert interrupts.asked


def test_progress_counts_events_and_pages_of_rows():
    told = []
    watch = RowWatch(lambda run, start, done, expected: told.append((run, done, expected)))
    watch("start", {"uid": "r", "shape": [3, 4]})
    watch("descriptor", {"uid": "d", "run_start": "r", "name": "primary"})
    watch("descriptor", {"uid": "b", "run_start": "r", "name": "baseline"})
    watch("event", {"descriptor": "b", "seq_num": 1})
    watch("event", {"descriptor": "d", "seq_num": 1})
    watch("stream_datum", {"descriptor": "d", "seq_nums": {"start": 1, "stop": 5}})
    watch("stream_datum", {"descriptor": "d", "seq_nums": {"start": 1, "stop": 5}})  # another key
    watch("stop", {"run_start": "r"})
    watch("event", {"descriptor": "d", "seq_num": 9})
    assert told == [("r", 0, 12), ("r", 1, 12), ("r", 4, 12)]


def test_regions_stand_in_the_order_of_the_fine_runs_with_a_result():
    course = Course()
    course.record("start", {"uid": "s", "scan_id": 1, "purpose": "survey"})
    for number, uid in enumerate("abc", 1):
        course.record(
            "start", {"uid": uid, "scan_id": number + 1, "purpose": "fine", "region": f"{number}"}
        )
    proposal = {"regions": [{"label": f"{number}"} for number in (1, 2, 3, 4)]}
    course.outcomes = {
        "s": {"status": "done", "result_uid": "S", "proposals": [proposal]},
        "a": {"status": "failed", "result_uid": None},
        "b": {"status": "done", "result_uid": "B"},
        "c": {"status": "done", "result_uid": "C"},
    }
    for uid in "sabc":
        course.record("stop", {"run_start": uid, "exit_status": "success"})
    assert [region["label"] for region in course.regions] == ["2", "3", "1", "4"]
    assert course.missing()[1:] == ["region 4 was proposed and not measured"]


def test_threads_of_a_pause_end_with_the_plan(run_engine):
    with Interrupts() as interrupts:
        run_plan(run_engine, bps.null(), interrupts)
    assert not [thread for thread in threading.enumerate() if thread.name == "demo-interrupt"]
