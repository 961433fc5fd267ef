"""Runs of the simulated beamlines in a real Tiled server: accepted, and the same when read back."""

import warnings
from typing import Any

import h5py
import numpy as np
import pytest
import zarr
from bluesky import RunEngine
from bluesky_tiled_plugins import TiledWriter
from tiled.client import from_uri
from tiled.server import SimpleTiledServer

from inscan.profiles.samples import battery_xanes, cells
from inscan.profiles.simulation import sim_txm, sim_xrf
from inscan.profiles.txm_plans import xanes_scan
from inscan.profiles.xrf_plans import fly_raster, step_raster


@pytest.fixture(scope="module")
def tiled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiled")
    data = folder / "data"
    data.mkdir()
    # zarr starts one thread on its first use and keeps it for the life of the process.
    zarr.zeros((1,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of the server's own libraries
        with SimpleTiledServer(folder / "server", readable_storage=[str(data)]) as server:
            client = from_uri(server.uri)
            yield client, data
            client.context.close()


@pytest.fixture
def run(tiled):
    """Run a plan, return (documents, run in Tiled)."""
    client, _ = tiled
    engine = RunEngine({"beamline_id": "sim"}, context_managers=[])
    documents = []
    engine.subscribe(lambda name, doc: documents.append((name, doc)))
    engine.subscribe(TiledWriter(client))

    def take(plan):
        documents.clear()
        engine(plan)
        return documents, client[documents[0][1]["uid"]]

    return take


def stored(documents, key):
    """Read a data key from the detector's own file: {stream: array}."""
    streams = {doc["uid"]: doc["name"] for name, doc in documents if name == "descriptor"}
    resources = {doc["uid"]: doc for name, doc in documents if name == "stream_resource"}
    found = {}
    for name, doc in documents:
        if name == "stream_datum" and resources[doc["stream_resource"]]["data_key"] == key:
            resource = resources[doc["stream_resource"]]
            with h5py.File(resource["uri"].removeprefix("file://localhost"), "r") as file:
                dataset: Any = file[resource["parameters"]["dataset"]]
                found[streams[doc["descriptor"]]] = dataset[...]
    return found


def test_step_run(tiled, run):
    beamline = sim_xrf(
        cells(0, pixel_size=0.4),
        tiled[1],
        channels=2,
        time_scale=0,
        bins=1024,
        energy_per_bin=16.0,
    )
    beamline.xs.spectra.put(1)
    documents, kept = run(
        step_raster(
            beamline.xs,
            beamline.sclr,
            *(beamline.sample_y, -4.0, 4.0, 3, beamline.sample_x, -6.0, 6.0, 4),
            dwell=0.05,
            snake=True,
        )
    )
    events = [doc["data"] for name, doc in documents if name == "event"]
    primary = kept["primary"]
    read = primary.read()
    for key in ("xs_channel02_mcaroi03_total_rbv", "sclr_i0", "sample_x", "xs_channel01_live_time"):
        np.testing.assert_array_equal(read[key].values, [event[key] for event in events])
    spectra = primary["xs_channel01_fluor"].read()
    assert spectra.dtype == np.uint32
    np.testing.assert_array_equal(spectra, [event["xs_channel01_fluor"] for event in events])
    assert kept.metadata["start"]["scan"]["type"] == "XRF_STEP"
    assert kept.metadata["stop"]["exit_status"] == "success"


def test_fly_run(tiled, run):
    beamline = sim_xrf(
        cells(0, pixel_size=0.4),
        tiled[1],
        channels=3,
        time_scale=0,
        bins=1024,
        energy_per_bin=16.0,
    )
    beamline.xs_fly.spectra.put(1)
    documents, kept = run(
        fly_raster(
            beamline.xs_fly,
            *(beamline.sample_y, -4.0, 4.0, 3, beamline.sample_x, -6.0, 6.0, 7),
            dwell=0.05,
            snake=True,
        )
    )
    shapes = {
        "xs_fluor": (21, 3, 1024),
        "xs_mcaroi": (21, 3, 6),
        "xs_live_time": (21, 3),
        "sclr_i0": (21,),
        "sample_x": (21,),
        "sample_y": (21,),
    }
    for key, shape in shapes.items():
        values = kept["primary"][key].read()
        assert values.shape == shape
        np.testing.assert_array_equal(values, stored(documents, key)["primary"])
    configuration = kept["primary"].metadata["configuration"]["xs_fly"]["data"]
    assert configuration["xs_mcaroi05_name"] == "Fe_K"


def test_energy_stack(tiled, run):
    beamline = sim_txm(battery_xanes(0, size=40), tiled[1], time_scale=0)
    documents, kept = run(
        xanes_scan(
            beamline.microscope,
            [8300.0, 8345.0, 8400.0],
            frames_per_energy=2,
            exposure=0.02,
            darks=4,
        )
    )
    events = {"dark": 4, "flat": 3, "primary": 3}
    files = stored(documents, "txm_image")
    for stream, count in events.items():
        images = kept[stream]["txm_image"].read()
        assert (images.shape, images.dtype) == ((count, 2, 40, 40), np.uint16)
        np.testing.assert_array_equal(images, files[stream])
    energies = kept["primary"].read(["mono_energy"])["mono_energy"].values
    np.testing.assert_allclose(energies, [8.3, 8.345, 8.4])
    assert kept.metadata["start"]["eng_list"] == [8.3, 8.345, 8.4]
