"""One job in, one processed result out: the only module that knows both the spool's arrays and the models."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from inscan.models import n2n, subspace, superres, xanes
from inscan.models.channels import ChannelSum, sum_channels
from inscan.models.estimate import Estimate
from inscan.service.fitting import Keeper, account, denoiser_of, given, offered
from inscan.service.messages import InferenceJob
from inscan.service.processed import Processed, ResultArray
from inscan.service.recipe_composite import composite_maps
from inscan.service.recipe_composite_stack import composite_stack
from inscan.service.recipe_energies import energies_report
from inscan.service.recipe_regions import binned, map_regions, stack_regions, wanted_of
from inscan.service.recipe_spectral import cube_arrays, denoise_cube, line_maps

LEVEL = 0.9
"""Coverage of the intervals that every result carries as `lower` and `upper`."""

FLUORESCENCE = "fluorescence"
"""Quantity of a stack of fluorescence maps: its values need no logarithm."""

Progress = Callable[[float], None]
Arrays = Mapping[str, np.ndarray]

_MAP = ("element", "row", "col")
_STACK = ("energy", "row", "col")
_PLANE = ("row", "col")


def process(job: InferenceJob, arrays: Arrays, progress: Progress) -> Processed:
    """Run the job's recipe on its arrays.

    Parameters
    ----------
    job : InferenceJob
        Recipe, parameters (keyword arguments of the method) and what the assembler knows of the run (`meta`).
    arrays : mapping of str to ndarray
        XRF: `counts` (channel, element, row, col), `exposure` (channel, row, col), `measured` (row, col), and
        `background` where it comes from spectra; `cube` (channel, row, col, bin) for spectral.
        TXM: `transmission` and `variance` (energy, row, col), `measured`; `flats` (flat, row, col) where there are
        several. Archived stacks may lack `variance`: the noise is then measured from the stack itself.
    progress : callable
        Called with the fraction done, 0 to 1; it also tells the broker that the job is alive.

    Returns
    -------
    Processed
        XRF: `values`, `sigma`, `lower`, `upper`, `raw` (element, row, col) in counts/s of the channel sum at
        the reference I0 (live time and I0 divided out, so that surveys and fine maps compare), `measured`;
        `doubtful` (element, row, col), true where a value is not to be trusted although there is one. Spectral: also
        `spectra`, `spectra_sigma`, `spectra_raw`, `spectra_doubtful` (row, col, bin), in counts.
        TXM: the same in transmission, or in counts/s for fluorescence, (energy, row, col), and the chemistry:
        `edge_energy`, `edge_energy_sigma`, `edge_energy_raw` (row, col) in eV, `fractions`, `fractions_sigma`,
        `fractions_raw` (reference, row, col).

    Raises
    ------
    ValueError
        When the recipe does not fit the arrays; the message names both.
    """
    recipes = {"n2n": _n2n, "superres": _superres, "subspace": _subspace, "spectral": _spectral}
    recipes["composite"] = _composite
    furthest = 0.0

    def onward(fraction: float) -> None:
        """Signs of life come from several places; what is shown never goes back."""
        nonlocal furthest
        furthest = max(furthest, fraction)
        progress(furthest)

    onward(0.0)
    return recipes[job.recipe](job, arrays, onward)


def _composite(job: InferenceJob, arrays: Arrays, progress: Progress) -> Processed:
    if job.meta.get("technique") == "txm":
        return composite_stack(job, arrays, progress, _subspace)
    return composite_maps(job, arrays, progress)


def _n2n(job: InferenceJob, arrays: Arrays, progress: Progress) -> Processed:
    _need(job, arrays, "counts", "exposure", "measured")
    names, measured = list(job.meta["elements"]), np.asarray(arrays["measured"], dtype=bool)
    summed = _summed(arrays)
    raw = _raw(summed, arrays)
    denoiser = denoiser_of(job, arrays, progress)
    start = offered(arrays, denoiser)
    keeper = Keeper(job, denoiser, *([start] if start else []))
    fitting = {"start": start, "keep": keeper} if job.parameters.get("fit_steps") else {}
    estimate = n2n.denoise(
        np.asarray(arrays["counts"]),
        exposure=np.asarray(arrays["exposure"]),
        background=arrays.get("background"),
        background_variance=arrays.get("background_variance"),
        measured=measured,
        denoiser=denoiser,
        **fitting,
        **_arguments(job),
    )
    progress(0.8)
    found = _regions(job, summed, arrays, estimate, names)
    progress(0.9)
    results = _with_interval(estimate, raw, _MAP, "counts/s", names)
    results.append(ResultArray("measured", _PLANE, "", measured))
    report = _report(job, estimate)
    report["reasons"] = _named(report.get("reasons", []), names)
    if (doubt := report.get("doubt")) is not None:
        report["doubt"] = doubt | {"reasons": _named(doubt["reasons"], names)}
    fitted = account(report, denoiser, start, keeper.weights)
    if fitted is not None:
        report["fine_tuned"] = fitted
    return Processed(results, report, found, keeper.weights)


def _superres(job: InferenceJob, arrays: Arrays, progress: Progress) -> Processed:
    _need(job, arrays, "counts", "exposure", "measured")
    names, measured = list(job.meta["elements"]), np.asarray(arrays["measured"], dtype=bool)
    summed = _summed(arrays)
    total = summed.counts
    parameters: dict[str, Any] = {"factor": 2} | _arguments(job)
    named = given(arrays, "named")
    if named is not None:
        parameters["weights"] = named
    estimate = superres.upscale(total, measured=measured, **parameters)
    progress(0.8)
    factor = estimate.values.shape[1] // total.shape[1]
    coarse = binned(estimate, factor)
    found = _regions(job, summed, arrays, coarse, names)
    fine = np.ones((1, factor, factor), dtype=np.float32)
    results = _with_interval(
        estimate,
        np.kron(np.where(measured, total, np.nan), fine),
        _MAP,
        "counts per survey pixel",
        names,
    )
    results.append(ResultArray("measured", _PLANE, "", np.kron(measured, fine[0]).astype(bool)))
    return Processed(results, _report(job, estimate) | {"factor": factor}, found)


def _subspace(job: InferenceJob, arrays: Arrays, progress: Progress) -> Processed:
    glows = job.meta.get("quantity") == FLUORESCENCE
    what, units = ("signal", "counts/s") if glows else ("transmission", "transmission")
    _need(job, arrays, what)
    energies = np.asarray(job.meta["energies_ev"], dtype=np.float64)
    stack, variance = np.asarray(arrays[what]), arrays.get("variance")
    measured = arrays.get("measured")
    recorded = np.isfinite(stack).any(axis=(1, 2))
    if measured is not None:
        flags = np.asarray(measured, dtype=bool)
        recorded &= flags.reshape(len(flags), -1).any(axis=1)
    if recorded.sum() < 2:
        raise ValueError(
            f"run {job.run_uid}: {int(recorded.sum())} energies with {what}; a subspace needs at least 2"
        )
    # A snapshot has only its first energies; an aborted scan never gets the others.
    part = np.ascontiguousarray(stack[recorded])
    part_variance = None if variance is None else np.ascontiguousarray(variance[recorded])
    part_measured = None if measured is None else np.asarray(measured, dtype=bool)[recorded]
    # Fluorescence has no empty beam in the field, by which drift would show; and maps of few, smooth pixels would be
    # registered by their chemistry. Motion is said; `register` among the parameters asks for more.
    gentle: dict[str, Any] = {"drift": "never", "register": "never"} if glows else {}
    estimate = subspace.denoise(
        part,
        variance=part_variance,
        measured=part_measured,
        energies=energies[recorded],
        flats=arrays.get("flats"),
        denoiser=denoiser_of(job, arrays, progress),
        **gentle | _arguments(job),
    )
    progress(0.8)
    labels = [f"{energy:.2f} eV" for energy in energies[recorded]]
    if glows and part_measured is not None:
        part = np.where(part_measured, part, np.nan)
    results = _with_interval(estimate, part, _STACK, units, labels)
    report = _report(job, estimate) | {"energies_ev": energies[recorded].tolist()}
    made, found = _chemistry(job, energies[recorded], estimate, part, part_variance, report)
    results += made
    report |= energies_report(job, energies[recorded], estimate, part, part_variance)
    progress(0.95)
    return Processed(results, report, found)


def _spectral(job: InferenceJob, arrays: Arrays, progress: Progress) -> Processed:
    _need(job, arrays, "counts", "exposure", "measured", "cube")
    names, measured = list(job.meta["elements"]), np.asarray(arrays["measured"], dtype=bool)
    summed = _summed(arrays)
    denoiser = denoiser_of(job, arrays, progress)
    counts, cube = denoise_cube(arrays, summed, denoiser, progress, **_arguments(job))
    progress(0.8)
    weights = np.asarray(job.meta["line_weights"], dtype=np.float64)
    lines = line_maps(counts, cube, weights, summed.exposure.mean(axis=0))
    found = _regions(job, summed, arrays, lines.estimate, names)
    results = _with_interval(lines.estimate, lines.raw, _MAP, "counts/s", names)
    results += cube_arrays(counts, cube)
    results.append(ResultArray("measured", _PLANE, "", measured))
    return Processed(results, _report(job, lines.estimate), found)


def _chemistry(
    job: InferenceJob,
    energies: np.ndarray,
    estimate: Estimate,
    raw: np.ndarray,
    raw_variance: np.ndarray | None,
    report: dict[str, Any],
) -> tuple[list[ResultArray], list[dict[str, Any]]]:
    """Edge energies, fractions of references and places unlike the rest, from what is linear in the amount of an
    element: optical density, which is taken only after denoising, or fluorescence as it is."""
    linear = xanes.optical_density
    if job.meta.get("quantity") == FLUORESCENCE:
        linear = xanes.fluorescence
    density, variance = linear(estimate.values, np.square(estimate.sigma))
    raw_density, raw_density_variance = linear(raw, raw_variance)
    results = []
    try:
        edge = xanes.edge_energy(density, energies, variance=variance)
        noisy = xanes.edge_energy(
            raw_density, energies, variance=raw_density_variance, min_jump=0.0
        )
    except ValueError as error:
        # Too few energies on one side of the edge: usual for a snapshot, worth a word for a final.
        report["chemistry"] = f"no edge map: {error}"
        return [], []
    where = np.isfinite(edge.energy)
    results += [
        ResultArray("edge_energy", _PLANE, "eV", edge.energy),
        ResultArray("edge_energy_sigma", _PLANE, "eV", edge.sigma),
        ResultArray("edge_energy_raw", _PLANE, "eV", np.where(where, noisy.energy, np.nan)),
    ]
    references = job.meta.get("references") or []
    if len(references) >= 2:
        spectra = np.stack(
            [np.interp(energies, one["energies_ev"], one["absorption"]) for one in references]
        )
        names = [str(one["name"]) for one in references]
        for suffix, stack, stack_variance in (
            ("", density, variance),
            ("_raw", raw_density, raw_density_variance),
        ):
            try:
                fit = xanes.fit_references(stack, energies, spectra, variance=stack_variance)
            except ValueError as error:
                report["chemistry"] = f"no fractions: {error}"
                break
            results.append(
                ResultArray(f"fractions{suffix}", ("reference", *_PLANE), "", fit.fractions, names)
            )
            if not suffix:
                results.append(
                    ResultArray("fractions_sigma", ("reference", *_PLANE), "", fit.sigma, names)
                )
    if (wanted := wanted_of(job)) is None:
        return results, []
    # What few pixels have in common is what denoising leaves out first; but frames that had to be registered lie on
    # top of each other only in the denoised stack.
    apart = bool(estimate.report["figures"].get("motion", {}).get("registered"))
    seen = density if apart else np.where(np.isfinite(raw_density), raw_density, density)
    at = edge if apart else noisy
    quantity = "signal" if job.meta.get("quantity") == FLUORESCENCE else "transmission"
    places = stack_regions(
        wanted,
        energies,
        seen,
        variance if apart else raw_density_variance,
        np.where(where, at.energy, np.nan),
        at.sigma,
        quantity,
        estimate.values,
        estimate.sigma,
    )
    return results, places


def _raw(summed: ChannelSum, arrays: Arrays) -> np.ndarray:
    """The raw map people know: counts/s of the channel sum at the reference I0, background removed.

    Returns
    -------
    ndarray of float32, shape (element, row, col)
        NaN where nothing was measured.
    """
    measured = np.asarray(arrays["measured"], dtype=bool)
    net = summed.counts
    if "background" in arrays:
        net = net - np.where(measured, arrays["background"], 0)[summed.used].sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        raw = np.where(summed.exposure > 0, net / summed.exposure, np.nan)
    return raw.astype(np.float32)


def _summed(arrays: Arrays) -> ChannelSum:
    measured = np.asarray(arrays["measured"], dtype=bool)
    counts = np.where(measured, arrays["counts"], 0).astype(np.float32)
    light = np.where(measured, arrays["exposure"], 0.0).astype(np.float32)[:, None]
    return sum_channels(counts, np.broadcast_to(light, counts.shape))


def _regions(
    job: InferenceJob,
    summed: ChannelSum,
    arrays: Arrays,
    estimate: Estimate,
    names: list[str],
) -> list[dict[str, Any]]:
    """Places worth measuring again, for first results whose profile wants them: from the counts, and from an estimate
    on the survey's grid."""
    if (wanted := wanted_of(job)) is None:
        return []
    measured = np.asarray(arrays["measured"], dtype=bool)
    known = {
        name: np.where(measured, arrays[name], 0)[summed.used].sum(axis=0)
        for name in ("background", "background_variance")
        if name in arrays
    }
    return map_regions(
        wanted,
        summed.counts,
        summed.exposure,
        measured,
        estimate.values,
        estimate.sigma,
        estimate.doubtful,
        names,
        **known,
    )


