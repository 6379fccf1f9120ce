"""Fine-tuning on Ray Train: workers share the global batch by position and add their gradients up.

Sample order and noise follow from (seed, step, position), so the result does not depend on how many workers there are
beyond the rounding of a sum; checkpoints go through Store, not through Ray, and a rerun goes on from the newest one.
"""

import tempfile
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig

from busray import config as settings
from busray.cluster.liveness import Pulse, brief, stopped, supervised, watched
from busray.cluster.session import device_of, session, use_threads
from busray.data.frame import content_box
from busray.data.images import load_images
from busray.identity import fingerprint, seed_for
from busray.model.checkpoints import (
    Checkpoint,
    TrainingLog,
    commit_adapters,
    newest_checkpoint,
    put_checkpoint,
    read_adapters,
)
from busray.records import Box, ImageSpec, SourceImage, Stopped, UserError
from busray.run.images import fetch_folder
from busray.run.record import Run
from busray.storage import Store

LOG_EVERY = 10


GRID_IMAGES = 4


MAX_FAILURES = 3
"""Failures in a row without a new checkpoint after which training ends."""


@dataclass(frozen=True)
class FinetuneJob:
    """What a training worker needs; travels to it pickled."""

    store: Store
    base: settings.Base
    adapters: settings.Adapters
    sampling: settings.Sampling
    tokens: Mapping[str, str]
    initializers: Mapping[str, str]
    captions: Mapping[str, list[str]]
    """split -> caption an image."""
    latents: Mapping[str, str]
    """split -> key of its encoded images."""
    grid: tuple[ImageSpec, ...]
    seed: int
    threads: int
    device: str
    metadata: Mapping[str, Any]
    """What the adapters carry: base, data set, tokens, settings."""


def finetune(run: Run) -> dict[str, Any]:
    """The run's adapters: those already committed, else adapters.path's, else freshly trained; returns their record."""
    record = read_adapters(run.store)
    if record is not None:
        return record
    if run.config.adapters.path:
        return _adopt(run)
    with session(run.config.cluster, run.log_file):
        job = _job(run)
        _encode_once(run, job)
        _train(run, job)
    record = read_adapters(run.store)
    if record is None:
        raise RuntimeError(f"training ended without adapters; Ray's messages are in {run.log_file}")
    return record


def _job(run: Run) -> FinetuneJob:
    config = run.config
    tokens = config.tokens() if config.uses_tokens else {}
    pins = {"base": run.base.to_dict(), "size": config.base.size, "frame": config.dataset.frame}
    latents = {
        split: f"finetune/latents-{split}-{fingerprint([run.dataset.hash, pins, split, config.adapters.mirror])[:16]}"
        ".safetensors"
        for split in ("train", "val")
    }
    captions = {split: run.captions(run.dataset.split(split)) for split in ("train", "val")}
    metadata = {
        **pins,
        "dataset_hash": run.dataset.hash,
        "method": config.adapters.method,
        "tokens": tokens,
        "config_hash": fingerprint([config.adapters.model_dump(mode="json"), captions["train"], config.seed]),
    }
    return FinetuneJob(
        store=run.store,
        base=config.base,
        adapters=config.adapters,
        sampling=config.sampling,
        tokens=tokens,
        initializers={name: run.stand_in(name) for name in config.classes},
        captions=captions,
        latents=latents,
        grid=_grid(run),
        seed=config.seed,
        threads=config.cluster.threads,
        device=device_of(config.cluster.gpus_per_actor),
        metadata=metadata,
    )


def _grid(run: Run) -> tuple[ImageSpec, ...]:
    """Fixed-seed images to look at during training: GRID_IMAGES a class, from the training captions."""
    size = run.config.base.size
    specs = []
    for name in run.config.classes:
        images = [image for image in run.dataset.train if image.class_name == name]
        for i, caption in enumerate(run.captions(tuple(images[:GRID_IMAGES]))):
            seed = seed_for(run.config.seed, name, i, 0, "validate")
            specs.append(ImageSpec(f"grid-{name}-{i}", name, i, 0, caption, seed, seed, Box(0, 0, size, size)))
    return tuple(specs)


