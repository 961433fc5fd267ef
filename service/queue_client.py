"""The manager of a bluesky-queueserver as the service sees it: a few questions, three requests, bounded answers.

Nothing else of inscan imports bluesky_queueserver_api, and this module only when a client is made.
"""

from collections.abc import Mapping
from typing import Any

from inscan.service.queue_items import Ended, Item, Manager, ended_of, item_of, short
from inscan.service.settings import QueueServerSettings

__all__ = ["QueueClient", "QueueRefused", "QueueUnavailable"]

MOST_ITEMS = 10_000
"""Of a longer queue or history only so many are looked at: the first of the queue, the last of the history."""
_TAKES = ("idle", "executing_queue")
"""States of the manager in which items are added."""
_ANSWER_S, _SEND_S = 2.0, 0.5
_LISTEN_S = 0.2
"""How long the client's own threads may go on when it is closed."""


class QueueUnavailable(ConnectionError):  # noqa: N818 - a ConnectionError by its name already
    """No manager answers, or its database does not; trying again later may help."""


class QueueRefused(RuntimeError):  # noqa: N818 - as above
    """The manager does not do what it was asked; the message is its own."""


class QueueClient:
    """A connection to a manager, for one thread; it is made anew by itself.

    A request without an answer may still be carried out when the manager comes back: look before asking again.

    Parameters
    ----------
    settings : QueueServerSettings

    Raises
    ------
    QueueUnavailable
        When bluesky-queueserver-api is not installed, or the address or key cannot be used.
    """

    def __init__(self, settings: QueueServerSettings) -> None:
        try:
            from bluesky_queueserver_api.zmq import REManagerAPI
        except ImportError as error:
            raise QueueUnavailable(
                f"{error.name or error} is not installed: pip install 'inscan[queueserver]'"
            ) from error
        self._settings = settings
        try:
            self._api = REManagerAPI(
                zmq_control_addr=settings.control,
                zmq_info_addr=settings.info,
                zmq_public_key=settings.public_key,
                timeout_recv=_ANSWER_S,
                timeout_send=_SEND_S,
                system_info_monitor_poll_timeout=_LISTEN_S,
                status_polling_period=_LISTEN_S,
            )
        except (OSError, ValueError) as error:
            raise QueueUnavailable(f"{settings.control} cannot be used: {error}") from error
        self._refused = self._api.RequestFailedError
        self._late = self._api.RequestTimeoutError
        self._malformed = self._api.RequestParameterError
        self._allowed: tuple[str, frozenset[str]] = ("", frozenset())
        self._published = ""
        # Declared as None in the package, made in its constructor.
        self._published_states: Any = self._api.system_info_monitor
        if settings.info is not None:
            self._published_states.enable()

    def close(self) -> None:
        """End the connection and its threads."""
        self._api.close()

    def news(self) -> bool:
        """Whether the manager has published another state since the last call; False when it publishes nothing."""
        before = self._published
        if self._settings.info is not None:
            while True:
                try:
                    told = self._published_states.next_msg()
                except self._late:
                    break
                message = told.get("msg") if isinstance(told, Mapping) else None
                state = message.get("status") if isinstance(message, Mapping) else None
                if isinstance(state, Mapping):
                    self._published = short(state.get("status_uid"))
        return self._published != before

    def manager(self) -> Manager:
        """Ask for the state.

        Raises
        ------
        QueueUnavailable
            As from every other request.
        """
        told = self._ask("status", {})
        lock = told.get("lock")
        locked = isinstance(lock, Mapping) and any(lock.values())
        return Manager(
            state=short(told.get("manager_state")),
            environment=told.get("worker_environment_exists") is True,
            stop_pending=told.get("queue_stop_pending") is True,
            autostart=told.get("queue_autostart_enabled") is True,
            lock=self._lock() if locked else "",
            history=short(told.get("plan_history_uid")),
            plans=short(told.get("plans_allowed_uid")),
        )

    def _lock(self) -> str:
        told = self._ask("lock_info", {}).get("lock_info")
        told = told if isinstance(told, Mapping) else {}
        what = " and ".join(name for name in ("environment", "queue") if told.get(name))
        note = f": {short(told['note'])}" if told.get("note") else ""
        return f"{what or 'it'} locked by {short(told.get('user')) or 'somebody'}{note}"

    def allows(self, manager: Manager, plan: str) -> bool:
        """Whether the user group of the settings may run a plan."""
        if self._allowed[0] != manager.plans or not manager.plans:
            told = self._ask("plans_allowed", {"user_group": self._settings.user_group})
            plans = told.get("plans_allowed")
            names = frozenset(map(str, plans)) if isinstance(plans, Mapping) else frozenset()
            self._allowed = (manager.plans, names)
        return plan in self._allowed[1]

    def obstacle(self, manager: Manager, plan: str) -> str:
        """Why a plan may not be added now; empty when it may."""
        if manager.lock:
            return f"the queue server is locked: {manager.lock}"
        if not manager.environment:
            return "the queue server's environment is closed; open it: qserver environment open"
        if manager.state not in _TAKES:
            return f"the queue server is {manager.state}; items are added when it is {' or '.join(_TAKES)}"
        if not self.allows(manager, plan):
            return (
                f"plan {plan!r} (rescan.plan) is not allowed to user group {self._settings.user_group!r}, or not "
                "there; see user_group_permissions.yaml of the queue server"
            )
        return ""

    def queue(self) -> tuple[list[Item], Item | None]:
        """The items that wait, first to be run first, and the one that is running."""
        told = self._ask("queue_get", {})
        items, running = told.get("items"), told.get("running_item")
        waiting = [item_of(one) for one in items[:MOST_ITEMS]] if isinstance(items, list) else []
        return waiting, item_of(running) if running else None

    def history(self) -> list[Ended]:
        """The items that have ended, oldest first."""
        items = self._ask("history_get", {}).get("items")
        found = items[-MOST_ITEMS:] if isinstance(items, list) else []
        return [ended_of(one) for one in found if isinstance(one, Mapping)]

    def add(self, plan: str, proposal: str, meta: Mapping[str, Any]) -> Item:
        """Put a plan at the front of the queue; starts nothing by itself.

        Parameters
        ----------
        plan : str
            It gets the proposal's id as `proposal`.
        meta : mapping
            Added to the start documents of its runs. Its `inscan.attempt` becomes the item's.

        Raises
        ------
        QueueRefused
            When the manager does not take it.
        """
        item = {"item_type": "plan", "name": plan, "kwargs": {"proposal": proposal}}
        request = {
            "item": {**item, "meta": dict(meta)},
            "pos": "front",
            "user": self._settings.user,
            "user_group": self._settings.user_group,
        }
        return item_of(self._ask("queue_item_add", request).get("item"))

    def remove(self, uid: str) -> None:
        """Take an item out of the queue, where it waits; `QueueRefused` when it does not, or the queue is locked."""
        self._ask("queue_item_remove", {"uid": uid})

    def start(self) -> None:
        """Start the queue; `QueueRefused` when the manager does not."""
        self._ask("queue_start", {})

    def _ask(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        try:
            told = self._api.send_request(method=method, params=params)
        except self._late as error:
            key = (
                "" if self._settings.public_key else ", or it wants a key (queueserver.public_key)"
            )
            raise QueueUnavailable(
                f"no answer from {self._settings.control} within {_ANSWER_S:g} s: "
                f"the manager does not run{key}"
            ) from error
        except self._refused as error:
            response = getattr(error, "response", None)
            text = short(response.get("msg") if isinstance(response, Mapping) else error)
            # What only looks fails when the manager's database is away.
            kind = QueueUnavailable if method.endswith("_get") else QueueRefused
            raise kind(f"{method}: {text}") from error
        except self._malformed as error:
            raise QueueRefused(f"{method}: {short(error)}") from error
        if not isinstance(told, dict):
            raise QueueUnavailable(f"{self._settings.control} is no queue server: {short(told)}")
        return told
