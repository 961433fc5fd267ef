"""The writer thread: what workers computed goes into Tiled, and whoever waits for it is told.

The journal is the truth: a result stays `computed` until Tiled has it whole. While Tiled is away the thread waits, with
growing pauses, and everything it would have written waits in the journal. A single result that Tiled does not take is
put off, and the others go on.
"""

import dataclasses
import logging
import select
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from inscan.service import derived
from inscan.service.commit import Committer, DamagedResult
from inscan.service.journal import Journal, JournalError
from inscan.service.mailbox import Mailbox, MailboxFullError
from inscan.service.messages import InferenceJob, InferenceResult
from inscan.service.patience import Patience
from inscan.service.preparing import expected
from inscan.service.result_file import ResultFileError, read_weights
from inscan.service.result_view import describe
from inscan.service.shelf import Shelf, line_of
from inscan.service.tiled_http import PROCESSED, TiledHTTP, TiledRejected
from inscan.service.writer_status import Prepare, Target, WriterStatus

__all__ = ["Announce", "Prepare", "Propose", "Target", "Writer", "WriterStatus"]

_IN_A_ROW = 3
"""So many different results that Tiled fails to take, one after the other, are Tiled's trouble and not theirs."""
_PATIENCE = 10
"""The pauses of a single result grow so much longer than those of the writer."""
_log = logging.getLogger(__name__)