def _adopt(run: Run) -> dict[str, Any]:
    from busray.model.adapters import check_adapters

    assert run.config.adapters.path is not None
    with tempfile.TemporaryDirectory() as cache:
        folder = fetch_folder(run.config.adapters.path, Path(cache))
        tokens = run.config.tokens() if run.config.uses_tokens else {}
        record = check_adapters(folder, run.config.adapters.method, tokens, run.base, run.dataset.hash)
        files = {
            path.name: path.read_bytes()
            for path in sorted(folder.iterdir())
            if path.suffix in (".safetensors", ".json")
        }
    return commit_adapters(run.store, files, {**record, "adopted": True})


def _encode_once(run: Run, job: FinetuneJob) -> None:
    """Posterior means and deviations of the train and validation images, encoded by one task and kept in the store."""
    missing = [split for split in job.latents if not run.store.exists(job.latents[split])]
    if not missing:
        return
    cluster = run.config.cluster
    total = sum(len(run.dataset.split(split)) for split in missing)
    task = ray.remote(num_cpus=cluster.cpus_per_actor, num_gpus=cluster.gpus_per_actor)(_encode)
    with watched(run.tell, "encode", total) as board:

        def work() -> None:
            for split in missing:
                images = run.dataset.split(split)
                pixels = load_images(run.folder, images, run.dataset.size, run.dataset.frame)
                mirror = job.adapters.mirror and split == "train"
                ray.get(task.remote(job, split, ray.put(pixels), _boxes(images, run), mirror, board))

        try:
            supervised(board, "encode", cluster.hang_seconds, work)
        except RayError as error:
            raise stopped("encode", error) from error


def _boxes(images: tuple[SourceImage, ...], run: Run) -> list[Box]:
    return [content_box(image.width, image.height, run.dataset.size, run.dataset.frame) for image in images]


def _encode(job: FinetuneJob, split: str, pixels: np.ndarray, boxes: list[Box], mirror: bool, board: Any) -> None:
    from busray.model.base import load_pipeline
    from busray.model.latents import encode_images

    use_threads(job.threads)
    beat = Pulse(board)
    beat()
    pipe = load_pipeline(job.base, job.device, "float32")
    told = 0

    def progress(done: int, total: int) -> None:
        nonlocal told
        beat(done - told)
        told = done

    encoded = encode_images(pipe, pixels, boxes, mirror=mirror, batch_size=job.sampling.batch_size, progress=progress)
    job.store.put_once(job.latents[split], encoded.to_bytes())
    beat.rest()


def _train(run: Run, job: FinetuneJob) -> None:
    """Fit until the adapters are there. Ray counts a lost node as a failure; here only failures in a row that bring no
    newer checkpoint count, so that preemptions do not end a run and a fault that repeats does."""
    failures = 0
    while read_adapters(run.store) is None:
        newest = newest_checkpoint(run.store)
        before = newest.step if newest else 0
        try:
            _fit(run, job, before)
        except ray.train.TrainingFailedError as error:
            cause = _cause(error)
            if isinstance(cause, UserError):
                raise cause from error
            newest = newest_checkpoint(run.store)
            failures = 0 if newest and newest.step > before else failures + 1
            if failures == MAX_FAILURES:
                raise Stopped(
                    f"finetune: {failures} failures in a row without a new checkpoint, the last one: {brief(cause)}"
                ) from error


def _fit(run: Run, job: FinetuneJob, at: int) -> None:
    from ray.train.torch import TorchConfig, TorchTrainer  # here, since it imports torch

    cluster = run.config.cluster
    gpus = cluster.gpus_per_actor
    resources = {"CPU": cluster.cpus_per_actor, **({"GPU": gpus} if gpus else {})}
    fewest, most = job.adapters.num_workers
    filesystem, path = run.store.arrow()
    with watched(run.tell, "finetune", job.adapters.steps, at) as board:
        trainer = TorchTrainer(
            _worker,
            train_loop_config={"job": job, "board": board, "started_at": at},
            torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=most if fewest == most else (fewest, most),
                use_gpu=bool(gpus),
                resources_per_worker=resources,
            ),
            run_config=RunConfig(
                name=f"finetune-{uuid.uuid4().hex[:12]}",  # Ray's own state is this fit's alone; ours is in Store
                storage_path=f"{path}/ray",
                storage_filesystem=filesystem,
                failure_config=FailureConfig(max_failures=0),
            ),
        )
        supervised(board, "finetune", cluster.hang_seconds, trainer.fit)


def _cause(error: BaseException) -> BaseException:
    """A user's mistake found in a worker ends like one found here."""
    for failure in getattr(error, "worker_failures", {}).values():
        if isinstance(failure, UserError):
            return failure
    return error


