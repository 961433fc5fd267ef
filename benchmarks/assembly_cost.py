"""Cost of assembling a run, per event and per row, beside a memory copy of the same bytes.

Run: ``python benchmarks/assembly_cost.py [--json]``. Each case is timed with the copy in turn, and the
ratio is that of the medians: it means something on a busy machine, the microseconds do not.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from event_model import compose_run

from inscan.callbacks.assembly import Update, open_assembler
from inscan.callbacks.profile import BeamlineProfile, load_profile

REPEATS = 5
ELEMENTS = ("S_K", "Ca_K", "Ti_K", "Fe_K", "Ni_K", "Cu_K", "Zn_K")
CHANNELS, ROWS, COLS, BINS = 4, 64, 64, 1024
Documents = list[tuple[str, Any]]


def mapped(folder: Path) -> Callable[[str, tuple[int, ...], np.dtype], np.ndarray]:
    """Allocate as the service does: mapped files."""

    def allocate(name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        path = folder / f"{time.monotonic_ns()}-{name}.npy"
        return np.lib.format.open_memmap(path, "w+", dtype, shape)

    return allocate


def configuration() -> dict[str, Any]:
    data: dict[str, Any] = {"xs_energy_per_bin": 10.0, "xs_energy_offset": 0.0}
    data |= {f"xs_mcaroi{m:02d}_name": name for m, name in enumerate(ELEMENTS, start=1)}
    keys = {key: {"dtype": "string", "shape": [], "source": "sim"} for key in data}
    return {"xs": {"data": data, "timestamps": dict.fromkeys(data, 0.0), "data_keys": keys}}


def xrf_run() -> Any:
    return compose_run(
        metadata={
            "beamline_id": "sim_xrf",
            "shape": [ROWS, COLS],
            "extents": [[0.0, 63.0], [0.0, 63.0]],
            "snaking": [False, True],
            "motors": ["sample_y", "sample_x"],
            "scan": {"energy": 12.0, "dwell": 0.05},
        }
    )


def step(rng: np.random.Generator) -> tuple[Any, Documents, Documents, int]:
    """A step scan with window sums: an event per pixel."""
    run = xrf_run()
    number = {"dtype": "number", "shape": [], "source": "sim"}
    totals = [
        f"xs_channel{c:02d}_mcaroi{m:02d}_total_rbv"
        for c in range(1, CHANNELS + 1)
        for m in range(1, len(ELEMENTS) + 1)
    ]
    lives = [f"xs_channel{c:02d}_live_time" for c in range(1, CHANNELS + 1)]
    keys = [*totals, *lives, "sclr_i0", "sample_y", "sample_x"]
    stream = run.compose_descriptor(
        name="primary", data_keys=dict.fromkeys(keys, number), configuration=configuration()
    )
    events: Documents = []
    for index in range(ROWS * COLS):
        row, col = divmod(index, COLS)
        values = [*rng.poisson(20, len(totals)).astype(float), *[0.05] * CHANNELS, 1000.0]
        values += [float(row), float(COLS - 1 - col if row % 2 else col)]
        data = dict(zip(keys, values, strict=True))
        events.append(
            (
                "event",
                {
                    "descriptor": stream.descriptor_doc["uid"],
                    "seq_num": index + 1,
                    "time": float(index),
                    "data": data,
                },
            )
        )
    return run, [("descriptor", stream.descriptor_doc)], events, len(keys) * 8


def fly(rng: np.random.Generator, folder: Path) -> tuple[Any, Documents, Documents, int]:
    """A fly raster with spectra in a file: a stream_datum per row and key."""
    run, size = xrf_run(), ROWS * COLS
    values = {
        "xs_fluor": rng.poisson(2, (size, CHANNELS, BINS)).astype(np.uint16),
        "xs_mcaroi": rng.poisson(30, (size, CHANNELS, len(ELEMENTS))).astype(np.uint32),
        "xs_live_time": np.full((size, CHANNELS), 0.05),
        "sclr_i0": np.full(size, 1000.0),
    }
    path = folder / "fly.h5"
    with h5py.File(path, "w", libver="latest") as file:
        for key, value in values.items():
            file.create_dataset(key, data=value, chunks=(COLS, *value.shape[1:]))
    keys = {
        key: {
            "dtype": "array", "shape": list(value.shape[1:]), "source": "sim", "external": "STREAM:"
        }
        for key, value in values.items()
    }  # fmt: skip
    stream = run.compose_descriptor(
        name="primary", data_keys=keys, configuration=configuration(), validate=False
    )
    bundles = [
        run.compose_stream_resource(
            mimetype="application/x-hdf5",
            uri=f"file://localhost{path}",
            data_key=key,
            parameters={"dataset": key},
        )
        for key in values
    ]
    rows: Documents = [
        (
            "stream_datum",
            bundle.compose_stream_datum(
                indices={"start": row * COLS, "stop": (row + 1) * COLS},
                descriptor=stream.descriptor_doc,
            ),
        )
        for row in range(ROWS)
        for bundle in bundles
    ]
    first: Documents = [("descriptor", stream.descriptor_doc)]
    first += [("stream_resource", bundle.stream_resource_doc) for bundle in bundles]
    return run, first, rows, sum(value[:COLS].nbytes for value in values.values())


def stack(rng: np.random.Generator, folder: Path) -> tuple[Any, Documents, Documents, int]:
    """An energy stack: three frames of 512 x 512 per energy, normalised as they come."""
    n, frames, size = 20, 3, 512
    run: Any = compose_run(
        metadata={
            "beamline_id": "sim_txm",
            "scan": {"type": "XANES_STACK"},
            "eng_list": np.linspace(8.3, 8.4, n).tolist(),
        }
    )
    first: Documents = []
    rows: Documents = []
    for name, count, level in (("dark", 2, 100), ("flat", 4, 5000), ("primary", n, 2500)):
        images = rng.poisson(level, (count, frames, size, size)).astype(np.uint16)
        path = folder / f"{name}.h5"
        with h5py.File(path, "w", libver="latest") as file:
            file["data"] = images
        stream = run.compose_descriptor(
            name=name,
            data_keys={
                "txm_image": {
                    "dtype": "array",
                    "shape": [frames, size, size],
                    "source": "sim",
                    "external": "STREAM:",
                }
            },
            validate=False,
        )
        bundle = run.compose_stream_resource(
            mimetype="application/x-hdf5",
            uri=f"file://localhost{path}",
            data_key="txm_image",
            parameters={"dataset": "data"},
        )
        first.append(("descriptor", stream.descriptor_doc))
        first.append(("stream_resource", bundle.stream_resource_doc))
        for index in range(count):
            datum = bundle.compose_stream_datum(
                indices={"start": index, "stop": index + 1}, descriptor=stream.descriptor_doc
            )
            (rows if name == "primary" else first).append(("stream_datum", datum))
    return run, first, rows, frames * size * size * 2


def measure(
    run: Any,
    profile: BeamlineProfile,
    first: Documents,
    documents: Documents,
    nbytes: int,
    groups: int,
    folder: Path,
) -> dict[str, float]:
    """Time the documents, the final, and a copy of their bytes, alternately."""
    content = profile.model_dump(mode="json")
    content["method"]["snapshot_rows"] = 0
    content["match"] = {"uid": run.start_doc["uid"]}
    profile = BeamlineProfile.model_validate(content | {"folder": profile.folder})
    # The copy goes through memory as the documents do, not round and round in a cache.
    source, target = (np.ones((groups, nbytes), np.uint8) for _ in range(2))
    stop = {"run_start": run.start_doc["uid"], "exit_status": "success"}
    costs, finals, copies = [], [], []
    for _ in range(REPEATS):
        allocate = mapped(folder)
        assembler = open_assembler(run.start_doc, [profile], allocate, data_roots=[folder])
        for name, doc in first:
            assembler(name, doc)
        began = time.perf_counter()
        for name, doc in documents:
            assembler(name, doc)
        costs.append((time.perf_counter() - began) / groups)
        began = time.perf_counter()
        updates: list[Update] = assembler("stop", stop)
        finals.append(time.perf_counter() - began)
        if updates[-1].kind != "final" or not updates[-1].meta["complete"]:
            raise RuntimeError(f"the run was not assembled: {updates[-1].meta}")
        began = time.perf_counter()
        for index in range(groups):
            np.copyto(target[index], source[index])
        copies.append((time.perf_counter() - began) / groups)
    cost, copy = statistics.median(costs), statistics.median(copies)
    return {
        "bytes": nbytes,
        "us": cost * 1e6,
        "memcpy_us": copy * 1e6,
        "ratio": cost / copy,
        "final_ms": statistics.median(finals) * 1e3,
    }


def cases(folder: Path) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield the name and the figures of each case."""
    rng = np.random.default_rng(0)
    windows = load_profile("sim_xrf")
    content = windows.model_dump(mode="json")
    content["xrf"]["elements"] |= {"source": "spectrum", "lines": list(ELEMENTS)}
    spectra = BeamlineProfile.model_validate(content)
    run, first, documents, nbytes = step(rng)
    yield "step, event", measure(run, windows, first, documents, nbytes, ROWS * COLS, folder)
    run, first, documents, nbytes = fly(rng, folder)
    small = nbytes - COLS * CHANNELS * BINS * 2
    yield "fly, row of window sums", measure(run, windows, first, documents, small, ROWS, folder)
    yield "fly, row of spectra", measure(run, spectra, first, documents, nbytes, ROWS, folder)
    run, first, documents, nbytes = stack(rng, folder)
    profile = load_profile("sim_txm")
    yield "stack, energy", measure(run, profile, first, documents, nbytes, 20, folder)


def main() -> None:
    """Print a table, or with --json one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    as_json = parser.parse_args().json
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, figures in cases(Path(folder)):
            found[name] = figures
            if not as_json:
                print(
                    f"{name:26s} {figures['bytes']:9.0f} B {figures['us']:9.1f} us"
                    f"   memcpy {figures['memcpy_us']:8.2f} us   ratio {figures['ratio']:6.1f}"
                    f"   final {figures['final_ms']:6.1f} ms"
                )
    if as_json:
        print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
