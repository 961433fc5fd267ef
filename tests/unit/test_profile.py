"""A profile that is wrong says where; a profile that is right says everything."""

import json

import numpy as np
import pytest
import yaml

from inscan.callbacks.profile import (
    BeamlineProfile,
    ProfileError,
    explain_model,
    load_profile,
    matches,
    profile_schema,
    shipped_profiles,
)
from inscan.callbacks.rescan_section import Rescan, SoftLimit
from inscan.callbacks.units import convert, scale
from inscan.profiles.xanes_standards import STANDARDS, absorption

SHIPPED = sorted(shipped_profiles())


def content(name="sim_xrf"):
    return yaml.safe_load(shipped_profiles()[name].read_text())


def written(tmp_path, mapping):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(mapping))
    return path


def changed(mapping, path, value):
    *parents, last = path.split(".")
    inner = mapping
    for part in parents:
        inner = inner[part]
    inner[last] = value
    return mapping


def test_the_simulated_beamlines_are_shipped():
    assert {"sim_xrf", "sim_txm"} <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_profile_loads_by_name_and_by_file(name):
    profile = load_profile(name)
    assert profile.name == name
    assert load_profile(shipped_profiles()[name]) == profile
    as_json = profile.model_dump(mode="json") | {"folder": profile.folder}
    assert BeamlineProfile.model_validate(as_json) == profile
    profile.references()


@pytest.mark.parametrize(
    ("path", "key", "near"),
    [
        ("", "tecnique", "technique"),
        ("", "folders", "geometry"),
        ("rescan", "max_aera", "max_area"),
        ("rescan.soft_limits.sample_x", "hihg", "high"),
        ("xrf.step", "live_tim", "live_time"),
        ("xrf.elements", "resolution", "resolution_ev"),
        ("method", "snapshot_row", "snapshot_rows"),
    ],
)
def test_an_unknown_key_is_named_with_the_closest_known_one(tmp_path, path, key, near):
    dotted = f"{path}.{key}" if path else key
    file = written(tmp_path, changed(content(), dotted, 1))
    with pytest.raises(ProfileError) as error:
        load_profile(file)
    assert str(file) in str(error.value)
    assert f"unknown key '{dotted}'" in str(error.value)
    assert near in str(error.value)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("xrf.elements.lines", ["Fx_K"], "did you mean F_K or Fr_K or Fe_K"),
        ("xrf.elements.lines", ["Fe_K", "Fe_Ka"], "named twice"),
        ("rescan.elements", ["iron"], "not a line like Fe_K"),
        ("rescan.mode", "always", "'off', 'suggest', 'approve' or 'auto'"),
        ("rescan.max_area", -1, "greater than or equal to 0"),
        ("rescan.soft_limits.sample_x.low", 900, "is not below high"),
        ("xrf.elements.source", "spectra", "'mcaroi' or 'spectrum'"),
        ("xrf.elements.source", "spectrum", "name at least one line"),
        ("xrf.step.mcaroi", None, "step.mcaroi is not given"),
        ("xrf.cube", {}, "cube keeps spectra"),
        ("method.name", "spectral", "give both"),
        ("xrf.step.mcaroi", "xs_{chanel}", "{channel}"),
        ("xrf.fly.mcaroi", "xs_{channel:zz}", "cannot be filled"),
        ("data_roots", ["data"], "not an absolute folder"),
        ("match", {}, "at least 1 item"),
        ("technique", "txm", "xrf is given"),
        ("method.snapshot_rows", 1.5, "integer"),
        ("method", {"name": "superres", "fit_seconds": 5}, "superres has neither"),
        ("method", {"name": "n2n", "parameters": {"fit_steps": 5}}, "a key of method itself"),
        ("method", {"name": "spectral", "weights": "a.safetensors"}, "weights are for"),
        ("method.fit_from", "yesterday", "'last_run' or 'shipped'"),
        ("rescan.targets", ["holes"], "'spots', 'doubt', 'chemistry' or 'precision'"),
        ("folder", "/tmp", "unknown key 'folder'"),
    ],
)
def test_a_wrong_value_says_where_and_what(tmp_path, path, value, said):
    file = written(tmp_path, changed(content(), path, value))
    with pytest.raises(ProfileError) as error:
        load_profile(file)
    assert str(file) in str(error.value)
    assert said in str(error.value)


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "a: [1\n", "plain words", "1: 2\n"])
def test_a_file_that_is_no_profile(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ProfileError, match="mine.yaml"):
        load_profile(path)


