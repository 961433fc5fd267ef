"""Places of a stack with another chemistry: found inside the sample, never for its border, its thickness or noise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inscan.models import xanes
from inscan.models.chemistry_regions import edge_regions, spectrum_regions
from inscan.models.region_boxes import PixelRegion

SIDE = 56
AT = (34, 22)
ENERGIES = np.linspace(8290.0, 8410.0, 45)
SEARCH = {"pad_px": 0}


def absorption(edge_ev: float) -> np.ndarray:
    after = ENERGIES - edge_ev
    step = 0.15 + 0.8 / (1 + np.exp(-after / 1.5)) + 0.3 * np.exp(-(((after - 4) / 3) ** 2))
    return step[:, None, None]


def place(sigma: float, row: int = AT[0], col: int = AT[1]) -> np.ndarray:
    r, c = np.indices((SIDE, SIDE))
    return np.exp(-((r - row) ** 2 + (c - col) ** 2) / (2 * sigma**2))


def particle() -> np.ndarray:
    """Optical thickness of a round particle that is thicker in parts and thin at its border."""
    r, c = np.indices((SIDE, SIDE))
    rim = np.clip((0.42 * SIDE - np.hypot(r - SIDE / 2, c - SIDE / 2)) / 6, 0, 1)
    return rim * (1 + 0.2 * np.sin(r / 7) * np.cos(c / 9))


def measured(
    density: np.ndarray, seed: int, photons: float = 600
) -> tuple[np.ndarray, np.ndarray | None, xanes.EdgeMap]:
    passed = np.random.default_rng(seed).poisson(np.exp(-density) * photons) / photons
    seen, variance = xanes.optical_density(passed, np.maximum(passed, 1 / photons) / photons)
    edge = xanes.edge_energy(seen, ENERGIES, variance=variance)
    return seen, variance, edge


def holds(region: PixelRegion, at: tuple[int, int] = AT) -> bool:
    r0, r1, c0, c1 = region.box
    return r0 <= at[0] < r1 and c0 <= at[1] < c1


def test_an_inclusion_of_another_oxidation_state_is_found_and_told_in_ev() -> None:
    weight = place(2.5)
    for seed in range(3):
        density = particle() * (absorption(8345) * (1 - weight) + absorption(8347) * weight)
        seen, variance, edge = measured(density, seed)
        (found,) = edge_regions(edge.energy, edge.sigma, **SEARCH)
        assert holds(found) and found.significance > 8
        assert "eV above the 8344" in found.reason and "sigma" in found.reason
        sample = np.isfinite(edge.energy)
        (odd,) = spectrum_regions(seen, ENERGIES, sample, variance=variance, **SEARCH)
        assert holds(odd) and "unlike the rest" in odd.reason
        assert (found.box[1] - found.box[0]) * (found.box[3] - found.box[2]) < 0.08 * SIDE**2


def test_a_spectrum_with_a_peak_of_its_own_is_found_though_its_edge_is_where_all_are() -> None:
    peak = 0.2 * np.exp(-(((ENERGIES - 8368) / 4) ** 2))[:, None, None]
    density = particle() * (absorption(8345) + place(2.5) * peak)
    seen, variance, edge = measured(density, 1)
    assert edge_regions(edge.energy, edge.sigma, **SEARCH) == []
    (found,) = spectrum_regions(seen, ENERGIES, np.isfinite(edge.energy), variance=variance)
    named = float(found.reason.split("most of all at ")[1].split(" eV")[0])
    assert holds(found) and abs(named - 8368) < 5 and "above what" in found.reason


def test_one_chemistry_gives_nothing_at_its_border_or_anywhere() -> None:
    wrong = 0
    for seed in range(8):
        seen, variance, edge = measured(particle() * absorption(8345), seed)
        wrong += len(edge_regions(edge.energy, edge.sigma))
        sample = np.isfinite(edge.energy)
        wrong += len(spectrum_regions(seen, ENERGIES, sample, variance=variance))
    assert wrong <= 1  # 0.16 expected


def test_a_border_with_another_edge_energy_is_no_place() -> None:
    rng = np.random.default_rng(0)
    r, c = np.indices((SIDE, SIDE))
    far = np.hypot(r - SIDE / 2, c - SIDE / 2)
    energy = 8345 + rng.normal(0, 0.1, (SIDE, SIDE))
    # Frames that moved by half a pixel: the rim's edge wanders, to either side.
    energy += np.where((far > 21) & (far < 23), np.where(c > SIDE / 2, 1.5, -1.5), 0)
    energy[far >= 23] = np.nan
    sigma = np.full(energy.shape, 0.1)
    assert edge_regions(energy, sigma) == []
    energy[20:24, 24:28] += 0.6
    (found,) = edge_regions(energy, sigma, **SEARCH)
    assert holds(found, (22, 26))


def test_halves_of_different_chemistry_and_a_slope_are_no_places() -> None:
    rng = np.random.default_rng(1)
    noise, sigma = rng.normal(0, 0.1, (SIDE, SIDE)), np.full((SIDE, SIDE), 0.1)
    halves = 8345 + 2.0 * (np.indices((SIDE, SIDE))[1] > 27) + noise
    assert edge_regions(halves, sigma) == []
    slope = 8345 + np.linspace(-1, 1, SIDE)[:, None] + noise
    assert edge_regions(slope, sigma) == []


def test_a_large_error_excuses_a_large_difference() -> None:
    rng = np.random.default_rng(2)
    sigma = np.full((SIDE, SIDE), 0.1)
    sigma[20:30, 20:30] = 2.0
    energy = 8345 + rng.normal(0, 1, sigma.shape) * sigma
    assert edge_regions(energy, sigma) == []
    sigma[:] = 0.1
    assert edge_regions(energy, sigma) != []


def test_where_there_is_no_edge_or_hardly_any_sample_there_is_nothing_to_say() -> None:
    nothing = np.full((SIDE, SIDE), np.nan)
    assert edge_regions(nothing, nothing) == []
    crumb = nothing.copy()
    crumb[10:14, 10:14] = 8350
    assert edge_regions(crumb, np.ones_like(crumb)) == []
    stack = np.random.default_rng(0).normal(1, 0.1, (20, SIDE, SIDE))
    assert spectrum_regions(stack, ENERGIES[:20], np.isfinite(crumb)) == []
    assert spectrum_regions(np.zeros_like(stack), ENERGIES[:20], np.isfinite(stack[0])) == []


def test_a_large_stack_is_averaged_and_its_places_stay_where_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weight = place(4.0)
    density = particle() * (absorption(8345) * (1 - weight) + absorption(8348) * weight)
    seen, variance, edge = measured(density, 3)
    sample = np.isfinite(edge.energy)
    monkeypatch.setattr("inscan.models.chemistry_regions._MOST_VALUES", seen.size // 4)
    (found,) = spectrum_regions(seen, ENERGIES, sample, variance=variance, **SEARCH)
    assert holds(found) and np.hypot(found.peak[0] - AT[0], found.peak[1] - AT[1]) <= 3


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 1000),
    rows=st.integers(1, 40),
    cols=st.integers(1, 40),
    pad=st.integers(0, 4),
    share=st.floats(0, 0.3),
)
def test_boxes_lie_in_the_field_apart_and_hold_their_peak(
    seed: int, rows: int, cols: int, pad: int, share: float
) -> None:
    rng = np.random.default_rng(seed)
    energy = 8345 + rng.normal(0, 0.1, (rows, cols))
    for _ in range(6):
        r, c = rng.integers(rows), rng.integers(cols)
        energy[r : r + 4, c : c + 4] += rng.choice([-2, 2])
    energy[rng.random(energy.shape) < share] = np.nan
    stack = energy[None] - 8345 + rng.normal(0, 0.2, (4, rows, cols))
    found = edge_regions(energy, np.full(energy.shape, 0.1), pad_px=pad)
    odd = spectrum_regions(stack, ENERGIES[:4], np.isfinite(energy), pad_px=pad)
    for regions in (found, odd):
        taken = np.zeros((rows, cols), int)
        for one in regions:
            r0, r1, c0, c1 = one.box
            assert 0 <= r0 < r1 <= rows and 0 <= c0 < c1 <= cols and holds(one, one.peak)
            taken[r0:r1, c0:c1] += 1
        assert taken.max() <= 1


def test_wrong_shapes_are_refused() -> None:
    plane, stack = np.ones((8, 8)), np.ones((5, 8, 8))
    with pytest.raises(ValueError, match="energy must have shape"):
        edge_regions(stack, stack)
    with pytest.raises(ValueError, match="sigma has shape"):
        edge_regions(plane, np.ones((4, 4)))
    with pytest.raises(ValueError, match="scale_px"):
        edge_regions(8345 * np.ones((20, 20)), np.ones((20, 20)), scale_px=0)
    with pytest.raises(ValueError, match="4 energies for 5 frames"):
        spectrum_regions(stack, ENERGIES[:4], plane)
    with pytest.raises(ValueError, match="sample has shape"):
        spectrum_regions(stack, ENERGIES[:5], np.ones((4, 4)))
