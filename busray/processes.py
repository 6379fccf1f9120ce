"""The folder and the processes of a Ray that busray started. Nothing here imports Ray.

The processes are found by a mark in their environment, and ended. Linux only: elsewhere none is
found, and ray.shutdown() has to do. As a program of its own, this module is a Ray's guard: it ends
the Ray when its standard input ends.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

MARK = "RAY_AUTH_TOKEN_PATH"
"""The variable that tells: a Ray of our own has its token in its own folder, and each process that
it starts inherits the variable."""

LONGEST_TEMPORARY = 25
"""Bytes that the path of the temporary folder may have: Linux takes 107 for a socket's path, and
/busray-XXXXXXXX/r/session_DATE_TIME_PROCESS/sockets/plasma_store are the other 82."""

SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")  # for a link, where TMPDIR is longer

ROUNDS = 100  # looks at the list of processes: one that cannot be killed must not hold the command

_folders: set[Path] = set()  # of the Rays that this process runs

_daemons: set[int] = set()  # ids of the children of this process that are those Rays' own daemons


def private_folder() -> Path:
    """A new folder for a Ray, with its token: modes 0700 and 0600.

    Ray opens its own folder `r` in it to everybody, but nobody else comes that far. The path is
    short enough for Ray's sockets: where TMPDIR is not, `r` is a link to a folder in TMPDIR.
    """
    import tempfile  # some of what it imports is slow, and every command imports this module

    temporary = tempfile.gettempdir()
    folder = Path(tempfile.mkdtemp(prefix="busray-"))
    if len(os.fsencode(temporary)) > LONGEST_TEMPORARY:
        link = _short_folder(folder, temporary)
        (link / "r").symlink_to(folder)
        folder = link
    with open(token_file(folder), "x", opener=partial(os.open, mode=0o600)) as file:
        file.write(os.urandom(32).hex())
    return folder


def _short_folder(folder: Path, temporary: str) -> Path:
    import tempfile

    for place in SHORT_FOLDERS:
        try:
            return Path(tempfile.mkdtemp(prefix="busray-", dir=place))
        except OSError:
            continue
    shutil.rmtree(folder, ignore_errors=True)
    from busray.records import UserError  # not at the top: a guard runs this file alone

    raise UserError(
        f"TMPDIR: {temporary} has {len(os.fsencode(temporary))} characters, and Ray's sockets need "
        f"a folder of at most {LONGEST_TEMPORARY}; none of {', '.join(SHORT_FOLDERS)} can be "
        "written: set TMPDIR to a shorter path"
    )


@contextmanager
def guarded(folder: Path) -> Iterator[None]:
    """The Ray with this folder ends with the block, or with this process, however that ends.

    A guard waits for it in a process of its own, because SIGKILL leaves no time for anything, and
    workers of a lost Ray stay for a minute.
    """
    _folders.add(folder)
    guard = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        end(folder)
        remove(folder)
        _daemons.clear()
        guard.communicate()


def own_folder() -> Path | None:
    """The folder of the Ray that this process started; None where it joined one."""
    return next(iter(_folders), None)


def remember_daemons(folder: Path) -> None:
    """For hold_daemons: raylet and GCS of the Ray that has just started in folder."""
    for pid in running(folder):
        with suppress(OSError):
            if f"PPid:\t{os.getpid()}\n" in Path(f"/proc/{pid}/status").read_text():
                _daemons.add(pid)


def hold_daemons() -> None:
    """Stop the daemons at once: they may have got the same signal as this process, and the driver's
    part of Ray ends this process at the death of its raylet."""
    for pid in _daemons:
        _send(pid, signal.SIGSTOP)


def end_all() -> None:
    """End every Ray of this process at once, and remove what it stored."""
    for folder in list(_folders):
        kill(folder)
        remove(folder)


def kill(folder: Path) -> None:
    """Kill the processes of the Ray whose folder this is, this one excepted.

    All are stopped before the first one dies: a raylet would start new workers for lost ones, and
    the driver's part of Ray would end this process at the death of its raylet.
    """
    stopped: set[int] = set()
    for _ in range(ROUNDS):
        new = running(folder) - stopped
        if not new:
            break
        for pid in new:
            _send(pid, signal.SIGSTOP)
        stopped |= new
    for pid in stopped:
        _send(pid, signal.SIGKILL)


def end(folder: Path) -> None:
    """Return when no process of the Ray is left; what still runs is killed."""
    for _ in range(ROUNDS):
        kill(folder)
        if not running(folder):
            return
        time.sleep(0.02)


def running(folder: Path) -> set[int]:
    """Ids of the processes of the Ray whose folder this is, this one excepted."""
    mark = f"{MARK}={token_file(folder)}\0".encode()
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile, or is another user's
            if mark in (process / "environ").read_bytes():
                found.add(int(process.name))
    return found - {os.getpid()}


def token_file(folder: Path) -> Path:
    return folder / "token"


def remove(folder: Path) -> None:
    """Remove the folder of a Ray, and what a link in it leads to."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_symlink():
            shutil.rmtree(path.resolve(), ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    _folders.discard(folder)


def _send(pid: int, sign: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, sign)


def _guard(folder: Path) -> None:
    for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(sign, signal.SIG_IGN)  # they may come to every process of a job
    sys.stdin.buffer.read()
    end(folder)
    remove(folder)


if __name__ == "__main__":
    _guard(Path(sys.argv[1]))
