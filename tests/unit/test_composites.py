"""When a composite is made, of what, how often, and for how long the arrays of its runs are kept."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inscan.callbacks.composite_uid import composite_uid
from inscan.callbacks.profile import load_profile
from inscan.callbacks.updates import Update
from inscan.service import composites as module
from inscan.service import derived
from inscan.service.composites import SILENT_S, Composites
from inscan.service.janitor import sweep
from inscan.service.journal import Journal
from inscan.service.mailbox import Mailbox
from inscan.service.messages import InferenceJob, InferenceResult
from inscan.service.runs import Runs
from inscan.service.settings import Settings
from inscan.service.shelf import Shelf
from inscan.service.spool import Spool, load

META = {
    "profile": "sim_xrf",
    "technique": "xrf",
    "channels": [1],
    "elements": ["Fe_K"],
    "rescan": {},
    "dwell": 0.1,
}
START = {"beamline_id": "sim_xrf", "scan_id": 7, "proposal": "GUP-1", "data_session": "pass-1"}


class Killed(BaseException):
    """What stands for kill -9."""


class Rig:
    """Journal and spool of a service, and what makes composites of them."""

    def __init__(self, folder: Path, rescan: Any = None) -> None:
        self.folder = folder
        self.settings = Settings(state_dir=folder, rescan=rescan)
        self.profile = load_profile("sim_xrf")
        self.now = 1e9
        self.recorded: list[str] = []
        self.announced: list[str] = []
        self.open()

    def open(self) -> None:
        self.spool = Spool(self.settings.spool_dir, budget=1 << 30, min_free=0)
        self.journal = Journal(self.settings.journal_path)
        self.broker, self.writer = Mailbox(), Mailbox()
        self.runs = Runs(
            self.settings,
            [self.profile],
            self.spool,
            self.journal,
            broker=self.broker,
            writer=self.writer,
            shelf=Shelf(self.settings.weights_dir),
        )
        self.composites = Composites(
            self.settings,
            [self.profile],
            self.journal,
            self.spool,
            broker=self.broker,
            writer=self.writer,
            announce=self.announced.append,
            record=self.recorded.append,
            now=lambda: self.now,
        )

    def close(self) -> None:
        self.journal.close()
        self.broker.close()
        self.writer.close()

    def restart(self) -> None:
        self.close()
        self.open()
        self.runs.resume()

    def measured(self, uid: str, **start: Any) -> None:
        """A run comes and ends."""
        self.journal.record_run(uid, 7, "sim_xrf", {**START, "uid": uid, **start})
        run = self.spool.run(uid)
        arrays = {
            "counts": run.allocate("counts", (1, 1, 4, 4), np.dtype("f4")),
            "exposure": run.allocate("exposure", (1, 4, 4), np.dtype("f4")),
            "measured": run.allocate("measured", (4, 4), np.dtype(bool)),
        }
        arrays["counts"][...] = len(uid)
        meta = META | {"run_uid": uid, **start}
        self.runs.on_update(Update("final", uid, "primary", meta, arrays))
        self.runs.on_closed(uid)

    def commit(self, uid: str, report: dict[str, Any] | None = None) -> None:
        """A run's result is in Tiled."""
        (row,) = self.journal.jobs(run_uid=uid)
        leased = self.journal.leases.lease("w", 10.0)
        assert leased is not None and leased[0].key == row["key"], "in this order"
        result = InferenceResult(
            key=row["key"],
            fence=leased[0].fence,
            result_path="r",
            digest="d",
            report=report or {"verdict": "pass"},
            regions=[],
            timings={},
        )
        assert self.journal.computed(row["key"], leased[0].fence, result) == "accepted"
        assert self.journal.committed(row["key"], f"derived-{uid}")

    def proposal(self, state: str = "running", mode: str = "auto", survey: str = "survey") -> None:
        self.journal.add_proposal(
            {
                "id": "p",
                "run_uid": survey,
                "survey_uid": survey,
                "state": state,
                "mode": mode,
                "expires": self.now + 100,
                "regions": [{"label": "1"}, {"label": "2"}],
            }
        )

    def told(self, *fine: str) -> None:
        """A plan tells of its runs so far."""
        for uid in fine:
            self.journal.note_proposal("p", "run", uid, {}, self.now)
            self.journal.note_proposal("p", "heard", "", {}, self.now)

    def swept(self) -> list[str]:
        return sweep(
            self.journal,
            self.spool,
            self.folder,
            keep_spool=False,
            needed=self.composites.keeps,
        )

    def made(self) -> list[InferenceJob]:
        rows = [row for row in self.journal.jobs() if row["recipe"] == "composite"]
        found = [self.journal.request(row["key"]) for row in rows]
        return [job for job in found if job is not None]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Callable[..., Rig]]:
    made: list[Rig] = []

    def make(**settings: Any) -> Rig:
        made.append(Rig(tmp_path, **settings))
        return made[-1]

    yield make
    for one in made:
        one.close()


