"""Energies that a survey lacks: chosen where they tell most, predicted honestly, and better than even spacing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inscan.models.edge_model import fit_shape, prospects
from inscan.models.energy_choice import candidate_energies, choose_energies
from inscan.models.xanes import edge_energy
from inscan.profiles.samples import NI_STATES, battery_xanes, ni_energies_ev
from inscan.profiles.xanes_standards import energy_grid

LOW, HIGH = 8240.0, 8470.0
SURVEY = ni_energies_ev(12)
SAMPLE = battery_xanes(5, chemistry="fine", size=40)
NOISE = 0.02
TABLE = [(energy_grid(), state(energy_grid())) for state in NI_STATES]


def noisy(energies, seed: int = 0, noise: float = NOISE) -> np.ndarray:
    """Optical density with white noise: an image is the same whenever it is asked for."""
    frames = [
        np.random.default_rng([seed, round(100 * e)]).normal(0, noise, SAMPLE.shape)
        for e in energies
    ]
    return SAMPLE.optical_density(energies) + np.asarray(frames, np.float32)


def choose(survey=SURVEY, *, noise: float = NOISE, step: float = 1.0, **options):
    density = noisy(survey, noise=max(noise, 1e-6))
    candidates = candidate_energies(LOW, HIGH, step, survey)
    sigma = np.full_like(density, noise)
    return choose_energies(density, survey, candidates, sigma=sigma, **options)


def fitted(energies) -> np.ndarray:
    """Half-step energies from a fit of the true spectra to each pixel: what the model's information is about."""
    density = noisy(energies).reshape(len(energies), -1)
    at = np.arange(8340.0, 8356.0, 0.1)
    falling = (8333.0 / energies) ** 3
    best, found = np.full(density.shape[1], np.inf), np.zeros(density.shape[1])
    for first, second in ((0, 1), (1, 2)):
        for share in np.linspace(0, 1, 41):
            mixed = (1 - share) * TABLE[first][1] + share * TABLE[second][1]
            design = np.stack([np.interp(energies, TABLE[0][0], mixed), falling], axis=1)
            left = density - design @ np.linalg.lstsq(design, density, rcond=None)[0]
            misfit = np.square(left).sum(axis=0)
            crossing = np.interp(0.5, np.interp(at, TABLE[0][0], mixed)[:80], at[:80])
            found = np.where(misfit < best, crossing, found)
            best = np.minimum(best, misfit)
    return found.reshape(SAMPLE.shape)


def test_the_same_survey_gives_the_same_energies():
    one, other = choose(most=8, precision_ev=1e-3), choose(most=8, precision_ev=1e-3)
    np.testing.assert_array_equal(one.energies_ev, other.energies_ev)
    np.testing.assert_array_equal(one.edge_sigma_ev, other.edge_sigma_ev)
    assert len(one.energies_ev) == 8 and not one.reached
    assert not np.isin(one.energies_ev, SURVEY).any()
    assert (np.diff(one.edge_sigma_ev) < 1e-9).all()


def test_most_of_them_lie_where_the_edge_rises():
    choice = choose(most=10, precision_ev=1e-3)
    assert choice.edge_ev == pytest.approx(8346, abs=2)
    assert np.sum(np.abs(choice.energies_ev - choice.edge_ev) < 15) >= 7


def test_chosen_energies_beat_as_many_evenly_spaced_ones():
    truth = SAMPLE.edge_energy()
    solid = SAMPLE.jump > 0.25 * SAMPLE.jump.max()

    def error(energies, edges) -> float:
        return float(np.sqrt(np.nanmean(np.square(edges - truth)[solid])))

    chosen = np.union1d(SURVEY, choose(most=12, precision_ev=1e-3).energies_ev)
    even = np.linspace(LOW, HIGH, len(chosen))
    by_line = [error(e, edge_energy(noisy(e), e, min_jump=0.0).energy) for e in (chosen, even)]
    by_fit = [error(e, fitted(e)) for e in (chosen, even)]
    assert by_line[0] < 0.5 * by_line[1]
    assert by_fit[0] < 0.8 * by_fit[1]


