"""Spectrum images: half of the counts predicts the other half; repeats and detectors predict others."""

from pathlib import Path

import numpy as np
from measured_data import SpectrumFile, read_eds, read_repeats
from measured_scores import Panel, Result, best_gaussian, counts_scores, describe, picture
from numpy.typing import NDArray

from inscan.models import spectral

__all__ = ["eds", "pansharpening", "repeated_spectra", "velox"]

# File, name, most bins, window (keV) of the line shown, picture. The largest is cut in bins.
_CUBES = (
    ("eds_88ES_80x80", "SEM EDS, 88ES, 80 x 80", 1024, (1.65, 1.85), "eds_88es"),
    (
        "eds_fept_core_shell_64x64",
        "STEM EDS, FePt core-shell, 64 x 64",
        1024,
        (6.25, 6.55),
        "eds_fept",
    ),
    ("eds_sio2_particles_128x128", "EDS, SiO2 particles, 128 x 128", 512, (1.65, 1.85), ""),
    ("eds_bruker_50x50", "SEM EDS, 50 x 50", 1024, (1.65, 1.85), ""),
    (
        "eds_ncem_idp_t0_256x256",
        "STEM EDS, dust particle, 256 x 256",
        256,
        (1.65, 1.85),
        "eds_dust",
    ),
)
_ALONG = (0.0, 1.0)
_WIDTHS = (0.8, 1.3, 2.2, 4.0)


def eds(data: Path, pictures: Path) -> list[Result]:
    """Half of the counts, thinned, predicts the rest, voxel by voxel and line by line."""
    results = []
    for file, name, bins, window, drawn in _CUBES:
        cube = read_eds(data / f"{file}.npz", bins)
        seen, held = _halves(cube.counts, 0.5, 0)
        path = pictures / f"{drawn}.png" if drawn else None
        results += _thinned(name, cube, seen, held, window, path)
    cube = read_eds(data / "eds_bruker_30x30_highcounts.npz")
    seen, held = _halves(cube.counts, 0.005, 0)
    name = "SEM EDS, 30 x 30, 0.5 % of its counts"
    results += _thinned(name, cube, seen, held, (1.65, 1.85), None)
    return results


def _halves(
    counts: NDArray[np.integer], share: float, seed: int
) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    seen = np.random.default_rng(seed).binomial(counts, share).astype(counts.dtype)
    return seen, counts - seen


def _thinned(
    name: str,
    cube: SpectrumFile,
    seen: NDArray[np.integer],
    held: NDArray[np.integer],
    window: tuple[float, float],
    path: Path | None,
) -> list[Result]:
    how = f"{seen.sum() / seen[..., 0].size:.3g} counts a pixel, against those held out"
    estimate = spectral.denoise(seen)
    ratio = float(held.sum() / seen.sum())
    lines = _line_windows(cube)
    found, width = best_gaussian(
        seen,
        lambda z: float(np.square(z * np.float32(ratio) - held).mean(dtype=np.float64)),
        axes=3,
        extra=_ALONG,
        widths=_WIDTHS,
    )
    results = [
        Result(name, f"Gaussian, tuned ({width})", how, _scores(held, seen, found, lines)),
        describe(name, how, _scores(held, seen, estimate.values, lines, estimate), estimate),
    ]
    if path is not None:
        inside = (cube.kev >= window[0]) & (cube.kev < window[1])
        shown = [z[..., inside].sum(axis=2) for z in (seen, found, estimate.values, held / ratio)]
        spread = np.sqrt(np.square(estimate.sigma[..., inside]).sum(axis=2))
        strongest = np.argsort([-float(seen[..., w].sum()) for w in lines])[:1]
        line = lines[int(strongest[0])]
        label = f"{cube.kev[line][0]:.2f} to {cube.kev[line][-1]:.2f} keV"
        main = [z[..., line].sum(axis=2) for z in (seen, found, estimate.values, held / ratio)]
        wide = np.sqrt(np.square(estimate.sigma[..., line]).sum(axis=2))
        rows = []
        for text, images, sigma in (
            (f"{window[0]} to {window[1]} keV", shown, spread),
            (label, main, wide),
        ):
            rows.append(
                [
                    Panel(f"{text}: counts", images[0]),
                    Panel(f"Gaussian {width}", images[1], like=0),
                    Panel("spectral", images[2], like=0),
                    Panel("sigma (bins independent)", sigma),
                    Panel("held-out counts", images[3], like=0),
                ]
            )
        picture(path, f"{name}: {how}", rows)
    return results


def _line_windows(cube: SpectrumFile) -> list[NDArray[np.bool_]]:
    """The six strongest peaks of the summed spectrum, 0.14 keV on either side at least."""
    spectrum = cube.counts.sum(axis=(0, 1), dtype=np.float64)
    left = spectrum.copy()
    windows = []
    for _ in range(6):
        at = int(np.argmax(left))
        inside = np.abs(cube.kev - cube.kev[at]) <= 0.07
        windows.append(inside)
        left[np.abs(cube.kev - cube.kev[at]) <= 0.14] = 0
    return windows


