"""Denoise X-ray fluorescence maps: channels in, one map for each element with its uncertainty out.

The shipped network is run on the variance-stabilised Poisson sum of the healthy channels, each
element alone and together with those it shares structure with, whichever held-out counts prefer
(zero-shot). With `fit_steps` it is first fine-tuned on the run itself, self-supervised, and the
result kept only where held-out counts prefer it.

    from inscan.models import n2n
    estimate = n2n.denoise(counts, exposure=exposure)
    low, high = estimate.interval(0.9)
"""

import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import uniform_filter

from inscan.models.calibrating import heldout_sigma
from inscan.models.channels import ChannelSum, sum_channels
from inscan.models.counting import ANSWERS, HeldOut, choose_weights, denoise_counts
from inscan.models.doubt import doubt_map, near_unmeasured
from inscan.models.estimate import Estimate
from inscan.models.finetune import FineTuned, fine_tune
from inscan.models.infer import Denoiser, load_denoiser
from inscan.models.map_input import MapInput, checked_input, checked_like, read_off_scatter
from inscan.models.measured_field import (
    Field,
    Place,
    bounding_place,
    filled_field,
    keep_flux,
    unfold,
    unfold_onto,
)
from inscan.models.n2n_paper import denoise_paper
from inscan.models.noise import noise_sigma
from inscan.models.novelty import Familiar, features
from inscan.models.restore import restore
from inscan.models.trust import (
    UNLIKE,
    CountTable,
    Verdict,
    brightness,
    heldout_figures,
    judge,
    residual_figures,
    run_factors,
)

__all__ = ["denoise"]

_JOINT = [way == "together" for way, _ in ANSWERS]
_TTA = 1  # more symmetries gain less than 1 % of counting time (measured) at their full cost


