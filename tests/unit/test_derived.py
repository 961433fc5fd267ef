"""The derived run's documents: valid, complete, and readable by names of axes."""

from typing import Any

import numpy as np
import pytest
from event_model import DocumentNames, schema_validators

from inscan.service import derived
from inscan.service.messages import InferenceJob, InferenceResult, derived_uid, job_key
from inscan.service.result_view import StoredArray

KEY = job_key("raw", "primary", "n2n", {"seed": 3})
GEOMETRY = {
    "shape": [4, 6],
    "slow_motor": "sample_y",
    "fast_motor": "sample_x",
    "slow_units": "um",
    "fast_units": "mm",
    "slow_first": 10.0,
    "slow_last": 4.0,
    "fast_first": 0.0,
    "fast_last": 5.0,
    "snaking": False,
}


def array(name: str, shape: tuple[int, ...], dims: tuple[str, ...], **more: Any) -> StoredArray:
    return StoredArray(
        name, f"entry/data/{name}", shape, "<f4", dims, more.get("units", ""), more.get("labels")
    )


MAPS = [
    array("values", (2, 4, 6), ("element", "row", "col"), units="counts", labels=("Fe_K", "Ca_K")),
    array("measured", (4, 6), ("row", "col")),
]


def job(**changes: Any) -> InferenceJob:
    fields: dict[str, Any] = {
        "key": KEY,
        "run_uid": "raw",
        "stream": "primary",
        "kind": "final",
        "recipe": "n2n",
        "parameters": {"seed": 3},
        "meta": {"technique": "xrf", "geometry": GEOMETRY, "elements": ["Fe_K", "Ca_K"]},
        "spool": "/s",
        "arrays": {},
        "input_digest": "sha256:in",
        "result_path": "/r.h5",
        "host_id": "h",
    }
    return InferenceJob(**{**fields, **changes})


def result(**report: Any) -> InferenceResult:
    return InferenceResult(
        key=KEY,
        fence=2,
        result_path="/r.h5",
        digest="sha256:out",
        report={"verdict": "warn", "reasons": ["few counts"], "device": "cpu", **report},
        regions=[],
        timings={"inference": 0.5},
    )


def check(run: derived.DerivedRun) -> None:
    schema_validators[DocumentNames.start].validate(run.start)
    schema_validators[DocumentNames.stop].validate(run.stop)
    if run.descriptor is not None:
        whole = {**run.descriptor, "name": "primary", "run_start": run.uid, "object_keys": {}}
        schema_validators[DocumentNames.descriptor].validate(whole)


def test_documents_say_where_the_result_comes_from() -> None:
    raw = {
        "uid": "raw",
        "scan_id": 9,
        "data_session": "pass-1",
        "proposal": {"id": 5},
        "tiled_access_tags": ["team-a"],
        "secret_note": "stays there",
    }
    run = derived.compose(job(), result(weights_sha256="ab"), MAPS, raw, 1000.0)
    check(run)
    assert run.uid == derived_uid(KEY) == run.start["uid"]
    assert run.specs == ("XRFDenoisedMap",)
    assert run.access_tags == ("team-a",)
    assert {
        name: run.start[name] for name in ("raw_uid", "scan_id", "data_session", "proposal")
    } == {
        "raw_uid": "raw",
        "scan_id": 9,
        "data_session": "pass-1",
        "proposal": {"id": 5},
    }
    assert "secret_note" not in run.start
    assert "tiled_access_tags" not in run.start
    provenance = run.start["provenance"]
    assert provenance["weights_sha256"] == "ab"
    assert (provenance["seed"], provenance["device"]) == (3, "cpu")
    assert (provenance["input_digest"], provenance["result_digest"]) == ("sha256:in", "sha256:out")
    assert {"inscan", "numpy", "torch"} <= set(provenance["versions"])
    assert (run.start["verdict"], run.start["report"]["reasons"]) == ("warn", ["few counts"])
    assert run.stop["run_start"] == run.uid
    assert run.stop["exit_status"] == "success"


def test_the_same_job_makes_the_same_uids() -> None:
    one = derived.compose(job(), result(), MAPS, {}, 1.0)
    two = derived.compose(job(), result(), MAPS, {}, 2.0)
    assert (one.uid, one.stop["uid"]) == (two.uid, two.stop["uid"])
    assert one.descriptor is not None
    assert two.descriptor is not None
    assert one.descriptor["uid"] == two.descriptor["uid"] != one.uid


