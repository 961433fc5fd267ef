"""Startup folders: one namespace, in the order of names, as IPython and queueserver execute them."""

import inspect
from pathlib import Path
from typing import Any

import pydantic
import pytest
import yaml
from bluesky_queueserver.manager import profile_ops

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


def test_few_energies_and_those_that_are_added(environment):
    beamline = load("sim_txm")
    start = run(beamline, beamline["survey"](count=12))[0][1]
    assert (start["purpose"], start["num_eng"], start["exposure_time"]) == ("survey", 12, 0.05)
    plan = beamline["more_energies"]([8345.0, 8350.5], {"exposure_factor": 2.0}, md={"region": "a"})
    start = run(beamline, plan)[0][1]
    assert (start["purpose"], start["region"]) == ("fine", "a")
    assert (start["eng_list"], start["exposure_time"]) == ([8.345, 8.3505], 0.1)
    assert start["sample"] == {"name": "battery_smooth"}


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
    connected = {"survey_and_fine", "until_precise", "inscan_rescan", "survey_and_energies"}
    assert set(plans) - connected <= set(namespace)
    assert {"root", "primary"} <= set(groups)


@pytest.fixture
def whole(environment):
    """The fluorescence microscope with all its files; nobody is at the service's address."""
    environment.setenv("INSCAN_SERVICE", "tcp://127.0.0.1:1")
    namespace = load("sim_xrf", stop_before="99")
    yield namespace
    namespace["inscan"].close(0.0)


def test_queueserver_allows_the_plans_with_their_arguments(whole):
    plans, devices, *_ = profile_ops.existing_plans_and_devices_from_nspace(nspace=whole)
    file = PROFILES / "sim_xrf" / "startup" / "user_group_permissions.yaml"
    permissions = profile_ops.load_user_group_permissions(str(file))
    allowed, allowed_devices = profile_ops.load_allowed_plans_and_devices(
        existing_plans=plans, existing_devices=devices, user_group_permissions=permissions
    )
    allowed, allowed_devices = allowed["primary"], allowed_devices["primary"]
    assert set(allowed) == {"survey", "fine", "survey_and_fine", "until_precise", "inscan_rescan"}
    assert {"shutter", "ring_current", "sample_x"} <= set(allowed_devices)
    for name, kwargs, good in (
        ("inscan_rescan", {"proposal": "p1"}, True),
        ("inscan_rescan", {}, False),
        ("inscan_rescan", {"proposal": 3}, False),
        ("until_precise", {"precision": {"Fe_K": 0.05}, "budget_s": 60}, True),
        ("until_precise", {"precision": {"Fe_K": "fine"}}, False),
        ("survey_and_fine", {"approval_timeout": 3600.0}, True),
    ):
        plan = {"name": name, "kwargs": kwargs, "item_type": "plan", "user_group": "primary"}
        ok, why = profile_ops.validate_plan(
            plan, allowed_plans=allowed, allowed_devices=allowed_devices
        )
        assert ok == good, (name, kwargs, why)


def test_a_worker_decodes_arguments_by_the_annotations(whole):
    """As blueapi does: a model of the parameters' types, which takes JSON and knows the return type."""
    for name, arguments in (
        ("survey", {"step": 1, "md": {"note": "x"}}),
        ("fine", {"region": {"slow_range": [0, 1], "fast_range": [0, 1]}}),
        ("survey_and_fine", {"timeout": 10}),
        ("until_precise", {"precision": {"Fe_K": 0.1}}),
        ("inscan_rescan", {"proposal": "p1"}),
    ):
        signature = inspect.signature(whole[name])
        assert "Generator" in str(signature.return_annotation)
        adapters = {
            parameter.name: pydantic.TypeAdapter(parameter.annotation)
            for parameter in signature.parameters.values()
        }
        for parameter in signature.parameters.values():
            if parameter.default is not inspect.Parameter.empty:
                adapters[parameter.name].validate_python(parameter.default)
        decoded = {key: adapters[key].validate_python(value) for key, value in arguments.items()}
        generator: Any = whole[name](**decoded)
        assert inspect.isgenerator(generator)
        generator.close()
