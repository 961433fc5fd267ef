"""A Tiled that misbehaves, and a writer that loses nothing over it: a real Tiled behind a proxy that disturbs requests.

Every request in turn, and for hours: `benchmarks/torture_tiled.py`.
"""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inscan.service.commit import Committer
from inscan.service.derived import axes_of, compose
from inscan.service.journal import Journal
from inscan.service.mailbox import Mailbox
from inscan.service.messages import InferenceJob, InferenceResult, derived_uid, job_key
from inscan.service.processed import Processed, ResultArray
from inscan.service.result_file import write_result
from inscan.service.result_view import describe
from inscan.service.tiled_http import (
    PROCESSED,
    TiledHTTP,
    TiledRefusedKey,
    TiledRejected,
    TiledSilent,
    TiledUnavailable,
)
from inscan.service.tiled_server import EmbeddedTiled
from inscan.service.writer import Target, Writer

Until = Callable[..., Any]


def _module(name: str) -> Any:
    """A module of benchmarks/, which is no package."""
    path = Path(__file__).parents[2] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"{name}_for_tests", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


proxies = _module("http_proxy")
Deed, PASS = proxies.Deed, proxies.PASS


@pytest.fixture
def proxy(tiled: EmbeddedTiled) -> Iterator[Any]:
    one = proxies.HttpProxy(tiled.uri)
    yield one
    one.close()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    one = Journal(tmp_path / "journal.db", backoff_s=0.02)
    yield one
    one.close()


class Results:
    """Results that wait in a journal, and a writer for them that is quick to try again."""

    def __init__(self, folder: Path, journal: Journal, until: Until) -> None:
        self.folder = folder
        self.journal = journal
        self.until = until
        self.mailbox = Mailbox()
        self.heard: list[str] = []
        self.writer: Writer | None = None

    def add(self, run_uid: str, **meta: Any) -> str:
        """A result on the disk and in the journal; the key of its job."""
        key = job_key(run_uid, "primary", "n2n", {})
        path = self.folder / "results" / f"{key}.h5"
        values = np.full((1, 2, 3), len(run_uid), "f4")
        array = ResultArray("values", ("element", "row", "col"), "counts", values, ["Fe_K"])
        digest = write_result(path, Processed([array], {}), {})
        job = InferenceJob(
            key=key,
            run_uid=run_uid,
            stream="primary",
            kind="final",
            recipe="n2n",
            parameters={},
            meta={"technique": "xrf", **meta},
            spool="/nowhere",
            arrays={},
            input_digest="sha256:00",
            result_path=str(path),
            host_id="here",
        )
        self.journal.record_run(run_uid, 1, "sim_xrf", {"uid": run_uid})
        assert self.journal.add_job(job)
        self.journal.synced(key, "sha256:00")
        leased = self.journal.leases.lease("worker", 60.0)
        assert leased is not None
        result = InferenceResult(
            key=key,
            fence=leased[0].fence,
            result_path=str(path),
            digest=digest,
            report={"verdict": "pass"},
            regions=[],
            timings={},
        )
        assert self.journal.computed(key, result.fence, result) == "accepted"
        self.journal.finish_run(run_uid, "complete")
        return key

    def start(self, uri: str, tiled: EmbeddedTiled, **more: Any) -> Writer:
        target = Target(uri, tiled.api_key, readable=(self.folder / "results",))
        self.writer = Writer(
            self.journal,
            target,
            self.mailbox,
            results_dir=self.folder / "results",
            announce=self.heard.append,
            first_pause_s=0.01,
            longest_pause_s=0.02,
            **more,
        )
        self.writer.start()
        return self.writer

    def state(self, key: str) -> str:
        found = self.journal.job(key)
        assert found is not None
        return found["state"]

    def reach(self, key: str, state: str) -> dict[str, Any]:
        self.until(lambda: self.state(key) == state, 60.0)
        found = self.journal.job(key)
        assert found is not None
        return found

    def close(self) -> None:
        if self.writer is not None:
            assert self.writer.stop()
        self.mailbox.close()


