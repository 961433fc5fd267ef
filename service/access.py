"""Which sockets ask for keys, and the passes of this machine's own processes."""

import logging
from typing import Any

from inscan.callbacks.link import ANYWHERE, at_host, host_of
from inscan.callbacks.pass_file import ENVIRONMENT, LOCAL_PASS, PassError
from inscan.service.gate import Gate
from inscan.service.keys import Keyring, ServerPair
from inscan.service.settings import Settings

SOCKETS = ("ingest", "broker", "spool")
_log = logging.getLogger(__name__)


class Access:
    """The keys of one running service.

    Parameters
    ----------
    settings : Settings

    Raises
    ------
    PassError
        When a socket can be reached from other machines and this service has no key yet, or its keys cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._keyring = Keyring(settings.keys_dir)
        self._closed = [name for name in SOCKETS if settings.asks_for_keys(name)]
        self._pair: ServerPair | None = None
        if not self._closed:
            return
        self._pair = self._keyring.server()
        open_ = [name for name in SOCKETS if settings.is_open(name)]
        if self._pair is None:
            if open_:
                raise PassError(_no_key(settings, open_[0]))
            self._pair = self._keyring.make_server()
        folder = settings.keys_dir
        self._keyring.local("local-client", "client", settings.state_dir / LOCAL_PASS)
        self._keyring.local("local-worker", "worker", folder / "local-worker.pass")
        let_in = [entry.name for entry in self._keyring.entries()]
        _log.info("%s ask for keys; allowed: %s", ", ".join(self._closed), ", ".join(let_in))

    def gate(self, name: str) -> Gate | None:
        """The gate of a socket; None where all processes of this machine may come in."""
        if name not in self._closed or self._pair is None:
            return None
        return Gate(self._keyring, self._pair, name)

    def spool_for_workers(self, bound: str) -> str:
        """The spool address that workers are told; with no host that is one where nothing better is known."""
        host = self._settings.advertise
        return at_host(bound, host) if host and host_of(bound) in ANYWHERE else bound

    @property
    def announcement(self) -> dict[str, Any]:
        """For `service.json`: which sockets ask for keys, and this service's public one."""
        found: dict[str, Any] = {"curve": self._closed}
        return found if self._pair is None else found | {"server_key": self._pair.public}

    def worker_environment(self) -> dict[str, str]:
        """For child workers; a pass of the service's own environment is not for them."""
        mine = str(self._settings.keys_dir / "local-worker.pass")
        return {ENVIRONMENT: mine if "broker" in self._closed else ""}

    def client_environment(self) -> dict[str, str]:
        """For child forwarders."""
        mine = str(self._settings.state_dir / LOCAL_PASS)
        return {ENVIRONMENT: mine if "ingest" in self._closed else ""}


def _no_key(settings: Settings, name: str) -> str:
    role = "client" if name == "ingest" else "worker"
    return (
        f"{name}: {getattr(settings, name)} can be reached from other machines, and this service has no keys "
        f"yet: run `inscan keys new NAME --role {role} --state {settings.state_dir}` for each who is to come "
        "in, then start again"
    )
