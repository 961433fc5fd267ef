"""Measured pairs: registered to a fraction of a pixel, refused with a reason, and worth training with."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from inscan.models import superres
from inscan.models.pairs import MeasuredMap, prepare
from inscan.models.registration import axis_weights
from inscan.models.train_pairs import train_from_pairs
from inscan.models.weights import load_weights
from inscan.profiles.samples import cells

NAMES = ("P_K", "S_K", "K_K", "Ca_K")
SHIFT = (3, -7)  # grid cells of 0.1 survey pixels


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def sample():
    maps = np.asarray(cells(20).maps)[:4, :800, :800]
    return maps / maps.max(axis=(1, 2), keepdims=True)


def _scans(sample, peak=200.0, fine_peak=200.0, seed=0, pixels=60):
    """A survey of pixels of 10 grid cells, and a fine map of pixels of 5 in a stage that moved."""
    rng = np.random.default_rng(seed)
    coarse = sample.reshape(4, 80, 10, 80, 10).mean((2, 4))
    span = 5 * pixels
    part = sample[:, 200 + SHIFT[0] :, 300 + SHIFT[1] :][:, :span, :span]
    fine = part.reshape(4, pixels, 5, pixels, 5).mean((2, 4))
    survey = MeasuredMap(
        "coarse",
        NAMES,
        rng.poisson(coarse * peak),
        np.full((80, 80), peak),
        (4.5, 794.5),
        (4.5, 794.5),
    )
    end = 5 * (pixels - 1)
    near = MeasuredMap(
        "fine",
        NAMES,
        rng.poisson(fine * fine_peak),
        np.full((pixels, pixels), fine_peak),
        (202.0, 202.0 + end),
        (302.0, 302.0 + end),
    )
    return survey, near


@pytest.fixture(scope="module")
def scans(sample):
    return _scans(sample)


@pytest.fixture(scope="module")
def prepared(scans):
    return prepare(*scans, factor=2)


def test_shift_is_found_to_a_twentieth_of_a_pixel(prepared):
    assert prepared.fit, prepared.reasons
    shift, error = (np.array(prepared.figures[k]) for k in ("shift", "shift_error"))
    assert np.all(np.abs(shift - SHIFT) < 0.5)
    assert np.all(np.abs(shift - SHIFT) < 5 * error) and np.all(error < 0.5)
    assert np.allclose(prepared.figures["ratio"], 1, atol=0.06)
    assert np.allclose(prepared.figures["chi2"], 1, atol=0.25)
    assert prepared.to_dict()["fit"] is True


def test_the_pair_carries_truth_to_the_fine_counts(sample, prepared):
    """The interpolation puts the network's pixels where the fine ones are."""
    pair = prepared.pair
    rate = sample.reshape(4, 160, 5, 160, 5).mean((2, 4)) * 200
    rows, cols = pair.coarse.shape[1:]
    # Found again in the survey: the cut-out is one of its windows.
    survey = _scans(sample)[0].counts
    first = next(
        (r, c)
        for r in range(81 - rows)
        for c in range(81 - cols)
        if np.array_equal(survey[:, r : r + rows, c : c + cols], pair.coarse)
    )
    own = rate[:, 2 * first[0] : 2 * (first[0] + rows), 2 * first[1] : 2 * (first[1] + cols)]
    expected = pair.to_fine(own)
    seen = pair.gain > 0
    chi2 = ((pair.fine - expected) ** 2)[seen].sum() / expected[seen].sum()
    assert 0.9 < chi2 < 1.25
    moved = pair.to_fine(np.roll(own, 1, axis=2))
    assert ((pair.fine - moved) ** 2)[seen].sum() > 1.1 * ((pair.fine - expected) ** 2)[seen].sum()


def test_axes_that_run_down_and_fine_pixels_too_fine_are_understood(sample, scans):
    survey, near = scans
    turned = replace(
        near, counts=near.counts[:, ::-1], rows=near.rows[::-1], exposure=near.exposure[::-1]
    )
    found = prepare(survey, turned, factor=2)
    assert found.fit, found.reasons
    assert abs(found.figures["shift"][0] - SHIFT[0]) < 0.5
    # Twice as fine as asked for: added up in twos.
    rng = np.random.default_rng(3)
    part = sample[:, 203:503, 293:593].reshape(4, 100, 3, 100, 3).mean((2, 4))
    tiny = MeasuredMap(
        "tiny",
        NAMES,
        rng.poisson(part * 100),
        np.full((100, 100), 100.0),
        (201.0, 498.0),
        (301.0, 598.0),
    )
    found = prepare(survey, tiny, factor=2)
    assert found.fit, found.reasons
    assert found.pair is not None and found.pair.fine.shape[1:] == (50, 50)
    assert abs(found.figures["shift"][1] - SHIFT[1]) < 0.7


