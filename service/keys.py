"""Who may speak to this service: the allow-list, and the service's own pair.

`<state>/keys` holds `server.json` (the pair) and `allowed/<name>.json`, one file a key with its public part only. A
running service notices a change of that folder by itself.
"""

import errno
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import stat
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import zmq

from inscan.callbacks.pass_file import (
    ROLES,
    Pass,
    PassError,
    Role,
    check_name,
    is_key,
    read_pass,
    read_private,
)

__all__ = ["OPENS", "Entry", "Keyring", "PassError", "ServerPair"]

OPENS: dict[str, tuple[str, ...]] = {
    "client": ("ingest",),
    "worker": ("broker", "spool"),
    "approver": (),
}
"""Sockets that a role may speak to. An approver's token goes through a client's connection."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_ENTRIES = 10_000
_MAX_BYTES = 4096
_SETTLED_NS = 50_000_000
"""A folder changed within so short a time may change again without another time stamp."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServerPair:
    """The service's own CURVE pair, Z85."""

    public: str
    secret: str = field(repr=False)


@dataclass(frozen=True)
class Entry:
    """One line of the allow-list; nothing in it is secret.

    Attributes
    ----------
    public : str
        CURVE key of a client or worker; empty for an approver.
    token_sha256 : str
        Of an approver's token; empty for others.
    made : str
        When, UTC.
    """

    name: str
    role: Role
    public: str
    token_sha256: str
    made: str

    @property
    def opens(self) -> tuple[str, ...]:
        """Sockets it may speak to."""
        return OPENS[self.role]