def _scores(held, raw, found, windows, estimate=None) -> dict[str, float]:
    """Of the cube in dB, of line maps as a factor; intervals against held-out counts."""
    # Line maps: one element each.
    y, x, made = (np.stack([z[..., w].sum(axis=2) for w in windows]) for z in (held, raw, found))
    figures = {f"lines {k}": v for k, v in counts_scores(y, x, made).items()}
    ratio = float(held.sum() / raw.sum())
    before = ratio * float(raw.mean(dtype=np.float64)) * ratio
    after = float((np.square(found * np.float32(ratio) - held) - held).mean(dtype=np.float64))
    # The estimate of a tiny error may come out negative: its own noise is the floor.
    floor = float(np.sqrt(2 * np.square(held, dtype=np.float64).mean() / held.size))
    figures["cube gain dB"] = 10 * float(np.log10(before / max(after, floor)))
    if estimate is not None:
        rng = np.random.default_rng(0)
        low, high = estimate.interval(0.9)
        pick = rng.integers(held.size, size=min(held.size, 400_000))
        y, low, high, made = (
            np.asarray(a).reshape(-1)[pick] for a in (held, low, high, estimate.values)
        )
        figures["voxel coverage"] = _interval_coverage(y, low, high, made, ratio, rng)
        figures["doubtful %"] = 100 * float(estimate.doubtful.mean())
    return figures


def _interval_coverage(held, low, high, values, ratio, rng) -> float:
    """Randomised coverage of held-out counts: rates drawn from a split normal with these ends."""
    below, equal, draws = np.zeros(held.shape), np.zeros(held.shape), 48
    for _ in range(draws):
        z = rng.standard_normal(held.shape)
        reach = np.where(z > 0, high - values, values - low) / 1.645
        drawn = rng.poisson(np.maximum(values + z * reach, 0) * ratio)
        below += drawn < held
        equal += drawn == held
    u = (below + rng.random(held.shape) * (equal + 1)) / (draws + 1)
    return float(((u > 0.05) & (u < 0.95)).mean())


def pansharpening(data: Path, pictures: Path) -> list[Result]:
    """SiO2 with its HAADF image, without, and with one that has nothing to do with it."""
    cube = read_eds(data / "eds_sio2_particles_128x128.npz", 512)
    haadf = np.load(data / "sio2_haadf_128x128.npy").astype(np.float32)
    seen, held = _halves(cube.counts, 0.1, 0)
    lines = _line_windows(cube)
    name, how = "EDS, SiO2 particles, 10 % of its counts", "thinned, against the rest"
    results, shown = [], []
    for label, contrast in (
        ("without contrast", None),
        ("with its HAADF image", haadf),
        ("with the HAADF image transposed: unrelated", haadf[::-1].T.copy()),
    ):
        estimate = spectral.denoise(seen, contrast=contrast)
        figures = _scores(held, seen, estimate.values, lines, estimate)
        result = describe(name, f"{how}; {label}", figures, estimate)
        results.append(result)
        shown.append(estimate.values[..., lines[0]].sum(axis=2))
    ratio = float(held.sum() / seen.sum())
    row = [
        Panel("strongest line, counts", seen[..., lines[0]].sum(axis=2)),
        Panel("without contrast", shown[0], like=0),
        Panel("with HAADF", shown[1], like=0),
        Panel("HAADF", haadf),
        Panel("held-out counts", held[..., lines[0]].sum(axis=2) / ratio, like=0),
    ]
    picture(pictures / "eds_sio2_haadf.png", name, [row])
    return results


def repeated_spectra(data: Path, pictures: Path) -> list[Result]:
    """Sixteen repeats of one spectrum predict sixteen others."""
    repeats = read_repeats(data / "xrf_spectra_32repeats_4096ch.csv.gz")
    shape = (4, 4, repeats.shape[1])
    seen, held = repeats[:16].reshape(shape), repeats[16:].reshape(shape)
    estimate = spectral.denoise(seen)
    total = repeats.sum(axis=0)
    rich = total > 100
    spread = float(np.mean(repeats[:, rich].var(axis=0, ddof=1) / repeats[:, rich].mean(axis=0)))
    figures = {
        "variance over mean of the repeats": spread,
        **counts_scores(held[None], seen[None], estimate.values[None]),
    }
    name = "32 repeats of one XRF spectrum, 0.1 s"
    results = [describe(name, "16 repeats against the other 16", figures, estimate)]
    flat = seen.mean(axis=(0, 1), keepdims=True).repeat(4, 0).repeat(4, 1)
    results.insert(
        0,
        Result(
            name,
            "mean of the 16 (the truth is one spectrum)",
            "16 repeats against the other 16",
            counts_scores(held[None], seen[None], flat[None]),
        ),
    )
    return results


def velox(data: Path, pictures: Path) -> list[Result]:
    """Super-X, four detectors and two frames: the first frame predicts the second."""
    with np.load(data / "eds_velox_superx_4det_2frames_16x16.npz") as stored:
        spectra = stored["spectra_det_frame_y_x_E"].astype(np.int64)
    spectra = spectra.reshape(*spectra.shape[:4], 512, 8).sum(axis=5)
    first, second = spectra.sum(axis=0)
    kev = np.asarray(0.01 * (8 * np.arange(512) + 3.5), dtype=np.float64)
    inside = kev > 0.12
    first, second = first[..., inside], second[..., inside]
    estimate = spectral.denoise(first)
    lines = _line_windows(SpectrumFile(first + second, kev[inside]))
    name, how = "STEM EDS, Super-X, 16 x 16", "frame 1 against frame 2"
    ratio = float(second.sum() / first.sum())
    found, width = best_gaussian(
        first,
        lambda z: float(np.square(z * ratio - second).mean()),
        axes=3,
        extra=_ALONG,
        widths=_WIDTHS,
    )
    return [
        Result(name, f"Gaussian, tuned ({width})", how, _scores(second, first, found, lines)),
        describe(name, how, _scores(second, first, estimate.values, lines, estimate), estimate),
    ]
