"""Results on their way into a real Tiled: its own process, HTTP, a journal and result files on disk."""

import hashlib
import logging
import signal
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import psutil
import pytest
from event_model import DocumentNames, schema_validators
from pydantic import SecretStr
from tiled.client import from_uri

from inscan.service import derived
from inscan.service.commit import Committer, DamagedResult
from inscan.service.journal import Journal
from inscan.service.mailbox import Mailbox
from inscan.service.messages import InferenceJob, InferenceResult, derived_uid, job_key
from inscan.service.processed import BornWeights, Processed, ResultArray
from inscan.service.result_file import write_result
from inscan.service.result_view import describe
from inscan.service.shelf import Shelf, birth_of
from inscan.service.tiled_http import PROCESSED, TiledHTTP, TiledRefusedKey
from inscan.service.tiled_server import EmbeddedTiled, TiledServerError
from inscan.service.tiled_sources import axes_path
from inscan.service.writer import Prepare, Target, Writer

Until = Callable[..., Any]
ROWS, COLS = 6, 9
ELEMENTS = ["Fe_K", "Ca_K"]
GEOMETRY = {
    "shape": [ROWS, COLS],
    "slow_motor": "sample_y",
    "fast_motor": "sample_x",
    "slow_units": "um",
    "fast_units": "um",
    "slow_first": -5.0,
    "slow_last": 5.0,
    "fast_first": 0.0,
    "fast_last": 16.0,
    "snaking": True,
}
START = {
    "scan_id": 41,
    "sample": {"name": "cells"},
    "data_session": "pass-1",
    "proposal": {"id": 7},
}


@pytest.fixture
def http(tiled: EmbeddedTiled) -> Iterator[TiledHTTP]:
    with TiledHTTP(tiled.uri, tiled.api_key) as connection:
        yield connection


@pytest.fixture
def committer(http: TiledHTTP, folder: Path) -> Iterator[Committer]:
    committer = Committer(http, readable=[folder / "results"])
    yield committer
    committer.close()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "journal.db", backoff_s=0.02)
    yield journal
    journal.close()


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    mailbox = Mailbox()
    yield mailbox
    mailbox.close()


@pytest.fixture(scope="module")
def runs(tiled: EmbeddedTiled) -> Iterator[Any]:
    """The catalog of derived runs as a user's Python opens it."""
    client = from_uri(tiled.uri, api_key=tiled.api_key.get_secret_value())
    yield client[PROCESSED]
    client.context.http_client.close()


def make(
    folder: Path,
    run_uid: str,
    *,
    seed: int = 0,
    rows: int = ROWS,
    verdict: str = "pass",
    weights: BornWeights | None = None,
    **meta: Any,
) -> tuple[InferenceJob, InferenceResult]:
    """A job and its result, the file written as a worker writes it."""
    rng = np.random.default_rng(seed)
    maps = [
        ResultArray(name, ("element", "row", "col"), "counts", block, ELEMENTS)
        for name, block in zip(
            ("values", "sigma", "raw"), rng.random((3, 2, rows, COLS), dtype="f4"), strict=True
        )
    ]
    maps.append(ResultArray("measured", ("row", "col"), "", rng.random((rows, COLS)) > 0.2))
    report = {"method": "n2n", "verdict": verdict, "reasons": [], "weights_sha256": "ab" * 32}
    key = job_key(run_uid, "primary", "n2n", {"fit_steps": 0})
    path = folder / "results" / f"{key}.h5"
    digest = write_result(path, Processed(maps, report, weights=weights), {"key": key})
    job = InferenceJob(
        key=key,
        run_uid=run_uid,
        stream="primary",
        kind="final",
        recipe="n2n",
        parameters={"fit_steps": 0},
        meta={"technique": "xrf", "geometry": GEOMETRY, "elements": ELEMENTS, **meta},
        spool="/nowhere",
        arrays={},
        input_digest="sha256:00",
        result_path=str(path),
        host_id="here",
    )
    result = InferenceResult(
        key=key,
        fence=1,
        result_path=str(path),
        digest=digest,
        report=report,
        regions=[],
        timings={"inference": 0.1},
    )
    return job, result


