"""Energy scans as FXI records them: every kind is the stack that went in, or says why not."""

import json
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inscan.callbacks.assembly import NotUnderstood, open_assembler
from inscan.callbacks.profile import BeamlineProfile, load_profile, matches
from inscan.profiles.fxi_documents import FXIPlan, FXIScan

PROFILE = load_profile("fxi").model_copy(update={"read_deadline": 0.0})
MULTI = "multipos_2D_xanes_scan2"
PLANS = ("xanes_scan", "xanes_scan2", MULTI)
KEV = (8.30, 8.32, 8.34, 8.36)
NY, NX = 6, 7


def scan(plan: FXIPlan = "xanes_scan2", energies=KEV, **options) -> FXIScan:
    positions = options.pop("positions", 3 if plan == MULTI else 1)
    rng = np.random.default_rng(5)
    truth = rng.uniform(0.2, 0.9, (positions, len(energies), NY, NX))
    return FXIScan(truth, energies, plan, **options)


def profile_with(**txm) -> BeamlineProfile:
    content = PROFILE.model_dump(mode="json")
    content["txm"] |= txm
    return BeamlineProfile.model_validate(content)


def documents(run: FXIScan, folder, **options) -> list[Any]:
    return list(run.documents(folder, **options))


def assemble(docs, folder, profile=PROFILE):
    assembler = open_assembler(docs[0][1], [profile], data_roots=[folder])
    found = [update for name, doc in docs for update in assembler(name, doc)]
    for update in found:
        json.dumps(update.meta, allow_nan=False)
    return found


def finals(docs, folder, profile=PROFILE):
    found = [u for u in assemble(docs, folder, profile) if u.kind != "snapshot"]
    assert [u.kind for u in found] == ["final"] * len(found), found[0].meta["reason"]
    return found


def rejected(docs, folder, profile=PROFILE) -> str:
    (update,) = assemble(docs, folder, profile)[-1:]
    assert update.kind == "rejected"
    return update.meta["reason"]


def warned(update, text: str) -> bool:
    return any(text in line for line in update.meta["warnings"])


def of_stream(docs, stream):
    """Events of a stream, in the order they were taken."""
    uids = {doc["uid"] for name, doc in docs if name == "descriptor" and doc["name"] == stream}
    return [doc for name, doc in docs if name == "event" and doc["descriptor"] in uids]


@pytest.mark.parametrize(("plan", "repeats"), [*((plan, 1) for plan in PLANS), (MULTI, 2)])
def test_every_plan_is_the_stack_that_the_beamline_exports(tmp_path, plan, repeats):
    run = scan(plan, repeats=repeats)
    found = finals(documents(run, tmp_path), tmp_path)
    truth = run.transmission().reshape(-1, len(KEV), NY, NX)
    names = ["primary"] + [f"primary@{k + 2}" for k in range(len(truth) - 1)]
    assert [u.stream for u in found] == [u.meta["stream"] for u in found] == names
    for k, update in enumerate(found):
        np.testing.assert_allclose(update.arrays["transmission"], truth[k], rtol=2e-5)
        assert update.arrays["measured"].all()
        assert update.meta["complete"]
        assert update.meta["energies_ev"] == pytest.approx([8300, 8320, 8340, 8360])
        assert update.meta["pixel_size_um"] == pytest.approx(6.5 / 323.3333, rel=1e-5)
        assert update.meta["edge"] == "Ni_K"
        repeat, position = divmod(k, len(run.truth))
        place = update.meta["position"]
        assert (place["number"], place["repeat"]) == (position + 1, repeat + 1)
        assert place["motors"]["zps_sx"] == 10.0 * position
        assert len(update.meta["warnings"]) == 1  # that the edge was found, not told


def test_the_profile_is_chosen_by_the_keys_of_an_energy_scan(tmp_path):
    start = documents(scan(), tmp_path)[0][1]
    assert matches(PROFILE, start)
    for key, value in (("eng_list", "eng_list"), ("eng_list", None), ("num_eng", "4")):
        assert not matches(PROFILE, start | {key: value})
    del start["chunk_size"]
    assert not matches(PROFILE, start)


