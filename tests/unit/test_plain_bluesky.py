"""Plans that Bluesky comes with become maps of the truth that went in, or say why not."""

import random

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inscan.callbacks.assembly import NotUnderstood, open_assembler
from inscan.callbacks.geometry import ScanGeometry
from inscan.callbacks.profile import BeamlineProfile, load_profile
from inscan.callbacks.updates import in_memory
from inscan.profiles.bluesky_documents import (
    Counts,
    array_documents,
    fly_documents,
    step_documents,
)
from inscan.profiles.bluesky_starts import grid, list_grid, scattered, spiral, square_spiral
from inscan.service.spool import Spool, load


def profile(xrf=None, snapshot_rows=1, **geometry):
    content = load_profile("sim_xrf").model_dump(mode="json")
    content["match"] = {"plan_type": "generator"}
    content["geometry"] |= geometry
    content["method"]["snapshot_rows"] = snapshot_rows
    content["xrf"] |= xrf or {}
    return BeamlineProfile.model_validate(content)


def assemble(documents, by=None, *, roots=(), allocate=in_memory):
    """Return the last update, and all of them."""
    documents = list(documents)
    assembler = open_assembler(documents[0][1], [by or profile()], allocate, data_roots=roots)
    updates = [update for name, doc in documents for update in assembler(name, doc)]
    return updates[-1], updates


def placed(counts, pixels, size):
    """Sum what was counted into pixels, by the definition."""
    out = np.zeros((*counts.shape[:-1], size))
    for point, pixel in enumerate(pixels):
        out[..., pixel] += counts[..., point]
    return out


def same_as_truth(final, plan, truth):
    """Compare a final with what went in, by the geometry that it says."""
    geometry = ScanGeometry.from_dict(final.meta["geometry"])
    pixels = []
    for slow, fast in plan.positions.T:
        row, col = geometry.pixel_at(slow, fast)
        pixels.append(row * geometry.shape[1] + col)
    shape = (*truth.counts.shape[:-1], *geometry.shape)
    expected = placed(truth.counts, pixels, geometry.size).reshape(shape)
    np.testing.assert_array_equal(final.arrays["counts"], expected)
    relative = truth.live_s * truth.i0 / np.median(truth.i0)
    exposure = placed(relative, pixels, geometry.size).reshape(len(relative), *geometry.shape)
    np.testing.assert_array_equal(final.arrays["exposure"], exposure.astype(np.float32))
    measured = np.bincount(pixels, minlength=geometry.size).reshape(geometry.shape) > 0
    np.testing.assert_array_equal(final.arrays["measured"], measured)
    assert np.isnan(final.arrays["position"][:, ~measured]).all()
    off = np.abs(final.arrays["position"] - geometry.positions())[:, measured]
    steps = np.abs([[geometry.slow_step], [geometry.fast_step]])
    if not (geometry.slow_centres or geometry.fast_centres):
        assert (off <= steps * 0.501).all()
    return geometry


RASTERS = {
    "grid": grid((3, 4), (0, 2), (10, 13)),
    "snake": grid((4, 3), (2, -1), (0, 1), snake=True),
    "even lists": list_grid([3, 2, 1], [0, 0.5, 1.0], snake=True),
    "uneven lists": list_grid([0, 1, 5], [8, 4, 2, 1]),
}
CLOUDS = {
    "spiral": spiral(4, 1, 6, centre=(3, -20)),
    "square spiral": square_spiral((5, 3), (-2, 2), (0, 8)),
    "lists up and down": list_grid([0, 2, 1], [0, 3, 1, 2]),
    "cycler over a grid": scattered(grid((4, 6), (0, 2), (0, 3), snake=True).positions),
    "anywhere": scattered(np.random.default_rng(0).uniform(-5, 5, (2, 80))),
    "nobody knows how many": scattered(np.random.default_rng(0).normal(0, 5, (2, 80)), known=False),
    "two motors along a line": scattered(np.tile(np.arange(12.0), (2, 1))),
}


