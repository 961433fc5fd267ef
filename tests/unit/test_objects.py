"""Segmentation of a map into objects and what is said of each: against masks that are known."""

import numpy as np
import pytest

from inscan.models.objects import SHAPE_FEATURES, segment

NAMES = ["P_K", "Zn_K"]


def _map(seed: int = 0) -> np.ndarray:
    """Two discs and an ellipse on a background of counts, (element, row, col)."""
    row, col = np.mgrid[:60, :80]
    expected = np.full((2, 60, 80), 4.0)
    for (r, c), (a, b), zinc in (
        ((15, 15), (6, 6), 0),
        ((40, 20), (6, 6), 90),
        ((30, 60), (4, 12), 0),
    ):
        inside = ((row - r) / a) ** 2 + ((col - c) / b) ** 2 <= 1
        expected[0][inside] = 120.0
        expected[1][inside] += zinc
    return np.random.default_rng(seed).poisson(expected).astype(float)


def test_objects_are_found_where_they_are() -> None:
    found = segment(_map(), names=NAMES, chosen=[0])
    assert len(found) == 3 and found.labels.max() == 3
    np.testing.assert_allclose(found.centres, [[15, 15], [30, 60], [40, 20]], atol=0.5)
    assert found.boxes[0].tolist() == pytest.approx([9, 22, 9, 22], abs=1)
    for number, (r0, r1, c0, c1) in enumerate(found.boxes, 1):
        inside = found.labels[r0:r1, c0:c1] == number
        assert inside.sum() == (found.labels == number).sum() > 0


def test_features_say_what_each_is() -> None:
    found = segment(_map(), names=NAMES, chosen=[0])
    assert found.names == (*SHAPE_FEATURES, "mean P_K", "max P_K", "mean Zn_K", "max Zn_K")
    table = {name: found.features[:, index] for index, name in enumerate(found.names)}
    np.testing.assert_allclose(table["area"], [113, 150, 113], rtol=0.1)
    assert table["eccentricity"][1] > 0.9 > 0.4 > table["eccentricity"][[0, 2]].max()
    assert table["long axis"][1] > 2 * table["short axis"][1]
    np.testing.assert_allclose(table["mean P_K"], 120, rtol=0.05)
    assert table["mean Zn_K"][2] > 10 * table["mean Zn_K"][0]
    assert (table["max Zn_K"] >= table["mean Zn_K"]).all()


def test_features_do_not_depend_on_the_exposure() -> None:
    counts = _map()
    exposure = np.where(np.arange(80) < 40, 0.1, 0.3) * np.ones((60, 1))
    usual = np.median(exposure)
    even = segment(counts, names=NAMES, chosen=[0])
    uneven = segment(counts * exposure / usual, names=NAMES, chosen=[0], exposure=exposure)
    np.testing.assert_array_equal(uneven.labels, even.labels)
    np.testing.assert_allclose(uneven.features, even.features)


def test_what_was_not_measured_counts_nowhere() -> None:
    counts, measured = _map(), np.ones((60, 80), bool)
    measured[14:17], measured[:, 70:] = False, False
    marked = np.where(measured, counts, 1e9)
    found = segment(marked, names=NAMES, chosen=[0], measured=measured)
    assert not found.labels[~measured].any()
    assert found.features[:, found.names.index("max P_K")].max() < 300
    # The same by NaN, and by an exposure of nothing.
    by_nan = segment(np.where(measured, counts, np.nan), names=NAMES, chosen=[0])
    by_exposure = segment(marked, names=NAMES, chosen=[0], exposure=measured.astype(float))
    for other in (by_nan, by_exposure):
        np.testing.assert_array_equal(other.labels, found.labels)
        np.testing.assert_array_equal(other.features, found.features)
    # A gap is no edge: nothing is worn away from the object beside it.
    whole = segment(counts, names=NAMES, chosen=[0])
    np.testing.assert_array_equal(found.labels[17:24, 8:24] > 0, whole.labels[17:24, 8:24] > 0)


def test_single_hot_pixels_and_small_things_are_no_objects() -> None:
    counts = np.full((1, 40, 40), 2.0)
    counts[0, 10:20, 10:20] = 50.0
    counts[0, 30, 30], counts[0, 5, 30:34] = 5000.0, 50.0
    assert [box.tolist() for box in segment(counts).boxes] == [[10, 20, 10, 20]]
    assert len(segment(counts, min_pixels=97)) == 0


def test_nothing_is_found_in_nothing() -> None:
    for maps in (np.zeros((2, 9, 9)), np.full((1, 9, 9), np.nan), np.full((1, 1, 1), 3.0)):
        found = segment(maps)
        assert len(found) == 0 and not found.labels.any()
        assert found.boxes.shape == (0, 4) and found.features.shape == (0, len(found.names))
        with pytest.raises(LookupError, match="no object at row 0, column 0: there is none"):
            found.at(0, 0)


def test_an_object_is_named_by_a_place() -> None:
    found = segment(_map(), chosen=[0])
    assert (found.at(15, 15), found.at(40, 20), found.at(30, 60)) == (1, 3, 2)
    assert found.at(8, 15) == 1  # beside it
    with pytest.raises(LookupError, match=r"no object at row 2, column 70: the nearest is \d"):
        found.at(2, 70)
    with pytest.raises(LookupError, match="outside the map of 60 x 80"):
        found.at(60, 3)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"maps": np.ones((4, 4))}, r"\(element, row, col\), got \(4, 4\)"),
        ({"maps": np.ones((1, 4, 4)), "names": ["a", "b"]}, "2 names for 1"),
        ({"maps": np.ones((1, 4, 4)), "chosen": [1]}, "chosen elements"),
        ({"maps": np.ones((1, 4, 4)), "chosen": []}, "chosen elements"),
        ({"maps": np.ones((1, 4, 4)), "measured": np.ones((4, 5))}, "measured has shape"),
        ({"maps": np.ones((1, 4, 4)), "exposure": np.ones(4)}, "exposure has shape"),
        ({"maps": np.ones((1, 4, 4)), "factor": 0.0}, "factor 0"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        segment(**arguments)
