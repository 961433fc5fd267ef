"""Fluorescence detectors: Poisson counts of the truth, honest live time, valid documents."""

import threading
from typing import Any

import bluesky.preprocessors as bpp
import h5py
import numpy as np
import pytest
from bluesky import RunEngine
from bluesky.suspenders import SuspendBoolLow
from bluesky.utils import RunEngineInterrupted
from event_model import DocumentNames, DocumentRouter, schema_validators
from ophyd import Signal
from ophyd.utils.errors import LimitError

from inscan.callbacks.profile import load_profile
from inscan.callbacks.xrf_layout import read_layout
from inscan.profiles.beam import Beam, Light
from inscan.profiles.samples import XRFSample, cells
from inscan.profiles.simulation import Parameters, sim_xrf
from inscan.profiles.stage_drift import StageDrift
from inscan.profiles.xrf_counting import CountingChain
from inscan.profiles.xrf_plans import fly_raster, step_raster
from inscan.profiles.xrf_response import build_response

ELEMENTS = ("Mn_K", "Fe_K", "Zn_K")


def flat(rate=500.0, elements=ELEMENTS):
    maps = np.full((len(elements), 8, 8), rate, np.float32)
    return XRFSample("flat", elements, maps, 5.0, (-17.5, -17.5))


def chain(sample, *, seed=0, channels=4, bins=1024, energy_per_bin=16.0, **kwargs):
    response = build_response(sample.elements, bins=bins, energy_per_bin=energy_per_bin)
    return CountingChain(sample, response, channels=channels, seed=seed, probe_fwhm=0.0, **kwargs)


def exposures(n):
    return np.zeros(n), np.zeros(n), np.ones(n)


@pytest.fixture
def documents():
    found = []

    class Valid(DocumentRouter):
        def __call__(self, name, doc, validate=True):
            del validate
            schema_validators[DocumentNames[name]].validate(doc)
            found.append((name, doc))
            return super().__call__(name, doc)

    return found, Valid()


@pytest.fixture
def run_engine(documents):
    engine = RunEngine({"beamline_id": "sim_xrf"}, context_managers=[])
    engine.subscribe(documents[1])
    return engine


def datasets(found):
    path = next(doc["uri"] for name, doc in found if name == "stream_resource")
    with h5py.File(path.removeprefix("file://localhost"), "r") as opened:
        file: Any = opened
        return {
            doc["data_key"]: file[doc["parameters"]["dataset"]][...]
            for name, doc in found
            if name == "stream_resource"
        }


def layout_of(descriptor):
    """The stream as the shipped profile understands it."""
    profile = load_profile("sim_xrf").xrf
    assert profile is not None
    motors, units = ("sample_y", "sample_x"), ("um", "um")
    return read_layout(descriptor, profile, 12_000.0, motors, units)


@pytest.mark.parametrize("spectra", [False, True])
def test_counts_are_poisson_around_truth_times_live_time(spectra):
    sample, dwell, n = flat(), 0.05, 4000
    counting = chain(sample, seed=3)
    slow, fast, ones = exposures(n)
    counts = counting.count(slow, fast, dwell, ones, spectra=spectra)
    total = counts.mcaroi.sum(axis=1)
    expected = counting.response.window_rates(sample.rate(0.0, 0.0))[:, 0] * dwell
    # Dead time here is a few 1e-4; standard error of the mean is sqrt(25 / 4000) / 25 = 0.3 %.
    np.testing.assert_allclose(total.mean(axis=0), expected, rtol=0.02)
    np.testing.assert_allclose(total.var(axis=0) / total.mean(axis=0), 1, atol=0.1)


def test_windows_count_the_same_with_and_without_spectra():
    sample = flat(2000.0)
    n = 6000
    # The same seed for both: the same gains.
    without, with_spectra = (
        chain(sample, seed=1)
        .count(*exposures(n)[:2], 0.02, np.ones(n), spectra=spectra)
        .mcaroi[:, 0]
        for spectra in (False, True)
    )
    np.testing.assert_allclose(without.mean(0), with_spectra.mean(0), rtol=0.05)
    # Mn Kb lies in the window of Fe Ka, but the windows are disjoint: no correlation either way.
    np.testing.assert_allclose(np.cov(without.T), np.cov(with_spectra.T), atol=1.2)


