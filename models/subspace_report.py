"""The account that `subspace.denoise` gives of itself: figures, verdict, what to doubt."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from inscan.models.flat_drift import Drift
from inscan.models.lowrank import Basis, Coefficients
from inscan.models.stack_motion import Motion
from inscan.models.stack_noise import StackNoise

__all__ = ["Account", "doubt", "doubtful_pixels", "stack_report"]

_CORRELATED = 0.05
_RESAMPLED = 0.12  # what the windowed sinc may leave
_RIGHT = (0.75, 1.35)  # measured noise over given noise that is taken as agreement
_BOX = 5  # pixels across that unexplained residuals are averaged over
_UNEXPLAINED = 5.0  # standard deviations
_MOVED = 0.1  # pixels, root mean square, that are worth a word
_LOST = 1.0  # pixels of uncertainty at which positions do not help any more


@dataclass(frozen=True)
class Account:
    """What happened on the way.

    Attributes
    ----------
    recipe : str
    seed : int
    candidates : int
        Components considered.
    noise : StackNoise
    ratio : float
        Noise in the stack over the noise expected.
    basis : Basis
    motion : Motion or None
        Positions of the frames, found or looked up; None where not looked for.
    registered : bool
        Whether frames were put back.
    beam : Drift or None
        What drifted between flat and frame; None where that could not be told.
    """

    recipe: str
    seed: int
    candidates: int
    noise: StackNoise
    ratio: float
    basis: Basis
    motion: Motion | None
    registered: bool
    beam: Drift | None

    @property
    def given_wrong(self) -> bool:
        """Whether a given variance contradicts the stack."""
        return self.noise.source == "given" and not _RIGHT[0] < self.ratio < _RIGHT[1]


def stack_report(
    account: Account, kept: Coefficients, white: Mapping[str, float]
) -> dict[str, Any]:
    """Figures, verdict and reasons, JSON-able.

    Parameters
    ----------
    account : Account
    kept : Coefficients
    white : mapping of str to float
        See `inscan.models.stack_noise.whiteness`.
    """
    basis, noise = account.basis, account.noise
    reasons: list[str] = []
    remarks: list[str] = []
    worst = max(abs(white["row"]), abs(white["col"]))
    if worst > max(_RESAMPLED if account.registered else _CORRELATED, 5 * white["error"]):
        reasons.append(
            f"the noise is not white: neighbouring pixels of the residual correlate by "
            f"{white['row']:.2f} (rows) and {white['col']:.2f} (columns), so sigma is too small "
            "and structure may be noise (frames aligned by interpolation do this)"
        )
    if abs(white["frame"]) > max(2 * _CORRELATED, 5 * white["error"]):
        reasons.append(
            f"residuals of successive frames correlate by {white['frame']:.2f}: the spectra kept "
            "do not explain all of the signal, or frames moved"
        )
    if account.given_wrong:
        reasons.append(
            f"the noise in the stack is {account.ratio:.2f} times what the given variance says; "
            "the measured noise was used"
        )
    weak = [int(k) for k in kept.kept if basis.agreement[k] < 0.5]
    if weak and account.recipe == "best":
        reasons.append(
            f"component {weak[0] + 1} is not well determined: two halves of the pixels agree on "
            f"it by {basis.agreement[weak[0]]:.2f} only"
        )
    if len(kept.images) == len(basis.noise) == account.candidates:
        reasons.append(f"all {len(kept.images)} components considered were kept; there may be more")
    if account.motion is not None:
        bad, said = _motion_words(account)
        reasons += bad
        remarks += said
    if account.beam is not None and account.beam.found:
        remarks.append(
            f"the beam drifted between flat and frames by {100 * account.beam.rms():.2f} % (root "
            f"mean square), as {int(account.beam.amount.any(axis=0).sum())} fields that were read "
            f"from the empty {100 * account.beam.empty:.0f} % of the pixels and divided out"
        )
    level = float(np.median(noise.energy) * np.median(noise.pixel))
    return {
        "method": "subspace",
        "recipe": account.recipe,
        "seed": account.seed,
        "figures": {
            "rank": len(kept.images),
            "components": [int(k) for k in kept.kept],
            "noise_median": level * account.ratio if noise.source == "measured" else level,
            "noise_source": noise.source,
            "noise_ratio": account.ratio,
            "basis_smoothing_px": round(basis.smoothing, 3),
            "basis_agreement": [round(float(a), 4) for a in basis.agreement],
            "components_tried": [int(k) for k in kept.tried],
            "risk": [round(float(r), 5) for r in kept.risk],
            "risk_gain": [round(float(g), 5) for g in kept.gain],
            "unshrunk": [round(float(u), 4) for u in kept.unshrunk],
            "residual_correlation": {k: round(float(v), 4) for k, v in white.items()},
            **_motion_figures(account),
            **_drift_figures(account),
        },
        "verdict": "warn" if reasons else "pass",
        "reasons": reasons + remarks,
    }


def doubtful_pixels(
    kept: Coefficients, before: NDArray[np.floating], level: NDArray[np.floating]
) -> NDArray[np.bool_]:
    """Pixels at which more was taken away than noise explains: structure was lost, or never fitted.

    Parameters
    ----------
    kept : Coefficients
    before : ndarray of float, shape (component, row, col)
        Coefficients of all candidates before denoising, whitened.
    level : ndarray of float, shape (row, col)
        Noise there.

    Returns
    -------
    ndarray of bool, shape (row, col)
    """
    rows, cols = level.shape
    if min(rows, cols) < _BOX or float(level.max()) <= 0:
        return np.zeros((rows, cols), dtype=bool)
    middle = np.median(before[kept.kept], axis=(1, 2), keepdims=True)
    gone = before[kept.kept] - middle - (kept.images - middle) / kept.unshrunk[:, None, None]
    excess = (gone.astype(np.float64) / np.maximum(level, 1e-30)) ** 2
    mean = uniform_filter(excess.mean(axis=0), _BOX, mode="nearest")
    spread = np.sqrt(2.0 / (len(excess) * _BOX**2))
    return np.asarray(mean > 1 + _UNEXPLAINED * spread)


def doubt(
    pixels: NDArray[np.bool_], doubtful: NDArray[np.bool_], partial: NDArray[np.bool_] | None
) -> dict[str, Any]:
    """How much is doubtful, and why, JSON-able.

    Parameters
    ----------
    pixels : ndarray of bool, shape (row, col)
        Of `doubtful_pixels`.
    doubtful : ndarray of bool, shape (energy, row, col)
        All there is to doubt.
    partial : ndarray of bool, shape (row, col), optional
        Pixels measured at some energies only.
    """
    reasons = []
    if pixels.any():
        reasons.append(
            f"{int(pixels.sum())} pixels lost more than noise explains: fine structure was "
            "smoothed away, or the noise is larger there than taken for"
        )
    if partial is not None and partial.any():
        reasons.append(f"{int(partial.sum())} pixels are predicted where they were not measured")
    return {"share": round(float(doubtful.mean()), 6), "reasons": reasons}


def _motion_figures(account: Account) -> dict[str, Any]:
    motion = account.motion
    if motion is None:
        return {}
    finite = motion.sigma[np.isfinite(motion.sigma)]
    sigma = float(np.sqrt(np.mean(finite**2))) if finite.size else None
    rms = float(np.sqrt(2 * np.mean(motion.shift**2)))
    figures: dict[str, Any] = {
        "motion": {
            "registered": account.registered,
            "rms_px": round(rms, 4),
            "sigma_px": None if sigma is None else round(sigma, 4),
        }
    }
    if account.registered:
        figures["motion"]["shifts_px"] = np.round(motion.shift, 3).tolist()
        figures["motion"]["magnification_slope"] = round(motion.slope, 4)
        figures["motion"]["magnification_slope_sigma"] = round(motion.slope_sigma, 4)
    return figures


def _drift_figures(account: Account) -> dict[str, Any]:
    beam = account.beam
    if beam is None:
        return {}
    return {
        "drift": {
            "rms": round(beam.rms(), 6),
            "fields": int(beam.amount.any(axis=0).sum()),
            "from_flats": beam.flats,
            "empty_share": round(beam.empty, 4),
        }
    }


def _motion_words(account: Account) -> tuple[list[str], list[str]]:
    """What is wrong, and what is only said."""
    motion = account.motion
    if motion is None:
        return [], []
    rms = float(np.sqrt(2 * np.mean(motion.shift**2)))
    if not account.registered:
        if not motion.moving:
            return [], []
        return [
            f"frames moved against each other by about {max(rms, _MOVED):.1f} pixels and were not "
            "registered: the result is blurred"
        ], []
    said = f"frames moved against each other by {rms:.2f} pixels (root mean square)"
    if motion.slope != 0:
        said += f", and the magnification changed by {100 * np.ptp(motion.scale):.2f} %"
    said += "; they were registered, borders that some frames lack are predicted"
    finite = motion.sigma[np.isfinite(motion.sigma)]
    sigma = float(np.sqrt(np.mean(finite**2))) if finite.size else np.inf
    if sigma > _LOST:
        return [f"{said}; positions are known to {sigma:.1f} pixels only"], []
    return [], [said]