def test_energies_in_any_order_and_again_rise_in_the_stack(tmp_path):
    energies = (8.36, 8.30, 8.34, 8.32, 8.34)
    run = scan(energies=energies)
    (update,) = finals(documents(run, tmp_path), tmp_path)
    assert update.meta["energies_ev"] == pytest.approx([8300, 8320, 8340, 8360])
    dark = run.dark.mean(axis=0)
    for row, taken in enumerate([[1], [3], [2, 4], [0]]):
        seen = run.images[0, taken, 0].mean(axis=(0, 1)) - dark
        flat = run.flats[0, taken].mean(axis=(0, 1)) - dark
        np.testing.assert_allclose(update.arrays["transmission"][row], seen / flat, rtol=2e-5)
    assert warned(update, "planned again")
    # More frames, less variance.
    assert update.arrays["variance"][2].mean() < 0.7 * update.arrays["variance"][1].mean()


@pytest.mark.parametrize("says", ["keV", "eV", ""])
@pytest.mark.parametrize("units", ["keV", "eV", ""])
def test_energies_are_read_in_kev_or_ev_whatever_their_units_say(tmp_path, units, says):
    docs = documents(scan(energy_units=units), tmp_path)
    for name, doc in docs:
        if name == "descriptor" and "XEng" in doc["data_keys"]:
            doc["data_keys"]["XEng"]["units"] = says
    (update,) = finals(docs, tmp_path)
    assert update.meta["energies_ev"] == pytest.approx([8300, 8320, 8340, 8360])
    wrong = (units or "keV") != (says or "keV")
    assert warned(update, "other than its units say") == wrong


@pytest.mark.parametrize("plan", ["xanes_scan", "xanes_scan2"])
def test_longer_flats_are_scaled(tmp_path, plan):
    run = scan(plan, flat_exposure=2.0)
    (update,) = finals(documents(run, tmp_path), tmp_path)
    truth = run.transmission()[0, 0]
    np.testing.assert_allclose(update.arrays["transmission"], truth, rtol=2e-5)
    assert warned(update, "exposed 2 times as long")
    unaware = finals(documents(run, tmp_path), tmp_path, profile_with(exposure=None))[0]
    assert (unaware.arrays["transmission"] < 0.6 * truth).all()


@pytest.mark.parametrize("declared", [1, 2, 5])
def test_a_descriptor_that_contradicts_the_files_is_named(tmp_path, declared):
    docs = documents(scan(), tmp_path)
    for name, doc in docs:
        if name == "descriptor" and "Andor_image" in doc["data_keys"]:
            doc["data_keys"]["Andor_image"]["shape"][0] = declared
    (update,) = assemble(docs, tmp_path)
    assert update.kind == "rejected"
    assert warned(update, f"3 frames per event, the descriptor declares ({declared}, {NY}, {NX})")


def test_another_number_of_frames_than_the_start_document_says(tmp_path):
    docs = documents(scan(metadata={"chunk_size": 20}), tmp_path)
    (update,) = finals(docs, tmp_path)
    assert warned(update, "another number of frames than start.chunk_size")


@pytest.mark.parametrize("plan", PLANS)
def test_an_abort_in_mid_energy_leaves_what_was_measured(tmp_path, plan):
    run = scan(plan)
    docs = documents(run, tmp_path, stop="abort")
    primary = of_stream(docs, "primary")
    # After the second image of the last energy but one; flats before it were taken.
    last = primary[2 * len(run.truth)]
    cut = next(i for i, (_, doc) in enumerate(docs) if doc is last) + 1
    found = [u for u in assemble([*docs[:cut], docs[-1]], tmp_path) if u.kind != "snapshot"]
    if plan == "xanes_scan":
        assert found[0].kind == "rejected"
        assert "without flat frames" in found[0].meta["reason"]
        return
    assert [u.kind for u in found] == ["final"] * len(run.truth)
    rows = [u.arrays["measured"].any(axis=(1, 2)).tolist() for u in found]
    assert rows == [[True, True, k == 0, False] for k in range(len(run.truth))]
    assert not any(u.meta["complete"] for u in found)
    assert warned(found[0], "energies without a flat of their own") == (plan != "xanes_scan")


