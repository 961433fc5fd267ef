"""Stored runs through the live service's method, without a service: documents in, results and a record of each out.

The same assembler, the same recipe and the same keys as live, so that a run may be processed here and there at the same
time: the first result stands, and one like it is no error.
"""

import contextlib
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from inscan.callbacks.assembly import open_assembler
from inscan.callbacks.profile import BeamlineProfile
from inscan.callbacks.profile_sections import Method
from inscan.callbacks.sources.interface import StoredRun
from inscan.callbacks.updates import NotUnderstood, Update
from inscan.service.messages import ArraySpec
from inscan.service.offline_job import Place, Progress, Record, result_of
from inscan.service.offline_store import ResultStore
from inscan.service.runs import requests_of, weights_as_arrays
from inscan.service.shelf import Shelf, ShelfError, read_weights_file
from inscan.service.spool import Spool, SpoolRun
from inscan.service.tiled_http import TiledRefusedKey, TiledUnavailable

_SPOOL_BYTES = 1 << 40
_ASSEMBLED = 0.3
"""Fraction of a run's time, as shown, that assembling takes."""


@dataclass(frozen=True)
class Wanted:
    """How runs are processed; the same for all of them, and small enough to be sent around.

    Attributes
    ----------
    profiles : tuple of BeamlineProfile
        The first that matches a run is used.
    folder : Path or None
        Where result files are written. None: a temporary folder, for results that are uploaded to Tiled.
    data_roots : tuple of Path
        Folders under which detector files may be read, besides the profiles' own.
    scratch : Path or None
        Where arrays are assembled, as mapped files that are removed afterwards. None: the system's temporary folder.
    incomplete : bool
        Whether a run without a stop document is processed as far as it got, instead of being passed by.
    again : bool
        Whether a result that is there already is computed once more (and compared).
    weights_dir : Path or None
        Weights of earlier runs, which fine-tuning may start from, as live. None: they are not offered.
    """

    profiles: tuple[BeamlineProfile, ...]
    folder: Path | None = None
    data_roots: tuple[Path, ...] = ()
    scratch: Path | None = None
    incomplete: bool = False
    again: bool = False
    weights_dir: Path | None = None


def with_method(
    profile: BeamlineProfile, name: str | None, parameters: Mapping[str, Any]
) -> BeamlineProfile:
    """The profile with another method, or with further parameters of its own.

    Raises
    ------
    ValueError
        When the method is unknown, or does not go with the rest of the profile.
    """
    if name is None and not parameters:
        return profile
    fields = {key: getattr(profile, key) for key in BeamlineProfile.model_fields}
    if name is None or name == profile.method.name:
        own = profile.method.model_dump()
        own["parameters"] = {**own["parameters"], **parameters}
        fields["method"] = Method(**own)
    else:
        fields["method"] = Method.model_validate({"name": name, "parameters": dict(parameters)})
        if name != "spectral" and profile.xrf is not None:
            fields["xrf"] = profile.xrf.model_copy(update={"cube": None})
    return BeamlineProfile.model_validate(fields)


def process_run(
    stored: StoredRun,
    wanted: Wanted,
    store: ResultStore | None = None,
    progress: Progress = lambda fraction, text: None,
) -> list[Record]:
    """Process one stored run.

    Memory is bounded by what the method takes: arrays are assembled in mapped files.

    Parameters
    ----------
    store : ResultStore or None
        Where results go; None: they are only written to the folder.

    Returns
    -------
    list of Record
        One for each result that the run gets: several where it holds several maps, or is fine-tuned; at least one.

    Raises
    ------
    TiledUnavailable, TiledRefusedKey
        When Tiled does not answer, or refuses the key: no fault of the run. Whatever the run itself does wrong is a
        record.
    """
    began = time.monotonic()
    scan_id = stored.start.get("scan_id")
    blank = Record(stored.uid, "failed", scan_id=scan_id if isinstance(scan_id, int) else None)
    with workplace(wanted) as (root, results):
        spool = root.run("run")
        try:
            finals = assemble(stored, wanted, spool, progress)
        except NotUnderstood as error:
            return [replace(blank, state="passed_by", reason=str(error))]
        except Exception as error:  # noqa: BLE001 - whatever its documents do, a run is a record
            reason = f"{type(error).__name__}: {error}"
            return [replace(blank, reason=reason, retryable=isinstance(error, OSError))]
        records = []
        for number, final in enumerate(finals):
            place = Place(spool, results, wanted.again, store, stored.start, blank)
            low, high = ((n / len(finals)) for n in (number, number + 1))

            def onward(fraction: float, text: str, low: float = low, high: float = high) -> None:
                progress(_ASSEMBLED + (1 - _ASSEMBLED) * (low + fraction * (high - low)), text)

            try:
                records += _results_of(final, place, wanted, onward)
            except (TiledUnavailable, TiledRefusedKey):
                raise
            except Exception as error:  # noqa: BLE001 - one map's defect is not the others'
                reason = f"{type(error).__name__}: {error}"
                records.append(replace(blank, stream=final.stream, reason=reason))
    progress(1.0, "done")
    took = time.monotonic() - began
    return [replace(record, seconds=took) for record in records]


