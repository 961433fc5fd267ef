"""Tiled as it should not be: away, slow, frozen, full, emptied, refusing, lying, and what becomes of every run.

A proxy (`http_proxy.py`) before a real Tiled does it to requests of a real service; the rest is done to Tiled itself.
"""

import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fault_row
from fault_row import FaultRow
from http_proxy import PASS, Asked, Deed
from rich.console import Console
from tiled_bench import Bench
from tmpfs import Tmpfs
from torture_check import Ends
from torture_rig import until

_DEEDS: dict[str, Deed] = {
    "cut before Tiled hears it": Deed(deaf=True),
    "carried out, answer lost": Deed(lose=0.0),
    "half of the answer": Deed(lose=0.5),
    "200 with garbage": Deed(200, b'{"id": "'),
    "200 with a web page": Deed(200, b"<html>please log in</html>", "text/html"),
    "200 and nothing done": Deed(200, b"{}"),
    "302 elsewhere": Deed(302),
    **{str(code): Deed(code) for code in (400, 401, 403, 404, 409, 413, 429, 500, 502, 503, 507)},
    "no answer": Deed(stall=True),
}
_FINAL = ("400", "413")
"""Say something of the request itself: a failure by that name is as good an end as a result."""
_REQUESTS = 7
"""A commit of a map has so many: the run, its stream, three arrays, the stop, and the look whether it is there."""
Scenario = Callable[..., FaultRow]


def run(seed: int, jobs: int, cases: int, only: str) -> Iterator[FaultRow]:
    """Do everything; one row each."""
    said = Console(stderr=True)
    for name, scenario in _SCENARIOS.items():
        if only and only not in name:
            continue
        with tempfile.TemporaryDirectory(prefix="inscan-tiled-") as folder:
            more = {"cases": cases} if scenario is every_request else {}
            row = scenario(Path(folder), seed, jobs, **more)
        said.print(
            f"{time.strftime('%H:%M:%S')} {row.fault}: {row.runs} runs, {row.results} results,"
            f" {row.failures} failures, {row.lost} lost, {row.duplicated} twice, {row.seconds:g} s"
        )
        for problem in row.figures.get("problems", []):
            said.print(f"  {problem}", style="red", markup=False)
        yield row


def _row(
    bench: Bench, fault: str, how: str, times: int, ends: Ends, remarks: str = "", **figures: Any
) -> FaultRow:
    counted = (ends.runs, ends.results, ends.failures, ends.lost, ends.duplicated)
    figures = {**figures, "problems": ends.problems[:20]}
    return FaultRow(fault, how, times, *counted, bench.seconds, remarks, figures)


def every_request(folder: Path, seed: int, jobs: int, cases: int = 0) -> FaultRow:
    """Each request of a commit in turn meets each misbehaviour, all mixed in one queue."""
    rng = random.Random(seed)
    todo = [(name, n) for name in _DEEDS for n in range(1, _REQUESTS + 1)]
    rng.shuffle(todo)
    todo = todo[: cases or None]
    plan: dict[str, tuple[str, int]] = {}
    raw_of: dict[str, str] = {}
    asked_of: dict[str, int] = {}
    done: dict[str, int] = {}

    def policy(asked: Asked) -> Deed:
        start = asked.json.get("metadata", {}).get("start", {})
        if isinstance(start, dict) and start.get("raw_uid"):
            raw_of[asked.node] = start["raw_uid"]
        if asked.node not in raw_of:
            return PASS
        asked_of[asked.node] = asked_of.get(asked.node, 0) + 1
        name, n = plan.get(raw_of[asked.node], ("", 0))
        if asked_of[asked.node] != n:
            return PASS
        done[name] = done.get(name, 0) + 1
        deed = _DEEDS[name]
        if name == "200 and nothing done":
            key = asked.json.get("id") or asked.path.split("?")[0].rpartition("/")[2]
            return Deed(200, f'{{"id": "{key}"}}'.encode())
        return deed

    with Bench(folder, seed) as bench:
        bench.end_tiled()
        bench.proxy.policy = policy
        for first in range(0, len(todo), 8):
            batch = todo[first : first + 8]
            for uid, what in zip(bench.send(len(batch), "map"), batch, strict=True):
                plan[uid] = what
        bench.computed(list(plan))
        bench.tiled.launch()
        all_of_them = len(plan)
        until(
            lambda: bench.jobs(plan, "committed", "failed") >= all_of_them, "all have ended", 1800.0
        )
        bench.proxy.policy = lambda asked: PASS
        ends = bench.settle(list(plan))
        bench.proxy.go_on.set()
        rows = bench.rig.rows("SELECT run_uid, code, reason FROM jobs WHERE state = 'failed'")
        for uid, code, reason in rows:
            if plan[uid][0] not in _FINAL:
                ends.lose(f"{plan[uid]} ended as a failure: {code}, {reason}")
        names = ", ".join(_DEEDS)
        return _row(
            bench,
            "each request of a commit disturbed in turn",
            f"{len(_DEEDS)} ways: {names}",
            sum(done.values()),
            ends,
            "what says something of the request itself (400, 413) may end as a failure by that name",
            done=done,
        )


