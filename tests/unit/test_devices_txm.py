"""The transmission camera: frames of the truth, streams in order, valid documents."""

from typing import Any

import bluesky.plan_stubs as bps
import bluesky.preprocessors as bpp
import h5py
import numpy as np
import pytest
from bluesky import RunEngine
from bluesky.utils import RunEngineInterrupted
from event_model import DocumentNames, schema_validators
from ophyd.utils.errors import LimitError

from inscan.callbacks.profile import load_profile
from inscan.profiles.samples import battery_xanes
from inscan.profiles.simulation import sim_txm
from inscan.profiles.txm_plans import xanes_scan
from inscan.service.rescan_places import chemistry_places

SAMPLE = battery_xanes(3, size=48)
ENERGIES = [8300.0, 8345.0, 8349.0, 8400.0]


@pytest.fixture
def documents():
    return []


@pytest.fixture
def run_engine(documents):
    engine = RunEngine({"beamline_id": "sim_txm"}, context_managers=[])

    def collect(name, doc):
        schema_validators[DocumentNames[name]].validate(doc)
        documents.append((name, doc))

    engine.subscribe(collect)
    return engine


def build(tmp_path, **kwargs):
    return sim_txm(SAMPLE, tmp_path, **{"time_scale": 0, "jitter": 0.0, **kwargs})


def stacks(documents):
    """Stream name -> (event, frame, y, x) as read from the files."""
    names = {doc["uid"]: doc["name"] for name, doc in documents if name == "descriptor"}
    resources = {doc["uid"]: doc for name, doc in documents if name == "stream_resource"}
    found = {}
    for name, doc in documents:
        if name == "stream_datum":
            resource = resources[doc["stream_resource"]]
            with h5py.File(resource["uri"].removeprefix("file://localhost"), "r") as file:
                dataset: Any = file[resource["parameters"]["dataset"]]
                found[names[doc["descriptor"]]] = dataset[...]
    return found


def opened(beamline, stream="primary", frames=4, exposure=0.05):
    beamline.txm.num_images.put(frames)
    beamline.txm.exposure_time.put(exposure)
    beamline.shutter.put(0 if stream == "dark" else 1)
    beamline.txm.stage()
    beamline.txm.prepare(stream)
    return beamline.txm


def frames_of(camera):
    camera.trigger().wait(timeout=10)
    resource = next(doc for name, doc in camera.collect_asset_docs() if name == "stream_resource")
    camera.unstage()
    with h5py.File(resource["uri"].removeprefix("file://localhost"), "r") as file:
        dataset: Any = file["entry/data/data"]
        return dataset[0].astype(float)


def test_transmission_is_that_of_the_sample(tmp_path):
    bright = {"flux": 1e6, "seed": 1, "adu_per_photon": 0.5}
    dark = frames_of(opened(build(tmp_path, **bright), "dark", 20)).mean(0)
    empty, full = build(tmp_path, **bright), build(tmp_path, **bright)
    for beamline in (empty, full):
        beamline.mono_energy.set(8.349)
    empty.zps_sx.set(empty.microscope.out)
    # One camera each, of the same seed: the same illumination and drift.
    flat = frames_of(opened(empty, "flat", 20)).mean(0)
    frame = frames_of(opened(full, "primary", 20)).mean(0)
    transmission = (frame - dark) / (flat - dark)
    expected = np.exp(-SAMPLE.optical_density(8349.0)[0])
    assert expected.min() < 0.5
    np.testing.assert_allclose(transmission, expected, atol=0.01)


def test_frames_are_poisson_with_camera_noise(tmp_path):
    gain, read_noise = 5.0, 2.5
    beamline = build(tmp_path, adu_per_photon=gain, read_noise=read_noise, seed=4)
    beamline.zps_sx.set(beamline.microscope.out)
    frames = frames_of(opened(beamline, "flat", 200))
    darks = frames_of(opened(build(tmp_path, read_noise=read_noise, seed=4), "dark", 200))
    signal = frames.mean(0) - darks.mean(0)
    assert signal.mean() > 500
    # Photon transfer: variance = gain * signal + read noise^2 (+ 1/12 of rounding).
    np.testing.assert_allclose(
        (frames.var(0, ddof=1) - darks.var(0, ddof=1)).mean() / signal.mean(), gain, rtol=0.02
    )
    np.testing.assert_allclose(darks.var(0, ddof=1).mean(), read_noise**2 + 1 / 12, rtol=0.03)


