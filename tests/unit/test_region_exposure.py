"""Light that varies, rows that were off, narrow fields and sums of elements: no place comes of them alone."""

import numpy as np
import pytest

from inscan.models.region_boxes import PixelRegion, merged
from inscan.models.regions import find_regions, significance_map

SHAPE = (40, 48)
SEARCH = {"scale_px": (1.05, 1.5, 2.4), "pad_px": 0}


def spot(row: float, col: float, sigma: float, height: float, shape=SHAPE) -> np.ndarray:
    r, c = np.indices(shape)
    return height * np.exp(-((r - row) ** 2 + (c - col) ** 2) / (2 * sigma**2))


def holds(region: PixelRegion, row: int, col: int) -> bool:
    r0, r1, c0, c1 = region.box
    return r0 <= row < r1 and c0 <= col < c1


@pytest.mark.parametrize("peak", [3.0, 10.0, 40.0])
def test_planted_spots_are_found_at_every_count(peak: float) -> None:
    found = planted = wrong = 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        at = [(10, 12), (28, 36)]
        mean = 0.15 + sum(spot(r, c, 1.8, peak) for r, c in at)
        regions = find_regions(rng.poisson(mean), **SEARCH)
        planted += len(at)
        found += sum(any(holds(one, r, c) for one in regions) for r, c in at)
        wrong += sum(not any(holds(one, r, c) for r, c in at) for one in regions)
    assert found >= 0.9 * planted and wrong <= 1


def dropouts(rng: np.random.Generator) -> np.ndarray:
    """I0 that drifts, steps at a refill and drops for rows and for a few pixels."""
    light = np.linspace(1.2, 0.6, SHAPE[0])[:, None] * np.ones(SHAPE)
    light[rng.integers(4, 36, 3)] *= 0.3
    light[20:] *= 1.4
    light[30, 10:16] *= 0.1
    light[8:11, 24:27] *= 3.0
    return light


def test_light_that_varies_makes_no_place_and_hides_none() -> None:
    blind = 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        light = dropouts(rng)
        flat = rng.poisson(25 * light * np.ones((2, 1, 1)))
        for element in ("any", "unlike"):
            assert find_regions(flat, element=element, exposure=light, **SEARCH) == []
        blind += bool(find_regions(flat, **SEARCH))
        counts = rng.poisson(light * (5 + spot(9, 38, 1.5, 15)))
        assert holds(find_regions(counts, exposure=light, **SEARCH)[0], 9, 38)
    assert blind == 10  # without the exposure the same maps name places


def test_exposure_per_element_and_in_any_unit() -> None:
    rng = np.random.default_rng(3)
    light = dropouts(rng)
    flat = rng.poisson(25 * light * np.ones((2, 1, 1)))
    both = np.stack([light, light]) * 4e6
    assert find_regions(flat, exposure=both, **SEARCH) == []
    assert float(significance_map(flat, exposure=both).max()) < 6
    assert float(significance_map(flat).max()) > 8


def test_no_light_means_not_measured() -> None:
    rng = np.random.default_rng(0)
    counts, light = rng.poisson(20.0, SHAPE), np.ones(SHAPE)
    counts[18:22], light[18:22] = 0, 0.0
    counts[19, 20] = 90  # a reading of a detector in the dark
    light[30, 30:33] = 0.01
    assert find_regions(counts, exposure=light, **SEARCH) == []


def test_rows_that_were_off_are_no_surroundings() -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        counts = rng.poisson(12.0, (2, *SHAPE))
        counts[:, 3::6] = 0
        counts[:, 4::6] = 0
        assert find_regions(counts, **SEARCH) == []