def test_it_stops_where_the_precision_is_reached():
    choice = choose(most=60, precision_ev=0.3)
    assert choice.reached and 0 < len(choice.energies_ev) < 60
    assert choice.edge_sigma_ev[-1] <= 0.3 < choice.edge_sigma_ev[0]
    again = choose(np.union1d(SURVEY, choice.energies_ev), most=60, precision_ev=0.45)
    assert again.reached and len(again.energies_ev) == 0
    assert len(again.edge_sigma_ev) == 1


def test_references_are_told_apart_better_when_they_count():
    with_them = choose(most=8, precision_ev=1e-3, references=TABLE)
    assert with_them.fraction_sigma is not None and len(with_them.fraction_sigma) == 9
    assert with_them.fraction_sigma[-1] < 0.7 * with_them.fraction_sigma[0]
    short = [(e[200:260], a[200:260]) for e, a in TABLE]
    assert choose(most=2, references=short).fraction_sigma is None


def test_predicted_noise_falls_with_more_light():
    """Four times the variance is twice the error, where noise and not the spacing of energies limits it."""
    spectra = noisy(SURVEY)[:, SAMPLE.jump > 0.25]
    pixels = spectra.shape[1]
    shape = fit_shape(SURVEY, spectra, np.full(pixels, 8346.0), np.ones(pixels))
    grid = np.arange(8240.0, 8470.0, 1.0)
    some = np.zeros(len(grid), bool)
    some[::3] = True
    errors = [
        prospects(shape, grid, np.full(len(grid), v), 1.0, ()).edge.after(some).variance().mean()
        for v in (1e-4, 4e-4)
    ]
    assert errors[1] / errors[0] == pytest.approx(4, rel=0.05)


@settings(deadline=None, max_examples=8, derandomize=True)
@given(
    survey=st.lists(st.integers(int(LOW), int(HIGH)), min_size=6, max_size=14, unique=True),
    most=st.integers(0, 6),
)
def test_whatever_the_survey_the_choice_is_among_the_candidates_or_says_why(survey, most):
    energies = np.array(sorted(survey), float)
    candidates = candidate_energies(LOW, HIGH, 2.0, energies)
    density = noisy(energies)
    try:
        choice = choose_energies(
            density, energies, candidates, sigma=np.full_like(density, NOISE), most=most
        )
    except ValueError as error:
        assert "edge" in str(error) or "range" in str(error)
        return
    assert len(choice.energies_ev) <= most
    assert np.isin(choice.energies_ev, candidates).all()
    assert len(set(choice.energies_ev.tolist())) == len(choice.energies_ev)
    assert np.isfinite(choice.edge_sigma_ev).all()


def test_candidates_leave_out_what_was_taken():
    np.testing.assert_allclose(candidate_energies(10.0, 13.0, 1.0, [11.2, 12.6]), [10.0, 12.0])
    assert len(candidate_energies(10.0, 13.0, 1.0, [])) == 4
    with pytest.raises(ValueError, match="larger steps"):
        candidate_energies(1000.0, 9000.0, 0.1, [])
    with pytest.raises(ValueError, match="no grid"):
        candidate_energies(10.0, 9.0, 1.0, [])


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"energies_ev": SURVEY[:-1]}, "shape"),
        ({"sigma": 0.0}, "above 0"),
        ({"density": np.zeros((12, 8, 8), np.float32)}, "edge"),
        ({"most": -1}, "most"),
    ],
)
def test_what_is_no_survey_is_refused(changed, words):
    given_ = {
        "density": noisy(SURVEY),
        "energies_ev": SURVEY,
        "candidates_ev": [8345.0],
        "sigma": NOISE,
    } | changed
    with pytest.raises(ValueError, match=words):
        choose_energies(**given_)