def test_overlapping_windows_share_counts():
    sample = flat(elements=("Fe_K", "Co_K"))
    response = build_response(
        sample.elements, mcarois=("Fe_K", "Fe_K"), bins=1024, energy_per_bin=16.0
    )
    counting = CountingChain(sample, response, channels=1, seed=0, probe_fwhm=0)
    counts = counting.count(*exposures(50)[:2], 0.1, np.ones(50)).mcaroi
    np.testing.assert_array_equal(counts[..., 0], counts[..., 1])


def test_totals_are_sums_of_the_same_spectrum():
    counting = chain(flat(), seed=5)
    counts = counting.count(*exposures(20)[:2], 0.1, np.ones(20), spectra=True)
    assert counts.spectra is not None and counts.spectra.shape == (20, 4, 1024)
    for index, mcaroi in enumerate(counting.response.mcarois):
        centres = np.arange(1024) * 16.0
        inside = (centres >= mcaroi.low_ev) & (centres < mcaroi.high_ev)
        np.testing.assert_array_equal(
            counts.spectra[..., inside].sum(axis=2), counts.mcaroi[..., index]
        )


def test_spectra_peak_at_the_lines_and_at_the_scatter():
    counting = chain(flat(20_000.0), seed=5, bins=2048, energy_per_bin=8.0)
    counts = counting.count(*exposures(1)[:2], 100.0, np.ones(1), spectra=True)
    assert counts.spectra is not None
    spectrum = counts.spectra[0].sum(axis=0)
    centres = np.arange(2048) * 8.0
    for energy in (5895, 6399, 8631):  # Mn, Fe, Zn Ka
        near = abs(centres - energy) < 150
        assert abs(centres[near][spectrum[near].argmax()] - energy) < 30
    assert spectrum[centres > 12_700].sum() < 1e-3 * spectrum.sum()
    assert spectrum[abs(centres - 12_000) < 100].sum() > spectrum[abs(centres - 10_500) < 100].sum()


def test_channels_have_their_own_gain():
    sample = flat(5000.0)
    counts = chain(sample, seed=9, channels=6).count(*exposures(500)[:2], 0.1, np.ones(500))
    per_channel = counts.mcaroi.sum(axis=(0, 2))
    assert per_channel.max() / per_channel.min() > 1.15
    other = chain(sample, seed=10, channels=6).count(*exposures(500)[:2], 0.1, np.ones(500))
    assert not np.allclose(per_channel, other.mcaroi.sum(axis=(0, 2)), rtol=0.02)


def test_live_time_corrects_for_dead_time():
    dwell = 0.2
    rates = {}
    for rate in (100.0, 200_000.0):
        counting = chain(flat(rate), seed=1, dead_time=5e-6)
        counts = counting.count(*exposures(300)[:2], dwell, np.ones(300))
        fraction = counts.live_time / dwell
        assert (fraction <= 1).all()
        assert (fraction.min() < 0.7) == (rate > 1000)
        corrected = (counts.mcaroi[..., 2] / counts.live_time).sum(axis=1).mean()
        expected = counting.response.window_rates(flat(rate).rate(0, 0))[2, 0]
        rates[rate] = corrected / expected
    # 300 exposures of 20 to 40 000 counts: 1.3 % and 0.1 % of standard error.
    assert rates[100.0] == pytest.approx(1, abs=0.06)
    assert rates[200_000.0] == pytest.approx(1, abs=0.005)


def test_lines_above_the_beam_energy_are_dark():
    sample = flat(elements=("Fe_K", "Pb_L"))
    response = build_response(sample.elements, incident_ev=12_000.0)
    assert not response.templates[1].any() and response.templates[0].any()
    assert build_response(sample.elements, incident_ev=16_000.0).templates[1].any()


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"elements": ["Fe_Q"]}, "Fe_Q"),
        ({"elements": ["Xy_K"]}, "no element 'Xy'"),
        ({"elements": ["Fe_K"], "bins": 100}, "not within"),
    ],
)
def test_unknown_lines_are_refused(kwargs, said):
    with pytest.raises(ValueError, match=said):
        build_response(**kwargs)


def test_seventeen_channels_are_refused():
    with pytest.raises(ValueError, match="1 to 16"):
        chain(flat(), channels=17)