def test_the_camera_saturates(tmp_path):
    beamline = build(tmp_path, flux=1e9)
    assert frames_of(opened(beamline)).max() == 65535


def test_the_sample_trembles_by_the_jitter(tmp_path):
    def difference(jitter):
        beamline = build(tmp_path, jitter=jitter, flux=1e7, adu_per_photon=0.05, seed=2)
        beamline.mono_energy.set(8.349)
        camera = opened(beamline)
        first, second = (camera._frames().mean(0) for _ in range(2))
        camera.unstage()
        return np.abs(first - second).mean()

    assert difference(1.0) > 1.5 * difference(0.0)


def test_the_sample_is_where_the_motors_are(tmp_path):
    beamline = build(tmp_path, flux=1e7, adu_per_photon=0.05, seed=2)
    beamline.mono_energy.set(8.349)
    at_home = frames_of(opened(beamline)).mean(0)
    moved = build(tmp_path, flux=1e7, adu_per_photon=0.05, seed=2)
    moved.mono_energy.set(8.349)
    moved.zps_sy.set(5 * SAMPLE.pixel_size)
    shifted = frames_of(opened(moved)).mean(0)
    both = [np.diff(image, axis=0)[8:-8] for image in (at_home, shifted)]
    rows = range(-7, 8)
    match = [np.sum(np.roll(both[0], row, axis=0)[7:-7] * both[1][7:-7]) for row in rows]
    assert rows[int(np.argmax(match))] == 5


@pytest.mark.parametrize("order", [("dark", "flat", "primary"), ("dark", "primary", "flat")])
@pytest.mark.parametrize("flats", ["each", "one"])
def test_a_scan_has_the_documented_streams(tmp_path, run_engine, documents, order, flats):
    beamline = build(tmp_path)
    run_engine(
        xanes_scan(
            beamline.microscope,
            ENERGIES,
            frames_per_energy=2,
            exposure=0.02,
            order=order,
            flats=flats,
            darks=3,
            md={"sample": {"name": SAMPLE.name}},
        )
    )
    start, stop = documents[0][1], documents[-1][1]
    assert start["eng_list"] == pytest.approx([8.3, 8.345, 8.349, 8.4])
    assert (start["frames_per_energy"], start["exposure_time"]) == (2, 0.02)
    assert start["scan"]["type"] == "XANES_STACK"
    descriptors = [doc for name, doc in documents if name == "descriptor"]
    assert tuple(doc["name"] for doc in descriptors) == order
    for descriptor in descriptors:
        image = descriptor["data_keys"]["txm_image"]
        assert (image["shape"], image["external"]) == ([2, 48, 48], "STREAM:")
        assert descriptor["data_keys"]["mono_energy"]["units"] == "keV"
    n_flat = len(ENERGIES) if flats == "each" else 3
    assert stop["num_events"] == {"dark": 3, "flat": n_flat, "primary": 4}
    names = {doc["uid"]: doc["name"] for doc in descriptors}
    primary = [
        doc["data"]["mono_energy"]
        for name, doc in documents
        if name == "event" and names[doc["descriptor"]] == "primary"
    ]
    assert primary == start["eng_list"]
    for name, doc in documents:
        if name == "stream_datum":
            assert doc["seq_nums"]["start"] == doc["indices"]["start"] + 1
    found = stacks(documents)
    assert {name: stack.shape[:2] for name, stack in found.items()} == {
        "dark": (3, 2),
        "flat": (n_flat, 2),
        "primary": (4, 2),
    }
    assert found["dark"].mean() < 110 < found["primary"].mean() < found["flat"].mean()
    # Left safe: no light, sample in.
    assert beamline.shutter.get() == 0
    assert beamline.zps_sx.position == 0


def pausing(plan, camera, at):
    """Put a pause right after some triggers of the camera, before its event is saved."""
    count = 0

    def insert(msg):
        nonlocal count
        if msg.command == "trigger" and msg.obj is camera:
            count += 1
            if count in at:
                return None, bps.pause()
        return None, None

    return bpp.plan_mutator(plan, insert)