def composed(job: InferenceJob, result: InferenceResult) -> tuple[Any, ...]:
    path = Path(result.result_path)
    run = derived.compose(job, result, describe(path), START, time.time())
    return run, derived.axes_of(job.meta, result.report, run.arrays), path, result.digest


def computed(journal: Journal, job: InferenceJob, result: InferenceResult) -> None:
    """Bring a job to the state in which the writer finds it."""
    journal.record_run(job.run_uid, START["scan_id"], "sim_xrf", {**START, "uid": job.run_uid})
    assert journal.add_job(job)
    journal.synced(job.key, "sha256:00")
    leased = journal.leases.lease("worker", 60.0)
    assert leased is not None
    fence = leased[0].fence
    assert (
        journal.computed(job.key, fence, result.model_copy(update={"fence": fence})) == "accepted"
    )
    journal.finish_run(job.run_uid, "complete")


def writer_for(
    journal: Journal, mailbox: Mailbox, target: Target, folder: Path, heard: list[str], **more: Any
) -> Writer:
    return Writer(
        journal,
        target,
        mailbox,
        results_dir=folder / "results",
        announce=heard.append,
        first_pause_s=0.05,
        longest_pause_s=0.2,
        **more,
    )


def test_a_result_is_found_and_read_as_it_was_written(
    tiled: EmbeddedTiled, runs: Any, folder: Path, journal: Journal, mailbox: Mailbox, until: Until
) -> None:
    job, result = make(folder, "run-read")
    computed(journal, job, result)
    heard: list[str] = []
    target = Target(tiled.uri, tiled.api_key, readable=(folder / "results",))
    writer = writer_for(
        journal,
        mailbox,
        target,
        folder,
        heard,
        propose=lambda *_: [{"id": "p1", "run_uid": "run-read", "state": "suggested"}],
    )
    writer.start()
    until(lambda: heard)
    assert writer.stop()

    outcome = journal.outcome("run-read")
    assert outcome is not None
    assert (outcome["status"], outcome["verdict"]) == ("done", "pass")
    assert [one["id"] for one in outcome["proposals"]] == ["p1"]
    run = runs[outcome["result_uid"]]
    written = np.random.default_rng(0).random((3, 2, ROWS, COLS), dtype="f4")
    values = run["primary"]["values"]
    np.testing.assert_array_equal(values.read(), written[0])
    assert (values.dims, values.dtype) == (("element", "y", "x"), np.dtype("f4"))
    dataset = run["primary"].read()
    np.testing.assert_array_equal(dataset["sigma"], written[1])
    np.testing.assert_allclose(dataset.x, np.linspace(0, 16, COLS))
    np.testing.assert_allclose(dataset.y, np.linspace(-5, 5, ROWS))
    assert dataset["measured"].dtype == bool
    assert run.start["raw_uid"] == "run-read"
    assert {key: run.start[key] for key in START} == START
    assert run.start["provenance"]["weights_sha256"] == "ab" * 32
    assert run.start["report"]["verdict"] == "pass"
    assert run.metadata["stop"]["exit_status"] == "success"
    assert [spec.name for spec in run.specs] == ["XRFDenoisedMap", "BlueskyRun"]
    assert run["primary"].metadata["data_keys"]["values"]["units"] == "counts"
    assert run["primary"].metadata["configuration"]["inscan"]["data"] == {
        "element_labels": ELEMENTS
    }
    names = []
    for name, doc in run.documents():
        names.append(name)
        schema_validators[DocumentNames[name]].validate(dict(doc))
    assert (names[0], names[-1], names.count("stream_datum")) == ("start", "stop", 6)
    assert runs[41].start["uid"] == outcome["result_uid"]


