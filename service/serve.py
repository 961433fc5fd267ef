"""`inscan serve`: all threads and child processes of the service, started in order and ended in reverse."""

import logging
import signal
import threading
import time
import types
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.metadata import version
from typing import Any

from inscan.callbacks.profile import BeamlineProfile, load_profile
from inscan.service.access import Access
from inscan.service.approval import Approval
from inscan.service.broker import Broker
from inscan.service.chores import Chores
from inscan.service.composites import Composites
from inscan.service.crew import PREFIX, Crew
from inscan.service.forwarders import Forwarders
from inscan.service.ingest import Ingest
from inscan.service.janitor import look_after_journal, sweep, tidy_results
from inscan.service.journal import Journal
from inscan.service.keys import Keyring
from inscan.service.mailbox import Mailbox, Outcome
from inscan.service.queue_rescans import QueueRescans
from inscan.service.repair import Catalog, Repairs
from inscan.service.requests import Requests
from inscan.service.rescan_states import Rescans
from inscan.service.runs import Runs
from inscan.service.settings import Settings
from inscan.service.shelf import Shelf
from inscan.service.sockets import allow_many_files, announced
from inscan.service.source_table import SourceTable
from inscan.service.spool import Spool
from inscan.service.spool_server import SpoolServer
from inscan.service.state_dir import StateDir
from inscan.service.tiled_http import TiledHTTP, TiledUnavailable
from inscan.service.tiled_server import EmbeddedTiled, TiledServerError
from inscan.service.writer import Target, Writer

_TICK_S = 0.25
_SWEEP_S = 2.0
_INGEST_GRACE_S = 15.0
_FORWARD_GRACE_S = 10.0
_WRITER_GRACE_S = 10.0
_QUEUE_GRACE_S = 10.0
_MOST_OPEN_RUNS = 10_000
EXIT_BROKEN = 1
_log = logging.getLogger(__name__)


class ServiceError(OSError):
    """The service cannot start; the message says what is in the way."""


