"""A Ray that busray starts: who can reach it, who can read its files, and what a signal leaves of
it."""

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from busray import processes

DRIVER = """
import os, sys, time
from pathlib import Path
import busray.cli, busray.commands
from busray import processes
from busray.cluster.session import session
from busray.config import Cluster

def work(options, flags):
    with session(Cluster(), Path(sys.argv[1])):
        import ray

        @ray.remote(num_cpus=0)
        def busy() -> None:
            time.sleep(1000)

        tasks = [busy.remote() for _ in range(2)]
        ray.wait(tasks, timeout=5)
        print(*processes._folders, flush=True)
        ray.get(tasks)
    return 0

busray.commands.COMMAND_FUNCTIONS["doctor"] = work
busray.cli.process(["doctor", "runs"])
"""


class Driver:
    """A `busray` command at work on a Ray of its own, with a home folder and TMPDIR of its own."""

    def __init__(self, home: Path) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(home / "ray.log")],
            env={**inherited, "HOME": str(home), "TMPDIR": str(home)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=default_signals,
        )
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        assert said.startswith("/"), self.process.stderr and self.process.stderr.read()
        self.folder = Path(said.strip())
        self.pids = processes.running(self.folder)
        self.tree = {child.pid for child in psutil.Process(self.process.pid).children(recursive=True)}

    def ended(self) -> tuple[int, str]:
        """(exit status, standard error), when nothing of it is left: pytest's limit ends this."""
        _, text = self.process.communicate()
        while self.folder.exists() or processes.running(self.folder) or any(map(runs, self.tree)):
            time.sleep(0.05)
        return self.process.returncode, text


def default_signals() -> None:
    """In the background of a shell, pytest itself ignores some."""
    for sign in (signal.SIGINT, signal.SIGHUP):
        signal.signal(sign, signal.SIG_DFL)


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def driver(home: Path) -> Iterator[Driver]:
    driver = Driver(home)
    yield driver
    driver.process.kill()
    driver.ended()


def test_a_ray_of_our_own_is_private_and_sigterm_leaves_nothing_of_it(driver: Driver, home: Path) -> None:
    pids = driver.pids | {driver.process.pid}
    names = {psutil.Process(pid).name() for pid in driver.pids}
    assert driver.pids < driver.tree and {"raylet", "gcs_server", "ray::busy"} <= names
    listening = [
        connection.laddr.ip
        for pid in pids
        for connection in psutil.Process(pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) >= 4
    assert {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}

    assert stat.S_IMODE(driver.folder.stat().st_mode) == 0o700, "nobody else comes to what is in it"
    token = processes.token_file(driver.folder)
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert not [file for file in home.glob("ray*") if file.name != "ray.log"], "all files of Ray are in that folder"
    assert (home / ".ray" / "auth_token").read_text() != token.read_text()

    driver.process.send_signal(signal.SIGTERM)
    status, text = driver.ended()
    assert (status, text.count("\n")) == (143, 1)
    assert text.startswith("busray: ended by SIGTERM; run the same command again: busray doctor")


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM], ids=lambda sign: sign.name)
def test_a_signal_to_the_driver_and_its_ray_at_once_leaves_nothing(driver: Driver, sign: signal.Signals) -> None:
    """As a terminal sends it to its foreground, Slurm and systemd to every process; and twice."""
    for pid in (driver.process.pid, *driver.pids, driver.process.pid):
        os.kill(pid, sign)
    status, text = driver.ended()
    assert (status, text.count("\n")) == (128 + sign, 1)
    assert f"ended by {sign.name}; run the same command again" in text


@pytest.mark.slow
def test_a_ray_whose_driver_is_killed_goes_by_itself(driver: Driver) -> None:
    driver.process.kill()
    driver.ended()