def test_missing_flats_are_those_of_the_neighbours(tmp_path):
    run = scan("xanes_scan")
    docs = documents(run, tmp_path)
    gone = of_stream(docs, "flat")[2:]
    (update,) = finals([d for d in docs if d[1] not in gone], tmp_path)
    dark, flat = run.dark.mean(axis=0), run.flats[0].mean(axis=1)
    used = np.stack([flat[0], flat[1], flat[1], flat[1]]) - dark
    seen = run.images[0, :, 0].mean(axis=1) - dark
    np.testing.assert_allclose(update.arrays["transmission"], seen / used, rtol=2e-5)
    assert warned(update, "energies without a flat of their own")


@pytest.mark.parametrize("stream", ["dark", "flat", "primary"])
def test_without_a_kind_of_frames_there_is_a_reason(tmp_path, stream):
    docs = documents(scan(), tmp_path)
    gone = of_stream(docs, stream)
    assert f"without {stream} frames" in rejected([d for d in docs if d[1] not in gone], tmp_path)


def test_a_repeat_without_flats_takes_those_of_its_neighbour(tmp_path):
    run = scan(MULTI, repeats=2)
    docs = documents(run, tmp_path)
    gone = of_stream(docs, "flat")[len(KEV) :]
    found = finals([d for d in docs if d[1] not in gone], tmp_path)
    assert len(found) == 6
    assert warned(found[0], "repeats without flats of their own")
    dark, flat = run.dark.mean(axis=0), run.flats[0].mean(axis=1)
    seen = run.images[1, :, 2].mean(axis=1) - dark
    np.testing.assert_allclose(found[5].arrays["transmission"], seen / (flat - dark), rtol=2e-5)


@pytest.mark.parametrize(
    ("changed", "profile"),
    [
        ({"num_pos": 2}, {}),
        ({"num_pos": 4}, {}),
        ({"num_pos": None}, {}),
        ({}, {"positions": {"number": "number_of_places"}}),
        # Positions alone tell, too.
        ({"num_pos": 2}, {"energy": None}),
        ({"num_pos": 4}, {"energy": None}),
    ],
)
def test_a_wrong_number_of_positions_is_explained_and_never_sorted(tmp_path, changed, profile):
    docs = documents(scan(MULTI), tmp_path)
    docs[0] = ("start", docs[0][1] | changed)
    motors = PROFILE.model_dump(mode="json")["txm"]["positions"]
    if "positions" not in profile:
        profile = profile | {"positions": motors}
    reason = rejected(docs, tmp_path, profile_with(**profile))
    assert "txm.positions.number" in reason
    assert "\n" not in reason


def test_positions_that_nothing_proves_are_believed_and_said(tmp_path):
    docs = documents(scan(MULTI), tmp_path)
    positions = PROFILE.model_dump(mode="json")["txm"]["positions"] | {"motors": []}
    blind = profile_with(energy=None, positions=positions)
    found = finals(docs, tmp_path, blind)
    assert len(found) == 3
    assert warned(found[0], "the order of images is believed")
    empty = [d for d in docs if d[1] not in of_stream(docs, "primary")]
    (update,) = assemble(empty, tmp_path, blind)[-1:]
    assert not warned(update, "the order of images is believed")
    extra = [("start", docs[0][1] | {"num_pos": 2}), *docs[1:]]
    assert "no energy was read back" in rejected(extra, tmp_path, blind)


@pytest.mark.parametrize("number", [0, -1, "three", 1.5, True, [2], 1 << 40, 1000])
def test_a_number_of_positions_that_is_none(tmp_path, number):
    start = documents(scan(MULTI), tmp_path)[0][1]
    with pytest.raises(NotUnderstood, match="num_pos|txm.positions.number"):
        open_assembler(start | {"num_pos": number}, [PROFILE])


def test_angle_times_energy_is_refused_by_name(tmp_path):
    docs = documents(scan(), tmp_path)
    with pytest.raises(NotUnderstood, match="angle x energy") as caught:
        open_assembler(docs[0][1] | {"angle_list": [0.0, 1.0, 2.0]}, [PROFILE])
    assert "\n" not in str(caught.value)
    for k, event in enumerate(of_stream(docs, "primary")):
        event["data"]["zps_pi_r"] = 10.0 * k
    assert "angle x energy" in rejected(docs, tmp_path)


