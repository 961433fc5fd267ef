"""Runs that bluesky's own TiledWriter put into a real Tiled come out as documents that mean the same."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from bluesky_tiled_plugins import TiledWriter
from event_model import compose_run
from tiled.client import from_uri

from inscan.callbacks.sources.interface import Document, SourceError
from inscan.callbacks.sources.tiled import run_documents, stored_run, tiled_runs
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
        resource = run.compose_stream_resource(
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
