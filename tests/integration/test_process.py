"""Stored runs processed offline: the keys, digests and commits of the live service, and no run that raises."""

import json
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bluesky import RunEngine
from bluesky_tiled_plugins import TiledWriter
from tiled.client import from_uri
from typer.testing import CliRunner

from inscan.callbacks.profile import load_profile
from inscan.callbacks.sources.files import write_documents
from inscan.callbacks.sources.interface import Document, SourceError, StoredRun
from inscan.profiles.samples import cells
from inscan.profiles.simulation import sim_xrf
from inscan.profiles.xrf_plans import fly_raster
from inscan.service.cli import app
from inscan.service.messages import InferenceJob, InferenceResult, derived_uid, job_key
from inscan.service.offline import Wanted, process_run, with_method
from inscan.service.offline_stack import process_stack
from inscan.service.offline_store import ResultStore
from inscan.service.result_file import read_result
from inscan.service.tiled_http import PROCESSED, RAW, TiledHTTP
from inscan.service.tiled_server import EmbeddedTiled

ROWS, COLS = 12, 14
SCAN = {"type": "XRF_FLY", "energy": 12.0, "dwell": 0.05}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("detector")


@pytest.fixture(scope="module")
def take(data: Path) -> Any:
    """Take one run on the simulated beamline: `take() -> list of documents`."""
    devices = sim_xrf(cells(3), data, channels=3, time_scale=0)
    engine = RunEngine({"beamline_id": "sim_xrf"}, context_managers=[])
    documents: list[Document] = []
    engine.subscribe(lambda name, doc: documents.append((name, dict(doc))))
    axes = (devices.sample_y, -5.0, 5.0, ROWS, devices.sample_x, -5.0, 5.0, COLS)

    def run() -> list[Document]:
        documents.clear()
        engine(fly_raster(devices.xs_fly, *axes, dwell=0.05, md={"scan": SCAN}))
        return list(documents)

    return run


@pytest.fixture
def stored(take: Any) -> StoredRun:
    return as_stored(take())


@pytest.fixture
def wanted(data: Path, tmp_path: Path) -> Wanted:
    (tmp_path / "scratch").mkdir()
    return Wanted(
        (load_profile("sim_xrf"),), tmp_path / "out", (data,), scratch=tmp_path / "scratch"
    )


@pytest.fixture
def store(tiled: EmbeddedTiled, folder: Path) -> Iterator[ResultStore]:
    with ResultStore(tiled.uri, tiled.api_key, readable=[folder / "results"]) as store:
        yield store


def as_stored(documents: list[Document], documents_of: Any = None) -> StoredRun:
    start = documents[0][1]
    return StoredRun(start["uid"], "a list", start, documents_of or (lambda: iter(documents)))


def test_a_run_becomes_a_file_with_the_key_of_the_service(
    stored: StoredRun, wanted: Wanted
) -> None:
    told: list[float] = []
    (record,) = process_run(stored, wanted, progress=lambda fraction, text: told.append(fraction))
    assert (record.state, record.stream, record.recipe) == ("done", "primary", "n2n"), record
    assert record.key == job_key(stored.uid, "primary", "n2n", {})
    assert record.verdict in ("pass", "warn", "block")
    assert told == sorted(told) and told[-1] == 1.0
    result = read_result(Path(record.path))
    assert result.meta["key"] == record.key
    by_name = {array.name: array for array in result.processed.arrays}
    assert {"values", "sigma", "lower", "upper", "raw", "measured"} <= set(by_name)
    assert by_name["values"].values.shape[1:] == (ROWS, COLS)
    assert wanted.scratch is not None and list(wanted.scratch.iterdir()) == []
    # Asked for once more it is there; computed once more it is the same to the last bit.
    (found,) = process_run(stored, wanted)
    assert (found.fate, found.digest) == ("there", record.digest)
    (second,) = process_run(stored, replace(wanted, again=True))
    assert (second.fate, second.digest) == ("", record.digest)
    assert second.input_digest == record.input_digest != ""


