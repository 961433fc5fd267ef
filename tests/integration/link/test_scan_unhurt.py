"""What a RunEngine's process suffers from inscan when it forks, ends, subscribes twice, or scans for weeks on end."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import bluesky.plans as bp
from bluesky import RunEngine
from ophyd.sim import SynAxis

from inscan.callbacks.log_file import LogFile
from inscan.callbacks.wire import pack_parts

FORKING = """
import os, sys, time
from pathlib import Path
from inscan.callbacks import connect

state = Path(sys.argv[1])
connection = connect("tcp://127.0.0.1:1", state_dir=state)
connection("start", {"uid": "open", "time": 0.0})
child = os.fork()
if child == 0:
    connection("stop", {"uid": "x", "run_start": "open"})  # not its run
    print("child", connection.defects, connection.close(), flush=True)
    sys.stdin.read()  # lives on
    sys.exit(0)
connection("stop", {"uid": "y", "run_start": "open"})
connection.close()
os._exit(0)  # the child keeps whatever it has
"""
ENDING = """
import sys
from pathlib import Path
from inscan.callbacks import connect

connection = connect(sys.argv[2], state_dir=Path(sys.argv[1]))
connection("start", {"uid": "last", "time": 0.0})
for number in range(200):
    connection("event", {"descriptor": "unknown", "seq_num": number})
connection("stop", {"uid": "y", "run_start": "last"})
print("the program's last line", connection.defects, flush=True)
"""


def run_program(text: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", text, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)


def open_logs() -> int:
    """Files of document logs that this process has open."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{name}").endswith(".log")
        except OSError:
            continue  # the one that lists them
    return found


def test_a_fork_keeps_no_log_and_records_nothing(tmp_path, wait_until):
    with run_program(FORKING, str(tmp_path), stdin=subprocess.PIPE) as program:
        assert program.stdout is not None and program.stdin is not None
        assert program.stdout.readline().split() == ["child", "1", "False"]
        path = tmp_path / "log" / "open.log"
        log = wait_until(lambda: LogFile.adopt(path), "the log that a living fork must not own")
        assert program.wait(30) == 0
        documents = 0
        offset = 0
        while (record := log.read(offset)) is not None:
            documents, offset = documents + 1, record.next
        log.close()
        assert documents == 3  # its head, start, one stop
        program.stdin.close()  # ends the fork


def test_a_program_ends_though_nobody_takes_its_documents(tmp_path):
    program = run_program(ENDING, str(tmp_path / "state"), "tcp://127.0.0.1:1")
    told, _ = program.communicate(timeout=60)
    assert (program.returncode, told) == (0, "the program's last line 0\n")
    assert (tmp_path / "state" / "log" / "last.log").exists()


def test_a_connection_subscribed_twice_changes_nothing(serve, link, store, wait_until):
    engine: Any = RunEngine({}, context_managers=[])
    connection = link(serve().address)
    engine.subscribe(connection)
    engine.subscribe(connection)
    motor: Any = SynAxis(name="motor")
    (uid,) = engine(bp.scan([motor], motor, 0, 1, 10))
    wait_until(lambda: uid in store.closed)
    names = [name for name, _ in store.documents(uid)]
    assert set(names) == {"start", "descriptor", "event", "stop"} and names[-1] == "stop"
    assert connection.defects == 0


def test_runs_without_a_service_use_up_no_files_and_arrive_when_there_is_one(
    serve, link, store, tmp_path, wait_until
):
    first = serve()
    first.stop()
    connection = link(first.address)
    uids = [f"run{number:03d}" for number in range(150)]
    for uid in uids:
        connection("start", {"uid": uid, "time": 0.0})
        connection("stop", {"uid": f"{uid} stop", "run_start": uid, "exit_status": "success"})
    wait_until(lambda: open_logs() <= 70, "most logs are closed")
    assert len(list((tmp_path / "log").glob("*.log"))) == 150
    serve(first.address)
    wait_until(lambda: store.closed.issuperset(uids), "all runs have arrived")
    wait_until(lambda: not any(Path(tmp_path / "log").iterdir()), "no log is left")


def test_a_backlog_is_sent_while_a_scan_is_on(serve, link, store, tmp_path, wait_until):
    (tmp_path / "log").mkdir()
    for number in range(20):
        log = LogFile.create(tmp_path / "log", f"old{number}")
        log.append(pack_parts(("start", {"uid": f"old{number}", "time": 0.0})))
        log.append(pack_parts(("stop", {"run_start": f"old{number}", "exit_status": "success"})))
        log.close()
    connection = link(serve().address)
    connection("start", {"uid": "new", "time": 0.0})
    connection("descriptor", {"uid": "stream", "run_start": "new", "name": "primary"})
    seen = [0]

    def all_there() -> bool:
        seen[0] += 1
        connection("event", {"descriptor": "stream", "seq_num": seen[0], "data": {}})
        return len(store.closed) == 20

    wait_until(all_there, "the old runs, while documents of the new one come all the time")
    connection("stop", {"uid": "end", "run_start": "new", "exit_status": "success"})
    wait_until(lambda: "new" in store.closed)
    assert sum(name == "event" for name, _ in store.documents("new")) == seen[0]