class Service:
    """The running service.

    Parameters
    ----------
    settings : Settings
    worker_command : sequence of str or None
        Program of its child workers; see `inscan.service.crew.Crew`.
    """

    def __init__(self, settings: Settings, *, worker_command: Sequence[str] | None = None) -> None:
        self._settings = settings
        self._worker_command = worker_command
        self._stack = ExitStack()
        self._threads: dict[str, Any] = {}
        self._next_sweep = 0.0
        self._chores = Chores()
        self._running = False
        self._ingest_open = False
        self._forwarders: Forwarders | None = None
        self.addresses: dict[str, str] = {}

    def start(self) -> None:
        """Start everything and write `service.json`.

        Raises
        ------
        OSError
            A state directory that is in use or cannot be written, a taken port, no disk space, a damaged journal, a
            Tiled that refuses the key or does not start.
        ValueError, FileNotFoundError
            A profile that cannot be used.
        """
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise

    def _start(self) -> None:
        settings = self._settings
        profiles = _profiles(settings)
        state = StateDir(settings)
        self._stack.callback(state.close)
        self._spool = Spool(
            settings.spool_dir, budget=settings.spool_budget, min_free=settings.min_free
        )
        self._spool.require(settings.spool_dir, 0)
        self._journal = Journal(settings.journal_path)
        self._stack.callback(self._journal.close)
        self._stack.callback(self._journal.keep_copy, every_s=0)
        tidy_results(self._journal, settings.results_dir)
        released = self._journal.leases.release_workers(PREFIX)
        if released:
            _log.info("%d jobs of workers that are gone are queued again", released)
        self._access = Access(settings)
        self._bind(profiles)
        target = None if settings.tiled.uri is None else self._foreign_tiled(settings.tiled.uri)
        spool = self._spool_server.router.address
        self._broker.start(self._access.spool_for_workers(spool))
        self._spool_server.start()
        self._threads = {"broker": self._broker, "spool server": self._spool_server}
        self._crew = Crew(
            settings.workers,
            self.addresses["broker"],
            state.logs,
            self._broker.mailbox,
            threads=settings.worker_threads,
            grace_s=settings.drain_s,
            command=self._worker_command,
            environment=self._access.worker_environment(),
        )
        self._crew.start()
        self._stack.callback(self._crew.stop)
        # Workers load torch while Tiled starts.
        self._run_threads(target or self._embedded_tiled(profiles))
        state.announce(self.addresses | self._access.announcement)
        self._forwarders = Forwarders(
            settings.sources,
            settings.state_dir,
            state.logs,
            self._source_table,
            self._access.client_environment(),
        )
        self._stack.callback(self._forwarders.stop, _FORWARD_GRACE_S)
        self._forwarders.start()
        _log.info("ready: %s", ", ".join(f"{k} {v}" for k, v in self.addresses.items()))

    def _bind(self, profiles: list[BeamlineProfile]) -> None:
        """Take all ports before anything is started: most of what can go wrong does so here."""
        settings, journal = self._settings, self._journal
        self._to_writer, self._to_ingest = Mailbox(), Mailbox()
        self._stack.callback(self._to_ingest.close)
        self._stack.callback(self._to_writer.close)
        self._broker = Broker(
            settings,
            journal,
            version=version("inscan"),
            writer=self._to_writer,
            ingest=self._to_ingest,
            gate=self._access.gate("broker"),
        )
        self.addresses["broker"] = announced(self._broker.bind())
        self._stack.callback(self._broker.stop)
        self._spool_server = SpoolServer(
            settings.spool, self._spool, self._broker.place_for, self._access.gate("spool")
        )
        self.addresses["spool"] = announced(self._spool_server.bind())
        self._stack.callback(self._spool_server.stop)
        given = settings.repair
        self._repairs = None if given is None else Repairs(given.deadline)
        self._runs = Runs(
            settings,
            profiles,
            self._spool,
            journal,
            broker=self._broker.mailbox,
            writer=self._to_writer,
            shelf=Shelf(settings.weights_dir),
            repairs=self._repairs,
        )
        self._rescans = Rescans(journal, profiles, mode=settings.rescan)
        self._queue = QueueRescans(settings.queueserver, journal, self._rescans, profiles)
        self._composites = Composites(
            settings,
            profiles,
            journal,
            self._spool,
            broker=self._broker.mailbox,
            writer=self._to_writer,
            announce=self._announce,
            record=self._rescans.record,
        )
        self._source_table = SourceTable()
        requests = Requests(
            journal,
            self._broker,
            self._spool,
            self._rescans,
            {
                "version": version("inscan"),
                "state_dir": str(settings.state_dir),
                "addresses": self.addresses,
            },
            writer=lambda: vars(self._writer.status),
            troubles=lambda: self._chores.troubles | self._crew.troubles,
            counts=lambda: (self._ingest.counts, self._spool_server.counts),
            sources=self._source_table,
            queue=self._queue,
            approval=self._approval(),
            sockets=lambda: [
                one.router.state() for one in (self._ingest, self._broker, self._spool_server)
            ],
        )
        self._ingest = Ingest(
            settings.ingest,
            self._runs.uses(),
            is_closed=journal.released,
            on_incomplete=self._runs.on_incomplete,
            outcome_of=self._composites.outcome_of,
            handle_request=requests,
            mailbox=self._to_ingest,
            incomplete_after=settings.incomplete_after,
            unfinished=[run["run_uid"] for run in journal.runs("open", _MOST_OPEN_RUNS)],
            gate=self._access.gate("ingest"),
        )
        self.addresses["ingest"] = announced(self._ingest.bind())
        self._ingest_open = True
        self._stack.callback(self._stop_ingest)

    def _approval(self) -> Approval:
        """Who may approve: approvers with a pass, and whoever may read the one in the state directory."""
        keyring = Keyring(self._settings.state_dir / "keys")
        own = keyring.local("local-approver", "approver", keyring.folder / "approve.pass")
        return Approval(keyring.approver, own)

    def _stop_ingest(self) -> None:
        if self._ingest_open:
            self._ingest_open = False
            self._ingest.stop(_INGEST_GRACE_S)

    def _embedded_tiled(self, profiles: list[BeamlineProfile]) -> Target:
        settings = self._settings
        key = settings.tiled.api_key
        roots = [root for profile in profiles for root in profile.data_roots]
        embedded = EmbeddedTiled(
            settings.state_dir,
            settings.tiled.port,
            None if key is None else key.get_secret_value(),
            [settings.results_dir, *settings.data_roots, *roots],
        )
        try:
            embedded.start()
        except TiledServerError as error:
            raise ServiceError(str(error)) from error
        self._stack.callback(embedded.stop)
        self.addresses["tiled"] = embedded.uri
        return Target(embedded.uri, embedded.api_key, (settings.results_dir,))

    def _foreign_tiled(self, uri: str) -> Target:
        given = self._settings.tiled
        shared = given.readable_storage
        with TiledHTTP(uri, given.api_key) as tiled:
            try:
                tiled.ensure_catalogs()
            except TiledUnavailable as error:
                # It may come later; a refused key (PermissionError) will not mend itself and ends the start.
                _log.warning("results wait in the journal until Tiled answers: %s", error)
        self.addresses["tiled"] = uri
        return Target(uri, given.api_key, () if shared is None else (shared,), shared)

    def _run_threads(self, target: Target) -> None:
        self._writer = Writer(
            self._journal,
            target,
            self._to_writer,
            results_dir=self._settings.results_dir,
            announce=self._announce,
            propose=self._rescans.propose,
            shelf=Shelf(self._settings.weights_dir),
        )
        given = self._settings.repair
        if self._repairs is not None and given is not None:
            foreign = None if given.uri is None else Catalog(given.uri, given.api_key)
            self._repairs.use(foreign or Catalog(target.uri, target.api_key))
        self._writer.start()
        self._threads["writer"] = self._writer
        self._stack.callback(self._writer.stop, _WRITER_GRACE_S)
        self._runs.resume()
        self._ingest.start()
        if self._queue.wanted:
            self._queue.start()
            self._stack.callback(self._queue.stop, _QUEUE_GRACE_S)
        self._running = True

    def _announce(self, run_uid: str) -> None:
        outcome = self._journal.outcome(run_uid)
        if outcome is not None:
            for uid in self._composites.told(run_uid):
                self._to_ingest.post(Outcome(uid, outcome))

    def look_after(self) -> None:
        """What is due every quarter of a second: dead workers, finished runs, old proposals. From the main thread.

        Raises
        ------
        ServiceError
            When a thread has ended that must not.
        """
        dead = [name for name, thread in self._threads.items() if not thread.alive]
        if dead:
            raise ServiceError(f"the {' and the '.join(dead)} ended; the log says why")
        do = self._chores.do
        do("workers", self._crew.look_after)
        if self._forwarders is not None:
            do("forwarders", self._forwarders.look_after)
        do("composites", self._composites.look)
        if time.monotonic() >= self._next_sweep:
            self._next_sweep = time.monotonic() + _SWEEP_S
            given, keeps = self._settings, self._composites.keeps
            spool = (self._journal, self._spool, given.live_dir)
            journal, budget = (self._journal, given.results_dir), given.journal_budget
            do("spool", lambda: sweep(*spool, keep_spool=given.keep_spool, needed=keeps))
            do("journal", lambda: look_after_journal(*journal, budget=budget, needed=keeps))
            do("old proposals", self._rescans.expire)

    def stop(self) -> None:
        """Take no more documents, let jobs end and results be written within their graces, end everything. Once."""
        if self._running:
            self._running = False
            if self._forwarders is not None:
                self._forwarders.stop(_FORWARD_GRACE_S)  # what they have goes in first
            self._stop_ingest()
            self._crew.dismiss()
            if not self._broker.drain(self._settings.drain_s):
                _log.info("some jobs did not end in time; the journal has them")
            self._write_what_is_done()
        self._stack.close()

    def _write_what_is_done(self) -> None:
        deadline, pause = time.monotonic() + _WRITER_GRACE_S, threading.Event()
        while self._journal.uncommitted_keys() and self._writer.status.state != "waiting":
            if time.monotonic() > deadline:
                return
            pause.wait(0.02)


