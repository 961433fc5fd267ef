"""The state directory: made, locked against a second owner, and saying where its service is."""

import errno
import fcntl
import json
import logging
import os
from pathlib import Path
from typing import Any

from inscan.service.settings import Settings

_log = logging.getLogger(__name__)


class StateError(OSError):
    """A state directory that cannot be used; the message says why and what to do."""


class StateDir:
    """The state directory of one running service.

    Parameters
    ----------
    settings : Settings

    Raises
    ------
    StateError
        When it cannot be written, or another service owns it.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.path = settings.state_dir
        folders = (
            self.path,
            settings.spool_dir,
            settings.results_dir,
            settings.live_dir,
            self.logs,
        )
        try:
            for folder in folders:
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._unusable(error) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(self._lock, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._lock)
            raise StateError(
                f"state directory {self.path} belongs to a running service (process {owner}): "
                "stop that one, or choose another with --state"
            ) from error
        try:
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            os.close(self._lock)
            raise self._unusable(error) from error

    def _unusable(self, error: OSError) -> StateError:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "free some room there" if full else "make it writable"
        return StateError(
            f"state directory {self.path} cannot be used: {error.strerror or error}; "
            f"{remedy}, or choose another with --state or the setting state_dir"
        )

    @property
    def logs(self) -> Path:
        """Folder of the child processes' logs."""
        return self.path / "logs"

    def announce(self, addresses: dict[str, Any]) -> None:
        """Write `service.json`: the service is ready."""
        file = self._settings.service_file
        temporary = file.with_suffix(".tmp")
        try:
            temporary.write_text(json.dumps({**addresses, "pid": os.getpid()}), encoding="utf-8")
            os.replace(temporary, file)
        except OSError as error:
            raise self._unusable(error) from error

    def close(self) -> None:
        """Take `service.json` away and let the directory go."""
        try:
            self._settings.service_file.unlink(missing_ok=True)
        except OSError as error:
            # Read-only by now, perhaps; whoever reads it finds nobody at the address.
            _log.warning("%s stays: %s", self._settings.service_file, error)
        os.close(self._lock)