def fine(one: Rig, uid: str, **start: Any) -> None:
    marks = {"purpose": "fine", "parent_uid": "survey", "rescan_proposal": "p", "region": uid}
    one.measured(uid, **{**marks, **start})


@pytest.fixture
def one(rig: Callable[..., Rig]) -> Rig:
    """A survey whose proposal is being measured, one fine run of it come."""
    made = rig()
    made.measured("survey")
    made.commit("survey")
    made.proposal()
    fine(made, "fine-1", start_time=5.0)
    return made


def test_a_composite_is_made_once_a_plan_has_told_and_its_runs_are_there(one: Rig) -> None:
    one.composites.look()
    assert not one.made(), "no plan has told of it yet"
    one.told("fine-1")
    one.composites.look()
    (job,) = one.made()
    uid = composite_uid("survey", ["fine-1"])
    assert job.run_uid == uid and job.recipe == "composite" and job.input_digest
    assert [layer["uid"] for layer in job.meta["layers"]] == ["survey", "fine-1"]
    assert job.meta["raw_uids"] == ["survey", "fine-1"]
    arrays = load(Path(job.spool), job.arrays)
    assert float(arrays["0.counts"].max()) == len("survey")
    assert float(arrays["1.counts"].max()) == len("fine-1")
    linked = Path(job.spool) / "1.counts.npy"
    assert linked.samefile(one.spool.root / "fine-1" / "counts.npy"), "no copy"
    one.composites.look()
    assert len(one.made()) == 1
    # Before the first result of the fine run itself, which was asked for earlier.
    one.commit(uid, {"verdict": "pass", "composite": {"layers": [], "text": "made"}})
    outcome = one.composites.outcome_of(uid)
    assert outcome is not None and outcome["status"] == "done"
    assert outcome["composite"]["text"] == "made"
    one.composites.look()
    assert one.recorded == [uid]
    one.composites.look()
    assert one.recorded == [uid]


def test_who_may_see_the_survey_may_see_it_and_finds_it_by_its_number(one: Rig) -> None:
    one.told("fine-1")
    one.composites.look()
    (job,) = one.made()
    run = one.journal.run(job.run_uid)
    assert run is not None and run["state"] == "complete"
    start = derived._start(job.key, job.run_uid, job.stream, job.recipe, run["start"], 1.0)
    assert start["raw_uid"] == "survey" and start["raw_uids"] == ["survey", "fine-1"]
    assert start["scan_id"] == 7 and start["composite_uid"] == job.run_uid
    assert (start["proposal"], start["data_session"]) == ("GUP-1", "pass-1")
    assert start["raw_stream"] == "composite" and start["purpose"] == "composite"


@pytest.mark.parametrize("step", ["linked", "add_composite", "sync_arrays", "synced", "post"])
def test_killed_anywhere_it_is_made_once(
    one: Rig, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: Any, **__: Any) -> None:
        raise Killed

    one.told("fine-1")
    with monkeypatch.context() as patch:
        if step in ("linked", "sync_arrays"):
            patch.setattr(module, step, dies)
        elif step == "post":
            patch.setattr(one.composites, "_post", dies)
        else:
            patch.setattr(one.journal, step, dies)
        with pytest.raises(Killed):
            one.composites.look()
    one.restart()
    one.composites.look()
    (job,) = one.made()
    assert job.input_digest, "its arrays are known to be on the disk"
    assert one.journal.unsynced() == []
    assert set(load(Path(job.spool), job.arrays)) == set(job.arrays)


def test_after_a_power_cut_it_is_made_again(one: Rig) -> None:
    one.told("fine-1")
    one.composites.look()
    (job,) = one.made()
    # What a journal does of a job whose arrays were not synced before the reboot.
    with one.journal._file.transaction() as c:
        c.execute("DELETE FROM jobs WHERE key = ?", (job.key,))
        c.execute("UPDATE runs SET state = 'open' WHERE run_uid = ?", (job.run_uid,))
    one.restart()
    one.composites.look()
    assert [again.key for again in one.made()] == [job.key]


