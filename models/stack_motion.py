"""Frames of an energy stack that moved against each other, or changed in magnification: put back.

At low signal a single frame is too noisy to be registered against another. Here every frame is
compared with what the denoised low-rank model of the whole stack predicts for its energy, so that
the change of contrast over the absorption edge does no harm, and model and positions are improved
in turn. All frames are fitted at once: what the fit needs are products of the frames with the few
coefficient images and their gradients.

References
----------
Registration and denoising in turn: SUM (see `inscan.models.subspace`), section 4.3. Least squares in
the positions: Lucas and Kanade, IJCAI 1981.
"""

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from inscan.models.gram import GramAccumulator, HalfGrams
from inscan.models.infer import Denoiser
from inscan.models.lowrank import split_basis
from inscan.models.stack_resample import moved

__all__ = ["Motion", "detect_motion", "find_motion", "residual_motion"]

_ROUNDS = 14
_STILL = 0.02  # pixels, root mean square change of a round that ends the search
_SETTLED = 0.1  # the same in units of the uncertainty
_DAMPED = 6  # round from which steps are halved
_RANK = 3
_COARSE = (3.0, 2.0)  # smoothing in pixels while frames are far from their places
_REACH = 0.2  # of the shorter side: shifts searched over
_TAPER = 0.08  # of each side
_SMOOTH = 2.0  # energies
_MOVED = 0.1  # pixels, root mean square beyond their uncertainty, that count as motion
_SCALED = 0.3  # pixels at the border that a change of magnification must make
_CERTAIN = 6.0  # standard deviations
_LEAST_SIDE = 24
_SIDE = 512  # larger frames are binned for the search


@dataclass(frozen=True)
class Motion:
    """Where frames were.

    Attributes
    ----------
    shift, sigma : ndarray of float64, shape (energy, 2)
        What lies at (row, col) of the aligned stack is found at (row, col) + shift in the frame,
        at its centre; pixels. Standard deviation of that. The median shift is 0.
    scale : ndarray of float64, shape (energy,)
        Magnification of each frame relative to the middle of the energies; 1 where not fitted.
    slope, slope_sigma : float
        Relative change of magnification for a relative change of energy; -1 for a zone plate
        whose image distance stays.
    change : tuple of float
        Root mean square change of the positions in each round, pixels.
    radius : float
        Half the side of the frames, pixels: what a change of scale moves borders by.
    """

    shift: NDArray[np.float64]
    sigma: NDArray[np.float64]
    scale: NDArray[np.float64]
    slope: float = 0.0
    slope_sigma: float = 0.0
    change: tuple[float, ...] = field(default=())
    radius: float = 0.0

    @property
    def moving(self) -> bool:
        """Whether frames are apart by more than their uncertainty, and by enough to matter."""
        certain = np.isfinite(self.sigma).all(axis=1)
        count = 2 * int(certain.sum())
        if count == 0:
            return False
        shift, sigma = self.shift[certain], self.sigma[certain]
        excess = float(np.mean(shift**2) - np.mean(sigma**2)) * 2
        chi2 = float(np.sum((shift / sigma) ** 2))
        changed = abs(self.slope) > _CERTAIN * self.slope_sigma > 0
        apart = excess > _MOVED**2 and chi2 > count + _CERTAIN * np.sqrt(2 * count)
        return bool(apart or (changed and np.ptp(self.scale) * self.radius > _SCALED))


