"""The evaluation measures what it says: on answers whose score is known."""

import numpy as np
import pytest

from inscan.models import evaluate
from inscan.models.evaluate import N2NCase, evaluate_n2n, table


def test_known_answers_get_known_scores():
    counts, mean = evaluate._measure(N2NCase("siemens", 4, 10.0), 0)
    raw = counts.sum(axis=0)
    same = evaluate._score(counts, mean, raw, 0.0)
    np.testing.assert_allclose(same.log_dwell, 0, atol=1e-9)
    assert same.flux == 0 and np.isnan(same.coverage)
    half = evaluate._score(counts, mean, (raw + mean) / 2, 0.0)
    np.testing.assert_allclose(np.exp(half.log_dwell), 4, rtol=1e-6)
    double = evaluate._score(counts, mean, 2 * raw, 0.0)
    assert double.flux == pytest.approx(1)
    assert mean.max() == pytest.approx(10)


def test_n2n_beats_simple_filters_on_an_unseen_family():
    rows = evaluate_n2n([0], cases=[N2NCase("siemens", 4, 10.0)], device="cpu")
    by_method = {row.method: row for row in rows}
    ours = by_method["inscan n2n"]
    assert ours.dwell > 1.3 * by_method["Gaussian (oracle)"].dwell
    assert ours.dwell > 1.3 * by_method["median 3 x 3"].dwell
    assert abs(ours.flux_bias) < 0.005
    assert 0.75 < ours.coverage < 0.98
    assert "siemens, 4 channels" in table(rows)
