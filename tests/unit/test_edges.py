"""The width of edges is measured as it is, whatever is beside them and however noisy the map."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from inscan.models.edges import edge_ruler, find_edges, line_spread_fwhm

FWHM = 2.3548
FINE = 4  # grid of the drawing to a pixel


def half_plane(blur: float, angle: float = 0.3, side: int = 100) -> np.ndarray:
    """A straight edge seen through a Gaussian of `blur` pixels, averaged over pixels."""
    y, x = np.mgrid[: side * FINE, : side * FINE]
    hard = (x * np.cos(angle) + y * np.sin(angle) > 0.65 * side * FINE).astype(float)
    soft = gaussian_filter(hard, blur * FINE, mode="nearest")
    return soft.reshape(side, FINE, side, FINE).mean(axis=(1, 3))


@pytest.mark.parametrize("blur", [0.3, 0.5, 0.7, 1.0, 1.5, 2.2])
def test_a_known_blur_is_found(blur):
    ruler = edge_ruler(half_plane(1.0))
    # A pixel is a box of variance 1/12.
    assert ruler.width == pytest.approx(FWHM * np.hypot(1, np.sqrt(1 / 12)), rel=0.03)
    expected = np.hypot(ruler.width, FWHM * blur) / ruler.width
    assert ruler.ratio(half_plane(np.hypot(1.0, blur))) == pytest.approx(expected, rel=0.03)


def test_gain_and_offset_do_not_matter_and_sharpening_shows():
    truth = half_plane(1.0)
    ruler = edge_ruler(truth)
    assert ruler.ratio(truth) == pytest.approx(1, abs=1e-3)
    assert ruler.ratio(3 * truth - 7) == pytest.approx(1, abs=1e-3)
    assert ruler.ratio(half_plane(0.9)) < 0.97


def test_neighbouring_structure_does_not_disturb():
    """Stripes of six pixels: a single step fitted to them would be narrower than it is."""
    row, col = np.mgrid[:120, :120]
    stripes = gaussian_filter(((0.9 * col + 0.4359 * row) % 12 < 6).astype(float), 0.6)
    ruler = edge_ruler(stripes)
    for blur in (0.6, 1.2):
        expected = np.hypot(ruler.width, FWHM * blur) / ruler.width
        assert ruler.ratio(gaussian_filter(stripes, blur)) == pytest.approx(expected, rel=0.06)


def test_noise_widens_nothing_on_average():
    truth = 1 + 9 * half_plane(0.6)
    ruler = edge_ruler(truth)
    rng = np.random.default_rng(0)
    ratios = [ruler.ratio(rng.poisson(truth).astype(float)) for _ in range(12)]
    assert np.mean(ratios) == pytest.approx(1, abs=0.08)
    soft = [ruler.ratio(gaussian_filter(rng.poisson(truth).astype(float), 1)) for _ in range(4)]
    expected = np.hypot(ruler.width, FWHM) / ruler.width
    assert np.mean(soft) == pytest.approx(expected, rel=0.1)


def test_edges_lie_on_the_edge_and_point_to_the_bright_side():
    places = find_edges(half_plane(0.7))
    assert len(places) > 50
    distance = places.cols * np.cos(0.3) + places.rows * np.sin(0.3) - 65
    assert np.abs(distance + 0.5).max() < 0.8
    assert np.median(places.right) == pytest.approx(np.cos(0.3), abs=0.05)
    assert np.median(places.down) == pytest.approx(np.sin(0.3), abs=0.05)


def test_spots_and_noise_free_slopes_are_no_edges():
    row, col = np.mgrid[:80, :80]
    spot = np.exp(-((row - 40) ** 2 + (col - 40) ** 2) / 8)
    assert len(find_edges(spot)) < 10
    for nothing in (np.ones((80, 80)), np.zeros((1, 80)), col / 80.0):
        ruler = edge_ruler(nothing)
        assert len(ruler.places) == 0
        assert np.isnan(ruler.ratio(nothing))


def test_width_of_a_known_line_spread():
    s = np.arange(-6, 6.01, 0.1)
    profile = np.cumsum(np.exp(-(s**2) / (2 * 0.8**2)))
    assert line_spread_fwhm(profile, 0.1) == pytest.approx(FWHM * 0.8, rel=0.02)
