"""Score `subspace` on battery particles, which no network has seen, beside simpler methods and limits.

inscan evaluate subspace
"""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, median_filter

from inscan.models import subspace
from inscan.models.gram import GramAccumulator
from inscan.models.infer import Denoiser, load_denoiser
from inscan.models.lowrank import denoise_coefficients, plain_basis
from inscan.models.scores import ScoreRow, read_rows, summarise
from inscan.models.stack_cases import (
    StackCase,
    counted,
    drifting,
    jittered,
    noisy_stack,
    placed_energies,
)
from inscan.models.stack_resample import moved
from inscan.models.xanes import edge_energy, fit_references, optical_density
from inscan.profiles.samples import Chemistry, XANESSample, ni_energies_ev

__all__ = [
    "evaluate_all",
    "evaluate_counts",
    "evaluate_drift",
    "evaluate_energies",
    "evaluate_motion",
    "evaluate_noise",
]

Progress = Callable[[str], None]
Stack = NDArray[np.floating]

_SOLID = 0.25  # edge jump of pixels whose chemistry is scored, of the strongest pixel's
_BASELINE = (0.0, 2.0, 2.0)  # sigma along energy, rows and columns
_RANK = 3
_SHARES = (10, 15, 30, 40)  # percent of 120 energies
_STORED = Path(__file__).parents[1] / "docs" / "evaluation" / "bm3d_stacks.json"


def evaluate_all(seeds: Sequence[int], progress: Progress | None = None) -> list[ScoreRow]:
    """All cases.

    Parameters
    ----------
    seeds : sequence of int
    progress : callable, optional
        Told what is being measured.

    Returns
    -------
    list of ScoreRow
        FPSNR (mean PSNR of frames), PSNR (pooled) and SPSNR (mean PSNR of the spectra of solid
        pixels) in dB; r, slope and rmse (eV) of the edge energy against the truth; r LCF, of the
        mean state from a fit of references; coverage of 90 % intervals; seconds.
    """
    say = progress or (lambda _: None)
    rows = evaluate_noise(seeds, (10.0, 50.0, 100.0, 150.0), "smooth", say)
    rows += evaluate_noise(seeds, (50.0,), "fine", say)
    rows += evaluate_counts(seeds, say)
    rows += evaluate_energies(seeds, say)
    rows += evaluate_motion(seeds, say)
    rows += evaluate_drift(seeds, say)
    return rows


def evaluate_noise(
    seeds: Sequence[int],
    sigmas: Sequence[float],
    chemistry: Chemistry,
    progress: Progress = lambda _: None,
) -> list[ScoreRow]:
    """Gaussian noise of the same strength everywhere, of a brightest value of 255."""
    rows = []
    denoiser = load_denoiser()
    for sigma in sigmas:
        name = f"{chemistry} chemistry, 120 energies, sigma {sigma:g} of 255"
        scores: dict[str, list[dict[str, float]]] = {}
        for seed in _told(seeds, name, progress):
            case = noisy_stack(seed, sigma, chemistry=chemistry)
            y = case.noisy
            methods: dict[str, Callable[[], Stack]] = {
                "noisy": lambda y=y: y,
                "MedFilt3": lambda y=y: median_filter(y, 3),
                "Gaussian": lambda y=y: gaussian_filter(y, _BASELINE),
                "SVD (rank by risk)": lambda y=y, s=sigma: _truncated(y, s),
                "inscan subspace": lambda y=y: subspace.denoise(y, denoiser=denoiser).values,
                "inscan subspace, paper": lambda y=y: (
                    subspace.denoise(y, recipe="paper", denoiser=denoiser).values
                ),
                "limit: true basis": lambda c=case: _true_basis(c, denoiser),
            }
            for method, run in methods.items():
                began = time.perf_counter()
                values = run()
                took = time.perf_counter() - began
                score = {**_accuracy(values, case), **_of_density(values, case), "s": took}
                scores.setdefault(method, []).append(score)
            scores.setdefault("limit: no neighbours", []).append(_cramer_rao(case))
            if chemistry == "fine":
                values = _true_grains(case)
                score = {**_accuracy(values, case), **_of_density(values, case)}
                scores.setdefault("limit: grains known", []).append(score)
        rows += [summarise(name, method, several) for method, several in scores.items()]
        if _STORED.is_file():
            rows += [row for row in read_rows(_STORED) if row.case == name]
    return rows


