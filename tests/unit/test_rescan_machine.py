"""Whatever people, plans, queues and restarts do in whatever order: no motor goes where it must not, or too often."""

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from inscan.callbacks.profile import load_profile
from inscan.callbacks.rescan_section import SoftLimit
from inscan.service.journal import Journal
from inscan.service.messages import InferenceJob, InferenceResult, job_key
from inscan.service.rescan_states import NotAllowed, Rescans

START = {"uid": "survey", "beamline_id": "sim_xrf", "sample": {"name": "cells"}}
SURVEY = {
    "shape": [40, 50],
    "slow_motor": "sample_y",
    "fast_motor": "sample_x",
    "slow_units": "um",
    "fast_units": "mm",
    "slow_first": 0.0,
    "slow_last": 39.0,
    "fast_first": 0.0,
    "fast_last": 0.049,
    "snaking": True,
}
BOXES = [[2, 6, 4, 8], [20, 24, 40, 44], [32, 36, 20, 24], [12, 16, 25, 29]]
NEXT = {
    "suggested": {"approved", "refused", "expired"},
    "approved": {"queued", "running", "refused", "expired"},
    "queued": {"approved", "running", "refused", "expired"},
    "running": {"done", "failed", "refused"},
    "failed": {"approved", "refused"},
    "done": set(),
    "refused": set(),
    "expired": set(),
}
executions = st.sampled_from(["one", "two", "three"])
numbers = st.integers(0, 5)


class Clock:
    def __init__(self) -> None:
        self.now = 4e9  # later than any date that the journal writes

    def __call__(self) -> float:
        return self.now


