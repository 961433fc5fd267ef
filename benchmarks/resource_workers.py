"""Memory that runs out, recipes and workers at their worst, and the clock."""

import json
import time
from pathlib import Path

from fault_row import FaultRow
from faulty_worker import EXCEPTIONS
from resource_rows import ended, no_failure, row_of
from tiled_bench import Bench
from torture_rig import until

_CGROUP = Path("/sys/fs/cgroup/memory")


def too_large(folder: Path, seed: int) -> FaultRow:
    """Jobs that need more memory than their worker may have end by name; the others are none the worse."""
    bench = Bench(folder, seed, faulty=True)
    (bench.faulty.torture / "limit").write_text("3000")
    with bench:
        runs = bench.plan(8)
        large = {run["uid"] for run in runs[::2]}
        bench.faulty.order(dict.fromkeys(large, "memory:6000"))
        bench.play(runs)
        ends = bench.settle([run["uid"] for run in runs])
        rows = bench.rig.rows("SELECT run_uid, code, reason FROM jobs WHERE state = 'failed'")
        if {(uid, code) for uid, code, _ in rows} != {(uid, "too_large") for uid in large}:
            ends.lose(f"the failures are {rows}")
        return row_of(
            bench,
            "out of memory on a CPU worker",
            "RLIMIT_AS of 3 GB, every other job asks for 6 GB",
            len(large),
            ends,
            "too_large at the first try, by the same worker that did the others",
        )


def killed_for_memory(folder: Path, seed: int) -> FaultRow:
    """The kernel kills a worker that takes too much."""
    group = _CGROUP / "inscan-torture"
    group.mkdir(exist_ok=True)
    try:
        (group / "memory.limit_in_bytes").write_text(str(400 << 20))
        bench = Bench(folder, seed, faulty=True)
        (bench.faulty.torture / "cgroup").write_text(str(group))
        with bench:
            runs = bench.plan(6)
            large = {run["uid"] for run in runs[:2]}
            bench.faulty.order(dict.fromkeys(large, "memory:900"))
            bench.play(runs)
            ends = bench.settle([run["uid"] for run in runs], 400.0)
            rows = bench.rig.rows("SELECT run_uid, code, reason FROM jobs WHERE state = 'failed'")
            wrong = [row for row in rows if row[0] not in large or row[1] != "quarantined"]
            silent = [row for row in rows if "memory" not in row[2]]
            if len(rows) != len(large) or wrong or silent:
                ends.lose(f"the failures are {rows}")
            return row_of(
                bench,
                "a worker killed by the kernel for its memory",
                "memory cgroup of 400 MB, two jobs need 900 MB",
                2 * len(large),
                ends,
                f"the reason: {rows[0][2][:200] if rows else ''}",
            )
    finally:
        until(lambda: not (group / "cgroup.procs").read_text(), "the group is empty", 30.0)
        group.rmdir()


def raising(folder: Path, seed: int) -> FaultRow:
    """A recipe that raises each kind of exception, or returns nonsense, in turn."""
    deeds = [f"raise:{name}" for name in EXCEPTIONS] + ["nan", "shape", "dims", "report"]
    with Bench(folder, seed, faulty=True, progress_s=6.0) as bench:
        runs = bench.plan(len(deeds))
        bench.faulty.order({run["uid"]: deed for run, deed in zip(runs, deeds, strict=True)})
        bench.play(runs)
        good = bench.send(3)
        uids = [run["uid"] for run in runs]
        until(lambda: len(ended(bench, uids + good)) == len(uids + good), "all have ended", 500.0)
        ends = bench.settle(good)
        more = bench.rig.ends(uids)
        ends.runs += more.runs
        ends.results += more.results
        ends.failures += more.failures
        ends.lost += more.lost
        ends.duplicated += more.duplicated
        ends.problems += more.problems
        rows = bench.rig.rows("SELECT run_uid, state, code, reason FROM jobs")
        named = {uid: (state, code, reason) for uid, state, code, reason in rows}
        found = {
            deed: named.get(run["uid"], ("?", "", ""))
            for run, deed in zip(runs, deeds, strict=True)
        }
        return row_of(
            bench,
            "recipes that raise, and that return nonsense",
            f"{len(EXCEPTIONS)} kinds of exceptions; NaN alone, a wrong shape, wrong axes, a report"
            " that JSON cannot hold",
            len(deeds),
            ends,
            "each raise is a failure with the exception's name",
            found={
                deed: f"{state} {code}: {reason[:120]}"
                for deed, (state, code, reason) in found.items()
            },
        )


