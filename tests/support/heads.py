"""Real `ray start` heads on loopback, each with a home folder, token and temporary files of its
own."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@contextmanager
def head(home: Path, mode: str, cpus: int = 1, *, has_dashboard: bool = True) -> Iterator[tuple[str, str]]:
    """(address, dashboard) of a head whose home folder, token and temporary files are its own.

    Without a dashboard, which takes most of a head's time to start, nobody listens there.

    Ended by killing its process group: `ray stop` would end every Ray on this machine.
    """
    port, dashboard, client, agent = free_ports(4)
    log = home / "head.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [
                str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", f"--port={port}",
                "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
                f"--ray-client-server-port={client}", f"--num-cpus={cpus}", "--object-store-memory=80000000",
                # Jobs are started by the agent, which without a port of its own meets any other
                # Ray of this machine.
                f"--dashboard-agent-listen-port={agent}", f"--include-dashboard={has_dashboard}",
                "--disable-usage-stats", f"--temp-dir={home / 'r'}",
            ],
            env=environment(home, mode), stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        while b"runtime started" not in log.read_bytes():
            assert process.poll() is None, log.read_text()
            time.sleep(0.5)
        yield f"127.0.0.1:{port}", f"127.0.0.1:{dashboard}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def environment(home: Path, mode: str) -> dict[str, str]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return {**inherited, "HOME": str(home), "RAY_AUTH_MODE": mode}
