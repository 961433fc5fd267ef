"""Whatever a machine can run out of, and workers at their worst: what becomes of every run.

Full disks are small mounts of tmpfs over single folders of the state directory; that needs the right to mount.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fault_row
from fault_row import FaultRow
from faulty_worker import EXCEPTIONS
from rich.console import Console
from tiled_bench import Bench
from tmpfs import Tmpfs
from torture_check import Ends
from torture_rig import until

Scenario = Callable[[Path, int], FaultRow]
_CGROUP = Path("/sys/fs/cgroup/memory")


def run(seed: int, only: str) -> list[FaultRow]:
    """Do everything; one row each."""
    said = Console(stderr=True)
    rows: list[FaultRow] = []
    for name, scenario in _SCENARIOS.items():
        if only and only not in name:
            continue
        with tempfile.TemporaryDirectory(prefix="inscan-resources-") as folder:
            row = scenario(Path(folder), seed)
        rows.append(row)
        said.print(
            f"{time.strftime('%H:%M:%S')} {row.fault}: {row.runs} runs, {row.results} results,"
            f" {row.failures} failures, {row.lost} lost, {row.duplicated} twice, {row.seconds:g} s"
        )
        for problem in row.figures.get("problems", []):
            said.print(f"  {problem}", style="red", markup=False)
    return rows


def _row(
    bench: Bench, fault: str, how: str, times: int, ends: Ends, remarks: str = "", **figures: Any
) -> FaultRow:
    counted = (ends.runs, ends.results, ends.failures, ends.lost, ends.duplicated)
    figures = {**figures, "problems": ends.problems[:20]}
    return FaultRow(fault, how, times, *counted, bench.seconds, remarks, figures)


def _no_failure(bench: Bench, ends: Ends) -> None:
    """What only had to wait must end as a result."""
    rows = bench.rig.rows("SELECT run_uid, code, reason FROM jobs WHERE state = 'failed'")
    for uid, code, reason in rows:
        ends.lose(f"run {uid} ended as a failure: {code}, {reason}")
    for uid, reason in bench.rig.rows("SELECT run_uid, reason FROM runs WHERE state = 'failed'"):
        ends.lose(f"run {uid} failed: {reason}")


def _full(
    folder: Path, seed: int, what: str, size: str, how: str, remark: str, by_inodes: bool = False
) -> FaultRow:
    place = folder / "state" / what
    with (
        Tmpfs(place, size, "nr_inodes=60" if by_inodes else "") as disk,
        Bench(folder, seed) as bench,
    ):
        uids = bench.send(3)
        bench.settle(uids)
        times = 2
        for _ in range(times):
            if by_inodes:
                disk.fill_inodes()
            else:
                disk.fill()
            uids += bench.send(4)
            full = time.monotonic()
            until(lambda full=full: time.monotonic() - full > 15.0, "15 s without room", 60.0)
            disk.free()
            bench.settle(uids)
        ends = bench.settle(uids)
        _no_failure(bench, ends)
        return _row(bench, f"{how} in `{what or 'the state directory'}`", remark, times, ends)


def spool_full(folder: Path, seed: int) -> FaultRow:
    """No room for what a run declares."""
    how = "tmpfs of 8 MB, no byte free for 15 s while runs come"
    return _full(folder, seed, "spool", "8m", "disk full", how)


def results_full(folder: Path, seed: int) -> FaultRow:
    """No room for results, axes and what workers write."""
    how = "tmpfs of 8 MB, no byte free for 15 s: workers cannot write, the writer cannot"
    return _full(folder, seed, "results", "8m", "disk full", how)


def everything_full(folder: Path, seed: int) -> FaultRow:
    """No room for the journal, spool, results, logs and the hosts' document logs all at once."""
    with Tmpfs(folder / "state", "32m") as disk, Bench(folder, seed) as bench:
        uids = bench.send(3)
        bench.settle(uids)
        lost = 0
        for _ in range(2):
            # Documents are recorded as long as there is room; then all else has to wait.
            disk.fill(leave=400 << 10)
            uids += bench.send(3)
            disk.fill()
            full = time.monotonic()
            until(lambda full=full: time.monotonic() - full > 15.0, "15 s without room", 60.0)
            disk.free()
            bench.settle(uids)
        assert bench.host is not None
        lost, bench.host.lost = bench.host.lost, 0
        ends = bench.settle(uids)
        if lost:
            ends.lose(f"{lost} documents were lost")
        _no_failure(bench, ends)
        how = "tmpfs of 32 MB with journal, spool, results and all logs, no byte free for 15 s"
        return _row(bench, "disk full in the state directory", how, 2, ends)


