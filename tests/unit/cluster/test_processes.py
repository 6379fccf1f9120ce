"""Processes that carry the mark of a Ray are ended with all that they started, and no other one."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from busray.cluster import processes

DRIVER = """
import sys, time
from pathlib import Path
from busray.cluster import processes
with processes.guarded(Path(sys.argv[1])):
    print(".", end="", flush=True)
    time.sleep(100)
"""

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def started(command: str, folder: Path | None) -> subprocess.Popen[bytes]:
    """A shell that runs, with the mark of the Ray in folder."""
    mark = {} if folder is None else {processes.MARK: str(processes.token_file(folder))}
    return subprocess.Popen(["/bin/sh", "-c", command], env={**os.environ, **mark}, start_new_session=True)


@pytest.fixture
def bystander(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process of another Ray, whose folder's name begins alike."""
    process = started("exec sleep 100", tmp_path / "ray2")
    yield process
    process.kill()
    process.wait()


def test_every_process_with_the_mark_ends_and_no_other(tmp_path: Path, bystander: subprocess.Popen[bytes]) -> None:
    """One of them starts others all the time, as a raylet does for lost workers."""
    folder = tmp_path / "ray"
    shell = started("trap '' TERM INT HUP; while :; do sleep 100 & sleep 0.01; done", folder)
    while len(processes.running(folder)) < 4:
        time.sleep(0.01)
    processes.end(folder)
    shell.wait()
    assert processes.running(folder) == set()
    assert bystander.poll() is None


def test_the_folder_of_a_ray_goes_with_it_also_behind_a_link(tmp_path: Path) -> None:
    folder, behind = tmp_path / "ray", tmp_path / "behind"
    (behind / "session").mkdir(parents=True)
    folder.mkdir(mode=0o700)
    (folder / "r").symlink_to(behind)
    processes.token_file(folder).touch()
    with processes.guarded(folder):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_ray_goes_when_its_driver_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "ray"
    folder.mkdir()
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(folder)], stdout=subprocess.PIPE)
    assert driver.stdout is not None and driver.stdout.read(1) == b"."
    shell = started("trap '' TERM INT HUP; while :; do sleep 100 & sleep 1; done", folder)
    driver.kill()
    driver.wait()
    assert shell.wait() == -signal.SIGKILL
    while folder.exists():  # pytest's limit ends this
        time.sleep(0.01)
    assert processes.running(folder) == set()