def test_a_profile_that_is_not_there_suggests_one_that_is():
    with pytest.raises(FileNotFoundError, match="did you mean sim_xrf"):
        load_profile("sim_xfr")


def test_rescans_are_suggested_unless_the_profile_says_more():
    rescan = Rescan()
    assert (rescan.mode, rescan.max_area, rescan.max_time) == ("suggest", 0, 0)
    assert dict(rescan.soft_limits) == {}
    assert load_profile("sim_xrf").rescan.mode == "auto"


def test_matching_compares_every_key_and_reaches_inside():
    profile = load_profile("sim_txm")
    start = {"beamline_id": "sim_txm", "scan": {"type": "XANES_STACK"}}
    assert matches(profile, start)
    assert not matches(profile, start | {"scan": {"type": "COUNT"}})
    assert not matches(profile, start | {"scan": "XANES_STACK"})
    assert not matches(profile, {"beamline_id": "sim_txm"})
    several = profile.model_copy(update={"match": {"scan.type": ("A", "XANES_STACK")}})
    assert matches(several, start)


def test_every_key_is_explained():
    text = explain_model()
    for part in (BeamlineProfile, Rescan, SoftLimit):
        for name, field in part.model_fields.items():
            if not field.exclude:
                assert field.description, name
                assert f"{name} (" in text
    for words in ("rescan.soft_limits.<name>.low (float, required)", "rescan.mode (off|suggest|"):
        assert words in text
    schema = profile_schema()
    assert "folder" not in json.dumps(schema["required"])
    assert schema["additionalProperties"] is False
    assert schema["$defs"]["Rescan"]["properties"]["mode"]["default"] == "suggest"


def test_the_standards_of_the_simulated_microscope_are_the_samples_own_spectra():
    references = load_profile("sim_txm").references()
    assert [reference.name for reference in references] == list(STANDARDS)
    for reference in references:
        energies = np.linspace(8250, 8500, 101)
        np.testing.assert_allclose(
            reference.at(energies), absorption(reference.name, energies), atol=3e-3
        )
        with pytest.raises(ValueError, match="covers 8200.0 to 8700.0 eV"):
            reference.at([8100.0, 8300.0])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("energy,A\n", "at least two lines"),
        ("energy,A\n1,2\n3,x\n", "must be a number"),
        ("energy,A\n3,2\n1,2\n", "rise"),
        ("energy,A\n1,2\n2\n", "number"),
        ("energy,A\n1,nan\n2,3\n", "finite"),
    ],
)
def test_a_table_of_standards_that_is_wrong_says_so(tmp_path, text, said):
    (tmp_path / "ni_standards.csv").write_text(text)
    profile = load_profile(written(tmp_path, content("sim_txm")))
    with pytest.raises(ValueError, match=said):
        profile.references()


def test_units_of_soft_limits_convert():
    assert SoftLimit(low=-0.5, high=0.5, units="mm").in_units("um") == (-500.0, 500.0)
    assert convert(8.333, "keV", "eV") == 8333.0
    assert scale("um", "um") == scale("deg", "deg") == 1.0
    for source, target in (("um", "eV"), ("", "um"), ("deg", "um")):
        with pytest.raises(ValueError, match="cannot convert"):
            scale(source, target)


def test_a_bare_off_switches_rescans_off(tmp_path):
    """YAML takes it for false; the word that forbids motion must not be the one that cannot be written."""
    text = shipped_profiles()["sim_xrf"].read_text(encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(text.replace("mode: auto", "mode: off"), encoding="utf-8")
    assert load_profile(tmp_path / "mine.yaml").rescan.mode == "off"
