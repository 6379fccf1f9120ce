"""Starts Ray for a job, or joins the cluster at cluster.address or RAY_ADDRESS; leaves at the end.

A cluster that asks for no token is refused unless cluster.allow_insecure is set: whoever reaches it
can run code on it.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from busray import config
from busray.cluster.log import LastMessages, remove_if_only_notes, take_over, written_on_error
from busray.cluster.own import own_ray, signal_handlers_kept
from busray.cluster_address import address_of, asks_for_token, check_address, refusal, setting_of, way_without
from busray.records import UserError

GPU_FILES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
"""A machine with GPUs has one of them: NVIDIA's driver, that of Windows' Linux, AMD's."""


@contextmanager
def session(settings: config.Cluster, log_file: Path) -> Iterator[None]:
    """Ray for the length of the block; Ray's own messages are not shown. They are in log_file where
    something went wrong.

    A session that already runs in this process (tests, notebooks) is used and left running.
    UserError where a cluster cannot be joined, or where it is insecure and
    cluster.allow_insecure is not set.
    """
    log_file.parent.mkdir(parents=True, exist_ok=True)
    messages = LastMessages(log_file)
    _quieten(messages)
    import ray

    if ray.is_initialized():
        with written_on_error(messages):
            yield
        return
    with ExitStack() as at_exit, written_on_error(messages):
        if address_of(settings) == "local":
            with _native_messages_to(log_file):
                at_exit.enter_context(own_ray())
        else:
            at_exit.callback(ray.shutdown)
            with _native_messages_to(log_file), signal_handlers_kept():
                _join(settings)
        remove_if_only_notes(log_file)
        _quieten(messages)
        yield


def machines(settings: config.Cluster) -> tuple[str, list[tuple[float, float]]]:
    """(whose they are, (CPUs, GPUs) of each): the nodes that a named cluster has now; without one
    this machine alone, and no Ray is started. UserError where the cluster cannot be joined."""
    address = address_of(settings)
    if address == "local":
        gpus = gpus_here() if settings.gpus else 0
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return "this machine", [(cpus, gpus)]
    check_address(settings)
    with session(settings, Path(os.devnull)):
        import ray

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return f"the cluster at {address} now", [(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in nodes]


def gpus_here() -> int:
    """GPUs of this machine that torch can use."""
    if not any(map(os.path.exists, GPU_FILES)):
        return 0  # without torch, whose import takes seconds
    import torch

    return torch.cuda.device_count()


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
    """Standard error, to which Ray's C++ part writes, goes to log_file while the block runs."""
    terminal = os.dup(2)
    with log_file.open("ab") as file:
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)


def _quieten(messages: LastMessages) -> None:
    """Ray's loggers in this process speak to `messages`; its progress bars are off."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # of C++, not reached by logging
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True  # else a WorkError is lost on the way
    # An actor whose process dies while it loads is replaced; faults.py counts such deaths.
    context.max_consecutive_actor_init_deaths = -1
    take_over(messages)


def use_threads(threads: int) -> None:
    """Set torch's CPU threads in this process.

    Ray sets OMP_NUM_THREADS by a worker's CPUs, but pixels depend on the number of threads.
    """
    import torch

    torch.set_num_threads(threads)


def device_of(gpus: float) -> str:
    return "cuda" if gpus > 0 else "cpu"
