"""Maps at several energies become a stack, or a line says what they disagree in."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inscan.callbacks.geometry import ScanGeometry
from inscan.callbacks.map_series import (
    SeriesError,
    incident_energy_ev,
    series_profile,
    stack_of_maps,
)
from inscan.callbacks.profile import load_profile
from inscan.callbacks.updates import Update

SHAPE = (5, 6)
ENERGIES = (7080.0, 7100.0, 7120.0, 7150.0)
RASTER = ScanGeometry(SHAPE, "sy", "sx", "um", "um", 0.0, 4.0, 0.0, 5.0, False)


def raster(**changed) -> ScanGeometry:
    return ScanGeometry.from_dict(RASTER.to_dict() | changed)


def one_map(
    energy: float | None, k: int = 0, level: float = 100.0, i0: float | None = None, **meta: Any
) -> Update:
    rng = np.random.default_rng(k)
    geometry = meta.pop("geometry", RASTER)
    shape = geometry.shape
    arrays: dict[str, Any] = {
        "counts": rng.poisson(level, (2, 2, *shape)).astype(np.float32),
        "exposure": rng.uniform(0.5, 1.5, (2, *shape)).astype(np.float32),
        "measured": np.ones(shape, bool),
        "position": geometry.positions(),
    }
    content = {
        "technique": "xrf",
        "profile": "srx",
        "stream": "stream0",
        "elements": ["Fe_K", "Zn_K"],
        "channels": [1, 2],
        "detector": "xs",
        "sample": {"name": "leaf"},
        "geometry": geometry.to_dict(),
        "incident_energy_ev": energy,
        "i0_reference": i0,
        "scan_id": 100 + k,
        "complete": True,
        "warnings": [],
    }
    return Update("final", f"uid-{k}", "stream0", content | meta, arrays)


def series(**meta: Any) -> list[Update]:
    return [one_map(energy, k, **meta) for k, energy in enumerate(ENERGIES)]


def rate(update: Update, element: int = 0) -> np.ndarray:
    counts, exposure = update.arrays["counts"][:, element], update.arrays["exposure"]
    return counts.sum(axis=0) / exposure.mean(axis=0)


def test_counts_over_exposure_by_energy():
    maps = series()
    found = stack_of_maps(maps, "Fe_K")
    assert (found.kind, found.run_uid) == ("final", "uid-0")
    np.testing.assert_allclose(found.arrays["signal"], [rate(m) for m in maps], rtol=1e-5)
    light = np.stack([m.arrays["exposure"].mean(axis=0) for m in maps])
    counts = np.stack([m.arrays["counts"][:, 0].sum(axis=0) for m in maps])
    np.testing.assert_allclose(found.arrays["variance"], counts / light**2, rtol=1e-5)
    assert found.arrays["measured"].all()
    meta = found.meta
    assert meta["energies_ev"] == list(ENERGIES)
    assert (meta["edge"], meta["quantity"], meta["technique"]) == ("Fe_K", "fluorescence", "txm")
    assert meta["edge_ev"] == pytest.approx(7112, abs=1)
    assert [one["run_uid"] for one in meta["series"]] == [f"uid-{k}" for k in range(4)]
    assert meta["complete"]
    assert meta["warnings"] == []
    json.dumps(meta, allow_nan=False)
    zinc = stack_of_maps(maps, "Zn_K")
    np.testing.assert_allclose(zinc.arrays["signal"][2], rate(maps[2], 1), rtol=1e-5)
    assert any("edge of Zn_K" in line for line in zinc.meta["warnings"])


@settings(deadline=None, max_examples=20)
@given(order=st.permutations(range(4)))
def test_the_order_of_the_runs_does_not_matter(order):
    maps = series()
    one, other = stack_of_maps(maps, "Fe_K"), stack_of_maps([maps[k] for k in order], "Fe_K")
    assert one.meta == other.meta
    assert (one.run_uid, one.stream) == (other.run_uid, other.stream)
    for name, array in one.arrays.items():
        assert array.tobytes() == other.arrays[name].tobytes()


def test_another_set_of_runs_is_another_stream():
    maps = series()
    assert stack_of_maps(maps[:3], "Fe_K").stream != stack_of_maps(maps, "Fe_K").stream
    assert stack_of_maps(maps, "Fe_K").stream != stack_of_maps(maps, "Zn_K").stream


def test_what_was_not_measured_is_masked():
    maps = series()
    maps[1].arrays["measured"][2, 3] = False
    maps[2].arrays["exposure"][:, 0, 0] = 0
    maps[3].arrays["exposure"][1, 1, 1] = 0
    found = stack_of_maps(maps, "Fe_K")
    expected = np.ones((4, *SHAPE), bool)
    expected[1, 2, 3] = expected[2, 0, 0] = False
    np.testing.assert_array_equal(found.arrays["measured"], expected)
    assert (found.arrays["signal"][~expected] == 0).all()
    # One channel of two: its own counts over its share of the exposure.
    counts, light = maps[3].arrays["counts"][0, 0, 1, 1], maps[3].arrays["exposure"][0, 1, 1]
    assert found.arrays["signal"][3, 1, 1] == pytest.approx(counts / (light / 2), rel=1e-5)


def test_a_pixel_without_counts_has_the_variance_of_one():
    maps = series()
    maps[0].arrays["counts"][:, 0, 1, 1] = 0
    found = stack_of_maps(maps, "Fe_K")
    light = maps[0].arrays["exposure"][:, 1, 1].mean()
    assert found.arrays["variance"][0, 1, 1] == pytest.approx(1 / light**2, rel=1e-5)


def test_background_is_taken_off_and_adds_to_the_variance():
    maps = series()
    for update in maps:
        update.arrays["background"] = np.full((2, 2, *SHAPE), 20.0, np.float32)
        update.arrays["background_variance"] = np.full((2, 2, *SHAPE), 5.0, np.float32)
    found = stack_of_maps(maps, "Fe_K")
    light = maps[0].arrays["exposure"].mean(axis=0)
    counts = maps[0].arrays["counts"][:, 0].sum(axis=0)
    np.testing.assert_allclose(found.arrays["signal"][0], (counts - 40) / light, rtol=1e-5)
    np.testing.assert_allclose(found.arrays["variance"][0], (counts + 10) / light**2, rtol=1e-5)


def test_all_maps_are_brought_to_one_i0():
    maps = [one_map(e, k, i0=1000.0 * (k + 1)) for k, e in enumerate(ENERGIES)]
    found = stack_of_maps(maps, "Fe_K")
    assert found.meta["i0_reference"] == 2500.0
    for k, update in enumerate(maps):
        expected = rate(update) * 2500.0 / (1000.0 * (k + 1))
        np.testing.assert_allclose(found.arrays["signal"][k], expected, rtol=1e-5)
    with pytest.raises(SeriesError, match="has no I0"):
        stack_of_maps([*maps[:3], one_map(7150.0, 3)], "Fe_K")


def test_maps_at_the_same_energy_are_added_up():
    maps = [*series(), one_map(ENERGIES[1], 4)]
    found = stack_of_maps(maps, "Fe_K")
    assert found.meta["energies_ev"] == list(ENERGIES)
    counts = sum(m.arrays["counts"][:, 0].sum(axis=0) for m in (maps[1], maps[4]))
    light = sum(m.arrays["exposure"].mean(axis=0) for m in (maps[1], maps[4]))
    np.testing.assert_allclose(found.arrays["signal"][1], counts / light, rtol=1e-5)
    assert any("same energy" in line for line in found.meta["warnings"])


def test_a_channel_that_dies_in_one_map_is_left_out_of_all():
    maps = series()
    maps[2].arrays["counts"][1] *= 0.05
    found = stack_of_maps(maps, "Fe_K")
    assert found.meta["channels"] == [1]
    counts, exposure = maps[0].arrays["counts"][0, 0], maps[0].arrays["exposure"][0]
    np.testing.assert_allclose(found.arrays["signal"][0], counts / exposure, rtol=1e-5)
    assert any("channels 2" in line for line in found.meta["warnings"])


def test_a_small_shift_is_said_and_a_large_one_refused():
    small, large = raster(fast_first=0.3, fast_last=5.3), raster(fast_first=0.8, fast_last=5.8)
    maps = series()
    said = stack_of_maps([*maps[:3], one_map(7150.0, 3, geometry=small)], "Fe_K")
    assert any("not regridded" in line for line in said.meta["warnings"])
    with pytest.raises(SeriesError, match=r"0\.8 pixels apart; maps are not regridded"):
        stack_of_maps([*maps[:3], one_map(7150.0, 3, geometry=large)], "Fe_K")
    maps[1].arrays["position"] = maps[1].arrays["position"] + 0.7
    with pytest.raises(SeriesError, match=r"0\.7 pixels apart"):
        stack_of_maps(maps, "Fe_K")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"sample": {"name": "root"}}, "disagree in sample"),
        ({"detector": "ge"}, "disagree in detector"),
        ({"channels": [1, 3]}, "disagree in channels"),
        ({"profile": "sim_xrf"}, "disagree in profile"),
        ({"geometry": raster(shape=[5, 7])}, "disagree in shape"),
        ({"geometry": raster(fast_motor="sz")}, "disagree in fast_motor"),
        ({"elements": ["Zn_K", "Cu_K"]}, "has no Fe_K"),
        (
            {"elements": ["Zn_K", "Cu_K"], "refused": {"Fe_K": "above the incident energy"}},
            "series_profile",
        ),
        ({"incident_energy_ev": None}, "xrf.incident_energy"),
        ({"incident_energy_ev": float("nan")}, "xrf.incident_energy"),
    ],
)
def test_runs_that_disagree_are_refused_in_one_line(changed, said):
    other = one_map(7150.0, 3, **changed) if "geometry" in changed else one_map(7150.0, 3)
    other.meta.update({k: v for k, v in changed.items() if k != "geometry"})
    with pytest.raises(SeriesError, match=said) as caught:
        stack_of_maps([*series()[:3], other], "Fe_K")
    assert "\n" not in str(caught.value)
    assert "103" in str(caught.value)


def test_what_makes_no_series():
    maps = series()
    for given_maps, line, said in (
        (maps[:1], "Fe_K", "at least two"),
        ([maps[0], maps[0]], "Fe_K", "more than once"),
        ([one_map(7100.0, 0), one_map(7100.0, 1)], "Fe_K", "at least two energies"),
        (maps, "Iron", "not a line"),
        ([*maps, Update("rejected", "x", "s", {"reason": "no dark"}, {})], "Fe_K", "no dark"),
    ):
        with pytest.raises(SeriesError, match=said):
            stack_of_maps(given_maps, line)
    with pytest.raises(SeriesError, match="3 energies for 4 runs"):
        stack_of_maps(maps, "Fe_K", ENERGIES[:3])


def test_energies_may_come_from_the_start_documents():
    profile = load_profile("sim_xrf")
    start = {"uid": "x", "scan": {"energy": 7.15}}
    assert incident_energy_ev(start, profile) == pytest.approx(7150.0)
    open_to_all = series_profile(profile)
    assert incident_energy_ev(start, open_to_all) is None
    maps = [one_map(None, k) for k in range(4)]
    found = stack_of_maps(maps, "Fe_K", ENERGIES)
    assert found.meta["energies_ev"] == list(ENERGIES)
    with pytest.raises(SeriesError, match="no maps"):
        series_profile(load_profile("sim_txm"))
