"""Places as results carry them: by target, with the light of the box, what surrounds it, and how certain it is."""

import json
from typing import Any

import numpy as np
import pytest

from inscan.models.estimate import Estimate, gaussian_calibration
from inscan.service.recipe_regions import binned, map_regions, stack_regions

NAMES = ["K_K", "Fe_K", "Zn_K"]
SHAPE = (3, 48, 48)
WANTED: dict[str, Any] = {
    "targets": ["spots"],
    "elements": [],
    "together": [],
    "scale": 1.5,
    "max_regions": 4,
    "min_score": 8.0,
    "precision": {},
}


def survey(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Counts with a spot of zinc at (30, 14) and a broad patch of iron, and their mean."""
    r, c = np.indices(SHAPE[1:])
    mean = np.full(SHAPE, 4.0)
    mean[1] = 0.2
    mean[1, 8:20, 20:40] = 12.0
    mean[2] += 30 * np.exp(-((r - 30) ** 2 + (c - 14) ** 2) / (2 * 1.5**2))
    return np.random.default_rng(seed).poisson(mean).astype("f4"), mean


def found(wanted: dict[str, Any], seed: int = 0, **more: Any) -> list[dict[str, Any]]:
    counts, mean = survey(seed)
    counts = more.pop("counts", counts)
    given = {
        "exposure": np.ones(SHAPE),
        "measured": np.ones(SHAPE[1:], bool),
        "values": mean,
        "sigma": 0.7 * np.sqrt(mean),
        "doubtful": None,
    } | more
    return map_regions(WANTED | wanted, counts, names=NAMES, **given)


def test_a_spot_says_its_light_and_what_its_surroundings_predict() -> None:
    (spot, *_) = found({"elements": ["Zn_K"]})
    json.dumps(spot)
    r0, r1, c0, c1 = spot["box"]
    assert (
        spot["target"] == "spots" and spot["element_name"] == "Zn_K" and "Zn_K: " in spot["reason"]
    )
    assert r0 <= 30 < r1 and c0 <= 14 < c1
    counts, _ = survey()
    assert spot["light"]["Zn_K"] == pytest.approx(counts[2, r0:r1, c0:c1].mean(), rel=1e-5)
    assert spot["background"]["Zn_K"] == pytest.approx(4, rel=0.2)
    assert set(spot["light"]) == set(spot["background"]) == set(NAMES)
    assert "Fe_K" not in spot["relative_sigma"]  # absent there
    assert 0 < spot["relative_sigma"]["Zn_K"] < 0.4


def test_structure_shared_with_a_bright_element_is_no_spot_of_a_line_that_was_asked_for() -> None:
    counts, _ = survey()
    r, c = np.indices(SHAPE[1:])
    nuclei = sum(np.exp(-((r - row) ** 2 + (c - 36) ** 2) / (2 * 1.5**2)) for row in (12, 36))
    rng = np.random.default_rng(2)
    counts[0] += rng.poisson(200 * nuclei)
    counts[2] += rng.poisson(14 * nuclei)
    (spot,) = found({"elements": ["Zn_K"]}, counts=counts)
    r0, r1, c0, c1 = spot["box"]
    assert r0 <= 30 < r1 and c0 <= 14 < c1
    assert "the other elements and the surroundings predict" in spot["reason"]


def test_background_goes_with_the_light_of_the_box() -> None:
    counts, mean = survey()
    light = np.ones(SHAPE[1:])
    light[22:40] = 0.5
    counts = np.random.default_rng(1).poisson(mean * light).astype("f4")
    (spot, *_) = found({"elements": ["Zn_K"]}, counts=counts, exposure=light)
    assert spot["background"]["K_K"] == pytest.approx(2, rel=0.2)


def test_precision_names_what_was_asked_for_and_only_there() -> None:
    wanted = {"targets": ["precision"], "precision": {"Fe_K": 0.1, "Ca_K": 0.01}}
    places = found(wanted)
    assert places and all(one["wanted"] == {"Fe_K": 0.1} for one in places)
    cover = np.zeros(SHAPE[1:], bool)
    for one in places:
        r0, r1, c0, c1 = one["box"]
        cover[r0:r1, c0:c1] = True
        assert one["relative_sigma"]["Fe_K"] == pytest.approx(0.7 / np.sqrt(12), rel=0.01)
        assert one["light"] and one["target"] == "precision" and one["element_name"] == "Fe_K"
    assert len(places) <= 4
    assert not cover[:7].any() and not cover[21:].any() and cover[8:20, 20:40].mean() > 0.8
    assert found(wanted | {"precision": {"Fe_K": 0.3}}) == []
    assert found(wanted | {"precision": {}}) == []


def test_targets_keep_their_order_and_each_its_number() -> None:
    doubtful = np.zeros(SHAPE, bool)
    doubtful[0, 40:44, 2::6] = True
    doubtful[0, 40:44, 3::6] = True
    wanted = {"targets": ["doubt", "spots", "precision"], "precision": {"Fe_K": 0.05}}
    places = found(wanted | {"max_regions": 2}, doubtful=doubtful)
    targets = [one["target"] for one in places]
    assert targets == sorted(targets, key=["doubt", "spots", "precision"].index)
    assert {target: targets.count(target) for target in set(targets)} == {
        "doubt": 2,
        "spots": targets.count("spots"),
        "precision": 2,
    }
    assert 1 <= targets.count("spots") <= 2
    assert found(wanted | {"max_regions": 0}, doubtful=doubtful) == []


def test_a_line_without_counts_is_no_reason_to_measure_again() -> None:
    counts, _ = survey()
    counts[0] = 0
    doubtful = np.zeros(SHAPE, bool)
    doubtful[0] = True
    assert found({"targets": ["doubt"]}, counts=counts, doubtful=doubtful) == []


def test_noise_and_dropouts_of_the_beam_name_no_place() -> None:
    rng = np.random.default_rng(5)
    alarms = 0
    for _ in range(12):
        light = np.ones(SHAPE[1:]) * rng.uniform(0.2, 1.0, (48, 1))
        counts = rng.poisson(30 * light * np.ones((3, 1, 1))).astype("f4")
        flat = np.full(SHAPE, 30.0)
        alarms += bool(found({}, counts=counts, exposure=light, values=flat, sigma=flat))
    assert alarms <= 3  # 0.6 expected


def test_lines_are_searched_together_besides() -> None:
    (first, *_) = found({"elements": ["K_K"], "together": ["Fe_K", "Zn_K", "As_K"]})
    assert first["reason"].startswith("Fe_K + Zn_K: ") and first["element_name"] in ("Fe_K", "Zn_K")


def test_nothing_measured_gives_nothing() -> None:
    assert found({}, measured=np.zeros(SHAPE[1:], bool)) == []


def test_a_finer_estimate_is_brought_to_the_survey_grid() -> None:
    values = np.arange(2 * 4 * 6, dtype=np.float32).reshape(2, 4, 6)
    doubtful = np.zeros(values.shape, bool)
    doubtful[1, 3, 5] = True
    fine = Estimate(values, np.full_like(values, 3), {}, gaussian_calibration(), doubtful)
    coarse = binned(fine, 2)
    assert coarse.values.shape == (2, 2, 3) and coarse.values[0, 0, 0] == pytest.approx(3.5)
    assert (coarse.sigma == 3).all()
    assert coarse.doubtful is not None and coarse.doubtful.sum() == 1 and coarse.doubtful[1, 1, 2]


def test_a_stack_names_places_of_another_chemistry_and_their_precision() -> None:
    rng = np.random.default_rng(0)
    energies = np.linspace(8320, 8380, 12)
    shape = 1 / (1 + np.exp(-(energies - 8345) / 2))[:, None, None]
    density = shape * np.ones((12, 50, 50)) + rng.normal(0, 0.05, (12, 50, 50))
    density[7, 20:25, 30:35] += 0.3
    edge, sigma = 8345 + rng.normal(0, 0.2, (50, 50)), np.full((50, 50), 0.2)
    edge[10:14, 10:14] += 2.0
    values = np.full(density.shape, 0.5)
    wanted = WANTED | {"targets": ["spots", "chemistry"]}
    given = (energies, density, None, edge, sigma, "transmission", values, 0.1 * values)
    places = stack_regions(wanted, *given)
    json.dumps(places)
    assert {one["element_name"] for one in places} == {"edge", "spectrum"}
    for one in places:
        at = {"edge": (12, 12), "spectrum": (22, 32)}[one["element_name"]]
        r0, r1, c0, c1 = one["box"]
        assert r0 <= at[0] < r1 and c0 <= at[1] < c1 and one["target"] == "chemistry"
        assert one["relative_sigma"] == {"transmission": pytest.approx(0.1)}
        assert one["light"] == one["background"] == {}
    assert stack_regions(WANTED, *given) == []
    assert stack_regions(wanted | {"min_score": 1e6}, *given) == []
