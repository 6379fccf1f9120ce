"""Turns an AWS spot notice into `ray drain-node`: Ray moves its work before the machine ends.

Runs beside Ray on every spot worker and needs only the standard library. It polls the instance
metadata service (IMDSv2: every read carries a session token) and drains its node once for each kind
of notice. A rebalance recommendation (the machine is likely to end) has no deadline. An
interruption notice (it ends in two minutes) has one; the watcher then exits 0. With `--stopping-in`
it polls nothing and drains at once, for a Kubernetes preStop hook.
"""

import argparse
import http.client
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from datetime import UTC, datetime

IMDS = "http://169.254.169.254"
TOKEN_SECONDS = 21_600
"""The longest life that IMDSv2 gives a session token; a refused one is replaced anyway."""
POLL_SECONDS = 5.0
"""What AWS recommends."""
MARGIN_SECONDS = 15
"""Between the drain's deadline and the machine's end: for Ray's clean-up and clocks that differ."""
RAY_SECONDS = 60
"""Most seconds for one answer from Ray; a busy node is slow."""
TRANSIENT = (OSError, ValueError, LookupError, TypeError, subprocess.SubprocessError, http.client.HTTPException)
"""Errors from a service that is down, slow or answers nonsense."""
ASK_RAY = "import ray, sys; print(ray.init(address=sys.argv[1], log_to_driver=False).address_info['node_id'])"


@dataclass(frozen=True)
class Notice:
    """Why this node must be drained, and when it ends (None: likely, but no time is set)."""

    reason: str
    at: datetime | None


class Imds:
    """The instance metadata service, version 2."""

    def __init__(self, url: str = IMDS, timeout: float = 2.0) -> None:
        self.url, self.timeout = url, timeout
        self._token: str | None = None
        # Without a proxy: one in the environment must not see the session token.
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open

    def get(self, path: str) -> str | None:
        """The text at path, None if there is none (404). OSError if the service does not answer."""
        if self._token is None:
            self._token = self._ask("PUT", "/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": TOKEN_SECONDS})
        try:
            return self._ask("GET", path, {"X-aws-ec2-metadata-token": self._token})
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            if error.code == 401:  # the token ran out
                self._token = None
            raise

    def _ask(self, method: str, path: str, headers: dict[str, object]) -> str:
        request = urllib.request.Request(self.url + path, method=method)
        for name, value in headers.items():
            request.add_header(name, str(value))
        with self._open(request, timeout=self.timeout) as answer:
            return answer.read().decode()


def notice(imds: Imds) -> Notice | None:
    """The interruption notice, else the rebalance recommendation, else None.

    OSError or ValueError if it cannot be read.
    """
    text = imds.get("/latest/meta-data/spot/instance-action")
    if text is not None:
        action = json.loads(text)
        return Notice(f"AWS spot {action['action']} at {action['time']}", _time(action["time"]))
    text = imds.get("/latest/meta-data/events/recommendations/rebalance")
    if text is not None:
        return Notice(f"AWS rebalance recommendation of {json.loads(text)['noticeTime']}", None)
    return None


def _time(text: str) -> datetime:
    """`2026-11-25T08:22:00Z`; ValueError for anything else."""
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)


def deadline_seconds(at: datetime | None, now: datetime) -> int | None:
    """Seconds that Ray may take before the machine ends, at least 1; None if no time is set."""
    if at is None:
        return None
    return max(1, int((at - now).total_seconds()) - MARGIN_SECONDS)


def drain_command(address: str, node: str, message: str, seconds: int | None) -> list[str]:
    # Always with --node-id: without it, `ray drain-node` of 2.60 starts a Ray of its own and drains
    # that one.
    command = ["ray", "drain-node", "--address", address, "--node-id", node]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", message]
    return command if seconds is None else [*command, "--deadline-remaining-seconds", str(seconds)]


def node_id(address: str) -> str:
    """The id (hex) of the cluster's node on this machine. OSError if there is none (yet)."""
    command = [sys.executable, "-c", ASK_RAY, address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=RAY_SECONDS)
    if done.returncode:
        raise OSError(f"Ray does not run on this node: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")
    return done.stdout.strip().splitlines()[-1]


def drain(address: str, node: str, message: str, seconds: int | None) -> None:
    """Ask the cluster to drain this node. OSError if it does not accept the request."""
    command = drain_command(address, node, message, seconds)
    done = subprocess.run(command, capture_output=True, text=True, timeout=RAY_SECONDS)
    if done.returncode:
        raise OSError(f"ray drain-node failed: {(done.stderr or done.stdout).strip()[-500:]}")
    print(f"spot_watcher: drained {node}: {message}", flush=True)


def watch(imds: Imds, address: str, pause: float) -> None:
    """Return once this node has been drained for its interruption. pause: seconds between polls.

    Errors are printed and the work is tried again, because nobody would notice a dead watcher in
    time.
    """
    node, recommended = None, False
    while True:
        try:
            node = node or node_id(address)
            current = notice(imds)
            if current is not None and (current.at or not recommended):
                drain(address, node, current.reason, deadline_seconds(current.at, datetime.now(UTC)))
                recommended = True
                if current.at:
                    return
        except TRANSIENT as error:
            print(f"spot_watcher: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        time.sleep(pause)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="turn an AWS spot notice into `ray drain-node`")
    parser.add_argument("--address", required=True, help="HOST:PORT of the cluster's head")
    parser.add_argument("--imds", default=IMDS, help="URL of the instance metadata service")
    parser.add_argument("--poll-seconds", type=float, default=POLL_SECONDS)
    parser.add_argument("--stopping-in", type=int, metavar="SECONDS", help="drain now: this node ends in SECONDS")
    options = parser.parse_args(arguments)
    if options.stopping_in is not None:
        drain(
            options.address,
            node_id(options.address),
            "this pod is being stopped",
            max(1, options.stopping_in - MARGIN_SECONDS),
        )
    else:
        watch(Imds(options.imds), options.address, options.poll_seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
