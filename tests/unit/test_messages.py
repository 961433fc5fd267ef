import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from inscan.callbacks.wire import pack, unpack
from inscan.service.messages import (
    ArraySpec,
    InferenceJob,
    InferenceResult,
    canonical_json,
    derived_uid,
    job_key,
)

KEY = "a" * 64


def job(**changes) -> InferenceJob:
    fields = {
        "key": KEY,
        "run_uid": "run-1",
        "stream": "primary",
        "kind": "final",
        "recipe": "n2n",
        "parameters": {},
        "meta": {"elements": ["Fe_K"], "rows_done": 3},
        "spool": "/spool/run-1",
        "arrays": {"counts": ArraySpec(file="counts.npy", shape=(2, 3), dtype="<f4", nbytes=24)},
        "input_digest": "",
        "result_path": "/results/a.h5",
        "host_id": "h",
    }
    return InferenceJob.model_validate({**fields, **changes})


def test_a_job_crosses_wire_and_journal_unchanged():
    sent = job(meta={"energies_ev": [8300.5], "nested": {"a": [1, None, "x"]}})
    assert InferenceJob.model_validate(unpack(pack(sent.model_dump(mode="json")))) == sent
    assert InferenceJob.model_validate_json(sent.model_dump_json()) == sent


def test_a_result_with_figures_that_are_no_numbers_still_crosses():
    sent = InferenceResult(
        key=KEY,
        fence=2,
        result_path="/r.h5",
        digest="sha256:0",
        report={"psnr": math.inf, "rank": 3},
        regions=[],
        timings={"inference": 0.5},
    )
    back = InferenceResult.model_validate_json(sent.model_dump_json())
    assert back.report["rank"] == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"surplus": 1},
        {"key": "not hexadecimal"},
        {"recipe": "os.system"},
        {"kind": "other"},
        {"fence": -1},
        {"run_uid": ""},
        {
            "arrays": {
                "a": {"file": "../../etc/shadow.npy", "shape": [1], "dtype": "<f4", "nbytes": 4}
            }
        },
        {"arrays": {"a": {"file": "a/b.npy", "shape": [1], "dtype": "<f4", "nbytes": 4}}},
        {"arrays": {"a": {"file": "a.npy", "shape": [1], "dtype": "|O", "nbytes": 8}}},
    ],
)
def test_what_a_job_may_not_be(changes):
    with pytest.raises(ValidationError):
        job(**changes)


@pytest.mark.parametrize(
    ("shape", "nbytes", "words"),
    [
        ((2, 3), 25, "24 bytes"),
        ((-1, 3), 12, "negative"),
        ((1 << 40, 1 << 40), 1 << 82, "less than or equal"),
    ],
)
def test_sizes_are_settled_before_anything_is_allocated(shape, nbytes, words):
    with pytest.raises(ValidationError, match=words):
        ArraySpec(file="a.npy", shape=shape, dtype="<f4", nbytes=nbytes)


parameters = st.dictionaries(
    st.text(max_size=8),
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
    max_size=5,
)


@given(parameters, st.randoms(use_true_random=False))
def test_a_key_does_not_depend_on_the_order_of_parameters(given_parameters, random):
    items = list(given_parameters.items())
    random.shuffle(items)
    assert job_key("r", "s", "n2n", given_parameters) == job_key("r", "s", "n2n", dict(items))


def test_a_key_depends_on_everything_that_was_asked_for():
    asked = [
        job_key("r", "s", "n2n", {}),
        job_key("r2", "s", "n2n", {}),
        job_key("r", "s2", "n2n", {}),
        job_key("r", "s", "superres", {}),
        job_key("r", "s", "n2n", {"seed": 1}),
        job_key("r", "s", "n2n", {}, snapshot=4),
        job_key("r", "s", "n2n", {}, snapshot=8),
        job_key("rs", "", "n2n", {}),
    ]
    assert len(set(asked)) == len(asked)
    assert all(len(key) == 64 for key in asked)


def test_keys_and_uids_never_change():
    # Written down once: another value would make old results appear to be of other requests.
    key = job_key("run", "primary", "n2n", {"seed": 0, "fit_steps": 0})
    assert key == "0207b0abbce050d532d9eb970f5a67b5f9f3962066137543226cf2663b6790c2"
    assert derived_uid(key) == "a4a7952a-d40b-52bc-b7de-57187b9eacaf"


def test_a_parameter_that_is_no_number_cannot_name_a_job():
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"a": math.nan})
    assert json.loads(canonical_json({"b": 1, "a": [2]})) == {"a": [2], "b": 1}