def denoise(
    counts: ArrayLike,
    *,
    exposure: ArrayLike | None = None,
    background: ArrayLike | None = None,
    background_variance: ArrayLike | None = None,
    measured: ArrayLike | None = None,
    correction: ArrayLike | None = None,
    fit_steps: int = 0,
    fit_seconds: float | None = None,
    start: Denoiser | None = None,
    keep: Callable[[Mapping[str, torch.Tensor], dict[str, Any]], None] | None = None,
    seed: int = 0,
    recipe: Literal["best", "paper"] = "best",
    device: str | torch.device | None = None,
    denoiser: Denoiser | None = None,
) -> Estimate:
    """Estimate the mean counts behind measured ones.

    Parameters
    ----------
    counts : array, shape (channel, element, row, col)
        Raw counts, 0 or more. NaN marks what was not measured. Counts corrected for dead time are
        no longer Poisson: give what they were multiplied by as `correction`, or raw counts with
        live time in `exposure`. Counts divided by I0: give raw counts and I0 in `exposure`.
    exposure : array of float, shape (channel, row, col) or what broadcasts to it, optional
        Live time × I0 over their reference. Enters the likelihood: a row with half the beam is
        a row with half the counts of the same sample. 0 or NaN marks what was not measured.
    background : array of float, shape of `counts`, optional
        Estimated background counts under each window; taken from the result.
    background_variance : array of float, shape of `counts`, optional
        Its variance; without it, taken from the scatter of `background` between pixels.
    measured : array of bool, shape (row, col), optional
        False where the scan has not been. Nothing there is used, and nothing is claimed there.
    correction : array of float, shape (channel, row, col) or that of `counts`, optional
        What `counts` had been multiplied by, for dead time say. It is divided out again, and a
        pixel corrected by 1.5 counts as one seen for two thirds of the time. Without it, one
        factor common to all is read off the data; factors that vary can only be noticed.
    fit_steps : int
        Steps of fine-tuning at most; 0 is zero-shot with the shipped weights.
    fit_seconds : float, optional
        Fine-tuning also ends by then, about. The report says how many steps were done: that number
        as `fit_steps` gives the same result again.
    start : Denoiser, optional
        Weights born from an earlier run, to start the fine-tuning from; taken only where they
        score better on held-out counts than the shipped ones. The report says which, and both scores.
    keep : callable (tensors, card), optional
        Called with the fine-tuned weights (name to tensor, on the CPU) and what a card should say
        of them (`architecture`, `parent_sha256`, `figures`, `calibration`) when steps on this run
        were kept.
    seed : int
        The same seed, device and number of threads give the same bytes.
    recipe : {"best", "paper"}
        "paper" trains one network for each element from scratch as published
        (`inscan.models.n2n_paper`), for comparison; it needs `fit_steps` and two channels.
    device : str or torch.device, optional
        CUDA where present, else the CPU.
    denoiser : Denoiser, optional
        Other weights than the shipped ones.

    Returns
    -------
    Estimate
        `values`, float32, shape (element, row, col): expected counts of the sum of the used
        channels at reference exposure 1, background removed. Where a background was given values
        may be slightly negative; else they are 0 or more. Values and sigma are NaN where
        nothing was measured. The total over the measured pixels is that of the data.

    Raises
    ------
    ValueError
        For shapes that do not fit, negative or infinite counts, or a recipe that cannot be run.
    """
    began = time.monotonic()
    data = checked_input(counts, exposure, measured, correction)
    if fit_steps < 0:
        raise ValueError(f"fit_steps: expected 0 or more, got {fit_steps}")
    behind = _background(background, background_variance, data)
    summed = sum_channels(data.counts, data.exposure)
    if recipe == "paper":
        return denoise_paper(
            data.counts, data.exposure, summed, fit_steps=fit_steps, seed=seed, device=device
        )
    if recipe != "best":
        raise ValueError(f'recipe: expected "best" or "paper", got {recipe!r}')
    denoiser = denoiser or load_denoiser(device)
    place = bounding_place(summed.exposure)
    if place is None:
        return _nothing_measured(summed, denoiser, began)
    field, seen = filled_field(summed, place)
    wide, why_wide = read_off_scatter(summed, data.whole)
    field = Field((field.counts / np.float32(wide)), field.exposure)

    light = field.exposure
    trial = choose_weights(denoiser, field.counts, light, np.random.default_rng([seed, 1]))
    tuned = None
    if fit_steps:
        tuned = fine_tune(
            denoiser,
            field.counts,
            light,
            trial.weights,
            steps=fit_steps,
            seconds=fit_seconds,
            start=start,
            seed=seed,
        )
    best = tuned.denoiser if tuned else denoiser
    prediction = denoise_counts(best, field.counts, light, trial.weights, _TTA)
    mean, flux = keep_flux(field.counts, prediction.rate * light, seen)
    restored = restore(field.counts, mean, seen)
    mean, again = keep_flux(field.counts, restored.mean, seen)

    table = CountTable.from_card(denoiser.weights.card)
    bins = table.bins(prediction.counts, prediction.spread, brightness(prediction.counts))
    tried = seen[:, *trial.window]
    factors = run_factors(
        trial.counts, trial.mean, heldout_sigma(trial, table), tried, float(table.between)
    )
    sigma = prediction.sigma * (flux * again * factors)[:, None, None] * table.scale[bins]
    sigma = np.hypot(sigma, restored.added_sigma / light)
    values = mean / light
    floor: float | None = 0.0
    if behind is not None:
        under, under_sigma = _smooth_background(best, behind, summed.used, place, field, seen)
        values, sigma, floor = values - under / wide, np.hypot(sigma, under_sigma / wide), None
    unit = wide * data.unit

    figures = _figures(field, trial, flux, mean, seen)
    familiar = Familiar.from_card(denoiser.weights.card)
    for k, seen_ in enumerate(figures):
        seen_["spots_put_back"] = float(restored.number[k])
        seen_["error_over_expected"] = float(factors[k])
        if familiar is not None:
            odd = features(field.counts[k], mean[k], prediction.spread[k], seen[k])
            seen_["out_of_distribution"] = float(familiar.score(odd[None])[0])
    labels = [f"element {k + 1}" for k in range(len(values))]
    notes = (*summed.notes, *data.notes, *_input_notes(data, why_wide))
    verdict = judge(labels, figures, notes)
    edges = near_unmeasured(summed.exposure > 0)[:, *place]
    doubt = doubt_map(field.counts, mean, light, seen, edges, labels, _wholly(figures))
    report: dict[str, Any] = {
        "method": "n2n",
        "recipe": "best",
        "quantity": "expected counts of the channel sum at reference exposure",
        "weights": best.weights.name,
        "weights_sha256": best.weights.sha256,
        "fit_steps": tuned.steps if tuned else 0,
        "seed": seed,
        "device": str(best.device),
        "doubt": doubt.report,
        "channels_used": [int(k) + 1 for k in np.flatnonzero(summed.used)],
        "figures": {
            "channels": int(summed.used.sum()),
            "gains": np.round(summed.gains, 4).tolist(),
            "gain_over_the_map": np.round(summed.unevenness, 3).tolist(),
            "variance_over_mean": round(wide, 4),
            "counting_unit": data.unit,
            "elements": [{k: round(v, 5) for k, v in seen_.items()} for seen_ in figures],
        },
        "verdict": verdict.level,
        "reasons": list(verdict.reasons),
    }
    if tuned:
        report["figures"]["fine_tuning"] = _account(tuned, fit_steps, denoiser, start)
        if keep is not None and tuned.steps:
            parent = start if start is not None and tuned.started_from == "start" else denoiser
            card = {key: parent.weights.card.get(key) for key in ("architecture", "calibration")}
            card |= {"parent_sha256": parent.weights.sha256}
            keep(tuned.tensors, card | {"figures": report["figures"]["fine_tuning"]})
    report["wall_time_s"] = round(time.monotonic() - began, 3)
    shape = summed.counts.shape
    known = summed.exposure > 0
    return Estimate(
        unfold(values * unit, place, shape, known),
        unfold(sigma * unit, place, shape, known),
        report,
        table.calibration(unfold_onto(np.zeros(shape, np.uint8), bins, place), floor),
        unfold_onto(np.zeros(shape, np.bool_), doubt.doubtful, place) & known,
    )


