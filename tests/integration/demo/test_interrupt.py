"""Ctrl-C at any moment: the run is closed, the report says what is missing, no process is left."""

import re
import signal

import pytest
from tiled.client import from_uri

from inscan.service.tiled_server import EmbeddedTiled

INTERRUPTED = 130


@pytest.fixture
def assert_gone(until, related, lives):
    def check(family, out):
        until(lambda: not any(lives(process.pid) for process in family), 40)
        until(lambda: not related(out), 10)

    return check


@pytest.mark.slow
def test_while_the_service_starts(start, maps, until, assert_gone, tmp_path):
    demo = start(tmp_path / "out", "--sample", str(maps))
    until(lambda: (demo.out / "state" / "lock").exists(), 60)
    family = demo.family()
    assert family
    demo.interrupt()
    assert demo.wait() == INTERRUPTED, demo.stderr
    assert_gone(family, demo.out)
    answer = demo.answer
    assert answer["interrupted"] and answer["runs"] == []
    assert any("no scan had been started" in problem for problem in answer["problems"])
    assert "no scan had been started" in (demo.out / "report.html").read_text()
    assert not (demo.out / "state" / "service.json").exists()


def test_in_the_middle_of_the_survey(start, maps, until, assert_gone, tmp_path):
    demo = start(tmp_path / "out", "--sample", str(maps), INSCAN_SIM_TIME_SCALE="0.7")
    until(lambda: "snapshot after " in demo.stderr, 90)
    family = demo.family()
    demo.interrupt()
    until(lambda: "Aborting" in demo.stderr)
    demo.interrupt()  # changes nothing
    assert demo.wait() == INTERRUPTED, demo.stderr
    assert_gone(family, demo.out)
    assert "already stopping" in demo.stderr and "Traceback" not in demo.stderr
    (survey,) = demo.answer["runs"]
    assert (survey["purpose"], survey["exit_status"]) == ("survey", "abort")
    # Eight rows or more had been measured: there is a result of them.
    assert survey["result_uid"] is not None
    missing = f"survey (scan 1, run {survey['uid']}) ended early (abort); its result covers"
    assert any(missing in problem for problem in demo.answer["problems"])
    assert missing in (demo.out / "report.html").read_text()
    assert (demo.out / "report.png").is_file()
    state = demo.out / "state"
    with EmbeddedTiled(state, readable=[state / "results", demo.out / "data"]) as server:
        client = from_uri(server.uri, api_key=server.api_key.get_secret_value())
        try:
            stop = client["raw"][survey["uid"]].metadata["stop"]
            primary = client["processed"][survey["result_uid"]]["primary"]
            measured = primary["measured"].read().reshape(20, 80).astype(bool)
        finally:
            client.context.close()
    assert stop["exit_status"] == "abort"
    rows = measured.all(axis=1)
    assert 8 <= rows.sum() < 20 and not measured[~rows].any()


@pytest.mark.slow
def test_during_a_fine_scan(start, maps, until, assert_gone, tmp_path):
    demo = start(tmp_path / "out", "--sample", str(maps), INSCAN_SIM_TIME_SCALE="0.15")
    until(lambda: "Region 2-" in demo.stderr, 90)
    family = demo.family()
    demo.interrupt()
    assert demo.wait() == INTERRUPTED, demo.stderr
    assert_gone(family, demo.out)
    survey, first, *rest = demo.answer["runs"]
    assert survey["exit_status"] == first["exit_status"] == "success"
    assert survey["result_uid"] and first["result_uid"]
    problems = "\n".join(demo.answer["problems"])
    # The second was on its way or about to begin; what came after it never began.
    assert len(rest) <= 1 and all(run["exit_status"] == "abort" for run in rest)
    proposed = re.findall(r"region (\S+) was proposed and not measured", problems)
    if rest:
        assert f"fine of region {rest[0]['region']}" in problems
    else:
        assert proposed[0].startswith("2-")
    assert all(not label.startswith("1-") for label in proposed)
    page = (demo.out / "report.html").read_text()
    assert all(f"region {label} was proposed and not measured" in page for label in proposed)
    assert survey["result_uid"] in page


@pytest.mark.slow
def test_killed_outright_its_children_die_with_it(start, maps, until, tmp_path, assert_gone):
    demo = start(tmp_path / "out", "--sample", str(maps))

    def whole_family():
        commands = demo.commands()
        parts = ("service.cli serve", "service.worker", "service.tiled_child")
        return all(any(part in command for command in commands) for part in parts)

    until(whole_family, 60)
    family = demo.family()
    demo.process.send_signal(signal.SIGKILL)
    assert demo.wait() == -signal.SIGKILL
    assert_gone(family, demo.out)


@pytest.mark.parametrize("signals", [1, 2])
def test_a_signal_while_the_report_is_written_is_only_noted(signals):
    from inscan.service.demo_interrupt import Interrupts

    before = signal.getsignal(signal.SIGINT)
    with Interrupts() as interrupts:
        with interrupts.held():
            for _ in range(signals):
                signal.raise_signal(signal.SIGINT)
        assert interrupts.asked
        signal.raise_signal(signal.SIGINT)  # neither now
    assert signal.getsignal(signal.SIGINT) is before
