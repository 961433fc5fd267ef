"""Super-resolution: better than interpolation, in place to a fraction of a pixel, honest."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from inscan.models import superres
from inscan.models.edsr import SuperResolver
from inscan.models.superres_input import ForwardModel, Sampling
from inscan.models.superres_trust import unsupported
from inscan.profiles.samples import cells


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def truth():
    """Elements of cells on 64 x 64 fine pixels, peak 1; a family that training never drew."""
    maps = cells(1, width=24.0, pixel_size=0.125).maps[:4, 64:128, 64:128]
    return maps / maps.max(axis=(1, 2), keepdims=True)


def _coarse(fine, factor, peak, seed=0):
    return np.random.default_rng(seed).poisson(ForwardModel(factor).apply(fine) * peak)


def _bicubic(coarse, factor):
    x = torch.from_numpy(np.asarray(coarse, dtype=np.float32))[None]
    return F.interpolate(x, scale_factor=factor, mode="bicubic")[0].numpy()


def _psnr(image, truth):
    return float(np.mean(-10 * np.log10(((image - truth) ** 2).mean(axis=(1, 2)))))


@pytest.fixture(scope="module")
def doubled(truth):
    counts = _coarse(truth, 2, 200)
    return counts, superres.upscale(counts, factor=2)


@pytest.mark.parametrize(("factor", "gain"), [(2, 1.0), (4, 0.3)])
def test_beats_aligned_bicubic_on_an_unseen_family(truth, factor, gain):
    counts = _coarse(truth, factor, 200)
    estimate = superres.upscale(counts, factor=factor)
    assert estimate.values.shape == truth.shape
    ours, theirs = _psnr(estimate.values / 200, truth), _psnr(_bicubic(counts, factor) / 200, truth)
    assert ours > theirs + gain, (ours, theirs)
    assert estimate.report["verdict"] == "pass", estimate.report["reasons"]


@pytest.mark.parametrize("factor", [2, 4])
def test_no_shift_of_half_a_pixel(truth, factor):
    """The shift that fits best, to a tenth of a fine pixel, is none."""
    values = superres.upscale(_coarse(truth, factor, 5000), factor=factor).values / 5000
    frequencies = [np.fft.fftfreq(n) for n in truth.shape[1:]]

    def moved(image, down, right):
        phase = frequencies[0][:, None] * down + frequencies[1][None, :] * right
        return np.fft.ifft2(np.fft.fft2(image) * np.exp(-2j * np.pi * phase)).real

    inner = (slice(None), slice(8, -8), slice(8, -8))

    def error(down, right):
        return ((moved(values, down, right) - truth)[inner] ** 2).mean()

    here = error(0, 0)
    for down, right in ((0.3, 0), (-0.3, 0), (0, 0.3), (0, -0.3)):
        assert here < error(down, right)
    assert here < 0.8 * error(factor / 2, factor / 2)


def test_totals_are_those_of_the_counts(truth, doubled):
    counts, estimate = doubled
    block = ForwardModel(2).apply(estimate.values)
    assert np.allclose(block.sum(axis=(1, 2)), counts.sum(axis=(1, 2)), rtol=1e-4)
    assert (estimate.values >= 0).all()


def test_intervals_hold_what_they_say(truth, doubled):
    _, estimate = doubled
    low, high = estimate.interval(0.9)
    inside = (truth * 200 >= low) & (truth * 200 <= high)
    assert 0.8 < inside.mean() < 0.98
    z = (estimate.values - truth * 200) / estimate.sigma
    assert 0.5 < np.sqrt(np.mean(z**2)) < 1.5


def test_elements_may_come_in_any_number_and_order(doubled):
    counts, estimate = doubled
    order = [2, 0, 3, 1]
    swapped = superres.upscale(counts[order], factor=2)
    assert np.allclose(swapped.values, estimate.values[order], rtol=0.02, atol=1.0)
    alone = superres.upscale(counts[:1], factor=2)
    assert alone.values.shape == (1, *estimate.values.shape[1:])


def test_same_input_same_bytes(doubled):
    counts, estimate = doubled
    again = superres.upscale(counts, factor=2, seed=3)
    assert np.array_equal(again.values, estimate.values)
    assert estimate.doubtful is not None and again.doubtful is not None
    assert np.array_equal(again.doubtful, estimate.doubtful)


def test_large_maps_in_tiles_equal_small_ones():
    counts = np.random.default_rng(0).poisson(20, (1, 12, 330))
    whole = superres.upscale(counts, factor=2).values
    part = superres.upscale(counts[:, :, :200], factor=2).values
    # Only the normalisation, the brightest neighbourhood, may differ: half precision.
    assert np.abs(whole[:, :, :300] - part[:, :, :300]).max() < 1.0


def test_folded_back_it_leaves_the_noise_and_no_more(doubled):
    _, estimate = doubled
    figures = estimate.report["figures"]
    assert np.all(np.abs(np.array(figures["consistency_chi2"]) - 1) < 0.3)
    assert all(0 < share < 0.7 for share in figures["share_of_noise_followed"])


def test_unfamiliar_maps_are_named(doubled):
    counts, estimate = doubled
    assert max(estimate.report["figures"]["out_of_distribution"]) < 1.2
    chess = 2000.0 * (np.indices((48, 48)).sum(axis=0) % 2)[None]
    report = superres.upscale(chess, factor=2).report
    assert report["verdict"] == "warn"
    assert any("unlike" in reason for reason in report["reasons"])


def test_doubt_falls_on_what_the_counts_do_not_vouch_for():
    """Spots put into a result by hand, on counts that never saw them."""
    rng = np.random.default_rng(0)
    forward = ForwardModel(2)
    fine = np.full((1, 64, 64), 50.0)
    row, col = np.mgrid[:64, :64]
    spot = 80 * np.exp(-((row - 20) ** 2 + (col - 20) ** 2) / 6.0)
    real = 80 * np.exp(-((row - 44) ** 2 + (col - 44) ** 2) / 6.0)
    counts = rng.poisson(forward.apply(fine + real)).astype(np.float32)
    invented, contradicted = unsupported(
        fine + spot + real, np.full_like(fine, 5.0), counts, forward
    )
    doubtful = (invented | contradicted)[0]
    assert doubtful[18:23, 18:23].all()
    assert not doubtful[42:47, 42:47].any()
    assert doubtful[:, 32:].mean() < 0.1


def test_a_good_result_is_hardly_doubted(doubled):
    _, estimate = doubled
    assert estimate.doubtful.shape == estimate.values.shape
    assert estimate.report["doubt"]["share"] == pytest.approx(estimate.doubtful.mean(), abs=1e-4)
    assert estimate.doubtful.mean() < 0.1


def test_scans_that_left_gaps_are_blocked(doubled):
    counts, _ = doubled
    for probe in (None, 0.3):
        estimate = superres.upscale(counts, factor=2, probe=probe, sampling="point")
        assert estimate.report["verdict"] == "block"
        assert np.isnan(estimate.values).all() and np.isnan(estimate.sigma).all()
        assert "gaps" in estimate.report["reasons"][0]


@pytest.mark.parametrize("sampling", ["point", "fly"])
def test_a_known_wide_probe_is_taken_out(truth, sampling):
    """Seen through the scan's own forward model: points, or lines along the fast axis."""
    forward = ForwardModel(2, 1.5, sampling)
    counts = np.random.default_rng(0).poisson(forward.apply(truth) * 2000)
    blurred = superres.upscale(counts, factor=2).values
    sharp = superres.upscale(counts, factor=2, probe=1.5, sampling=sampling)
    assert sharp.report["verdict"] == "warn"
    assert max(sharp.report["figures"]["richardson_lucy_steps"]) > 0
    assert _psnr(sharp.values / 2000, truth) > _psnr(blurred / 2000, truth)
    # The result agrees with the counts through that model, and with no other.
    chi2 = np.array(sharp.report["figures"]["consistency_chi2"])
    assert np.all(chi2 < 2)
    assert max(abs(np.array(sharp.report["figures"]["flux_bias"]))) < 0.01


