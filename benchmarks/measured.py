"""The methods on measured data, scored without a truth: `python benchmarks/measured.py DIR`.

DIR holds the measured files (see docs/methods/measured.md), which are no part of the project. Prints
a table, writes measured.json and the pictures.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from machine import machine
from measured_maps import aps, hxn, i18, pixl, zagami
from measured_scores import Result
from measured_spectra import eds, pansharpening, repeated_spectra, velox
from measured_stacks import stxm, txm_aps, txm_ssrl, vanadium

from inscan.models.infer import load_denoiser

DOCS = Path(__file__).resolve().parents[1] / "docs"
EXPERIMENTS: dict[str, Callable[[Path, Path], list[Result]]] = {
    "aps": aps,
    "pixl": pixl,
    "i18": i18,
    "hxn": hxn,
    "zagami": zagami,
    "repeats": repeated_spectra,
    "eds": eds,
    "pansharpening": pansharpening,
    "velox": velox,
    "stxm": stxm,
    "txm_ssrl": txm_ssrl,
    "txm_aps": txm_aps,
    "vanadium": vanadium,
}


def table(results: Sequence[Result]) -> str:
    """Results as text, what the method says of itself below each."""
    lines = []
    for result in results:
        lines.append(f"{result.data} | {result.method} | {result.how}")
        lines += [f"    {name}: {value:.4g}" for name, value in result.figures.items()]
        if result.verdict:
            lines.append(f"    verdict: {result.verdict}")
        lines += [f"    - {reason}" for reason in result.reasons]
        if result.doubt:
            lines.append(f"    doubtful: {100 * result.doubt['share']:.2g} %")
            lines += [f"    - {reason}" for reason in result.doubt["reasons"]]
    return "\n".join(lines)


def _plain(value):
    if isinstance(value, float | np.floating):
        return round(float(value), 6) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def main() -> None:
    """Run the experiments named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder with the measured files")
    parser.add_argument("--out", type=Path, default=DOCS / "evaluation")
    parser.add_argument("--pictures", type=Path, default=DOCS / "pictures")
    parser.add_argument("--only", nargs="*", choices=list(EXPERIMENTS), default=list(EXPERIMENTS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    path = options.out / "measured.json"
    stored = {}
    if set(options.only) != set(EXPERIMENTS) and path.exists():
        stored = json.loads(path.read_text(encoding="utf-8"))["experiments"]
    for name in options.only:
        began = time.monotonic()
        results = EXPERIMENTS[name](options.data, options.pictures)
        print(table(results))
        print(f"== {name}: {time.monotonic() - began:.0f} s\n", flush=True)
        stored[name] = _plain([asdict(result) for result in results])
    answer = {
        "command": "python benchmarks/measured.py DIR",
        "denoiser": load_denoiser("cpu").weights.sha256,
        "machine": machine(),
        "experiments": {name: stored[name] for name in EXPERIMENTS if name in stored},
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
