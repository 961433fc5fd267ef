"""Recipe `composite` of energy stacks: a survey and the energies that were added to it become one stack.

The arrays of the job are those of its runs, each under the number of its layer, as in
`inscan.service.recipe_composite`. The union is denoised as any stack is: frames that moved are put back and a beam that
drifted is divided out by the method itself, which sees all of them.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inscan.service.messages import InferenceJob
from inscan.service.missing_layer import missing_layer
from inscan.service.processed import Processed

__all__ = ["composite_stack"]

Arrays = Mapping[str, np.ndarray]
Progress = Callable[[float], None]
Recipe = Callable[[InferenceJob, Arrays, Progress], Processed]

_SAME_EV = 0.05
"""Energies that are nearer than a monochromator comes back to are one: their frames are averaged."""
_NOT_OF_STACKS = ("max_shift",)
_WORSE = 1.5
"""Mean square of a layer's residuals, in that of the survey's, above which it does not agree with the others."""
_DISAGREES = "what the estimate leaves of its frames is {:.2g} times that of the survey's: sample or beam have changed"


def composite_stack(
    job: InferenceJob, arrays: Arrays, progress: Progress, subspace: Recipe
) -> Processed:
    """Put the stacks of a job's runs together and denoise them as one.

    Parameters
    ----------
    job : InferenceJob
        `meta["layers"]`: for each run `uid`, `region` and `energies_ev`, the survey first; `meta["missing"]`: runs that
        gave no stack.
    arrays : mapping of str to ndarray
        `N.transmission` (energy, row, col), or `N.signal`; `N.measured`, `N.variance` where there are any.
    subspace : callable
        The recipe for one stack.

    Returns
    -------
    Processed
        That of the stack of all energies. Its report has `composite`: the `layers` and a `text`. A layer that repeats
        an energy of another `agrees` unless their frames differ by more than noise; others cannot be compared, because
        a few spectra explain a changed sample as well as chemistry.

    Raises
    ------
    ValueError
        When the survey is no stack.
    """
    described = [dict(one) for one in job.meta["layers"]]
    what = "signal" if "0.signal" in arrays else "transmission"
    missing = [dict(one) for one in job.meta.get("missing") or ()]
    if f"0.{what}" not in arrays:
        raise ValueError(f"run {described[0]['uid'][:8]}: it is no energy stack")
    size = arrays[f"0.{what}"].shape[1:]
    used: list[int] = []
    for number, one in enumerate(described):
        found = arrays.get(f"{number}.{what}")
        if found is not None and found.shape[1:] == size:
            used.append(number)
        else:
            reason = (
                f"its images are {None if found is None else found.shape[1:]}, the survey's {size}"
            )
            missing.append({"uid": one["uid"], "region": one.get("region"), "reason": reason})
    energies, merged, differing = _merged(used, described, arrays, what)
    whole = job.model_copy(
        update={
            "meta": {
                **job.meta,
                "energies_ev": energies.tolist(),
                "shape": [len(energies), *(int(n) for n in size)],
            },
            "parameters": {k: v for k, v in job.parameters.items() if k not in _NOT_OF_STACKS},
        }
    )
    processed = subspace(whole, merged, progress)
    report = dict(processed.report)
    layers = [_layer(described[number], differing.get(number)) for number in used]
    layers += [missing_layer(one) for one in missing]
    reasons = [
        f"{one['region'] or one['uid'][:8]}: {one['reason']}" for one in layers if not one["agrees"]
    ]
    added = len(energies) - len(described[0]["energies_ev"])
    text = f"One stack of {len(energies)} energies, {added} of them added to the survey."
    text = " ".join([text, *(f"{reason}." for reason in reasons)])
    report["composite"] = {"layers": layers, "sigma": {}, "text": text}
    report["reasons"] = [*report.get("reasons", ()), *reasons]
    if reasons and report.get("verdict") == "pass":
        report["verdict"] = "warn"
    return Processed(processed.arrays, report, processed.regions)


def _merged(
    used: list[int], described: list[dict[str, Any]], arrays: Arrays, what: str
) -> tuple[NDArray[np.float64], dict[str, np.ndarray], dict[int, float]]:
    """Rising energies, the stack's arrays, and by how much layers differ from earlier ones at the same energies.

    Frames at one energy are averaged with the weight of their variance, pixel by pixel.
    """
    frames: list[tuple[float, int, int]] = []
    for number in used:
        for row, energy in enumerate(described[number]["energies_ev"]):
            if _measured(arrays, number, what)[row].any():
                frames.append((float(energy), number, row))
    frames.sort()
    groups: list[list[tuple[float, int, int]]] = []
    for frame in frames:
        if groups and frame[0] - groups[-1][0][0] <= _SAME_EV:
            groups[-1].append(frame)
        else:
            groups.append([frame])
    known = all(f"{number}.variance" in arrays for number in used)
    shape = (len(groups), *arrays[f"0.{what}"].shape[1:])
    values, variance = np.zeros(shape, np.float32), np.ones(shape, np.float32)
    measured = np.zeros(shape, bool)
    differing: dict[int, list[float]] = {}
    for k, group in enumerate(groups):
        weight, total = np.zeros(shape[1:]), np.zeros(shape[1:])
        for _, number, row in group:
            there = _measured(arrays, number, what)[row]
            image = np.asarray(arrays[f"{number}.{what}"][row], np.float64)
            own = np.asarray(arrays[f"{number}.variance"][row], np.float64) if known else 1.0
            share = np.where(
                there & np.isfinite(image) & (own > 0), 1.0 / np.maximum(own, 1e-30), 0
            )
            both = (weight > 0) & (share > 0)
            if known and both.any():
                before = total[both] / weight[both]
                noise = 1 / weight[both] + 1 / share[both]
                away = float(np.mean(np.square(image[both] - before) / noise))
                differing.setdefault(number, []).append(away)
            weight += share
            total += np.where(share > 0, share * np.nan_to_num(image), 0)
        measured[k] = weight > 0
        values[k] = np.where(measured[k], total / np.where(measured[k], weight, 1.0), 0)
        variance[k] = np.where(measured[k], 1.0 / np.where(measured[k], weight, 1.0), 1.0)
    stack: dict[str, np.ndarray] = {what: values, "measured": measured}
    if known:
        stack["variance"] = variance
    energies = np.array([np.mean([one[0] for one in group]) for group in groups], np.float64)
    return energies, stack, {number: max(several) for number, several in differing.items()}


def _measured(arrays: Arrays, number: int, what: str) -> NDArray[np.bool_]:
    """Of one layer, (energy, row, col)."""
    shape = arrays[f"{number}.{what}"].shape
    flags = arrays.get(f"{number}.measured")
    if flags is None:
        return np.isfinite(arrays[f"{number}.{what}"])
    flags = np.asarray(flags, bool)
    if flags.ndim == 1:
        flags = flags[:, None, None]
    return np.broadcast_to(flags, shape)


def _layer(described: Mapping[str, Any], differing: float | None) -> dict[str, Any]:
    agrees = differing is None or not differing > _WORSE
    return {
        "uid": str(described["uid"]),
        "region": str(described.get("region") or ""),
        "found": True,
        # The method lays all frames onto each other; the field is the survey's.
        "shift": [0.0, 0.0],
        "shift_error": [None, None],
        "agrees": agrees,
        "used": True,
        "reason": "" if agrees else _DISAGREES.format(differing),
    }