def test_a_run_larger_than_allowed_is_refused_before_any_place_is_taken(tmp_path):
    docs = documents(scan(), tmp_path)
    taken = []

    def allocate(name, shape, dtype):
        taken.append(name)
        return np.zeros(shape, dtype)

    assembler = open_assembler(
        docs[0][1], [profile_with(max_bytes=1000)], allocate, data_roots=[tmp_path]
    )
    found = [update for name, doc in docs for update in assembler(name, doc)]
    assert (found[0].kind, taken) == ("rejected", [])
    assert "txm.max_bytes" in found[0].meta["reason"]


@pytest.mark.parametrize(
    ("energies", "sample", "edge", "said"),
    [
        (KEV, {"name": "cathode", "element": "Ni"}, "Ni_K", ""),
        (KEV, {"name": "cathode"}, "Ni_K", "taken to be Ni_K"),
        (KEV, {"element": "Er"}, "Er_L", ""),
        (KEV, {"element": "Cu"}, "Ni_K", "no K or L3 edge"),
        ((7.08, 7.11, 7.15, 7.2), {}, "Fe_K", "taken to be Fe_K"),
        ((7.1, 7.5, 7.8, 8.4), {}, None, "set txm.edge"),
        ((8.38, 8.40, 8.42, 8.44), {}, None, "none"),
    ],
)
def test_the_edge_is_the_one_that_the_energies_cross(tmp_path, energies, sample, edge, said):
    docs = documents(scan(energies=energies, metadata={"sample": sample}), tmp_path)
    (update,) = finals(docs, tmp_path)
    assert update.meta["edge"] == edge
    about = [line for line in update.meta["warnings"] if "edge" in line]
    assert bool(about) == bool(said)
    assert not said or any(said in line for line in about)
    told = finals(docs, tmp_path, profile_with(edge="Co_K"))[0]
    assert told.meta["edge"] == "Co_K"


def test_the_pixel_size_needs_readings_that_make_sense(tmp_path):
    (update,) = finals(documents(scan(baseline=False), tmp_path), tmp_path)
    assert update.meta["pixel_size_um"] is None
    assert warned(update, "txm.magnification")
    docs = documents(scan(), tmp_path)
    before, after = of_stream(docs, "baseline")
    after["data"]["DetU_z"] = 2600.0
    (moved,) = finals(docs, tmp_path)
    assert moved.meta["magnification"] == pytest.approx(323.3333, rel=1e-5)
    assert warned(moved, "magnification changed")
    before["data"]["zp_z"] = 0.0
    assert finals(docs, tmp_path)[0].meta["magnification"] == pytest.approx(336.6667, rel=1e-5)
    for name, doc in docs:
        if name == "descriptor" and "zp_z" in doc["data_keys"]:
            doc["data_keys"]["zp_z"]["units"] = "um"
    after["data"]["zp_z"] = 75000.0
    assert finals(docs, tmp_path)[0].meta["magnification"] == pytest.approx(336.6667, rel=1e-5)


@pytest.mark.parametrize("plan", PLANS)
def test_documents_that_come_while_the_files_are_written(tmp_path, plan):
    run = scan(plan)
    documents = run.documents(tmp_path)
    first = next(documents)
    assembler = open_assembler(first[1], [PROFILE], data_roots=[tmp_path])
    found = [update for name, doc in documents for update in assembler(name, doc)]
    live = [update for update in found if update.kind != "snapshot"]
    truth = run.transmission()[0]
    assert [update.kind for update in live] == ["final"] * len(truth)
    for update, expected in zip(live, truth, strict=True):
        np.testing.assert_allclose(update.arrays["transmission"], expected, rtol=2e-5)


def test_frames_of_one_stream_that_are_those_of_another(tmp_path):
    docs = documents(scan("xanes_scan"), tmp_path)
    images = [event["data"]["Andor_image"] for event in of_stream(docs, "primary")]
    for event, datum in zip(of_stream(docs, "flat"), images, strict=True):
        event["data"]["Andor_image"] = datum
    assert "flat frames are the very frames of the images" in rejected(docs, tmp_path)


def test_snapshots_of_several_stacks(tmp_path):
    profile = PROFILE.model_copy(
        update={"method": PROFILE.method.model_copy(update={"snapshot_rows": 2})}
    )
    found = assemble(documents(scan(MULTI), tmp_path), tmp_path, profile)
    shown = [(u.kind, u.stream, u.meta["rows_done"]) for u in found if u.kind == "snapshot"]
    assert shown == [("snapshot", s, 2) for s in ("primary", "primary@2", "primary@3")]