def test_a_finer_longer_rescan_gives_better_data():
    sample = cells(0, pixel_size=0.1)
    spot = next(spot for spot in sample.inclusions if spot.element == "Fe_K")
    errors = []
    for step, dwell in ((1.0, 0.01), (0.25, 0.02)):
        axis = np.arange(-2, 2 + 1e-9, step)
        slow, fast = (grid.ravel() for grid in np.meshgrid(axis, axis, indexing="ij"))
        counting = chain(sample, seed=1)
        counts = counting.count(spot.slow + slow, spot.fast + fast, dwell, np.ones(slow.size))
        line = sample.elements.index("Fe_K")
        estimate = counts.mcaroi[..., line].sum(axis=1) / dwell
        fine = np.linspace(-2, 2, 81)
        nearest = abs(axis[:, None] - fine).argmin(axis=0)
        image = estimate.reshape(axis.size, -1)[np.ix_(nearest, nearest)]
        grid = np.meshgrid(spot.slow + fine, spot.fast + fine, indexing="ij")
        rates = sample.rate(*(part.ravel() for part in grid))
        truth = counting.response.window_rates(rates)[line].reshape(81, 81)
        errors.append(np.sqrt(np.mean((image - truth) ** 2)))
    assert errors[1] < 0.8 * errors[0]


def test_the_beam_drifts_slowly_and_fluctuates():
    beam = Beam(4, drift=0.1, fluctuation=0.01).row(60_000)
    assert beam.mean() == pytest.approx(1, abs=0.1)
    near, far = np.std(beam[1:] - beam[:-1]), np.std(beam[20_000:] - beam[:-20_000])
    assert near == pytest.approx(0.01 * np.sqrt(2), rel=0.1)
    assert far > 5 * near


def test_all_detectors_of_a_point_see_the_same_beam():
    beam = Beam(0)
    for first, second in (("xs", "sclr"), ("sclr", "xs"), ("sclr", "xs")):
        beam.begin()
        seen = []
        for _ in range(5):
            assert (value := beam.expose(first)) == beam.expose(second)
            seen.append(value)
        assert len(set(seen)) == 5


def test_counts_follow_the_monitor(tmp_path):
    beamline = sim_xrf(flat(200_000.0), tmp_path, time_scale=0, dwell=0.5, seed=2)
    ratio = []
    for _ in range(60):
        beamline.xs.trigger()
        beamline.sclr.trigger()
        reading = beamline.xs.read()
        counts = sum(
            reading[f"xs_channel{c:02d}_mcaroi03_total_rbv"]["value"]
            / reading[f"xs_channel{c:02d}_live_time"]["value"]
            for c in range(1, 5)
        )
        ratio.append((counts, beamline.sclr.read()["sclr_i0"]["value"]))
    counts, monitor = np.array(ratio).T
    assert np.corrcoef(counts, monitor)[0, 1] > 0.8
    # Statistics alone: sqrt(1 / 1e5 + 1 / 1e6).
    assert np.std(counts / monitor) / np.mean(counts / monitor) < 0.006


@pytest.mark.parametrize("snake", [False, True])
@pytest.mark.parametrize("spectra", [0, 1])
def test_step_run_has_the_documented_keys(tmp_path, run_engine, documents, snake, spectra):
    beamline = sim_xrf(flat(), tmp_path, time_scale=0, channels=2, bins=1024, energy_per_bin=16)
    beamline.xs.spectra.put(spectra)
    run_engine(
        step_raster(
            beamline.xs,
            beamline.sclr,
            *(beamline.sample_y, -1.0, 1.0, 3, beamline.sample_x, 5.0, 8.0, 4),
            dwell=0.03,
            snake=snake,
            md={"purpose": "survey", "sample": {"name": "flat"}},
        )
    )
    found, _ = documents
    start = found[0][1]
    assert start["shape"] == (3, 4) or start["shape"] == [3, 4]
    assert [list(extent) for extent in start["extents"]] == [[-1.0, 1.0], [5.0, 8.0]]
    assert list(start["snaking"]) == [False, snake]
    assert list(start["motors"]) == ["sample_y", "sample_x"]
    assert start["scan"] == {"type": "XRF_STEP", "energy": 12.0, "dwell": 0.03}
    assert [list(axis[0]) for axis in start["hints"]["dimensions"]] == [["sample_y"], ["sample_x"]]
    descriptor = next(doc for name, doc in found if name == "descriptor")
    assert descriptor["data_keys"]["sample_x"]["units"] == "um"
    data = descriptor["configuration"]["xs"]["data"]
    assert data["xs_mcaroi02_name"] == "Fe_K"
    assert data["xs_mcaroi02_low_ev"] < 6400 < data["xs_mcaroi02_high_ev"]
    assert (data["xs_energy_per_bin"], data["xs_dwell"]) == (16.0, 0.03)
    layout = layout_of(descriptor)
    assert (layout.way, layout.elements, layout.channels) == ("step", ELEMENTS, (1, 2))
    events = [doc for name, doc in found if name == "event"]
    assert len(events) == 12
    x = np.array([event["data"]["sample_x"] for event in events]).reshape(3, 4)
    expected = np.tile(np.linspace(5, 8, 4), (3, 1))
    if snake:
        expected[1] = expected[1, ::-1]
    np.testing.assert_allclose(x, expected)
    assert ("xs_channel02_fluor" in events[0]["data"]) == bool(spectra)
    if spectra:
        assert events[0]["data"]["xs_channel02_fluor"].dtype == np.uint32
        assert events[0]["data"]["xs_channel02_fluor"].shape == (1024,)


