"""An HTTP proxy before a real server that answers, delays, cuts and lies as servers and the proxies before them do.

What is done to a request is decided by a function of ours, for each request; everything else is passed on as it is.
"""

import http.client
import json
import socket
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length"})

_POLL_S = 0.05  # how soon it notices that it is to end


@dataclass(frozen=True)
class Asked:
    """A request as it came: `node` is the uid of the derived run that it is about, empty where it is about none."""

    method: str
    path: str
    body: bytes
    node: str

    @property
    def json(self) -> dict[str, Any]:
        """Its body, empty where that is no JSON object."""
        try:
            found = json.loads(self.body)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}


@dataclass(frozen=True)
class Deed:
    """What is done to one request.

    Attributes
    ----------
    answer : int or None
        Status to answer with instead of asking the server; None asks it.
    body : bytes
        The answer's body, where the server is not asked.
    kind : str
        Its content type.
    delay_s : float
        Before the request is passed on.
    lose : float or None
        Part of the server's answer that is passed on before the line is cut; 0 loses all of it. None: all of it, whole.
    deaf : bool
        The line is cut at once, and the server hears nothing.
    stall : bool
        Neither asked nor answered until the proxy is told to go on.
    """

    answer: int | None = None
    body: bytes = b'{"detail": "torture"}'
    kind: str = "application/json"
    delay_s: float = 0.0
    lose: float | None = None
    deaf: bool = False
    stall: bool = False


PASS = Deed()
Policy = Callable[[Asked], Deed]


class HttpProxy:
    """The proxy; listens from the moment it is made.

    Parameters
    ----------
    target : str
        `http://HOST:PORT` of the server.
    policy : callable
        What to do to a request; called from several threads, one at a time. May be set anew at any moment.

    Attributes
    ----------
    counts : Counter
        Requests by method, and `done`: those to which something was done.
    """

    def __init__(self, target: str, policy: Policy | None = None) -> None:
        self.policy: Policy = policy or (lambda asked: PASS)
        self.counts: Counter[str] = Counter()
        self.go_on = threading.Event()
        parts = urlsplit(target)
        self._target = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.uri = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_POLL_S,), name="http-proxy"
        )
        self._thread.start()

    def close(self) -> None:
        """End it, and whatever it still holds back."""
        self.go_on.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def decide(self, asked: Asked) -> Deed:
        """What the policy says, counted."""
        with self._lock:
            deed = self.policy(asked)
            self.counts[asked.method] += 1
            self.counts["done"] += deed != PASS
        return deed

    def pass_on(self, asked: Asked, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        """Ask the server; 502 as proxies say it where that is away."""
        connection = http.client.HTTPConnection(*self._target, timeout=60.0)
        try:
            connection.request(asked.method, asked.path, asked.body or None, headers)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        except (OSError, http.client.HTTPException):
            return 502, {"Content-Type": "text/html"}, b"<html><h1>502 Bad Gateway</h1></html>"
        finally:
            connection.close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length)
                asked = Asked(self.command, self.path, body, _node(self.path, body))
                deed = proxy.decide(asked)
                if deed.stall:
                    proxy.go_on.wait()
                if deed.delay_s:
                    threading.Event().wait(deed.delay_s)
                if deed.deaf or deed.stall:
                    self.cut()
                elif deed.answer is not None:
                    self.say(deed.answer, {"Content-Type": deed.kind}, deed.body, None)
                else:
                    kept = {k: v for k, v in self.headers.items() if k.lower() not in _HOP}
                    self.say(*proxy.pass_on(asked, kept), deed.lose)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any  # noqa: N815 - http.server names them so

            def say(
                self, status: int, headers: dict[str, str], body: bytes, lose: float | None
            ) -> None:
                if lose == 0:
                    self.cut()
                    return
                self.send_response(status)
                for name, value in headers.items():
                    if name.lower() not in _HOP:
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body if lose is None else body[: int(len(body) * lose)])
                if lose is not None:
                    self.wfile.flush()
                    self.cut()

            def cut(self) -> None:
                self.close_connection = True
                try:
                    self.connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass  # who asked is gone already

            def handle(self) -> None:
                try:
                    super().handle()
                except OSError:
                    pass  # who asked is gone

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        return Handler


def _node(path: str, body: bytes) -> str:
    words = urlsplit(path).path.split("/")
    if "processed" not in words:
        return ""
    after = words[words.index("processed") + 1 :]
    if after:
        return after[0]
    try:
        found = json.loads(body or b"{}")
    except ValueError:
        return ""
    return str(found.get("id") or "") if isinstance(found, dict) else ""