def _with_interval(
    estimate: Estimate, raw: np.ndarray, dims: tuple[str, ...], units: str, labels: list[str]
) -> list[ResultArray]:
    low, high = estimate.interval(LEVEL)
    results = [
        ResultArray("values", dims, units, estimate.values, labels),
        ResultArray("sigma", dims, units, estimate.sigma, labels),
        ResultArray("lower", dims, units, low, labels),
        ResultArray("upper", dims, units, high, labels),
        ResultArray("raw", dims, units, raw.astype(np.float32), labels),
    ]
    if estimate.doubtful is not None:
        results.append(ResultArray("doubtful", dims, "", estimate.doubtful, labels))
    return results


def _report(job: InferenceJob, estimate: Estimate) -> dict[str, Any]:
    report = dict(estimate.report)  # the worker makes JSON of it, as of every recipe's
    report["interval_level"] = LEVEL
    warnings = [str(text) for text in job.meta.get("warnings", [])]
    if warnings:
        report["assembly_warnings"] = warnings
    return report


def _named(texts: Sequence[str], names: Sequence[str]) -> list[str]:
    """Call elements by their names, which n2n does not know: it counts them from 1."""

    def name(match: re.Match[str]) -> str:
        number = int(match[1])
        return names[number - 1] if 1 <= number <= len(names) else match[0]

    return [re.sub(r"\belement (\d+)\b", name, str(text)) for text in texts]


def _arguments(job: InferenceJob) -> dict[str, Any]:
    """Keyword arguments of the method: the job's parameters but for the weights, which come as arrays."""
    return {name: value for name, value in job.parameters.items() if name != "weights"}


def _need(job: InferenceJob, arrays: Arrays, *names: str) -> None:
    missing = [name for name in names if name not in arrays]
    if missing:
        raise ValueError(
            f"recipe {job.recipe!r} of run {job.run_uid} needs {missing}; the assembled run has {sorted(arrays)}"
        )
