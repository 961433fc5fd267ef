"""A first profile for a beamline, from one of its runs: what each key may be, why, and what only people can say.

A guess is never used by itself: `inscan profile new` writes it down with its reasons, for somebody to read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from inscan.callbacks.guess import ProfileGuess
from inscan.callbacks.guess_txm import camera_image, guess_txm, listed_energies
from inscan.callbacks.guess_xrf import guess_xrf
from inscan.callbacks.handlers import known_specs
from inscan.callbacks.run_summary import RunSummary

__all__ = ["guess_profile"]

_NAMING = ("beamline_id", "beamline", "instrument", "endstation", "facility")
_KIND = ("scan.type", "scan_type", "technique", "scan_kind")


def guess_profile(run: RunSummary, name: str) -> ProfileGuess:
    """Guess a profile that understands a run.

    Parameters
    ----------
    run
        The run.
    name
        Name of the new profile.

    Returns
    -------
    ProfileGuess
        With keys joined by ``|``, such as ``xrf|step|spectrum``: names of the run may hold dots.
    """
    guess = ProfileGuess()
    guess.put("name", name)
    image = camera_image(run)
    energies = listed_energies(run)
    txm = image is not None and energies is not None
    guess.put("technique", "txm" if txm else "xrf")
    _match(run, guess, energies[0] if txm and energies is not None else None)
    if image is not None and energies is not None:
        guess_txm(run, guess, image, energies)
    else:
        guess_xrf(run, guess)
    _files(run, guess)
    guess.put("method|name", "subspace" if txm else "n2n")
    guess.put("rescan|mode", "off", "turn on when limits and motors below it are right")
    return guess


def _match(run: RunSummary, guess: ProfileGuess, energies: str | None) -> None:
    paths = run.paths()
    found = {key: paths[key] for key in (*_NAMING[:1], *_KIND) if _plain(paths.get(key))}
    if not found:
        found = {key: paths[key] for key in _NAMING if _plain(paths.get(key))}
    why = "of this run; every run with these values will be taken"
    if not found and energies is not None:
        guess.put(f"match|{energies}|kind", "list", "every run that lists energies is taken")
        return
    if not found:
        plan = paths.get("plan_name")
        found = {"plan_name": plan if _plain(plan) else "?"}
        why = ""
        guess.questions.append(
            "match: the run names neither a beamline nor a kind of scan; plan_name is only the outermost plan, so"
            " add something like beamline_id to RE.md and put it here"
        )
    for key, value in found.items():
        guess.put(f"match|{key}", value, why)


def _plain(value: Any) -> bool:
    return isinstance(value, str | int) and value != ""


def _files(run: RunSummary, guess: ProfileGuess) -> None:
    folders = {
        str(PurePosixPath(unquote(urlsplit(path).path)).parent)
        for path in run.files.values()
        if path.startswith(("/", "file:"))
    }
    if folders:
        guess.put(
            "data_roots",
            sorted(folders),
            "of this run's files: better the folder that all of yours share",
        )
    for spec, kwargs in run.datum_kwargs.items():
        if spec not in known_specs():
            _layout(spec, kwargs, guess)


def _layout(spec: str, kwargs: Mapping[str, Any], guess: ProfileGuess) -> None:
    """How the files of a resource spec are laid out that no handler of the ecosystem knows."""
    named = next((key for key, value in kwargs.items() if isinstance(value, str)), None)
    if named is not None:
        guess.put(
            f"datum_files|{spec}|dataset_from",
            named,
            f"its datums say {named}: {kwargs[named]!r}; no handler of area-detector-handlers knows the spec",
        )
        return
    guess.put(f"datum_files|{spec}|dataset", "?")
    guess.questions.append(
        f"datum_files.{spec}: no handler of area-detector-handlers knows this spec; which dataset of the HDF5 file, and"
        f" which keyword is its index (its datums have {', '.join(kwargs) or 'none'})?"
    )
