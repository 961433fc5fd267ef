"""A map is the same however its documents arrive, and says what is missing or wrong in it."""

import copy
import json
import random
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from event_model import RunRouter, compose_run, pack_event_page
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inscan.callbacks.assembly import NotUnderstood, open_assembler
from inscan.callbacks.geometry import ScanGeometry
from inscan.callbacks.profile import BeamlineProfile, load_profile

ELEMENTS = ("Ca_K", "Fe_K", "Zn_K")
BINS = 1024
PROFILE = load_profile("sim_xrf")


def from_spectra(**elements) -> BeamlineProfile:
    content = PROFILE.model_dump(mode="json")
    content["xrf"]["elements"] |= {"source": "spectrum", "lines": list(ELEMENTS)} | elements
    return BeamlineProfile.model_validate(content)


def with_cube(**cube) -> BeamlineProfile:
    content = from_spectra().model_dump(mode="json")
    content["xrf"]["cube"] = cube
    content["method"] = {"name": "spectral", "snapshot_rows": 8}
    return BeamlineProfile.model_validate(content)


def start_md(rows, cols, snaking, **extra):
    return {
        "beamline_id": "sim_xrf",
        "shape": [rows, cols],
        "extents": [[0.0, 2.0 * max(rows - 1, 1)], [10.0, 10.0 + 2.0 * max(cols - 1, 1)]],
        "snaking": [False, snaking],
        "motors": ["sample_y", "sample_x"],
        "scan": {"type": "XRF_STEP", "energy": 12.0, "dwell": 0.1},
        "sample": {"name": "test"},
        "scan_id": 7,
        "data_session": "pass-1",
        "tiled_access_tags": ["group-1"],
        "purpose": "survey",
        **extra,
    }


def configuration(elements=ELEMENTS):
    data = {"xs_energy_per_bin": 10.0, "xs_energy_offset": 0.0, "xs_dwell": 0.1}
    for number, name in enumerate(elements, start=1):
        data[f"xs_mcaroi{number:02d}_name"] = name
    keys = {key: {"dtype": "string", "shape": [], "source": "sim"} for key in data}
    return {"xs": {"data": data, "timestamps": dict.fromkeys(data, 0.0), "data_keys": keys}}


def step_keys(channels, elements, units="um", spectra=False):
    number = {"dtype": "number", "shape": [], "source": "sim"}
    keys = {"sclr_i0": number, "sample_x": number | {"units": units}}
    keys["sample_y"] = number | {"units": "um"}
    for c in range(1, channels + 1):
        keys[f"xs_channel{c:02d}_live_time"] = number
        for m in range(1, elements + 1):
            keys[f"xs_channel{c:02d}_mcaroi{m:02d}_total_rbv"] = number
        if spectra:
            keys[f"xs_channel{c:02d}_fluor"] = {"dtype": "array", "shape": [BINS], "source": "sim"}
    return keys


class StepRun:
    """Documents of a step scan with recognisable counts."""

    def __init__(
        self,
        rows=3,
        cols=4,
        *,
        snaking=True,
        channels=2,
        units="um",
        elements=ELEMENTS,
        spectra=False,
        **md,
    ):
        self.rng = np.random.default_rng(rows * 100 + cols)
        self.bundle: Any = compose_run(metadata=start_md(rows, cols, snaking, **md))
        self.start: dict[str, Any] = self.bundle.start_doc
        self.geometry = ScanGeometry.from_start(self.start)
        self.stream = self.bundle.compose_descriptor(
            name="primary",
            data_keys=step_keys(channels, len(elements), units, spectra),
            configuration=configuration(elements),
        )
        self.descriptor = self.stream.descriptor_doc
        size, n = rows * cols, len(elements)
        self.counts = self.rng.poisson(20, (channels, n, size)).astype(np.float64)
        self.live = self.rng.uniform(0.05, 0.1, (channels, size)).astype(np.float32)
        self.i0 = self.rng.uniform(900, 1100, size)
        self.spectra = (
            self.rng.poisson(3, (channels, BINS, size)).astype(np.uint32) if spectra else None
        )
        self.units = units
        self.events = [self._event(seq) for seq in range(1, size + 1)]

    def _event(self, seq) -> Any:
        row, col = self.geometry.pixel_of(seq)
        slow, fast = self.geometry.position_of(row, col)
        pixel = row * self.geometry.shape[1] + col
        data: dict[str, Any] = {
            "sample_y": slow,
            "sample_x": fast * (1e-3 if self.units == "mm" else 1),
        }
        data["sclr_i0"] = self.i0[pixel]
        for c in range(len(self.counts)):
            data[f"xs_channel{c + 1:02d}_live_time"] = float(self.live[c, pixel])
            for m in range(self.counts.shape[1]):
                key = f"xs_channel{c + 1:02d}_mcaroi{m + 1:02d}_total_rbv"
                data[key] = self.counts[c, m, pixel]
            if self.spectra is not None:
                data[f"xs_channel{c + 1:02d}_fluor"] = self.spectra[c, :, pixel]
        return {
            "uid": f"{self.start['uid']}-{seq}",
            "descriptor": self.descriptor["uid"],
            "seq_num": seq,
            "time": 1000.0 + seq,
            "data": data,
            "timestamps": dict.fromkeys(data, 0.0),
            "filled": {},
        }

    def stop(self, exit_status="success", reason=""):
        return {
            "uid": "stop",
            "run_start": self.start["uid"],
            "time": 0.0,
            "exit_status": exit_status,
            "reason": reason,
            "num_events": {"primary": len(self.events)},
        }

    def open(self, profile=PROFILE, **options):
        return open_assembler(self.start, [profile], **options)

    def assemble(self, documents=None, profile=PROFILE, stop=None, **options):
        assembler = self.open(profile, **options)
        updates = assembler("descriptor", self.descriptor)
        for name, doc in documents if documents is not None else events(self):
            updates += assembler(name, doc)
        updates += assembler("stop", stop or self.stop())
        return updates


