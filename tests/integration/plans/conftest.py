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
    "max_area": 1e6,
    "max_time": 1e6,
    "max_regions": 40,
    "max_rounds": 20,
    "least_worth": 0,
    "retries": 0,
    "step_factor": 0.5,
    "dwell_factor": 10,
}


class Microscope:
    """The simulated microscope with its plans, a service, and the record of what moved."""

    def __init__(
        self, folder: Path, until: Callable[..., Any], lives: Callable[[int], bool], **rules: Any
    ) -> None:
        self.folder, self.until, self.lives = folder, until, lives
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

    def still(self, name: str) -> dict[str, Any]:
        """A proposal as it is now, of a sample that stays where it is."""
        return {**self.proposal(name), "follow_drift": False}

    def proposal(self, name: str) -> dict[str, Any]:
        return self.ask("proposal", proposal=name)["proposal"]

    def approved(self, survey: str, regions: int = 2) -> str:
        """Id of a new approved proposal of so many regions of the survey, at places of its own."""
        places = []
        for _ in range(regions):
            row, col = divmod(self._boxes, 12)
            self._boxes += 1
            box = [4 * row, 4 * row + 2, 6 * col + 1, 6 * col + 3]
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
        self.until(lambda: not any(self.lives(one.pid) for one in family))

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


@pytest.fixture(scope="package", autouse=True)
def quick() -> Iterator[None]:
    """Looks at a future that a plan waits for, more often than people need."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_waiting, "SLICE", 0.1)
        patch.setattr(plan_waiting, "ANSWER", 3.0)
        yield


@pytest.fixture(scope="package")
def begun(
    tmp_path_factory: pytest.TempPathFactory, until: Any, lives: Any
) -> Iterator[tuple[Microscope, dict[str, Any]]]:
    """One microscope for all tests, and the outcome of its first survey: after that run the sample slips, once."""
    assert "INSCAN_SERVICE" not in os.environ
    made = Microscope(tmp_path_factory.mktemp("microscope"), until, lives)
    made.serve()
    try:
        made.connect(INSCAN_SIM_DRIFT="0.4 um")
        (uid,) = made.engine(made.names["survey"](step=0.5, dwell=0.1))
        outcome = made.names["inscan"].future(uid).result(60)
        assert outcome["status"] == "done", outcome
        yield made, outcome
    finally:
        made.close()


@pytest.fixture(scope="package")
def microscope(begun: tuple[Microscope, dict[str, Any]]) -> Microscope:
    """The microscope; whichever test comes first, its first survey has been taken."""
    return begun[0]


@pytest.fixture(scope="package")
def first(begun: tuple[Microscope, dict[str, Any]]) -> dict[str, Any]:
    """Outcome of the first survey; its places are left to the tests that ask for it."""
    return begun[1]


@pytest.fixture(scope="package")
def survey(microscope: Microscope) -> str:
    """Uid of another survey, of whose own places none is wanted."""
    (uid,) = microscope.engine(microscope.names["survey"](step=0.5, dwell=0.1))
    outcome = microscope.names["inscan"].future(uid).result(60)
    assert outcome["status"] == "done", outcome
    for proposal in outcome["proposals"]:
        if microscope.proposal(proposal["id"])["state"] == "approved":
            microscope.ask("refuse", proposal=proposal["id"], who="test", reason="")
    return uid