def _input_notes(data: MapInput, why_wide: str | None) -> tuple[str, ...]:
    if why_wide is not None:
        return (why_wide,)
    if data.whole:
        return ()
    return (
        "counts are not whole numbers: they were corrected or scaled before, and their noise is "
        "not exactly Poisson; give the factors as `correction`",
    )


def _wholly(figures: list[dict[str, float]]) -> list[str | None]:
    """Why an element is in doubt everywhere, if it is."""
    out: list[str | None] = []
    for seen in figures:
        reason = None
        if seen.get("out_of_distribution", 0.0) > UNLIKE:
            reason = "unlike all that the uncertainty was calibrated on"
        if seen["residual_correlation"] > 0.25 and seen["residual_z"] > 8:
            reason = (
                "neighbouring residuals correlate: the noise is not white, or structure is lost"
            )
        if seen["counts"] < 30:
            reason = "next to no counts"
        out.append(reason)
    return out


def _account(
    tuned: FineTuned, allowed: int, denoiser: Denoiser, start: Denoiser | None
) -> dict[str, Any]:
    """What the report says of a fine-tuning."""
    account: dict[str, Any] = {
        "steps_allowed": allowed,
        "steps_done": tuned.steps_done,
        "steps_kept": tuned.steps,
        "started_from": tuned.started_from,
        "heldout_nll_zero_shot": tuned.nll_shipped,
        "heldout_nll": tuned.nll,
    }
    if start is not None:
        account["heldout_nll_start"] = tuned.nll_start
        account["start_sha256"] = start.weights.sha256
    return account


def _background(
    background: ArrayLike | None, variance: ArrayLike | None, data: MapInput
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None] | None:
    values = checked_like("background", background, data)
    if values is None:
        return None
    return values, checked_like("background_variance", variance, data)


def _smooth_background(
    denoiser: Denoiser,
    behind: tuple[NDArray[np.float32], NDArray[np.float32] | None],
    used: NDArray[np.bool_],
    place: Place,
    field: Field,
    seen: NDArray[np.bool_],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Background rate of each element, denoised, and the standard deviation of its error."""
    values, variance = behind
    rate = values[used].sum(axis=0)[:, place[0], place[1]] / field.exposure
    if variance is None:
        noise = np.stack(
            [np.full(r.shape, noise_sigma(r) if min(r.shape) > 1 else 0.0) for r in rate]
        )
    else:
        total = variance[used].sum(axis=0)[:, place[0], place[1]]
        noise = np.sqrt(total) / field.exposure
        # Pixel by pixel the variance is as noisy as the background itself: take its local mean.
        noise = np.sqrt(np.maximum(_local_mean(noise**2), 0.0))
    smooth, spread = denoiser.denoise_with_spread(rate, noise, tta=_TTA)
    smooth = smooth.astype(np.float64)
    for element in range(len(rate)):
        inside = seen[element]
        total = float(smooth[element][inside].sum())
        if total > 0:
            smooth[element] *= float(rate[element][inside].sum()) / total
    return smooth, np.minimum(spread, noise).astype(np.float64)


def _local_mean(images: NDArray[np.floating], width: int = 7) -> NDArray[np.float64]:
    return np.stack([uniform_filter(image, width, mode="nearest") for image in images])


def _figures(
    field: Field,
    trial: HeldOut,
    flux: NDArray[np.float64],
    mean: NDArray[np.float64],
    seen: NDArray[np.bool_],
) -> list[dict[str, float]]:
    """What the verdict rests on, element by element."""
    tried = seen[:, *trial.window]
    foretold, _ = keep_flux(trial.counts, trial.mean, tried)
    out = []
    for element in range(len(mean)):
        inside = seen[element]
        out.append(
            {
                "counts": float(field.counts[element][inside].sum()),
                "flux_factor": float(flux[element]),
                "weight_of_other_elements": float(trial.weights[element, _JOINT].sum()),
                **residual_figures(field.counts[element], mean[element], inside),
                **heldout_figures(trial.counts[element], foretold[element], tried[element]),
            }
        )
    return out


def _nothing_measured(summed: ChannelSum, denoiser: Denoiser, began: float) -> Estimate:
    table = CountTable.from_card(denoiser.weights.card)
    verdict = Verdict("block", ("nothing was measured",))
    empty = np.full(summed.counts.shape, np.nan, dtype=np.float32)
    report = {
        "method": "n2n",
        "recipe": "best",
        "weights": denoiser.weights.name,
        "weights_sha256": denoiser.weights.sha256,
        "verdict": verdict.level,
        "reasons": list(verdict.reasons),
        "figures": {},
        "doubt": {"share": 0.0, "reasons": []},
        "wall_time_s": round(time.monotonic() - began, 3),
    }
    bins = np.zeros(empty.shape, dtype=np.uint8)
    nowhere = np.zeros(empty.shape, dtype=bool)
    return Estimate(empty, empty.copy(), report, table.calibration(bins, 0.0), nowhere)
