"""What a key may do at a Tiled with users: as much as the writer needs, and no more."""

from collections.abc import Sequence

import httpx
from pydantic import SecretStr

from inscan.service.settings import Settings

__all__ = ["NEEDED", "command", "judge", "key_of", "needed", "scopes_of"]

NEEDED = (
    "read:metadata",  # is there such a result already, and is it ours?
    "read:data",  # rows that a run lost on its way; what `inscan show` draws
    "write:metadata",
    "create:node",
    "delete:node",  # what a crash left half-written
    "delete:revision",
)
_REGISTERED, _UPLOADED = "register", "write:data"
_MOST_BYTES = 1 << 16


def needed(shared: bool) -> tuple[str, ...]:
    """Scopes of the writer's key, with a folder that it shares with Tiled or without."""
    return (*NEEDED, _REGISTERED if shared else _UPLOADED)


def command(shared: bool) -> str:
    """The command that makes such a key, for somebody who is logged in as an owner of these scopes."""
    scopes = " ".join(f"--scopes {scope}" for scope in needed(shared))
    return f"tiled api_key create --expires-in 365d --note inscan {scopes}"


def scopes_of(uri: str, key: SecretStr, timeout_s: float) -> list[str] | None:
    """Scopes of a key; None where the Tiled has one key for everything, or does not say.

    Raises
    ------
    OSError
        When it does not answer.
    """
    root = uri.rstrip("/")
    root = root if root.endswith("/api/v1") else f"{root}/api/v1"
    headers = {"Authorization": f"Apikey {key.get_secret_value()}"}
    try:
        with httpx.Client(trust_env=False, timeout=timeout_s, headers=headers) as client:
            answer = client.get(f"{root}/auth/apikey")
            found = answer.json() if len(answer.content) < _MOST_BYTES else None
    except (httpx.HTTPError, ValueError, RecursionError) as error:
        raise OSError(f"{uri} does not say what the key may do: {type(error).__name__}") from error
    scopes = found.get("scopes") if answer.status_code == 200 and isinstance(found, dict) else None
    return [str(scope) for scope in scopes] if isinstance(scopes, list) else None


def judge(scopes: Sequence[str], shared: bool) -> tuple[str, str]:
    """What is wrong with a key's scopes, and what to do; both empty where they are right."""
    missing = [scope for scope in needed(shared) if scope not in scopes]
    if "inherit" in scopes:
        return "the key may do whatever its owner may", f"make one that may less: {command(shared)}"
    # Registering and uploading are interchangeable as settings change; neither reaches beyond nodes.
    more = [scope for scope in scopes if scope not in (*NEEDED, _REGISTERED, _UPLOADED)]
    if missing:
        return f"the key lacks {', '.join(missing)}", f"make another: {command(shared)}"
    if more:
        return (
            f"the key may more than is needed: {', '.join(more)}",
            f"make one that may less: {command(shared)}",
        )
    return "", ""


def key_of(settings: Settings, timeout_s: float) -> tuple[bool, str, str] | None:
    """Whether the key of a foreign Tiled is right, what it may do, and what to do; None where there is no such key."""
    given = settings.tiled
    if given.uri is None or given.api_key is None:
        return None
    shared = given.readable_storage is not None
    try:
        scopes = scopes_of(given.uri, given.api_key, timeout_s)
    except OSError as error:
        return False, str(error), "see the check of Tiled"
    if scopes is None:
        return True, "the one key of a Tiled without users, or it does not say what it may do", ""
    wrong, remedy = judge(scopes, shared)
    return not wrong, wrong or f"may {', '.join(scopes)}", remedy
