"""Runs that bluesky's own TiledWriter put into a real Tiled come out as documents that mean the same."""

import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr
from bluesky_tiled_plugins import TiledWriter
from event_model import compose_run
from tiled.client import from_uri
from tiled.server import SimpleTiledServer

from inscan.callbacks.sources.interface import Document, SourceError
from inscan.callbacks.sources.tiled import open_catalog, run_documents, stored_run, tiled_runs
from inscan.callbacks.sources.tiled_live import TiledSource
from inscan.service.tiled_http import RAW
from inscan.service.tiled_server import EmbeddedTiled

Documents = list[tuple[str, Any]]
_SPECTRA = {"dtype": "array", "shape": [2, 40], "dtype_numpy": "<u4", "source": "sim"}
_NUMBER = {"dtype": "number", "shape": [], "dtype_numpy": "<f8", "source": "sim"}
_PAIR = {"dtype": "array", "shape": [2], "dtype_numpy": "<f8", "source": "sim"}


@pytest.fixture
def raw(tiled: EmbeddedTiled) -> Iterator[Any]:
    client = from_uri(tiled.uri, api_key=tiled.api_key.get_secret_value())
    yield client[RAW]
    client.context.http_client.close()


def spectra(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).poisson(3, (n, 2, 40)).astype("<u4")


def step_run(n: int = 7, order: list[int] | None = None, **start: Any) -> Documents:
    """Events with numbers, a small and a large array, and a second stream."""
    run = compose_run(metadata={"scan_id": 17, **start}, time=1000.0)
    documents: Documents = [("start", run.start_doc)]
    baseline = run.compose_descriptor(name="baseline", data_keys={"zp": _NUMBER}, time=1001.0)
    primary = run.compose_descriptor(
        name="primary",
        data_keys={"x": _NUMBER, "pair": _PAIR, "fluor": _SPECTRA},
        object_keys={"stage": ["x"], "xs": ["pair", "fluor"]},
        configuration={
            "xs": {"data": {"dwell": 0.1}, "timestamps": {"dwell": 0.0}, "data_keys": {}}
        },
        time=1002.0,
    )
    documents += [("descriptor", dict(one.descriptor_doc)) for one in (baseline, primary)]

    def zp(number: int, taken: float) -> None:
        event = baseline.compose_event(
            data={"zp": 5.0 + number}, timestamps={"zp": taken}, seq_num=number, time=taken
        )
        documents.append(("event", dict(event)))

    zp(1, 1002.5)
    values = spectra(n)
    for place, i in enumerate(order or range(n)):
        taken = 1003.0 + place
        data = {"x": i / 2, "pair": np.array([i, -i], float), "fluor": values[i]}
        event = primary.compose_event(
            data=data, timestamps=dict.fromkeys(data, taken), seq_num=i + 1, time=taken
        )
        documents.append(("event", dict(event)))
    zp(2, 2000.0)
    return [*documents, ("stop", dict(run.compose_stop(time=2001.0)))]


def write(raw: Any, documents: Documents, **options: Any) -> str:
    writer = TiledWriter(raw, **options)
    for name, doc in documents:
        writer(name, doc)
    return documents[0][1]["uid"]


def of(documents: Sequence[Document], name: str) -> list[Any]:
    return [doc for kind, doc in documents if kind == name]


def same(read: Sequence[Document], written: Sequence[Document]) -> None:
    """Whether every event has the values, the seq_num, the time and the stream of one that was written."""
    assert len(of(read, "event")) == len(of(written, "event"))
    known = {(doc["descriptor"], doc["seq_num"]): doc for doc in of(written, "event")}
    for doc in of(read, "event"):
        other = known.pop((doc["descriptor"], doc["seq_num"]))
        assert doc["time"] == other["time"] and doc["data"].keys() == other["data"].keys()
        assert doc["timestamps"] == other["timestamps"]
        for key, value in other["data"].items():
            np.testing.assert_array_equal(doc["data"][key], value)
            if isinstance(value, np.ndarray):
                assert isinstance(doc["data"][key], np.ndarray)
    assert not known


@pytest.mark.parametrize(
    ("order", "batch"), [(None, 10_000), ([3, 0, 1, 6, 2, 5, 4], 10_000), ([1, 0, 2], 2)]
)
def test_events_with_numbers_and_arrays(raw: Any, order: list[int] | None, batch: int) -> None:
    written = step_run(len(order or range(7)), order)
    uid = write(raw, written, batch_size=batch)
    read = list(stored_run(raw, uid).documents())
    names = [name for name, _ in read]
    assert names == ["start", *["descriptor"] * 2, *["event"] * (len(names) - 4), "stop"]
    assert read[0][1] == written[0][1]
    assert {**read[-1][1], "num_events": None} == {**written[-1][1], "num_events": None}
    for ours, theirs in zip(of(read, "descriptor"), of(written, "descriptor"), strict=True):
        wanted = ("uid", "name", "time", "run_start", "object_keys", "configuration")
        assert {k: ours[k] for k in wanted} == {k: theirs[k] for k in wanted}
    same(read, written)
    assert [doc["time"] for doc in of(read, "event")] == sorted(
        doc["time"] for doc in of(read, "event")
    )


