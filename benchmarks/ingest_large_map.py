"""Time and memory to take in a map of 1000 x 1000 spectra of 8 channels x 4096 bins: 131 GB as uint32.

    python benchmarks/ingest_large_map.py [--rows 24] [--peer-rows 8] [--seed 0] [--folder DIR] [--json]

Some rows are really written to disk and taken in; the rest of the map is extrapolated from them, and labelled so.
Two ways in which beamlines write: *files per row* (synthetic documents of NSLS-II SRX: an event and three new files
per row, resource and datum documents, 131 MB of spectra) and *one growing file* (stream_resource and stream_datum, as
ophyd-async writes: SWMR, another process adds a row, this one takes it in). Window sums are kept, spectra are not.

*Read*: the same spectra by h5py into memory and nothing else. *Peer*: `event_model.Filler` with the handler of
area-detector-handlers, windows added up by numpy, whole rows kept, as a script does that fills all documents. Each
part is a process of its own: peak resident memory is that of the part alone. Files were just written and are in the
page cache: on a disk or network slower than this machine's memory, theirs is the time.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from area_detector_handlers.handlers import BulkXSPRESS
from event_model import Filler, compose_run
from machine import machine

from inscan.callbacks.assembly import open_assembler
from inscan.callbacks.profile import BeamlineProfile, load_profile
from inscan.callbacks.sources.files import stored_runs, write_documents
from inscan.profiles.hdf5_stream import Column, HDF5Stream
from inscan.profiles.srx_documents import SRXMap, fly

ROWS, COLS, CHANNELS, BINS = 1000, 1000, 8, 4096
ROW_BYTES = COLS * CHANNELS * BINS * 4
SPECTRA = "entry/instrument/detector/data"
LINES = ("S_K", "Cl_K", "K_K", "Ca_K", "Ti_K", "Cr_K", "Mn_K", "Fe_K", "Ni_K", "Cu_K", "Zn_K")


class Spectra:
    """(row, col, channel, bin) counts that are made when a row is asked for."""

    shape = (ROWS, COLS, CHANNELS, BINS)

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self._pixels = rng.poisson(0.5, (64, CHANNELS, BINS)).astype(np.uint32)

    def __getitem__(self, key: Any) -> np.ndarray:
        row, cols = key[:2]
        return self._pixels[(np.asarray(cols) + row) % len(self._pixels)]


def truth(seed: int) -> SRXMap:
    slow, fast = np.meshgrid(
        np.arange(ROWS, dtype="f4"), np.arange(COLS, dtype="f4"), indexing="ij"
    )
    spectra: Any = Spectra(seed)
    i0 = np.full((ROWS, COLS), 1e5, np.float32)
    return SRXMap(spectra, i0, slow, fast, ((0.0, ROWS - 1.0), (0.0, COLS - 1.0)))


def memory_mb() -> float:
    """Peak resident memory of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


