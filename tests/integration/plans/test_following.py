"""The sample has slipped since the survey: the fine maps follow it, and are one estimate with the survey."""

import numpy as np
import pytest

from inscan.callbacks.plans import measure_proposal
from inscan.profiles.stage_drift import StageDrift


def test_regions_follow_the_sample(microscope, first):
    (proposal,) = first["proposals"]
    assert [region["label"] for region in proposal["regions"]] == ["1-Fe_K", "2-Fe_K"]
    plan = measure_proposal(
        microscope.names["inscan"],
        proposal,
        microscope.names["fine"],
        composite=True,
        timeout=60.0,
    )
    done = microscope.run(plan)
    assert done.state == "done" and done.lost == "", done.notes
    slipped = StageDrift(slip=0.4, seed=0)
    for _ in range(2):
        slipped.begin_run()
    assert done.shift == pytest.approx(slipped.offset, abs=0.12)
    unmoved, moved = microscope.starts[-2:]
    assert (unmoved["region"], moved["region"]) == ("1-Fe_K", "2-Fe_K")
    shifts = [
        np.subtract(start["extents"], region["extents"])[:, 0]
        for start, region in zip((unmoved, moved), proposal["regions"], strict=True)
    ]
    assert shifts[0] == pytest.approx([0, 0]) and shifts[1] == pytest.approx(
        slipped.offset, abs=0.12
    )
    assert {start["parent_uid"] for start in (unmoved, moved)} == {first["run"]}
    layers = done.outcome["composite"]["layers"]
    assert [layer["uid"] for layer in layers] == done.runs
    assert all(layer["found"] for layer in layers)
