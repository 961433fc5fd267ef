"""Synthetic runs of plain Bluesky plans, of a truth that is given.

A `Plan` of `inscan.profiles.bluesky_starts` says where points lie and what the start document holds,
a `Counts` what was counted there. The functions turn both into documents: events with numbers,
events with arrays, and a fly scan that has files and no events. Data keys are those of the simulated
fluorescence microscope.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import h5py
import numpy as np
from event_model import compose_run

from inscan.profiles.bluesky_starts import Plan

__all__ = ["Counts", "array_documents", "fly_documents", "step_documents"]

Document = tuple[str, Any]
_TIME = 1_700_000_000.0


@dataclass(frozen=True)
class Counts:
    """What is counted at each point.

    Attributes
    ----------
    counts
        (channel, element, n) counts.
    live_s
        (channel, n) live time, s.
    i0
        (n,) beam monitor.
    elements
        Names of the windows.
    """

    counts: np.ndarray
    live_s: np.ndarray
    i0: np.ndarray
    elements: tuple[str, ...] = ("Ca_K", "Fe_K", "Zn_K")

    @classmethod
    def drawn(cls, n: int, *, channels: int = 2, mean: float = 20.0, seed: int = 0) -> Counts:
        """Draw Poisson counts for ``n`` points.

        Live times and beam are whole multiples of powers of two: their sums are exact.
        """
        rng = np.random.default_rng(seed)
        return cls(
            rng.poisson(mean, (channels, 3, n)),
            rng.integers(3, 9, (channels, n)) / 64,
            rng.choice([512.0, 1024.0, 1024.0, 1024.0, 2048.0], n),
        )


@dataclass
class _Run:
    """A run that is being told."""

    plan: Plan
    metadata: Mapping[str, Any]
    bundle: Any = field(init=False)

    def __post_init__(self) -> None:
        start = {
            "scan": {"energy": 12.0, "dwell": 0.125},
            "sample": {"name": "synthetic"},
            "scan_id": 1,
            **self.plan.start,
            **self.metadata,
        }
        self.bundle = compose_run(metadata=start, time=_TIME)

    def motor_keys(self, units: str = "um", **more: Any) -> dict[str, Any]:
        return {motor: _number(units=units, **more) for motor in self.plan.motors}

    def describe(
        self, keys: Mapping[str, Any], elements: Sequence[str] = (), name: str = "primary"
    ) -> Any:
        data = {f"xs_mcaroi{m:02d}_name": line for m, line in enumerate(elements, 1)}
        said = {key: {"source": "synthetic", "dtype": "string", "shape": []} for key in data}
        configuration = {
            "xs": {"data": data, "timestamps": dict.fromkeys(data, _TIME), "data_keys": said}
        }
        return self.bundle.compose_descriptor(
            name=name,
            data_keys=keys,
            configuration=configuration,
            object_keys={"xs": [key for key in keys if key.startswith("xs_")]},
            time=_TIME,
        )


def _number(**more: Any) -> dict[str, Any]:
    return {"source": "synthetic", "dtype": "number", "shape": [], **more}


def step_documents(plan: Plan, counts: Counts, **metadata: Any) -> Iterator[Document]:
    """Yield a run with an event for each point, all of it numbers in events.

    Parameters
    ----------
    plan, counts
        What was measured, with as many points.
    **metadata
        Added to the start document.
    """
    run = _Run(plan, metadata)
    yield "start", run.bundle.start_doc
    channels, elements, _ = counts.counts.shape
    names = [
        (f"xs_channel{c + 1:02d}_mcaroi{m + 1:02d}_total_rbv", c, m)
        for c in range(channels)
        for m in range(elements)
    ]
    live = [f"xs_channel{c + 1:02d}_live_time" for c in range(channels)]
    keys = {key: _number() for key in (*(name for name, *_ in names), *live, "sclr_i0")}
    stream = run.describe(keys | run.motor_keys(), counts.elements)
    yield "descriptor", stream.descriptor_doc
    for point in range(plan.n):
        data: dict[str, Any] = {name: int(counts.counts[c, m, point]) for name, c, m in names}
        data |= {key: float(counts.live_s[c, point]) for c, key in enumerate(live)}
        data["sclr_i0"] = float(counts.i0[point])
        data |= dict(zip(plan.motors, map(float, plan.positions[:, point]), strict=True))
        yield "event", _event(stream, data, point)
    yield "stop", run.bundle.compose_stop(time=_TIME + plan.n)


def array_documents(
    plan: Plan,
    spectra: np.ndarray,
    *,
    key: str = "fluor",
    i0: np.ndarray | None = None,
    **metadata: Any,
) -> Iterator[Document]:
    """Yield a run whose events carry one array of all detector elements.

    Parameters
    ----------
    plan
        Where the points lie.
    spectra
        (n, channel, bin) counts, e.g. (n, 4, 2000) as at APS.
    key
        Data key of the arrays.
    i0
        (n,) beam monitor; None: not recorded.
    **metadata
        Added to the start document.
    """
    run = _Run(plan, metadata)
    yield "start", run.bundle.start_doc
    keys = {
        key: {"source": "synthetic", "dtype": "array", "shape": list(spectra.shape[1:])},
        **({} if i0 is None else {"sclr_i0": _number()}),
        **run.motor_keys(),
    }
    stream = run.describe(keys)
    yield "descriptor", stream.descriptor_doc
    for point in range(plan.n):
        data: dict[str, Any] = {key: spectra[point]}
        if i0 is not None:
            data["sclr_i0"] = float(i0[point])
        data |= dict(zip(plan.motors, map(float, plan.positions[:, point]), strict=True))
        yield "event", _event(stream, data, point)
    yield "stop", run.bundle.compose_stop(time=_TIME + plan.n)


def _event(stream: Any, data: Mapping[str, Any], point: int) -> Any:
    stamps = dict.fromkeys(data, _TIME + point)
    return stream.compose_event(data=data, timestamps=stamps, time=_TIME + point)


def fly_documents(
    plan: Plan,
    counts: Counts,
    folder: Path,
    *,
    points_per_datum: int = 8,
    files: int = 1,
    baseline: bool = True,
    dark: int = 0,
    **metadata: Any,
) -> Iterator[Document]:
    """Yield a run without events, as ophyd-async detectors and a PandA-like box write it.

    Counts and live times are in the detector's file; positions and the beam monitor in another, as
    the box that triggers records them. Every key declares rows of shape [1, ...].

    Parameters
    ----------
    plan, counts
        What was measured, with as many points.
    folder
        Where the HDF5 files are written.
    points_per_datum
        Points that one stream_datum announces.
    files
        Files that the detector fills one after the other, each a resource of its own.
    baseline
        Whether the run has a stream of that name, with events.
    dark
        Points without beam in a stream of that name: the detector's keys, in a file of its own.
    **metadata
        Added to the start document.
    """
    run = _Run(plan, metadata)
    yield "start", run.bundle.start_doc
    detector = {
        "xs_mcaroi": np.moveaxis(counts.counts, -1, 0).astype("<u4"),
        "xs_live_time": np.ascontiguousarray(counts.live_s.T),
    }
    box = {"sclr_i0": counts.i0} | dict(zip(plan.motors, plan.positions, strict=True))
    keys: dict[str, Any] = {
        name: {
            "source": "synthetic",
            "dtype": "array",
            "shape": [1, *values.shape[1:]],
            "dtype_numpy": values.dtype.str,
            "external": "STREAM:",
            **({"units": "um"} if name in plan.motors else {}),
        }
        for name, values in (detector | box).items()
    }
    if dark:
        own = {name: keys[name] for name in detector}
        stream = run.describe(own, counts.elements, name="dark")
        yield "descriptor", stream.descriptor_doc
        ones = {name: np.ones((dark, *v.shape[1:]), v.dtype) for name, v in detector.items()}
        yield from _filled(run, folder / "dark.h5", ones, stream, 0, dark, points_per_datum)
    stream = run.describe(keys, counts.elements)
    yield "descriptor", stream.descriptor_doc
    if baseline:
        base = run.bundle.compose_descriptor(
            name="baseline", data_keys={"ring": _number()}, time=_TIME
        )
        yield "descriptor", base.descriptor_doc
        yield "event", _event(base, {"ring": 400.0}, 0)
    edges = np.linspace(0, plan.n, files + 1).astype(int).tolist()
    for part, (first, stop) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        path = folder / f"detector_{part}.h5"
        yield from _filled(run, path, detector, stream, first, stop, points_per_datum)
    yield from _filled(run, folder / "box.h5", box, stream, 0, plan.n, points_per_datum)
    yield "stop", run.bundle.compose_stop(time=_TIME + plan.n)


def _filled(
    run: _Run,
    path: Path,
    columns: Mapping[str, np.ndarray],
    stream: Any,
    first: int,
    stop: int,
    per_datum: int,
) -> Iterator[Document]:
    """Write rows into a file and yield its resources, and the datums that announce them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for key, values in columns.items():
            # As a writer leaves it: it might have grown further.
            shape = (None, *values.shape[1:])
            file.create_dataset(f"entry/data/{key}", data=values[first:stop], maxshape=shape)
    resources = []
    for key in columns:
        resource = run.bundle.compose_stream_resource(
            mimetype="application/x-hdf5",
            uri=f"file://localhost{quote(str(path.resolve()))}",
            data_key=key,
            parameters={"dataset": f"entry/data/{key}", "chunk_shape": [1]},
        )
        resources.append(resource)
        yield "stream_resource", resource.stream_resource_doc
    for start in range(first, stop, per_datum):
        end = min(start + per_datum, stop)
        for resource in resources:
            datum: Any = resource.compose_stream_datum(
                indices={"start": start - first, "stop": end - first}
            )
            # The composer knows no descriptor: the RunEngine adds it, and the numbers of events.
            datum["descriptor"] = stream.descriptor_doc["uid"]
            datum["seq_nums"] = {"start": start + 1, "stop": end + 1}
            yield "stream_datum", datum
