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
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import distance_transform_edt, uniform_filter

from inscan.models.channels import ChannelSum, sum_channels
from inscan.models.counting import ANSWERS, HeldOut, choose_weights, denoise_counts
from inscan.models.estimate import Estimate
from inscan.models.finetune import FineTuned, fine_tune
from inscan.models.infer import Denoiser, load_denoiser
from inscan.models.n2n_paper import denoise_paper
from inscan.models.noise import noise_sigma
from inscan.models.trust import CountTable, Verdict, heldout_figures, judge, residual_figures

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
        Raw counts, 0 or more. NaN marks what was not measured. Counts corrected for dead time or
        normalised by I0 are no longer Poisson: give raw counts and put the correction into
        `exposure`.
    exposure : array of float, shape (channel, row, col) or what broadcasts to it, optional
        Live time × I0 over their reference. Enters the likelihood: a row with half the beam is
        a row with half the counts of the same sample. 0 or NaN marks what was not measured.
    background : array of float, shape of `counts`, optional
        Estimated background counts under each window; taken from the result.
    background_variance : array of float, shape of `counts`, optional
        Its variance; without it, taken from the scatter of `background` between pixels.
    measured : array of bool, shape (row, col), optional
        False where the scan has not been. Nothing there is used, and nothing is claimed there.
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
    data = _checked(counts, exposure, measured)
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
    place = _place(summed.exposure)
    if place is None:
        return _nothing_measured(summed, denoiser, began)
    field, seen = _field(summed, place)

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
    mean, flux = _keep_flux(field.counts, prediction.rate * light, seen)

    table = CountTable.from_card(denoiser.weights.card)
    bins = table.bins(prediction.counts, prediction.spread)
    sigma = prediction.sigma * flux[:, None, None] * table.scale[bins]
    values = mean / light
    floor: float | None = 0.0
    if behind is not None:
        under, under_sigma = _smooth_background(best, behind, summed.used, place, field, seen)
        values, sigma, floor = values - under, np.hypot(sigma, under_sigma), None

    figures = _figures(field, trial, flux, mean, seen)
    labels = [f"element {k + 1}" for k in range(len(values))]
    verdict = judge(labels, figures, summed.notes + _input_notes(data))
    report: dict[str, Any] = {
        "method": "n2n",
        "recipe": "best",
        "quantity": "expected counts of the channel sum at reference exposure",
        "weights": best.weights.name,
        "weights_sha256": best.weights.sha256,
        "fit_steps": tuned.steps if tuned else 0,
        "seed": seed,
        "device": str(best.device),
        "channels_used": [int(k) + 1 for k in np.flatnonzero(summed.used)],
        "figures": {
            "channels": int(summed.used.sum()),
            "gains": np.round(summed.gains, 4).tolist(),
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
        _unfold(values, place, shape, known),
        _unfold(sigma, place, shape, known),
        report,
        table.calibration(_unfold_bins(bins, place, shape), floor),
    )


@dataclass(frozen=True)
class _Data:
    counts: NDArray[np.float32]  # (channel, element, row, col), 0 where not measured
    exposure: NDArray[np.float32]  # same shape, 0 where not measured
    whole: bool  # all counts are integers


def _checked(counts: ArrayLike, exposure: ArrayLike | None, measured: ArrayLike | None) -> _Data:
    y = np.array(counts, dtype=np.float32)
    if y.ndim != 4 or y.size == 0:
        raise ValueError(
            f"counts: expected shape (channel, element, row, col), none of them 0, got {y.shape}"
        )
    if np.isinf(y).any():
        raise ValueError("counts: infinite values; mark what was not measured with NaN")
    if np.nanmin(y, initial=0.0) < 0:
        raise ValueError(
            f"counts: negative values down to {np.nanmin(y):g}; give raw counts, with any "
            "background apart"
        )
    channels, elements, rows, cols = y.shape
    light = np.ones((channels, rows, cols), dtype=np.float32)
    if exposure is not None:
        given = np.asarray(exposure, dtype=np.float32)
        try:
            light = np.array(np.broadcast_to(given, light.shape))
        except ValueError:
            raise ValueError(
                f"exposure: expected shape (channel, row, col) = {light.shape}, got {given.shape}"
            ) from None
        light[~np.isfinite(light)] = 0.0
        if light.min() < 0:
            raise ValueError(f"exposure: negative values down to {light.min():g}")
    if measured is not None:
        mask = np.asarray(measured, dtype=bool)
        if mask.shape != (rows, cols):
            raise ValueError(f"measured: expected shape {(rows, cols)}, got {mask.shape}")
        light = light * mask
    missing = np.isnan(y)
    full = np.broadcast_to(light[:, None], y.shape)
    if missing.any():
        full = np.where(missing, np.float32(0), full)
    y[full <= 0] = 0.0
    return _Data(y, full, bool(np.array_equal(y, np.rint(y))))


def _input_notes(data: _Data) -> tuple[str, ...]:
    if data.whole:
        return ()
    return (
        "counts are not whole numbers: they were corrected or scaled before, and their noise is "
        "not exactly Poisson",
    )


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


Place = tuple[slice, slice]


def _place(exposure: NDArray[np.float32]) -> Place | None:
    """The smallest rectangle that holds all that was measured."""
    known = (exposure > 0).any(axis=0)
    rows, cols = np.unique(np.nonzero(known)[0]), np.unique(np.nonzero(known)[1])
    if rows.size == 0:
        return None
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(cols[0]), int(cols[-1]) + 1)