def residual_motion(
    data: NDArray[np.floating],
    weights: NDArray[np.float64],
    vectors: NDArray[np.float64],
    images: NDArray[np.floating],
    noise: float,
    energies: NDArray[np.float64] | None = None,
) -> Motion:
    """One step of least squares: how far frames are from where the model has them.

    Parameters
    ----------
    data : ndarray of float, shape (energy, row, col)
        Finite.
    weights : ndarray of float64, shape (energy,)
        What whitens the frames.
    vectors : ndarray of float64, shape (energy, component)
        Orthonormal spectra of whitened frames.
    images : ndarray of float, shape (component, row, col)
        Denoised coefficients.
    noise : float
        Noise of whitened frames.
    energies : ndarray of float64, shape (energy,), optional
        With them a magnification linear in energy is fitted as well.

    Returns
    -------
    Motion
    """
    rows, cols = images.shape[1:]
    window = _taper(rows)[:, None] * _taper(cols)
    model = np.asarray(images, dtype=np.float64)
    dy, dx = np.gradient(model, axis=1), np.gradient(model, axis=2)
    y, x = _centred(rows)[:, None], _centred(cols)
    fields = [dy, dx]
    if energies is not None:
        fields.append(y * dy + x * dx)
    # A frame that is a little brighter or darker than predicted must not look moved.
    count = len(model)
    derived = np.concatenate([*fields, model, np.ones((1, rows, cols))]) * window
    flat = derived.reshape(len(derived), -1)
    whole = np.concatenate([*fields, model, np.ones((1, rows, cols))]).reshape(len(derived), -1)
    gram = flat @ whole.T
    seen = np.empty((len(data), len(derived)))
    for index, frame in enumerate(data):
        seen[index] = flat @ (np.asarray(frame, dtype=np.float64).ravel() * weights[index])
    n_fields = len(fields)
    found = np.zeros((len(data), n_fields))
    spread = np.full((len(data), n_fields), np.inf)
    for index, v in enumerate(vectors):
        # Parameters of one frame: displacements, gain and offset.
        mix = np.zeros((n_fields + 2, len(derived)))
        for k in range(n_fields):
            mix[k, k * count : (k + 1) * count] = -v
        mix[n_fields, n_fields * count : (n_fields + 1) * count] = v
        mix[n_fields + 1, -1] = 1.0
        normal = mix @ gram @ mix.T
        size = np.sqrt(np.maximum(normal.diagonal(), 1e-30))
        inverse = np.linalg.pinv(normal / np.outer(size, size), rcond=1e-8, hermitian=True)
        inverse = inverse / np.outer(size, size)
        target = mix @ seen[index]
        solved = inverse @ target
        found[index] = solved[:n_fields]
        spread[index] = noise * np.sqrt(np.maximum(inverse.diagonal()[:n_fields], 0))
    spread = np.where(spread > 0, spread, np.inf)
    scale, slope, slope_sigma = np.ones(len(data)), 0.0, 0.0
    if energies is not None:
        far = _relative(energies)
        weight = far / spread[:, 2] ** 2
        total = float((weight * far).sum())
        if total > 0:
            slope = float((weight * found[:, 2]).sum() / total)
            slope_sigma = total**-0.5
            scale = 1 + slope * far
    radius = (rows + cols) / 4
    return Motion(found[:, :2], spread[:, :2], scale, slope, slope_sigma, (), radius)


