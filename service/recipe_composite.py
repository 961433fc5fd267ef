"""Recipe `composite`: a survey and its fine maps in one estimate, from the arrays of their runs.

The arrays of a composite's job are those of its runs, each under the number of its layer: `0.counts` is the survey's,
`1.counts` the first fine run's. What they are stands in `meta["layers"]`, in the same order.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inscan.callbacks.geometry import ScanGeometry
from inscan.models import n2n
from inscan.models.channels import sum_channels
from inscan.models.composite import Channels, Composite, Denoised, Layer, Summed, compose
from inscan.models.estimate import Estimate
from inscan.models.infer import Denoiser
from inscan.models.precision_regions import present_lines
from inscan.service.fitting import denoiser_of
from inscan.service.messages import InferenceJob
from inscan.service.missing_layer import missing_layer
from inscan.service.processed import Processed, ResultArray
from inscan.service.recipe_regions import map_regions
from inscan.service.rescan_observed import note_observed

__all__ = ["composite_maps"]

LEVEL = 0.9
_MAP = ("element", "row", "col")
_PLANE = ("row", "col")
_VERDICTS = ("pass", "warn", "block")
_NOT_DENOISED = ("max_shift", "weights")
Arrays = Mapping[str, np.ndarray]
Progress = Callable[[float], None]


def composite_maps(job: InferenceJob, arrays: Arrays, progress: Progress) -> Processed:
    """Put the maps of a job's runs together.

    Parameters
    ----------
    job : InferenceJob
        `meta["layers"]`: for each run `uid`, `region`, `start_time`, `elements`, `channels`, `geometry`, `dwell` and
        `i0_reference`, the survey first; `meta["missing"]`: runs that gave no map, with a `reason`. Parameters:
        `max_shift` in survey pixels; the others are those of `n2n.denoise`.
    arrays : mapping of str to ndarray
        `N.counts`, `N.exposure`, `N.measured`, and `N.background`, `N.background_variance` where there are any.

    Returns
    -------
    Processed
        `values`, `sigma`, `lower`, `upper`, `raw` (element, row, col) in counts/s on the finest grid, `measured`,
        `source` (row, col), `disagrees`, `doubtful` (element, row, col). Its report has `composite`: the `layers`,
        `sigma` of each line and a `text`.

    Raises
    ------
    ValueError
        When the survey is no map, or nothing is common to its runs.
    """
    survey_meta, *fine_meta = job.meta["layers"]
    survey = _Opened(0, survey_meta, arrays)
    missing = [dict(one) for one in job.meta.get("missing") or ()]
    fine = []
    for number, one in enumerate(fine_meta, 1):
        try:
            fine.append(_fit(_Opened(number, one, arrays), survey))
        except ValueError as error:
            # One scan that is out of order must not keep the others from the plan that waits.
            gone = {"uid": str(one["uid"]), "region": str(one.get("region") or "")}
            missing.append({**gone, "reason": str(error)})
    if fine_meta and not fine:
        raise ValueError("; ".join(f"run {one['uid'][:8]}: {one['reason']}" for one in missing))
    names, left_out = _common_elements([survey.meta, *(one.meta for one in fine)])
    progress(0.05)
    channels = _common_channels([survey, *fine])
    given = {key: value for key, value in job.parameters.items() if key not in _NOT_DENOISED}
    denoiser = denoiser_of(job, arrays, progress)
    while True:
        work = _Work(denoiser, given)
        made = compose(
            survey.layer(names, channels, survey),
            [one.layer(names, channels, survey) for one in fine],
            max_shift=float(job.parameters.get("max_shift", 2.0)),
            denoise=work,
            check=lambda: progress(0.05),
        )
        rest = [number for number in channels if number not in work.left_out(channels)]
        if len(rest) == len(channels) or not rest:
            break
        # Sums of different channels do not compare: what one part cannot use, none does.
        channels = rest
    progress(0.9)
    processed = _processed(job, made, work, names, missing, left_out, channels)
    whole, *others = (one.layer(names, channels, survey) for one in (survey, *fine))
    scale = float((job.meta.get("rescan") or {}).get("scale") or 1.5)
    note_observed(processed.report["composite"]["layers"], whole, others, made.coarse, scale=scale)
    return processed


class _Opened:
    """One run's arrays."""

    def __init__(self, number: int, meta: Mapping[str, Any], arrays: Arrays) -> None:
        prefix = f"{number}."
        self.arrays = {
            name.removeprefix(prefix): np.asarray(values)
            for name, values in arrays.items()
            if name.startswith(prefix)
        }
        self.meta = meta
        self.uid, self.region = str(meta["uid"]), str(meta.get("region") or "")
        missing = {"counts", "exposure", "measured"} - self.arrays.keys()
        if missing:
            raise ValueError(f"run {self.uid[:8]}: a composite needs {sorted(missing)} of it")
        if not meta.get("geometry"):
            raise ValueError(f"run {self.uid[:8]} has no raster: it is no map")
        self.geometry = ScanGeometry.from_dict(meta["geometry"])
        if not self.geometry.planned:
            raise ValueError(f"run {self.uid[:8]}: where its pixels lie is not known")
        self.measured = np.asarray(self.arrays["measured"], dtype=bool)
        self.numbers = [int(one) for one in meta["channels"]]

    def healthy(self) -> set[int]:
        """Detector channels that fit the others."""
        counts = np.where(self.measured, self.arrays["counts"], 0).astype(np.float32)
        light = np.where(self.measured, self.arrays["exposure"], 0).astype(np.float32)
        summed = sum_channels(counts, np.broadcast_to(light[:, None], counts.shape))
        return {self.numbers[k] for k in np.flatnonzero(summed.used)}

    def layer(self, names: Sequence[str], channels: Sequence[int], survey: "_Opened") -> Layer:
        """The run as a layer of these elements and channels."""
        which = [self.numbers.index(number) for number in channels]
        rows = [self.meta["elements"].index(name) for name in names]

        def cut(name: str) -> NDArray[np.float32] | None:
            values = self.arrays.get(name)
            if values is None:
                return None
            some = np.asarray(values[which], dtype=np.float32)[:, rows]
            return np.where(self.measured, np.nan_to_num(some), np.float32(0))

        light = np.where(self.measured, self.arrays["exposure"][which], 0).astype(np.float32)
        # A pixel that one of the channels missed has another sum than its neighbours.
        whole = self.measured & (light > 0).all(axis=0)
        counts, behind = cut("counts"), cut("background")
        assert counts is not None
        centres = self.geometry.positions()
        return Layer(
            self.uid,
            tuple(names),
            counts.sum(axis=0, dtype=np.float64),
            light.mean(axis=0, dtype=np.float64),
            np.ascontiguousarray(centres[0, :, 0]),
            np.ascontiguousarray(centres[1, 0]),
            whole,
            None if behind is None else behind.sum(axis=0, dtype=np.float64),
            Channels(counts, light, behind, cut("background_variance")),
            float(self.meta.get("start_time") or 0.0),
            self.region,
            self._relative(survey),
        )

    def _relative(self, survey: "_Opened") -> tuple[float, ...]:
        """Beam of this run in units of the survey's, as the monitor tells it. Whether it counts over the dwell or
        gives a rate no document says; the counts of the sample do."""
        own, other = self.meta.get("i0_reference"), survey.meta.get("i0_reference")
        if self is survey or not own or not other:
            return (1.0,)
        rate = float(own) / float(other)
        dwell, before = self.meta.get("dwell"), survey.meta.get("dwell")
        if not dwell or not before or dwell == before:
            return (rate,)
        return (rate, rate * float(before) / float(dwell))