def test_weights_fitted_to_a_run_are_kept_unless_its_result_is_blocked(
    tiled: EmbeddedTiled,
    folder: Path,
    tmp_path: Path,
    journal: Journal,
    mailbox: Mailbox,
    until: Until,
) -> None:
    line: dict[str, Any] = {"sample": {"name": "cells"}, "detector": "xs_fly"}
    line |= {"profile": "sim_xrf", "elements": ELEMENTS}
    cases: list[tuple[str, str, dict[str, Any]]] = [
        ("run-kept", "pass", line),
        ("run-blocked", "block", line),
        ("run-nameless", "pass", line | {"sample": None}),
    ]
    for number, (uid, verdict, meta) in enumerate(cases):
        blob = bytes([number]) * 64
        card: dict[str, Any] = {"sha256": hashlib.sha256(blob).hexdigest()}
        card["born_of"] = birth_of(meta | {"run_uid": uid, "start_time": float(number)})
        weights = BornWeights(blob, card)
        job, result = make(folder, uid, seed=number, weights=weights, verdict=verdict, **meta)
        computed(journal, job, result)
    heard: list[str] = []
    shelf = Shelf(tmp_path / "weights")
    target = Target(tiled.uri, tiled.api_key, readable=(folder / "results",))
    writer = writer_for(journal, mailbox, target, folder, heard, shelf=shelf)
    writer.start()
    until(lambda: len(heard) == 3)
    assert writer.stop()
    assert [kept.born_of["raw_uid"] for kept in shelf.all()] == ["run-kept"]
    found = shelf.latest(line | {"run_uid": "run-next"})
    assert found is not None and found.read().blob == bytes(64)


def test_a_second_commit_meets_the_first(runs: Any, folder: Path, committer: Committer) -> None:
    job, result = make(folder, "run-twice", seed=1)
    assert committer.commit(*composed(job, result)) == "written"
    assert committer.commit(*composed(job, result)) == "same"
    job, other = make(folder, "run-twice", seed=2)
    assert committer.commit(*composed(job, other)) == "differs"
    run = runs[derived_uid(job.key)]
    assert run.start["result_digest"] == result.digest


def test_a_half_written_run_is_completed(
    runs: Any, folder: Path, http: TiledHTTP, committer: Committer
) -> None:
    job, result = make(folder, "run-half", seed=3)
    run = composed(job, result)[0]
    http.create(PROCESSED, run.uid, metadata={"start": {**run.start, "left_over": 1}})
    http.create(f"{PROCESSED}/{run.uid}", "primary", metadata={"uid": "old"})
    assert committer.commit(*composed(job, result)) == "written"
    found = runs[run.uid]
    assert "left_over" not in found.start
    assert found["primary"].read()["values"].shape == (2, ROWS, COLS)


def test_a_damaged_file_is_never_presented_and_is_computed_again(
    tiled: EmbeddedTiled, runs: Any, folder: Path, journal: Journal, mailbox: Mailbox, until: Until
) -> None:
    job, result = make(folder, "run-damaged")
    good = Path(result.result_path).read_bytes()

    def damage() -> None:
        with h5py.File(result.result_path, "r+") as file:
            file["entry/data/sigma"][1, 2, 3] += 1  # type: ignore[index]

    def compute() -> int:
        leased = until(lambda: journal.leases.lease("worker", 60.0))
        fence = leased[0].fence
        journal.computed(job.key, fence, result.model_copy(update={"fence": fence}))
        mailbox.post(None)
        return fence

    damage()
    computed(journal, job, result)
    heard: list[str] = []
    target = Target(tiled.uri, tiled.api_key, readable=(folder / "results",))
    writer = writer_for(journal, mailbox, target, folder, heard)
    writer.start()
    until(lambda: journal.job(job.key)["state"] == "queued")  # type: ignore[index]
    with TiledHTTP(tiled.uri, tiled.api_key) as http:
        there = http.get(f"{PROCESSED}/{derived_uid(job.key)}")
    assert there is None or "stop" not in there["metadata"]
    Path(result.result_path).unlink()
    assert compute() == 2
    until(lambda: journal.job(job.key)["state"] == "queued")  # type: ignore[index]
    Path(result.result_path).write_bytes(good)
    assert compute() == 3
    until(lambda: heard)
    assert writer.stop()
    record = journal.job(job.key)
    assert record is not None and (record["state"], record["code"]) == ("committed", "")
    assert runs[derived_uid(job.key)].metadata["stop"]["exit_status"] == "success"