def detect_motion(
    data: NDArray[np.floating],
    gram: GramAccumulator,
    weights: NDArray[np.float64],
    energies: NDArray[np.float64] | None = None,
) -> Motion | None:
    """One look at whether frames moved: `Motion.moving` of what this returns.

    Parameters
    ----------
    data : ndarray of float, shape (energy, row, col)
        Finite.
    gram : GramAccumulator
        Of these frames.
    weights : ndarray of float64, shape (energy,)
        1 over the noise of each frame.
    energies : ndarray of float64, shape (energy,), optional

    Returns
    -------
    Motion or None
        Displacements by one linear step: right for a fraction of a pixel, too small for more.
        None for frames too small or too few to tell.
    """
    levels = [level.scaled(weights) for level in gram.smoothed()]
    if min(data.shape[1:]) < _LEAST_SIDE or len(data) < 4 or not levels:
        return None
    rows, cols = (
        slice(max(0, (n - _SIDE) // 2), max(0, (n - _SIDE) // 2) + _SIDE) for n in data.shape[1:]
    )
    part = data[:, rows, cols]
    vectors = _smooth_spectra(levels, weights, min(_RANK, len(data) - 1))
    images = np.zeros((vectors.shape[1], *part.shape[1:]), dtype=np.float32)
    for frame, v, w in zip(part, vectors, weights, strict=True):
        whitened = np.asarray(frame, dtype=np.float32) * np.float32(w)
        images += v.astype(np.float32)[:, None, None] * whitened
    images = gaussian_filter(images, (0, 1.0, 1.0), mode="nearest")
    found = residual_motion(part, weights, vectors, images, 1.0, energies)
    return replace(found, shift=_centre(found.shift))


def find_motion(
    data: NDArray[np.floating],
    weights: NDArray[np.float64],
    denoiser: Denoiser,
    energies: NDArray[np.float64] | None = None,
) -> Motion:
    """Where the frames of a stack are, by registering and denoising in turn.

    Parameters
    ----------
    data : ndarray of float, shape (energy, row, col)
        Finite.
    weights : ndarray of float64, shape (energy,)
        1 over the noise of each frame.
    denoiser : Denoiser
    energies : ndarray of float64, shape (energy,), optional
        With them a magnification linear in energy is fitted as well.

    Returns
    -------
    Motion

    Notes
    -----
    First each frame is put where it correlates best with the smoothed prediction, to a pixel; then
    least squares to fractions of a pixel, against ever finer predictions, until nothing moves.
    Shifts less certain than their usual size are drawn towards the median.
    """
    bins = max(1, -(-max(data.shape[1:]) // _SIDE))
    small = _binned(data, bins)
    noise = 1.0 / bins
    count = len(small)
    shift, scale = np.zeros((count, 2)), np.ones(count)
    spread, slope, slope_sigma = np.full((count, 2), np.inf), 0.0, 0.0
    changes: list[float] = []
    rank = 1
    for turn in range(_ROUNDS):
        aligned = np.stack([moved(f, s, m) for f, s, m in zip(small, shift, scale, strict=True)])
        vectors, images = _model(aligned, weights, rank)
        if turn < len(_COARSE):
            images = gaussian_filter(images, (0, _COARSE[turn], _COARSE[turn]), mode="nearest")
        else:
            level = np.full(len(images), noise, dtype=np.float32)
            centre = np.median(images, axis=(1, 2), keepdims=True)
            images = denoiser.denoise_gaussian(images - centre, level, tta=1) + centre
        if turn == 0:
            step = _best_pixel(aligned, weights, vectors, images)
            shift = _centre(shift + step)
            changes.append(float(np.sqrt(np.mean(step**2) * 2)) * bins)
            continue
        found = residual_motion(
            aligned, weights, vectors, images, noise, energies if turn > 2 else None
        )
        # Beyond the smoothing the linear step cannot be right, and must not run away.
        limit = 2.0 * (_COARSE[turn] if turn < len(_COARSE) else 1.0)
        whole = shift + np.clip(found.shift, -limit, limit)
        spread = found.sigma
        now = _centre(_drawn(whole, spread))
        if turn > _DAMPED:
            # Frames with little signal would otherwise swing between two positions.
            now = (shift + now) / 2
        relative = found.scale / scale.mean()
        step = np.sqrt(np.mean((now - shift) ** 2) * 2)
        slope, slope_sigma = slope + found.slope, found.slope_sigma
        shift, scale = now, scale * relative
        changes.append(float(step) * bins)
        # A round need not be more exact than the positions can be.
        enough = max(_STILL / bins, _SETTLED * float(np.median(found.sigma)))
        if turn >= len(_COARSE) and step < (enough if rank > 1 else 4 * enough):
            if rank > 1:
                break
            rank = _RANK
    radius = sum(data.shape[1:]) / 4
    if np.ptp(scale) * radius < _SCALED or abs(slope) < _CERTAIN * slope_sigma:
        # Too little to tell from what the model does not hold; without it nothing is lost.
        scale, slope = np.ones(count), 0.0
    return Motion(shift * bins, spread * bins, scale, slope, slope_sigma, tuple(changes), radius)


def _model(
    aligned: NDArray[np.float32], weights: NDArray[np.float64], rank: int
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Spectra of whitened frames, and the images that belong to them."""
    gram = GramAccumulator(aligned)
    gram.advance(len(aligned))
    vectors = _smooth_spectra([level.scaled(weights) for level in gram.smoothed()], weights, rank)
    return vectors, np.tensordot((vectors.T * weights).astype(np.float32), aligned, axes=1)


def _smooth_spectra(
    levels: list[HalfGrams], weights: NDArray[np.float64], rank: int
) -> NDArray[np.float64]:
    """Leading spectra, all but the first smoothed along energy.

    Motion itself has low rank: frames that moved differ by the gradient of the image. While they
    are far apart only the first component is safe, and later those that are smooth in energy.
    """
    basis = split_basis(levels, rank)
    real = basis.real
    real[0] = True
    vectors = basis.vectors[:, real]
    if len(vectors) <= 3 * _SMOOTH or vectors.shape[1] < 2:
        return vectors
    # In units of the frames, not of their noise, spectra are smooth.
    plain = gaussian_filter1d(vectors[:, 1:] / weights[:, None], _SMOOTH, axis=0)
    return np.linalg.qr(np.column_stack([vectors[:, 0], plain * weights[:, None]]))[0]


def _best_pixel(
    data: NDArray[np.floating],
    weights: NDArray[np.float64],
    vectors: NDArray[np.float64],
    images: NDArray[np.float32],
) -> NDArray[np.float64]:
    """Shift of every frame, in whole pixels, at which it correlates best with the prediction."""
    rows, cols = images.shape[1:]
    window = (_taper(rows)[:, None] * _taper(cols)).astype(np.float32)
    reach = max(2, int(_REACH * min(rows, cols)))
    size = (fft.next_fast_len(rows + reach, real=True), fft.next_fast_len(cols + reach, real=True))
    best = np.zeros((len(data), 2))
    for index, v in enumerate(vectors):
        frame = np.asarray(data[index], dtype=np.float32) * np.float32(weights[index])
        model = np.tensordot(v.astype(np.float32), images, axes=1)
        seen = fft.rfft2(window * (frame - _mean(frame, window)), size)
        wanted = fft.rfft2(window * (model - _mean(model, window)), size)
        score = np.asarray(fft.irfft2(np.asarray(seen) * np.conj(np.asarray(wanted)), size))
        near = np.roll(score, (reach, reach), (0, 1))[: 2 * reach + 1, : 2 * reach + 1]
        best[index] = np.array(np.unravel_index(int(near.argmax()), near.shape)) - reach
    return best


def _binned(data: NDArray[np.floating], by: int) -> NDArray[np.float32]:
    if by == 1:
        return np.asarray(data, dtype=np.float32)
    rows, cols = (n // by for n in data.shape[1:])
    out = np.empty((len(data), rows, cols), dtype=np.float32)
    for index, frame in enumerate(data):
        part = np.asarray(frame[: rows * by, : cols * by], dtype=np.float32)
        out[index] = part.reshape(rows, by, cols, by).mean(axis=(1, 3))
    return out


def _drawn(shift: NDArray[np.float64], spread: NDArray[np.float64]) -> NDArray[np.float64]:
    """Towards the median, as far as a shift is less certain than shifts are large."""
    middle = np.median(shift, axis=0)
    away = shift - middle
    certain = np.isfinite(spread)
    power = np.where(certain, away**2 - np.where(certain, spread, 0) ** 2, 0).sum(axis=0)
    usual = np.maximum(power / np.maximum(certain.sum(axis=0), 1), 1e-12)
    share = usual / (usual + np.where(certain, spread, np.inf) ** 2)
    return middle + share * away


def _centre(shift: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(shift - np.median(shift, axis=0), dtype=np.float64)


def _relative(energies: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance of energies from their middle, in units of it."""
    middle = float(energies.max() + energies.min()) / 2
    return np.asarray((energies - middle) / middle, dtype=np.float64)


def _centred(size: int) -> NDArray[np.float64]:
    return np.arange(size, dtype=np.float64) - (size - 1) / 2


def _taper(size: int) -> NDArray[np.float64]:
    """1 inside, falling to 0 at the borders, where neighbours are missing."""
    width = max(1.0, _TAPER * size)
    distance = np.minimum(np.arange(size), np.arange(size)[::-1]) + 0.5
    rise = np.sin(np.pi / 2 * np.clip(distance / width, 0, 1)) ** 2
    return np.asarray(rise, dtype=np.float64)


def _mean(image: NDArray[np.floating], window: NDArray[np.floating]) -> float:
    return float((image * window).sum() / window.sum())