@pytest.mark.parametrize("snake", [False, True])
def test_fly_run_writes_every_pixel_and_announces_rows(tmp_path, run_engine, documents, snake):
    # Fe rises along x: the order of pixels shows in the counts.
    maps = np.zeros((1, 40, 40), np.float32)
    maps[0] = np.linspace(0, 80_000, 40)
    sample = XRFSample("ramp", ("Fe_K",), maps, 0.5, (-9.75, -9.75))
    beamline = sim_xrf(sample, tmp_path, time_scale=0, channels=3, bins=1024, energy_per_bin=16)
    beamline.xs_fly.spectra.put(1)
    run_engine(
        fly_raster(
            beamline.xs_fly,
            *(beamline.sample_y, -4.0, 4.0, 3, beamline.sample_x, -8.0, 8.0, 9),
            dwell=0.1,
            snake=snake,
            md={"purpose": "fine", "parent_uid": "abc", "rescan_proposal": "p", "region": 0},
        )
    )
    found, _ = documents
    start = found[0][1]
    assert (start["shape"], start["snaking"]) == ([3, 9], [False, snake])
    assert start["scan"] == {"type": "XRF_FLY", "energy": 12.0, "dwell": 0.1}
    assert start["parent_uid"] == "abc"
    descriptor = next(doc for name, doc in found if name == "descriptor")
    layout = layout_of(descriptor)
    assert (layout.way, layout.channels) == ("fly", (1, 2, 3))
    data = [doc for name, doc in found if name == "stream_datum"]
    keys = {"xs_fluor", "xs_mcaroi", "xs_live_time", "sclr_i0", "sample_x", "sample_y"}
    assert set(descriptor["data_keys"]) == keys
    assert len(data) == 3 * len(keys)
    assert not any(name in ("event", "event_page") for name, _ in found)
    assert sorted({(d["indices"]["start"], d["indices"]["stop"]) for d in data}) == [
        (0, 9),
        (9, 18),
        (18, 27),
    ]
    values = datasets(found)
    assert {key: (v.shape, v.dtype.str) for key, v in values.items()} == {
        "xs_fluor": ((27, 3, 1024), "<u2"),
        "xs_mcaroi": ((27, 3, 1), "<u4"),
        "xs_live_time": ((27, 3), "<f8"),
        "sclr_i0": ((27,), "<f8"),
        "sample_x": ((27,), "<f8"),
        "sample_y": ((27,), "<f8"),
    }
    x = values["sample_x"].reshape(3, 9)
    np.testing.assert_allclose(values["sample_y"], np.repeat([-4.0, 0.0, 4.0], 9))
    assert (np.diff(x[0]) > 0).all() and ((np.diff(x[1]) < 0).all() == snake)
    fe = values["xs_mcaroi"].sum(axis=(1, 2)).reshape(3, 9)
    for row in range(3):
        assert np.corrcoef(fe[row], x[row])[0, 1] > 0.99


