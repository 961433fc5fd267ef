"""`inscan doctor`: what works on this machine, what does not, and what to do about it. Changes nothing."""

import errno
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from inscan.callbacks.profile import load_profile
from inscan.callbacks.request import RequestRefusedError, request
from inscan.service.journal_repair import examine as examine_journal
from inscan.service.queue_client import QueueUnavailable
from inscan.service.queue_doctor import look
from inscan.service.settings import Settings
from inscan.service.tiled_http import PROCESSED, TiledHTTP
from inscan.service.tiled_scopes import key_of

PYTHON = (3, 11)
PACKAGES = (
    "inscan",
    "bluesky",
    "event-model",
    "tiled",
    "bluesky-tiled-plugins",
    "numpy",
    "h5py",
    "pyzmq",
    "torch",
)
"""Whose versions a report of a problem should name."""

_ANSWER_S = 3.0


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes
    ----------
    name : str
        What was looked at.
    ok : bool
    detail : str
        What was found.
    remedy : str
        What to do; empty when `ok`.
    """

    name: str
    ok: bool
    detail: str
    remedy: str = ""


def examine(settings: Settings) -> list[Check]:
    """Look at everything the service needs.

    Parameters
    ----------
    settings : Settings
        Those it would be started with.

    Returns
    -------
    list of Check
        In the order in which they matter.
    """
    running = _service(settings)
    checks = [
        _python(),
        _packages(),
        _torch(),
        _weights(),
        _curve(),
        _state_dir(settings),
        _space(settings),
        _journal(settings),
        *_profiles(settings),
        running,
    ]
    if not running.ok:
        checks += list(_ports(settings))
    checks.append(_tiled(settings, running.ok))
    key = key_of(settings, _ANSWER_S)
    if key is not None:
        checks.append(Check("tiled key", *key))
    checks += list(_queueserver(settings))
    return checks


def _python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    wanted = ".".join(map(str, PYTHON))
    return Check(
        "python",
        sys.version_info >= PYTHON,
        f"{found} at {sys.executable}",
        f"inscan needs Python {wanted} or newer: make a virtual environment with one",
    )


def _packages() -> Check:
    found, missing = [], []
    for name in PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    detail = ", ".join(found) + (f"; missing: {', '.join(missing)}" if missing else "")
    return Check("packages", not missing, detail, "install inscan again: pip install inscan")


def _torch() -> Check:
    remedy = "install torch for this machine; pytorch.org under `Get started` says which build"
    try:
        import torch

        ones = torch.ones(8, 8)
        if float((ones @ ones).sum()) != 512:
            return Check("torch", False, "it computes wrong sums", remedy)
        device = "CPU"
        if torch.cuda.is_available():
            device = torch.cuda.get_device_name(0)
            torch.ones(8, device="cuda").sum().item()
    except (ImportError, RuntimeError, OSError) as error:
        return Check("torch", False, f"cannot be used: {error}", remedy)
    cores = len(os.sched_getaffinity(0))
    return Check("torch", True, f"{torch.__version__} on {device}, {cores} cores")


def _weights() -> Check:
    """Shipped weights against their cards, without loading torch for it."""
    cards = sorted((_model_folder() / "weights").glob("*.json"))
    remedy = "install inscan again, or make them anew with `inscan train`"
    if not cards:
        return Check("weights", False, "no weights are installed", remedy)
    wrong = []
    for card in cards:
        try:
            wanted = json.loads(card.read_text(encoding="utf-8"))["sha256"]
            blob = card.with_suffix(".safetensors").read_bytes()
        except (OSError, ValueError, KeyError) as error:
            wrong.append(f"{card.stem}: {error}")
            continue
        if hashlib.sha256(blob).hexdigest() != wanted:
            wrong.append(f"{card.stem}: the file does not match its card's SHA-256")
    names = ", ".join(card.stem for card in cards)
    return Check("weights", not wrong, "; ".join(wrong) or names, remedy)


def _model_folder() -> Path:
    spec = importlib.util.find_spec("inscan.models")
    return Path(spec.origin).parent if spec is not None and spec.origin else Path()


def _curve() -> Check:
    import zmq

    return Check(
        "zmq curve",
        bool(zmq.has("curve")),
        f"libzmq {zmq.zmq_version()}" + ("" if zmq.has("curve") else " without CURVE"),
        "install pyzmq from its wheel, which has CURVE: pip install --force-reinstall pyzmq",
    )


def _state_dir(settings: Settings) -> Check:
    folder = settings.state_dir
    remedy = "make it writable for you, or choose another with --state or `state_dir`"
    there = folder
    while not there.exists():
        there = there.parent
    try:
        with tempfile.NamedTemporaryFile(dir=there, prefix=".inscan-doctor"):
            pass
    except OSError as error:
        return Check("state directory", False, f"{folder}: {error}", remedy)
    state = "writable" if there == folder else f"to be made in {there}, which is writable"
    return Check("state directory", True, f"{folder}: {state}")


def _space(settings: Settings) -> Check:
    there = settings.state_dir
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    return Check(
        "disk space",
        free > settings.min_free,
        f"{free / (1 << 30):.1f} GiB free, {settings.min_free / (1 << 30):.1f} are left free",
        f"free some space on the disk of {there}, or lower `min_free`",
    )


def _journal(settings: Settings) -> Check:
    ok, found = examine_journal(settings.journal_path)
    return Check(
        "journal",
        ok,
        found,
        "inscan serve repairs it when it starts; delete the damaged file when nothing of it is missed "
        "(docs/durability.md tells how to look)",
    )


def _profiles(settings: Settings) -> Iterator[Check]:
    for name in settings.profiles:
        try:
            profile = load_profile(name)
            references = profile.references()
        except (OSError, ValueError) as error:
            yield Check(
                f"profile {name}",
                False,
                str(error),
                "mend it; `inscan config explain` lists all keys",
            )
            continue
        more = f", {len(references)} references" if references else ""
        mode = settings.rescan or profile.rescan.mode
        yield Check(
            f"profile {name}",
            True,
            f"{profile.technique}, {profile.method.name}, rescans: {mode}{more}",
        )


def _queueserver(settings: Settings) -> Iterator[Check]:
    """The queue server of the profiles whose rescans go through it; nothing without one."""
    plans: dict[str, str] = {}
    for name in settings.profiles:
        try:
            profile = load_profile(name)
        except (OSError, ValueError):
            continue  # its own check says so
        if profile.rescan.through == "queue":
            plans[profile.name] = profile.rescan.plan
    if not plans:
        return
    given = settings.queueserver
    try:
        detail, wrong = look(given, sorted(set(plans.values())))
    except QueueUnavailable as error:
        remedy = f"start it (start-re-manager), or set `queueserver.control`, now {given.control}"
        yield Check("queue server", False, str(error), f"{remedy}; docs/queueserver.md tells how")
        return
    yield Check("queue server", not wrong, detail, wrong)


def _service(settings: Settings) -> Check:
    remedy = f"start it: inscan serve --state {settings.state_dir}"
    if not settings.service_file.exists():
        return Check("service", False, f"none runs on {settings.state_dir}", remedy)
    try:
        status = request(settings.state_dir, "status", timeout=_ANSWER_S)
    except (ConnectionError, RequestRefusedError) as error:
        return Check("service", False, str(error), remedy)
    workers = status.get("workers") or []
    writer = status.get("writer") or {}
    detail = f"process {status.get('pid')}, {len(workers)} workers, writer {writer.get('state')}"
    if not workers:
        return Check(
            "service", False, detail, "start one: inscan worker ADDRESS (see `inscan status`)"
        )
    if writer.get("reason"):
        return Check(
            "service", False, f"{detail}: {writer['reason']}", "see the check of Tiled below"
        )
    return Check("service", True, detail)


def _ports(settings: Settings) -> Iterator[Check]:
    for name in ("ingest", "broker", "spool"):
        parts = urlsplit(getattr(settings, name))
        yield _port(name, parts.hostname or "127.0.0.1", parts.port or 0)
    if settings.tiled.uri is None:
        yield _port("tiled", "127.0.0.1", settings.tiled.port)


def _port(name: str, host: str, port: int) -> Check:
    if port == 0:
        return Check(f"port of {name}", True, "any free one will be taken")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            text = "is in use by another program" if taken else f"cannot be used: {error}"
            remedy = f"end that program, or set `{name}` to another port (0 takes any free one)"
            return Check(f"port of {name}", False, f"{host}:{port} {text}", remedy)
    return Check(f"port of {name}", True, f"{host}:{port} is free")


def _tiled(settings: Settings, running: bool) -> Check:
    given = settings.tiled
    if given.uri is None:
        if not running:
            return Check("tiled", True, "the service will start one of its own")
        return _ask_tiled(
            lambda: _embedded(settings.state_dir), "see its log in the state directory"
        )
    uri = given.uri
    return _ask_tiled(
        lambda: TiledHTTP(uri, given.api_key, timeout_s=_ANSWER_S),
        "check `tiled.uri` and `tiled.api_key`",
    )


def _embedded(state_dir: Path) -> TiledHTTP:
    from inscan.service.show import tiled_of

    access = tiled_of(state_dir)
    return TiledHTTP(access.uri, access.api_key, timeout_s=_ANSWER_S)


def _ask_tiled(connect: Callable[[], TiledHTTP], remedy: str) -> Check:
    try:
        with connect() as tiled:
            node = tiled.get(PROCESSED)
            where = tiled.uri
    except (OSError, ValueError) as error:
        return Check("tiled", False, str(error), remedy)
    state = "answers, with results" if node else "answers; the service will make its containers"
    return Check("tiled", True, f"{where} {state}")
