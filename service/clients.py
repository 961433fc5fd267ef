"""Who talks to ingest, when each was last heard, and which runs each wants to hear of."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

MAX_CLIENTS = 1024
_AT_WORK_S = 30.0
_MAX_WATCHES = 10_000
_LONGEST_LOG = 1 << 62
_LONGEST_NAME = 200


@dataclass
class Client:
    """One socket at the other end.

    Attributes
    ----------
    name, host_id, pid : str, str, int
        As it introduced itself; empty if it did not.
    seen : float
        Monotonic seconds of its last word.
    watches : set of str
        Runs whose outcome it waits for.
    """

    name: str = ""
    host_id: str = ""
    pid: int = 0
    seen: float = 0.0
    watches: set[str] = field(default_factory=set)


class Clients:
    """The clients by routing identity, a bounded number of those who introduced themselves and as many others.

    The longest silent make room for new ones; but nobody who introduced himself and speaks makes room for anybody,
    however many knock at the door.
    """

    def __init__(self) -> None:
        self._named: OrderedDict[bytes, Client] = OrderedDict()
        self._nameless: OrderedDict[bytes, Client] = OrderedDict()

    def heard(self, identity: bytes, now: float) -> Client:
        """The client behind an identity, which has just said something."""
        client = self._named.get(identity)
        if client is not None:
            self._named.move_to_end(identity)
        else:
            client = self._nameless.setdefault(identity, Client())
            self._nameless.move_to_end(identity)
            while len(self._nameless) > MAX_CLIENTS:
                self._nameless.popitem(last=False)
        client.seen = now
        return client

    def introduce(self, identity: bytes, hello: Mapping[str, Any], now: float) -> Client:
        """A client says who it is; where all places are taken by clients at work it stays nameless."""
        name, host_id = (str(hello[key])[:_LONGEST_NAME] for key in ("client", "host_id"))
        pid, client = int(hello["pid"]), self.heard(identity, now)
        if identity not in self._named:
            if len(self._named) >= MAX_CLIENTS:
                longest = next(iter(self._named.values()))
                if now - longest.seen < _AT_WORK_S:
                    return client
                self._named.popitem(last=False)
            self._named[identity] = self._nameless.pop(identity)
        client.name, client.host_id, client.pid = name, host_id, pid
        return client

    def silence(self, identity: bytes, now: float) -> float:
        """Seconds since a client said something; infinite for one that is not known (any more)."""
        client = self._named.get(identity) or self._nameless.get(identity)
        return float("inf") if client is None else now - client.seen

    def excuse(self, seconds: float) -> None:
        """Nobody could be heard for so long, because we did not listen."""
        for client in (*self._named.values(), *self._nameless.values()):
            client.seen += seconds

    def watch(self, client: Client, run_uid: str) -> None:
        """A client wants to hear of a run; beyond ten thousand runs it has to ask again."""
        if len(client.watches) < _MAX_WATCHES:
            client.watches.add(run_uid)

    def watching(self, run_uid: str) -> Iterator[bytes]:
        """Identities of those who want to hear of a run."""
        for clients in (self._named, self._nameless):
            for identity, client in clients.items():
                if run_uid in client.watches:
                    yield identity

    def told(self, run_uid: str) -> None:
        """Everybody has heard all there is of a run."""
        for client in (*self._named.values(), *self._nameless.values()):
            client.watches.discard(run_uid)


class Recent:
    """The last so many names that were added."""

    def __init__(self, maxlen: int) -> None:
        self._maxlen = maxlen
        self._names: OrderedDict[str, None] = OrderedDict()

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def add(self, name: str) -> None:
        """Remember a name, and forget the oldest beyond the limit."""
        self._names[name] = None
        while len(self._names) > self._maxlen:
            self._names.popitem(last=False)


def place_named(header: Mapping[str, Any], name: str) -> int:
    """A place in a log that a message names; ValueError when that is none."""
    place = header[name]
    if not isinstance(place, int) or not 0 <= place < _LONGEST_LOG:
        raise ValueError(f"{name} is a whole number from 0 to {_LONGEST_LOG}")
    return place


def run_named(header: Mapping[str, Any]) -> str:
    """Uid of the run that a message is about; ValueError when that is none."""
    uid = header["run"]
    if not isinstance(uid, str) or not 0 < len(uid) <= 256:
        raise ValueError("a run is named by a text of 1 to 256 characters")
    return uid