def test_later_descriptors_keep_their_events(raw: Any) -> None:
    run = compose_run(time=1000.0)
    documents: Documents = [("start", run.start_doc)]
    for number in range(3):
        bundle = run.compose_descriptor(
            name="primary",
            data_keys={"x": _NUMBER},
            configuration={
                "d": {"data": {"gain": number}, "timestamps": {"gain": 0.0}, "data_keys": {}}
            },
            time=1000.0 + 10 * number,
        )
        documents.append(("descriptor", dict(bundle.descriptor_doc)))
        taken = 1001.0 + 10 * number
        event = bundle.compose_event(data={"x": 1.0}, timestamps={"x": taken}, time=taken)
        documents.append(("event", dict(event)))
    documents.append(("stop", dict(run.compose_stop())))
    uid = write(raw, documents)
    read = list(stored_run(raw, uid).documents())
    gains = [doc["configuration"]["d"]["data"]["gain"] for doc in of(read, "descriptor")]
    assert gains == [0, 1, 2]
    same(read, documents)


@pytest.fixture
def fly(folder: Path) -> Callable[..., tuple[Documents, np.ndarray]]:
    """Documents of a fly stream without events, and what its file holds."""

    def make(n: int = 9, times: float = 0.0) -> tuple[Documents, np.ndarray]:
        values = spectra(n, seed=3)
        path = folder / "data" / f"fly-{time.monotonic_ns()}.h5"
        with h5py.File(path, "w") as file:
            file["entry/data"] = values
        run = compose_run(time=1000.0)
        bundle = run.compose_descriptor(
            name="primary", data_keys={"fluor": {**_SPECTRA, "external": "STREAM:"}}, time=1001.0
        )
        compose: Any = run.compose_stream_resource
        resource = compose(
            mimetype="application/x-hdf5",
            uri=f"file://localhost{path}",
            data_key="fluor",
            parameters={"dataset": "entry/data", "chunk_shape": (1, 2, 40)},
        )
        documents: Documents = [("start", run.start_doc)]
        documents.append(("descriptor", dict(bundle.descriptor_doc)))
        documents.append(("stream_resource", dict(resource.stream_resource_doc)))
        for first in range(0, n, 3):
            datum = resource.compose_stream_datum(
                indices={"start": first, "stop": min(first + 3, n)},
                seq_nums={"start": first + 1, "stop": min(first + 3, n) + 1},
                descriptor=bundle.descriptor_doc,
            )
            documents.append(("stream_datum", dict(datum)))
        documents.append(("stop", dict(run.compose_stop())))
        return documents, values

    return make


def test_files_stay_references_and_come_as_arrays_when_asked_for(raw: Any, fly: Any) -> None:
    written, values = fly()
    uid = write(raw, written)
    read = list(stored_run(raw, uid).documents())
    assert [name for name, _ in read] == [
        *("start", "descriptor", "stream_resource", "stream_datum", "stop")
    ]
    resource, datum = read[2][1], read[3][1]
    assert resource["uri"].endswith(written[2][1]["uri"].rsplit("/", 1)[1])
    assert resource["parameters"]["dataset"] == "entry/data"
    assert datum["indices"] == {"start": 0, "stop": 9}
    assert datum["seq_nums"] == {"start": 1, "stop": 10}
    assert datum["stream_resource"] == resource["uid"]

    arrays = list(stored_run(raw, uid, as_arrays="all").documents())
    assert "external" not in of(arrays, "descriptor")[0]["data_keys"]["fluor"]
    events = of(arrays, "event")
    assert [doc["seq_num"] for doc in events] == list(range(1, 10))
    np.testing.assert_array_equal([doc["data"]["fluor"] for doc in events], values)


