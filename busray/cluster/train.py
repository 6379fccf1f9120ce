"""Training on Ray Train: each worker takes some positions of every batch; gradients are summed."""

import uuid
from functools import partial
from typing import Any

import ray
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig

from busray import config
from busray.cluster.liveness import Heartbeat
from busray.cluster.session import use_threads
from busray.failures import cause_in_words
from busray.processes import own_folder
from busray.records import UserError
from busray.workers import Training, TrainingFailed


def fit(settings: config.Cluster, training: Training, liveness: Any, done: int) -> None:
    """Train to the end once, with as many workers as there is room for, of fewest to most.

    Raises UserError where a worker found a mistake, TrainingFailed where one failed or was lost.
    """
    # Here, since they import torch.
    from ray.train.torch import TorchConfig, TorchTrainer

    from busray.cluster.rendezvous import InOneFolder

    gpus, folder = settings.gpus, own_folder()
    backend = "nccl" if gpus else "gloo"
    resources = {"CPU": settings.cpus_per_actor}
    if gpus:
        resources["GPU"] = gpus
    fewest, most = training.num_workers
    filesystem, path = training.scratch()
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={
            "training": training,
            "liveness": liveness,
            "threads": settings.threads,
            "done": done,
        },
        torch_config=TorchConfig(backend) if folder is None else InOneFolder(backend, folder=str(folder)),
        scaling_config=ScalingConfig(
            num_workers=most if fewest == most else (fewest, most),
            use_gpu=bool(gpus),
            resources_per_worker=resources,
        ),
        run_config=RunConfig(
            # A new name each time: Ray must not resume a state of its own, ours is in the store.
            name=f"finetune-{uuid.uuid4().hex[:12]}",
            storage_path=f"{path}/ray",
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=0),  # the stage decides whether to try again
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        for failure in getattr(error, "worker_failures", {}).values():
            if isinstance(failure, UserError):
                raise failure from error
        raise TrainingFailed(cause_in_words(error)) from error


def train_worker(arguments: dict[str, Any]) -> None:
    """What each worker runs: its share of each step, from the newest checkpoint to the end."""
    training: Training = arguments["training"]
    use_threads(arguments["threads"])
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    beat = Heartbeat(arguments["liveness"])
    # While rank 0 validates, the others wait for its next gradients and cannot beat.
    beat_for_all = partial(beat, for_all=True)

    loop = training.start(world)
    # A newer checkpoint that is written meanwhile must not split the workers.
    checkpoint = from_first(loop.checkpoint() if rank == 0 else None, world)
    if checkpoint is not None:
        loop.resume(checkpoint)
    if rank == 0:
        loop.begin(beat_for_all)
    over = loop.over
    while loop.step < training.steps and not over:
        loss = loop.accumulate(range(rank, training.batch_size, world))
        loop.apply(add_up(loop.parameters(), loss, world))
        if rank == 0:
            beat.set(loop.step - arguments["done"])
            loop.record(beat_for_all)
        else:
            beat()
        if loop.may_end:
            over = from_first(loop.over, world)
    if rank == 0:
        loop.commit()
    beat.idle()
    ray.train.report({"step": loop.step})


def from_first(value: Any, world: int) -> Any:
    """Rank 0's value on every rank."""
    if world == 1:
        return value
    import torch.distributed as dist

    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def add_up(parameters: Any, loss: float, world: int) -> float:
    """Sum gradients and loss over the workers in one message; returns the summed loss."""
    import torch

    if world == 1:
        return loss
    parts = []
    for parameter in parameters:
        if parameter.grad is None:  # a worker without positions in this batch
            parameter.grad = torch.zeros_like(parameter)
        parts.append(parameter.grad.reshape(-1).float())
    flat = torch.cat([*parts, torch.tensor([loss], device=parts[0].device)])
    torch.distributed.all_reduce(flat)
    sums = flat[:-1].split([len(part) for part in parts])
    for parameter, total in zip(parameters, sums, strict=True):
        parameter.grad = total.view_as(parameter.grad).to(parameter.grad.dtype)
    return float(flat[-1])
