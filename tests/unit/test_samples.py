"""Samples: reproducible, within bounds, and where they say they are."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inscan.profiles.sample_families import FAMILIES
from inscan.profiles.samples import (
    NI_STATES,
    XRFSample,
    battery_particles,
    battery_xanes,
    cells,
    ni_energies_ev,
    siemens_star,
    training_maps,
    xanes_sample,
    xrf_sample,
)
from inscan.profiles.xanes_standards import absorption


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(16, 70), channels=st.integers(1, 6))
def test_training_maps_are_relative_concentrations(seed, n, channels):
    maps = training_maps(np.random.default_rng(seed), n, channels)
    assert maps.shape == (channels, n, n)
    assert maps.dtype == np.float32
    assert np.isfinite(maps).all() and maps.min() >= 0 and maps.max() <= 1
    again = training_maps(np.random.default_rng(seed), n, channels)
    np.testing.assert_array_equal(maps, again)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_every_family_has_structure_within_bounds(family):
    rng = np.random.default_rng(7)
    images = [family(rng, 64) for _ in range(12)]
    assert all(image.shape == (64, 64) and image.dtype == np.float32 for image in images)
    assert all(
        np.isfinite(image).all() and image.min() >= 0 and image.max() <= 1 for image in images
    )
    assert max(image.std() for image in images) > 0.05


def test_elements_share_some_structures_and_not_others():
    rng = np.random.default_rng(11)
    found = []
    for _ in range(40):
        maps = training_maps(rng, 48, 4).reshape(4, -1)
        maps = maps[maps.std(axis=1) > 1e-3]
        if len(maps) > 1:
            found.extend(np.abs(np.corrcoef(maps))[np.triu_indices(len(maps), 1)])
    found = np.array(found)
    assert (found > 0.6).mean() > 0.1
    assert (found < 0.2).mean() > 0.1


def test_training_maps_refuses_nonsense():
    with pytest.raises(ValueError, match="n=8"):
        training_maps(np.random.default_rng(0), 8, 2)


@pytest.mark.parametrize("draw", [cells, siemens_star, battery_particles])
def test_built_in_samples_are_reproducible_and_differ_by_seed(draw):
    one, same, other = draw(3, pixel_size=0.2), draw(3, pixel_size=0.2), draw(4, pixel_size=0.2)
    np.testing.assert_array_equal(one.maps, same.maps)
    assert not np.array_equal(one.maps, other.maps)
    assert one.maps.min() >= 0 and one.maps.dtype == np.float32
    assert one.field == ((-20.0, 20.0), (-20.0, 20.0)) or np.allclose(one.field, (-20, 20))


def test_inclusions_are_where_the_table_says():
    sample = cells(0)
    assert {spot.element for spot in sample.inclusions if not spot.decoy} == {"Fe_K", "Zn_K"}
    assert any(spot.decoy for spot in sample.inclusions)
    for spot in sample.inclusions:
        line = sample.elements.index(spot.element)
        at_centre = sample.rate(spot.slow, spot.fast)[line, 0]
        around = np.linspace(0, 2 * np.pi, 8)
        away = sample.rate(spot.slow + 1.5 * np.sin(around), spot.fast + 1.5 * np.cos(around))[line]
        assert at_centre > np.median(away) + 0.5 * spot.rate


def test_decoys_hold_no_trace_element():
    sample = cells(1)
    for spot in sample.inclusions:
        if spot.decoy:
            rates = dict(zip(sample.elements, sample.rate(spot.slow, spot.fast)[:, 0], strict=True))
            assert rates["Fe_K"] < 200 and rates["Zn_K"] < 400


def test_rate_is_linear_between_grid_points_and_zero_outside():
    maps = np.arange(12, dtype=np.float32).reshape(1, 3, 4)
    sample = XRFSample("ramp", ("Fe_K",), maps, 0.5, (10.0, 20.0))
    np.testing.assert_allclose(sample.rate(10.25, 20.75), [[2 + 1.5]])
    np.testing.assert_allclose(sample.rate([10.0, 11.0], [20.0, 21.5])[0], [0, 11])
    # Half a pixel beyond the outer centres still belongs to the sample, more does not.
    np.testing.assert_allclose(sample.rate([9.8, 9.7], [20.5, 20.5])[0], [1, 0])
    assert sample.field == ((9.75, 11.25), (19.75, 21.75))


@settings(max_examples=40, deadline=None)
@given(
    slow=st.floats(-30, 30),
    fast=st.floats(-30, 30),
)
def test_rates_stay_within_those_of_the_maps(slow, fast):
    sample = _STAR
    rates = sample.rate(slow, fast)[:, 0]
    inside = all(
        low <= at <= high for at, (low, high) in zip((slow, fast), sample.field, strict=True)
    )
    if inside:
        assert (rates >= sample.maps.min((1, 2)) * 0.999).all()
        assert (rates <= sample.maps.max((1, 2)) * 1.001).all()
    else:
        assert not rates.any()


_STAR = siemens_star(0, pixel_size=0.4)


def test_a_probe_blurs_and_keeps_what_is_there():
    sample = cells(0, pixel_size=0.2)
    seen = sample.seen(1.0)
    assert seen.maps.max() < sample.maps.max()
    np.testing.assert_allclose(seen.maps[2].sum(), sample.maps[2].sum(), rtol=0.02)
    assert sample.seen(0) is sample


@pytest.mark.parametrize(
    ("maps", "said"),
    [
        (np.zeros((2, 4, 4)), "2, 4, 4"),
        (np.zeros((1, 1, 4)), "at least"),
        (np.full((1, 4, 4), -1.0), "negative"),
        (np.full((1, 4, 4), np.nan), "finite"),
    ],
)
def test_a_sample_that_is_none_is_refused(maps, said):
    with pytest.raises(ValueError, match=said):
        XRFSample("bad", ("Fe_K",), maps.astype(np.float32), 0.1, (0.0, 0.0))


def test_samples_by_name():
    assert xrf_sample("siemens_star").name == "siemens_star"
    assert xanes_sample("battery_fine", size=32).name == "battery_fine"
    with pytest.raises(ValueError, match="cells, siemens_star, battery_particles"):
        xrf_sample("cell")
    with pytest.raises(ValueError, match="battery_smooth"):
        xanes_sample("cells")
    with pytest.raises(FileNotFoundError, match="no such file"):
        xrf_sample("maps.npz")


@pytest.mark.parametrize("chemistry", ["smooth", "fine", "random"])
def test_an_energy_stack_is_the_mixture_of_its_states(chemistry):
    sample = battery_xanes(1, chemistry=chemistry, size=64)
    there = sample.jump > 0
    assert 0.1 < there.mean() < 0.9
    np.testing.assert_allclose(sample.fractions.sum(0)[there], 1, atol=1e-5)
    assert not sample.fractions[:, ~there].any()
    energies = np.array([8250.0, 8347.0, 8450.0])
    density = sample.optical_density(energies)
    states = np.stack([absorption(state.name, energies) for state in sample.spectra])
    pixel = tuple(np.argwhere(there)[there.sum() // 2])
    expected = sample.jump[pixel] * (sample.fractions[:, *pixel] @ states)
    expected += sample.pre_edge[pixel] * (8333.0 / energies) ** 3
    np.testing.assert_allclose(density[:, *pixel], expected, rtol=1e-4)
    assert not density[:, ~there].any()


def test_edge_energy_rises_with_oxidation():
    half = []
    energies = np.arange(8330, 8360, 0.01)
    for state in NI_STATES:
        half.append(energies[np.argmax(state(energies) >= 0.5)])
    assert np.all(np.diff(half) > 1.0)
    sample = battery_xanes(0, size=64)
    edge = sample.edge_energy()
    assert np.array_equal(np.isfinite(edge), sample.jump > 0)
    assert half[0] - 0.1 <= np.nanmin(edge) and np.nanmax(edge) <= half[-1] + 0.1
    oxidised = sample.fractions[2] + 0.5 * sample.fractions[1]
    there = sample.jump > 0
    assert np.corrcoef(edge[there], oxidised[there])[0, 1] > 0.97


def test_chemistry_varies_over_the_length_it_is_named_after():
    def neighbours(chemistry):
        sample = battery_xanes(2, chemistry=chemistry, size=96)
        state = sample.fractions[1] + 2 * sample.fractions[-1]
        both = (sample.jump[:, :-1] > 0) & (sample.jump[:, 1:] > 0)
        return np.corrcoef(state[:, :-1][both], state[:, 1:][both])[0, 1]

    smooth, fine, random = (neighbours(name) for name in ("smooth", "fine", "random"))
    assert smooth > 0.95 > fine > 0.5 > 0.1 > abs(random)


def test_energies_cover_the_edge_and_rise():
    energies = ni_energies_ev(61)
    assert len(energies) == 61 and (np.diff(energies) > 0).all()
    assert ((energies > 8330) & (energies < 8365)).sum() >= 30
    with pytest.raises(ValueError, match="at least 12"):
        ni_energies_ev(8)
