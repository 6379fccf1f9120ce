"""Google Cloud Storage and Azure Blob Storage in this process, as far as a Store asks them."""

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

WHEN = "2026-12-01T00:00:00.000Z"
HTTP_WHEN = "Tue, 01 Dec 2026 00:00:00 GMT"


class Objects(BaseHTTPRequestHandler):
    """Objects by key; a subclass speaks the protocol of one maker."""

    objects: ClassVar[dict[str, bytes]]
    lock: ClassVar[threading.Lock]
    refusals: ClassVar[Counter[str]]
    """Method -> how often it is still answered by 503, or refused for good where below 0."""
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing on the terminal."""

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def handle_one(self) -> None:
        address = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(address.query, keep_blank_values=True).items()}
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        left = self.refusals[self.command]
        if left < 0:
            self.refuse(403)
        elif left > 0:
            self.refusals[self.command] -= 1
            self.refuse(503)
        else:
            self.respond(address.path, data)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_one

    def respond(self, path: str, data: bytes) -> None:
        raise NotImplementedError

    def refuse(self, status: int) -> None:
        raise NotImplementedError

    def create(self, key: str, data: bytes, only_new: bool) -> bool:
        with self.lock:
            if only_new and key in self.objects:
                return False
            self.objects[key] = data
            return True

    def below(self, prefix: str, delimiter: str) -> tuple[list[str], list[str]]:
        """(keys under prefix, folders directly under it)."""
        keys, folders = [], set()
        for key in sorted(self.objects):
            if key.startswith(prefix):
                rest = key[len(prefix) :]
                if delimiter and delimiter in rest:
                    folders.add(prefix + rest.split(delimiter)[0] + delimiter)
                else:
                    keys.append(key)
        return keys, sorted(folders)


class Google(Objects):
    """The JSON API; its bucket is `bucket`."""

    def refuse(self, status: int) -> None:
        error = {"error": {"code": status, "message": "so it says"}}
        self.answer(status, json.dumps(error).encode(), Content_Type="application/json")

    def told(self, value: Any) -> None:
        self.answer(200, json.dumps(value).encode(), Content_Type="application/json")

    def item(self, key: str) -> dict[str, str]:
        return {
            "name": key,
            "bucket": "bucket",
            "size": str(len(self.objects[key])),
            "updated": WHEN,
            "generation": "1",
        }

    def respond(self, path: str, data: bytes) -> None:
        if path.startswith("/upload/"):
            _, metadata, content, _ = data.split(b"--==0==")
            key = json.loads(metadata.split(b"\n\n", 1)[1])["name"]
            content = content.split(b"\n\n", 1)[1].removesuffix(b"\n")
            if self.create(key, content, self.query.get("ifGenerationMatch") == "0"):
                return self.told(self.item(key))
            return self.refuse(412)
        head, _, key = path.partition("/b/bucket/o/")
        key = unquote(key)
        if path.endswith("/b/bucket/o"):
            keys, folders = self.below(self.query.get("prefix", ""), self.query.get("delimiter", ""))
            return self.told({"items": [self.item(key) for key in keys], "prefixes": folders})
        if not key:
            return self.told({"name": "bucket", "kind": "storage#bucket"})
        if key not in self.objects:
            return self.refuse(404)
        if self.command == "DELETE":
            del self.objects[key]
            return self.answer(204)
        if self.query.get("alt") == "media" or head.startswith("/download"):
            return self.answer(200, self.objects[key], Content_Type="application/octet-stream")
        return self.told(self.item(key))


class Azure(Objects):
    """The Blob service's REST API; its account is `account` and its container `container`."""

    def refuse(self, status: int, code: str = "") -> None:
        code = code or {403: "AuthorizationPermissionMismatch", 404: "BlobNotFound"}.get(status, "ServerBusy")
        body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>so it says</Message></Error>'.encode()
        self.answer(status, body, x_ms_error_code=code, Content_Type="application/xml")

    def respond(self, path: str, data: bytes) -> None:
        key = unquote(path.removeprefix("/account/container").lstrip("/"))
        if self.query.get("comp") == "list":
            return self.listing()
        if self.query.get("restype") == "container":
            return self.answer(200, ETag='"0"', Last_Modified=HTTP_WHEN)
        if self.command == "PUT":
            if self.create(key, data, self.headers.get("If-None-Match") == "*"):
                return self.answer(201, ETag='"0"', Last_Modified=HTTP_WHEN)
            return self.refuse(409, "BlobAlreadyExists")
        if key not in self.objects:
            return self.refuse(404)
        if self.command == "DELETE":
            del self.objects[key]
            return self.answer(202)
        data = self.objects[key]
        common = {"ETag": '"0"', "Last_Modified": HTTP_WHEN, "x_ms_blob_type": "BlockBlob"}
        if self.command == "HEAD":
            return self.answer(200, data, **common)
        return self.answer(206, data, Content_Range=f"bytes 0-{len(data) - 1}/{len(data)}", **common)

    def listing(self) -> None:
        keys, folders = self.below(self.query.get("prefix", ""), self.query.get("delimiter", ""))
        parts = [f"<BlobPrefix><Name>{escape(folder)}</Name></BlobPrefix>" for folder in folders]
        for key in keys:
            parts.append(
                f"<Blob><Name>{escape(key)}</Name><Properties><Last-Modified>{HTTP_WHEN}</Last-Modified><Etag>0</Etag>"
                f"<Content-Length>{len(self.objects[key])}</Content-Length><BlobType>BlockBlob</BlobType></Properties>"
                "<Metadata><is_directory>false</is_directory></Metadata></Blob>"
            )
        head = '<?xml version="1.0"?><EnumerationResults ServiceEndpoint="" ContainerName="container"><Blobs>'
        body = f"{head}{''.join(parts)}</Blobs><NextMarker/></EnumerationResults>"
        self.answer(200, body.encode(), Content_Type="application/xml")


@contextmanager
def served(kind: type[Objects]) -> Iterator[tuple[str, type[Objects]]]:
    """(address, its handler, whose `objects` and `refusals` are this server's own)."""
    own = type("Own", (kind,), {"objects": {}, "lock": threading.Lock(), "refusals": Counter()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), own)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", own
    finally:
        server.shutdown()
