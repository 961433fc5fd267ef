"""The writer thread: what workers computed goes into Tiled, and whoever waits for it is told.

The journal is the truth: a result stays `computed` until Tiled has it whole. While Tiled is away the thread waits, with
growing pauses, and everything it would have written waits in the journal.
"""

import dataclasses
import logging
import select
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from inscan.service import derived
from inscan.service.commit import Committer, DamagedResult
from inscan.service.journal import Journal, JournalError
from inscan.service.mailbox import Mailbox
from inscan.service.messages import InferenceJob, InferenceResult, job_key
from inscan.service.result_file import ResultFileError, read_weights
from inscan.service.result_view import StoredArray, describe
from inscan.service.shelf import Shelf, line_of
from inscan.service.tiled_http import TiledHTTP, TiledRejected

_log = logging.getLogger(__name__)

Propose = Callable[[InferenceJob, InferenceResult], Sequence[dict[str, Any]]]
Announce = Callable[[str], None]


@dataclass(frozen=True)
class Target:
    """The Tiled to write to.

    Attributes
    ----------
    uri : str
    api_key : SecretStr or None
    readable : tuple of Path
        Folders that it may read where they are.
    shared : Path or None
        Folder that it may read and into which results are copied; None to upload what is not in `readable`.
    """

    uri: str
    api_key: SecretStr | None
    readable: tuple[Path, ...] = ()
    shared: Path | None = None


@dataclass(frozen=True)
class Prepare:
    """To the writer: a snapshot of a growing run is in `path`; its final will look like it."""

    job: InferenceJob
    path: str


@dataclass(frozen=True)
class WriterStatus:
    """What the writer is doing: `state` idle, writing, waiting (for Tiled, or the disk) or stopped, and why."""

    state: str
    reason: str
    committed: int
    last_s: float
    """Seconds that the latest commit took, 0 before the first."""