def test_another_method_is_another_result(stored: StoredRun, wanted: Wanted) -> None:
    (profile,) = wanted.profiles
    finer = replace(wanted, profiles=(with_method(profile, "superres", {"factor": 2}),))
    (record,) = process_run(stored, finer)
    assert record.state == "done", record
    assert record.key == job_key(stored.uid, "primary", "superres", {"factor": 2})
    values = read_result(Path(record.path)).processed.arrays[0].values
    assert values.shape[1:] == (2 * ROWS, 2 * COLS)
    with pytest.raises(ValueError, match="xrf.cube"):
        with_method(profile, "spectral", {})
    with pytest.raises(ValueError, match="n2n.*superres"):
        with_method(profile, "median", {})


def test_the_first_commit_stands(
    stored: StoredRun, wanted: Wanted, store: ResultStore, folder: Path, tiled: EmbeddedTiled
) -> None:
    wanted = replace(wanted, folder=folder / "results")
    before = set((folder / "results").iterdir())
    (record,) = process_run(stored, wanted, store)
    assert (record.state, record.fate) == ("done", "written"), record
    assert record.result_uid == derived_uid(record.key)
    assert Path(record.path).exists()
    (found,) = process_run(stored, wanted, store)
    assert (found.fate, found.digest, found.verdict) == ("there", record.digest, record.verdict)
    assert found.input_digest == record.input_digest
    (second,) = process_run(stored, replace(wanted, again=True), store)
    assert (second.fate, second.digest, second.path) == ("same", record.digest, "")
    # What was committed is not touched, and the file of the other is gone.
    new = {path.name for path in set((folder / "results").iterdir()) - before}
    assert Path(record.path).name in new and len([n for n in new if "offline" in n]) <= 2
    with TiledHTTP(tiled.uri, tiled.api_key) as http:
        node = http.get(f"{PROCESSED}/{record.result_uid}")
    assert node is not None
    start = node["metadata"]["start"]
    assert start["raw_uid"] == stored.uid
    assert start["provenance"]["input_digest"] == record.input_digest
    assert start["result_digest"] == record.digest


def test_results_are_uploaded_where_tiled_cannot_read_them(
    stored: StoredRun, wanted: Wanted, tiled: EmbeddedTiled
) -> None:
    with ResultStore(tiled.uri, tiled.api_key) as store:
        (record,) = process_run(stored, replace(wanted, folder=None), store)
    assert (record.state, record.fate, record.path) == ("done", "written", ""), record
    assert wanted.scratch is not None and list(wanted.scratch.iterdir()) == []
    with TiledHTTP(tiled.uri, tiled.api_key) as http:
        assert "values" in http.keys(f"{PROCESSED}/{record.result_uid}/primary")


