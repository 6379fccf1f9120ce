"""`busray export --push-to-hub`: what lies on the hub then, and how mistakes and failures end.

The hub is a small server of this machine that keeps what is put, spoken to by huggingface_hub.
"""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from busray.cli import main
from busray.corpus import export
from busray.layout import CARD
from busray.storage import Store
from tests.support.paths import ROOT
from tests.support.released import RELEASED, finish

TOKEN = "hf_planted0123456789"
NAME = "lab/corpus"


@dataclass
class Hub:
    """A stand-in of the hub: its data sets, what was asked, and what it refuses."""

    url: str = ""
    private: dict[str, bool] = field(default_factory=dict[str, bool])
    files: dict[str, dict[str, bytes]] = field(default_factory=dict[str, dict[str, bytes]])
    asked: list[str] = field(default_factory=list[str])
    refuses: dict[str, int] = field(default_factory=dict[str, int])
    """Last word of a path -> status."""

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        words = path.partition("?")[0].strip("/").split("/")[1:]
        kind = next(word for word in ("whoami-v2", "create", "preupload", "commit", "validate-yaml", "datasets")
                    if word in words)  # fmt: skip
        self.asked.append(kind)
        if kind in self.refuses:
            return self.refuses[kind], {"error": "You are not allowed to do this"}
        if kind == "whoami-v2":
            return 200, {"name": "lab", "type": "user"}
        if kind == "validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if kind == "create":
            told = json.loads(body)
            name = f"{told['organization']}/{told['name']}"
            assert told["type"] == "dataset"
            self.private[name] = told.get("visibility") == "private" or told.get("private") is True
            self.files[name] = {".gitattributes": b""}
            return 200, {"url": f"{self.url}/datasets/{name}"}
        name = "/".join(words[1:3])
        if name not in self.files:
            return 404, {"error": "Repository not found"}
        if kind == "preupload":
            return 200, {"files": [self._mode(name, file["path"]) for file in json.loads(body)["files"]]}
        if kind == "commit":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return 200, {"commitUrl": f"{self.url}/datasets/{name}/commit/{'a' * 40}", "commitOid": "a" * 40}
        siblings = [{"rfilename": path} for path in self.files[name]]
        return 200, {"id": name, "private": self.private[name], "siblings": siblings, "sha": "a" * 40}

    def _mode(self, name: str, path: str) -> dict[str, Any]:
        data = self.files[name].get(path)
        oid = None if data is None else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        return {"path": path, "uploadMode": "regular", "shouldIgnore": False, "oid": oid}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    there = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
            status, told = there.answer(self.command, self.path, body) if known else (401, {"error": "Invalid token"})
            data = json.dumps(told).encode()
            self.send_response(status)
            if told.get("error") == "Repository not found":
                self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_POST = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    there.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", there.url)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr("busray.commands.log_file", lambda *_: tmp_path / "error.log")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield there
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A finished run, which an export only reads."""
    store = Store(str(tmp_path_factory.mktemp("finished") / "run"))
    finish(store)
    return store.url


@pytest.fixture
def target(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "corpus"))


def pushed(run: str, target: str, *words: str, to: str = "huggingface", name: str = NAME) -> int:
    return main(["export", run, target, f"--to={to}", f"--push-to-hub={name}", *words])


def exported(target: Store) -> dict[str, bytes]:
    return {key: target.read(key) for key in target.list() if not key.startswith("export/")}


@pytest.mark.parametrize(("to", "without_xet"), [("huggingface", False), ("huggingface", True), ("imagefolder", False)])
def test_a_private_data_set_holds_the_verified_export_and_none_of_its_records(
    hub: Hub, run: str, target: Store, to: str, without_xet: bool, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", without_xet)
    Path(target.url).mkdir()
    (Path(target.url) / ".tmp-0123456789abcdef").write_bytes(b"what a stopped export left")
    assert pushed(run, target.url, to=to) == 0
    assert hub.private == {NAME: True}
    there = hub.files[NAME]
    assert there.pop(".gitattributes") == b"" and there == exported(target)
    assert CARD in there and len(there) == (2 if to == "huggingface" else RELEASED + 2)
    output = capsys.readouterr().out
    assert f"exported and verified: {RELEASED} images" in output and f"pushed: {hub.url}/datasets/{NAME}" in output


def test_a_push_that_was_refused_goes_on_with_the_same_command(
    hub: Hub, run: str, target: Store, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    hub.refuses["commit"] = 403
    assert pushed(run, target.url) == 1
    said = capsys.readouterr().err
    assert f"the push to {NAME} has stopped: 403" in said and f"give a token that may write to {NAME}" in said
    assert f"run the same command again to go on from here: busray export {run} {target.url}" in said
    assert target.exists(export.VERIFIED) and set(hub.files[NAME]) == {".gitattributes"}
    assert TOKEN not in said + (tmp_path / "error.log").read_text()
    del hub.refuses["commit"]
    assert pushed(run, target.url) == 0
    assert hub.asked.count("create") == 1 and exported(target).keys() <= hub.files[NAME].keys()


def test_a_push_that_was_done_puts_nothing_again(hub: Hub, run: str, target: Store) -> None:
    assert pushed(run, target.url) == 0 and pushed(run, target.url) == 0
    assert hub.asked.count("commit") == 1


def test_a_right_that_is_missing_for_a_new_data_set_is_said(
    hub: Hub, run: str, target: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.refuses["create"] = 403
    assert pushed(run, target.url) == 1
    said = capsys.readouterr().err
    assert f"cannot make the data set {NAME}: 403" in said and "go on from here" in said


@pytest.mark.parametrize("name", ["", "corpus", "a/b/c", "lab/", "lab/two words", "-lab/corpus", "https://h/lab/c"])
def test_a_name_that_is_not_owner_and_name_is_refused_before_any_work(
    hub: Hub, run: str, target: Store, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pushed(run, target.url, name=name) == 2
    assert capsys.readouterr().err.startswith(f"busray: --push-to-hub={name}: give OWNER/NAME")
    assert hub.asked == [] and not Path(target.url).exists()


def test_a_target_that_is_no_folder_of_this_machine_is_refused_before_any_work(
    hub: Hub, run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pushed(run, "s3://bucket/corpus") == 2
    assert "s3://bucket/corpus is no folder of this machine" in capsys.readouterr().err
    assert hub.asked == []


def test_a_missing_token_is_said_before_any_work(
    hub: Hub, run: str, target: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert pushed(run, target.url) == 2
    said = capsys.readouterr().err
    assert "there is no token of the hub: set HF_TOKEN" in said and "hf auth login" in said
    assert hub.asked == [] and not Path(target.url).exists()


def test_the_token_that_the_hubs_own_login_keeps_is_used(
    hub: Hub, run: str, target: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "token").write_text(TOKEN)
    assert huggingface_hub.get_token() == TOKEN
    assert pushed(run, target.url) == 0 and hub.private == {NAME: True}


@pytest.mark.parametrize("token", ["hf_refused0123456789", "hf_\x01control0123", "hf_ümlaut0123"])
def test_a_token_that_is_refused_is_said_before_any_work_and_not_shown(
    hub: Hub, run: str, target: Store, token: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    assert pushed(run, target.url) == 2
    output = capsys.readouterr()
    assert "--push-to-hub: the " in output.err and "token" in output.err and "set HF_TOKEN" in output.err
    assert len(output.err.splitlines()) == 1 and token[3:] not in output.err + output.out
    assert not Path(target.url).exists()


def test_a_hub_out_of_reach_ends_with_the_command_that_goes_on(
    hub: Hub, run: str, target: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert pushed(run, target.url) == 1
    said = capsys.readouterr().err
    assert "check the network, HF_ENDPOINT and whether the hub is up; then run the same command again" in said
    assert f"busray export {run} {target.url} --to=huggingface --push-to-hub={NAME}" in said
    assert "please report" not in said and not Path(target.url).exists()


def test_a_data_set_that_everybody_can_read_is_refused_before_any_work(
    hub: Hub, run: str, target: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.private[NAME], hub.files[NAME] = False, {}
    assert pushed(run, target.url) == 2
    assert f"{NAME} is public: make it private on the hub first" in capsys.readouterr().err
    assert hub.files[NAME] == {} and not Path(target.url).exists()


def test_files_of_another_export_on_the_hub_are_not_mixed_with_this_one(
    hub: Hub, run: str, target: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.private[NAME], hub.files[NAME] = True, {"data/train-00001-of-00002.parquet": b"old", "README.md": b"mine"}
    assert pushed(run, target.url) == 1
    said = capsys.readouterr().err
    assert "holds 1 files that are no part of this export, such as data/train-00001-of-00002.parquet" in said
    assert hub.files[NAME]["README.md"] == b"mine" and "commit" not in hub.asked


def test_the_command_finds_hub_and_token_in_the_environment(hub: Hub, run: str, target: Store, tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "home")}
    environment |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN}
    words = ["export", run, target.url, "--to=huggingface", f"--push-to-hub={NAME}", "-v"]
    done = subprocess.run(
        [sys.executable, "-c", "from busray.cli import process; process()", *words],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert exported(target).keys() <= hub.files[NAME].keys() and hub.private == {NAME: True}
    assert TOKEN not in done.stdout + done.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
