"""Damaged journals: moved aside, and everything that can be read goes into a new one."""

import json
import os
import random
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from inscan.service.journal import Journal, JournalError
from inscan.service.journal_repair import FENCE_STEP, copy_path, damaged_files, first_page_path
from inscan.service.messages import ArraySpec, InferenceJob, InferenceResult, derived_uid, job_key

JOBS = 30
EXAMPLES = int(os.environ.get("INSCAN_LONG", "0")) or 3
"""Files that are damaged; `INSCAN_LONG=500` for many more of them."""
PAGE = 4096


def job_of(run_uid: str) -> InferenceJob:
    return InferenceJob(
        key=job_key(run_uid, "primary", "n2n", {}),
        run_uid=run_uid,
        stream="primary",
        kind="final",
        recipe="n2n",
        parameters={},
        meta={"profile": "test", "elements": [f"E{n}" for n in range(40)]},
        spool=f"/spool/{run_uid}",
        arrays={"counts": ArraySpec(file="counts.npy", shape=(1,), dtype="<f4", nbytes=4)},
        input_digest="",
        result_path="/results/x.h5",
        host_id="here",
    )


def result_of(key: str, fence: int) -> InferenceResult:
    return InferenceResult(
        key=key,
        fence=fence,
        result_path=f"/results/{key}.h5",
        digest=f"sha256:{key[:8]}",
        report={"verdict": "warn", "text": "x" * 700},
        regions=[],
        timings={},
    )


def fill(journal: Journal, first: int = 0, count: int = JOBS) -> None:
    """Runs with a job each: of five, two are committed, one has failed, one is leased and one waits."""
    # Those that wait come last: they would be given out before the others.
    for n in sorted(range(first, first + count), key=lambda n: n % 5 == 4):
        job = job_of(f"run-{n}")
        journal.record_run(job.run_uid, n, "test", {"uid": job.run_uid, "note": "y" * 300})
        journal.add_job(job)
        journal.synced(job.key, "sha256:in")
        journal.finish_run(job.run_uid, "complete")
        if n % 5 == 4:
            continue
        found = journal.leases.lease("w1", 1e6)
        assert found is not None
        fence = found[0].fence
        if n % 5 == 2:
            journal.leases.refuse(job.key, fence, "bad_input", "negative counts")
        elif n % 5 != 3:
            journal.computed(job.key, fence, result_of(job.key, fence))
            journal.committed(job.key, derived_uid(job.key))


def ends_of(journal: Journal) -> dict[str, tuple[str, Any]]:
    return {
        one["key"]: (one["state"], one["result_uid"])
        for one in journal.jobs()
        if one["state"] in ("committed", "failed")
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, dict[str, tuple[str, Any]]]:
    """A folder with a closed journal, its copy and its first page; and how its jobs ended."""
    folder = tmp_path_factory.mktemp("whole")
    journal = Journal(folder / "journal.db", boot_id="boot-1")
    fill(journal)
    journal.add_proposal({"id": "p1", "run_uid": "run-0", "state": "approved", "regions": []})
    ends = ends_of(journal)
    journal.keep_copy(every_s=0)
    journal.close()
    return folder, ends


def taken_to(folder: Path, whole: Path, *, copy: bool) -> Path:
    path = folder / "journal.db"
    shutil.copyfile(whole / "journal.db", path)
    shutil.copyfile(first_page_path(whole / "journal.db"), first_page_path(path))
    if copy:
        shutil.copyfile(copy_path(whole / "journal.db"), copy_path(path))
    return path


def opened(path: Path) -> Journal:
    """As a service would: it starts, and starts again without another repair."""
    Journal(path, boot_id="boot-1").close()
    repairs = len(damaged_files(path))
    journal = Journal(path, boot_id="boot-1")
    assert len(damaged_files(path)) == repairs, "it repaired what it had just made"
    return journal


def accounted_for(journal: Journal, ends: dict[str, tuple[str, Any]]) -> None:
    """No job is another one than it was, and of a run whose job is missing it is not claimed that it is over."""
    known = {one["key"]: one for one in journal.jobs()}
    warned = journal.health()
    for n in range(JOBS):
        run_uid = f"run-{n}"
        key = job_of(run_uid).key
        if key in known:
            if known[key]["state"] in ("committed", "failed"):
                assert ends[key][0] == known[key]["state"]
                if "warning" in warned:
                    assert ends[key][1] == known[key]["result_uid"]
            else:
                # A bit of no consequence (in a report's text) is not noticed, and nothing changes.
                assert known[key]["state"] in ("queued", "computed") or "warning" not in warned
            continue
        if any(one["run_uid"] == run_uid and one["recipe"] == "?" for one in known.values()):
            continue  # its row is lost, and the index has a letter of its key wrong
        assert not journal.released(run_uid), f"{run_uid} lost its job, and its documents may go"
    assert len({one["run_uid"] for one in known.values()}) == len(known) <= JOBS


