"""What a run computes on, where cluster.gpus_per_actor=auto leaves it to busray, in one line."""

from dataclasses import replace

from busray.cluster.session import gpus_here, is_own, machines
from busray.config import Config
from busray.model.device import number_format
from busray.run.record import Run


def with_devices(run: Run) -> tuple[Run, str]:
    """(the run with a number in place of `auto`, what it computes on). What is stored of the
    settings stays as it was given: another machine may go on with the run."""
    config, said = choose_devices(run.config)
    return replace(run, config=config), said


def choose_devices(config: Config) -> tuple[Config, str]:
    """(settings with a number in place of `auto`, what will be computed on).

    UserError where a cluster that is named cannot be joined.
    """
    cluster, found = config.cluster, ""
    if cluster.gpus_per_actor == "auto":
        gpus, where = (gpus_here(), "this machine") if is_own(cluster) else _gpus_of_cluster(config)
        found = f" ({gpus} GPUs on {where})" if gpus != 1 else f" (1 GPU on {where})"
        cluster = cluster.model_copy(update={"gpus_per_actor": 1.0 if gpus else 0.0})
        config = config.model_copy(update={"cluster": cluster})
        if gpus and is_own(cluster):
            config = _as_many_trainers_as_gpus(config, gpus)
    return config, _line(config, found)


def _gpus_of_cluster(config: Config) -> tuple[int, str]:
    where, nodes = machines(config.cluster)
    return int(sum(gpus for _, gpus in nodes)), where


def _as_many_trainers_as_gpus(config: Config, gpus: int) -> Config:
    """NCCL refuses two training workers on one GPU; the batch of all of them stays the same."""
    fewest, most = config.adapters.num_workers
    workers = (min(fewest, gpus), min(most, gpus))
    return config.model_copy(update={"adapters": config.adapters.model_copy(update={"num_workers": workers})})


def _line(config: Config, found: str) -> str:
    on_gpu = config.cluster.gpus > 0
    device = f"{config.cluster.gpus:g} GPU an actor" if on_gpu else "CPU"
    line = f"computes on: {device}{found}; draws in {_drawing_format(config, on_gpu)}, "
    line += f"batches of {config.sampling.batch_size}"
    if on_gpu and config.base.dtype == "float32":
        line += "; base.dtype=auto draws faster on a GPU"
    return line


def _drawing_format(config: Config, on_gpu: bool) -> str:
    dtype = config.base.dtype
    if dtype != "auto":
        return dtype
    if not on_gpu:
        return "float32, or bfloat16 where that is faster"  # each worker finds it out
    return number_format(dtype, "cuda") if is_own(config.cluster) else "bfloat16, or float16 on an older GPU"
