"""deploy/spot_watcher.py with a metadata service on loopback and a `ray` that records its calls."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.support.paths import ROOT

SCRIPT = ROOT / "deploy" / "spot_watcher.py"
NODE = "ab" * 28
ACTION = "/latest/meta-data/spot/instance-action"
REBALANCE = "/latest/meta-data/events/recommendations/rebalance"


class FakeImds(ThreadingHTTPServer):
    """IMDSv2: a session token or 401. `script`: answers to successive reads; the last repeats."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), FakeImdsHandler)
        self.script: list[dict[str, str | int]] = [{}]
        self.tokens: set[str] = set()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def answer(self, path: str) -> str | int:
        step = self.script[0]
        if path == REBALANCE or path in step or len(self.script) == 1:
            self.script = self.script[1:] or self.script
        return step.get(path, 404)


class FakeImdsHandler(BaseHTTPRequestHandler):
    server: FakeImds

    def do_PUT(self) -> None:
        assert self.path == "/latest/api/token"
        assert int(self.headers["X-aws-ec2-metadata-token-ttl-seconds"]) <= 21_600
        token = f"token-{len(self.server.tokens)}"
        self.server.tokens.add(token)
        self._send(200, token)

    def do_GET(self) -> None:
        if self.headers.get("X-aws-ec2-metadata-token") not in self.server.tokens:
            return self._send(401)
        answer = self.server.answer(self.path)
        if answer == 401:  # the sessions so far have run out
            self.server.tokens = {f"old-{token}" for token in self.server.tokens}
        return self._send(answer) if isinstance(answer, int) else self._send(200, answer)

    def _send(self, status: int, text: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def imds() -> Iterator[FakeImds]:
    server = FakeImds()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def calls(tmp_path: Path) -> Path:
    """The file of recorded calls. Beside it: the command `ray`, and a package with a node id."""
    record = tmp_path / "calls.jsonl"
    command = tmp_path / "ray"
    command.write_text(
        f"#!{sys.executable}\n"
        "import json, pathlib, sys\n"
        f"record = pathlib.Path({str(record)!r})\n"
        "with record.open('a') as file: file.write(json.dumps(sys.argv[1:]) + '\\n')\n"
        f"refusals = pathlib.Path({str(tmp_path / 'refusals')!r})\n"
        "left = int(refusals.read_text()) if refusals.exists() else 0\n"
        "refusals.write_text(str(left - 1))\n"
        "sys.exit(left > 0)\n"
    )
    command.chmod(0o755)
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "ray.py").write_text(
        "class Context:\n"
        f"    address_info = {{'node_id': {NODE!r}}}\n"
        "def init(address, log_to_driver):\n"
        "    assert address == '10.0.0.1:6379' and not log_to_driver\n"
        "    return Context\n"
    )
    return record


def run_watcher(calls: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], list[dict[str, str]]]:
    """The ended watcher, and each call of `ray drain-node` as {option: value}."""
    folder = calls.parent
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--address", "10.0.0.1:6379", "--poll-seconds", "0.05", *arguments],
        env={"PATH": str(folder), "PYTHONPATH": str(folder / "fake"), "HOME": str(folder)},
        capture_output=True,
        text=True,
    )
    made = [json.loads(line) for line in calls.read_text().splitlines()] if calls.exists() else []
    assert all(call[0] == "drain-node" for call in made)
    return done, [dict(zip(call[1::2], call[2::2], strict=True)) for call in made]


def interruption(seconds: int) -> str:
    at = datetime.now(UTC) + timedelta(seconds=seconds)
    return json.dumps({"action": "terminate", "time": at.strftime("%Y-%m-%dT%H:%M:%SZ")})


def test_an_interruption_drains_this_node_once_before_the_machine_goes(imds: FakeImds, calls: Path) -> None:
    imds.script = [{}, {}, {ACTION: interruption(120)}]
    done, drains = run_watcher(calls, "--imds", imds.url)
    assert done.returncode == 0, done.stderr
    assert len(drains) == 1
    (drain,) = drains
    assert 1 <= int(drain.pop("--deadline-remaining-seconds")) < 120
    assert "spot terminate" in drain.pop("--reason-message")
    assert drain == {
        "--address": "10.0.0.1:6379",
        "--node-id": NODE,
        "--reason": "DRAIN_NODE_REASON_PREEMPTION",
    }


def test_errors_of_the_metadata_service_and_ended_sessions_are_survived(imds: FakeImds, calls: Path) -> None:
    bad: list[dict[str, str | int]] = [{ACTION: 500}, {ACTION: 401}, {ACTION: "not JSON"}, {ACTION: "{}"}]
    imds.script = [*bad, {}, {ACTION: interruption(120)}]
    done, drains = run_watcher(calls, "--imds", imds.url)
    assert done.returncode == 0, done.stderr
    assert len(drains) == 1
    assert "500" in done.stderr


def test_a_recommendation_drains_without_a_deadline_and_the_interruption_after_it_with_one(
    imds: FakeImds, calls: Path
) -> None:
    recommended: dict[str, str | int] = {REBALANCE: json.dumps({"noticeTime": "2026-11-25T08:22:00Z"})}
    imds.script = [{}, *[recommended] * 5, {**recommended, ACTION: interruption(120)}]
    done, drains = run_watcher(calls, "--imds", imds.url)
    assert done.returncode == 0, done.stderr
    assert ["--deadline-remaining-seconds" in drain for drain in drains] == [False, True]


def test_a_refused_drain_is_asked_for_again(imds: FakeImds, calls: Path) -> None:
    (calls.parent / "refusals").write_text("2")
    imds.script = [{ACTION: interruption(120)}]
    done, drains = run_watcher(calls, "--imds", imds.url)
    assert done.returncode == 0, done.stderr
    assert len(drains) == 3


def test_a_notice_that_comes_too_late_still_has_a_deadline_that_ray_takes(imds: FakeImds, calls: Path) -> None:
    imds.script = [{ACTION: interruption(-30)}]
    _, drains = run_watcher(calls, "--imds", imds.url)
    assert [drain["--deadline-remaining-seconds"] for drain in drains] == ["1"]


def test_a_pod_that_is_stopped_drains_at_once_and_asks_no_metadata_service(calls: Path) -> None:
    done, drains = run_watcher(calls, "--stopping-in", "100", "--imds", "http://127.0.0.1:9")
    assert done.returncode == 0, done.stderr
    assert [drain["--deadline-remaining-seconds"] for drain in drains] == ["85"]
