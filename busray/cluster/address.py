"""Whether an address is that of a Ray cluster that a command can join, asked before Ray is.

Ray itself tries a dead address for minutes, and says of the others that they are invalid.
"""

import socket

from busray.records import UserError

ANSWER_SECONDS = 5.0  # limit of each of the two questions to the address
OWN_RAY = "remove it, and busray starts a Ray of its own"


def require_cluster(address: str, setting: str) -> None:
    """UserError unless a Ray cluster answers at this address.

    setting: where the address is from, `cluster.address` or `RAY_ADDRESS`. For `auto` Ray itself
    has to look.
    """
    scheme = address.partition("://")[0].lower() if "://" in address else ""
    given = f"{setting}: {address}"
    if scheme in ("http", "https"):
        raise UserError(
            f"{given} is the address of a dashboard, which takes jobs only: give the cluster's own address, such as "
            f"HEAD:6379; or {OWN_RAY}; or submit the work: `ray job submit --address {address} --working-dir . -- "
            "python jobs/pipeline.py CONFIG`"
        )
    if scheme == "ray":
        raise UserError(
            f"{given} is the address of Ray Client, through which busray cannot work: give the cluster's own address, "
            f"such as HEAD:6379, on a machine of the cluster; or {OWN_RAY}; or submit the work with `ray job submit`"
        )
    if address == "auto":
        return
    host, colon, port = address.rpartition(":")
    if scheme or not colon or not port.isdecimal():
        raise UserError(f"{given} is no address of a Ray cluster: give HOST:PORT, such as HEAD:6379; or {OWN_RAY}")
    problem = _no_connection(host.strip("[]"), int(port)) or _no_cluster(address)
    if problem:
        raise UserError(
            f"{given}: no Ray cluster answers there ({problem}): start it (`ray start --head --port {port}`), correct "
            f"the address, or {OWN_RAY}"
        )


def _no_connection(host: str, port: int) -> str:
    """Why nothing listens there; empty where something does."""
    try:
        socket.create_connection((host, port), ANSWER_SECONDS).close()
    except (OSError, OverflowError, UnicodeError) as error:
        return str(getattr(error, "strerror", None) or error)
    return ""


def _no_cluster(address: str) -> str:
    """Why what listens there is no cluster; empty where it is one, with or without a token."""
    import grpc

    # Without the environment's proxy, which would answer in the cluster's place.
    with grpc.insecure_channel(address, options=(("grpc.enable_http_proxy", 0),)) as channel:
        try:
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")(b"", timeout=ANSWER_SECONDS)
        except grpc.RpcError as error:
            code = error.code() if isinstance(error, grpc.Call) else None
            other = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.DEADLINE_EXCEEDED)
            return "another program, or one that hangs, listens there" if code in other else ""
    return ""
