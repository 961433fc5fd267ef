"""Few energies first, then those that matter: with a real service, on devices like those of two beamlines."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from bluesky import RunEngine

from inscan.callbacks import connect
from inscan.callbacks.plans import SurveyThenEnergies, survey_then_energies
from inscan.callbacks.profile import load_profile
from inscan.profiles.fxi_scan import fxi_beamline, xanes_scan2
from inscan.profiles.samples import battery_xanes, ni_energies_ev
from inscan.profiles.simulation import sim_txm
from inscan.profiles.txm_plans import xanes_scan
from inscan.service.replay_service import OwnService
from inscan.service.result_file import read_result

# The first test to run waits for the service.
pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]

SURVEY = [float(energy) for energy in ni_energies_ev(12)]
SAMPLE = battery_xanes(3, size=48)
ENERGIES: dict[str, Any] = {
    "low_ev": 8240.0,
    "high_ev": 8470.0,
    "step_ev": 0.5,
    "most": 10,
}


def rules(motor: str, precision: float) -> dict[str, Any]:
    return {
        "mode": "auto",
        "soft_limits": {motor: {"low": 8.2, "high": 8.6, "units": "keV"}},
        "max_time": 600,
        "energies": {**ENERGIES, "precision_ev": precision},
    }


def written(folder: Path, name: str, motor: str, precision: float) -> str:
    """A shipped profile with rescans switched on."""
    shipped = load_profile(name)
    content = shipped.model_dump(mode="json", exclude_none=True, exclude={"folder"})
    content |= {"rescan": rules(motor, precision), "data_roots": [str(folder)]}
    if shipped.txm is not None and shipped.txm.references is not None:
        assert shipped.folder is not None
        content["txm"]["references"]["file"] = str(
            (shipped.folder / shipped.txm.references.file).resolve()
        )
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return str(path)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnService]:
    folder = tmp_path_factory.mktemp("energies")
    (folder / "data").mkdir()
    profiles = [
        written(folder, "fxi", "XEng", 0.12),
        written(folder, "sim_txm", "mono_energy", 0.01),
    ]
    out = folder / "out"
    out.mkdir()
    own = OwnService(out, {"profiles": profiles, "data_roots": [str(folder)], "rescan": "auto"})
    try:
        own.launch()
        own.wait()
        yield own
    finally:
        own.stop()


def data(service: OwnService) -> Path:
    return service.state_dir.parents[1] / "data"


def run(service: OwnService, metadata: dict[str, Any], survey: Any, more: Any) -> Any:
    """What the plan did, and the start documents."""
    engine = RunEngine(metadata, context_managers=[])
    starts: list[dict[str, Any]] = []
    found: list[SurveyThenEnergies] = []
    engine.subscribe(lambda name, doc: starts.append(doc), "start")
    inscan = connect(state_dir=service.state_dir)
    engine.subscribe(inscan)

    def whole():
        found.append((yield from survey_then_energies(survey, inscan, more, timeout=120)))

    try:
        engine(whole())
    finally:
        inscan.close()
    return found[0], starts


def edge_error(service: OwnService, outcome: dict[str, Any]) -> float:
    """Root mean square error of the edge energies of a result, eV."""
    (job,) = [one for one in outcome["results"] if one["state"] == "committed"]
    stored = read_result(service.state_dir / "results" / f"{job['key']}.h5")
    (found,) = [one.values for one in stored.processed.arrays if one.name == "edge_energy"]
    solid = SAMPLE.jump > 0.25 * SAMPLE.jump.max()
    away = found[solid] - SAMPLE.edge_energy()[solid]
    assert np.isfinite(away).mean() > 0.95
    return float(np.sqrt(np.nanmean(np.square(away))))


def check(service: OwnService, done: SurveyThenEnergies, starts: list[dict[str, Any]]) -> None:
    """Rounds were taken one after the other, and the stack of all energies is better than the survey."""
    assert done.rounds >= 1, (done.ended, done.reason)
    assert done.ended in ("precise", "refused"), (done.ended, done.reason)
    assert 4 <= len(done.energies_ev) <= ENERGIES["most"]
    assert [start["purpose"] for start in starts] == ["survey", *["fine"] * done.rounds]
    assert {start["parent_uid"] for start in starts[1:]} == {done.survey_uid}
    assert all(8240 <= energy <= 8470 for energy in done.energies_ev)
    first, last = done.outcomes[0], done.outcomes[-1]
    assert (first["status"], last["status"]) == ("done", "done")
    layers = last["composite"]["layers"]
    assert [one["uid"] for one in layers] == [done.survey_uid, *done.fine_uids]
    assert all(one["found"] and one["agrees"] for one in layers), layers
    assert edge_error(service, last) < 0.6 * edge_error(service, first)


def test_the_fxi_energy_plan_is_driven_adaptively(service: OwnService) -> None:
    beamline = fxi_beamline(SAMPLE, data(service), seed=1)
    done, starts = run(
        service,
        {},
        xanes_scan2(beamline, [energy / 1000 for energy in SURVEY]),
        lambda energies, _: xanes_scan2(beamline, [energy / 1000 for energy in energies]),
    )
    check(service, done, starts)
    assert [start["eng_list"] for start in starts[1:]][0] == [
        energy / 1000 for energy in done.energies_ev[: starts[1]["num_eng"]]
    ]


def test_the_simulated_microscope_adds_energies_in_rounds(service: OwnService) -> None:
    devices = sim_txm(SAMPLE, data(service), seed=2, time_scale=0, jitter=0.0)
    taken: list[float] = []

    def more(energies: list[float], proposal: dict[str, Any]) -> Any:
        assert proposal["motors"][0] == "mono_energy"
        taken.extend(energies)
        return xanes_scan(devices.microscope, energies, frames_per_energy=2)

    done, starts = run(
        service,
        {"beamline_id": "sim_txm"},
        xanes_scan(devices.microscope, SURVEY, frames_per_energy=2),
        more,
    )
    check(service, done, starts)
    assert taken == done.energies_ev and len(set(taken)) == len(taken)
    # More precise than its energies allow: it ends with the last of them.
    assert done.ended == "refused" and done.reason.startswith("refused, energies.most: ")
    assert len(taken) == ENERGIES["most"] and done.rounds == 3