class Mapped:
    """Arrays in mapped files, as the service allocates them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nbytes = 0

    def __call__(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        array = np.lib.format.open_memmap(self.folder / f"{name}.npy", "w+", dtype, shape)
        self.nbytes += array.nbytes
        return array


class Clock:
    """Wall and CPU time (all threads) of rows; between `start` and `stop` they run."""

    def __init__(self) -> None:
        self.before_mb = memory_mb()
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self._row = (0.0, 0.0)
        self._began = (0.0, 0.0)

    def start(self) -> None:
        self._began = (time.perf_counter(), time.process_time())

    def stop(self, row_done: bool) -> None:
        wall, cpu = self._began
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        self._row = (self._row[0] + wall, self._row[1] + cpu)
        if row_done:
            self.wall.append(self._row[0])
            self.cpu.append(self._row[1])
            self._row = (0.0, 0.0)


def figures(clock: Clock, **more: Any) -> dict[str, Any]:
    """The figures of one part; the first row pays for what is prepared once and is left out."""
    seconds, before_mb = clock.wall, clock.before_mb
    per_row = statistics.median(seconds[1:])
    return {
        "rows": len(seconds),
        "s_per_row": per_row,
        "cpu_s_per_row": statistics.median(clock.cpu[1:]),
        "s_per_row_worst": max(seconds[1:]),
        "s_first_row": seconds[0],
        "mb_per_s": ROW_BYTES / 1e6 / per_row,
        "peak_mb": memory_mb(),
        "before_mb": before_mb,
        "extrapolated_min": per_row * ROWS / 60,
        **more,
    }


def write(folder: Path, rows: int, seed: int) -> dict[str, Any]:
    """Files and documents of the first rows."""
    (folder / "data").mkdir()
    write_documents(folder / "run.jsonl", fly(folder / "data", truth(seed), stop_after=rows))
    return {"rows": rows}


def documents(folder: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    (run,) = stored_runs(folder / "run.jsonl")
    yield from run.documents()


def srx(folder: Path) -> BeamlineProfile:
    content = load_profile("srx").model_dump(mode="json")
    content["data_roots"] = [str(folder)]
    content["method"]["snapshot_rows"] = 0
    content["xrf"]["elements"]["lines"] = list(LINES)
    return BeamlineProfile.model_validate(content)


def read(folder: Path) -> dict[str, Any]:
    """The spectra into memory, nothing else: what a row costs at least when it is read as a whole."""
    clock = Clock()
    for path in sorted((folder / "data").iterdir()):
        clock.start()
        with h5py.File(path) as file:
            if SPECTRA in file:
                file[SPECTRA][()]  # type: ignore[index]
                clock.stop(row_done=True)
    return figures(clock)


def ours(folder: Path) -> dict[str, Any]:
    """Files per row, through the assembler of the service."""
    spool = folder / "spool"
    spool.mkdir()
    allocate, clock = Mapped(spool), Clock()
    assembler: Any = None
    for name, doc in documents(folder):
        if assembler is None:
            assembler = open_assembler(doc, [srx(folder)], allocate)
        if name == "stop":
            break
        clock.start()
        assembler(name, doc)
        clock.stop(row_done=name == "event" and len(doc["data"]) > CHANNELS)
    return finish(assembler, clock, allocate)


def finish(assembler: Any, clock: Clock, allocate: Mapped) -> dict[str, Any]:
    """End a run of which a part was taken in, and see that it was."""
    done = figures(clock)
    began = time.perf_counter()
    (update,) = assembler.finish("only the first rows are measured")
    # The final goes over the whole map, whether measured or not: its time needs no extrapolation.
    done |= {"s_final": time.perf_counter() - began, "peak_mb_final": memory_mb()}
    if update.kind != "final" or update.meta["rows_done"] != len(clock.wall):
        raise RuntimeError(f"not what was written: {update.meta}")
    elements = list(update.meta["elements"])
    return done | {"elements": elements, "spool_mb": allocate.nbytes / 1e6}


class ColumnHandler:
    """Columns of the encoders' and the scaler's files, for the peer."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __call__(self, column: str) -> Any:
        with h5py.File(self._path) as file:
            return np.asarray(file[column])


def peer(folder: Path) -> dict[str, Any]:
    """The same documents filled by the handlers of the ecosystem, whole rows kept."""
    registry: dict[str, Any] = {"XSP3_FLY": BulkXSPRESS}
    registry |= dict.fromkeys(("ZEBRA_HDF51", "SIS_HDF51"), ColumnHandler)
    filler: Any = Filler(registry, inplace=False, retry_intervals=[])
    kept, sums, clock = [], [], Clock()
    edges = np.linspace(200, 1100, len(LINES)).astype(int)
    for name, doc in documents(folder):
        clock.start()
        _, filled = filler(name, dict(doc))
        row_done = name == "event" and "xs_fluor" in filled["data"]
        if row_done:
            spectra = filled["data"]["xs_fluor"]
            kept.append(filled)
            sums.append([spectra[..., low : low + 30].sum(axis=-1) for low in edges])
        clock.stop(row_done)
    return figures(clock, kept_mb=len(kept) * ROW_BYTES / 1e6)


def grower(path: Path, rows: int, seed: int) -> None:
    """Add a row for each line on standard input: a detector, in a process of its own."""
    stream = HDF5Stream(
        path,
        {
            "xs_fluor": Column("xs_fluor", (CHANNELS, BINS), "<u4"),
            "sclr_i0": Column("sclr_i0", (), "<f8"),
        },
    )
    spectra = Spectra(seed)
    for row in range(rows):
        sys.stdin.readline()
        values = {"xs_fluor": spectra[row, np.arange(COLS)], "sclr_i0": np.full(COLS, 1e5)}
        stream.write(row * COLS, values)
        print(row, flush=True)
    sys.stdin.readline()
    stream.close()


