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
from inscan.service.show import TiledAccess, tiled_of

REFRESH_S = 2.0
_LOOK_S = 2.0
"""Between two questions for a run that has begun."""
_MOST_RUNS = 1000


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
    out: Path,
    run: str | None = None,
    *,
    tell: Callable[[str], None] = lambda text: None,
    access: TiledAccess | None = None,
    stop: threading.Event | None = None,
) -> dict[str, Any]:
    """Draw the snapshots of a running scan as they come, then its final.

    Parameters
    ----------
    state_dir : Path
        State directory of the service; snapshots are read from it, so it is on this machine.
    out : Path
        Folder of `live.png` and `live.html`.
    run : str or None
        Scan number or uid, or the beginning of one; it ends with that run. None: one running scan after the other,
        until `stop` or Ctrl-C.
    tell : callable
        Gets a sentence at each step.
    access : TiledAccess or None
        Where the final is read; None for the service's own.
    stop : Event or None
        Set it to end early.

    Returns
    -------
    dict
        Outcome of the last run that was followed to its end; empty when there was none.

    Raises
    ------
    ConnectionError
        When no service answers.
    LookupError
        When the service knows no such run, or several.
    """
    stop = stop or threading.Event()
    view = LiveView(out)
    access = access or tiled_of(state_dir)
    link = Link()
    outcome: dict[str, Any] = {}
    try:
        found = locate(state_dir, explicit=None, profile=None)
        link.connect(found.address, found.key)
        over: set[str] = set()
        while not stop.is_set():
            uid = _known(state_dir, run) if run else _next(state_dir, over, link, tell, stop)
            if uid is None:
                break
            ended = _watch(uid, link, view, access, tell, stop)
            outcome = ended or outcome
            over.add(uid)
            if run:
                break
    finally:
        link.close()
    return outcome


def _known(state_dir: Path, wanted: str) -> str:
    rows = request(state_dir, "runs", limit=_MOST_RUNS)["runs"]
    found = [row["run_uid"] for row in rows if row["run_uid"].startswith(wanted)]
    found = found or [row["run_uid"] for row in rows if str(row["scan_id"]) == wanted][:1]
    if len(found) != 1:
        raise NoSuchRun(
            f"{wanted!r} begins the uids of {len(found)} runs; give more of it"
            if found
            else f"no run {wanted!r} has come to the service of {state_dir}"
        )
    return found[0]


def _next(
    state_dir: Path,
    over: set[str],
    link: Link,
    tell: Callable[[str], None],
    stop: threading.Event,
) -> str | None:
    """The newest running scan that was not followed yet, as soon as there is one; None when told to stop."""
    tell("waiting for a scan")
    while not stop.is_set():
        for row in request(state_dir, "runs", state="open", limit=_MOST_RUNS)["runs"]:
            if row["run_uid"] not in over:
                tell(f"following scan {row['scan_id']}, run {row['run_uid'][:8]}")
                return row["run_uid"]
        link.wait(_LOOK_S)
    return None


def _watch(
    run_uid: str,
    link: Link,
    view: LiveView,
    access: TiledAccess,
    tell: Callable[[str], None],
    stop: threading.Event,
) -> dict[str, Any]:
    while not stop.is_set():
        # Asked again and again: a service that was started anew does not know who watches.
        asked = link.send("WATCH", {"run": run_uid})
        link.wait(_LOOK_S if asked else 0.05)
        for message in link.messages():
            if message.header.get("run") != run_uid:
                continue
            if message.kind == "SNAPSHOT" and view.update(Path(message.header["path"])):
                tell(f"run {run_uid[:8]}: {message.header['rows']} rows, see {view.html}")
            elif message.kind == "OUTCOME":
                return _final(message.chunks[0], view, access, tell)
    return {}


def _final(
    chunk: Any, view: LiveView, access: TiledAccess, tell: Callable[[str], None]
) -> dict[str, Any]:
    outcome = dict(unpack(chunk))
    if outcome.get("status") != "done":
        tell(f"{outcome.get('status')}: {outcome.get('reason')}")
        return outcome
    try:
        with Results(access.uri, access.api_key) as results:
            view.draw(results.read(results.latest(outcome["result_uid"])))
    except (NoResult, NoSuchRun, ConnectionError, PermissionError) as error:
        tell(f"the final is not shown: {error}")
    tell(f"done, verdict {outcome.get('verdict')}, see {view.html}")
    return outcome
