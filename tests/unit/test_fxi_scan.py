"""FXI's energy scan from a RunEngine: the documents of the composed one, and a stack of the sample."""

from typing import Any

import numpy as np
import pytest
from bluesky import RunEngine
from event_model import DocumentNames, schema_validators
from ophyd.utils.errors import LimitError

from inscan.callbacks.assembly import open_assembler
from inscan.callbacks.profile import load_profile, matches
from inscan.profiles.fxi_documents import FXIScan
from inscan.profiles.fxi_scan import FXIBeamline, fxi_beamline, xanes_scan2
from inscan.profiles.samples import battery_xanes

SAMPLE = battery_xanes(2, size=24)
KEV = [8.30, 8.345, 8.35, 8.42]
PROFILE = load_profile("fxi").model_copy(update={"read_deadline": 0.0})


def build(folder) -> FXIBeamline:
    return fxi_beamline(SAMPLE, folder, flux=3e5, limits_kev=(8.0, 9.0))


@pytest.fixture
def documents(tmp_path) -> list[Any]:
    engine, found = RunEngine({}, context_managers=[]), []

    def collect(name, doc):
        schema_validators[DocumentNames[name]].validate(doc)
        found.append((name, doc))

    engine.subscribe(collect)
    engine(xanes_scan2(build(tmp_path), KEV, md={"purpose": "survey"}))
    return found


def keys_by_stream(documents) -> dict[str, set[str]]:
    return {doc["name"]: set(doc["data_keys"]) for name, doc in documents if name == "descriptor"}


def test_documents_are_those_of_the_beamline(documents, tmp_path):
    composed = list(FXIScan(np.full((1, 4, 6, 7), 0.5), KEV).documents(tmp_path))
    assert keys_by_stream(documents) == keys_by_stream(composed)
    start, other = documents[0][1], composed[0][1]
    assert set(other) <= set(start)
    same = ("eng_list", "chunk_size", "plan_args", "motors", "detectors", "num_eng", "XEng")
    assert {key: start[key] for key in same} == {key: other[key] for key in same}
    assert start["purpose"] == "survey" and matches(PROFILE, start)
    assert [n for n, _ in documents].count("datum") == [n for n, _ in composed].count("datum")
    # A file and two resources for the dark, each image and each flat.
    assert [n for n, _ in documents].count("resource") == 2 * 9


def test_the_profile_makes_a_stack_of_the_sample(documents, tmp_path):
    assembler = open_assembler(documents[0][1], [PROFILE], data_roots=[tmp_path])
    (final,) = [u for name, doc in documents for u in assembler(name, doc) if u.kind == "final"]
    assert final.meta["complete"], final.meta["reason"]
    assert final.meta["edge"] == "Ni_K"
    assert final.meta["pixel_size_um"] == pytest.approx(0.02, rel=0.05)
    np.testing.assert_allclose(final.meta["energies_ev"], 1000 * np.array(KEV), rtol=1e-9)
    truth = np.exp(-SAMPLE.optical_density(1000 * np.array(KEV)))
    assert np.abs(final.arrays["transmission"] - truth).max() < 0.03


def test_an_energy_beyond_the_limits_moves_nothing(tmp_path):
    beamline, engine = build(tmp_path), RunEngine({}, context_managers=[])
    with pytest.raises(LimitError):
        engine(xanes_scan2(beamline, [8.3, 9.1]))
    assert beamline.x_eng.here == 8.333
    with pytest.raises(RuntimeError, match="stage"):
        beamline.andor.trigger()
    with pytest.raises(ValueError, match="eng_list"):
        engine(xanes_scan2(beamline, []))