def test_bad_runs_are_records(take: Any, wanted: Wanted) -> None:
    documents = take()
    # A beamline that is nobody's.
    start = {**documents[0][1], "beamline_id": "elsewhere"}
    (record,) = process_run(as_stored([("start", start), *documents[1:]]), wanted)
    assert record.state == "passed_by" and "no profile" in record.reason
    # No stop: on its way, or cut short.
    cut = as_stored(documents[: len(documents) // 2])
    (record,) = process_run(cut, wanted)
    assert record.state == "passed_by" and "no stop document" in record.reason
    (record,) = process_run(cut, replace(wanted, incomplete=True))
    assert record.state == "done", record
    measured = read_result(Path(record.path)).processed.arrays[-1].values
    assert 0 < np.count_nonzero(measured) < ROWS * COLS
    # A store that fails half way may work later; nonsense will not.

    def fails() -> Iterator[Document]:
        yield from documents[:3]
        raise SourceError("the disk went away")

    (record,) = process_run(as_stored(documents, fails), wanted)
    assert (record.state, record.retryable) == ("failed", True)
    assert "the disk went away" in record.reason
    (record,) = process_run(
        as_stored([documents[0], ("event", {"x": float("nan")}), documents[-1]]), wanted
    )
    assert record.state == "failed" and not record.retryable
    assert wanted.scratch is not None and list(wanted.scratch.iterdir()) == []


def test_a_failure_is_recorded_and_overcome(
    stored: StoredRun, wanted: Wanted, store: ResultStore, folder: Path, tiled: EmbeddedTiled
) -> None:
    (profile,) = wanted.profiles
    wrong = replace(
        wanted,
        folder=folder / "results",
        profiles=(with_method(profile, None, {"no_such_argument": 1}),),
    )
    (record,) = process_run(stored, wrong, store)
    assert (record.state, record.retryable) == ("failed", False)
    assert "no_such_argument" in record.reason
    with TiledHTTP(tiled.uri, tiled.api_key) as http:
        node = http.get(f"{PROCESSED}/{derived_uid(record.key)}")
    assert node is not None
    assert node["metadata"]["stop"]["exit_status"] == "fail"
    assert store.find(record.key) is None


@pytest.fixture
def in_tiled(take: Any, tiled: EmbeddedTiled) -> str:
    """A raw run written into Tiled as bluesky's own writer does; returns its uid."""
    client = from_uri(tiled.uri, api_key=tiled.api_key.get_secret_value())
    documents = take()
    writer = TiledWriter(client[RAW])
    for name, doc in documents:
        writer(name, doc)
    client.context.http_client.close()
    return documents[0][1]["uid"]


@pytest.fixture
def state(folder: Path, tiled: EmbeddedTiled) -> Iterator[Path]:
    """The state directory as a running service leaves it."""
    file = folder / "service.json"
    file.write_text(json.dumps({"tiled": tiled.uri}))
    yield folder
    file.unlink()


def run_command(*options: Any, status: int = 0) -> Any:
    result = CliRunner().invoke(app, ["process", *map(str, options), "--threads", "1", "--json"])
    assert result.exit_code == status, (result.output, result.exception)
    return json.loads(result.stdout)


def test_a_run_in_tiled_is_processed_and_made_again(
    in_tiled: str, state: Path, data: Path, tmp_path: Path
) -> None:
    options = (in_tiled[:9], "--state", state, "--data-root", data)
    (record,) = run_command(*options)
    assert (record["state"], record["fate"]) == ("done", "written"), record
    assert record["key"] == job_key(in_tiled, "primary", "n2n", {})
    assert Path(record["path"]).parent == state / "results"
    (record,) = run_command(*options)
    assert record["fate"] == "there"
    # Another method is another result; from it alone each is made again, byte for byte.
    (finer,) = run_command(*options, "--method", "superres", "--parameter", "factor=2")
    assert (finer["fate"], finer["recipe"]) == ("written", "superres")
    for one in (record, finer):
        again = run_command("--reproduce", one["result_uid"], "--state", state, "--data-root", data)
        assert again["same"] and again["record"]["digest"] == one["digest"], again
    # Files alone, with a picture.
    (file,) = run_command(*options, "--out", tmp_path / "out")
    assert file["digest"] == record["digest"]
    assert Path(file["png"]).read_bytes()[:4] == b"\x89PNG"


def test_a_result_that_cannot_be_made_again_says_why(
    in_tiled: str, state: Path, data: Path, tiled: EmbeddedTiled
) -> None:
    options = ("--state", state, "--data-root", data)
    (record,) = run_command(in_tiled, *options)
    node = f"{PROCESSED}/{record['result_uid']}"
    with TiledHTTP(tiled.uri, tiled.api_key) as http:
        found = http.get(node)
        assert found is not None
        start = found["metadata"]["start"]
        start["result_digest"] = "sha256:0"
        start["provenance"]["versions"]["numpy"] = "0.1"
        http.update_metadata(node, {"start": start})
    answer = run_command("--reproduce", record["result_uid"], *options, status=1)
    assert not answer["same"]
    assert any("numpy: then 0.1" in text for text in answer["differences"])


def test_a_file_of_documents_is_processed_beside_it(
    take: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = take()
    path = tmp_path / "run.jsonl"
    assert write_documents(path, documents) == len(documents)
    monkeypatch.chdir(tmp_path)
    (record,) = run_command(path, "--data-root", data)
    assert record["state"] == "done" and (tmp_path / record["path"]).exists()
    # A run of nobody's: one line says so, and the exit status.
    documents[0] = ("start", {**documents[0][1], "beamline_id": "elsewhere"})
    other = tmp_path / "other.msgpack"
    write_documents(other, documents)
    (record,) = run_command(other, status=1)
    assert record["state"] == "passed_by" and "no profile" in record["reason"]


def test_maps_at_several_energies_become_one_stack(
    take: Any, wanted: Wanted, store: ResultStore, folder: Path
) -> None:
    runs = []
    for energy in (7.20, 7.08, 7.12, 7.15):
        documents = take()
        start = {**documents[0][1], "scan": SCAN | {"energy": energy}}
        runs.append(as_stored([("start", start), *documents[1:]]))
    wanted = replace(wanted, folder=folder / "results")
    record = process_stack(runs, "Fe_K", {}, wanted, store)
    assert (record.state, record.fate, record.recipe) == ("done", "written", "subspace"), record
    assert record.run_uid == runs[1].uid, "of the lowest energy"
    values = read_result(Path(record.path)).processed.arrays[0]
    assert values.values.shape == (4, ROWS, COLS)
    assert values.labels is not None and values.labels[0] == "7080.00 eV"
    # The order of the runs does not matter: the same stack is there already.
    again = process_stack(runs[::-1], "Fe_K", {}, wanted, store)
    assert (again.fate, again.key) == ("there", record.key)
    alone = process_stack(runs[:1], "Fe_K", {}, wanted, store)
    assert alone.state == "failed" and "at least two" in alone.reason


def test_two_that_commit_at_once_agree(
    stored: StoredRun, wanted: Wanted, tiled: EmbeddedTiled, folder: Path
) -> None:
    (record,) = process_run(stored, wanted)
    assembled = read_result(Path(record.path)).meta["assembled"]
    made: list[tuple[InferenceJob, InferenceResult]] = []
    for number in range(4):
        # The same content under a new key, once for each of the two.
        key = job_key(stored.uid, "primary", "n2n", {"number": number})
        for writer in range(2):
            path = folder / "results" / f"{key}.race-{writer}.h5"
            shutil.copy(record.path, path)
            made.append(
                (
                    InferenceJob(
                        key=key, run_uid=stored.uid, stream="primary", kind="final", recipe="n2n",
                        parameters={"number": number}, meta=assembled, spool="/nowhere", arrays={},
                        input_digest=record.input_digest, result_path=str(path), host_id="here",
                    ),
                    InferenceResult(
                        key=key, fence=0, result_path=str(path), digest=record.digest,
                        report={"verdict": "pass"}, regions=[], timings={},
                    ),
                )
            )  # fmt: skip
    at_once = threading.Barrier(2)

    def commit_all(writer: int) -> list[str]:
        with ResultStore(tiled.uri, tiled.api_key, readable=[folder / "results"]) as store:
            fates = []
            for job, result in made[writer::2]:
                at_once.wait(30)
                fates.append(store.commit(job, result, stored.start))
        return fates

    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(commit_all, range(2)))
    assert set(both[0] + both[1]) <= {"written", "same"}
    with TiledHTTP(tiled.uri, tiled.api_key) as http:
        for job, _ in made[::2]:
            node = http.get(f"{PROCESSED}/{derived_uid(job.key)}")
            assert node is not None and node["metadata"]["stop"]["exit_status"] == "success"
            names = http.keys(f"{PROCESSED}/{derived_uid(job.key)}/primary")
            assert {"values", "sigma", "measured", "x", "y"} <= set(names)
