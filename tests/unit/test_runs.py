"""What is asked for when a run ends: first results, those that refine them, and the weights they come with."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inscan.callbacks.profile import BeamlineProfile, load_profile
from inscan.callbacks.updates import Update
from inscan.service.journal import Journal
from inscan.service.mailbox import Mailbox
from inscan.service.messages import InferenceJob
from inscan.service.processed import BornWeights
from inscan.service.runs import MOST_STEPS, Runs
from inscan.service.settings import Settings
from inscan.service.shelf import Shelf, ShelfError, birth_of
from inscan.service.spool import Spool, load

META = {
    "profile": "sim_xrf",
    "technique": "xrf",
    "sample": {"name": "cells"},
    "detector": "xs_fly",
    "source": "mcaroi",
    "channels": [1],
    "elements": ["Fe_K"],
    "start_time": 5.0,
    "rows_done": 4,
}


def sim_xrf(**method: Any) -> BeamlineProfile:
    shipped = load_profile("sim_xrf")
    return shipped.model_copy(update={"method": shipped.method.model_copy(update=method)})


def weights(folder: Path, seed: int = 1, **card: Any) -> BornWeights:
    """Bytes that stand for a network: the service never looks into them."""
    blob = bytes([seed]) * 50
    made = BornWeights(blob, {"sha256": hashlib.sha256(blob).hexdigest(), **card})
    (folder / "named.safetensors").write_bytes(blob)
    (folder / "named.json").write_text(json.dumps(made.card))
    return made


class Rig:
    """Runs with a real journal and spool."""

    def __init__(self, folder: Path, profile: BeamlineProfile) -> None:
        self.settings = Settings(state_dir=folder)
        self.spool = Spool(self.settings.spool_dir, budget=1 << 30, min_free=0)
        self.journal = Journal(self.settings.journal_path)
        self.shelf = Shelf(self.settings.weights_dir)
        self.broker, self.writer = Mailbox(), Mailbox()
        self.runs = Runs(
            self.settings,
            [profile],
            self.spool,
            self.journal,
            broker=self.broker,
            writer=self.writer,
            shelf=self.shelf,
        )

    def end(self, run_uid: str, **meta: Any) -> list[InferenceJob]:
        """Let a run end; what the journal then holds for it, in order."""
        run = self.spool.run(run_uid)
        arrays = {
            "counts": run.allocate("counts", (1, 1, 4, 4), np.dtype("f4")),
            "measured": run.allocate("measured", (4, 4), np.dtype(bool)),
        }
        made = Update("final", run_uid, "primary", META | {"run_uid": run_uid} | meta, arrays)
        self.runs.on_update(made)
        found = [self.journal.request(row["key"]) for row in self.journal.jobs(run_uid=run_uid)]
        return [job for job in found if job is not None]

    def close(self) -> None:
        self.journal.close()
        self.broker.close()
        self.writer.close()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Callable[..., Rig]]:
    made: list[Rig] = []

    def make(**method: Any) -> Rig:
        made.append(Rig(tmp_path, sim_xrf(**method)))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ({}, [{}]),
        ({"fit_steps": 40}, [{}, {"fit_steps": 40}]),
        ({"fit_seconds": 9.0}, [{}, {"fit_steps": MOST_STEPS, "fit_seconds": 9.0}]),
        (
            {"fit_steps": 40, "fit_seconds": 9.0, "parameters": {"seed": 3}},
            [{"seed": 3}, {"seed": 3, "fit_steps": 40, "fit_seconds": 9.0}],
        ),
    ],
)
def test_a_run_gets_a_first_result_and_one_that_refines_it(rig, method, parameters):
    first, *finer = rig(**method).end("run-1")
    assert [first.parameters, *(job.parameters for job in finer)] == parameters
    assert first.refines == "" and all(job.refines == first.key for job in finer)
    assert first.granted_s == 0
    assert [job.granted_s for job in finer] == [p.get("fit_seconds", 0) for p in parameters[1:]]


def test_what_a_run_starts_from_is_settled_once(rig, tmp_path):
    one = rig(fit_steps=40)
    first, finer = one.end("run-1")
    assert not {"start_weights", "start_card"} & set(finer.arrays)
    born = weights(tmp_path, born_of=birth_of(META | {"run_uid": "run-0"}))
    one.shelf.put("a" * 64, born)
    assert one.end("run-1") == [first, finer], "the same documents once more change nothing"
    _, offered = one.end("run-2")
    assert set(offered.arrays) - set(first.arrays) == {"start_weights", "start_card"}
    arrays = load(Path(offered.spool), offered.arrays)
    assert arrays["start_weights"].tobytes() == born.blob
    assert json.loads(arrays["start_card"].tobytes()) == born.card
    one.shelf.forget(one.shelf.find("a" * 64))
    newer = weights(tmp_path, 2, born_of=birth_of(META | {"run_uid": "run-9", "start_time": 9.0}))
    one.shelf.put("b" * 64, newer)
    assert one.end("run-2")[1] == offered
    assert load(Path(offered.spool), offered.arrays)["start_weights"].tobytes() == born.blob


@pytest.mark.parametrize(
    ("method", "meta"),
    [
        ({"fit_from": "shipped"}, {}),
        ({}, {"sample": {"name": "star"}}),
        ({}, {"detector": "xs"}),
        ({}, {"sample": None}),
    ],
)
def test_nothing_is_offered_that_was_not_asked_for_or_is_of_something_else(
    rig, tmp_path, method, meta
):
    one = rig(fit_steps=40, **method)
    one.shelf.put("a" * 64, weights(tmp_path, born_of=birth_of(META | {"run_uid": "run-0"})))
    _, finer = one.end("run-1", **meta)
    assert "start_weights" not in finer.arrays


def test_weights_that_a_profile_names_go_with_every_job_and_make_another_result(rig, tmp_path):
    plain = rig().end("run-1")
    named = weights(tmp_path)
    (job,) = rig(weights=str(tmp_path / "named.safetensors")).end("run-1")[1:]
    assert job.key != plain[0].key
    assert job.parameters == {"weights": named.card["sha256"]}
    assert load(Path(job.spool), job.arrays)["named_weights"].tobytes() == named.blob


@pytest.mark.parametrize("damage", ["missing", "torn", "no card"])
def test_weights_that_cannot_be_used_stop_the_start(rig, tmp_path, damage):
    weights(tmp_path)
    if damage == "missing":
        (tmp_path / "named.safetensors").unlink()
    elif damage == "torn":
        (tmp_path / "named.safetensors").write_bytes(b"torn")
    else:
        (tmp_path / "named.json").write_text("[]")
    with pytest.raises(ShelfError, match="named"):
        rig(weights=str(tmp_path / "named.safetensors"))
