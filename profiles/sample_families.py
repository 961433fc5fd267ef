"""Families of synthetic maps that networks are trained on.

None of them is a sample that the demo or the evaluation uses (cells, Siemens star, battery
particles are held out). Dead leaves follow Lee, Mumford and Huang, Int. J. Computer Vision 41, 35
(2001), with scale-invariant sizes; random fields have a power-law spectrum.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import fft
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial import KDTree

__all__ = [
    "FAMILIES",
    "dead_leaves",
    "fibres",
    "grains",
    "granules",
    "motifs",
    "polygons",
    "random_field",
    "spots",
    "training_maps",
]

Draw = Callable[[np.random.Generator, int], np.ndarray]


def _log_uniform(rng: np.random.Generator, low: float, high: float, size=None):
    return np.exp(rng.uniform(np.log(low), np.log(high), size))


def _unit(image: np.ndarray) -> np.ndarray:
    """Scale to [0, 1]; a constant becomes 0."""
    low, high = float(image.min()), float(image.max())
    if high - low < 1e-12:
        return np.zeros(image.shape, np.float32)
    return ((image - low) / (high - low)).astype(np.float32)


def random_field(rng: np.random.Generator, n: int) -> np.ndarray:
    """Draw a smooth random field, (n, n) float32 in [0, 1]: spectrum |k|^-beta, beta 2 to 4.5."""
    ky = fft.fftfreq(n)[:, None]
    kx = fft.rfftfreq(n)[None, :]
    # Anisotropy makes drawn-out clouds; the low cut keeps some fields without large structures.
    k2 = (ky * _log_uniform(rng, 0.5, 2.0)) ** 2 + kx**2 + (_log_uniform(rng, 0.3, 6.0) / n) ** 2
    amplitude = k2 ** (-rng.uniform(1.0, 2.25) / 2)
    noise = rng.standard_normal((2, n, n // 2 + 1), dtype=np.float32)
    return _unit(np.asarray(fft.irfft2((noise[0] + 1j * noise[1]) * amplitude, s=(n, n))))


def dead_leaves(rng: np.random.Generator, n: int) -> np.ndarray:
    """Draw occluding ellipses and rectangles, (n, n) float32, sizes with density r^-3."""
    image = np.full((n, n), rng.uniform(), np.float32)
    smallest = _log_uniform(rng, 1.0, 6.0)
    largest = n / rng.uniform(2.0, 5.0)
    count = int(np.clip((n / smallest) ** 2 / 20, 20, 160))
    u = rng.uniform(size=count)
    radius = 1.0 / np.sqrt(u / smallest**2 + (1 - u) / max(largest, 2 * smallest) ** 2)
    # Large leaves first: otherwise they bury the small ones and little structure is left.
    radius = -np.sort(-radius) if rng.uniform() < 0.6 else radius
    centre = rng.uniform(0, n, (count, 2))
    aspect = _log_uniform(rng, 0.5, 2.0, count)
    angle = rng.uniform(0, np.pi, count)
    level = rng.uniform(0, 1, count).astype(np.float32)
    square = rng.uniform(size=count) < rng.choice([0.0, 0.3, 1.0])
    for i in range(count):
        r = radius[i]
        reach = 1.5 * r * max(aspect[i], 1 / aspect[i])
        rows, cols = _box(centre[i], reach, n)
        y = np.arange(rows.start, rows.stop)[:, None] - centre[i, 0]
        x = np.arange(cols.start, cols.stop)[None, :] - centre[i, 1]
        c, s = np.cos(angle[i]), np.sin(angle[i])
        a, b = (c * x + s * y) / aspect[i], (c * y - s * x) * aspect[i]
        inside = (np.maximum(abs(a), abs(b)) < r) if square[i] else (a * a + b * b < r * r)
        image[rows, cols][inside] = level[i]
    return image


def polygons(rng: np.random.Generator, n: int) -> np.ndarray:
    """Draw convex polygons with hard edges and flat or sloping insides, (n, n) float32."""
    image = np.zeros((n, n), np.float32)
    for _ in range(rng.integers(3, 30)):
        r = float(_log_uniform(rng, 2.5, n / 3))
        centre = rng.uniform(0, n, 2)
        rows, cols = _box(centre, 2 * r, n)
        y = np.arange(rows.start, rows.stop)[:, None] - centre[0]
        x = np.arange(cols.start, cols.stop)[None, :] - centre[1]
        sides = int(rng.integers(3, 8))
        angles = (np.arange(sides) + rng.uniform(-0.3, 0.3, sides)) * 2 * np.pi / sides
        angles += rng.uniform(0, 2 * np.pi)
        inside = np.ones((rows.stop - rows.start, cols.stop - cols.start), bool)
        for angle, distance in zip(angles, r * rng.uniform(0.5, 1.0, sides), strict=True):
            inside &= np.cos(angle) * x + np.sin(angle) * y < distance
        slope = rng.uniform(-0.4, 0.4, 2) / r
        fill = np.clip(rng.uniform(0.1, 1) + slope[0] * y + slope[1] * x, 0, 1)
        image[rows, cols][inside] = np.broadcast_to(fill, inside.shape)[inside]
    return image


def grains(rng: np.random.Generator, n: int) -> np.ndarray:
    """Draw Voronoi grains: flat levels, or grain boundaries, (n, n) float32."""
    size = _log_uniform(rng, 4.0, n / 2)
    count = int(np.clip((n / size) ** 2, 3, 800))
    stretch = np.array([1.0, _log_uniform(rng, 0.4, 2.5)])
    tree = KDTree(rng.uniform(0, n, (count, 2)) * stretch)
    pixels = np.stack(np.meshgrid(np.arange(n), np.arange(n), indexing="ij"), -1).reshape(-1, 2)
    if rng.uniform() < 0.3:
        distance, _ = tree.query(pixels * stretch, k=2)
        width = _log_uniform(rng, 0.6, 3.0)
        image = np.exp(-(((distance[:, 1] - distance[:, 0]) / width) ** 2))
    else:
        _, owner = tree.query(pixels * stretch)
        level = rng.uniform(size=count)
        if rng.uniform() < 0.3:
            level = (level < rng.uniform(0.1, 0.6)) * rng.uniform(0.6, 1, count)
        image = level[owner]
    return image.reshape(n, n).astype(np.float32)


def fibres(rng: np.random.Generator, n: int) -> np.ndarray:
    """Draw bent fibres of one or two widths, (n, n) float32 in [0, 1]."""
    image = np.zeros((n, n), np.float32)
    for _ in range(rng.integers(1, 3)):
        count, steps = int(rng.integers(2, 24)), 3 * n
        heading = rng.uniform(0, np.pi) + rng.normal(0, rng.uniform(0.05, 1.5), (count, 1))
        bend = np.cumsum(rng.normal(0, _log_uniform(rng, 0.002, 0.08), (count, steps)), axis=1)
        y = rng.uniform(0, n, (count, 1)) + np.cumsum(np.sin(heading + bend), axis=1) / 2
        x = rng.uniform(0, n, (count, 1)) + np.cumsum(np.cos(heading + bend), axis=1) / 2
        weight = np.broadcast_to(rng.uniform(0.2, 1, (count, 1)), y.shape)
        lines = _scatter(y.ravel(), x.ravel(), weight.ravel(), n)
        lines = gaussian_filter(lines, _log_uniform(rng, 0.5, 3.0))
        # A soft limit: crossings do not outshine the fibres.
        image += lines / (lines + max(np.percentile(lines, 90), 1e-3))
    return _unit(image)


def spots(rng: np.random.Generator, n: int) -> np.ndarray:
    """Draw points, alone or in clusters, of one to three widths, (n, n) float32 in [0, 1]."""
    image = np.zeros((n, n), np.float32)
    for _ in range(rng.integers(1, 4)):
        count = int(_log_uniform(rng, 1.0, 250.0))
        if rng.uniform() < 0.5:
            hearts = rng.uniform(0, n, (int(rng.integers(1, 6)), 2))
            at = hearts[rng.integers(len(hearts), size=count)]
            at = at + rng.normal(0, _log_uniform(rng, 2, n / 4), (count, 2))
        else:
            at = rng.uniform(0, n, (count, 2))
        weight = _log_uniform(rng, 0.15, 1.0, count)
        width = float(_log_uniform(rng, 0.5, 4.0))
        layer = gaussian_filter(_scatter(at[:, 0], at[:, 1], weight, n), width)
        image += layer * (2 * np.pi * max(width, 0.5) ** 2) * rng.uniform(0.3, 1)
    return _unit(np.minimum(image, 1.5))


def granules(rng: np.random.Generator, n: int) -> np.ndarray:
    """Draw many small domes and flat discs, bright on little, (n, n) float32 in [0, 1]."""
    image = np.zeros((n, n), np.float32)
    count = int(_log_uniform(rng, 4.0, 300.0))
    hearts = rng.uniform(0, n, (int(rng.integers(1, 9)), 2))
    reach = _log_uniform(rng, n / 20, n)
    typical = _log_uniform(rng, 0.7, 3.5)
    flat = rng.uniform() < 0.4
    even = rng.uniform() < 0.5
    for _ in range(count):
        centre = hearts[rng.integers(len(hearts))] + rng.normal(0, reach, 2)
        if not ((centre > -8) & (centre < n + 8)).all():
            continue
        radii = typical * _log_uniform(rng, 0.6, 1.7, 2)
        rows, cols = _box(centre, float(radii.max()) + 1, n)
        y = np.arange(rows.start, rows.stop)[:, None] - centre[0]
        x = np.arange(cols.start, cols.stop)[None, :] - centre[1]
        angle = rng.uniform(0, np.pi)
        c, s = np.cos(angle), np.sin(angle)
        r2 = ((c * x + s * y) / radii[0]) ** 2 + ((c * y - s * x) / radii[1]) ** 2
        # A grid this coarse needs soft rims: about a pixel of each disc is partly covered.
        dome = np.clip((1 - r2) * radii.min(), 0, 1) if flat else np.sqrt(np.clip(1 - r2, 0, 1))
        level = 1.0 if even else rng.uniform(0.2, 1)
        image[rows, cols] = np.maximum(image[rows, cols], level * dome)
    return image


def motifs(rng: np.random.Generator, n: int) -> np.ndarray:
    """Repeat one small drawing in rows and columns, as on chips and gratings, (n, n) float32.

    The repeats are exact or differ a little, straight or turned; some are missing.
    """
    side = int(_log_uniform(rng, 6.0, n / 2.5))
    tile = _PLAIN[rng.integers(len(_PLAIN))](rng, max(side, 16))[:side, :side]
    if rng.uniform() < 0.6:
        tile = (tile > np.quantile(tile, rng.uniform(0.3, 0.8))).astype(np.float32)
    across = int(np.ceil(1.5 * n / side)) + 1
    wall = np.tile(tile, (across, across))
    if rng.uniform() < 0.3:
        kept = (rng.uniform(size=(across, across)) > 0.15).astype(np.float32)
        wall = wall * np.kron(kept, np.ones((side, side), np.float32))
    angle = rng.choice([0.0, rng.uniform(0, np.pi / 2)])
    scale = rng.uniform(0.7, 1.0)
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    y, x = np.mgrid[:n, :n] - (n - 1) / 2
    middle = (wall.shape[0] - 1) / 2
    at = np.stack([c * y + s * x, c * x - s * y]) + middle
    drawn = map_coordinates(wall, at, order=1, mode="wrap")
    return np.clip(drawn, 0, 1).astype(np.float32)


def periodic(rng: np.random.Generator, n: int) -> np.ndarray:
    """Draw gratings, checks, dots and rings, bent and of varied duty cycle, (n, n) float32."""
    y, x = np.mgrid[:n, :n].astype(np.float32)
    bend = (random_field(rng, n) - 0.5) * _log_uniform(rng, 0.5, n / 4)
    angle = rng.uniform(0, np.pi)
    period = _log_uniform(rng, 3.0, n / 3)
    along = np.cos(angle) * x + np.sin(angle) * y + bend
    across = np.cos(angle) * y - np.sin(angle) * x + bend
    kind = rng.integers(4)
    if kind == 0:
        wave = np.cos(2 * np.pi * along / period)
    elif kind == 1:
        wave = np.cos(2 * np.pi * along / period) * np.cos(2 * np.pi * across / period)
    elif kind == 2:
        other = period * _log_uniform(rng, 0.5, 2.0)
        wave = np.cos(2 * np.pi * along / period) + np.cos(2 * np.pi * across / other)
    else:
        centre = rng.uniform(-0.5 * n, 1.5 * n, 2)
        wave = np.cos(2 * np.pi * (np.hypot(y - centre[0], x - centre[1]) + bend) / period)
    wave = wave - rng.uniform(-0.6, 0.6)
    # From sinusoidal to hard-edged.
    return _unit(np.tanh(wave * _log_uniform(rng, 0.5, 20.0)))


def warped(rng: np.random.Generator, n: int) -> np.ndarray:
    """Draw a thresholded or folded random field: islands, channels, contours, (n, n) float32."""
    field = random_field(rng, n)
    if rng.uniform() < 0.5:
        sharp = _log_uniform(rng, 5.0, 100.0)
        return _unit(np.tanh(sharp * (field - rng.uniform(0.3, 0.7))))
    folds = np.cos(2 * np.pi * field * rng.uniform(1.0, 5.0))
    return _unit(np.tanh(_log_uniform(rng, 0.5, 10.0) * folds))


def resampled(rng: np.random.Generator, n: int) -> np.ndarray:
    """Draw a piece of another family, turned and enlarged up to four times, (n, n) float32."""
    source = _PLAIN[rng.integers(len(_PLAIN))](rng, n)
    scale, angle = rng.uniform(0.25, 0.7), rng.uniform(0, 2 * np.pi)
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    y, x = np.mgrid[:n, :n] - (n - 1) / 2
    at = np.stack([c * y + s * x, c * x - s * y]) + (n - 1) / 2
    return np.clip(map_coordinates(source, at, order=1, mode="reflect"), 0, 1).astype(np.float32)


def _box(centre: np.ndarray, reach: float, n: int) -> tuple[slice, slice]:
    low = np.clip(np.floor(centre - reach), 0, n - 1).astype(int)
    high = np.clip(np.ceil(centre + reach) + 1, 1, n).astype(int)
    return slice(low[0], high[0]), slice(low[1], high[1])


def _scatter(y: np.ndarray, x: np.ndarray, weight: np.ndarray, n: int) -> np.ndarray:
    """Sum points into pixels, (n, n) float32; those outside are left out."""
    row, col = np.rint(y).astype(int), np.rint(x).astype(int)
    ok = (row >= 0) & (row < n) & (col >= 0) & (col < n)
    total = np.bincount(row[ok] * n + col[ok], weight[ok], n * n)
    return total.reshape(n, n).astype(np.float32)


_PLAIN: tuple[Draw, ...] = (
    dead_leaves,
    polygons,
    grains,
    granules,
    fibres,
    spots,
    periodic,
    warped,
)
FAMILIES: tuple[Draw, ...] = (*_PLAIN, motifs, random_field, resampled)
"""Every family: ``draw(rng, n) -> (n, n) float32 in [0, 1]``."""


def training_maps(rng: np.random.Generator, n: int, channels: int) -> np.ndarray:
    """Draw co-registered element maps as a network may meet them, with none of the demo's samples.

    A few structures are drawn, each from one family; every element is made of some of them, so
    elements share some structures and not others. Some elements are empty, flat with a trace in a
    few spots, or hold a structure that no other has; contrast and background vary.

    Parameters
    ----------
    rng
        Source of all randomness: same state, same maps.
    n
        Size in pixels, at least 16.
    channels
        Number of elements, at least 1.

    Returns
    -------
    ndarray of float32, shape (channels, n, n)
        Relative concentration in [0, 1].

    Raises
    ------
    ValueError
        Size or number of elements too small.
    """
    if n < 16 or channels < 1:
        raise ValueError(f"training_maps: n={n}, channels={channels}; need n >= 16, channels >= 1")
    shared = [_structure(rng, n) for _ in range(rng.integers(1, 4))]
    maps = np.empty((channels, n, n), np.float32)
    for index in range(channels):
        maps[index] = _element(rng, n, shared)
    if rng.uniform() < 0.5:
        # The probe sees all elements equally blurred.
        blur = rng.uniform(0.3, 1.2)
        maps = gaussian_filter(maps, (0, blur, blur), mode="nearest")
    return np.clip(maps, 0, 1, out=maps)


def _structure(rng: np.random.Generator, n: int) -> np.ndarray:
    return FAMILIES[rng.integers(len(FAMILIES))](rng, n)


def _element(rng: np.random.Generator, n: int, shared: list[np.ndarray]) -> np.ndarray:
    """Draw one element, (n, n) float32 in [0, 1], from shared structures and its own."""
    kind = rng.choice(5, p=[0.5, 0.2, 0.12, 0.12, 0.06])
    if kind == 4:
        return np.full((n, n), rng.uniform(), np.float32)
    if kind == 3:
        # Flat, with a trace in a few places.
        return _contrast(rng, spots(rng, n), rng.uniform(0.02, 0.5), rng.uniform(0.05, 0.7))
    if kind == 2:
        own = _structure(rng, n)
    else:
        own = np.zeros((n, n), np.float32)
        for structure in shared:
            weight = rng.choice([0.0, 1.0, rng.uniform(0.05, 0.6)])
            own += weight * (1 - structure if rng.uniform() < 0.3 else structure)
        if kind == 1:
            # Spots of its own on what it shares, or holes in it.
            small = granules if rng.uniform() < 0.5 else spots
            extra = _structure(rng, n) if rng.uniform() < 0.4 else small(rng, n)
            weight = float(_log_uniform(rng, 0.1, 1.5))
            own = own + weight * extra if rng.uniform() < 0.8 else own * (1 - extra)
        own = _unit(own)
    # Curved responses: the same structure need not be proportional in two elements.
    own = own ** np.float32(_log_uniform(rng, 0.5, 2.5))
    return _contrast(rng, own, rng.uniform(0, 0.4) ** 2, rng.uniform(0.3, 1.0))


def _contrast(
    rng: np.random.Generator, image: np.ndarray, floor: float, swing: float
) -> np.ndarray:
    """Place an image of [0, 1] on a floor that may slope, (n, n) float32 in [0, 1]."""
    top = min(1.0, floor + swing)
    out = np.float32(floor) + np.float32(top - floor) * image
    if rng.uniform() < 0.2:
        # Thickness or self-absorption that changes across the field.
        ramp = np.linspace(rng.uniform(0.4, 1), rng.uniform(0.4, 1), image.shape[0])
        out *= ramp.astype(np.float32)[:, None] if rng.uniform() < 0.5 else ramp.astype(np.float32)
    return out
