"""Score n2n against the truth on sample families no network has seen, beside simpler methods.

    inscan evaluate n2n

Every figure is over several seeds (sample, channel gains and noise), with its 95 % interval.
Figures of methods that cannot be run here (BM3D, for its licence) are taken from a file.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from inscan.models import n2n
from inscan.models.baselines import median, oracle_gaussian, oracle_tv
from inscan.models.channels import sum_channels
from inscan.models.edges import EdgeRuler
from inscan.models.estimate import Estimate
from inscan.models.hallucination import (
    evaluate_flat_fields,
    evaluate_imprint,
    evaluate_paired,
)
from inscan.models.infer import Denoiser, load_denoiser
from inscan.models.map_scores import edge_rulers, map_row, score_maps
from inscan.models.n2n_cases import FAMILY_CASES, N2N_CASES, Measured, N2NCase, measure
from inscan.models.n2n_paper import denoise_paper
from inscan.models.scores import ScoreRow, figure

__all__ = [
    "FAMILIES",
    "ZERO_SHOT",
    "N2NCase",
    "N2N_CASES",
    "Peers",
    "evaluate_all",
    "evaluate_inventions",
    "evaluate_n2n",
    "published_recipe",
    "read_peers",
]

ZERO_SHOT = "inscan n2n"
FAMILIES = "geometric mean over held-out families"

Progress = Callable[[str], None]
Peers = Mapping[str, Mapping[str, Mapping[int, Mapping[str, float]]]]
"""Scores measured elsewhere: method → case → seed → figure."""

_Answer = Estimate | NDArray[np.floating]
_Scores = dict[str, dict[int, Mapping[str, float]]]  # method -> seed -> figures

# At its published size and rate the recipe takes days on a CPU; this reaches more in minutes.
_PAPER_WIDTH = 16
_PAPER_RATE = 1e-3


def evaluate_n2n(
    seeds: Sequence[int] = range(10),
    *,
    cases: Sequence[N2NCase] = N2N_CASES,
    fit_steps: int = 0,
    fit_seeds: Sequence[int] | None = None,
    paper_steps: int = 0,
    paper_seeds: Sequence[int] = range(2),
    peers: Peers | None = None,
    device: str | torch.device | None = None,
    denoiser: Denoiser | None = None,
    baselines: bool = True,
    progress: Progress | None = None,
) -> list[ScoreRow]:
    """Run the cases.

    Parameters
    ----------
    seeds : sequence of int
        Each draws another sample, other channel gains (0.6 to 1.4) and other noise.
    cases : sequence of N2NCase
    fit_steps : int
        Fine-tuning steps for a further row; 0 leaves it out.
    fit_seeds : sequence of int, optional
        The seeds to fine-tune on, where all of them take too long; all by default.
    paper_steps : int
        Training steps of the published recipe (each element has its own network) for a further
        row; 0 leaves it out. On a CPU it is run with a narrower network and a higher rate.
    paper_seeds : sequence of int
        The seeds to run it on.
    peers : mapping, optional
        Stored scores, see `read_peers`. Seeds without scores are left out of their rows.
    device : str or torch.device, optional
    denoiser : Denoiser, optional
        Other weights than the shipped ones.
    baselines : bool
        Raw counts, median, and Gaussian filter and total variation with the parameter that the
        truth likes best.
    progress : callable (text), optional

    Returns
    -------
    list of ScoreRow
        Figures as in `inscan.models.map_scores.score_maps`; last, where every family was run, the
        geometric mean over them (`FAMILIES`) with its ratio to each stored peer.
    """
    net = denoiser or load_denoiser(device)
    by_case: dict[str, _Scores] = {}
    for case in cases:
        found: _Scores = {}
        for seed in seeds:
            measured = measure(case, seed)
            rulers = edge_rulers(measured)
            for name, method in _methods(net, baselines).items():
                found.setdefault(name, {})[seed] = _timed(method, measured, rulers)
            if fit_steps and (fit_seeds is None or seed in fit_seeds):
                name = f"{ZERO_SHOT}, {fit_steps} steps"
                found.setdefault(name, {})[seed] = _timed(
                    lambda m: n2n.denoise(m.counts, fit_steps=fit_steps, denoiser=net),
                    measured,
                    rulers,
                )
            if paper_steps and seed in paper_seeds:
                name = f"published recipe, {paper_steps} steps"
                found.setdefault(name, {})[seed] = _timed(
                    lambda m: published_recipe(m, paper_steps, device), measured, rulers
                )
            if progress:
                progress(f"{case.name}, seed {seed}")
        for name, stored in (peers or {}).items():
            known = stored.get(case.name, {})
            if any(seed in known for seed in seeds):
                found[name] = {seed: known[seed] for seed in seeds if seed in known}
        by_case[case.name] = dict(sorted(found.items(), key=lambda item: "inscan" in item[0]))
    rows = [
        map_row(case, method, list(several.values()))
        for case, found in by_case.items()
        for method, several in found.items()
    ]
    return rows + _over_families(by_case, tuple(peers or ()))


def evaluate_all(seeds: Sequence[int], progress: Progress | None = None) -> list[ScoreRow]:
    """Zero-shot on every case, and what it makes up; without fine-tuning and stored peers."""
    return [*evaluate_n2n(seeds, progress=progress), *evaluate_inventions(seeds, progress)]


def evaluate_inventions(seeds: Sequence[int], progress: Progress | None = None) -> list[ScoreRow]:
    """Imprints of one element on another, and spots that are not there."""
    return [
        *evaluate_imprint(seeds, progress=progress),
        *evaluate_paired(seeds, progress=progress),
        *evaluate_flat_fields(seeds, progress=progress),
    ]


def read_peers(path: Path) -> dict[str, dict[str, dict[int, dict[str, float]]]]:
    """Stored scores of methods that are not run here.

    Parameters
    ----------
    path : Path
        JSON with "methods": method → case → seed → figure → number or null.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it holds something else.
    """
    stored = json.loads(path.read_text(encoding="utf-8"))
    try:
        return {
            method: {
                case: {
                    int(seed): {
                        name: float("nan") if value is None else float(value)
                        for name, value in scores.items()
                    }
                    for seed, scores in by_seed.items()
                }
                for case, by_seed in by_case.items()
            }
            for method, by_case in stored["methods"].items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f'{path}: expected "methods": method, case, seed, figure, number: {error!r}'
        ) from error


def published_recipe(
    measured: Measured, steps: int, device: str | torch.device | None = None
) -> NDArray[np.float32]:
    """`recipe="paper"` with the narrower network and higher rate that a CPU can train."""
    light = np.ones_like(measured.counts)
    return denoise_paper(
        measured.counts,
        light,
        sum_channels(measured.counts, light),
        fit_steps=steps,
        device=device,
        start=_PAPER_WIDTH,
        rate=_PAPER_RATE,
    ).values


def _methods(net: Denoiser, baselines: bool) -> dict[str, Callable[[Measured], _Answer]]:
    methods: dict[str, Callable[[Measured], _Answer]] = {}
    if baselines:
        methods["raw"] = lambda m: m.counts.sum(axis=0)
        methods["median 3 x 3"] = lambda m: median(m.counts.sum(axis=0))
        methods["Gaussian (oracle)"] = lambda m: oracle_gaussian(m.counts.sum(axis=0), m.mean)
        methods["total variation (oracle)"] = lambda m: oracle_tv(m.counts.sum(axis=0), m.mean)
    methods[ZERO_SHOT] = lambda m: n2n.denoise(m.counts, denoiser=net)
    return methods


def _timed(
    method: Callable[[Measured], _Answer], measured: Measured, rulers: Sequence[EdgeRuler]
) -> dict[str, float]:
    began = time.perf_counter()
    found = method(measured)
    return score_maps(measured, found, time.perf_counter() - began, rulers)


def _over_families(by_case: Mapping[str, _Scores], peers: Sequence[str]) -> list[ScoreRow]:
    """Geometric mean of the dwell factor over the families, seed by seed, and over the peers'."""
    families = [case.name for case in FAMILY_CASES]
    if any(name not in by_case for name in families):
        return []
    tables = [by_case[name] for name in families]
    means: dict[str, dict[int, float]] = {}
    for method in tables[0]:
        if any(method not in table for table in tables):
            continue
        common = set.intersection(*(set(table[method]) for table in tables))
        for seed in sorted(common):
            several = [table[method][seed] for table in tables]
            factors = [np.log(scores["dwell"]) for scores in several]
            means.setdefault(method, {})[seed] = float(np.exp(np.mean(factors)))
    rows = []
    for method, by_seed in means.items():
        figures = {"dwell": figure(list(by_seed.values()), geometric=True)}
        for peer in peers:
            if peer in means and peer != method:
                ratios = [by_seed[s] / means[peer][s] for s in by_seed if s in means[peer]]
                figures[f"over {peer}"] = figure(ratios, geometric=True)
        # Mean over seeds of each family first; families must not make up for each other.
        flux = [figure([t[method][s]["flux %"] for s in by_seed]) for t in tables]
        figures["worst flux %"] = max(flux, key=lambda f: abs(f.mean))
        rows.append(ScoreRow(FAMILIES, method, figures, len(by_seed)))
    return rows
