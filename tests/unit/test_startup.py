"""Startup folders: one namespace, in the order of names, as IPython and queueserver execute them."""

from pathlib import Path

import pytest
import yaml

from inscan.profiles.samples import XANESSample, XRFSample

PROFILES = Path(__file__).parents[2] / "profiles"


def load(profile, stop_before="60"):
    """Execute the startup files that need no service, as in one IPython session."""
    namespace: dict = {"__name__": "__main__"}
    for path in sorted((PROFILES / profile / "startup").glob("*.py")):
        if path.name < stop_before:
            exec(compile(path.read_text(), str(path), "exec"), namespace)
    return namespace


@pytest.fixture
def environment(monkeypatch, tmp_path):
    for name, value in {
        "INSCAN_STATE": str(tmp_path),
        "INSCAN_SIM_TIME_SCALE": "0",
        "INSCAN_SIM_SIZE": "32",
        "INSCAN_SIM_SAMPLE": "",
    }.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def run(namespace, plan):
    found = []
    token = namespace["RE"].subscribe(lambda name, doc: found.append((name, doc)))
    namespace["RE"](plan)
    namespace["RE"].unsubscribe(token)
    return found


def test_survey_and_fine_of_the_fluorescence_microscope(environment, tmp_path):
    beamline = load("sim_xrf")
    coarse = run(beamline, beamline["survey"](step=4.0))[0][1]
    assert (coarse["purpose"], coarse["sample"]) == ("survey", {"name": "cells"})
    assert coarse["beamline_id"] == "sim_xrf"
    # Pixels of 4 um whose outer edges are those of the sample.
    assert (coarse["shape"], coarse["extents"]) == ([10, 10], [[-18.0, 18.0], [-18.0, 18.0]])
    assert coarse["scan"] == {"type": "XRF_FLY", "energy": 12.0, "dwell": 0.01}
    region = {"slow_range": [1.0, 2.0], "fast_range": (-3.0, -1.0)}
    plan = beamline["fine"](region, {"step": (0.25, 0.5), "dwell": 0.04}, md={"parent_uid": "u"})
    fine = run(beamline, plan)[0][1]
    assert (fine["purpose"], fine["parent_uid"]) == ("fine", "u")
    assert (fine["shape"], fine["scan"]["dwell"]) == ([4, 4], 0.04)
    assert fine["extents"] == [[1.125, 1.875], [-2.75, -1.25]]
    step = run(beamline, beamline["fine"](region, step=1.0, dwell=0.1, fly=False))
    assert [name for name, _ in step].count("event") == 2
    assert list((tmp_path / "data").glob("*.h5"))


def test_xanes_of_the_transmission_microscope(environment):
    beamline = load("sim_txm")
    documents = run(beamline, beamline["xanes"]([8300.0, 8350.0], exposure=0.01))
    start, stop = documents[0][1], documents[-1][1]
    assert start["beamline_id"] == "sim_txm"
    assert start["sample"] == {"name": "battery_smooth"}
    assert stop["num_events"] == {"dark": 5, "flat": 2, "primary": 2}


@pytest.mark.parametrize("profile", ["sim_xrf", "sim_txm"])
def test_the_sample_is_not_left_in_the_namespace(environment, profile):
    namespace = load(profile)
    assert not any(isinstance(value, XRFSample | XANESSample) for value in namespace.values())


def test_bad_parameters_name_themselves(environment):
    environment.setenv("INSCAN_SIM_SAMPLE", "cows")
    with pytest.raises(ValueError, match="cows"):
        load("sim_xrf")
    environment.setenv("INSCAN_SIM_SAMPLE", "nowhere/maps.npz")
    with pytest.raises(FileNotFoundError, match=r"maps\.npz"):
        load("sim_xrf")
    environment.setenv("INSCAN_SIM_SEED", "x")
    with pytest.raises(ValueError, match="INSCAN_SIM_SEED"):
        load("sim_txm")


@pytest.mark.parametrize("profile", ["sim_xrf", "sim_txm"])
def test_user_groups_name_what_exists(environment, profile):
    path = PROFILES / profile / "startup" / "user_group_permissions.yaml"
    groups = yaml.safe_load(path.read_text())["user_groups"]
    assert set(groups) == {"root", "primary"}
    namespace = load(profile)
    plans = [name.strip(":^$") for name in groups["primary"]["allowed_plans"]]
    connected = {"survey_and_fine", "until_precise", "inscan_rescan"}
    assert set(plans) - connected <= set(namespace)
    assert {"root", "primary"} <= set(groups)
