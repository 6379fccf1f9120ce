"""SIGINT, SIGTERM and SIGHUP end a command at once: the command to go on, the right status, and no
process of its Ray. The Ray is a stand-in here: shells with its mark that ignore every signal."""

import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from busray import processes

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

COMMAND = """
import os, subprocess, sys, time
from pathlib import Path
from busray import cli, commands
from busray import processes

def work(options, flags):
    folder = Path(sys.argv[1])
    processes._folders.add(folder)
    mark = {processes.MARK: str(processes.token_file(folder))}
    ignoring = "trap '' TERM INT HUP; while :; do sleep 100 & sleep 1; done"
    subprocess.Popen(["/bin/sh", "-c", ignoring], env={**os.environ, **mark}, start_new_session=True)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # as while Ray starts
    print("ready", flush=True)
    exec(sys.argv[2])
    return 0

commands.COMMAND_FUNCTIONS["doctor"] = work
cli.process(["doctor", "s3://bucket/a b"])
"""
BUSY = {
    "sleeping": "time.sleep(100)",
    "never giving up": "while True:\n  try: time.sleep(100)\n  except BaseException: pass",
}


def set_signals(ignored: signal.Signals | None) -> None:
    """All but `ignored` end a process: in the background of a shell, pytest itself ignores some."""
    for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(sign, signal.SIG_IGN if sign == ignored else signal.SIG_DFL)


class Command:
    """A `busray` process whose command does what `busy` says, beside a stand-in for Ray."""

    def __init__(self, folder: Path, busy: str, ignored: signal.Signals | None = None) -> None:
        folder.mkdir()
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, str(folder), BUSY[busy]],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=partial(set_signals, ignored),
        )
        assert self.process.stdout is not None and self.process.stdout.readline() == "ready\n"

    def ended(self, *signs: signal.Signals) -> tuple[int, str]:
        """(exit status, standard error) after the signals."""
        for sign in signs:
            self.process.send_signal(sign)
        _, text = self.process.communicate()
        return self.process.returncode, text


@pytest.mark.parametrize(
    ("signs", "busy", "status"),
    [
        ([signal.SIGINT], "sleeping", 130),
        ([signal.SIGTERM], "never giving up", 143),
        ([signal.SIGHUP], "sleeping", 129),
        ([signal.SIGINT, signal.SIGINT], "never giving up", 130),
        ([signal.SIGTERM, signal.SIGTERM], "sleeping", 143),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_signal_ends_the_command_and_its_ray_and_says_how_to_go_on(
    tmp_path: Path, signs: list[signal.Signals], busy: str, status: int
) -> None:
    command = Command(tmp_path / "ray", busy)
    assert command.ended(*signs) == (
        status,
        f"busray: ended by {signs[0].name}; run the same command again: busray doctor 's3://bucket/a b'\n",
    )
    assert processes.running(command.folder) == set()
    assert not command.folder.exists()


def test_a_signal_that_was_ignored_at_the_start_stays_ignored(tmp_path: Path) -> None:
    """As after nohup, or in the background of a shell."""
    command = Command(tmp_path / "ray", "sleeping", ignored=signal.SIGHUP)
    command.process.send_signal(signal.SIGHUP)
    time.sleep(0.2)
    assert command.process.poll() is None
    status, text = command.ended(signal.SIGTERM)
    assert status == 143 and "SIGTERM" in text