def swmr(folder: Path, rows: int, seed: int) -> dict[str, Any]:
    """One growing file: a row is announced when its detector has flushed it."""
    spool = folder / "spool_swmr"
    spool.mkdir()
    path = folder / "grown.h5"
    content = load_profile("sim_xrf").model_dump(mode="json")
    content["data_roots"] = [str(folder)]
    content["method"]["snapshot_rows"] = 0
    content["xrf"]["elements"] |= {"source": "spectrum", "lines": list(LINES)}
    content["xrf"]["elements"]["energy_per_bin_ev"] = 10.0
    content["xrf"]["elements"]["energy_offset_ev"] = 0.0
    run: Any = compose_run(
        metadata={
            "beamline_id": "sim_xrf",
            "shape": [ROWS, COLS],
            "extents": [[0.0, ROWS - 1.0], [0.0, COLS - 1.0]],
            "motors": ["sample_y", "sample_x"],
            "scan": {"energy": 12.0, "dwell": 0.05},
        }
    )
    shapes: dict[str, list[int]] = {"xs_fluor": [CHANNELS, BINS], "sclr_i0": []}
    external = {"dtype": "array", "source": "sim", "external": "STREAM:"}
    stream = run.compose_descriptor(
        name="primary", data_keys={key: external | {"shape": s} for key, s in shapes.items()}
    )
    bundles = [
        run.compose_stream_resource(
            mimetype="application/x-hdf5",
            uri=f"file://localhost{path}",
            data_key=key,
            parameters={"dataset": key},
        )
        for key in shapes
    ]
    allocate, clock = Mapped(spool), Clock()
    profile = BeamlineProfile.model_validate(content)
    assembler = open_assembler(run.start_doc, [profile], allocate)
    assembler("descriptor", stream.descriptor_doc)
    for bundle in bundles:
        assembler("stream_resource", bundle.stream_resource_doc)
    arguments = ["--part", "grower", "--rows", str(rows), "--seed", str(seed)]
    with subprocess.Popen(
        [sys.executable, __file__, *arguments, "--folder", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as writer:
        assert writer.stdin is not None and writer.stdout is not None
        for row in range(rows):
            writer.stdin.write("\n")
            writer.stdin.flush()
            writer.stdout.readline()
            indices: Any = {"start": row * COLS, "stop": (row + 1) * COLS}
            clock.start()
            for bundle in bundles:
                datum = bundle.compose_stream_datum(
                    indices=indices, descriptor=stream.descriptor_doc
                )
                assembler("stream_datum", datum)
            clock.stop(row_done=True)
    return finish(assembler, clock, allocate)


def part(options: argparse.Namespace) -> dict[str, Any] | None:
    """What this process was started for."""
    folder, rows, seed = options.folder, options.rows, options.seed
    if options.part == "grower":
        return grower(folder / "grown.h5", rows, seed)
    if options.part == "write":
        return write(folder, rows, seed)
    if options.part == "swmr":
        return swmr(folder, rows, seed)
    return {"read": read, "ours": ours, "peer": peer}[options.part](folder)


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run each part as a process, one after the other."""

    def run(name: str, rows: int, where: Path) -> dict[str, Any]:
        arguments = ["--part", name, "--rows", str(rows), "--seed", str(options.seed)]
        command = [sys.executable, __file__, *arguments, "--folder", str(where)]
        out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        return json.loads(out)

    found: dict[str, Any] = {}
    for rows, parts in (
        (options.rows, ("write", "read", "ours")),
        (options.peer_rows, ("write", "peer")),
        (options.rows, ("swmr",)),
    ):
        # The files of one part are gone before the next needs the place.
        with tempfile.TemporaryDirectory(dir=folder) as where:
            for one in parts:
                found[one] = run(one, rows, Path(where))
    del found["write"]
    return found


NAMES = {
    "read": "h5py into memory, nothing else",
    "ours": "inscan, files per row",
    "swmr": "inscan, one growing file",
    "peer": "Filler and handlers, rows kept",
}


def main() -> None:
    """Print a table, or with --json one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=24, help="rows that are really taken in")
    parser.add_argument(
        "--peer-rows", type=int, default=8, help="rows of the peer, which keeps them"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=None, help="where the files go")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        done = part(options)
        if done is not None:
            print(json.dumps(done))
        return
    found = measure(options, options.folder or Path(tempfile.gettempdir()))
    done = {
        "command": f"python benchmarks/ingest_large_map.py --rows {options.rows}"
        f" --peer-rows {options.peer_rows} --seed {options.seed}",
        "machine": machine(),
        "map": {"rows": ROWS, "cols": COLS, "channels": CHANNELS, "bins": BINS},
        "gb": ROWS * ROW_BYTES / 1e9,
        "parts": found,
    }
    if options.json:
        print(json.dumps(done, indent=2))
        return
    print(json.dumps(done["machine"]))
    print(
        f"a map of {done['gb']:.0f} GB; times of the whole map are extrapolated from the rows named"
    )
    for name, text in NAMES.items():
        one = found[name]
        print(
            f"{text:32s} {one['rows']:4d} rows {one['s_per_row']:7.3f} s/row (worst"
            f" {one['s_per_row_worst']:.3f}, CPU {one['cpu_s_per_row']:.3f}) {one['mb_per_s']:7.0f} MB/s   peak"
            f" {one['peak_mb']:7.0f} MB (before {one['before_mb']:.0f})"
            f"   whole map {one['extrapolated_min']:6.1f} min (extrapolated)"
        )


if __name__ == "__main__":
    main()
