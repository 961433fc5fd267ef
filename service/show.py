"""`inscan show`: the picture of a finished run."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from inscan.service.figures import render_run, write_page
from inscan.service.pictures import picture_of
from inscan.service.results import Results


@dataclass(frozen=True)
class TiledAccess:
    """Where results are read."""

    uri: str
    api_key: SecretStr | None


def tiled_of(state_dir: Path, uri: str | None = None) -> TiledAccess:
    """The Tiled of a running service, or the one at `uri`.

    The key is `INSCAN_TILED_API_KEY` of the environment, else that of the embedded Tiled.

    Raises
    ------
    ConnectionError
        When no service runs and no address is given.
    """
    key = os.environ.get("INSCAN_TILED_API_KEY")
    key_file = state_dir / "tiled" / "api_key"
    if key is None and key_file.exists():
        key = key_file.read_text(encoding="ascii").strip()
    if uri is None:
        try:
            uri = json.loads((state_dir / "service.json").read_text(encoding="utf-8"))["tiled"]
        except (OSError, ValueError, KeyError) as error:
            raise ConnectionError(
                f"no service runs on {state_dir}, and it is its Tiled that holds the results: start "
                "`inscan serve`, or name another state directory or Tiled"
            ) from error
    return TiledAccess(str(uri), None if key is None else SecretStr(key))


def show(access: TiledAccess, wanted: str, out: Path, stream: str | None = None) -> dict[str, Any]:
    """Draw the latest result of a run.

    Parameters
    ----------
    wanted : str
        Scan number, uid, or the first five or more characters of a uid; of the raw run or of the result.
    out : Path
        Folder for `show-UID.png` and `.html`; made if need be.
    stream : str or None
        Which of several maps or stacks of the run, as `primary@2`; None for the first of them.

    Returns
    -------
    dict
        `png`, `html` (paths), `result_uid`, `raw_uid`, `scan_id`, `stream`, `other_streams` (of the run's other maps or
        stacks that have results, and `composite` where there is one with its fine maps), `verdict`, `reasons`,
        `weights` (what fine-tuning began with and gained; empty without it), `composite` (what a composite says of its
        fine maps; of another result empty).

    Raises
    ------
    NoSuchRun, NoResult
        See `inscan.service.results.Results.latest`.
    ConnectionError, PermissionError
        When Tiled does not answer, or refuses the key.
    """
    with Results(access.uri, access.api_key) as results:
        run = results.latest(wanted, stream)
        shown, others = results.read(run), results.other_streams(run)
    out.mkdir(parents=True, exist_ok=True)
    picture = picture_of(shown)
    name = f"show-{shown.start['uid'][:8]}"
    png = render_run(picture, out / f"{name}.png")
    page = write_page(picture, png, out / f"{name}.html")
    report = shown.start.get("report") or {}
    return {
        "png": str(png),
        "html": str(page),
        "result_uid": shown.start["uid"],
        "raw_uid": shown.start["raw_uid"],
        "scan_id": shown.start.get("scan_id"),
        "stream": shown.start["raw_stream"],
        "other_streams": others,
        "verdict": shown.start.get("verdict"),
        "reasons": report.get("reasons", []),
        "weights": (report.get("fine_tuned") or {}).get("text", ""),
        "composite": (report.get("composite") or {}).get("text", ""),
    }