@pytest.mark.parametrize("shape", [(1, 90), (90, 1), (2, 60)])
def test_narrow_maps_are_searched_and_quiet(shape: tuple[int, int]) -> None:
    alarms = sum(
        bool(find_regions(np.random.default_rng(s).poisson(4.0, shape), false_alarm=0.1))
        for s in range(30)
    )
    assert alarms < 9  # 3 expected; 9 or more has a probability of 0.2 %
    middle = (shape[0] // 2, shape[1] // 2)
    mean = 4 + spot(*middle, 1.5, 40, shape)
    (found,) = find_regions(np.random.default_rng(1).poisson(mean), **SEARCH)
    assert holds(found, *middle)


def test_counts_without_end_do_not_make_places_of_a_steady_beam() -> None:
    rng = np.random.default_rng(5)
    steady = 1e9 * (1 + 0.002 * rng.standard_normal(SHAPE))
    assert find_regions(steady, **SEARCH) == []
    (found,) = find_regions(steady * (1 + spot(20, 20, 1.5, 0.3)), **SEARCH)
    assert holds(found, 20, 20)
    assert find_regions(np.zeros((3, *SHAPE)), element="unlike", exposure=np.ones(SHAPE)) == []
    assert find_regions(np.ones(SHAPE), exposure=np.zeros(SHAPE)) == []


def test_an_element_that_was_not_recorded_hides_no_other() -> None:
    rng = np.random.default_rng(6)
    counts = rng.poisson(3 + spot(12, 30, 1.5, 25), (2, *SHAPE)).astype(float)
    counts[1] = np.nan
    (found,) = find_regions(counts, element="unlike", **SEARCH)
    assert found.element == 0 and holds(found, 12, 30)


def test_what_is_weak_in_each_line_is_found_in_their_sum() -> None:
    alone = summed = 0
    names = ["Zn_K", "As_K", "Pb_L", "Se_K", "Br_K", "Sr_K"]
    shares = np.array([0, 1, 1, 1, 1, 1])[:, None, None]
    for seed in range(6):
        counts = np.random.default_rng(seed).poisson(0.3 + shares * spot(20, 24, 1.5, 0.9))
        alone += bool(find_regions(counts, names=names, **SEARCH))
        found = find_regions(counts, element=0, together=[1, 2, 3, 4, 5], names=names, **SEARCH)
        summed += any(holds(one, 20, 24) for one in found)
        for one in found:
            assert one.element != 0
            assert one.reason.startswith("As_K + Pb_L + Se_K + Br_K + Sr_K: ")
    assert summed == 6 and alone <= 4


def test_a_sum_is_not_predicted_by_what_it_is_made_of() -> None:
    rng = np.random.default_rng(2)
    mean = np.stack([2 + spot(20, 24, 1.5, 20), 2 + spot(20, 24, 1.5, 20), np.full(SHAPE, 9.0)])
    found = find_regions(rng.poisson(mean), element="unlike", together=[0, 1], **SEARCH)
    assert len(found) == 1 and holds(found[0], 20, 24)


def test_a_speck_does_not_stand_for_what_is_wide() -> None:
    rng = np.random.default_rng(4)
    mean = 1 + spot(20, 24, 3.5, 12)
    counts = rng.poisson(mean)
    counts[20, 24] += 40
    (found,) = find_regions(counts)
    r0, r1, c0, c1 = found.box
    assert r1 - r0 >= 12 and c1 - c0 >= 12 and found.significance > 20


def test_both_a_least_score_and_a_false_alarm_can_be_asked_for() -> None:
    counts = np.random.default_rng(8).poisson(2.0, (4, 64, 64))
    assert find_regions(counts, min_score=6.0, max_regions=50)
    assert find_regions(counts, min_score=6.0, false_alarm=0.01) == []
    counts = np.random.default_rng(8).poisson(2 + spot(30, 30, 1.5, 25, (64, 64)))
    score = find_regions(counts)[0].score
    assert find_regions(counts, min_score=score + 1, false_alarm=0.01) == []


def test_boxes_join_only_where_little_else_gets_in() -> None:
    def region(box: tuple[int, int, int, int], score: float) -> PixelRegion:
        peak = ((box[0] + box[1]) // 2, (box[2] + box[3]) // 2)
        return PixelRegion(box, score, 0.0, peak, 0, 1.0, "why")

    near = [region((10, 16, 10, 16), 9.0), region((11, 17, 14, 20), 5.0)]
    (joined,) = merged(near, (100, 100))
    assert joined.box == (10, 17, 10, 20) and joined.score == 9.0
    assert joined.reason == "why; 1 weaker finding joined to it"
    corner = [region((10, 20, 10, 20), 9.0), region((19, 29, 19, 29), 5.0)]
    strong, weak = merged(corner, (100, 100))
    assert strong.box == (10, 20, 10, 20) and weak.box in ((20, 29, 19, 29), (19, 29, 20, 29))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exposure": np.ones((3, 3))}, "exposure has shape"),
        ({"exposure": -np.ones(SHAPE)}, "exposure must be >= 0"),
        ({"background": np.ones((2, 3, 3))}, "background has shape"),
        ({"together": [0, 7]}, "element 7 does not exist"),
        ({"element": "all"}, "element must be"),
        ({"scale_px": []}, "scale_px must be > 0"),
        ({"false_alarm": 1.5}, "false_alarm"),
    ],
)
def test_what_cannot_be_meant_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_regions(np.ones((2, *SHAPE)), **options)