@pytest.mark.parametrize("name", RASTERS)
def test_rasters(name):
    plan = RASTERS[name]
    truth = Counts.drawn(plan.n, seed=1)
    final, updates = assemble(step_documents(plan, truth))
    geometry = same_as_truth(final, plan, truth)
    assert final.meta["complete"]
    assert list(geometry.shape) == plan.start["shape"]
    assert [update.kind for update in updates] == ["snapshot"] * (geometry.shape[0] - 1) + ["final"]
    uneven = [w for w in final.meta["warnings"] if "not evenly spaced" in w]
    assert len(uneven) == (2 if name == "uneven lists" else 0)
    assert len(final.meta["warnings"]) == len(uneven)


@pytest.mark.parametrize("name", CLOUDS)
def test_points_anywhere(name):
    plan = CLOUDS[name]
    truth = Counts.drawn(plan.n, seed=2)
    final, updates = assemble(step_documents(plan, truth))
    same_as_truth(final, plan, truth)
    assert len(updates) == 1, "points that add up have no snapshots"
    assert final.meta["complete"]
    assert any("were put on a grid" in w and "with the step" in w for w in final.meta["warnings"])
    assert final.meta["points"]["measured"] == plan.n
    unknown = [w for w in final.meta["warnings"] if "geometry.most_points" in w]
    assert len(unknown) == (1 if name == "nobody knows how many" else 0)


def test_a_lattice_gets_its_own_pixels():
    final, _ = assemble(step_documents(CLOUDS["cycler over a grid"], Counts.drawn(24)))
    assert final.arrays["measured"].shape == (4, 6)
    assert final.arrays["measured"].all()
    final, _ = assemble(step_documents(CLOUDS["square spiral"], Counts.drawn(15)))
    assert final.arrays["measured"].shape == (5, 3)
    assert final.arrays["measured"].all()
    assert "extents and shape of the plan" in " ".join(final.meta["warnings"])


def test_the_profile_sets_the_step():
    plan = CLOUDS["anywhere"]
    truth = Counts.drawn(plan.n)
    final, _ = assemble(step_documents(plan, truth), profile(grid_step=[4.0, 2.0]))
    geometry = same_as_truth(final, plan, truth)
    assert (geometry.slow_step, geometry.fast_step) == (4.0, 2.0)
    assert "from geometry.grid_step" in " ".join(final.meta["warnings"])
    final, _ = assemble(step_documents(plan, truth), profile(grid_step=[1e-6, 1e-6]))
    assert final.kind == "rejected"
    assert "geometry.grid_step" in final.meta["reason"]
    assert "geometry" not in final.meta


@pytest.mark.parametrize("snake", [False, True])
def test_a_relative_grid_lies_where_the_readbacks_say(snake):
    plan = grid((3, 4), (-1, 1), (-3, 3), snake=snake, relative_to=(100.0, -7.25))
    truth = Counts.drawn(plan.n)
    final, updates = assemble(step_documents(plan, truth))
    geometry = same_as_truth(final, plan, truth)
    assert (geometry.slow_first, geometry.fast_last) == (99.0, -4.25)
    assert geometry.planned
    (said,) = final.meta["warnings"]
    assert "100 um (sample_y) and -7.25 um (sample_x)" in said
    assert updates[0].meta["geometry"] == final.meta["geometry"]


def test_a_relative_grid_without_readbacks_has_no_place():
    plan = grid((3, 4), (-1, 1), (-3, 3), relative_to=(100.0, -7.25))
    documents = list(step_documents(plan, Counts.drawn(plan.n)))
    for name, doc in documents:
        for motor in plan.motors:
            for part in ("data_keys", "data", "timestamps"):
                doc.get(part, {}).pop(motor, None)
        assert name
    final, _ = assemble(documents)
    assert final.kind == "final"
    assert final.meta["complete"]
    assert "geometry" not in final.meta, "a rescan would send motors to places nobody knows"
    assert np.isnan(final.arrays["position"]).all()
    assert "[" not in next(w for w in final.meta["warnings"] if "the map has no place" in w)


