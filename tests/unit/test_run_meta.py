"""Numbers of start documents."""

import pytest

from inscan.callbacks.profile import load_profile
from inscan.callbacks.run_meta import looked_for, number_at


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (0.5, 0.5),
        (10**30, 1e30),
        (10**400, None),
        (float("nan"), None),
        (True, None),
        ("0.5", None),
        ([0.5], None),
    ],
    ids=["number", "large", "beyond", "nan", "bool", "text", "list"],
)
def test_a_number_is_one_that_a_float_holds(value: object, number: float | None) -> None:
    assert number_at({"scan": {"dwell": value}}, "scan.dwell") == number


def test_a_survey_may_ask_for_a_precision_of_its_own() -> None:
    profile = load_profile("sim_xrf")
    assert looked_for({}, profile)["precision"] == dict(profile.rescan.precision)
    assert looked_for({}, profile)["targets"] == ["precision", "spots"]
    wish = {"inscan": {"precision": {"Fe_K": 0.1}}}
    assert looked_for(wish, profile)["targets"] == ["precision"]
    asked = {"Fe_K": 0.1, "Zn_K": 2.0, "Ca_K": True, "S_K": "0.1", "K_K": float("nan")}
    assert looked_for({"inscan": {"precision": asked}}, profile)["precision"] == {"Fe_K": 0.1}
