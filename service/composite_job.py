"""The job of a composite, and what stands for its start document: the same from a running service and offline."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inscan.callbacks.link import host_id
from inscan.callbacks.profile import BeamlineProfile
from inscan.service.derived import ACCESS_KEYS
from inscan.service.messages import ArraySpec, InferenceJob, job_key
from inscan.service.spool import SpoolError

__all__ = ["COMPOSITE", "composite_job", "composite_start", "linked"]

COMPOSITE = "composite"
"""Recipe, and stream, of composites: `inscan show RUN --stream composite`."""
_COPIED = ("beamline_id", "sample", "group", "owner", "replay_of", "scan_id", *ACCESS_KEYS)
_OF_MAPS = ("counts", "exposure", "measured", "background", "background_variance")
_OF_STACKS = ("transmission", "signal", "variance", "measured")
_WEIGHTS = ("named_weights", "named_card")
_OF_LAYER = (
    "elements",
    "channels",
    "geometry",
    "dwell",
    "i0_reference",
    "energies_ev",
    "quantity",
    "start_time",
    "scan_id",
    "complete",
)


def composite_start(
    uid: str, survey: Mapping[str, Any], fine: Sequence[str], proposal: str
) -> dict[str, Any]:
    """What stands for a composite's start document: who may see the survey may see it, and finds it by its number."""
    copied = {name: survey[name] for name in _COPIED if name in survey}
    return {
        **copied,
        "uid": uid,
        "purpose": COMPOSITE,
        "parent_uid": survey["uid"],
        "raw_uids": [survey["uid"], *fine],
        # `proposal` is the beamtime's in many a start document, and decides who may see a run.
        **({"rescan_proposal": proposal} if proposal else {}),
    }


def composite_job(
    uid: str,
    survey: InferenceJob,
    fine: Sequence[InferenceJob],
    missing: Sequence[Mapping[str, Any]],
    profile: BeamlineProfile,
    arrays: Mapping[str, ArraySpec],
    folder: Path,
    results: Path,
) -> InferenceJob:
    """The job of a composite, here and offline.

    Parameters
    ----------
    survey, fine : InferenceJob
        First results of the runs; the fine ones in the order of time.
    missing : sequence of mapping
        Fine runs that gave no map: `uid`, `region`, `reason`.
    arrays : mapping of str to ArraySpec
        `N.NAME` for each run, the survey's number being 0; in `folder`.
    results : Path
        Where the result goes.
    """
    own = profile.method.name == "n2n" or survey.meta.get("technique") == "txm"
    parameters: dict[str, Any] = {"max_shift": profile.rescan.max_shift}
    if own:
        parameters |= {name: survey.parameters[name] for name in survey.parameters}
    layers = [
        {
            "uid": one.run_uid,
            "region": str(one.meta.get("region") or ""),
            "proposal": str(one.meta.get("rescan_proposal") or ""),
            "input_digest": one.input_digest,
            **{name: one.meta[name] for name in _OF_LAYER if name in one.meta},
        }
        for one in (survey, *fine)
    ]
    meta = {
        **survey.meta,
        "purpose": COMPOSITE,
        "run_uid": uid,
        "stream": COMPOSITE,
        "parent_uid": survey.run_uid,
        "raw_uids": [one["uid"] for one in layers] + [str(one["uid"]) for one in missing],
        "layers": layers,
        "missing": [dict(one) for one in missing],
        "warnings": list(
            dict.fromkeys(text for one in (survey, *fine) for text in one.meta.get("warnings", ()))
        ),
    }
    key = job_key(uid, COMPOSITE, COMPOSITE, parameters)
    return InferenceJob(
        key=key,
        run_uid=uid,
        stream=COMPOSITE,
        kind="final",
        recipe=COMPOSITE,
        parameters=parameters,
        meta=json.loads(json.dumps(meta)),
        spool=str(folder),
        arrays=dict(arrays),
        input_digest="",
        result_path=str(results / f"{key}.h5"),
        host_id=host_id(),
    )


def linked(folder: Path, jobs: Sequence[InferenceJob]) -> dict[str, ArraySpec]:
    """The arrays of several runs under the names of one, without a copy.

    Raises
    ------
    FileNotFoundError
        When one of them is gone.
    SpoolError
        When they cannot be linked.
    """
    found: dict[str, ArraySpec] = {}
    for number, job in enumerate(jobs):
        wanted = _OF_MAPS if "counts" in job.arrays else _OF_STACKS
        for name, spec in job.arrays.items():
            if name in wanted:
                own = f"{number}.{name}"
            elif number == 0 and name in _WEIGHTS:
                own = name
            else:
                continue
            path = folder / f"{own}.npy"
            _link(Path(job.spool) / spec.file, path)
            found[own] = spec.model_copy(update={"file": path.name})
    return found


def _link(source: Path, path: Path) -> None:
    if path.exists() and path.samefile(source):
        return
    temporary = path.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise SpoolError(f"{source} cannot be linked to {path}: {error}") from error
    os.replace(temporary, path)