@pytest.mark.parametrize("factor", [2, 4])
def test_each_sampling_folds_as_it_scans(factor):
    """Against integrals of a smooth function, over the pixel, a line through it, and at its centre."""
    n = 8 * factor

    def mean(low, high):  # of sin(0.3 x) between two places, in coarse pixels
        return (np.cos(0.3 * low) - np.cos(0.3 * high)) / (0.3 * (high - low))

    edges = np.arange(n + 1) / factor
    line = mean(edges[:-1], edges[1:])
    fine = line[:, None] * line[None, :]
    at = np.arange(8.0)
    whole, centre = mean(at, at + 1), np.sin(0.3 * (at + 0.5))
    inner = (slice(1, -1), slice(1, -1))
    cases: tuple[tuple[Sampling, np.ndarray, np.ndarray], ...] = (
        ("box", whole, whole),
        ("fly", centre, whole),
        ("point", centre, centre),
    )
    for sampling, down, right in cases:
        found = ForwardModel(factor, None, sampling).apply(fine)
        assert np.allclose(found[inner], np.outer(down, right)[inner], atol=5e-5), sampling
    assert not np.allclose(whole, centre, atol=2e-3)


def test_pixels_not_measured_stay_empty(truth):
    counts = _coarse(truth, 2, 200).astype(float)
    counts[:, 10:13, 20:25] = np.nan
    estimate = superres.upscale(counts, factor=2)
    hole = np.zeros(truth.shape[1:], dtype=bool)
    hole[20:26, 40:50] = True
    assert np.isnan(estimate.values[:, hole]).all() and np.isnan(estimate.sigma[:, hole]).all()
    assert np.isfinite(estimate.values[:, ~hole]).all()