def events(run):
    return [("event", doc) for doc in run.events]


def final(updates):
    assert updates[-1].kind == "final", updates[-1].meta
    json.dumps(updates[-1].meta, allow_nan=False)
    return updates[-1]


def same(one, other):
    assert one.arrays.keys() == other.arrays.keys()
    for name, array in one.arrays.items():
        assert array.tobytes() == other.arrays[name].tobytes(), name


def changed(doc, **data):
    return doc | {"data": doc["data"] | data}


@pytest.mark.parametrize("snaking", [True, False])
def test_every_pixel_is_where_it_was_measured(snaking):
    run = StepRun(snaking=snaking)
    update = final(run.assemble())
    arrays, meta = update.arrays, update.meta
    np.testing.assert_array_equal(arrays["counts"].reshape(2, 3, -1), run.counts)
    np.testing.assert_array_equal(arrays["position"], run.geometry.positions())
    assert arrays["measured"].all()
    reference = np.median(run.i0)
    np.testing.assert_allclose(
        arrays["exposure"].reshape(2, -1), run.live * run.i0 / reference, rtol=1e-6
    )
    assert meta["i0_reference"] == reference
    assert meta["elements"] == list(ELEMENTS)
    assert (meta["complete"], meta["exit_status"], meta["rows_done"]) == (True, "success", 3)
    assert meta["quantity"] == "window sums, not concentrations"
    assert (meta["data_session"], meta["tiled_access_tags"]) == ("pass-1", ["group-1"])
    assert meta["warnings"] == []
    rules = load_profile("sim_xrf").rescan
    assert meta["rescan"] == {
        "targets": list(rules.targets),
        "elements": list(rules.elements),
        "together": [],
        "scale": rules.scale,
        "max_regions": rules.max_regions,
        "min_score": rules.min_score,
        "precision": {},
        "energies": None,
    }
    assert [array.dtype for array in arrays.values()] == [
        np.float32, np.float32, np.dtype(bool), np.float64
    ]  # fmt: skip


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(st.randoms(use_true_random=False), st.booleans(), st.booleans())
def test_live_is_offline_whatever_the_order(order: random.Random, snaking, spectra):
    run = StepRun(3, 4, snaking=snaking, spectra=spectra)
    profile = from_spectra() if spectra else PROFILE
    offline = final(run.assemble(profile=profile))

    shuffled = run.events + order.sample(run.events, 5)
    order.shuffle(shuffled)
    documents, rest = [], shuffled
    while rest:
        n = order.randint(1, 4)
        part, rest = rest[:n], rest[n:]
        if order.random() < 0.5:
            documents.append(("event_page", pack_event_page(*part)))
        else:
            documents += [("event", doc) for doc in part]
    documents.insert(order.randint(0, len(documents)), ("descriptor", run.descriptor))
    assembler = run.open(profile)
    updates = []
    for name, doc in [*documents, ("stop", run.stop())]:
        updates += assembler(name, doc)
    live = final(updates)
    same(live, offline)
    assert live.meta == offline.meta


def test_a_pixel_measured_again_is_the_one_taken_last_in_any_order():
    run = StepRun()
    key = "xs_channel01_mcaroi01_total_rbv"
    again = changed(run.events[4], **{key: 77.0}) | {"time": 5000.0, "uid": "again"}
    first = final(run.assemble([*events(run), ("event", again)]))
    second = final(run.assemble([("event", again), *events(run)]))
    same(first, second)
    assert first.arrays["counts"][0, 0][run.geometry.pixel_of(5)] == 77.0


@pytest.mark.parametrize("bad", [float("nan"), -1.0, float("inf")])
def test_bad_counts_are_masked_and_said(bad):
    run = StepRun()
    key = "xs_channel02_mcaroi03_total_rbv"
    run.events[4] = changed(run.events[4], **{key: bad})
    update = final(run.assemble())
    row, col = run.geometry.pixel_of(5)
    # The other channel did measure; this one has neither counts nor exposure.
    assert update.arrays["exposure"][0, row, col] > 0
    assert update.arrays["exposure"][1, row, col] == 0
    assert (update.arrays["counts"][1, :, row, col] == 0).all()
    assert update.arrays["measured"][row, col]
    assert np.isfinite(update.arrays["counts"]).all()
    assert any("negative or not finite" in line for line in update.meta["warnings"])


def test_bad_in_every_channel_is_not_measured():
    run = StepRun()
    keys = [f"xs_channel{c:02d}_mcaroi01_total_rbv" for c in (1, 2)]
    run.events[4] = changed(run.events[4], **dict.fromkeys(keys, float("nan")))
    update = final(run.assemble())
    row, col = run.geometry.pixel_of(5)
    assert not update.arrays["measured"][row, col]
    assert (update.arrays["counts"][:, :, row, col] == 0).all()
    assert np.isnan(update.arrays["position"][:, row, col]).all()
    assert update.arrays["measured"].sum() == 11
    assert not update.meta["complete"]
    assert update.meta["rows_done"] == 2