def _worker(loop: dict[str, Any]) -> None:
    from busray.model.base import load_pipeline
    from busray.model.finetune import FineTuner
    from busray.model.latents import EncodedImages

    job: FinetuneJob = loop["job"]
    use_threads(job.threads)
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    encoded = {split: EncodedImages.from_bytes(job.store.read(key)) for split, key in job.latents.items()}
    tuner = FineTuner(
        load_pipeline(job.base, job.device, "float32"),
        job.adapters,
        job.tokens,
        job.initializers,
        encoded["train"],
        job.captions["train"],
        job.seed,
    )
    checkpoint = _same_everywhere(newest_checkpoint(job.store) if rank == 0 else None, world)
    log = TrainingLog()
    start = 0
    if checkpoint is not None:
        tuner.load_state(checkpoint.state)
        start, log = checkpoint.step, checkpoint.log
    log = replace(log, workers=(*log.workers, (start, world)))
    losses: list[float] = []
    board, beat = loop["board"], Pulse(loop["board"])
    beat_for_all = partial(beat, for_all=True)  # while this worker looks, the others wait for its next gradients
    for step in range(start, job.adapters.steps):
        loss = tuner.accumulate(step, range(rank, job.adapters.batch_size, world))
        losses.append(_add_up(tuner.trainable(), loss, world) / job.adapters.batch_size)
        tuner.apply(step)
        done = step + 1
        last = done == job.adapters.steps
        if rank:
            beat()
            continue
        board.put.remote(done - loop["started_at"], beat.me)
        if done % LOG_EVERY == 0 or last:
            log = replace(log, loss=(*log.loss, (done, float(np.mean(losses)))))
            losses.clear()
        if done % job.adapters.validate_every == 0 or last:
            beat_for_all()
            with tuner.released():
                value = tuner.validation_loss(encoded["val"], job.captions["val"], beat_for_all)
                _draw_grid(job, tuner, done, beat_for_all)
            log = replace(log, validation=(*log.validation, (done, value)))
        if done % job.adapters.checkpoint_every == 0 or last:
            put_checkpoint(job.store, Checkpoint(done, tuner.state_bytes(), log))
    if rank == 0:
        _commit(job, tuner, log)
    beat.rest()
    ray.train.report({"step": job.adapters.steps})


def _same_everywhere(checkpoint: Checkpoint | None, world: int) -> Checkpoint | None:
    """Rank 0's checkpoint on every rank, so that a newer one written meanwhile cannot split them."""
    if world == 1:
        return checkpoint
    import torch.distributed as dist

    box = [checkpoint]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def _add_up(parameters: Any, loss: float, world: int) -> float:
    """Sum gradients and loss over the workers in one message; returns the summed loss."""
    import torch

    if world == 1:
        return loss
    grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    flat = torch.cat([*(g.reshape(-1).float() for g in grads), torch.tensor([loss], device=grads[0].device)])
    torch.distributed.all_reduce(flat)
    at = 0
    for parameter, grad in zip(parameters, grads, strict=True):
        parameter.grad = flat[at : at + grad.numel()].view_as(grad).to(grad.dtype)
        at += grad.numel()
    return float(flat[-1])


def _draw_grid(job: FinetuneJob, tuner: Any, step: int, beat: Callable[[], None]) -> None:
    """Images to look at, put into the store; beat is called after each class."""
    from busray.corpus.encode import png_bytes
    from busray.model.sample import Sampler
    from busray.report.contact_sheet import contact_sheet

    sampling = job.sampling.model_copy(update={"steps": min(job.sampling.steps, 20), "batch_size": GRID_IMAGES})
    sampler = Sampler(tuner.sample_pipe(), sampling, None, job.base.size, keep_txt2img=False)
    names = sorted({spec.class_name for spec in job.grid})
    rows = []
    for name in names:
        specs = [spec for spec in job.grid if spec.class_name == name]
        rows.append([png_bytes(drawn.image, {}) for drawn in sampler.draw(specs)])
        beat()
    job.store.replace(f"finetune/grids/{step:08d}.png", contact_sheet(rows, [], row_labels=names))


def _commit(job: FinetuneJob, tuner: Any, log: TrainingLog) -> None:
    from busray.model.adapters import adapter_sha256

    metadata = {**job.metadata, "step": job.adapters.steps}
    files = tuner.adapter_files(metadata)
    record = {**metadata, "sha256": adapter_sha256(files), **asdict(log)}
    commit_adapters(job.store, files, record)