@dataclass(frozen=True)
class _Field:
    counts: NDArray[np.float32]  # (element, row, col), holes filled from the nearest pixel
    exposure: NDArray[np.float32]


def _field(summed: ChannelSum, place: Place) -> tuple[_Field, NDArray[np.bool_]]:
    """Cut to the measured rectangle; the network needs something in holes, so take the nearest."""
    counts = summed.counts[:, place[0], place[1]].copy()
    exposure = summed.exposure[:, place[0], place[1]].copy()
    seen = exposure > 0
    for element in range(len(counts)):
        hole = ~seen[element]
        if hole.all():
            exposure[element] = 1.0
        elif hole.any():
            nearest = distance_transform_edt(hole, return_distances=False, return_indices=True)
            at = tuple(np.asarray(nearest))
            counts[element], exposure[element] = counts[element][at], exposure[element][at]
    return _Field(counts, exposure), seen


def _keep_flux(
    counts: NDArray[np.float32], mean: NDArray[np.float64], seen: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scale each element so that its total is the one measured: the best estimate of a total."""
    observed = np.where(seen, counts, 0).sum(axis=(1, 2), dtype=np.float64)
    predicted = np.where(seen, mean, 0).sum(axis=(1, 2), dtype=np.float64)
    factor = np.where(predicted > 0, observed / np.maximum(predicted, 1e-12), 1.0)
    return mean * factor[:, None, None], factor


def _background(
    background: ArrayLike | None, variance: ArrayLike | None, data: _Data
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None] | None:
    if background is None:
        return None
    arrays = []
    for name, given in (("background", background), ("background_variance", variance)):
        if given is None:
            arrays.append(None)
            continue
        array = np.asarray(given, dtype=np.float32)
        if array.shape != data.counts.shape:
            raise ValueError(f"{name}: expected shape {data.counts.shape}, got {array.shape}")
        arrays.append(np.where((data.exposure > 0) & np.isfinite(array), array, np.float32(0)))
    return arrays[0], arrays[1]


def _smooth_background(
    denoiser: Denoiser,
    behind: tuple[NDArray[np.float32], NDArray[np.float32] | None],
    used: NDArray[np.bool_],
    place: Place,
    field: _Field,
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
    field: _Field,
    trial: HeldOut,
    flux: NDArray[np.float64],
    mean: NDArray[np.float64],
    seen: NDArray[np.bool_],
) -> list[dict[str, float]]:
    """What the verdict rests on, element by element."""
    tried = seen[:, *trial.window]
    foretold, _ = _keep_flux(trial.counts, trial.mean, tried)
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


def _unfold(
    values: NDArray[np.floating], place: Place, shape: tuple[int, ...], known: NDArray[np.bool_]
) -> NDArray[np.float32]:
    out = np.full(shape, np.nan, dtype=np.float32)
    out[:, place[0], place[1]] = values
    out[~known] = np.nan
    return out


def _unfold_bins(
    bins: NDArray[np.uint8], place: Place, shape: tuple[int, ...]
) -> NDArray[np.uint8]:
    out = np.zeros(shape, dtype=np.uint8)
    out[:, place[0], place[1]] = bins
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
        "wall_time_s": round(time.monotonic() - began, 3),
    }
    bins = np.zeros(empty.shape, dtype=np.uint8)
    return Estimate(empty, empty.copy(), report, table.calibration(bins, 0.0))
