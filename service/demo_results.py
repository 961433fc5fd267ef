"""What the demo reads back from Tiled: results with their axes, as a user would open them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tiled.client import from_uri

from inscan.callbacks.geometry import ScanGeometry


@dataclass(frozen=True)
class RunResult:
    """One run and what was made of it.

    Attributes
    ----------
    run_uid, result_uid : str
    start : dict
        Start document of the derived run: provenance, report, verdict.
    raw_start : dict
        Start document of the raw run.
    arrays : dict of str to ndarray
        As in the result file: `values`, `sigma`, `lower`, `upper`, `raw`, ...
    i0 : float
        Median of the raw run's beam monitor, counts; NaN where there is none.
    """

    run_uid: str
    result_uid: str
    start: dict[str, Any]
    raw_start: dict[str, Any]
    arrays: dict[str, NDArray[np.floating]]
    i0: float

    @property
    def labels(self) -> list[str]:
        """Elements, in the order of the maps."""
        return [str(name) for name in self.start.get("elements") or []]

    @property
    def geometry(self) -> ScanGeometry:
        """The raster in motor units."""
        return ScanGeometry.from_dict(self.start["geometry"])

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Outer edges (fast low, fast high, slow high, slow low), as matplotlib's imshow takes them."""
        (slow0, slow1), (fast0, fast1) = self.geometry.field()
        return fast0, fast1, slow1, slow0

    @property
    def purpose(self) -> str:
        return str(self.raw_start.get("purpose", "survey"))

    @property
    def verdict(self) -> str:
        return str(self.start.get("verdict", "none"))

    @property
    def reasons(self) -> list[str]:
        return [str(text) for text in (self.start.get("report") or {}).get("reasons", [])]


def read_results(uri: str, api_key: str, pairs: list[tuple[str, str]]) -> list[RunResult]:
    """Read derived runs and their raw runs' start documents.

    Parameters
    ----------
    uri, api_key : str
        The service's Tiled.
    pairs : list of (run uid, result uid)

    Raises
    ------
    KeyError
        When a uid is not in Tiled.
    """
    client = from_uri(uri, api_key=api_key)
    raw, processed = client["raw"], client["processed"]
    found = []
    for run_uid, result_uid in pairs:
        derived = processed[result_uid]
        primary = derived["primary"]
        arrays = {}
        for name in primary:
            array = np.asarray(primary[name].read())
            arrays[name] = array
        monitor = raw[run_uid]["primary"]
        i0 = float(np.median(monitor["sclr_i0"].read())) if "sclr_i0" in monitor else float("nan")
        found.append(
            RunResult(
                run_uid,
                result_uid,
                dict(derived.metadata["start"]),
                dict(raw[run_uid].metadata["start"]),
                arrays,
                i0,
            )
        )
    return found
