"""Coarse and fine maps in one estimate: counts add up where they agree, and nothing is averaged that does not."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inscan.models.composite import Channels, Layer, compose
from inscan.models.composite_place import place
from inscan.profiles.samples import cells

NAMES = ("P_K", "S_K", "K_K", "Ca_K")
CELLS = 20  # of the sample on the side of a survey pixel
SIDE = 40
BOX = (18, 29, 25, 37)
PEAK = 60.0


@pytest.fixture(scope="module")
def sample() -> np.ndarray:
    maps = np.asarray(cells(20).maps)[:4]
    return maps / maps.max(axis=(1, 2), keepdims=True)


class Bench:
    """Scans of a sample that is known."""

    def __init__(self, sample: np.ndarray, peak: float = PEAK) -> None:
        self.sample = sample[:, : SIDE * CELLS, : SIDE * CELLS]
        self.whole = sample
        self.peak = peak

    def survey(self, seed: int = 0, sampling: str = "box") -> Layer:
        rng = np.random.default_rng([seed, 1])
        if sampling == "box":
            seen = self.sample.reshape(4, SIDE, CELLS, SIDE, CELLS).mean((2, 4))
        else:
            half = CELLS // 2
            blocks = self.sample.reshape(4, SIDE, CELLS, SIDE, CELLS)
            seen = blocks[:, :, half - 3 : half + 3, :, half - 3 : half + 3].mean((2, 4))
        centres = np.arange(SIDE, dtype=np.float64)
        counts = rng.poisson(seen * self.peak).astype(float)
        return Layer("survey", NAMES, counts, np.ones((SIDE, SIDE)), centres, centres)

    def fine(
        self,
        seed: int = 0,
        *,
        parts: int = 4,
        dose: float = 32.0,
        box: tuple[int, int, int, int] = BOX,
        shift: tuple[float, float] = (0.0, 0.0),
        damage: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0),
        beam: float = 1.0,
        time: float = 1.0,
        uid: str = "fine",
    ) -> Layer:
        """A map of survey pixels `box`, in a stage that is off by `shift` survey pixels."""
        rng = np.random.default_rng([seed, 2])
        r0, r1, c0, c1 = box
        down, right = (round(s * CELLS) for s in shift)
        part = self.whole[
            :, r0 * CELLS + down : r1 * CELLS + down, c0 * CELLS + right : c1 * CELLS + right
        ]
        rows, cols, size = (r1 - r0) * parts, (c1 - c0) * parts, CELLS // parts
        light = dose / parts**2
        rate = part.reshape(4, rows, size, cols, size).mean((2, 4)) * self.peak * light * beam
        rate = rate * np.asarray(damage)[:, None, None]
        return Layer(
            uid,
            NAMES,
            rng.poisson(rate).astype(float),
            np.full((rows, cols), light),
            r0 - 0.5 + (np.arange(rows) + 0.5) / parts,
            c0 - 0.5 + (np.arange(cols) + 0.5) / parts,
            time=time,
            label=f"region {uid}",
        )

    def truth(self, parts: int) -> np.ndarray:
        size = CELLS // parts
        n = SIDE * parts
        return self.sample.reshape(4, n, size, n, size).mean((2, 4)) * self.peak


@pytest.fixture(scope="module")
def bench(sample: np.ndarray) -> Bench:
    return Bench(sample)


def test_maps_of_one_step_add_up_pixel_by_pixel(bench: Bench) -> None:
    survey, fine = bench.survey(), bench.fine(parts=1, dose=3.0)
    made = compose(survey, [fine])
    expected, light = survey.counts.copy(), survey.exposure.copy()
    expected[:, 18:29, 25:37] += fine.counts
    light[18:29, 25:37] += 3.0
    np.testing.assert_array_equal(made.counts, expected)
    np.testing.assert_allclose(made.exposure, np.broadcast_to(light, expected.shape), rtol=0.02)
    assert (made.source[18:29, 25:37] == 3).all() and (made.source == 3).sum() == 132
    assert made.layers[0]["agrees"] and not made.disagrees.any()
    # Four times the light: half the uncertainty.
    before = compose(survey, []).sigma[:, 18:29, 25:37]
    shrunk = np.median(made.sigma[:, 18:29, 25:37] / before)
    assert 0.4 < shrunk < 0.6


def test_finer_counts_stand_as_they_are_and_the_survey_adds_its_own(bench: Bench) -> None:
    survey, fine = bench.survey(), bench.fine(dose=16.0)
    made = compose(survey, [fine])
    assert made.parts == (4, 4) and made.values.shape == (4, 160, 160)
    inside = made.counts[:, 72:116, 100:148].astype(float)
    own = survey.counts[:, 18:29, 25:37]
    assert inside.sum() == pytest.approx(fine.counts.sum() + own.sum(), rel=1e-5)
    assert (inside >= fine.counts - 1e-3).all(), "no fine count is taken away"
    blocks = (inside - fine.counts).reshape(4, 11, 4, 12, 4).sum((2, 4))
    np.testing.assert_allclose(blocks, own, atol=1e-2)
    # Places that were only surveyed keep the survey's values and counts.
    away = made.values[:, :72].reshape(4, 18, 4, 40, 4)
    np.testing.assert_allclose(away.std((2, 4)), 0, atol=1e-3)
    np.testing.assert_allclose(away.mean((2, 4)), survey.counts[:, :18], rtol=1e-5)
    assert made.coarse.counts.sum() == pytest.approx(made.counts.sum(), rel=1e-5)
    there = made.coarse.sigma[:, 18:29, 25:37] / compose(survey, []).sigma[:, 18:29, 25:37]
    assert np.median(there) < 1.05 and made.source.max() == 3


def test_it_is_nearer_to_the_truth_where_it_was_measured_again(bench: Bench) -> None:
    survey, fine = bench.survey(1), bench.fine(1)
    made = compose(survey, [fine])
    truth = bench.truth(4)
    again = made.source == 3
    error = np.abs(made.values - truth)[:, again]
    before = np.abs(np.kron(survey.counts, np.ones((1, 4, 4))) - truth)[:, again]
    assert np.sqrt((error**2).mean()) < 0.8 * np.sqrt((before**2).mean())
    z = (made.values - truth)[:, again] / made.sigma[:, again]
    assert np.sqrt((z**2).mean()) < 1.6


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.5, -0.5), (1.5, 1.5)])
def test_a_drift_is_found_within_its_error(
    bench: Bench, shift: tuple[float, float], parts: int
) -> None:
    for seed in range(2):
        survey = bench.survey(seed)
        # Of one step both maps are noisy: they need more light.
        dose = 32.0 if parts == 4 else 8.0
        found = place(survey, bench.fine(seed, parts=parts, dose=dose, shift=shift), max_shift=2.0)
        assert found.found, found.reason
        off = np.abs(found.shift - shift)
        assert (off <= 3 * found.error + 0.02).all(), (found.shift, found.error)
        assert (found.error < 0.6).all()


def test_what_is_to_be_added_to_the_stage_is_the_other_way(bench: Bench) -> None:
    made = compose(bench.survey(), [bench.fine(shift=(1.5, -0.5))])
    (layer,) = made.layers
    assert layer["found"] and layer["agrees"]
    assert layer["shift"] == pytest.approx([-1.5, 0.5], abs=0.15)
    # It is put where it belongs, not where it was sent.
    rows, cols = np.nonzero(made.source >= 2)
    assert rows.min() in (77, 78, 79) and cols.max() in (144, 145, 146)


def test_beyond_the_largest_shift_a_map_is_not_found_and_left_out(bench: Bench) -> None:
    survey, fine = bench.survey(), bench.fine(shift=(2.6, 0.0))
    made = compose(survey, [fine], max_shift=2.0)
    (layer,) = made.layers
    assert not layer["found"] and not layer["used"] and not layer["agrees"]
    assert "2.6" in layer["reason"] and layer["shift"] == [0.0, 0.0]
    np.testing.assert_array_equal(made.counts, survey.counts)
    assert compose(survey, [fine], max_shift=3.0).layers[0]["found"]


def test_maps_of_another_place_are_left_out(bench: Bench) -> None:
    survey, fine = bench.survey(), bench.fine(box=(5, 16, 5, 17))
    elsewhere = replace(fine, rows=fine.rows + 13, cols=fine.cols + 20)
    made = compose(survey, [elsewhere])
    assert not made.layers[0]["found"] and (made.source == 1).all()
    far = replace(fine, rows=fine.rows + 500)
    assert "does not lie on the survey" in compose(survey, [far]).layers[0]["reason"]


def test_damage_is_reported_and_not_averaged(bench: Bench) -> None:
    survey, fine = bench.survey(), bench.fine(damage=(1.0, 1.0, 1.0, 0.75))
    made = compose(survey, [fine])
    (layer,) = made.layers
    assert layer["found"] and not layer["agrees"]
    assert layer["elements"] == {"P_K": True, "S_K": True, "K_K": True, "Ca_K": False}
    assert "Ca_K: its rate fell by" in layer["reason"] and "damage" in made.text
    fell = 100 * (1 - 1 / layer["figures"]["ratio"][3])
    assert fell == pytest.approx(25, abs=6)
    inside = np.zeros(made.source.shape, dtype=bool)
    inside[72:116, 100:148] = True
    assert made.disagrees[3][inside].all() and not made.disagrees[:3].any()
    np.testing.assert_allclose(made.counts[3, 72:116, 100:148], fine.counts[3], rtol=1e-5)
    assert made.counts[0, 72:116, 100:148].sum() > fine.counts[0].sum()


def test_what_falls_with_every_scan_is_called_damage(bench: Bench) -> None:
    survey = bench.survey()
    once = bench.fine(1, damage=(1, 1, 1, 0.8), time=1.0, uid="first")
    twice = bench.fine(2, damage=(1, 1, 1, 0.6), time=2.0, uid="second")
    made = compose(survey, [twice, once])
    assert "Ca_K falls with the dose" in made.text
    # The newest stands alone in that element; the others add up.
    at = (slice(72, 116), slice(100, 148))
    np.testing.assert_allclose(made.counts[3][at], twice.counts[3], rtol=1e-5)
    both = once.counts[0].sum() + twice.counts[0].sum() + survey.counts[0, 18:29, 25:37].sum()
    assert made.counts[0][at].sum() == pytest.approx(both, rel=1e-4)
    assert [layer["uid"] for layer in made.layers] == ["first", "second"]


def test_a_change_of_the_beam_is_one_factor_and_no_damage(bench: Bench) -> None:
    made = compose(bench.survey(), [bench.fine(beam=0.8)])
    (layer,) = made.layers
    assert layer["agrees"] and layer["beam"] == pytest.approx(0.8, abs=0.03)
    told = replace(bench.fine(beam=0.8), relative=(0.8, 0.4))
    assert compose(bench.survey(), [told]).layers[0]["beam"] == pytest.approx(0.8, abs=0.03)
    lost = compose(bench.survey(), [bench.fine(beam=0.3)]).layers[0]
    assert not lost["agrees"] and "all elements together" in lost["reason"]


def test_the_order_of_the_fine_maps_does_not_matter(bench: Bench) -> None:
    survey = bench.survey()
    fine = [
        bench.fine(1, time=1.0, uid="a"),
        bench.fine(2, time=2.0, uid="b", box=(24, 34, 27, 36)),
        bench.fine(4, time=4.0, uid="d", box=(4, 14, 24, 34), parts=1, dose=4.0),
    ]
    made, other = compose(survey, fine), compose(survey, [fine[k] for k in (2, 0, 1)])
    for name in ("values", "sigma", "counts", "exposure", "source", "disagrees"):
        np.testing.assert_array_equal(getattr(made, name), getattr(other, name))
    assert made.layers == other.layers and made.text == other.text
    total = survey.counts.sum() + sum(one.counts.sum() for one in fine)
    assert all(layer["agrees"] for layer in made.layers), made.text
    assert made.counts.sum() == pytest.approx(total, rel=1e-5)


def test_a_survey_of_points_is_recognised(sample: np.ndarray) -> None:
    bench = Bench(sample, 2000.0)
    found = place(bench.survey(0, "point"), bench.fine(0, dose=64.0), max_shift=2.0)
    assert found.sampling == "point" and found.found, found.reason


def test_what_was_not_measured_stays_masked(bench: Bench) -> None:
    survey, fine = bench.survey(), bench.fine()
    seen = np.ones((SIDE, SIDE), dtype=bool)
    seen[:, :3] = False
    seen[20:22, 28:30] = False
    half = np.ones(fine.exposure.shape, dtype=bool)
    half[30:] = False
    made = compose(replace(survey, measured=seen), [replace(fine, measured=half)])
    assert np.isnan(made.values[:, :, :12]).all() and (made.source[:, :12] == 0).all()
    assert np.isfinite(made.values[:, 4 * 20 : 4 * 22, 4 * 28 : 4 * 30]).all(), "seen finely"
    assert (made.source[72 + 30 : 116, 100:148] == 1).all()
    assert (np.isfinite(made.values) == (made.source > 0)).all()


def test_a_grid_too_large_is_made_coarser_and_that_is_said(bench: Bench) -> None:
    made = compose(bench.survey(), [bench.fine()], most_pixels=4 * SIDE**2)
    assert made.parts == (2, 2) and "2 x 2" in made.text
    total = bench.survey().counts.sum() + bench.fine().counts.sum()
    assert made.counts.sum() == pytest.approx(total, rel=1e-5)


def test_channels_go_through_the_sum(bench: Bench) -> None:
    rng = np.random.default_rng(0)
    layers = []
    for layer in (bench.survey(), bench.fine(parts=1, dose=2.0)):
        first = rng.binomial(layer.counts.astype(int), 0.4).astype(np.float32)
        counts = np.stack([first, layer.counts - first]).astype(np.float32)
        light = np.stack([layer.exposure] * 2).astype(np.float32)
        layers.append(replace(layer, channels=Channels(counts, light)))
    seen: list[Any] = []

    def keep(summed: Any) -> Any:
        from inscan.models.composite import counted

        seen.append(summed.counts.copy())
        return counted(summed)

    compose(layers[0], [layers[1]], denoise=keep)
    (summed,) = seen
    expected = layers[0].channels.counts.copy()
    expected[:, :, 18:29, 25:37] += layers[1].channels.counts
    np.testing.assert_array_equal(summed, expected)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rows": np.r_[0.0, 5.0, np.arange(2.0, 40.0)]}, "unevenly spaced"),
        ({"counts": np.zeros((4, 3, 3))}, "exposure has shape"),
        ({"counts": -np.ones((4, 40, 40))}, ">= 0"),
        ({"relative": ()}, "relative"),
    ],
)
def test_layers_that_make_no_sense_are_refused(bench: Bench, change: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(bench.survey(), **change)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    st.integers(0, 30),
    st.integers(0, 30),
    st.integers(4, 10),
    st.integers(4, 10),
    st.sampled_from([1, 2, 4, 5]),
    st.booleans(),
    st.booleans(),
)
def test_counts_are_never_lost_whatever_the_geometry(
    sample: np.ndarray,
    row: int,
    col: int,
    height: int,
    width: int,
    parts: int,
    falling: bool,
    turned: bool,
) -> None:
    bench = Bench(sample)
    survey = bench.survey()
    box = (row, min(SIDE, row + height), col, min(SIDE, col + width))
    fine = bench.fine(box=box, parts=parts, dose=4.0)
    if falling:
        fine = replace(fine, rows=fine.rows[::-1], counts=fine.counts[:, ::-1])
    if turned:
        survey = replace(survey, cols=survey.cols[::-1], counts=survey.counts[:, :, ::-1])
    made = compose(survey, [fine])
    (layer,) = made.layers
    total = survey.counts.sum() + (fine.counts.sum() if layer["used"] else 0)
    if layer["agrees"] and not made.disagrees.any() and not any(layer["shift"]):
        assert made.counts.sum() == pytest.approx(total, rel=1e-4)
    else:
        assert made.counts.sum() <= total * (1 + 1e-5)
    assert (np.isfinite(made.values) == (made.source > 0)).all()
    assert (made.sigma[np.isfinite(made.sigma)] > 0).all()
    assert made.values.shape[1:] == (made.rows.size, made.cols.size)
    assert made.rows[0] == pytest.approx(survey.rows[0] - 0.5 + 0.5 / made.parts[0])