def test_same_seed_same_counts(tmp_path, run_engine, documents):
    found, _ = documents
    runs = []
    for seed in (5, 5, 6):
        found.clear()
        beamline = sim_xrf(flat(), tmp_path, time_scale=0, seed=seed, bins=1024, energy_per_bin=16)
        plan = fly_raster(
            beamline.xs_fly, *(beamline.sample_y, 0, 1, 2, beamline.sample_x, 0, 1, 5), dwell=0.05
        )
        run_engine(plan)
        runs.append(datasets(found))
    for key, values in runs[0].items():
        np.testing.assert_array_equal(values, runs[1][key])
    assert not np.array_equal(runs[0]["xs_mcaroi"], runs[2]["xs_mcaroi"])


def _after_row(run_engine, row, action):
    """Call ``action`` once, when a row has been announced."""
    seen = threading.Event()

    def watch(name, doc):
        if name == "stream_datum" and doc["indices"]["stop"] >= 5 * row and not seen.is_set():
            seen.set()
            # Not in the RunEngine's own thread.
            threading.Thread(target=action, name="ophyd-test").start()

    return run_engine.subscribe(watch)


def test_abort_in_flight_closes_the_run_and_the_file(tmp_path, run_engine, documents):
    beamline = sim_xrf(flat(), tmp_path, time_scale=1, bins=1024, energy_per_bin=16)
    # Rows of 0.25 s: the third is in flight when the pause comes.
    plan = fly_raster(
        beamline.xs_fly, *(beamline.sample_y, 0, 9, 200, beamline.sample_x, 0, 1, 5), dwell=0.05
    )
    token = _after_row(run_engine, 2, run_engine.request_pause)
    with pytest.raises(RunEngineInterrupted):
        run_engine(plan)
    run_engine.abort("enough")
    run_engine.unsubscribe(token)
    found, _ = documents
    name, stop = found[-1]
    assert (name, stop["exit_status"]) == ("stop", "abort")
    values = datasets(found)
    announced = max(doc["indices"]["stop"] for name, doc in found if name == "stream_datum")
    assert announced >= 10
    assert all(len(v) >= announced for v in values.values())
    # The device is as new: the next run begins at row 0.
    found.clear()
    run_engine(
        fly_raster(
            beamline.xs_fly, *(beamline.sample_y, 0, 1, 2, beamline.sample_x, 0, 1, 5), dwell=0.001
        )
    )
    assert len(datasets(found)["sample_x"]) == 10


def test_pause_and_resume_in_flight_takes_every_row_once(tmp_path, run_engine, documents):
    beamline = sim_xrf(flat(), tmp_path, time_scale=1, bins=1024, energy_per_bin=16)
    plan = fly_raster(
        beamline.xs_fly, *(beamline.sample_y, 0, 9, 6, beamline.sample_x, 0, 4, 5), dwell=0.03
    )
    _after_row(run_engine, 2, run_engine.request_pause)
    with pytest.raises(RunEngineInterrupted):
        run_engine(plan)
    run_engine.resume()
    found, _ = documents
    assert found[-1][1]["exit_status"] == "success"
    values = datasets(found)
    assert len(values["sample_y"]) == 30
    np.testing.assert_allclose(values["sample_y"], np.repeat(np.linspace(0, 9, 6), 5))
    indices = sorted(
        (doc["indices"]["start"], doc["indices"]["stop"])
        for name, doc in found
        if name == "stream_datum"
    )
    assert indices[0][0] == 0 and indices[-1][1] == 30
    assert sum(stop - start for start, stop in indices) == 30 * len(values)


def test_plans_refuse_before_anything_moves(tmp_path, run_engine, documents):
    beamline = sim_xrf(flat(), tmp_path, time_scale=0, limits=10, bins=1024, energy_per_bin=16)
    outside = (beamline.sample_y, 0, 11, 2, beamline.sample_x, 0, 1, 5)
    with pytest.raises(LimitError, match="11"):
        run_engine(fly_raster(beamline.xs_fly, *outside, dwell=0.1))
    with pytest.raises(LimitError, match="11"):
        run_engine(step_raster(beamline.xs, beamline.sclr, *outside, dwell=0.1))
    none = (beamline.sample_y, 0, 1, 0, beamline.sample_x, 0, 1, 5)
    with pytest.raises(ValueError, match="at least 1 x 1"):
        run_engine(fly_raster(beamline.xs_fly, *none, dwell=0.1))
    assert not documents[0]
    with pytest.raises(LimitError):
        beamline.sample_x.set(10.5)


