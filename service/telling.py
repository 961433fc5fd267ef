"""What clients of ingest are told besides what became of their documents: greetings, outcomes, snapshots."""

from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

from inscan.callbacks.wire import Buffer, pack
from inscan.service.clients import Client, Clients
from inscan.service.ingest_line import Line
from inscan.service.mailbox import Outcome, SnapshotDone

_VERSION = version("inscan")


class Telling:
    """Words to clients; of ingest's thread.

    Parameters
    ----------
    line : Line
    clients : Clients
    outcome_of : callable
        Run uid -> outcome payload, or None while there is none.
    boot : str
        Names this life of the service.
    """

    def __init__(
        self,
        line: Line,
        clients: Clients,
        outcome_of: Callable[[str], dict[str, Any] | None],
        boot: str,
    ) -> None:
        self._line = line
        self._clients = clients
        self._outcome_of = outcome_of
        self._boot = boot

    def welcome(self, identity: bytes, client: Client) -> None:
        """Answer a greeting or a ping."""
        # A line that was cut comes back under another identity: then the client is not known, must
        # introduce itself, and asks again for whatever went missing with the line.
        header = {"service": f"inscan {_VERSION}", "boot": self._boot, "known": bool(client.name)}
        self._line.send(identity, "WELCOME", header)

    def watch(self, identity: bytes, client: Client, run_uid: str) -> None:
        """Tell the outcome of a run, now or when there is one."""
        outcome = self._outcome_of(run_uid)
        if outcome is not None:
            self._line.send(identity, "OUTCOME", {"run": run_uid}, pack(outcome))
        else:
            self._clients.watch(client, run_uid)

    def mail(self, item: object) -> None:
        """Tell those who wait for a run what the mailbox brought."""
        match item:
            case Outcome(run_uid, payload):
                self._publish(run_uid, "OUTCOME", {"run": run_uid}, pack(payload))
                self._clients.told(run_uid)
            case SnapshotDone(run_uid, rows, path):
                self._publish(run_uid, "SNAPSHOT", {"run": run_uid, "rows": rows, "path": path})
            case _:
                raise TypeError(f"ingest takes no {type(item).__name__}")

    def _publish(self, run_uid: str, kind: str, header: Mapping[str, Any], *chunks: Buffer) -> None:
        for identity in list(self._clients.watching(run_uid)):
            self._line.send(identity, kind, header, *chunks)
