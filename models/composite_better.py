"""Which of two places explains the survey's counts better, for a fine map that is laid onto a survey."""

import numpy as np
from numpy.typing import NDArray

from inscan.models.composite_agreement import Agreement, misfit
from inscan.models.registration import Comparison, CountGrid, Registration, compare
from inscan.models.superres_input import Sampling

__all__ = ["CLEAR", "as_good", "clearly_better", "more_than_even"]

CLEAR = 9.0
"""In -2 log likelihood: from here on one place is better than another."""


def clearly_better(
    low: CountGrid,
    high: CountGrid,
    sampling: Sampling,
    shift: NDArray[np.float64],
    expected: NDArray[np.float64],
) -> bool:
    """Whether a place explains the survey's counts clearly better than the one that was expected: on the pixels that
    both cover."""
    both = [compare(low, high, sampling, at) for at in (expected, shift)]
    shared = both[0].inside & both[1].inside
    if not shared.any():
        return True
    fits = []
    for one in both:
        made = np.maximum(one.expected[:, shared].sum(axis=1), 1e-9)
        ratio = (one.counts[:, shared].sum(axis=1) / made)[:, None, None]
        fits.append(misfit(one.counts, ratio * one.expected, ratio**2 * one.noise)[shared].sum())
    return float(fits[0] - fits[1]) > CLEAR


def more_than_even(both: Comparison, same: Agreement) -> bool:
    """Whether a fine map says clearly more of the survey's counts than that they are even."""
    inside = both.inside
    even = np.where(inside, both.counts, 0).sum(axis=(1, 2), keepdims=True) / max(1, inside.sum())
    here = misfit(both.counts, same.common * both.expected, same.common**2 * both.noise)
    flat = misfit(both.counts, np.broadcast_to(even, both.counts.shape), np.zeros_like(both.noise))
    return float((flat - here)[inside].sum()) > CLEAR


def as_good(
    low: CountGrid,
    high: CountGrid,
    both: Comparison,
    same: Agreement,
    found: Registration | None,
    limit: float,
) -> bool:
    """Whether the best place found does not explain the survey's counts better than this one, by more than `limit`: on
    the pixels that both cover, and with the rates that are right here."""
    if found is None:
        return True
    here = misfit(both.counts, same.common * both.expected, same.common**2 * both.noise)
    best = compare(low, high, "box", np.asarray(found.shift))
    shared = both.inside & best.inside
    there = misfit(best.counts, same.common * best.expected, same.common**2 * best.noise)
    return bool(shared.any()) and float((here - there)[shared].sum()) < limit
