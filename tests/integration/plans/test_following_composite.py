"""The sample has slipped since the survey: fine maps follow it, and are one estimate with the survey.

Through plan, service and Tiled, and over the death of the service. In this order: the first test takes the regions.
"""

from typing import Any

import h5py
import numpy as np
import pytest

from inscan.callbacks.composite_uid import composite_uid
from inscan.callbacks.plans import measure_proposal
from inscan.callbacks.request import NoServiceError
from inscan.profiles.stage_drift import StageDrift
from inscan.service.export import export_run
from inscan.service.messages import derived_uid
from inscan.service.results import Results
from inscan.service.show import show, tiled_of
from inscan.service.tiled_http import TiledHTTP

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def measured(microscope: Any, first: dict[str, Any]) -> tuple[Any, str, dict[str, Any]]:
    """The first survey's regions, measured: microscope, uid of the survey, outcome of the composite."""
    (proposal,) = first["proposals"]
    if not microscope.proposal(proposal["id"])["fine_uids"]:
        fine = microscope.names["fine"]
        plan = measure_proposal(
            microscope.names["inscan"], proposal, fine, composite=True, timeout=60.0
        )
        microscope.run(plan)
    runs = microscope.proposal(proposal["id"])["fine_uids"]
    uid = composite_uid(first["run"], runs)
    return microscope, first["run"], microscope.names["inscan"].future(uid).result(60)


def composites(microscope: Any) -> list[Any]:
    """Start documents of all composites in Tiled."""
    access = tiled_of(microscope.state)
    with TiledHTTP(access.uri, access.api_key) as tiled:
        uids = {
            derived_uid(job["key"])
            for job in microscope.ask("jobs")["jobs"]
            if job["recipe"] == "composite"
        }
        found = [tiled.get(f"processed/{uid}") for uid in sorted(uids)]
    return [one["metadata"]["start"] for one in found if one is not None]


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


def test_the_outcome_says_how_the_fine_maps_lie(measured: Any, first: dict[str, Any]) -> None:
    microscope, survey, outcome = measured
    runs = microscope.proposal(first["proposals"][0]["id"])["fine_uids"]
    assert outcome["status"] == "done" and outcome["run"] == composite_uid(survey, runs)
    layers = outcome["composite"]["layers"]
    assert [layer["uid"] for layer in layers] == runs and len(runs) == 2
    assert all(layer["found"] and layer["agrees"] for layer in layers), layers
    assert 0 < outcome["composite"]["sigma"]["Fe_K"]["median"] < 1
    # What was predicted of each region is kept beside what it gave.
    microscope.until(lambda: len(microscope.proposal(first["proposals"][0]["id"])["measured"]) == 2)


def test_the_composite_is_in_tiled_with_all_that_is_in_it(measured: Any) -> None:
    microscope, survey, outcome = measured
    runs = [layer["uid"] for layer in outcome["composite"]["layers"]]
    uid = derived_uid(microscope.ask("jobs", run_uid=outcome["run"])["jobs"][0]["key"])
    assert uid == outcome["result_uid"]
    access = tiled_of(microscope.state)
    with Results(access.uri, access.api_key) as results:
        run = results.latest(uid)
        assert "InscanComposite" in [spec.name for spec in run.specs]
        start, stream = run.metadata["start"], run["primary"]
        read = {
            name: np.asarray(stream[name].read())
            for name in ("values", "sigma", "source", "y", "x")
        }
        motor = stream.metadata["data_keys"]["x"]["motor"]
    assert start["raw_uid"] == survey and start["raw_uids"] == [survey, *runs]
    assert set(start["provenance"]["input_digests"]) == {survey, *runs}
    assert start["scan_id"] == 1 and start["raw_stream"] == "composite"
    values, source = read["values"], read["source"]
    assert values.shape[1:] == source.shape == (40, 160)  # 10 x 40 um at half the survey's step
    assert (read["y"].size, read["x"].size) == source.shape and motor == "sample_x"
    assert np.diff(read["x"]) == pytest.approx(0.25)
    grains = source >= 2
    assert 0.02 < grains.mean() < 0.5 and (source > 0).all()
    relative = (read["sigma"] / values)[list(start["elements"]).index("Fe_K")]
    assert np.median(relative[grains]) < np.median(relative[~grains])


def test_it_is_shown_and_exported(measured: Any, tmp_path: Any) -> None:
    microscope, survey, outcome = measured
    access = tiled_of(microscope.state)
    plain = show(access, survey, tmp_path)
    assert plain["stream"] == "primary" and plain["other_streams"] == ["composite"]
    shown = show(access, survey, tmp_path, "composite")
    assert shown["result_uid"] == outcome["result_uid"]
    assert "2 of 2 fine maps are in the composite" in shown["composite"]
    answer = export_run(
        access, survey, ["nexus"], lambda start: tmp_path, lambda *_: None, stream="composite"
    )
    with h5py.File(answer["files"][0]) as file:
        names: list[str] = []
        file.visit(names.append)
    assert any(name.endswith("/source") for name in names)


@pytest.fixture(scope="module")
def restarted(microscope: Any, measured: Any) -> tuple[list[str], list[str]]:
    """One more region is measured, and the service killed outright before anybody waits for the composite: fine runs
    before, and this one's. What starts here is no test's own, but the folder's."""
    before = [layer["uid"] for layer in measured[2]["composite"]["layers"]]
    name = microscope.approved(measured[1], 1)
    plan = measure_proposal(
        microscope.names["inscan"], microscope.still(name), microscope.names["fine"]
    )
    again = microscope.run(plan)
    assert again.state == "done", again.notes
    microscope.kill()
    microscope.serve()
    microscope.until(lambda: _at_work(microscope), 90)
    return before, list(again.runs)


def _at_work(microscope: Any) -> bool:
    try:
        return bool(microscope.ask("status")["workers"])
    except NoServiceError:
        return False


@pytest.mark.slow
def test_a_service_that_is_killed_in_between_makes_one_all_the_same(
    microscope: Any, measured: Any, restarted: Any
) -> None:
    survey, (before, more) = measured[1], restarted
    uid = composite_uid(survey, [*before, *more])
    connection = microscope.names["inscan"]
    outcome = connection.future(uid).result(120)
    assert outcome["status"] == "done", outcome["reason"]
    assert {layer["uid"] for layer in outcome["composite"]["layers"]} == {*before, *more}
    # A plan that knows of the last run alone hears the same.
    alone = connection.future(composite_uid(survey, more)).result(30)
    assert alone["result_uid"] == outcome["result_uid"]
    found = [one["uid"] for one in composites(microscope) if one["composite_uid"] == uid]
    assert found == [outcome["result_uid"]]
