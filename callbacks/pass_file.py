"""Pass files: who somebody is to a service, in one file that only its owner may read."""

import json
import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import zmq
from zmq.utils import z85

Role = Literal["client", "worker", "approver"]
ROLES: tuple[str, ...] = get_args(Role)
ENVIRONMENT = "INSCAN_PASS"
"""Names the pass file of a process."""
LOCAL_PASS = Path("keys") / "local.pass"
"""Within a state folder: the pass of whoever may read that folder."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_KEY = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")
_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")
_MAX_BYTES = 4096
_FORMAT = {"inscan": "pass", "version": 1}


class PassError(ValueError):
    """A pass or a key that cannot be used; says which, why and what to do. Never holds a secret."""


@dataclass(frozen=True)
class Pass:
    """What lets somebody in.

    Attributes
    ----------
    name : str
        As the allow-list of the service calls it.
    role : str
        `client` sends documents and asks, `worker` computes, `approver` approves rescans.
    public, secret : str
        CURVE pair, Z85. For an approver ``public`` is empty and ``secret`` a random token.
    server : str
        Public key of the service; empty for an approver.
    """

    name: str
    role: Role
    public: str
    secret: str = field(repr=False)
    server: str

    def to_json(self) -> bytes:
        """Content of its file, with the secret."""
        return json.dumps({**_FORMAT, **vars(self)}, indent=1).encode() + b"\n"


def check_name(name: str) -> str:
    """Refuse what is no plain file name of letters, digits, dot, dash and underscore."""
    if not _NAME.fullmatch(name):
        raise PassError(
            f"{name[:80]!r} is no name for a key: expected 1 to 64 letters, digits, '.', '-', '_', "
            "beginning with a letter or digit"
        )
    return name


def is_key(text: object) -> bool:
    """Whether it is written like a CURVE key."""
    if not isinstance(text, str) or not _KEY.fullmatch(text):
        return False
    try:
        return len(z85.decode(text.encode("ascii"))) == 32
    except Exception:  # noqa: BLE001 - groups beyond 32 bit; which exception is pyzmq's affair
        return False


def read_pass(path: Path) -> Pass:
    """Read a pass file.

    Raises
    ------
    PassError
        If it is not there, others may read it, or it is no pass.
    """
    content = read_private(path)
    try:
        found: Any = json.loads(content)
    except (ValueError, RecursionError):
        # The parser's own words and chained errors would quote the file.
        raise PassError(
            f"{path} is no pass file: expected JSON as `inscan keys new` writes"
        ) from None
    return _checked(path, found)


def _checked(path: Path, found: Any) -> Pass:
    names = {*_FORMAT, "name", "role", "public", "secret", "server"}
    if not isinstance(found, dict) or set(found) != names:
        raise PassError(f"{path} is no pass file: expected the keys {', '.join(sorted(names))}")
    if any(found.pop(key) != value for key, value in _FORMAT.items()):
        raise PassError(f"{path} is no pass file of version {_FORMAT['version']}; make a new one")
    if not all(isinstance(value, str) for value in found.values()) or found["role"] not in ROLES:
        raise PassError(f"{path}: expected texts, and a role of {', '.join(ROLES)}")
    check_name(found["name"])
    if found["role"] == "approver":
        good = bool(_TOKEN.fullmatch(found["secret"])) and not found["public"] + found["server"]
    else:
        keys = all(is_key(found[name]) for name in ("public", "secret", "server"))
        good = keys and zmq.curve_public(found["secret"].encode()).decode() == found["public"]
    if not good:
        raise PassError(f"{path}: its keys are damaged; make a new pass with `inscan keys new`")
    return Pass(**found)


def read_private(path: Path, most: int = _MAX_BYTES, *, others: int = 0o077) -> bytes:
    """Content of a file that nobody but its owner may read.

    Parameters
    ----------
    path : Path
    most : int
        Bytes.
    others : int
        Permissions that nobody else may have: bits of the file's mode.

    Raises
    ------
    PassError
        If it cannot be read, is no plain file, is too long, or others may read or change it.
    """
    try:
        # A FIFO would block the caller for as long as nobody writes to it.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise PassError(f"{path} cannot be read: {error.strerror}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise PassError(f"{path} is no plain file")
        if status.st_mode & others:
            raise PassError(
                f"{path} can be read or changed by others (mode {stat.S_IMODE(status.st_mode):04o}): "
                f"run `chmod 600 {path}`; if they may have read it, revoke that key and make a new one"
            )
        content = os.read(descriptor, most + 1)
    finally:
        os.close(descriptor)
    if len(content) > most:
        raise PassError(f"{path} is too long: {most} bytes at most")
    return content


def pass_for(state_dir: Path, role: str | None = None, server: str | None = None) -> Pass | None:
    """The pass of this process: of the file that `INSCAN_PASS` names, else the local one of a state folder.

    Parameters
    ----------
    state_dir : Path
    role : str or None
        Which is needed; None for any.
    server : str or None
        Public key of the service that it is needed for, if known: a pass for another one gives way to the local one.

    Returns
    -------
    Pass or None
        None where there is neither.

    Raises
    ------
    PassError
        If there is one that cannot be used.
    """
    named, local = os.environ.get(ENVIRONMENT), state_dir / LOCAL_PASS
    there = os.path.exists(local)
    if named:
        found = read_pass(Path(named))
        if server in (None, found.server) or not there:
            return fitting(found, named, role, server)
    return fitting(read_pass(local), str(local), role, server) if there else None


def fitting(found: Pass, where: str, role: str | None, server: str | None = None) -> Pass:
    """Refuse a pass that is not of this role, or not for this service."""
    if role is not None and found.role != role:
        raise PassError(f"{where} is the pass of a role {found.role!r}; this needs one of {role!r}")
    if server is not None and found.server != server:
        raise PassError(
            f"{where} is the pass for another service, or this one has a new key: "
            f"have a new one made with `inscan keys new NAME --role {found.role}`"
        )
    return found
