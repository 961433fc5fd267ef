"""Documents and files as NSLS-II SRX makes them, of a map that is given.

Follows the beamline's public startup files (NSLS-II-SRX/profile_collection: 32-zebra.py, 61-xrf.py,
62-flyscans.py) and what PyXRF expects of them. Three kinds: `fly` (scan type XRF_FLY: one event per
row in ``stream0``, new files for each row), `step` (XRF_STEP: one event per pixel) and `hf2dxrf` (an
older step scan, a Bluesky grid scan with `scaninfo`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from event_model import compose_run

from inscan.profiles.srx_files import (
    BEAM,
    NUMBER,
    SPECTRA,
    data_key,
    row_files,
    row_keys,
    scan_axes,
    scan_of,
    write_file,
)
from inscan.profiles.srx_truth import SRXMap

__all__ = ["SRXMap", "fly", "hf2dxrf", "step"]

Document = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class _Names:
    """Data keys, which have changed over the years."""

    fly: str
    step: str


_NAMES = {
    "new": _Names("xs_fluor", "xs_channel{:02d}_fluor"),
    "old": _Names("fluor", "xs_channel{}"),
}


def fly(
    folder: Path,
    truth: SRXMap,
    *,
    fast: str = "nano_stage_sx",
    slow: str = "nano_stage_sy",
    snake: bool = False,
    lengths: Mapping[int, int] | None = None,
    stop_after: int | None = None,
    names: Literal["new", "old"] = "new",
    bins_change: int | None = None,
    uid: str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Iterator[Document]:
    """Yield the documents of a fly scan, and write its files row by row as they are announced.

    Parameters
    ----------
    folder
        Where the files go; it must exist.
    truth
        What is measured.
    fast, slow
        Motors: the map is y-fast when the fast one is ``nano_stage_sy``.
    snake
        Every second row runs backwards; its arrays are in the order of time.
    lengths
        Row, from 0 -> pixels that were recorded before it was interrupted, or one more than planned.
    stop_after
        The run is aborted after so many rows. None: it ends well.
    names
        Data keys of today, or ``fluor``.
    bins_change
        From this row on a second descriptor declares spectra of half the length. None: never.
    uid, metadata
        Of the start document.
    """
    rows, cols, channels, bins = truth.spectra.shape
    scan = _fly_scan(truth, fast, slow, snake)
    run = _Run({"plan_name": "nano_scan_and_fly", "scan": scan, **(metadata or {})}, truth, uid)
    yield run.start()
    yield from run.baseline()
    slow_keys = {slow: NUMBER, "nanoKB_interferometer_posX": NUMBER}
    primary = run.bundle.compose_descriptor(
        name="primary", data_keys=slow_keys, object_keys={slow: list(slow_keys)}
    )
    yield "descriptor", primary.descriptor_doc
    key = _NAMES[names].fly
    stream: Any = None
    for row in range(rows if stop_after is None else min(stop_after, rows)):
        position = float(truth.slow[row].mean())
        yield "event", _event(primary, {slow: position, "nanoKB_interferometer_posX": 0.0}, row)
        if row == bins_change:
            bins //= 2
            stream = None
        if stream is None:
            keys = row_keys(key, cols, channels, bins)
            stream = run.bundle.compose_descriptor(
                name="stream0", data_keys=keys, object_keys={"xs": [key]}
            )
            yield "descriptor", stream.descriptor_doc
        in_time = slice(None, None, -1) if snake and row % 2 else slice(None)
        recorded = lengths[row] if lengths and row in lengths else int(cols)
        take = np.arange(cols)[in_time][:recorded]
        # A trigger too many repeats the last pixel.
        take = np.append(take, [take[-1]] * (recorded - len(take))).astype(int)
        files = row_files(
            {slow: truth.slow[row, take], fast: truth.fast[row, take]},
            truth.spectra[row, take, :, :bins],
            truth.i0[row, take],
            truth.dwell,
        )
        data: dict[str, Any] = {}
        for spec, datasets in files.items():
            resource = run.file(folder, spec, datasets)
            yield "resource", resource.resource_doc
            for column in datasets:
                known = spec == "XSP3_FLY"
                datum = resource.compose_datum(datum_kwargs={} if known else {"column": column})
                yield "datum", datum
                data[data_key(column, key)] = datum["datum_id"]
        stamps = dict(data)
        # Window sums as they stand when the row is over: the last pixel's, not one per pixel.
        for channel in range(1, channels + 1):
            window = f"xs_channel{channel:02d}_mcaroi01_total_rbv"
            data[window] = float(truth.spectra[row, take[-1], channel - 1].sum())
            stamps[window] = float(row)
        yield (
            "event",
            stream.compose_event(
                data=data,
                timestamps=stamps,
                filled={name: False for name in data if isinstance(data[name], str)},
                seq_num=row + 1,
                time=1.7e9 + row,
            ),
        )
    yield run.stop(stop_after is not None and stop_after < rows)


def step(
    folder: Path,
    truth: SRXMap,
    *,
    fast: str = "nano_stage_sx",
    slow: str = "nano_stage_sy",
    snake: bool = False,
    stop_after: int | None = None,
    names: Literal["new", "old"] = "new",
    mcarois: int = 0,
    uid: str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Iterator[Document]:
    """Yield the documents of a step scan (XRF_STEP), its spectra in one file.

    Parameters
    ----------
    folder, truth, fast, slow, snake, names, uid, metadata
        As for `fly`.
    stop_after
        The run is aborted after so many pixels. None: it ends well.
    mcarois
        Windows of the detector, which this beamline leaves unnamed: bins 100 k to 100 k + 20 for
        window k.
    """
    rows, cols = truth.i0.shape
    (slow_first, slow_last), (fast_first, fast_last) = truth.ends
    scan = scan_axes(fast, slow, (rows, cols), snake, truth.energy_kev, truth.sample) | {
        "type": "XRF_STEP",
        "scan_input": [
            *(fast_first, fast_last, (fast_last - fast_first) / max(cols - 1, 1)),
            *(slow_first, slow_last, (slow_last - slow_first) / max(rows - 1, 1)),
            truth.dwell,
        ],
        "detectors": ["sclr1", "xs"],
    }
    md = {"plan_name": "nano_xrf", "scan": scan, **(metadata or {})}
    run = _Run(md, truth, uid)
    yield run.start()
    yield from run.baseline()
    yield from run.pixels(folder, fast, slow, snake, stop_after, _NAMES[names].step, mcarois)


def hf2dxrf(
    folder: Path,
    truth: SRXMap,
    *,
    snake: bool = True,
    stop_after: int | None = None,
    names: Literal["new", "old"] = "old",
    uid: str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Iterator[Document]:
    """Yield the documents of an older step scan: a grid scan of Bluesky, parameters as text.

    Parameters
    ----------
    folder, truth, snake, stop_after, names, uid, metadata
        As for `step`; ``scan_input`` holds numbers of steps, one less than of points.
    """
    rows, cols = truth.i0.shape
    fast, slow = "hf_stage_x", "hf_stage_y"
    (slow_first, slow_last), (fast_first, fast_last) = truth.ends
    steps = [fast_first, cols - 1, (fast_last - fast_first) / max(cols - 1, 1)]
    steps += [slow_first, rows - 1, (slow_last - slow_first) / max(rows - 1, 1), truth.dwell]
    md = {
        "plan_name": "hf2dxrf",
        "scaninfo": {"type": "XRF", "raster": True},
        "scan_input": str(steps),
        "beamline_status": {"energy": truth.energy_kev},
        "shape": [rows, cols],
        "extents": [list(ends) for ends in truth.ends],
        "snaking": [False, snake],
        "motors": [slow, fast],
        "num_points": rows * cols,
        "plan_pattern": "outer_product",
        **(metadata or {}),
    }
    run = _Run(md, truth, uid)
    yield run.start()
    yield from run.pixels(folder, fast, slow, snake, stop_after, _NAMES[names].step, 0)


def _fly_scan(truth: SRXMap, fast: str, slow: str, snake: bool) -> dict[str, Any]:
    return scan_of(
        fast,
        slow,
        truth.ends,
        (truth.i0.shape[0], truth.i0.shape[1]),
        truth.dwell,
        snake=snake,
        energy_kev=truth.energy_kev,
        sample=truth.sample,
    )


def _event(stream: Any, data: Mapping[str, Any], index: int) -> dict[str, Any]:
    return stream.compose_event(
        data=data, timestamps=dict.fromkeys(data, 1.7e9 + index), time=1.7e9 + index
    )


class _Run:
    """Documents that all kinds of scan share."""

    def __init__(self, metadata: Mapping[str, Any], truth: SRXMap, uid: str | None) -> None:
        self._truth = truth
        self.bundle: Any = compose_run(
            uid=uid,
            time=1.7e9,
            metadata={
                "beamline_id": "SRX",
                "md_version": "1.2",
                "scan_id": 7,
                "sample": {"name": truth.sample},
                "proposal": {"proposal_num": "000000"},
                **metadata,
            },
        )

    def start(self) -> Document:
        return "start", self.bundle.start_doc

    def stop(self, aborted: bool) -> Document:
        if aborted:
            return "stop", self.bundle.compose_stop(exit_status="abort", reason="beam dump")
        return "stop", self.bundle.compose_stop()

    def baseline(self) -> Iterator[Document]:
        """The ring current before the scan, and a monitor that SRX asks nobody to keep."""
        for name, value in (("baseline", 400.0), ("DONOTSAVE_xs_monitor", 1.0)):
            stream = self.bundle.compose_descriptor(name=name, data_keys={"ring_current": NUMBER})
            yield "descriptor", stream.descriptor_doc
            yield "event", _event(stream, {"ring_current": value}, 0)

    def file(self, folder: Path, spec: str, datasets: Mapping[str, np.ndarray]) -> Any:
        """Write a file and compose its resource."""
        return self.bundle.compose_resource(
            spec=spec,
            root="/",
            resource_path=str(write_file(folder, datasets))[1:],
            resource_kwargs={},
        )

    def pixels(
        self,
        folder: Path,
        fast: str,
        slow: str,
        snake: bool,
        stop_after: int | None,
        template: str,
        mcarois: int,
    ) -> Iterator[Document]:
        """Events of a step scan, and the end of the run."""
        truth = self._truth
        rows, cols, channels, bins = truth.spectra.shape
        order = np.arange(rows * cols).reshape(rows, cols)
        if snake:
            order[1::2] = order[1::2, ::-1]
        pixels = order.ravel()[:stop_after]
        keys: dict[str, Any] = dict.fromkeys(("sclr_i0", "sclr_im", "sclr_it"), NUMBER)
        for motor in (fast, slow):
            keys |= {name: NUMBER | {"units": "um"} for name in (motor, f"{motor}_user_setpoint")}
        windows = {
            f"xs_channel{c:02d}_mcaroi{k:02d}_total_rbv": (c, k)
            for c in range(1, channels + 1)
            for k in range(1, mcarois + 1)
        }
        keys |= dict.fromkeys(windows, NUMBER)
        spectra = {template.format(c): c for c in range(1, channels + 1)}
        for name in spectra:
            keys[name] = {
                "source": "PV:sim",
                "dtype": "array",
                "shape": [bins],
                "dtype_str": "<u4",
                "external": "FILESTORE:",
            }
        stream = self.bundle.compose_descriptor(
            name="primary", data_keys=keys, object_keys={"xs": [*spectra, *windows]}
        )
        yield "descriptor", stream.descriptor_doc
        flat = truth.spectra.reshape(-1, channels, bins)
        resource = self.file(folder, "XSP3", {SPECTRA: flat[pixels]})
        yield "resource", resource.resource_doc
        for frame, pixel in enumerate(pixels):
            place = divmod(int(pixel), cols)
            data: dict[str, Any] = {
                f"sclr_{name}": float(truth.i0[place] * part) for name, part in BEAM.items()
            }
            for motor, positions in ((fast, truth.fast), (slow, truth.slow)):
                data |= dict.fromkeys((motor, f"{motor}_user_setpoint"), float(positions[place]))
            for name, (channel, k) in windows.items():
                part = flat[pixel, channel - 1, 100 * k : 100 * k + 20]
                data[name] = float(part.sum())
            for name, channel in spectra.items():
                datum = resource.compose_datum(datum_kwargs={"frame": frame, "channel": channel})
                yield "datum", datum
                data[name] = datum["datum_id"]
            yield (
                "event",
                stream.compose_event(
                    data=data,
                    timestamps=dict.fromkeys(data, 1.7e9),
                    filled=dict.fromkeys(spectra, False),
                    seq_num=frame + 1,
                    time=1.7e9 + frame,
                ),
            )
        yield self.stop(len(pixels) < rows * cols)
