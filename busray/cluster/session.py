"""One Ray session around a job: started in this process, or the cluster that RAY_ADDRESS or cluster.address names."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from busray import config

Tell = Callable[[str, int, int], None]
"""Progress for people: tell(stage, done, total)."""


@contextmanager
def session(settings: config.Cluster, log_file: Path) -> Iterator[None]:
    """Ray for the length of the block; Ray's own messages go to log_file, not to the terminal.

    A session that already runs in this process (tests, notebooks) is used and left running.
    """
    _quieten(log_file)
    import ray

    if ray.is_initialized():
        yield
        return
    # Python's default lets a job's workers print into the driver's terminal; their logs stay in Ray's session folder.
    with _native_messages_to(log_file):
        ray.init(
            address=settings.address or os.environ.get("RAY_ADDRESS") or "local",
            include_dashboard=False if _starts_its_own(settings) else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    _quieten(log_file)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _native_messages_to(log_file: Path) -> Iterator[None]:
    """What Ray's C++ part writes to standard error goes into log_file for the length of the block."""
    terminal = os.dup(2)
    with log_file.open("ab") as file:
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)


def _starts_its_own(settings: config.Cluster) -> bool:
    return (settings.address or os.environ.get("RAY_ADDRESS") or "local") == "local"


def _quieten(log_file: Path) -> None:
    """Ray's driver-side loggers write to log_file; its progress bars are off (ours tell what matters)."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its C++ part writes to the terminal whatever we do
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    log_file.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(log_file, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for name in ("ray", "ray.data", "ray.train", "ray.tune"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler] if name == "ray" else []
        logger.propagate = name != "ray"


def use_threads(threads: int) -> None:
    """torch's CPU threads in this process: Ray sets OMP_NUM_THREADS by its own count, and pixels depend on it."""
    import torch

    torch.set_num_threads(threads)


def device_of(gpus: float) -> str:
    return "cuda" if gpus > 0 else "cpu"
