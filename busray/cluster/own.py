"""A Ray of busray's own on this machine: it listens on loopback only, its files are for this user
only, and none of its processes outlives it.

Ray has no public settings for most of this: what is replaced below are switches of its own.
"""

import ctypes
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from busray import processes
from busray.failures import cause_in_words, explain
from busray.records import Stopped, StoppedForGood, UserError

LAST_BYTES = 2000  # of each file of Ray's that are kept after a failure

LOOPBACK = "127.0.0.1"

STARTS = 4
"""Times that a Ray is started whose first node is not up within 30 s. Ray has no setting for these
30 s, which a busy machine may need."""


@contextmanager
def own_ray(**options: Any) -> Iterator[None]:
    """As one_ray(), started again where the machine was too busy for Ray's own limit."""
    with ExitStack() as at_exit:
        for attempt in range(1, STARTS + 1):
            try:
                at_exit.enter_context(one_ray(**options))
                break
            except Stopped as error:
                if attempt == STARTS or "timed out during startup" not in str(error.__cause__):
                    raise
        yield


@contextmanager
def one_ray(**options: Any) -> Iterator[None]:
    """A new Ray for the length of the block. options: of ray.init.

    It stores in a new folder below TMPDIR (or /tmp), which is removed at the end; after a failure
    Ray's logger gets what its processes wrote last. Ctrl-C does not interrupt its end.
    Raises UserError where there is no place for its sockets, Stopped where it does not start.
    """
    import ray

    folder = processes.private_folder()
    with _interruptible() as no_more_interrupts, ExitStack() as at_exit:
        at_exit.enter_context(processes.guarded(folder))
        at_exit.push(_keep_logs(folder))
        at_exit.enter_context(_environment(folder))
        at_exit.callback(ray.shutdown)
        at_exit.callback(no_more_interrupts)
        try:
            with _switches():
                ray.init(
                    address="local",
                    include_dashboard=False,
                    log_to_driver=False,  # what workers print stays in Ray's session folder
                    logging_level=logging.ERROR,
                    _temp_dir=str(folder / "r"),
                    **options,
                )
            processes.remember_daemons(folder)
            ip = ray.util.get_node_ip_address()
            if ip != LOOPBACK:
                raise RuntimeError(f"Ray {ray.__version__} listens at {ip}, not on loopback only")
        except Exception as error:
            text = f"Ray did not start on this machine: {cause_in_words(error)}"
            if explain(error).is_known:
                raise Stopped(text) from error
            fix = "see Ray's messages in the log; often memory, disk or the limits of processes and files are short"
            raise StoppedForGood(text, fix) from error
        yield


def _keep_logs(folder: Path) -> Callable[..., None]:
    """What to do at the end, given the error that the block ended with."""

    def keep(kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if not isinstance(error, Exception) or isinstance(error, UserError):
            return
        for path in sorted((folder / "r").glob("session_2*/logs/*")):
            if path.suffix in (".err", ".out") and path.is_file() and path.stat().st_size:
                text = path.read_bytes()[-LAST_BYTES:].decode(errors="replace")
                logging.getLogger("ray").error("%s ends with:\n%s", path.name, text)

    return keep


@contextmanager
def _interruptible() -> Iterator[Callable[[], None]]:
    """A function: once it is called, SIGINT does nothing for the rest of the block.

    A second Ctrl-C in a notebook would leave half of Ray, which then ends the notebook.
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield lambda: None
        return
    try:
        yield partial(_handle_sigint, lambda number, frame: None)
    finally:
        _handle_sigint(handler)


def _handle_sigint(handler: Any) -> None:
    signal.signal(signal.SIGINT, handler)


@contextmanager
def _environment(folder: Path) -> Iterator[None]:
    """The variables that Ray and its workers are to have; the former ones come back at the end.

    Whatever the user's variables say of clusters, a Ray of our own asks for a token of its own.
    """
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    variables = {
        processes.MARK: str(processes.token_file(folder)),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": None,
        "RAY_USAGE_STATS_ENABLED": "0",
        "SPT_NOENV": "1",  # the titles that Ray gives its processes must not overwrite the mark
        "GLOO_SOCKET_IFNAME": loopback,  # of torch's workers among each other
        "NCCL_SOCKET_IFNAME": loopback,
    }
    former = {name: os.environ.get(name) for name in variables}
    _set(variables)
    try:
        yield
    finally:
        _set(former)


def _set(variables: dict[str, str | None]) -> None:
    from ray._raylet import AuthenticationTokenLoader, Config  # pyright: ignore[reportAttributeAccessIssue]

    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    Config.initialize("")  # else Ray keeps the mode and the token that it saw first
    AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def _switches() -> Iterator[None]:
    """Ray as it is to start: on loopback, and without the processes that serve neither
    workers nor us."""
    import ray._private.node
    import ray._private.parameter
    import ray._private.ray_constants

    def no_dashboard(node: Any, **options: Any) -> None:
        """include_dashboard=False still starts its process."""
        node._webui_url = ""

    parameters = ray._private.parameter.RayParams
    switched_off: dict[str, Any] = {"no_monitor": True, "include_log_monitor": False}
    with signal_handlers_kept(), ExitStack() as replaced:
        for owner, name, value in (
            # False: Ray takes 127.0.0.1 for the address of this node, and then binds to it alone.
            (ray._private.ray_constants, "ENABLE_RAY_CLUSTER", False),
            (ray._private.parameter, "RayParams", partial(parameters, **switched_off)),
            (ray._private.node.Node, "start_api_server", no_dashboard),
        ):
            replaced.enter_context(_replaced(owner, name, value))
        yield


@contextmanager
def signal_handlers_kept() -> Iterator[None]:
    """Signals mean after ray.init in the block what they meant before.

    Ray takes SIGTERM twice: in Python, to raise SystemExit(15), and in C++, to print a stack.
    """
    import ray._private.utils

    get, put = ctypes.pythonapi.PyOS_getsig, ctypes.pythonapi.PyOS_setsig
    get.restype = put.restype = ctypes.c_void_p
    handler = get(signal.SIGTERM)
    try:
        with _replaced(ray._private.utils, "set_sigterm_handler", lambda handler: None):
            yield
    finally:
        put(signal.SIGTERM, ctypes.c_void_p(handler))


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """owner.name is `value` while the block runs."""
    former = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, former)
