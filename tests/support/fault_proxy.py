"""A loopback proxy between an S3 client and a real S3 server: it injects the faults of a test.

It forwards every request as it came, byte for byte, and gives back the server's answer, unless a
`Rule` takes hold:

    with FaultProxy(server_url) as proxy:
        slow = proxy.add(Rule(error(503, "SlowDown"), method="PUT", key="^run/commits/", times=40))
        lost = proxy.add(Rule(drop, method="PUT", when="after"))  # written, never answered
        kill = proxy.add(Rule(lambda request: os.kill(pid, SIGKILL), key="manifest", when="before"))
        Store("s3://bucket/run", endpoint_url=proxy.url).put_once(...)
        assert slow.hits == 40
        print(proxy.counts)  # {("PUT", "object"): 41, ...}

A rule's action is any function of the `Request`, called in the proxy's thread of that request. It
may sleep, kill a process, wait for an event; where it returns None the request goes on as if
nothing had been, where it returns a `Reply` that is the answer, and where it returns `DROP` the
connection is closed without one. The three moments of `when`:

    "body"      the beginning of an upload's body was forwarded; a drop here leaves it torn
    "before"    the request is here whole, the server knows nothing of it yet
    "after"     the server has done it, the client has no answer yet

Only path-style addresses (http://host:port/bucket/key), which botocore takes for IP addresses by
itself.
"""

import http.client
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import parse_qsl, unquote, urlsplit

When = Literal["body", "before", "after"]
HOP_BY_HOP = {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "expect"}
BEGINNING = 64 * 2**10
"""Bytes of a body, at most half of it, that have come at the moment "body"."""
TIMEOUT = 60.0
"""Seconds after which a connection to the server or a silent client is given up."""


@dataclass(frozen=True)
class Request:
    """One request as it came. key is decoded; for a listing it is the prefix asked for."""

    method: str
    bucket: str
    key: str
    query: dict[str, str]
    headers: dict[str, str]
    size: int
    """Of the body, in bytes."""

    @property
    def kind(self) -> str:
        """`list`, `multipart` (a part, or the start, end or abort of an upload in parts),
        `bucket` or `object`."""
        if not self.key and "list-type" not in self.query:
            return "bucket"
        if "list-type" in self.query:
            return "list"
        return "multipart" if {"uploads", "uploadId"} & set(self.query) else "object"


@dataclass(frozen=True)
class Reply:
    """An answer of the proxy's own."""

    status: int
    body: bytes = b""


DROP = object()
"""Returned by an action: close the connection without an answer."""

Action = Callable[[Request], Any]


def error(status: int, code: str) -> Action:
    """S3's XML error, such as error(503, "SlowDown"), error(500, "InternalError"), error(403,
    "AccessDenied"), error(409, "ConditionalRequestConflict")."""
    text = f"<Error><Code>{code}</Code><Message>{code}, says the fault proxy</Message></Error>"
    return lambda request: Reply(status, b'<?xml version="1.0" encoding="UTF-8"?>' + text.encode())


def drop(request: Request) -> Any:
    """No answer: with when="after" a lost answer, with "before" a lost request, with "body" an
    upload cut off."""
    return DROP


def delay(seconds: float) -> Action:
    """A slow answer."""
    return lambda request: time.sleep(seconds)


@dataclass
class Rule:
    """Do `action` to the requests that match, `times` times (None: for good), after letting
    `skip` of them pass."""

    action: Action
    _: KW_ONLY
    method: str = ".*"
    """Regular expression for the whole method."""
    key: str = ""
    """Regular expression searched for in the key, without the bucket."""
    kind: str = ".*"
    """Regular expression for the whole of Request.kind."""
    when: When = "before"
    times: int | None = 1
    skip: int = 0
    hits: int = 0
    """How often the action was done."""
    seen: int = 0
    """How many requests matched."""

    def takes(self, request: Request, when: When) -> bool:
        """Whether this request is one to do it to; counts it. Callers hold the proxy's lock."""
        if when != self.when or not re.fullmatch(self.method, request.method):
            return False
        if not re.fullmatch(self.kind, request.kind) or not re.search(self.key, request.key):
            return False
        self.seen += 1
        if self.seen <= self.skip or (self.times is not None and self.hits >= self.times):
            return False
        self.hits += 1
        return True