def test_a_later_region_makes_another_with_all_of_them(one: Rig) -> None:
    one.told("fine-1")
    one.composites.look()
    one.told("fine-2")
    one.composites.look()
    assert len(one.made()) == 1, "its documents are on their way"
    fine(one, "fine-2", start_time=3.0)
    one.composites.look()
    first, second = one.made()
    assert second.run_uid == composite_uid("survey", ["fine-1", "fine-2"]) != first.run_uid
    # In the order of time, not of names.
    assert [layer["uid"] for layer in second.meta["layers"]] == ["survey", "fine-2", "fine-1"]
    # A plan that knows of the second run alone waits under another name for the same.
    alias = composite_uid("survey", ["fine-2"])
    assert one.composites.main_uid(alias) == second.run_uid
    assert alias in one.composites.told(second.run_uid)
    one.restart()
    assert one.composites.main_uid(alias) == second.run_uid


def test_a_fine_run_without_a_map_is_named_and_the_others_are_used(one: Rig) -> None:
    one.told("fine-1", "fine-2")
    one.journal.record_run("fine-2", 8, "sim_xrf", {"uid": "fine-2", "region": "2"})
    one.journal.finish_run("fine-2", "failed", "without a measured pixel")
    one.composites.look()
    (job,) = one.made()
    assert [layer["uid"] for layer in job.meta["layers"]] == ["survey", "fine-1"]
    (missing,) = job.meta["missing"]
    assert missing == {"uid": "fine-2", "region": "2", "reason": "without a measured pixel"}


def test_a_run_that_never_comes_is_waited_for_so_long_and_no_longer(one: Rig) -> None:
    one.told("fine-1", "lost")
    one.composites.look()
    assert not one.made()
    one.now += SILENT_S + 1
    one.composites._again = 0.0
    one.composites.look()
    (job,) = one.made()
    assert job.meta["missing"][0]["reason"] == "its documents did not come"


def test_one_that_cannot_be_made_has_an_outcome_that_says_why(one: Rig) -> None:
    one.spool.delete("survey")
    one.told("fine-1")
    one.composites.look()
    uid = composite_uid("survey", ["fine-1"])
    outcome = one.composites.outcome_of(uid)
    assert outcome is not None and outcome["status"] == "failed"
    assert "gone" in outcome["reason"] and outcome["composite"]["layers"] == []
    assert one.announced == [uid] and not one.made()
    one.composites.look()
    assert one.announced == [uid]


@pytest.mark.parametrize(
    ("state", "mode", "kept", "later"),
    [
        ("suggested", "approve", True, True),
        ("approved", "auto", True, True),
        ("queued", "approve", True, True),
        ("running", "auto", True, True),
        ("refused", "auto", True, False),
        ("done", "auto", True, False),
        ("expired", "approve", True, False),
        ("suggested", "suggest", False, False),
    ],
)
def test_arrays_of_a_survey_are_kept_while_its_places_may_be_measured(
    rig: Callable[..., Rig], state: str, mode: str, kept: bool, later: bool
) -> None:
    made = rig()
    made.measured("survey")
    made.commit("survey")
    made.proposal(state, mode)
    assert made.composites.keeps("survey") == kept
    # Until its proposals expire somebody may choose other places of it.
    made.now += 101
    assert made.composites.keeps("survey") == later
    assert made.swept() == ([] if later else ["survey"])


def test_nothing_is_kept_when_rescans_are_off(rig: Callable[..., Rig]) -> None:
    made = rig(rescan="off")
    made.measured("survey")
    made.commit("survey")
    made.proposal("approved", "auto")
    assert made.swept() == ["survey"]


def test_fine_runs_are_kept_until_their_composite_is_made(one: Rig) -> None:
    one.told("fine-1")
    one.journal.set_proposal("p", "done", "plan")
    one.commit("fine-1")
    one.now += 101
    assert one.swept() == []
    one.composites.look()
    uid = composite_uid("survey", ["fine-1"])
    assert one.swept() == []
    one.commit(uid)
    one.composites.look()
    assert one.swept() == sorted([uid, "fine-1", "survey"])


def test_what_is_kept_takes_half_of_the_spool_and_no_more(rig: Callable[..., Rig]) -> None:
    made = rig()
    made.measured("survey")
    made.commit("survey")
    made.proposal("approved")
    made.spool._budget = 2 * made.spool.size("survey") - 1
    assert made.swept() == ["survey"]