def test_a_failure_is_a_run_without_data() -> None:
    run = derived.compose_failure(
        KEY, "raw", "primary", "n2n", {"scan_id": 4}, "oom", "no room", 1.0
    )
    check(run)
    assert run.uid == derived_uid(KEY)
    assert (run.descriptor, run.arrays) == (None, ())
    assert (run.stop["exit_status"], run.stop["reason"]) == ("fail", "oom: no room")
    assert run.start["scan_id"] == 4


def test_axes_with_one_name_have_one_length() -> None:
    named = derived.name_dims(
        [
            array("values", (2, 8, 12), ("element", "row", "col")),
            array("raw", (2, 4, 6), ("element", "row", "col")),
            array("square", (3, 3), ("row", "row")),
        ]
    )
    lengths: dict[str, int] = {}
    for one in named:
        assert len(set(one.dims)) == len(one.dims)
        for dim, length in zip(one.dims, one.shape, strict=True):
            assert lengths.setdefault(dim, length) == length
    assert named[0].dims == ("element", "y", "x")
    assert named[1].dims == ("element", "y_raw", "x_raw")


def test_positions_are_those_of_the_motors() -> None:
    axes = {axis.dim: axis for axis in derived.axes_of(job().meta, {}, derived.name_dims(MAPS))}
    np.testing.assert_allclose(axes["y"].values, [10, 8, 6, 4])
    np.testing.assert_allclose(axes["x"].values, np.arange(6))
    assert (axes["y"].motor, axes["y"].units, axes["x"].units) == ("sample_y", "um", "mm")


def test_uneven_rows_keep_their_positions() -> None:
    meta = job().meta
    uneven = meta["geometry"] | {"slow_centres": [10.0, 9.0, 6.5, 4.0]}
    axes = derived.axes_of(meta | {"geometry": uneven}, {}, derived.name_dims(MAPS))
    np.testing.assert_allclose(axes[0].values, [10.0, 9.0, 6.5, 4.0])


def test_small_pixels_lie_within_the_coarse_field() -> None:
    fine = derived.name_dims([array("values", (2, 8, 12), ("element", "row", "col"))])
    axes = {axis.dim: axis.values for axis in derived.axes_of(job().meta, {}, fine)}
    np.testing.assert_allclose(axes["y"][:4], [10.5, 9.5, 8.5, 7.5])
    assert axes["x"].mean() == pytest.approx(2.5)
    assert np.diff(axes["x"]) == pytest.approx(np.full(11, 0.5))


def test_a_shorter_stack_has_the_energies_of_its_report() -> None:
    stack = derived.name_dims([array("values", (2, 4, 6), ("energy", "row", "col"))])
    meta = {"energies_ev": [8300.0, 8333.0, 8400.0], "pixel_size_um": 0.5}
    axes = {
        axis.dim: axis for axis in derived.axes_of(meta, {"energies_ev": [8300.0, 8333.0]}, stack)
    }
    np.testing.assert_allclose(axes["energy"].values, [8300, 8333])
    assert axes["energy"].units == "eV"
    np.testing.assert_allclose(axes["x"].values, np.arange(6) * 0.5)
    assert "energy" not in {axis.dim for axis in derived.axes_of(meta, {}, stack)}


def test_what_json_cannot_hold_becomes_something_it_can() -> None:
    run = derived.compose(
        job(),
        result(rank=np.int64(3), sigma=float("nan"), limits={"a.b/c": np.array([1.0, np.inf])}),
        MAPS,
        {"sample": {"name.with/dots": 1}},
        1.0,
    )
    check(run)
    report = run.start["report"]
    assert (report["rank"], report["sigma"], report["limits"]) == (3, None, {"a_b_c": [1.0, None]})


def test_the_descriptor_names_units_axes_and_labels() -> None:
    run = derived.compose(job(), result(), MAPS, {}, 1.0)
    assert run.descriptor is not None
    keys = run.descriptor["data_keys"]
    assert keys["values"]["dims"] == ["element", "y", "x"]
    assert (keys["values"]["units"], keys["values"]["labels"]) == ("counts", ["Fe_K", "Ca_K"])
    assert keys["y"]["source"] == "sample_y"
    assert run.descriptor["configuration"]["inscan"]["data"] == {"element_labels": ["Fe_K", "Ca_K"]}
