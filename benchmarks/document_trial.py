"""What becomes of a run's documents: taken in as the service takes them, and looked at for anything false.

Each document is packed as the document log packs it and offered to the intake of its run; the assembler is the real
one. Nothing here waits or opens a socket, so that thousands of spoiled runs can be tried in a minute.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from document_runs import Documents, Run

from inscan.callbacks.assembly import open_assembler
from inscan.callbacks.document_log import DocumentLog
from inscan.callbacks.legible import legible
from inscan.callbacks.profile import BeamlineProfile
from inscan.callbacks.updates import Update
from inscan.callbacks.wire import WireError, pack, unpack
from inscan.service.intake import RunIntake, Uses

MOST_META = 1 << 20
"""Bytes of what a result may say of itself as JSON: more than any run has to say."""
MOST_REASON = 4000
"""Characters of a reason: what a message or a line of a report holds."""
# A reason that begins with the name of an exception is one that nobody expected.
_DEFECT = re.compile(r"(?:[A-Za-z_]+\.)*[A-Za-z]+(?:Error|Exception|Warning): ")
_ENDS = ("closed", "failed", "passed_by")


@dataclass
class Ending:
    """How a run ended.

    Attributes
    ----------
    finals, rejections, snapshots : list of Update
        What its assembler made of it.
    said : list of (str, str)
        Word (closed, failed, passed_by) and reason, each time one was recorded.
    state : str
        Of the intake afterwards.
    problems : list of str
        What was wrong with a snapshot at the moment in which it came.
    """

    finals: list[Update] = field(default_factory=list)
    rejections: list[Update] = field(default_factory=list)
    snapshots: int = 0
    said: list[tuple[str, str]] = field(default_factory=list)
    state: str = "open"
    problems: list[str] = field(default_factory=list)

    @property
    def how(self) -> str:
        """``result``, ``rejected``, ``failed``, ``passed_by`` or ``held``."""
        if self.rejections:
            return "rejected"
        word = self.said[0][0] if self.said else self.state
        return "result" if word == "closed" and self.finals else word

    @property
    def words(self) -> str:
        """Everything that people are told: reasons and warnings."""
        texts = [reason for _, reason in self.said]
        for update in (*self.finals, *self.rejections):
            texts += [str(update.meta.get("reason")), *update.meta.get("warnings", ())]
        return "\n".join(texts)

    def take(self, update: Update) -> None:
        """What the service would journal."""
        if update.kind == "snapshot":
            self.snapshots += 1
            self.problems += [f"snapshot: {text}" for text in unsound(update)]
        elif update.kind == "final":
            self.finals.append(update)
        else:
            self.rejections.append(update)


def packed(name: str, doc: Any) -> bytes:
    """As `inscan.callbacks.document_log` records a document."""
    try:
        return pack((name, doc))
    except WireError:
        return pack((name, legible(doc)))


class Arrays:
    """Arrays by name, which outlive an assembler as the spool's files do."""

    def __init__(self) -> None:
        self.known: dict[str, np.ndarray] = {}

    def __call__(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """As `inscan.service.spool.SpoolRun.allocate`: what was there before is taken up again."""
        array = self.known.get(name)
        if array is None or array.shape != shape or array.dtype != dtype:
            array = self.known[name] = np.zeros(shape, dtype)
        return array


class Trial:
    """One run on its way in; documents are given one by one, and the service may start anew in between."""

    def __init__(self, run_uid: str, profiles: Sequence[BeamlineProfile], folder: Path) -> None:
        self.ending = Ending()
        self._uid, self._profiles, self._folder = run_uid, profiles, folder.resolve()
        self._arrays = Arrays()
        self._log: list[bytes] = []
        self._intake = self._begin()

    def _begin(self) -> RunIntake:
        ending = self.ending

        def said(word: str) -> Callable[..., None]:
            return lambda run_uid, reason="": ending.said.append((word, reason))

        uses = Uses(
            open_run=lambda start: open_assembler(
                start, self._profiles, self._arrays, data_roots=[self._folder]
            ),
            on_update=ending.take,
            on_closed=said("closed"),
            on_passed_by=said("passed_by"),
            on_failed=said("failed"),
        )
        return RunIntake(self._uid, b"client", uses)

    def give(self, name: str, doc: Any) -> None:
        """The next document of the run's log."""
        self._log.append(packed(name, doc))
        self._offer(len(self._log) - 1)

    def restart(self) -> None:
        """The service dies before the run has ended: the next one is sent all of the log again."""
        if self._intake.state == "open":
            self._intake.abandon()
            self._intake.close()
            self._intake = self._begin()
            for offset in range(len(self._log)):
                self._offer(offset)

    def end(self, reason: str = "the acquisition ended without a stop document") -> Ending:
        """Say that no more will come, and return how the run ended."""
        if self._intake.state == "open":
            self._intake.end(reason)
            self._work()
        self.ending.state = self._intake.state
        self._intake.abandon()
        self._intake.close()
        return self.ending

    def _offer(self, offset: int) -> None:
        if self._intake.offer(offset, offset + 1, self._log[offset]) != "next":
            self.ending.problems.append(f"document {offset} was not taken")
        self._work()

    def _work(self) -> None:
        if self._intake.claim():
            self._intake.work(_nothing)


def _nothing() -> None:
    return


def try_run(run: Run, documents: Documents) -> Ending:
    """What becomes of documents of a run, all that is left of them and in this order, under its own profile."""
    trial = Trial(run.uid, [run.profile], run.folder)
    for name, doc in documents:
        trial.give(name, doc)
    return trial.end()


def wrong_with(ending: Ending) -> list[str]:
    """What a run must never be, whatever its documents were; nothing: it is as promised."""
    found = list(ending.problems)
    ends = [word for word, _ in ending.said if word in _ENDS] + ["rejected"] * len(
        ending.rejections
    )
    if len(ends) != 1:
        found.append(f"ended {len(ends)} times: {ends} ({ending.state})")
    if ending.state == "held":
        found.append("is held: it would be tried again for ever")
    if ending.said[:1] == [("closed", "")] and not ending.finals:
        found.append("was closed without a result")
    streams = [update.stream for update in ending.finals]
    if len(set(streams)) != len(streams):
        found.append(f"several finals of one stream: {streams}")
    if ending.finals and ending.rejections:
        found.append("both a result and a rejection")
    for word, reason in ending.said:
        if word != "closed" and not reason:
            found.append(f"{word} without a reason")
        if _DEFECT.match(reason):
            found.append(f"a defect: {reason[:300]}")
        if len(reason) > MOST_REASON:
            found.append(f"a reason of {len(reason)} characters")
    for update in (*ending.finals, *ending.rejections):
        found += unsound(update)
    return found


def unsound(update: Update) -> list[str]:
    """What is false or unfit in an update."""
    found = []
    try:
        text = json.dumps(update.meta, allow_nan=False)
    except (TypeError, ValueError) as error:
        return [f"its meta is no JSON: {error}"]
    if len(text) > MOST_META:
        found.append(f"{len(text)} characters of meta")
    reason = str(update.meta.get("reason") or "")
    if len(reason) > MOST_REASON:
        found.append(f"a reason of {len(reason)} characters")
    if update.kind == "rejected":
        if not reason:
            found.append("rejected without a reason")
        return found
    arrays = update.arrays
    return found + (_false_map(arrays) if "counts" in arrays else _false_stack(update))


def _false_map(arrays: Mapping[str, np.ndarray]) -> list[str]:
    found = []
    measured, exposure = np.asarray(arrays["measured"]), np.asarray(arrays["exposure"])
    if not (np.isfinite(exposure) & (exposure >= 0)).all():
        found.append("an exposure that is negative or not finite")
    if (measured & ~(exposure > 0).any(axis=0)).any():
        found.append("a measured pixel without exposure")
    if (exposure[:, ~measured] != 0).any():
        found.append("an exposure where nothing was measured")
    position = np.asarray(arrays["position"])
    if np.isinf(position).any():
        found.append("an infinite position")
    for name in ("counts", "background", "background_variance"):
        if name not in arrays:
            continue
        values = np.asarray(arrays[name]).transpose(0, 2, 3, 1)
        on = (exposure > 0) & measured
        seen = values[on]
        # The background of a line without room beside its peak is not known, and said so.
        seen = seen[~np.isnan(seen)] if name != "counts" else seen
        if not np.isfinite(seen).all():
            found.append(f"{name} that are not finite where measured")
        if name == "counts" and (seen < 0).any():
            found.append("negative counts where measured")
    return found


def _false_stack(update: Update) -> list[str]:
    found = []
    arrays = update.arrays
    if "transmission" not in arrays:
        return ["neither a map nor a stack"]
    measured = np.asarray(arrays["measured"])
    for name in ("transmission", "variance", "frames"):
        if not np.isfinite(np.asarray(arrays[name])[measured]).all():
            found.append(f"{name} not finite where measured")
    for name in ("transmission", "variance"):
        if (np.asarray(arrays[name])[~measured] != 0).any():
            found.append(f"{name} where nothing was measured")
    if (np.asarray(arrays["variance"])[measured] < 0).any():
        found.append("a negative variance")
    energies = np.asarray(update.meta["energies_ev"], float)
    if energies.shape != measured.shape[:1] or not (np.isfinite(energies) & (energies > 0)).all():
        found.append(f"energies {energies}")
    return found


def differs(ending: Ending, whole: Ending, *, part: bool = False) -> list[str]:
    """What is other than in the whole run; ``part``: pixels may be missing, none may be other."""
    found = []
    known = {update.stream: update for update in whole.finals}
    for update in ending.finals:
        if update.stream not in known:
            found.append(f"a result of {update.stream}, which the whole run has not")
            continue
        found += _other(update, known[update.stream], part)
    if not part and {u.stream for u in ending.finals} != set(known):
        found.append("not all results of the whole run")
    return found


def _other(update: Update, whole: Update, part: bool) -> list[str]:
    one, other = update.arrays, whole.arrays
    measured = np.asarray(one["measured"])
    if measured.shape != other["measured"].shape:
        return [f"shape {measured.shape} instead of {other['measured'].shape}"]
    if not part:
        same = one.keys() == other.keys()
        return (
            []
            if same
            and all(
                np.asarray(one[name]).tobytes() == np.asarray(other[name]).tobytes() for name in one
            )
            else [f"arrays of {update.stream} are others than those of the whole run"]
        )
    found = []
    if (measured & ~np.asarray(other["measured"])).any():
        found.append("pixels are measured that the whole run has not")
    if "counts" in one:
        on = np.asarray(one["exposure"]) > 0
        counts, whole_counts = (
            np.asarray(a["counts"]).transpose(0, 2, 3, 1)[on] for a in (one, other)
        )
        if not np.array_equal(counts, whole_counts):
            found.append("counts other than those of the whole run")
    elif not np.array_equal(
        np.asarray(one["frames"])[measured], np.asarray(other["frames"])[measured]
    ):
        found.append("frames other than those of the whole run")
    return found


def interleaved(runs: Sequence[Run], rng: Random, folder: Path) -> dict[str, Ending]:
    """Documents of several runs, mixed (each run's own in order), through a document log; how each run ended."""
    log = DocumentLog(folder / "log")
    left = [list(run.documents) for run in runs]
    while any(left):
        log.append(*rng.choice([documents for documents in left if documents]).pop(0))
    trials = {run.uid: Trial(run.uid, [run.profile], run.folder) for run in runs}
    for file in log.take_new():
        offset = 0
        while (record := file.read(offset)) is not None:
            offset = record.next
            trials[file.run_uid].give(*unpack(record.payload))
        file.close()
    return {run.kind: trials[run.uid].end() for run in runs}
