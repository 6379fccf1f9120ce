"""What a stage may ask of a cluster. Nothing here knows Ray.

`cluster/` has the Workers that run on Ray; those of tests/support/workers.py need one process.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from busray.records import Shard

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

Report = Callable[[str, int, int], None]
"""Progress for people: report(stage, done, total); report(words, 0, 0) for a message."""
Kind = Literal["model", "cpu", "core"]
"""What one worker gets: an actor's CPUs and GPUs; its CPUs alone; one CPU (then there are as many
workers as the actors have CPUs)."""


def ignored(commit: Any) -> None:
    """A `seen` of a DrawStage that looks at nothing."""


class Beat(Protocol):
    """A worker's sign of life, with how many more items are done; called as often as possible."""

    def __call__(self, n: int = 0, /) -> None: ...


Work = Callable[[Any, Beat], None]
"""What a worker of a pool does with one item."""


class Shared(Protocol[T_co]):
    """A value that was put where workers can read it; pickled, it is only a reference."""

    def get(self) -> T_co: ...


class Drawing(Protocol):
    """One corpus to draw; travels pickled to the workers. Its drawn shards are of any type."""

    def labels(self) -> Mapping[str, str]:
        """`arm`, and `device` of the process that asks: tags of its metrics."""
        ...

    def is_committed(self, shard: Shard) -> bool: ...

    def start(self) -> Callable[[Shard, Beat], Any]:
        """Load the models, once in each worker; the result draws one shard."""
        ...

    def commit(self, drawn: Any, beat: Beat) -> Any:
        """Encode, hash, put and record a drawn shard; the result travels to `seen` of the stage.
        beat: where this takes long; it counts nothing."""

    def quarantine(self, shard: Shard, reason: str) -> Any:
        """Record a shard that cannot be drawn: it is done, and all its images are quarantined."""


class TrainingLoop(Protocol):
    """A training that one worker takes part in: the state between two optimiser steps."""

    step: int  # steps done

    def checkpoint(self) -> Any:
        """The newest usable checkpoint in the store, or None."""

    def resume(self, checkpoint: Any) -> None: ...

    def begin(self, beat: Beat) -> None:
        """What is done before the first step. Only the first worker calls it."""

    @property
    def over(self) -> bool:
        """Training ends here, before its last step. All know it of a checkpoint; later only the
        first worker does, and it tells the others after a step that may_end."""
        ...

    @property
    def may_end(self) -> bool:
        """After the present step `over` may be true; the same in every worker."""
        ...

    def parameters(self) -> Sequence[Any]:
        """The trainable tensors, whose gradients the workers add up."""
        ...

    def accumulate(self, positions: range) -> float:
        """Gradients of the batch's samples at these positions; returns their summed loss."""
        ...

    def apply(self, loss: float) -> None:
        """One optimiser step; loss is the sum over the whole batch."""

    def record(self, beat: Beat) -> None:
        """Log, validate and keep a checkpoint where one is due. Only the first worker calls it."""

    def commit(self) -> None:
        """Put what was trained. Only the first worker calls it."""


class Training(Protocol):
    """What is to be trained; travels pickled to the workers."""

    @property
    def steps(self) -> int: ...

    @property
    def batch_size(self) -> int: ...

    @property
    def num_workers(self) -> tuple[int, int]:
        """(fewest, most)."""
        ...

    def scratch(self) -> tuple[Any, str]:
        """(pyarrow file system, path) that all workers reach, for the trainer's own state."""
        ...

    def start(self, world: int) -> TrainingLoop:
        """Load models and data, once in each of `world` workers."""
        ...


@dataclass(frozen=True)
class DrawStage:
    """What Workers.draw does."""

    name: str
    drawing: Drawing
    shards: Sequence[Shard]  # begun in this order
    planned: int  # images of the whole corpus, for the progress
    first: Sequence[Shard] = ()  # of the shards, those that are drawn before any other
    # Called in the driver with what each commit returned; an error that it raises ends the stage
    seen: Callable[[Any], None] = ignored

    @property
    def done(self) -> int:
        """Images that were drawn before."""
        return self.planned - sum(shard.count for shard in self.shards)


class Workers(Protocol):
    """Runs a stage's work elsewhere, reports its progress and ends what hangs. A call raises
    UserError for a mistake that a worker found, Stopped for anything else that failed there."""

    report: Report
    device: str  # `cuda` or `cpu`: what workers of the kind `model` compute on

    def labelled(self, prefix: str) -> "Workers":
        """The same workers, whose stages are reported as `<prefix>: <stage>`."""
        ...

    def share(self, value: T) -> Shared[T]: ...

    def call(self, stage: str, total: int, task: Callable[..., T], *arguments: Any, kind: Kind = "cpu") -> T:
        """task(beat, *arguments) in one worker. `total`: how many items beat will count."""
        ...

    def call_all(
        self, stage: str, total: int, task: Callable[..., T], items: Sequence[Any], *arguments: Any, done: int = 0
    ) -> list[Shared[T]]:
        """task(beat, item, *arguments) for each item, side by side; the first failure ends all.
        `total` and `done`: items of the whole stage, and those of them that were done before."""
        ...

    def map(self, stage: str, total: int, start: Callable[[], Work], items: Sequence[Any], kind: Kind) -> None:
        """start() once in each worker of a pool, then its result for each item."""

    def draw(self, stage: "DrawStage") -> None:
        """Draw and commit shards, and report an image as done when it is committed."""

    def train(self, stage: str, training: Training, *, done: int) -> None:
        """Train to the end once. Raises TrainingFailed where workers were lost or failed."""


class TrainingFailed(Exception):
    """Training ended before its last step through a failure or the loss of a worker."""