def test_relative_readbacks_that_jump_are_counted():
    plan = grid((3, 4), (-1, 1), (-3, 3), relative_to=(5, 5))
    documents = list(step_documents(plan, Counts.drawn(plan.n)))
    documents[5][1]["data"]["sample_x"] += 50
    final, _ = assemble(documents)
    assert any("more than half a step" in w for w in final.meta["warnings"])
    said = profile(relative=True)
    final, _ = assemble(step_documents(RASTERS["grid"], Counts.drawn(12)), said)
    assert "relative" in " ".join(final.meta["warnings"])
    final, _ = assemble(step_documents(plan, Counts.drawn(12)), profile(relative=False))
    assert "more than half a step" in " ".join(final.meta["warnings"])


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(["snake", "uneven lists", "spiral", "anywhere", "nobody knows how many"]),
    seed=st.integers(0, 1000),
    lose=st.sampled_from([0, 1, 5]),
)
def test_any_order_any_duplicate_any_gap(name, seed, lose):
    plan = (RASTERS | CLOUDS)[name]
    truth = Counts.drawn(plan.n, seed=3)
    documents = list(step_documents(plan, truth))
    head, events, stop = documents[:2], documents[2:-1], documents[-1]
    rng = random.Random(seed)
    lost = set(rng.sample(range(plan.n), lose))
    kept = [event for point, event in enumerate(events) if point not in lost]
    mixed = kept + rng.sample(kept, 5)
    rng.shuffle(mixed)
    orderly, _ = assemble([*head, *kept, stop])
    final, _ = assemble([*head, *mixed, stop])
    assert final.meta["geometry"] == orderly.meta["geometry"]
    for key, values in orderly.arrays.items():
        np.testing.assert_array_equal(final.arrays[key], values, err_msg=key)
    seen = np.array([point not in lost for point in range(plan.n)])
    assert final.arrays["counts"].sum() == truth.counts[..., seen].sum()
    assert final.meta["complete"] == (not lost or name.startswith("nobody") and lost == set())


def test_a_point_without_a_position_is_left_out_and_counted():
    plan = CLOUDS["anywhere"]
    truth = Counts.drawn(plan.n)
    documents = list(step_documents(plan, truth))
    for event in (3, 9):
        documents[2 + event][1]["data"]["sample_y"] = float("nan")
    final, _ = assemble(documents)
    kept = np.ones(plan.n, bool)
    kept[[3, 9]] = False
    assert final.arrays["counts"].sum() == truth.counts[..., kept].sum()
    assert (
        "measured points without a position: left out of the map [2 times]"
        in (final.meta["warnings"])
    )
    assert not final.meta["complete"]
    assert final.meta["points"]["without_position"] == 2


def test_points_beyond_those_planned_are_counted():
    plan = CLOUDS["anywhere"]
    documents = list(step_documents(plan, Counts.drawn(plan.n), num_points=70))
    final, _ = assemble(documents)
    assert final.meta["points"]["measured"] == 70
    assert any("beyond" in w and "[10 times]" in w for w in final.meta["warnings"])
    said = "place is kept for 70 points, the last was number 80: set geometry.most_points"
    assert any(said in w for w in final.meta["warnings"])
    assert not final.meta["complete"]
    final, _ = assemble(documents, profile(most_points=80))
    assert final.meta["points"]["measured"] == 80, "the profile's number is the least that is kept"
    unknown = CLOUDS["nobody knows how many"]
    final, _ = assemble(step_documents(unknown, Counts.drawn(80)), profile(most_points=50))
    assert final.meta["points"]["measured"] == 50
    assert any("beyond" in w and "[30 times]" in w for w in final.meta["warnings"])


def test_an_interrupted_spiral_is_a_map_of_what_was_measured():
    plan = CLOUDS["spiral"]
    truth = Counts.drawn(plan.n)
    documents = list(step_documents(plan, truth))
    stop = documents[-1][1] | {"exit_status": "abort", "reason": "beam lost"}
    final, _ = assemble([*documents[:22], ("stop", stop)])
    assert final.kind == "final"
    assert not final.meta["complete"]
    assert final.arrays["counts"].sum() == truth.counts[..., :20].sum()
    assert final.arrays["measured"].sum() <= 20