def _profiles(settings: Settings) -> list[BeamlineProfile]:
    profiles = [load_profile(name) for name in settings.profiles]
    names = [profile.name for profile in profiles]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"settings: profiles {settings.profiles} give the name {twice} twice")
    return profiles


class _Told(BaseException):
    """A signal came while the service was starting."""


def serve(settings: Settings, *, worker_command: Sequence[str] | None = None) -> int:
    """Run the service until SIGTERM or SIGINT.

    Returns
    -------
    int
        Exit status: 0 after a signal, 1 when a part of it broke.

    Raises
    ------
    OSError, ValueError
        When it cannot start; see `Service.start`.
    """
    told = threading.Event()
    starting = True
    allow_many_files()

    def on_signal(number: int, frame: types.FrameType | None) -> None:
        _log.info("%s: stopping", signal.Signals(number).name)
        told.set()
        if starting:
            raise _Told

    before = {n: signal.signal(n, on_signal) for n in (signal.SIGTERM, signal.SIGINT)}
    service = Service(settings, worker_command=worker_command)
    status = 0
    try:
        service.start()
        starting = False
        while not told.wait(_TICK_S):
            service.look_after()
    except _Told:
        pass
    except ServiceError:
        if starting:
            raise
        _log.exception("the service broke")
        status = EXIT_BROKEN
    finally:
        starting = False
        service.stop()
        for number, handler in before.items():
            signal.signal(number, handler)
    return status
