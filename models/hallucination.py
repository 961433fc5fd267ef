"""What n2n makes up: imprints of one element on another, spots that are not there.

Each test is a pair or a blank: structure in one element and none in the other, the same phantom
with and without small features, a field of nothing at all.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from inscan.models import n2n
from inscan.models.baselines import gaussian, oracle_widths
from inscan.models.infer import Denoiser, load_denoiser
from inscan.models.n2n_cases import N2NCase, expected_counts
from inscan.models.scores import ScoreRow, summarise
from inscan.models.structures import blob_strengths

__all__ = ["evaluate_flat_fields", "evaluate_imprint", "evaluate_paired", "false_at_recall"]

_CHANNELS = 4
_GUIDE_PEAK = 200.0
_SPOTS = 40
_SPOT_SIGMA = 1.1  # pixels
_SPOT_PEAK = 3.0  # counts above what is there
_APART = 8.0  # pixels between spots
_RECALLS = (0.3, 0.5, 0.7)
_REACH = 1.5  # pixels within which spots are the same
_FLAT_RESPONSE = 0.1  # of the field's level: response above which a spot on it counts as one


def evaluate_imprint(
    seeds: Sequence[int],
    levels: Sequence[float] = (0.5, 3.0),
    *,
    device: str | torch.device | None = None,
    denoiser: Denoiser | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[ScoreRow]:
    """A bright Siemens star in one element, nothing but a flat level in the other.

    Parameters
    ----------
    seeds : sequence of int
    levels : sequence of float
        Counts a pixel of the flat element.
    device, denoiser
        As for `n2n.denoise`.
    progress : callable (text), optional

    Returns
    -------
    list of ScoreRow
        ``r``: correlation of the flat element's map with the star's truth; ``step %``: its mean
        on the spokes minus that between them, of its level; ``step - raw %``: the same beyond what
        chance put into the counts; ``error %``: root mean square error of the map, of its level.
    """
    net = denoiser or load_denoiser(device)
    rows = []
    for level in levels:
        scores: dict[str, list[dict[str, float]]] = {}
        for seed in seeds:
            star = expected_counts(N2NCase("siemens", _CHANNELS, _GUIDE_PEAK, "Ni_K"), seed)[0]
            mean = np.stack([star, np.full_like(star, level)])
            counts = _count(mean, seed, 31)
            answers = {
                "raw": counts.sum(axis=0)[1],
                "inscan n2n, alone": n2n.denoise(counts[:, 1:], denoiser=net).values[0],
                "inscan n2n, with the star": n2n.denoise(counts, denoiser=net).values[1],
            }
            on = star > star.max() / 2
            chance = _step(answers["raw"], on)
            for name, values in answers.items():
                r = np.corrcoef(values.ravel(), star.ravel())[0, 1] if np.ptp(values) else 0.0
                step = _step(values, on)
                scores.setdefault(name, []).append(
                    {
                        "r": float(r),
                        "step %": 100 * step / level,
                        "step - raw %": 100 * (step - chance) / level,
                        "error %": 100 * float(np.sqrt(np.mean((values - level) ** 2))) / level,
                    }
                )
            if progress:
                progress(f"imprint on {level:g} counts, seed {seed}")
        case = f"imprint: star of peak {_GUIDE_PEAK:g} beside a flat map of {level:g} counts"
        rows += [summarise(case, name, several) for name, several in scores.items()]
    return rows


def evaluate_paired(
    seeds: Sequence[int],
    *,
    device: str | torch.device | None = None,
    denoiser: Denoiser | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[ScoreRow]:
    """Cells with and without small spots in one element; what is seen where there are none.

    Parameters
    ----------
    seeds : sequence of int
    device, denoiser
        As for `n2n.denoise`.
    progress : callable (text), optional

    Returns
    -------
    list of ScoreRow
        ``false at 0.5``: where half of the true spots are found, spots as strong that are seen in
        the phantom without any, for a million pixels; the same at recalls of 0.3 and 0.7;
        ``recall``: the last one, less where the map never shows as many.
    """
    net = denoiser or load_denoiser(device)
    scores: dict[str, list[dict[str, float]]] = {}
    for seed in seeds:
        pair = _paired_phantom(seed)
        # One and the same noise process, drawn twice: the pair are two scans.
        scans = [_count(mean, seed, 32 + k) for k, mean in enumerate(pair)]
        sums = [scan.sum(axis=0) for scan in scans]
        widths = oracle_widths(sums[0], pair[0])
        answers = {
            "raw": [y[-1] for y in sums],
            "Gaussian (oracle)": [gaussian(y, widths)[-1] for y in sums],
            "inscan n2n": [n2n.denoise(y, denoiser=net).values[-1] for y in scans],
        }
        for name, (with_spots, without) in answers.items():
            score: dict[str, float] = {}
            for wanted in _RECALLS:
                false, score["recall"] = false_at_recall(
                    with_spots, without, pair[0][-1], pair[1][-1], wanted
                )
                score[f"false at {wanted:g}"] = 1e6 * false / without.size
            scores.setdefault(name, []).append(score)
        if progress:
            progress(f"paired phantoms, seed {seed}")
    case = f"cells with and without spots of {_SPOT_PEAK:g} counts"
    return [summarise(case, name, several) for name, several in scores.items()]


def evaluate_flat_fields(
    seeds: Sequence[int],
    levels: Sequence[float] = (0.5, 5.0),
    *,
    device: str | torch.device | None = None,
    denoiser: Denoiser | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[ScoreRow]:
    """Spots made up on maps of one level, per million pixels.

    The Gaussian has the width that the truth likes best on the paired phantoms: on a flat field
    the truth would have it infinitely wide.

    Parameters
    ----------
    seeds : sequence of int
    levels : sequence of float
        Counts a pixel.
    device, denoiser
        As for `n2n.denoise`.
    progress : callable (text), optional
    """
    net = denoiser or load_denoiser(device)
    rows = []
    for level in levels:
        scores: dict[str, list[dict[str, float]]] = {}
        for seed in seeds:
            phantom = _paired_phantom(seed)[0][-1:]
            counts = _count(np.full((2, *phantom.shape[1:]), level), seed, 33)
            total = counts.sum(axis=0)
            width = oracle_widths(_count(phantom, seed, 34).sum(axis=0), phantom)
            for name, values in (
                ("raw", total),
                ("Gaussian (oracle)", gaussian(total, np.repeat(width, 2))),
                ("inscan n2n", n2n.denoise(counts, denoiser=net).values),
            ):
                seen = sum(
                    int((blob_strengths(plane)[1] > _FLAT_RESPONSE * level).sum())
                    for plane in values
                )
                scores.setdefault(name, []).append({"spots per Mpx": 1e6 * seen / values.size})
            if progress:
                progress(f"flat field of {level:g} counts, seed {seed}")
        case = f"flat field of {level:g} counts"
        rows += [summarise(case, name, several) for name, several in scores.items()]
    return rows


def false_at_recall(
    with_spots: NDArray[np.floating],
    without: NDArray[np.floating],
    truth_with: NDArray[np.floating],
    truth_without: NDArray[np.floating],
    recall: float,
) -> tuple[int, float]:
    """Spots seen where there are none, as strong as those that show so many of the true ones.

    Parameters
    ----------
    with_spots, without : ndarray of float, shape (row, col)
        Results for a phantom with small spots and for the same without.
    truth_with, truth_without : ndarray of float, shape (row, col)
        The phantoms.
    recall : float
        Share of the true spots to find; where the result never shows as many, the most it does.

    Returns
    -------
    false : int
        Spots in `without` that neither phantom has.
    recall : float
        Reached.

    Raises
    ------
    ValueError
        If the phantoms do not differ by any spot.
    """
    real, size = blob_strengths(truth_with - truth_without)
    real = real[size > 0.1 * size.max(initial=0)]
    if len(real) == 0:
        raise ValueError("the phantoms do not differ by any spot")
    at, strength = blob_strengths(with_spots)
    shown = np.array([_strongest(at, strength, place) for place in real])
    wanted = max(1, round(recall * len(real)))
    # A thousandth of what is to be found is rounding, not a find.
    reached = np.sort(shown[shown > 1e-3 * size.max()])[::-1][:wanted]
    threshold = reached[-1] if reached.size else np.inf
    seen = blob_strengths(without)
    # The phantom's own structure may look like a spot: that is not made up.
    own, own_size = blob_strengths(truth_without)
    own = own[own_size > threshold / 4]
    false = sum(
        1
        for place, force in zip(*seen, strict=True)
        if force >= threshold and _nearest(own, place) > _REACH
    )
    return false, float(reached.size / len(real))


def _paired_phantom(seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean counts (element, row, col) with and without spots in the last element.

    The elements before it are those of cells, as people have them: P, S, K, Ca at peak 10. The
    last follows the cells at up to 4 counts, with spots anywhere.
    """
    base = expected_counts(N2NCase("cells", _CHANNELS, 10.0), seed)[:4]
    body = base[2] / base[2].max()
    plain = 0.5 + 3.5 * body
    rng = np.random.default_rng([seed, 35])
    row, col = np.mgrid[: body.shape[0], : body.shape[1]]
    spots = np.zeros_like(body)
    taken: list[NDArray[np.float64]] = []
    while len(taken) < _SPOTS:
        at = rng.uniform(6, np.array(body.shape) - 6)
        if all(np.hypot(*(at - other)) > _APART for other in taken):
            taken.append(at)
            far = (row - at[0]) ** 2 + (col - at[1]) ** 2
            spots += _SPOT_PEAK * np.exp(-far / (2 * _SPOT_SIGMA**2))
    return np.concatenate([base, [plain + spots]]), np.concatenate([base, [plain]])


def _count(mean: NDArray[np.floating], seed: int, what: int) -> NDArray[np.float32]:
    rng = np.random.default_rng([seed, what])
    return rng.poisson(np.broadcast_to(mean / _CHANNELS, (_CHANNELS, *mean.shape))).astype(
        np.float32
    )


def _step(values: NDArray[np.floating], on: NDArray[np.bool_]) -> float:
    return float(values[on].mean() - values[~on].mean())


def _strongest(
    at: NDArray[np.intp], strength: NDArray[np.float64], place: NDArray[np.intp]
) -> float:
    near = np.hypot(*(at - place).T) <= _REACH
    return float(strength[near].max(initial=0.0))


def _nearest(points: NDArray[np.intp], place: NDArray[np.intp]) -> float:
    return float(np.hypot(*(points - place).T).min(initial=np.inf))
