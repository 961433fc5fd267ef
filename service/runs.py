"""From assembled runs to jobs: opens the assembler of a run on the spool, and journals what is to
be computed of it."""

import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inscan.callbacks.assembly import RunAssembler, open_assembler
from inscan.callbacks.link import host_id
from inscan.callbacks.profile import BeamlineProfile, matches
from inscan.callbacks.updates import Allocate, NotUnderstood, Update
from inscan.service.acceptance import adopt
from inscan.service.digest import digest_arrays
from inscan.service.events import Look, Submit
from inscan.service.intake import Uses
from inscan.service.journal import Journal
from inscan.service.journal_takeup import adopt_results, take_up, write_end, write_request
from inscan.service.mailbox import Mailbox, MailboxFullError
from inscan.service.messages import ArraySpec, InferenceJob, job_key
from inscan.service.processed import BornWeights
from inscan.service.repair import Repairs
from inscan.service.settings import Settings
from inscan.service.shelf import Shelf, ShelfError, read_weights_file
from inscan.service.spool import Spool, SpoolRun, can_name, load, sync_arrays

MASK = "measured"
"""The array that says which pixels of the others are believed."""
MOST_STEPS = 1_000_000
"""Steps of fine-tuning where the profile grants time and no number: more than any time allows."""
_POST_S = 5.0
_ONE_OF_SEVERAL = "@"
"""In the stream of every map or stack of a run but the first: `primary@2`."""
_log = logging.getLogger(__name__)


