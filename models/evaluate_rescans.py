"""Do targeted rescans pay: time and dose against a full fine raster, at the same quality where it matters."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from inscan.models.evaluate_regions import EVERY
from inscan.models.region_cases import FIELD_UM, RATIO, SIDE, Survey, binned, survey
from inscan.models.region_curves import covered
from inscan.models.region_rankings import Box, proposals, with_margin
from inscan.models.rescan_cost import FLY, STEP_SCAN, ScanCosts, account, break_even
from inscan.models.scores import ScoreRow, summarise
from inscan.models.superres_cases import aligned_bicubic

__all__ = ["SCENARIOS", "Rescans", "held_share", "limits", "other_samples", "until", "widening"]

_RECALL = 0.9
_STEP = FIELD_UM / SIDE
_BLURS = np.arange(0.0, 6.1, 0.75)  # fine pixels
_FWHM = 2 * np.sqrt(2 * np.log(2))

SCENARIOS: tuple[tuple[ScanCosts, int], ...] = (
    (FLY, RATIO),
    (ScanCosts("fly scan, turnaround 0.5 s", row_overhead=0.5), RATIO),
    (ScanCosts("fly scan, turnaround 1 s", row_overhead=1.0), RATIO),
    (
        ScanCosts("fly scan, turnaround 0.5 s and 1 um of run-up", row_overhead=0.5, run_up_um=1.0),
        RATIO,
    ),
    (ScanCosts("fly scan, dwell 0.02 s", dwell=0.02), RATIO),
    (ScanCosts("fly scan, dwell 0.2 s", dwell=0.2), RATIO),
    (ScanCosts("fly scan, waiting 60 s, 20 s a region", wait=60.0, region_overhead=20.0), RATIO),
    (STEP_SCAN, RATIO),
    (FLY, 2 * RATIO),
)
"""Costs, and fine pixels to a survey pixel on each axis. The first is what all other figures are for."""
_UNTIL = (
    "inscan",
    "inscan, surroundings alone",
    "raw trace counts",
    "peak intensity (sum)",
    "oracle",
)
_OURS = "inscan, above the threshold"
_SAMPLES: Mapping[str, tuple[int, float]] = {
    "3 inclusions": (3, 1.0),
    "30 inclusions": (30, 1.0),
    "10 inclusions, 3 times as wide": (10, 3.0),
}


@dataclass
class Rescans:
    """Survey, wait, regions with their margin, against a raster of the same fine step and dwell.

    Surveys are added one after the other, as `evaluate_regions` goes through them; `rows` says what came of them:

    ``time saved`` and ``dose saved``: the raster's over those of survey, wait and regions; ``recall`` of inclusions
    that lie wholly in regions; ``dB - raster``: PSNR within one FWHM of the inclusions' centres, in their elements,
    less the raster's; ``edge / raster``: width of their edges over the raster's, of what the scans expect without
    noise; seconds of each part; ``dose outside`` regions and ``dose inside``, over the raster's. ``above the
    threshold`` measures all that is proposed, ``to 90 %`` goes on, or stops, where the recall is reached, which only
    somebody who knows the inclusions could do.
    """

    _scores: dict[tuple[str, float], dict[str, list[dict[str, float]]]] = field(
        default_factory=dict
    )
    _chosen: list[tuple[float, list[Box]]] = field(default_factory=list)

    def add(
        self, here: Survey, found: Mapping[str, list[Box]], orders: Mapping[str, list[Box]]
    ) -> None:
        """Account for one survey.

        Parameters
        ----------
        here : Survey
        found, orders : mapping
            Its `proposals` and `rankings`.
        """
        quality = _Quality(here)
        for method, boxes in _choices(here, found, orders).items():
            score = _score(here, boxes, FLY, RATIO) | quality.of(boxes)
            for family in (here.family, EVERY):
                case = self._scores.setdefault((family, here.peak), {})
                case.setdefault(method, []).append(score)
            if method == _OURS:
                self._chosen.append((here.peak, boxes))

    def rows(self) -> list[ScoreRow]:
        """By family and all together, and what the same regions take at other costs."""
        rows = [
            summarise(f"rescans, {family}, {peak:g} counts", method, several)
            for (family, peak), methods in self._scores.items()
            for method, several in methods.items()
        ]
        return sorted(rows, key=lambda row: row.case.startswith(f"rescans, {EVERY}")) + _scenarios(
            self._chosen
        )


def other_samples(
    seeds: Sequence[int], family: str = "cells", progress: Callable[[str], None] | None = None
) -> list[ScoreRow]:
    """Fewer, more and larger inclusions, of 10 counts; figures as of `Rescans`."""
    rows = []
    for name, (count, wider) in _SAMPLES.items():
        scores: dict[str, list[dict[str, float]]] = {}
        for seed in seeds:
            here = survey(family, seed, 10.0, inclusions=count, wider=wider)
            for method, boxes in proposals(here).items():
                score = _score(here, with_margin(boxes), FLY, RATIO)
                scores.setdefault(f"{method}, above the threshold", []).append(score)
            if progress:
                progress(f"rescans: {name}, seed {seed}")
        rows += [
            summarise(f"other samples, {family}, {name} of 10 counts", method, several)
            for method, several in scores.items()
        ]
    return rows


def until(boxes: Sequence[Box], here: Survey, recall: float = _RECALL) -> list[Box]:
    """The first boxes that together, with their margin, hold that share of the inclusions; all where none do.

    Boxes that lie wholly in those before are passed over.
    """
    cover = covered([])
    spots = [spot.pixels() for spot in here.inclusions]
    taken: list[Box] = []
    for box, (r0, r1, c0, c1) in zip(boxes, with_margin(boxes), strict=True):
        if _held(cover, spots) >= recall - 1e-9:
            break
        if not cover[r0:r1, c0:c1].all():
            cover[r0:r1, c0:c1] = True
            taken.append(box)
    return taken


def held_share(here: Survey, boxes: Sequence[Box]) -> float:
    """Share of the inclusions that lie wholly in boxes."""
    return _held(covered(boxes), [spot.pixels() for spot in here.inclusions])


def _held(cover: NDArray[np.bool_], spots: Sequence[NDArray[np.intp]]) -> float:
    return float(np.mean([cover[px[:, 0], px[:, 1]].all() for px in spots]))


def _choices(
    here: Survey, found: Mapping[str, list[Box]], orders: Mapping[str, list[Box]]
) -> dict[str, list[Box]]:
    """Boxes by how they were chosen, with margin."""
    chosen: dict[str, list[Box]] = {"survey alone": []}
    for method, boxes in found.items():
        chosen[f"{method}, above the threshold"] = boxes
    for method in _UNTIL:
        chosen[f"{method}, to 90 %"] = until(orders[method], here)
    return {method: with_margin(boxes) for method, boxes in chosen.items()}


def _score(here: Survey, boxes: Sequence[Box], costs: ScanCosts, ratio: int) -> dict[str, float]:
    spent = account(costs, boxes, side=SIDE, step_um=_STEP, ratio=ratio)
    return {
        "time saved": spent.time_saved,
        "dose saved": spent.dose_saved,
        "recall": held_share(here, boxes),
        "regions": float(len(boxes)),
        "area": float(covered(boxes).mean()),
        "survey s": spent.survey_s,
        "wait s": spent.wait_s,
        "regions s": spent.regions_s,
        "raster s": spent.raster_s,
        "dose outside": spent.outside,
        "dose inside": spent.inside,
    }


class _Quality:
    """How good maps of the inclusions are that were measured finely in some boxes, coarsely elsewhere."""

    def __init__(self, here: Survey) -> None:
        self._elements = sorted({spot.element for spot in here.inclusions})
        self._truth = here.fine[self._elements]
        rng = np.random.default_rng([here.seed, 46, int(here.peak)])
        self._raster = rng.poisson(self._truth).astype(np.float64)
        # As it is, and as it would be without noise: edges are a matter of step and beam.
        self._survey = aligned_bicubic(here.counts[self._elements], RATIO).astype(np.float64)
        self._expected = aligned_bicubic(binned(self._truth), RATIO).astype(np.float64)
        centres = (np.arange(SIDE * RATIO) + 0.5) / RATIO
        self._inside = np.zeros(self._truth.shape, dtype=bool)
        for spot in here.inclusions:
            far = np.hypot(centres[:, None] - spot.row, centres[None, :] - spot.col)
            self._inside[self._elements.index(spot.element)] |= far <= spot.fwhm
        self._width = RATIO * float(np.mean([spot.fwhm for spot in here.inclusions]))
        self._blurred = np.stack(
            [gaussian_filter(self._truth, (0, b, b))[self._inside] for b in _BLURS]
        )
        self._best = self._error(self._raster)

    def of(self, boxes: Sequence[Box]) -> dict[str, float]:
        fine = np.kron(covered(boxes), np.ones((RATIO, RATIO), dtype=bool))
        seen = np.where(fine, self._raster, self._survey)
        expected = np.where(fine, self._truth, self._expected)
        return {
            "dB - raster": float(10 * np.log10(self._best / self._error(seen))),
            "edge / raster": widening(self._blurred, expected[self._inside], self._width),
        }

    def _error(self, maps: NDArray[np.float64]) -> float:
        return float(np.square((maps - self._truth)[self._inside]).mean())


def widening(blurred: NDArray[np.float64], seen: NDArray[np.float64], width: float) -> float:
    """How much wider edges of full width at half maximum `width` look in a result.

    Parameters
    ----------
    blurred : ndarray, shape (blur, n)
        The truth at some pixels, blurred by Gaussians of 0 to 6 pixels sigma.
    seen : ndarray, shape (n,)
        The result there.
    width : float
        Pixels.

    Returns
    -------
    float
        1: as sharp as the truth. The blur of the truth that comes closest is taken.
    """
    misfit = np.square(blurred - seen).sum(axis=1)
    best = int(misfit.argmin())
    at = float(best)
    if 0 < best < len(misfit) - 1:
        before, here, after = misfit[best - 1 : best + 2]
        at += 0.5 * (before - after) / max(before - 2 * here + after, 1e-30)
    sigma = float(np.interp(at, np.arange(len(_BLURS)), _BLURS))
    return float(np.hypot(width, _FWHM * sigma) / width)


def _scenarios(chosen: Sequence[tuple[float, list[Box]]]) -> list[ScoreRow]:
    """The same regions at other costs."""
    rows = []
    for peak in dict.fromkeys(peak for peak, _ in chosen):
        for costs, ratio in SCENARIOS:
            scores = []
            for _, boxes in (one for one in chosen if one[0] == peak):
                spent = account(costs, boxes, side=SIDE, step_um=_STEP, ratio=ratio)
                scores.append(
                    {
                        "time saved": spent.time_saved,
                        "dose saved": spent.dose_saved,
                        "survey s": spent.survey_s,
                        "regions s": spent.regions_s,
                        "raster s": spent.raster_s,
                    }
                )
            name = f"{costs.name}, step 1/{ratio} of the survey's"
            rows.append(summarise(f"costs of rescans, {peak:g} counts", name, scores))
    return rows


def limits() -> list[ScoreRow]:
    """Share of the field in regions at which a raster takes as long, or a quarter longer, ...: no seeds behind it."""
    rows = []
    for costs, ratio in SCENARIOS:
        for edge in (7, 11, 21):
            shares = {
                f"{times:g}x": break_even(
                    costs, edge, side=SIDE, step_um=_STEP, ratio=ratio, times=times
                )
                for times in (1.0, 2.0, 4.0)
            }
            name = f"{costs.name}, step 1/{ratio}, regions of {edge} survey pixels"
            rows.append(
                summarise(
                    "share of the field in regions at which that much is saved", name, [shares]
                )
            )
    return rows
