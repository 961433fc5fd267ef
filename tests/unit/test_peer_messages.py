"""Workers of the minor version before and after ours work; of another major version they are told so."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError, create_model

from inscan.callbacks import wire
from inscan.callbacks.wire import decode_message, encode_message
from inscan.service.dispatch import Dispatcher
from inscan.service.journal import Journal
from inscan.service.mailbox import Mailbox
from inscan.service.messages import PROTOCOL, InferenceJob, Strict, job_key
from inscan.service.settings import Settings

ANY = "tcp://127.0.0.1:0"
MAJOR, MINOR = PROTOCOL
# What version 1.0 of the protocol knew of a job: strictly that.
JobOfOnePointZero = create_model(
    "JobOfOnePointZero",
    __base__=Strict,
    **{
        name: (field.annotation, field)
        for name, field in InferenceJob.model_fields.items()
        if name != "refines"
    },  # type: ignore[call-overload]
)


class Talk:
    """A dispatcher, and a worker that speaks by hand."""

    def __init__(self, folder: Path) -> None:
        self.settings = Settings(state_dir=folder, ingest=ANY, broker=ANY, spool=ANY)
        self.settings.results_dir.mkdir(parents=True)
        self.journal = Journal(self.settings.journal_path)
        self.boxes = Mailbox(), Mailbox()
        self.sent: list[tuple[str, dict[str, Any], Any]] = []
        self.broker = Dispatcher(
            self.settings,
            self.journal,
            version="ours",
            writer=self.boxes[0],
            ingest=self.boxes[1],
            send=self.take,
        )

    def take(self, identity: bytes, kind: str, header: Strict, *chunks: bytes) -> bool:
        content = wire.unpack(chunks[0]) if chunks else None
        self.sent.append((kind, header.model_dump(), content))
        return True

    def close(self) -> None:
        self.journal.close()
        for box in self.boxes:
            box.close()

    def say(self, kind: str, header: dict[str, Any], *chunks: bytes) -> None:
        frames = [bytes(one) for one in encode_message(kind, header, *chunks)]
        self.broker.handle(b"w", decode_message(frames))

    def hello(self, protocol: tuple[int, int], **more: Any) -> None:
        greeting = {"protocol": list(protocol), "worker": "w", "host_id": "h", "boot_id": "b"}
        rest = {"pid": 1, "device": "cpu", "memory": 1, "version": "theirs", "credit": 1}
        self.say("HELLO", greeting | rest | more)

    def give(self, run_uid: str, refines: str = "") -> dict[str, Any]:
        """What the worker is sent of a job."""
        key = job_key(run_uid, "primary", "n2n", {})
        job = InferenceJob(
            key=key,
            run_uid=run_uid,
            stream="primary",
            kind="final",
            recipe="n2n",
            parameters={},
            meta={},
            spool="/s",
            arrays={},
            input_digest="",
            result_path="/r",
            refines=refines,
            host_id="h",
        )
        self.journal.add_job(job)
        self.broker.dispatch()
        kind, _, content = self.sent[-1]
        assert kind == "JOB"
        return content


@pytest.fixture
def talk(tmp_path: Path) -> Iterator[Talk]:
    made = Talk(tmp_path)
    yield made
    made.close()


def test_what_a_newer_worker_says_beyond_us_is_left_out(talk):
    talk.hello((MAJOR, MINOR + 1), temperature=300)
    assert talk.sent[-1][0] == "WELCOME"
    job = talk.give("run-1")
    beat = {"worker": "w", "key": job["key"], "fence": 1, "progress": 0.1, "steps": 1, "rss": 1}
    talk.say("HB", beat | {"credit": 0, "mood": "good"})
    path = Path(job["result_path"])
    path.write_bytes(b"x")
    ticket = {"key": job["key"], "fence": 1}
    result = {"result_path": str(path), "digest": "d", "report": {}, "regions": [], "timings": {}}
    talk.say("DONE", ticket | {"more": 1}, wire.pack(ticket | result | {"energy_j": 5.0}))
    assert talk.sent[-1][0] == "ACK" and talk.journal.job(job["key"])["state"] == "computed"


def test_a_worker_of_our_version_says_nothing_that_we_do_not_know(talk):
    with pytest.raises(ValidationError, match="temperature"):
        talk.hello(PROTOCOL, temperature=300)


def test_an_older_worker_is_sent_what_it_can_read(talk):
    talk.hello((MAJOR, MINOR - 1))
    content = talk.give("run-1")
    assert JobOfOnePointZero.model_validate(content)
    ours = talk.journal.request(content["key"])
    assert InferenceJob.model_validate(content).spool == ours.spool


def test_a_job_that_an_older_worker_cannot_read_waits_for_another(talk):
    talk.hello((MAJOR, MINOR - 1))
    content = talk.give("run-1", refines="a" * 64)
    with pytest.raises(ValidationError, match="refines"):
        JobOfOnePointZero.model_validate(content)
    failed = {"key": content["key"], "fence": 1, "code": "bad_job", "message": "?"}
    talk.say("FAIL", failed | {"retryable": False})
    assert talk.journal.job(content["key"])["state"] == "queued"
    notices = [header for kind, header, _ in talk.sent if kind == "ERR"]
    assert notices[-1]["code"] == "protocol" and "update it" in notices[-1]["message"]
    talk.broker.dispatch()
    assert talk.sent[-1][0] == "ACK", "it is given no other"


def test_another_major_version_is_refused(talk):
    talk.hello((MAJOR + 1, 0))
    kind, header, _ = talk.sent[-1]
    assert kind == "ERR" and "install the same version" in header["message"]
    assert talk.broker.status()["workers"] == []
