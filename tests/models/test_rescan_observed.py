"""What a fine map saw of the place it was sent to: counts, surroundings, and whether there is a spot."""

import numpy as np
import pytest

from inscan.models.composite import Layer, compose
from inscan.service.rescan_observed import note_observed, observed


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
