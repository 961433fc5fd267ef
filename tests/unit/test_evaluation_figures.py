"""Figures and bars of an evaluation, from rows made by hand."""

import math

import numpy as np
import pytest
from matplotlib.image import imread

from inscan.models.scores import Figure, ScoreRow
from inscan.service.evaluation_bars import bar_table, bars_for
from inscan.service.evaluation_figures import Example, draw_bars, draw_example

CELLS = "cells, 16 channels, peak 10"


def row(case, method, **figures):
    named = {name.replace("_", " "): Figure(value, 0.1) for name, value in figures.items()}
    return ScoreRow(case, method, named, 10)


def test_each_bar_is_held_against_the_row_it_is_for():
    rows = [
        row(CELLS, "BM3D", dwell=3.0),
        row(CELLS, "inscan n2n", dwell=12.0),
        row(CELLS, "inscan n2n, 100 steps", dwell=11.0),
    ]
    lines = bar_table("n2n", rows).splitlines()
    assert lines[0] == "bars" and len(lines) == 3
    assert lines[1].startswith("  met ") and "dwell 12 ±0.1 (must >= 10, aim >= 14)" in lines[1]
    assert lines[2].startswith("  MISSED") and "100 steps" in lines[2]
    assert bars_for("n2n", rows[0]) == []


def test_a_bias_counts_by_its_size_and_an_aim_is_said():
    rows = [ScoreRow(CELLS, "inscan n2n", {"bright flux %": Figure(-6.0, 0.5)}, 10)]
    assert "MISSED" in bar_table("n2n", rows)
    rows = [ScoreRow(CELLS, "inscan n2n", {"edge FWHM": Figure(1.01, 0.02)}, 10)]
    assert "met, aim too" in bar_table("n2n", rows)
    assert bar_table("regions", rows) == ""
    rows = [ScoreRow("cells, 4x, peak 5000", "inscan", {"gain dB": Figure(3.0, 0.1)}, 10)]
    assert "aim missed" in bar_table("superres", rows)


def test_bars_are_drawn_where_there_is_something(tmp_path):
    rows = [
        row(CELLS, "raw", dwell=1.0),
        row(CELLS, "inscan n2n", dwell=12.0, width=0.3),
        ScoreRow("a flat field", "raw", {"spots": Figure(5.0, math.nan)}, 1),
    ]
    draw_bars("n2n", rows, tmp_path / "bars.png")
    picture = imread(tmp_path / "bars.png")
    assert picture.shape[0] > 300 and picture.shape[1] > 600
    assert np.ptp(picture[..., :3]) > 0.5
    assert (tmp_path / "bars.png").stat().st_size < 300_000
    draw_bars("n2n", rows, tmp_path / "one.png", ["dwell"])
    assert imread(tmp_path / "one.png").shape[1] < picture.shape[1]
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_bars("n2n", rows, tmp_path / "none.png", ["unknown"])


def test_examples_are_rows_of_four_pictures(tmp_path):
    rng = np.random.default_rng(0)
    truth = np.full((40, 40), 3.0)
    example = Example("one", rng.poisson(truth).astype(float), truth + 0.1, 0 * truth + 0.2, truth)
    draw_example([example], tmp_path / "one.png")
    draw_example([example] * 3, tmp_path / "three.png")
    one, three = (imread(tmp_path / f"{name}.png") for name in ("one", "three"))
    assert three.shape[0] > 2.5 * one.shape[0] and three.shape[1] == one.shape[1]
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_example([], tmp_path / "none.png")