def test_points_that_record_no_position_are_not_understood():
    documents = list(step_documents(CLOUDS["spiral"], Counts.drawn(CLOUDS["spiral"].n)))
    del documents[1][1]["data_keys"]["sample_x"]
    final, _ = assemble(documents)
    assert final.kind == "rejected"
    assert "'sample_x'" in final.meta["reason"]
    assert "geometry.slow_readback" in final.meta["reason"]


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (
            {"motors": ["x", "y", "z"], "shape": [2, 3, 4], "extents": [[0, 1]] * 3},
            "two axes.*geometry.shape",
        ),
        ({"motors": ["x", "y", "z"]}, "two axes.*geometry.motors"),
        ({"motors": ["x"]}, "two axes.*geometry.motors"),
        ({}, "no 'motors'.*geometry.motors"),
        ({"motors": ["x", "x"]}, "two different"),
        ({"motors": [1, 2]}, "two names"),
        ({"motors": ["x", "y"], "num_points": 1 << 40}, "at most"),
        ({"motors": {"x": 1}}, "two axes"),
    ],
)
def test_what_is_no_map_is_said_in_one_line(start, said):
    with pytest.raises(NotUnderstood, match=said) as caught:
        open_assembler({"uid": "a" * 8, "plan_type": "generator"} | start, [profile()])
    assert "\n" not in str(caught.value)


def test_a_shape_without_extents_is_no_raster():
    """Plans built on scan_nd write the shape of their grid, and neither order nor places."""
    plan = scattered(grid((4, 6), (0, 2), (0, 3), snake=True).positions)
    truth = Counts.drawn(plan.n)
    final, _ = assemble(step_documents(plan, truth, shape=[4, 6]))
    geometry = same_as_truth(final, plan, truth)
    assert geometry.shape == (4, 6)


@pytest.mark.parametrize("files", [1, 3])
@pytest.mark.parametrize("name", ["snake", "spiral", "nobody knows how many"])
def test_a_fly_scan_without_events(tmp_path, name, files):
    plan = (RASTERS | CLOUDS)[name]
    truth = Counts.drawn(plan.n, seed=4)
    documents = fly_documents(plan, truth, tmp_path, files=files, points_per_datum=7)
    final, _ = assemble(documents, roots=[tmp_path])
    same_as_truth(final, plan, truth)
    assert final.meta["complete"]
    assert not [w for w in final.meta["warnings"] if "left out" in w]


def test_a_stream_with_the_same_keys_is_left_alone(tmp_path):
    plan = RASTERS["snake"]
    truth = Counts.drawn(plan.n)
    documents = list(fly_documents(plan, truth, tmp_path, dark=5))
    final, _ = assemble(documents, roots=[tmp_path])
    same_as_truth(final, plan, truth)
    assert final.meta["warnings"] == []


def test_a_plan_counts_triggers_where_a_box_counts_points(tmp_path):
    plan = CLOUDS["spiral"]
    truth = Counts.drawn(plan.n)
    documents = fly_documents(plan, truth, tmp_path, num_points=1)
    final, _ = assemble(documents, roots=[tmp_path])
    same_as_truth(final, plan, truth)
    assert any("geometry.most_points" in w for w in final.meta["warnings"])


def test_a_fly_scan_whose_box_alone_names_the_axes(tmp_path):
    plan = CLOUDS["cycler over a grid"]
    truth = Counts.drawn(plan.n)
    documents = list(fly_documents(plan, truth, tmp_path, baseline=False))
    for key in ("motors", "num_points", "hints"):
        del documents[0][1][key]
    by = profile(slow_readback="sample_y", fast_readback="sample_x")
    final, _ = assemble(documents, by, roots=[tmp_path])
    same_as_truth(final, plan, truth)
    assert final.arrays["measured"].shape == (4, 6)


@pytest.mark.parametrize("seed", range(3))
def test_a_fly_scan_in_any_order_with_gaps(tmp_path, seed):
    plan = CLOUDS["spiral"]
    truth = Counts.drawn(plan.n)
    documents = list(fly_documents(plan, truth, tmp_path, files=2, points_per_datum=5))
    rng = random.Random(seed)
    start, stop, rest = documents[0], documents[-1], documents[1:-1]
    datums = [d for d in rest if d[0] == "stream_datum"]
    lost = rng.choice([d for d in datums if d[1]["seq_nums"]["start"] == 11])
    mixed = [d for d in rest if d is not lost] + datums[:3]
    rng.shuffle(mixed)
    # An aborted run: nothing says that the rest of a file belongs to it.
    ending = ("stop", stop[1] | {"exit_status": "abort"})
    final, _ = assemble([start, *mixed, ending], roots=[tmp_path])
    gap = range(lost[1]["seq_nums"]["start"] - 1, lost[1]["seq_nums"]["stop"] - 1)
    seen = np.array([point not in gap for point in range(plan.n)])
    assert final.arrays["counts"].sum() <= truth.counts[..., seen].sum()
    assert final.meta["points"]["measured"] - final.meta["points"]["without_position"] >= seen.sum()
    assert not final.meta["complete"]


