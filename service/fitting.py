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

from inscan.models.infer import Denoiser, load_denoiser, network_of
from inscan.models.weights import Weights, load_weights, save_weights
from inscan.service.messages import InferenceJob
from inscan.service.processed import BornWeights
from inscan.service.shelf import STEM, birth_of, origin

_FIRST, _LAST = 0.1, 0.75
"""Fractions of a job at which the method begins and ends, as far as the progress shown is concerned."""


def given(arrays: Mapping[str, np.ndarray], role: str) -> Weights | None:
    """Weights that came with a job: `start` for those it is offered, `named` for those its profile names.

    A safetensors file and its card, as bytes, in the arrays `ROLE_weights` and `ROLE_card`; None without them.

    Raises
    ------
    WeightsError
        When they do not match their card.
    """
    names = (f"{role}_weights", f"{role}_card")
    if not all(name in arrays for name in names):
        return None
    blob, card = (np.asarray(arrays[name], np.uint8).tobytes() for name in names)
    with tempfile.TemporaryDirectory(prefix="inscan-") as folder:
        Path(folder, f"{STEM}.safetensors").write_bytes(blob)
        Path(folder, f"{STEM}.json").write_bytes(card)
        return load_weights(STEM, Path(folder))


def denoiser_of(
    job: InferenceJob, arrays: Mapping[str, np.ndarray], progress: Callable[[float], None]
) -> Denoiser:
    """The shipped denoiser, or that of the profile; it reports progress, and can be told to stop, before every pass of
    its network."""
    denoiser, named = load_denoiser(), given(arrays, "named")
    if named is not None:
        denoiser = replace(denoiser, net=network_of(named).to(denoiser.device), weights=named)
    began = time.monotonic()

    def check() -> None:
        share = min(1.0, (time.monotonic() - began) / job.granted_s) if job.granted_s else 0.0
        progress(_FIRST + (_LAST - _FIRST) * share)

    return replace(denoiser, check=check)


def offered(arrays: Mapping[str, np.ndarray], like: Denoiser) -> Denoiser | None:
    """The denoiser of an earlier run that a job is offered as a starting point, if any.

    Raises
    ------
    WeightsError
        When its weights do not match their card.
    """
    start = given(arrays, "start")
    if start is None:
        return None
    return replace(like, net=network_of(start).to(like.device), weights=start)


def account(
    report: Mapping[str, Any],
    denoiser: Denoiser,
    start: Denoiser | None,
    kept: BornWeights | None,
) -> dict[str, Any] | None:
    """What a report says of fine-tuning: which weights it began with, how all of them scored, and what it ended with.

    Parameters
    ----------
    report : mapping
        Of the method.
    denoiser, start : Denoiser
        What it was given, and what it was offered.
    kept : BornWeights or None
        What it wanted kept.

    Returns
    -------
    dict or None
        `started_from` (`given` or `last_run`), `given_sha256`, `offered` (SHA-256, parent and `born_of`),
        `final_sha256`, `heldout_nll` (Poisson negative log likelihood of held-out counts: of what was given, offered,
        and of the result), `steps_done` (asked for as `fit_steps`, they give the same result), `steps_kept`, and `text`
        for people. None where nothing was fine-tuned.
    """
    tuning = report.get("figures", {}).get("fine_tuning")
    if tuning is None:
        return None
    from_start = start is not None and tuning["started_from"] == "start"
    parent = start if start is not None and from_start else denoiser
    final = kept.card["sha256"] if kept is not None else parent.weights.sha256
    born = start.weights.card.get("born_of") or {} if start is not None else {}
    scores = {"given": tuning["heldout_nll_zero_shot"], "result": tuning["heldout_nll"]}
    text = f"fine-tuned, {tuning['steps_kept']} of {tuning['steps_done']} steps kept"
    if start is not None:
        scores["offered"] = tuning["heldout_nll_start"]
        name = f"run {str(born.get('raw_uid'))[:8]} (scan {born.get('scan_id')})"
        text += (
            f"; began with the weights born of {name}: held-out counts {scores['offered']:.6g}, "
            f"{scores['given']:.6g} with the others"
            if from_start
            else f"; the weights born of {name} were passed over: held-out counts "
            f"{scores['offered']:.6g}, {scores['given']:.6g} without them"
        )
    return {
        "started_from": "last_run" if from_start else "given",
        "given_sha256": denoiser.weights.sha256,
        "offered": None if start is None else origin(start.weights.card),
        "final_sha256": final,
        "heldout_nll": scores,
        "steps_done": tuning["steps_done"],
        "steps_kept": tuning["steps_kept"],
        "text": text,
    }


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
