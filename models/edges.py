"""How much wider a result shows edges than they are.

The mean square error alone rewards blurring: at half a count a pixel a smooth guess scores well.
This looks at the strong, nearly straight edges of the true map, averages the profile across them
in the truth and, at the same places, in the result, and asks which Gaussian blur of the *true map*
gives the result's profile. Neighbouring structure (spokes, membranes) is blurred along with it and
so does not disturb the answer, as it would when fitting a single step.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn, idctn
from scipy.ndimage import gaussian_filter, map_coordinates, sobel
from scipy.optimize import fminbound

__all__ = ["EdgePlaces", "EdgeRuler", "edge_ruler", "find_edges", "line_spread_fwhm"]

_FWHM = 2.0 * np.sqrt(2.0 * np.log(2.0))
_REACH = 5.0  # pixels to each side of an edge
_STEP = 0.25
_SCALE = 0.7  # pixels over which the gradient is taken
_STRAIGHT = 0.85  # least coherence of the structure tensor: 1 for a straight edge
_CONTRAST = 0.15  # least step across an edge, of the map's whole range
_BLURS = 4.0  # pixels: the widest blur told apart
_GRID = 0.2
_MOST = 800  # edges looked at: more of them in one map add time, not certainty
_SHARPEST = -0.12  # square pixels of variance taken away: the sharpest result told apart


@dataclass(frozen=True)
class EdgePlaces:
    """Where edges are, and which way they rise.

    Attributes
    ----------
    rows, cols : ndarray of float, shape (n,)
        Pixels.
    down, right : ndarray of float, shape (n,)
        Unit vector towards the brighter side.
    """

    rows: NDArray[np.float64]
    cols: NDArray[np.float64]
    down: NDArray[np.float64]
    right: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.rows)


def find_edges(truth: NDArray[np.floating]) -> EdgePlaces:
    """Strong and nearly straight edges of a noise-free map.

    Parameters
    ----------
    truth : ndarray of float, shape (row, col)

    Returns
    -------
    EdgePlaces
        At most 800, spread evenly; none (length 0) in maps that have no such edge, or are too small to have one.
    """
    image = np.asarray(truth, dtype=np.float64)
    margin = int(np.ceil(_REACH)) + 1
    level = float(np.ptp(image)) if image.size else 0.0
    empty = np.empty(0)
    if min(image.shape) <= 2 * margin or level <= 0:
        return EdgePlaces(empty, empty, empty, empty)
    soft = gaussian_filter(image, _SCALE, mode="nearest")
    down, right = sobel(soft, 0) / 8, sobel(soft, 1) / 8
    size = np.hypot(down, right)
    unit = np.maximum(size, 1e-12)
    down, right = down / unit, right / unit
    row, col = np.mgrid[: image.shape[0], : image.shape[1]].astype(np.float64)
    # On the crest of the gradient, seen along itself.
    ahead, behind = (
        map_coordinates(size, (row + s * down, col + s * right), order=1, mode="nearest")
        for s in (1.0, -1.0)
    )
    crest = (size >= ahead) & (size > behind)
    # The crest between pixels: the vertex of the parabola through the three gradients.
    bend = np.maximum(2 * size - ahead - behind, 1e-12)
    shift = np.clip((ahead - behind) / (2 * bend), -0.5, 0.5)
    row, col = row + shift * down, col + shift * right
    step = _at(soft, row, col, down, right, 2.0) - _at(soft, row, col, down, right, -2.0)
    inner = np.zeros(image.shape, dtype=bool)
    inner[margin:-margin, margin:-margin] = True
    chosen = crest & inner & (step >= _CONTRAST * level) & (_coherence(soft) >= _STRAIGHT)
    every = -(-int(chosen.sum()) // _MOST) or 1
    return EdgePlaces(*(array[chosen][::every] for array in (row, col, down, right)))


@dataclass(frozen=True)
class EdgeRuler:
    """The edges of a true map, and how their mean profile looks through ever more blur.

    Attributes
    ----------
    places : EdgePlaces
    variances : ndarray of float, shape (blur,)
        Square pixels, rising; the first is below 0: sharpened.
    profiles : ndarray of float, shape (blur, n)
        Mean profile of the blurred truth, less its mean.
    width : float
        Full width at half maximum of the truth's own mean line spread, pixels.
    """

    places: EdgePlaces
    variances: NDArray[np.float64]
    profiles: NDArray[np.float64]
    width: float

    def ratio(self, result: NDArray[np.floating]) -> float:
        """Width of the edges in a result over their width in the truth.

        Parameters
        ----------
        result : ndarray of float, shape (row, col)

        Returns
        -------
        float
            Full width at half maximum of the mean line spread, result over truth: 1 for a result
            as sharp as the truth, below 1 for edges that overshoot. NaN where there are no edges.
            Gain and offset of the result do not matter.
        """
        if len(self.places) == 0:
            return float("nan")
        seen = _mean_profile(np.asarray(result, dtype=np.float64), self.places)
        seen -= seen.mean()

        def misfit(at: float) -> float:
            below = min(int(at), len(self.variances) - 2)
            model = (
                self.profiles[below]
                + (at - below) * np.diff(self.profiles[below : below + 2], axis=0)[0]
            )
            gain = float(model @ seen) / max(float(model @ model), 1e-30)
            return float(np.square(seen - gain * model).sum())

        # A grid first: far from the best blur the misfit is flat.
        best = int(np.argmin([misfit(k) for k in range(len(self.variances))]))
        low, high = max(0, best - 1), min(len(self.variances) - 1, best + 1)
        at = float(np.asarray(fminbound(misfit, low, high)))
        variance = float(np.interp(at, np.arange(len(self.variances)), self.variances))
        return float(np.sqrt(max(self.width**2 + _FWHM**2 * variance, 0.0)) / self.width)


def edge_ruler(truth: NDArray[np.floating]) -> EdgeRuler:
    """Prepare to measure results against a true map of shape (row, col)."""
    image = np.asarray(truth, dtype=np.float64)
    places = find_edges(image)
    if len(places) == 0:
        return EdgeRuler(places, np.empty(0), np.empty((0, 0)), float("nan"))
    blurs = np.arange(0.0, _BLURS + _GRID / 2, _GRID)
    variances = np.concatenate([[_SHARPEST], blurs**2])
    profiles = np.stack([_mean_profile(_blurred(image, v), places) for v in variances])
    width = line_spread_fwhm(profiles[1], _STEP)
    return EdgeRuler(places, variances, profiles - profiles.mean(axis=1, keepdims=True), width)


def line_spread_fwhm(profile: NDArray[np.floating], step: float) -> float:
    """Full width at half maximum of the derivative of an edge profile, around its highest point.

    Parameters
    ----------
    profile : ndarray of float, shape (n,)
        Values across a rising edge.
    step : float
        Distance between samples.

    Returns
    -------
    float
        In the units of `step`.
    """
    spread = np.gradient(np.asarray(profile, dtype=np.float64), step)
    top = int(np.argmax(spread))
    half = spread[top] / 2

    def walk(direction: int) -> float:
        k = top
        while 0 <= k + direction < len(spread) and spread[k + direction] > half:
            k += direction
        if not 0 <= k + direction < len(spread):
            return abs(k - top) * step
        over, under = spread[k], spread[k + direction]
        return (abs(k - top) + (over - half) / (over - under)) * step

    return walk(1) + walk(-1)


def _blurred(image: NDArray[np.float64], variance: float) -> NDArray[np.float64]:
    """Blur by a Gaussian of that variance, in frequency, reflecting at the borders.

    Exact however narrow it is, where a sampled kernel narrower than a third of a pixel would blur
    nothing; a variance below 0 sharpens.
    """
    down, right = (np.pi * np.arange(side) / side for side in image.shape)
    through = np.exp(-variance / 2 * (down[:, None] ** 2 + right[None, :] ** 2))
    return np.asarray(idctn(dctn(image, norm="ortho") * through, norm="ortho"))


def _mean_profile(image: NDArray[np.float64], places: EdgePlaces) -> NDArray[np.float64]:
    along = np.arange(-_REACH, _REACH + _STEP / 2, _STEP)[:, None]
    return _at(image, places.rows, places.cols, places.down, places.right, along).mean(axis=1)


def _at(
    image: NDArray[np.float64],
    row: NDArray[np.float64],
    col: NDArray[np.float64],
    down: NDArray[np.float64],
    right: NDArray[np.float64],
    along: NDArray[np.float64] | float,
) -> NDArray[np.float64]:
    at = (row + along * down, col + along * right)
    # Linear interpolation would itself blur by a pixel.
    return np.asarray(map_coordinates(image, at, order=3, mode="nearest"))


def _coherence(image: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 where the gradient keeps its direction over a few pixels, 0 where it has none."""
    down, right = sobel(image, 0), sobel(image, 1)
    dd, rr, dr = (gaussian_filter(p, 2.0) for p in (down * down, right * right, down * right))
    return np.hypot(dd - rr, 2 * dr) / np.maximum(dd + rr, 1e-30)
