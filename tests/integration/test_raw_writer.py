"""Raw runs of the simulated beamlines, into a real Tiled."""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from bluesky import RunEngine
from event_model import compose_run
from pydantic import SecretStr
from tiled.client import from_uri

from inscan.profiles.samples import xanes_sample, xrf_sample
from inscan.profiles.simulation import sim_txm, sim_xrf
from inscan.profiles.txm_plans import xanes_scan
from inscan.profiles.xrf_plans import fly_raster, step_raster
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


@pytest.fixture(scope="module")
def engine() -> RunEngine:
    return RunEngine({}, context_managers=[], call_returns_result=False)


def test_step_and_fly_maps_of_the_simulated_microscope(
    engine: RunEngine, writer: RawRunWriter, raw: Any, folder: Path
) -> None:
    data = folder / "data" / "xrf"
    data.mkdir()
    devices = sim_xrf(xrf_sample("siemens_star"), data, channels=2, time_scale=0, dwell=0.01)
    raster = (devices.sample_y, 0.0, 1.0, 3, devices.sample_x, 0.0, 2.0, 5)
    token = engine.subscribe(writer)
    plan = step_raster(devices.xs, devices.sclr, *raster, dwell=0.01, md={"sample": {"name": "s"}})
    (step,) = engine(plan)  # type: ignore[misc]
    devices.xs_fly.spectra.put(1)
    (fly,) = engine(fly_raster(devices.xs_fly, *raster, dwell=0.01))  # type: ignore[misc]
    engine.unsubscribe(token)
    assert writer.wait(step, 60), writer.problems
    assert writer.wait(fly, 60), writer.problems

    assert raw[step].start["sample"] == {"name": "s"}
    assert raw[step].stop["exit_status"] == "success"
    np.testing.assert_allclose(
        raw[step]["primary"]["sample_x"].read(), np.tile(np.arange(5) / 2, 3)
    )
    assert raw[step]["primary"]["xs_channel02_mcaroi01_total_rbv"].read().shape == (15,)
    (path,) = data.glob("**/*.h5")
    with h5py.File(path) as file:
        written = [node for node in _datasets(file) if node.shape == (15, 2, 4096)]
        spectra = raw[fly]["primary"]["xs_fluor"].read()
        np.testing.assert_array_equal(spectra, written[0][...])
    assert raw[fly]["primary"]["xs_mcaroi"].read().shape[:2] == (15, 2)
    assert not list(writer._directory.glob("*.log"))


def _datasets(group: h5py.Group) -> Iterator[h5py.Dataset]:
    for node in group.values():
        if isinstance(node, h5py.Group):
            yield from _datasets(node)
        else:
            yield node


def test_an_energy_stack_with_its_dark_and_flat(
    engine: RunEngine, writer: RawRunWriter, raw: Any, folder: Path
) -> None:
    devices = sim_txm(xanes_sample("battery_smooth", size=32), folder / "data", time_scale=0)
    token = engine.subscribe(writer)
    plan = xanes_scan(devices.microscope, [8300.0, 8340.0, 8400.0], frames_per_energy=2, darks=2)
    (uid,) = engine(plan)  # type: ignore[misc]
    engine.unsubscribe(token)
    assert writer.wait(uid, 60), writer.problems
    shapes = {name: raw[uid][name]["txm_image"].shape for name in ("dark", "flat", "primary")}
    assert shapes == {"dark": (2, 2, 32, 32), "flat": (3, 2, 32, 32), "primary": (3, 2, 32, 32)}
    dark, flat = (raw[uid][name]["txm_image"].read().mean() for name in ("dark", "flat"))
    assert flat > dark
    np.testing.assert_allclose(raw[uid]["primary"]["mono_energy"].read(), [8.3, 8.34, 8.4])


@pytest.mark.slow
def test_documents_wait_while_tiled_is_away_and_over_a_restart(
    tmp_path: Path, until: Until
) -> None:
    run = compose_run(metadata={"sample": {"name": "late"}})
    described = run.compose_descriptor(
        name="primary", data_keys={"i0": {"source": "sim", "dtype": "number", "shape": []}}
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    key = SecretStr("key0123")
    first = RawRunWriter(f"http://127.0.0.1:{port}", key, tmp_path / "raw")
    first("start", run.start_doc)
    first("descriptor", described.descriptor_doc)
    event = described.compose_event(data={"i0": 7.0}, timestamps={"i0": 0.0})
    first("event", event)
    until(lambda: first.problems)
    assert "tried again" in first.problems[run.start_doc["uid"]]
    first("stop", run.compose_stop())
    assert not first.close()

    # A half-written run of the interrupted try is in the way.
    with EmbeddedTiled(tmp_path, port, key.get_secret_value()) as server:
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


def test_a_run_that_cannot_be_written_is_not_waited_for(
    tiled: EmbeddedTiled, tmp_path: Path
) -> None:
    run = compose_run()
    external = {"dtype": "array", "shape": [1], "source": "sim", "external": "FILESTORE:"}
    bundle = run.compose_descriptor(name="primary", data_keys={"x": external})
    writer = RawRunWriter(tiled.uri, tiled.api_key, tmp_path / "raw")
    writer("start", run.start_doc)
    writer("descriptor", bundle.descriptor_doc)
    # Of a datum that has not come.
    values = {"data": {"x": "nowhere/0"}, "timestamps": {"x": 0.0}, "filled": {"x": False}}
    writer("event", bundle.compose_event(**values))
    writer("stop", run.compose_stop())
    uid = run.start_doc["uid"]
    assert not writer.wait(uid, 3600)
    assert "its documents stay in" in writer.problems[uid]
    assert not writer.close()