def legacy_run(folder: Path, n: int = 5) -> tuple[Documents, np.ndarray]:
    """Events with datum ids, as area detectors of older beamlines write them."""
    values = spectra(n, seed=5)
    path = folder / "data" / f"legacy-{time.monotonic_ns()}.h5"
    with h5py.File(path, "w") as file:
        file["entry/data/data"] = values
    run = compose_run(time=1000.0)
    key = {**_SPECTRA, "external": "FILESTORE:"}
    bundle = run.compose_descriptor(
        name="primary", data_keys={"x": _NUMBER, "image": key}, time=1001.0
    )
    resource = run.compose_resource(
        spec="AD_HDF5", root="/", resource_path=str(path), resource_kwargs={}
    )
    documents: Documents = [("start", run.start_doc)]
    documents.append(("descriptor", dict(bundle.descriptor_doc)))
    documents.append(("resource", dict(resource.resource_doc)))
    for i in range(n):
        datum = resource.compose_datum(datum_kwargs={"point_number": i})
        documents.append(("datum", dict(datum)))
        event = bundle.compose_event(
            data={"x": float(i), "image": datum["datum_id"]},
            timestamps={"x": 1002.0 + i, "image": 1002.0 + i},
            filled={"image": False},
            time=1002.0 + i,
        )
        documents.append(("event", dict(event)))
    documents.append(("stop", dict(run.compose_stop())))
    return documents, values


def test_events_with_ids_of_files(raw: Any, folder: Path) -> None:
    written, values = legacy_run(folder)
    uid = write(raw, written)
    by_reference = list(stored_run(raw, uid).documents())
    described = of(by_reference, "descriptor")[0]["data_keys"]["image"]
    assert described["external"] == "STREAM:"
    assert of(by_reference, "stream_datum")[0]["indices"] == {"start": 0, "stop": 5}
    assert [set(doc["data"]) for doc in of(by_reference, "event")] == [{"x"}] * 5
    arrays = list(stored_run(raw, uid, as_arrays="legacy").documents())
    events = of(arrays, "event")
    np.testing.assert_array_equal([doc["data"]["image"] for doc in events], values)
    assert [doc["data"]["x"] for doc in events] == [0, 1, 2, 3, 4]