class AnyOrder(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "journal.db"
        self.journal = Journal(self.path, boot_id="boot")
        self.moves: dict[tuple[str, str, str, int], dict[str, Any]] = {}
        self.runs: dict[str, list[str]] = {}
        self.changed = False
        self.surveyed = 1

    @initialize(
        mode=st.sampled_from(["auto", "auto", "approve"]),
        retries=st.integers(0, 2),
        limits=st.fixed_dictionaries(
            {
                "max_regions": st.integers(3, 9),
                "max_rounds": st.integers(1, 3),
                "max_time": st.sampled_from([1e9, 70.0]),
                "max_area": st.sampled_from([1e9, 130.0]),
                "max_exposure": st.sampled_from([1e9, 40.0]),
                "max_dose": st.sampled_from([1e9, 40.0, 70.0]),
            }
        ),
    )
    def begin_service(self, mode: Any, retries: int, limits: dict[str, Any]) -> None:
        shipped = load_profile("sim_xrf")
        soft = {
            "sample_y": SoftLimit(low=-1.0, high=37.0, units="um", backlash=0.3),
            "sample_x": SoftLimit(low=0.0, high=46.0, units="um", run_up=1.0),
        }
        more = {"mode": mode, "retries": retries, "soft_limits": soft, "expires": 400.0, **limits}
        self.allowed = shipped.rescan.model_copy(update=more)
        self.profile = shipped.model_copy(update={"rescan": self.allowed})
        self.ours = Rescans(self.journal, [self.profile], now=self.clock)
        self.journal.record_run("survey", 1, "sim_xrf", START)
        self.made("survey", ["spots"] * 4)

    def teardown(self) -> None:
        self.journal.close()
        self.folder.cleanup()

    def made(self, uid: str, targets: list[str]) -> None:
        """A result of a survey or composite is committed with what it proposes."""
        job = InferenceJob(
            key=job_key(uid, "primary", "n2n", {}),
            run_uid=uid,
            stream="primary",
            kind="final",
            recipe="n2n",
            parameters={},
            meta={"profile": "sim_xrf", "geometry": SURVEY, "dwell": 0.01},
            spool="/nowhere",
            arrays={},
            input_digest="",
            result_path="/nowhere.h5",
            host_id="here",
        )
        self.journal.add_job(job)
        found = self.journal.leases.lease("w", 10.0)
        if found is None:
            return
        result = InferenceResult(
            key=job.key,
            fence=found[0].fence,
            result_path="",
            digest="",
            report={"verdict": "pass"},
            regions=[
                {"box": box, "score": 50.0 - n, "target": target}
                for n, (box, target) in enumerate(zip(BOXES, targets, strict=True))
            ],
            timings={},
        )
        self.journal.computed(job.key, found[0].fence, result)
        proposals = self.ours.propose(job, result)
        self.journal.committed(job.key, f"result-{uid}", tuple(proposals))

    def proposal(self, number: int, *states: str) -> dict[str, Any]:
        """One of the proposals, of those in such a state where there are any."""
        proposals = self.journal.proposals()
        wanted = [one for one in proposals if one["state"] in states] or proposals
        return wanted[number % len(wanted)]

    @rule(number=numbers)
    def approve(self, number: int) -> None:
        try:
            self.ours.approve(self.proposal(number, "suggested", "failed")["id"], "ada")
        except NotAllowed as error:
            assert str(error).split(":")[0].isidentifier(), "a refusal names its rule"

    @rule(number=numbers, act=st.sampled_from(["queue", "queue", "unqueue", "unqueue", "refuse"]))
    def decide(self, number: int, act: str) -> None:
        of = {"queue": "approved", "unqueue": "queued", "refuse": "running"}[act]
        try:
            getattr(self.ours, act)(self.proposal(number, of)["id"], "ada")
        except NotAllowed as error:
            assert str(error).split(":")[0].isidentifier()

    @rule(number=numbers, which=numbers)
    def measure(self, number: int, which: int) -> None:
        """A plan as it should be: the next region that is left, by whoever has the proposal."""
        self.measure_one(self.proposal(number, "approved", "queued", "running"), which)

    def measure_one(self, proposal: dict[str, Any], which: int) -> None:
        left = [one for one in proposal["regions"] if one["label"] in proposal["left"]]
        if not left:
            return
        region = left[which % len(left)]
        name = self.executing(proposal)
        done = [key for key in self.moves if key[1:3] == (region["label"], name)]
        self.ask(proposal, region, name, len(done) + 1, None)

    @rule(
        number=numbers,
        execution=executions,
        which=numbers,
        attempt=st.integers(1, 3),
        shift=st.tuples(st.floats(-3, 3), st.floats(-0.003, 0.003)),
    )
    def ask_for_anything(
        self, number: int, execution: str, which: int, attempt: int, shift: Any
    ) -> None:
        """A plan that is confused, or another one."""
        proposal = self.proposal(number, "approved", "queued", "running", "failed")
        regions = proposal.get("all_regions") or proposal["regions"]
        if regions:
            name = self.executing(proposal) if execution == "one" else execution
            self.ask(proposal, regions[which % len(regions)], name, attempt, shift)

    @rule(
        number=numbers,
        regions=st.integers(1, 4),
        again=st.integers(0, 2),
        drift=st.none() | st.floats(-3, 3),
        end=st.sampled_from(["done", "failed", "failed", "refused", ""]),
    )
    def execute(self, number: int, regions: int, again: int, drift: Any, end: str) -> None:
        """A plan from its beginning to its end, or until it dies; it takes each region again so often."""
        self.approve(number)
        name = self.proposal(number, "approved", "queued", "running")["id"]
        for _ in range(regions):
            proposal = self.ours.find(name)
            left = [one for one in proposal["regions"] if one["label"] in proposal["left"]]
            for attempt in range(1, again + 2) if left else ():
                proposal = self.ours.find(name)
                shift = None if drift is None else (drift, 0.0)
                self.ask(proposal, left[0], self.executing(proposal), attempt, shift)
        proposal = self.ours.find(name)
        execution = self.executing(proposal)
        if end and execution in self.runs:
            runs = list(self.runs[execution])
            self.ours.update(name, execution, end, runs, "the fine scan failed: timeout")

    def executing(self, proposal: dict[str, Any]) -> str:
        """The execution that has a proposal, or a new one."""
        if proposal["state"] == "running":
            return proposal["who"].removeprefix("plan ")
        return f"{proposal['id'][:8]}-{proposal['attempts']}"

    def ask(
        self, proposal: dict[str, Any], region: dict[str, Any], name: str, attempt: int, shift: Any
    ) -> None:
        """A plan asks for a region, and measures it when it may: once for each of its attempts."""
        runs = self.runs.setdefault(name, [])
        answer = self.ours.update(
            proposal["id"],
            name,
            "running",
            list(runs),
            region=region["label"],
            shift=shift,
            attempt=attempt,
        )
        key = (proposal["id"], region["label"], name, attempt)
        if not answer["ok"]:
            assert answer["reason"].split(":")[0].isidentifier()
            return
        assert not self.changed, "the beamline is in another state"
        if key not in self.moves:
            uid = f"fine-{len(self.moves)}"
            self.moves[key] = {"region": region, "shift": shift or (0.0, 0.0), "uid": uid}
            marks = {"purpose": "fine", "parent_uid": "survey", "rescan_proposal": proposal["id"]}
            start = {**START, "uid": uid, **marks, "region": region["label"]}
            self.journal.record_run(uid, None, "sim_xrf", start)
            runs.append(uid)

    @rule(
        number=numbers,
        state=st.sampled_from(["running", "done", "failed", "failed", "refused"]),
        reason=st.sampled_from(["the fine scan failed: timeout", "the plan was stopped"]),
    )
    def report(self, number: int, state: str, reason: str) -> None:
        proposal = self.proposal(number, "running")
        name = self.executing(proposal)
        if name in self.runs:
            self.ours.update(proposal["id"], name, state, list(self.runs[name]), reason)

    @precondition(lambda self: self.moves)
    @rule(number=numbers)
    def next_round(self, number: int) -> None:
        """A composite of all that was measured asks for more precision everywhere."""
        uids = [one["uid"] for one in self.moves.values()]
        uid = f"composite-{len(uids)}"
        start = {**START, "uid": uid, "purpose": "composite", "parent_uid": "survey"}
        if self.journal.record_run(uid, None, "sim_xrf", {**start, "raw_uids": ["survey", *uids]}):
            self.made(uid, ["precision"] * 4 if number % 2 else ["spots", "precision"] * 2)

    @precondition(lambda self: len(self.journal.proposals()) < 5)
    @rule(row=st.integers(0, 34), col=st.integers(0, 44))
    def choose_places(self, row: int, col: int) -> None:
        box = {"box": [row, row + 5, col, col + 5], "score": 1.0}
        made = self.ours.propose_places("survey", [box], "ada")["proposal"]
        assert made["state"] in ("suggested", "refused", "expired") or made["history"][1:]

    @rule(seconds=st.floats(0, 60))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds
        self.ours.expire()

    @rule()
    def restart(self) -> None:
        before = self.journal.proposals()
        self.journal.close()
        self.journal = Journal(self.path, boot_id="boot")
        self.ours = Rescans(self.journal, [self.profile], now=self.clock)
        assert self.journal.proposals() == before

    @precondition(lambda self: len(self.moves) > 2)
    @rule()
    def change_the_sample(self) -> None:
        self.changed = True
        start = {**START, "uid": "other", "sample": {"name": "dust"}}
        self.journal.record_run("other", 9, "sim_xrf", start)

    @invariant()
    def no_region_is_measured_more_often_than_its_retries_allow(self) -> None:
        times = Counter((proposal, label) for proposal, label, *_ in self.moves)
        if times:
            assert max(times.values()) <= 1 + self.allowed.retries

    @invariant()
    def no_motor_leaves_its_limits(self) -> None:
        for move in self.moves.values():
            (slow, fast), (down, right) = (
                (move["region"]["slow_range"], move["region"]["fast_range"]),
                move["shift"],
            )
            # Two fine steps of a quarter micrometre and backlash; a micrometre of run-up.
            assert slow[0] + down - 0.8 >= -1.0 - 1e-9 and slow[1] + down + 0.8 <= 37.0 + 1e-9
            low, high = 1000 * (fast[0] + right) - 1.0, 1000 * (fast[1] + right) + 1.0
            assert low >= -1e-9 and high <= 46.0 + 1e-9
            assert abs(down) <= 2.0 and abs(1000 * right) <= 2.0 + 1e-9

    @invariant()
    def no_budget_of_the_survey_is_exceeded(self) -> None:
        regions = [move["region"] for move in self.moves.values()]
        if not regions:
            return
        for limit, name in (
            (self.allowed.max_time, "time_s"),
            (self.allowed.max_area, "area_um2"),
            (self.allowed.max_exposure, "exposure_s"),
        ):
            assert limit is None or sum(one[name] for one in regions) <= limit * (1 + 1e-9)
        assert len(regions) <= self.allowed.max_regions
        for here in regions:
            row, col = here["slow_range"][0], here["fast_range"][0]
            dose = sum(
                one["dose"]
                for one in regions
                if one["slow_range"][0] <= row < one["slow_range"][1]
                and one["fast_range"][0] <= col < one["fast_range"][1]
            )
            assert dose <= (self.allowed.max_dose or 0.0) * (1 + 1e-9)

    @invariant()
    def states_follow_each_other_as_they_should(self) -> None:
        for one in self.journal.proposals():
            states = [step["state"] for step in one["history"]]
            for before, after in zip(states, states[1:], strict=False):
                assert after in NEXT[before], states
            assert one["attempts"] <= 1 + self.allowed.retries
            assert one["round"] <= self.allowed.max_rounds or one["state"] == "refused"


AnyOrder.TestCase.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None, derandomize=True
)
TestAnyOrder = AnyOrder.TestCase
