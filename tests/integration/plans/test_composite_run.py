"""Survey and fine maps in one estimate: through plan, service and Tiled, and over the death of the service."""

from collections.abc import Callable
from typing import Any

import h5py
import numpy as np
import pytest
from tiled.client import from_uri

from inscan.callbacks.composite_uid import composite_uid
from inscan.callbacks.plans import measure_proposal
from inscan.service.export import export_run
from inscan.service.messages import derived_uid
from inscan.service.show import show, tiled_of

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def measured(build: Callable[..., Any]) -> Any:
    """A survey, and two regions of it measured by a plan that follows the drift: microscope, survey, what was done."""
    microscope = build(follow_drift=True, margin=1, max_regions=2)
    (survey,) = microscope.engine(microscope.names["survey"](step=1.0))
    outcome = microscope.names["inscan"].future(survey).result(60)
    (proposal,) = outcome["proposals"]
    assert proposal["state"] == "approved" and len(proposal["regions"]) == 2, proposal
    done = microscope.run(
        measure_proposal(
            microscope.names["inscan"],
            proposal,
            microscope.names["fine"],
            timeout=60,
            composite=True,
        )
    )
    return microscope, survey, done


def derived_runs(microscope: Any) -> list[Any]:
    access = tiled_of(microscope.state)
    client = from_uri(access.uri, api_key=access.api_key.get_secret_value())
    found = [run for _, run in client["processed"].items()]
    return [run for run in found if run.metadata["start"]["recipe"] == "composite"]


def test_the_outcome_reaches_the_plan(measured: Any) -> None:
    microscope, survey, done = measured
    assert done.state == "done", done.notes
    assert len(done.runs) == 2 and not done.lost
    outcome = done.outcome
    assert outcome["status"] == "done" and outcome["run"] == composite_uid(survey, done.runs)
    layers = outcome["composite"]["layers"]
    assert [layer["uid"] for layer in layers] == done.runs
    for layer in layers:
        assert layer["found"] and layer["agrees"], layer["reason"]
        # A quarter of an hour of nothing moves no simulated stage: within a survey pixel.
        assert np.abs(layer["shift"]).max() < 0.5
    assert outcome["composite"]["sigma"]["Fe_K"]["median"] > 0
    # What was predicted of each region is kept beside what it gave.
    microscope.until(
        lambda: (
            {one["region"] for one in microscope.proposal(done.proposal)["measured"]}
            == set(done.regions)
        )
    )


def test_the_composite_is_in_tiled_with_all_that_is_in_it(measured: Any) -> None:
    microscope, survey, done = measured
    uid = derived_uid(microscope.ask("jobs", run_uid=done.outcome["run"])["jobs"][0]["key"])
    assert uid == done.outcome["result_uid"]
    (run,) = (one for one in derived_runs(microscope) if one.metadata["start"]["uid"] == uid)
    start, stream = run.metadata["start"], run["primary"]
    assert "InscanComposite" in [spec.name for spec in run.specs]
    assert start["raw_uid"] == survey and start["raw_uids"] == [survey, *done.runs]
    assert set(start["provenance"]["input_digests"]) == {survey, *done.runs}
    assert start["scan_id"] == 1 and start["raw_stream"] == "composite"
    values, source = np.asarray(stream["values"].read()), np.asarray(stream["source"].read())
    assert values.shape[1:] == source.shape == (20, 80)  # 10 x 40 um at half a micrometre
    y, x = (np.asarray(stream[name].read()) for name in ("y", "x"))
    assert (y.size, x.size) == source.shape and np.diff(x) == pytest.approx(0.5)
    assert stream.metadata["data_keys"]["x"]["motor"] == "sample_x"
    sigma = np.asarray(stream["sigma"].read())
    grains = source >= 2
    assert 0.02 < grains.mean() < 0.5 and (source > 0).all()
    relative = (sigma / values)[list(start["elements"]).index("Ca_K")]
    assert np.median(relative[grains]) < np.median(relative[~grains])


def test_it_is_shown_and_exported(measured: Any, tmp_path: Any) -> None:
    microscope, survey, done = measured
    access = tiled_of(microscope.state)
    plain = show(access, survey, tmp_path)
    assert plain["stream"] == "primary" and plain["other_streams"] == ["composite"]
    shown = show(access, survey, tmp_path, "composite")
    assert shown["result_uid"] == done.outcome["result_uid"]
    assert "2 of 2 fine maps are in the composite" in shown["composite"]
    assert show(access, done.outcome["run"], tmp_path)["result_uid"] == shown["result_uid"]
    answer = export_run(
        access, survey, ["nexus"], lambda start: tmp_path, lambda *_: None, stream="composite"
    )
    with h5py.File(answer["files"][0]) as file:
        names: list[str] = []
        file.visit(names.append)
    assert any(name.endswith("/source") for name in names)


def test_a_service_that_is_killed_in_between_makes_one_all_the_same(measured: Any) -> None:
    microscope, survey, done = measured
    name = microscope.approved(survey, 1)
    connection = microscope.names["inscan"]
    again = microscope.run(
        measure_proposal(connection, name, microscope.names["fine"], before=done)
    )
    assert again.state == "done", again.notes
    microscope.kill()
    uid = composite_uid(survey, [*done.runs, *again.runs])
    future = connection.future(uid)
    microscope.serve()
    outcome = future.result(120)
    assert outcome["status"] == "done", outcome["reason"]
    assert {layer["uid"] for layer in outcome["composite"]["layers"]} == {*done.runs, *again.runs}
    # A plan that knows of the last run alone hears the same.
    alone = connection.future(composite_uid(survey, again.runs)).result(30)
    assert alone["result_uid"] == outcome["result_uid"]
    found = [
        one.metadata["start"]
        for one in derived_runs(microscope)
        if one.metadata["start"].get("composite_uid") == uid
    ]
    assert [one["uid"] for one in found] == [outcome["result_uid"]]
    # Nothing more is to be measured: what was kept for it goes.
    microscope.until(lambda: not list((microscope.state / "spool").iterdir()), 30)
