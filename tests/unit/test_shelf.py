"""Weights born of runs: offered to the next run of the same sample and detector, and to no other."""

import hashlib
import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inscan.service.processed import BornWeights
from inscan.service.shelf import Shelf, ShelfError, birth_of, line_of

META = {
    "profile": "sim_xrf",
    "run_uid": "run-1",
    "scan_id": 7,
    "beamline_id": "sim_xrf",
    "start_time": 100.0,
    "sample": {"name": "cells"},
    "detector": "xs_fly",
    "source": "mcaroi",
    "channels": [1, 2],
    "elements": ["Ca_K", "Fe_K"],
}
OTHERS = {
    "profile": "sim_txm",
    "sample": {"name": "star"},
    "detector": "xs",
    "source": "spectrum",
    "channels": [1, 3],
    "elements": ["Fe_K", "Ca_K"],
}


def weights(meta: dict[str, Any], seed: int = 0) -> BornWeights:
    blob = bytes([seed]) * 100
    card = {"sha256": hashlib.sha256(blob).hexdigest(), "parent_sha256": "ab"}
    return BornWeights(blob, {**card, "born_of": birth_of(meta)})


def of_run(number: int, **changes: Any) -> dict[str, Any]:
    return {**META, "run_uid": f"run-{number}", "start_time": 100.0 + number, **changes}


@pytest.fixture
def shelf(tmp_path) -> Shelf:
    return Shelf(tmp_path / "weights")


def test_the_next_run_is_offered_the_newest_of_its_line(shelf):
    assert shelf.latest(META) is None
    for number in (1, 3, 2):
        shelf.put(f"{number:064x}", weights(of_run(number), number))
    found = shelf.latest(of_run(9))
    assert found is not None and found.born_of["raw_uid"] == "run-3"
    assert found.read() == weights(of_run(3), 3)
    assert found.born_of["scan_id"] == 7 and found.born_of["beamline"] == "sim_xrf"


@given(st.sampled_from(sorted(OTHERS)))
def test_no_other_sample_or_detector_is_offered_anything(tmp_path_factory, what):
    shelf = Shelf(tmp_path_factory.mktemp("weights"))
    shelf.put("a" * 64, weights(META))
    assert shelf.latest(of_run(2)) is not None
    assert shelf.latest(of_run(2, **{what: OTHERS[what]})) is None


@pytest.mark.parametrize("what", ["sample", "detector"])
def test_runs_that_name_no_sample_or_detector_share_nothing(shelf, what):
    nameless = {**META, what: None}
    assert line_of(nameless) is None and line_of({**META, "sample": {"id": 3}}) is None
    shelf.put("a" * 64, weights(META))
    assert shelf.latest(of_run(2, **{what: None})) is None
    with pytest.raises(ShelfError, match="sample"):
        shelf.put("b" * 64, weights(nameless))


def test_a_run_that_is_processed_again_does_not_start_where_it_ended(shelf):
    shelf.put("a" * 64, weights(META))
    assert shelf.latest(META) is None


def test_damaged_weights_are_neither_kept_nor_read(shelf):
    good = weights(META)
    with pytest.raises(ShelfError, match="SHA-256"):
        shelf.put("a" * 64, BornWeights(good.blob + b"x", good.card))
    assert shelf.all() == [] and not list(shelf.folder.glob("*"))
    kept = shelf.put("a" * 64, good)
    (kept.folder / "denoiser.safetensors").write_bytes(b"torn")
    with pytest.raises(ShelfError, match="SHA-256"):
        kept.read()
    (kept.folder / "denoiser.json").write_text("{")
    assert shelf.all() == []


def test_it_holds_three_of_each_line(shelf):
    for number in range(6):
        shelf.put(f"{number:064x}", weights(of_run(number), number))
        shelf.put(f"{number + 32:064x}", weights(of_run(number, detector="xs"), number))
    names = [(kept.born_of["detector"], kept.born_of["raw_uid"]) for kept in shelf.all()]
    assert sorted(names) == sorted(
        (detector, f"run-{number}") for detector in ("xs", "xs_fly") for number in (3, 4, 5)
    )


def test_what_is_forgotten_is_offered_no_more(shelf):
    shelf.put("abcd" + "0" * 60, weights(of_run(1), 1))
    shelf.put("abef" + "0" * 60, weights(of_run(2), 2))
    with pytest.raises(LookupError, match="names 2"):
        shelf.find("run-")
    with pytest.raises(LookupError, match="too short"):
        shelf.find("ab")
    with pytest.raises(LookupError, match="names 0"):
        shelf.find("beef")
    second = shelf.find("run-2")
    assert shelf.find(second.sha256[:8]) == second == shelf.find("abef")
    shelf.forget(second)
    found = shelf.latest(of_run(9))
    assert found is not None and found.born_of["raw_uid"] == "run-1"


def test_the_same_result_twice_is_one_entry(shelf):
    for _ in range(2):
        shelf.put("a" * 64, weights(META))
    assert [kept.key for kept in shelf.all()] == ["a" * 64]
    assert sorted(os.listdir(shelf.folder)) == ["a" * 64]


def test_what_a_replay_learned_is_offered_to_nobody() -> None:
    assert birth_of(META)["sample"] is not None
    assert birth_of({**META, "replay_of": "another"})["sample"] is None