def document_log_full(folder: Path, seed: int) -> FaultRow:
    """No room for the documents of a scan: it goes on, and what is missing is said."""
    with Tmpfs(folder / "state" / "log", "1m") as disk, Bench(folder, seed) as bench:
        whole = bench.send(2)
        bench.settle(whole)
        disk.fill()
        cut = bench.send(4)
        disk.free()
        assert bench.host is not None
        raised, lost, bench.host.lost = list(bench.host.raised), bench.host.lost, 0
        whole += bench.send(2)
        assert bench.host is not None
        bench.host.lost = 0
        until(lambda: len(_ended(bench, cut + whole)) == len(cut + whole), "all have ended", 300.0)
        ends = bench.count(whole)
        # Of these some documents are in no log: an end each, whole or failed by name.
        more = bench.rig.ends(cut)
        ends = Ends(
            ends.runs + more.runs,
            ends.results + more.results,
            ends.failures + more.failures,
            ends.lost + more.lost,
            ends.duplicated + more.duplicated,
            ends.problems + more.problems,
        )
        if raised:
            ends.lose(f"the plan was hurt: {raised}")
        return _row(
            bench,
            "disk full in the document log of a beamline host",
            "tmpfs of 1 MB, full from before the start of four runs to after their stop",
            1,
            ends,
            f"{lost} documents could not be recorded; nothing came back at the plan",
        )


def _ended(bench: Bench, uids: list[str]) -> list[str]:
    runs, jobs = bench.rig.journal()
    waiting = {job.run_uid for job in jobs if job.state not in ("committed", "failed")}
    ended = {run.run_uid for run in runs if run.state != "open"} - waiting
    return [uid for uid in uids if uid in ended]


def no_inodes(folder: Path, seed: int) -> FaultRow:
    """Bytes enough, but no more files."""
    how = "tmpfs with 60 inodes, none free for 15 s"
    return _full(folder, seed, "results", "8m", "no inodes left", how, by_inodes=True)


def read_only(folder: Path, seed: int) -> FaultRow:
    """Results and spool become read-only in the middle, and writable again."""
    with (
        Tmpfs(folder / "state" / "results", "16m") as results,
        Tmpfs(folder / "state" / "spool", "16m") as spool,
        Bench(folder, seed) as bench,
    ):
        uids = bench.send(3)
        bench.settle(uids)
        for disk in (results, spool, results):
            until(lambda disk=disk: _remounted(disk), "it is read-only", 60.0)
            uids += bench.send(4)
            began = time.monotonic()
            until(lambda began=began: time.monotonic() - began > 12.0, "12 s", 60.0)
            disk.read_only(False)
            bench.settle(uids)
        ends = bench.settle(uids)
        _no_failure(bench, ends)
        return _row(
            bench, "file system remounted read-only", "results and spool, 12 s each", 3, ends
        )


def _remounted(disk: Tmpfs) -> bool:
    try:
        disk.read_only(True)
    except OSError:
        return False  # somebody still writes there
    return True


def read_only_at_start(folder: Path, seed: int) -> FaultRow:
    """A read-only or full state directory is named at start, and fine once it is writable."""
    with Tmpfs(folder / "state", "16m") as disk:
        bench = Bench(folder, seed)
        said = []
        for full in (False, True):
            if full:
                disk.read_only(False)
                disk.fill()
            else:
                disk.read_only(True)
            process = bench.rig.launch()
            code = process.wait(120)
            said.append((code, bench.rig.log.read_text().strip().splitlines()[-1]))
        disk.free()
        with bench:
            ends = bench.settle(bench.send(2))
            for code, line in said:
                if code != 1 or str(bench.rig.state) not in line or "cannot start" not in line:
                    ends.lose(f"it ended with {code}, saying {line}")
            return _row(
                bench,
                "state directory read-only, or full, at start",
                "tmpfs mounted so, then writable",
                2,
                ends,
                f"it says: {said[0][1][:200]}",
            )