def test_what_does_not_fit_is_refused_with_its_reason(sample, scans):
    survey, near = scans

    def why(coarse, fine, **more):
        found = prepare(coarse, fine, factor=2, **more)
        assert not found.fit and found.pair is None
        return " ".join(found.reasons)

    assert "no element in common" in why(survey, replace(near, elements=("a", "b", "c", "d")))
    assert "overlap" in why(survey, replace(near, rows=(2000.0, 2295.0)))
    assert "step" in why(survey, replace(near, rows=(0.0, 790.0)))
    empty = replace(near, counts=np.random.default_rng(0).poisson(5.0, near.counts.shape))
    assert "shift" in why(survey, empty)
    assert "end of the range" in why(survey, replace(near, cols=(327.0, 622.0)), max_shift=1.0)
    dark = replace(near, counts=near.counts * 0)
    assert why(survey, dark)


def test_an_element_that_was_damaged_is_left_out(scans):
    survey, near = scans
    counts = np.random.default_rng(1).binomial(near.counts, [[[1.0]], [[0.6]], [[1.0]], [[1.0]]])
    found = prepare(survey, replace(near, counts=counts), factor=2)
    assert found.pair is not None and found.pair.elements == ("P_K", "K_K", "Ca_K")
    assert "S_K left out" in found.reasons[0]


def test_gaps_stay_gaps(scans):
    survey, near = scans
    counts = near.counts.astype(float)
    counts[:, 5:9, :] = np.nan
    found = prepare(survey, replace(near, counts=counts), factor=2)
    assert found.pair is not None
    assert (found.pair.gain[:, 5:9] == 0).all() and np.isfinite(found.pair.fine).all()


def test_malformed_maps_are_refused():
    good = MeasuredMap("a", ("x",), np.ones((1, 9, 9)), np.ones((9, 9)), (0.0, 8.0), (0.0, 8.0))
    for change, message in (
        ({"counts": np.ones((2, 9, 9))}, "elements"),
        ({"exposure": np.ones((3, 3))}, "exposure"),
        ({"counts": -np.ones((1, 9, 9))}, ">= 0"),
        ({"rows": (1.0, 1.0)}, "rows"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(good, **change)
    with pytest.raises(ValueError, match="factor"):
        prepare(good, good, factor=3)
    with pytest.raises(ValueError, match="max_shift"):
        prepare(good, good, factor=2, max_shift=0)


def test_weights_of_an_axis():
    of, to = np.arange(8.0), np.array([1.5, 3.5, 5.5])
    assert np.allclose(axis_weights(to, of, integrated=True) @ of, to)
    assert np.allclose(axis_weights(to, of, integrated=False) @ of, to)
    assert axis_weights(to + 10, of, integrated=True).sum() == 0
    assert np.allclose(axis_weights(to, of[::-1], integrated=True) @ of[::-1], to)


def test_training_keeps_only_what_predicts_held_out_counts_better(prepared, tmp_path):
    looks = []
    done = train_from_pairs(
        [prepared.pair], out=tmp_path, steps=20, progress=lambda step, _: looks.append(step)
    )
    assert looks == [0, 20] and done.pairs == 1
    assert done.kept == (tmp_path / "superres_x2_measured.safetensors").is_file()
    assert np.isfinite([done.before, done.after]).all() and "held-out" in done.reasons[0]
    if not done.kept:
        assert done.weights is None and done.to_dict()["kept"] is False


def test_weights_born_of_runs_say_so(prepared, tmp_path):
    """Weights that were spoilt on purpose gain by training, whatever the shipped ones do."""
    shipped = load_weights("superres_x2")
    tensors = dict(shipped.tensors)
    tensors["tail.bias"] = tensors["tail.bias"] + torch.tensor([0.3, 0.0])
    spoilt = replace(shipped, tensors=tensors)
    done = train_from_pairs([prepared.pair], out=tmp_path, start=spoilt, steps=20, name="mine")
    assert done.kept and done.after < done.before
    mine = load_weights("mine", tmp_path)
    assert mine.card["born_of"]["runs"] == [["coarse", "fine"]]
    assert mine.card["born_of"]["elements"] == sorted(NAMES)
    counts = prepared.pair.coarse[:, :12, :12]
    report = superres.upscale(counts, factor=2, weights=mine).report
    assert (
        report["born_of"]["runs"] == [["coarse", "fine"]] and "fine-tuned" in report["reasons"][0]
    )
    with pytest.raises(ValueError, match="by 4"):
        superres.upscale(counts, factor=4, weights=mine)


def test_nothing_to_train_with(prepared, tmp_path):
    with pytest.raises(ValueError, match="no pairs"):
        train_from_pairs([], out=tmp_path)
    with pytest.raises(ValueError, match="factors"):
        train_from_pairs([prepared.pair, replace(prepared.pair, factor=4)], out=tmp_path)
    with pytest.raises(ValueError, match="steps"):
        train_from_pairs([prepared.pair], out=tmp_path, steps=0)
