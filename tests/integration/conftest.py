"""What the integration tests share: one real Tiled for all of them, and how to wait for something."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from inscan.service import derived
from inscan.service.commit import Committer
from inscan.service.messages import InferenceJob, InferenceResult, job_key
from inscan.service.processed import Processed, ResultArray
from inscan.service.result_file import write_result
from inscan.service.result_view import describe
from inscan.service.tiled_http import TiledHTTP
from inscan.service.tiled_server import EmbeddedTiled

Until = Callable[..., Any]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """State directory of the shared Tiled; it may read `results` and `data` in it."""
    state = tmp_path_factory.mktemp("state")
    (state / "results").mkdir()
    (state / "data").mkdir()
    return state


@pytest.fixture(scope="session")
def tiled(folder: Path) -> Iterator[EmbeddedTiled]:
    """A real Tiled in its own process, for all tests of the session."""
    with EmbeddedTiled(folder, readable=[folder / "results", folder / "data"]) as server:
        yield server


@pytest.fixture(scope="session")
def until() -> Until:
    """`until(condition, seconds=20)`: wait until it holds and return what it returned, or fail."""

    def wait(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
        deadline = time.monotonic() + seconds
        while True:
            found = condition()
            if found:
                return found
            assert time.monotonic() < deadline, f"it did not come true within {seconds:g} s"
            threading.Event().wait(0.01)

    return wait


class Commit:
    """Puts small results into the shared Tiled; `commit(run_uid, scan_id)` returns the result's uid."""

    geometry: ClassVar[dict[str, Any]] = {
        "shape": [4, 5],
        "slow_motor": "sample_y",
        "fast_motor": "sample_x",
        "slow_units": "um",
        "fast_units": "um",
        "slow_first": 0.0,
        "slow_last": 3.0,
        "fast_first": 0.0,
        "fast_last": 4.0,
        "snaking": False,
    }

    def __init__(self, http: TiledHTTP, folder: Path) -> None:
        self._http = http
        self._folder = folder

    def maps(self, path: Path, report: dict[str, Any], meta: dict[str, Any], seed: int = 0) -> str:
        rng = np.random.default_rng(seed)
        arrays = [
            ResultArray(
                name, ("element", "row", "col"), "counts", rng.random((1, 4, 5), "f4"), ["Fe_K"]
            )
            for name in ("values", "sigma", "raw")
        ]
        arrays.append(ResultArray("measured", ("row", "col"), "", np.ones((4, 5), bool)))
        return write_result(path, Processed(arrays, report), meta)

    def stack(self, path: Path, report: dict[str, Any]) -> str:
        rng = np.random.default_rng(3)
        labels = [f"{8300 + 10 * i:.2f} eV" for i in range(6)]
        arrays = [
            ResultArray(
                name, ("energy", "row", "col"), "transmission", rng.random((6, 4, 5), "f4"), labels
            )
            for name in ("values", "sigma", "raw")
        ]
        arrays += [
            ResultArray("edge_energy", ("row", "col"), "eV", rng.random((4, 5), "f4")),
            ResultArray(
                "fractions",
                ("reference", "row", "col"),
                "",
                rng.random((2, 4, 5), "f4"),
                ["A", "B"],
            ),
        ]
        return write_result(path, Processed(arrays, report), {})

    def __call__(self, run_uid: str, scan_id: int, *, recipe: Any = "n2n", seed: int = 0) -> str:
        """A result in Tiled; returns its uid."""
        key = job_key(run_uid, "primary", recipe, {"seed": seed})
        path = self._folder / "results" / f"{key}.h5"
        report: dict[str, Any] = {"verdict": "pass", "reasons": ["whiteness within limits"]}
        if recipe == "subspace":
            report["energies_ev"] = [8300.0 + 10 * i for i in range(6)]
            digest, meta = self.stack(path, report), {"technique": "txm"}
        else:
            digest, meta = (
                self.maps(path, report, {}, seed),
                {"technique": "xrf", "geometry": self.geometry},
            )
        job = InferenceJob(
            key=key,
            run_uid=run_uid,
            stream="primary",
            kind="final",
            recipe=recipe,
            parameters={"seed": seed},
            meta=meta,
            spool="/s",
            arrays={},
            input_digest="",
            result_path=str(path),
            host_id="h",
        )
        result = InferenceResult(
            key=key,
            fence=1,
            result_path=str(path),
            digest=digest,
            report=report,
            regions=[],
            timings={},
        )
        run = derived.compose(job, result, describe(path), {"scan_id": scan_id}, time.time())
        committer = Committer(self._http, readable=[self._folder / "results"])
        try:
            committer.commit(run, derived.axes_of(meta, report, run.arrays), path, digest)
        finally:
            committer.close()
        return run.uid


@pytest.fixture
def commit(tiled: EmbeddedTiled, folder: Path) -> Iterator[Commit]:
    with TiledHTTP(tiled.uri, tiled.api_key) as http:
        yield Commit(http, folder)
