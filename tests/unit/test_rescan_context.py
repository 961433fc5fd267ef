"""The state of a beamline: what is kept of it, from start documents and the baseline, and when it has changed."""

import math
from typing import Any

import numpy as np
import pytest
from event_model import compose_run

from inscan.callbacks.assembly import open_assembler
from inscan.callbacks.baseline import Baseline
from inscan.callbacks.profile import load_profile
from inscan.callbacks.rescan_section import Rescan
from inscan.service.rescan_context import context_changes, context_of


def test_a_start_document_comes_before_the_baseline() -> None:
    start = {"scan": {"energy": 12.0}, "sample": {"name": "cells"}}
    paths = ("scan.energy", "sample", "theta", "detector", "sample_z")
    found = context_of(paths, start, {"theta": 0.5, "scan.energy": 7.0, "sample_z": None})
    assert found == {"scan.energy": 12.0, "sample": {"name": "cells"}, "theta": 0.5}


@pytest.mark.parametrize(
    ("then", "now", "changed"),
    [
        (12.0, 12.0 + 1e-7, False),
        (12.0, 12.0001, True),
        (0.0, 1e-5, True),
        (1, 1.0, False),
        (1, True, True),
        ({"x": 1.0, "y": 2.0}, {"x": 1.0, "y": 2.0 + 1e-9}, False),
        ({"x": 1.0, "y": 2.0}, {"x": 1.0, "y": 2.1}, True),
        ({"x": 1.0}, {"x": 1.0, "y": 2.0}, True),
        ([1.0, "a"], [1.0, "a"], False),
        ([1.0, "a"], [1.0], True),
        ("cells", "cells", False),
        ("cells", {"name": "cells"}, True),
        (1.0, math.nan, True),
        (1.0, "1.0", True),
        (10**400, 1.0, True),
    ],
)
def test_what_counts_as_the_same(then: Any, now: Any, changed: bool) -> None:
    changes = context_changes(Rescan(), {"theta": then, "only": 1}, {"theta": now, "other": 2})
    assert [one.rule for one in changes] == (["state_changed"] if changed else [])


def test_a_tolerance_is_of_its_path_alone() -> None:
    rules = Rescan.model_validate({"tolerance": {"theta": 0.5, "coarse": 2.0}})
    then = {"theta": 10.0, "coarse": {"x": 0.0}, "sample_z": 1.0}
    assert context_changes(rules, then, {"theta": 10.4, "coarse": {"x": -1.9}}) == []
    (change,) = context_changes(rules, then, {"theta": 9.4, "sample_z": 1.0})
    assert (change.limit, change.value) == (10.0, 9.4)
    assert change.text == (
        "theta was 10.0 when this was proposed and is 9.4 now; it may differ by 0.5"
    )
    assert len(context_changes(rules, then, {"sample_z": 1.4})) == 1


def test_the_latest_reading_of_the_baseline_is_kept_and_only_what_is_small() -> None:
    kept = Baseline(["theta", "sample_z", "note", "image", "gone"])
    kept.event({"seq_num": 2, "data": {"theta": 2.0, "ring": 500.0, "note": "x" * 300}})
    kept.event({"seq_num": 1, "data": {"theta": 1.0, "sample_z": np.float64(3.0)}})
    kept.event({"seq_num": 3, "data": {"image": np.zeros((9, 9)), "gone": math.nan}})
    assert kept.readings == {"theta": 2.0, "sample_z": 3.0}


def documents(theta: list[float], *, page: bool = False) -> list[tuple[str, Any]]:
    """A map of one pixel, with a baseline before and after it."""
    run = compose_run(
        metadata={
            "beamline_id": "sim_xrf",
            "shape": [1, 1],
            "extents": [[0.0, 0.0], [0.0, 0.0]],
            "snaking": [False, False],
            "motors": ["sample_y", "sample_x"],
            "scan": {"type": "XRF_STEP", "energy": 12.0, "dwell": 0.1},
        }
    )
    number = {"dtype": "number", "shape": [], "source": "sim"}
    before = run.compose_descriptor(name="baseline", data_keys={"theta": number, "ring": number})
    names = ("sclr_i0", "xs_channel01_live_time", "xs_channel01_mcaroi01_total_rbv")
    motors = {name: {**number, "units": "um"} for name in ("sample_x", "sample_y")}
    setting = {"xs_mcaroi01_name": "Fe_K"}
    primary = run.compose_descriptor(
        name="primary",
        data_keys={**dict.fromkeys(names, number), **motors},
        configuration={
            "xs": {
                "data": setting,
                "timestamps": dict.fromkeys(setting, 0.0),
                "data_keys": {"xs_mcaroi01_name": {**number, "dtype": "string"}},
            }
        },
    )

    def event(stream: Any, data: dict[str, float]) -> tuple[str, Any]:
        return "event", stream.compose_event(data=data, timestamps=dict.fromkeys(data, 1.0))

    found = [("start", run.start_doc), ("descriptor", before.descriptor_doc)]
    found += [event(before, {"theta": theta[0], "ring": 500.0})]
    found += [("descriptor", primary.descriptor_doc)]
    found += [event(primary, {**dict.fromkeys(names, 5.0), "sample_x": 0.0, "sample_y": 0.0})]
    found += [event(before, {"theta": one, "ring": 499.0}) for one in theta[1:]]
    return [*found, ("stop", {**run.compose_stop(), "time": 77.5})]


@pytest.mark.parametrize("late", [False, True])
def test_the_baseline_of_a_run_reaches_whoever_proposes(late: bool) -> None:
    docs = documents([1.0, 1.5])
    if late:
        docs = [docs[0], docs[2], *docs[3:5], docs[1], *docs[5:]]  # the event before its descriptor
    assemble = open_assembler(docs[0][1], [load_profile("sim_xrf")])
    updates = [update for name, doc in docs for update in assemble(name, doc)]
    assert updates[-1].kind == "final"
    assert updates[-1].meta["baseline"] == {"theta": 1.5}, "only what the profile names"
    assert updates[-1].meta["stop_time"] == 77.5


def test_a_run_without_a_baseline_has_none() -> None:
    docs = [one for one in documents([1.0]) if "theta" not in str(one[1])]
    assemble = open_assembler(docs[0][1], [load_profile("sim_xrf")])
    updates = [update for name, doc in docs for update in assemble(name, doc)]
    assert updates[-1].kind == "final"
    assert "baseline" not in updates[-1].meta
