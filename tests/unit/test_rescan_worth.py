"""What a region is worth: information in nats, per second and per dose; and how long its line needs."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inscan.service.rescan_worth import Light, light_of, wanted_of, worth_of

BOX = {"box": [0, 4, 0, 5], "score": 40.0, "target": "spots", "element_name": "Fe_K"}


def lit(signal: float, background: float, **more) -> Light:
    return light_of(
        {**BOX, "light": {"Fe_K": signal + background}, "background": {"Fe_K": background}, **more}
    )


def test_information_about_a_mean_is_what_its_entropy_drops_by() -> None:
    light = lit(4.0, 3.0)
    gained = light.information(pixels=12.0, per_pixel=1.0, dose=3.0)
    assert gained == pytest.approx(12 * math.log(light.sigma / light.sigma_after(3.0)))


def test_the_fisher_information_is_that_of_poisson_counts() -> None:
    signal, background = 40.0, 25.0
    seen = np.random.default_rng(5).poisson(signal + background, 200_000) - background
    light = lit(signal, background)
    assert 1 / light.fisher == pytest.approx(np.var(np.asarray(seen)) / signal**2, rel=0.02)
    assert light.sigma == pytest.approx(np.std(np.asarray(seen)) / signal, rel=0.01)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.floats(0.1, 1e4), st.floats(0, 1e4), st.floats(0.01, 100), st.floats(1, 64))
def test_more_light_dose_and_pixels_tell_more(signal, background, dose, parts) -> None:
    here = {"pixels": 10.0, "per_pixel": parts, "dose": dose}
    told = lit(signal, background, relative_sigma={"Fe_K": 0.3}).information(**here)
    assert told >= 0
    brighter = lit(2 * signal, background, relative_sigma={"Fe_K": 0.3})
    assert brighter.information(**here) > told
    assert lit(signal, background + 5, relative_sigma={"Fe_K": 0.3}).information(**here) < told
    same = lit(signal, background, relative_sigma={"Fe_K": 0.3})
    assert same.information(**{**here, "dose": 2 * dose}) > told
    assert same.information(**{**here, "pixels": 20.0}) == pytest.approx(2 * told)
    assert same.information(**{**here, "dose": 0.0}) == 0


def test_worth_falls_with_time_and_with_the_dose_that_a_place_then_has() -> None:
    assert worth_of(100.0, 10.0, 1.0) == pytest.approx(5.0)
    assert worth_of(100.0, 20.0, 1.0) == pytest.approx(2.5)
    assert worth_of(100.0, 10.0, 3.0) == pytest.approx(2.5)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.floats(0.5, 1e4), st.floats(0, 1e4), st.floats(0.001, 1), st.floats(0.001, 1))
def test_the_dose_that_a_precision_needs_reaches_it(signal, background, sigma, wanted) -> None:
    light = lit(signal, background, relative_sigma={"Fe_K": sigma})
    dose = light.dose_for(wanted)
    assert light.sigma_after(dose) == pytest.approx(min(sigma, wanted), rel=1e-6)
    assert (dose == 0) == (sigma <= wanted)


def test_the_line_is_the_regions_own_else_the_worst_known_or_the_brightest() -> None:
    known = {
        "light": {"Fe_K": 50.0, "Zn_K": 9.0, "Ca_K": 400.0},
        "background": {"Fe_K": 10.0, "Zn_K": 4.0, "Ca_K": 390.0},
        "relative_sigma": {"Fe_K": 0.1, "Zn_K": 0.5, "Ca_K": 0.6},
    }
    assert light_of({**BOX, **known}).line == "Fe_K"
    assert light_of({**BOX, **known, "element_name": "doubt", "target": "doubt"}).line == "Ca_K"
    assert light_of({**BOX, **known, "element_name": ""}).line == "Fe_K", "the brightest"
    joined = light_of({**BOX, **known, "element_name": "Fe_K+Zn_K"})
    assert (joined.line, joined.signal, joined.background) == ("Fe_K+Zn_K", 45.0, 14.0)
    short = {**BOX, **known, "element_name": "", "target": "precision", "wanted": {"Zn_K": 0.1}}
    assert light_of(short).line == "Zn_K"


def test_without_counts_the_uncertainty_tells_and_without_that_the_score() -> None:
    bare = {**BOX, "relative_sigma": {"Fe_K": 0.2}}
    assert (light_of(bare).signal, light_of(bare).fisher) == (None, pytest.approx(25.0))
    # A composite of five survey doses knows that much from five times the light.
    assert light_of(bare, doses=5.0).fisher == pytest.approx(5.0)
    assert light_of(BOX).fisher == pytest.approx(2 * 40 / 20)
    assert light_of({**BOX, "target": "doubt"}).fisher == 1.0


def test_what_is_asked_for_of_a_region_is_its_own_else_that_of_its_line() -> None:
    asked = {"Fe_K": 0.1, "Zn_K": 0.2}
    assert wanted_of(BOX, asked, "Fe_K") == {"Fe_K": 0.1}
    assert wanted_of(BOX, asked, "Ca_K") == {}
    assert wanted_of({**BOX, "wanted": {"Zn_K": 0.05}}, asked, "Fe_K") == {"Zn_K": 0.05}
    assert wanted_of({**BOX, "wanted": {"Zn_K": -1}}, {}, "Fe_K") == {}


junk = st.none() | st.text(max_size=3) | st.floats() | st.booleans() | st.integers(-9, 10**30)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.dictionaries(st.sampled_from(["Fe_K", "Zn_K"]), junk) | junk,
    st.dictionaries(st.sampled_from(["Fe_K", "Zn_K"]), junk) | junk,
    st.dictionaries(st.sampled_from(["Fe_K", "Zn_K"]), junk) | junk,
    st.sampled_from(["Fe_K", "", "+", "doubt", "Fe_K+Zn_K"]),
    st.floats(0, 1e300),
)
def test_whatever_a_worker_says_gives_a_finite_worth(light, under, sigma, name, score) -> None:
    found = light_of(
        {
            **BOX,
            "light": light,
            "background": under,
            "relative_sigma": sigma,
            "element_name": name,
            "score": score,
        }
    )
    told = found.information(pixels=20.0, per_pixel=16.0, dose=8.0)
    assert math.isfinite(told) and told >= 0
    assert math.isfinite(found.dose_for(0.1)) and found.sigma_after(8.0) > 0