def away_at_start(folder: Path, seed: int, jobs: int) -> FaultRow:
    """Tiled is not there when the service starts, and comes later."""
    with Bench(folder, seed, launch=False) as bench:
        uids = bench.send(12)
        bench.computed(uids)
        said = bench.status()
        bench.tiled.launch()
        ends = bench.settle(uids)
        if said["state"] != "waiting" or said["pending"] != len(uids) or not said["waiting_s"]:
            ends.lose(f"the status did not say so: {said}")
        return _row(bench, "Tiled away when the service starts", "no process", 1, ends, _told(said))


def an_hour(folder: Path, seed: int, jobs: int) -> FaultRow:
    """Many results pile up while nobody answers; the pauses between the tries are bounded."""
    tries: list[float] = []

    def policy(asked: Asked) -> Deed:
        tries.append(time.monotonic())
        return Deed(503)

    with Bench(folder, seed) as bench:
        before = bench.memory()
        bench.proxy.policy = policy
        down = time.monotonic()
        uids = bench.send(jobs)
        bench.computed(uids, 900.0)
        until(lambda: time.monotonic() - down > 100.0, "the pauses are at their longest", 200.0)
        piled, said = bench.memory(), bench.status()
        gaps = [after - one for one, after in zip(tries, tries[1:], strict=False)]
        bench.proxy.policy = lambda asked: PASS
        back = time.monotonic()
        until(lambda: bench.jobs(uids, "committed"), "the first goes into Tiled", 60.0)
        first = time.monotonic() - back
        ends = bench.settle(uids, 900.0)
        if not bench.in_order(uids):
            ends.lose("they were not written in their order")
        if max(gaps, default=0.0) > 40.0:
            ends.lose(f"it paused {max(gaps):.0f} s")
        return _row(
            bench,
            "Tiled away for long",
            f"503 to everything while {jobs} results pile up; the pauses grow to 30 s and stay there,"
            " so that an hour adds nothing but tries",
            1,
            ends,
            f"{_told(said)}; {first:.1f} s after its return the first result was in Tiled, all in"
            f" order; memory of the service {before:.0f} MB, {piled:.0f} MB with all of them waiting",
            longest_pause_s=round(max(gaps, default=0.0), 1),
            tries=len(tries),
        )


def slow(folder: Path, seed: int, jobs: int) -> FaultRow:
    """Each request takes two seconds."""
    with Bench(folder, seed) as bench:
        bench.proxy.policy = lambda asked: Deed(delay_s=2.0)
        uids = bench.send(6)
        ends = bench.settle(uids, 400.0)
        return _row(
            bench,
            "slow Tiled",
            "each request takes 2 s",
            bench.proxy.counts["done"],
            ends,
            f"{bench.seconds / len(uids):.0f} s a result",
        )


