"""Make the shipped denoiser from nothing: samples, training, calibration, model card.

    inscan train n2n

calls `train_n2n`. The same plan on the same machine and number of threads gives the same weights.
"""

import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from inscan.models.calibrating import calibrate_denoiser
from inscan.models.counting import denoise_counts
from inscan.models.infer import Denoiser, choose_device, network_of
from inscan.models.pool import POOL_VERSION, training_pool
from inscan.models.training import Trained, TrainingPlan, train_denoiser
from inscan.models.weights import SHIPPED, Weights, load_weights, save_weights

__all__ = ["publish", "train_n2n"]

_POOL = 1500
_POOL_SEED = 1
_CALIBRATION_POOL = 240
_CALIBRATION_SEED = 900_001  # never one of the training's


def train_n2n(
    folder: Path = SHIPPED,
    plan: TrainingPlan | None = None,
    *,
    samples: int = _POOL,
    device: str | torch.device | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> Weights:
    """Train, calibrate and write the denoiser.

    Parameters
    ----------
    folder : Path
        Where `denoiser.safetensors` and its card go; the package's own weights by default.
    plan : TrainingPlan, optional
        The shipped weights come from the default one: about 40 minutes on two CPU cores.
    samples : int
        Size of the pool of samples.
    device : str or torch.device, optional
        CUDA where present, else the CPU.
    progress : callable (step, loss), optional
        Called now and then.

    Returns
    -------
    Weights
    """
    pool = training_pool(samples, seed=_POOL_SEED)
    plan = plan or TrainingPlan()

    def report(step: int, trained: Trained) -> None:
        if progress:
            progress(step, trained.losses[-1] if trained.losses else float("nan"))

    every = max(1, min(500, plan.steps // 10))
    trained = train_denoiser(
        pool, plan, device=choose_device(device), checkpoint=report, checkpoint_every=every
    )
    return publish(trained, folder, samples=samples, device=device)


def publish(
    trained: Trained,
    folder: Path = SHIPPED,
    *,
    samples: int = _POOL,
    device: str | torch.device | None = None,
    figures: Mapping[str, Any] | None = None,
) -> Weights:
    """Calibrate trained weights as they are shipped (float16) and write them with their card.

    Parameters
    ----------
    trained : Trained
    folder : Path
    samples : int
        Size of the pool that was trained on.
    device : str or torch.device, optional
    figures : mapping, optional
        Further figures for the card.

    Returns
    -------
    Weights
    """
    card: dict[str, Any] = {
        "description": "bias-free U-Net for maps of counts and images with Gaussian noise, "
        "conditioned on the noise and guided by a second image",
        "licence": "BSD-3-Clause",
        "architecture": {
            "network": "inscan.models.unet.UNet",
            "widths": list(trained.plan["network"]["widths"]),
            "blocks": trained.plan["network"]["blocks"],
            "parameters": sum(t.numel() for t in trained.tensors.values()),
        },
        "training": {
            "data": "generated, families of inscan.profiles.sample_families; cells, Siemens stars "
            "and battery particles never seen",
            "pool_version": POOL_VERSION,
            "pool_seed": _POOL_SEED,
            "samples": samples,
            "plan": trained.plan,
            "seconds": round(trained.seconds, 1),
            "last_loss": round(float(np.mean(trained.losses[-5:])), 5) if trained.losses else None,
            "torch": torch.__version__,
            "machine": platform.machine(),
            "command": "inscan train n2n",
        },
    }
    # The card needs its calibration, the calibration the weights as rounded by saving them.
    draft = save_weights(folder, "denoiser", trained.tensors, {**card, "calibration": None})
    denoiser = Denoiser(network_of(draft), draft, choose_device(device))
    table = calibrate_denoiser(
        denoiser, training_pool(_CALIBRATION_POOL, seed=_CALIBRATION_SEED), seed=1
    )
    card["calibration"] = table.to_card()
    card["figures"] = {**_figures(denoiser), **(figures or {})}
    save_weights(folder, "denoiser", trained.tensors, card)
    return load_weights("denoiser", folder)


def _figures(denoiser: Denoiser) -> dict[str, Any]:
    """Gain in counting time on training families at seeds never trained on."""
    rng = np.random.default_rng(7)
    gains: dict[str, list[float]] = {}
    for maps in training_pool(24, seed=_CALIBRATION_SEED + 1):
        for peak in (2.0, 10.0, 50.0):
            mean = peak * (0.03 + 0.97 * maps)
            counts = rng.poisson(mean).astype(np.float32)
            found = denoise_counts(denoiser, counts, np.ones_like(counts), 1).counts
            raw = np.square(counts - mean).mean(axis=(1, 2))
            left = np.square(found - mean).mean(axis=(1, 2))
            gains.setdefault(f"peak_{peak:g}", []).extend(np.log(raw / left).tolist())
    return {
        "training_families_dwell_factor": {
            peak: round(float(np.exp(np.mean(values))), 2) for peak, values in gains.items()
        }
    }
