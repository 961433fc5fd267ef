"""A stack is the same however its documents arrive, and dark and flat may come at any time."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from event_model import compose_run, pack_event_page
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inscan.callbacks.assembly import NotUnderstood, open_assembler
from inscan.callbacks.profile import BeamlineProfile, load_profile

SHIPPED = load_profile("sim_txm")
PROFILE = BeamlineProfile.model_validate(
    SHIPPED.model_dump(mode="json")
    | {"txm": SHIPPED.model_dump(mode="json")["txm"] | {"references": None}}
    | {"method": {"name": "subspace", "snapshot_rows": 2}}
)
NY, NX = 6, 7
GAIN, READ = 2.5, 3.0


def profile_with(**txm) -> BeamlineProfile:
    content = PROFILE.model_dump(mode="json")
    content["txm"] |= txm
    return BeamlineProfile.model_validate(content)


class Stack:
    """Documents and files of one energy scan."""

    def __init__(
        self,
        folder: Path,
        energies=(8.30, 8.32, 8.34, 8.36, 8.38),
        *,
        frames=3,
        order=("dark", "flat", "primary"),
        n_flat=2,
        flat_energies=None,
        size=(NY, NX),
        per_file="stream",
        layout="stack",
        units="keV",
    ):
        rng = np.random.default_rng(len(energies) * 10 + frames)
        self.size, self.frames = size, frames
        self.bundle: Any = compose_run(
            metadata={
                "beamline_id": "sim_txm",
                "eng_list": list(energies),
                "frames_per_energy": frames,
                "scan": {"type": "XANES_STACK"},
                "exposure_time": 0.2,
                "sample": {"name": "cathode"},
                "scan_id": 3,
            }
        )
        self.start: dict[str, Any] = self.bundle.start_doc
        beam = rng.uniform(3000, 5000, size)
        self.truth = rng.uniform(0.2, 0.9, (len(energies), *size))
        at = {"dark": [energies[0]] * 2, "primary": list(energies)}
        at["flat"] = list(flat_energies) if flat_energies else [energies[0]] * n_flat
        level = {
            "dark": lambda i: np.zeros(size),
            "flat": lambda i: beam * (1 + 0.1 * i * (flat_energies is not None)),
            "primary": lambda i: beam * self.truth[i],
        }
        self.images, self.descriptors, self.docs = {}, {}, {}
        for stream in order:
            images = np.stack(
                [
                    np.rint(100 + GAIN * rng.poisson(level[stream](i) / GAIN, (frames, *size))
                            + rng.normal(0, READ, (frames, *size)))
                    for i in range(len(at[stream]))
                ]
            ).clip(0, 65535).astype(np.uint16)  # fmt: skip
            self.images[stream] = images
            bundle = self.bundle.compose_descriptor(
                name=stream,
                data_keys={
                    "txm_image": {
                        "dtype": "array",
                        "shape": [frames, *size],
                        "source": "sim",
                        "external": "STREAM:",
                        "dtype_numpy": "<u2",
                    },
                    "mono_energy": {
                        "dtype": "number", "shape": [], "source": "sim", "units": units
                    },
                },
            )  # fmt: skip
            self.descriptors[stream] = bundle.descriptor_doc
            path = folder / f"{self.start['uid']}{stream if per_file == 'stream' else ''}.h5"
            name = f"entry/{stream}"
            with h5py.File(path, "a", libver="latest") as file:
                file[name] = images if layout == "stack" else images.reshape(-1, *size)
            resource = self.bundle.compose_stream_resource(
                mimetype="application/x-hdf5",
                uri=f"file://localhost{path}",
                data_key="txm_image",
                parameters={"dataset": name},
            )
            docs = [
                ("descriptor", bundle.descriptor_doc),
                ("stream_resource", resource.stream_resource_doc),
            ]
            for i, energy in enumerate(at[stream]):
                datum = resource.compose_stream_datum(
                    indices={"start": i, "stop": i + 1},
                    descriptor=bundle.descriptor_doc,
                    seq_nums={"start": i + 1, "stop": i + 2},
                )
                event = {
                    "uid": f"{stream}-{i}",
                    "descriptor": bundle.descriptor_doc["uid"],
                    "seq_num": i + 1,
                    "time": float(i),
                    "data": {"mono_energy": energy * (1000 if units == "eV" else 1)},
                    "timestamps": {"mono_energy": 0.0},
                    "filled": {},
                }
                docs += [("stream_datum", datum), ("event", event)]
            self.docs[stream] = docs
        self.order = order
        self.folder = folder

    def documents(self):
        return [doc for stream in self.order for doc in self.docs[stream]]

    def stop(self, exit_status="success", reason=""):
        return {
            "uid": "stop", "run_start": self.start["uid"], "time": 0.0,
            "exit_status": exit_status, "reason": reason,
        }  # fmt: skip

    def assemble(self, documents=None, profile=PROFILE, stop=None):
        assembler = open_assembler(self.start, [profile], data_roots=[self.folder])
        updates = []
        for name, doc in documents if documents is not None else self.documents():
            updates += assembler(name, doc)
        return updates + assembler("stop", stop or self.stop())

    def transmission(self, flat=None):
        dark = self.images["dark"].mean(axis=(0, 1))
        flat = self.images["flat"].mean(axis=(0, 1)) if flat is None else flat
        return (self.images["primary"].mean(axis=1) - dark) / (flat - dark)


def final(updates):
    assert updates[-1].kind == "final", updates[-1].meta
    json.dumps(updates[-1].meta, allow_nan=False)
    return updates[-1]


def same(one, other):
    assert one.arrays.keys() == other.arrays.keys()
    for name, array in one.arrays.items():
        assert array.tobytes() == other.arrays[name].tobytes(), name


@pytest.mark.parametrize("layout", ["stack", "concat"])
@pytest.mark.parametrize("per_file", ["stream", "run"])
@pytest.mark.parametrize(
    "order", [("dark", "flat", "primary"), ("dark", "primary", "flat"), ("primary", "flat", "dark")]
)
def test_transmission_whatever_is_taken_first(tmp_path, order, layout, per_file):
    run = Stack(tmp_path, order=order, layout=layout, per_file=per_file)
    update = final(run.assemble())
    arrays, meta = update.arrays, update.meta
    np.testing.assert_allclose(arrays["transmission"], run.transmission(), rtol=2e-5)
    np.testing.assert_allclose(arrays["frames"], run.images["primary"].mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(arrays["dark"], run.images["dark"].mean(axis=(0, 1)), rtol=1e-6)
    np.testing.assert_allclose(arrays["flat"], run.images["flat"].mean(axis=(0, 1)), rtol=1e-6)
    assert arrays["measured"].all()
    assert meta["energies_ev"] == pytest.approx([8300, 8320, 8340, 8360, 8380])
    assert (meta["complete"], meta["rows_done"], meta["quantity"]) == (True, 5, "transmission")
    assert meta["edge_ev"] == pytest.approx(8333, abs=1)
    assert meta["dwell"] == 0.2
    assert meta["warnings"] == []


def test_the_variance_is_that_of_repeated_measurements(tmp_path):
    size, n = (40, 40), 40
    run = Stack(tmp_path, tuple(8.3 + 0.001 * i for i in range(n)), size=size, n_flat=4)
    truth = run.truth[0]
    rng = np.random.default_rng(1)
    beam = rng.uniform(3000, 5000, size)

    def shoot(level, times):
        return (
            100
            + GAIN * rng.poisson(level / GAIN, (times, 3, *size))
            + rng.normal(0, READ, (times, 3, *size))
        )

    images = {"dark": shoot(0 * beam, 2), "flat": shoot(beam, 4), "primary": shoot(beam * truth, n)}
    for stream, values in images.items():
        with h5py.File(tmp_path / f"{run.start['uid']}{stream}.h5", "a") as file:
            dataset: Any = file[f"entry/{stream}"]
            dataset[...] = np.rint(values)
    update = final(run.assemble())
    assert update.meta["adu_per_photon"] == pytest.approx(GAIN, rel=0.03)
    assert update.meta["read_noise_adu"] == pytest.approx(READ, rel=0.05)
    scatter = update.arrays["transmission"].var(axis=0, ddof=1)
    # Dark and flat are common to all energies: only the frames' own part scatters.
    expected = update.arrays["variance"].mean(axis=0)
    mean = update.arrays["transmission"].mean(axis=0)
    flat_part = mean**2 * (GAIN * beam + READ**2) / 12 / beam**2
    dark_part = (1 - mean) ** 2 * READ**2 / 6 / beam**2
    assert (scatter / (expected - flat_part - dark_part)).mean() == pytest.approx(1.0, abs=0.03)


@settings(
    deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(order=st.randoms(use_true_random=False), per_energy=st.booleans())
def test_live_is_offline_whatever_the_order(tmp_path, order, per_energy):
    energies = (8.30, 8.32, 8.34)
    run = Stack(tmp_path, energies, flat_energies=energies if per_energy else None)
    offline = final(run.assemble())
    documents = run.documents()
    documents += order.sample(documents, 6)
    pages = []
    for stream in run.order:
        of_stream = [doc for name, doc in run.docs[stream] if name == "event"]
        pages.append(("event_page", pack_event_page(*of_stream)))
    documents += order.sample(pages, 2)
    order.shuffle(documents)
    live = final(run.assemble(documents))
    same(live, offline)
    assert live.meta == offline.meta


def test_one_flat_per_energy(tmp_path):
    energies = (8.30, 8.32, 8.34)
    run = Stack(tmp_path, energies, flat_energies=energies)
    update = final(run.assemble())
    flat = run.images["flat"].mean(axis=1)
    np.testing.assert_allclose(update.arrays["flat_per_energy"], flat, rtol=1e-6)
    np.testing.assert_allclose(update.arrays["transmission"], run.transmission(flat), rtol=2e-5)
    assert "flat" not in update.arrays
    assert update.meta["warnings"] == []


@pytest.mark.parametrize(("n_flat", "kept"), [(1, None), (3, [0, 1, 2]), (4, [0, 2, 3])])
def test_several_flats_come_apart_at_the_end(tmp_path, monkeypatch, n_flat, kept):
    monkeypatch.setattr("inscan.callbacks.txm_beams._MOST_FLATS", 3)
    run = Stack(tmp_path, n_flat=n_flat)
    updates = run.assemble()
    assert all("flats" not in update.arrays for update in updates[:-1])
    flats = final(updates).arrays.get("flats")
    if kept is None:
        assert flats is None
        return
    dark = run.images["dark"].mean(axis=(0, 1))
    expected = run.images["flat"].mean(axis=1)[kept] - dark
    np.testing.assert_allclose(flats, expected, rtol=1e-4)


def test_flats_that_alternate_with_frames(tmp_path):
    energies = tuple(8.30 + 0.01 * i for i in range(8))
    run = Stack(tmp_path, energies, flat_energies=energies)
    primary, flat = run.docs["primary"], run.docs["flat"]
    documents = run.docs["dark"] + primary[:2] + flat[:2]
    for i in range(8):
        documents += primary[2 + 2 * i : 4 + 2 * i] + flat[2 + 2 * i : 4 + 2 * i]
    updates = run.assemble(documents)
    assert [u.kind for u in updates] == ["snapshot"] * 3 + ["final"]
    same(final(updates), final(run.assemble()))


def test_flats_at_some_energies_are_interpolated_and_said(tmp_path):
    energies = (8.30, 8.32, 8.34)
    run = Stack(tmp_path, energies, flat_energies=(8.30, 8.34))
    update = final(run.assemble())
    flat = run.images["flat"].mean(axis=1)
    np.testing.assert_allclose(
        update.arrays["flat_per_energy"], [flat[0], (flat[0] + flat[1]) / 2, flat[1]], rtol=1e-4
    )
    assert update.meta["warnings"] == [
        "energies without a flat of their own: interpolated, or the nearest"
    ]


def test_snapshots_once_there_is_a_transmission(tmp_path):
    run = Stack(tmp_path)
    updates = run.assemble()
    assert [(u.kind, u.meta["rows_done"]) for u in updates] == [
        ("snapshot", 2), ("snapshot", 4), ("final", 5)
    ]  # fmt: skip
    late = Stack(tmp_path, order=("dark", "primary", "flat"))
    assert late.assemble()[-1].kind == "final"
    before_flats = [doc for stream in ("dark", "primary") for doc in late.docs[stream]]
    assert [u.kind for u in late.assemble(before_flats)] == ["rejected"]


@pytest.mark.parametrize("missing", ["dark", "flat", "primary"])
def test_without_dark_flat_or_primary_there_is_nothing_to_compute(tmp_path, missing):
    run = Stack(tmp_path)
    documents = [doc for stream in run.order if stream != missing for doc in run.docs[stream]]
    (update,) = run.assemble(documents, stop=run.stop("abort", "user"))[-1:]
    assert update.kind == "rejected"
    assert f"without {missing} frames" in update.meta["reason"]
    assert "user" in update.meta["reason"]


def test_an_aborted_stack_ends_with_its_energies(tmp_path):
    run = Stack(tmp_path)
    update = final(run.assemble(run.documents()[:-4], stop=run.stop("abort")))
    assert update.arrays["measured"].any(axis=(1, 2)).tolist() == [True] * 3 + [False] * 2
    assert (update.meta["complete"], update.meta["rows_done"]) == (False, 3)
    assert (update.arrays["transmission"][3:] == 0).all()


def test_saturated_and_dead_pixels_are_masked(tmp_path):
    run = Stack(tmp_path)
    for stream, value, where in (
        ("primary", 65535, (2, 1, 3, 3)),
        ("flat", 100, (slice(None), slice(None), 5, 5)),
    ):
        with h5py.File(tmp_path / f"{run.start['uid']}{stream}.h5", "a") as file:
            dataset: Any = file[f"entry/{stream}"]
            dataset[where] = value
    update = final(run.assemble())
    bad = np.zeros((5, NY, NX), bool)
    bad[2, 3, 3] = bad[:, 5, 5] = True
    np.testing.assert_array_equal(update.arrays["measured"], ~bad)
    for name in ("transmission", "variance"):
        assert np.isfinite(update.arrays[name]).all()
        assert (update.arrays[name][bad] == 0).all()
    assert len(update.meta["warnings"]) == 2


def in_events(run, dtype: Any = np.float32):
    """The same run with the frames inside its events."""
    documents = []
    for stream in run.order:
        descriptor = json.loads(json.dumps(run.descriptors[stream]))
        del descriptor["data_keys"]["txm_image"]["external"]
        documents.append(("descriptor", descriptor))
        for doc in (doc for name, doc in run.docs[stream] if name == "event"):
            image = run.images[stream][doc["seq_num"] - 1].astype(dtype)
            documents.append(("event", doc | {"data": doc["data"] | {"txm_image": image}}))
    return documents


def test_frames_inside_events_give_the_same_stack(tmp_path):
    run = Stack(tmp_path)
    same(final(run.assemble(in_events(run, np.uint16))), final(run.assemble()))


@pytest.mark.parametrize("bad", [float("nan"), -5.0])
def test_bad_values_in_frames_are_masked(tmp_path, bad):
    run = Stack(tmp_path)
    documents = in_events(run)
    documents[-1][1]["data"]["txm_image"][0, 2, 2] = bad
    update = final(run.assemble(documents))
    assert not update.arrays["measured"][-1, 2, 2]
    assert update.arrays["measured"].sum() == 5 * NY * NX - 1
    assert np.isfinite(update.arrays["frames"]).all()


def test_frames_of_another_shape_are_left_out(tmp_path):
    run = Stack(tmp_path)
    documents = in_events(run)
    documents[-1][1]["data"]["txm_image"] = np.zeros((3, NY, NX + 1))
    update = final(run.assemble(documents))
    assert update.meta["rows_done"] == 4
    assert any("declares numbers of shape" in line for line in update.meta["warnings"])


def test_a_file_of_another_shape_than_declared_is_left_out(tmp_path):
    run = Stack(tmp_path)
    for stream in run.order:
        run.descriptors[stream]["data_keys"]["txm_image"]["shape"] = [3, NY, NX + 1]
    (update,) = run.assemble()
    assert update.kind == "rejected"
    assert any("holds rows of" in line for line in update.meta["warnings"])


def test_energies_are_read_in_the_units_of_the_descriptor(tmp_path):
    update = final(Stack(tmp_path, units="eV").assemble())
    assert update.meta["energies_ev"] == pytest.approx([8300, 8320, 8340, 8360, 8380])
    assert update.meta["warnings"] == []


def test_an_energy_that_was_not_reached_is_said(tmp_path):
    run = Stack(tmp_path)
    run.docs["primary"][-1][1]["data"]["mono_energy"] = 8.36
    update = final(run.assemble())
    assert update.meta["energies_ev"][-1] == pytest.approx(8360)
    assert any("more than half a step from the plan" in line for line in update.meta["warnings"])


def test_single_frames_say_what_is_assumed(tmp_path):
    one = final(Stack(tmp_path, frames=1, n_flat=1).assemble())
    assert one.meta["adu_per_photon"] == 1.0
    assert any("one ADU per photon" in line for line in one.meta["warnings"])
    told = final(
        Stack(tmp_path, frames=1, n_flat=1).assemble(profile=profile_with(adu_per_photon=GAIN))
    )
    assert told.meta["adu_per_photon"] == GAIN
    assert not any("one ADU per photon" in line for line in told.meta["warnings"])
    # One frame per flat, but several flats: they are compared with each other.
    several = final(Stack(tmp_path, frames=1, n_flat=6, size=(60, 60)).assemble())
    assert several.meta["adu_per_photon"] == pytest.approx(GAIN, rel=0.1)


def test_more_events_than_energies(tmp_path):
    run = Stack(tmp_path)
    run.start["eng_list"] = run.start["eng_list"][:4]
    update = final(run.assemble())
    assert update.arrays["transmission"].shape[0] == 4
    assert update.meta["complete"]
    assert len(update.meta["warnings"]) == 2


@pytest.mark.parametrize(
    "energies", [None, "eng_list", [], [8.3, float("nan")], [8.3, -1], [[8.3, 8.4]], ["high"]]
)
def test_a_start_document_without_energies(tmp_path, energies):
    start = Stack(tmp_path).start | {"eng_list": energies}
    with pytest.raises(NotUnderstood, match="eng_list"):
        open_assembler(start, [PROFILE])


def with_standards(**energies) -> BeamlineProfile:
    content: dict[str, Any] = SHIPPED.model_dump(mode="json") | {"folder": SHIPPED.folder}
    content["rescan"] |= {"energies": energies or None}
    return BeamlineProfile.model_validate(content)


def test_the_standards_of_the_profile_come_with_the_stack(tmp_path):
    update = final(Stack(tmp_path).assemble(profile=with_standards()))
    names = [reference["name"] for reference in update.meta["references"]]
    assert len(names) >= 2
    for reference in update.meta["references"]:
        assert reference["energies_ev"] == update.meta["energies_ev"]
        assert len(reference["absorption"]) == 5


def test_standards_are_told_between_the_energies_where_more_may_be_added(tmp_path):
    profile = with_standards(low_ev=8320.0, high_ev=8360.0)
    update = final(Stack(tmp_path).assemble(profile=profile))
    for reference, standard in zip(update.meta["references"], profile.references(), strict=True):
        energies = reference["energies_ev"]
        assert set(update.meta["energies_ev"]) < set(energies)
        assert {8320.0, 8347.25, 8360.0} < set(energies) and sorted(energies) == energies
        np.testing.assert_allclose(reference["absorption"], standard.at(energies))


def test_a_single_energy(tmp_path):
    update = final(Stack(tmp_path, (8.35,)).assemble())
    assert update.arrays["transmission"].shape == (1, NY, NX)
    assert update.meta["complete"]


@settings(
    deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(order=st.randoms(use_true_random=False), inside=st.booleans())
def test_whatever_a_document_holds_the_run_ends(tmp_path, order, inside, spoiled):
    profile = PROFILE.model_copy(update={"read_deadline": 0.0})
    run = Stack(tmp_path, (8.30, 8.32, 8.34))
    documents = in_events(run) if inside else run.documents()
    for index in order.sample(range(len(documents)), order.randint(1, 4)):
        name, doc = documents[index]
        kind = order.choice([name, name, name, "event_page", "nonsense"])
        documents[index] = (kind, spoiled(doc, order))
    update = run.assemble(documents, profile)[-1]
    assert update.kind in ("final", "rejected")
    json.dumps(update.meta, allow_nan=False)
    for name in ("transmission", "variance"):
        if name in update.arrays:
            assert np.isfinite(update.arrays[name]).all()
