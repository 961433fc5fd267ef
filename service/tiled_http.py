"""The few requests that writing to Tiled takes, over one kept-alive connection.

Tiled's own Python client would do, but importing it takes 2 s and 150 MB in a service that otherwise needs none of it,
it retries for minutes on its own clock, and it asks back after each
write. Reading is left to it (`inscan.service.results`).
"""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
from pydantic import SecretStr

RAW, PROCESSED = "raw", "processed"
"""Containers of raw runs and of derived runs."""
CATALOG_SPECS = [{"name": "CatalogOfBlueskyRuns", "version": "3.0"}]
_MERGE_PATCH = "application/merge-patch+json"
_LONGEST_ANSWER = 32 << 20
"""Bytes; a node's metadata are far below, and what never ends must not fill the memory."""
_FINAL = frozenset({400, 406, 411, 413, 414, 415, 422, 431})
"""Statuses that say something of our request. All others, 404 and redirections among them, may as well come from a
proxy before a Tiled that is being set up, from a catalog that was emptied, from another writer: worth another try."""


class TiledUnavailable(ConnectionError):
    """Tiled does not answer, or answers with a failure of its own: worth another try later."""


class TiledSilent(TiledUnavailable):
    """Tiled cannot be reached, or takes too long: asking again at once would help nobody."""


class TiledRefusedKey(PermissionError):
    """Tiled does not accept our key, or the key may not write here."""


class TiledRejected(ValueError):
    """Tiled understood the request and will not carry it out; another try would end the same."""


