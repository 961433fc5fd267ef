"""One method on a file of measured data: read, prepared, processed like a run, drawn."""

import hashlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from inscan.callbacks.updates import Update
from inscan.service.archive_choice import choose
from inscan.service.archive_files import open_archive
from inscan.service.archive_request import Asked, Prepared
from inscan.service.archive_stacks import prepare_stack
from inscan.service.archive_types import ArchiveError
from inscan.service.archive_xrf import prepare_fluorescence
from inscan.service.figures import render_run, write_page
from inscan.service.messages import canonical_json
from inscan.service.offline import Progress, Record, Wanted, process_arrays
from inscan.service.pictures import picture_of
from inscan.service.results import from_file
from inscan.service.worker_job import plain

_BLOCK = 1 << 20


@dataclass(frozen=True)
class Answer:
    """What came of a file.

    Attributes
    ----------
    record : Record
    said : tuple of str
        What was taken for what.
    png, html : str
        Pictures; empty when it failed.
    """

    record: Record
    said: tuple[str, ...]
    png: str = ""
    html: str = ""


def prepare(path: Path, asked: Asked) -> Prepared:
    """Read a file into the arrays of a method.

    Raises
    ------
    ArchiveError
        When the file, or what is asked of it, is not understood: says what there is and which option helps.
    FileNotFoundError
        No such file.
    """
    with open_archive(path) as archive:
        if "inscan_format" in archive.groups.get("", {}):
            raise ArchiveError(f"{path} is a result of inscan itself, not what it is made of")
        reading = choose(archive, asked.naming)
        if "energy" in reading.dims:
            return prepare_stack(archive, reading, asked)
        return prepare_fluorescence(archive, reading, asked)


def describe(path: Path, asked: Asked) -> str:
    """What is in a file, and what it is taken for with what was asked; nothing is computed."""
    with open_archive(path) as archive:
        listing = archive.listing()
    try:
        prepared = prepare(path, asked)
    except ArchiveError as error:
        text = str(error)
        return text if listing in text else f"{listing}\n{text}"
    shapes = ", ".join(f"{name} {values.shape}" for name, values in prepared.arrays.items())
    lines = [listing, f"taken for {prepared.kind}, method {prepared.recipe}: {shapes}"]
    return "\n".join([*lines, *(f"  {text}" for text in prepared.said)])


def process_file(
    path: Path, asked: Asked, wanted: Wanted, progress: Progress = lambda fraction, text: None
) -> Answer:
    """Process a file, and draw the result beside it.

    Parameters
    ----------
    wanted : Wanted
        `folder` is where the result file and its picture go.

    Raises
    ------
    ArchiveError, FileNotFoundError
        As `prepare`.
    """
    prepared = prepare(path, asked)
    update = as_update(path, asked, prepared)
    record = process_arrays(update, prepared.recipe, asked.parameters, wanted, progress)
    answer = Answer(record, prepared.said)
    if record.state != "done":
        return answer
    png, html = draw(Path(record.path), path.name)
    return replace(answer, png=str(png), html=str(html))


def as_update(path: Path, asked: Asked, prepared: Prepared) -> Update:
    """The final that a run of such data would have ended with; its uid follows from the file and what was asked."""
    content = _sha256(path)
    request = plain(asdict(replace(asked, method=None, parameters={})))
    asked_hash = hashlib.sha256(canonical_json([request, prepared.said]).encode()).hexdigest()
    meta = prepared.meta | {
        "profile": "file",
        "run_uid": f"{path.stem[:60]}-{content[:16]}-{asked_hash[:16]}",
        "scan_id": None,
        "start_time": None,
        "stream": "file",
        "complete": True,
        "exit_status": "success",
        "reason": "",
        "file": path.name,
        "file_sha256": content,
        "file_stem": path.stem,
        "taken_as": list(prepared.said),
    }
    return Update("final", meta["run_uid"], "file", meta, prepared.arrays)


def draw(result: Path, title: str) -> tuple[Path, Path]:
    """Draw a result file beside it; returns the PNG and the page around it."""
    shown = from_file(result)
    picture = picture_of(shown)
    verdict = shown.start.get("verdict") or "none"
    picture = replace(picture, title=f"{title}, verdict: {verdict}")
    rows, cols = shown.arrays["values"].shape[-2:]
    if rows == 1:
        # A line as a band: one pixel high it could not be seen.
        left, right = picture.extent[:2]
        height = abs(right - left) / max(8, min(cols, 12))
        picture = replace(picture, extent=(left, right, height, 0.0), ylabel="a single row")
    png = render_run(picture, result.with_suffix(".png"))
    return png, write_page(picture, png, result.with_suffix(".html"))


def facts(answer: Answer) -> dict[str, Any]:
    """The answer as JSON holds it."""
    return {**asdict(answer.record), "taken_as": list(answer.said), "png": answer.png}


def _sha256(path: Path) -> str:
    total = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            total.update(block)
    return total.hexdigest()
