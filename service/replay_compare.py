"""Whether two runs gave the same result: a replay and what it is the replay of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
from tiled.client import from_uri
from tiled.queries import Eq

from inscan.service.show import TiledAccess
from inscan.service.tiled_http import PROCESSED

__all__ = ["compare"]

_BLOCK = 64 << 20  # bytes read of each result at a time
_EXPLAINS = ("recipe", "parameters", "profile", "device", "weights_sha256", "input_digest")
"""What of a result's provenance explains another result."""


def compare(
    original: str, replay: str, results: TiledAccess, elsewhere: Sequence[TiledAccess] = ()
) -> list[dict[str, Any]]:
    """Compare the results of two runs.

    Parameters
    ----------
    original, replay
        Uids of the raw runs.
    results
        Where the results of the replay are, and perhaps those of the original.
    elsewhere
        Where else those of the original may be.

    Returns
    -------
    list of dict
        For each result of the replay: ``stream``, ``recipe``, ``result_uid``, ``verdict``, ``warnings``, and of what it
        is compared with ``original_uid`` (None where there is none), ``same_bytes`` (all arrays), ``max_difference`` of
        ``values``, and ``because``: what differs in how they were made.

    Raises
    ------
    ConnectionError
        Tiled does not answer.
    """
    compared = []
    with _processed(results) as mine:
        for run in _results(mine, replay):
            start = run.metadata["start"]
            said = {
                "stream": start.get("raw_stream"),
                "recipe": start.get("recipe"),
                "result_uid": start["uid"],
                "verdict": start.get("verdict"),
                "warnings": list(start.get("warnings") or []),
                "original_uid": None,
            }
            for place in (results, *elsewhere):
                with _processed(place) as theirs:
                    other = _counterpart(start, _results(theirs, original))
                    if other is not None:
                        said |= _compared(run, other)
                        break
            compared.append(said)
    return compared


@contextmanager
def _processed(access: TiledAccess) -> Iterator[Any]:
    key = access.api_key and access.api_key.get_secret_value()
    try:
        client: Any = from_uri(access.uri, api_key=key)
    except (httpx.HTTPError, RuntimeError, ValueError) as error:
        raise ConnectionError(f"Tiled at {access.uri} cannot be read: {error}") from error
    try:
        yield client[PROCESSED] if PROCESSED in client else {}
    finally:
        client.context.http_client.close()


def _results(processed: Any, raw_uid: str) -> list[Any]:
    if isinstance(processed, dict):
        return []  # a Tiled that holds no results
    found = [
        run
        for run in processed.search(Eq("start.raw_uid", raw_uid)).values()
        if (run.metadata.get("stop") or {}).get("exit_status") == "success"
        # Its fine maps are not replayed with a survey.
        and run.metadata["start"].get("recipe") != "composite"
    ]
    return sorted(found, key=lambda run: run.metadata["start"]["time"])


def _counterpart(start: Mapping[str, Any], others: Sequence[Any]) -> Any | None:
    """The result of the same stream that was asked for in the same words; else the latest of that stream."""
    same = [one for one in others if one.metadata["start"].get("raw_stream") == start["raw_stream"]]
    asked = [
        one
        for one in same
        if all(
            _made(one.metadata["start"], key) == _made(start, key)
            for key in ("recipe", "parameters")
        )
    ]
    return (asked or same or [None])[-1]


def _made(start: Mapping[str, Any], key: str) -> Any:
    return (start.get("provenance") or {}).get(key)


def _compared(run: Any, other: Any) -> dict[str, Any]:
    mine, theirs = run.metadata["start"], other.metadata["start"]
    said = {
        "original_uid": theirs["uid"],
        # Over all arrays of the result file, so that nothing needs to be read where they are the same.
        "same_bytes": mine["result_digest"] == theirs["result_digest"],
        "max_difference": 0.0,
        "because": [key for key in _EXPLAINS if _made(mine, key) != _made(theirs, key)],
    }
    if not said["same_bytes"]:
        said["max_difference"] = _difference(run["primary"]["values"], other["primary"]["values"])
    return said


def _difference(one: Any, other: Any) -> float | None:
    """Largest difference of two arrays in Tiled where both are known; None for other shapes."""
    if tuple(one.shape) != tuple(other.shape):
        return None
    rows = max(1, _BLOCK // max(1, 4 * int(np.prod(one.shape[1:]))))
    largest = 0.0
    for first in range(0, one.shape[0], rows):
        part = slice(first, first + rows)
        a, b = (np.asarray(node[part], dtype=float) for node in (one, other))
        known = np.isfinite(a) & np.isfinite(b)
        if known.any():
            largest = max(largest, float(np.abs(a - b)[known].max()))
    return largest