def dying(folder: Path, seed: int) -> FaultRow:
    """Workers that crash, exit, hang for ever, or do not hear SIGTERM."""
    deeds = ["abort", "segfault", "exit:0", "exit:3", "hang", "deaf"]
    budgets = {"n2n": 20.0, "subspace": 20.0}
    with Bench(folder, seed, faulty=True, progress_s=5.0, budgets=budgets) as bench:
        runs = bench.plan(len(deeds))
        bench.faulty.order({run["uid"]: deed for run, deed in zip(runs, deeds, strict=True)})
        bench.play(runs)
        uids = [run["uid"] for run in runs] + bench.send(4)
        ends = bench.settle(uids, 500.0)
        rows = bench.rig.rows("SELECT run_uid, code, reason FROM jobs WHERE state = 'failed'")
        by_uid = {uid: (code, reason) for uid, code, reason in rows}
        found = {deed: by_uid.get(run["uid"]) for run, deed in zip(runs, deeds, strict=True)}
        for deed, why in found.items():
            wanted = "too_slow" if deed == "deaf" else "quarantined"
            if why is None or why[0] != wanted:
                ends.lose(f"{deed}: {why}")
        return row_of(
            bench,
            "workers that crash, exit, hang, or do not hear",
            "abort, segmentation fault, exit 0 and 3, an endless wait, an endless loop deaf to its cancellation",
            len(deeds),
            ends,
            "quarantined after two of them; too_slow by its budget",
            found=found,
        )


def never_ready(folder: Path, seed: int) -> FaultRow:
    """Workers end at start, again and again, for 20 s; the service stays up and says so."""
    bench = Bench(folder, seed, faulty=True)
    (bench.faulty.torture / "exit").write_text("7")
    with bench:
        uids = bench.send(3)
        began = time.monotonic()
        until(lambda: time.monotonic() - began > 20.0, "20 s", 60.0)
        said = bench.ask().get("troubles", {})
        starts = bench.rig.log.read_text().count("ended with status 7")
        (bench.faulty.torture / "exit").unlink()
        ends = bench.settle(uids)
        if "status 7" not in str(said) or starts > 12:
            ends.lose(f"it said {said} after {starts} starts")
        return row_of(
            bench,
            "workers that end at start",
            "status 7 for 20 s",
            starts,
            ends,
            f"the status said: {json.dumps(said)}",
        )


def clock_jumps(folder: Path, seed: int) -> FaultRow:
    """The wall clock of service, workers and host jumps by ten hours, forth and back, in mid-run."""
    library = next(Path("/usr/lib").rglob("libfaketimeMT.so.1"), None)
    if library is None:
        raise OSError("libfaketime is not installed: apt-get install faketime")
    bench = Bench(folder, seed, faulty=True)
    clock = bench.faulty.torture / "clock"
    clock.write_text("+0\n")
    bench.faulty.environment |= {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    with bench:
        uids: list[str] = []
        odd: list[str] = []
        jumps = ("+36000", "+0", "-36000", "+36000", "-36000", "+0")
        for jump in jumps:
            runs = bench.plan(4)
            bench.play(runs[:2])
            clock.write_text(jump + "\n")
            bench.play(runs[2:])
            uids += [run["uid"] for run in runs]
            bench.computed(uids)
            status = bench.ask()
            for worker in status["workers"]:
                if not 0 <= worker["seen_s"] < 60:
                    odd.append(f"a worker was seen {worker['seen_s']} s ago")
            if not 0 <= status["uptime_s"] < 3600:
                odd.append(f"up for {status['uptime_s']} s")
        ends = bench.settle(uids)
        no_failure(bench, ends)
        more_than_once = bench.rig.rows("SELECT count(*) FROM jobs WHERE fence > 1")[0][0]
        timings = [
            value
            for (result,) in bench.rig.rows("SELECT result FROM jobs WHERE result IS NOT NULL")
            for value in json.loads(result)["timings"].values()
        ]
        if any(not 0 <= value < 3600 for value in timings):
            odd.append(f"timings between {min(timings):.0f} and {max(timings):.0f} s")
        for text in odd:
            ends.lose(text)
        return row_of(
            bench,
            "clock jumps",
            "wall clock of service and workers by ten hours, forth and back (libfaketime), in mid-run",
            len(jumps),
            ends,
            f"{more_than_once} jobs were given out twice for it",
        )
