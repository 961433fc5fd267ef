"""What the writer is told, and what it says of itself."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from inscan.service.messages import InferenceJob


@dataclass(frozen=True)
class Target:
    """The Tiled to write to.

    Attributes
    ----------
    uri : str
    api_key : SecretStr or None
    readable : tuple of Path
        Folders that it may read where they are.
    shared : Path or None
        Folder that it may read and into which results are copied; None to upload what is not in `readable`.
    """

    uri: str
    api_key: SecretStr | None
    readable: tuple[Path, ...] = ()
    shared: Path | None = None


@dataclass(frozen=True)
class Prepare:
    """To the writer: a snapshot of a growing run is in `path`; its final will look like it."""

    job: InferenceJob
    path: str


@dataclass(frozen=True)
class WriterStatus:
    """What the writer is doing.

    Attributes
    ----------
    state : str
        `idle`, `writing`, `waiting` (for Tiled, or the disk) or `stopped`.
    reason : str
        What it waits for, or which results alone Tiled does not take.
    committed : int
        Results that this service has written.
    last_s : float
        Seconds that the latest commit took, 0 before the first.
    pending : int
        Results in the journal that Tiled does not have yet.
    waiting_s : float
        Seconds since Tiled, or the disk, last took something, while it waits; else 0.
    """

    state: str = "idle"
    reason: str = ""
    committed: int = 0
    last_s: float = 0.0
    pending: int = 0
    waiting_s: float = 0.0
