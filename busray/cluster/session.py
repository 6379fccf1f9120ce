"""Starts Ray for a job, or joins the cluster at cluster.address or RAY_ADDRESS; leaves at the end.

A cluster that asks for no token is refused unless cluster.allow_insecure is set: whoever reaches it
can run code on it.
"""

import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from busray import config
from busray.cluster.own import own_ray, signal_handlers_kept
from busray.cluster_address import address_of, asks_for_token, check_address, refusal, setting_of, way_without
from busray.records import UserError


@contextmanager
def session(settings: config.Cluster, log_file: Path) -> Iterator[None]:
    """Ray for the length of the block; Ray's own messages go to log_file, not to the terminal.

    A session that already runs in this process (tests, notebooks) is used and left running.
    UserError where a cluster cannot be joined, or where it is insecure and
    cluster.allow_insecure is not set.
    """
    _quieten(log_file)
    import ray

    if ray.is_initialized():
        yield
        return
    with ExitStack() as at_exit:
        if address_of(settings) == "local":
            with _native_messages_to(log_file):
                at_exit.enter_context(own_ray())
        else:
            at_exit.callback(ray.shutdown)
            with _native_messages_to(log_file), signal_handlers_kept():
                _join(settings)
        _quieten(log_file)
        yield


@contextmanager
def early_ray(settings: config.Cluster) -> Iterator["EarlyRay"]:
    """A Ray of busray's own that may start before session() needs it; it ends with the block."""
    ray = EarlyRay(settings)
    try:
        yield ray
    except BaseException as error:
        ray.error = error
        raise
    finally:
        ray.end()


class EarlyRay:
    """A Ray that starts, lives and ends in a thread: its daemons die with the thread that started
    them.

    A Ray that does not start raises nothing here: session() starts it again, and says what is
    wrong.
    """

    def __init__(self, settings: config.Cluster) -> None:
        self.is_own = is_own(settings)
        self.thread = threading.Thread(target=self._live, daemon=True)
        self.is_up, self.is_over = threading.Event(), threading.Event()
        self.error: BaseException | None = None  # with which the work on it ended

    def start(self) -> None:
        """Let it start, if no Ray is there, and return at once."""
        # Not in the thread: this one goes on to import libraries that Ray imports too.
        import ray

        if self.is_own and not ray.is_initialized():
            self.thread.start()

    def wait(self) -> None:
        """Return when it has started, or could not."""
        if self.thread.ident is not None:
            self.is_up.wait()

    def end(self) -> None:
        self.is_over.set()
        if self.thread.ident is not None:
            self.thread.join()

    def _live(self) -> None:
        nowhere = Path(os.devnull)  # no file is made for a run that may be refused yet
        _log_to(nowhere)
        with suppress(BaseException), ExitStack() as at_exit:
            at_exit.callback(self.is_up.set)
            with _native_messages_to(nowhere):
                at_exit.enter_context(own_ray())
            self.is_up.set()
            self.is_over.wait()
            if self.error is not None:
                raise self.error  # so that Ray's last messages are kept


def machines(settings: config.Cluster) -> tuple[str, list[tuple[float, float]]]:
    """(whose they are, (CPUs, GPUs) of each): the nodes that a named cluster has now; without one
    this machine alone, and no Ray is started. UserError where the cluster cannot be joined."""
    address = address_of(settings)
    if address == "local":
        gpus = 0
        if settings.gpus_per_actor:
            import torch

            gpus = torch.cuda.device_count()
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return "this machine", [(cpus, gpus)]
    check_address(settings)
    with session(settings, Path(os.devnull)):
        import ray

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return f"the cluster at {address} now", [(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in nodes]


def is_own(settings: config.Cluster) -> bool:
    """Whether Ray is one of busray's own on this machine, and no cluster that the user names."""
    return address_of(settings) == "local"


def _join(settings: config.Cluster) -> None:
    """Join the user's cluster, which stays as it is."""
    import ray
    from ray.exceptions import AuthenticationError

    address = address_of(settings)
    try:
        context: Any = ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, AuthenticationError, RuntimeError, ValueError) as error:
        raise UserError(
            f"{setting_of(settings)}: cannot join {address} ({str(error).splitlines()[0]}): is it up, and "
            "does this process have its token (RAY_AUTH_MODE=token, the token in "
            f"~/.ray/auth_token)? Or {way_without(settings)}"
        ) from error
    if not settings.allow_insecure:
        dashboard, gcs = context.address_info["webui_url"] or "", context.address_info["gcs_address"]
        problem = refusal(dashboard, asks_for_token(dashboard, gcs))
        if problem:
            raise UserError(problem)


@contextmanager
def _native_messages_to(log_file: Path) -> Iterator[None]:
    """Standard error, to which Ray's C++ part writes, goes to log_file while the block runs.

    What Python prints there goes on reaching the terminal: other threads may be at work.
    """
    with suppress(OSError, ValueError):  # a notebook's stream has no number
        if sys.stderr.fileno() == 2:  # not closed again: loggers may keep it
            sys.stderr = open(os.dup(2), "w", buffering=1, encoding=sys.stderr.encoding, errors=sys.stderr.errors)  # noqa: SIM115
    terminal = os.dup(2)
    with log_file.open("ab") as file:
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)


def _quieten(log_file: Path) -> None:
    """Ray's loggers in this process write to log_file; its progress bars are off."""
    _log_to(log_file)
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True  # else a WorkError is lost on the way
    # An actor whose process dies while it loads is replaced; faults.py counts such deaths.
    context.max_consecutive_actor_init_deaths = -1


def _log_to(log_file: Path) -> None:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # of C++, not reached by logging
    log_file.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(log_file, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for name in ("ray", "ray.data", "ray.train", "ray.tune"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler] if name == "ray" else []
        logger.propagate = name != "ray"


def use_threads(threads: int) -> None:
    """Set torch's CPU threads in this process.

    Ray sets OMP_NUM_THREADS by a worker's CPUs, but pixels depend on the number of threads.
    """
    import torch

    torch.set_num_threads(threads)


def device_of(gpus: float) -> str:
    return "cuda" if gpus > 0 else "cpu"
