"""Disks that are full, read-only, failing or gone, and too many open files.

Full disks are small mounts of tmpfs over single folders of the state directory; that needs the right to mount.
"""

import resource
import subprocess
import time
from pathlib import Path

from fault_row import FaultRow
from resource_rows import ended, no_failure, row_of
from tiled_bench import Bench
from tmpfs import Tmpfs
from torture_check import Ends
from torture_rig import until


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
        no_failure(bench, ends)
        return row_of(bench, f"{how} in `{what or 'the state directory'}`", remark, times, ends)


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
        no_failure(bench, ends)
        how = "tmpfs of 32 MB with journal, spool, results and all logs, no byte free for 15 s"
        return row_of(bench, "disk full in the state directory", how, 2, ends)


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
        until(lambda: len(ended(bench, cut + whole)) == len(cut + whole), "all have ended", 300.0)
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
        return row_of(
            bench,
            "disk full in the document log of a beamline host",
            "tmpfs of 1 MB, full from before the start of four runs to after their stop",
            1,
            ends,
            f"{lost} documents could not be recorded; nothing came back at the plan",
        )


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
        no_failure(bench, ends)
        return row_of(
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
            return row_of(
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
        no_failure(bench, ends)
        return row_of(
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
            return row_of(
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
        no_failure(bench, ends)
        return row_of(
            bench,
            "too many open files",
            f"RLIMIT_NOFILE of the service at {fewest}, all of them taken, for 15 s",
            2,
            ends,
        )