def test_no_sample_can_be_reached_from_devices_or_documents(tmp_path):
    beamline = sim_xrf(cells(0, pixel_size=0.4), tmp_path, time_scale=0)
    for device in (beamline.xs, beamline.xs_fly, beamline.sclr):
        public = {name: getattr(device, name) for name in dir(device) if not name.startswith("_")}
        assert not any(isinstance(value, XRFSample | CountingChain) for value in public.values())


def test_a_file_that_cannot_be_written_is_an_error_before_the_run(tmp_path, run_engine, documents):
    (tmp_path / "data").write_text("a file where a folder should be")
    beamline = sim_xrf(flat(), tmp_path / "data", time_scale=0, bins=1024, energy_per_bin=16)
    with pytest.raises(OSError):
        run_engine(
            fly_raster(
                beamline.xs_fly, *(beamline.sample_y, 0, 1, 2, beamline.sample_x, 0, 1, 5), dwell=1
            )
        )
    assert not documents[0]


@pytest.mark.parametrize("shut", ["shutter", "ring_current"])
def test_without_light_no_detector_counts(tmp_path, shut):
    beamline = sim_xrf(flat(200_000.0), tmp_path, time_scale=0, dwell=0.5, scatter_rate=0.0)
    getattr(beamline, shut).put(0)
    beamline.xs.trigger()
    beamline.sclr.trigger()
    reading = beamline.xs.read()
    assert all(one["value"] == 0 for key, one in reading.items() if key.endswith("total_rbv"))
    assert beamline.sclr.read()["sclr_i0"]["value"] == 0
    getattr(beamline, shut).put(1 if shut == "shutter" else 200.0)
    beamline.xs.trigger()
    beamline.sclr.trigger()
    nominal = 2e6 * 0.5 * (1 if shut == "shutter" else 0.5)
    assert beamline.sclr.read()["sclr_i0"]["value"] == pytest.approx(nominal, rel=0.2)


def test_detectors_of_a_point_see_the_same_light():
    shutter = Signal(name="shutter", value=1)
    beam = Beam(0, light=Light(shutter, Signal(name="ring_current", value=400.0)))
    first = beam.expose("xs")
    shutter.put(0)
    assert beam.expose("sclr") == first > 0
    assert beam.expose("xs") == 0 == beam.expose("sclr")


def _in_flight(beamline, run_engine, row, then):
    """Lose the light while a row is in flight; call ``then`` at every later message."""
    flights = []

    def watch(message):
        if message.command == "kickoff":
            flights.append(message)
        elif message.command == "set" and message.obj is beamline.sample_x and len(flights) == row:
            flights.append(message)
            beamline.shutter.put(0)
            return
        if len(flights) > row:
            then(message)

    run_engine.msg_hook = watch


def test_a_row_in_flight_without_light_is_dark(tmp_path, run_engine, documents):
    beamline = sim_xrf(flat(), tmp_path, time_scale=1, bins=1024, energy_per_bin=16)

    def back(message):
        if message.command == "kickoff":
            beamline.shutter.put(1)

    _in_flight(beamline, run_engine, 2, back)
    raster = (beamline.sample_y, 0, 3, 4, beamline.sample_x, 0, 9, 10)
    run_engine(fly_raster(beamline.xs_fly, *raster, dwell=0.01))
    dark = datasets(documents[0])["sclr_i0"].reshape(4, 10) == 0
    assert dark.any(axis=1).tolist() == [False, True, False, False] and dark[1, 5:].all()


def test_a_row_that_lost_its_light_is_flown_again_after_a_suspension(
    tmp_path, run_engine, documents
):
    beamline = sim_xrf(flat(), tmp_path, time_scale=1, bins=1024, energy_per_bin=16)
    suspender = SuspendBoolLow(beamline.shutter)

    def back(message):
        if message.command == "wait_for":
            beamline.shutter.put(1)

    _in_flight(beamline, run_engine, 1, back)
    raster = (beamline.sample_y, 0, 1, 2, beamline.sample_x, 0, 9, 10)
    # Rows of 0.5 s: far longer than the suspender takes.
    run_engine(bpp.suspend_wrapper(fly_raster(beamline.xs_fly, *raster, dwell=0.05), [suspender]))
    values = datasets(documents[0])
    assert documents[0][-1][1]["exit_status"] == "success" and len(values["sclr_i0"]) == 20
    assert (values["sclr_i0"] > 0).all()
    np.testing.assert_allclose(values["sample_y"], np.repeat([0.0, 1.0], 10))