def test_a_failure_that_is_overcome_makes_way(
    runs: Any, folder: Path, committer: Committer
) -> None:
    job, result = make(folder, "run-overcome")
    failure = derived.compose_failure(
        job.key, job.run_uid, "primary", "n2n", START, "out_of_memory", "no room", time.time()
    )
    assert committer.commit(failure) == "written"
    assert committer.commit(failure) == "same"
    assert committer.commit(*composed(job, result)) == "written"
    run = runs[derived_uid(job.key)]
    assert "failure" not in run.start
    assert run.metadata["stop"]["exit_status"] == "success"
    assert committer.commit(failure) == "differs"


def test_nodes_made_from_a_snapshot_serve_the_final(
    runs: Any, folder: Path, http: TiledHTTP, committer: Committer
) -> None:
    early, snapshot = make(folder, "run-early", seed=4, rows=3)
    run, axes, path, _ = composed(early, snapshot)
    committer.prepare(run, axes, path)
    node = http.get(f"{PROCESSED}/{run.uid}")
    assert node is not None
    assert "stop" not in node["metadata"]
    assert sorted(http.keys(f"{PROCESSED}/{run.uid}/primary")) == sorted(
        ["values", "sigma", "raw", "measured", "x", "y"]
    )
    job, result = make(folder, "run-early", seed=5)
    assert committer.commit(*composed(job, result)) == "written"
    found = runs[run.uid]
    assert found["primary"]["values"].shape == (2, ROWS, COLS)
    assert found["primary"].metadata["data_keys"]["values"]["shape"] == [2, ROWS, COLS]
    assert found.start["result_digest"] == result.digest
    np.testing.assert_array_equal(
        found["primary"]["raw"].read(),
        np.random.default_rng(5).random((3, 2, ROWS, COLS), dtype="f4")[2],
    )


def test_the_writer_prepares_a_growing_run(
    tiled: EmbeddedTiled,
    runs: Any,
    folder: Path,
    http: TiledHTTP,
    journal: Journal,
    mailbox: Mailbox,
    until: Until,
) -> None:
    job, result = make(folder, "run-growing", seed=6)
    target = Target(tiled.uri, tiled.api_key, readable=(folder / "results",))
    heard: list[str] = []
    writer = writer_for(journal, mailbox, target, folder, heard)
    writer.start()
    snapshot = job.model_copy(update={"kind": "snapshot", "key": "0" * 64})
    mailbox.post(Prepare(snapshot, result.result_path))
    node = f"{PROCESSED}/{derived_uid(job.key)}"
    until(lambda: http.get(f"{node}/primary") and len(http.keys(f"{node}/primary")) == 6)
    computed(journal, job, result)
    mailbox.post(None)
    until(lambda: heard)
    assert writer.stop()
    assert runs[derived_uid(job.key)].start["report"]["verdict"] == "pass"


def test_results_are_uploaded_where_tiled_cannot_read_the_file(
    runs: Any, folder: Path, http: TiledHTTP
) -> None:
    committer = Committer(http)
    job, result = make(folder, "run-upload", seed=7)
    assert committer.commit(*composed(job, result)) == "written"
    committer.close()
    Path(result.result_path).unlink()
    run = runs[derived_uid(job.key)]
    np.testing.assert_array_equal(
        run["primary"]["values"].read(),
        np.random.default_rng(7).random((3, 2, ROWS, COLS), dtype="f4")[0],
    )
    assert run["primary"].read()["values"].sel(y=5.0).dims == ("element", "x")


def test_results_from_elsewhere_are_copied_to_where_tiled_reads(
    runs: Any, folder: Path, http: TiledHTTP, tmp_path: Path
) -> None:
    (tmp_path / "results").mkdir()
    committer = Committer(http, shared=folder / "results")
    job, result = make(tmp_path, "run-shared", seed=8)
    assert committer.commit(*composed(job, result)) == "written"
    committer.close()
    Path(result.result_path).unlink()
    assert runs[derived_uid(job.key)]["primary"]["values"].read().shape == (2, ROWS, COLS)


def test_a_wrong_digest_leaves_no_terminal_record(
    http: TiledHTTP, folder: Path, committer: Committer
) -> None:
    job, result = make(folder, "run-digest")
    run, axes, path, _ = composed(job, result)
    with pytest.raises(DamagedResult, match="hash"):
        committer.commit(run, axes, path, "sha256:" + "0" * 64)
    node = http.get(f"{PROCESSED}/{run.uid}")
    assert node is not None
    assert "stop" not in node["metadata"]


