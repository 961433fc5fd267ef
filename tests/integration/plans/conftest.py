"""The simulated microscope's own startup files and plans, against one real service in its own process."""

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml

from inscan.callbacks import plan_waiting
from inscan.callbacks.profile import shipped_profiles
from inscan.callbacks.request import request
from inscan.service.demo_beamline import load_startup
from inscan.service.replay_service import OwnService

# What tests need of the limits: room for many proposals of one survey.
RULES = {
    "follow_drift": False,
    "margin": 0,
    "max_area": 1e6,
    "max_time": 1e6,
    "max_regions": 40,
    "max_rounds": 20,
    "retries": 1,
    "step_factor": 0.5,
}


class Microscope:
    """The simulated microscope with its plans, a service, and the record of what moved."""

    def __init__(self, folder: Path, until: Callable[..., Any], **rules: Any) -> None:
        self.folder, self.until = folder, until
        self.state = folder / "state"
        profile = yaml.safe_load(shipped_profiles()["sim_xrf"].read_text(encoding="utf-8"))
        profile["rescan"] |= RULES | rules
        (folder / "sim_xrf.yaml").write_text(yaml.safe_dump(profile))
        (folder / "data").mkdir()
        self.environment = {
            "INSCAN_SIM_SAMPLE": str(grains(folder)),
            "INSCAN_SIM_TIME_SCALE": "0",
            "INSCAN_SIM_CHANNELS": "2",
            "INSCAN_SIM_DATA": str(folder / "data"),
            "INSCAN_STATE": str(self.state),
            "INSCAN_SERVICE": "",
        }
        self.names: dict[str, Any] = {}
        self.starts: list[dict[str, Any]] = []
        self.stops: list[dict[str, Any]] = []
        self.moved = 0
        self._service: OwnService | None = None
        self._boxes = 0

    def serve(self) -> None:
        """Start the service, or another one on the same folder."""
        settings = {
            "profiles": [str(self.folder / "sim_xrf.yaml")],
            "data_roots": [str(self.folder / "data")],
        }
        self._service = OwnService(self.folder, settings)
        self._service.launch()

    def connect(self, **variables: str) -> None:
        """Execute the startup files, as IPython does."""
        assert self._service is not None
        environment = self.environment | variables
        self.names = load_startup("sim_xrf", environment, self._service.wait)
        self.engine.context_managers = []  # no signal handlers: they belong to a main thread
        self.engine.subscribe(lambda name, doc: self.starts.append(doc), "start")
        self.engine.subscribe(lambda name, doc: self.stops.append(doc), "stop")
        self.names["sample_x"].subscribe(self._note, run=False)
        self.until(lambda: self.names["inscan"].connected, 60)

    def _note(self, **_: Any) -> None:
        self.moved += 1

    @property
    def engine(self) -> Any:
        return self.names["RE"]

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        return request(self.state, op, timeout=20.0, **fields)

    def proposal(self, name: str) -> dict[str, Any]:
        return self.ask("proposal", proposal=name)["proposal"]

    def approved(self, survey: str, regions: int = 2) -> str:
        """Id of a new approved proposal of so many regions of the survey, at places of its own."""
        places = []
        for _ in range(regions):
            row, col = divmod(self._boxes, 20)
            self._boxes += 1
            box = [2 * row, 2 * row + 2, 2 * col, 2 * col + 2]
            places.append({"box": box, "score": 9.0, "reason": "a test", "element_name": "Fe_K"})
        made = self.ask("propose_places", run_uid=survey, places=places, who="test", reason="")
        name = made["proposal"]["id"]
        assert len(made["proposal"]["regions"]) == regions, made["proposal"]["reason"]
        self.ask("approve", proposal=name, who="test", reason="")
        return name

    def run(self, plan: Any) -> Any:
        """Run a plan in this thread; return what it returns."""
        found: list[Any] = []
        self.engine(_returning(plan, found))
        return found[0]

    def begin(self, plan: Any) -> "Running":
        """Run a plan in a worker thread, as blueapi does."""
        return Running(self, plan)

    def workers(self) -> list[psutil.Process]:
        assert self._service is not None and self._service._process is not None
        family = psutil.Process(self._service._process.pid).children(recursive=True)
        return [one for one in family if "inscan.service.worker" in " ".join(one.cmdline())]

    def kill(self) -> None:
        """Kill the service outright, and what it has started."""
        assert self._service is not None and self._service._process is not None
        family = psutil.Process(self._service._process.pid).children(recursive=True)
        self._service._process.kill()
        self._service._process.wait()
        _, alive = psutil.wait_procs(family, 20)
        assert not alive

    def close(self) -> None:
        """End connection and service."""
        if self.names:
            self.names["inscan"].close(0.0)
        if self._service is not None:
            self._service.stop()
            self._service = None


class Running:
    """A plan in a worker thread."""

    def __init__(self, microscope: Microscope, plan: Any) -> None:
        self.microscope = microscope
        self.found: list[Any] = []
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, args=(plan,), name="worker")
        self.thread.start()

    def _run(self, plan: Any) -> None:
        try:
            self.microscope.engine(_returning(plan, self.found))
        except Exception as error:  # noqa: BLE001 - looked at by the test
            self.error = error

    def join(self) -> Any:
        self.thread.join(60)
        assert not self.thread.is_alive()
        return self.found[0] if self.found else None


def _returning(plan: Any, found: list[Any]) -> Any:
    found.append((yield from plan))


def grains(folder: Path) -> Path:
    """A sample of 40 x 10 um with two grains of iron."""
    rng = np.random.default_rng(3)
    row, col = np.mgrid[:32, :128]
    two = sum(np.exp(-((row - r) ** 2 + (col - c) ** 2) / 8.0) for r, c in ((16, 30), (14, 100)))
    path = folder / "grains.npz"
    np.savez(path, Fe=2 + 400 * two, Ca_Ka=40 + 4 * rng.random(row.shape))
    return path


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Looks at a future that a plan waits for, more often than people need."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_waiting, "SLICE", 0.1)
        patch.setattr(plan_waiting, "ANSWER", 3.0)
        yield


@pytest.fixture(scope="module")
def build(
    tmp_path_factory: pytest.TempPathFactory, until: Any
) -> Iterator[Callable[..., Microscope]]:
    made: list[Microscope] = []

    def start(variables: dict[str, str] | None = None, **rules: Any) -> Microscope:
        made.append(Microscope(tmp_path_factory.mktemp("microscope"), until, **rules))
        made[-1].serve()
        made[-1].connect(**(variables or {}))
        return made[-1]

    assert "INSCAN_SERVICE" not in os.environ
    yield start
    for one in made:
        one.close()


@pytest.fixture(scope="module")
def microscope(build: Callable[..., Microscope]) -> Microscope:
    return build()


@pytest.fixture(scope="module")
def survey(microscope: Microscope) -> str:
    """Uid of a survey that has its result, and of whose places none is wanted so far."""
    (uid,) = microscope.engine(microscope.names["survey"](step=1.0))
    outcome = microscope.names["inscan"].future(uid).result(60)
    assert outcome["status"] == "done", outcome
    for proposal in outcome["proposals"]:
        microscope.ask("refuse", proposal=proposal["id"], who="test", reason="")
    return uid
