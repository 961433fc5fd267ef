"""Energy stacks with known truth to score methods on: noise, counts, motion, drift of the beam.

The samples are battery particles, which no network has seen.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from inscan.models.stack_resample import moved
from inscan.profiles.samples import Chemistry, XANESSample, battery_xanes, ni_energies_ev

__all__ = ["StackCase", "counted", "drifting", "jittered", "noisy_stack", "placed_energies"]

_PAD = 16  # pixels around the field from which sample moves in


@dataclass(frozen=True)
class StackCase:
    """One stack.

    Attributes
    ----------
    sample : XANESSample
    energies : ndarray of float64, shape (energy,)
        eV.
    clean, noisy : ndarray of float32, shape (energy, row, col)
        Optical density times `scale`, or transmission.
    scale : float
        What optical density was multiplied by; 0 where the stack is transmission.
    sigma : float
        Noise of every value; NaN where it differs.
    variance : ndarray of float32 or None
        As a beamline would know it.
    flats : ndarray of float32, shape (flat, row, col), or None
    """

    sample: XANESSample
    energies: NDArray[np.float64]
    clean: NDArray[np.float32]
    noisy: NDArray[np.float32]
    scale: float
    sigma: float
    variance: NDArray[np.float32] | None = None
    flats: NDArray[np.float32] | None = None


def placed_energies(count: int) -> NDArray[np.float64]:
    """Energies put where they tell most: two thirds over the edge, the rest for the two lines."""
    before = max(2, count // 6)
    after = max(2, count // 6)
    return np.concatenate(
        [
            np.linspace(8280.0, 8335.0, before),
            np.linspace(8340.0, 8356.0, count - before - after),
            np.linspace(8385.0, 8470.0, after),
        ]
    )


def noisy_stack(
    seed: int,
    sigma: float,
    *,
    chemistry: Chemistry = "smooth",
    energies: NDArray[np.float64] | None = None,
    size: int = 192,
) -> StackCase:
    """Optical density with Gaussian noise, in units in which the brightest value is 255."""
    grid = ni_energies_ev(120) if energies is None else energies
    sample = battery_xanes(seed, chemistry=chemistry, size=size)
    density = sample.optical_density(grid)
    scale = 255.0 / float(density.max())
    clean = (density * scale).astype(np.float32)
    rng = np.random.default_rng([seed, int(sigma)])
    noise = np.float32(sigma) * rng.standard_normal(clean.shape).astype(np.float32)
    return StackCase(sample, grid, clean, (clean + noise).astype(np.float32), scale, sigma)


def counted(
    seed: int,
    open_beam: float,
    *,
    read_noise: float = 0.0,
    chemistry: Chemistry = "fine",
    count: int = 120,
    size: int = 128,
) -> StackCase:
    """Transmission from counts, with the variance that the counts themselves give.

    Parameters
    ----------
    seed : int
    open_beam : float
        Counts per pixel and frame without sample.
    read_noise : float
        Gaussian noise of the camera, in counts: mixed noise.
    chemistry, count, size
    """
    grid = ni_energies_ev(count)
    sample = battery_xanes(seed, chemistry=chemistry, size=size)
    clean = np.exp(-sample.optical_density(grid)).astype(np.float32)
    rng = np.random.default_rng([seed, int(open_beam), 1])
    counts = rng.poisson(clean * open_beam).astype(np.float32)
    if read_noise > 0:
        counts += np.float32(read_noise) * rng.standard_normal(counts.shape).astype(np.float32)
    variance = (np.maximum(counts, 1) + read_noise**2) / open_beam**2
    noisy = (counts / open_beam).astype(np.float32)
    return StackCase(sample, grid, clean, noisy, 0.0, np.nan, variance.astype(np.float32))


def jittered(
    seed: int,
    sigma: float,
    amplitude: float,
    *,
    zone_plate: bool = False,
    count: int = 61,
    size: int = 128,
) -> tuple[StackCase, NDArray[np.float32], NDArray[np.float64]]:
    """Frames that moved by up to `amplitude` pixels along each axis, each on its own.

    With `zone_plate` the magnification falls as the energy rises, as that of a zone plate whose
    image distance stays.

    Returns
    -------
    case : StackCase
    still : ndarray of float32, shape (energy, row, col)
        With the same noise, and no motion.
    shifts : ndarray of float64, shape (energy, 2)
        Their median is 0.
    """
    grid = ni_energies_ev(count)
    whole = battery_xanes(seed, chemistry="smooth", size=size + 2 * _PAD)
    density = whole.optical_density(grid)
    scale = 255.0 / float(density.max())
    inner = slice(_PAD, _PAD + size)
    rng = np.random.default_rng([seed, int(sigma), int(10 * amplitude)])
    shifts = rng.uniform(-amplitude, amplitude, (count, 2))
    shifts -= np.median(shifts, axis=0)
    middle = (grid.max() + grid.min()) / 2
    size_of = 1 - (grid - middle) / middle if zone_plate else np.ones(count)
    frames = np.stack(
        [
            moved(frame * scale, -shift / part, 1 / part)[inner, inner]
            for frame, shift, part in zip(density, shifts, size_of, strict=True)
        ]
    )
    clean = (density[:, inner, inner] * scale).astype(np.float32)
    noise = np.float32(sigma) * rng.standard_normal(clean.shape).astype(np.float32)
    sample = replace(
        whole,
        jump=whole.jump[inner, inner],
        fractions=whole.fractions[:, inner, inner],
        pre_edge=whole.pre_edge[inner, inner],
    )
    frames = (frames + noise).astype(np.float32)
    still = (clean + noise).astype(np.float32)
    return StackCase(sample, grid, clean, frames, scale, sigma), still, shifts


def drifting(
    seed: int, photons: float, *, drift: float = 1.0, count: int = 61, size: int = 128
) -> StackCase:
    """Transmission with a flat at each energy, between which beam and optics drifted.

    Two states of the illumination, stripes and speckle, blend by an amount that wanders over some
    forty exposures, and the flux by half a percent; as the simulated microscope of the project.

    Parameters
    ----------
    seed : int
    photons : float
        Per pixel, of each frame and of each flat.
    drift : float
        Relative strength; 0: the beam stays as it is.
    count, size : int
    """
    grid = ni_energies_ev(count)
    sample = battery_xanes(seed, chemistry="smooth", size=size)
    clean = np.exp(-sample.optical_density(grid)).astype(np.float32)
    rng = np.random.default_rng([seed, int(photons), 2])
    light = _beam(rng, size, drift)
    flats = np.stack([rng.poisson(photons * light()) for _ in grid]).astype(np.float64)
    frames = np.stack([rng.poisson(photons * light() * frame) for frame in clean])
    flats = np.maximum(flats, 1)
    noisy = frames / flats
    variance = np.maximum(frames, 1) / flats**2 + frames**2 / flats**3
    return StackCase(
        sample,
        grid,
        clean,
        noisy.astype(np.float32),
        0.0,
        np.nan,
        variance.astype(np.float32),
        flats=flats.astype(np.float32),
    )


def _beam(rng: np.random.Generator, size: int, drift: float) -> Callable[[], NDArray[np.float64]]:
    pattern = rng.standard_normal((2, size, size))
    y = np.linspace(-1, 1, size)
    profile = np.exp(-0.35 * (y[:, None] ** 2 + y**2))
    stripes = gaussian_filter(pattern[..., :1], (0, max(1.0, size / 80), 0))
    speckle = gaussian_filter(pattern, (0, 2.0, 2.0))
    speckle[1] = 0.8 * speckle[0] + 0.6 * speckle[1]
    stripes = 0.05 * stripes / stripes.std() * np.array([1.0, 0.8])[:, None, None]
    first, second = profile * np.clip(1 + stripes + 0.04 * speckle / speckle.std(), 0.3, None)
    keep = np.exp(-1 / 40.0)
    state = np.zeros(2)

    def light() -> NDArray[np.float64]:
        state[:] = keep * state + rng.normal(0, np.sqrt(1 - keep**2), 2)
        blend = 0.5 + 0.15 * drift * state[0]
        return (1 + 0.005 * drift * state[1]) * (first * blend + second * (1 - blend))

    return light
