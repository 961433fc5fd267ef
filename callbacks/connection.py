"""What a beamline subscribes to its RunEngine."""

import atexit
import logging
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from inscan.callbacks.approver_pass import GATED, with_key
from inscan.callbacks.document_log import DocumentLog
from inscan.callbacks.link import default_state_dir, locate
from inscan.callbacks.shipper import Shipper

logger = logging.getLogger(__name__)

_REMEMBERED = 1000  # outcomes and snapshots kept for whoever asks later
_CLOSE_TIMEOUT = 5.0
_SETTLE_S = 0.05  # that the end of a run may wait for a slow disk


class Connection:
    """Takes a RunEngine's documents to inscan, and brings back what became of each run.

    Made by `connect`. ``RE.subscribe(connection)`` is all that a beamline does with it.

    Parameters
    ----------
    state_dir : Path
        Folder in which a running service says where it is.
    address, profile_address : str, optional
        Where the service is, as the user or the profile says.
    log_dir : Path, optional
        Folder of the documents' logs; by default ``log`` in ``state_dir``.
    resume : bool
        Go on with runs that an earlier process left without a stop in ``log_dir``, for processes
        that come back to a source in the middle of a run. The folder must be this process's alone.

    Attributes
    ----------
    defects : int
        Documents that could not even be looked at; the first is in the log of this program.
    resumed : int
        Runs of an earlier process that go on.
    """

    def __init__(
        self,
        state_dir: Path,
        *,
        address: str | None = None,
        profile_address: str | None = None,
        log_dir: Path | None = None,
        resume: bool = False,
    ) -> None:
        self.state_dir = state_dir
        self.defects = 0
        self._pid = os.getpid()
        self._closed = False
        self._guard = threading.Lock()
        self._futures: OrderedDict[str, Future[dict[str, Any]]] = OrderedDict()
        self._snapshots: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._log = DocumentLog(log_dir or state_dir / "log")
        self.resumed = self._log.resume() if resume else 0
        self._address = address
        self._locate = lambda: locate(state_dir, explicit=address, profile=profile_address)
        self._shipper = Shipper(
            self._log,
            self._locate,
            on_outcome=self._outcome,
            on_snapshot=self._snapshot,
        )
        self._shipper.start()
        atexit.register(self.close)
        os.register_at_fork(after_in_child=_forked(weakref.ref(self)))

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        """Record one document. Costs microseconds, waits for nothing, never raises.

        Where the disk is so slow that documents go through the memory, a stop waits for it a twentieth of a second at
        most: from then on the run survives whatever happens to this process.
        """
        try:
            if self._closed:
                raise RuntimeError("the connection is closed; call connect() again")
            if os.getpid() != self._pid:
                raise RuntimeError("this process is a fork of the one that called connect()")
            self._log.append(name, doc)
            if name in ("start", "stop"):
                self._shipper.wake()
                if name == "stop" and self._log.slow:
                    self._log.settle(_SETTLE_S)
        except Exception:  # noqa: BLE001 - Bluesky aborts the scan when a callback raises
            self.defects += 1
            if self.defects == 1:
                logger.exception("inscan: a %s document was not recorded; the scan goes on", name)

    def __repr__(self) -> str:
        """Say at a prompt whether documents get through."""
        state = "closed" if self._closed else "connected" if self.connected else "no service"
        lost = f", {self.lost} documents lost" if self.lost else ""
        return f"<inscan: {state}, {self.written} documents written{lost}, in {self.state_dir}>"

    @property
    def connected(self) -> bool:
        """The service has answered within the last seconds."""
        return self._shipper.connected

    @property
    def written(self) -> int:
        """Documents in log files since the connection was made."""
        return self._log.written

    @property
    def lost(self) -> int:
        """Documents that could not be written; each is a marked gap in its run's log."""
        return self._log.lost

    @property
    def left_out(self) -> dict[str, int]:
        """Documents that are in no log for other reasons: of no known run, or known already."""
        counts = {"unrouted": self._log.unrouted, "repeated": self._log.repeated}
        return {name: count for name, count in counts.items() if count}

    def end_quiet(self, seconds: float) -> list[str]:
        """End runs of which nothing came for so long; see `DocumentLog.end_quiet`."""
        ended = self._log.end_quiet(seconds)
        if ended:
            self._shipper.wake()
        return ended

    def future(self, run_uid: str) -> "Future[dict[str, Any]]":
        """Outcome of a run, as soon as each of its maps or stacks has a result or will have none.

        Parameters
        ----------
        run_uid : str
            Uid of the raw run.

        Returns
        -------
        concurrent.futures.Future
            Its result is a dict with ``status`` (done, passed_by, or failed, also when one of
            several stacks has no result), ``result_uid`` and ``verdict`` (of the first stack that
            has one), ``reason``, ``results`` and ``proposals``. It cannot be cancelled, never has an
            exception, and is the same object at each call. In a plan use
            `inscan.callbacks.plans.wait_for_outcome`: waiting for it there would freeze the
            RunEngine.
        """
        with self._guard:
            future = self._futures.get(run_uid)
            if future is not None:
                return future
            future = self._add(run_uid)
        self._shipper.watch(run_uid)
        return future

    def snapshot(self, run_uid: str) -> dict[str, Any] | None:
        """Newest snapshot of a run that `future` was asked for: ``rows`` and ``path``, or None."""
        with self._guard:
            return self._snapshots.get(run_uid)

    def request(self, op: str, *, timeout: float = 5.0, **fields: Any) -> "Future[dict[str, Any]]":
        """Ask the service for something, without waiting.

        Parameters
        ----------
        op : str
            Name of the operation.
        timeout : float
            Seconds to wait for the reply. A request that cannot be sent in that time never is; one
            whose answer was lost is sent again, so ``op`` must bear being asked twice.
        **fields
            Its arguments, plain data.

        Returns
        -------
        concurrent.futures.Future
            The reply, a dict with ``ok``; or the exception
            `inscan.callbacks.shipper.ServiceGone`.

        Raises
        ------
        PassError
            If the operation needs an approver's key, and the pass that was found cannot be used.
        """
        if op in GATED:
            where, given = self._locate().address, self._address is not None
            fields = with_key(op, fields, self.state_dir, where, given=given)
        return self._shipper.request(op, fields, timeout)

    def close(self, timeout: float = _CLOSE_TIMEOUT) -> bool:
        """Wait until what was recorded is in the service's hands, then stop.

        What is not sent stays in the log folder, and goes out with the next `connect`.

        Parameters
        ----------
        timeout : float
            Seconds to wait at most. Without a service there is nothing to wait for.

        Returns
        -------
        bool
            Whether the service has taken over everything.
        """
        if os.getpid() != self._pid:
            return False  # a forked child has the object, but not the thread
        self._closed = True
        atexit.unregister(self.close)
        return self._shipper.stop(timeout)

    def abandon(self) -> None:
        """Let go of the logs' files in a fork of this process: it would own them as long as it lives."""
        self._log.abandon()
        self._shipper.outbox.abandon()

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _add(self, run_uid: str) -> "Future[dict[str, Any]]":
        future: Future[dict[str, Any]] = Future()
        # asyncio.wrap_future passes a cancellation on; one plan's must not be everybody's.
        future.set_running_or_notify_cancel()
        self._futures[run_uid] = future
        done = [uid for uid, known in self._futures.items() if known.done()]
        for uid in done[: max(0, len(self._futures) - _REMEMBERED)]:
            del self._futures[uid]
        return future

    def _outcome(self, run_uid: str, outcome: dict[str, Any]) -> None:
        with self._guard:
            future = self._futures.get(run_uid) or self._add(run_uid)
            self._snapshots.pop(run_uid, None)
        if not future.done():
            future.set_result({"run": run_uid, **outcome})

    def _snapshot(self, run_uid: str, snapshot: dict[str, Any]) -> None:
        with self._guard:
            self._snapshots[run_uid] = snapshot
            while len(self._snapshots) > _REMEMBERED:
                self._snapshots.popitem(last=False)


