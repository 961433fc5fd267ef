"""Fluorescence maps: detector elements held out, thinned counts, and data that are not counts."""

from pathlib import Path

import h5py
import numpy as np
from measured_data import APS_LINES, PIXL_LINES, read_aps, read_fly, read_pixl
from measured_scores import Panel, Result, best_gaussian, counts_scores, describe, picture
from numpy.typing import NDArray

from inscan.models import n2n
from inscan.models.noise import thin

__all__ = ["aps", "hxn", "i18", "pixl", "zagami"]

_PEAKS = (3.0, 10.0, 30.0)


def aps(data: Path, pictures: Path) -> list[Result]:
    """APS 2-ID-E: three detector elements predict the fourth, for each of the four."""
    fly, live = read_fly(data / "aps2ide_fly_11x9_4det_MAPS_RAW.h5")
    cases = {
        "APS 2-ID-E thin film, step": (read_aps(data / "aps2ide_thinfilm_11x11_4det.npz"), None),
        "APS 2-ID-E AXO standard, step": (
            read_aps(data / "aps2ide_axo_std_11x11_4det.npz"),
            None,
        ),
        "APS 2-ID-E thin film, fly": (fly, live),
    }
    results = []
    for name, (counts, exposure) in cases.items():
        results += _element_held_out(name, counts, exposure)
    counts, exposure = cases["APS 2-ID-E AXO standard, step"]
    estimate = n2n.denoise(counts, exposure=exposure)
    results.append(describe("APS 2-ID-E AXO standard, step", "all four", {}, estimate))
    # Shown: three elements and the fourth beside them, lines with few and with many counts.
    held, seen = counts[3], counts[:3]
    estimate = n2n.denoise(seen)
    rows = []
    for k, line in enumerate(APS_LINES):
        if line not in ("La", "Fe"):
            continue
        factor = seen[:, k].sum() / held[k].sum()
        rows.append(
            [
                Panel(f"{line}: three elements, raw", seen[:, k].sum(axis=0)),
                Panel("n2n", estimate.values[k], like=0),
                Panel("sigma", estimate.sigma[k]),
                Panel("fourth element, scaled", held[k] * factor, like=0),
            ]
        )
    picture(pictures / "aps_axo.png", "APS 2-ID-E, AXO standard (uniform film)", rows)
    return results


def _element_held_out(
    name: str, counts: NDArray[np.float32], exposure: NDArray[np.float32] | None
) -> list[Result]:
    how = "each detector element held out in turn"
    ours, soft, last = [], [], None
    for out in range(len(counts)):
        rest = np.delete(np.arange(len(counts)), out)
        held, seen = counts[out], counts[rest]
        light = None if exposure is None else exposure[rest]
        estimate = n2n.denoise(seen, exposure=light)
        raw = seen.sum(axis=0)
        if light is not None and exposure is not None:
            # Both at reference exposure; live times differ by a percent, so Poisson still holds.
            raw, held = raw / light.mean(axis=0), held / exposure[out]
        rng = np.random.default_rng(out)
        ours.append(counts_scores(held, raw, estimate.values, estimate, rng))
        ratio = held.sum(axis=(1, 2), keepdims=True) / raw.sum(axis=(1, 2), keepdims=True)
        found, _ = _gaussian_maps(raw, held, ratio)
        soft.append(counts_scores(held, raw, found))
        last = estimate
    assert last is not None
    return [
        Result(name, "Gaussian, tuned on what is held out", how, _mean(soft)),
        describe(name, how, _mean(ours), last),
    ]


def _gaussian_maps(
    raw: NDArray[np.floating], held: NDArray[np.floating], ratio: NDArray[np.floating]
) -> tuple[NDArray[np.floating], list[str]]:
    """For each element the width that predicts its held-out counts best."""
    images, widths = [], []
    for x, y, r in zip(raw, held, ratio, strict=True):
        image, width = best_gaussian(x, lambda z, y=y, r=r: float(((z * r - y) ** 2).mean()))
        images.append(image)
        widths.append(width)
    return np.stack(images), widths


def _mean(scores: list[dict[str, float]]) -> dict[str, float]:
    return {
        key: float(np.exp(np.mean(np.log([s[key] for s in scores]))))
        if key == "gain x"
        else float(np.mean([s[key] for s in scores]))
        for key in scores[0]
    }