def _fit(one: _Opened, survey: _Opened) -> _Opened:
    """A fine run that can lie on the survey; ValueError with the reason where it cannot."""
    if _motors(one.geometry) != _motors(survey.geometry):
        raise ValueError(
            f"its motors are {_motors(one.geometry)}, the survey's are {_motors(survey.geometry)}"
        )
    for what in ("elements", "channels"):
        if not set(one.meta[what]) & set(survey.meta[what]):
            raise ValueError(f"its {what} are {one.meta[what]}, the survey's {survey.meta[what]}")
    one.layer(one.meta["elements"], one.numbers, survey)
    return one


class _Work:
    """The denoiser that `compose` calls, and what it said."""

    def __init__(self, denoiser: Denoiser, parameters: Mapping[str, Any]) -> None:
        self._denoiser = denoiser
        self._parameters = dict(parameters)
        self.reports: list[Mapping[str, Any]] = []

    def __call__(self, summed: Summed) -> Denoised:
        light = summed.exposure.max(axis=1)
        factor = np.ones((), dtype=np.float32)
        correction = None
        if not (summed.exposure == light[:, None]).all():
            # An element that was not added up saw less light than the others: as if it had been corrected for that.
            factor = np.where(
                summed.exposure > 0,
                light[:, None] / np.where(summed.exposure > 0, summed.exposure, 1.0),
                1.0,
            ).astype(np.float32)
            correction = factor
        counts = summed.counts * factor
        counts = np.where((summed.exposure <= 0) & (light[:, None] > 0), np.nan, counts)
        behind, unsure = summed.background, summed.background_variance
        estimate = n2n.denoise(
            counts,
            exposure=light,
            background=None if behind is None else behind * factor,
            background_variance=None if unsure is None else unsure * factor**2,
            measured=(light > 0).all(axis=0),
            correction=correction,
            denoiser=self._denoiser,
            **self._parameters,
        )
        self.reports.append(estimate.report)
        return _denoised(estimate)

    def left_out(self, channels: Sequence[int]) -> set[int]:
        """Channels that some part could not use."""
        unused: set[int] = set()
        for report in self.reports:
            used = {
                channels[k - 1] for k in report.get("channels_used", range(1, len(channels) + 1))
            }
            unused |= set(channels) - used
        return unused