Propose = Callable[[InferenceJob, InferenceResult], Sequence[dict[str, Any]]]
Announce = Callable[[str], None]


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
    timeout_s : float
        Longest time for Tiled to answer one request.
    most_tries : int
        Of a result that Tiled fails to take while it takes others, before it is given up: some twenty minutes.
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
        most_tries: int = 12,
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
        self._most_tries = most_tries
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._tiled: TiledHTTP | None = None
        self._committer: Committer | None = None
        self._recorded: set[tuple[str, float]] = set()
        self._to_record: list[dict[str, Any]] = []
        self._preparing: dict[str, Prepare] = {}
        self._patience = Patience(first_pause_s, longest_pause_s, _PATIENCE * longest_pause_s)
        self._begun: dict[str, float] = {}
        self._waiting_since: float | None = None
        self._status = WriterStatus()

    @property
    def status(self) -> WriterStatus:
        """What the writer is doing now."""
        since = self._waiting_since
        waited = 0.0 if since is None else round(time.monotonic() - since, 1)
        return dataclasses.replace(self._status, waiting_s=waited)

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
                self._waiting_since = self._patience.waiting_since()
                put_off = self._patience.told()
                self._say("waiting" if put_off else "idle", put_off)
            except (OSError, MemoryError) as error:
                # Tiled away or refusing us, or a full disk: all of it may mend, and nothing is lost meanwhile.
                pause = min(2 * pause if pause else self._first_pause_s, self._longest_pause_s)
                self._waits(error)
            except Exception as error:  # noqa: BLE001 - whatever it is, what is in the journal is to be written
                pause = self._longest_pause_s
                _log.exception("defect in the writer; it tries again in %g s", pause)
                self._waits(error)
            self._wait(pause)
        self._disconnect()
        self._waiting_since = None
        self._say("stopped")

    def _waits(self, error: Exception) -> None:
        self._disconnect()
        if self._waiting_since is None:
            self._waiting_since = time.monotonic()
        text = str(error) or type(error).__name__
        if self._status.reason != text:
            _log.warning("results wait in the journal: %s", text)
        self._say("waiting", text)

    def _wait(self, pause: float | None) -> None:
        """Wait for mail, or until something put off is due; while Tiled is away nothing shortens the pause."""
        most = self._patience.next_due() if pause is None else pause
        deadline = None if most is None else time.monotonic() + most
        while not self._stopping.is_set():
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            select.select([self._mailbox], [], [], left)
            for item in self._mailbox.drain():
                if isinstance(item, Prepare):
                    self._preparing[item.job.run_uid] = item
            if pause is None or (deadline is not None and time.monotonic() >= deadline):
                return

    def _round(self) -> None:
        """Write everything that is due, results first and in their order."""
        self._to_record = [
            one for one in self._journal.unrecorded() if _failure_of(one) not in self._recorded
        ]
        failed_keys = {one["key"] for one in self._to_record}
        self._patience.keep_only({*self._journal.uncommitted_keys(), *failed_keys})
        in_a_row = 0
        while not self._stopping.is_set():
            keys = self._journal.uncommitted_keys()
            self._status = dataclasses.replace(self._status, pending=len(keys))
            # Whoever failed least goes first: one that fails quickly, again and again, must not be in the way.
            due = (key for key in keys if self._patience.due(key))
            key = min(due, key=self._patience.tries, default=None)
            failed = next((one for one in self._to_record if self._patience.due(one["key"])), None)
            try:
                if key is not None:
                    self._commit(key)
                elif failed is not None:
                    key = failed["key"]
                    self._record_failure(failed)
                    self._to_record.remove(failed)
                elif self._preparing:
                    self._prepare(self._preparing.pop(next(iter(self._preparing))))
                    continue
                else:
                    return
                in_a_row = 0
            except JournalError:
                raise
            except (OSError, MemoryError) as error:
                in_a_row += 1
                self._put_off(str(key), error, in_a_row)

    def _put_off(self, key: str, error: Exception, in_a_row: int) -> None:
        """Try one result or failure again later, and go on with the others, where it alone is the trouble."""
        if in_a_row >= _IN_A_ROW or not self._answers():
            raise error
        tries = self._patience.failed(key, f"{key[:12]}: {error}")
        _log.warning("job %s is put off after %d tries: %s", key[:12], tries, error)
        if tries < self._most_tries or not self._patience.others_went(key):
            return
        failures = [one for one in self._to_record if one["key"] == key]
        if failures:
            self._to_record.remove(failures[0])
            self._recorded.add(_failure_of(failures[0]))  # the journal has it
            self._settled(key)
        else:
            self._give_up(key, "tiled_failed", f"gave up after {tries} tries; the last: {error}")

    def _answers(self) -> bool:
        """Whether Tiled is there and lets us look: what one result meets is then no reason to hold up the others."""
        try:
            self._connected()
            return self._tiled is not None and self._tiled.get(PROCESSED) is not None
        except (OSError, TiledRejected):
            return False

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

    def _commit(self, key: str) -> None:
        found = self._journal.computed_result(key)
        if found is None:
            return
        job, result = found
        started = time.monotonic()
        path = Path(result.result_path)
        self._say("writing", self._status.reason)
        try:
            # The same time at each try tells a run that we began ourselves from another writer's.
            now = self._begun.setdefault(key, time.time())
            run = derived.compose(job, result, describe(path), self._raw_start(job.run_uid), now)
            axes = derived.axes_of(job.meta, result.report, run.arrays)
            fate = self._connected().commit(run, axes, path, result.digest)
        except (DamagedResult, ResultFileError, FileNotFoundError) as error:
            self._lost(job, str(error))
            return
        except TiledRejected as error:
            self._give_up(key, "tiled_rejected", str(error))
            return
        except (OSError, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001 - one result that cannot be said must not hold up the others
            _log.exception("job %s cannot be committed", key[:12])
            self._give_up(key, "defect", f"{type(error).__name__}: {error}"[:4000])
            return
        if fate == "differs":
            _log.warning("job %s: Tiled has another result, which stands", key[:12])
        self._keep_weights(job, result, path)
        self._journal.committed(key, run.uid, tuple(self._proposals(job, result)))
        self._settled(key)
        self._say("writing", self._patience.told())
        took = time.monotonic() - started
        self._status = dataclasses.replace(
            self._status, committed=self._status.committed + 1, last_s=took
        )
        self._tell(job.run_uid)

    def _settled(self, key: str) -> None:
        self._patience.settled(key)
        self._begun.pop(key, None)

    def _lost(self, job: InferenceJob, reason: str) -> None:
        """The file of a result is gone or was changed: its input is still there, so it can be computed again."""
        _log.error("job %s has lost its result and is computed again: %s", job.key[:12], reason)
        self._journal.compute_again(job.key, "result_damaged", reason[:4000])
        self._settled(job.key)
        self._if_failed(job.key)

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
        except JournalError:
            raise
        except Exception:  # noqa: BLE001
            # A result must not be lost, or held up for ever, because nothing could be made of its regions.
            _log.exception("no rescan is proposed for run %s", job.run_uid)
            return ()

    def _give_up(self, key: str, code: str, reason: str) -> None:
        _log.error("job %s cannot be committed: %s", key[:12], reason)
        self._journal.fail(key, code, reason[:4000])
        self._settled(key)
        self._if_failed(key)

    def _if_failed(self, key: str) -> None:
        """Have a job's failure recorded in this round, if it has ended as one."""
        record = self._journal.job(key)
        known = any(one["key"] == key for one in self._to_record)
        if record is not None and record["state"] == "failed" and not known:
            self._to_record.append(record)

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
        self._journal.recorded(failed["key"], failed["updated"])
        self._settled(failed["key"])
        self._tell(failed["run_uid"])

    def _prepare(self, wanted: Prepare) -> None:
        job = wanted.job
        try:
            run, axes, path = expected(
                job, Path(wanted.path), self._results_dir, self._raw_start(job.run_uid), time.time()
            )
            self._connected().prepare(run, axes, path)
        except Exception as error:  # noqa: BLE001
            # Only time is lost: the commit makes what is missing. The snapshot may be gone because a newer one came.
            _log.info("run %s is not prepared: %s", job.run_uid, error)

    def _tell(self, run_uid: str) -> None:
        try:
            self._announce(run_uid)
        except MailboxFullError:
            # Whoever asks for the outcome gets it from the journal.
            _log.warning("run %s: its outcome is not announced, nobody listens", run_uid)

    def _raw_start(self, run_uid: str) -> dict[str, Any]:
        run = self._journal.run(run_uid)
        return {} if run is None else run["start"]

    def _say(self, state: str, reason: str = "") -> None:
        self._status = dataclasses.replace(self._status, state=state, reason=reason)


def _failure_of(failed: dict[str, Any]) -> tuple[str, float]:
    """One failure of a job: tried again, it may fail another time."""
    return failed["key"], failed["updated"]
