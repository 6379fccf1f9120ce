"""Two processes of one thread against one process of two, drawing the same images.

It decides how many actors a CPU should have (cluster.actors, cluster.threads). The processes keep
their pipeline: they are as actors that have started.
"""

import atexit
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np

from benchmarks.speed.contest import Contest

IMAGES, SIDE = 16, 64
_kept: dict[str, Any] = {}  # the sampler of a process


def questions() -> list[Contest]:
    two, one = _processes(2, 1), _processes(1, 2)

    def ours() -> np.ndarray:
        return np.concatenate(list(two.map(_draw, [0, 1], [IMAGES // 2] * 2)))

    def rival() -> np.ndarray:
        return np.concatenate(list(one.map(_draw, [0], [IMAGES])))

    def same() -> str:
        differing = np.abs(ours().astype(int) - rival().astype(int)).max()
        assert differing <= 1, differing
        return f"pixels within {differing}/255"

    name = f"{IMAGES} images of {SIDE} px by two processes of a thread, or one of two threads"
    rival_name = "1 process x 2 threads"
    return [Contest(name, "2 processes x 1 thread", rival_name, ours, rival, None, same, by_cpu=False)]


def _processes(count: int, threads: int) -> ProcessPoolExecutor:
    pool = ProcessPoolExecutor(count, get_context("spawn"), _start, (threads,))
    atexit.register(pool.shutdown)
    return pool


def _start(threads: int) -> None:
    import torch

    from benchmarks.speed.generate import REFINE, SAMPLING
    from busray import config
    from busray.model.base import load_pipeline
    from busray.model.sample import Sampler

    torch.set_num_threads(threads)
    _kept["sampler"] = Sampler(load_pipeline(config.Base()), SAMPLING, REFINE, SIDE, keep_txt2img=False)


def _draw(part: int, images: int) -> np.ndarray:
    """uint8 [images, s, s]: the given part of all images."""
    from benchmarks.speed.generate import BATCH, image_specs

    sampler, drawn = _kept["sampler"], []
    specs = image_specs(IMAGES, SIDE)[part * images : (part + 1) * images]
    for at in range(0, images, BATCH):
        drawn += [image.image for image in sampler.draw(specs[at : at + BATCH])]
    return np.stack(drawn)
