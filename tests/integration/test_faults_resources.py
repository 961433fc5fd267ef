"""Full disks, memory that runs out, workers at their worst: the quick part of benchmarks/torture_resources.py.

Small disks are mounts of tmpfs; where those are not allowed, such tests are skipped.
"""

import errno
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from inscan.callbacks.link import host_id
from inscan.service.chores import Chores
from inscan.service.crew import Crew
from inscan.service.disk import reserve
from inscan.service.mailbox import Mailbox
from inscan.service.messages import InferenceJob, job_key
from inscan.service.processed import Processed, ResultArray
from inscan.service.result_file import ResultFileError, read_result, write_result
from inscan.service.result_view import describe, digest_of
from inscan.service.state_dir import StateDir, StateError
from inscan.service.worker_job import execute, explain

Until = Callable[..., Any]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """`small_disk("768k")`: a file system of that size."""
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        place = tmp_path / f"disk{len(mounted)}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "inscan-test", str(place)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("needs the right to mount")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", "-l", str(place)], check=True)


def result_of(count: int) -> Processed:
    values = ResultArray("values", ("row",), "counts", np.ones(count, "f4"))
    return Processed([values], {"words": "x" * 5000})


def test_a_full_disk_is_an_error_and_leaves_nothing_wherever_it_meets_a_result(small_disk):
    """HDF5 that meets it while closing ends the process: each size fits by another few bytes less."""
    place = small_disk("size=512k")
    written = refused = 0
    for count in range(30_000, 90_000, 2500):
        try:
            write_result(place / "k.h5", result_of(count), {})
            written += 1
            (place / "k.h5").unlink()
        except OSError as error:
            refused += 1
            assert error.errno == errno.ENOSPC and explain_code(error) == "machine"
        assert list(place.iterdir()) == []
    assert written > 3 and refused > 3


def explain_code(error: BaseException) -> str:
    return explain(JOB, error).code


JOB = InferenceJob(
    key=job_key("run", "primary", "n2n", {}),
    run_uid="run",
    stream="primary",
    kind="final",
    recipe="n2n",
    parameters={},
    meta={},
    spool="/nowhere",
    arrays={},
    input_digest="",
    result_path="/nowhere/x.h5",
    host_id="here",
)


@pytest.mark.parametrize(
    ("error", "code", "retryable"),
    [
        (MemoryError(), "too_large", False),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "too_large", False),
        (OSError(errno.ENOSPC, "No space left on device"), "machine", True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "machine", True),
        (OSError(errno.EROFS, "Read-only file system"), "machine", True),
        (OSError(errno.EMFILE, "Too many open files"), "machine", True),
        (OSError(errno.EIO, "Input/output error"), "io", True),
        (ValueError("negative"), "bad_input", False),
        (SystemExit(3), "error", True),
    ],
)
def test_what_is_the_machines_uses_up_no_try(error, code, retryable):
    fail = explain(JOB, error)
    assert (fail.code, fail.retryable) == (code, retryable)


def test_a_file_that_cannot_be_opened_for_now_is_not_called_damaged(tmp_path):
    path = tmp_path / "k.h5"
    digest = write_result(path, result_of(100), {})
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 8, hard))
    try:
        try:
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        except OSError as error:
            assert error.errno == errno.EMFILE
        for read in (describe, digest_of, read_result):
            with pytest.raises(OSError) as caught:
                read(path)
            assert caught.value.errno == errno.EMFILE
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert digest_of(path) == digest
    content = path.read_bytes()
    for damaged in (content[:-40], content[: len(content) // 2], b"", b"no HDF5"):
        path.write_bytes(damaged)
        with pytest.raises(ResultFileError):
            digest_of(path)


def test_what_a_killed_worker_left_is_swept_up_by_the_next(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    left = tmp_path / f".k.1.h5.{process.pid}.123.tmp"
    mine = tmp_path / f".k.1.h5.{os.getpid()}.123.tmp"
    for path in (left, mine):
        path.write_bytes(b"half")
    write_result(tmp_path / "k.2.h5", result_of(10), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == [mine.name, "k.2.h5"]


def test_room_is_taken_without_making_a_file_longer(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"1234")
    reserve(path, 1 << 20)
    assert path.read_bytes() == b"1234"
    with pytest.raises(OSError) as caught:
        reserve(path, 1 << 60)
    assert caught.value.errno in (errno.ENOSPC, errno.EFBIG)


def test_a_result_of_nan_alone_is_refused_by_name(tmp_path):
    values = np.full((2, 3), np.nan, "f4")

    def recipe(job: InferenceJob, arrays: Mapping[str, np.ndarray], progress: Any) -> Processed:
        return Processed([ResultArray("values", ("row", "col"), "", values)], {})

    np.save(tmp_path / "measured.npy", np.ones((2, 3), bool))
    spec = {"file": "measured.npy", "shape": (2, 3), "dtype": "|b1", "nbytes": 6}
    job = InferenceJob.model_validate(
        {
            **JOB.model_dump(),
            "spool": str(tmp_path),
            "arrays": {"measured": spec},
            "result_path": str(tmp_path / "k.h5"),
            "host_id": host_id(),
        }
    )
    with pytest.raises(ValueError, match="6 pixels were measured") as caught:
        execute(job, recipe, lambda fraction: None, "")
    assert explain(job, caught.value).code == "bad_result"
    values[0, 0] = 1.0
    execute(job, recipe, lambda fraction: None, "")


def test_a_state_directory_without_room_or_leave_to_write_is_named(small_disk, tmp_path):
    place = small_disk("size=64k")
    settings: Any = SimpleNamespace(
        state_dir=place,
        spool_dir=place / "spool",
        results_dir=place / "results",
        live_dir=place / "live",
        service_file=place / "service.json",
    )
    state = StateDir(settings)
    filler = place / "filler"
    with pytest.raises(OSError, match="No space"), filler.open("wb") as file:
        file.write(bytes(1 << 20))
    with pytest.raises(StateError, match=f"{place} cannot be used.*free some room"):
        state.announce({})
    filler.unlink()
    state.announce({})
    state.close()
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    with pytest.raises(StateError, match=f"{place} cannot be used.*make it writable"):
        StateDir(settings)


def test_workers_that_cannot_start_are_tried_again_and_named(tmp_path, until: Until):
    mailbox = Mailbox()
    missing = tmp_path / "no-program"
    crew = Crew(1, "tcp://x", tmp_path, mailbox, threads=1, grace_s=0.1, command=(str(missing),))
    crew.start()
    assert "cannot be started" in crew.troubles["worker-0"]
    missing.write_text("#!/bin/sh\nkill -9 $$\n")
    missing.chmod(0o700)

    def ended() -> bool:
        crew.look_after()
        return "SIGKILL" in crew.troubles.get("worker-0", "")

    until(ended)
    assert "for want of memory" in crew.troubles["worker-0"]
    crew.stop()
    mailbox.close()


def test_a_chore_that_fails_ends_nothing_and_is_told_until_it_is_done(caplog):
    chores, done = Chores(), threading.Event()

    def sweep() -> None:
        if not done.is_set():
            raise OSError(errno.EROFS, "Read-only file system")

    for _ in range(3):
        chores.do("spool", sweep)
    assert "Read-only" in chores.troubles["spool"]
    assert sum("Read-only" in one.message for one in caplog.records) == 1
    done.set()
    chores.do("spool", sweep)
    assert chores.troubles == {}
