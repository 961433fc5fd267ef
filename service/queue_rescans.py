"""Approved proposals become items of a queue server's queue, and are followed there until they are over.

Of profiles with `rescan.through: queue`. Nothing here moves anything: the item's plan asks the service before every
region. docs/adr/0015-rescans-through-the-queue.md says why each step is as it is.
"""

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from inscan.callbacks.profile import BeamlineProfile
from inscan.service.journal import Journal
from inscan.service.queue_client import QueueClient, QueueRefused, QueueUnavailable
from inscan.service.queue_items import Ended, Item, Manager, attempt, belongs, confirmed, marks_of
from inscan.service.rescan_states import NotAllowed, Rescans
from inscan.service.settings import QueueServerSettings

OPEN = ("approved", "queued", "running")
_BEAT_S, _LOOK_S = 0.1, 10.0
_log = logging.getLogger(__name__)


class QueueRescans:
    """The thread between the journal and a queue server.

    Parameters
    ----------
    settings : QueueServerSettings
    journal : Journal
    rescans : Rescans
        Checks every proposal once more before it is added.
    profiles : sequence of BeamlineProfile
        Only those with `rescan.through: queue` concern it.
    period_s : float
        Time between looks at the journal.
    report_s : float
        How long after the end of an item its plan's report may come.
    pause_s : (float, float)
        First and longest pause after the queue server did not answer.
    """

    def __init__(
        self,
        settings: QueueServerSettings,
        journal: Journal,
        rescans: Rescans,
        profiles: Sequence[BeamlineProfile],
        *,
        period_s: float = 0.5,
        report_s: float = 60.0,
        pause_s: tuple[float, float] = (1.0, 30.0),
    ) -> None:
        self._settings = settings
        self._journal = journal
        self._rescans = rescans
        self._plans = {p.name: p.rescan.plan for p in profiles if p.rescan.through == "queue"}
        self._period_s, self._report_s, self._pause_s = period_s, report_s, pause_s
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._status: dict[str, Any] = {}
        self._notes: dict[str, str] = {}
        self._thread: threading.Thread | None = None
        self._next_look = 0.0
        self._held = False
        # Items that were added by this process to an idle queue of nothing else, and not yet started.
        self._startable: set[str] = set()
        self._foreign: set[str] = set()
        self._stuck: set[str] = set()
        self._history = ""
        self._ended: dict[tuple[str, int], Ended] = {}
        self._ended_at: dict[tuple[str, int], float] = {}

    @property
    def wanted(self) -> bool:
        """Whether any profile sends its rescans through the queue; without one, no queue server is asked anything."""
        return bool(self._plans)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Start the thread."""
        if away := self._settings.beyond_loopback:
            key = "; its commands are encrypted" if self._settings.public_key else ", unencrypted"
            _log.warning("the queue server is not on this machine: %s%s", ", ".join(away), key)
        self._thread = threading.Thread(target=self._run, name="queue", daemon=True)
        self._thread.start()

    def stop(self, grace_s: float) -> None:
        """End the thread. Items stay in the queue: their plans move nothing while no service answers."""
        self._over.set()
        if self._thread is not None:
            self._thread.join(grace_s)

    def status(self) -> Mapping[str, Any]:
        """What is known of the queue server, for people; empty when none is wanted."""
        with self._lock:
            return dict(self._status)

    def told(self, proposals: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Proposals, those of the queue with `queue` beside the rest: what they wait for."""
        with self._lock:
            return [
                one | {"queue": self._notes[one["id"]]} if one["id"] in self._notes else one
                for one in proposals
            ]

    # The thread

    def _run(self) -> None:
        client: QueueClient | None = None
        pause = self._pause_s[0]
        while not self._over.is_set():
            try:
                try:
                    client = client or QueueClient(self._settings)
                    self._round(client)
                    pause = self._pause_s[0]
                    self._wait_for_news(client)
                    continue
                except QueueUnavailable as error:
                    self._away(str(error), self._open())
            except Exception as error:  # noqa: BLE001 - results must not suffer from what goes wrong with a queue
                _log.exception("the queue server is left alone for a while")
                self._away(f"{type(error).__name__}: {error}")
            self._over.wait(pause)
            pause = min(2 * pause, self._pause_s[1])
        if client is not None:
            client.close()

    def _wait_for_news(self, client: QueueClient) -> None:
        due = time.monotonic() + self._period_s
        while time.monotonic() < due and not self._over.wait(_BEAT_S):
            if client.news():
                self._next_look = 0.0
                return

    def _away(self, reason: str, proposals: Sequence[Mapping[str, Any]] = ()) -> None:
        self._next_look = 0.0
        with self._lock:
            if self._status.get("reason") != reason:
                _log.warning("queue server: %s", reason)
            self._status = {"control": self._settings.control, "state": "away", "reason": reason}
            self._notes = dict.fromkeys(self._notes, reason)
        for proposal in proposals:
            self._note(proposal, reason)

    def _open(self) -> list[dict[str, Any]]:
        """Proposals that concern the queue and are not over, oldest first."""
        found = [one for state in OPEN for one in self._journal.proposals(state=state)]
        mine = [one for one in found if one.get("profile") in self._plans]
        return sorted(mine, key=lambda one: one["created"])

    def _round(self, client: QueueClient) -> None:
        """Look at the journal, then at the queue, and do what is to be done."""
        mine = {one["id"]: one for one in self._open()}
        if not mine and not self._held and time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + _LOOK_S
        waiting, running = client.queue()
        # After the queue: an item that is not in it any more is then in this history already.
        manager = client.manager()
        if manager.state in ("", "initializing"):
            raise QueueUnavailable("the manager is starting")
        self._forget(mine, waiting)
        if mine and (manager.history != self._history or not manager.history):
            self._ended = {}
            for one in client.history():
                self._ended.setdefault((one.item.proposal, one.item.attempt), one)
            self._history = manager.history
        to_add = []
        for proposal in mine.values():
            if proposal["state"] == "approved":
                to_add.append(proposal)
            else:
                self._follow(proposal, waiting, running, manager)
        waiting = self._take_out(client, manager.lock, mine, waiting)
        waiting = self._add(client, manager, to_add, waiting, running)
        self._start(client, mine)
        self._held = any(item.proposal in mine or self._is_over(item) for item in waiting)
        told = {
            "control": self._settings.control,
            "state": manager.state,
            "environment": "open" if manager.environment else "closed",
            "locked": manager.lock,
            "approved": len(to_add),
            "queued": len(mine) - len(to_add),
        }
        with self._lock:
            self._status = told

    def _follow(
        self,
        proposal: Mapping[str, Any],
        waiting: Sequence[Item],
        running: Item | None,
        manager: Manager,
    ) -> None:
        """See where the item of a proposal is that is queued or running."""
        state = proposal["state"]
        ended = self._ended.get((proposal["id"], attempt(proposal)))
        places = [n for n, item in enumerate(waiting) if belongs(item, proposal)]
        if running is not None and belongs(running, proposal):
            self._confirm(proposal, running)
            self._note(proposal, "its item is running")
        elif ended is not None:
            reason = f"its item {ended.item.uid} ended ({ended.status})"
            self._unreported(proposal, f"{reason}: {ended.reason}" if ended.reason else reason)
        elif places:
            self._confirm(proposal, waiting[places[0]])
            idle = "; the queue is not started" if manager.state == "idle" else ""
            self._note(proposal, f"waits in the queue behind {places[0]} items{idle}")
        elif state == "queued" and not confirmed(proposal):
            # Nobody answered when it was added, or this process is another than the one that was about to.
            self._unqueue(proposal, "its item did not come into the queue")
        elif state == "queued":
            self._move(
                proposal,
                "refused",
                "its item was taken out of the queue before it ran (by a person, or the queue server lost it)",
            )
        elif any(step["state"] == "queued" for step in proposal["history"]):
            self._unreported(proposal, "its item is gone from the queue server")

    def _unreported(self, proposal: Mapping[str, Any], reason: str) -> None:
        """Give the plan's report its time, then end the proposal."""
        since = self._ended_at.setdefault((proposal["id"], attempt(proposal)), time.monotonic())
        if time.monotonic() - since >= self._report_s:
            self._move(proposal, "failed", f"{reason}, and its plan reported nothing")
        else:
            self._note(proposal, f"{reason}; the report of its plan is awaited")

    def _take_out(
        self,
        client: QueueClient,
        locked: str,
        mine: Mapping[str, Mapping[str, Any]],
        waiting: Sequence[Item],
    ) -> list[Item]:
        """Take items of proposals that are over, second ones, and those that failed and were put back; returns the
        rest."""
        left: list[Item] = []
        seen: set[str] = set()
        for item in waiting:
            proposal = mine.get(item.proposal)
            if not item.attempt or (proposal is None and not self._is_over(item)):
                left.append(item)
                continue
            ended = (item.proposal, item.attempt) in self._ended
            if proposal is not None and belongs(item, proposal) and not ended:
                if item.proposal not in seen:
                    seen.add(item.proposal)
                    left.append(item)
                    continue
            try:
                if locked:
                    raise QueueRefused(locked)
                client.remove(item.uid)
                self._stuck.discard(item.uid)
                _log.info("item %s of proposal %s is taken out", item.uid, item.proposal)
            except QueueRefused as error:
                left.append(item)
                if item.uid not in self._stuck:
                    self._stuck.add(item.uid)
                    _log.warning("item %s of %s stays for now: %s", item.uid, item.proposal, error)
        return left

    def _add(
        self,
        client: QueueClient,
        manager: Manager,
        proposals: Sequence[Mapping[str, Any]],
        waiting: Sequence[Item],
        running: Item | None,
    ) -> list[Item]:
        """Put proposals at the front, the oldest first in the end; returns the queue as it then is."""
        alone = manager.state == "idle" and running is None and not manager.stop_pending
        alone = alone and all(item.uid in self._startable for item in waiting)
        items = list(waiting)
        for proposal in reversed(proposals):
            plan = self._plans[proposal["profile"]]
            if proposal.get("kind", "map") != "map":
                self._note(proposal, "energies are added by the plan that waits for them, not here")
                continue
            try:
                if obstacle := client.obstacle(manager, plan):
                    self._note(proposal, obstacle)
                    continue
                found = self._rescans.queue(
                    proposal["id"], self._settings.user, f"to the queue of {self._settings.control}"
                )
            except (NotAllowed, QueueRefused, LookupError) as error:
                self._note(proposal, str(error))
                continue
            try:
                item = client.add(plan, proposal["id"], marks_of(found))
            except QueueRefused as error:
                now = client.manager()
                if obstacle := client.obstacle(now, plan):
                    self._unqueue(found, obstacle)
                else:
                    self._move(found, "failed", f"the queue server does not take it: {error}")
                continue
            items.insert(0, item)
            if alone:
                self._startable.add(item.uid)
            self._confirm(found, item)
        return items

    def _start(self, client: QueueClient, mine: Mapping[str, Any]) -> None:
        """Start the queue where that was asked for, and nothing in it is anybody else's."""
        if not self._settings.start or not self._startable:
            return
        manager = client.manager()
        if manager.state != "idle" or not manager.environment or manager.lock:
            return
        if manager.autostart or manager.stop_pending:
            return
        # The last look before: what is added between this and the next request is run after our items.
        items, running = client.queue()
        if running is not None or not items:
            return
        if any(item.uid not in self._startable or item.proposal not in mine for item in items):
            return
        # Once for each item: when it waits again in an idle queue, somebody has stopped that.
        self._startable.difference_update(item.uid for item in items)
        try:
            client.start()
            _log.info("the queue is started: it holds %d items, all of rescans", len(items))
        except QueueRefused as error:
            _log.warning("the queue is not started: %s", error)

    # The journal

    def _is_over(self, item: Item) -> bool:
        """Whether an item is of a proposal of ours that may not be measured any more."""
        if not item.proposal or not item.attempt:
            return False  # not added by a service like this, whatever its plan
        if item.uid not in self._foreign:
            found = self._journal.proposals(prefix=item.proposal)
            if any(one["id"] == item.proposal and one["state"] not in OPEN for one in found):
                return True
            if not found:
                self._foreign.add(item.uid)  # another service's, or none of any
        return False

    def _confirm(self, proposal: Mapping[str, Any], item: Item) -> None:
        """Note an item as that of a proposal, once."""
        if proposal["state"] == "queued" and not confirmed(proposal):
            reason = f"item {item.uid} at the front of the queue of {self._settings.control}"
            self._move(proposal, "queued", reason)

    def _unqueue(self, proposal: Mapping[str, Any], reason: str) -> None:
        try:
            self._rescans.unqueue(proposal["id"], self._settings.user, reason)
        except NotAllowed as error:
            _log.info("%s", error)  # a person or the plan was quicker

    def _move(self, proposal: Mapping[str, Any], state: str, reason: str) -> None:
        # Only from the state in which it was seen: a person or the plan may have been quicker.
        moved = self._journal.set_proposal(
            proposal["id"], state, self._settings.user, reason, expected=(proposal["state"],)
        )
        if moved:
            _log.info("proposal %s is %s: %s", proposal["id"], state, reason)

    def _note(self, proposal: Mapping[str, Any], text: str) -> None:
        with self._lock:
            if self._notes.get(proposal["id"]) != text:
                _log.info("proposal %s: %s", proposal["id"], text)
            self._notes[proposal["id"]] = text

    def _forget(self, mine: Mapping[str, Any], waiting: Sequence[Item]) -> None:
        """Keep nothing about proposals and items that are gone."""
        there = {item.uid for item in waiting}
        self._foreign &= there
        self._stuck &= there
        self._startable &= there
        with self._lock:
            self._notes = {name: text for name, text in self._notes.items() if name in mine}
        attempts = {(name, attempt(one)) for name, one in mine.items()}
        self._ended_at = {key: at for key, at in self._ended_at.items() if key in attempts}
