"""Weights that were fitted to runs: kept for the next run of the same sample and detector, and for no other."""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inscan.service.processed import BornWeights

STEM = "denoiser"
"""Name of the two files of each entry: `denoiser.safetensors` and its card `denoiser.json`."""
_PER_LINE = 3
_MOST = 200
_SHORTEST = 4
_MOST_BYTES = 64 << 20


class ShelfError(ValueError):
    """Weights that do not match their card, or that cannot be told from others."""


def line_of(meta: Mapping[str, Any]) -> dict[str, Any] | None:
    """What two runs must share before the weights of one may be offered to the other.

    Parameters
    ----------
    meta : mapping
        What the assembler knows of a run.

    Returns
    -------
    dict or None
        Profile, sample, detector, its channels, source and elements; None where the run does not name its sample or
        its detector: nothing may be taken over then.
    """
    sample = meta.get("sample")
    if isinstance(sample, Mapping):
        sample = sample.get("name")
    if not sample or not meta.get("detector"):
        return None
    return {
        "profile": str(meta.get("profile")),
        "sample": str(sample),
        "detector": str(meta["detector"]),
        "source": str(meta.get("source")),
        "channels": [int(n) for n in meta.get("channels") or ()],
        "elements": [str(name) for name in meta.get("elements") or ()],
    }


def birth_of(meta: Mapping[str, Any]) -> dict[str, Any]:
    """`born_of` of weights fitted to a run: which run, and what `line_of` says of it, if anything."""
    return {
        "raw_uid": meta.get("run_uid"),
        "scan_id": meta.get("scan_id"),
        "beamline": meta.get("beamline_id"),
        "time": meta.get("start_time"),
        # A replay may have been given faults: what it learned is offered to nobody.
        **((None if meta.get("replay_of") else line_of(meta)) or {"sample": None}),
    }


def origin(card: Mapping[str, Any]) -> dict[str, Any]:
    """What a report says of weights: their SHA-256, that of their parent, and the run they were born of."""
    return {
        "sha256": card["sha256"],
        "parent_sha256": card.get("parent_sha256"),
        "born_of": card.get("born_of"),
    }


@dataclass(frozen=True)
class Kept:
    """One entry of the shelf.

    Attributes
    ----------
    key : str
        Key of the job whose result they are from.
    folder : Path
    card : dict
        `sha256`, `born_of`, `parent_sha256`, `figures`, and what else the network's card says.
    """

    key: str
    folder: Path
    card: dict[str, Any]

    @property
    def sha256(self) -> str:
        """Digest of the safetensors file."""
        return str(self.card["sha256"])

    @property
    def born_of(self) -> dict[str, Any]:
        """The run they were fitted to."""
        return dict(self.card["born_of"])

    def read(self) -> BornWeights:
        """Read and check them.

        Raises
        ------
        ShelfError
            When the file is not what the card says.
        OSError
            When it cannot be read, or was forgotten meanwhile.
        """
        blob = (self.folder / f"{STEM}.safetensors").read_bytes()
        check(blob, self.card, str(self.folder))
        return BornWeights(blob, self.card)


