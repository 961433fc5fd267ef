"""The evaluation measures what it says: on answers whose score is known."""

import json
from collections.abc import Mapping

import numpy as np
import pytest

from inscan.models.estimate import Estimate, gaussian_calibration
from inscan.models.evaluate import FAMILIES, ZERO_SHOT, _over_families, evaluate_n2n, read_peers
from inscan.models.hallucination import evaluate_imprint
from inscan.models.map_scores import map_row, score_maps
from inscan.models.n2n_cases import FAMILY_CASES, N2N_CASES, N2NCase, expected_counts, measure

NO_BINS = {f"coverage {bin_} %": None for bin_ in ("0-25", "25-50", "50-75", "75-95", "95-100")}


@pytest.fixture(scope="module")
def cells():
    return measure(N2NCase("cells", 2, 50.0), 0)


def test_known_answers_get_known_scores(cells):
    raw = cells.counts.sum(axis=0)
    same = score_maps(cells, raw, 1.5)
    assert same["dwell"] == pytest.approx(1) and same["dwell Fe_K"] == pytest.approx(1)
    assert same["flux %"] == 0 and np.isnan(same["coverage"]) and same["s"] == 1.5
    half = score_maps(cells, (raw + cells.mean) / 2, 0.0)
    assert half["dwell"] == pytest.approx(4)
    bright = score_maps(cells, 1.02 * cells.mean, 0.0)
    assert bright["bright flux %"] == pytest.approx(2) == bright["spot flux %"]
    assert score_maps(cells, 2 * raw, 0.0)["flux %"] == pytest.approx(100, abs=1)
    assert score_maps(cells, cells.mean, 0.0)["SSIM"] == pytest.approx(1)


def test_a_lowered_spot_and_a_blur_show(cells):
    lowered = np.where(cells.spots, 0.8 * cells.mean, cells.mean)
    scores = score_maps(cells, lowered, 0.0)
    assert scores["spot flux %"] == pytest.approx(-20)
    assert abs(scores["bright flux %"]) < 2
    assert scores["edge FWHM"] == pytest.approx(1, abs=0.02)
    soft = cells.mean.copy()
    soft[:, 1:-1, 1:-1] = (
        sum(
            np.roll(cells.mean, shift, axis=(1, 2))[:, 1:-1, 1:-1]
            for shift in ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0))
        )
        / 5
    )
    assert score_maps(cells, soft, 0.0)["edge FWHM"] > 1.2


def test_intervals_are_scored_by_intensity(cells):
    sigma = np.sqrt(cells.mean).astype(np.float32)
    calibration = gaussian_calibration(0.0)
    values = np.random.default_rng(0).normal(cells.mean, sigma).astype(np.float32)
    good = score_maps(cells, Estimate(values, sigma, {}, calibration), 0.0)
    assert good["coverage"] == pytest.approx(0.9, abs=0.01)
    assert 0.7 < good["width"] < 1.05  # intervals end at 0, raw ones do not
    proud = np.where(cells.mean > 20, 0.3 * sigma, sigma)
    row = map_row("c", "m", [score_maps(cells, Estimate(values, proud, {}, calibration), 0.0)] * 2)
    assert row.figures["worst bin"].mean < 0.6 < 0.8 < row.figures["coverage"].mean
    assert row.figures["worst bin"].mean == row.figures["coverage 95-100 %"].mean


def test_worst_element_is_the_same_one_over_all_seeds():
    scores = [
        {"dwell": 2.0, "dwell A": 1.0, "dwell B": 4.0, "dwell C": 2.0},
        {"dwell": 2.0, "dwell A": 1.5, "dwell B": 4.0, "dwell C": 1.3333},
    ]
    for score in scores:
        score |= dict.fromkeys(NO_BINS, np.nan)
    figure = map_row("c", "m", scores).figures["worst/mean"]
    assert figure.mean == pytest.approx(np.sqrt(0.5 * 0.75))


