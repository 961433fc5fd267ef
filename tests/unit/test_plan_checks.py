"""What a check asks for, and what it refuses."""

from typing import Any

import numpy as np
import pytest
from bluesky import RunEngine
from bluesky.utils import Msg
from ophyd import Signal

from inscan.callbacks.plan_checks import Check, read_checks, read_context


@pytest.mark.parametrize(
    ("limits", "value", "said"),
    [
        ({"low": 1, "high": 2}, 1.5, ""),
        ({"low": 1, "high": 2}, 2, ""),
        ({"low": 1, "high": 2}, 2.1, "is 2.1, 1 to 2 is needed"),
        ({"low": 1}, 0.9, "at least 1 is needed"),
        ({"high": 1}, float("nan"), "at most 1 is needed"),
        ({"low": 0}, True, "at least 0"),
        ({"low": 0}, "open", "is 'open', at least 0"),
        ({"low": 0}, None, "is None"),
        ({"equals": "Open"}, "Open", ""),
        ({"equals": "Open"}, "Closed", "'Open' is needed (the shutter is open)"),
        ({"equals": 0}, 0, ""),
    ],
)
def test_a_value_is_allowed_or_refused_in_words(limits, value, said):
    refusal = Check(Signal(name="s"), words="the shutter is open", **limits).refusal(value)
    assert said in refusal and bool(refusal) == bool(said)


@pytest.mark.parametrize("limits", [{}, {"low": 1, "equals": 1}, {"low": 2, "high": 1}])
def test_a_check_that_asks_for_nothing_is_an_error(limits):
    with pytest.raises(ValueError, match="check of s"):
        Check(Signal(name="s"), **limits)


class Broken:
    name = "broken"
    parent = None

    def read(self) -> Any:
        raise TimeoutError("no answer from the gateway")

    def describe(self) -> dict[str, Any]:
        return {}


def test_what_cannot_be_read_is_refused():
    several: Any = Signal(name="several")
    no_signal: Any = Broken()
    found: list[str] = []

    def plan():
        for check in (
            Check(no_signal, low=0),
            Check(several, low=0, key="several_z"),
            Check(Signal(name="array", value=np.zeros(3)), equals=0),
        ):
            found.append((yield from read_checks([check])))

    RunEngine({}, context_managers=[])(plan())
    assert "TimeoutError: no answer from the gateway" in found[0]
    assert "it reads several, not 'several_z'" in found[1]
    assert found[2].startswith("check: array could not be read")


def test_a_reading_that_a_pause_has_lost_is_asked_for_again():
    plan = read_context({"z": Signal(name="z")})
    assert next(plan).command == "read"
    assert plan.send(None).command == "read"
    with pytest.raises(StopIteration) as caught:
        plan.send({"z": {"value": np.float64(2.5)}})
    assert caught.value.value == {"z": 2.5} and type(caught.value.value["z"]) is float
    plan = read_checks([Check(Signal(name="z"), low=0)])
    messages: list[Msg] = [next(plan)]
    with pytest.raises(StopIteration) as caught:
        while True:
            messages.append(plan.send(None))
    assert len(messages) == 3 and "could not be read" in caught.value.value
