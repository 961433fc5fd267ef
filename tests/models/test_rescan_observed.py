"""What a fine map saw of the place it was sent to: counts, surroundings, and whether there is a spot."""

from typing import Any

import numpy as np
import pytest

from inscan.models.composite import Layer, compose
from inscan.service.recipe_regions import map_regions
from inscan.service.rescan_observed import note_observed, observed
from inscan.service.rescan_record import records_of, summary
from inscan.service.rescan_worth import light_of

WANTED = {
    "targets": ("spots",),
    "elements": ("Fe_K",),
    "together": (),
    "scale": 1.7,
    "max_regions": 1,
    "min_score": 8.0,
    "precision": {},
}
STEP, DWELL, BEHIND = 0.25, 2.0, 2.0


def test_a_spot_in_a_fine_map_is_confirmed_and_noise_is_not() -> None:
    rng = np.random.default_rng(3)
    rows, cols = np.mgrid[:24, :24]
    spot = 6 * np.exp(-((rows - 11) ** 2 + (cols - 13) ** 2) / (2 * 2.5**2))
    counts = np.stack([rng.poisson(2 + spot), rng.poisson(2.0, spot.shape)]).astype(float)
    found = observed(counts, ["Fe_K", "Zn_K"], scale_px=2.5)
    assert found["Fe_K"]["likelihood_ratio"] > 50
    assert found["Zn_K"]["likelihood_ratio"] < 8
    assert found["Fe_K"]["background"] == pytest.approx(2.0, abs=0.4)
    assert found["Fe_K"]["counts"] == pytest.approx(counts[0].mean())
    half = np.zeros(spot.shape, dtype=bool)
    half[:12] = True
    part = observed(counts, ["Fe_K", "Zn_K"], measured=half, lines=["Fe_K+Zn_K", "Ca_K"])
    assert part.keys() == {"Fe_K+Zn_K"}
    assert part["Fe_K+Zn_K"]["counts"] == pytest.approx(counts[:, half].sum(axis=0).mean())
    with pytest.raises(ValueError, match="for 1 lines"):
        observed(counts, ["Fe_K"])


def test_the_layers_of_a_composite_say_what_they_saw() -> None:
    rng = np.random.default_rng(4)

    def scan(uid: str, rows: np.ndarray, cols: np.ndarray, light: float) -> Layer:
        y, x = np.meshgrid(rows, cols, indexing="ij")
        mean = light * (3 + 30 * np.exp(-((y - 8) ** 2 + (x - 9) ** 2) / 8))
        counts = rng.poisson(mean)[None].astype(float)
        return Layer(uid, ("Fe_K",), counts, np.full(y.shape, light), rows, cols)

    survey = scan("survey", np.arange(20.0), np.arange(20.0), 1.0)
    fine = scan("fine", np.arange(4.25, 12, 0.5), np.arange(5.25, 13, 0.5), 2.0)
    made = compose(survey, [fine])
    reports = [dict(one) for one in made.layers] + [{"uid": "gone"}]
    note_observed(reports, survey, [fine], made.coarse, scale=2.0)
    seen = reports[0]["observed"]["Fe_K"]
    assert seen["likelihood_ratio"] > 50
    assert 0 < seen["relative_sigma"] < 0.3
    assert seen["counts"] == pytest.approx(fine.counts.mean())
    assert "observed" not in reports[1]


def rescanned(seed: int, peak: float) -> dict[str, Any] | None:
    """A spot on 2 counts, found in a survey, predicted and measured finely; None where it is not found."""
    rng = np.random.default_rng(seed)
    y0, x0 = rng.uniform(8, 22, 2)
    width = rng.uniform(1.2, 2.2)

    def scan(uid: str, rows: np.ndarray, cols: np.ndarray, light: float) -> Layer:
        y, x = np.meshgrid(rows, cols, indexing="ij")
        spot = peak * np.exp(-((y - y0) ** 2 + (x - x0) ** 2) / (2 * width**2))
        counts = rng.poisson(light * (BEHIND + spot))[None].astype(float)
        behind = np.full(counts.shape, BEHIND * light)
        flat = np.full(y.shape, light)
        return Layer(uid, ("Fe_K",), counts, flat, rows, cols, background=behind, label="1")

    survey = scan("survey", np.arange(30.0), np.arange(30.0), 1.0)
    counts, light = np.asarray(survey.counts), np.ones((30, 30))
    sigma = np.sqrt(np.maximum(counts, 1))
    boxes = map_regions(
        WANTED,
        counts,
        light,
        light > 0,
        counts - BEHIND,
        sigma,
        None,
        ["Fe_K"],
        background=survey.background,
    )
    if not boxes:
        return None
    (box,) = boxes
    row0, row1, col0, col1 = box["box"]
    inside = (row1 - row0) * (col1 - col0)
    row0, row1 = max(0, row0 - 1), min(30, row1 + 1)
    col0, col1 = max(0, col0 - 1), min(30, col1 + 1)
    fine = scan(
        "fine",
        np.arange(row0 - 0.5 + STEP / 2, row1 - 0.5, STEP),
        np.arange(col0 - 0.5 + STEP / 2, col1 - 0.5, STEP),
        DWELL,
    )
    told, parts = light_of(box), 1 / STEP**2
    assert told.signal is not None and told.background is not None
    here = {"pixels": float(inside), "per_pixel": parts, "dose": DWELL * parts}
    share = inside / ((row1 - row0) * (col1 - col0))
    predicted = {
        **here,
        "line": told.line,
        "share": share,
        "information": told.information(**here),
        "relative_sigma": told.sigma_after(here["dose"]),
        "relative_sigma_before": told.sigma,
        "counts": (told.signal * share + told.background) * DWELL,
        "background": told.background * DWELL,
    }
    made = compose(survey, [fine])
    reports = [dict(one) for one in made.layers]
    note_observed(reports, survey, [fine], made.coarse, scale=1.7)
    proposal = {"profile": "p", "regions": [{"label": "1", "predicted": predicted}]}
    (record,) = records_of(proposal, reports, lambda uid: (None, None), min_score=8.0)
    return record


@pytest.mark.parametrize("peak", [3, 40])
def test_fine_maps_give_the_counts_and_the_information_that_were_predicted(peak: float) -> None:
    records = [one for seed in range(5) if (one := rescanned(seed, peak)) is not None]
    told = summary(records)
    assert told["records"] >= 4 and told["confirmed"] == 1.0
    assert 0.9 < told["counts"]["median"] < 1.1
    assert 0.6 < told["information"]["median"] < 1.2
    # Not below: errors are shared by the parts of a survey pixel.
    assert 0.9 < told["relative_sigma"]["median"] < 4.0
