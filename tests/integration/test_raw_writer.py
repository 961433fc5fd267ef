"""Raw runs of a RunEngine and of documents with external files, into a real Tiled."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bluesky.plans as bp
import h5py
import numpy as np
import pytest
from bluesky import RunEngine
from event_model import compose_run
from ophyd.sim import SynAxis, SynSignal
from tiled.client import from_uri

from inscan.service.raw_writer import RawRunWriter
from inscan.service.tiled_http import RAW, TiledHTTP
from inscan.service.tiled_server import EmbeddedTiled

Until = Callable[..., Any]


@pytest.fixture
def writer(tiled: EmbeddedTiled, tmp_path: Path) -> Iterator[RawRunWriter]:
    writer = RawRunWriter(tiled.uri, tiled.api_key, tmp_path / "raw")
    yield writer
    assert writer.close()


@pytest.fixture
def raw(tiled: EmbeddedTiled) -> Iterator[Any]:
    client = from_uri(tiled.uri, api_key=tiled.api_key.get_secret_value())
    yield client[RAW]
    client.context.http_client.close()


def external(
    run: Any, emit: Callable[..., None], stream: str, key: str, path: Path, data: np.ndarray
) -> None:
    """One stream whose data are in an HDF5 file, announced in two parts."""
    described = run.compose_descriptor(
        name=stream,
        data_keys={
            key: {
                "source": "sim",
                "dtype": "array",
                "dtype_numpy": data.dtype.str,
                "shape": list(data.shape[1:]),
                "external": "STREAM:",
            }
        },
    )
    emit("descriptor", described.descriptor_doc)
    with h5py.File(path, "w") as file:
        file.create_dataset("entry/data", data=data, chunks=(1, *data.shape[1:]))
    resource = run.compose_stream_resource(
        mimetype="application/x-hdf5",
        uri=f"file://localhost{path}",
        data_key=key,
        parameters={"dataset": "entry/data", "chunk_shape": [1, *data.shape[1:]]},
    )
    emit("stream_resource", resource.stream_resource_doc)
    half = len(data) // 2
    for start, stop in ((0, half), (half, len(data))):
        emit(
            "stream_datum",
            resource.compose_stream_datum(
                indices={"start": start, "stop": stop}, descriptor=described.descriptor_doc
            ),
        )


def test_a_step_scan_of_a_run_engine(writer: RawRunWriter, raw: Any) -> None:
    motor = SynAxis(name="sample_x")
    spectrum = SynSignal(name="xs_fluor", func=lambda: np.arange(64, dtype=np.uint32))
    engine = RunEngine({}, call_returns_result=False)
    engine.subscribe(writer)
    (uid,) = engine(bp.scan([spectrum], motor, 0, 4, 5), sample={"name": "cells"})  # type: ignore[misc]
    engine.loop.call_soon_threadsafe(engine.loop.stop)
    assert writer.wait(uid, 30), writer.problems
    run = raw[uid]
    assert run.start["sample"] == {"name": "cells"}
    assert run.stop["exit_status"] == "success"
    np.testing.assert_allclose(run["primary"]["sample_x"].read(), np.arange(5.0))
    assert run["primary"]["xs_fluor"].read().shape == (5, 64)
    assert not list(writer._directory.glob("*.log"))


def test_fly_rows_and_energy_stacks_stay_in_their_files(
    writer: RawRunWriter, raw: Any, folder: Path
) -> None:
    rng = np.random.default_rng(0)
    run = compose_run(metadata={"scan": {"type": "XRF_FLY"}, "shape": [3, 4]})
    uid = run.start_doc["uid"]
    spectra = rng.integers(0, 9, (12, 2, 32), dtype=np.uint16)
    writer("start", run.start_doc)
    external(run, writer, "primary", "xs_fluor", folder / "data" / f"{uid}.h5", spectra)
    writer("stop", run.compose_stop())

    stack = compose_run(metadata={"scan": {"type": "XANES_STACK"}, "eng_list": [8.3, 8.4]})
    stack_uid = stack.start_doc["uid"]
    writer("start", stack.start_doc)
    frames = {
        name: rng.integers(0, 99, (n, 3, 5, 6), dtype=np.uint16)
        for name, n in (("dark", 2), ("primary", 4), ("flat", 2))
    }
    for name, data in frames.items():
        path = folder / "data" / f"{stack_uid}_{name}.h5"
        external(stack, writer, name, "txm_image", path, data)
    writer("stop", stack.compose_stop())

    assert writer.wait(uid, 30), writer.problems
    assert writer.wait(stack_uid, 30), writer.problems
    np.testing.assert_array_equal(raw[uid]["primary"]["xs_fluor"].read(), spectra)
    for name, data in frames.items():
        np.testing.assert_array_equal(raw[stack_uid][name]["txm_image"].read(), data)


def test_documents_wait_while_tiled_is_away_and_over_a_restart(
    tmp_path: Path, until: Until
) -> None:
    run = compose_run(metadata={"sample": {"name": "late"}})
    described = run.compose_descriptor(
        name="primary", data_keys={"i0": {"source": "sim", "dtype": "number", "shape": []}}
    )
    with EmbeddedTiled(tmp_path) as server:
        uri, key = server.uri, server.api_key
    first = RawRunWriter(uri, key, tmp_path / "raw")
    first("start", run.start_doc)
    first("descriptor", described.descriptor_doc)
    event = described.compose_event(data={"i0": 7.0}, timestamps={"i0": 0.0})
    first("event", event)
    until(lambda: first.problems)
    assert "tried again" in first.problems[run.start_doc["uid"]]
    first("stop", run.compose_stop())
    assert not first.close()

    # A half-written run of the interrupted try is in the way.
    with EmbeddedTiled(tmp_path, int(uri.rpartition(":")[2])) as server:
        with TiledHTTP(server.uri, server.api_key) as http:
            http.create(RAW, run.start_doc["uid"], metadata={"start": {"uid": "half"}})
        second = RawRunWriter(server.uri, server.api_key, tmp_path / "raw")
        assert second.wait(run.start_doc["uid"], 30), second.problems
        assert second.close()
        with TiledHTTP(server.uri, server.api_key) as http:
            node = http.get(f"{RAW}/{run.start_doc['uid']}")
    assert node is not None
    assert node["metadata"]["start"]["sample"] == {"name": "late"}
    assert node["metadata"]["stop"]["num_events"] == {"primary": 1}


def test_a_document_of_nonsense_reaches_nobody_and_raises_nothing(writer: RawRunWriter) -> None:
    writer("start", {"no": "uid"})
    writer("event", {"descriptor": "unknown"})
    writer("stop", {})
