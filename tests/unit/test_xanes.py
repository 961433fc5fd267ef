"""Edge energies and reference fractions come out right, with errors that are true."""

import numpy as np
import pytest

from inscan.models.xanes import edge_energy, fit_references, normalise, optical_density

ENERGIES = np.linspace(8300.0, 8450.0, 101)


def _absorption(edge):
    e = ENERGIES[:, None, None] if np.ndim(edge) else ENERGIES
    return np.arctan((e - edge) / 2) / np.pi + 0.5 + 0.4 * np.exp(-(((e - edge - 5) / 4) ** 2))


@pytest.fixture
def sample():
    rng = np.random.default_rng(0)
    shift = rng.uniform(0, 3, (24, 20))
    thickness = rng.uniform(0.4, 1.2, (24, 20))
    thickness[:6] = 0
    slope = 0.2 - 4e-4 * (ENERGIES - 8300)[:, None, None]
    return shift, thickness, slope + thickness * _absorption(8341 + shift)


def test_edge_energy_follows_the_chemistry_and_leaves_out_empty_pixels(sample):
    shift, thickness, od = sample
    result = edge_energy(od, ENERGIES)
    full = thickness > 0
    assert np.isfinite(result.energy[full]).all()
    assert np.isnan(result.energy[~full]).all()
    slope, offset = np.polyfit(shift[full], result.energy[full], 1)
    assert abs(slope - 1) < 0.02
    assert np.std(result.energy[full] - slope * shift[full] - offset) < 0.05


def test_sigma_of_the_edge_energy_is_the_scatter_of_its_error(sample):
    _, thickness, od = sample
    true = edge_energy(od, ENERGIES, min_jump=0.2)
    z = []
    for seed in range(6):
        noisy = od + 0.01 * np.random.default_rng(seed).standard_normal(od.shape)
        result = edge_energy(noisy, ENERGIES, variance=1e-4, min_jump=0.2)
        z.append(((result.energy - true.energy) / result.sigma)[thickness > 0])
    assert abs(np.nanstd(z) - 1) < 0.15
    assert np.isfinite(z).mean() > 0.99


def test_normalised_spectra_run_from_nought_to_one(sample):
    _, thickness, od = sample
    n = normalise(od, ENERGIES)[:, thickness > 0]
    assert abs(n[:10].mean()) < 0.02
    assert abs(n[-10:].mean() - 1) < 0.05


def test_gaps_in_the_spectrum_do_no_harm(sample):
    _, thickness, od = sample
    holed = od.copy()
    holed[[3, 50, 90]] = np.nan
    whole, gaps = edge_energy(od, ENERGIES), edge_energy(holed, ENERGIES)
    full = thickness > 0
    assert np.isfinite(gaps.energy[full]).all()
    assert np.abs(gaps.energy - whole.energy)[full].max() < 0.2


def test_optical_density_carries_its_variance_and_refuses_shadow():
    density, variance = optical_density([[0.5, 0.0, -0.1]], [[0.01, 0.01, 0.01]])
    assert variance is not None
    assert density[0, 0] == pytest.approx(np.log(2))
    assert variance[0, 0] == pytest.approx(0.04)
    assert np.isnan(density[0, 1:]).all() and np.isnan(variance[0, 1:]).all()


@pytest.mark.parametrize("known", [True, False])
def test_fractions_of_references_with_true_errors(known):
    rng = np.random.default_rng(1)
    references = np.stack([_absorption(8341), _absorption(8344), _absorption(8346.5)])
    share = rng.dirichlet([2, 2, 2], (20, 20)).transpose(2, 0, 1)
    thickness = rng.uniform(0.5, 1.2, (20, 20))
    thickness[:4] = 0
    clean = 0.3 + thickness * np.einsum("re,rxy->exy", references, share)
    noisy = clean + 0.002 * rng.standard_normal(clean.shape)
    fit = fit_references(noisy, ENERGIES, references, variance=4e-6 if known else None)
    full = thickness > 0
    assert np.isnan(fit.fractions[:, ~full]).all()
    assert np.allclose(fit.fractions[:, full].sum(axis=0), 1, atol=1e-5)
    assert (fit.fractions[:, full] >= 0).all()
    z = (fit.fractions - share)[:, full] / fit.sigma[:, full]
    assert 0.8 < np.std(z) < 1.15
    assert abs(np.nanmean(fit.chi2) - 1) < 0.05
    assert np.abs(fit.offset[full] - 0.3).max() < 0.03
    assert np.allclose(fit.amount[full], thickness[full], atol=0.02)


def test_the_non_negative_fit_is_the_best_one():
    from scipy.optimize import nnls

    rng = np.random.default_rng(5)
    references = np.stack([_absorption(8341), _absorption(8342), _absorption(8346)])
    od = (references[1][:, None, None] + 0.05 * rng.standard_normal((101, 5, 5))).clip(0)
    fit = fit_references(od, ENERGIES, references, offset=False, min_amount=0)
    for r, c in np.ndindex(5, 5):
        exact, _ = nnls(references.T, od[:, r, c].astype(np.float32).astype(float))
        assert np.allclose(fit.fractions[:, r, c], exact / exact.sum(), atol=1e-4)


def test_says_what_is_wrong():
    od = np.ones((101, 2, 2))
    with pytest.raises(ValueError, match="must rise"):
        edge_energy(od, ENERGIES[::-1])
    with pytest.raises(ValueError, match="no energies in the pre-edge range"):
        edge_energy(od, ENERGIES, pre=(0, 1))
    with pytest.raises(ValueError, match="references must be finite"):
        fit_references(od, ENERGIES, np.ones((2, 7)))
    with pytest.raises(ValueError, match="told apart"):
        fit_references(od, ENERGIES, np.ones((9, 101)))


def test_a_stack_without_any_edge_gives_no_energies():
    flat = np.zeros((101, 3, 4))
    assert np.isnan(edge_energy(flat, ENERGIES).energy).all()
    assert np.isnan(edge_energy(np.full((101, 1, 3), np.nan), ENERGIES).energy).all()
