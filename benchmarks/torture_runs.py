"""Runs whose results can be checked to the last bit: documents of small maps and stacks, and what is to come of them.

The worker of `torture_worker.py` doubles: a map's counts summed over the channels, a stack's transmission. Darks and
flats are flat and 1024 counts apart, so that the transmission has no rounding in it.
"""

import uuid
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from event_model import compose_run

Document = tuple[str, dict[str, Any]]
Kind = Literal["map", "stack"]
KINDS: tuple[Kind, ...] = ("map", "stack")
VALUES = "values"
_ELEMENTS = ("Ca_K", "Fe_K", "Zn_K")
_DARK, _LIGHT = 100, 1024
_NAMESPACE = uuid.UUID("0f8f4f1c-5f0c-4d0e-9c39-3a1d8d1d2f05")


def uid_of(seed: int, number: int) -> str:
    """Uid of a run: the same for the same seed and number."""
    return str(uuid.uuid5(_NAMESPACE, f"{seed}/{number}"))


def documents(kind: Kind, uid: str, content: int, **md: Any) -> Iterator[Document]:
    """Documents of one whole run.

    Parameters
    ----------
    kind : str
        `map` (profile sim_xrf, point by point) or `stack` (profile sim_txm).
    uid : str
        Uid of its start document.
    content : int
        Seed of what is measured; `expected` takes the same.
    **md
        Added to the start document.
    """
    return _map(uid, content, md) if kind == "map" else _stack(uid, content, md)


def expected(kind: Kind, content: int) -> np.ndarray:
    """What a worker of `torture_worker.py` makes of a whole run: float32."""
    if kind == "map":
        return (2 * _counts(content).sum(axis=0)).astype("f4")
    return (2 * (_frames(content) - np.float32(_DARK)) / np.float32(_LIGHT)).astype("f4")


def _counts(content: int) -> np.ndarray:
    rng = np.random.default_rng(content)
    rows, cols = rng.integers(3, 9, 2)
    return rng.poisson(20, (2, len(_ELEMENTS), rows, cols)).astype("f4")


def _frames(content: int) -> np.ndarray:
    rng = np.random.default_rng(content)
    energies, rows, cols = rng.integers(4, 8), *rng.integers(5, 12, 2)
    return (_DARK + rng.integers(200, 1000, (energies, rows, cols))).astype("f4")


def _map(uid: str, content: int, md: dict[str, Any]) -> Iterator[Document]:
    counts = _counts(content)
    channels, elements, rows, cols = counts.shape
    start = {
        "beamline_id": "sim_xrf",
        "shape": [rows, cols],
        "extents": [[0.0, rows - 1.0], [10.0, 9.0 + cols]],
        "snaking": [False, True],
        "motors": ["sample_y", "sample_x"],
        "scan": {"type": "XRF_STEP", "energy": 12.0, "dwell": 0.1},
        "scan_id": content,
        **md,
    }
    run = compose_run(uid=uid, metadata=_plain(start), validate=False)
    yield "start", dict(run.start_doc)
    number = {"dtype": "number", "shape": [], "source": "torture"}
    keys = {"sclr_i0": number} | {n: number | {"units": "um"} for n in ("sample_x", "sample_y")}
    for c in range(1, channels + 1):
        keys[f"xs_channel{c:02d}_live_time"] = number
        keys |= {_roi(c, m): number for m in range(1, elements + 1)}
    names = {f"xs_mcaroi{m:02d}_name": name for m, name in enumerate(_ELEMENTS, 1)}
    text = {"dtype": "string", "shape": [], "source": "torture"}
    configuration = {
        "data": names,
        "timestamps": dict.fromkeys(names, 0.0),
        "data_keys": dict.fromkeys(names, text),
    }
    stream = run.compose_descriptor(
        name="primary", data_keys=keys, configuration={"xs": configuration}, validate=False
    )
    yield "descriptor", dict(stream.descriptor_doc)
    for seq in range(1, rows * cols + 1):
        row, at = divmod(seq - 1, cols)
        col = cols - 1 - at if row % 2 else at
        data = {"sclr_i0": 1000.0, "sample_y": float(row), "sample_x": 10.0 + col}
        for c in range(1, channels + 1):
            data[f"xs_channel{c:02d}_live_time"] = 0.1
            for m in range(1, elements + 1):
                data[_roi(c, m)] = float(counts[c - 1, m - 1, row, col])
        event = stream.compose_event(
            data=data, timestamps=dict.fromkeys(data, 0.0), seq_num=seq, validate=False
        )
        yield "event", dict(event)
    yield "stop", dict(run.compose_stop(validate=False))


def _roi(channel: int, window: int) -> str:
    return f"xs_channel{channel:02d}_mcaroi{window:02d}_total_rbv"


def _stack(uid: str, content: int, md: dict[str, Any]) -> Iterator[Document]:
    frames = _frames(content)
    energies, rows, cols = frames.shape
    kev = [8.33 + 0.01 * k for k in range(energies)]
    start = {
        "beamline_id": "sim_txm",
        "eng_list": kev,
        "frames_per_energy": 1,
        "scan": {"type": "XANES_STACK"},
        "exposure_time": 0.1,
        "scan_id": content,
        **md,
    }
    run = compose_run(uid=uid, metadata=_plain(start), validate=False)
    yield "start", dict(run.start_doc)
    image = {"dtype": "array", "shape": [1, rows, cols], "dtype_numpy": "<u2", "source": "torture"}
    energy = {"dtype": "number", "shape": [], "units": "keV", "source": "torture"}
    empty = np.full((1, rows, cols), _DARK, "<u2")
    streams = {
        "dark": [empty],
        "flat": [empty + np.uint16(_LIGHT)] * energies,
        "primary": [frame[None].astype("<u2") for frame in frames],
    }
    for name, images in streams.items():
        stream = run.compose_descriptor(
            name=name, data_keys={"txm_image": image, "mono_energy": energy}, validate=False
        )
        yield "descriptor", dict(stream.descriptor_doc)
        for k, one in enumerate(images):
            data = {"txm_image": one, "mono_energy": kev[k]}
            event = stream.compose_event(
                data=data, timestamps=dict.fromkeys(data, 0.0), seq_num=k + 1, validate=False
            )
            yield "event", dict(event)
    yield "stop", dict(run.compose_stop(validate=False))


def _plain(start: dict[str, Any]) -> dict[str, Any]:
    return {key: [int(n) for n in v] if key == "shape" else v for key, v in start.items()}