@pytest.mark.parametrize("with_copy", [True, False])
@hypothesis_settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES < 10,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(seed=st.integers(0, 10**6), how=st.sampled_from(["flips", "zeroed", "truncated", "noise"]))
@example(seed=0, how="first page")
@example(seed=0, how="empty")
def test_what_can_be_read_is_kept_and_nothing_is_made_up(
    tmp_path_factory, whole, seed, how, with_copy
):
    folder, ends = whole
    path = taken_to(tmp_path_factory.mktemp("damaged"), folder, copy=with_copy)
    random_ = random.Random(seed)
    content = bytearray(path.read_bytes())
    pages = len(content) // PAGE
    if how == "flips":
        for _ in range(random_.randint(1, 40)):
            content[random_.randrange(len(content))] ^= 1 << random_.randrange(8)
    elif how == "truncated":
        del content[random_.randrange(PAGE, len(content)) :]
    elif how == "empty":
        content.clear()
    else:
        page = 0 if how == "first page" else random_.randrange(1, pages)
        noise = random_.randbytes(PAGE) if how == "noise" else bytes(PAGE)
        content[page * PAGE : (page + 1) * PAGE] = noise
    path.write_bytes(content)
    journal = opened(path)
    try:
        accounted_for(journal, ends)
        if damaged_files(path):
            assert "repaired on" in journal.health()["warning"]
            if with_copy:
                assert ends_of(journal) == ends, "its copy had them all"
        for one in journal.proposals():
            assert one["id"] == "p1"
    finally:
        journal.close()


def test_a_lost_first_page_loses_nothing(tmp_path, whole):
    folder, ends = whole
    path = taken_to(tmp_path, folder, copy=False)
    content = path.read_bytes()
    path.write_bytes(bytes(PAGE) + content[PAGE:])
    journal = opened(path)
    assert ends_of(journal) == ends and len(journal.jobs()) == JOBS
    assert len(journal.runs(limit=1000)) == JOBS
    journal.close()


