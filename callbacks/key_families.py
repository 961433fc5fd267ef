"""Data keys that differ only in their numbers, as templates with ``{channel}`` and ``{mcaroi}``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["KeyFamily", "families"]

_NUMBER = re.compile(r"\d+")
# What stands before the number of a spectral window, in contrast to that of a detector channel.
_WINDOW = re.compile(r"roi[_:]?(num)?$", re.IGNORECASE)
_MOST_NUMBERS = 100


@dataclass(frozen=True)
class KeyFamily:
    """Keys of one template.

    Attributes
    ----------
    template
        With ``{channel:02d}`` and ``{mcaroi:02d}`` (as many digits as the keys have) where they differ.
    channels, mcarois
        Numbers that occur, in order; empty where the template has none.
    keys
        The keys themselves.
    """

    template: str
    channels: tuple[int, ...]
    mcarois: tuple[int, ...]
    keys: tuple[str, ...]


def families(keys: Iterable[str]) -> list[KeyFamily]:
    """Group keys; those with more than two numbers that differ stay alone, each its own template."""
    grouped: dict[str, list[str]] = {}
    for key in keys:
        grouped.setdefault(_NUMBER.sub("#", key), []).append(key)
    found: list[KeyFamily] = []
    for group in grouped.values():
        family = _family(sorted(group))
        found += [family] if family else [KeyFamily(_literal(key), (), (), (key,)) for key in group]
    return found


def _family(keys: list[str]) -> KeyFamily | None:
    matches = [list(_NUMBER.finditer(key)) for key in keys]
    numbers = [[match[0] for match in row] for row in matches]
    varying = [
        place for place in range(len(numbers[0])) if len({row[place] for row in numbers}) > 1
    ]
    # One channel, or one window, is named by its number too.
    for place, match in enumerate(matches[0]):
        if place not in varying and _is_window(keys[0], match):
            varying.append(place)
    if not varying or len(varying) > 2:
        return None
    fields: dict[int, str] = {}
    for place in sorted(varying):
        window = _is_window(keys[0], matches[0][place])
        fields[place] = "mcaroi" if window and "mcaroi" not in fields.values() else "channel"
    if len(set(fields.values())) < len(fields):
        return None
    found: dict[str, tuple[int, ...]] = {"channel": (), "mcaroi": ()}
    for place, name in fields.items():
        found[name] = tuple(sorted({int(row[place]) for row in numbers}))
        if max(found[name]) > _MOST_NUMBERS or min(found[name]) < 1:
            return None
    text, end = "", 0
    for place, match in enumerate(matches[0]):
        text += _literal(keys[0][end : match.start()])
        if place in fields:
            widths = {len(row[place]) for row in numbers}
            padded = len(widths) == 1 and match[0].startswith("0")
            text += f"{{{fields[place]}:0{len(match[0])}d}}" if padded else f"{{{fields[place]}}}"
        else:
            text += match[0]
        end = match.end()
    text += _literal(keys[0][end:])
    return KeyFamily(text, found["channel"], found["mcaroi"], tuple(keys))


def _is_window(key: str, match: re.Match[str]) -> bool:
    return _WINDOW.search(key[: match.start()]) is not None


def _literal(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