@pytest.mark.parametrize("i0", [0.0, -3.0, float("nan")])
def test_no_beam_is_not_measured(i0):
    run = StepRun()
    run.events[0] = changed(run.events[0], sclr_i0=i0)
    update = final(run.assemble())
    assert update.arrays["measured"].sum() == 11
    assert any("without beam" in line for line in update.meta["warnings"])


def test_a_dead_channel_does_not_cost_the_map():
    run = StepRun()
    run.events = [changed(doc, xs_channel02_live_time=0.0) for doc in run.events]
    update = final(run.assemble())
    assert update.arrays["measured"].all()
    assert (update.arrays["exposure"][1] == 0).all()
    assert (update.arrays["counts"][1] == 0).all()


def test_missing_events_are_masked():
    run = StepRun(4, 4)
    update = final(run.assemble([d for i, d in enumerate(events(run)) if i not in (2, 3, 9)]))
    assert update.arrays["measured"].sum() == 13
    assert (update.meta["complete"], update.meta["rows_done"]) == (False, 2)
    assert (update.arrays["exposure"][:, ~update.arrays["measured"]] == 0).all()


@pytest.mark.parametrize("status", ["abort", "fail"])
def test_an_aborted_run_ends_with_what_it_has(status):
    run = StepRun()
    update = final(run.assemble(events(run)[:6], stop=run.stop(status, "beam lost")))
    assert update.arrays["measured"].sum() == 6
    assert update.meta["exit_status"] == status
    assert update.meta["reason"] == "beam lost"
    assert not update.meta["complete"]


def test_a_run_without_stop_can_be_ended():
    run = StepRun()
    assembler = run.open()
    assembler("descriptor", run.descriptor)
    for name, doc in events(run):
        assembler(name, doc)
    (update,) = assembler.finish("no document for 60 s")
    assert final([update]).meta["exit_status"] == "incomplete"
    assert not update.meta["complete"]
    assert assembler.finish("again") == []


def test_documents_after_stop_change_nothing():
    run = StepRun()
    assembler = run.open()
    assembler("descriptor", run.descriptor)
    for name, doc in events(run)[:-1]:
        assembler(name, doc)
    (update,) = assembler("stop", run.stop())
    before = {name: array.tobytes() for name, array in update.arrays.items()}
    assert assembler("event", run.events[-1]) == []
    assert assembler("stop", run.stop()) == []
    assert assembler.late_documents == 2
    assert {name: array.tobytes() for name, array in update.arrays.items()} == before


@pytest.mark.parametrize("documents", [0, 1])
def test_a_run_that_ends_before_its_first_pixel_is_rejected(documents):
    run = StepRun()
    assembler = run.open()
    if documents:
        assembler("descriptor", run.descriptor)
    (update,) = assembler("stop", run.stop("abort", "user"))
    assert update.kind == "rejected"
    assert update.arrays == {}
    assert "user" in update.meta["reason"]


def test_more_events_than_the_shape_has():
    run = StepRun()
    extra = run.events[0] | {"seq_num": 13}
    update = final(run.assemble([*events(run), ("event", extra)]))
    assert update.arrays["measured"].all()
    assert any("beyond the shape" in line for line in update.meta["warnings"])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda doc: doc | {"seq_num": 0},
        lambda doc: doc | {"seq_num": "five"},
        lambda doc: doc | {"data": {}},
        lambda doc: {key: value for key, value in doc.items() if key != "data"},
        lambda doc: changed(doc, xs_channel01_live_time="long"),
        lambda doc: changed(doc, xs_channel01_mcaroi01_total_rbv=[1.0, 2.0]),
        lambda doc: changed(doc, sclr_i0="bright"),
    ],
)
def test_a_malformed_event_is_left_out_and_the_rest_stays(spoil):
    run = StepRun()
    run.events[4] = spoil(run.events[4])
    update = final(run.assemble())
    assert update.arrays["measured"].sum() == 11
    assert len(update.meta["warnings"]) == 1
    assert "left out" in update.meta["warnings"][0]


def test_a_malformed_page_does_not_take_the_others_with_it():
    run = StepRun()
    page = pack_event_page(*run.events[:6])
    page["data"]["sclr_i0"] = page["data"]["sclr_i0"][:3]
    update = final(run.assemble([("event_page", page), *events(run)[6:]]))
    assert update.arrays["measured"].sum() >= 6
    assert update.meta["warnings"]


def test_spectra_of_another_shape_than_declared_are_masked():
    run = StepRun(spectra=True)
    run.events[3] = changed(run.events[3], xs_channel01_fluor=np.zeros(25, np.uint32))
    update = final(run.assemble(profile=from_spectra()))
    assert update.arrays["measured"].sum() == 11
    assert "(25,)" in update.meta["warnings"][0]


def test_other_dtypes_give_the_same_map():
    run = StepRun(spectra=True)
    reference = final(run.assemble(profile=from_spectra()))
    run.events[2:] = [
        changed(
            doc,
            xs_channel01_fluor=doc["data"]["xs_channel01_fluor"].astype(np.float32),
            xs_channel02_fluor=doc["data"]["xs_channel02_fluor"].tolist(),
        )
        for doc in run.events[2:]
    ]
    same(final(run.assemble(profile=from_spectra())), reference)


def test_a_descriptor_that_is_emitted_again_goes_on_with_the_map():
    run = StepRun()
    again = run.descriptor | {"uid": "second"}
    documents = events(run)[:6] + [("descriptor", again), ("descriptor", run.descriptor)]
    documents += [("event", doc | {"descriptor": "second"}) for doc in run.events[6:]]
    update = final(run.assemble(documents))
    same(update, final(run.assemble()))
    assert update.meta["warnings"] == []


