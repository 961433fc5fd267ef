"""In which order places of a survey are measured again, by method: boxes of survey pixels, the most wanted first."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inscan.models import n2n, superres
from inscan.models.likeness import cluster
from inscan.models.matched_filter import significance_threshold
from inscan.models.objects import segment
from inscan.models.region_cases import SIDE, Survey
from inscan.models.regions import find_regions, significance_map

__all__ = [
    "FALSE_ALARM",
    "LEAST_SCORE",
    "SCALE",
    "SIDE_PX",
    "Box",
    "boxes_of",
    "needed_sigmas",
    "networks",
    "proposals",
    "rankings",
    "sizes",
    "with_margin",
]

Box = tuple[int, int, int, int]
"""(row start, row stop, column start, column stop), stops exclusive."""

SIDE_PX = 5
"""Boxes of maps that are ranked pixel by pixel are squares of so many survey pixels."""
LEAST_SCORE = 8.0
"""Log-likelihood ratio that a region must have: what beamline profiles ask for unless they say otherwise."""
FALSE_ALARM = 0.05
"""Probability that a map of noise alone names a place: what the service asks for as well."""
SCALE = 0.75
"""Expected radius of a spot, survey pixels, as somebody would say it who knows: sigma is 0.45 to 0.8."""
USUAL_SCALE = 1.5
"""What profiles have unless they say otherwise."""
_MOST = 1000
_SCALE = 2  # of super-resolution
_SIGMAS = 2.0


def rankings(survey: Survey, found: Mapping[str, list[Box]]) -> dict[str, list[Box]]:
    """Every method that takes no network.

    Parameters
    ----------
    survey : Survey
    found : mapping
        `proposals(survey)`.

    Returns
    -------
    dict of str to list of Box
        A list may end before everything is covered: the rest of the field is then measured row by row. The oracle
        knows where the inclusions are; ``random`` and ties are drawn from the survey's seed.
    """
    counts, traces = survey.counts, list(survey.traces)
    rng = np.random.default_rng([survey.seed, 43])
    # Below the threshold nothing is proposed: a person who wants more would go down the significance.
    told, usual = (
        boxes_of(significance_map(counts[traces], scale_px=sizes(scale)).max(axis=0), rng)
        for scale in (SCALE, USUAL_SCALE)
    )
    rest = boxes_of(significance_map(counts, scale_px=sizes(SCALE)).max(axis=0), rng)
    orders: dict[str, list[Box]] = {
        "raster, row by row": [],
        "random": boxes_of(rng.random(counts.shape[1:]), rng),
        "peak intensity (sum)": boxes_of(counts.sum(axis=0), rng),
        "raw trace counts": boxes_of(counts[traces].max(axis=0), rng),
        **_objects(survey),
        "inscan, significance map": told,
        **{
            method: boxes
            + {"inscan, default scale": usual, "inscan, unlike the rest": rest}.get(method, told)
            for method, boxes in found.items()
        },
        "limit: background known": boxes_of(_known(survey), rng),
        "oracle": [_square(spot.pixel, counts.shape[1:]) for spot in survey.inclusions],
    }
    return orders


def proposals(survey: Survey) -> dict[str, list[Box]]:
    """What `find_regions` finds above the threshold, strongest first.

    ``inscan``: as the service asks where a profile names the trace elements and the size of what is looked for: what
    the other elements predict is background. ``default scale``: not told the size. ``surroundings alone``: told both,
    against the surroundings alone. ``unlike the rest``: as the service asks where no elements are named.
    """
    traces = list(survey.traces)
    asked: dict[str, dict[str, Any]] = {
        "inscan": {"element": traces, "beside_others": True},
        "inscan, default scale": {
            "element": traces,
            "beside_others": True,
            "scale_px": sizes(USUAL_SCALE),
        },
        "inscan, surroundings alone": {"element": traces},
        "inscan, unlike the rest": {"element": "unlike"},
    }
    usual = {
        "scale_px": sizes(SCALE),
        "min_score": LEAST_SCORE,
        "false_alarm": FALSE_ALARM,
        "max_regions": _MOST,
        "pad_px": 0,
    }
    return {
        method: [region.box for region in find_regions(survey.counts, **(usual | options))]
        for method, options in asked.items()
    }


def needed_sigmas(elements: int) -> float:
    """Standard deviations that a place must stand out by to be proposed, where so many elements are searched."""
    scales = sizes(SCALE)
    rare = significance_threshold(SIDE**2, scales, elements, FALSE_ALARM, 2 * SIDE)
    return max(float(np.sqrt(2 * LEAST_SCORE)), rare)


def sizes(scale: float) -> tuple[float, ...]:
    """Templates that the service makes of a profile's expected radius, survey pixels."""
    return (0.7 * scale, scale, 1.6 * scale)


