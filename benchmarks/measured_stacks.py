"""Energy stacks and frames: repeats against repeats, and noise that is not what it should be."""

from pathlib import Path

import numpy as np
from measured_data import read_vanadium
from measured_scores import Panel, Result, best_gaussian, describe, picture

from inscan.models import subspace
from inscan.models.xanes import edge_energy

__all__ = ["stxm", "txm_aps", "txm_ssrl", "vanadium"]


def stxm(data: Path, pictures: Path) -> list[Result]:
    """ALS STXM at the Fe L edge: aligned by interpolation, so its noise is not white."""
    with np.load(data / "stxm_als_FeL_123x150x150.npz") as stored:
        stack, energy = stored["counts"], stored["energy_eV"]
    estimate = subspace.denoise(stack)
    correlation = estimate.report["figures"]["residual_correlation"]
    figures = {
        "rank": float(estimate.report["figures"]["rank"]),
        "residual correlation, rows": float(correlation["row"]),
        "residual correlation, columns": float(correlation["col"]),
    }
    rows = []
    for at in (int(np.argmin(np.abs(energy - 705))), int(np.argmin(np.abs(energy - 709)))):
        rows.append(
            [
                Panel(f"{energy[at]:.1f} eV: as stored", stack[at]),
                Panel("subspace", estimate.values[at], like=0),
                Panel("sigma", estimate.sigma[at]),
                Panel("stored less subspace", stack[at] - estimate.values[at], None, True),
            ]
        )
    picture(pictures / "stxm.png", "ALS STXM, Fe L edge, 123 energies", rows)
    return [describe("ALS STXM, Fe L, 123 x 150 x 150", "as stored", figures, estimate)]


def txm_ssrl(data: Path, pictures: Path) -> list[Result]:
    """SSRL TXM: two repeats, with half of the flats, predict the third with the other half."""
    with np.load(data / "txm_ssrl_NCA_8324eV_512crop.npz") as stored:
        frames, flats = stored["sample_reps"].astype(float), stored["flat_reps"].astype(float)
        seconds = stored["exp_s_sample_flat"]
    # No darks are stored; a constant offset would scale contrast, not noise.
    light = [flats[k::2].mean(axis=0) * seconds[0] / seconds[1] for k in range(2)]
    first = np.stack([frames[0] / light[0], frames[1] / light[0]])
    third = frames[2] / light[1]
    estimate = subspace.denoise(first)
    mean = first.mean(axis=0)
    found = estimate.values.mean(axis=0)
    soft, width = best_gaussian(mean, lambda z: float(np.square(z - third).mean()))
    how = "two repeats and five flats against the third and five others"

    def rms(image) -> float:
        image = image - np.median(image)
        return float(np.sqrt(np.mean(np.square(image - np.median(third - mean)))))

    detail = {
        "rms of repeat 3 less the mean of 1 and 2, %": 100 * rms(third - mean),
        "rms of repeat 3 less Gaussian, %": 100 * rms(third - soft),
        "rms of repeat 3 less subspace, %": 100 * rms(third - found),
        "low-frequency part of the difference, %": 100 * rms(_smooth(third - mean, 16)),
    }
    picture(
        pictures / "txm_ssrl.png",
        "SSRL TXM, NCA cathode at 8324 eV: one frame in three repeats",
        [
            [
                Panel("repeat 1 / flats", first[0]),
                Panel("subspace", estimate.values[0], like=0),
                Panel("sigma", estimate.sigma[0]),
                Panel("repeat 3 less subspace", third - found, None, True),
                Panel("the same, 16 px smoothed", _smooth(third - found, 16), None, True),
            ]
        ],
    )
    name = "SSRL TXM, NCA, 512 x 512"
    return [
        Result(
            name, f"Gaussian, tuned ({width})", how, {k: v for k, v in detail.items() if "Gau" in k}
        ),
        describe(name, how, detail, estimate),
    ]


def _smooth(image, width: float):
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(image, width)


def txm_aps(data: Path, pictures: Path) -> list[Result]:
    """APS TXM: one frame below the Ni edge and one above, of one field."""
    with np.load(data / "txm_aps_NCA_2E_384_decimated.npz") as stored:
        pair = []
        for at in ("8250", "8353"):
            state = "xanessoc02" if at == "8250" else "xanessoc01"
            flat = stored[f"ref_xanessoc01_{at}_0eV"].astype(float)
            pair.append(stored[f"fov03_{state}_{at}_0eV"] / np.maximum(flat, 1))
    stack = np.stack(pair)
    estimate = subspace.denoise(stack)
    jump_raw = -np.log(np.maximum(stack[1], 0.02) / np.maximum(stack[0], 0.02))
    values = np.maximum(estimate.values, 0.02)
    jump = -np.log(values[1] / values[0])
    picture(
        pictures / "txm_aps.png",
        "APS TXM, NCA: below and above the Ni edge",
        [
            [
                Panel("8353 eV, transmission", stack[1]),
                Panel("subspace", estimate.values[1], like=0),
                Panel("sigma", estimate.sigma[1]),
                Panel("Ni (difference of OD), raw", jump_raw),
                Panel("after subspace", jump, like=3),
            ]
        ],
    )
    figures = {"rank": float(estimate.report["figures"]["rank"])}
    return [describe("APS TXM, NCA, two energies, 384 x 384", "as stored", figures, estimate)]


def vanadium(data: Path, pictures: Path) -> list[Result]:
    """V K edge: do the errors of the edge energy match its scatter between scans?"""
    energy, counts, normal = read_vanadium(data / "xanes_V_aps13ide_4det_12scans.h5")
    rising = np.argsort(energy)
    energy, counts, normal = energy[rising], counts[:, rising], normal[:, rising]
    # Scans as rows, detector elements as columns, each from 0 before the edge to 1 after it.
    signal = normal.transpose(1, 0, 2)
    before, after = (np.median(signal[part], axis=0) for part in (slice(30), slice(-60, None)))
    density = (signal - before) / (after - before)
    noise = signal / np.sqrt(np.maximum(counts.transpose(1, 0, 2), 1))
    variance = (noise / (after - before)) ** 2
    edge = edge_energy(density, energy, variance=variance)
    spread = np.nanstd(edge.energy, axis=0, ddof=1)
    figures = {
        "scatter of the edge over 12 scans, eV": float(spread.mean()),
        "error given by the method, eV": float(np.nanmean(edge.sigma)),
        "largest difference between elements, eV": float(np.ptp(np.nanmean(edge.energy, axis=0))),
    }
    name = "V K edge, APS 13-ID-E, 12 scans x 4 elements"
    results = [Result(name, "xanes.edge_energy", "scan repeats", figures)]
    estimate = subspace.denoise(density)
    raw, ours = [], []
    # One scan against the mean of the other eleven, before and after.
    for scan in range(density.shape[1]):
        others = np.delete(density, scan, axis=1).mean(axis=(1, 2))
        for z, out in ((density, raw), (estimate.values, ours)):
            one = z[:, scan].mean(axis=1)
            out.append(float(np.sqrt(np.mean((one - others) ** 2))))
    figures = {
        "rms of one scan against the other 11, %": 100 * float(np.mean(raw)),
        "the same after subspace, %": 100 * float(np.mean(ours)),
    }
    results.append(describe(name, "12 x 4 spectra as a stack", figures, estimate))
    return results