def pixl(data: Path, pictures: Path) -> list[Result]:
    """PIXL's two detectors see the rock from two sides: does n2n notice that they differ?"""
    results = []
    for name, file in (
        ("PIXL Beaujeu, 15 x 15", "pixl_beaujeu_sol138_15x15_2det.npz"),
        ("PIXL Naltsos, line of 121", "pixl_naltsos_line121_2det.npz"),
    ):
        counts, live = read_pixl(data / file)
        a, b = counts / live[:, None]
        share = a.sum(axis=(1, 2)) / b.sum(axis=(1, 2))
        expected = share[:, None, None] * b
        variance = a + share[:, None, None] ** 2 * b
        chi2 = ((a - expected) ** 2 / np.maximum(variance, 1)).mean(axis=(1, 2))
        figures = {
            f"A against B, {line}: chi2": c for line, c in zip(PIXL_LINES, chi2, strict=True)
        }
        whole = n2n.denoise(counts, exposure=live)
        results.append(describe(name, "both detectors, all counts", figures, whole))
        # Thinned to a hundred counts in the brightest line: a survey a thousand times faster.
        fraction = 100 / float(counts.sum(axis=0).max())
        few, rest = thin(counts, fraction, np.random.default_rng(1))
        estimate = n2n.denoise(few, exposure=live)
        held, raw = rest.sum(axis=0) / live.mean(axis=0), few.sum(axis=0) / live.mean(axis=0)
        how = f"{100 * fraction:.2g} % of the counts, thinned, against the rest"
        results += _against_rest(name, how, held, raw, estimate)
        if counts.shape[2] > 1:
            k = list(PIXL_LINES).index("Ca")
            rows = [
                [
                    Panel("Ca, detector A", a[k]),
                    Panel("detector B", b[k], like=0),
                    Panel(
                        "A less B, in sigmas", ((a - expected) / np.sqrt(variance))[k], None, True
                    ),
                    Panel("n2n of both, all counts", whole.values[k], like=0),
                ],
                [
                    Panel("Ca, thinned", raw[k]),
                    Panel("n2n", estimate.values[k], like=0),
                    Panel("sigma", estimate.sigma[k]),
                    Panel("the other counts, scaled", held[k] * raw[k].sum() / held[k].sum(), 0),
                ],
            ]
            picture(pictures / "pixl_beaujeu.png", f"{name}: two detectors, two geometries", rows)
    return results


def _against_rest(name: str, how: str, held, raw, estimate) -> list[Result]:
    """Scores against the bulk of the counts, whose own noise hardly matters."""
    rng = np.random.default_rng(0)
    ratio = held.sum(axis=(1, 2), keepdims=True) / raw.sum(axis=(1, 2), keepdims=True)
    found, widths = _gaussian_maps(raw, held, ratio)
    return [
        Result(name, f"Gaussian, tuned ({widths[-1]})", how, counts_scores(held, raw, found)),
        describe(name, how, counts_scores(held, raw, estimate.values, estimate, rng), estimate),
    ]


def i18(data: Path, pictures: Path) -> list[Result]:
    """DLS I18: dead-time-corrected floats; what is said of them, and what Poisson noise they hide."""
    with h5py.File(data / "dls_i18_fluo_18x18x512.nxs") as file:
        cube = np.asarray(file["entry1/fluo_entry/data/data"])
    # K lines of Mn and Fe together, and two more peaks, by the file's own axis (10 + 80 eV a bin).
    windows = {"5.95 keV": (68, 80), "7.39 keV": (88, 97), "12.8 keV": (155, 165)}
    maps = np.stack([cube[..., a : b + 1].sum(axis=2) for a, b in windows.values()])[None]
    estimate = n2n.denoise(maps)
    results = [describe("DLS I18, 18 x 18", "corrected floats", {}, estimate)]
    rows = [
        [
            Panel(f"{label}: as stored", maps[0, k]),
            Panel("n2n", estimate.values[k], like=0),
            Panel("sigma", estimate.sigma[k]),
            Panel("stored less n2n", maps[0, k] - estimate.values[k], None, True),
        ]
        for k, label in enumerate(windows)
    ]
    picture(pictures / "i18.png", "DLS I18: dead-time-corrected averages, not counts", rows[:2])
    with h5py.File(data / "dls_i18_xspress3_2x2x10det_4096.nxs") as file:
        spectra = np.asarray(file["entry1/instrument/xspress3/MCAs"])
    lines = spectra.reshape(2, 2, 10, 16, 256).sum(axis=4).transpose(2, 3, 0, 1)
    estimate = n2n.denoise(lines)
    results.append(describe("DLS I18, Xspress3 2 x 2 x 10", "corrected floats", {}, estimate))
    return results


