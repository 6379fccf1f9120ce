"""What a GPU gives: sampling, the whole job and LoRA training in Stable Diffusion v1.5's shape.

    python -m benchmarks.speed gpu

A share of the matmul rate is the time that this run's own matrix products would need for the same
operations, over ours. Operations are counted by torch on the networks that run, not taken from a
table. tests/unit/benchmarks/test_speed.py answers the same questions at a tiny size on a CPU.
"""

import atexit
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed.again import HereWorkers
from benchmarks.speed.contest import Contest, Limit, Question, Seconds, Skipped
from benchmarks.speed.generate import diffusers_images
from benchmarks.speed.runs import small_run
from benchmarks.speed.sd15 import LAYOUT, write_base
from busray.corpus.draw import load_sampler
from busray.records import Shard
from busray.run.record import Run
from busray.stages.finetune import finetune
from busray.stages.generate import draw_job
from busray.storage import Store
from busray.workers import DrawStage

ARM = "base+refine"
MEMORY = 6.0
"""GiB that LoRA training at a batch of 4 may take."""


@dataclass(frozen=True)
class Scale:
    """How large the questions are."""

    device: str
    base: str | None  # None: Stable Diffusion v1.5's shape
    side: int
    dtype: str
    batch: int
    steps: int
    refine_steps: int  # of the schedule; strength 0.3 of them are run
    matrix: int  # side of the products that give the matmul rate
    shard: int  # images of a shard of the whole job


FULL = Scale("cuda", None, 512, "bfloat16", 16, 50, 50, 8192, 128)
TINY = Scale("cpu", "tiny", 64, "float32", 2, 2, 4, 256, 2)


def questions() -> list[Question]:
    name = "GPU: sampling, job and training in Stable Diffusion v1.5's shape"
    if not torch.cuda.is_available():
        return [Skipped(name, "this machine has no GPU that torch can use")]
    if not LAYOUT.is_dir():
        return [Skipped(name, "the configurations of Stable Diffusion v1.5 are not beside the project")]
    at_exit = ExitStack()
    atexit.register(at_exit.close)
    folder = Path(at_exit.enter_context(tempfile.TemporaryDirectory()))
    write_base(folder / "base")
    run = gpu_run(folder, FULL)
    from busray.cluster.pool import ray_workers

    workers = at_exit.enter_context(ray_workers(run.config.cluster, run.log_file, lambda stage, done, total: None))
    return [*sampling(run, FULL), *job(run, FULL, workers.draw), *training(run, FULL)]


def gpu_run(folder: Path, scale: Scale) -> Run:
    """A run of the scale; its base lies in folder/base where it is not the embedded one."""
    return small_run(
        folder / "run",
        2 * scale.shard,
        base={"path": scale.base or str(folder / "base"), "size": scale.side, "dtype": scale.dtype},
        sampling={"steps": scale.steps, "guidance_scale": 7.5, "batch_size": scale.batch},
        refine={"strength": 0.3, "steps": scale.refine_steps, "guidance_scale": 7.5},
        cluster={"threads": 2, "gpus_per_actor": 1 if scale.device == "cuda" else 0},
        adapters={"method": "lora", "steps": 1, "batch_size": 4, "checkpoint_every": 1, "validate_every": 1},
        evaluate={"arms": [ARM], "judge": None, "inline": True, "extractors": ["inception"]},
    )


def sampling(run: Run, scale: Scale) -> list[Question]:
    """A batch, against diffusers and against this run's own matrix products."""
    drawing = draw_job(run, scale.device, ARM)
    sampler = load_sampler(drawing)
    specs = drawing.recipe.specs(Shard("benign", 0, scale.batch))
    rival = diffusers_images(drawing.base, drawing.sampling, run.config.refine, scale.device)
    operations = sampling_operations(load_sampler(drawing).pipe, scale)

    def ours() -> np.ndarray:
        return np.stack([drawn.image for drawn in sampler.draw(specs)])

    def alone() -> np.ndarray:
        return np.concatenate([rival([spec]) for spec in specs])

    def same() -> str:
        # In bfloat16 and by random weights pixels differ: only their shape is compared.
        assert ours().shape == rival(specs).shape == (scale.batch, scale.side, scale.side)
        return f"{operations / scale.batch / 1e12:.3g} TFLOP an image"

    name = f"{scale.batch} images of {scale.side} px, {scale.steps} + {int(scale.refine_steps * 0.3)} steps"
    batch, single, together = synced(ours, scale), synced(alone, scale), synced(lambda: rival(specs), scale)
    floor, share = at_matmul_rate(operations, scale), f"{name}: share of the matmul rate"
    return [
        Contest(name, "busray", "diffusers one at a time", batch, single, 5, same),
        Contest(name, "busray", "diffusers eager, same batch", batch, together, 1.3, same),
        Contest(share, "busray", "matmul alone", batch, floor, 0.4, same),
    ]