def frozen(folder: Path, seed: int, jobs: int) -> FaultRow:
    """SIGSTOP of Tiled for 45 s, while results come."""
    with Bench(folder, seed) as bench:
        assert bench.tiled.process is not None
        uids = bench.send(4)
        os.kill(bench.tiled.process.pid, signal.SIGSTOP)
        stopped = time.monotonic()
        uids += bench.send(8)
        bench.computed(uids)
        until(lambda: time.monotonic() - stopped > 45.0, "45 s", 60.0)
        said = bench.status()
        os.kill(bench.tiled.process.pid, signal.SIGCONT)
        return _row(bench, "frozen Tiled", "SIGSTOP for 45 s", 1, bench.settle(uids), _told(said))


def emptied(folder: Path, seed: int, jobs: int) -> FaultRow:
    """Tiled comes back with an empty catalogue, three times, twice in the middle of commits."""
    with Bench(folder, seed) as bench:
        kept: list[str] = []
        for _ in range(3):
            earlier = bench.send(3)
            bench.settle(earlier)
            bench.proxy.policy = _after(3, lambda: bench.end_tiled())
            kept = bench.send(6)
            bench.computed(kept)
            bench.empty_tiled()
            bench.proxy.policy = lambda asked: PASS
            gone = set(_committed(bench, kept))
            bench.tiled.launch()
            kept = [uid for uid in kept if uid not in gone]
        ends = bench.settle(kept)
        rows = bench.rig.rows("SELECT run_uid, reason FROM jobs WHERE state = 'failed'")
        for uid, reason in rows:
            ends.lose(f"run {uid} failed: {reason}")
        return _row(
            bench,
            "Tiled with an emptied catalogue",
            "killed in the middle of commits, its catalogue deleted, started again",
            3,
            ends,
            "counted are the results of the last time that were not in it when it was emptied; of the"
            " others the files are still in `results/`",
        )


def disk_full(folder: Path, seed: int, jobs: int) -> FaultRow:
    """Tiled's own disk is full: catalogue and uploads fail with 500."""
    with (
        Tmpfs(folder / "disk", "24m") as disk,
        Bench(folder, seed, upload=True, tiled_folder=disk.path / "tiled") as bench,
    ):
        uids = bench.send(3)
        bench.settle(uids)
        disk.fill()
        uids += bench.send(10)
        bench.computed(uids)
        until(lambda: bench.status()["state"] == "waiting", "the service says so", 120.0)
        until(lambda: bench.status()["waiting_s"] > 20.0, "it waits", 120.0)
        said = bench.status()
        disk.free()
        ends = bench.settle(uids)
        return _row(
            bench,
            "Tiled's disk full",
            "tmpfs of 24 MB with its catalogue and its storage, results uploaded; room after 20 s",
            1,
            ends,
            _told(said),
        )


def revoked(folder: Path, seed: int, jobs: int) -> FaultRow:
    """The key is revoked and restored, by a restart of Tiled with another and the old one."""
    with Bench(folder, seed) as bench:
        uids, key, said = bench.send(3), bench.tiled.key, {}
        for _ in range(2):
            bench.end_tiled()
            bench.tiled.key = "f" * 32
            bench.tiled.launch()
            uids += bench.send(5)
            bench.computed(uids)
            until(lambda: "refuses our key" in bench.status()["reason"], "it says so", 60.0)
            said = bench.status()
            bench.end_tiled()
            bench.tiled.key = key
            bench.tiled.launch()
            bench.settle(uids)
        return _row(
            bench, "key revoked and restored", "401 in mid-run", 2, bench.settle(uids), _told(said)
        )


