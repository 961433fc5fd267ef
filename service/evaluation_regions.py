"""`inscan evaluate regions`: detection and what rescans save, in tables, curves and a list of what was missed."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inscan.models.scores import ScoreRow

__all__ = ["Evaluated", "evaluate", "tables", "with_networks", "write_figures"]

_RESCANS = ("time saved", "dose saved", "recall", "regions", "area", "dB - raster", "edge / raster")
_SHOWN = 12
"""So many missed inclusions are printed; the file has all."""


@dataclass(frozen=True)
class Evaluated:
    """What was measured.

    Attributes
    ----------
    rows : list of ScoreRow
        Detection, then rescans.
    more : mapping
        For the file: ``seed_list``; ``areas`` and ``curves``, mean recall at these shares of the field, by case and
        method, of all families together; ``missed``, every inclusion that was not proposed to be measured again;
        ``networks``, where the rows of networks came from.
    """

    rows: "list[ScoreRow]"
    more: Mapping[str, Any]


def evaluate(seeds: int, networks: Path, progress: Callable[[str], None]) -> Evaluated:
    """Measure, and add what was measured before with networks.

    Parameters
    ----------
    seeds : int
        How many of the seeds that nothing was chosen on.
    networks : Path
        What `benchmarks/region_networks.py` wrote. Its rows are left out, and that is said, where it does not exist.
    progress : callable (text)
    """
    from inscan.models.evaluate_regions import AREAS, EVERY, evaluate_regions, fresh_seeds
    from inscan.models.evaluate_rescans import Rescans, limits, other_samples

    drawn = fresh_seeds(seeds)
    rescans = Rescans()
    found = evaluate_regions(drawn, each=rescans.add, progress=progress)
    rows = [*found.rows, *rescans.rows(), *other_samples(drawn, progress=progress), *limits()]
    curves = {case: of for case, of in found.curves.items() if case.startswith(EVERY)}
    more = {
        "seed_list": list(drawn),
        "areas": [float(area) for area in AREAS],
        "curves": curves,
        "missed": found.missed,
    }
    if networks.is_file():
        return with_networks(Evaluated(rows, more), networks)
    progress(f"no stored figures in {networks}: the rows of networks are left out")
    return Evaluated(rows, more)


def with_networks(found: Evaluated, path: Path) -> Evaluated:
    """Add the rows and curves that `benchmarks/region_networks.py` stored, each beside its case."""
    import json

    from inscan.models.scores import rows_from_json

    stored = json.loads(path.read_text(encoding="utf-8"))
    rows = [*found.rows, *rows_from_json(stored["rows"])]
    order = list(dict.fromkeys(row.case for row in rows))
    rows.sort(key=lambda row: order.index(row.case))
    curves = {case: dict(of) for case, of in found.more["curves"].items()}
    for case, of in stored["curves"].items():
        known = curves.setdefault(case, {})
        # Where there are many maps, peers on a few of them are for the table.
        known |= {m: c for m, c in of.items() if m.removesuffix(", on these") not in known}
    source = {key: stored[key] for key in ("command", "seeds", "machine")}
    return Evaluated(rows, {**found.more, "curves": curves, "networks": source})


def tables(found: Evaluated) -> str:
    """Detection, rescans, what was missed: why, by family, and some of them."""
    from inscan.models.scores import score_table

    rescans = [row for row in found.rows if row.case.startswith(("rescans, ", "other samples, "))]
    others = [row for row in found.rows if row not in rescans]
    detection = [row for row in others if "recall at 6 %" in row.figures]
    proposed = [row for row in others if "false boxes" in row.figures]
    rest = [row for row in others if row not in detection and row not in proposed]
    parts = [score_table(rows) for rows in (detection, proposed) if rows]
    parts += [score_table(rescans, _RESCANS), score_table(rest), _missed(found.more["missed"])]
    return "\n\n".join(parts)


def _missed(missed: Sequence[Mapping[str, Any]]) -> str:
    lines = [f"missed by inscan above the threshold, with margin: {len(missed)}"]
    groups = Counter((one["peak"], one["family"], one["why"]) for one in missed)
    for (peak, family, why), count in sorted(
        groups.items(), key=lambda item: (item[0][:2], -item[1])
    ):
        lines.append(f"  {peak:g} counts, {family}: {count} {why}")
    # Those with most counts first: they are the ones that somebody would have to explain.
    for one in sorted(missed, key=lambda one: -one["peak"])[:_SHOWN]:
        row, col = one["um"]
        lines.append(
            f"  {one['peak']:g} counts, {one['family']}, seed {one['seed']}: {one['element']} at row {row:g} um,"
            f" column {col:g} um: {one['counts']} counts where {one['signal']:g} of its own and {one['base']:g} beneath"
            f" were expected: {one['why']}"
        )
    return "\n".join(lines)


def write_figures(found: Evaluated, out: Path) -> None:
    """`regions.png`: recall against area; `regions_rescans.png`: time and dose saved, recall and edges."""
    from inscan.service.evaluation_figures import draw_bars, draw_curves

    draw_curves(found.more["areas"], found.more["curves"], out / "regions.png")
    rescans = [row for row in found.rows if row.case.startswith("rescans, all families")]
    figures = ("time saved", "dose saved", "recall", "edge / raster")
    draw_bars("regions", rescans, out / "regions_rescans.png", figures)