def unmounted(folder: Path, seed: int) -> FaultRow:
    """The disk with the results goes away under the service (umount -l), and is not there any more."""
    with Bench(folder, seed) as bench:
        results = bench.rig.state / "results"
        uids = bench.send(2)
        bench.settle(uids)
        with Tmpfs(results, "16m"):
            bench.end_tiled()
            waiting = bench.send(5)
            bench.computed(waiting)
        uids += waiting
        bench.tiled.launch()
        ends = bench.settle(uids)
        _no_failure(bench, ends)
        return _row(
            bench,
            "the disk with the results goes away",
            "umount -l while five results wait for Tiled",
            1,
            ends,
            "they were computed again",
        )


def failing_disk(folder: Path, seed: int) -> FaultRow:
    """The disk under the results gives EIO for what it held, then works again."""
    with Bench(folder, seed) as bench, Tmpfs(folder / "backing", "64m") as backing:
        image = backing.path / "image"
        with image.open("wb") as file:
            file.truncate(48 << 20)
        for command in (["mkfs.ext4", "-q", "-F", str(image)],):
            subprocess.run(command, check=True, capture_output=True)
        content = image.read_bytes()
        results = bench.rig.state / "results"
        subprocess.run(
            ["mount", "-o", "loop,errors=continue", str(image), str(results)], check=True
        )
        try:
            bench.end_tiled()
            uids = bench.send(5)
            bench.computed(uids)
            subprocess.run(["sync"], check=True)
            content = image.read_bytes()
            image.open("r+b").truncate(1 << 20)  # what lay beyond is gone: reads and writes fail
            Path("/proc/sys/vm/drop_caches").write_text("3")
            bench.tiled.launch()
            began = time.monotonic()
            until(lambda: time.monotonic() - began > 15.0, "15 s of failing reads", 60.0)
            said = bench.status()
            alive = bench.rig.process is not None and bench.rig.process.poll() is None
            image.write_bytes(content)
            ends = bench.settle(uids)
            if not alive:
                ends.lose("the service ended")
            return _row(
                bench,
                "EIO from the disk with the results",
                "ext4 on a loop device whose image is cut off under it for 15 s, caches dropped",
                1,
                ends,
                f'the status said: {said["state"]}, "{said["reason"][:200]}"',
            )
        finally:
            subprocess.run(["umount", "-l", str(results)], check=True)


def no_open_files(folder: Path, seed: int) -> FaultRow:
    """RLIMIT_NOFILE of the service is cut down to what it has open, for 15 s, twice."""
    with Bench(folder, seed) as bench:
        assert bench.rig.process is not None
        pid = bench.rig.process.pid
        uids = bench.send(3)
        bench.settle(uids)
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        fewest = 0
        for _ in range(2):
            fewest = len(list(Path(f"/proc/{pid}/fd").iterdir()))
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (fewest, hard))
            uids += bench.send(4)
            began = time.monotonic()
            until(lambda began=began: time.monotonic() - began > 15.0, "15 s", 60.0)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
            bench.settle(uids)
        ends = bench.settle(uids)
        _no_failure(bench, ends)
        return _row(
            bench,
            "too many open files",
            f"RLIMIT_NOFILE of the service at {fewest}, all of them taken, for 15 s",
            2,
            ends,
        )


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
        return _row(
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
            return _row(
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
        until(lambda: len(_ended(bench, uids + good)) == len(uids + good), "all have ended", 500.0)
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
        return _row(
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
        return _row(
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
        return _row(
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
        _no_failure(bench, ends)
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
        return _row(
            bench,
            "clock jumps",
            "wall clock of service and workers by ten hours, forth and back (libfaketime), in mid-run",
            len(jumps),
            ends,
            f"{more_than_once} jobs were given out twice for it",
        )


_SCENARIOS: dict[str, Scenario] = {
    one.__name__: one
    for one in (
        spool_full,
        results_full,
        everything_full,
        document_log_full,
        no_inodes,
        read_only,
        read_only_at_start,
        unmounted,
        failing_disk,
        no_open_files,
        too_large,
        killed_for_memory,
        raising,
        dying,
        never_ready,
        clock_jumps,
    )
}

if __name__ == "__main__":
    sys.exit(
        fault_row.main("resources", run, only=(str, "", "only scenarios with this in their name"))
    )