def test_a_descriptor_with_other_elements_does_not_mix_into_the_map():
    run = StepRun()
    other = run.descriptor | {
        "uid": "second",
        "configuration": configuration(("Ca_K", "Mn_K", "Zn_K")),
    }
    documents = events(run)[:6] + [("descriptor", other)]
    documents += [("event", doc | {"descriptor": "second"}) for doc in run.events[6:]]
    update = final(run.assemble(documents))
    assert update.arrays["measured"].sum() == 6
    assert any("other channels or elements" in line for line in update.meta["warnings"])


def test_other_streams_are_left_alone():
    run = StepRun()
    baseline = run.bundle.compose_descriptor(
        name="baseline", data_keys={"ring": {"dtype": "number", "shape": [], "source": "sim"}}
    )
    event = baseline.compose_event(data={"ring": 500.0}, timestamps={"ring": 0.0})
    documents = [("descriptor", baseline.descriptor_doc), ("event", event), *events(run)]
    update = final(run.assemble(documents))
    same(update, final(run.assemble()))
    assert update.meta["warnings"] == []


def test_interleaved_runs_do_not_mix():
    runs = [StepRun(3, 4), StepRun(2, 5, snaking=False), StepRun(1, 6)]
    found = {}

    def factory(name, start):
        assembler = open_assembler(start, [PROFILE])

        def route(name, doc):
            for update in assembler(name, doc):
                found[update.run_uid] = update

        return [route], []

    router = RunRouter([factory])
    for run in runs:
        router("start", run.start)
        router("descriptor", run.descriptor)
    for index in range(12):
        for run in runs:
            if index < len(run.events):
                router("event", run.events[index])
    for run in runs:
        router("stop", run.stop())
    for run in runs:
        same(found[run.start["uid"]], final(run.assemble()))


@pytest.mark.parametrize("shape", [(1, 6), (6, 1), (1, 1)])
def test_narrow_maps(shape):
    run = StepRun(*shape)
    update = final(run.assemble())
    assert update.arrays["counts"].shape == (2, 3, *shape)
    assert update.meta["complete"]
    assert update.meta["warnings"] == []


def test_readbacks_in_other_units_are_converted():
    run = StepRun(units="mm")
    # The scan's own numbers are in the unit of its motor, whatever the profile expects.
    update = final(run.assemble())
    assert update.meta["geometry"]["fast_units"] == "mm"
    assert update.meta["geometry"]["slow_units"] == "um"
    content = PROFILE.model_dump(mode="json")
    content["geometry"]["fast_readback"] = "encoder"
    run = StepRun()
    run.descriptor["data_keys"]["encoder"] = {
        "dtype": "number", "shape": [], "source": "sim", "units": "mm"
    }  # fmt: skip
    run.events = [changed(doc, encoder=doc["data"]["sample_x"] / 1000) for doc in run.events]
    update = final(run.assemble(profile=BeamlineProfile.model_validate(content)))
    np.testing.assert_allclose(update.arrays["position"], run.geometry.positions(), atol=1e-9)
    assert update.meta["warnings"] == []


def test_readbacks_off_by_more_than_half_a_step_are_said_and_kept():
    run = StepRun()
    run.events[5:] = [changed(d, sample_x=d["data"]["sample_x"] + 1.2) for d in run.events[5:]]
    run.events[0] = changed(run.events[0], sample_x=float("nan"))
    update = final(run.assemble())
    (line,) = update.meta["warnings"]
    assert "half a step" in line
    assert "[7 times]" in line
    off = update.arrays["position"][1] - run.geometry.positions()[1]
    assert np.isclose(off, 1.2).sum() == 7
    assert update.arrays["measured"].all()


def test_snapshots_come_every_few_rows_with_a_steady_scale():
    content = PROFILE.model_dump(mode="json")
    content["method"]["snapshot_rows"] = 2
    run = StepRun(7, 3)
    assembler = run.open(BeamlineProfile.model_validate(content))
    assembler("descriptor", run.descriptor)
    seen = []
    first = np.zeros(0)
    for seq, (name, doc) in enumerate(events(run), start=1):
        for update in assembler(name, doc):
            assert update.kind == "snapshot"
            seen.append((seq, update.meta["rows_done"], update.meta["i0_reference"]))
            assert update.arrays["measured"].sum() == seq
            exposure = update.arrays["exposure"][:, :2].copy()
            if len(seen) > 1:
                np.testing.assert_array_equal(exposure, first)
            first = exposure
    assert [(seq, rows) for seq, rows, _ in seen] == [(6, 2), (12, 4), (18, 6)]
    assert len({reference for _, _, reference in seen}) == 1
    (update,) = assembler("stop", run.stop())
    assert update.meta["i0_reference"] == np.median(run.i0)


def test_no_snapshots_when_none_are_wanted():
    content = PROFILE.model_dump(mode="json")
    content["method"]["snapshot_rows"] = 0
    assert [
        u.kind for u in StepRun(5, 3).assemble(profile=BeamlineProfile.model_validate(content))
    ] == ["final"]


def test_lines_above_the_incident_energy_are_refused():
    run = StepRun(elements=("Fe_K", "Pb_L", "Fx_K"))
    update = final(run.assemble())
    assert update.meta["elements"] == ["Fe_K"]
    np.testing.assert_array_equal(update.arrays["counts"].reshape(2, -1), run.counts[:, 0])
    assert "13035 eV is above the incident energy of 12000 eV" in update.meta["refused"]["Pb_L"]
    assert "did you mean" in update.meta["refused"]["Fx_K"]
    assert len(update.meta["warnings"]) == 2