def _denoised(estimate: Estimate) -> Denoised:
    low, high = estimate.interval(LEVEL)
    doubtful = estimate.doubtful
    if doubtful is None:
        doubtful = np.zeros(estimate.values.shape, dtype=bool)
    return Denoised(estimate.values, estimate.sigma, low, high, doubtful)


def _processed(
    job: InferenceJob,
    made: Composite,
    work: _Work,
    names: Sequence[str],
    missing: Sequence[Mapping[str, Any]],
    left_out: Sequence[str],
    channels: Sequence[int],
) -> Processed:
    labels = list(names)
    arrays = [
        ResultArray(name, _MAP, "counts/s", values, labels)
        for name, values in (
            ("values", made.values),
            ("sigma", made.sigma),
            ("lower", made.low),
            ("upper", made.high),
            ("raw", made.raw),
        )
    ]
    arrays += [
        ResultArray("doubtful", _MAP, "", made.doubtful, labels),
        ResultArray("disagrees", _MAP, "", made.disagrees, labels),
        ResultArray("measured", _PLANE, "", made.source > 0),
        ResultArray("source", _PLANE, "", made.source),
    ]
    layers = [*made.layers, *(missing_layer(one) for one in missing)]
    wanted = job.meta.get("rescan") or {}
    sigma, found = _precision(made, names, wanted, job)
    told = [f"run {one['uid'][:8]} is not in it: {one['reason']}" for one in missing]
    if left_out:
        told.append(f"{', '.join(left_out)} are not in all of its runs and left out")
    text = " ".join([made.text, *(f"{one}." for one in told)])
    reports = work.reports
    verdict = max((str(one["verdict"]) for one in reports), key=_VERDICTS.index)
    reasons = list(
        dict.fromkeys(_named(reason, names) for one in reports for reason in one.get("reasons", ()))
    )
    reasons += [
        f"{one['region'] or one['uid'][:8]}: {one['reason']}" for one in layers if not one["agrees"]
    ]
    if verdict == "pass" and not all(one["agrees"] for one in layers):
        verdict = "warn"
    report = {
        "method": "composite",
        "recipe": "n2n on counts added up",
        "quantity": "count rate of the channel sum at the survey's reference I0",
        "weights": reports[0].get("weights"),
        "weights_sha256": reports[0].get("weights_sha256"),
        "seed": reports[0].get("seed"),
        "device": reports[0].get("device"),
        "channels_used": list(channels),
        "figures": {"parts": list(made.parts), "estimates": len(reports)},
        "verdict": verdict,
        "reasons": reasons,
        "composite": {"layers": layers, "sigma": sigma, "text": text},
        "interval_level": LEVEL,
    }
    return Processed(arrays, report, found)


def _precision(
    made: Composite, names: Sequence[str], wanted: Mapping[str, Any], job: InferenceJob
) -> tuple[dict[str, dict[str, float]], list[dict[str, Any]]]:
    """How precise each line is where it is present, and the places where that is not what was asked for."""
    coarse = made.coarse
    measured = np.asarray(np.isfinite(coarse.values).all(axis=0))
    behind = coarse.background if coarse.background.any() else None
    there = present_lines(
        coarse.values,
        coarse.sigma,
        counts=coarse.counts,
        exposure=coarse.exposure,
        background=behind,
        measured=measured,
    )
    asked = {str(k): float(v) for k, v in (wanted.get("precision") or {}).items()}
    sigma = {}
    for k, name in enumerate(names):
        if not there[k].any():
            continue
        relative = coarse.sigma[k][there[k]] / coarse.values[k][there[k]]
        above = float(np.mean(relative > asked[name])) if name in asked else 0.0
        sigma[name] = {"median": float(np.median(relative)), "share_above": above}
    if "precision" not in (wanted.get("targets") or ()) or not asked or job.kind != "final":
        return sigma, []
    found = map_regions(
        {**wanted, "targets": ("precision",)},
        coarse.counts,
        coarse.exposure,
        measured,
        coarse.values,
        coarse.sigma,
        None,
        names,
        background=behind,
    )
    return sigma, found


def _common_elements(layers: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    names = [str(name) for name in layers[0]["elements"]]
    common = [name for name in names if all(name in one["elements"] for one in layers)]
    if not common:
        raise ValueError(f"no element is in all of {[one['elements'] for one in layers]}")
    return common, [name for name in names if name not in common]


def _common_channels(opened: Sequence[_Opened]) -> list[int]:
    good = [one.healthy() for one in opened]
    common = [number for number in opened[0].numbers if all(number in one for one in good)]
    if not common:
        raise ValueError(f"no detector channel is good in all of {[sorted(one) for one in good]}")
    return common


def _motors(geometry: ScanGeometry) -> tuple[str, str, str, str]:
    return geometry.slow_motor, geometry.slow_units, geometry.fast_motor, geometry.fast_units


def _named(text: Any, names: Sequence[str]) -> str:
    """Call elements by their names, which n2n does not know: it counts them from 1."""

    def name(match: re.Match[str]) -> str:
        number = int(match[1])
        return names[number - 1] if 1 <= number <= len(names) else match[0]

    return re.sub(r"\belement (\d+)\b", name, str(text))