def test_of_a_lost_row_the_indexes_know_how_it_ended(tmp_path, whole):
    folder, ends = whole
    path = taken_to(tmp_path, folder, copy=False)
    content = bytearray(path.read_bytes())
    wanted = job_of("run-10").key.encode()
    # Leaves of the table hold whole requests, those of the indexes keys alone.
    page = next(
        n
        for n in range(1, len(content) // PAGE)
        if content[n * PAGE] == 0x0D
        and wanted in content[n * PAGE : (n + 1) * PAGE]
        and b'"recipe"' in content[n * PAGE : (n + 1) * PAGE]
    )
    content[page * PAGE : (page + 1) * PAGE] = bytes(PAGE)
    path.write_bytes(content)
    journal = opened(path)
    assert ends_of(journal) == ends
    bare = [one for one in journal.jobs() if one["recipe"] == "?"]
    assert bare and "only their end is known" in journal.health()["warning"]
    assert journal.request(bare[0]["key"]) is None
    assert (journal.outcome("run-10") or {}).get("status") == "done"
    accounted_for(journal, ends)
    journal.close()


def test_a_bit_inside_a_value_is_found_and_only_that_row_suffers(tmp_path, whole):
    folder, ends = whole
    path = taken_to(tmp_path, folder, copy=False)
    content = path.read_bytes()
    at = content.index(b'"kind":"final"')
    path.write_bytes(content[:at] + b"}" + content[at + 1 :])
    journal = opened(path)
    assert len(damaged_files(path)) == 1
    accounted_for(journal, ends)
    assert len(journal.jobs()) >= JOBS - 1
    assert json.dumps(journal.jobs()) and journal.status()["jobs"]
    journal.close()


@pytest.mark.parametrize("torn", ["missing", "cut", "flipped", "shm left"])
def test_a_torn_log_loses_its_own_tail_alone(tmp_path, torn):
    path = tmp_path / "journal.db"
    journal = Journal(path, boot_id="boot-1")
    fill(journal, count=9)
    ends = ends_of(journal)
    journal._file.rows("PRAGMA wal_checkpoint(TRUNCATE)")
    for n in range(9, 14):  # in the log alone
        journal.add_job(job_of(f"run-{n}"))
    for name in ("journal.db", "journal.db-wal", "journal.db-shm"):
        shutil.copyfile(tmp_path / name, tmp_path / f"kept-{name}")
    journal.close()
    for name in ("journal.db", "journal.db-wal", "journal.db-shm"):
        shutil.move(tmp_path / f"kept-{name}", tmp_path / name)
    log = tmp_path / "journal.db-wal"
    if torn == "missing":
        log.unlink()
    elif torn == "cut":
        log.write_bytes(log.read_bytes()[: log.stat().st_size // 2])
    elif torn == "flipped":
        content = bytearray(log.read_bytes())
        content[len(content) // 2] ^= 4
        log.write_bytes(content)
    again = opened(path)
    assert ends.items() <= ends_of(again).items()
    if torn == "shm left":
        assert len(again.jobs()) == 14
    again.close()


def test_a_journal_that_vanished_comes_from_its_copy(tmp_path, whole):
    folder, ends = whole
    path = taken_to(tmp_path, folder, copy=True)
    path.unlink()
    journal = opened(path)
    assert ends_of(journal) == ends
    assert "gone, or empty" in journal.health()["warning"]
    # Dispatches of the life that is lost are older than any of this one.
    given_ = journal.leases.lease("w2", 10.0)
    assert given_ is not None and given_[0].fence > FENCE_STEP
    journal.close()


def test_what_a_copy_calls_open_may_have_ended_since_and_its_rescans_are_not_begun_again(
    tmp_path, whole
):
    folder, _ = whole
    path = taken_to(tmp_path, folder, copy=True)
    path.write_bytes(b"this is not a database")
    journal = opened(path)
    (proposal,) = journal.proposals()
    assert proposal["state"] == "expired" and "damaged" in proposal["reason"]
    assert [step["state"] for step in proposal["history"]] == ["approved", "expired"]
    journal.close()


def test_a_repair_that_was_cut_short_is_finished(tmp_path, whole, monkeypatch):
    folder, ends = whole
    path = taken_to(tmp_path, folder, copy=False)
    content = bytearray(path.read_bytes())
    content[5 * PAGE : 6 * PAGE] = bytes(PAGE)
    path.write_bytes(content)
    from inscan.service import journal_repair

    def killed(*paths: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(journal_repair, "_put_in_place", killed)
        with pytest.raises(KeyboardInterrupt):
            Journal(path, boot_id="boot-1")
    journal = opened(path)
    accounted_for(journal, ends)
    assert len(damaged_files(path)) == 1
    journal.close()


def test_a_repair_without_room_leaves_the_file_and_says_so(tmp_path, whole, monkeypatch):
    folder, _ = whole
    path = taken_to(tmp_path, folder, copy=False)
    damaged = b"x" * 5000
    path.write_bytes(damaged)

    def full(*paths: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("inscan.service.journal_salvage.shutil.copyfile", full)
        with pytest.raises(JournalError, match="cannot be repaired.*No space left"):
            Journal(path)
    assert path.read_bytes() == damaged and not damaged_files(path)


def test_an_upgrade_that_stopped_half_way_is_repaired(tmp_path, whole):
    folder, ends = whole
    path = taken_to(tmp_path, folder, copy=False)
    connection = sqlite3.connect(path)
    connection.execute("DROP TABLE job_history")
    connection.execute("DROP INDEX jobs_to_thin")
    connection.execute("PRAGMA user_version = 2")
    connection.close()
    journal = opened(path)
    assert ends_of(journal) == ends and len(journal.jobs()) == JOBS
    journal.close()


def test_a_copy_is_made_once_a_day_and_when_something_changed(tmp_path):
    now = [1000.0]
    path = tmp_path / "journal.db"
    journal = Journal(path, clock=lambda: now[0], boot_id="boot-1")
    fill(journal, count=3)
    assert journal.keep_copy() and copy_path(path).exists()
    assert not journal.keep_copy()
    fill(journal, 3, 1)
    assert not journal.keep_copy(), "it is an hour old"
    now[0] += 90_000
    assert journal.keep_copy()
    now[0] += 90_000
    assert not journal.keep_copy(), "nothing has changed"
    copied = Journal(copy_path(path))
    assert len(copied.jobs()) == 4
    copied.close()
    assert journal.health()["copy_age_s"] >= 0
    journal.close()
