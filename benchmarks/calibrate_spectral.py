"""Make `models/spectral_calibration.py` again: run it after the denoiser's weights have changed.

python benchmarks/calibrate_spectral.py [--cubes 40]

Spectrum images of the training families with random spectra; none is used to judge.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from inscan.models.infer import Denoiser, load_denoiser
from inscan.models.spectral_phantoms import random_phantom
from inscan.models.spectral_subspace import fit_subspace, write_back
from inscan.models.spectral_trust import SpectralTable
from inscan.models.trust import LEVELS

OUT = Path(__file__).resolve().parents[1] / "models" / "spectral_calibration.py"
_HEIGHTS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3.0, 6.0)
_SPREADS = (0.06, 0.1, 0.17, 0.3)
_VOXELS = 12000  # of each cube, half of them drawn from its brightest tenth
_ENOUGH = 1500
_WILD = 12.0  # one wild voxel must not set the sigma of a bin


def _gather(cubes: int, denoiser: Denoiser) -> NDArray[np.float64]:
    """Truth, value, sigma and mean counts of the cube, for voxels of many cubes; shape (4, n)."""
    gathered = []
    for index in range(cubes):
        rng = np.random.default_rng([index, 99])
        mean = random_phantom(rng).mean
        counts = rng.poisson(mean)
        mask = np.ones(mean.shape[:2], dtype=bool)
        fit = fit_subspace(counts, mask, None, denoiser, 0, None)
        values, sigma = np.empty(mean.shape, np.float32), np.empty(mean.shape, np.float32)
        factor = counts.sum() / write_back(fit, values, sigma, mask)
        values, sigma = values * factor, sigma * factor
        bright = np.flatnonzero(values > np.quantile(values, 0.9))
        voxels = np.concatenate(
            [rng.integers(mean.size, size=_VOXELS // 2), rng.choice(bright, _VOXELS // 2)]
        )
        level = np.full(_VOXELS, counts.mean())
        gathered.append(np.stack([*(z.ravel()[voxels] for z in (mean, values, sigma)), level]))
        print(f"cube {index + 1} of {cubes}", flush=True)
    return np.concatenate(gathered, axis=1)


def _table(truth, values, sigma, level) -> SpectralTable:
    heights, spreads = np.asarray(_HEIGHTS), np.asarray(_SPREADS)
    number = (len(heights) + 1) * (len(spreads) + 1)
    levels = np.asarray(LEVELS)
    empty = np.ones((len(levels), number))
    table = SpectralTable(heights, spreads, np.ones(number), empty, empty)
    z = np.clip((truth - values) / np.maximum(sigma, 1e-12), -_WILD, _WILD)
    bins = table.bins(values, sigma, level)
    scale, below, above = np.ones(number), empty.copy(), empty.copy()
    for index in range(number):
        inside = z[bins == index]
        if inside.size < _ENOUGH:
            inside = z[bins // (len(spreads) + 1) == index // (len(spreads) + 1)]
        scale[index] = np.sqrt(np.mean(inside**2))
        tails = np.quantile(
            inside / scale[index], np.concatenate([0.5 - levels / 2, 0.5 + levels / 2])
        )
        # A value may be the end of its interval, never outside it.
        below[:, index] = np.maximum(-tails[: len(levels)], 0)
        above[:, index] = np.maximum(tails[len(levels) :], 0)
    return SpectralTable(heights, spreads, scale, below, above)


def _source(table: SpectralTable, cubes: int, sha256: str) -> str:
    lines = [
        '"""Calibration of `spectral`, made by `benchmarks/calibrate_spectral.py`; do not edit."""',
        "",
        "import numpy as np",
        "",
        "from inscan.models.spectral_trust import SpectralTable",
        "",
        '__all__ = ["DENOISER_SHA256", "TABLE"]',
        "",
        f"# {cubes} spectrum images of the training families, 4 to 400 counts per pixel.",
        f'DENOISER_SHA256 = "{sha256}"',
        "# fmt: off",
        "TABLE = SpectralTable(",
    ]
    for name, value in vars(table).items():
        lines.append(f"    {name}=np.array([")
        for row in np.atleast_2d(value):
            texts = [f"{x:.4g}" for x in row]
            packed = [", ".join(texts[k : k + 10]) for k in range(0, len(texts), 10)]
            if value.ndim == 1:
                lines += [f"        {text}," for text in packed]
            else:
                lines += ["        [", *(f"            {text}," for text in packed), "        ],"]
        lines.append("    ]),")
    return "\n".join([*lines, ")", ""])


def main() -> None:
    """Calibrate and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cubes", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(1)
    denoiser = load_denoiser("cpu")
    table = _table(*_gather(options.cubes, denoiser))
    OUT.write_text(_source(table, options.cubes, denoiser.weights.sha256), encoding="utf-8")
    print(f"wrote {OUT.name}; sigma is multiplied by {np.round(table.scale, 2)}")


if __name__ == "__main__":
    main()