@pytest.fixture
def results(folder: Path, journal: Journal, until: Until) -> Iterator[Results]:
    one = Results(folder, journal, until)
    yield one
    one.close()


ANSWERS = [
    (Deed(200, b'{"id": "'), TiledUnavailable),
    (Deed(200, b"<html>log in</html>", "text/html"), TiledUnavailable),
    (Deed(200, b"[" * 100_000), TiledUnavailable),
    (Deed(200, b'{"id": "another"}'), TiledUnavailable),
    (Deed(200, b"{}"), TiledUnavailable),
    (Deed(302), TiledUnavailable),
    (Deed(404), TiledUnavailable),
    (Deed(429), TiledUnavailable),
    (Deed(500), TiledUnavailable),
    (Deed(deaf=True), TiledUnavailable),
    (Deed(lose=0.0), TiledUnavailable),
    (Deed(lose=0.5), TiledUnavailable),
    (Deed(stall=True), TiledSilent),
    (Deed(401), TiledRefusedKey),
    (Deed(403), TiledRefusedKey),
    (Deed(400), TiledRejected),
    (Deed(413), TiledRejected),
]


def test_every_answer_is_understood_as_what_it_means(tiled: EmbeddedTiled, proxy: Any) -> None:
    for deed, error in ANSWERS:
        proxy.policy = lambda asked, deed=deed: deed
        timeout_s = 0.1 if deed.stall else 20.0
        with TiledHTTP(proxy.uri, tiled.api_key, timeout_s=timeout_s) as http:
            with pytest.raises(OSError if error is not TiledRejected else error) as caught:
                http.create(PROCESSED, "never", metadata={})
        assert type(caught.value) is error, deed
    with TiledHTTP(tiled.uri, tiled.api_key) as http:
        http.delete(f"{PROCESSED}/never")


def test_an_answer_without_end_is_cut_off(tiled: EmbeddedTiled, proxy: Any) -> None:
    proxy.policy = lambda asked: Deed(200, b" " * (40 << 20))
    with TiledHTTP(proxy.uri, tiled.api_key) as http:
        with pytest.raises(TiledUnavailable, match="more than 32 MiB"):
            http.get(PROCESSED)


def test_one_result_that_tiled_does_not_take_holds_up_no_other(
    tiled: EmbeddedTiled, proxy: Any, results: Results
) -> None:
    keys = [results.add(f"run-poison-{n}") for n in range(4)]
    poisoned = {derived_uid(keys[0]): Deed(500), derived_uid(keys[1]): Deed(403)}
    proxy.policy = lambda asked: poisoned.get(asked.node, PASS)
    writer = results.start(proxy.uri, tiled, most_tries=100_000)
    for key in keys[2:]:
        results.reach(key, "committed")
    later = results.add("run-poison-later")
    results.mailbox.post(None)
    results.reach(later, "committed")
    results.until(lambda: keys[0][:12] in writer.status.reason and "500" in writer.status.reason)
    assert writer.status.pending == 2
    poisoned.clear()
    for key in keys[:2]:
        results.reach(key, "committed")


def test_what_tiled_never_takes_is_given_up_by_name_once_others_went(
    tiled: EmbeddedTiled, proxy: Any, results: Results
) -> None:
    key, good = results.add("run-never"), results.add("run-taken")

    def policy(asked: Any) -> Any:
        failure = "failure" in asked.json.get("metadata", {}).get("start", {})
        poisoned = asked.node == derived_uid(key) and asked.method == "POST" and not failure
        return Deed(500) if poisoned else PASS

    proxy.policy = policy
    results.start(proxy.uri, tiled, most_tries=3)
    results.reach(good, "committed")
    gone = results.reach(key, "failed")
    assert gone["code"] == "tiled_failed" and "gave up after" in gone["reason"]
    results.until(lambda: "run-never" in results.heard)
    with TiledHTTP(tiled.uri, tiled.api_key) as http:
        found = http.get(f"{PROCESSED}/{derived_uid(key)}")
    assert found is not None and "gave up after" in found["metadata"]["stop"]["reason"]


