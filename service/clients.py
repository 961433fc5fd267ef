"""Who talks to ingest, when each was last heard, and which runs each wants to hear of."""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

_MAX_CLIENTS = 1024
_MAX_WATCHES = 10_000


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
    """The most recent clients by routing identity; the longest silent make room for new ones."""

    def __init__(self) -> None:
        self._clients: OrderedDict[bytes, Client] = OrderedDict()

    def heard(self, identity: bytes, now: float) -> Client:
        """The client behind an identity, which has just said something."""
        client = self._clients.setdefault(identity, Client())
        client.seen = now
        self._clients.move_to_end(identity)
        while len(self._clients) > _MAX_CLIENTS:
            self._clients.popitem(last=False)
        return client

    def silence(self, identity: bytes, now: float) -> float:
        """Seconds since a client said something; infinite for one that is not known (any more)."""
        client = self._clients.get(identity)
        return float("inf") if client is None else now - client.seen

    def watch(self, client: Client, run_uid: str) -> None:
        """A client wants to hear of a run; beyond ten thousand runs it has to ask again."""
        if len(client.watches) < _MAX_WATCHES:
            client.watches.add(run_uid)

    def watching(self, run_uid: str) -> Iterator[bytes]:
        """Identities of those who want to hear of a run."""
        for identity, client in self._clients.items():
            if run_uid in client.watches:
                yield identity

    def told(self, run_uid: str) -> None:
        """Everybody has heard all there is of a run."""
        for client in self._clients.values():
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
