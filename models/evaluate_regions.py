"""Score `regions`: how much of the field must be measured again to get the inclusions, by whom it is chosen.

python -m inscan.models.evaluate_regions --seeds 2
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inscan.models.region_cases import CONTRAST, FAMILIES, FIRST_SEED, Survey, survey
from inscan.models.region_curves import Curve, covered, follow, missed
from inscan.models.region_rankings import Box, proposals, rankings, with_margin
from inscan.models.scores import Figure, ScoreRow, figure, score_table, summarise

__all__ = [
    "AREAS",
    "EVERY",
    "PEAKS",
    "Detection",
    "case_name",
    "curve_rows",
    "evaluate_regions",
    "fresh_seeds",
]

PEAKS = (3.0, 10.0, 40.0)
AREAS = np.round(np.concatenate([np.arange(0.0, 0.3, 0.01), np.arange(0.3, 1.001, 0.05)]), 3)
"""Shares of the field at which curves are stored."""
_RECALL = 0.9
_SHOWN = (0.06, 0.15)
_RESAMPLED = 400
Orders = Mapping[str, list[Box]]
EVERY = "all families"
"""Name of the case in which the maps of all of them are pooled."""
_OURS = "inscan"
_WEAKEST = 0.5


@dataclass
class Detection:
    """What came of it.

    Attributes
    ----------
    rows : list of ScoreRow
        Of all families together `seeds` counts maps. ``area for 90 %``: share of the field at which the recall,
        averaged over maps, reaches 0.9, with an interval by resampling maps; ``per map``: the same of each map by
        itself, averaged; ``recall at 6 %`` and at 15 % of the field. Cases that end in ``above the threshold``: what
        would be proposed, all of it: ``boxes``, those that hold no inclusion wholly (``false boxes``) or a decoy
        instead (``decoys``), the share of the field they cover with the survey pixel that profiles add on each side
        (``area + margin``) and without, ``recall`` with it.
    curves : dict of str to dict of str to list of float
        By case and method: mean recall at `AREAS`.
    missed : list of dict
        See `inscan.models.region_curves.missed`; of the boxes above the threshold with margin, of ``inscan``.
    """

    rows: list[ScoreRow] = field(default_factory=list)
    curves: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    missed: list[dict[str, Any]] = field(default_factory=list)


def fresh_seeds(count: int) -> range:
    """Seeds that no figure was drawn from before the detection was settled."""
    return range(FIRST_SEED, FIRST_SEED + count)


def evaluate_regions(
    seeds: Sequence[int],
    *,
    peaks: Sequence[float] = PEAKS,
    families: Sequence[str] = tuple(FAMILIES),
    each: Callable[[Survey, Orders, Orders], None] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Detection:
    """Trace-element inclusions in four families, with decoys in the bright elements.

    Parameters
    ----------
    seeds : sequence of int
    peaks : sequence of float
        Expected counts that inclusions add to their brightest survey pixel. For the first of them there is a case with
        inclusions of half of that to all of it besides.
    families : sequence of str
    each : callable (survey, proposals, rankings), optional
        Called with every survey whose inclusions are all of one strength, so that others can go on from there.
    progress : callable (text), optional
    """
    done = Detection()
    for peak, weakest in [*((peak, 1.0) for peak in peaks), (peaks[0], _WEAKEST)]:
        every: dict[str, list[Curve]] = {}
        proposed_in_all: dict[str, list[dict[str, float]]] = {}
        for family in families:
            curves: dict[str, list[Curve]] = {}
            proposed: dict[str, list[dict[str, float]]] = {}
            for seed in seeds:
                here = survey(family, seed, peak, weakest=weakest)
                found = proposals(here)
                orders = rankings(here, found)
                if each is not None and weakest == 1:
                    each(here, found, orders)
                for method, boxes in orders.items():
                    curves.setdefault(method, []).append(follow(boxes, here))
                for method, boxes in found.items():
                    proposed.setdefault(method, []).append(_proposed(here, boxes))
                    if method == _OURS and weakest == 1:
                        done.missed += missed(here, with_margin(boxes))
                if progress:
                    progress(f"{case_name(family, peak, weakest)}, seed {seed}")
            _add(done, case_name(family, peak, weakest), curves, proposed)
            for method, several in curves.items():
                every.setdefault(method, []).extend(several)
            for method, scores in proposed.items():
                proposed_in_all.setdefault(method, []).extend(scores)
        if len(families) > 1:
            _add(done, case_name(EVERY, peak, weakest), every, proposed_in_all)
    return done


def case_name(
    family: str, peak: float, weakest: float = 1.0, contrast: tuple[float, float] = CONTRAST
) -> str:
    """Name of a case: a family, or `EVERY`, the counts of inclusions, and what they lie on if it is not as usual."""
    counts = f"{peak:g}" if weakest == 1 else f"{weakest * peak:g} to {peak:g}"
    low, high = (round(100 * share) for share in contrast)
    beneath = "" if contrast == CONTRAST else f" on structure of {low} to {high} %"
    return f"{family}, {counts} counts{beneath}"


def curve_rows(
    case: str, curves: Mapping[str, Sequence[Curve]]
) -> tuple[list[ScoreRow], dict[str, list[float]]]:
    """Rows of a case and mean recalls at `AREAS`, by method; see `Detection`."""
    rows, means = [], {}
    for method, several in curves.items():
        recalls = np.array([[one.recall_at(float(a)) for a in AREAS] for one in several])
        means[method] = [round(float(r), 3) for r in recalls.mean(axis=0)]
        figures = {
            "area for 90 %": _pooled(several),
            "per map": figure([one.area_for(_RECALL) for one in several]),
        }
        for area in _SHOWN:
            at = [one.recall_at(area) for one in several]
            figures[f"recall at {100 * area:g} %"] = figure(at)
        rows.append(ScoreRow(case, method, figures, len(several)))
    return rows, means


def _add(
    done: Detection,
    case: str,
    curves: Mapping[str, Sequence[Curve]],
    proposed: Mapping[str, Sequence[Mapping[str, float]]],
) -> None:
    rows, done.curves[case] = curve_rows(case, curves)
    done.rows += rows
    done.rows += [
        summarise(f"{case}, above the threshold", method, scores)
        for method, scores in proposed.items()
    ]


def _pooled(curves: Sequence[Curve]) -> Figure:
    """Area at which the mean recall of several maps reaches 90 %, and half its interval by resampling maps."""
    grid = np.linspace(0.0, 1.0, 2001)
    steps = np.array([curve.recall[_held(curve, grid)] for curve in curves])

    def area(of: NDArray[np.float64]) -> float:
        return float(grid[int(np.argmax(of.mean(axis=0) >= _RECALL - 1e-9))])

    if len(curves) < 2:
        return Figure(area(steps), float("nan"))
    rng = np.random.default_rng(45)
    draws = rng.integers(len(curves), size=(_RESAMPLED, len(curves)))
    low, high = np.quantile([area(steps[draw]) for draw in draws], (0.025, 0.975))
    return Figure(area(steps), float(high - low) / 2)


def _held(curve: Curve, areas: NDArray[np.float64]) -> NDArray[np.intp]:
    return np.searchsorted(curve.area, areas + 1e-9) - 1


def _proposed(here: Survey, boxes: Sequence[Box]) -> dict[str, float]:
    wide = covered(with_margin(boxes))
    spots = [spot.pixels() for spot in here.inclusions]
    decoys = [spot.pixels() for spot in here.decoys]
    empty = [box for box in boxes if not any(_holds(box, px) for px in spots)]
    return {
        "boxes": float(len(boxes)),
        "false boxes": float(len(empty)),
        "decoys": float(sum(any(_holds(box, px) for px in decoys) for box in empty)),
        "area": float(covered(boxes).mean()),
        "area + margin": float(wide.mean()),
        "recall": float(np.mean([wide[px[:, 0], px[:, 1]].all() for px in spots])),
    }


def _holds(box: Box, pixels: NDArray[np.intp]) -> bool:
    r, c = pixels.T
    return bool(((r >= box[0]) & (r < box[1]) & (c >= box[2]) & (c < box[3])).all())


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--first", type=int, default=FIRST_SEED, help="the first seed")
    options = parser.parse_args()
    seeds = range(options.first, options.first + options.seeds)
    print(score_table(evaluate_regions(seeds).rows))


if __name__ == "__main__":
    main()
