"""`inscan show --live`: one picture of a running scan, replaced with each snapshot."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from inscan.callbacks.link import Link, locate
from inscan.callbacks.request import request
from inscan.callbacks.wire import unpack
from inscan.service.figures import render_run, write_page
from inscan.service.pictures import picture_of
from inscan.service.result_file import ResultFileError
from inscan.service.results import NoResult, NoSuchRun, Results, Shown, from_file
from inscan.service.show import TiledAccess

REFRESH_S = 2.0
_LOOK_S = 2.0
"""Between two questions for a run that has begun."""


class LiveView:
    """`live.png` and `live.html` in one folder, replaced with each picture; the page loads itself again.

    Parameters
    ----------
    out_dir : Path
        Made if need be.
    """

    def __init__(self, out_dir: Path) -> None:
        self.out_dir = out_dir
        self.png = out_dir / "live.png"
        self.html = out_dir / "live.html"
        self.pictures = 0
        out_dir.mkdir(parents=True, exist_ok=True)

    def update(self, path: Path) -> bool:
        """Show a snapshot's file; False when a newer one has just taken its place or its run has ended."""
        try:
            shown = from_file(path)
        except (FileNotFoundError, ResultFileError):
            return False
        self.draw(shown)
        return True

    def draw(self, shown: Shown) -> None:
        """Show a result."""
        picture = picture_of(shown)
        render_run(picture, self.png)
        self.pictures += 1
        write_page(picture, self.png, self.html, refresh_s=REFRESH_S, stamp=f"{time.time_ns()}")


def follow(
    state_dir: Path,
    view: LiveView,
    *,
    run_uid: str | None = None,
    access: TiledAccess | None = None,
    tell: Callable[[str], None] = lambda text: None,
    stop: threading.Event | None = None,
) -> dict[str, Any]:
    """Draw the snapshots of a running scan as they come, and its final.

    Parameters
    ----------
    state_dir : Path
        State directory of the service; snapshots are read from it, so it is on this machine.
    run_uid : str or None
        None: the newest run that has begun and not ended, waiting for one if need be.
    access : TiledAccess or None
        Where the final is read; None to end with the last snapshot.
    tell : callable
        Gets a sentence at each step.
    stop : Event or None
        Set it to end early.

    Returns
    -------
    dict
        Outcome of the run; empty when ended early.

    Raises
    ------
    ConnectionError
        When no service answers.
    """
    stop = stop or threading.Event()
    location = locate(state_dir, explicit=None, profile=None)
    link = Link()
    try:
        link.connect(location.address)
        if run_uid is None:
            run_uid = _next_run(state_dir, link, tell, stop)
        while not stop.is_set():
            # Asked again and again: a service that was started anew does not know who watches.
            asked = link.send("WATCH", {"run": run_uid})
            link.wait(_LOOK_S if asked else 0.05)
            for message in link.messages():
                if message.header.get("run") != run_uid:
                    continue
                if message.kind == "SNAPSHOT" and view.update(Path(message.header["path"])):
                    tell(f"run {str(run_uid)[:8]}: {message.header['rows']} rows")
                elif message.kind == "OUTCOME":
                    return _final(message.chunks[0], view, access, tell)
        return {}
    finally:
        link.close()


def _next_run(
    state_dir: Path, link: Link, tell: Callable[[str], None], stop: threading.Event
) -> str:
    told = False
    while not stop.is_set():
        runs = request(state_dir, "runs", state="open", limit=1)["runs"]
        if runs:
            tell(f"following scan {runs[0]['scan_id']}, run {runs[0]['run_uid'][:8]}")
            return runs[0]["run_uid"]
        if not told:
            tell("no scan is running; waiting for one")
            told = True
        link.wait(_LOOK_S)
    return ""


def _final(
    chunk: Any, view: LiveView, access: TiledAccess | None, tell: Callable[[str], None]
) -> dict[str, Any]:
    outcome = dict(unpack(chunk))
    if outcome.get("status") != "done":
        tell(f"{outcome.get('status')}: {outcome.get('reason')}")
        return outcome
    if access is not None:
        try:
            with Results(access.uri, access.api_key) as results:
                view.draw(results.read(results.latest(outcome["result_uid"])))
        except (NoResult, NoSuchRun, ConnectionError, PermissionError) as error:
            tell(f"the final is not shown: {error}")
    tell(f"done, verdict {outcome.get('verdict')}")
    return outcome