def networks(survey: Survey) -> dict[str, list[Box]]:
    """Methods that take a network: denoised and super-resolved maps, and their uncertainties.

    The sum of value and two sigma is what a search that prefers the uncertain would rank by.
    """
    traces = list(survey.traces)
    rng = np.random.default_rng([survey.seed, 44])
    clean = n2n.denoise(survey.counts[None])
    fine = superres.upscale(survey.counts, factor=_SCALE)
    orders: dict[str, list[Box]] = {}
    for name, found, by in (("n2n", clean, 1), (f"super-resolved {_SCALE}x", fine, _SCALE)):
        values = np.nan_to_num(np.asarray(found.values, dtype=np.float64)[traces])
        sigma = np.nan_to_num(np.asarray(found.sigma, dtype=np.float64)[traces])
        for what, image in (
            ("map", values),
            ("uncertainty", sigma),
            ("map + 2 sigma", values + _SIGMAS * sigma),
        ):
            coarse = _largest(image, by).max(axis=0)
            orders[f"{name} {what}"] = boxes_of(coarse, rng)
    return orders


def _known(survey: Survey) -> NDArray[np.float64]:
    """Log-likelihood ratio of a spot of the usual size at each pixel, with what it lies on known: nobody can know more
    of the counts around a pixel but the size and strength of just that spot."""
    reach = range(-2, 3)
    best = np.zeros(survey.counts.shape[1:])
    for element in survey.traces:
        counts = np.pad(survey.counts[element].astype(np.float64), 2)
        base = np.pad(survey.base[element], 2, constant_values=1.0)
        for strength in survey.peak * np.array([0.25, 0.5, 1.0, 1.5]):
            ratio = np.zeros_like(best)
            for i in reach:
                for j in reach:
                    light = strength * np.exp(-(i * i + j * j) / (2 * SCALE**2))
                    rows, cols = slice(2 + i, 2 + i + SIDE), slice(2 + j, 2 + j + SIDE)
                    ratio += counts[rows, cols] * np.log1p(light / base[rows, cols]) - light
            best = np.maximum(best, ratio)
    return best


def _objects(survey: Survey) -> dict[str, list[Box]]:
    """Boxes of objects segmented in the bright elements: ranked as in ROI-Finder, and by what they hold of the traces.

    There a person picks one of two groups; here it is the group that holds more of the traces, then the other.
    """
    bright = [k for k in range(len(survey.elements)) if k not in survey.traces]
    found = segment(survey.counts, chosen=bright, names=survey.elements)
    boxes: list[Box] = [(int(a), int(b), int(c), int(d)) for a, b, c, d in found.boxes]
    if len(boxes) < 2:
        return {"ROI-Finder-like": boxes, "ROI-Finder-like, by traces": boxes}
    most = [found.names.index(f"max {survey.elements[k]}") for k in survey.traces]
    trace = found.features[:, most].max(axis=1)
    groups = cluster(found.features, clusters=2, names=found.names)
    size = range(groups.membership.shape[1])
    wanted = max(size, key=lambda group: float(trace[groups.labels == group].mean()))
    alike = np.argsort(-groups.membership[:, wanted], kind="stable")
    return {
        "ROI-Finder-like": [boxes[k] for k in alike],
        "ROI-Finder-like, by traces": [boxes[k] for k in np.argsort(-trace, kind="stable")],
    }


def boxes_of(
    score: NDArray[np.floating], rng: np.random.Generator, side: int = SIDE_PX
) -> list[Box]:
    """Squares around the highest values that no square before holds, until all is covered.

    Parameters
    ----------
    score : ndarray, shape (row, col)
    rng : numpy.random.Generator
        Decides between equal values.
    side : int
        Odd.
    """
    order = np.lexsort((rng.random(score.size), -np.asarray(score, dtype=np.float64).ravel()))
    covered = np.zeros(score.shape, dtype=bool)
    boxes: list[Box] = []
    while order.size:
        row, col = divmod(int(order[0]), score.shape[1])
        box = _square((row, col), score.shape, side)
        covered[box[0] : box[1], box[2] : box[3]] = True
        boxes.append(box)
        order = order[~covered.ravel()[order]]
    return boxes


def with_margin(boxes: Sequence[Box], margin: int = 1) -> list[Box]:
    """Boxes with the survey pixels that profiles add on each side, clipped at the field's edge."""
    return [
        (max(0, r0 - margin), min(SIDE, r1 + margin), max(0, c0 - margin), min(SIDE, c1 + margin))
        for r0, r1, c0, c1 in boxes
    ]


def _square(at: tuple[int, int], shape: Sequence[int], side: int = SIDE_PX) -> Box:
    half = side // 2
    (r, c), (rows, cols) = at, shape
    return (max(0, r - half), min(rows, r + half + 1), max(0, c - half), min(cols, c + half + 1))


def _largest(maps: NDArray[np.float64], by: int) -> NDArray[np.float64]:
    rows, cols = (side // by for side in maps.shape[1:])
    return maps.reshape(len(maps), rows, by, cols, by).max(axis=(2, 4))