class Keyring:
    """The keys of one service.

    Parameters
    ----------
    folder : Path
        `<state>/keys`; made by the first key.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._allowed = folder / "allowed"
        self._stamp: tuple[int, int] | None = None
        self._by_public: dict[str, tuple[str, Role]] = {}
        self._approvers: list[Entry] = []
        self._told: set[str] = set()
        self._lock = threading.Lock()  # of what `_look` has read

    def server(self) -> ServerPair | None:
        """The service's pair, or None while there is none.

        Raises
        ------
        PassError
            If it is damaged or others may read it.
        """
        path = self.folder / "server.json"
        try:
            if not path.exists():
                return None
        except PermissionError:
            raise PassError(
                f"{self.folder} cannot be read by this account: make keys as the one that runs the service"
            ) from None
        self._check_folder(self.folder)
        content = read_private(path)
        try:
            pair = ServerPair(**json.loads(content))
            good = is_key(pair.public) and is_key(pair.secret)
            if good and zmq.curve_public(pair.secret.encode()).decode() == pair.public:
                return pair
        except (TypeError, ValueError, RecursionError):
            pass  # said below, without the parser's words: they would quote the file
        raise PassError(
            f"{path} is damaged: restore it from a copy, or remove it and make all keys anew"
        )

    def make_server(self) -> ServerPair:
        """The service's pair, made if there is none."""
        known = self.server()
        if known is not None:
            return known
        self._make_folders()
        public, secret = (half.decode("ascii") for half in zmq.curve_keypair())
        content = json.dumps({"public": public, "secret": secret}).encode()
        try:
            _write_new(self.folder / "server.json", content)
        except FileExistsError:  # somebody else was quicker
            return self.make_server()
        return ServerPair(public, secret)

    def new(self, name: str, role: str, out: Path | None = None) -> Path:
        """Let somebody in.

        Parameters
        ----------
        name : str
        role : str
            `client`, `worker` or `approver`.
        out : Path or None
            The pass file; by default `<name>.pass` beside the server's pair. It must not exist.

        Returns
        -------
        Path
            The pass file, for whoever is let in.

        Raises
        ------
        PassError
            If there is such a key or file already, or one of them cannot be written.
        """
        check_name(name)
        if role not in ROLES:
            raise PassError(f"role {role!r}: expected {', '.join(ROLES)}")
        entry_path = self._allowed / f"{name}.json"
        if entry_path.exists():
            raise PassError(
                f"there is a key {name!r} already: `inscan keys revoke {name}` first, or take another name"
            )
        path = out or self.folder / f"{name}.pass"
        try:
            self._make_folders()
            made, entry = self._make(name, role)
            _write_new(path, made.to_json())
        except FileExistsError:
            raise PassError(f"{path} exists already: name another file with --out") from None
        except OSError as error:
            raise PassError(f"{path} cannot be written: {error.strerror}") from None
        try:
            _write_new(entry_path, json.dumps(asdict(entry), indent=1).encode() + b"\n")
        except OSError as error:
            path.unlink()
            raise PassError(f"{entry_path} cannot be written: {error.strerror or error}") from None
        return path

    def _make(self, name: str, role: str) -> tuple[Pass, Entry]:
        made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        if role == "approver":
            token = secrets.token_urlsafe(32)
            digest = hashlib.sha256(token.encode()).hexdigest()
            return Pass(name, "approver", "", token, ""), Entry(name, "approver", "", digest, made)
        public, secret = (half.decode("ascii") for half in zmq.curve_keypair())
        which: Role = "client" if role == "client" else "worker"
        server = self.make_server().public
        return Pass(name, which, public, secret, server), Entry(name, which, public, "", made)

    def local(self, name: str, role: str, path: Path) -> Path:
        """A pass for this machine's own processes: the one in `path` if it still lets in, else a new one."""
        if path.exists() and self._lets_in(name, role, path):
            return path
        if (self._allowed / f"{name}.json").exists():
            self.revoke(name)
        path.unlink(missing_ok=True)
        return self.new(name, role, path)

    def _lets_in(self, name: str, role: str, path: Path) -> bool:
        try:
            known = read_pass(path)
            server = self.server()
        except PassError as error:
            _log.warning("%s; a new one is made", error)
            return False
        if known.role != role:
            return False
        if role == "approver":
            return self.approver(known.secret) == name
        ours = server is not None and known.server == server.public
        return ours and self.role_of(known.public) == (name, role)

    def revoke(self, name: str) -> Entry:
        """Let somebody in no more; a running service notices at once.

        Raises
        ------
        LookupError
            If there is no such key.
        """
        check_name(name)
        path = self._allowed / f"{name}.json"
        try:
            entry = _read_entry(path)
        except PassError:
            entry = Entry(name, "client", "", "", "")  # damaged, and it goes all the same
        except FileNotFoundError:
            raise LookupError(f"there is no key {name!r}; `inscan keys list` shows them") from None
        path.unlink(missing_ok=True)
        _sync(self._allowed)
        return entry

    def entries(self) -> list[Entry]:
        """The allow-list by name.

        Raises
        ------
        PassError
            If others than the owner may change it.
        """
        if not self._allowed.is_dir():
            return []
        self._check_folder(self.folder)
        self._check_folder(self._allowed)
        found = []
        names = sorted(name for name in os.listdir(self._allowed) if name.endswith(".json"))
        for name in names[:_MAX_ENTRIES]:
            try:
                found.append(_read_entry(self._allowed / name))
            except FileNotFoundError:
                continue  # revoked meanwhile
            except PassError as error:
                if str(error) not in self._told:
                    self._told.add(str(error))
                    _log.error("%s; it lets nobody in", error)
        return found

    def role_of(self, public: str) -> tuple[str, Role] | None:
        """Name and role of a CURVE key, or None when it is not let in (any more)."""
        with self._lock:
            self._look()
            return self._by_public.get(public)

    def approver(self, token: str) -> str | None:
        """Name of the approver with this token, or None when there is none."""
        with self._lock:
            self._look()
            approvers = self._approvers
        digest = hashlib.sha256(token.encode("utf-8", "backslashreplace")).hexdigest()
        name = None
        for entry in approvers:
            if hmac.compare_digest(digest, entry.token_sha256):
                name = entry.name
        return name

    def _look(self) -> None:
        """Read the allow-list again if it was changed."""
        try:
            status = os.stat(self._allowed)
            stamp = (status.st_mtime_ns, status.st_ino)
        except OSError:
            stamp = (0, 0)
        if stamp == self._stamp:
            return
        try:
            entries = self.entries()
        except (PassError, OSError) as error:
            # Nobody is let in by a list that anybody could have written.
            entries = []
            if str(error) not in self._told:
                self._told.add(str(error))
                _log.error("%s; nobody is let in until then", error)
        self._by_public = {e.public: (e.name, e.role) for e in entries if e.public}
        self._approvers = [entry for entry in entries if entry.role == "approver"]
        settled = abs(time.time_ns() - stamp[0]) > _SETTLED_NS
        self._stamp = stamp if settled else None

    def _make_folders(self) -> None:
        for folder in (self.folder, self._allowed):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._check_folder(folder)

    def _check_folder(self, folder: Path) -> None:
        mode = stat.S_IMODE(folder.stat().st_mode)
        if mode & 0o022:
            raise PassError(
                f"{folder} can be changed by others (mode {mode:04o}), who could let themselves in: "
                f"run `chmod 700 {folder}` and look through `inscan keys list`"
            )


def _read_entry(path: Path) -> Entry:
    with path.open("rb") as file:
        content = file.read(_MAX_BYTES + 1)
    try:
        entry = Entry(**json.loads(content[:_MAX_BYTES]))
        good = entry.role in ROLES and f"{entry.name}.json" == path.name
        if entry.role == "approver":
            good = good and bool(_SHA256.fullmatch(entry.token_sha256)) and not entry.public
        else:
            good = good and is_key(entry.public)
        if good:
            return entry
    except (TypeError, RecursionError, ValueError):
        pass  # said below
    raise PassError(f"{path} is no entry of an allow-list: revoke it and make a new key")


def _write_new(path: Path, content: bytes) -> None:
    """Write a file that only its owner may read, whole or not at all; FileExistsError when there is one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        _place(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync(path.parent)


def _place(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)
    except OSError as error:
        # Some file systems have no second names: sticks, shares.
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        os.rename(temporary, path)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
