"""Rows of an evaluation: intervals, tables, and the way to a file and back."""

import json
import math

import numpy as np
import pytest

from inscan.models.scores import (
    Figure,
    ScoreRow,
    figure,
    read_rows,
    rows_from_json,
    score_table,
    summarise,
    to_json,
)


def test_intervals_hold_the_mean_as_often_as_they_say():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        found = figure(rng.normal(3, 1, 5).tolist())
        held += abs(found.mean - 3) <= found.half_width
    # 1.96 standard errors would hold it in 88 % only.
    assert held / 2000 == pytest.approx(0.95, abs=0.02)


def test_factors_are_averaged_as_factors():
    assert figure([2.0, 8.0], geometric=True).mean == pytest.approx(4)
    steady = figure([4.0, 4.4, 3.6], geometric=True)
    assert steady.half_width == pytest.approx(figure([4.0, 4.4, 3.6]).half_width, rel=0.05)


def test_what_was_not_measured_is_left_out():
    assert figure([1.0, math.nan, 3.0]).mean == 2
    assert math.isnan(figure([math.nan]).mean)
    assert figure([5.0]).mean == 5 and math.isnan(figure([5.0]).half_width)
    row = summarise("c", "m", [{"a": 1.0}, {"a": 3.0, "b": 2.0}])
    assert row.figures["a"].mean == 2 and row.figures["b"].mean == 2 and row.seeds == 2


def test_table_shows_the_asked_columns_case_by_case():
    rows = [
        ScoreRow("one", "ours", {"dB": Figure(12.3456, 0.25), "s": Figure(1.0, math.nan)}),
        ScoreRow("two", "ours", {"dB": Figure(math.nan, math.nan)}),
        ScoreRow("one", "a longer name", {"dB": Figure(1e-12, 1e-13)}),
    ]
    lines = score_table(rows).splitlines()
    assert lines[0] == "one" and lines[5] == "two"
    assert "12.3 ±0.2" in lines[2] and lines[2].endswith("1")
    assert lines[3].split()[-3:] == ["0", "±0", "-"]
    assert lines[7].split() == ["ours", "-"]
    assert "s" not in score_table(rows, ["dB"]).splitlines()[1].split()
    assert score_table([]) == ""


def test_rows_survive_a_file(tmp_path):
    rows = [ScoreRow("c", "m", {"x": Figure(1.5, math.nan), "y": Figure(math.nan, 0.1)}, 3)]
    text = json.dumps(to_json(rows), allow_nan=False)
    (back,) = rows_from_json(json.loads(text))
    assert (back.case, back.method, back.seeds) == ("c", "m", 3)
    assert back.figures["x"].mean == 1.5 and math.isnan(back.figures["x"].half_width)
    assert math.isnan(back.figures["y"].mean)
    for content in (text, json.dumps({"rows": json.loads(text)})):
        (tmp_path / "rows.json").write_text(content)
        assert read_rows(tmp_path / "rows.json")[0].figures["x"].mean == 1.5


@pytest.mark.parametrize("content", ['{"rows": 3}', '"text"', '[{"case": "c"}]', "[[1, 2]]"])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "rows.json").write_text(content)
    with pytest.raises(ValueError, match="expected"):
        read_rows(tmp_path / "rows.json")
