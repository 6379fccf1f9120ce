"""`ray job submit` of one run twice, at once, and again after the head died: one result."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from busray.corpus.verify import verify
from busray.storage import Store
from tests.support.drivers import copied, trained_run
from tests.support.heads import environment, head
from tests.support.paths import ROOT

pytestmark = pytest.mark.slow

ENDED = ("succeeded", "failed", "stopped")


class Jobs:
    """The job server of a head, asked through Ray's own command line with the token."""

    def __init__(self, home: Path, dashboard: str) -> None:
        self.home, self.address = home, f"http://{dashboard}"

    def ray(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).parent / "ray"), "job", *arguments]
        return subprocess.run(
            command,
            env={**environment(self.home, "token"), "RAY_API_SERVER_ADDRESS": self.address},
            capture_output=True,
            text=True,
        )

    def submit(self, job: str, config: Path, output: str) -> subprocess.CompletedProcess[str]:
        """As docs/how-to/aws.md says; without --working-dir, since the head is on this machine."""
        entrypoint = [sys.executable, str(ROOT / "jobs" / "generate.py"), str(config), f"--output={output}"]
        while True:  # the job agent needs some seconds after the head is up
            done = self.ray("submit", "--submission-id", job, "--no-wait", "--", *entrypoint)
            if "No available agent" not in done.stdout + done.stderr:
                return done
            time.sleep(2)

    def outcome(self, job: str) -> str:
        """`succeeded`, or what the job printed."""
        while True:
            status = self.ray("status", job).stdout.lower()
            if any(word in status for word in ENDED):
                return "succeeded" if "succeeded" in status else self.ray("logs", job).stdout
            time.sleep(1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Store]:
    """(config, run) with adapters and nothing drawn yet."""
    return trained_run(tmp_path_factory.mktemp("trained"))


def test_a_run_submitted_twice_at_once_and_again_after_the_head_died_is_one_result(
    trained: tuple[Path, Store], home: Path, tmp_path: Path
) -> None:
    config, prepared = trained
    store = copied(prepared, Store(str(tmp_path / "run")))
    with head(home, "token", cpus=4) as (_, dashboard):
        jobs = Jobs(home, dashboard)
        assert jobs.submit("run-1", config, store.url).returncode == 0
        again = jobs.submit("run-1", config, store.url)
        assert again.returncode != 0 and "run-1" in again.stdout + again.stderr, "an id runs once"
        assert jobs.submit("run-2", config, store.url).returncode == 0, "another driver beside the first"
        assert [jobs.outcome(job) for job in ("run-1", "run-2")] == ["succeeded"] * 2
    verdict = verify(store)
    assert verdict.problems == () and verdict.planned == verdict.committed == 16
    before = {key: store.read(key) for key in store.list()}
    with head(home, "token", cpus=4) as (_, dashboard):  # the first one was killed
        jobs = Jobs(home, dashboard)
        assert jobs.submit("run-1", config, store.url).returncode == 0
        assert jobs.outcome("run-1") == "succeeded"
    after = {key: store.read(key) for key in store.list()}
    changed = {key for key in after if after[key] != before.get(key)}
    changed = {key for key in changed if not key.startswith(("digests/timings.json/", "progress/"))}
    assert changed <= {"timings.json", "ray.log"}
