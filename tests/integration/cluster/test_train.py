"""The Ray Train loop on a local Ray, with a training small enough to be checked by hand."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.fs
import pytest
import ray

from busray.cluster.pool import RayWorkers, ray_workers
from busray.config import Cluster
from busray.records import UserError
from busray.workers import Beat, TrainingFailed
from tests.support.runs import quiet
from tests.support.workers import InProcessWorkers

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test


@dataclass(frozen=True)
class Line:
    """A line fitted to four points; each step's gradient and loss are left in the folder."""

    folder: str
    num_workers: tuple[int, int] = (2, 2)
    steps: int = 4
    batch_size: int = 4
    ends_after: int | None = None
    error: Exception | None = None

    def scratch(self) -> tuple[Any, str]:
        return pyarrow.fs.LocalFileSystem(), self.folder

    def start(self, world: int) -> "LineLoop":
        return LineLoop(self, world)


class LineLoop:
    def __init__(self, training: Line, world: int) -> None:
        import torch

        self.training, self.world, self.step = training, world, 0
        self.weights = torch.nn.Parameter(torch.tensor([0.3, -0.2]))
        self.over = False

    def checkpoint(self) -> int | None:
        """Half-way, if a checkpoint is there; a rank that looked for itself would find another."""
        path = Path(self.training.folder) / "checkpoint"
        return int(path.read_text()) if path.exists() else None

    def resume(self, checkpoint: int) -> None:
        self.step = checkpoint

    def begin(self, beat: Beat) -> None:
        Path(self.training.folder, "begun").write_text(f"at {self.step}")

    @property
    def may_end(self) -> bool:
        return self.training.ends_after is not None

    def parameters(self) -> Sequence[Any]:
        return [self.weights]

    def accumulate(self, positions: range) -> float:
        if self.training.error is not None and positions[0] == 1:
            raise self.training.error
        total = 0.0
        for position in positions:
            x = (position + 1) / 3 + self.step
            loss = (self.weights[0] * x + self.weights[1] - position) ** 2
            loss.backward()
            total += float(loss.detach())
        return total

    def apply(self, loss: float) -> None:
        import torch

        assert self.weights.grad is not None
        self.gradient, self.loss = self.weights.grad.numpy().copy(), loss
        with torch.no_grad():
            self.weights -= 0.01 * self.weights.grad
        self.weights.grad = None
        self.step += 1

    def record(self, beat: Beat) -> None:
        np.save(f"{self.training.folder}/{self.step}.npy", [*self.gradient, self.loss])
        self.over = self.step == self.training.ends_after  # only the first worker comes here
        beat()

    def commit(self) -> None:
        Path(self.training.folder, "committed").write_text(f"{self.step} by {self.world}")
        sockets = psutil.Process().net_connections("inet")
        listening = {socket.laddr.ip for socket in sockets if socket.status == psutil.CONN_LISTEN}
        Path(self.training.folder, "listens-at").write_text(" ".join(sorted(listening)))


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[RayWorkers]:
    with ray_workers(Cluster(threads=1), tmp_path / "ray.log", quiet) as workers:
        yield workers


def steps(folder: Path) -> dict[int, np.ndarray]:
    return {int(path.stem): np.load(path) for path in folder.glob("*.npy")}


def test_two_workers_add_up_the_gradients_and_the_loss_of_one(workers: RayWorkers, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    InProcessWorkers().train("train", Line(str(tmp_path / "one")), done=0)
    workers.train("train", Line(str(tmp_path / "two")), done=0)
    one, two = steps(tmp_path / "one"), steps(tmp_path / "two")
    assert one.keys() == two.keys() == {1, 2, 3, 4}
    for step, values in one.items():
        np.testing.assert_allclose(two[step], values, rtol=1e-5)
    assert (tmp_path / "two" / "committed").read_text() == "4 by 2"
    assert (tmp_path / "two" / "begun").read_text() == "at 0"
    listening = (tmp_path / "two" / "listens-at").read_text().split()
    assert {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}


@pytest.mark.slow
def test_training_resumes_from_the_checkpoint_of_the_first_worker(workers: RayWorkers, tmp_path: Path) -> None:
    (tmp_path / "checkpoint").write_text("2")
    workers.train("train", Line(str(tmp_path), num_workers=(1, 1)), done=2)
    assert steps(tmp_path).keys() == {3, 4}


@pytest.mark.slow
def test_the_first_worker_ends_the_training_of_both(workers: RayWorkers, tmp_path: Path) -> None:
    workers.train("train", Line(str(tmp_path), ends_after=2), done=0)
    assert steps(tmp_path).keys() == {1, 2}
    assert (tmp_path / "committed").read_text() == "2 by 2"


@pytest.mark.slow
@pytest.mark.parametrize(("error", "raised"), [(UserError("a field"), UserError), (ValueError("odd"), TrainingFailed)])
def test_an_error_in_a_worker_is_the_users_mistake_or_a_failed_training(
    workers: RayWorkers, tmp_path: Path, error: Exception, raised: type[Exception]
) -> None:
    with pytest.raises(raised, match="a field" if raised is UserError else "odd"):
        workers.train("train", Line(str(tmp_path), error=error), done=0)
    assert not (tmp_path / "committed").exists()