def test_a_run_without_any_line_left_is_rejected():
    run = StepRun(elements=("Pb_L", "U_L", "Br_K"))
    (update,) = run.assemble(events(run)[:3])
    assert update.kind == "rejected"
    assert "no line is left" in update.meta["reason"]


def test_overlapping_lines_are_said():
    run = StepRun(elements=("Mn_K", "Fe_K", "As_K"))
    lines = final(run.assemble()).meta["warnings"]
    assert any(line.startswith("Mn Kb overlaps Fe Ka") for line in lines)


def test_selected_channels_and_lines():
    content = PROFILE.model_dump(mode="json")
    content["xrf"]["channels"] = [2]
    content["xrf"]["elements"]["lines"] = ["Zn_K", "Ca_K"]
    run = StepRun()
    update = final(run.assemble(profile=BeamlineProfile.model_validate(content)))
    assert (update.meta["channels"], update.meta["elements"]) == ([2], ["Zn_K", "Ca_K"])
    np.testing.assert_array_equal(update.arrays["counts"].reshape(1, 2, -1), run.counts[1:, [2, 0]])


def test_a_peak_on_a_slope_gives_its_background_and_its_scatter():
    run = StepRun(20, 20, channels=1, spectra=True)
    bins = np.arange(BINS)
    slope = 40.0 - 0.02 * bins
    peak = 2000 * np.exp(-0.5 * ((bins - 640.1) / 6.2) ** 2) / (6.2 * np.sqrt(2 * np.pi))
    rng = np.random.default_rng(0)
    run.spectra = rng.poisson((slope + peak)[None, :, None], (1, BINS, 400)).astype(np.uint32)
    run.events = [run._event(seq) for seq in range(1, 401)]
    update = final(run.assemble(profile=from_spectra()))
    counts, background, variance = (
        update.arrays[name][0, 1].ravel()
        for name in ("counts", "background", "background_variance")
    )
    low, high = update.meta["windows_ev"][1]
    inside = (bins * 10 >= low) & (bins * 10 < high)
    assert background.mean() == pytest.approx(slope[inside].sum(), rel=0.01)
    assert (counts - background).mean() == pytest.approx(peak[inside].sum(), rel=0.01)
    assert background.var() == pytest.approx(variance.mean(), rel=0.25)
    assert update.meta["source"] == "spectrum"


@pytest.mark.parametrize(("bins", "kept", "width"), [(1024, 901, 1), (256, 225, 4), (10, 9, 91)])
def test_spectra_are_kept_in_whole_bins_of_the_range(bins, kept, width):
    run = StepRun(3, 4, spectra=True)
    assert run.spectra is not None
    update = final(run.assemble(profile=with_cube(bins=bins, low_ev=1000, high_ev=10_000)))
    cube = update.arrays["cube"]
    assert (cube.shape, cube.dtype) == ((2, 3, 4, kept), np.float32)
    part = run.spectra[:, 100 : 100 + kept * width].reshape(2, kept, width, 12).sum(axis=2)
    np.testing.assert_array_equal(cube.reshape(2, 12, kept), part.transpose(0, 2, 1))
    energies = update.meta["bin_energies_ev"]
    assert energies[0] == 1000 + 5.0 * (width - 1) and np.allclose(np.diff(energies), 10 * width)


def test_the_kept_bins_add_up_to_the_lines():
    run = StepRun(3, 4, spectra=True)
    update = final(run.assemble(profile=with_cube(bins=1024)))
    lines = update.arrays["cube"] @ np.array(update.meta["line_weights"]).T
    net = update.arrays["counts"] - update.arrays["background"]
    np.testing.assert_allclose(lines.transpose(0, 3, 1, 2), net, rtol=1e-4, atol=1e-3)
    # Up to the incident energy, where the profile says nothing else.
    assert update.meta["bin_energies_ev"][-1] == 10 * (BINS - 1)


def test_spectra_of_bad_channels_are_not_kept():
    run = StepRun(2, 2, spectra=True)
    run.events[1] = changed(run.events[1], xs_channel02_live_time=0.0)
    cube = final(run.assemble(profile=with_cube())).arrays["cube"]
    (row, col), other = run.geometry.pixel_of(2), run.geometry.pixel_of(1)
    assert not cube[1, row, col].any() and cube[0, row, col].any() and cube[1, *other].any()


def test_spectra_that_are_too_large_are_refused_before_they_take_any_place():
    run = StepRun(3, 4, spectra=True)
    update = run.assemble(profile=with_cube(bins=64, max_bytes=1000))[-1]
    assert update.kind == "rejected" and "lower xrf.cube.bins" in update.meta["reason"]
    update = run.assemble(profile=with_cube(low_ev=90_000, high_ev=99_000))[-1]
    assert update.kind == "rejected" and "no bin between" in update.meta["reason"]


def test_a_profile_that_names_a_line_outside_the_spectrum():
    content = from_spectra().model_dump(mode="json")
    content["xrf"]["elements"]["lines"] = ["Zn_K"]
    content["xrf"]["elements"]["energy_per_bin_ev"] = 5.0
    run = StepRun(spectra=True)
    update = run.assemble([], profile=BeamlineProfile.model_validate(content))[-1]
    assert update.kind == "rejected"
    assert "outside the spectrum" in update.meta["reason"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"beamline_id": "other"}, "matches no profile"),
        ({"shape": None}, "'shape'"),
        ({"shape": [3]}, "two axes"),
        ({"shape": [3, 0]}, "each at least 1"),
        ({"extents": [[0, 1], [0]]}, "extents"),
        ({"extents": [[0, float("nan")], [0, 1]]}, "finite"),
        ({"extents": [[0, 1], [5, 5]]}, "all of them"),
        ({"uid": ""}, "uid"),
    ],
)
def test_a_start_document_that_cannot_be_used_says_why(change, said):
    start = StepRun().start | change
    with pytest.raises(NotUnderstood, match=said):
        open_assembler(start, [PROFILE])


