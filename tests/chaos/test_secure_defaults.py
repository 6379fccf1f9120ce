"""busray joins a Ray cluster only where a token is asked for: real `ray start` heads on loopback, with and without."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from busray.cluster.session import asks_for_token

JOIN = """
import sys
from pathlib import Path
from busray.cluster.session import session
from busray.config import Cluster
from busray.records import UserError
try:
    with session(Cluster(**eval(sys.argv[1])), Path(sys.argv[2])):
        print("joined")
except UserError as error:
    print("refused:", error)
"""


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@contextmanager
def head(home: Path, mode: str) -> Iterator[tuple[str, str]]:
    """(address, dashboard) of a head whose home folder, token and temporary files are its own.

    Ended by killing its process group: `ray stop` would end every Ray on this machine.
    """
    port, dashboard, client = free_ports(3)
    log = home / "head.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [
                str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", f"--port={port}",
                "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
                f"--ray-client-server-port={client}", "--num-cpus=1", "--object-store-memory=80000000",
                "--disable-usage-stats", f"--temp-dir={home / 'r'}",
            ],
            env=environment(home, mode), stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        give_up = time.monotonic() + 180
        while b"runtime started" not in log.read_bytes():
            assert process.poll() is None and time.monotonic() < give_up, log.read_text()
            time.sleep(0.5)
        yield f"127.0.0.1:{port}", f"127.0.0.1:{dashboard}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def environment(home: Path, mode: str) -> dict[str, str]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return {**inherited, "HOME": str(home), "RAY_AUTH_MODE": mode}


def join(home: Path, mode: str, settings: dict[str, object]) -> str:
    done = subprocess.run(
        [sys.executable, "-c", JOIN, repr(settings), str(home / "ray.log")],
        env=environment(home, mode), capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def drained_by_the_spot_watcher(home: Path, address: str) -> int:
    """Exit status of the watcher's drain with the real `ray` and the token: node id found, request taken."""
    script = Path(__file__).parents[2] / "deploy" / "spot_watcher.py"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [sys.executable, str(script), "--address", address, "--stopping-in", "600"],
        env={**environment(home, "token"), "PATH": path}, timeout=180,
    ).returncode  # fmt: skip


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder with a token; a short path, for Ray's sockets lie below it."""
    folder = tmp_path_factory.mktemp("h")
    (folder / ".ray").mkdir()
    token = folder / ".ray" / "auth_token"
    token.touch(0o600)
    token.write_text("planted-ray-token-0123456789abcdef0123456789")
    return folder


def test_a_cluster_without_tokens_is_refused_unless_told_otherwise(home: Path) -> None:
    with head(home, "disabled") as (address, dashboard):
        said = join(home, "token", {"address": address})  # whom such a cluster lets in all the same
        assert said.startswith("refused: cluster.address: the Ray cluster asks for no token")
        assert "RAY_AUTH_MODE=token" in said and "cluster.allow_insecure" in said
        assert join(home, "disabled", {"address": address, "allow_insecure": True}) == "joined"
        assert not asks_for_token(dashboard, address)
        assert not asks_for_token("127.0.0.1:9", address), "no dashboard within reach: the GCS tells"


def test_a_cluster_with_tokens_is_joined_and_its_token_is_in_no_log(home: Path) -> None:
    with head(home, "token") as (address, dashboard):
        assert join(home, "token", {"address": address}) == "joined"
        assert asks_for_token(dashboard, address)
        assert asks_for_token("", address), "no dashboard: the GCS tells"
        assert drained_by_the_spot_watcher(home, address) == 0
        said = join(home, "disabled", {"address": address})
        assert said.startswith("refused: cluster.address: cannot join")
        assert "RAY_AUTH_MODE=token" in said
    token = (home / ".ray" / "auth_token").read_bytes()
    logs = [path for path in home.rglob("*") if path.is_file() and path.parent.name != ".ray"]
    assert any("session_" in str(path) for path in logs)
    assert [path for path in logs if token in path.read_bytes()] == []
