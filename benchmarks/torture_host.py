"""A process with a connection to inscan, told over standard input what to run: `python torture_host.py STATE PARENT`.

One JSON object a line. In: `{"op": "play", "runs": [{"kind", "uid", "content"}], "pause": s}` plays whole runs through
`inscan.callbacks.connect`, those of one command in turn document by document; `{"op": "scan", "step": um}` takes a
survey of the simulated fluorescence microscope with a real RunEngine. Out: `opened` and `stopped` when a run's start
and stop have been recorded, `raised` when anything came back at the RunEngine, `done` after each command.
"""

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torture_runs import Document, documents

from inscan.callbacks import Connection, connect
from inscan.service.children import die_with_parent

_STARTUP = Path(__file__).resolve().parent.parent / "profiles" / "sim_xrf" / "startup"


def say(said: str, **fields: Any) -> None:
    print(json.dumps({"said": said, **fields}), flush=True)


def play(connection: Connection, runs: list[dict[str, Any]], pause_s: float) -> None:
    """Send whole runs, several of them in turn."""
    streams: list[tuple[str, Iterator[Document]]] = [
        (run["uid"], documents(run["kind"], run["uid"], run["content"], **run.get("md", {})))
        for run in runs
    ]
    while streams:
        for uid, stream in list(streams):
            document = next(stream, None)
            if document is None:
                streams.remove((uid, stream))
                continue
            connection(*document)
            if document[0] in ("start", "stop"):
                say("opened" if document[0] == "start" else "stopped", uid=uid)
            if pause_s:
                threading.Event().wait(pause_s)


class Recorder:
    """Adds up a step scan by itself, from the documents that the RunEngine gives to everybody."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._uid = ""
        self._sums: list[list[float]] = []
        self._shape = (0, 0)

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        if name == "start":
            self._uid, self._sums = doc["uid"], []
            rows, cols = doc["shape"]
            self._shape, self._snaking = (int(rows), int(cols)), bool(doc["snaking"][1])
        elif name == "event":
            sums: dict[str, float] = {}
            for key, value in doc["data"].items():
                if key.startswith("xs_channel") and key.endswith("_total_rbv"):
                    window = key.split("_")[2]
                    sums[window] = sums.get(window, 0.0) + float(value)
            self._sums.append([sums[window] for window in sorted(sums)])
        elif name == "stop" and doc["exit_status"] == "success":
            values = np.array(self._sums, "f4").reshape(*self._shape, -1)
            if self._snaking:
                values[1::2] = values[1::2, ::-1].copy()
            path = self._folder / f"{self._uid}.npy"
            temporary = path.with_suffix(".tmp.npy")
            np.save(temporary, 2 * np.moveaxis(values, -1, 0))
            os.replace(temporary, path)


def engine(connection: Connection, state: Path) -> Callable[[float], None]:
    """The simulated beamline as its users have it, with inscan subscribed between two others of ours."""
    os.environ |= {
        "INSCAN_SIM_TIME_SCALE": "0",
        "INSCAN_SIM_CHANNELS": "2",
        "INSCAN_SIM_SEED": str(os.getpid()),
        "INSCAN_STATE": str(state),
    }
    names: dict[str, Any] = {}
    for file in ("00-ophyd.py", "05-run-engine.py", "15-plans.py"):
        exec(compile((_STARTUP / file).read_text(), file, "exec"), names)  # noqa: S102 - as IPython does
    folder = state.parent / "expected"
    folder.mkdir(exist_ok=True)
    uids: list[str] = []

    def tell(name: str, doc: Mapping[str, Any]) -> None:
        if name == "start":
            uids.append(doc["uid"])
        if name in ("start", "stop"):
            say("opened" if name == "start" else "stopped", uid=uids[-1])

    for subscriber in (Recorder(folder), connection, tell):
        names["RE"].subscribe(subscriber)

    def scan(step: float) -> None:
        names["RE"](names["survey"](step=step, fly=False))

    return scan


def main() -> None:
    state, parent = Path(sys.argv[1]), int(sys.argv[2])
    die_with_parent(parent)
    connection = connect(state_dir=state)
    scan: Callable[[float], None] | None = None
    say("ready")
    for line in sys.stdin:
        command = json.loads(line)
        try:
            if command["op"] == "play":
                play(connection, command["runs"], command.get("pause", 0.0))
            else:
                scan = scan or engine(connection, state)
                scan(command.get("step", 4.0))
        except Exception as error:  # noqa: BLE001 - whatever it is, a plan was hurt: that is counted
            say("raised", text=f"{type(error).__name__}: {error}")
        say("done", lost=connection.lost, defects=connection.defects)
    say("closed", all=connection.close(10.0))


if __name__ == "__main__":
    main()