@pytest.mark.parametrize("shape", [(1, 1, 9), (2, 3, 3), (1, 40, 2)])
def test_small_and_empty_maps(shape):
    for counts in (np.zeros(shape), np.full(shape, 7)):
        estimate = superres.upscale(counts, factor=4)
        assert estimate.values.shape == (shape[0], 4 * shape[1], 4 * shape[2])
        assert np.isfinite(estimate.values).all()
        assert abs(estimate.values.mean() - counts.mean()) < 1.0


def test_forward_model_and_its_transpose():
    rng = np.random.default_rng(0)
    x, y = rng.random((1, 16, 24)), rng.random((1, 8, 12))
    for forward in (ForwardModel(2), ForwardModel(2, None, "fly"), ForwardModel(2, None, "point")):
        assert np.sum(forward.apply(x) * y) == pytest.approx(np.sum(x * forward.adjoint(y)))
    assert np.allclose(ForwardModel(2).apply(x)[0, 0, 0], x[0, :2, :2].mean())
    assert ForwardModel(2, np.ones((3, 3))).kernel() is not None
    with pytest.raises(ValueError, match="sampling"):
        ForwardModel(2, None, "other")  # type: ignore[arg-type]


def test_the_untrained_network_is_aligned_bicubic():
    """So whatever shift there were, training would have had to put it there."""
    net = SuperResolver(2).eval()
    x = torch.rand(1, 2, 3, 10, 12)
    with torch.inference_mode():
        mean, scale = net(x)
    expected = F.interpolate(x[:, :, 0], scale_factor=2, mode="bicubic")
    assert torch.allclose(mean, expected, atol=1e-5)
    assert (scale > 0).all()


def test_says_what_is_wrong():
    good = np.ones((1, 8, 8))
    with pytest.raises(ValueError, match="factor"):
        superres.upscale(good, factor=3)
    with pytest.raises(ValueError, match=r"\(element, row, col\)"):
        superres.upscale(good[0], factor=2)
    with pytest.raises(ValueError, match=">= 0"):
        superres.upscale(-good, factor=2)
    with pytest.raises(ValueError, match="measured has shape"):
        superres.upscale(good, factor=2, measured=np.ones((4, 4), dtype=bool))
