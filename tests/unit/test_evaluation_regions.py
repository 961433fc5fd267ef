"""Tables and curves of the evaluation of regions, from rows made by hand."""

import numpy as np
import pytest
from matplotlib.image import imread

from inscan.models.scores import Figure, ScoreRow
from inscan.service.evaluation_bars import bar_table
from inscan.service.evaluation_figures import draw_curves
from inscan.service.evaluation_regions import Evaluated, tables


def row(case, method, **figures):
    named = {name: Figure(value, 0.01) for name, value in figures.items()}
    return ScoreRow(case, method, named, 20)


def lost(peak, why, family="cells"):
    return {
        "family": family,
        "seed": 7104,
        "peak": peak,
        "element": "Fe_K",
        "um": [12.5, 40.25],
        "signal": 7.5,
        "base": 2.25,
        "counts": 6,
        "why": why,
    }


def test_tables_tell_detection_proposals_rescans_and_what_was_missed():
    rows = [
        row("cells, 3 counts", "inscan", **{"area for 90 %": 0.05, "recall at 6 %": 0.92}),
        row("cells, 3 counts, above the threshold", "inscan", **{"false boxes": 2.0}),
        row("rescans, cells, 3 counts", "survey alone", **{"time saved": 14.1, "wait s": 10.0}),
        row("costs of rescans, 3 counts", "fly scan", **{"time saved": 6.5}),
    ]
    missed = [lost(3.0, "too few counts")] * 2 + [lost(40.0, "not seen by the filter")]
    lines = tables(Evaluated(rows, {"missed": missed})).splitlines()
    order = [lines.index(one.case) for one in rows]
    assert order == sorted(order)
    # Seconds are for the file; there are too many columns otherwise.
    assert not any("wait s" in line for line in lines)
    at = lines.index("missed by inscan above the threshold, with margin: 3")
    assert at > order[-1]
    assert lines[at + 1] == "  3 counts, cells: 2 too few counts"
    first = lines[at + 3]
    assert "40 counts" in first and "Fe_K at row 12.5 um, column 40.25 um: 6 counts" in first


def test_bars_of_regions_are_held_against_surveys_not_other_samples():
    met = row("cells, 3 counts", "inscan", **{"area for 90 %": 0.05})
    missed = row("star, 3 counts", "inscan, default scale", **{"area for 90 %": 0.2})
    saved = row("rescans, star, 10 counts", "inscan, above the threshold", **{"time saved": 5.0})
    harder = row("cells, 1.5 to 3 counts", "inscan", **{"area for 90 %": 0.2})
    lines = bar_table("regions", [met, missed, saved, harder]).splitlines()[1:]
    words = [line.split("  ")[1].strip() for line in lines]
    assert words == ["met, aim too", "MISSED", "met", "MISSED"]
    others = (
        row("cells, 10 counts", "inscan", **{"area for 90 %": 0.5}),
        row("cells, 3 counts", "raw trace counts", **{"area for 90 %": 0.5}),
        row(
            "other samples, cells, 30 inclusions of 10 counts",
            "inscan, above the threshold",
            **{"time saved": 1.0},
        ),
    )
    assert bar_table("regions", others) == ""


def test_curves_are_drawn_a_panel_a_case(tmp_path):
    areas = np.linspace(0, 1, 21)
    curves = {"random": list(areas), "oracle": list(np.minimum(1, 20 * areas))}
    draw_curves(list(areas), {"three counts": curves}, tmp_path / "one.png")
    draw_curves(
        list(areas), dict.fromkeys(("three", "ten", "forty"), curves), tmp_path / "three.png"
    )
    one, three = (imread(tmp_path / f"{name}.png") for name in ("one", "three"))
    assert three.shape[0] > 1.5 * one.shape[0] and three.shape[1] == one.shape[1]
    assert np.ptp(one[..., :3]) > 0.5
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_curves(list(areas), {}, tmp_path / "none.png")