class Runs:
    """What becomes of documents; called from ingest's threads, for several runs at a time.

    Parameters
    ----------
    settings : Settings
    profiles : sequence of BeamlineProfile
        The first that matches a run is used.
    spool : Spool
    journal : Journal
    broker, writer : Mailbox
        Told of new jobs, and of jobs whose arrays are on the disk.
    shelf : Shelf
        Weights of earlier runs, which fine-tuning may start from.
    repairs : Repairs or None
        Where what is missing of a run may be found.

    Raises
    ------
    ShelfError
        When weights that a profile names cannot be read, or are not what their card says.
    """

    def __init__(
        self,
        settings: Settings,
        profiles: Sequence[BeamlineProfile],
        spool: Spool,
        journal: Journal,
        *,
        broker: Mailbox,
        writer: Mailbox,
        shelf: Shelf,
        repairs: Repairs | None = None,
    ) -> None:
        self._settings = settings
        self._repairs = repairs
        self._profiles = {profile.name: profile for profile in profiles}
        self._spool = spool
        self._journal = journal
        self._broker = broker
        self._writer = writer
        self._shelf = shelf
        # Read once: what a profile names stays the same while the service runs.
        files = {name: profile.weights_file() for name, profile in self._profiles.items()}
        self._named = {name: read_weights_file(path) for name, path in files.items() if path}

    def uses(self) -> Uses:
        """For ingest."""
        return Uses(
            open_run=self.open_run,
            on_update=self.on_update,
            on_closed=self.on_closed,
            on_passed_by=self.on_passed_by,
            on_failed=self.on_failed,
            repair=self._repairs,
        )

    def open_run(self, start: Mapping[str, Any]) -> RunAssembler:
        """Record a run and open its assembler on the spool.

        Raises
        ------
        NotUnderstood
            When no profile matches.
        OSError
            When the spool or the journal cannot be written.
        """
        run_uid = str(start.get("uid"))
        scan_id = start.get("scan_id")
        if not isinstance(scan_id, int) or not -(1 << 63) <= scan_id < 1 << 63:
            scan_id = None  # no number that the journal holds
        profile = next((one.name for one in self._profiles.values() if matches(one, start)), "")
        self._journal.record_run(run_uid, scan_id, profile, dict(start))
        if not can_name(run_uid):
            raise NotUnderstood(
                f"run uid {run_uid!r:.300} cannot name a folder: expected 1 to 200 letters, digits, '.', '_', '-',"
                " a letter or digit first"
            )
        try:
            # The folder is made with the first array: a run that is nobody's leaves none.
            return open_assembler(
                start,
                list(self._profiles.values()),
                self._allocator(run_uid),
                data_roots=self._settings.data_roots,
            )
        except NotUnderstood:
            self._spool.delete(run_uid)
            raise

    def _allocator(self, run_uid: str) -> Allocate:
        """Where a run's arrays live. What no spool of this size can hold is refused; what does not fit now waits."""
        most, taken = self._spool.budget, 0

        def allocate(name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
            nonlocal taken
            taken += math.prod(shape) * np.dtype(dtype).itemsize
            if taken > most:
                raise NotUnderstood(
                    f"too_large: with array {name} of shape {shape} the run takes {taken} bytes, the spool holds {most}"
                    " at most (setting spool_budget)"
                )
            return self._spool.run(run_uid).allocate(name, shape, dtype)

        return allocate

    def on_update(self, update: Update) -> None:
        """Take an update. When it returns, a final is in the journal and its arrays are on the
        disk."""
        if update.kind == "rejected":
            self._journal.finish_run(update.run_uid, "failed", str(update.meta.get("reason", "")))
        elif update.kind == "snapshot":
            self._snapshot(update)
        else:
            self._final(update)

    def on_closed(self, run_uid: str) -> None:
        """All updates of a run have been taken."""
        said = "" if self._repairs is None else self._repairs.told(run_uid)
        folder = self._spool.folder(run_uid)
        if folder is not None:
            write_end(folder, said)
        self._journal.finish_run(run_uid, "complete", said)
        self._spool.forget(run_uid)

    def on_passed_by(self, run_uid: str, reason: str) -> None:
        """A run that is not for inscan."""
        self._journal.finish_run(run_uid, "passed_by", reason)

    def on_failed(self, run_uid: str, reason: str) -> None:
        """A run that cannot be processed."""
        self._journal.finish_run(run_uid, "failed", reason)
        self._spool.forget(run_uid)

    def on_incomplete(self, run_uid: str, reason: str) -> None:
        """A run that nobody sends any more; provisional."""
        self._journal.finish_run(run_uid, "incomplete", reason)
        self._spool.forget(run_uid)

    def resume(self) -> None:
        """Take up what an earlier life of the service had journalled and not yet synced, and what lies in the spool and
        the journal has lost."""
        repaired = bool(self._journal.health().get("warning"))
        take_up(self._journal, self._spool, self._settings.results_dir, repaired=repaired)
        if repaired:
            adopt_results(self._journal, self._settings.results_dir)
        for job in self._journal.unsynced():
            try:
                self._sync(job)
            except OSError as error:
                self._journal.fail(job.key, "input_lost", f"its arrays are gone: {error}")

    def _snapshot(self, update: Update) -> None:
        profile = self._profile(update)
        # One live picture for each run: of several stacks that grow in turn, the first.
        if profile.method.snapshot_rows == 0 or _ONE_OF_SEVERAL in update.stream:
            return
        rows = int(update.meta.get("rows_done") or 0)
        run = self._spool.run(update.run_uid)
        arrays: dict[str, ArraySpec] = {}
        for name, values in update.arrays.items():
            # Measured pixels stay as they are while the rest grows: with the mask of this moment
            # the growing files are a snapshot, and nothing but the mask is copied.
            arrays[name] = (
                run.store(f"{name}@{rows}", values)
                if name == MASK
                else run.spec(name, values, scope=update.stream)
            )
        parameters, named = self._first_request(profile, run)
        recipe = profile.method.name
        key = job_key(update.run_uid, update.stream, recipe, parameters, snapshot=rows)
        path = self._settings.live_dir / f"{update.run_uid}.h5"
        job = self._job(update, "snapshot", key, parameters, arrays | named, run.folder, path)
        self._broker.post(Submit(job), timeout=_POST_S)

    def _final(self, update: Update) -> None:
        profile = self._profile(update)
        run = self._spool.run(update.run_uid)
        arrays = {
            name: run.spec(name, values, scope=update.stream)
            for name, values in update.arrays.items()
        }
        run.write_meta(update.meta, scope=update.stream if _ONE_OF_SEVERAL in update.stream else "")
        added: list[InferenceJob] = []
        first, named = self._first_request(profile, run)
        for parameters in requests_of(profile, first):
            key = job_key(update.run_uid, update.stream, profile.method.name, parameters)
            job = self._journal.request(key)
            if job is None:
                path = self._settings.results_dir / f"{key}.h5"
                more = dict(named)
                if added and profile.method.fit_from == "last_run":
                    more |= self._offered(update.meta, run)
                job = self._job(
                    update, "final", key, parameters, arrays | more, run.folder, path
                ).model_copy(update={"refines": added[0].key if added else ""})
                if self._journal.add_job(job) and not adopt(
                    self._journal, self._settings.results_dir, job
                ):
                    self._poke(self._broker, Submit(job))
            added.append(job)
        # The worker is at it by now; the sync and the digest cost the result no time.
        for job in added:
            if not self._journal.is_synced(job.key):
                self._sync(job)

    def _offered(self, meta: Mapping[str, Any], run: SpoolRun) -> dict[str, ArraySpec]:
        """Weights of the last run of the same sample and detector, as arrays of the job: what it starts from is settled
        when it is asked for, is covered by the digest of its input, and reaches workers elsewhere like all of it."""
        kept = self._shelf.latest(meta)
        if kept is None:
            return {}
        try:
            weights = kept.read()
        except (OSError, ShelfError) as error:
            _log.warning("weights of job %s are not offered: %s", kept.key[:12], error)
            return {}
        _log.info(
            "run %s is offered the weights born of run %s", run.folder.name, kept.born_of["raw_uid"]
        )
        return weights_as_arrays(weights, "start", run)

    def _first_request(
        self, profile: BeamlineProfile, run: SpoolRun
    ) -> tuple[dict[str, Any], dict[str, ArraySpec]]:
        """Parameters of a run's first result, and the weights that its profile names: their SHA-256 is a parameter, so
        that others make another result."""
        parameters = dict(profile.method.parameters)
        named = self._named.get(profile.name)
        if named is None:
            return parameters, {}
        return parameters | {"weights": named.card["sha256"]}, weights_as_arrays(
            named, "named", run
        )

    def _sync(self, job: InferenceJob) -> None:
        started = time.monotonic()
        folder = Path(job.spool)
        sync_arrays(folder, job.arrays)
        digest = digest_arrays(load(folder, job.arrays))
        # Beside the arrays before it is in the journal: then the documents may go.
        run = self._journal.run(job.run_uid) or {}
        write_request(folder, job.model_copy(update={"input_digest": digest}), run)
        self._journal.synced(job.key, digest)
        self._poke(self._writer, Look())
        _log.debug("job %s: input synced in %.3f s", job.key[:12], time.monotonic() - started)

    def _poke(self, mailbox: Mailbox, item: object) -> None:
        try:
            mailbox.post(item)
        except MailboxFullError:
            # The journal has it, and both owners look there by themselves as well.
            _log.warning("a mailbox is full; %s is found in the journal", type(item).__name__)

    def _profile(self, update: Update) -> BeamlineProfile:
        name = update.meta.get("profile")
        profile = self._profiles.get(str(name))
        if profile is None:
            raise ValueError(
                f"run {update.run_uid}: profile {name!r} is none of {sorted(self._profiles)}"
            )
        return profile

    def _job(
        self,
        update: Update,
        kind: Any,
        key: str,
        parameters: dict[str, Any],
        arrays: dict[str, ArraySpec],
        folder: Path,
        path: Path,
    ) -> InferenceJob:
        return InferenceJob(
            key=key,
            run_uid=update.run_uid,
            stream=update.stream,
            kind=kind,
            recipe=self._profile(update).method.name,
            parameters=parameters,
            meta=update.meta,
            spool=str(folder),
            arrays=arrays,
            input_digest="",
            result_path=str(path),
            host_id=host_id(),
        )


def weights_as_arrays(weights: BornWeights, role: str, run: SpoolRun) -> dict[str, ArraySpec]:
    """Weights and their card as arrays of a job, in the role `named` (by a profile) or `start`."""
    name = f"{role}-{weights.card['sha256'][:16]}"
    card = json.dumps(weights.card).encode()
    return {
        f"{role}_weights": run.store(name, np.frombuffer(weights.blob, np.uint8)),
        f"{role}_card": run.store(f"{name}.card", np.frombuffer(card, np.uint8)),
    }


def requests_of(profile: BeamlineProfile, parameters: dict[str, Any]) -> list[dict[str, Any]]:
    """Parameters of the results of a run: with the weights as they are, then fitted to it if asked
    for. Offline processing asks for the same, so that its keys are the service's."""
    method = profile.method
    fitted = dict(parameters)
    if method.fit_seconds:
        fitted |= {"fit_steps": method.fit_steps or MOST_STEPS, "fit_seconds": method.fit_seconds}
    elif method.fit_steps:
        fitted["fit_steps"] = method.fit_steps
    return [parameters] if fitted == parameters else [parameters, fitted]
