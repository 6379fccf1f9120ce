"""The folder of a Ray of our own is private. Its processes end with all that they started, and no
other ones."""

import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from busray import processes
from busray.records import UserError

SOCKET = "session_2026-12-01_04-00-55_794618_4194304/sockets/plasma_store"
LONGEST_SOCKET = 107

DRIVER = """
import sys, time
from pathlib import Path
from busray import processes
with processes.guarded(Path(sys.argv[1])):
    print(".", end="", flush=True)
    time.sleep(100)
"""

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """TMPDIR, too long for Ray's sockets."""
    folder = tmp_path / ("long" * 20)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_the_folder_and_the_token_are_the_users_alone() -> None:
    former = os.umask(0)
    try:
        folder = processes.private_folder()
    finally:
        os.umask(former)
    try:
        assert mode(folder) == 0o700
        assert mode(processes.token_file(folder)) == 0o600
        assert len(processes.token_file(folder).read_text()) >= 32
    finally:
        processes.remove(folder)


def test_a_tmpdir_that_is_too_long_for_sockets_is_used_behind_a_short_link(temporary: Path) -> None:
    folder = processes.private_folder()
    assert len(os.fsencode(folder / "r" / SOCKET)) <= LONGEST_SOCKET
    assert (folder / "r").resolve().parent == temporary, "what Ray stores lies where the user said"
    assert mode(folder) == mode((folder / "r").resolve()) == 0o700
    processes.remove(folder)
    assert not folder.exists() and list(temporary.iterdir()) == []


def test_the_longest_tmpdir_without_a_link_is_short_enough() -> None:
    folder = "/" + "t" * (processes.LONGEST_TEMPORARY - 1) + "/busray-12345678/r"
    assert len(f"{folder}/{SOCKET}") == LONGEST_SOCKET


def test_a_long_tmpdir_without_any_short_folder_is_refused_with_the_fix(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "SHORT_FOLDERS", (str(temporary / "missing"),))
    with pytest.raises(UserError, match=rf"TMPDIR: .* has \d+ characters.*at most {processes.LONGEST_TEMPORARY}"):
        processes.private_folder()
    assert list(temporary.iterdir()) == []


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
