"""A base that is a hub id is fetched once a machine, however many actors load it at once."""

import hashlib
import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.support.paths import ROOT

TINY = ROOT / "busray" / "model" / "tiny"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
ACTORS = 3
LOAD = f"""
from busray.config import Base
from busray.model.base import base_folder
print(base_folder(Base(path="owner/base", revision="{COMMIT}")))
"""


@pytest.fixture
def hub() -> Iterator[tuple[str, Counter[str]]]:
    """(address of a hub on loopback with the base `owner/base`, how often each file was sent)."""
    files = {path.relative_to(TINY).as_posix(): path.read_bytes() for path in TINY.rglob("*") if path.is_file()}
    sent: Counter[str] = Counter()

    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *arguments: object) -> None:
            """Nothing on the terminal."""

        def answer(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            if "/tree/" in path:
                listed = [
                    {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for name, data in files.items()
                ]
                return self.answer(200, json.dumps(listed).encode(), Content_Type="application/json")
            if path.startswith("/api/models/owner/base"):
                told = {"id": "owner/base", "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
                return self.answer(200, json.dumps(told).encode(), Content_Type="application/json")
            name = path.removeprefix(f"/owner/base/resolve/{COMMIT}/")
            if name not in files:
                return self.answer(404, b"", X_Error_Code="EntryNotFound")
            if self.command == "GET":
                sent[name] += 1
            etag = f'"{hashlib.sha256(files[name]).hexdigest()}"'
            return self.answer(200, files[name], ETag=etag, X_Repo_Commit=COMMIT)

        do_HEAD = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", sent
    server.shutdown()


def test_actors_that_start_together_on_a_machine_fetch_each_file_once(
    hub: tuple[str, Counter[str]], tmp_path: Path
) -> None:
    url, sent = hub
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
        "HF_ENDPOINT": url,
        "HF_HOME": str(tmp_path),
        "HF_HUB_DISABLE_XET": "1",
    }
    words = [sys.executable, "-c", LOAD]
    actors = [
        subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(ACTORS)
    ]
    told = [actor.communicate() for actor in actors]
    assert [actor.returncode for actor in actors] == [0] * ACTORS, told
    (folder,) = {Path(out.strip()) for out, _ in told}
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert (folder / weights).read_bytes() == (TINY / weights).read_bytes()
    assert sent[weights] == 1 and set(sent.values()) == {1}, sent
