"""Which energies a survey of few lacks, as its result's report names them: `report["energies"]`."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inscan.models import xanes
from inscan.models.energy_choice import EnergyChoice, candidate_energies, choose_energies
from inscan.models.estimate import Estimate
from inscan.service.messages import InferenceJob

__all__ = ["energies_report"]

_SURVEYS = ("survey", "composite")
FLUORESCENCE = "fluorescence"


def energies_report(
    job: InferenceJob,
    energies_ev: NDArray[np.float64],
    estimate: Estimate,
    stack: NDArray[np.floating],
    variance: NDArray[np.floating] | None,
) -> dict[str, Any]:
    """What is added to the report of an energy stack.

    Parameters
    ----------
    job : InferenceJob
        Energies are named for first final results of surveys (start key `purpose`: `survey`, or a composite of one and
        what followed it) whose profile has `rescan.energies`.
    energies_ev : ndarray of float64, shape (energy,), rising
        eV.
    estimate : Estimate
        Of the stack.
    stack : ndarray, shape (energy, row, col)
        What went in: transmission, or a fluorescence signal.
    variance : ndarray or None
        Its variance; None: the scatter of the stack around the estimate.

    Returns
    -------
    dict
        Empty, or `energies`: `energies_ev` (the one that helps most first; empty where nothing is proposed),
        `predicted` (`edge_sigma_ev`, `fraction_sigma`: of the stack as it is and after each energy; see
        `inscan.models.energy_choice.EnergyChoice`), `text`.
    """
    wanted: Mapping[str, Any] | None = (job.meta.get("rescan") or {}).get("energies")
    first = job.kind == "final" and not job.refines
    if not wanted or not first or job.meta.get("purpose") not in _SURVEYS:
        return {}
    glows = job.meta.get("quantity") == FLUORESCENCE
    linear = xanes.fluorescence if glows else xanes.optical_density
    density, left = linear(estimate.values, np.square(estimate.sigma))
    single = linear(estimate.values, _scatter(estimate, stack) if variance is None else variance)[1]
    references = [
        (one["energies_ev"], one["absorption"]) for one in job.meta.get("references") or ()
    ]
    precision = float(wanted["precision_ev"])
    try:
        choice = choose_energies(
            density,
            energies_ev,
            candidate_energies(
                float(wanted["low_ev"]),
                float(wanted["high_ev"]),
                float(wanted["step_ev"]),
                energies_ev,
            ),
            sigma=np.sqrt(np.asarray(left)),
            frame_variance=single,
            references=references if len(references) >= 2 else (),
            most=int(wanted["most"]),
            precision_ev=precision,
        )
    except ValueError as error:
        # A stack without an edge, or with too few energies for one: worth a word, no failure.
        return {"energies": {"energies_ev": [], "predicted": {}, "text": f"no energies: {error}"}}
    return {"energies": _told(choice, precision)}


def _scatter(estimate: Estimate, stack: NDArray[np.floating]) -> NDArray[np.float32]:
    """Variance of single images from what the estimate leaves of them, (energy, row, col)."""
    away = np.nanmean(np.square(stack - estimate.values, dtype=np.float64), axis=(1, 2))
    kept = np.nanmean(np.square(estimate.sigma, dtype=np.float64), axis=(1, 2))
    frames = (away + kept).astype(np.float32)[:, None, None]
    return np.broadcast_to(frames, estimate.values.shape)


def _told(choice: EnergyChoice, precision: float) -> dict[str, Any]:
    now, then = float(choice.edge_sigma_ev[0]), float(choice.edge_sigma_ev[-1])
    count = len(choice.energies_ev)
    if count:
        text = (
            f"{count} more energies would bring the error of a pixel's edge energy from {now:.2g} to {then:.2g} eV; "
            f"{precision:g} is asked for"
        )
        if not choice.reached:
            text += ", which the energies allowed do not reach"
    elif choice.reached:
        text = f"the error of a pixel's edge energy is {now:.2g} eV, {precision:g} is asked for: no more energies"
    else:
        text = (
            f"the error of a pixel's edge energy is {now:.2g} eV, but no candidate energy is left"
        )
    fractions = choice.fraction_sigma
    return {
        "energies_ev": choice.energies_ev.tolist(),
        "predicted": {
            "edge_sigma_ev": [round(float(one), 5) for one in choice.edge_sigma_ev],
            "fraction_sigma": (
                None if fractions is None else [round(float(one), 5) for one in fractions]
            ),
            "precision_ev": precision,
            "reached": choice.reached,
            "edge_ev": round(choice.edge_ev, 3),
            "spread_ev": round(choice.spread_ev, 3),
            "width_ev": round(choice.width_ev, 3),
            "pixels": choice.pixels,
        },
        "text": text,
    }