def hxn(data: Path, pictures: Path) -> list[Result]:
    """NSLS-II HXN: fitted and divided by I0. These are not counts at all."""
    with np.load(data / "hxn_xrf_160x160_5el_and_chemmap.npz") as stored:
        names = [name for name in stored if name.endswith("_K")]
        maps = np.stack([stored[name] for name in names])[None]
    estimate = n2n.denoise(maps)
    results = [describe("NSLS-II HXN, fitted maps over I0", "as stored", {}, estimate)]
    rows = [
        [
            Panel(f"{name}: as stored", maps[0, k]),
            Panel("n2n", estimate.values[k], like=0),
            Panel("sigma", estimate.sigma[k]),
            Panel("stored less n2n", maps[0, k] - estimate.values[k], None, True),
        ]
        for k, name in enumerate(names)
        if name in ("Fe_K", "P_K")
    ]
    picture(pictures / "hxn.png", "NSLS-II HXN: maps in units of I0, not counts", rows)
    return results


def zagami(data: Path, pictures: Path) -> list[Result]:
    """A meteorite section as a realistic truth: sharp, six elements, sampled at few counts."""
    with np.load(data / "zagami_wds_6el_1000x1000_u8.npz") as stored:
        names = sorted(stored)
        fine = np.stack([stored[name] for name in names]).astype(np.float64)
    truth = fine.reshape(len(fine), 250, 4, 250, 4).mean(axis=(2, 4))[:, 40:200, 40:200]
    truth /= truth.max(axis=(1, 2), keepdims=True)
    results = []
    for peak in _PEAKS:
        mean = peak * truth
        ours, soft, estimate, raw = [], [], None, None
        for seed in range(3):
            counts = np.random.default_rng([seed, 3]).poisson(np.stack([mean / 4] * 4))
            raw = counts.sum(axis=0)
            estimate = n2n.denoise(counts)
            found = [
                best_gaussian(x, lambda z, m=m: float(((z - m) ** 2).mean()))[0]
                for x, m in zip(raw, mean, strict=True)
            ]
            ours.append(_truth_scores(mean, raw, estimate.values, estimate))
            soft.append(_truth_scores(mean, raw, np.stack(found), None))
        assert estimate is not None and raw is not None
        name = f"Zagami meteorite as truth, 4 channels, peak {peak:g}"
        how = "sampled from the measured maps, 3 seeds"
        results.append(Result(name, "Gaussian, tuned on the truth", how, _mean(soft)))
        results.append(describe(name, how, _mean(ours), estimate))
        if peak == 10.0:
            rows = [
                [
                    Panel(f"{names[k]}: counts", raw[k]),
                    Panel("n2n", estimate.values[k], like=0),
                    Panel("sigma", estimate.sigma[k]),
                    Panel("truth", mean[k], like=1),
                ]
                for k in (names.index("Fe_5"), names.index("Ca_3"), names.index("K_2"))
            ]
            picture(pictures / "zagami.png", f"{name}", rows)
    return results


def _truth_scores(mean, raw, found, estimate) -> dict[str, float]:
    squares = [np.square(z - mean).mean(axis=(1, 2)) for z in (raw, found)]
    gains = squares[0] / np.maximum(squares[1], 1e-12)
    figures = {
        "gain x": float(np.exp(np.log(gains).mean())),
        "worst element x": float(gains.min()),
        "flux %": 100 * float(np.mean(found.sum(axis=(1, 2)) / raw.sum(axis=(1, 2)) - 1)),
    }
    if estimate is not None:
        low, high = estimate.interval(0.9)
        inside = (low <= mean) & (mean <= high)
        bright = mean >= np.quantile(mean, 0.95, axis=(1, 2), keepdims=True)
        figures["coverage"] = float(inside.mean())
        figures["coverage, brightest 5 %"] = float(inside[bright].mean())
    return figures
