"""Fine-tuning as a worker sees it: where it starts, what it brings home, and how far it is."""

import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from inscan.models.infer import Denoiser, load_denoiser
from inscan.models.weights import save_weights
from inscan.service.messages import InferenceJob
from inscan.service.processed import BornWeights
from inscan.service.shelf import STEM, birth_of

START = ("start_weights", "start_card")
"""Arrays of a job that hold the weights it is offered: a safetensors file and its card, as bytes."""
_FIRST, _LAST = 0.1, 0.75
"""Fractions of a job at which the method begins and ends, as far as the progress shown is concerned."""


def watched(denoiser: Denoiser, job: InferenceJob, progress: Callable[[float], None]) -> Denoiser:
    """A denoiser that reports progress, and can be told to stop, before every pass of its network."""
    began = time.monotonic()

    def check() -> None:
        share = min(1.0, (time.monotonic() - began) / job.granted_s) if job.granted_s else 0.0
        progress(_FIRST + (_LAST - _FIRST) * share)

    return replace(denoiser, check=check)


def offered(arrays: Mapping[str, np.ndarray], shipped: Denoiser) -> Denoiser | None:
    """The weights of an earlier run that a job is offered as a starting point, if any.

    Raises
    ------
    WeightsError
        When they do not match their card.
    """
    if not all(name in arrays for name in START):
        return None
    blob, card = (np.asarray(arrays[name], np.uint8).tobytes() for name in START)
    with tempfile.TemporaryDirectory(prefix="inscan-") as folder:
        Path(folder, f"{STEM}.safetensors").write_bytes(blob)
        Path(folder, f"{STEM}.json").write_bytes(card)
        found = load_denoiser(shipped.device, STEM, Path(folder))
    return replace(found, tile=shipped.tile, check=shipped.check)


class Keeper:
    """Takes the weights that a method wants kept, and makes a file and a card of them.

    Parameters
    ----------
    job : InferenceJob
        Its run goes into the card as `born_of`.
    parents : sequence of Denoiser
        What the fitting may have started from; licence and architecture follow from the one that it did start from.
    """

    def __init__(self, job: InferenceJob, *parents: Denoiser) -> None:
        self._job = job
        self._parents = {parent.weights.sha256: parent.weights.card for parent in parents}
        self.weights: BornWeights | None = None

    def __call__(self, tensors: Mapping[str, torch.Tensor], card: dict[str, Any]) -> None:
        """Keep them; the last call counts."""
        parent = self._parents[str(card["parent_sha256"])]
        full = {
            **{name: parent[name] for name in ("licence", "architecture", "calibration")},
            "training": "fine-tuned on the counts of one run, self-supervised",
            **card,
            "born_of": birth_of(self._job.meta),
        }
        with tempfile.TemporaryDirectory(prefix="inscan-") as folder:
            saved = save_weights(Path(folder), STEM, tensors, full)
            blob = Path(folder, f"{STEM}.safetensors").read_bytes()
        self.weights = BornWeights(blob, json.loads(json.dumps(dict(saved.card))))
