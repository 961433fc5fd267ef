"""The few requests that writing to Tiled takes, over one kept-alive connection.

Tiled's own Python client would do, but importing it takes 2 s and 150 MB in a service that otherwise needs none of it,
it retries for minutes on its own clock, and it asks back after each
write. Reading is left to it (`inscan.service.results`).
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
from pydantic import SecretStr

RAW, PROCESSED = "raw", "processed"
"""Containers of raw runs and of derived runs."""
CATALOG_SPECS = [{"name": "CatalogOfBlueskyRuns", "version": "3.0"}]
_MERGE_PATCH = "application/merge-patch+json"


class TiledUnavailable(ConnectionError):
    """Tiled does not answer, or answers with a failure of its own: worth another try later."""


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
        answer = self._send("GET", f"/metadata/{_quoted(path)}", missing_ok=True)
        return None if answer is None else answer["data"]["attributes"]

    def keys(self, path: str) -> list[str]:
        """Names of the first 100 nodes in the container at `path`."""
        answer = self._send(
            "GET", f"/search/{_quoted(path)}", params={"page[limit]": 100, "fields": ""}
        )
        assert answer is not None
        return [item["id"] for item in answer["data"]]

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
        return self._send("POST", f"/{verb}/{_quoted(parent)}", body, conflict_ok=True) is not None

    def update_metadata(self, path: str, changes: dict[str, Any]) -> None:
        """Merge `changes` into a node's metadata, in one step."""
        body = {"content-type": _MERGE_PATCH, "metadata": changes, "specs": None}
        self._send("PATCH", f"/metadata/{_quoted(path)}", body, params={"drop_revision": True})

    def replace_metadata(self, path: str, metadata: dict[str, Any]) -> None:
        """Give a node new metadata in place of all it had."""
        body = {"metadata": metadata, "specs": None}
        self._send("PUT", f"/metadata/{_quoted(path)}", body, params={"drop_revision": True})

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
    ) -> dict[str, Any] | None:
        headers = None if content is None else {"Content-Type": "application/octet-stream"}
        if body is not None:
            content = json.dumps(body, allow_nan=False).encode()
        try:
            answer = self._http.request(
                method, path, params=params, content=content, headers=headers
            )
        except httpx.RequestError as error:
            raise TiledUnavailable(
                f"Tiled at {self.uri} does not answer ({type(error).__name__}: {error})"
            ) from error
        if answer.is_success:
            return answer.json() or {}
        if (missing_ok and answer.status_code == 404) or (
            conflict_ok and answer.status_code == 409
        ):
            return None
        said = f"{method} {path} at {self.uri}: {answer.status_code} {_detail(answer)}"
        if answer.status_code in (401, 403):
            raise TiledRefusedKey(
                f"Tiled refuses our key ({said}); set `tiled.api_key` to one that may write"
            )
        if answer.status_code >= 500 or answer.status_code in (408, 429):
            raise TiledUnavailable(f"Tiled failed ({said})")
        raise TiledRejected(f"Tiled rejected a request ({said})")


def _quoted(path: str) -> str:
    return quote(path.strip("/"))


def _detail(answer: httpx.Response) -> str:
    try:
        detail = answer.json().get("detail", "")
    except (ValueError, AttributeError):
        detail = answer.text
    return str(detail)[:300]
