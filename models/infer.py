"""Run the shipped denoiser over planes of any size: device, precision, tiles, symmetries.

The one way in for the methods built on the network is `load_denoiser(device)`; the `Denoiser` it
returns denoises Gaussian noise (`denoise_gaussian`) and, one step lower, whole sets of planes
(`Denoiser.run`), which the methods for counts use.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter

from inscan.models.unet import INPUTS, UNet, UNetConfig
from inscan.models.weights import SHIPPED, Weights, load_weights

__all__ = ["Denoiser", "choose_device", "load_denoiser", "network_of"]

_MARGIN = 16  # reflected around the field, so that its border is no border to the network
_HALO = 32  # overlap of tiles on each side; beyond it the network's answer moves by < 1e-3 sigma
_MIN_TILE = 64
_RESOLUTION = 0.002  # of the image's rms: finer noise than this the network was not trained to see
_TILE = {"cpu": 512, "cuda": 2048}
_PIXELS_AT_ONCE = {"cpu": 2**19, "cuda": 2**24}


def choose_device(device: str | torch.device | None = None) -> torch.device:
    """CUDA when it is there, else the CPU, unless the caller says which."""
    if device is not None:
        return torch.device(device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def network_of(weights: Weights) -> UNet:
    """The network a card describes, with its weights, on the CPU, in evaluation mode."""
    architecture = weights.card["architecture"]
    config = UNetConfig(tuple(architecture["widths"]), int(architecture["blocks"]))
    net = UNet(config)
    net.load_state_dict(dict(weights.tensors))
    return net.eval().requires_grad_(False)


def load_denoiser(
    device: str | torch.device | None = None, name: str = "denoiser", folder: Path = SHIPPED
) -> "Denoiser":
    """Read the shipped denoiser (about 2.5 MB, some ten milliseconds).

    Parameters
    ----------
    device : str or torch.device, optional
        "cpu", "cuda", "cuda:1"...; by default CUDA when present, else the CPU.
    name, folder
        Other weights than the shipped ones.

    Returns
    -------
    Denoiser

    Raises
    ------
    FileNotFoundError, WeightsError
        If the weights are missing or damaged.
    """
    weights = load_weights(name, folder)
    return Denoiser(network_of(weights), weights, choose_device(device))


@dataclass(frozen=True)
class Denoiser:
    """A network ready to run.

    Attributes
    ----------
    net : UNet
    weights : Weights
        Where the network came from (`weights.sha256`, `weights.card`).
    device : torch.device
    tile : int or None
        Largest side inferred in one piece; None takes what suits the device.
    check : callable or None
        Called before each pass of the network. What it raises ends the computation: that is how a
        preview that nobody waits for any more lets go of the processor.
    """

    net: UNet
    weights: Weights
    device: torch.device
    tile: int | None = None
    check: Callable[[], None] | None = None

    def denoise_gaussian(
        self,
        images: ArrayLike,
        sigma: ArrayLike,
        guide: ArrayLike | None = None,
        guide_sigma: ArrayLike | None = None,
        tta: bool | int = True,
    ) -> NDArray[np.float32]:
        """Remove white Gaussian noise of known standard deviation.

        Parameters
        ----------
        images : array of float, shape (n, row, col)
            Any units and range, negative values included.
        sigma : array of float, shape (n,), (n, row, col) or ()
            Standard deviation of the noise in the units of `images`; it may differ from pixel to
            pixel. A wrong sigma costs much more than a wrong network: a factor 2 loses 3 to 9 dB.
        guide : array of float, shape (n, row, col) or (row, col), optional
            Another image of the same place, in any units; best one with less noise. Image and guide
            are denoised on their principal axes, which costs twice the time.
        guide_sigma : array of float, like `sigma`, optional
            Standard deviation of the guide's noise; 0 if not given.
        tta : bool or int
            How many of the eight flips and quarter turns to average (True: 4, False: 1).

        Returns
        -------
        ndarray of float32, shape (n, row, col)

        Raises
        ------
        ValueError
            If shapes do not fit or values are not finite.
        """
        return self.denoise_with_spread(images, sigma, guide, guide_sigma, tta)[0]

    def denoise_with_spread(
        self,
        images: ArrayLike,
        sigma: ArrayLike,
        guide: ArrayLike | None = None,
        guide_sigma: ArrayLike | None = None,
        tta: bool | int = True,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Like `denoise_gaussian`, with the predicted standard deviation of the error beside it."""
        noisy = np.asarray(images, dtype=np.float32)
        if noisy.ndim != 3 or noisy.size == 0:
            raise ValueError(f"images: expected shape (n, row, col), none 0, got {noisy.shape}")
        if not np.isfinite(noisy).all():
            raise ValueError("images: not finite; fill or crop what was not measured first")
        noise = _like(sigma, noisy.shape, "sigma")
        if not (np.isfinite(noise).all() and (noise >= 0).all()):
            raise ValueError("sigma: expected finite values of 0 or more")
        if guide is None:
            return self._one_by_one(noisy, noise, tta)
        other = np.broadcast_to(np.asarray(guide, dtype=np.float32), noisy.shape)
        blur = _like(0.0 if guide_sigma is None else guide_sigma, noisy.shape, "guide_sigma")
        if not (np.isfinite(other).all() and np.isfinite(blur).all()):
            raise ValueError("guide: not finite")
        basis = _axes_with_guide(noisy, noise, other, blur)
        # In the turned planes noise stays white; what image and guide share gathers in one.
        turned = np.einsum("nek,nerc->nkrc", basis, np.stack([noisy, other], axis=1))
        variance = np.einsum("nek,nerc->nkrc", basis**2, np.stack([noise, blur], axis=1) ** 2)
        offset = turned.mean(axis=(2, 3), keepdims=True)
        flat = (-1, *noisy.shape[1:])
        out, spread = self._one_by_one(
            (turned - offset).reshape(flat).astype(np.float32),
            np.sqrt(variance).reshape(flat).astype(np.float32),
            tta,
        )
        back = np.linalg.inv(basis)[:, :, 0]  # from the two planes to the image
        pair = (len(noisy), 2, *noisy.shape[1:])
        found = np.einsum("nk,nkrc->nrc", back, out.reshape(pair) + offset)
        error = np.sqrt(np.einsum("nk,nkrc->nrc", back**2, spread.reshape(pair) ** 2))
        return found.astype(np.float32), error.astype(np.float32)

    def _one_by_one(
        self, noisy: NDArray[np.float32], noise: NDArray[np.float32], tta: bool | int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        planes = np.empty((len(noisy), len(INPUTS), *noisy.shape[1:]), dtype=np.float32)
        scale = np.sqrt(np.mean(np.square(noisy, dtype=np.float64), axis=(1, 2), keepdims=True))
        scale = np.where(scale > 0, scale, 1.0).astype(np.float32)
        planes[:, 0] = noisy / scale
        planes[:, 1] = noise / scale
        out = self.run(planes, tta) * scale[:, None]
        return out[:, 0], out[:, 1]

    def run(self, planes: NDArray[np.float32], tta: bool | int = True) -> NDArray[np.float32]:
        """Run the network over prepared planes, in overlapping tiles where they are large.

        Parameters
        ----------
        planes : ndarray of float32, shape (n, 2, row, col)
            As `UNet.forward` takes them, in units in which the first plane's rms is about 1.
        tta : bool or int
            How many of the eight symmetries to average (True: 4, False: 1).

        Returns
        -------
        ndarray of float32, shape (n, 2, row, col)
            Estimate and predicted standard deviation of its error.
        """
        symmetries = _symmetries(tta)
        net = self.net.to(self.device)
        tile = self.tile or _TILE.get(self.device.type, 512)
        while True:
            try:
                return self._tiled(net, planes, symmetries, tile)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not _out_of_memory(error) or tile <= _MIN_TILE:
                    raise
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
                half = min(tile, max(planes.shape[2:]) + 2 * _MARGIN) // 2
                tile = max(_MIN_TILE, half // net.stride * net.stride)

    def _tiled(
        self, net: UNet, planes: NDArray[np.float32], symmetries: list[int], tile: int
    ) -> NDArray[np.float32]:
        count, _, rows, cols = planes.shape
        padded = _pad(torch.from_numpy(np.ascontiguousarray(planes)), net.stride)
        high, wide = padded.shape[-2:]
        out = torch.zeros(count, 2, high, wide)
        weight = torch.zeros(high, wide)
        # bfloat16 resolves 0.4 %: enough for noise, too coarse beside a nearly noise-free image.
        bfloat16 = bool(np.median(planes[:, 1]) > 0.02)
        row_spans, col_spans = _spans(high, tile, net.stride), _spans(wide, tile, net.stride)
        for r0, r1 in row_spans:
            for c0, c1 in col_spans:
                ramp = _ramp(r0, r1, high)[:, None] * _ramp(c0, c1, wide)[None, :]
                weight[r0:r1, c0:c1] += ramp
                area = (r1 - r0) * (c1 - c0)
                at_once = max(1, _PIXELS_AT_ONCE.get(self.device.type, 2**19) // area)
                for first in range(0, count, at_once):
                    piece = padded[first : first + at_once, :, r0:r1, c0:c1].to(self.device)
                    for symmetry in symmetries:
                        if self.check is not None:
                            self.check()
                        answer = _forward(net, piece, symmetry, bfloat16).cpu()
                        out[first : first + at_once, :, r0:r1, c0:c1] += answer * ramp
        out /= weight * len(symmetries)
        top, left = (high - rows) // 2, (wide - cols) // 2
        found = out[..., top : top + rows, left : left + cols].numpy()
        return _at_least_as_good(found, planes)


def _at_least_as_good(
    found: NDArray[np.float32], planes: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Lean on the data where they are finer than the network's own resolution."""
    noisy, sigma = planes[:, 0], planes[:, 1]
    data = _RESOLUTION**2 / (_RESOLUTION**2 + sigma**2)
    estimate = data * noisy + (1 - data) * found[:, 0]
    spread = np.hypot((1 - data) * found[:, 1], data * sigma)
    # No noise explains more than five standard deviations; the network must not claim it does.
    estimate = np.clip(estimate, noisy - 5 * sigma, noisy + 5 * sigma)
    return np.stack([estimate, spread], axis=1).astype(np.float32)


def _axes_with_guide(
    noisy: NDArray[np.float32],
    noise: NDArray[np.float32],
    guide: NDArray[np.float32],
    guide_noise: NDArray[np.float32],
) -> NDArray[np.float64]:
    """For each image the 2 x 2 matrix that turns it and its guide onto their principal axes.

    Both are brought to unit noise first: what is shared then lies along the axis with the best
    signal to noise, and what the image has alone along the other.
    """
    scales = []
    for values, spread in ((noisy, noise), (guide, guide_noise)):
        typical = np.sqrt(np.mean(np.square(spread, dtype=np.float64), axis=(1, 2)))
        # A guide without noise still follows the image only so far.
        scales.append(np.maximum(typical, 1e-2 * values.std(axis=(1, 2)) + 1e-30))
    bases = []
    for index in range(len(noisy)):
        pair = np.stack([noisy[index] / scales[0][index], guide[index] / scales[1][index]])
        soft = gaussian_filter(pair, (0, 1.5, 1.5), mode="nearest").reshape(2, -1)
        soft = soft - soft.mean(axis=1, keepdims=True)
        _, axes = np.linalg.eigh((soft @ soft.T).astype(np.float64))
        bases.append(axes / np.array([[scales[0][index]], [scales[1][index]]]))
    return np.stack(bases)


def _like(value: ArrayLike, shape: tuple[int, ...], name: str) -> NDArray[np.float32]:
    array = np.asarray(value, dtype=np.float32)
    if array.ndim == 1:
        array = array[:, None, None]
    try:
        return np.broadcast_to(array, shape)
    except ValueError:
        raise ValueError(
            f"{name}: expected shape ({shape[0]},) or {shape}, got {np.shape(value)}"
        ) from None


def _symmetries(tta: bool | int) -> list[int]:
    count = (4 if tta else 1) if isinstance(tta, bool) else tta
    if count not in (1, 2, 4, 8):
        raise ValueError(f"tta: expected True, False, 1, 2, 4 or 8, got {tta!r}")
    # 0 to 3 are quarter turns, 4 to 7 the same after a mirror; halves of the group first.
    return {1: [0], 2: [0, 6], 4: [0, 2, 5, 7], 8: list(range(8))}[count]


def _forward(net: UNet, piece: torch.Tensor, symmetry: int, bfloat16: bool) -> torch.Tensor:
    turns, mirror = symmetry % 4, symmetry >= 4
    x = torch.rot90(piece.flip(-1) if mirror else piece, turns, (-2, -1))
    x = x.contiguous(memory_format=torch.channels_last)
    with (
        torch.inference_mode(),
        torch.autocast(piece.device.type, torch.bfloat16, enabled=bfloat16),
    ):
        y = net(x).float()
    y = torch.rot90(y, -turns, (-2, -1))
    return y.flip(-1) if mirror else y


def _pad(planes: torch.Tensor, stride: int) -> torch.Tensor:
    """Reflect the borders; repeat them where the field is thinner than the margin."""
    rows, cols = planes.shape[-2:]
    high, wide = _up((rows + 2 * _MARGIN, cols + 2 * _MARGIN), stride)
    top, left = (high - rows) // 2, (wide - cols) // 2
    for axis, (size, full, before) in enumerate(((rows, high, top), (cols, wide, left))):
        after = full - size - before
        pad = (before, after, 0, 0) if axis else (0, 0, before, after)
        planes = F.pad(planes, pad, mode="reflect" if max(before, after) < size else "replicate")
    return planes


def _up(sizes: tuple[int, ...], stride: int) -> tuple[int, int]:
    rows, cols = (-(-size // stride) * stride for size in sizes)
    return rows, cols


def _spans(size: int, tile: int, stride: int) -> list[tuple[int, int]]:
    """Overlapping pieces of one axis; they start on whole strides, so tiles see the same grid."""
    if size <= tile:
        return [(0, size)]
    halo = min(_HALO, tile // 4)
    step = max(stride, (tile - 2 * halo) // stride * stride)
    starts = list(range(0, size - tile, step))
    last = -(-(size - tile) // stride) * stride
    return [(start, start + tile) for start in starts] + [(last, size)]


def _ramp(start: int, stop: int, size: int) -> torch.Tensor:
    """Weight of a tile along one axis: fades towards neighbours, not the field's own edge."""
    length = stop - start
    halo = min(_HALO, length // 4)
    ramp = torch.ones(length)
    fade = (torch.arange(halo) + 0.5) / halo
    if start > 0:
        # The outer half of the overlap has seen too little of its surroundings: weight near zero.
        ramp[:halo] = fade**4
    if stop < size:
        ramp[length - halo :] = fade.flip(0) ** 4
    return ramp


def _out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        "out of memory" in text or "not enough memory" in text or "can't allocate memory" in text
    )
