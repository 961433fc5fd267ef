"""Why a run is understood or not: what was seen, which rule failed, which key of the profile would mend it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from inscan.callbacks.assembly import open_assembler
from inscan.callbacks.guess_profile import guess_profile
from inscan.callbacks.profile import BeamlineProfile, Present, agrees, start_value
from inscan.callbacks.run_summary import RunSummary
from inscan.callbacks.updates import Allocate, NotUnderstood, Update

__all__ = ["Explanation", "MatchRule", "describe", "explain"]

_PER_RUN = ("geometry", "xrf", "txm")
# Dotted paths of the start document, in contrast to data keys and streams.
_START_KEYS = re.compile(
    r"^(geometry\|(?!order|scan_input_form)|xrf\|(incident_energy|dwell)$|txm\|(energies|dwell)$)"
)
_FIELD = re.compile(r"\{(channel|mcaroi)[^}]*\}")


@dataclass(frozen=True)
class MatchRule:
    """One line of a profile's ``match``."""

    key: str
    wanted: Any
    got: Any

    @property
    def ok(self) -> bool:
        """The run agrees."""
        return agrees(self.wanted, self.got)

    def __str__(self) -> str:
        got = "nothing" if self.got is None else f"{self.got!r:.60}"
        wanted = repr(self.wanted)
        if isinstance(self.wanted, Present):
            wanted = f"a {self.wanted.kind or 'value'}" if self.wanted.exists else "nothing"
        return f"match.{self.key}: the run has {got}, the profile wants {wanted}"


@dataclass(frozen=True)
class Explanation:
    """What one profile makes of a run.

    Attributes
    ----------
    profile
        Its name.
    outcome
        ``understood``: every map or stack is there. ``not understood``: it matches, and something it says does not
        fit the run. ``no match``: it is for other runs.
    rules
        Its ``match``, line by line.
    reason
        Why it is not understood.
    remedies
        Keys of the profile that do not fit the run, with what would.
    results
        What was assembled, in words.
    warnings
        Of the assembled maps.
    """

    profile: str
    outcome: Literal["understood", "not understood", "no match"]
    rules: tuple[MatchRule, ...]
    reason: str = ""
    remedies: tuple[str, ...] = ()
    results: tuple[str, ...] = ()
    warnings: tuple[str, ...] = field(default=())


def explain(
    run: RunSummary,
    documents: Callable[[], Iterable[tuple[str, Mapping[str, Any]]]],
    profile: BeamlineProfile,
    allocate: Allocate,
    data_roots: Sequence[Path] = (),
) -> Explanation:
    """Try a profile on a run.

    Parameters
    ----------
    run
        Summary of the run.
    documents
        Reads its documents anew.
    profile
        The profile.
    allocate
        Where the arrays go; see `inscan.callbacks.assembly.open_assembler`.
    data_roots
        Folders under which detector files may be read, besides the profile's own.
    """
    rules = tuple(
        MatchRule(path, wanted, start_value(run.start, path))
        for path, wanted in profile.match.items()
    )
    failed = next((rule for rule in rules if not rule.ok), None)
    if failed is not None:
        return Explanation(profile.name, "no match", rules, str(failed))
    finals: list[Update] = []
    try:
        assembler = open_assembler(run.start, [profile], allocate, data_roots=data_roots)
        for name, doc in documents():
            finals += [u for u in assembler(name, doc) if u.kind != "snapshot"]
        # A run without stop is processed as far as it went.
        finals += assembler.finish("the documents have no stop")
    except NotUnderstood as error:
        remedies = tuple(_remedies(run, profile))
        return Explanation(profile.name, "not understood", rules, str(error), remedies)
    rejected = [u for u in finals if u.kind == "rejected"]
    warnings = tuple(dict.fromkeys(w for u in finals for w in u.meta.get("warnings", ())))
    done = tuple(describe(u) for u in finals if u.kind == "final")
    if rejected or not finals:
        reason = "; ".join(str(u.meta.get("reason", "")) for u in rejected) or "nothing came of it"
        remedies = (*_unreadable(run, warnings), *_remedies(run, profile))
        return Explanation(profile.name, "not understood", rules, reason, remedies, done, warnings)
    return Explanation(profile.name, "understood", rules, "", (), done, warnings)


def describe(update: Update) -> str:
    """Say in a line what an update holds."""
    meta = update.meta
    if meta.get("technique") == "xrf":
        measured = update.arrays["measured"]
        rows, cols = measured.shape
        what = f"map of {rows} x {cols} pixels, {', '.join(meta.get('elements', []))}"
        channels = len(meta.get("channels", []))
        done = f"{int(measured.sum())} of {measured.size} pixels measured"
        return f"{update.stream}: {what}; {channels} detector channels; {done}"
    energies = meta.get("energies_ev") or [float("nan")]
    size = (meta.get("shape") or [0, 0, 0])[1:]
    return (
        f"{update.stream}: stack of {len(energies)} energies, {min(energies):.1f} ... {max(energies):.1f} eV, frames of"
        f" {size[0]} x {size[1]}; {meta.get('rows_done')} energies measured"
    )


def _unreadable(run: RunSummary, warnings: Iterable[str]) -> Iterator[str]:
    """What opens detector files that were refused for the folder they are in."""
    if any("outside the data roots" in warning for warning in warnings):
        paths = (unquote(urlsplit(p).path) if "://" in p else p for p in run.files.values())
        folders = dict.fromkeys(str(PurePosixPath(path).parent) for path in paths)
        yield (
            f"data_roots: the detector files are in {', '.join(folders)}, where nothing may be read; add it there"
            " or to the service's settings, or try with --data-root"
        )


def _remedies(run: RunSummary, profile: BeamlineProfile) -> Iterator[str]:
    """Keys whose value does not occur in the run, where the run has something that would do."""
    guess = guess_profile(run, profile.name)
    said = profile.model_dump()
    for key, value in guess.values.items():
        section = key.split("|")[0]
        if section not in _PER_RUN or key not in guess.why:
            continue
        known = _value(said, key)
        if known == value or (known is not None and _occurs(run, key, known)):
            continue
        yield f"{key.replace('|', '.')}: {_short(known)} does not fit; {_short(value)} would ({guess.why[key]})"


def _occurs(run: RunSummary, key: str, value: Any) -> bool:
    if _START_KEYS.match(key):
        return isinstance(value, str) and start_value(run.start, value) is not None
    names = [*run.streams, *(name for stream in run.streams.values() for name in stream.keys)]
    names += [name for stream in run.streams.values() for name in stream.configuration]
    templates = value if isinstance(value, tuple | list) else (value,)
    for template in templates:
        if not isinstance(template, str):
            return True
        parts = _FIELD.split(template)[::2]
        pattern = re.compile(r"\d+".join(map(re.escape, parts)))
        if any(pattern.fullmatch(name) for name in names):
            return True
    # Words such as keV are no names: whether they are right cannot be seen here.
    return key.split("|")[-1] in ("order", "scan_input_form", "energies_units", "edge")


def _value(tree: Any, key: str) -> Any:
    for part in key.split("|"):
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree


def _short(value: Any) -> str:
    return "nothing" if value is None else f"{value!r:.80}"
