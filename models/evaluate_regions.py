"""Score `regions`: how much of the field must be measured again to get the inclusions.

python -m inscan.models.evaluate_regions
"""

import argparse
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from inscan.models.regions import find_regions, significance_map
from inscan.models.scores import ScoreRow, score_table, summarise
from inscan.profiles.samples import cells

__all__ = ["evaluate_all", "evaluate_regions"]

_BIN = 10
_TILE = 5  # coarse pixels


def evaluate_all(
    seeds: Sequence[int], progress: Callable[[str], None] | None = None
) -> list[ScoreRow]:
    """Every case."""
    return evaluate_regions(seeds, progress=progress)


def evaluate_regions(
    seeds: Sequence[int] = range(6),
    peaks: Sequence[float] = (3.0, 10.0, 40.0),
    *,
    progress: Callable[[str], None] | None = None,
) -> list[ScoreRow]:
    """Trace-element inclusions in cells, with decoys in the bright elements.

    Parameters
    ----------
    seeds : sequence of int
    peaks : sequence of float
        Counts of a trace element's brightest coarse pixel.
    progress : callable (text), optional

    Returns
    -------
    list of ScoreRow
        Share of the field, tile by tile in order of score, that holds 90 % of the inclusions;
        for `find_regions` itself the share its boxes cover, the inclusions they hold, and boxes
        that hold none.
    """
    rows = []
    for peak in peaks:
        scores: dict[str, list[dict[str, float]]] = {}
        boxes: list[dict[str, float]] = []
        for seed in seeds:
            counts, spots, traces = _survey(seed, peak)
            rng = np.random.default_rng([seed, 9])
            maps: dict[str, Callable[[], NDArray]] = {
                "random": lambda r=rng, c=counts: r.random(c.shape[1:]),
                "sum of all elements": lambda c=counts: c.sum(axis=0),
                "raw trace counts": lambda c=counts, t=traces: c[t].max(axis=0),
                "inscan": lambda c=counts, t=traces: significance_map(c[t]).max(axis=0),
            }
            for name, score in maps.items():
                ranked = score() + 1e-3 * rng.random(counts.shape[1:])
                area = _area(ranked, spots)
                scores.setdefault(name, []).append({"area for 90 %": area})
            found = [
                region
                for element in traces
                for region in find_regions(counts, element=element, max_regions=20)
            ]
            cover = np.zeros(counts.shape[1:], dtype=bool)
            empty = 0
            for region in found:
                r0, r1, c0, c1 = region.box
                cover[r0:r1, c0:c1] = True
                empty += not any(r0 <= r < r1 and c0 <= c < c1 for r, c in spots)
            boxes.append(
                {
                    "area": float(cover.mean()),
                    "recall": float(np.mean([cover[r, c] for r, c in spots])),
                    "boxes": float(len(found)),
                    "empty boxes": float(empty),
                }
            )
            if progress:
                progress(f"inclusions of {peak:g} counts, seed {seed}")
        case = f"inclusions, peak {peak:g} counts"
        rows += [summarise(case, name, several) for name, several in scores.items()]
        rows.append(summarise(f"{case}, find_regions", "inscan", boxes))
    return rows


def _survey(seed: int, peak: float) -> tuple[NDArray, list[tuple[int, int]], list[int]]:
    """Coarse counts (element, row, col), pixels of the inclusions, indices of trace elements."""
    sample = cells(seed)
    maps = np.asarray(sample.maps, dtype=np.float64)
    rows, cols = (side // _BIN for side in maps.shape[1:])
    cut = maps[:, : rows * _BIN, : cols * _BIN]
    coarse = cut.reshape(len(maps), rows, _BIN, cols, _BIN).mean(axis=(2, 4))
    coarse *= peak / coarse.max(axis=(1, 2), keepdims=True)
    wanted = [spot for spot in sample.inclusions if not spot.decoy]
    traces = sorted({sample.elements.index(spot.element) for spot in wanted})
    bright = [k for k in range(len(maps)) if k not in traces]
    coarse[bright] *= 200 / peak
    step = _BIN * sample.pixel_size
    spots = [
        (
            int(np.clip((spot.slow - sample.field[0][0]) / step, 0, rows - 1)),
            int(np.clip((spot.fast - sample.field[1][0]) / step, 0, cols - 1)),
        )
        for spot in wanted
    ]
    return np.random.default_rng([seed, int(peak)]).poisson(coarse), spots, traces


def _area(score: NDArray, spots: list[tuple[int, int]]) -> float:
    """Share of the field in the best tiles that together hold 90 % of the spots."""
    rows, cols = (n // _TILE for n in score.shape)
    tiles = score[: rows * _TILE, : cols * _TILE].reshape(rows, _TILE, cols, _TILE)
    best = tiles.max(axis=(1, 3)).ravel()
    held = np.zeros(best.size)
    for r, c in spots:
        held[min(r // _TILE, rows - 1) * cols + min(c // _TILE, cols - 1)] += 1
    gathered = np.cumsum(held[np.argsort(-best)]) / max(1, len(spots))
    return float((np.argmax(gathered >= 0.9) + 1) / best.size)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=6)
    print(score_table(evaluate_regions(range(parser.parse_args().seeds))))


if __name__ == "__main__":
    main()
