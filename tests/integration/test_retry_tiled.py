"""Failures that are overcome, and journals that are lost, against a real Tiled: one record for each job, and the first
result stands."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inscan.service.acceptance import accept, adopt, fenced_path
from inscan.service.journal import Journal
from inscan.service.mailbox import Mailbox
from inscan.service.messages import InferenceJob, InferenceResult, derived_uid, job_key
from inscan.service.processed import Processed, ResultArray
from inscan.service.result_file import write_result
from inscan.service.tiled_http import PROCESSED, TiledHTTP
from inscan.service.tiled_server import EmbeddedTiled
from inscan.service.writer import Target, Writer

Until = Callable[..., Any]


class Desk:
    """A journal and a writer for the shared Tiled; results are made by hand."""

    def __init__(self, state: Path, folder: Path, tiled: EmbeddedTiled, until: Until) -> None:
        self.results = folder / "results"
        self.state = state
        self.until = until
        self.target = Target(tiled.uri, tiled.api_key, (self.results,))
        self.open()

    def open(self) -> None:
        self.journal = Journal(self.state / "journal.db", backoff_s=0.01)
        self.mailbox = Mailbox()
        self.heard: list[str] = []
        self.writer = Writer(
            self.journal,
            self.target,
            self.mailbox,
            results_dir=self.results,
            announce=self.heard.append,
            first_pause_s=0.05,
            longest_pause_s=0.2,
        )
        self.writer.start()

    def close(self) -> None:
        assert self.writer.stop()
        self.mailbox.close()
        self.journal.close()

    def job(self, run_uid: str) -> InferenceJob:
        key = job_key(run_uid, "primary", "n2n", {})
        job = InferenceJob(
            key=key,
            run_uid=run_uid,
            stream="primary",
            kind="final",
            recipe="n2n",
            parameters={},
            meta={"technique": "xrf"},
            spool="/nowhere",
            arrays={},
            input_digest="",
            result_path=str(self.results / f"{key}.h5"),
            host_id="here",
        )
        self.journal.record_run(run_uid, 7, "test", {"uid": run_uid, "scan_id": 7})
        self.journal.add_job(job)
        self.journal.synced(key, "sha256:in")
        self.journal.finish_run(run_uid, "complete")
        return job

    def fail(self, reason: str) -> None:
        found = self.journal.leases.lease("w1", 60.0)
        assert found is not None
        self.journal.leases.refuse(found[0].key, found[0].fence, "bad_input", reason)
        self.mailbox.post(None)

    def finish(self, value: float) -> str:
        """As a worker and the broker do it."""
        found = self.journal.leases.lease("w1", 60.0)
        assert found is not None
        key, fence = found[0].key, found[0].fence
        path = fenced_path(self.results, key, fence)
        values = np.full((1, 2, 3), value, "f4")
        array = ResultArray("values", ("element", "row", "col"), "counts", values, ["Fe_K"])
        digest = write_result(path, Processed([array], {"verdict": "pass"}), {"key": key})
        result = InferenceResult(
            key=key,
            fence=fence,
            result_path=str(path),
            digest=digest,
            report={"verdict": "pass"},
            regions=[],
            timings={},
        )
        assert accept(self.journal, self.results, result) == "accepted"
        self.mailbox.post(None)
        return digest

    def reaches(self, key: str, state: str) -> None:
        self.until(lambda: (self.journal.job(key) or {}).get("state") == state)


@pytest.fixture
def desk(tmp_path: Path, folder: Path, tiled: EmbeddedTiled, until: Until) -> Iterator[Desk]:
    made = Desk(tmp_path, folder, tiled, until)
    yield made
    made.close()


@pytest.fixture
def stored(tiled: EmbeddedTiled) -> Iterator[Callable[[str], dict[str, Any]]]:
    """Start and stop document of a job's derived run, as Tiled has them."""
    with TiledHTTP(tiled.uri, tiled.api_key) as http:

        def look(key: str) -> dict[str, Any]:
            found = http.get(f"{PROCESSED}/{derived_uid(key)}")
            return {} if found is None else found["metadata"]

        yield look


def test_a_retry_that_succeeds_takes_the_place_of_the_failure(desk, stored, until):
    job = desk.job("retried-run")
    for reason in ("row 3 is negative", "row 4 is negative"):
        desk.fail(reason)
        until(lambda: desk.journal.unrecorded() == [])
        found = stored(job.key)
        assert found["start"]["failure"] == {"code": "bad_input", "reason": reason}
        assert found["stop"]["exit_status"] == "fail"
        assert desk.journal.retry(job.key, "ada (key: local)")
    digest = desk.finish(1.0)
    desk.reaches(job.key, "committed")
    found = stored(job.key)
    assert found["stop"]["exit_status"] == "success" and "failure" not in found["start"]
    assert found["start"]["result_digest"] == digest
    assert desk.journal.outcome("retried-run")["status"] == "done"
    assert [one["what"] for one in desk.journal.history()[job.key]] == ["retry", "retry"]


def test_failures_are_told_to_tiled_once_and_not_at_every_start(desk, stored, until):
    job = desk.job("failed-run")
    desk.fail("row 3 is negative")
    until(lambda: desk.journal.unrecorded() == [])
    made = stored(job.key)["start"]["time"]
    desk.close()
    desk.open()
    other = desk.job("other-run")
    desk.finish(1.0)
    desk.reaches(other.key, "committed")
    assert desk.heard == ["other-run"] and stored(job.key)["start"]["time"] == made


def test_a_lost_journal_makes_no_second_result_of_a_run(desk, stored, tmp_path):
    job = desk.job("lost-run")
    digest = desk.finish(1.0)
    desk.reaches(job.key, "committed")
    path = desk.results / f"{job.key}.h5"
    content, before = path.read_bytes(), stored(job.key)
    desk.close()
    for left in tmp_path.glob("journal*"):
        left.unlink()
    desk.open()
    # Its documents come once more: nobody knows them. The result that is there is taken, whatever a worker would make.
    again = desk.job("lost-run")
    assert adopt(desk.journal, desk.results, again)
    desk.mailbox.post(None)
    desk.reaches(again.key, "committed")
    assert desk.journal.job(again.key)["digest"] == digest
    assert stored(job.key) == before and path.read_bytes() == content
    # And where the file itself is gone, Tiled keeps what it was told.
    desk.close()
    for left in (*tmp_path.glob("journal*"), path):
        left.unlink()
    desk.open()
    third = desk.job("lost-run")
    assert not adopt(desk.journal, desk.results, third)
    assert desk.finish(2.0) != digest
    desk.reaches(third.key, "committed")
    assert stored(job.key) == before