def same(one, other):
    assert [u.stream for u in one] == [u.stream for u in other]
    for a, b in zip(one, other, strict=True):
        assert a.meta == b.meta
        assert a.arrays.keys() == b.arrays.keys()
        for name, array in a.arrays.items():
            assert array.tobytes() == b.arrays[name].tobytes(), name


AGAIN = (8.34, 8.30, 8.34, 8.38)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A run of every plan, written once: {plan: (scan, its documents)} and their folder."""
    folder = tmp_path_factory.mktemp("fxi")
    runs = {plan: scan(plan, AGAIN, positions=2 if plan == MULTI else 1) for plan in PLANS}
    return {plan: (run, documents(run, folder)) for plan, run in runs.items()}, folder


@settings(deadline=None, max_examples=25)
@given(
    order=st.randoms(use_true_random=False),
    plan=st.sampled_from(PLANS),
    lost=st.integers(0, 4),
    twice=st.integers(0, 8),
)
def test_any_order_any_gap_any_duplicate(written, order, plan, lost, twice):
    (run, docs), tmp_path = written[0][plan], written[1]
    images = of_stream(docs, "primary")
    gone = order.sample(images, min(lost, len(images) - 1))
    left = [d for d in docs[1:-1] if d[1] not in gone]
    expected = finals([docs[0], *left, docs[-1]], tmp_path)
    shuffled = left + order.sample(left, twice)
    order.shuffle(shuffled)
    found = finals([docs[0], *shuffled, docs[-1]], tmp_path)
    same(found, expected)
    # The mask is true: a row is measured when an image of its energy has come.
    rows = {8.30: 0, 8.34: 1, 8.38: 2}
    there = np.zeros((len(run.truth), 3), bool)
    for event in images:
        if event not in gone:
            energy, position = divmod(event["seq_num"] - 1, len(run.truth))
            there[position, rows[AGAIN[energy]]] = True
    kept = [k for k in range(len(there)) if there[k].any()]
    assert len(found) == len(kept)
    for update, k in zip(found, kept, strict=True):
        mask = np.broadcast_to(there[k][:, None, None], (3, NY, NX))
        np.testing.assert_array_equal(update.arrays["measured"], mask)
        assert (update.arrays["transmission"][~mask] == 0).all()


@settings(deadline=None, max_examples=60)
@given(order=st.randoms(use_true_random=False), plan=st.sampled_from(PLANS))
def test_whatever_a_document_holds_the_run_ends(written, order, plan, spoiled):
    docs, tmp_path = list(written[0][plan][1]), written[1]
    for index in order.sample(range(1, len(docs) - 1), order.randint(1, 6)):
        name, doc = docs[index]
        docs[index] = (name, spoiled(doc, order))
    found = assemble(docs, tmp_path)
    assert found[-1].kind in ("final", "rejected")
    for update in found:
        for name in ("transmission", "variance"):
            assert name not in update.arrays or np.isfinite(update.arrays[name]).all()


@settings(deadline=None, max_examples=60)
@given(order=st.randoms(use_true_random=False), plan=st.sampled_from(PLANS))
def test_whatever_a_start_document_holds_it_is_understood_or_explained(
    written, order, plan, spoiled
):
    docs, tmp_path = list(written[0][plan][1]), written[1]
    start = spoiled(docs[0][1], order) | {"uid": docs[0][1]["uid"]}
    try:
        found = assemble([("start", start), *docs[1:]], tmp_path)
    except NotUnderstood:
        return
    assert found[-1].kind in ("final", "rejected")


def test_files_hold_what_the_handlers_of_area_detector_expect(tmp_path):
    run = scan()
    docs = documents(run, tmp_path)
    resources = [doc for name, doc in docs if name == "resource"]
    assert {doc["spec"] for doc in resources} == {"AD_HDF5", "AD_HDF5_TS"}
    # Dark, each image and each flat were staged for; one more file was opened and left empty.
    assert len(resources) == 2 * (2 + 2 * len(KEV))
    points = [doc["datum_kwargs"]["point_number"] for name, doc in docs if name == "datum"]
    assert set(points) == {0}
    first = tmp_path / resources[0]["resource_path"]
    with h5py.File(first, "r") as file:
        data: Any = file["entry/data/data"]
        np.testing.assert_array_equal(data[...], run.dark)
