"""Keys of other programs, Tiled's above all: from a file or the environment, and never handed on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inscan.callbacks.pass_file import read_private

__all__ = ["NOT_FOR_WORKERS", "plain_uri", "read_key", "with_key"]

NOT_FOR_WORKERS = frozenset(
    {
        "CREDENTIALS_DIRECTORY",
        "INSCAN_APPROVE_PASS",
        "INSCAN_SOURCE_TILED_API_KEY",
        "INSCAN_TILED_API_KEY",
        "INSCAN_TILED_API_KEY_FILE",
        "QSERVER_ZMQ_PRIVATE_KEY_FOR_SERVER",
        "TILED_API_KEY",
        "TILED_SINGLE_USER_API_KEY",
    }
)
"""Environment variables that a process which only computes does not get."""

_MOST_BYTES = 4096
_MOST_READ = 1 << 16
_CONTAINER_SECRETS = Path("/run/secrets")


def with_key(values: Any) -> Any:
    """Take `api_key` of a mapping of settings from its `api_key_file`, where it names one.

    Raises
    ------
    ValueError
        When both are given, or the file cannot be used; never shows what is in it.
    """
    if not isinstance(values, Mapping) or values.get("api_key_file") is None:
        return values
    if values.get("api_key") is not None:
        raise ValueError("api_key and api_key_file are both given: keep the file alone")
    return {**values, "api_key": read_key(Path(str(values["api_key_file"])))}


def plain_uri(uri: str | None) -> str | None:
    """Refuse an address with a key or a password in it: addresses are in logs and shown to everybody."""
    if uri is not None and ("api_key=" in uri or "@" in uri.partition("://")[2].partition("/")[0]):
        raise ValueError("an address without key or password: those go into api_key_file")
    return uri


def read_key(path: Path) -> str:
    """Read a key: one line, in a file that only its owner and group may read.

    Raises
    ------
    ValueError
        When it cannot be read, others may read it, or it holds no key.
    """
    closed = 0 if _of_this_container(path) else 0o027
    content = read_private(path, _MOST_READ, others=closed)
    try:
        key = content.decode("ascii").strip()
    except UnicodeDecodeError:
        key = ""
    if (
        not key
        or len(content) > _MOST_BYTES
        or any(c.isspace() or not c.isprintable() for c in key)
    ):
        raise ValueError(f"key file {path} holds no key: expected one line of letters and digits")
    return key


def _of_this_container(path: Path) -> bool:
    """Whether a container engine put it there, for everybody in the container, which is us alone."""
    return path.resolve().is_relative_to(_CONTAINER_SECRETS)
