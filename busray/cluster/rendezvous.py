"""How training workers on one machine find each other: by a file. Imports torch.

Ray lets the first worker open a TCP store, which listens on all interfaces and asks for no token.
"""

import uuid
from dataclasses import dataclass
from typing import Any

import ray
from ray.train.torch import TorchConfig
from ray.train.torch import config as of_ray


@dataclass
class InOneFolder(TorchConfig):
    """Of workers that all see `folder`, which nobody else may write."""

    folder: str = ""

    @property
    def backend_cls(self) -> type:
        return _InOneFolder


class _InOneFolder(of_ray._TorchBackend):
    def on_start(self, worker_group: Any, backend_config: InOneFolder) -> None:
        worker_group.execute(of_ray._set_torch_distributed_env_vars)
        file = f"file://{backend_config.folder}/workers-{uuid.uuid4().hex}"
        started = []
        for rank in range(len(worker_group)):
            started.append(
                worker_group.execute_single_async(
                    rank,
                    of_ray._setup_torch_process_group,
                    backend=backend_config.backend,
                    world_rank=rank,
                    world_size=len(worker_group),
                    init_method=file,
                    timeout_s=backend_config.timeout_s,
                )
            )
        ray.get(started)
