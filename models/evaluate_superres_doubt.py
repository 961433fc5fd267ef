"""What `superres` makes up: spots where there are none, on flat fields and on paired phantoms."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from inscan.models import n2n, superres
from inscan.models.estimate import Estimate
from inscan.models.hallucination import false_at_recall
from inscan.models.scores import ScoreRow, summarise
from inscan.models.structures import blob_strengths
from inscan.models.superres_cases import aligned_bicubic, fine_truth
from inscan.models.superres_input import ForwardModel

__all__ = ["evaluate_flat", "evaluate_paired"]

_PEAK = 200.0
_SPOTS = 40
_SPOT_WIDTH = 0.6  # coarse pixels, standard deviation
_SPOT_HEIGHT = 0.25  # of the map's maximum
_APART = 9.0  # fine pixels
_RECALL = 0.6
_SIDE = 96

Progress = Callable[[str], None]


def evaluate_paired(
    seeds: Sequence[int], factors: Sequence[int] = (2, 4), *, progress: Progress | None = None
) -> list[ScoreRow]:
    """Cells with and without small spots; what is seen in the scan of those without.

    Parameters
    ----------
    seeds : sequence of int
    factors : sequence of {2, 4}
    progress : callable (text), optional

    Returns
    -------
    list of ScoreRow
        ``recall``: share of the true spots found, 0.6 where the map shows as many; ``false per
        Mpx``: spots as strong seen in the phantom without any, for a million fine pixels.
    """
    rows = []
    for factor in factors:
        scores: dict[str, list[dict[str, float]]] = {}
        for seed in seeds:
            pair = _phantoms(seed, factor)
            rng = np.random.default_rng([seed, factor, 41])
            scans = [
                rng.poisson(ForwardModel(factor).apply(p) * _PEAK).astype(np.float32) for p in pair
            ]
            for method, (shown, blank) in _all_answers(scans, factor).items():
                false, recall = false_at_recall(
                    shown[-1], blank[-1], pair[0][-1] * _PEAK, pair[1][-1] * _PEAK, _RECALL
                )
                scores.setdefault(method, []).append(
                    {"recall": recall, "false per Mpx": 1e6 * false / shown[-1].size}
                )
            if progress:
                progress(f"paired phantoms, {factor}x, seed {seed}")
        case = f"cells with and without spots, {factor}x, peak {_PEAK:g}"
        rows += [summarise(case, method, several) for method, several in scores.items()]
    return rows


def evaluate_flat(
    seeds: Sequence[int],
    factors: Sequence[int] = (2, 4),
    level: float = 60.0,
    *,
    progress: Progress | None = None,
) -> list[ScoreRow]:
    """Spots made up on a map without any structure, per million fine pixels.

    Parameters
    ----------
    seeds : sequence of int
    factors : sequence of {2, 4}
    level : float
        Counts of a coarse pixel.
    progress : callable (text), optional
    """
    rows = []
    for factor in factors:
        scores: dict[str, list[dict[str, float]]] = {}
        for seed in seeds:
            shape = (2, _SIDE // factor, _SIDE // factor)
            counts = np.random.default_rng(seed).poisson(level, shape).astype(np.float32)
            for method, (values,) in _all_answers([counts], factor).items():
                # As strong as the weakest true spot of the other tables, on a map of peak 200.
                spots = sum(
                    int((blob_strengths(plane / (level / 0.3))[1] > 0.03).sum()) for plane in values
                )
                scores.setdefault(method, []).append({"spots per Mpx": 1e6 * spots / values.size})
            if progress:
                progress(f"flat field, {factor}x, seed {seed}")
        case = f"flat field of {level:g} counts, {factor}x"
        rows += [summarise(case, method, several) for method, several in scores.items()]
    return rows


def _all_answers(
    scans: Sequence[NDArray[np.float32]], factor: int
) -> dict[str, list[NDArray[np.floating]]]:
    """Each method's maps of each scan."""
    ours = [superres.upscale(counts, factor=factor) for counts in scans]
    return {
        "bicubic": [aligned_bicubic(counts, factor) for counts in scans],
        "denoise, then bicubic": [
            aligned_bicubic(n2n.denoise(counts[None]).values, factor) for counts in scans
        ],
        "inscan": [found.values for found in ours],
        "inscan, without the doubtful": [_without_doubtful(found, factor) for found in ours],
    }


def _without_doubtful(found: Estimate, factor: int) -> NDArray[np.floating]:
    """Doubtful pixels replaced by their surroundings: what a reader who heeds the map sees."""
    assert found.doubtful is not None
    width = 1.5 * factor
    plain = gaussian_filter(found.values, (0, width, width), mode="nearest")
    return np.where(found.doubtful, plain, found.values)


def _phantoms(seed: int, factor: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Relative fine maps (element, row, col), with and without spots in the last element."""
    cells = fine_truth("cells", seed)[:3].astype(np.float64)
    body = gaussian_filter(cells[1], factor)
    plain = 0.1 + 0.5 * body / body.max()
    rng = np.random.default_rng([seed, factor, 40])
    row, col = np.mgrid[: plain.shape[0], : plain.shape[1]]
    spots = np.zeros_like(plain)
    taken: list[NDArray[np.float64]] = []
    while len(taken) < _SPOTS:
        at = rng.uniform(6, np.array(plain.shape) - 6)
        if all(np.hypot(*(at - other)) > _APART for other in taken):
            taken.append(at)
            far = (row - at[0]) ** 2 + (col - at[1]) ** 2
            spots += _SPOT_HEIGHT * np.exp(-far / (2 * (_SPOT_WIDTH * factor) ** 2))
    return np.concatenate([cells, [plain + spots]]), np.concatenate([cells, [plain]])