def process_arrays(
    update: Update,
    recipe: str,
    parameters: Mapping[str, Any],
    wanted: Wanted,
    progress: Progress = lambda fraction, text: None,
) -> Record:
    """Process arrays that come from no document, as a run's final would be.

    Parameters
    ----------
    update : Update
        What an assembler would have made: `meta` and arrays as `inscan.service.recipes.process` takes them.
    recipe : str
        `n2n`, `superres`, `subspace` or `spectral`.
    parameters : mapping
        Keyword arguments of the method.
    wanted : Wanted
        Of it `folder` and `scratch` are used.
    """
    began = time.monotonic()
    with workplace(wanted) as (root, results):
        spool = root.run("run")
        place = Place(spool, results, wanted.again, None, {}, Record(update.run_uid, "failed"))
        arrays = {name: spool.spec(name, values) for name, values in update.arrays.items()}
        record = result_of(update, recipe, dict(parameters), arrays, "", place, progress)
    return replace(record, seconds=time.monotonic() - began)


@contextlib.contextmanager
def workplace(wanted: Wanted) -> Iterator[tuple[Spool, Path]]:
    """A spool and a folder for results; what is temporary is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="inscan-", dir=wanted.scratch) as scratch:
        results = wanted.folder or Path(scratch) / "results"
        results.mkdir(parents=True, exist_ok=True)
        spool = Spool(Path(scratch) / "spool", budget=_SPOOL_BYTES, min_free=0)
        yield spool, results


def assemble(
    stored: StoredRun, wanted: Wanted, spool: SpoolRun, progress: Progress
) -> list[Update]:
    """The run's finals and rejections.

    Raises
    ------
    NotUnderstood
        When the run is nobody's, or has no stop document.
    """
    assembler = open_assembler(
        stored.start, wanted.profiles, spool.allocate, data_roots=wanted.data_roots
    )
    updates: list[Update] = []
    stopped = False
    try:
        for number, (name, document) in enumerate(stored.documents()):
            if name == "stop":
                # A Tiled server ends a run that has no stop with an empty one.
                if not document.get("uid") and not wanted.incomplete:
                    break
                stopped = True
            updates += [one for one in assembler(name, document) if one.kind != "snapshot"]
            # How many documents there are is not known before the last.
            progress(_ASSEMBLED * number / (number + 100), "assembling")
        if not stopped and not updates:
            if not wanted.incomplete:
                raise NotUnderstood(
                    f"run {stored.uid[:8]} has no stop document: it is being scanned, or was cut short (--incomplete "
                    "processes what there is)"
                )
            updates = assembler.finish("its documents have no stop")
    finally:
        assembler.close()
    return updates


def _results_of(final: Update, place: Place, wanted: Wanted, progress: Progress) -> list[Record]:
    """All results that the profile asks for of one map or stack."""
    if final.kind == "rejected":
        reason = str(final.meta.get("reason", "rejected"))
        return [replace(place.blank, stream=final.stream, reason=reason)]
    profile = next(one for one in wanted.profiles if one.name == str(final.meta.get("profile")))
    try:
        arrays = {
            name: place.spool.spec(name, values, scope=final.stream)
            for name, values in final.arrays.items()
        }
        first: dict[str, Any] = dict(profile.method.parameters)
        path = profile.weights_file()
        if path is not None:
            named = read_weights_file(path)
            first |= {"weights": named.card["sha256"]}
            arrays |= weights_as_arrays(named, "named", place.spool)
    except (OSError, ShelfError) as error:
        reason = f"{type(error).__name__}: {error}"
        return [replace(place.blank, stream=final.stream, reason=reason, retryable=True)]
    records: list[Record] = []
    for parameters in requests_of(profile, first):
        refines = records[0].key if records else ""
        more = dict(arrays)
        if refines and profile.method.fit_from == "last_run":
            more |= _offered(final.meta, place, wanted.weights_dir)
        records.append(
            result_of(final, profile.method.name, parameters, more, refines, place, progress)
        )
    return records


def _offered(meta: Mapping[str, Any], place: Place, folder: Path | None) -> dict[str, ArraySpec]:
    """Weights of the last run of the same sample and detector, where a service has kept them."""
    kept = None if folder is None else Shelf(folder).latest(meta)
    if kept is None:
        return {}
    try:
        return weights_as_arrays(kept.read(), "start", place.spool)
    except (OSError, ShelfError):
        # As live: the result does without what cannot be read, and says what it began with.
        return {}
