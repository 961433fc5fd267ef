"""Numbers of start documents."""

import pytest

from inscan.callbacks.run_meta import number_at


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