def poisoned(folder: Path, seed: int, jobs: int) -> FaultRow:
    """Two results that Tiled alone answers with 500, and 403, while the others go on."""
    bad: set[str] = set()
    raw_of: dict[str, str] = {}
    ways = [Deed(500), Deed(403)]

    def policy(asked: Asked) -> Deed:
        start = asked.json.get("metadata", {}).get("start", {})
        if isinstance(start, dict) and start.get("raw_uid"):
            raw_of[asked.node] = start["raw_uid"]
        raw = raw_of.get(asked.node, "")
        return ways[sorted(bad).index(raw)] if raw in bad else PASS

    with Bench(folder, seed) as bench:
        bench.end_tiled()
        uids = bench.send(12)
        bench.computed(uids)
        bad.update(uids[:2])
        bench.proxy.policy = policy
        bench.tiled.launch()
        until(lambda: bench.jobs(uids, "committed") == 10, "the others are in Tiled", 120.0)
        overtaken = bench.seconds
        more = bench.send(3)
        until(lambda: bench.jobs(more, "committed") == 3, "later ones, too", 60.0)
        said = bench.status()
        bad.clear()
        ends = bench.settle(uids + more, 400.0)
        if bench.jobs(uids, "failed"):
            ends.lose("a poisoned result was given up too early")
        return _row(
            bench,
            "results that Tiled alone does not take",
            "500 and 403 to whatever concerns two of them, the oldest",
            2,
            ends,
            f"the other ten were in Tiled after {overtaken:.0f} s, later ones at once; {_told(said)}",
        )


def files_gone(folder: Path, seed: int, jobs: int) -> FaultRow:
    """Result files are deleted, cut, changed and replaced while they wait for Tiled."""
    with Bench(folder, seed) as bench:
        bench.end_tiled()
        uids = bench.send(12)
        bench.computed(uids)
        results = sorted((bench.rig.state / "results").glob("*[0-9a-f].h5"))
        for number, path in enumerate(one for one in results if ".axes" not in one.name):
            content = path.read_bytes()
            if number % 4 == 0:
                path.unlink()
            elif number % 4 == 1:
                path.write_bytes(content[: len(content) // 2])
            elif number % 4 == 2:
                middle = content.find(b"values") + len(content) // 2
                path.write_bytes(content[:middle] + b"\xff\xff\xff" + content[middle + 3 :])
            else:
                path.write_bytes(b"no HDF5 at all")
        bench.tiled.launch()
        ends = bench.settle(uids)
        again = bench.rig.rows("SELECT count(*) FROM jobs WHERE fence > 1")[0][0]
        return _row(
            bench,
            "result files gone or changed before Tiled had them",
            "deleted, cut in half, three bytes changed, replaced",
            len(results),
            ends,
            f"{again} were computed again from their spool",
        )


def _after(count: int, do: Callable[[], None]) -> Callable[[Asked], Deed]:
    left = [count]

    def policy(asked: Asked) -> Deed:
        left[0] -= bool(asked.node)
        if left[0] == 0:
            threading.Thread(target=do, daemon=True).start()
        return PASS

    return policy


def _committed(bench: Bench, uids: list[str]) -> list[str]:
    rows = bench.rig.rows("SELECT run_uid FROM jobs WHERE state = 'committed'")
    return [uid for (uid,) in rows if uid in uids]


def _told(said: dict[str, Any]) -> str:
    return (
        f"the status said: {said['state']} for {said['waiting_s']:.0f} s, {said['pending']} waiting,"
        f' "{said["reason"][:160]}"'
    )


_SCENARIOS: dict[str, Scenario] = {
    one.__name__: one
    for one in (
        every_request,
        away_at_start,
        an_hour,
        slow,
        frozen,
        emptied,
        disk_full,
        revoked,
        poisoned,
        files_gone,
    )
}

if __name__ == "__main__":
    sys.exit(
        fault_row.main(
            "tiled",
            run,
            cases=(int, 0, "of the disturbed requests, at random; 0 for all"),
            jobs=(int, 300, "results that pile up while Tiled is away"),
            only=(str, "", "only scenarios with this in their name"),
        )
    )
