"""Score the choice of energies: what a share of a full stack's energies gives, chosen, spaced evenly, or put by hand.

inscan evaluate energies
"""

from collections.abc import Callable, Sequence
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from inscan.models import subspace
from inscan.models.energy_choice import EnergyChoice, candidate_energies, choose_energies
from inscan.models.infer import Denoiser, load_denoiser
from inscan.models.scores import ScoreRow, summarise
from inscan.models.stack_cases import placed_energies
from inscan.models.xanes import edge_energy, fit_references, optical_density
from inscan.profiles.samples import Chemistry, XANESSample, battery_xanes, ni_energies_ev
from inscan.profiles.xanes_standards import energy_grid

__all__ = ["evaluate_all", "evaluate_choice"]

Floats = NDArray[np.float64]
Maps = NDArray[np.float32]

_LOW, _HIGH, _STEP = 8240.0, 8470.0, 0.5
_FULL, _SURVEY = 120, 12
_SHARES = (15, 20, 30, 40)  # percent of the full stack, survey included
_SOLID = 0.25
_PHOTONS = 600.0
_SIZE = 96
_WANTED = 0.1
_ONCE, _TWICE = "inscan, in one round", "inscan, in two rounds"


def evaluate_all(
    seeds: Sequence[int], progress: Callable[[str], None] | None = None
) -> list[ScoreRow]:
    """Every case."""
    return evaluate_choice(seeds, progress=progress or (lambda _: None))


def evaluate_choice(
    seeds: Sequence[int],
    chemistries: Sequence[Chemistry] = get_args(Chemistry),
    shares: Sequence[int] = _SHARES,
    *,
    size: int = _SIZE,
    progress: Callable[[str], None] = lambda _: None,
) -> list[ScoreRow]:
    """Battery particles, transmission of 600 photons, over shares of 120 energies.

    Parameters
    ----------
    seeds : sequence of int
    chemistries : sequence of str
    shares : sequence of int
        Percent of the full stack's energies; what is chosen adds to a survey of 10 %.
    size : int
        Rows and columns.
    progress : callable

    Returns
    -------
    list of ScoreRow
        Against the truth, over pixels with a strong edge: `rmse` and `offset` of the edge energy (eV; standard
        deviation and mean of its error), `fractions` (root mean square), and for chosen energies `predicted` (predicted
        error of the edge energy over the error found, offset included); `energies` is how many there are, survey
        included, when 0.1 eV is predicted.
    """
    denoiser, full, survey = load_denoiser(), ni_energies_ev(_FULL), ni_energies_ev(_SURVEY)
    scores: dict[tuple[str, str], list[dict[str, float]]] = {}
    for chemistry in chemistries:
        for seed in seeds:
            progress(f"{chemistry} chemistry, {_PHOTONS:g} photons, seed {seed}")
            bench = _Bench(battery_xanes(seed, chemistry=chemistry, size=size), seed, denoiser)
            everything, little = bench.score(full), bench.score(survey)
            for share in shares:
                count = _FULL * share // 100
                half = bench.choose(survey, (count - len(survey)) // 2)[0]
                methods = {
                    "evenly spaced": bench.score(np.linspace(_LOW, _HIGH, count)),
                    "every so many of all": bench.score(full[_spread(count)]),
                    "put by hand": bench.score(placed_energies(count)),
                    _ONCE: bench.score(*bench.choose(survey, count - len(survey))),
                    _TWICE: bench.score(*bench.choose(half, count - len(half))),
                    "survey alone": little,
                    "all energies": everything,
                }
                case = f"{chemistry} chemistry, {share} % of {_FULL} energies"
                for method, score in methods.items():
                    scores.setdefault((case, method), []).append(score)
            enough = bench.choose(survey, _FULL - len(survey), _WANTED)
            case = f"{chemistry} chemistry, until {_WANTED:g} eV is predicted"
            score = {"energies": float(len(enough[0])), **bench.score(*enough)}
            scores.setdefault((case, _ONCE), []).append(score)
    return [summarise(case, method, several) for (case, method), several in scores.items()]


def _spread(count: int) -> NDArray[np.intp]:
    return np.round(np.linspace(0, _FULL - 1, count)).astype(np.intp)


class _Bench:
    """One sample, whose image at an energy is the same whenever it is asked for."""

    def __init__(self, sample: XANESSample, seed: int, denoiser: Denoiser) -> None:
        self._sample, self._seed, self._denoiser = sample, seed, denoiser
        self._solid = sample.jump > _SOLID * sample.jump.max()
        self._truth = sample.edge_energy()[self._solid].astype(np.float64)
        self._known: dict[tuple[float, ...], tuple[Maps, Maps, Maps]] = {}

    def _image(self, energy: float) -> tuple[Maps, Maps]:
        """Transmission and its variance, (row, col)."""
        mean = np.exp(-self._sample.optical_density(energy)[0]) * _PHOTONS
        counts = np.random.default_rng([self._seed, round(100 * energy)]).poisson(mean)
        counts = counts.astype(np.float32)
        return counts / np.float32(_PHOTONS), np.maximum(counts, 1) / np.float32(_PHOTONS**2)

    def _denoised(self, grid: Floats) -> tuple[Maps, Maps, Maps]:
        """Density, its variance, and the variance of single images as density."""
        key = tuple(grid.tolist())
        if key not in self._known:
            images = [self._image(energy) for energy in grid]
            stack, variance = (np.stack(one) for one in zip(*images, strict=True))
            found = subspace.denoise(
                stack, variance=variance, energies=grid, denoiser=self._denoiser
            )
            density, left = optical_density(found.values, np.square(found.sigma))
            single = optical_density(stack, variance)[1]
            assert left is not None and single is not None
            self._known[key] = density, left, single
        return self._known[key]

    def choose(
        self, survey: Floats, count: int, precision_ev: float = 1e-6
    ) -> tuple[Floats, EnergyChoice]:
        """All energies after so many were added to a survey, and the choice."""
        density, left, single = self._denoised(survey)
        table = energy_grid()
        choice = choose_energies(
            density,
            survey,
            candidate_energies(_LOW, _HIGH, _STEP, survey),
            sigma=np.sqrt(left),
            frame_variance=single,
            references=[(table, state(table)) for state in self._sample.spectra],
            most=count,
            precision_ev=precision_ev,
        )
        return np.union1d(survey, choice.energies_ev), choice

    def score(self, grid: Floats, choice: EnergyChoice | None = None) -> dict[str, float]:
        """Figures of a stack of these energies."""
        density, _, _ = self._denoised(grid)
        seen = edge_energy(density, grid, min_jump=0.0).energy[self._solid]
        away = (seen - self._truth)[np.isfinite(seen)]
        references = np.stack([state(grid) for state in self._sample.spectra])
        fit = fit_references(density, grid, references, min_amount=0.0).fractions[:, self._solid]
        wrong = np.nan_to_num(fit, nan=1 / 3) - self._sample.fractions[:, self._solid]
        figures = {
            "rmse": float(away.std()),
            "offset": float(away.mean()),
            "fractions": float(np.sqrt(np.mean(np.square(wrong)))),
        }
        if choice is not None:
            error = float(np.sqrt(np.mean(np.square(away))))
            figures["predicted"] = float(choice.edge_sigma_ev[-1]) / error
        return figures
