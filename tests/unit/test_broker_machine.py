"""The broker, its journal and workers on a clock of the test, without sockets: whatever happens in whatever order, each
final ends once."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from inscan.callbacks import wire
from inscan.callbacks.wire import Message, decode_message, encode_message
from inscan.service import dispatch, roster
from inscan.service.dispatch import Dispatcher
from inscan.service.events import Submit, WorkerLost
from inscan.service.job_requests import JobRequests
from inscan.service.journal import Journal, JournalError
from inscan.service.mailbox import Mailbox
from inscan.service.messages import (
    PROTOCOL,
    Fail,
    Heartbeat,
    Hello,
    InferenceJob,
    InferenceResult,
    Strict,
    Ticket,
    derived_uid,
    job_key,
)
from inscan.service.settings import Settings

EXAMPLES = int(os.environ.get("INSCAN_LONG", "0")) or 18
"""Histories that are tried; `INSCAN_LONG=5000` for an hour of them."""
FAST = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
HOST = "this host"
LEASE_S = 40.0
WORKERS = ("w1", "w2", "w3")
CODES = ["io", "too_large", "bad_input", "error", "drained", "cancelled", "stuck", "bad_job"]
ENDED = ("committed", "failed")


class Hand:
    """A worker as the broker knows it: what it has, and what it has said."""

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        self.pid = 1000 + number
        self.identity = f"{name}/{number}".encode()
        self.work: InferenceJob | None = None
        self.steps = 0


class AnyHistory(RuleBasedStateMachine):
    """Workers that come, go silent, die, lie and repeat themselves; a service that is killed; a journal that fails."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.date = 5000.0, 1.8e9
        self.folder = tempfile.TemporaryDirectory(dir=FAST)
        state = Path(self.folder.name)
        any_port = "tcp://127.0.0.1:0"
        self.settings = Settings(
            state_dir=state,
            lease_s=LEASE_S,
            ingest=any_port,
            broker=any_port,
            spool=any_port,
            budgets={"n2n": 500.0},
        )
        for path in (self.settings.results_dir, self.settings.live_dir):
            path.mkdir()
        clock = SimpleNamespace(monotonic=lambda: self.now, time=lambda: self.date)
        self.patches: list[Any] = [
            *(mock.patch.object(one, "time", clock) for one in (dispatch, roster)),
            mock.patch.object(dispatch, "host_id", lambda: HOST),
        ]
        for patch in self.patches:
            patch.start()
        self.boot = 0
        self.failing = 0
        self.mailboxes = [Mailbox() for _ in range(3)]
        self.hands: dict[bytes, Hand] = {}
        self.count = 0
        self.submitted: set[str] = set()
        self.fences: dict[str, int] = {}
        self.ended: dict[str, tuple[Any, ...]] = {}
        self.accepted: dict[str, str] = {}
        self.said: list[tuple[InferenceJob, str]] = []
        self.start()

    def start(self) -> None:
        """A service is started, on the journal of the one before."""
        path = self.settings.journal_path
        self.journal = Journal(
            path, clock=lambda: self.now, boot_id=f"boot-{self.boot}", backoff_s=1.0
        )
        whole = self.journal._file.transaction

        @contextmanager
        def transaction() -> Iterator[Any]:
            if self.failing:
                self.failing -= 1
                raise JournalError("no space left on device")
            with whole() as connection:
                yield connection

        self.journal._file.transaction = transaction  # type: ignore[method-assign]
        writer, ingest, self.mail = self.mailboxes
        self.broker = Dispatcher(
            self.settings,
            self.journal,
            version="test",
            writer=writer,
            ingest=ingest,
            send=self.send,
        )
        self.people = JobRequests(self.journal, self.mail)

    def teardown(self) -> None:
        try:
            self.come_to_an_end()
        finally:
            self.journal.close()
            for mailbox in self.mailboxes:
                mailbox.close()
            for patch in reversed(self.patches):
                patch.stop()
            self.folder.cleanup()

    def come_to_an_end(self) -> None:
        """Whoever works on gets every job to an end: nothing waits for ever."""
        self.failing = 0
        self.hands.clear()
        last = self.hello("last")
        for _ in range(8 * len(self.submitted) + 8):
            self.pass_time(70.0, beats=True)
            if last.work is not None:
                self.finish(last, "right")
            self.commit()
            if all(one["state"] in ENDED for one in self.journal.jobs()):
                break
        assert {one["key"] for one in self.journal.jobs()} == self.submitted
        left = {one["key"][:6]: one["state"] for one in self.journal.jobs()}
        assert set(left.values()) <= set(ENDED), left
        for one in self.journal.jobs("committed"):
            path = self.settings.results_dir / f"{one['key']}.h5"
            assert path.read_text() == one["digest"], "the file is that of the accepted result"

    # What passes between broker and workers

    def send(self, identity: bytes, kind: str, header: Strict, *chunks: bytes) -> bool:
        hand = self.hands.get(identity)
        if hand is None:
            return False
        if kind == "JOB":
            job = InferenceJob.model_validate(wire.unpack(chunks[0]))
            if job.kind == "final":
                assert job.fence > self.fences.get(job.key, 0), "fences rise"
                self.fences[job.key] = job.fence
            if hand.work is None:
                hand.work, hand.steps = job, 0
        elif isinstance(header, Ticket) and hand.work is not None:
            if (header.key, header.fence) == (hand.work.key, hand.work.fence) and kind == "ACK":
                hand.work = None
        return True

    def says(self, hand: Hand, kind: str, header: Strict, *chunks: bytes) -> None:
        frames = encode_message(kind, header.model_dump(mode="json"), *chunks)
        message: Message = decode_message([bytes(one) for one in frames])
        self.told(lambda: self.broker.handle(hand.identity, message))

    def told(self, act: Callable[[], object]) -> None:
        """As the broker's thread does it: a journal that refuses ends nothing."""
        try:
            act()
        except JournalError:
            return

    def pass_time(self, seconds: float, *, beats: bool = False) -> None:
        """Looked at often enough, as the broker does it; what passes between two looks was slept through."""
        while seconds > LEASE_S / 3:
            self.leap(LEASE_S / 3, beats=beats)
            seconds -= LEASE_S / 3
        self.leap(seconds, beats=beats)

    def leap(self, seconds: float, *, beats: bool = False) -> None:
        self.now += seconds
        for hand in list(self.hands.values()) if beats else ():
            self.beat(hand)
        for item in self.mail.drain():
            self.told(lambda item=item: self.broker.mail(item))
        self.told(self.broker.watch_clocks)
        self.told(self.broker.dispatch)
        for mailbox in self.mailboxes[:2]:
            mailbox.drain()

    def beat(self, hand: Hand) -> None:
        work = hand.work
        hand.steps += 1
        beat = Heartbeat(
            worker=hand.name,
            key=work.key if work else None,
            fence=work.fence if work else 0,
            progress=0.5,
            steps=hand.steps,
            rss=1,
            credit=int(work is None),
        )
        self.says(hand, "HB", beat)

    def hello(self, name: str) -> Hand:
        self.count += 1
        hand = Hand(name, self.count)
        self.hands[hand.identity] = hand
        self.greet(hand)
        return hand

    def greet(self, hand: Hand) -> None:
        greeting = Hello(
            protocol=PROTOCOL,
            worker=hand.name,
            host_id=HOST,
            boot_id="b",
            pid=hand.pid,
            device="cpu",
            memory=1,
            version="0",
            credit=int(hand.work is None),
        )
        self.says(hand, "HELLO", greeting)

    def finish(self, hand: Hand, digest: str) -> None:
        job = hand.work
        assert job is not None
        self.write(job, digest)
        self.said.append((job, digest))
        self.says(hand, "DONE", *self.done(job, digest))

    def write(self, job: InferenceJob, digest: str) -> None:
        path = Path(job.result_path)
        temporary = path.with_suffix(".part")
        temporary.write_text(digest)
        temporary.replace(path)

    def done(self, job: InferenceJob, digest: str) -> tuple[Ticket, bytes]:
        result = InferenceResult(
            key=job.key,
            fence=job.fence,
            result_path=job.result_path,
            digest=digest,
            report={},
            regions=[],
            timings={},
        )
        return Ticket(key=job.key, fence=job.fence), wire.pack(result.model_dump(mode="json"))

    def one_of(self, number: int, *, at_work: bool = False) -> Hand | None:
        hands = [one for one in self.hands.values() if one.work or not at_work]
        return hands[number % len(hands)] if hands else None

    # What may happen

    @initialize()
    def begin(self) -> None:
        self.hello("w1")
        self.submit(0)
        self.pass_time(0.1)

    @rule(number=st.integers(0, 3))
    def submit(self, number: int) -> None:
        run_uid = f"run-{number}"
        job = self.job_of(run_uid, "final")
        if self.failing or job.key in self.submitted:
            return
        self.journal.record_run(run_uid, number, "test", {"uid": run_uid})
        self.journal.add_job(job)
        self.journal.synced(job.key, "sha256:in")
        self.journal.finish_run(run_uid, "complete")
        self.submitted.add(job.key)
        self.mail.post(Submit(job))

    @rule(number=st.integers(0, 3), rows=st.integers(1, 9))
    def snapshot(self, number: int, rows: int) -> None:
        job = self.job_of(f"run-{number}", "snapshot", rows)
        self.mail.post(Submit(job))

    def job_of(self, run_uid: str, kind: Any, rows: int | None = None) -> InferenceJob:
        key = job_key(run_uid, "primary", "n2n", {}, snapshot=rows)
        folder = self.settings.live_dir if rows else self.settings.results_dir
        return InferenceJob(
            key=key,
            run_uid=run_uid,
            stream="primary",
            kind=kind,
            recipe="n2n",
            parameters={},
            meta={"rows_done": rows, "start_time": self.date - 10.0},
            spool=self.folder.name,
            arrays={},
            input_digest="",
            result_path=str(folder / f"{run_uid if rows else key}.h5"),
            host_id=HOST,
        )

    @rule(name=st.sampled_from(WORKERS))
    def comes(self, name: str) -> None:
        """A worker that is new, or connects again and has forgotten what it did."""
        for identity in [one for one, hand in self.hands.items() if hand.name == name]:
            del self.hands[identity]
        self.hello(name)

    @rule(number=st.integers(0, 9))
    def connects_again(self, number: int) -> None:
        """The same worker under another connection, with the job that it has."""
        hand = self.one_of(number)
        if hand is not None:
            del self.hands[hand.identity]
            self.count += 1
            hand.identity = f"{hand.name}/{self.count}".encode()
            self.hands[hand.identity] = hand
            self.greet(hand)

    @rule(number=st.integers(0, 9), noticed=st.booleans())
    def dies(self, number: int, noticed: bool) -> None:
        hand = self.one_of(number)
        if hand is not None:
            del self.hands[hand.identity]
            if noticed:
                self.mail.post(WorkerLost(hand.pid, "killed by signal 9"))

    @rule(number=st.integers(0, 9))
    def beats(self, number: int) -> None:
        hand = self.one_of(number)
        if hand is not None:
            self.beat(hand)

    @rule(seconds=st.sampled_from([0.0, 0.3, 1.0, 6.0, 40.0, 200.0]), beats=st.booleans())
    def time_passes(self, seconds: float, beats: bool) -> None:
        self.pass_time(seconds, beats=beats)

    @rule(seconds=st.sampled_from([30.0, 500.0]))
    def the_service_is_frozen(self, seconds: float) -> None:
        self.leap(seconds)

    @rule(hours=st.sampled_from([-7.0, 5.0]))
    def the_date_is_set(self, hours: float) -> None:
        self.date += hours * 3600

    @rule(number=st.integers(0, 9), digest=st.sampled_from(["right", "right", "other"]))
    def finishes(self, number: int, digest: str) -> None:
        hand = self.one_of(number, at_work=True)
        if hand is not None:
            self.finish(hand, digest)

    @precondition(lambda self: self.said and self.hands)
    @rule(
        number=st.integers(0, 99), who=st.integers(0, 9), written=st.booleans(), other=st.booleans()
    )
    def repeats(self, number: int, who: int, written: bool, other: bool) -> None:
        """A result of any dispatch once more, its file there or not, by whomever."""
        job, digest = self.said[number % len(self.said)]
        digest = "other" if other else digest
        path = Path(job.result_path)
        if written:
            self.write(job, digest)
        elif path.exists():
            digest = (
                path.read_text()
            )  # what is said of a file is true: the writer looks before it commits
        hand = self.one_of(who)
        assert hand is not None
        self.says(hand, "DONE", *self.done(job, digest))

    @rule(number=st.integers(0, 9), code=st.sampled_from(CODES), retryable=st.booleans())
    def fails(self, number: int, code: str, retryable: bool) -> None:
        hand = self.one_of(number, at_work=True)
        if hand is not None and hand.work is not None:
            said = Fail(
                key=hand.work.key,
                fence=hand.work.fence,
                code=code,
                message="as it may be",
                retryable=retryable,
            )
            self.says(hand, "FAIL", said)

    @rule()
    def commit(self) -> None:
        for job, result in self.journal.uncommitted():
            assert self.accepted.setdefault(job.key, result.digest) == result.digest
            self.told(lambda job=job: self.journal.committed(job.key, derived_uid(job.key)))

    @rule(number=st.integers(0, 3))
    def somebody_retries(self, number: int) -> None:
        key = self.job_of(f"run-{number}", "final").key
        failed = {one["key"] for one in self.journal.jobs("failed")}
        try:
            answer = self.people.retry("ada", key)
        except (LookupError, ValueError):
            assert key not in failed
            return
        except JournalError:
            return
        assert [one["key"] for one in answer["retried"]] == [key]
        del self.ended[key]

    @rule(number=st.integers(0, 3))
    def somebody_quarantines(self, number: int) -> None:
        key = self.job_of(f"run-{number}", "final").key
        try:
            self.people.quarantine("ada", key, "it takes too long")
        except (LookupError, ValueError, JournalError):
            return
        assert self.state_of(key) == ("failed", "quarantined")

    @rule(count=st.integers(1, 4))
    def the_journal_refuses(self, count: int) -> None:
        self.failing = count

    @rule(reboot=st.booleans())
    def the_service_is_killed(self, reboot: bool) -> None:
        self.failing = 0
        self.journal.close()
        for mailbox in self.mailboxes:
            mailbox.drain()
        if reboot:
            self.boot += 1
            self.now = 100.0
            self.hands.clear()
        self.start()

    # What holds at any time

    def state_of(self, key: str) -> tuple[str, str]:
        found = self.journal.job(key)
        assert found is not None
        return found["state"], found["code"]

    @invariant()
    def ends_are_final(self) -> None:
        for one in self.journal.jobs():
            record = (one["state"], one["digest"], one["result_uid"], one["code"], one["reason"])
            if one["key"] in self.ended:
                assert record == self.ended[one["key"]]
            elif one["state"] in ENDED:
                self.ended[one["key"]] = record

    @invariant()
    def the_first_result_stands(self) -> None:
        for one in self.journal.jobs():
            if one["state"] in ("computed", "committed"):
                first = self.accepted.setdefault(one["key"], one["digest"])
                assert one["digest"] == first
                path = self.settings.results_dir / f"{one['key']}.h5"
                assert path.read_text() == first, "its file was changed afterwards"

    @invariant()
    def nobody_shares_a_lease(self) -> None:
        tickets = [peer.work.ticket for peer in self.broker._roster if peer.work]
        finals = [one for one in tickets if one[0] in self.submitted]
        assert len(finals) == len(set(finals))
        leased = {(one["key"], one["dispatches"]) for one in self.journal.jobs("leased")}
        held = [peer for peer in self.broker._roster if peer.work and peer.work.ticket in leased]
        assert len(held) <= len(leased)

    @invariant()
    def none_is_lost(self) -> None:
        assert {one["key"] for one in self.journal.jobs()} == self.submitted


AnyHistory.TestCase.settings = hypothesis_settings(
    max_examples=EXAMPLES, stateful_step_count=40, deadline=None, derandomize=EXAMPLES < 100
)
TestAnyHistory = AnyHistory.TestCase
