"""Who may let motors move, or forbid it: whoever holds an approver's token.

Every account of this machine can dial loopback, and every client of an encrypted socket may send documents. Neither
may approve a rescan: that takes a token, which lies in a file of the state directory (its owner's alone), or in a pass
that `inscan keys new NAME --role approver` made for a person.
"""

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from inscan.callbacks.approver_pass import GATED

__all__ = ["GATED", "Approval", "NotApprover"]

_WRONG = 5  # attempts of one connection before it has to wait
_WAIT_S = 60.0
_MOST_PEERS = 1024
_LONGEST_NAME = 64


class NotApprover(PermissionError):
    """A request came without a valid token; the message says where one is to be had."""


class Approval:
    """Looks at the tokens of requests, and counts those that are none.

    Parameters
    ----------
    approver : callable
        Token -> name of its key, or None; compares in constant time. See `inscan.service.keys.Keyring.approver`.
    pass_file : Path
        The service's own pass, which its owner's command line uses; for messages.
    now : callable
        Monotonic seconds.

    Attributes
    ----------
    counts : Counter
        ``approvals`` that were authenticated, ``approvals_refused``, and ``approvals_slowed``: refused without a look,
        because the connection had given too many wrong ones.
    """

    def __init__(
        self,
        approver: Callable[[str], str | None],
        pass_file: Path,
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._approver = approver
        self._pass_file = pass_file
        self._now = now
        # Connection -> wrong attempts, and when the last one was. The longest silent make room for new ones.
        self._wrong: OrderedDict[bytes, tuple[int, float]] = OrderedDict()

    def signed(self, op: str, fields: Mapping[str, Any], peer: bytes) -> dict[str, Any]:
        """Take the token out of a request's fields, and put the name of its key beside `who`.

        Parameters
        ----------
        op : str
            One of `GATED`.
        fields : mapping
            With `key`, the token, and `who`, as the caller calls himself.
        peer : bytes
            The connection it came from.

        Raises
        ------
        NotApprover
            Without a valid token. Whether there was none, a wrong one or a revoked one is not told.
        """
        rest = dict(fields)
        token = rest.pop("key", None)
        name = self._name_of(op, token, peer)
        claimed = str(rest.get("who") or "")[:_LONGEST_NAME]
        # Nobody may call himself what the service says of him.
        plain = "".join(c if c.isprintable() and c not in "()" else "_" for c in claimed)
        rest["who"] = f"{plain} (key: {name})".strip()
        return rest

    def _name_of(self, op: str, token: object, peer: bytes) -> str:
        now = self._now()
        count, last = self._wrong.get(peer, (0, now))
        if now - last > _WAIT_S:
            count = 0
        if count >= _WRONG:
            self.counts["approvals_slowed"] += 1
            raise NotApprover(
                f"{op}: too many requests without a valid approver's key came over this connection; it is heard "
                f"again in {_WAIT_S - (now - last):.0f} s"
            )
        name = self._approver(token) if isinstance(token, str) else None
        if name is not None:
            self._wrong.pop(peer, None)
            self.counts["approvals"] += 1
            return name
        self.counts["approvals_refused"] += 1
        self._wrong[peer] = (count + 1, now)
        self._wrong.move_to_end(peer)
        while len(self._wrong) > _MOST_PEERS:
            self._wrong.popitem(last=False)
        raise NotApprover(
            f"{op} needs a valid approver's key. Who may read {self._pass_file} has one: name the state directory with "
            "--state. Everybody else needs a pass of his own: `inscan keys new NAME --role approver`, run by the "
            "service's account, makes it; name its file in INSCAN_APPROVE_PASS"
        )
