"""The process whose runs torture_soak.py counts: `python soak_host.py STATE PARENT`.

One JSON object a line on standard input: `{"op": "play", "runs": [{"kind", "uid", "content", "end"}], "together": n}`
plays runs through `inscan.callbacks.connect`, so many at a time document by document; `end` is `success`, `abort`,
`fail`, or `none` for a run whose stop never comes. `{"op": "scan", "times": n}` has a real RunEngine take surveys of
the simulated microscope. Each is answered by a line with the uids that were begun.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torture_runs import Document, documents

from inscan.callbacks import Connection, connect
from inscan.service.children import die_with_parent

_STARTUP = Path(__file__).resolve().parent.parent / "profiles" / "sim_xrf" / "startup"
_QUIET_S = 2.0  # a run of which nothing came for so long is ended, as forwarders do it


def ended(run: dict[str, Any]) -> Iterator[Document]:
    """Documents of a run that ends as it is to end."""
    for name, doc in documents(run["kind"], run["uid"], run["content"]):
        if name != "stop":
            yield name, doc
        elif run["end"] != "none":
            yield name, {**doc, "exit_status": run["end"]}


def play(connection: Connection, runs: list[dict[str, Any]], together: int) -> list[str]:
    """Send runs, so many at a time in turn."""
    waiting = [(run["uid"], ended(run)) for run in runs]
    streams: list[tuple[str, Iterator[Document]]] = []
    while waiting or streams:
        while waiting and len(streams) < together:
            streams.append(waiting.pop(0))
        for one in list(streams):
            document = next(one[1], None)
            if document is None:
                streams.remove(one)
            else:
                connection(*document)
    return [run["uid"] for run in runs]


def engine(connection: Connection, state: Path) -> Callable[[int], list[str]]:
    """The simulated beamline as its users have it."""
    os.environ |= {
        "INSCAN_SIM_TIME_SCALE": "0",
        "INSCAN_SIM_CHANNELS": "2",
        "INSCAN_STATE": str(state),
    }
    names: dict[str, Any] = {}
    for file in ("00-ophyd.py", "05-run-engine.py", "15-plans.py"):
        exec(compile((_STARTUP / file).read_text(), file, "exec"), names)  # noqa: S102 - as IPython does
    names["RE"].subscribe(connection)
    return lambda times: [
        uid for _ in range(times) for uid in names["RE"](names["survey"](step=6.0, fly=False))
    ]


def main() -> None:
    """Do what is asked for until standard input ends."""
    state, parent = Path(sys.argv[1]), int(sys.argv[2])
    die_with_parent(parent)
    connection = connect(state_dir=state)
    scan: Callable[[int], list[str]] | None = None
    for line in sys.stdin:
        command = json.loads(line)
        match command["op"]:
            case "play":
                uids = play(connection, command["runs"], command["together"])
            case "scan":
                scan = scan or engine(connection, state)
                uids = scan(command["times"])
            case _:
                uids = connection.end_quiet(_QUIET_S)
        told = {"uids": uids, "lost": connection.lost, "defects": connection.defects}
        print(json.dumps(told), flush=True)
    connection.close(10.0)


if __name__ == "__main__":
    main()
