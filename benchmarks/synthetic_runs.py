"""Runs of the sizes that beamlines take, as documents and detector files, without a simulated detector's own cost.

A map is written and announced row by row, a stack frame by frame, in the keys of the shipped simulated profiles.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from event_model import compose_run, compose_stream_resource

from inscan.profiles.samples import battery_xanes, cells, ni_energies_ev

Document = tuple[str, dict[str, Any]]
ELEMENTS = ("P_K", "S_K", "K_K", "Ca_K", "Fe_K", "Zn_K", "Cu_K")


def map_run(folder: Path, size: int, channels: int, seed: int) -> Iterator[Document]:
    """A square fly map of seven elements, `size` pixels a side; one stream_datum a row and key."""
    rng = np.random.default_rng(seed)
    sample = cells(seed)
    (slow0, slow1), (fast0, fast1) = sample.field
    slow, fast = (
        np.linspace(slow0, slow1, size + 2)[1:-1],
        np.linspace(fast0, fast1, size + 2)[1:-1],
    )
    dwell = 0.02
    path = folder / f"map-{seed}.h5"
    start = {
        "beamline_id": "sim_xrf",
        "scan_id": 1000 + seed,
        "plan_name": "benchmark",
        "purpose": "benchmark",
        "shape": [size, size],
        "extents": [[slow[0], slow[-1]], [fast[0], fast[-1]]],
        "snaking": [False, False],
        "motors": ["sample_y", "sample_x"],
        "scan": {"type": "XRF_FLY", "energy": 12.0, "dwell": dwell},
        "sample": {"name": "benchmark"},
    }
    run = compose_run(metadata=start)
    yield "start", dict(run.start_doc)
    keys: dict[str, tuple[tuple[int, ...], str]] = {
        "xs_mcaroi": ((channels, len(ELEMENTS)), "<u4"),
        "xs_live_time": ((channels,), "<f8"),
        "sclr_i0": ((), "<f8"),
        "sample_x": ((), "<f8"),
        "sample_y": ((), "<f8"),
    }
    names = {f"xs_mcaroi{k + 1:02d}_name": name for k, name in enumerate(ELEMENTS)}
    descriptor = run.compose_descriptor(
        name="primary",
        data_keys={
            key: {
                "source": f"benchmark:{key}",
                "dtype": "array" if shape else "number",
                "shape": [1, *shape],
                "dtype_numpy": dtype,
                "external": "STREAM:",
                "object_name": "xs",
                **({"units": "um"} if key.startswith("sample") else {}),
            }
            for key, (shape, dtype) in keys.items()
        },
        object_keys={"xs": list(keys)},
        configuration={
            "xs": {
                "data": dict(names),
                "timestamps": dict.fromkeys(names, 0.0),
                "data_keys": {
                    key: {"source": "benchmark", "dtype": "string", "shape": []} for key in names
                },
            }
        },
    )
    yield "descriptor", dict(descriptor.descriptor_doc)
    with h5py.File(path, "w", libver="latest") as file:
        sets = {
            key: file.create_dataset(
                f"entry/{key}", (size * size, *shape), dtype, chunks=(size, *shape)
            )
            for key, (shape, dtype) in keys.items()
        }
        file.swmr_mode = True
        resources = {
            key: compose_stream_resource(
                mimetype="application/x-hdf5",
                uri=f"file://localhost{path}",
                data_key=key,
                parameters={"dataset": f"entry/{key}", "chunk_shape": [size, *keys[key][0]]},
            )
            for key in keys
        }
        for resource in resources.values():
            yield "stream_resource", dict(resource.stream_resource_doc)
        for row in range(size):
            rate = sample.rate(np.full(size, slow[row]), fast)
            rate = np.concatenate([rate, 0.2 * rate[-1:] + 1.0])[: len(ELEMENTS)]
            at = slice(row * size, (row + 1) * size)
            mean = np.repeat(rate.T[:, None, :], channels, axis=1) * dwell / channels
            sets["xs_mcaroi"][at] = rng.poisson(mean)
            sets["xs_live_time"][at] = np.full((size, channels), dwell)
            sets["sclr_i0"][at] = np.full(size, 1e6)
            sets["sample_x"][at] = fast
            sets["sample_y"][at] = np.full(size, slow[row])
            for one in sets.values():
                one.flush()
            for resource in resources.values():
                yield (
                    "stream_datum",
                    dict(
                        resource.compose_stream_datum(
                            indices={"start": at.start, "stop": at.stop},
                            descriptor=descriptor.descriptor_doc,
                        )
                    ),
                )
    yield "stop", dict(run.compose_stop())


def stack_run(folder: Path, size: int, energies: int, seed: int) -> Iterator[Document]:
    """An energy stack with one dark, flats before the frames, and one frame an energy."""
    rng = np.random.default_rng(seed)
    at = ni_energies_ev(energies)
    sample = battery_xanes(seed, size=size)
    transmission = np.exp(-sample.optical_density(at))
    path = folder / f"stack-{seed}.h5"
    run = compose_run(
        metadata={
            "beamline_id": "sim_txm",
            "scan_id": 2000 + seed,
            "plan_name": "benchmark",
            "purpose": "benchmark",
            "eng_list": (at / 1000).tolist(),
            "frames_per_energy": 1,
            "scan": {"type": "XANES_STACK"},
            "exposure_time": 0.1,
            "sample": {"name": "benchmark"},
        }
    )
    yield "start", dict(run.start_doc)
    photons, offset = 2000.0, 100.0

    def frames(stream: str) -> Iterator[np.ndarray]:
        for k in range(1 if stream == "dark" else len(at) if stream == "primary" else 10):
            light = 0.0 if stream == "dark" else photons
            mean = light * (transmission[k] if stream == "primary" else np.ones((size, size)))
            yield (rng.poisson(mean) + offset).astype("<u2")

    with h5py.File(path, "w", libver="latest") as file:
        sets = {
            stream: file.create_dataset(
                f"entry/{stream}",
                (0, 1, size, size),
                "<u2",
                maxshape=(None, 1, size, size),
                chunks=(1, 1, size, size),
            )
            for stream in ("dark", "flat", "primary")
        }
        file.swmr_mode = True
        for stream, data in sets.items():
            key = {
                "source": "benchmark:camera",
                "dtype": "array",
                "shape": [1, size, size],
                "dtype_numpy": "<u2",
                "external": "STREAM:",
            }
            energy = {"source": "benchmark:mono", "dtype": "number", "shape": [], "units": "keV"}
            descriptor = run.compose_descriptor(
                name=stream, data_keys={"txm_image": key, "mono_energy": energy}
            )
            yield "descriptor", dict(descriptor.descriptor_doc)
            resource = compose_stream_resource(
                mimetype="application/x-hdf5",
                uri=f"file://localhost{path}",
                data_key="txm_image",
                parameters={"dataset": f"entry/{stream}", "chunk_shape": [1, 1, size, size]},
            )
            yield "stream_resource", dict(resource.stream_resource_doc)
            for k, frame in enumerate(frames(stream)):
                data.resize(k + 1, axis=0)
                data[k, 0] = frame
                data.flush()
                value = float(at[min(k, len(at) - 1)] / 1000)
                yield (
                    "event",
                    dict(
                        descriptor.compose_event(
                            data={"mono_energy": value}, timestamps={"mono_energy": 0.0}
                        )
                    ),
                )
                yield (
                    "stream_datum",
                    dict(
                        resource.compose_stream_datum(
                            indices={"start": k, "stop": k + 1},
                            descriptor=descriptor.descriptor_doc,
                        )
                    ),
                )
    yield "stop", dict(run.compose_stop())
