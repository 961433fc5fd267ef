"""`inscan export`: the latest result of a run as files that other programs load."""

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from inscan.callbacks.profile import start_value
from inscan.service.export_maps import write_maps, write_pyxrf
from inscan.service.export_nexus import write_nexus
from inscan.service.export_result import ExportResult, NotExportable, export_result
from inscan.service.export_tiff import write_tiffs
from inscan.service.results import Results
from inscan.service.show import TiledAccess

__all__ = ["FORMATS", "ExportFormat", "export_run", "proposal_folder"]

ExportFormat = Literal["nexus", "maps", "pyxrf", "tiff"]
FORMATS: tuple[ExportFormat, ...] = get_args(ExportFormat)
_HDF5 = {
    "nexus": (write_nexus, ".nxs"),
    "maps": (write_maps, "_maps.h5"),
    "pyxrf": (write_pyxrf, "_pyxrf.h5"),
}

Tell = Callable[[int, int], None]
"""(parts written, parts in all)."""


def export_run(
    access: TiledAccess,
    wanted: str,
    formats: Sequence[ExportFormat],
    folder_of: Callable[[Mapping[str, Any]], Path],
    tell: Tell,
    *,
    stream: str | None = None,
) -> dict[str, Any]:
    """Write the latest result of a run.

    Parameters
    ----------
    access : TiledAccess
    wanted : str
        Scan number, or uid of the raw run or of the result, or the first characters of one.
    formats : sequence of str
    folder_of : callable
        Start document of the raw run -> folder for the files; made if need be.
    tell : callable
        Told how far it is.
    stream : str or None
        Which of several maps or stacks of the run, as `primary@2`; None for the first of them.

    Returns
    -------
    dict
        `result_uid`, `raw_uid`, `scan_id`, `stream`, `other_streams` (of the run's other maps or stacks that have
        results), `verdict`, `files` (paths), `folder`.

    Raises
    ------
    NoSuchRun, NoResult
        See `inscan.service.results.Results.latest`.
    NotExportable
        A format has no place for such a result. Nothing is written then.
    OSError
        The files cannot be written. Nothing is left behind under their names.
    """
    with Results(access.uri, access.api_key) as results:
        run = results.latest(wanted, stream)
        others = results.other_streams(run)
        result = export_result(run, results.raw_start(run.metadata["start"]["raw_uid"]))
        folder = folder_of({**result.start, **result.raw_start})
        folder.mkdir(parents=True, exist_ok=True)
        files = _write(result, formats, folder, tell)
    return {
        "result_uid": result.start["uid"],
        "raw_uid": result.start["raw_uid"],
        "scan_id": result.start.get("scan_id"),
        "stream": result.start["raw_stream"],
        "other_streams": others,
        "verdict": result.start.get("verdict"),
        "folder": str(folder),
        "files": [str(path) for path in files],
    }


def _write(
    result: ExportResult, formats: Sequence[ExportFormat], folder: Path, tell: Tell
) -> list[Path]:
    parts = sum(a.shape[0] if len(a.shape) > 2 else 1 for a in result.arrays.values())
    total, done = parts * len(formats), 0

    def step() -> None:
        nonlocal done
        done += 1
        tell(min(done, total), total)

    # Beside the target, so that every file appears under its name in one step, and only when all are whole.
    with tempfile.TemporaryDirectory(prefix=".inscan-export-", dir=folder) as name:
        temporary = Path(name)
        written: list[Path] = []
        for form in formats:
            if form == "tiff":
                written += write_tiffs(temporary, result.stem, result, step)
            else:
                write, suffix = _HDF5[form]
                path = temporary / f"{result.stem}{suffix}"
                write(path, result, step)
                written.append(path)
        for path in written:
            _sync(path)
        for path in written:
            os.replace(path, folder / path.name)
    tell(total, total)
    return [folder / path.name for path in written]


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def proposal_folder(
    start: Mapping[str, Any], key: str, roots: Sequence[Path], fallback: Path
) -> Path:
    """Where the files of a run belong.

    Parameters
    ----------
    start : mapping
        Start document of the raw run.
    key : str
        Dotted path in it that holds the folder of the proposal.
    roots : sequence of Path
        Folders under which it may lie: a document must not choose where this machine's files go.
    fallback : Path
        Taken where the start document names none.

    Raises
    ------
    NotExportable
        The folder is outside the roots.
    """
    named = start_value(start, key)
    if not isinstance(named, str) or not named:
        return fallback
    folder = Path(named).resolve()
    if not any(folder.is_relative_to(root.resolve()) for root in roots):
        allowed = ", ".join(map(str, roots)) or "none is set"
        raise NotExportable(
            f"the run names {folder} (start.{key}) for its files, which is outside export.roots of the settings"
            f" ({allowed}): add it there, or give --out"
        )
    return folder / "inscan"
