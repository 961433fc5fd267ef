"""Weights and their model cards: `NAME.safetensors` and `NAME.json`, checked by SHA-256."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

__all__ = ["SHIPPED", "Weights", "WeightsError", "load_weights", "save_weights"]

SHIPPED = Path(__file__).with_name("weights")
_MOST_BYTES, _MOST_CARD_BYTES = 1 << 30, 16 << 20
_CARD_KEYS = ("name", "sha256", "licence", "training", "architecture")


class WeightsError(ValueError):
    """Weights that are missing, damaged or do not match their card."""


@dataclass(frozen=True)
class Weights:
    """Tensors of a network and the card that says where they come from.

    Attributes
    ----------
    name : str
    tensors : mapping of str to tensor
        float32, on the CPU.
    card : mapping
        Keys `name`, `sha256` (of the safetensors file), `licence`, `training`, `architecture`,
        and whatever else the training recorded (`figures`, `calibration`, ...).
    """

    name: str
    tensors: Mapping[str, torch.Tensor]
    card: Mapping[str, Any]

    @property
    def sha256(self) -> str:
        return str(self.card["sha256"])


def save_weights(
    folder: Path, name: str, tensors: Mapping[str, torch.Tensor], card: Mapping[str, Any]
) -> Weights:
    """Write weights as float16 safetensors and their card, both atomically, the card last.

    Parameters
    ----------
    folder : Path
        Created if it does not exist.
    name : str
        Stem of both files.
    tensors : mapping of str to tensor
    card : mapping
        JSON-able; `name` and `sha256` are set here.

    Returns
    -------
    Weights
        As `load_weights` would return them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    half = {key: value.detach().cpu().half().contiguous() for key, value in tensors.items()}
    blob = save(half)
    full_card = {**card, "name": name, "sha256": hashlib.sha256(blob).hexdigest()}
    missing = [key for key in _CARD_KEYS if key not in full_card]
    if missing:
        raise WeightsError(f"the model card of {name!r} lacks {', '.join(missing)}")
    _replace(folder / f"{name}.safetensors", blob)
    _replace(folder / f"{name}.json", (json.dumps(full_card, indent=2) + "\n").encode())
    return load_weights(name, folder)


def load_weights(name: str, folder: Path = SHIPPED) -> Weights:
    """Read weights and check them against their card.

    Parameters
    ----------
    name : str
        Stem of the files, "denoiser" for example.
    folder : Path
        Where they lie; the shipped weights by default.

    Returns
    -------
    Weights

    Raises
    ------
    FileNotFoundError
        If either file is missing; says which weights are there.
    WeightsError
        If the card is incomplete or the SHA-256 differs.
    """
    path, card_path = folder / f"{name}.safetensors", folder / f"{name}.json"
    for needed in (path, card_path):
        if not needed.is_file():
            there = ", ".join(sorted(p.stem for p in folder.glob("*.safetensors"))) or "none"
            raise FileNotFoundError(f"no weights {needed}; weights in {folder}: {there}")
    card = _card(card_path)
    missing = [key for key in _CARD_KEYS if key not in card]
    if missing:
        raise WeightsError(f"the model card {card_path} lacks {', '.join(missing)}")
    blob = _bounded(path, _MOST_BYTES)
    found = hashlib.sha256(blob).hexdigest()
    if found != card["sha256"]:
        raise WeightsError(
            f"{path} has SHA-256 {found}, its card says {card['sha256']}: the file is damaged or "
            "belongs to another card; install inscan again or retrain"
        )
    try:
        tensors = {key: value.float() for key, value in load(blob).items()}
    except SafetensorError as error:
        raise WeightsError(f"{path} fits its card and is no safetensors file: {error}") from error
    return Weights(name, tensors, card)


def _card(path: Path) -> dict[str, Any]:
    try:
        card = json.loads(_bounded(path, _MOST_CARD_BYTES))
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is no model card: {error}") from error
    if not isinstance(card, dict):
        raise WeightsError(f"{path} is no model card: expected keys and values")
    return card


def _bounded(path: Path, most: int) -> bytes:
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise WeightsError(f"{path} is larger than any of ours: more than {most} bytes")
    return content


def _replace(path: Path, data: bytes) -> None:
    new = path.with_name(path.name + ".new")
    with open(new, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)