def test_pause_and_resume_keeps_frames_with_their_events(tmp_path, run_engine, documents):
    beamline = build(tmp_path, flux=1e5)
    plan = xanes_scan(beamline.microscope, ENERGIES, frames_per_energy=1, darks=3)
    pauses = 0
    with pytest.raises(RunEngineInterrupted):
        # In the darks, in the first flat, in the middle of the stack.
        run_engine(pausing(plan, beamline.txm, {2, 4, 9}))
    while run_engine.state == "paused":
        pauses += 1
        try:
            run_engine.resume()
        except RunEngineInterrupted:
            continue
    assert pauses == 3
    found = stacks(documents)
    assert {name: len(stack) for name, stack in found.items()} == {
        "dark": 3,
        "flat": 4,
        "primary": 4,
    }
    # Transmission falls over the edge: the frames are in the order of the events.
    ratio = (found["primary"][:, 0] - 100.0).mean((1, 2)) / (found["flat"][:, 0] - 100.0).mean(
        (1, 2)
    )
    assert ratio[0] > ratio[3] > ratio[2]


def test_abort_closes_the_run_and_leaves_the_beamline_safe(tmp_path, run_engine, documents):
    beamline = build(tmp_path)
    plan = xanes_scan(beamline.microscope, ENERGIES, darks=2)
    with pytest.raises(RunEngineInterrupted):
        run_engine(pausing(plan, beamline.txm, {4}))
    assert beamline.zps_sx.position != 0 and beamline.shutter.get() == 1
    run_engine.abort("enough")
    assert documents[-1][1]["exit_status"] == "abort"
    assert beamline.zps_sx.position == 0 and beamline.shutter.get() == 0


def test_same_seed_same_frames(tmp_path, run_engine, documents):
    runs = []
    for seed in (1, 1, 2):
        documents.clear()
        beamline = build(tmp_path, seed=seed, jitter=0.4)
        run_engine(xanes_scan(beamline.microscope, ENERGIES[:2], frames_per_energy=1, darks=1))
        runs.append(stacks(documents)["primary"])
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])


def test_nonsense_is_refused_before_anything_moves(tmp_path, run_engine, documents):
    beamline = build(tmp_path)
    with pytest.raises(LimitError):
        run_engine(xanes_scan(beamline.microscope, [8300.0, 83000.0]))
    with pytest.raises(ValueError, match="each of"):
        run_engine(xanes_scan(beamline.microscope, ENERGIES, order=("dark", "primary")))
    with pytest.raises(ValueError, match="at least one"):
        run_engine(xanes_scan(beamline.microscope, []))
    assert not documents
    with pytest.raises(ValueError, match="expected dark, flat or primary"):
        beamline.txm.prepare("light")  # pyright: ignore[reportArgumentType]
    with pytest.raises(RuntimeError, match="prepare"):
        beamline.txm.trigger()
    with pytest.raises(ValueError, match="flux 0"):
        build(tmp_path, flux=0.0)


def test_motors_bring_a_place_to_the_middle_as_the_profile_says(tmp_path):
    beamline, rules = build(tmp_path), load_profile("sim_txm").rescan
    row, col = np.unravel_index(int(np.argmax(SAMPLE.jump)), SAMPLE.shape)
    place = {"target": "chemistry", "box": [int(row), int(row) + 1, int(col), int(col) + 1]}
    meta = {
        "pixel_size_um": SAMPLE.pixel_size,
        "shape": [2, *SAMPLE.shape],
        "position": {"motors": {"zps_sy": 0.0, "zps_sx": 0.0}},
    }
    (region,), refused = chemistry_places([place], meta, rules)
    assert refused == []
    straight = np.exp(-SAMPLE.optical_density(8400.0)[0])
    for motor, (low, high) in (
        (beamline.zps_sy, region.region.slow_range),
        (beamline.zps_sx, region.region.fast_range),
    ):
        # The middle of the image is between pixels; half a pixel further is the one below it.
        motor.set((low + high) / 2 + SAMPLE.pixel_size / 2).wait(timeout=5)
    moved = beamline.txm._transmission(8400.0, np.zeros(2))
    middle = SAMPLE.shape[0] // 2, SAMPLE.shape[1] // 2
    assert moved[middle] == pytest.approx(straight[row, col], abs=0.02)
    assert abs(straight[middle] - straight[row, col]) > 0.1