def _forked(connection: "weakref.ref[Connection]") -> Callable[[], None]:
    """What a fork does first; it must not keep a connection alive that nobody else has."""

    def abandon() -> None:
        found = connection()
        if found is not None:
            found.abandon()

    return abandon


def connect(
    profile_or_address: str | Path | None = None, *, state_dir: str | Path | None = None
) -> Connection:
    """Connect a RunEngine to inscan.

    Parameters
    ----------
    profile_or_address : str or Path, optional
        A beamline profile (its name or file), or the address of a service such as
        ``tcp://127.0.0.1:5620``. Without: the service of the state folder.
    state_dir : str or Path, optional
        State folder; by default ``$XDG_STATE_HOME/inscan``. Documents are logged in its ``log``.

    Returns
    -------
    Connection
        Subscribe it: ``RE.subscribe(connection)``.

    Raises
    ------
    ProfileError, FileNotFoundError
        If the profile does not exist or is wrong. Nothing about the service, the network or the
        disk raises: without a service documents are logged, and sent when one runs.
    """
    address = profile_address = None
    if profile_or_address is not None and "://" in str(profile_or_address):
        address = str(profile_or_address)
    elif profile_or_address is not None:
        # Here, not above: profiles bring the X-ray database along, half a second that workers and
        # other users of this package need not spend.
        from inscan.callbacks.profile import load_profile

        profile_address = load_profile(profile_or_address).service.ingest
    directory = default_state_dir() if state_dir is None else Path(state_dir)
    return Connection(directory, address=address, profile_address=profile_address)