def four_elements(order: list[str], **keys: Any) -> tuple[StepRun, BeamlineProfile]:
    """A step scan whose detector comes as one array of four elements, axes in this order."""
    run = StepRun(3, 4, channels=4, spectra=True)
    assert run.spectra is not None
    at = [["channel", "bin"].index(axis) for axis in order]
    data_keys = run.descriptor["data_keys"]
    for name in [key for key in data_keys if "channel" in key]:
        del data_keys[name]
    shape = [(4, BINS)[axis] for axis in at]
    data_keys["mca"] = {"dtype": "array", "shape": [1, *shape], "source": "sim"}
    data_keys["elapsed"] = {"dtype": "number", "shape": [], "source": "sim"}
    for seq, event in enumerate(run.events, start=1):
        row, col = run.geometry.pixel_of(seq)
        pixel = row * 4 + col
        data = {k: v for k, v in event["data"].items() if "channel" not in k}
        data["mca"] = run.spectra[:, :, pixel].transpose(at)
        data["elapsed"] = 1000 * float(run.live[0, pixel])
        event["data"] = data
    content = from_spectra().model_dump(mode="json")
    content["xrf"]["step"] |= {"spectrum": ["fluor", "mca"], "axes": {"spectrum": order}}
    content["xrf"]["step"] |= {"live_time": ["mca_live", "elapsed"], "live_time_s": 1e-3, **keys}
    return run, BeamlineProfile.model_validate(content)


@pytest.mark.parametrize("order", [["channel", "bin"], ["bin", "channel"]])
def test_four_elements_in_one_array_with_the_channel_on_any_axis(order):
    run, profile = four_elements(order)
    update = final(run.assemble(profile=profile))
    assert run.spectra is not None
    assert update.meta["channels"] == [1, 2, 3, 4]
    low, high = (int(np.ceil(edge / 10)) for edge in update.meta["windows_ev"][1])
    np.testing.assert_array_equal(
        update.arrays["counts"][:, 1].reshape(4, -1), run.spectra[:, low:high].sum(axis=1)
    )
    # One live time for all of them, in another unit.
    relative = run.i0 / np.median(run.i0)
    np.testing.assert_allclose(
        update.arrays["exposure"].reshape(4, -1), np.tile(run.live[0] * relative, (4, 1)), rtol=1e-5
    )
    assert update.meta["warnings"] == []


def test_some_of_the_elements_of_one_array():
    run, profile = four_elements(["bin", "channel"])
    content = profile.model_dump(mode="json")
    content["xrf"]["channels"] = [4, 2]
    some = final(run.assemble(profile=BeamlineProfile.model_validate(content)))
    every = final(run.assemble(profile=profile))
    assert some.meta["channels"] == [4, 2]
    np.testing.assert_array_equal(some.arrays["counts"], every.arrays["counts"][[3, 1]])