class FaultProxy:
    """Listens from the start of the `with` block to its end; `url` is the client's endpoint_url."""

    def __init__(self, server_url: str) -> None:
        address = urlsplit(server_url)
        assert address.hostname and address.port, f"host and port are needed: {server_url}"
        self.server: tuple[str, int] = (address.hostname, address.port)
        self.rules: list[Rule] = []
        self.counts: Counter[tuple[str, str]] = Counter()
        """Requests that came, by (method, kind), those that rules answered too."""
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._listener = _Listener(("127.0.0.1", 0), handler)
        self.url = "http://{}:{}".format(*self._listener.server_address[:2])
        self._thread = threading.Thread(target=self._listener.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._listener.shutdown()
        self._listener.server_close()
        self._thread.join()

    def add(self, rule: Rule) -> Rule:
        """The rule, for its `hits`; of several that match, each acts in order until one answers."""
        with self._lock:
            self.rules.append(rule)
        return rule

    def clear(self) -> None:
        """Forget all rules and counts."""
        with self._lock:
            self.rules.clear()
            self.counts.clear()

    def count(self, request: Request) -> None:
        with self._lock:
            self.counts[request.method, request.kind] += 1

    def take(self, request: Request, when: When) -> list[Rule]:
        """The rules that take hold at this moment; counts them."""
        with self._lock:
            return [rule for rule in self.rules if rule.takes(request, when)]


def _outcome(rules: list[Rule], request: Request) -> Any:
    """None, a Reply or DROP: what the first of the rules' actions that answers returns."""
    for rule in rules:
        outcome = rule.action(request)
        if isinstance(outcome, Reply) or outcome is DROP:
            return outcome
    return None


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed or gave up is what these tests are about: no traceback for
        it."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = TIMEOUT
    proxy: FaultProxy

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _serve(self) -> None:
        request = self._request()
        self.proxy.count(request)
        upstream = http.client.HTTPConnection(*self.proxy.server, timeout=TIMEOUT)
        try:
            outcome = self._exchange(request, upstream)
            if outcome is DROP:
                self._hang_up()
            elif isinstance(outcome, Reply):
                self._answer(outcome.status, [("Content-Type", "application/xml")], outcome.body)
            else:
                self._answer(*outcome)
        except (OSError, http.client.HTTPException):
            self._hang_up()
            raise
        finally:
            upstream.close()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve

    def _request(self) -> Request:
        address = urlsplit(self.path)
        bucket, _, key = unquote(address.path).lstrip("/").partition("/")
        query = dict(parse_qsl(address.query, keep_blank_values=True))
        headers = {name.lower(): value for name, value in self.headers.items()}
        return Request(
            self.command, bucket, key or query.get("prefix", ""), query, headers, int(headers.get("content-length", 0))
        )

    def _exchange(self, request: Request, upstream: http.client.HTTPConnection) -> Any:
        """DROP, a Reply, or the server's (status, headers, body)."""
        if "chunked" in request.headers.get("transfer-encoding", ""):
            body, rest = self._read_chunks(), 0
        else:
            body = self._read(min(request.size // 2, BEGINNING))
            rest = request.size - len(body)
        cut_short = self.proxy.take(request, "body") if body else []
        if cut_short:
            self._send_head(request, upstream, len(body) + rest)
            upstream.send(body)
            outcome = _outcome(cut_short, request)
            if outcome is not None:
                return outcome
            remainder = self._read(rest)  # raises where the client is gone; then the server never gets the rest either
        else:
            body += self._read(rest)
            remainder = body
        outcome = _outcome(self.proxy.take(request, "before"), request)
        if outcome is not None:
            return outcome
        if not cut_short:
            self._send_head(request, upstream, len(body))
        if remainder:
            upstream.send(remainder)
        response = upstream.getresponse()
        answer = response.status, response.getheaders(), response.read()
        outcome = _outcome(self.proxy.take(request, "after"), request)
        return answer if outcome is None else outcome

    def _read(self, size: int) -> bytes:
        data = self.rfile.read(size) if size else b""
        if len(data) < size:
            raise ConnectionResetError("the client went away in the middle of its body")
        return data

    def _read_chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self._read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass  # trailers
        return b"".join(parts)

    def _send_head(self, request: Request, upstream: http.client.HTTPConnection, length: int) -> None:
        """Host as it came, since it is signed."""
        upstream.putrequest(request.method, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in HOP_BY_HOP and name.lower() != "content-length":
                upstream.putheader(name, value)
        if length or request.method in ("PUT", "POST"):
            upstream.putheader("Content-Length", str(length))
        upstream.endheaders()

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response_only(status)
        length = str(len(body))
        for name, value in headers:
            if name.lower() == "content-length":
                length = value if self.command == "HEAD" else length
            elif name.lower() not in HOP_BY_HOP:
                self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _hang_up(self) -> None:
        self.close_connection = True
        with suppress(OSError):  # the client was first
            self.connection.shutdown(socket.SHUT_RDWR)