def evaluate_counts(seeds: Sequence[int], progress: Progress = lambda _: None) -> list[ScoreRow]:
    """Transmission from counts, denoised with its variance; optical density only afterwards."""
    rows = []
    denoiser = load_denoiser()
    for counts, read in ((300.0, 0.0), (30.0, 0.0), (100.0, 8.0)):
        name = f"fine chemistry, transmission of {counts:g} counts"
        name += f", read noise {read:g} counts" if read else ""
        scores: dict[str, list[dict[str, float]]] = {}
        for seed in _told(seeds, name, progress):
            case = counted(seed, counts, read_noise=read)
            found = subspace.denoise(case.noisy, variance=case.variance, denoiser=denoiser)
            low, high = found.interval(0.9)
            inside = float(np.mean((low <= case.clean) & (case.clean <= high)))
            for method, values, covered in (
                ("noisy", case.noisy, np.nan),
                ("Gaussian", gaussian_filter(case.noisy, _BASELINE), np.nan),
                ("inscan subspace", found.values, inside),
            ):
                score = _of_transmission(values, case)
                scores.setdefault(method, []).append({**score, "coverage": covered})
        rows += [summarise(name, method, several) for method, several in scores.items()]
    return rows


def evaluate_energies(seeds: Sequence[int], progress: Progress = lambda _: None) -> list[ScoreRow]:
    """How many of 120 energies the edge map needs: every n-th, or put around the edge."""
    rows = []
    denoiser = load_denoiser()
    full = ni_energies_ev(120)
    for sigma in (10.0, 150.0):
        name = f"smooth chemistry, a share of 120 energies, sigma {sigma:g} of 255"
        scores: dict[str, list[dict[str, float]]] = {}
        for seed in _told(seeds, name, progress):
            for method in ("inscan subspace, evenly", "inscan subspace, around the edge"):
                score = {}
                for share in _SHARES:
                    count = len(full) * share // 100
                    even = full[np.round(np.linspace(0, len(full) - 1, count)).astype(int)]
                    grid = even if method.endswith("evenly") else placed_energies(count)
                    case = noisy_stack(seed, sigma, energies=grid)
                    values = subspace.denoise(case.noisy, denoiser=denoiser).values
                    score[f"r at {share} %"] = _of_density(values, case)["r"]
                scores.setdefault(method, []).append(score)
        rows += [summarise(name, method, several) for method, several in scores.items()]
    return rows


def evaluate_motion(seeds: Sequence[int], progress: Progress = lambda _: None) -> list[ScoreRow]:
    """Frames that move, and a zone plate's magnification; scored where every frame has been."""
    rows = []
    denoiser = load_denoiser()
    cases = [(sigma, amplitude, False) for sigma in (10.0, 150.0) for amplitude in (2.0, 4.0, 6.0)]
    for sigma, amplitude, zone_plate in [*cases, (50.0, 4.0, True)]:
        name = f"smooth chemistry, 61 energies, sigma {sigma:g} of 255, jitter {amplitude:g} px"
        name += ", zone plate" if zone_plate else ""
        scores: dict[str, list[dict[str, float]]] = {}
        for seed in _told(seeds, name, progress):
            case, unmoved, true_shifts = jittered(seed, sigma, amplitude, zone_plate=zone_plate)
            grid = case.energies if zone_plate else None
            found = subspace.denoise(case.noisy, energies=grid, denoiser=denoiser)
            left = subspace.denoise(case.noisy, register="never", denoiser=denoiser)
            still = subspace.denoise(unmoved, denoiser=denoiser)
            motion = found.report["figures"]["motion"]
            shifts = np.asarray(motion.get("shifts_px", np.zeros((len(case.noisy), 2))))
            away = shifts - true_shifts
            middle = away.mean(axis=0)
            # The result lies where the median frame was thought to be: look there for the truth.
            inside = _seen_always(case, amplitude)
            reference = _of_density(still.values, case, inside)
            for method, values in (
                ("inscan subspace, no motion", still.values),
                (
                    "inscan subspace",
                    np.stack([moved(v, -middle) for v in np.nan_to_num(found.values)]),
                ),
                ("inscan subspace, not registered", left.values),
            ):
                score = _of_density(values, case, inside)
                score["r kept"] = score["r"] / reference["r"]
                if method == "inscan subspace":
                    score["position px"] = float(np.sqrt(np.mean((away - middle) ** 2)))
                scores.setdefault(method, []).append(score)
        rows += [summarise(name, method, several) for method, several in scores.items()]
    return rows


