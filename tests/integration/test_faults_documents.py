"""Runs with faults of every kind, mixed, through a whole service: each ends once, and the service is unharmed."""

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
through: Any = importlib.import_module("document_service")
sys.path.remove(str(BENCHMARKS))

# Lost, repeated and foreign documents, ends of every kind, names, shapes and values that no machine has.
FAULTS = (
    "every document twice",
    "no start document",
    "no stop",
    "a failed run",
    "the stop of another run",
    "a stop and no events",
    "numbers beyond 64 bits in the start document",
    "a map of NaN rows",
    "a map of 2.6e8 pixels, more than a spool holds",
    "frames declared as 16384 x 16384",
    "extents that are NaN, infinite or beyond numbers",
    "counts that are 1e300",
    "a map of one pixel",
    "a single energy (T = 1)",
)


@pytest.mark.timeout(400)
def test_spoiled_runs_end_once_each(tmp_path: Path) -> None:
    found = through.passage(tmp_path, 2, len(FAULTS), pause_s=0.0, only=FAULTS)
    assert found.problems == []
    assert (found.ends.runs, found.ends.lost, found.ends.duplicated) == (len(FAULTS), 0, 0)
    assert found.ends.results + found.ends.failures == len(FAULTS)
    assert found.ends.results >= 6 and found.ends.failures >= 6