@pytest.mark.parametrize("case", N2N_CASES, ids=lambda case: case.name)
def test_cases_are_what_their_names_say(case):
    one, again, other = (expected_counts(case, seed) for seed in (0, 0, 1))
    assert np.array_equal(one, again) and not np.array_equal(one, other)
    np.testing.assert_allclose(one.max(axis=(1, 2)), case.peak)
    assert one.shape[1:] == (160, 160) and (one >= 0).all()
    assert len(one) == 1 or case.element is None


def test_names_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="tissue"):
        measure(N2NCase("stones", 1, 1.0), 0)
    with pytest.raises(ValueError, match="Ni_K"):
        measure(N2NCase("siemens", 1, 1.0, "Au_L"), 0)


def test_inclusions_are_where_the_sample_has_them():
    measured = measure(N2NCase("cells", 2, 50.0), 3)
    iron = measured.elements.index("Fe_K")
    assert 0 < measured.spots[iron].mean() < 0.01
    assert measured.mean[iron][measured.spots[iron]].mean() > 5 * measured.mean[iron].mean()


def test_n2n_beats_simple_filters_on_an_unseen_family():
    rows = evaluate_n2n([0], cases=[N2NCase("siemens", 4, 10.0, "Ni_K")], device="cpu")
    by_method = {row.method: row.figures for row in rows}
    ours = by_method[ZERO_SHOT]
    for other in ("median 3 x 3", "Gaussian (oracle)", "total variation (oracle)"):
        assert ours["dwell"].mean > 1.05 * by_method[other]["dwell"].mean
    assert ours["edge FWHM"].mean < by_method["Gaussian (oracle)"]["edge FWHM"].mean
    assert by_method["raw"]["dwell"].mean == pytest.approx(1)
    assert abs(ours["flux %"].mean) < 0.5
    assert 0.75 < ours["coverage"].mean < 0.98


def test_stored_figures_stand_beside_ours_for_the_same_seeds(tmp_path):
    case = N2NCase("siemens", 2, 10.0, "Ni_K")
    known = {"dwell": 2.0, "flux %": -3.0, "dwell Ni_K": 2.0, "coverage": None, **NO_BINS}
    path = tmp_path / "bm3d.json"
    path.write_text(json.dumps({"methods": {"BM3D": {case.name: {"0": known, "9": known}}}}))
    peers = read_peers(path)
    rows = evaluate_n2n([0, 1], cases=[case], peers=peers, baselines=False, device="cpu")
    assert [(row.method, row.seeds) for row in rows] == [("BM3D", 1), (ZERO_SHOT, 2)]
    assert rows[0].figures["dwell"].mean == 2
    path.write_text('{"methods": [1]}')
    with pytest.raises(ValueError, match="expected"):
        read_peers(path)


def test_families_are_compared_seed_by_seed():
    def several(dwell: dict[int, float], flux: float) -> dict[int, Mapping[str, float]]:
        return {seed: {"dwell": d, "flux %": flux} for seed, d in dwell.items()}

    tables = {
        case.name: {
            ZERO_SHOT: several({0: 8.0 * 2**k, 1: 4.0 * 2**k}, 0.1),
            "BM3D": several({0: 4.0 * 2**k}, -1.0 * k),
        }
        for k, case in enumerate(FAMILY_CASES)
    }
    theirs, ours = sorted(_over_families(tables, ["BM3D"]), key=lambda row: row.method)
    assert ours.case == FAMILIES and ours.seeds == 2 and theirs.seeds == 1
    assert ours.figures["over BM3D"].mean == pytest.approx(2)  # on the seed that both have
    assert ours.figures["dwell"].mean == pytest.approx(np.sqrt(32) * 2**1.5)
    assert theirs.figures["worst flux %"].mean == -3
    assert _over_families({"cells, 2 channels, peak 50": {}}, []) == []


def test_a_bright_element_does_not_imprint_on_a_flat_one():
    rows = evaluate_imprint([0], (3.0,), device="cpu")
    figures = {row.method: row.figures for row in rows}
    ours = figures["inscan n2n, with the star"]
    assert abs(ours["step - raw %"].mean) < 3  # of the flat level; the star steps by 200 counts
    assert ours["error %"].mean < 0.3 * figures["raw"]["error %"].mean
