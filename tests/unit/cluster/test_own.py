"""The folder of a Ray of our own: private, and short enough for Ray's sockets. No Ray here."""

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from busray.cluster import own, processes
from busray.records import Stopped, UserError

SOCKET = "session_2026-12-01_04-00-55_794618_4194304/sockets/plasma_store"
LONGEST_SOCKET = 107


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
        folder = own.private_folder()
    finally:
        os.umask(former)
    try:
        assert mode(folder) == 0o700
        assert mode(processes.token_file(folder)) == 0o600
        assert len(processes.token_file(folder).read_text()) >= 32
    finally:
        processes.remove(folder)


def test_a_tmpdir_that_is_too_long_for_sockets_is_used_behind_a_short_link(temporary: Path) -> None:
    folder = own.private_folder()
    assert len(os.fsencode(folder / "r" / SOCKET)) <= LONGEST_SOCKET
    assert (folder / "r").resolve().parent == temporary, "what Ray stores lies where the user said"
    assert mode(folder) == mode((folder / "r").resolve()) == 0o700
    processes.remove(folder)
    assert not folder.exists() and list(temporary.iterdir()) == []


def test_the_longest_tmpdir_without_a_link_is_short_enough() -> None:
    folder = "/" + "t" * (own.LONGEST_TEMPORARY - 1) + "/busray-12345678/r"
    assert len(f"{folder}/{SOCKET}") == LONGEST_SOCKET


def test_a_long_tmpdir_without_any_short_folder_is_refused_with_the_fix(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own, "SHORT_FOLDERS", (str(temporary / "missing"),))
    with pytest.raises(UserError, match=rf"TMPDIR: .* has \d+ characters.*at most {own.LONGEST_TEMPORARY}"):
        own.private_folder()
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(("failures", "cause", "starts"), [(2, "timed out during startup", 3), (9, "no disk", 1)])
def test_a_ray_that_a_busy_machine_did_not_start_in_time_is_started_again(
    monkeypatch: pytest.MonkeyPatch, failures: int, cause: str, starts: int
) -> None:
    tried = []

    @contextmanager
    def one_ray(**_: object) -> Iterator[None]:
        tried.append(1)
        if len(tried) <= failures:
            raise Stopped("Ray did not start") from RuntimeError(f"the node {cause}")
        yield

    monkeypatch.setattr(own, "one_ray", one_ray)
    if cause == "no disk":
        with pytest.raises(Stopped), own.own_ray():
            pass
    else:
        with own.own_ray():
            assert len(tried) == starts
    assert len(tried) == starts
