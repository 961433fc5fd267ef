"""`inscan process`: what the command does with stored runs, with files of documents and with files of data."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from inscan.callbacks.profile import BeamlineProfile, load_profile, shipped_profiles
from inscan.callbacks.sources.interface import StoredRun
from inscan.service.offline import Progress, Record, Wanted, process_run, with_method
from inscan.service.offline_stack import process_stack
from inscan.service.offline_store import ResultStore
from inscan.service.provenance import versions
from inscan.service.result_file import read_result
from inscan.service.results import Results
from inscan.service.settings import Settings
from inscan.service.show import TiledAccess, tiled_of
from inscan.service.stored_runs import find_run, find_runs

_DOCUMENTS = (".json", ".jsonl", ".msgpack", ".json.gz", ".jsonl.gz", ".msgpack.gz")


@dataclass(frozen=True)
class Command:
    """Options of the command that concern runs.

    Attributes
    ----------
    settings : Settings
        State directory, data roots and Tiled; profiles where `profiles` is empty.
    has_config : bool
        Whether `settings` come from a file.
    profiles : tuple of str
        Names or paths.
    method, parameters
        In place of the profile's.
    tiled : str or None
        Another Tiled than the service's.
    out : Path or None
        Only write into this folder, nothing to Tiled.
    data_roots : tuple of Path
    incomplete, again : bool
        See `inscan.service.offline.Wanted`.
    stack : str or None
        A line: the runs are maps of one place at several energies, and make one stack.
    """

    settings: Settings
    has_config: bool = False
    profiles: tuple[str, ...] = ()
    method: str | None = None
    parameters: Mapping[str, Any] | None = None
    tiled: str | None = None
    out: Path | None = None
    data_roots: tuple[Path, ...] = ()
    incomplete: bool = False
    again: bool = False
    stack: str | None = None


def is_documents(what: str) -> bool:
    """Whether a name is that of a file of documents."""
    return what.lower().endswith(_DOCUMENTS) and Path(what).expanduser().is_file()


def is_data(what: str) -> bool:
    """Whether a name is that of a file of data."""
    return Path(what).expanduser().is_file() and not is_documents(what)


def load_profiles(command: Command) -> tuple[BeamlineProfile, ...]:
    """The profiles that runs are matched with: named, or the settings', or all that come with inscan.

    Raises
    ------
    FileNotFoundError, ValueError
        A profile that cannot be used, or a method that does not go with any of them.
    """
    if command.stack is not None and command.method not in (None, "subspace"):
        raise ValueError(f"--stack makes an energy stack: subspace, not {command.method}")
    names = command.profiles or (
        command.settings.profiles if command.has_config else tuple(shipped_profiles())
    )
    profiles = [load_profile(name) for name in names]
    if command.stack is not None or (command.method is None and not command.parameters):
        return tuple(profiles)
    fitting, reasons = [], []
    for profile in profiles:
        try:
            fitting.append(with_method(profile, command.method, command.parameters or {}))
        except ValueError as error:
            reasons.append(f"{profile.name}: {error}")
    if not fitting:
        raise ValueError(f"--method {command.method} goes with no profile: {'; '.join(reasons)}")
    return tuple(fitting)


def process_runs(
    names: Sequence[str], command: Command, progress: Callable[[str], Progress]
) -> Iterator[Record]:
    """Process runs one after the other.

    Parameters
    ----------
    names : sequence of str
        As `inscan.service.stored_runs.find_runs` takes them.
    progress : callable
        Given the uid of a run, what is told how far it is.

    Yields
    ------
    Record

    Raises
    ------
    LookupError, ConnectionError, PermissionError, SourceError
        No such run; no service or Tiled; a file that cannot be read.
    """
    profiles = load_profiles(command)
    runs: dict[str, StoredRun] = {}
    for name in names:
        for run in _found(name, command):
            runs.setdefault(run.uid, run)
    wanted = Wanted(
        profiles,
        command.out,
        (*command.settings.data_roots, *command.data_roots),
        incomplete=command.incomplete,
        again=command.again,
        weights_dir=command.settings.weights_dir,
    )
    with ExitStack() as stack:
        store = None
        if command.out is None:
            store, folder = _store(command)
            stack.enter_context(store)
            wanted = replace(wanted, folder=folder)
        if command.stack is not None:
            tell = progress(f"{len(runs)} maps")
            found = tuple(runs.values())
            own = command.parameters or {}
            yield process_stack(found, command.stack, own, wanted, store, tell)
            return
        for run in runs.values():
            yield from process_run(run, wanted, store, progress(run.uid))


def reproduce(
    result_uid: str,
    names: Sequence[str],
    command: Command,
    folder: Path,
    progress: Callable[[str], Progress],
) -> dict[str, Any]:
    """Compute a result once more from its provenance, and compare.

    Parameters
    ----------
    result_uid : str
        Of the derived run in Tiled, or its first characters.
    names : sequence of str
        Where the raw run is, if it is not in Tiled: files of documents.
    folder : Path
        For the new result file.

    Returns
    -------
    dict
        `same` (bool), `record`, `result_uid`, `raw_uid`, `digests` and `input_digests` (then, now), `differences` (in
        words).

    Raises
    ------
    LookupError
        No such result.
    ValueError
        A result whose provenance does not suffice.
    """
    access = tiled_of(command.settings.state_dir, command.tiled)
    with Results(access.uri, access.api_key) as results:
        start = dict(results.latest(result_uid).metadata["start"])
    then = start["provenance"]
    parameters = dict(then.get("repeat_with") or then["parameters"])
    sha = parameters.pop("weights", None)
    steps = int(parameters.pop("fit_steps", 0))
    parameters.pop("fit_seconds", None)
    profile = _profile_of(str(then.get("profile")), command)
    own = profile.method.model_dump() if profile.method.name == then["recipe"] else {}
    method = {
        **own,
        "name": then["recipe"],
        "parameters": parameters,
        "fit_steps": steps,
        "fit_seconds": 0,
    }
    if sha is None:
        method.pop("weights", None)
    fields = {key: getattr(profile, key) for key in BeamlineProfile.model_fields}
    exact = BeamlineProfile.model_validate(fields | {"method": method})
    run = _raw_run(start["raw_uid"], names, command)
    wanted = Wanted(
        (exact,),
        folder,
        (*command.settings.data_roots, *command.data_roots),
        incomplete=True,
        again=True,
        weights_dir=command.settings.weights_dir,
    )
    records = process_run(run, wanted, None, progress(run.uid))
    of_stream = [one for one in records if one.stream == start.get("raw_stream")] or records
    record = of_stream[-1] if steps else of_stream[0]
    same = record.state == "done" and record.digest == start.get("result_digest")
    return {
        "same": same,
        "record": record,
        "result_uid": start["uid"],
        "raw_uid": start["raw_uid"],
        "digests": [start.get("result_digest"), record.digest],
        "input_digests": [then.get("input_digest"), record.input_digest],
        "differences": [] if same else _differences(then, record),
    }


def _found(name: str, command: Command) -> list[StoredRun]:
    return find_runs(name, state=command.settings.state_dir, tiled=command.tiled)


def _raw_run(uid: str, names: Sequence[str], command: Command) -> StoredRun:
    if not names:
        return find_run(uid, state=command.settings.state_dir, tiled=command.tiled)
    for run in (run for name in names for run in _found(name, command)):
        if run.uid == uid:
            return run
    raise LookupError(f"the raw run {uid[:8]} is not among {', '.join(names)}")


def _store(command: Command) -> tuple[ResultStore, Path | None]:
    """Where results go, and the folder in which this Tiled reads result files, if there is one."""
    settings = command.settings
    access: TiledAccess = tiled_of(settings.state_dir, command.tiled or settings.tiled.uri)
    shared = settings.tiled.readable_storage
    if command.tiled is None and settings.tiled.uri is None:
        # The service's own, which reads its results folder.
        folder = settings.results_dir
        return ResultStore(access.uri, access.api_key, readable=[folder]), folder
    return ResultStore(access.uri, access.api_key, shared=shared), None


def _profile_of(name: str, command: Command) -> BeamlineProfile:
    known = [*command.profiles, *command.settings.profiles, *shipped_profiles()]
    for one in known:
        try:
            profile = load_profile(one)
        except FileNotFoundError:
            continue
        if profile.name == name:
            return profile
    raise ValueError(f"the result was made with the profile {name!r}: name its file with --profile")


def _differences(then: Mapping[str, Any], record: Record) -> list[str]:
    if record.state != "done":
        return [f"it {record.state.replace('_', ' ')} now: {record.reason}"]
    found = []
    if then.get("input_digest") != record.input_digest:
        found.append("the input is another: the raw data, or the profile, have changed")
    now = read_result(Path(record.path)).processed.report
    for what, before, after in (
        ("weights", then.get("weights_sha256"), now.get("weights_sha256")),
        ("device", then.get("device"), now.get("device")),
        *((name, then["versions"].get(name), text) for name, text in versions().items()),
    ):
        if before != after:
            found.append(f"{what}: then {before}, now {after}")
    return found or [
        "input, weights, device and versions are the same: the number of threads may differ"
    ]