def evaluate_drift(seeds: Sequence[int], progress: Progress = lambda _: None) -> list[ScoreRow]:
    """A beam that drifts between flat and frame: what is left of it, and what the intervals hold."""
    rows = []
    denoiser = load_denoiser()
    for strength in (1.0, 0.0):
        name = f"transmission of 600 counts, flats, {'drifting' if strength else 'steady'} beam"
        scores: dict[str, list[dict[str, float]]] = {}
        for seed in _told(seeds, name, progress):
            case = drifting(seed, 600.0, drift=strength)
            ways: tuple[tuple[str, Literal["auto", "never"], Stack | None], ...] = (
                ("inscan subspace, drift left in", "never", None),
                ("inscan subspace, no flats", "auto", None),
                ("inscan subspace", "auto", case.flats),
            )
            for method, drift, flats in ways:
                found = subspace.denoise(
                    case.noisy, variance=case.variance, drift=drift, flats=flats, denoiser=denoiser
                )
                low, high = found.interval(0.9)
                held = (low <= case.clean) & (case.clean <= high)
                solid = case.sample.jump > 0
                score = {
                    "rms error %": 100 * float(np.sqrt(np.mean((found.values - case.clean) ** 2))),
                    **_of_transmission(found.values, case),
                    "coverage": float(held.mean()),
                    "coverage, sample": float(held[:, solid].mean()),
                }
                scores.setdefault(method, []).append(score)
        rows += [summarise(name, method, several) for method, several in scores.items()]
    return rows


def _told(seeds: Sequence[int], case: str, progress: Progress) -> Iterator[int]:
    for seed in seeds:
        progress(f"{case}, seed {seed}")
        yield seed


def _accuracy(values: Stack, case: StackCase) -> dict[str, float]:
    square = np.square(values - case.clean, dtype=np.float64)
    solid = case.sample.jump > 0

    def decibel(error: NDArray[np.float64] | float) -> NDArray[np.float64]:
        return 10 * np.log10(255**2 / np.maximum(error, 1e-12))

    return {
        "FPSNR": float(decibel(square.mean(axis=(1, 2))).mean()),
        "PSNR": float(decibel(float(square.mean()))),
        "SPSNR": float(decibel(square.mean(axis=0)[solid]).mean()),
    }


def _of_transmission(values: Stack, case: StackCase) -> dict[str, float]:
    density = optical_density(np.maximum(values, 1e-3))[0]
    return _chemistry(density, case.energies, case.sample, None)


def _of_density(
    values: Stack, case: StackCase, inside: NDArray[np.bool_] | None = None
) -> dict[str, float]:
    return _chemistry(values / np.float32(case.scale), case.energies, case.sample, inside)


def _chemistry(
    density: Stack,
    grid: NDArray[np.float64],
    sample: XANESSample,
    inside: NDArray[np.bool_] | None,
) -> dict[str, float]:
    solid = sample.jump > _SOLID * sample.jump.max()
    if inside is not None:
        solid &= inside
    middle = float(np.nanmean(sample.edge_energy()[solid]))
    truth = sample.edge_energy()[solid].astype(np.float64) - middle
    seen = edge_energy(density, grid, min_jump=0.0).energy[solid] - middle
    # No edge found counts as the mean edge: leaving such pixels out would flatter noisy methods.
    seen = np.where(np.isfinite(seen), seen, np.nanmean(seen) if np.isfinite(seen).any() else 0)
    references = np.stack([state(grid) for state in sample.spectra])
    fit = fit_references(density, grid, references, min_amount=0.0).fractions[:, solid]
    state = np.tensordot(np.arange(len(references)), np.nan_to_num(fit, nan=1 / 3), axes=1)
    true_state = np.tensordot(np.arange(len(references)), sample.fractions[:, solid], axes=1)
    return {
        "r": float(np.corrcoef(seen, truth)[0, 1]) if np.ptp(seen) > 0 else 0.0,
        "slope": float(np.polyfit(truth, seen, 1)[0]),
        "rmse eV": float(np.sqrt(np.mean((seen - truth) ** 2))),
        "r LCF": float(np.corrcoef(state, true_state)[0, 1]) if np.ptp(state) > 0 else 0.0,
    }


