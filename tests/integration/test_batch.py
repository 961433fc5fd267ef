"""Many stored runs on a real Dask cluster: workers killed at work, jobs killed and started again."""

import json
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from bluesky_tiled_plugins import TiledWriter
from tiled.client import from_uri
from tiled.queries import Eq

from inscan.callbacks.profile import load_profile
from inscan.profiles.bluesky_documents import Counts, step_documents
from inscan.profiles.bluesky_starts import grid
from inscan.service.batch import BatchSummary, cluster, process_batch
from inscan.service.batch_query import parse_query
from inscan.service.batch_task import BatchTask, process_one
from inscan.service.show import TiledAccess
from inscan.service.tiled_http import PROCESSED, RAW, TiledHTTP
from inscan.service.tiled_server import EmbeddedTiled

# Minutes on a machine that is busy with other tests.
pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]

RUNS, BROKEN = 6, 1
Until = Callable[..., Any]


@pytest.fixture(scope="module")
def access(tiled: EmbeddedTiled) -> Iterator[TiledAccess]:
    with pytest.MonkeyPatch.context() as patch:
        # How a worker gets the key: from its environment, never with its task.
        patch.setenv("INSCAN_TILED_API_KEY", tiled.api_key.get_secret_value())
        patch.setenv("OMP_NUM_THREADS", "1")
        yield TiledAccess(tiled.uri, tiled.api_key)


@pytest.fixture(scope="module")
def archive(access: TiledAccess) -> Iterator[Any]:
    """Tiled's client."""
    assert access.api_key is not None
    with TiledHTTP(access.uri, access.api_key) as http:
        http.ensure_catalogs()
    client: Any = from_uri(access.uri, api_key=access.api_key.get_secret_value())
    yield client
    client.context.http_client.close()


def stored(client: Any, sample: str, n: int, broken: int = 0) -> list[str]:
    """Write runs, the last of them with a beam that excites nothing; returns their uids."""
    uids = []
    plan = grid((8, 8), (0.0, 7.0), (0.0, 7.0))
    for number in range(n):
        writer = TiledWriter(client[RAW])
        counts = Counts.drawn(plan.n, seed=number)
        metadata: dict[str, Any] = {"beamline_id": "sim_xrf", "sample": sample, "scan_id": number}
        if number >= n - broken:
            metadata["scan"] = {"energy": 0.5, "dwell": 0.125}
        for name, doc in step_documents(plan, counts, **metadata):
            writer(name, doc)
            if name == "start":
                uids.append(doc["uid"])
    return uids


def task(access: TiledAccess, tmp_path: Path, **more: Any) -> BatchTask:
    profile = load_profile("sim_xrf").model_dump(mode="json")
    return BatchTask(access.uri, tmp_path, (profile,), **more)


def results_of(client: Any, uids: list[str]) -> Counter[tuple[str, str]]:
    """(raw uid, exit status) -> how many derived runs there are."""
    found: Counter[tuple[str, str]] = Counter()
    for uid in uids:
        for run in client[PROCESSED].search(Eq("start.raw_uid", uid)).values():
            found[uid, run.metadata["stop"]["exit_status"]] += 1
    return found


def test_workers_are_killed_and_every_run_has_one_record(
    access: TiledAccess, archive: Any, tmp_path: Path
) -> None:
    uids = stored(archive, "killed", RUNS, BROKEN)
    killed: list[int] = []

    def tell(summary: BatchSummary, total: int | None) -> None:
        assert total == RUNS
        if summary.runs == 2 and not killed:
            (worker, *_) = [info["pid"] for info in dask.run(_who).values()]
            killed.append(worker)
            os.kill(worker, signal.SIGKILL)

    records = tmp_path / "records.jsonl"
    query = parse_query(["sample=killed"])
    with cluster("local", workers=2, memory="4GiB") as dask:
        summary = process_batch(
            dask, access, query, task(access, tmp_path), records=records, tell=tell
        )
        assert killed
        assert not psutil.pid_exists(killed[0]) or psutil.Process(killed[0]).status() == "zombie"
        assert summary.runs == RUNS
        assert summary.states["done"] + summary.states["there"] == RUNS - BROKEN
        (failure,) = summary.failures
        assert (failure.run_uid, summary.states["failed"]) == (uids[-1], 1)
        assert "no line is left to map" in failure.reason
        alone = (tmp_path / "records.failed.jsonl").read_text().splitlines()
        assert [json.loads(line)["run_uid"] for line in alone] == [uids[-1]]
        good = uids[: RUNS - BROKEN]
        assert results_of(archive, good) == {(uid, "success"): 1 for uid in good}

        # Once more: nothing is left to do but what had no result.
        again = process_batch(
            dask, access, query, task(access, tmp_path), records=records, tell=lambda *_: None
        )
        assert again.states == {"failed": 1}
        assert results_of(archive, good) == {(uid, "success"): 1 for uid in good}
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    assert {line["run_uid"] for line in lines} == set(uids)


def _who() -> dict[str, int]:
    return {"pid": os.getpid()}


def test_a_killed_job_resumes_computes_nothing_twice_and_gives_the_same_bytes(
    access: TiledAccess, archive: Any, tmp_path: Path
) -> None:
    uids = stored(archive, "resumed", 2)
    records = tmp_path / "records.jsonl"
    # What a job that was killed after its first run leaves: its result, and a torn record.
    first = process_one(task(access, tmp_path), uids[0])
    assert [record.state for record in first] == ["done"]
    records.write_text('{"run_uid": "' + uids[0])
    query = parse_query(["sample=resumed"])
    with cluster("local", workers=1, memory="4GiB") as dask:

        def processed(into: Path, **how: Any) -> BatchSummary:
            jobs = task(access, tmp_path, **how)
            return process_batch(dask, access, query, jobs, records=into, tell=lambda *_: None)

        assert processed(records).states == {"there": 1, "done": 1}
        assert processed(records).runs == 0
        processed(tmp_path / "again.jsonl", again=True)
    assert results_of(archive, uids) == {(uid, "success"): 1 for uid in uids}
    again = [json.loads(text) for text in (tmp_path / "again.jsonl").read_text().splitlines()]
    assert [line["fate"] for line in again] == ["same", "same"]
    assert first[0].digest in {line["digest"] for line in again}
