"""Which of several clients a run's documents are taken from.

Offsets count in one log file. Two forwarders of one scan have a log each, whose offsets mean nothing to each other, so
a run is taken from the first of them that lives. The same log may change hands: a process that died leaves it to the
next, which is known by the log's first record.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Literal

LIVING_S = 8.0
"""A client that has said something within so many seconds lives; it pings every second."""

Verdict = Literal["ours", "prove", "taken over", "replace", "wait", "tell"]


@dataclass
class Reader:
    """Who reads the log that a run is taken from.

    Attributes
    ----------
    name : str
        Of the client, which keeps it over a cut line.
    identities : set of bytes
        Routing identities that have shown that they read this log.
    first : bytes
        Digest of its first record.
    """

    name: str = ""
    identities: set[bytes] = field(default_factory=set)
    first: bytes = b""
    _told: set[bytes] = field(default_factory=set)

    def begin(self, identity: bytes, name: str, payload: bytes) -> None:
        """Take the run from the client that sent its first record."""
        self.name, self.identities, self.first = name, {identity}, _digest(payload)

    def judge(self, identity: bytes, name: str, first: bytes | None, *, living: bool) -> Verdict:
        """Say what is to be done with a message of a client.

        Parameters
        ----------
        identity, name
            Of the client.
        first
            The first record of its log, when that is what it sent.
        living
            The reader has said something lately.

        Returns
        -------
        str
            ``ours``: take it. ``prove``: have it begin with its first record. ``taken over``: the same log in other
            hands, to go on where it is. ``replace``: another log, in place of one that nobody reads any more, from its
            beginning. ``wait``: pass it over. ``tell``: the same, and say why, once. A client that is
            passed over keeps its log and asks again, until the run is over or its turn comes.
        """
        if identity in self.identities:
            return "ours"
        if name and name == self.name:
            self.identities.add(identity)
            return "ours"
        if first is not None and _digest(first) == self.first:
            self.name, self.identities = name, {identity}
            return "taken over"
        if not living:
            return "prove" if first is None else "replace"
        if first is None and identity not in self._told:
            return "prove"
        if identity in self._told:
            return "wait"
        self._told.add(identity)
        return "tell"


def _digest(payload: bytes) -> bytes:
    return hashlib.sha256(payload).digest()
