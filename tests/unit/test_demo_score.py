"""The demo's figures mean what they say."""

import numpy as np
import pytest

from inscan.service.demo_score import score_chemistry, score_map, score_regions


def test_a_longer_dwell_scores_as_that_dwell():
    rng = np.random.default_rng(3)
    truth = np.full((200, 200), 8.0)
    raw = rng.poisson(truth).astype(float)
    longer = rng.poisson(truth * 12.0) / 12.0
    wide = np.sqrt(8.0 / 12.0) * 1.645
    score = score_map(
        "Fe_K", longer, raw, truth, longer - wide, longer + wide, np.ones((200, 200), bool)
    )
    assert score.dwell_equivalent == pytest.approx(12.0, rel=0.05)
    assert score.psnr_result - score.psnr_raw == pytest.approx(10 * np.log10(12.0), abs=0.25)
    assert abs(score.flux_bias) < 0.005
    assert score.coverage == pytest.approx(0.9, abs=0.02)


def test_unmeasured_pixels_do_not_count():
    truth = np.ones((4, 4))
    raw, result = truth + 1.0, truth + 0.5
    measured = np.ones((4, 4), bool)
    raw[0], result[0], measured[0] = 99.0, np.nan, False
    score = score_map("P_K", result, raw, truth, result - 1, result + 1, measured)
    assert score.dwell_equivalent == pytest.approx(4.0)
    with pytest.raises(ValueError, match="no pixel is measured"):
        score_map("P_K", result, raw, truth, result, result, np.zeros((4, 4), bool))


def test_regions_count_inclusions_once_and_area_as_a_union():
    boxes = [(0.0, 5.0, 0.0, 5.0), (2.5, 5.0, 0.0, 5.0)]
    score = score_regions(
        boxes, [(1.0, 1.0), (3.0, 3.0), (9.0, 9.0), (50.0, 1.0)], (0.0, 10.0, 0.0, 10.0)
    )
    assert (score.found, score.inclusions) == (2, 3)
    assert score.area_fraction == pytest.approx(0.25, abs=0.01)
    assert score.recall == pytest.approx(2 / 3)


def test_shrinkage_shows_in_the_slope_though_correlation_is_perfect():
    truth = np.linspace(8340.0, 8346.0, 100).reshape(10, 10)
    shrunk = truth.mean() + 0.5 * (truth - truth.mean())
    score = score_chemistry("result", shrunk, truth, np.ones((10, 10), bool))
    assert score.correlation == pytest.approx(1.0)
    assert score.slope == pytest.approx(0.5)
    assert score.rmse_ev > 0.8
