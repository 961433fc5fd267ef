"""What is left when the journal itself is hurt: the service is killed, its file damaged, and it starts again.

Runs are counted in Tiled alone, for what the journal says is what was damaged: each is to be there once, whole.
"""

import random
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from bluesky_tiled_plugins import TiledWriter
from fault_row import FaultRow, main
from tiled.client import from_uri
from torture_rig import Rig, until
from torture_runs import documents, uid_of

from inscan.callbacks.connection import Connection
from inscan.service.tiled_http import RAW
from inscan.service.tiled_server import EmbeddedTiled

PAGE = 4096
_FORGETS = "a service that was not there, and forgets"
AT_ONCE = 4
"""Runs that are sent before each blow."""


def zeroed(path: Path, random_: random.Random) -> str:
    content = bytearray(path.read_bytes())
    page = random_.randrange(max(1, len(content) // PAGE))
    content[page * PAGE : (page + 1) * PAGE] = bytes(PAGE)
    path.write_bytes(content)
    return f"page {page}"


def flipped(path: Path, random_: random.Random) -> str:
    content = bytearray(path.read_bytes())
    count = random_.randint(1, 30)
    for _ in range(count):
        content[random_.randrange(len(content))] ^= 1 << random_.randrange(8)
    path.write_bytes(content)
    return f"{count} bits"


def cut(path: Path, random_: random.Random) -> str:
    size = path.stat().st_size
    left = random_.randrange(size)
    with path.open("r+b") as file:
        file.truncate(left)
    return f"{left} of {size} bytes left"


def log_torn(path: Path, random_: random.Random) -> str:
    log = path.with_name(f"{path.name}-wal")
    if not log.exists() or not log.stat().st_size:
        return "no log"
    size = log.stat().st_size
    with log.open("r+b") as file:
        file.truncate(random_.randrange(size))
    return f"of {size} bytes"


def gone(path: Path, random_: random.Random) -> str:
    for left in path.parent.glob("journal*"):
        left.unlink()
    return "with its copy"


DAMAGE: dict[str, Callable[[Path, random.Random], str]] = {
    "a page of the journal zeroed": zeroed,
    "bits of the journal flipped": flipped,
    "the journal cut short": cut,
    "the journal's log torn": log_torn,
    "the journal deleted": gone,
}


def run(seed: int, rounds: int, only: str) -> Iterator[FaultRow]:
    """Every kind of damage, one after the other; each with a state directory of its own."""
    for number, (fault, damage) in enumerate(DAMAGE.items()):
        if only in fault:
            yield _damaged(fault, damage, seed * 100 + number, rounds)
    if only in _FORGETS:
        yield _from_raw(seed)


def _damaged(
    fault: str, damage: Callable[[Path, random.Random], str], seed: int, rounds: int
) -> FaultRow:
    random_ = random.Random(seed)
    began = time.monotonic()
    sent: list[str] = []
    with tempfile.TemporaryDirectory(prefix="inscan-torture-") as folder:
        rig = Rig(Path(folder), {"incomplete_after": 20.0})
        try:
            rig.start()
            connection = Connection(rig.state, log_dir=rig.state / "log")
            for _ in range(rounds):
                for _ in range(AT_ONCE):
                    uid = uid_of(seed, len(sent))
                    for name, doc in documents("map", uid, len(sent)):
                        connection(name, doc)
                    sent.append(uid)
                time.sleep(random_.uniform(0.0, 2.5))  # the moment is what is random here
                rig.kill(family=True)
                what = damage(rig.state / "journal.db", random_)
                print(f"  {fault}: {what}", file=sys.stderr)
                rig.start()
            try:
                until(lambda: _whole(rig, sent)[0] == len(sent), "every run is in Tiled", 240.0)
            except TimeoutError:
                _tell(rig, sent)
            connection.close()
            found, twice = _whole(rig, sent)
            repaired = len(
                [p for p in rig.state.glob("journal.db.damaged-*") if not p.name.endswith("-wal")]
            )
        finally:
            rig.close()
    return FaultRow(
        fault=fault,
        how="kill -9 of the service at a random moment of a few runs, then the file is damaged",
        times=rounds,
        runs=len(sent),
        results=found,
        failures=0,
        lost=len(sent) - found,
        duplicated=twice,
        seconds=time.monotonic() - began,
        remarks=f"repaired {repaired} times",
    )


def _tell(rig: Rig, sent: list[str]) -> None:
    """What is known of runs that did not come to their end."""
    states = dict(rig.rows("SELECT run_uid, state || ': ' || reason FROM runs"))
    jobs = dict(rig.rows("SELECT run_uid, state || ' ' || code || ' ' || reason FROM jobs"))
    for number, uid in enumerate(sent):
        print(f"  {number} {uid}: {states.get(uid)}; {jobs.get(uid)}", file=sys.stderr)
    print(rig.log.read_text(errors="replace")[-6000:], file=sys.stderr)


def _whole(rig: Rig, sent: list[str]) -> tuple[int, int]:
    """Runs with a whole result in Tiled, and results beyond the first."""
    tiled = rig.tiled()
    try:
        nodes = tiled.nodes()
    except (OSError, ValueError, RuntimeError):
        return 0, 0
    finally:
        tiled.close()
    count = Counter(node.raw_uid for node in nodes if node.status == "success")
    return sum(count[uid] > 0 for uid in sent), sum(max(0, count[uid] - 1) for uid in sent)


def _from_raw(seed: int) -> FaultRow:
    """Runs that were in Tiled before the service was there, and a service that forgets everything twice."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="inscan-torture-") as folder:
        own = Path(folder) / "tiled"
        (own / "results").mkdir(parents=True)
        with EmbeddedTiled(own, readable=[own / "results"]) as server:
            key = server.api_key.get_secret_value()
            client = from_uri(server.uri, api_key=key)
            sent = [uid_of(seed + 7, n) for n in range(6)]
            for n, uid in enumerate(sent):
                writer = TiledWriter(client[RAW])
                for name, doc in documents("map", uid, n):
                    writer(name, doc)
            client.context.http_client.close()
            settings = {
                "tiled": {"uri": server.uri, "api_key": key},
                "sources": [{"kind": "tiled", "uri": server.uri, "api_key": key}],
            }
            rig = Rig(Path(folder), settings)
            found = twice = 0
            try:
                for _ in range(3):
                    rig.start()
                    until(lambda: _journalled(rig) >= len(sent), "every run is done", 180.0)
                    found, twice = _whole(rig, sent)
                    rig.kill(family=True)
                    gone(rig.state / "journal.db", random.Random(0))
            finally:
                rig.close()
    return FaultRow(
        fault=_FORGETS,
        how="six runs in Tiled's raw before it starts, taken from there; then twice its journal is deleted",
        times=3,
        runs=len(sent),
        results=found,
        failures=0,
        lost=len(sent) - found,
        duplicated=twice,
        seconds=time.monotonic() - began,
    )


def _journalled(rig: Rig) -> int:
    try:
        return int(rig.rows("SELECT count(*) FROM jobs WHERE state = 'committed'")[0][0])
    except (sqlite3.Error, IndexError):
        return 0


if __name__ == "__main__":
    sys.exit(
        main(
            "journal",
            run,
            rounds=(int, 6, "blows of each kind"),
            only=(str, "", "faults whose name has this in it"),
        )
    )