def test_spectra_that_change_their_length_within_a_run_are_refused_by_name():
    run = StepRun(spectra=True)
    keys = copy.deepcopy(dict(run.descriptor["data_keys"]))
    for key in ("xs_channel01_fluor", "xs_channel02_fluor"):
        keys[key]["shape"] = [BINS // 2]
    later = run.descriptor | {"uid": "second", "data_keys": keys}
    documents = [*events(run)[:5], ("descriptor", later), *events(run)[5:]]
    update = run.assemble(documents, profile=from_spectra())[-1]
    assert update.kind == "rejected"
    assert "xs_channel01_fluor has 512 bins" in update.meta["reason"]


@pytest.mark.parametrize("value", [0.0, -10.0, 1e-9, float("nan"), "wide", [1]])
def test_an_energy_axis_that_no_detector_has_is_refused(value):
    run = StepRun(spectra=True)
    descriptor = copy.deepcopy(dict(run.descriptor))
    descriptor["configuration"]["xs"]["data"]["xs_energy_per_bin"] = value
    run.descriptor = descriptor
    update = run.assemble(profile=from_spectra())[-1]
    assert update.kind == "rejected"
    assert "energy" in update.meta["reason"]


class FlyRun:
    """A fly raster: one file, one stream_datum per row and key."""

    def __init__(self, folder: Path, rows=4, cols=5, *, channels=2, snaking=True, stacked=True):
        rng = np.random.default_rng(rows + cols)
        md = start_md(rows, cols, snaking)
        md["scan"] = md["scan"] | {"type": "XRF_FLY"}
        self.bundle: Any = compose_run(metadata=md)
        self.start: dict[str, Any] = self.bundle.start_doc
        self.geometry = ScanGeometry.from_start(self.start)
        n = rows * cols
        position = self.geometry.positions().reshape(2, -1)
        pixels = self.geometry.flat_pixels(1, n + 1)
        self.values = {
            "xs_fluor": rng.poisson(3, (n, channels, BINS)).astype(np.uint16),
            "xs_mcaroi": rng.poisson(30, (n, channels, len(ELEMENTS))).astype(np.uint32),
            "xs_live_time": rng.uniform(0.05, 0.1, (n, channels)),
            "sclr_i0": rng.uniform(900, 1100, n),
            "sample_x": position[1][pixels],
            "sample_y": position[0][pixels],
        }
        self.path = folder / f"{self.start['uid']}.h5"
        lead = [] if stacked else [1]
        keys = {
            key: {
                "dtype": "array" if value.ndim > 1 else "number",
                "shape": [*lead, *value.shape[1:]],
                "source": "sim",
                "external": "STREAM:",
                "dtype_numpy": value.dtype.str,
            }
            for key, value in self.values.items()
        }
        keys["sample_x"]["units"] = keys["sample_y"]["units"] = "um"
        self.stream = self.bundle.compose_descriptor(
            name="primary", data_keys=keys, configuration=configuration()
        )
        self.descriptor = self.stream.descriptor_doc
        self.resources, self.datums = [], []
        for key in self.values:
            resource = self.bundle.compose_stream_resource(
                mimetype="application/x-hdf5",
                uri=f"file://localhost{self.path}",
                data_key=key,
                parameters={"dataset": f"entry/{key}", "swmr": True},
            )
            self.resources.append(resource.stream_resource_doc)
            for row in range(rows):
                datum = resource.compose_stream_datum(
                    indices={"start": row * cols, "stop": (row + 1) * cols},
                    descriptor=self.descriptor,
                )
                self.datums.append((row, datum))
        self.datums = [datum for _, datum in sorted(self.datums, key=lambda pair: pair[0])]

    def write(self, rows=None):
        """Write the first rows (all) of the finished file."""
        with self.writer() as write:
            write(self.geometry.shape[0] if rows is None else rows)

    @contextmanager
    def writer(self):
        """Write as a detector does: yields a function that makes so many rows readable."""
        with h5py.File(self.path, "w", libver="latest") as file:
            for key, value in self.values.items():
                file.create_dataset(
                    f"entry/{key}",
                    (0, *value.shape[1:]),
                    value.dtype,
                    maxshape=(None, *value.shape[1:]),
                )
            file.swmr_mode = True

            def write(rows):
                n = rows * self.geometry.shape[1]
                for key, value in self.values.items():
                    dataset: Any = file[f"entry/{key}"]
                    dataset.resize(n, 0)
                    dataset[:] = value[:n]
                    dataset.flush()

            yield write

    def documents(self):
        docs = [("descriptor", self.descriptor)]
        docs += [("stream_resource", doc) for doc in self.resources]
        return docs + [("stream_datum", doc) for doc in self.datums]

    def stop(self, exit_status="success"):
        return {
            "uid": "stop",
            "run_start": self.start["uid"],
            "time": 0.0,
            "exit_status": exit_status,
        }

    def assemble(self, documents=None, profile=PROFILE, roots=None, stop=None):
        assembler = open_assembler(
            self.start, [profile], data_roots=[self.path.parent] if roots is None else roots
        )
        updates = []
        for name, doc in documents if documents is not None else self.documents():
            updates += assembler(name, doc)
        return updates + assembler("stop", stop or self.stop())


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("snaking", [True, False])
def test_fly_rows_are_where_they_were_measured(tmp_path, snaking, stacked):
    run = FlyRun(tmp_path, snaking=snaking, stacked=stacked)
    run.write()
    update = final(run.assemble())
    pixels = run.geometry.flat_pixels(1, run.geometry.size + 1)
    counts = update.arrays["counts"].reshape(2, 3, -1)[:, :, pixels]
    np.testing.assert_array_equal(counts, run.values["xs_mcaroi"].transpose(1, 2, 0))
    np.testing.assert_array_equal(update.arrays["position"], run.geometry.positions())
    assert update.meta["complete"]
    assert update.meta["warnings"] == []
    assert update.meta["elements"] == list(ELEMENTS)


@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    order=st.randoms(use_true_random=False),
    profile=st.sampled_from([PROFILE, from_spectra(), with_cube(bins=64)]),
)
def test_fly_live_is_offline_whatever_the_order(tmp_path, order, profile):
    run = FlyRun(tmp_path)
    run.write()
    offline = final(run.assemble(profile=profile))
    documents = run.documents() + [("stream_datum", d) for d in order.sample(run.datums, 6)]
    order.shuffle(documents)
    live = final(run.assemble(documents, profile))
    same(live, offline)
    assert live.meta == offline.meta


def test_fly_and_step_of_the_same_counts_agree(tmp_path):
    fly = FlyRun(tmp_path, 3, 4)
    fly.write()
    step = StepRun(3, 4, spectra=True)
    pixels = step.geometry.flat_pixels(1, 13)
    assert step.spectra is not None
    step.spectra[:, :, pixels] = fly.values["xs_fluor"].transpose(1, 2, 0)
    step.live[:, pixels] = fly.values["xs_live_time"].T
    step.i0[pixels] = fly.values["sclr_i0"]
    step.events = [step._event(seq) for seq in range(1, 13)]
    for profile in (from_spectra(), with_cube(bins=100)):
        same(final(step.assemble(profile=profile)), final(fly.assemble(profile=profile)))


def test_stop_before_the_last_datums_takes_the_rows_from_the_file(tmp_path):
    run = FlyRun(tmp_path)
    run.write()
    late = final(run.assemble(run.documents()[:-9]))
    same(late, final(run.assemble()))
    assert any("no document announced" in line for line in late.meta["warnings"])


