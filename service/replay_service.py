"""The service that a replay goes through: the one that runs, or one of its own for as long as the replay takes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from inscan.callbacks.link import SERVICE_FILE
from inscan.callbacks.profile import shipped_profiles
from inscan.callbacks.request import NoServiceError, request
from inscan.service.demo_service import DemoService, ServiceFailed
from inscan.service.settings import Settings
from inscan.service.show import TiledAccess, tiled_of
from inscan.service.state_dir import StateDir

__all__ = ["OwnService", "Through", "through"]

_CONFIG = "service.yaml"


class OwnService(DemoService):
    """`inscan serve` with one worker and a Tiled of its own, in a folder.

    Parameters
    ----------
    out : Path
        The folder. The state directory is `out/state`; one that an earlier replay left there is taken up again.
    settings : mapping
        What is set besides addresses and the state directory.

    Raises
    ------
    StateError
        A service runs on that state directory.
    """

    def __init__(self, out: Path, settings: dict[str, Any]) -> None:
        # Addresses that a killed service left would be taken for the new one's. Only who holds the lock may remove
        # them: a service that runs on this folder must stay within reach.
        StateDir(Settings(state_dir=out / "state")).close()
        super().__init__(out, "", out)
        file = out / _CONFIG
        written = yaml.safe_load(file.read_text(encoding="utf-8"))
        for name in ("profiles", "data_roots"):
            written.pop(name)
        file.write_text(yaml.safe_dump(written | settings, sort_keys=False), encoding="utf-8")


@dataclass(frozen=True)
class Through:
    """A service that runs.

    Attributes
    ----------
    state
        Its state directory.
    tiled
        Where its results go.
    own
        It was started for the replay, and ends with it.
    """

    state: Path
    tiled: TiledAccess
    own: bool


def running(state: Path) -> bool:
    """Whether a service answers for a state directory."""
    if not (state / SERVICE_FILE).exists():
        return False
    try:
        request(state, "status")
    except NoServiceError:
        return False
    return True


@contextmanager
def through(
    state: Path,
    out: Path | None,
    *,
    profiles: Sequence[str] = (),
    data_roots: Sequence[Path] = (),
    threads: int | None = None,
) -> Iterator[Through]:
    """The service of ``state``, or where none runs (or ``out`` is given) one of its own.

    Parameters
    ----------
    out
        Folder for a service of its own; by default a new one beside the others of today.
    profiles, data_roots, threads
        Settings of a service of its own. No profiles: all that come with inscan.

    Raises
    ------
    ValueError
        Settings for the service that runs already.
    OSError
        The folder is in use for something else, or the service does not start.
    """
    asked = [
        option
        for option, given in (
            ("--profile", profiles),
            ("--data-root", data_roots),
            ("--threads", threads),
        )
        if given
    ]
    if out is None and running(state):
        if asked:
            raise ValueError(
                f"{', '.join(asked)}: the service on {state} runs with settings of its own; give --out DIR to "
                "start another for this replay"
            )
        yield Through(state, tiled_of(state), own=False)
        return
    folder = (out or Path(f"inscan-replay-{time.strftime('%Y%m%d-%H%M%S')}")).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()) and not (folder / "state").is_dir():
        raise FileExistsError(
            f"--out {folder} is not empty and holds no earlier replay: give another folder"
        )
    settings: dict[str, Any] = {
        # Its regions are shown and can be taken by nobody.
        "rescan": "suggest",
        "data_roots": [str(root.resolve()) for root in data_roots],
    }
    # A recorded run is of any beamline: as `inscan explain` and `process` do, all profiles are tried.
    settings["profiles"] = [_absolute(one) for one in profiles] or list(shipped_profiles())
    if threads is not None:
        settings["worker_threads"] = threads
    service = OwnService(folder, settings)
    try:
        service.launch()
        try:
            service.wait()
        except ServiceFailed as error:
            raise OSError(str(error)) from error
        yield Through(service.state_dir, tiled_of(service.state_dir), own=True)
    finally:
        service.stop()


def _absolute(profile: str) -> str:
    path = Path(profile)
    return str(path.resolve()) if path.suffix or len(path.parts) > 1 else profile
