"""What a result follows from, as its derived run says it: request, weights, software, digests."""

import importlib.metadata
from collections.abc import Mapping
from typing import Any

from inscan.service.messages import InferenceJob, InferenceResult

__all__ = ["provenance_of", "versions"]

_PACKAGES = ("inscan", "numpy", "torch")


def provenance_of(job: InferenceJob, result: InferenceResult) -> dict[str, Any]:
    """Provenance of a result: what it can be made again from, and held against."""
    report = result.report
    return {
        "key": job.key,
        "method": report.get("method", job.recipe),
        "recipe": job.recipe,
        "parameters": job.parameters,
        "weights_sha256": report.get("weights_sha256"),
        "fine_tuned": report.get("fine_tuned"),
        "repeat_with": _repeat_with(job, report),
        "seed": report.get("seed", job.parameters.get("seed")),
        "device": report.get("device"),
        "versions": {**versions(), **report.get("versions", {})},
        "input_digest": job.input_digest,
        "result_digest": result.digest,
        "profile": job.meta.get("profile"),
        "timings": result.timings,
        **_composed_of(job),
    }


def _composed_of(job: InferenceJob) -> dict[str, Any]:
    """All runs of a composite, with the digests of what each gave; nothing for other results."""
    layers = job.meta.get("layers")
    if job.recipe != "composite" or not layers:
        return {}
    return {
        "raw_uids": job.meta.get("raw_uids"),
        "input_digests": {str(one["uid"]): one.get("input_digest") for one in layers},
    }


def _repeat_with(job: InferenceJob, report: Mapping[str, Any]) -> dict[str, Any] | None:
    """Parameters that give the same result again where the request granted time: the steps that were done in it."""
    fitted = report.get("fine_tuned")
    if fitted is None:
        return None
    asked = {name: value for name, value in job.parameters.items() if name != "fit_seconds"}
    return asked | {"fit_steps": fitted["steps_done"]}


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    # From the installed packages: importing torch here would cost the service seconds and memory it has no use for.
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
