"""Small whole runs in the shape of every shipped profile, as documents and the detector files that they name.

What the faults of `document_faults` are done to: a step map and a fly map of the simulated microscope, its stack,
SRX's three kinds of map and FXI's energy scans.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from event_model import compose_run
from synthetic_runs import map_run

from inscan.callbacks.profile import BeamlineProfile, load_profile
from inscan.profiles.fxi_documents import FXIScan
from inscan.profiles.srx_documents import fly, hf2dxrf, step
from inscan.profiles.srx_truth import SRXMap

Documents = list[tuple[str, dict[str, Any]]]

LINES = ("Ca_K", "Fe_K", "Zn_K")
KEV = (8.30, 8.32, 8.34, 8.36)


@dataclass(frozen=True)
class Run:
    """A run as it was taken.

    Attributes
    ----------
    kind : str
        Name of the shape, such as ``srx fly``.
    profile : BeamlineProfile
        What it is assembled by; waits for no files.
    folder : Path
        Where its detector files lie.
    documents : list
        From start to stop, in the order in which they were emitted.
    """

    kind: str
    profile: BeamlineProfile
    folder: Path
    documents: Documents

    @property
    def uid(self) -> str:
        """Of its start document."""
        return self.documents[0][1]["uid"]

    def copied(self) -> Documents:
        """Documents of its own, to be spoiled."""
        return copy.deepcopy(self.documents)


def _profile(name: str, **sections: Mapping[str, Any]) -> BeamlineProfile:
    content = load_profile(name).model_dump(mode="json")
    content["data_roots"] = []
    content["read_deadline"] = 0.0
    for section, more in sections.items():
        content[section] |= more
    return BeamlineProfile.model_validate(content)


def step_map(rows: int = 3, cols: int = 4, channels: int = 2, seed: int = 1) -> Documents:
    """A step map of the simulated microscope, every value in its events."""
    rng = np.random.default_rng(seed)
    start = {
        "beamline_id": "sim_xrf",
        "shape": [rows, cols],
        "extents": [[0.0, 2.0 * max(rows - 1, 1)], [10.0, 10.0 + 2.0 * max(cols - 1, 1)]],
        "snaking": [False, True],
        "motors": ["sample_y", "sample_x"],
        "scan": {"type": "XRF_STEP", "energy": 12.0, "dwell": 0.1},
        "sample": {"name": "test"},
        "scan_id": 7,
        "purpose": "survey",
    }
    run = compose_run(metadata=start)
    number: dict[str, Any] = {"dtype": "number", "shape": [], "source": "sim"}
    keys: dict[str, Any] = {"sclr_i0": dict(number)}
    keys |= {motor: number | {"units": "um"} for motor in ("sample_x", "sample_y")}
    for c in range(1, channels + 1):
        keys[f"xs_channel{c:02d}_live_time"] = dict(number)
        for m in range(1, len(LINES) + 1):
            keys[f"xs_channel{c:02d}_mcaroi{m:02d}_total_rbv"] = dict(number)
    names: dict[str, Any] = {f"xs_mcaroi{k:02d}_name": name for k, name in enumerate(LINES, 1)}
    described = {key: {"dtype": "string", "shape": [], "source": "sim"} for key in names}
    stream = run.compose_descriptor(
        name="primary",
        data_keys=keys,
        configuration={
            "xs": {"data": names, "timestamps": dict.fromkeys(names, 0.0), "data_keys": described}
        },
    )
    documents: Documents = [
        ("start", dict(run.start_doc)),
        ("descriptor", dict(stream.descriptor_doc)),
    ]
    for number_of in range(rows * cols):
        row, col = divmod(number_of, cols)
        col = cols - 1 - col if row % 2 else col
        data: dict[str, Any] = {"sample_y": 2.0 * row, "sample_x": 10.0 + 2.0 * col}
        data["sclr_i0"] = float(rng.uniform(900, 1100))
        for key in keys:
            if key.endswith("live_time"):
                data[key] = float(rng.uniform(0.05, 0.1))
            elif key.endswith("_total_rbv"):
                data[key] = float(rng.poisson(20))
        event = stream.compose_event(data=data, timestamps=dict.fromkeys(data, 0.0))
        documents.append(("event", {**event, "time": 1000.0 + number_of}))
    documents.append(("stop", dict(run.compose_stop())))
    return documents


def energy_stack(energies: tuple[float, ...] = KEV, size: tuple[int, int] = (5, 6)) -> Documents:
    """An energy stack of the simulated microscope, its frames in its events."""
    rng = np.random.default_rng(len(energies))
    run = compose_run(
        metadata={
            "beamline_id": "sim_txm",
            "scan_id": 3,
            "eng_list": list(energies),
            "frames_per_energy": 2,
            "scan": {"type": "XANES_STACK"},
            "exposure_time": 0.1,
            "sample": {"name": "test"},
        }
    )
    documents: Documents = [("start", dict(run.start_doc))]
    taken = 1000.0
    for stream, light, at in (
        ("dark", 0, energies[:1] * 2),
        ("flat", 4000, energies[:1] * 2),
        ("primary", 2000, energies),
    ):
        bundle = run.compose_descriptor(
            name=stream,
            data_keys={
                "txm_image": {
                    "dtype": "array",
                    "shape": [2, *size],
                    "source": "sim",
                    "dtype_numpy": "<u2",
                },
                "mono_energy": {"dtype": "number", "shape": [], "source": "sim", "units": "keV"},
            },
        )
        documents.append(("descriptor", dict(bundle.descriptor_doc)))
        for energy in at:
            frames = (100 + rng.poisson(light, (2, *size))).astype("<u2")
            data = {"txm_image": frames, "mono_energy": energy}
            event = bundle.compose_event(data=data, timestamps=dict.fromkeys(data, 0.0))
            documents.append(("event", {**event, "time": taken}))
            taken += 1.0
    documents.append(("stop", dict(run.compose_stop())))
    return documents


def _srx(take: Callable[..., Any]) -> Callable[[Path], Documents]:
    return lambda folder: list(take(folder, SRXMap.make((3, 4), 2, 1024)))


def _fxi(folder: Path) -> Documents:
    truth = np.random.default_rng(5).uniform(0.2, 0.9, (1, len(KEV), 5, 6))
    return list(FXIScan(truth, KEV, "xanes_scan2").documents(folder))


def shapes() -> dict[str, tuple[BeamlineProfile, Callable[[Path], Documents]]]:
    """Name of each shape -> its profile, and what takes a run of it."""
    elements = _lines("srx"), _lines("srx_step"), _lines("srx_hf2dxrf")
    sim = _profile("sim_xrf")
    return {
        "sim_xrf step": (sim, lambda folder: step_map()),
        "sim_xrf fly": (sim, lambda folder: [*map_run(folder, 4, 2, 1)]),
        "sim_txm": (_profile("sim_txm"), lambda folder: energy_stack()),
        "srx fly": (elements[0], _srx(fly)),
        "srx step": (elements[1], _srx(step)),
        "srx hf2dxrf": (elements[2], _srx(hf2dxrf)),
        "fxi": (_profile("fxi"), _fxi),
    }


def _lines(name: str) -> BeamlineProfile:
    """A profile of SRX for the elements that the samples have."""
    content = load_profile(name).model_dump(mode="json")
    return _profile(name, xrf={"elements": content["xrf"]["elements"] | {"lines": list(LINES)}})


def take_runs(folder: Path, kinds: Sequence[str] = ()) -> list[Run]:
    """One run of each shape, files in a folder of its own; ``kinds``: of these alone."""
    found = []
    for kind, (profile, take) in shapes().items():
        if not kinds or kind in kinds:
            own = folder / kind.replace(" ", "_")
            own.mkdir(parents=True, exist_ok=True)
            found.append(Run(kind, profile, own, copy.deepcopy(take(own))))
    return found