class TiledHTTP:
    """One connection to one Tiled, for one thread.

    Parameters
    ----------
    uri : str
        `http://HOST:PORT`, with or without a path and `/api/v1`.
    api_key : SecretStr or None
        Sent in a header, never in an address.
    timeout_s : float
        Longest time for any one request to be answered.
    """

    def __init__(self, uri: str, api_key: SecretStr | None, *, timeout_s: float = 20.0) -> None:
        parts = urlsplit(uri)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{uri!r} is no address of a Tiled server: write http://HOST:PORT")
        base = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self.uri = base
        root = base if base.endswith("/api/v1") else f"{base}/api/v1"
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        if api_key is not None:
            headers["Authorization"] = f"Apikey {api_key.get_secret_value()}"
        self._timeout_s = timeout_s
        self._http = httpx.Client(
            base_url=root, headers=headers, timeout=timeout_s, trust_env=False
        )

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> "TiledHTTP":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def get(self, path: str) -> dict[str, Any] | None:
        """Attributes of the node at `path` (`metadata`, `specs`, ...), None when there is none."""
        address = f"/metadata/{_quoted(path)}"
        answer = self._send("GET", address, missing_ok=True)
        if answer is None:
            return None
        found = _inside(answer, "data", "attributes")
        if not isinstance(found, dict) or not isinstance(found.get("metadata"), dict):
            raise self._nonsense("GET", address, answer)
        return found

    def keys(self, path: str) -> list[str]:
        """Names of the first 100 nodes in the container at `path`."""
        answer = self._send(
            "GET", f"/search/{_quoted(path)}", params={"page[limit]": 100, "fields": ""}
        )
        try:
            return [str(item["id"]) for item in _inside(answer, "data")]
        except (TypeError, KeyError, LookupError):
            raise self._nonsense("GET", f"/search/{_quoted(path)}", answer) from None

    def create(
        self,
        parent: str,
        key: str,
        *,
        family: str = "container",
        metadata: dict[str, Any] | None = None,
        specs: Sequence[Mapping[str, str | None]] = (),
        data_sources: Sequence[dict[str, Any]] = (),
        access_tags: Sequence[str] | None = None,
    ) -> bool:
        """Create the node `key` in `parent`; False when there already is one.

        Data sources with assets are registered where they lie, others are made ready for `put_block`.
        """
        registered = any(source.get("assets") for source in data_sources)
        body = {
            "id": key,
            "structure_family": family,
            "metadata": metadata or {},
            "specs": list(specs),
            "data_sources": list(data_sources),
            "access_tags": None if access_tags is None else list(access_tags),
        }
        verb = "register" if registered else "metadata"
        address = f"/{verb}/{_quoted(parent)}"
        answer = self._send("POST", address, body, conflict_ok=True)
        if answer is None:
            return False
        self._did("POST", address, answer, key)
        return True

    def update_metadata(self, path: str, changes: dict[str, Any]) -> None:
        """Merge `changes` into a node's metadata, in one step."""
        body = {"content-type": _MERGE_PATCH, "metadata": changes, "specs": None}
        self._change("PATCH", path, body)

    def replace_metadata(self, path: str, metadata: dict[str, Any]) -> None:
        """Give a node new metadata in place of all it had."""
        body = {"metadata": metadata, "specs": None}
        self._change("PUT", path, body)

    def _change(self, method: str, path: str, body: dict[str, Any]) -> None:
        address = f"/metadata/{_quoted(path)}"
        answer = self._send(method, address, body, params={"drop_revision": True})
        self._did(method, address, answer, path.rpartition("/")[2])

    def delete(self, path: str) -> None:
        """Remove a node and what Tiled itself stored for it; registered files stay. Harmless when there is none."""
        self._send(
            "DELETE",
            f"/metadata/{_quoted(path)}",
            params={"recursive": True, "external_only": False},
            missing_ok=True,
        )

    def put_block(self, path: str, block: Sequence[int], data: bytes | memoryview) -> None:
        """Upload one block of an array made by `create`, as raw bytes in C order."""
        self._send(
            "PUT",
            f"/array/block/{_quoted(path)}",
            params={"block": ",".join(map(str, block))},
            content=bytes(data),
        )

    def ensure_catalogs(self) -> None:
        """Make the containers for raw and for derived runs unless they are there."""
        for name in (RAW, PROCESSED):
            if self.get(name) is None:
                self.create("", name, specs=CATALOG_SPECS)

    def _send(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        params: dict[str, Any] | None = None,
        content: bytes | None = None,
        missing_ok: bool = False,
        conflict_ok: bool = False,
    ) -> Any:
        headers = None if content is None else {"Content-Type": "application/octet-stream"}
        if body is not None:
            content = json.dumps(body, allow_nan=False).encode()
        status, answer = self._exchange(method, path, params, content, headers)
        if 200 <= status < 300:
            if not answer:
                return {}
            try:
                return json.loads(answer) or {}
            except (ValueError, RecursionError):
                raise self._nonsense(method, path, answer) from None
        if (missing_ok and status == 404) or (conflict_ok and status == 409):
            return None
        said = f"{method} {path} at {self.uri}: {status} {_detail(answer)}"
        if status in (401, 403):
            raise TiledRefusedKey(
                f"Tiled refuses our key ({said}); set `tiled.api_key` to one that may write"
            )
        if status in _FINAL:
            raise TiledRejected(f"Tiled rejected a request ({said})")
        raise TiledUnavailable(f"Tiled failed ({said})")

    def _exchange(
        self,
        method: str,
        path: str,
        params: dict[str, Any] | None,
        content: bytes | None,
        headers: dict[str, str] | None,
    ) -> tuple[int, bytes]:
        """Status and body of an answer, which may take neither for ever nor any amount of memory."""
        try:
            with self._http.stream(
                method, path, params=params, content=content, headers=headers
            ) as answer:
                deadline = time.monotonic() + self._timeout_s
                body = bytearray()
                for part in answer.iter_bytes():
                    body += part
                    if len(body) > _LONGEST_ANSWER:
                        raise TiledUnavailable(
                            f"Tiled at {self.uri} answers {method} {path} with more than"
                            f" {_LONGEST_ANSWER >> 20} MiB"
                        )
                    if time.monotonic() > deadline:
                        raise TiledSilent(
                            f"Tiled at {self.uri} does not answer (its answer to {method} {path}"
                            f" did not end in {self._timeout_s:g} s)"
                        )
                return answer.status_code, bytes(body)
        except httpx.RequestError as error:
            silent = isinstance(error, httpx.TimeoutException | httpx.ConnectError)
            raise (TiledSilent if silent else TiledUnavailable)(
                f"Tiled at {self.uri} does not answer ({type(error).__name__}: {error})"
            ) from error

    def _did(self, method: str, path: str, answer: Any, key: str) -> None:
        """Refuse to believe in a change unless Tiled names the node it made it to."""
        if not isinstance(answer, dict) or answer.get("id") != key:
            raise self._nonsense(method, path, answer)

    def _nonsense(self, method: str, path: str, answer: Any) -> TiledUnavailable:
        text = answer.decode("utf-8", "replace") if isinstance(answer, bytes) else str(answer)
        return TiledUnavailable(
            f"what answers at {self.uri} is no Tiled, or a broken one:"
            f" it answered {method} {path} with {text[:100]!r}"
        )


def _quoted(path: str) -> str:
    return quote(path.strip("/"))


def _inside(answer: Any, *path: str) -> Any:
    for key in path:
        answer = answer.get(key) if isinstance(answer, dict) else None
    return answer


def _detail(answer: bytes) -> str:
    text = answer[:100_000].decode("utf-8", "replace")
    try:
        detail = json.loads(text).get("detail", "")
    except (ValueError, AttributeError, RecursionError):
        detail = text
    return str(detail)[:300]
