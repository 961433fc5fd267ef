"""What the unit tests share: documents spoiled at random."""

import copy
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

import pytest

JUNK = [
    None,
    "",
    "x",
    -1,
    0,
    10**30,
    float("nan"),
    float("inf"),
    [],
    [[1], [2, 3]],
    {},
    {"a": 1},
    True,
]


def _spoiled(doc: Mapping[str, Any], order: Random) -> dict[str, Any]:
    doc = copy.deepcopy(dict(doc))
    inner: dict[Any, Any] = doc
    while True:
        key = order.choice(sorted(inner, key=str))
        if isinstance(inner[key], dict) and inner[key] and order.random() < 0.75:
            inner = inner[key]
            continue
        if order.random() < 0.3:
            del inner[key]
        else:
            inner[key] = order.choice(JUNK)
        return doc


@pytest.fixture(scope="session")
def spoiled() -> Callable[[Mapping[str, Any], Random], dict[str, Any]]:
    """A copy of a document with one value, anywhere inside, replaced by junk or taken out."""
    return _spoiled