def test_files_of_another_machine_are_read_through_tiled(
    raw: Any, fly: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from inscan.callbacks.sources import tiled_files

    written, values = fly()
    uid = write(raw, written)
    monkeypatch.setattr(tiled_files, "_is_here", lambda uri: False)
    events = of(list(stored_run(raw, uid).documents()), "event")
    np.testing.assert_array_equal([doc["data"]["fluor"] for doc in events], values)


def test_a_run_is_found_by_number_and_by_the_beginning_of_its_uid(raw: Any) -> None:
    older = write(raw, step_run(1, scan_id=990_017))
    newer = step_run(1, scan_id=990_017)
    newer[0][1]["time"] = 1500.0
    write(raw, newer)
    uid = newer[0][1]["uid"]
    assert stored_run(raw, 990_017).uid == stored_run(raw, "990017").uid == uid
    found = stored_run(raw, older[:9])
    assert found.uid == older and found.start["scan_id"] == 990_017 and RAW in found.where
    assert {older, uid} <= {run.uid for run in tiled_runs(raw)}
    assert older not in {run.uid for run in tiled_runs(raw, since=1400.0)}
    for wanted in ("no-such-run", "12", 990_018):
        with pytest.raises(LookupError, match="no run"):
            stored_run(raw, wanted)


def test_a_run_without_an_end_has_no_stop(raw: Any) -> None:
    written = step_run(6)[:-1]
    uid = write(raw, written, batch_size=2)
    read = list(run_documents(raw, uid))
    assert read[-1][0] == "event" and not of(read, "stop")
    assert len(of(read, "event")) == 6 + 2  # both streams' batches are full


def test_what_is_not_there_is_said(raw: Any) -> None:
    with pytest.raises(SourceError, match="nothing"):
        list(run_documents(raw, "nothing"))


class Following:
    """A source that runs in a thread, and what it handed on."""

    def __init__(self, uri: str, key: str | None, **options: Any) -> None:
        self.documents: Documents = []
        self.stop = threading.Event()
        self.source = TiledSource(uri, key, poll_s=0.2, **options)
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.source.run(lambda name, doc: self.documents.append((name, doc)), self.stop)
        except SourceError as error:
            self.error = error

    def of(self, uid: str) -> Documents:
        """Documents of one run."""
        found, own = [], set()
        for name, doc in list(self.documents):
            links = {doc.get(k) for k in ("run_start", "descriptor", "stream_resource")}
            if (name == "start" and doc["uid"] == uid) or uid in links or links & own:
                own.add(doc.get("uid"))
                found.append((name, doc))
        return found

    def ended(self, uid: str) -> bool:
        return any(name == "stop" for name, _ in self.of(uid))


@pytest.fixture
def follow() -> Iterator[Callable[..., Following]]:
    started: list[Following] = []

    def make(uri: str, key: str | None, **options: Any) -> Following:
        started.append(Following(uri, key, **options))
        return started[-1]

    yield make
    for one in started:
        one.stop.set()
    for one in started:
        one.thread.join(30)
        assert not one.thread.is_alive() and not one.source.ready.is_set()


def test_a_catalog_without_live_stream_is_followed(
    tiled: EmbeddedTiled, raw: Any, follow: Any, until: Any
) -> None:
    """Documents are handed on while the run goes on, each once; a run that began before is left alone."""
    before = write(raw, step_run())
    documents = step_run(5)
    documents[0][1]["time"] = 5000.0
    uid = documents[0][1]["uid"]
    one = follow(tiled.uri, tiled.api_key.get_secret_value(), since=4999.0)
    until(one.source.ready.is_set)
    writer = TiledWriter(raw, batch_size=2)
    for name, doc in documents[:6]:
        writer(name, doc)
    until(lambda: len(of(one.of(uid), "event")) == 2)
    assert not one.ended(uid)
    for name, doc in documents[6:]:
        writer(name, doc)
    until(lambda: one.ended(uid))
    same(one.of(uid), documents)
    assert one.of(before) == [] and one.source.counts["runs"] == 1
    until(lambda: one.source.counts["hints"] == 0)


def test_results_and_known_runs_are_left_alone(
    tiled: EmbeddedTiled, raw: Any, follow: Any, until: Any
) -> None:
    asked: list[str] = []

    def known(uids: Sequence[str]) -> list[str]:
        asked.extend(uids)
        return [done]

    kinds = []
    for raw_uid in (None, "somebody", None):
        documents = step_run(2)
        documents[0][1]["time"] = 9000.0
        if raw_uid is not None:
            documents[0][1]["raw_uid"] = raw_uid
        kinds.append(write(raw, documents))
    done, result, fresh = kinds
    one = follow(tiled.uri, tiled.api_key.get_secret_value(), since=8999.0, known=known)
    until(lambda: one.ended(fresh))
    assert set(asked) == {done, fresh} and not one.of(done) and not one.of(result)
    assert (one.source.counts["known"], one.source.counts["derived"]) == (1, 1)


@pytest.mark.slow
def test_runs_written_while_tiled_was_lost_are_found(
    tmp_path: Path, follow: Any, until: Any
) -> None:
    key = "key0123"
    with EmbeddedTiled(tmp_path, 0, key) as server:
        one = follow(server.uri, key, since=0.0)
        until(one.source.ready.is_set)
        process = server._process
        assert process is not None
        process.kill()
        until(lambda: one.source.counts["lost"] > 0)
        assert not one.source.ready.is_set()
        until(lambda: server.restarts > 0, 60)
        until(one.source.ready.is_set, 60)
        client = from_uri(server.uri, api_key=key)
        documents = step_run(3)
        uid = write(client[RAW], documents)
        client.context.http_client.close()
        until(lambda: one.ended(uid))
        same(one.of(uid), documents)
        one.stop.set()
        one.thread.join(30)


@pytest.mark.slow
def test_the_live_stream_of_a_catalog_says_when_to_look(
    tmp_path: Path, follow: Any, until: Any
) -> None:
    zarr.zeros((1,))  # starts one thread on its first use and keeps it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of the server's own libraries
        with SimpleTiledServer(tmp_path / "server", api_key="key0123") as server:
            uri = server.uri.split("?")[0]
            one = follow(uri, "key0123", since=0.0)
            one.source._poll_s = 600.0
            until(one.source.ready.is_set)
            client = from_uri(uri, api_key="key0123")
            documents = step_run(3)
            # The subscription is made after the first look; until then the clock counts.
            until(lambda: "inscan-tiled-hints" in {t.name for t in threading.enumerate()})
            uid = write(client, documents)
            until(lambda: one.ended(uid), 30)
            assert one.source.counts["hints"] > 0
            same(one.of(uid), documents)
            one.stop.set()
            one.thread.join(30)
            client.context.http_client.close()


def test_a_source_that_cannot_be_used_says_so(tiled: EmbeddedTiled, follow: Any) -> None:
    for uri, key in (("http://127.0.0.1:9", "k"), (tiled.uri, "wrong")):
        one = follow(uri, key)
        one.thread.join(60)
        assert one.error is not None and uri in str(one.error)


@pytest.mark.parametrize(("key", "said"), [(None, "wants a key"), ("wrong", "refuses the key")])
def test_a_key_that_is_missing_or_wrong_is_one_line(
    tiled: EmbeddedTiled, key: str | None, said: str
) -> None:
    with pytest.raises(SourceError, match=said) as caught, open_catalog(tiled.uri, key):
        pass
    assert "INSCAN_SOURCE_TILED_API_KEY" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