def test_a_sample_slips_after_the_first_run_or_creeps_with_time():
    slips, creeps = StageDrift.parse("0.6 um", seed=3), StageDrift.parse("36um/h", seed=3)
    for drift in (slips, creeps):
        drift.begin_run()
        assert np.hypot(*drift.offset) == 0
        drift.pass_time(50.0)
    assert slips.offset == (0.0, 0.0) and np.hypot(*creeps.offset) == pytest.approx(0.5)
    slips.begin_run()
    assert np.hypot(*slips.offset) == pytest.approx(0.6)
    assert StageDrift.parse("0.6 um", seed=4).offset == (0.0, 0.0) == StageDrift.parse("", 0).offset
    for wrong in ("0.6", "1 nm", "-1 um", "um"):
        with pytest.raises(ValueError, match="expected a length"):
            StageDrift.parse(wrong, 0)
    with pytest.raises(ValueError, match="INSCAN_SIM_DRIFT='far'"):
        Parameters.read({"INSCAN_SIM_DRIFT": "far"})


def test_detectors_see_the_sample_where_it_has_slipped_to(tmp_path, run_engine, documents):
    maps = np.zeros((1, 80, 80), np.float32)
    maps[0, 40, 40] = 1e6
    sample = XRFSample("grain", ("Fe_K",), maps, 0.25, (-10.0, -10.0))
    drift = StageDrift(slip=2.0, seed=1)
    beamline = sim_xrf(
        sample, tmp_path, time_scale=0, bins=1024, energy_per_bin=16, scatter_rate=0, drift=drift
    )
    found, _ = documents
    centres = []
    for _ in range(2):
        found.clear()
        raster = (beamline.sample_y, -3, 3, 25, beamline.sample_x, -3, 3, 25)
        run_engine(fly_raster(beamline.xs_fly, *raster, dwell=0.1))
        values = datasets(found)
        iron = values["xs_mcaroi"].sum(axis=(1, 2)).astype(float)
        centres.append(
            [np.average(values[motor], weights=iron) for motor in ("sample_y", "sample_x")]
        )
    assert np.subtract(centres[1], centres[0]) == pytest.approx(drift.offset, abs=0.1)
    assert np.hypot(*drift.offset) == pytest.approx(2.0)


@pytest.mark.parametrize("snake", [False, True])
def test_the_fast_motor_runs_up_and_the_slow_one_comes_from_one_side(tmp_path, run_engine, snake):
    beamline = sim_xrf(flat(), tmp_path, time_scale=0, limits=10, bins=1024, energy_per_bin=16)
    went = {"sample_x": [], "sample_y": []}

    def watch(message):
        if message.command == "set" and message.obj.name in went:
            went[message.obj.name].append(message.args[0])

    run_engine.msg_hook = watch
    raster = (beamline.sample_y, 1, 2, 2, beamline.sample_x, -3, 3, 7)
    plan = fly_raster(beamline.xs_fly, *raster, dwell=0.01, snake=snake, run_up=2.0, backlash=0.5)
    run_engine(plan)
    assert went["sample_y"] == [0.5, 1.0, 2.0]
    assert went["sample_x"] == [-5.0, 5.0, *((5.0, -5.0) if snake else (-5.0, 5.0))]
    too_far: tuple[dict[str, Any], ...] = ({"run_up": 7.5}, {"backlash": 12.0})
    for beyond in too_far:
        with pytest.raises(LimitError):
            run_engine(fly_raster(beamline.xs_fly, *raster, dwell=0.01, **beyond))


def test_parameters_come_from_the_environment(tmp_path):
    parameters = Parameters.read(
        {"INSCAN_SIM_CHANNELS": "7", "INSCAN_STATE": str(tmp_path), "INSCAN_SIM_SPECTRA": "1"}
    )
    assert (parameters.channels, parameters.spectra, parameters.dwell) == (7, True, 0.02)
    assert parameters.data_dir == tmp_path / "data"
    with pytest.raises(ValueError, match="INSCAN_SIM_CHANNELS='many'"):
        Parameters.read({"INSCAN_SIM_CHANNELS": "many"})
    with pytest.raises(ValueError, match="INSCAN_SIM_CHANNELS=20: expected 1 to 16"):
        Parameters.read({"INSCAN_SIM_CHANNELS": "20"})
