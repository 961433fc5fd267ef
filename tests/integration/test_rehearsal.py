"""A stored run rebuilt as devices, and an adaptive plan rehearsed on them with a real service."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bluesky import RunEngine
from ophyd.utils import LimitError

from inscan.callbacks.assembly import open_assembler
from inscan.callbacks.profile import BeamlineProfile, load_profile
from inscan.callbacks.rehearsal_profile import map_rehearsal_profile, stack_rehearsal_profile
from inscan.callbacks.sources.interface import StoredRun
from inscan.callbacks.updates import Update
from inscan.profiles.bluesky_documents import Counts, step_documents
from inscan.profiles.bluesky_starts import grid
from inscan.profiles.fxi_documents import FXIScan
from inscan.profiles.stored_camera import stored_stack
from inscan.profiles.stored_microscope import stored_microscope
from inscan.service.rehearsal import RehearsalError, RehearsalOptions, rehearse
from inscan.service.rehearsal_map import MapRehearsal

pytestmark = pytest.mark.slow

SIZE, DWELL = 24, 0.125


def stored_run(**metadata: Any) -> StoredRun:
    """A map with one bright spot, taken point by point."""
    rng = np.random.default_rng(4)
    y, x = np.mgrid[:SIZE, :SIZE]
    spot = 60 * np.exp(-((y - 8) ** 2 + (x - 15) ** 2) / 8)
    mean = np.stack([np.full(y.shape, 3.0), 1 + spot, np.full(y.shape, 1.0)]).reshape(1, 3, -1)
    counts = rng.poisson(mean * np.ones((2, 1, 1)))
    n = SIZE * SIZE
    taken = Counts(counts, np.full((2, n), 0.1), np.full(n, 1000.0))
    plan = grid((SIZE, SIZE), (0.0, SIZE - 1.0), (0.0, SIZE - 1.0))
    documents = list(step_documents(plan, taken, **{"beamline_id": "sim_xrf", **metadata}))
    return StoredRun(documents[0][1]["uid"], "a test", documents[0][1], lambda: iter(documents))


def assembled(documents: Any, profile: BeamlineProfile) -> Update:
    (start, *rest) = documents
    assembler = open_assembler(start[1], [profile])
    updates = [u for name, doc in rest for u in assembler(name, doc)]
    return next(u for u in updates if u.kind == "final")


def test_the_same_raster_on_the_rebuilt_devices_gives_the_stored_map() -> None:
    stored, profile = stored_run(), load_profile("sim_xrf")
    before = assembled(stored.documents(), profile)
    microscope = stored_microscope(before.arrays, before.meta)
    rules, notes = map_rehearsal_profile(profile, before.meta, 1.0)
    assert notes == []
    rehearsal = MapRehearsal(microscope, microscope.detector.field.dwell)
    documents: list[tuple[str, Mapping[str, Any]]] = []
    engine = RunEngine({}, context_managers=[])
    engine.subscribe(lambda name, doc: documents.append((name, doc)))
    ranges = (microscope.slow_range, microscope.fast_range)
    engine(rehearsal.raster(*ranges, microscope.step, DWELL, {"purpose": "again"}))
    assert documents[0][1]["simulated"] is True
    assert documents[0][1]["rehearsal_of"] == stored.uid
    again = assembled(documents, rules)
    assert again.meta["elements"] == before.meta["elements"]
    assert again.meta["geometry"]["shape"] == [SIZE, SIZE]
    np.testing.assert_array_equal(again.arrays["counts"], before.arrays["counts"])
    np.testing.assert_allclose(again.arrays["exposure"], before.arrays["exposure"], rtol=1e-5)
    assert again.arrays["measured"].all()
    exposed = microscope.detector.field
    assert (exposed.masked, exposed.reused, exposed.extrapolated) == (0, 0, 0)


def stored_stack_run(folder: Path) -> StoredRun:
    """An edge over a wedge, as FXI records it."""
    energies = np.linspace(8.30, 8.36, 13)
    y, x = np.mgrid[:16, :20]
    step = 1 / (1 + np.exp(-(energies[:, None, None] - 8.333) / 0.002))
    truth = np.exp(-(0.2 + (0.5 + 0.02 * x + 0 * y) * step))
    documents = list(FXIScan(truth[None], list(energies), seed=2).documents(folder))
    return StoredRun(documents[0][1]["uid"], "a test", documents[0][1], lambda: iter(documents))


def fxi(folder: Path) -> BeamlineProfile:
    return load_profile("fxi").model_copy(update={"data_roots": (folder,)})


def test_the_same_energies_on_the_rebuilt_camera_give_the_stored_stack(tmp_path: Path) -> None:
    stored, profile = stored_stack_run(tmp_path), fxi(tmp_path)
    before = assembled(stored.documents(), profile)
    stack = stored_stack(before.arrays, before.meta)
    rules, notes = stack_rehearsal_profile(profile, before.meta, 1.0)
    documents: list[tuple[str, Mapping[str, Any]]] = []
    engine = RunEngine({}, context_managers=[])
    engine.subscribe(lambda name, doc: documents.append((name, doc)))
    engine(stack.scan(stack.energies_ev, {}))
    # The beamline's profile adds no energies, and names no limits: each is said.
    assert rules.rescan.mode == "auto" and len(notes) == 5
    limit, energies = rules.rescan.soft_limits["energy"], rules.rescan.energies
    assert energies is not None and limit.in_units("eV") == pytest.approx((8300.0, 8360.0), abs=0.1)
    assert (energies.low_ev, energies.high_ev) == pytest.approx((8300.0, 8360.0))
    assert (energies.step_ev, energies.most) == (pytest.approx(5.0), 6)
    again = assembled(documents, rules)
    assert again.meta["edge"] == "Ni_K"
    np.testing.assert_allclose(again.meta["energies_ev"], before.meta["energies_ev"], rtol=1e-6)
    np.testing.assert_allclose(
        again.arrays["transmission"], before.arrays["transmission"], rtol=1e-4
    )
    assert stack.camera.interpolated == 0
    with pytest.raises(LimitError):
        engine(stack.scan([8000.0], {}))
    engine(stack.scan([8302.5, 8320.0], {}))
    assert stack.camera.interpolated == 1


def test_less_light_thins_the_photons_of_a_stack(tmp_path: Path) -> None:
    profile = fxi(tmp_path)
    before = assembled(stored_stack_run(tmp_path).documents(), profile)
    whole, quarter = (stored_stack(before.arrays, before.meta, share=s) for s in (1.0, 0.25))
    images = []
    for stack in (whole, quarter):
        stack.camera.trigger()
        images.append(stack.camera.read()["camera_image"]["value"][0])
    dark = before.arrays["dark"]
    assert (images[1] - dark).mean() == pytest.approx(0.25 * (images[0] - dark).mean(), rel=0.05)
    with pytest.raises(ValueError, match="no more light"):
        stored_stack(before.arrays, before.meta, share=2.0)


def test_few_energies_and_those_that_are_proposed_are_rehearsed(tmp_path: Path) -> None:
    told: list[str] = []
    options = RehearsalOptions((fxi(tmp_path),), tmp_path / "out", factor=2)
    answer = rehearse(stored_stack_run(tmp_path), options, told.append)
    assert "6 of 13 energies" in told
    assert len(answer["fine_uids"]) >= 1 and len(answer["composites"]) == len(answer["fine_uids"])
    assert {one["status"] for one in answer["outcomes"].values()} == {"done"}
    assert {one["status"] for one in answer["composites"]} == {"done"}
    taken = round(13 * answer["time_s"] / answer["full_time_s"])
    assert 10 <= taken <= 12
    assert f"{taken} of 13 energies were taken" in answer["notes"]
    # Only energies that the run has: nothing had to be made up.
    assert answer["counted"] == {"interpolated": 0}


def test_a_beamline_without_limits_of_its_own_rehearses_within_the_field() -> None:
    before = assembled(stored_run().documents(), load_profile("sim_xrf"))
    content = load_profile("sim_xrf").model_dump(exclude={"rescan"})
    rules, notes = map_rehearsal_profile(BeamlineProfile(**content), before.meta, 72.0)
    assert rules.rescan.mode == "auto"
    limit = rules.rescan.soft_limits["sample_y"]
    assert (limit.low, limit.high) == (-0.5, SIZE - 0.5)
    assert rules.rescan.max_area == pytest.approx(SIZE * SIZE / 4)
    assert rules.rescan.max_time == pytest.approx(18.0)
    assert len(notes) == 5


def test_an_adaptive_plan_is_rehearsed_and_finds_the_spot(tmp_path: Path) -> None:
    told: list[str] = []
    options = RehearsalOptions((load_profile("sim_xrf"),), tmp_path / "out", factor=3)
    answer = rehearse(stored_run(), options, told.append)
    assert len(answer["survey_uids"]) == 1
    assert len(answer["fine_uids"]) >= 1
    assert {one["status"] for one in answer["outcomes"].values()} == {"done"}
    assert answer["time_s"] < answer["full_time_s"]
    proposals = answer["outcomes"][answer["survey_uids"][0]]["proposals"]
    (low, high), (left, right) = (
        proposals[0]["regions"][0][f"{axis}_range"] for axis in ("slow", "fast")
    )
    assert low < 8 < high
    assert left < 15 < right


def test_what_cannot_be_rehearsed_is_said_before_anything_starts(tmp_path: Path) -> None:
    options = RehearsalOptions((load_profile("sim_xrf"),), tmp_path / "out")
    with pytest.raises(ValueError, match="matches no profile"):
        rehearse(stored_run(beamline_id="elsewhere"), options, print)
    plan = tmp_path / "plan.py"
    plan.write_text("survey = 1\n")
    with pytest.raises(RehearsalError, match=r"no function plan\(beamline, inscan\)"):
        rehearse(
            stored_run(), RehearsalOptions(options.profiles, tmp_path / "out", plan=plan), print
        )
    assert not (tmp_path / "out").exists()