def _seen_always(case: StackCase, amplitude: float) -> NDArray[np.bool_]:
    rows, cols = case.clean.shape[1:]
    margin = int(np.ceil(2 * amplitude)) + 2
    inside = np.zeros((rows, cols), dtype=bool)
    inside[margin : rows - margin, margin : cols - margin] = True
    return inside


def _gram(stack: Stack) -> NDArray[np.float64]:
    gram = GramAccumulator(stack)
    gram.advance(len(stack))
    return gram.plain()


def _truncated(stack: Stack, sigma: float) -> Stack:
    """Truncated singular values, rank by Stein's unbiased risk (Candes et al. 2013, hard threshold)."""
    gram = _gram(stack)
    n, m = len(gram), stack[0].size
    s2 = np.maximum(np.linalg.eigvalsh(gram)[::-1], 1e-12)
    risk = []
    for rank in range(1, min(n, 13)):
        top, rest = s2[:rank, None], s2[None, rank:]
        freedom = rank * (m + n - rank) + 2 * float((rest / np.maximum(top - rest, 1e-9)).sum())
        risk.append(float(s2[rank:].sum()) + 2 * sigma**2 * freedom)
    v = plain_basis(gram, 1 + int(np.argmin(risk))).vectors
    return np.tensordot(v @ v.T, stack, axes=1)


def _true_basis(case: StackCase, denoiser: Denoiser) -> Stack:
    """The limit of any better basis: the true one, with the same network."""
    v = plain_basis(_gram(case.clean), _RANK).vectors
    images = np.tensordot(v.T, case.noisy, axes=1).astype(np.float32)
    kept = denoise_coefficients(
        images / np.float32(case.sigma),
        np.ones(images.shape[1:], dtype=np.float32),
        denoiser,
        rng=np.random.default_rng(0),
        least=_RANK,
        contiguous=False,
        tta=8,
        unshrink=True,
    )
    return np.tensordot(v[:, kept.kept], kept.images * case.sigma, axes=1)


def _true_grains(case: StackCase) -> Stack:
    """The limit of any use of neighbours: true basis and amounts, the state averaged in true grains."""
    v = plain_basis(_gram(case.clean), _RANK).vectors
    noisy = np.tensordot(v.T, case.noisy, axes=1)
    amount = np.tensordot(v[:, 0], case.clean, axes=1)
    fractions = np.round(case.sample.fractions.reshape(3, -1), 5)
    grain = np.unique(fractions, axis=1, return_inverse=True)[1].reshape(amount.shape)
    weight = np.maximum(np.bincount(grain.ravel(), (amount**2).ravel()), 1e-9)
    images = [amount]
    for image in noisy[1:]:
        ratio = np.bincount(grain.ravel(), (image * amount).ravel()) / weight
        images.append(ratio[grain] * amount)
    return np.tensordot(v, np.stack(images), axes=1)


def _cramer_rao(case: StackCase) -> dict[str, float]:
    """Least error of the edge energy from one pixel's spectrum alone, and the r it leaves.

    Unknown: edge jump, state, absorption before the edge.
    """
    sample = case.sample
    solid = sample.jump > _SOLID * sample.jump.max()
    spectra = np.stack([state(case.energies) for state in sample.spectra])
    jump, parts = sample.jump[solid].astype(np.float64), sample.fractions[:, solid]
    truth = sample.edge_energy()[solid].astype(np.float64)
    falling = (8333.0 / case.energies) ** 3
    # Between the states a pixel mixes, the edge moves by this much for a change of state.
    middle = np.clip(np.tensordot(np.arange(3.0), parts, axes=1), 1e-3, 2 - 1e-3)
    lower = np.floor(middle).astype(int)
    order = np.argsort(middle)
    rate = np.gradient(np.interp(np.linspace(0, 2, 101), middle[order], truth[order]))
    bound = np.empty(jump.size)
    for index in range(jump.size):
        change = jump[index] * (spectra[lower[index] + 1] - spectra[lower[index]])
        design = np.stack([parts[:, index] @ spectra, change, falling]) * case.scale
        inverse = np.linalg.inv(design @ design.T / case.sigma**2)
        bound[index] = inverse[1, 1] * (rate[int(50 * middle[index])] * 50) ** 2
    power = float(truth.var())
    return {
        "r": float(np.sqrt(power / (power + bound.mean()))),
        "rmse eV": float(np.sqrt(bound.mean())),
    }
