"""busray joins a Ray cluster only where a token is asked for: real `ray start` heads on
loopback, with and without."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from busray.cluster_address import asks_for_token
from tests.support.heads import environment, head
from tests.support.paths import ROOT

JOIN = """
import sys
from pathlib import Path
from busray.cluster.session import session
from busray.config import Cluster
from busray.records import UserError
for settings in eval(sys.argv[1]):
    try:
        with session(Cluster(**settings), Path(sys.argv[2])):
            print("joined")
    except UserError as error:
        print("refused:", error)
"""


def join(home: Path, mode: str, *settings: dict[str, object]) -> list[str]:
    """What happened with each of the settings, in one process: to start one takes seconds."""
    done = subprocess.run(
        [sys.executable, "-c", JOIN, repr(settings), str(home / "ray.log")],
        env=environment(home, mode), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def drained_by_the_spot_watcher(home: Path, address: str) -> int:
    """Exit status of the watcher's drain with the real `ray` and the token: node id found,
    request taken."""
    script = ROOT / "deploy" / "spot_watcher.py"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [sys.executable, str(script), "--address", address, "--stopping-in", "600"],
        env={**environment(home, "token"), "PATH": path},
    ).returncode  # fmt: skip


def test_a_cluster_without_tokens_is_refused_unless_told_otherwise(home: Path) -> None:
    with head(home, "disabled", has_dashboard=False) as (address, dashboard):
        # Such a cluster lets in whoever has a token all the same.
        refused, joined = join(home, "token", {"address": address}, {"address": address, "allow_insecure": True})
        assert refused.startswith("refused: cluster.address: the Ray cluster asks for no token")
        assert "RAY_AUTH_MODE=token" in refused and "cluster.allow_insecure" in refused
        assert joined == "joined"
        assert not asks_for_token(dashboard, address), "no dashboard within reach: the GCS tells"


def test_a_cluster_with_tokens_is_joined_and_its_token_is_in_no_log(home: Path) -> None:
    with head(home, "token") as (address, dashboard):
        assert join(home, "token", {"address": address}) == ["joined"]
        assert asks_for_token(dashboard, address)
        assert asks_for_token("", address), "no dashboard: the GCS tells"
    token = (home / ".ray" / "auth_token").read_bytes()
    logs = [path for path in home.rglob("*") if path.is_file() and path.parent.name != ".ray"]
    assert any("session_" in str(path) for path in logs)
    assert [path for path in logs if token in path.read_bytes()] == []


@pytest.mark.slow
def test_without_the_token_a_cluster_cannot_be_joined_and_with_it_a_node_can_be_drained(home: Path) -> None:
    with head(home, "token") as (address, _):
        assert drained_by_the_spot_watcher(home, address) == 0
        (said,) = join(home, "disabled", {"address": address})
        assert said.startswith("refused: cluster.address: cannot join")
        assert "RAY_AUTH_MODE=token" in said


@pytest.mark.slow
def test_a_dashboard_that_asks_for_no_token_tells_so(home: Path) -> None:
    with head(home, "disabled") as (_, dashboard):
        assert not asks_for_token(dashboard, "127.0.0.1:9")