def test_positions_that_a_file_does_not_hold_are_missed(tmp_path):
    plan = CLOUDS["anywhere"]
    truth = Counts.drawn(plan.n)
    documents = list(fly_documents(plan, truth, tmp_path))
    with h5py.File(tmp_path / "box.h5", "a") as file:
        file["entry/data/sample_x"][10:20] = np.nan  # type: ignore[index]
    final, _ = assemble(documents, roots=[tmp_path])
    seen = np.ones(plan.n, bool)
    seen[10:20] = False
    assert final.arrays["counts"].sum() == truth.counts[..., seen].sum()


@pytest.mark.parametrize("name", ["snake", "spiral"])
def test_four_elements_in_one_array(name):
    plan = (RASTERS | CLOUDS)[name]
    spectra = np.random.default_rng(0).poisson(0.5, (plan.n, 4, 2000)).astype(np.uint32)
    by = profile(
        {
            "step": {"spectrum": "fluor", "i0": None},
            "fly": None,
            "elements": {
                "source": "spectrum",
                "lines": ["Fe_K", "Zn_K"],
                "energy_per_bin_ev": 10.0,
                "background": "none",
            },
        }
    )
    final, _ = assemble(array_documents(plan, spectra), by)
    assert final.meta["channels"] == [1, 2, 3, 4]
    low, high = final.meta["windows_ev"][0]
    energies = 10.0 * np.arange(2000)
    # By the bins that lie wholly inside; a window's edges take parts of two more.
    inside = (energies - 5 >= low) & (energies + 5 <= high)
    total = final.arrays["counts"][:, 0].sum()
    assert total >= spectra[..., inside].sum()
    outer = (energies + 5 >= low) & (energies - 5 <= high)
    assert total <= spectra[..., outer].sum()


def test_arrays_come_from_where_they_are_asked_for():
    made = {}

    def allocate(name, shape, dtype):
        made[name] = np.zeros(shape, dtype)
        return made[name]

    plan = CLOUDS["spiral"]
    final, _ = assemble(step_documents(plan, Counts.drawn(plan.n)), allocate=allocate)
    for name, values in final.arrays.items():
        assert values is made[name]
    assert made["points_counts"].shape == (2, 3, 1, plan.n)


def test_a_final_of_points_is_what_the_spool_maps(tmp_path):
    """Also when the service restarts in the middle and assembles the run again."""
    plan = CLOUDS["spiral"]
    truth = Counts.drawn(plan.n)
    documents = list(step_documents(plan, truth))
    stop = documents[-1][1] | {"exit_status": "abort"}
    for part in ([*documents[:20], ("stop", stop)], documents):
        run = Spool(tmp_path, budget=1 << 30, min_free=0).run("run-1")
        final, _ = assemble(part, allocate=run.allocate)
        specs = {name: run.spec(name, values) for name, values in final.arrays.items()}
        for name, values in load(run.folder, specs).items():
            np.testing.assert_array_equal(values, final.arrays[name])
            assert isinstance(final.arrays[name], np.memmap), "mapped, not copied"
    same_as_truth(final, plan, truth)


def test_whole_rows_of_points_are_not_understood():
    plan = CLOUDS["spiral"]
    by = profile({"rows": {"stream": "primary", "spectrum": "fluor"}, "step": None, "fly": None,
                  "elements": {"source": "spectrum", "lines": ["Fe_K"],
                               "energy_per_bin_ev": 10.0, "energy_offset_ev": 0.0}})  # fmt: skip
    final, _ = assemble(array_documents(plan, np.ones((plan.n, 4, 64), np.uint32)), by)
    assert final.kind == "rejected"
    assert "whole rows" in final.meta["reason"]
    assert "geometry" not in final.meta