def job(run: Run, scale: Scale, draw: Callable[[DrawStage], None]) -> list[Question]:
    """Shards with PNG and inline features, against the bare loop of batches.

    Counted is the time from the first commit to the last. draw: of Workers.
    """
    drawing = draw_job(run, scale.device, ARM)
    shards = [Shard("benign", 0, scale.batch), Shard("benign", scale.batch, scale.shard)]
    images = sum(shard.count for shard in shards)
    sampler = load_sampler(drawing)
    specs = drawing.recipe.specs(shards[1])

    def ours() -> Seconds:
        times: list[float] = []

        def seen(commit: Any) -> None:
            times.append(time.perf_counter())

        placed = replace(drawing, store=Store(tempfile.mkdtemp(dir=Path(run.store.url).parent)))
        draw(DrawStage("draw", placed, shards, images, seen=seen))
        return Seconds(times[-1] - times[0])

    def rival() -> None:
        for at in range(0, scale.shard, scale.batch):
            sampler.draw(specs[at : at + scale.batch])

    name = f"a shard of {scale.shard} images with PNG, record and inline features"
    return [Contest(name, "job", "bare loop of batches", ours, synced(rival, scale), 0.97, lambda: "", by_cpu=False)]


def training(run: Run, scale: Scale) -> list[Question]:
    """A step of LoRA training at a batch of 4: its share of the matmul rate, and its memory."""
    loop = training_loop(run, scale)
    batch = range(run.config.adapters.batch_size)

    def step() -> None:
        loop.apply(loop.accumulate(batch))

    with FlopCounterMode(display=False) as counter:
        step()
    operations = counter.get_total_flops()

    def gibibytes() -> Seconds:
        torch.cuda.reset_peak_memory_stats()
        step()
        return Seconds(torch.cuda.max_memory_allocated() / 2**30)

    name = f"LoRA training step, batch {len(batch)}, {scale.side} px"
    words = f"{operations / len(batch) / 1e12:.3g} TFLOP a sample"
    share: Question = Contest(
        f"{name}: share of the matmul rate", "busray", "matmul alone", synced(step, scale),
        at_matmul_rate(operations, scale), 0.35, lambda: words,
    )  # fmt: skip
    if scale.device != "cuda":
        return [share]
    return [share, Limit(f"{name}: memory", gibibytes, MEMORY, unit="GiB")]


class _Loop(Exception):
    """Carries the training loop out of the stage."""


class _Trainer(HereWorkers):
    """Takes the training loop where it would be run."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.loop: Any = None

    def call(self, stage: str, total: int, task: Callable[..., Any], *arguments: Any, kind: str = "cpu") -> Any:
        return task(lambda n=0: None, *arguments)

    def train(self, stage: str, training: Any, *, done: int) -> None:
        self.loop = training.start(1)
        raise _Loop


def training_loop(run: Run, scale: Scale) -> Any:
    """What a worker of `busray finetune` has in memory before its first step."""
    workers: Any = _Trainer(scale.device)
    with suppress(_Loop):
        finetune(run, workers)
    return workers.loop


def sampling_operations(pipe: Any, scale: Scale) -> int:
    """Floating-point operations of a batch: each network is counted once, for one image."""
    unet, vae = pipe.unet, pipe.vae
    side = scale.side // pipe.vae_scale_factor
    device, dtype = unet.device, unet.dtype
    latents = torch.zeros(1, unet.config.in_channels, side, side, device=device, dtype=dtype)
    pixels = torch.zeros(1, 3, scale.side, scale.side, device=device, dtype=dtype)
    words = torch.zeros(1, pipe.tokenizer.model_max_length, unet.config.cross_attention_dim, device=device, dtype=dtype)

    @torch.no_grad()
    def of(work: Callable[[], object]) -> int:
        # Compiled code hides its operations from the counter.
        with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
            work()
        return counter.get_total_flops()

    step = 2 * of(lambda: unet(latents, 1, words))  # guidance doubles it
    steps = scale.steps + int(scale.refine_steps * 0.3)
    around = 2 * of(lambda: vae.decode(latents)) + of(lambda: vae.encode(pixels))
    return scale.batch * (steps * step + around)


def at_matmul_rate(operations: int, scale: Scale) -> Callable[[], Seconds]:
    """The seconds that matrix products of this device need for so many operations, measured now."""
    a = torch.randn(scale.matrix, scale.matrix, device=scale.device, dtype=getattr(torch, scale.dtype))

    def seconds() -> Seconds:
        times = []
        for _ in range(10):
            began = time.perf_counter()
            synced(lambda: a @ a, scale)()
            times.append(time.perf_counter() - began)
        return Seconds(operations * statistics.median(times) / (2 * scale.matrix**3))

    return seconds


def synced(work: Callable[[], Any], scale: Scale) -> Callable[[], Any]:
    """Work that ends when the device has done it."""

    def done() -> Any:
        result = work()
        if scale.device == "cuda":
            torch.cuda.synchronize()
        return result

    return done
