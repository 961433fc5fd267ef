"""Random and malicious bytes on every port, for minutes, while good hosts and workers go on: `--minutes 10`.

Nothing may end, grow without bound, or keep the good ones from their results.
"""

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import fault_row
import psutil
from fault_row import FaultRow
from fuzz_hostile import Hostile
from fuzz_messages import TO_BROKER, TO_CLIENT, TO_INGEST, TO_SPOOL, TO_WORKER, Sample, mutated
from network_rig import NetworkRig
from pydantic import BaseModel, ValidationError
from rich.console import Console

from inscan.callbacks.request import NoServiceError, request
from inscan.callbacks.wire import WireError, decode_message, unpack
from inscan.service import messages

_HERE = Path(__file__).resolve().parent
_GROWTH = 400 << 20
"""A service that holds more than it did by so many bytes after an attack has grown."""
Attacks = Sequence[tuple[str, str]]
"""(kind of attack, line)."""


class Fuzz:
    """Attacks on one rig, and what the service says and weighs meanwhile."""

    def __init__(self, rig: NetworkRig, seed: int) -> None:
        self.rig = rig
        self.seed = seed
        self.figures: dict[str, Any] = {}
        self._number = 0

    @property
    def service(self) -> psutil.Process:
        assert self.rig.rig.process is not None
        return psutil.Process(self.rig.rig.process.pid)

    def attack(self, attacks: Attacks, seconds: float) -> Callable[[], int]:
        """Start attackers, go on with good work until they are done."""

        def act() -> int:
            running = [(kind, line, self._start(kind, line, seconds)) for kind, line in attacks]
            self._watched(lambda: all(one.poll() is not None for *_, one in running), seconds + 60)
            sent: Counter[str] = Counter()
            for kind, line, one in running:
                told, _ = one.communicate(timeout=60)
                if one.returncode:
                    self.rig.problems.append(f"attacker {kind} on {line} ended: {told[-500:]}")
                    continue
                counts = json.loads(told)
                self.figures[f"{kind} on {line}"] = counts
                sent.update(counts)
            return sum(sent[name] for name in ("messages", "pieces")) or sent["connections"]

        return act

    def _start(self, kind: str, line: str, seconds: float) -> "subprocess.Popen[str]":
        self._number += 1
        target = self.rig.targets[line].rpartition("://")[2]
        words = [kind, target, str(seconds), str(self.seed + self._number), line]
        return subprocess.Popen(
            [sys.executable, str(_HERE / "fuzz_attack.py"), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=_HERE,
        )

    def _watched(self, over: Callable[[], bool], seconds: float) -> None:
        """Go on until it is over; how long a good client waits for an answer, and what the service weighs."""
        service, waits, sizes = self.service, [], [self.service.memory_info().rss]
        files = [service.num_fds()]
        stop = threading.Event()

        def look() -> None:
            while not stop.wait(0.5):
                started = time.monotonic()
                try:
                    request(self.rig.targets["ingest"], "known_runs", timeout=30.0, uids=[])
                    waits.append(time.monotonic() - started)
                except (NoServiceError, OSError):
                    waits.append(30.0)
                try:
                    sizes.append(service.memory_info().rss)
                    files.append(service.num_fds())
                except psutil.NoSuchProcess:
                    self.rig.problems.append("the service is gone")
                    return

        looking = threading.Thread(target=look, name="look")
        looking.start()
        self.rig.go(seconds, over)
        stop.set()
        looking.join()
        waits.sort()
        self.figures |= {
            "service_mb": {"before": sizes[0] >> 20, "most": max(sizes) >> 20},
            "service_files_most": max(files),
            "good_client_waits_s": {
                "median": round(waits[len(waits) // 2], 3) if waits else None,
                "longest": round(waits[-1], 3) if waits else None,
            },
        }

    def few_files(self, seconds: float) -> Callable[[], int]:
        """Let the service have forty files more than it holds, and take them away from it."""

        def act() -> int:
            before = self.service.rlimit(resource.RLIMIT_NOFILE)
            assert before is not None
            few = self.service.num_fds() + 40
            self.service.rlimit(resource.RLIMIT_NOFILE, (few, before[1]))
            self.figures["files_allowed"] = few
            try:
                return self.attack([("idle", "ingest"), ("idle", "broker")], seconds)()
            finally:
                self.service.rlimit(resource.RLIMIT_NOFILE, before)

        return act

    def hostile_service(self, seconds: float) -> int:
        """The hosts' line leads to somebody else for a while."""
        line = self.rig.lines["ingest"]
        hostile = Hostile(TO_CLIENT, self.seed)
        line.retarget(hostile.address)
        line.cut()
        self.rig.most_open = 30
        self.rig.go(seconds)
        self.rig.most_open = 4
        line.retarget(self.rig.targets["ingest"])
        line.cut()
        hostile.stop()
        self.figures["hostile"] = dict(hostile.counts)
        self.rig.problems += [f"{h.name} is gone" for h in self.rig.hosts if not h.alive]
        return hostile.counts["sent"] + hostile.counts["sent right"]

    def hostile_broker(self, seconds: float) -> int:
        """A worker whose broker means it harm: it may leave in order, and is started again."""
        hostile = Hostile(TO_WORKER, self.seed)
        ends: Counter[str] = Counter()
        end, worker = time.monotonic() + seconds, None
        program = (
            str(_HERE / "far_worker.py"),
            self.rig.targets["spool"],
            "--parent",
            str(os.getpid()),
        )
        while time.monotonic() < end:
            with (self.rig.rig.folder / "hostile.log").open("ab") as log:
                worker = subprocess.Popen(
                    [sys.executable, *program, f"tcp://{hostile.address}"],
                    stdout=log,
                    stderr=log,
                    cwd=_HERE,
                )
            self.rig.go(max(0.0, end - time.monotonic()), lambda one=worker: one.poll() is not None)
            if worker.poll() is not None:
                ends[f"status {worker.returncode}"] += 1
        if worker is not None and worker.poll() is None:
            worker.terminate()
            ends[f"told to stop: {worker.wait(60)}"] += 1
        hostile.stop()
        self.figures |= {"hostile": dict(hostile.counts), "worker_ends": dict(ends)}
        # 0 when told to, 3 when refused, 4 when its key is, 75 when a job does not let go.
        bad = [words for words in ends if words.rpartition(" ")[2] not in ("0", "3", "4", "75")]
        self.rig.problems += [f"a worker ended with {words}" for words in bad]
        return hostile.counts["sent"] + hostile.counts["sent right"]

    def note(self) -> dict[str, Any]:
        """Figures of the attack that is over; complains of a service that has grown."""
        figures, self.figures = self.figures, {}
        size = figures.get("service_mb")
        if size is not None:
            size["after"] = self.service.memory_info().rss >> 20
            if size["after"] - size["before"] > _GROWTH >> 20:
                figures["grown"] = size
        return figures


_MODELS: tuple[type[BaseModel], ...] = (
    messages.InferenceJob,
    messages.InferenceResult,
    messages.Hello,
    messages.Welcome,
    messages.Heartbeat,
    messages.Partial,
    messages.Fail,
    messages.Ticket,
    messages.Notice,
)


def decoders(seconds: float, seed: int) -> FaultRow:
    """Mutated messages straight into the decoders, in this process: nothing but their own errors may come out."""
    rng = random.Random(seed)
    samples: tuple[Sample, ...] = TO_INGEST + TO_BROKER + TO_SPOOL + TO_CLIENT + TO_WORKER
    counts: Counter[str] = Counter()
    problems: list[str] = []
    started = time.monotonic()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    while time.monotonic() - started < seconds:
        sent = mutated(rng.choice(samples), rng)
        counts["messages"] += 1
        try:
            message = decode_message(sent)
            counts["understood"] += 1
            content = [unpack(chunk) for chunk in message.chunks]
            for model in _MODELS:
                for one in (message.header, *content):
                    _model(model, one, counts)
        except WireError:
            counts["refused"] += 1
        except Exception as error:  # noqa: BLE001 - that is what is looked for
            problems.append(f"{type(error).__name__}: {error} for {b'|'.join(sent)[:200]!r}")
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    figures = {**counts, "peak_grew_mb": grown >> 10, "problems": problems[:20]}
    return FaultRow(
        "mutated messages into the decoders",
        "codec, and the models of all messages",
        counts["messages"],
        0,
        0,
        0,
        len(problems),
        0,
        round(time.monotonic() - started, 1),
        f"{counts['understood']} understood, {counts['refused']} refused, "
        f"{counts['invalid']} times refused by a model; peak of memory grew by {grown >> 10} MB",
        figures,
    )


def _model(model: type[BaseModel], content: object, counts: Counter[str]) -> None:
    try:
        model.model_validate(content)
        counts["valid"] += 1
    except ValidationError:
        counts["invalid"] += 1


def _trials(
    fuzz: Fuzz, seconds: float
) -> Iterator[tuple[str, str, Callable[[], int], tuple[str, ...]]]:
    every = ("ingest", "broker", "spool")
    yield (
        "random bytes",
        "on ingest, broker, spool server and Tiled at once; half of them behind a good ZMTP greeting",
        fuzz.attack([("raw", line) for line in (*every, "tiled")], seconds),
        (),
    )
    yield (
        "ZMTP framing that lies",
        "good handshakes, then unknown commands, sizes of up to 2^64, reserved flags, a thousand parts",
        fuzz.attack([("framing", line) for line in every], seconds),
        (),
    )
    yield (
        "mutated messages to ingest and spool server",
        "every kind, with right checksums",
        fuzz.attack([("messages", "ingest"), ("messages", "spool")], 2 * seconds),
        (),
    )
    yield (
        "mutated messages to the broker",
        "every kind, with right checksums; some of these workers are given jobs, which two of them end",
        fuzz.attack([("messages", "broker"), ("messages", "broker")], 2 * seconds),
        ("quarantined",),
    )
    yield (
        "a flood of tiny messages",
        "one peer of ingest and one of the broker, as fast as they go",
        fuzz.attack([("flood", "ingest"), ("flood", "broker")], seconds),
        (),
    )
    yield (
        "a flood of large messages",
        "4 MB each to ingest, 1 MB each to the spool server, as fast as they go",
        fuzz.attack([("big", "ingest"), ("big", "spool")], seconds),
        (),
    )
    yield (
        "slow handshakes and silent connections",
        "300 handshakes at a byte a second on ingest and broker, 5000 connections to ingest that say nothing",
        fuzz.attack([("loris", "ingest"), ("loris", "broker"), ("idle", "ingest")], seconds),
        (),
    )
    yield (
        "connections come and go",
        "as fast as they go, on three ports; some with half a greeting, some end with a reset",
        fuzz.attack([("storm", line) for line in every], seconds),
        (),
    )
    yield (
        "no files left",
        "the service may open 40 more, and silent connections take them all",
        fuzz.few_files(seconds),
        (),
    )
    yield (
        "a hostile service",
        "hosts are led to a socket that answers every message with harm, then back",
        lambda: fuzz.hostile_service(seconds),
        (),
    )
    yield (
        "a hostile broker",
        "a worker whose broker answers every message with harm",
        lambda: fuzz.hostile_broker(seconds),
        (),
    )


def run(seed: int, minutes: float, folder: str, only: str) -> Iterator[FaultRow]:
    """Share the minutes out among the attacks; one row each."""
    seconds = 60.0 * minutes / 14
    if only in "mutated messages into the decoders":
        yield _say(decoders(seconds, seed))
    with tempfile.TemporaryDirectory(prefix="inscan-fuzz-", dir=folder or None) as place:
        rig = NetworkRig(Path(place), seed)
        try:
            fuzz = Fuzz(rig, seed)
            for fault, how, act, may_fail in _trials(fuzz, seconds):
                if only in fault:
                    yield _say(rig.trial(fault, how, act, may_fail=may_fail, note=fuzz.note))
        finally:
            rig.close()


def _say(row: FaultRow) -> FaultRow:
    said = Console(stderr=True)
    said.print(
        f"{time.strftime('%H:%M:%S')} {row.fault}: {row.times} sent, {row.runs} runs, {row.lost} lost,"
        f" {row.duplicated} duplicated, {row.seconds:.0f} s. {row.remarks}",
        markup=False,
        soft_wrap=True,
    )
    for problem in row.figures["problems"]:
        said.print(f"  {problem}", style="red", markup=False, soft_wrap=True)
    return row


if __name__ == "__main__":
    sys.exit(
        fault_row.main(
            "fuzz",
            run,
            minutes=(float, 14.0, "altogether"),
            folder=(str, "", "where the files go; by default the system's"),
            only=(str, "", "only attacks whose name has this in it"),
        )
    )
