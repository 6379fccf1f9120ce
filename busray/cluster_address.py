"""The address of the cluster that a user names: what is wrong with it, and how to do without it.

Nothing here imports Ray: a wrong address is said before Ray is loaded.
"""

import ipaddress
import os
import socket
import urllib.error
import urllib.request

from busray import config
from busray.records import UserError

ANSWER_SECONDS = 5.0  # limit of the test whether somebody answers
PROBE_SECONDS = 5.0  # limit of each of the two tests whether a cluster asks for a token


def address_of(settings: config.Cluster) -> str:
    """`local` for a Ray of our own."""
    return settings.address or os.environ.get("RAY_ADDRESS") or "local"


def check_address(settings: config.Cluster) -> None:
    """Before any work: UserError where the address is none of a cluster, or nobody answers there.

    A cluster that is found by `auto` is found when it is joined.
    """
    address, name = address_of(settings), setting_of(settings)
    if address in ("local", "auto"):
        return
    scheme, _, rest = address.rpartition("://")
    host, _, port = rest.partition("/")[0].rpartition(":")
    wanted = f"give HOST:PORT of the cluster's head, such as {host.strip('[]') or 'HOST'}:6379"
    if scheme in ("http", "https"):
        raise UserError(f"{name}: {address} is the address of a dashboard or of its jobs: {wanted}")
    if scheme == "ray":
        raise UserError(f"{name}: {address} is for Ray Client, which Ray Data and Train do not work with: {wanted}")
    if scheme or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(f"{name}: {address} is no address of a Ray cluster: {wanted}; {way_without(settings)}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
    except OSError as error:
        raise UserError(
            f"{name}: nobody answers at {address} ({error.strerror or error}): start the cluster, or "
            f"{way_without(settings)}"
        ) from error


def setting_of(settings: config.Cluster) -> str:
    """Where the cluster's address was given."""
    return "cluster.address" if settings.address else "RAY_ADDRESS (an environment variable)"


def way_without(settings: config.Cluster) -> str:
    """How to work without the cluster."""
    without = "leave cluster.address out" if settings.address else "unset RAY_ADDRESS"
    return f"{without} for a Ray of busray's own on this machine"


def asks_for_token(dashboard: str, gcs: str) -> bool:
    """Whether a cluster refuses a caller without a token. If that cannot be shown, it does not.

    The dashboard is tried first; where there is none, or it listens on another node's loopback, the
    GCS. Both are called without a token, since Ray tells a client only the client's own mode, and a
    cluster that wants no token lets in a client that has one.
    """
    # Without the proxies of the environment: they would answer in the cluster's place.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        opener.open(f"http://{dashboard}/api/version", timeout=PROBE_SECONDS).close()
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)
    except (OSError, ValueError):  # ValueError: "" is no host
        return _gcs_asks_for_token(gcs)
    return False


def _gcs_asks_for_token(gcs: str) -> bool:
    import grpc

    with grpc.insecure_channel(gcs) as channel:
        try:
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")(b"", timeout=PROBE_SECONDS)
        except grpc.RpcError as error:
            return isinstance(error, grpc.Call) and error.code() == grpc.StatusCode.UNAUTHENTICATED
    return False


def refusal(dashboard: str, asks: bool) -> str | None:
    """Why a cluster is too insecure for a run, and how to fix it; None where it is secure.

    dashboard: its host:port, "" for none. asks: whether the cluster asks callers for a token.
    """
    way_out = "or, if nobody else can reach it, set cluster.allow_insecure=true"
    ip = _ip(dashboard)
    if not asks:
        is_open = dashboard and not (ip and ip.is_loopback)
        seen = f"and its dashboard is open at {dashboard}, " if is_open else ""
        return (
            f"cluster.address: the Ray cluster asks for no token, {seen}so whoever reaches it can "
            "run code on it: start every node with RAY_AUTH_MODE=token and the same "
            f"~/.ray/auth_token (docs/how-to/aws.md), {way_out}"
        )
    if ip and ip.is_global:  # a host name may be public too, but that cannot be seen from here
        return (
            f"cluster.address: the Ray dashboard listens at the public address {dashboard}, and the "
            "token crosses the network unencrypted: start the head with "
            f"--dashboard-host=127.0.0.1, {way_out}"
        )
    return None


def _ip(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The IP of host:port; None for a host name."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        return None
