"""Fluorescence samples with known truth, kept out of all training.

Rates are counts per second, summed over all detector channels, in the element's own line window at
the nominal beam; positions are in um.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy.ndimage import gaussian_filter, zoom

__all__ = ["Inclusion", "XRFSample", "battery_particles", "cells", "siemens_star"]

_SIGMA_PER_FWHM = 1 / (2 * np.sqrt(2 * np.log(2)))
_RIM = 5.0  # um of bare support around the cells
_TRACES = ("Fe_K", "Zn_K")


@dataclass(frozen=True)
class Inclusion:
    """A small spot that a survey should find, or one that it should not fall for.

    Attributes
    ----------
    element
        Line, ``Fe_K``.
    slow, fast
        Centre in um.
    fwhm
        Full width at half maximum in um.
    rate
        Rate at the centre above the surroundings, counts/s.
    decoy
        It is bright in ``element``, but holds no trace element.
    """

    element: str
    slow: float
    fast: float
    fwhm: float
    rate: float
    decoy: bool = False


@dataclass(frozen=True, eq=False)
class XRFSample:
    """Element maps on a fine grid.

    Attributes
    ----------
    name
        Short name.
    elements
        Lines, ``("P_K", "Fe_K", ...)``.
    maps
        (element, row, col) float32, counts/s (see the module), row = slow axis.
    pixel_size
        Grid spacing, um.
    origin
        (slow, fast) of the centre of pixel [0, 0], um.
    inclusions
        Known spots.
    skipped
        What a measured file held besides, in words.

    Raises
    ------
    ValueError
        Shapes or values that do not fit.
    """

    name: str
    elements: tuple[str, ...]
    maps: np.ndarray
    pixel_size: float
    origin: tuple[float, float]
    inclusions: tuple[Inclusion, ...] = ()
    skipped: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        shape = self.maps.shape
        if len(shape) != 3 or shape[0] != len(self.elements) or min(shape, default=0) < 1:
            raise ValueError(
                f"sample {self.name}: maps of shape {shape} for {len(self.elements)} elements;"
                f" expected (element, row, col)"
            )
        if min(shape[1:]) < 2 or not self.pixel_size > 0:
            raise ValueError(
                f"sample {self.name}: {shape[1:]} pixels of {self.pixel_size} um; expected at"
                f" least 2 x 2 and a size above 0"
            )
        if not (np.isfinite(self.maps).all() and self.maps.min() >= 0):
            raise ValueError(f"sample {self.name}: rates must be finite and not negative")

    @property
    def field(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """((low, high) slow, (low, high) fast): outer edges in um."""
        edges = []
        for start, count in zip(self.origin, self.maps.shape[1:], strict=True):
            low = start - self.pixel_size / 2
            edges.append((low, low + count * self.pixel_size))
        return edges[0], edges[1]

    def seen(self, probe_fwhm: float) -> XRFSample:
        """Return the sample as a Gaussian probe of that width (um) sees it. 0: as it is."""
        sigma = probe_fwhm * _SIGMA_PER_FWHM / self.pixel_size
        if sigma == 0:
            return self
        maps = gaussian_filter(self.maps, (0, sigma, sigma), mode="constant")
        return replace(self, maps=maps)

    def rate(self, slow: ArrayLike, fast: ArrayLike) -> np.ndarray:
        """Return rates at any positions, linear between grid points, 0 outside the field.

        Parameters
        ----------
        slow, fast
            Positions in um, broadcast to shape (n,).

        Returns
        -------
        ndarray of float32, shape (element, n)
            Counts/s.
        """
        slow, fast = np.broadcast_arrays(np.atleast_1d(slow), np.atleast_1d(fast))
        index, weight, inside = [], [], np.ones(slow.shape, bool)
        for position, start, count in zip(
            (slow, fast), self.origin, self.maps.shape[1:], strict=True
        ):
            at = (position - start) / self.pixel_size
            inside &= (at >= -0.5) & (at <= count - 0.5)
            at = np.clip(at, 0, count - 1)
            low = np.minimum(at.astype(np.intp), count - 2)
            index.append(low)
            weight.append((at - low).astype(np.float32))
        (row, col), (down, right) = index, weight
        maps = self.maps
        top = maps[:, row, col] * (1 - right) + maps[:, row, col + 1] * right
        bottom = maps[:, row + 1, col] * (1 - right) + maps[:, row + 1, col + 1] * right
        return (top * (1 - down) + bottom * down) * inside


class _Canvas:
    """A square grid around (0, 0), and shapes on it."""

    def __init__(self, width: float, pixel_size: float) -> None:
        self.n = round(width / pixel_size)
        self.pixel_size = pixel_size
        self.origin = -(self.n - 1) / 2 * pixel_size
        self.axis = (self.origin + np.arange(self.n) * pixel_size).astype(np.float32)
        self.slow, self.fast = self.axis[:, None], self.axis[None, :]

    def texture(self, rng: np.random.Generator, scale: float) -> np.ndarray:
        """Gaussian noise of unit variance that varies over ``scale`` um, (n, n) float32."""
        coarse = max(4, int(np.ceil(2 * self.n * self.pixel_size / scale)) + 2)
        noise = rng.standard_normal((coarse, coarse)).astype(np.float32)
        # Drawn on a coarse grid: smoothing at the grid's own spacing takes seconds.
        smooth = gaussian_filter(noise, 1.0)
        fine = np.asarray(zoom(smooth, self.n / coarse, order=1))
        return fine / max(float(smooth.std()), 1e-6)

    def ellipse(self, centre: np.ndarray, radii: tuple[float, float], angle: float) -> np.ndarray:
        """Squared elliptical radius, (n, n): below 1 inside."""
        y, x = self.slow - np.float32(centre[0]), self.fast - np.float32(centre[1])
        c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        return ((c * x + s * y) / np.float32(radii[1])) ** 2 + (
            (c * y - s * x) / np.float32(radii[0])
        ) ** 2

    def add_spot(self, image: np.ndarray, spot: Inclusion) -> None:
        """Add a Gaussian spot to an image in place."""
        sigma = spot.fwhm * _SIGMA_PER_FWHM
        middle = [(at - self.origin) / self.pixel_size for at in (spot.slow, spot.fast)]
        reach = 4 * sigma / self.pixel_size + 1
        rows, cols = (
            slice(max(0, int(m - reach)), max(0, min(self.n, int(m + reach) + 1))) for m in middle
        )
        r2 = (self.slow[rows] - spot.slow) ** 2 + (self.fast[:, cols] - spot.fast) ** 2
        image[rows, cols] += spot.rate * np.exp(-r2 / (2 * sigma**2))

    def sample(
        self, name: str, maps: dict[str, np.ndarray], inclusions: list[Inclusion]
    ) -> XRFSample:
        stack = np.maximum(np.stack(list(maps.values())), 0).astype(np.float32)
        for spot in inclusions:
            self.add_spot(stack[list(maps).index(spot.element)], spot)
        here = (self.origin, self.origin)
        return XRFSample(name, tuple(maps), stack, self.pixel_size, here, tuple(inclusions))


def cells(seed: int = 0, *, width: float = 40.0, pixel_size: float = 0.05) -> XRFSample:
    """Draw biological cells with trace-element inclusions and decoys.

    P, S, K and Ca show the cell (membrane, cytoplasm, nucleus, granules); Fe and Zn are weak and
    diffuse but for a few spots. Decoys are spots of S or Ca, as bright as an inclusion, without
    any trace element.

    Parameters
    ----------
    seed
        Same seed, same cells.
    width
        Width of the field, um.
    pixel_size
        Grid spacing, um.
    """
    rng = np.random.default_rng([seed, 1])
    canvas = _Canvas(width, pixel_size)
    shape = (canvas.n, canvas.n)
    body, nuclei = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    membrane, granules = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    homes: list[tuple[np.ndarray, float]] = []
    for centre in _apart(rng, int(rng.integers(3, 6)), width / 2 - _RIM, width / 4.5):
        radius = rng.uniform(0.13, 0.2) * width
        radii = (radius, radius * rng.uniform(0.75, 1.25))
        angle = rng.uniform(0, np.pi)
        wobble = np.float32(0.16) * canvas.texture(rng, radius)
        r2 = canvas.ellipse(centre, radii, angle) * (1 + wobble)
        dome = np.sqrt(np.clip(1 - r2, 0, 1))
        body = np.maximum(body, dome)
        membrane = np.maximum(membrane, np.exp(-(((r2 - 0.94) / 0.1) ** 2)))
        middle = centre + rng.uniform(-0.25, 0.25, 2) * radius
        n2 = canvas.ellipse(middle, (0.42 * radius, 0.36 * radius), rng.uniform(0, np.pi))
        nuclei = np.maximum(nuclei, np.sqrt(np.clip(1 - n2 * (1 + wobble / 2), 0, 1)))
        for _ in range(rng.integers(10, 25)):
            at = centre + _in_disc(rng, 0.8 * min(radii))
            size = (rng.uniform(0.15, 0.3), rng.uniform(0.3, 0.8))
            g2 = canvas.ellipse(at, size, rng.uniform(0, np.pi))
            granules = np.maximum(granules, np.sqrt(np.clip(1 - g2, 0, 1)))
        homes.append((centre, 0.75 * min(radii)))
    inside = (body > 0).astype(np.float32)
    fine = 1 + 0.12 * canvas.texture(rng, 1.2)
    cytoplasm = (0.35 * inside + 0.65 * body) * fine
    maps = {
        "P_K": 40 + 900 * cytoplasm + 1500 * nuclei + 500 * membrane,
        "S_K": 60 + 1300 * cytoplasm * (1 + 0.15 * canvas.texture(rng, 3.0)) + 300 * granules,
        "K_K": 30 + 2600 * cytoplasm + 500 * nuclei,
        "Ca_K": 80 + 260 * cytoplasm + 900 * granules + 350 * membrane,
        "Fe_K": 12 + 45 * cytoplasm + 60 * granules,
        "Zn_K": 10 + 60 * cytoplasm + 160 * nuclei * fine,
    }
    return canvas.sample("cells", maps, _spots(rng, homes, pixel_size))


def _spots(
    rng: np.random.Generator, homes: list[tuple[np.ndarray, float]], pixel_size: float
) -> list[Inclusion]:
    """Place inclusions and decoys in cells, well apart."""
    taken: list[np.ndarray] = []
    found: list[Inclusion] = []
    wanted = [(_TRACES[i % 2], False) for i in range(6)] + [("S_K", True), ("Ca_K", True)]
    for number, (element, decoy) in enumerate(wanted):
        centre, reach = homes[number % len(homes)]
        at = centre
        for _ in range(100):
            at = centre + _in_disc(rng, reach)
            if all(np.hypot(*(at - other)) > 2.0 for other in taken):
                break
        taken.append(at)
        fwhm = rng.uniform(0.4, 0.9)
        rate = rng.uniform(900, 2500) if decoy else rng.uniform(500, 1800)
        found.append(
            Inclusion(element, float(at[0]), float(at[1]), float(fwhm), float(rate), decoy)
        )
    return found


def _in_disc(rng: np.random.Generator, radius: float) -> np.ndarray:
    angle, distance = rng.uniform(0, 2 * np.pi), radius * np.sqrt(rng.uniform())
    return distance * np.array([np.sin(angle), np.cos(angle)])


def _apart(rng: np.random.Generator, count: int, reach: float, distance: float) -> np.ndarray:
    """Draw points in a square that are ``distance`` apart where that can be had, (n, 2)."""
    points: list[np.ndarray] = []
    for _ in range(60 * count):
        point = rng.uniform(-reach, reach, 2)
        if all(np.hypot(*(point - other)) > distance for other in points):
            points.append(point)
        if len(points) == count:
            break
    return np.array(points)


def siemens_star(
    seed: int = 0, *, width: float = 40.0, pixel_size: float = 0.05, spokes: int = 36
) -> XRFSample:
    """Draw a nickel Siemens star on a chromium layer and a silicon nitride window.

    ``seed`` turns the star. Resolution r is reached where spokes are r apart: at a distance of
    ``spokes * r / pi`` from the centre (full period 2 r).
    """
    rng = np.random.default_rng([seed, 2])
    canvas = _Canvas(width, pixel_size)
    radius = np.hypot(canvas.slow, canvas.fast)
    angle = np.arctan2(canvas.slow, canvas.fast) + rng.uniform(0, 2 * np.pi)
    on = np.cos(spokes * angle) > 0
    edge = 0.46 * width
    ring = sum((abs(radius - part * edge) < 0.012 * width) for part in (0.33, 0.66))
    star = ((on & (radius < edge)) | (ring > 0)) & (radius > 0.01 * width)
    star |= (radius >= edge) & (radius < edge + 0.02 * width)
    metal = star.astype(np.float32)
    maps = {
        "Si_K": np.full(metal.shape, 300, np.float32) * (1 - 0.5 * metal),
        "Cr_K": 5 + 150 * metal,
        "Ni_K": 8 + 2500 * metal,
    }
    return canvas.sample("siemens_star", maps, [])


def battery_particles(seed: int = 0, *, width: float = 40.0, pixel_size: float = 0.05) -> XRFSample:
    """Draw secondary particles of a layered oxide cathode with metal contamination.

    Ni, Co and Mn follow the particles, with a gradient from core to shell that differs between
    them; cracks cut all three. Fe and Cu are contaminations: a few small spots.
    """
    rng = np.random.default_rng([seed, 3])
    canvas = _Canvas(width, pixel_size)
    shape = (canvas.n, canvas.n)
    thickness, rich = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    homes = []
    for centre in _apart(rng, int(rng.integers(6, 11)), 0.42 * width, 0.2 * width):
        radius = rng.uniform(0.06, 0.14) * width
        wobble = 0.05 * canvas.texture(rng, radius / 2)
        r2 = canvas.ellipse(centre, (radius, radius * rng.uniform(0.9, 1.1)), 0.0) * (1 + wobble)
        dome = np.sqrt(np.clip(1 - r2, 0, 1)) * np.float32(radius / (0.14 * width))
        new = dome > thickness
        thickness[new] = dome[new]
        shell = np.clip(r2, 0, 1) ** 2
        rich[new] = (rng.uniform(0, 0.5) + rng.uniform(-0.5, 0.5) * shell)[new]
        homes.append((centre, 0.9 * radius))
    # Cracks run where a field crosses zero: thin, bent, closed or ending at the surface.
    crack = np.exp(-((canvas.texture(rng, 5.0) / 0.05) ** 2))
    pores = np.clip(canvas.texture(rng, 0.8) - 1.2, 0, 1)
    solid = thickness * (1 - 0.7 * crack) * (1 - 0.5 * pores)
    maps = {
        "Mn_K": 6 + 700 * solid * np.clip(0.3 + rich, 0.05, None),
        "Fe_K": np.full(shape, 8, np.float32),
        "Co_K": 6 + 500 * solid * (1 + 0.1 * canvas.texture(rng, 2.0)),
        "Ni_K": 8 + 4500 * solid * np.clip(1 - 0.5 * rich, 0.1, None),
        "Cu_K": np.full(shape, 8, np.float32),
    }
    spots = []
    for number in range(6):
        centre, reach = homes[number % len(homes)]
        at = centre + _in_disc(rng, reach)
        size, rate = rng.uniform(0.35, 0.8), rng.uniform(400, 1500)
        element = ("Fe_K", "Cu_K")[number % 2]
        spots.append(Inclusion(element, float(at[0]), float(at[1]), float(size), float(rate)))
    return canvas.sample("battery_particles", maps, spots)
