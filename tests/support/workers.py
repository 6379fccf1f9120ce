"""Workers of one process: a stage's work runs here and now, without Ray."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest

from busray.records import Stopped, UserError
from busray.workers import DrawStage, Kind, Report, Shared, Training
from tests.support.runs import quiet

T = TypeVar("T")


class Value:
    """A Shared that is the value itself."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def get(self) -> Any:
        return self.value


class InProcessWorkers:
    device = "cpu"

    def __init__(self, report: Report = quiet) -> None:
        self.report = report

    def labelled(self, prefix: str) -> "InProcessWorkers":
        return InProcessWorkers(lambda stage, done, total: self.report(f"{prefix}: {stage}", done, total))

    def share(self, value: T) -> Shared[T]:
        return Value(value)

    def call(self, stage: str, total: int, task: Callable[..., T], *arguments: Any, kind: Kind = "cpu") -> T:
        with self._reported(stage, total) as beat:
            return task(beat, *arguments)

    def call_all(
        self, stage: str, total: int, task: Callable[..., T], items: Sequence[Any], *arguments: Any, done: int = 0
    ) -> list[Shared[T]]:
        with self._reported(stage, total, done) as beat:
            return [Value(task(beat, item, *arguments)) for item in items]

    def map(self, stage: str, total: int, start: Callable[[], Any], items: Sequence[Any], kind: Kind) -> None:
        with self._reported(stage, total) as beat:
            work = start()
            for item in items:
                work(item, beat)

    def draw(self, stage: DrawStage) -> None:
        with self._reported(stage.name, stage.planned, stage.done) as beat:
            draw = stage.drawing.start()
            for shard in sorted(stage.shards, key=lambda shard: shard not in stage.first):
                if not stage.drawing.is_committed(shard):
                    stage.seen(stage.drawing.commit(draw(shard, lambda n=0: beat()), lambda n=0: beat()))
                beat(shard.count)  # an image counts when it is committed

    def train(self, stage: str, training: Training, *, done: int) -> None:
        with self._reported(stage, training.steps, done) as beat:
            loop = training.start(1)
            checkpoint = loop.checkpoint()
            if checkpoint is not None:
                loop.resume(checkpoint)
            loop.begin(beat)
            while loop.step < training.steps and not loop.over:
                loop.apply(loop.accumulate(range(training.batch_size)))
                loop.record(beat)
                beat(1)
            loop.commit()

    @contextmanager
    def _reported(self, stage: str, total: int, done: int = 0) -> Iterator[Callable[..., None]]:
        """A beat that reports what it counts; what fails ends as it does on Ray."""

        def beat(n: int = 0) -> None:
            nonlocal done
            done += n
            self.report(stage, done, total)

        try:
            beat()
            yield beat
        except (UserError, Stopped):
            raise
        except Exception as error:
            raise Stopped(f"{stage}: {error}") from error


@contextmanager
def commands_in_process() -> Iterator[None]:
    """Commands do the work of their stages in this process for the length of the block."""

    @contextmanager
    def workers(settings: Any, log_file: Any, report: Report) -> Iterator[InProcessWorkers]:
        yield InProcessWorkers(report)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("busray.cluster.pool.ray_workers", workers)
        yield