class Shelf:
    """The folder `weights` of a state directory: one folder for each entry, named by its job's key.

    Result files keep their own copy of what they were made with; the shelf only decides what later runs are offered,
    and may forget. It holds the newest three of each sample and detector, and two hundred in all.

    Parameters
    ----------
    folder : Path
        Made with the first entry.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, key: str, weights: BornWeights) -> Kept:
        """Keep weights, in one step; those of a key that is known are replaced.

        Raises
        ------
        ShelfError
            When they do not match their card, or the card does not say which run they are of.
        OSError
            When they cannot be written.
        """
        check(weights.blob, weights.card, f"job {key[:12]}")
        born = weights.card.get("born_of")
        if not isinstance(born, dict) or not born.get("raw_uid") or not born.get("sample"):
            raise ShelfError(f"weights of job {key[:12]}: their card does not name run and sample")
        place, made = self.folder / key, self.folder / f".{key}.{uuid.uuid4().hex[:8]}"
        made.mkdir(parents=True)
        try:
            _write(made / f"{STEM}.safetensors", weights.blob)
            _write(made / f"{STEM}.json", (json.dumps(weights.card, indent=2) + "\n").encode())
            if place.exists():
                shutil.rmtree(place)
            os.rename(made, place)
        finally:
            shutil.rmtree(made, ignore_errors=True)
        self._tidy()
        return Kept(key, place, dict(weights.card))

    def all(self) -> list[Kept]:
        """What is kept, the newest run first; what cannot be read is passed over."""
        found = []
        for place in self.folder.glob("[0-9a-f]*"):
            try:
                card = json.loads((place / f"{STEM}.json").read_text(encoding="utf-8"))
                kept = Kept(place.name, place, card)
                found.append((float(kept.born_of.get("time") or 0.0), kept.sha256, kept))
            except (OSError, ValueError, KeyError, TypeError):
                continue
        return [kept for *_, kept in sorted(found, key=lambda one: one[:2], reverse=True)]

    def latest(self, meta: Mapping[str, Any]) -> Kept | None:
        """The newest entry that may be offered to a run: same profile, sample, detector, channels and elements.

        The run's own are none of them: when a run is processed again it must not start where it ended.
        """
        line = line_of(meta)
        if line is None:
            return None
        for kept in self.all():
            born = kept.born_of
            if born.get("raw_uid") != meta.get("run_uid") and _same_line(born, line):
                return kept
        return None

    def find(self, wanted: str) -> Kept:
        """One entry by its key, its SHA-256 or the uid of its run, or the first characters of one.

        Raises
        ------
        LookupError
            When there is none, or more than one.
        """
        if len(wanted) < _SHORTEST:
            raise LookupError(f"{wanted!r} is too short: give {_SHORTEST} characters or more")
        found = [
            kept
            for kept in self.all()
            if any(
                str(name).startswith(wanted)
                for name in (kept.key, kept.sha256, kept.born_of.get("raw_uid"))
            )
        ]
        if len(found) != 1:
            raise LookupError(
                f"{wanted!r} names {len(found)} of the weights that are kept; `inscan weights` lists them"
            )
        return found[0]

    def forget(self, kept: Kept) -> None:
        """Offer them to no run any more; result files keep theirs."""
        shutil.rmtree(kept.folder)

    def _tidy(self) -> None:
        lines: list[tuple[dict[str, Any], int]] = []
        for number, kept in enumerate(self.all()):
            born = kept.born_of
            same = [k for k, (line, _) in enumerate(lines) if _same_line(born, line)]
            if not same:
                lines.append((born, 1))
                over = False
            else:
                line, count = lines[same[0]]
                lines[same[0]] = (line, count + 1)
                over = count + 1 > _PER_LINE
            if over or number >= _MOST:
                self.forget(kept)


_LINE = ("profile", "sample", "detector", "source", "channels", "elements")


def _same_line(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(one.get(name) == other.get(name) for name in _LINE)


def read_weights_file(path: Path) -> BornWeights:
    """Read a safetensors file and the card beside it (the same name, `.json`), and hold one against the other.

    Raises
    ------
    ShelfError
        When a file is missing or not readable, or they do not belong together.
    """
    if path.suffix != ".safetensors":
        raise ShelfError(f"weights {path}: expected NAME.safetensors with its card NAME.json")
    beside = path.with_suffix(".json")
    try:
        for file in (path, beside):
            if not file.is_file():
                raise FileNotFoundError(f"no such file: {file}")
            if file.stat().st_size > _MOST_BYTES:
                raise ValueError(f"{file} has more than {_MOST_BYTES} bytes")
        blob, card = path.read_bytes(), json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ShelfError(
            f"weights {path} with card {beside.name} cannot be read: {error}"
        ) from error
    if not isinstance(card, dict):
        raise ShelfError(f"{beside} is no model card")
    check(blob, card, str(path))
    return BornWeights(blob, card)


def check(blob: bytes, card: Mapping[str, Any], where: str) -> None:
    """Hold weights against their card.

    Raises
    ------
    ShelfError
        When the SHA-256 differs.
    """
    found = hashlib.sha256(blob).hexdigest()
    if found != card.get("sha256"):
        raise ShelfError(
            f"{where}: weights with SHA-256 {found}, their card says {card.get('sha256')}"
        )


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