def test_rows_that_no_document_announced_end_where_the_next_file_begins(tmp_path):
    run = FlyRun(tmp_path)
    run.write()
    expected = final(run.assemble())
    other = tmp_path / "next.h5"
    with h5py.File(run.path, "a") as first, h5py.File(other, "w") as following:
        for key, values in run.values.items():
            following[f"entry/{key}"] = values[10:]
            dataset: Any = first[f"entry/{key}"]
            dataset[10:] = 77
    again = [
        resource | {"uid": f"{resource['uid']}-2", "uri": f"file://localhost{other}"}
        for resource in run.resources
    ]
    # Of the first file the first line is announced, of the next one both of its lines.
    moved = [
        datum
        | {
            "stream_resource": f"{datum['stream_resource']}-2",
            "indices": {end: n - 10 for end, n in datum["indices"].items()},
            "seq_nums": {end: n + 1 for end, n in datum["indices"].items()},
        }
        for datum in run.datums[12:]
    ]
    documents = [("descriptor", run.descriptor)]
    documents += [("stream_resource", doc) for doc in (*run.resources, *again)]
    documents += [("stream_datum", doc) for doc in (*run.datums[:6], *moved)]
    update = final(run.assemble(documents))
    same(update, expected)
    told = "\n".join(update.meta["warnings"])
    assert "rows of a file beyond the first of the next file are left out" in told
    assert "rows found in the file that no document announced" in told


def test_an_aborted_fly_run_ends_with_its_rows(tmp_path):
    run = FlyRun(tmp_path)
    run.write(rows=2)
    documents = run.documents()[: 1 + 6 + 12]
    update = final(run.assemble(documents, stop=run.stop("abort")))
    assert update.arrays["measured"][:2].all()
    assert not update.arrays["measured"][2:].any()
    assert update.meta["rows_done"] == 2


def test_rows_are_read_as_soon_as_they_are_written(tmp_path):
    run = FlyRun(tmp_path)
    documents = run.documents()
    assembler = open_assembler(run.start, [PROFILE], data_roots=[tmp_path])
    for name, doc in documents[:13]:
        assembler(name, doc)
    with run.writer() as write:
        write(2)
        for name, doc in documents[13:-1]:
            assembler(name, doc)
        write(4)
        assembler(*documents[-1])
        (update,) = assembler("stop", run.stop())
    same(final([update]), final(run.assemble()))
    assert update.meta["warnings"] == []


def test_rows_that_never_come_are_masked(tmp_path):
    run = FlyRun(tmp_path)
    run.write(rows=3)
    profile = PROFILE.model_copy(update={"read_deadline": 0.05})
    update = final(run.assemble(profile=profile))
    assert update.arrays["measured"].sum() == 15
    assert any("could not be read" in line for line in update.meta["warnings"])


def test_a_key_that_is_missing_for_a_row_masks_the_row(tmp_path):
    run = FlyRun(tmp_path)
    run.write()
    with h5py.File(run.path, "a") as file:
        # Rows that only some of the keys have are not measured.
        dataset: Any = file["entry/sclr_i0"]
        dataset.resize(15, 0)
    documents = [d for d in run.documents() if d[1] is not run.datums[-3]]
    profile = PROFILE.model_copy(update={"read_deadline": 0.0})
    update = final(run.assemble(documents, profile))
    assert update.arrays["measured"].sum() == 15
    assert (update.arrays["counts"][:, :, ~update.arrays["measured"]] == 0).all()


def test_fly_snapshots_wait_for_every_key(tmp_path):
    content = PROFILE.model_dump(mode="json")
    content["method"]["snapshot_rows"] = 1
    run = FlyRun(tmp_path)
    run.write()
    updates = run.assemble(profile=BeamlineProfile.model_validate(content))
    assert [(u.kind, u.meta["rows_done"]) for u in updates[:-1]] == [
        ("snapshot", n) for n in (1, 2, 3)
    ]


def test_files_outside_the_data_roots_are_not_read(tmp_path):
    run = FlyRun(tmp_path)
    run.write()
    other = tmp_path / "elsewhere"
    other.mkdir()
    update = run.assemble(roots=[other])[-1]
    assert update.kind == "rejected"
    assert any("outside the data roots" in line for line in update.meta["warnings"])


@settings(
    deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(order=st.randoms(use_true_random=False), fly=st.booleans(), spectra=st.booleans())
def test_whatever_a_document_holds_the_run_ends(tmp_path, order, fly, spectra, spoiled):
    profile = (from_spectra() if spectra else PROFILE).model_copy(update={"read_deadline": 0.0})
    if fly:
        run = FlyRun(tmp_path, 2, 3, channels=1)
        run.write()
        documents = run.documents()
    else:
        run = StepRun(2, 3, channels=1, spectra=spectra)
        documents = [("descriptor", run.descriptor), *events(run)]
    for index in order.sample(range(len(documents)), order.randint(1, 4)):
        name, doc = documents[index]
        documents[index] = (
            order.choice([name, name, name, "event_page", "nonsense"]),
            spoiled(doc, order),
        )
    assembler = open_assembler(run.start, [profile], data_roots=[tmp_path])
    updates = []
    for name, doc in documents:
        updates += assembler(name, doc)
    updates += assembler("stop", run.stop())
    assert updates[-1].kind in ("final", "rejected")
    json.dumps(updates[-1].meta, allow_nan=False)
    if updates[-1].kind == "final":
        arrays = updates[-1].arrays
        assert np.isfinite(arrays["counts"]).all()
        assert np.isfinite(arrays["exposure"]).all()
        assert (arrays["exposure"] >= 0).all()
        assert (arrays["exposure"] > 0).any(axis=0)[arrays["measured"]].all()
