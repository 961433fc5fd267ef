"""Objects of a result as people name them, and as places that can be proposed; no service runs here."""

from typing import Any

import matplotlib.image
import numpy as np
import pytest

from inscan.service.recommend import alike, example, groups, places, survey_of
from inscan.service.recommend_picture import draw_alike, draw_groups
from inscan.service.results import Shown

LINES = ["P_K", "Zn_K"]


def shown(finer: int = 1, **start: Any) -> Shown:
    """Nine round objects, three of them with zinc, on a survey of 40 x 40 pixels from -10 um on, 2 um apart."""
    size = 40 * finer
    row, col = np.mgrid[:size, :size] / finer
    maps = np.full((2, size, size), 2.0)
    for index, (r, c) in enumerate((r, c) for r in (8, 20, 32) for c in (8, 20, 32)):
        inside = (row - r) ** 2 + (col - c) ** 2 <= (3.2 + 0.5 * (index % 3)) ** 2
        maps += inside * np.array([60.0, 30.0 if index in (1, 3, 7) else 0.0])[:, None, None]
    maps = np.random.default_rng(4).poisson(maps).astype(np.float32)
    positions = {"slow_first": -10.0, "slow_last": 68.0, "fast_first": 0.0, "fast_last": 78.0}
    geometry = {
        "shape": [40, 40],
        "slow_motor": "y",
        "fast_motor": "x",
        "slow_units": "um",
        "fast_units": "um",
        "snaking": False,
        **positions,
    }
    start = {"raw_uid": "survey-1", "technique": "xrf", "geometry": geometry, **start}
    measured = np.ones((size, size), bool)
    arrays = {"values": maps, "sigma": np.sqrt(maps + 1), "raw": maps, "measured": measured}
    return Shown(start, arrays, {"values": "counts/s"}, list(LINES))


def test_objects_are_named_by_number_or_place() -> None:
    survey = survey_of(shown(), elements=["P_K"])
    assert len(survey.objects) == 9
    middle = example(survey, "20,20")
    assert middle == example(survey, "20.4,19") == example(survey, str(middle))
    assert survey.described(middle)["box"] == pytest.approx([17, 24, 17, 24], abs=1)
    for text, said in (
        ("10", "no object 10: there are 1 to 9"),
        ("0", "no object 0"),
        ("a", "neither the number of an object nor ROW,COL"),
        ("1,b", "neither the number"),
        ("1,1", "no object at row 1, column 1"),
        ("90,1", "outside the map"),
    ):
        with pytest.raises(ValueError, match=said):
            example(survey, text)


def test_places_are_boxes_of_the_survey_with_reasons() -> None:
    survey = survey_of(shown(), elements=["P_K"])
    zinc = [example(survey, place) for place in ("8,20", "20,8", "32,20")]
    rows = alike(survey, zinc[:1], top=2)
    assert {row["object"] for row in rows} == set(zinc[1:])
    assert [row["rank"] for row in rows] == [1, 2]
    first = next(row for row in rows if row["object"] == zinc[1])
    assert (first["row"], first["col"]) == pytest.approx((20, 8), abs=0.5)
    # Motor units: rows begin at -10 um, pixels are 2 um apart.
    assert (first["slow"], first["fast"]) == pytest.approx((30, 16), abs=1.0)
    assert first["slow_range"] == [-10 + 2 * first["box"][0] - 1, -10 + 2 * first["box"][1] - 1]
    asked = places(survey, rows, zinc[:1])
    assert [one["box"] for one in asked] == [row["box"] for row in rows]
    assert all(one["element_name"] == "Zn_K" and 0 < one["score"] <= 1 for one in asked)
    assert all(f"like {zinc[0]} (score " in one["reason"] for one in asked)
    assert asked[0]["relative_sigma"]["P_K"] == pytest.approx(1 / np.sqrt(62), rel=0.1)


def test_a_finer_result_is_told_in_survey_pixels() -> None:
    coarse, fine = survey_of(shown()), survey_of(shown(finer=2))
    assert fine.finer == (2, 2) and len(fine.objects) == len(coarse.objects) == 9
    for place in ("8,8", "32,20"):
        one, other = (survey.described(example(survey, place)) for survey in (coarse, fine))
        np.testing.assert_allclose(one["box"], other["box"], atol=1)
        assert (one["row"], one["col"]) == pytest.approx((other["row"], other["col"]), abs=0.5)


def test_a_blocked_result_is_not_looked_at_but_its_raw_maps() -> None:
    result = shown(verdict="block")
    result.arrays["values"] = np.zeros_like(result.arrays["values"])
    survey = survey_of(result)
    assert survey.source == "raw" and len(survey.objects) == 9


def test_groups_name_typical_and_rare_ones() -> None:
    rows = groups(survey_of(shown(), elements=["P_K"]), clusters=2, top=2)
    assert [len(row["objects"]) for row in rows] == [6, 3]
    assert sorted(one for row in rows for one in row["objects"]) == list(range(1, 10))
    assert "high mean Zn_K" in rows[1]["reason"]
    for row in rows:
        assert len(row["typical"]) == len(row["rarest"]) == 2
        assert row["typical"][0]["membership"] >= row["rarest"][0]["membership"]


@pytest.mark.parametrize(
    ("change", "arguments", "said"),
    [
        ({"technique": "txm"}, {}, "is no element map"),
        ({"geometry": None}, {}, "is no element map"),
        ({}, {"elements": ["U_L"]}, "has no U_L: --element takes P_K, Zn_K"),
        ({}, {"factor": 18.0}, "nothing of 8 pixels or more stands out in P_K"),
        ({}, {"min_pixels": 500}, "nothing of 500 pixels or more stands out in P_K"),
    ],
)
def test_maps_without_objects_are_refused(change: Any, arguments: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        survey_of(shown(**change), **arguments)


def test_what_contradicts_itself_is_refused() -> None:
    survey = survey_of(shown())
    with pytest.raises(ValueError, match="both chosen and rejected"):
        alike(survey, [1], [1])
    with pytest.raises(ValueError, match="all 9 objects of the map are examples"):
        alike(survey, list(range(1, 10)))


def test_pictures_are_drawn(tmp_path) -> None:
    survey = survey_of(shown(), elements=["P_K"])
    path = draw_alike(survey, alike(survey, [2], top=2), [2], [1], tmp_path / "new" / "like.png")
    image = matplotlib.image.imread(path)[..., :3]
    # The example's box is lime, the one not wanted red: on a map of viridis nothing else is.
    lime, red = (np.abs(image - colour).sum(axis=-1) < 0.05 for colour in ((0, 1, 0), (1, 0, 0)))
    assert lime.sum() > 50 and red.sum() > 50
    with pytest.raises(ValueError, match=r"a picture is a \.png file"):
        draw_groups(survey, groups(survey, clusters=2), tmp_path / "groups.jpg")
    assert [one.name for one in (tmp_path / "new").iterdir()] == ["like.png"]
