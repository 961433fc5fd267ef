"""Where not to trust: lost spots are put back, odd places and odd maps are named."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from inscan.models import n2n
from inscan.models.doubt import doubt_map, near_unmeasured
from inscan.models.novelty import FEATURES, Familiar, features
from inscan.models.restore import residual_significance, restore

SHAPE = (64, 72)
SEEN = np.ones((1, *SHAPE), dtype=bool)


def scene(level=2.0):
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    return level * (0.3 + np.exp(-((y - 30) ** 2 + (x - 40) ** 2) / 400))[None]


def counted(mean, seed=0):
    return np.random.default_rng(seed).poisson(mean).astype(np.float64)


@pytest.mark.parametrize("level", [0.05, 2.0, 200.0])
def test_noise_is_no_spot(level):
    found = sum(restore(counted(scene(level), k), scene(level), SEEN).number[0] for k in range(10))
    assert found <= 2


@pytest.mark.parametrize("size", [0.5, 1.5])
def test_a_spot_the_network_missed_is_put_back(size):
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    spot = 14.0 * np.exp(-((y - 15) ** 2 + (x - 20) ** 2) / (2 * size**2)) / size**2
    mean, truth = scene(), scene() + spot
    back = []
    for seed in range(5):
        found = restore(counted(truth, seed), mean, SEEN)
        assert 1 <= found.number[0] <= 8
        assert np.mean((found.mean - truth) ** 2) < 0.3 * np.mean((mean - truth) ** 2)
        assert found.added_sigma[0, 15, 20] > 0 and found.added_sigma[0, 50, 60] == 0
        back.append((found.mean - mean).sum() / spot.sum())
    assert np.mean(back) == pytest.approx(1, abs=0.2)


def test_a_spot_the_network_made_up_is_taken_off():
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    false = 20.0 * np.exp(-((y - 15) ** 2 + (x - 20) ** 2) / 4)
    found = restore(counted(scene()), scene() + false, SEEN)
    assert found.mean.min() >= 0
    assert np.mean((found.mean - scene()) ** 2) < 0.2 * np.mean(false**2)


def test_unmeasured_places_hold_no_spots():
    seen = SEEN.copy()
    seen[0, 10:20, 15:25] = False
    counts = counted(scene())
    counts[0, 15, 20] = 500
    assert restore(counts, scene(), seen).number[0] == 0
    tiny = np.ones((2, 1, 5))
    np.testing.assert_array_equal(restore(tiny * 9, tiny, tiny > 0).mean, tiny)


@pytest.mark.parametrize("scale", [0.45, 1.3, 4.0])
def test_significance_has_the_scale_of_noise(scale):
    z = residual_significance(counted(scene(20.0))[0], scene(20.0)[0], scale)
    assert 0.8 < z.std() < 1.2


def doubts(counts, mean, exposure=None, seen=SEEN, wholly=None):
    light = np.ones_like(mean) if exposure is None else exposure
    return doubt_map(counts, mean, light, seen, near_unmeasured(seen), ["Fe_K"], [wholly])


def test_good_answers_are_not_doubted():
    found = doubts(counted(scene(20.0)), scene(20.0))
    assert not found.doubtful.any() and found.report == {"share": 0.0, "reasons": []}


def test_what_is_wrong_is_doubted_where_it_is_wrong():
    counts = counted(scene(20.0))
    wrong = scene(20.0)
    wrong[0, 40:56, 10:26] *= 0.7
    found = doubts(counts, wrong)
    assert found.doubtful[0, 42:54, 12:24].mean() > 0.8
    assert found.doubtful[0, :30].mean() < 0.02
    assert any("structure" in r and "Fe_K" in r for r in found.report["reasons"])
    calm = counts.copy()
    calm[0, 40:56, 10:26] = np.rint(scene(20.0)[0, 40:56, 10:26])
    found = doubts(calm, scene(20.0))
    assert found.doubtful[0, 44:52, 14:22].all()
    assert any("scatter" in r for r in found.report["reasons"])


def test_edges_of_the_unmeasured_and_dim_places_are_doubted():
    seen = SEEN.copy()
    seen[0, 40:] = False
    light = np.ones((1, *SHAPE))
    light[0, :, 60:] = 0.05
    found = doubts(counted(scene()) * seen, scene(), light, seen)
    assert found.doubtful[0, 38:40].all() and not found.doubtful[0, 40:].any()
    assert found.doubtful[0, :40, 60:].all()
    assert found.doubtful[0, :36, :58].mean() < 0.01
    assert found.report["share"] == pytest.approx(found.doubtful.sum() / seen.sum(), abs=1e-4)
    assert doubts(counted(scene()), scene(), wholly="no counts").doubtful.all()


def test_the_estimate_carries_its_doubt():
    counts = counted(scene(5.0))[None]
    measured = np.ones(SHAPE, dtype=bool)
    measured[50:] = False
    estimate = n2n.denoise(counts, measured=measured)
    assert estimate.doubtful is not None and estimate.doubtful.shape == estimate.values.shape
    assert estimate.doubtful[0, 48:50].all() and not estimate.doubtful[0, 50:].any()
    assert estimate.report["doubt"]["share"] > 0
    assert "not measured" in " ".join(estimate.report["doubt"]["reasons"])


def test_maps_unlike_all_others_are_told():
    rng = np.random.default_rng(0)
    usual = rng.normal(0, 1, (300, len(FEATURES))) @ rng.normal(0, 1, (len(FEATURES),) * 2)
    known = Familiar.learn(usual)
    assert (known.score(usual) > 1).mean() < 0.02
    odd = usual[:1] + 60 * np.eye(len(FEATURES))[2]
    assert known.score(odd)[0] > 2 and known.oddest(odd[0]) == FEATURES[2]
    again = Familiar.from_card({"calibration": {"familiar": known.to_card()}})
    assert again is not None
    np.testing.assert_allclose(again.score(usual), known.score(usual), rtol=0.02)
    assert Familiar.from_card({"calibration": None}) is None


def test_noise_that_is_not_white_is_far_from_all_samples():
    mean, spread = scene(20.0)[0], np.full(SHAPE, 0.3)
    white = features(counted(scene(20.0))[0], mean, spread, SEEN[0])
    soft = mean + gaussian_filter(counted(scene(20.0))[0] - mean, 1.0)
    smooth = features(soft, mean, spread, SEEN[0])
    assert smooth[-1] > white[-1] + 3 and smooth[-2] < white[-2] - 1