def test_while_tiled_is_away_the_status_says_so_and_the_order_is_kept(
    tiled: EmbeddedTiled, proxy: Any, results: Results
) -> None:
    order: list[str] = []

    def policy(asked: Any) -> Any:
        if away:
            return Deed(200, b"garbage")
        if asked.method == "PATCH":
            order.append(asked.node)
        return PASS

    away = True
    proxy.policy = policy
    keys = [results.add(f"run-away-{n}") for n in range(4)]
    writer = results.start(proxy.uri, tiled)
    results.until(lambda: writer.status.waiting_s > 0 and writer.status.state == "waiting")
    assert "is no Tiled, or a broken one" in writer.status.reason
    away = False
    for key in keys:
        results.reach(key, "committed")
    assert order == [derived_uid(key) for key in keys]
    results.until(lambda: writer.status.pending == 0 and not writer.status.reason)


def test_a_success_without_effect_is_not_believed(
    tiled: EmbeddedTiled, proxy: Any, results: Results
) -> None:
    lies: list[str] = []

    def policy(asked: Any) -> Any:
        if asked.method == "PATCH" and len(lies) < 2:
            lies.append(asked.node)
            return Deed(200, f'{{"id": "{asked.node}"}}'.encode())
        return PASS

    proxy.policy = policy
    key = results.add("run-lied-about")
    results.start(proxy.uri, tiled)
    results.reach(key, "committed")
    assert len(lies) == 2
    with TiledHTTP(tiled.uri, tiled.api_key) as http:
        found = http.get(f"{PROCESSED}/{derived_uid(key)}")
    assert found is not None and found["metadata"]["stop"]["exit_status"] == "success"


def test_a_catalogue_that_was_emptied_takes_what_comes(
    tiled: EmbeddedTiled, proxy: Any, results: Results
) -> None:
    seen: list[str] = []

    def policy(asked: Any) -> Any:
        """As Tiled answers once its catalogue is gone, until the containers are made again."""
        seen.append(f"{asked.method} {asked.path}")
        made = any(one.endswith("GET /api/v1/metadata/raw") for one in seen[3:])
        return PASS if made or asked.method == "GET" else Deed(404)

    first = results.add("run-before")
    results.start(proxy.uri, tiled)
    results.reach(first, "committed")
    proxy.policy = policy
    second = results.add("run-after")
    results.mailbox.post(None)
    results.reach(second, "committed")


def test_a_result_that_cannot_be_said_fails_by_name_and_the_writer_goes_on(
    tiled: EmbeddedTiled, results: Results
) -> None:
    bad = results.add("run-unsayable", geometry={"shape": "odd"})
    good = results.add("run-sayable")
    # Nor does a proposal that fails in an unforeseen way keep a result from being written.
    writer = results.start(tiled.uri, tiled, propose=lambda job, result: 1 / 0)  # type: ignore[return-value]
    results.reach(good, "committed")
    assert results.reach(bad, "failed")["code"] == "defect"
    assert writer.alive


def test_a_commit_whose_every_answer_is_lost_once_is_one_run(
    tiled: EmbeddedTiled, proxy: Any, results: Results
) -> None:
    """Tiled carries each request out, and nobody hears of it."""
    key = results.add("run-unheard")
    lost: list[str] = []

    def policy(asked: Any) -> Any:
        what = f"{asked.method} {asked.path} {asked.json.get('id')}"
        if asked.method == "GET" or what in lost:
            return PASS
        lost.append(what)
        return Deed(lose=0.0)

    proxy.policy = policy
    path = results.folder / "results" / f"{key}.h5"
    found = results.journal.computed_result(key)
    assert found is not None
    job, result = found
    run = compose(job, result, describe(path), {}, 1000.0)
    axes = axes_of(job.meta, result.report, run.arrays)
    with TiledHTTP(proxy.uri, tiled.api_key) as http:
        committer = Committer(http, readable=[results.folder / "results"])
        fate = None
        try:
            for _ in range(4):
                try:
                    fate = committer.commit(run, axes, path, result.digest)
                    break
                except TiledUnavailable:
                    continue
        finally:
            committer.close()
    assert fate in ("written", "same") and len(lost) > 3
