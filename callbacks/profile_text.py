"""A guessed profile as a YAML file for people: each value with the reason beside it, and the open questions on top."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from inscan.callbacks.guess import ProfileGuess

__all__ = ["profile_text"]

_WIDTH = 60


def profile_text(guess: ProfileGuess, source: str) -> str:
    """Write a guess down.

    Parameters
    ----------
    guess
        The guess.
    source
        What it was made from, for people.
    """
    lines = [
        f"# Guessed from {source}. Nothing here is certain until somebody who knows the beamline has read it;",
        "# `inscan config explain profile` describes every key, `inscan profile check FILE --run RUN` tries it.",
    ]
    if guess.questions:
        lines += ["#", "# To be answered:"]
        lines += [f"# - {' '.join(question.split())}" for question in guess.questions]
    return "\n".join([*lines, *_tree(guess.nested(), guess.why, ())]) + "\n"


def _tree(tree: Mapping[str, Any], why: Mapping[str, str], path: tuple[str, ...]) -> list[str]:
    lines: list[str] = []
    indent = "  " * len(path)
    for name, value in tree.items():
        here = (*path, name)
        if isinstance(value, Mapping):
            lines.append(f"{indent}{_scalar(name)}:")
            lines += _tree(value, why, here)
            continue
        text = f"{indent}{_scalar(name)}: {_scalar(value)}"
        reason = " ".join(why.get("|".join(here), "").split())
        lines.append(f"{text:<{_WIDTH}} # {reason}" if reason else text)
    return lines


def _scalar(value: Any) -> str:
    """One YAML value in one line, quoted where it must be."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True).strip()
    return text.removesuffix("\n...").removesuffix("...").strip()