class Writer:
    """Owns the one connection that writes to Tiled.

    Parameters
    ----------
    journal : Journal
    target : Target
    mailbox : Mailbox
        Anything posted makes the thread look into the journal; `Prepare` makes it prepare a run. Owned by the caller.
    results_dir : Path
        Where finals are written, as `KEY.h5`.
    announce : callable
        Called with the uid of a raw run when the journal may have its outcome; must not block.
    propose : callable or None
        Called with a job and its result just before it is committed; what it returns goes into the journal with it.
    shelf : Shelf or None
        Where weights that were fitted to a run are kept; None to keep them in its result file alone.
    first_pause_s, longest_pause_s : float
        Pauses while Tiled does not take what we have.
    """

    def __init__(
        self,
        journal: Journal,
        target: Target,
        mailbox: Mailbox,
        *,
        results_dir: Path,
        announce: Announce,
        propose: Propose | None = None,
        shelf: Shelf | None = None,
        first_pause_s: float = 0.5,
        longest_pause_s: float = 30.0,
        timeout_s: float = 20.0,
    ) -> None:
        self._journal = journal
        self._target = target
        self._mailbox = mailbox
        self._results_dir = results_dir
        self._announce = announce
        self._propose = propose
        self._shelf = shelf
        self._first_pause_s = first_pause_s
        self._longest_pause_s = longest_pause_s
        self._timeout_s = timeout_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._tiled: TiledHTTP | None = None
        self._committer: Committer | None = None
        self._recorded: set[str] = set()
        self._preparing: dict[str, Prepare] = {}
        self._status = WriterStatus("idle", "", 0, 0.0)

    @property
    def status(self) -> WriterStatus:
        """What the writer is doing now."""
        return self._status

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Start the thread; what waited in the journal is written first."""
        self._thread.start()

    def stop(self, grace_s: float = 10.0) -> bool:
        """Finish the commit under way and end; False when it did not within `grace_s` seconds."""
        self._stopping.set()
        if not self._thread.is_alive():
            return True
        self._mailbox.post(None)
        self._thread.join(grace_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        pause: float | None = None
        while not self._stopping.is_set():
            try:
                self._round()
                pause = None
                self._say("idle")
            except (OSError, JournalError) as error:
                # Tiled away or refusing us, or a full disk: all of it may mend, and nothing is lost meanwhile.
                pause = min(2 * pause if pause else self._first_pause_s, self._longest_pause_s)
                self._disconnect()
                if self._status.reason != str(error):
                    _log.warning("results wait in the journal: %s", error)
                self._say("waiting", str(error))
            self._wait(pause)
        self._disconnect()
        self._say("stopped")

    def _wait(self, pause: float | None) -> None:
        """Wait for mail, at most `pause` seconds; while Tiled is away mail does not shorten the pause."""
        deadline = None if pause is None else time.monotonic() + pause
        while not self._stopping.is_set():
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            select.select([self._mailbox], [], [], left)
            for item in self._mailbox.drain():
                if isinstance(item, Prepare):
                    self._preparing[item.job.run_uid] = item
            if deadline is None or time.monotonic() >= deadline:
                return

    def _round(self) -> None:
        for job, result in self._journal.uncommitted():
            if self._stopping.is_set():
                return
            self._commit(job, result)
        for failed in self._journal.jobs("failed"):
            if failed["key"] not in self._recorded:
                self._record_failure(failed)
        while self._preparing and not self._stopping.is_set():
            run_uid, wanted = next(iter(self._preparing.items()))
            self._prepare(wanted)
            del self._preparing[run_uid]

    def _connected(self) -> Committer:
        if self._committer is None:
            tiled = TiledHTTP(self._target.uri, self._target.api_key, timeout_s=self._timeout_s)
            try:
                tiled.ensure_catalogs()
            except BaseException:
                tiled.close()
                raise
            self._tiled = tiled
            self._committer = Committer(
                tiled, readable=self._target.readable, shared=self._target.shared
            )
        return self._committer

    def _disconnect(self) -> None:
        if self._committer is not None:
            self._committer.close()
        if self._tiled is not None:
            self._tiled.close()
        self._committer = self._tiled = None

    def _commit(self, job: InferenceJob, result: InferenceResult) -> None:
        started = time.monotonic()
        path = Path(result.result_path)
        self._say("writing")
        try:
            run = derived.compose(
                job, result, describe(path), self._raw_start(job.run_uid), time.time()
            )
            axes = derived.axes_of(job.meta, result.report, run.arrays)
            fate = self._connected().commit(run, axes, path, result.digest)
        except (DamagedResult, ResultFileError, FileNotFoundError) as error:
            self._give_up(job.key, "result_damaged", str(error))
            return
        except TiledRejected as error:
            self._give_up(job.key, "tiled_rejected", str(error))
            return
        if fate == "differs":
            _log.warning("job %s: Tiled has another result, which stands", job.key[:12])
        self._keep_weights(job, result, path)
        self._journal.committed(job.key, run.uid, tuple(self._proposals(job, result)))
        took = time.monotonic() - started
        self._status = dataclasses.replace(
            self._status, committed=self._status.committed + 1, last_s=took
        )
        self._announce(job.run_uid)

    def _keep_weights(self, job: InferenceJob, result: InferenceResult, path: Path) -> None:
        """Put weights fitted to the run where the next one finds them; a result that is blocked recommends none."""
        if self._shelf is None or result.report.get("verdict") == "block":
            return
        try:
            weights = read_weights(path)
            if weights is not None and line_of(job.meta) is not None:
                kept = self._shelf.put(job.key, weights)
                _log.info("weights %s of run %s are kept", kept.sha256[:12], job.run_uid)
        except (OSError, ValueError) as error:
            # The result stands without them, and its file has them.
            _log.warning("weights of run %s are not kept: %s", job.run_uid, error)

    def _proposals(self, job: InferenceJob, result: InferenceResult) -> Sequence[dict[str, Any]]:
        # What refines a result comes minutes later: its run's places were proposed with the first one.
        if self._propose is None or job.refines:
            return ()
        try:
            return self._propose(job, result)
        except (ValueError, LookupError, TypeError, ArithmeticError):
            # A result must not be lost, or held up for ever, because nothing could be made of its regions.
            _log.exception("no rescan is proposed for run %s", job.run_uid)
            return ()

    def _give_up(self, key: str, code: str, reason: str) -> None:
        _log.error("job %s cannot be committed: %s", key[:12], reason)
        self._journal.fail(key, code, reason)

    def _record_failure(self, failed: dict[str, Any]) -> None:
        run = derived.compose_failure(
            failed["key"],
            failed["run_uid"],
            failed["stream"],
            failed["recipe"],
            self._raw_start(failed["run_uid"]),
            failed["code"],
            failed["reason"],
            time.time(),
        )
        try:
            self._connected().commit(run)
        except TiledRejected as error:
            # The journal has the failure; that Tiled will not hear of it must not stop what it would take.
            _log.error("failure of job %s is not in Tiled: %s", failed["key"][:12], error)
        self._recorded.add(failed["key"])
        self._announce(failed["run_uid"])

    def _prepare(self, wanted: Prepare) -> None:
        job = wanted.job
        key = job_key(job.run_uid, job.stream, job.recipe, job.parameters)
        path = self._results_dir / f"{key}.h5"
        report: dict[str, Any] = {}
        if job.meta.get("energies_ev") is not None:
            report = {"energies_ev": job.meta["energies_ev"]}
        final = job.model_copy(
            update={"key": key, "kind": "final", "result_path": str(path), "fence": 0}
        )
        result = InferenceResult(
            key=key,
            fence=0,
            result_path=str(path),
            digest="",
            report=report,
            regions=[],
            timings={},
        )
        try:
            arrays = [_grown(array, job.meta) for array in describe(Path(wanted.path))]
            run = derived.compose(final, result, arrays, self._raw_start(job.run_uid), time.time())
            self._connected().prepare(run, derived.axes_of(job.meta, report, run.arrays), path)
        except (ResultFileError, FileNotFoundError, TiledRejected) as error:
            # Only time is lost: the commit makes what is missing. The snapshot may be gone because a newer one came.
            _log.info("run %s is not prepared: %s", job.run_uid, error)

    def _raw_start(self, run_uid: str) -> dict[str, Any]:
        run = self._journal.run(run_uid)
        return {} if run is None else run["start"]

    def _say(self, state: str, reason: str = "") -> None:
        self._status = dataclasses.replace(self._status, state=state, reason=reason)


def _grown(array: StoredArray, meta: dict[str, Any]) -> StoredArray:
    """An array of a stack's snapshot as the final will have it: with all energies."""
    energies = meta.get("energies_ev")
    if energies is None or array.dims[:1] != ("energy",):
        return array
    labels = tuple(f"{float(energy):.2f} eV" for energy in energies)
    return dataclasses.replace(array, shape=(len(energies), *array.shape[1:]), labels=labels)
