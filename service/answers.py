"""Requests of clients: each is done once, and answered as often as it is asked."""

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from inscan.callbacks.wire import Message, pack, unpack
from inscan.service.complaints import Complaints

_MAX_REQUEST = 4 * 2**20
_KEPT = 1024
_KEPT_BYTES = 32 * 2**20
_LONGEST_ID = 200

HandleRequest = Callable[[str, dict[str, Any], bytes], Mapping[str, Any]]
"""(op, fields, identity) -> reply."""


class Answers:
    """Answers requests, and keeps the latest answers: one that was lost on the way is given again.

    Parameters
    ----------
    handle : callable
        (op, fields, identity) -> reply; an exception becomes a refusal that carries its text.
    complaints : Complaints
    """

    def __init__(self, handle: HandleRequest, complaints: Complaints) -> None:
        self._handle = handle
        self._complaints = complaints
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0

    def __call__(self, identity: bytes, message: Message) -> tuple[str, bytes]:
        """Answer a REQUEST.

        Returns
        -------
        (str, bytes)
            Its id, and the packed reply.

        Raises
        ------
        KeyError, ValueError
            When it is none.
        """
        name, op = message.header["id"], str(message.header["op"])
        if not isinstance(name, str) or not 0 < len(name) <= _LONGEST_ID:
            raise ValueError(f"a request is named by a text of 1 to {_LONGEST_ID} characters")
        known = self._kept.get(name)
        if known is not None:
            return name, known
        (chunk,) = message.chunks
        fields = unpack(chunk, max_bytes=_MAX_REQUEST)
        if not isinstance(fields, dict):
            raise ValueError("the fields of a request are a mapping")
        try:
            packed = pack({"ok": True, **self._handle(op, fields, identity)})
        except Exception as error:  # noqa: BLE001 - the caller gets to know, the service goes on
            self._complaints.say(logging.WARNING, "request %.100s refused: %.1000s", op, error)
            packed = pack({"ok": False, "reason": str(error) or type(error).__name__})
        self._keep(name, packed)
        return name, packed

    def _keep(self, name: str, packed: bytes) -> None:
        self._kept[name] = packed
        self._bytes += len(packed)
        while self._kept and (len(self._kept) > _KEPT or self._bytes > _KEPT_BYTES):
            self._bytes -= len(self._kept.popitem(last=False)[1])