@pytest.mark.slow
def test_the_writer_waits_for_tiled_and_recovers(
    tmp_path: Path,
    journal: Journal,
    mailbox: Mailbox,
    caplog: pytest.LogCaptureFixture,
    until: Until,
) -> None:
    (tmp_path / "results").mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    job, result = make(tmp_path, "run-later")
    computed(journal, job, result)
    heard: list[str] = []
    target = Target(
        f"http://127.0.0.1:{port}", SecretStr("key0123"), readable=(tmp_path / "results",)
    )
    writer = writer_for(journal, mailbox, target, tmp_path, heard)
    with caplog.at_level(logging.WARNING):
        writer.start()
        until(lambda: writer.status.state == "waiting")
    assert f"127.0.0.1:{port} does not answer" in writer.status.reason
    assert "results wait in the journal" in caplog.text
    assert journal.status()["jobs"] == {"computed": 1}

    with EmbeddedTiled(
        tmp_path, port, api_key="another0key", readable=[tmp_path / "results"]
    ) as server:
        until(lambda: "refuses our key" in writer.status.reason)
        assert "tiled.api_key" in writer.status.reason
        assert journal.status()["jobs"] == {"computed": 1}
        assert writer.stop()

        target = Target(server.uri, server.api_key, readable=(tmp_path / "results",))
        again = writer_for(journal, mailbox, target, tmp_path, heard)
        again.start()
        until(lambda: heard)
        assert again.stop()
    assert journal.status()["jobs"] == {"committed": 1}


def test_a_disk_in_trouble_holds_up_the_writer_and_no_longer(
    tiled: EmbeddedTiled, folder: Path, journal: Journal, mailbox: Mailbox, until: Until
) -> None:
    job, result = make(folder, "run-disk")
    in_the_way = axes_path(Path(result.result_path))
    in_the_way.mkdir()
    computed(journal, job, result)
    heard: list[str] = []
    target = Target(tiled.uri, tiled.api_key, readable=(folder / "results",))
    writer = writer_for(journal, mailbox, target, folder, heard)
    writer.start()
    until(lambda: writer.status.state == "waiting")
    assert in_the_way.name in writer.status.reason
    assert journal.status()["jobs"] == {"computed": 1}
    in_the_way.rmdir()
    until(lambda: heard)
    assert writer.stop()
    assert journal.status()["jobs"] == {"committed": 1}


@pytest.mark.slow
def test_a_killed_tiled_comes_back_with_everything(tmp_path: Path, until: Until) -> None:
    before = set(psutil.Process().children())
    with EmbeddedTiled(tmp_path) as server:
        key = server.api_key
        with TiledHTTP(server.uri, SecretStr("wrong0key")) as stranger:
            with pytest.raises(TiledRefusedKey):
                stranger.get(PROCESSED)
        with TiledHTTP(server.uri, key) as connection:
            connection.create(PROCESSED, "kept", metadata={"start": {"uid": "kept"}})
        (child,) = set(psutil.Process().children()) - before
        child.send_signal(signal.SIGKILL)
        until(lambda: server.restarts and server.alive)

        def kept() -> bool:
            try:
                with TiledHTTP(server.uri, key) as connection:
                    return connection.get(f"{PROCESSED}/kept") is not None
            except ConnectionError:
                return False

        until(kept, 60)
    path = tmp_path / "tiled" / "api_key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text().strip() == key.get_secret_value()
    for written in (tmp_path / "tiled" / "tiled.log", tmp_path / "tiled" / "config.yml"):
        assert key.get_secret_value() not in written.read_text()


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(TiledServerError, match=f"port {port}.*in use"):
            EmbeddedTiled(tmp_path, port).start()


def test_a_tiled_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "tiled").mkdir()
    (tmp_path / "tiled" / "catalog.db").write_text("this is no database " * 100)
    with pytest.raises(TiledServerError, match=r"tiled\.log says: .*not a database"):
        EmbeddedTiled(tmp_path).start()
