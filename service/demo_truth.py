"""The demo's comparison with the truth: what the simulated sample really is, opened after the last scan.

Nothing on the way to a rescan imports this module; only `inscan.service.demo` does, when everything is over.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inscan.models import xanes
from inscan.profiles.samples import XANESSample, XRFSample, xanes_sample, xrf_sample
from inscan.profiles.xrf_response import build_response
from inscan.service.demo_figures import draw_maps, draw_stack
from inscan.service.demo_report import Block
from inscan.service.demo_results import RunResult
from inscan.service.demo_score import (
    ChemistryScore,
    MapScore,
    RegionScore,
    score_chemistry,
    score_map,
    score_regions,
)

Maps = NDArray[np.floating]
PROBE_FWHM_UM = 0.2
"""Beam size of the simulated microprobe."""
_IN_FLIGHT = 5  # positions that a pixel taken in flight is averaged over
MONITOR_RATE = 2e6
"""Counts/s of its monitor at the nominal beam."""


class XRFTruth:
    """Expected count rates of a simulated microprobe's windows, as an ideal detector without dead time counts them.

    Parameters
    ----------
    sample : XRFSample
    incident_ev : float
        Beam energy.
    probe_fwhm : float
        Size of the beam on the sample, um.
    """

    def __init__(self, sample: XRFSample, incident_ev: float, probe_fwhm: float) -> None:
        self.sample = sample
        self._seen = sample.seen(probe_fwhm)
        self._response = build_response(sample.elements, incident_ev=incident_ev)

    def maps(self, run: RunResult, i0: float) -> Maps:
        """Rates at a run's pixels, (element, row, col) in counts/s at the run's reference I0.

        Parameters
        ----------
        run : RunResult
            Its `labels` are windows of the detector.
        i0 : float
            The run's reference I0 relative to the nominal beam.
        """
        slow, fast = run.geometry.positions()
        flown = "FLY" in str(run.raw_start["scan"].get("type", ""))
        offsets = (np.arange(_IN_FLIGHT) + 0.5) / _IN_FLIGHT - 0.5 if flown else np.zeros(1)
        step = abs(run.geometry.fast_step)
        rates = np.mean(
            [self._seen.rate(slow.ravel(), fast.ravel() + part * step) for part in offsets], axis=0
        )
        windows = self._response.window_rates(rates).reshape(-1, *slow.shape) * i0
        names = [window.name for window in self._response.mcarois]
        return np.stack([windows[names.index(label)] for label in run.labels])


def report_maps(
    truth: XRFTruth,
    results: Sequence[RunResult],
    i0: Sequence[float],
    regions: Sequence[dict[str, Any]],
    picture: Path,
    title: str,
) -> tuple[list[Block], dict[str, Any]]:
    """Score and draw a survey (the first result) and its fine runs.

    Parameters
    ----------
    i0 : sequence of float
        Reference I0 of each run relative to the nominal beam.
    regions : sequence of dict
        Of the proposal that was measured.
    """
    survey, fines = results[0], list(results[1:])
    truths = [truth.maps(run, level) for run, level in zip(results, i0, strict=True)]
    scores = _map_scores(survey, truths[0])
    gain = float(np.exp(np.mean(np.log([score.dwell_equivalent for score in scores]))))
    blocks = [
        _map_block(
            f"Survey against the truth ({survey.geometry.shape[0]} x {survey.geometry.shape[1]} pixels)",
            scores,
            f"geometric mean of the dwell equivalents: {gain:.1f}",
        )
    ]
    figures: dict[str, Any] = {
        "survey": [asdict(score) for score in scores],
        "dwell_equivalent": gain,
        "worst_flux_bias": max((abs(s.flux_bias) for s in scores), default=float("nan")),
    }
    if fines:
        fine_rows, figures["fine"] = [], []
        for k, (fine, fine_truth) in enumerate(zip(fines, truths[1:], strict=True)):
            label = str(regions[k].get("label", k + 1)) if k < len(regions) else str(k + 1)
            for score in _map_scores(fine, fine_truth):
                figures["fine"].append(asdict(score) | {"region": label})
                if label.endswith(f"-{score.name}"):  # the element for which it was measured
                    fine_rows.append(replace(score, name=label))
        blocks.append(_map_block("Fine maps against the truth", fine_rows, ""))
    found = _region_score(truth.sample, survey, regions[: len(fines)])
    times = _times(survey, fines)
    blocks.append(_decision_block(found, times, regions, len(fines)))
    figures["regions"] = asdict(found) | {"recall": found.recall, "measured": len(fines)}
    figures["times_s"] = times
    draw_maps(picture, survey, truths[0], fines, truths[1:], list(regions[: len(fines)]), title)
    return blocks, figures


def report_stack(
    sample: XANESSample, stack: RunResult, picture: Path, title: str
) -> tuple[list[Block], dict[str, Any]]:
    """Score and draw an energy stack."""
    energies = np.asarray((stack.start.get("report") or {})["energies_ev"], dtype=float)
    density = sample.optical_density(energies)
    transmission = np.exp(-density)
    # The same definition of an edge on both sides: normalised with lines through the same noise-free spectra.
    edge = xanes.edge_energy(density, energies).energy
    inside = np.isfinite(edge) & (sample.jump > 0.2)
    arrays = stack.arrays
    chemistry = [
        score_chemistry("raw frames", arrays["edge_energy_raw"], edge, inside),
        score_chemistry("result", arrays["edge_energy"], edge, inside),
    ]
    sizes = slice(None)
    everywhere = np.ones(transmission.shape[1:], dtype=bool)
    # The beam drifts between a flat and its frame: a factor that no frame can tell from the sample.
    drift = np.sum(arrays["raw"] * transmission, axis=(1, 2)) / np.sum(transmission**2, axis=(1, 2))
    seen = transmission * drift[:, None, None]
    frames = [
        score_map(
            f"{energies[k]:.1f} eV",
            arrays["values"][k],
            arrays["raw"][k],
            seen[k],
            arrays["lower"][k],
            arrays["upper"][k],
            everywhere,
        )
        for k in range(len(energies))[sizes]
    ]
    gain = float(np.exp(np.mean(np.log([frame.dwell_equivalent for frame in frames]))))
    shown = [frames[0], frames[len(frames) // 2], frames[-1]]
    blocks = [
        _map_block(
            "Transmission against the truth",
            shown,
            f"geometric mean of the dwell equivalents over {len(frames)} energies: {gain:.1f}; the truth is"
            f" scaled by the beam's drift since the flat (rms {100 * float(np.std(drift)):.1f} %)",
        ),
        Block(
            "Edge energy against the truth",
            ("map", "RMSE (eV)", "correlation", "slope", "pixels"),
            [_chemistry_row(score) for score in chemistry],
            "slope: of the map against the truth, 1 when nothing is smoothed away",
        ),
    ]
    figures: dict[str, Any] = {
        "dwell_equivalent": gain,
        "coverage": float(np.mean([frame.coverage for frame in frames])),
        "edge_energy": [asdict(score) for score in chemistry],
    }
    names = [state.name for state in sample.spectra]
    if "fractions" in arrays:
        rows, figures["fractions"] = [], []
        for k, name in enumerate(names):
            true = sample.fractions[k]
            errors = [
                float(np.sqrt(np.nanmean((arrays[key][k] - true)[inside] ** 2)))
                for key in ("fractions_raw", "fractions")
            ]
            rows.append((name, f"{errors[0]:.3f}", f"{errors[1]:.3f}"))
            figures["fractions"].append({"name": name, "rmse_raw": errors[0], "rmse": errors[1]})
        blocks.append(
            Block("Fractions of the references, RMSE", ("reference", "raw", "result"), rows)
        )
    draw_stack(
        picture,
        stack,
        np.where(inside, edge, np.nan),
        np.where(inside, sample.fractions, np.nan),
        transmission[len(energies) // 2],
        names,
        title,
    )
    return blocks, figures


def _map_scores(run: RunResult, truth: Maps) -> list[MapScore]:
    measured = np.asarray(run.arrays["measured"], dtype=bool).reshape(truth.shape[1:])
    arrays = run.arrays
    return [
        score_map(
            name,
            arrays["values"][k],
            arrays["raw"][k],
            truth[k],
            arrays["lower"][k],
            arrays["upper"][k],
            measured,
        )
        for k, name in enumerate(run.labels)
    ]


def _map_block(title: str, scores: Sequence[MapScore], note: str) -> Block:
    headings = ("map", "PSNR raw (dB)", "PSNR result (dB)", "dwell equivalent")
    rows = [
        (
            score.name,
            f"{score.psnr_raw:.1f}",
            f"{score.psnr_result:.1f}",
            f"{score.dwell_equivalent:.1f}x",
            f"{100 * score.flux_bias:+.2f} %",
            f"{100 * score.coverage:.0f} %",
        )
        for score in scores
    ]
    return Block(title, (*headings, "flux bias", "in the 90 % interval"), rows, note)


def _region_score(
    sample: XRFSample, survey: RunResult, regions: Sequence[dict[str, Any]]
) -> RegionScore:
    (slow0, slow1), (fast0, fast1) = survey.geometry.field()
    wanted = [(one.slow, one.fast) for one in sample.inclusions if not one.decoy]
    boxes = [(*region["slow_range"], *region["fast_range"]) for region in regions]
    return score_regions(boxes, wanted, (slow0, slow1, fast0, fast1))


def _times(survey: RunResult, fines: Sequence[RunResult]) -> dict[str, float]:
    """Measuring time by dwell alone, and that of a raster as fine as the fine maps over the whole field."""

    def dwell(run: RunResult) -> float:
        return float(run.raw_start["scan"]["dwell"])

    def taken(run: RunResult) -> float:
        return dwell(run) * float(np.count_nonzero(run.arrays["measured"]))

    times = {"survey": taken(survey), "fine": sum(taken(fine) for fine in fines)}
    if fines:
        (slow0, slow1), (fast0, fast1) = survey.geometry.field()
        finest = min(fines, key=lambda run: abs(run.geometry.fast_step))
        slow, fast = abs(finest.geometry.slow_step), abs(finest.geometry.fast_step)
        times["full_fine_raster"] = (slow1 - slow0) / slow * (fast1 - fast0) / fast * dwell(finest)
        times["saved_factor"] = times["full_fine_raster"] / (times["survey"] + times["fine"])
    return times


def _decision_block(
    found: RegionScore, times: dict[str, float], regions: Sequence[dict[str, Any]], measured: int
) -> Block:
    rows = [
        ("regions measured again", f"{measured} of {len(regions)} proposed"),
        ("share of the field", f"{100 * found.area_fraction:.1f} %"),
    ]
    if found.inclusions:
        rows.append(("inclusions in them", f"{found.found} of {found.inclusions}"))
    rows += [
        ("time of the survey", f"{times['survey']:.0f} s"),
        ("time of the fine maps", f"{times['fine']:.0f} s"),
    ]
    if "full_fine_raster" in times:
        rows.append(("time of a full fine raster", f"{times['full_fine_raster']:.0f} s"))
        rows.append(("time saved", f"{times['saved_factor']:.1f}x"))
    return Block("The rescan", ("", ""), rows, "times are dwell times, without motor overhead")


def _chemistry_row(score: ChemistryScore) -> tuple[str, ...]:
    return (
        score.name,
        f"{score.rmse_ev:.3f}",
        f"{score.correlation:.3f}",
        f"{score.slope:.2f}",
        str(score.pixels),
    )


def evaluate(
    profile: str,
    sample: str | None,
    seed: int,
    results: Sequence[RunResult],
    regions: Sequence[dict[str, Any]],
    picture: Path,
) -> tuple[list[Block], dict[str, Any]]:
    """Compare what a demo measured with what there was.

    Parameters
    ----------
    profile, sample, seed
        As the beamline was started with.
    results : sequence of RunResult
        In the order of the runs, the survey (or the stack) first. Empty: nothing is compared.
    regions : sequence of dict
        Regions that were measured again, in the order of the fine runs.
    picture : Path
        PNG to draw.
    """
    if not results:
        return [], {}
    first = results[0]
    title = (
        f"inscan demo, {profile}: scan {first.raw_start.get('scan_id')}, run {first.run_uid[:8]}, "
        f"verdict {first.verdict}"
    )
    if profile == "sim_txm":
        truth = xanes_sample(
            sample or "battery_smooth", seed=seed, size=first.arrays["raw"].shape[1]
        )
        return report_stack(truth, first, picture, title)
    made_of = xrf_sample(sample or "cells", seed=seed)
    scan = first.raw_start["scan"]
    truth = XRFTruth(made_of, 1000.0 * float(scan["energy"]), PROBE_FWHM_UM)
    # The reference of a run is the median of its own monitor; the truth is at the nominal beam.
    i0 = [run.i0 / (MONITOR_RATE * float(run.raw_start["scan"]["dwell"])) for run in results]
    return report_maps(truth, results, i0, regions, picture, title)
