"""Profiles written from runs: they load, and understand the run that they were written from."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from event_model import compose_run
from typer.testing import CliRunner

from inscan.callbacks.explain import explain
from inscan.callbacks.guess_profile import guess_profile
from inscan.callbacks.profile import BeamlineProfile, load_profile
from inscan.callbacks.profile_text import profile_text
from inscan.callbacks.run_summary import summarise
from inscan.callbacks.sources.files import write_documents
from inscan.callbacks.updates import in_memory
from inscan.profiles.bluesky_documents import Counts, fly_documents
from inscan.profiles.bluesky_starts import grid
from inscan.profiles.fxi_documents import FXIScan
from inscan.profiles.srx_documents import SRXMap, fly, hf2dxrf, step
from inscan.service.cli import app

Documents = list[tuple[str, dict[str, Any]]]
ROWS, COLS, CHANNELS = 3, 4, 2


def step_scan(*, spectra: bool = False, names: bool = True, **start: Any) -> Documents:
    """A step scan with a detector of its own making; counts of window 1 are the seq_num."""
    return list(_step_scan(spectra, names, start))


def _step_scan(spectra: bool, names: bool, start: dict[str, Any]) -> Iterator[Any]:
    metadata = {
        "beamline_id": "XF99",
        "plan_name": "grid_scan",
        "motors": ["table_y", "table_x"],
        "shape": [ROWS, COLS],
        "extents": [[0.0, 2.0], [0.0, 3.0]],
        "snaking": [False, True],
        "scan": {"energy": 12.0, "dwell": 0.2},
    }
    run = compose_run(metadata={**metadata, **start})
    yield "start", run.start_doc
    number = {"source": "PV", "dtype": "number", "shape": []}
    keys: dict[str, Any] = {"table_y": dict(number), "table_x": dict(number), "us_ic": dict(number)}
    for channel in range(1, CHANNELS + 1):
        for window in (1, 2):
            keys[f"det{channel}_mcaroi{window:02d}_total"] = dict(number)
        keys[f"det{channel}_live"] = dict(number)
        if spectra:
            keys[f"det{channel}_spectrum"] = {"source": "PV", "dtype": "array", "shape": [256]}
    labels = {f"det_mcaroi{w:02d}_name": n for w, n in ((1, "Fe_K"), (2, "Zn_K")) if names}
    configuration = {
        "det": {"data": labels, "timestamps": dict.fromkeys(labels, 0.0), "data_keys": {}}
    }
    stream = run.compose_descriptor(
        name="primary", data_keys=keys, configuration=configuration, validate=False
    )
    yield "descriptor", stream.descriptor_doc
    for seq in range(1, ROWS * COLS + 1):
        row, col = divmod(seq - 1, COLS)
        data: dict[str, Any] = dict.fromkeys(keys, 1.0)
        data |= {"table_y": float(row), "table_x": float(COLS - 1 - col if row % 2 else col)}
        data |= {f"det{c}_mcaroi01_total": float(seq) for c in (1, 2)}
        data |= {name: np.ones(256) for name in keys if name.endswith("_spectrum")}
        stamps = dict.fromkeys(keys, 0.0)
        yield "event", stream.compose_event(data=data, timestamps=stamps, validate=False)
    yield "stop", run.compose_stop()


def written(documents: Documents, path: Path, **answers: Any) -> BeamlineProfile:
    """The profile that is written from a run, with the answers that a person would give."""
    guess = guess_profile(summarise(documents), "new")
    path.write_text(profile_text(guess, "a test"), encoding="utf-8")
    if answers:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        for section, values in answers.items():
            content[section] = content.get(section, {}) | values
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return load_profile(path)


def test_a_step_scan_gives_a_profile_that_maps_it(tmp_path: Path) -> None:
    documents = step_scan()
    profile = written(documents, tmp_path / "new.yaml")
    assert profile.xrf is not None
    assert profile.xrf.step is not None
    assert profile.xrf.step.mcaroi == "det{channel}_mcaroi{mcaroi:02d}_total"
    assert profile.xrf.step.i0 == "us_ic"
    assert profile.match == {"beamline_id": "XF99"}
    found = explain(summarise(documents), lambda: documents, profile, in_memory)
    assert found.outcome == "understood", found
    (result,) = found.results
    assert "3 x 4 pixels, Fe_K, Zn_K; 2 detector channels; 12 of 12" in result


def test_what_the_run_does_not_tell_is_asked() -> None:
    guess = guess_profile(summarise(step_scan(names=False, scan={})), "new")
    asked = " ".join(guess.questions)
    assert "xrf.elements.lines" in asked
    assert "xrf.incident_energy" in asked
    bare = guess_profile(summarise(step_scan(beamline_id="")), "new")
    assert bare.values["match|plan_name"] == "grid_scan"
    assert any("match" in question for question in bare.questions)


def test_an_energy_scan_gives_a_profile_that_stacks_it(tmp_path: Path) -> None:
    energies = np.linspace(8.30, 8.42, 6)
    truth = np.random.default_rng(0).uniform(0.3, 0.9, (1, 6, 40, 36))
    documents = list(FXIScan(truth, list(energies)).documents(tmp_path))
    profile = written(documents, tmp_path / "new.yaml", txm={"edge": "Ni_K"})
    found = explain(summarise(documents), lambda: documents, profile, in_memory)
    assert found.outcome == "understood", found
    assert "stack of 6 energies, 8300.0 ... 8420.0 eV, frames of 40 x 36" in found.results[0]


@pytest.mark.parametrize(("make", "way"), [(fly, "rows"), (step, "step"), (hf2dxrf, "step")])
def test_scans_of_a_real_beamline_give_profiles_that_map_them(
    make: Any, way: str, tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    rows, cols = 3, 40
    spectra = rng.poisson(0.5, (rows, cols, 2, 1024)).astype(np.uint32)
    y, x = np.mgrid[:rows, :cols].astype(np.float32)
    ends = ((0.0, rows - 1.0), (0.0, cols - 1.0))
    truth = SRXMap(spectra, np.full((rows, cols), 1e3, np.float32), y, x, ends)
    documents = list(make(tmp_path, truth))
    profile = written(documents, tmp_path / "new.yaml")
    assert profile.xrf is not None
    assert getattr(profile.xrf, way) is not None
    found = explain(summarise(documents), lambda: documents, profile, in_memory)
    assert found.outcome == "understood", found
    assert "3 x 40 pixels, Fe_K; 2 detector channels; 120 of 120" in found.results[0]


def test_a_fly_scan_without_events_gives_a_profile_that_maps_it(tmp_path: Path) -> None:
    plan = grid((6, 8), (0.0, 5.0), (0.0, 7.0))
    taken = Counts.drawn(plan.n)
    documents = list(fly_documents(plan, taken, tmp_path, beamline_id="mine"))
    profile = written(documents, tmp_path / "new.yaml")
    assert profile.xrf is not None and profile.xrf.fly is not None
    assert profile.xrf.fly.mcaroi == "xs_mcaroi"
    found = explain(summarise(documents), lambda: documents, profile, in_memory)
    assert found.outcome == "understood", found
    assert "6 x 8 pixels, Ca_K, Fe_K, Zn_K; 2 detector channels; 48 of 48" in found.results[0]


def test_a_run_without_a_detector_gives_no_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = [(name, doc) for name, doc in step_scan() if name in ("start", "stop")]
    write_documents(tmp_path / "run.jsonl", documents)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["profile", "new", "--from", "run.jsonl"])
    assert isinstance(done.exception, ValueError)
    assert "is it a fluorescence map?" in str(done.exception)
    assert not (tmp_path / "my_beamline.yaml").exists()


def test_the_key_that_does_not_fit_is_named_with_what_would(tmp_path: Path) -> None:
    documents = step_scan()
    profile = written(documents, tmp_path / "new.yaml")
    assert profile.xrf is not None and profile.xrf.step is not None
    broken = profile.xrf.step.model_copy(update={"mcaroi": "xs_{channel}_roi{mcaroi}"})
    wrong = profile.model_copy(update={"xrf": profile.xrf.model_copy(update={"step": broken})})
    found = explain(summarise(documents), lambda: documents, wrong, in_memory)
    assert found.outcome == "not understood"
    (remedy,) = found.remedies
    assert remedy.startswith("xrf.step.mcaroi: 'xs_{channel}_roi{mcaroi}' does not fit")
    assert "'det{channel}_mcaroi{mcaroi:02d}_total' would" in remedy


def test_refused_files_are_what_is_said_of_a_run_without_a_pixel(tmp_path: Path) -> None:
    documents = list(fly(tmp_path, SRXMap.make((2, 3), channels=1, bins=1024)))
    profile = load_profile("srx")
    found = explain(summarise(documents), lambda: documents, profile, in_memory)
    assert found.outcome == "not understood"
    assert found.reason.startswith("the run ended (success) without a measured pixel; ")
    assert found.remedies[0].startswith(f"data_roots: the detector files are in {tmp_path}, ")
    opened = explain(summarise(documents), lambda: documents, profile, in_memory, (tmp_path,))
    assert opened.outcome == "understood" and not opened.remedies


def test_a_geometry_elsewhere_is_named() -> None:
    documents = step_scan()
    elsewhere = step_scan(shape=None, dimensions={"shape": [ROWS, COLS]})
    guess = guess_profile(summarise(documents), "new")
    profile = BeamlineProfile(**guess.nested())
    found = explain(summarise(elsewhere), lambda: elsewhere, profile, in_memory)
    assert found.outcome == "not understood"
    assert any(
        r.startswith("geometry.shape: 'shape'") and "'dimensions.shape' would" in r
        for r in found.remedies
    ), found


def test_other_beamlines_runs_are_passed_by_with_the_rule() -> None:
    documents = step_scan()
    profile = load_profile("sim_xrf")
    found = explain(summarise(documents), lambda: documents, profile, in_memory)
    assert found.outcome == "no match"
    assert "match.beamline_id: the run has 'XF99', the profile wants 'sim_xrf'" in found.reason


@pytest.mark.parametrize("seed", range(3))
def test_documents_that_make_no_sense_are_counted(seed: int) -> None:
    rng = np.random.default_rng(seed)
    hostile: list[Any] = [None, [], {}, "text", 7, {"uid": None}, {"data_keys": 3}, {"shape": "x"}]
    documents = step_scan(spectra=True)
    for _ in range(40):
        name = str(
            rng.choice(["start", "descriptor", "event", "event_page", "stream_datum", "stop"])
        )
        documents.insert(
            int(rng.integers(len(documents))), (name, hostile[rng.integers(len(hostile))])
        )
    summary = summarise(documents)
    assert summary.counts["malformed"]
    guess_profile(summary, "new")
