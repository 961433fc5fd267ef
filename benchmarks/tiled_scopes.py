"""Which scopes a Tiled key needs: leave out one after the other, at a real Tiled with users, and see what fails.

python benchmarks/tiled_scopes.py      exit status 1 when `inscan.service.tiled_scopes` says otherwise
"""

import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import yaml
from pydantic import SecretStr

from inscan.service import derived
from inscan.service.commit import Committer
from inscan.service.messages import InferenceJob, InferenceResult, job_key
from inscan.service.processed import Processed, ResultArray
from inscan.service.result_file import write_result
from inscan.service.result_view import describe
from inscan.service.tiled_http import TiledHTTP, TiledRefusedKey
from inscan.service.tiled_scopes import needed, scopes_of

ALL = (*needed(True), "write:data")


@contextmanager
def tiled_with_users(folder: Path) -> Iterator[Callable[[Sequence[str]], tuple[str, SecretStr]]]:
    """A Tiled on loopback with one admin; yields what makes a key with given scopes."""
    password = secrets.token_hex(16)
    provider = {
        "provider": "toy",
        "authenticator": "tiled.authenticators:DictionaryAuthenticator",
        "args": {"users_to_passwords": {"anna": password}},
    }
    config = {
        "authentication": {
            "secret_keys": [secrets.token_hex(32)],
            "providers": [provider],
            "tiled_admins": [{"provider": "toy", "id": "anna"}],
        },
        "database": {"uri": f"sqlite:///{folder / 'users.db'}", "init_if_not_exists": True},
        "catalog": {
            "uri": f"sqlite:///{folder / 'catalog.db'}",
            "writable_storage": [str(folder / "data"), f"duckdb:///{folder / 'tables.duckdb'}"],
            "readable_storage": [str(folder)],
        },
    }
    (folder / "data").mkdir()
    (folder / "config.yml").write_text(yaml.safe_dump(config))
    with socket.create_server(("127.0.0.1", 0)) as listener, (folder / "log").open("wb") as log:
        port, descriptor = listener.getsockname()[1], listener.fileno()
        child = [sys.executable, "-m", "inscan.service.tiled_child", str(folder / "config.yml")]
        process = subprocess.Popen(
            [*child, str(descriptor), str(os.getpid())],
            pass_fds=[descriptor],
            stdout=log,
            stderr=log,
        )
    root = f"http://127.0.0.1:{port}/api/v1"
    try:
        with httpx.Client(base_url=root, trust_env=False, timeout=120.0) as client:
            form = {"username": "anna", "password": password, "grant_type": "password"}
            session = client.post("/auth/provider/toy/token", data=form).raise_for_status().json()
            bearer = {"Authorization": f"Bearer {session['access_token']}"}

            def key(scopes: Sequence[str]) -> tuple[str, SecretStr]:
                wanted = {"expires_in": 3600, "scopes": list(scopes), "note": "a try"}
                made = client.post("/auth/apikey", json=wanted, headers=bearer).raise_for_status()
                return root, SecretStr(made.json()["secret"])

            yield key
    finally:
        process.terminate()
        process.wait()


def commit(tiled: TiledHTTP, folder: Path, name: str, *, registered: bool) -> None:
    """Put a small result into Tiled, as the writer does."""
    key = job_key(name, "primary", "n2n", {})
    path = folder / f"{key}.h5"
    dims = ("element", "row", "col")
    values = np.ones((1, 3, 4), "f4")
    made = [
        ResultArray(one, dims, "counts", values, ["Fe_K"]) for one in ("values", "sigma", "raw")
    ]
    digest = write_result(path, Processed(made, {"verdict": "pass"}), {})
    job = InferenceJob(
        key=key, run_uid=name, stream="primary", kind="final", recipe="n2n", parameters={}, meta={}, spool="/s",
        arrays={}, input_digest="", result_path=str(path), host_id="h",
    )  # fmt: skip
    result = InferenceResult(
        key=key, fence=1, result_path=str(path), digest=digest, report={"verdict": "pass"}, regions=[], timings={}
    )  # fmt: skip
    run = derived.compose(job, result, describe(path), {"scan_id": 1}, time.time())
    committer = Committer(tiled, readable=[folder] if registered else [])
    try:
        committer.commit(run, derived.axes_of({}, {}, run.arrays), path, digest)
    finally:
        committer.close()


def clear(tiled: TiledHTTP, folder: Path, name: str) -> None:
    """Make a node and take it away again, as after a crash."""
    tiled.create("processed", name)
    tiled.delete(f"processed/{name}")


def main() -> int:
    tries: dict[str, Callable[[TiledHTTP, Path, str], None]] = {
        "register": lambda t, f, n: commit(t, f, n, registered=True),
        "upload": lambda t, f, n: commit(t, f, n, registered=False),
        "clear": clear,
    }
    found: dict[str, set[str]] = {}
    with tempfile.TemporaryDirectory() as made, tiled_with_users(Path(made).resolve()) as key:
        folder = Path(made).resolve()
        root, whole = key(ALL)
        with TiledHTTP(root, whole) as tiled:
            tiled.ensure_catalogs()
            for what, deed in tries.items():
                deed(tiled, folder, f"{what}-whole")
        for what, deed in tries.items():
            for scope in ALL:
                left = [one for one in ALL if one != scope]
                root, lesser = key(left)
                assert set(scopes_of(root, lesser, 10.0) or ()) == set(left)
                with TiledHTTP(root, lesser) as tiled:
                    try:
                        deed(tiled, folder, f"{what}-{scope.replace(':', '-')}")
                    except TiledRefusedKey:
                        found.setdefault(what, set()).add(scope)
            print(f"{what} needs {', '.join(sorted(found[what]))}")
    # Reading data is not the committer's: rows that a run lost are read with the same key.
    same = all(
        (found[how] | found["clear"] | {"read:data"}) == set(needed(shared))
        for how, shared in (("register", True), ("upload", False))
    )
    print("as inscan.service.tiled_scopes says" if same else "inscan.service.tiled_scopes is wrong")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
