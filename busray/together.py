"""Several corpora drawn by one pool of workers: a worker that has drawn the last shard of one loads
the models of the next, in the same process and without giving its place up."""

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from busray.records import Shard
from busray.workers import Beat, Drawing


@dataclass(frozen=True)
class PlacedShard(Shard):
    """A shard of one of several corpora. Its name is for messages and counts, not for keys."""

    corpus: int  # the place of its corpus among the others

    @property
    def name(self) -> str:
        return f"{super().name} of corpus {self.corpus}"

    @property
    def plain(self) -> Shard:
        return Shard(self.class_name, self.first, self.count)


def placed(shards: Sequence[Shard], corpus: int) -> list[PlacedShard]:
    return [PlacedShard(shard.class_name, shard.first, shard.count, corpus) for shard in shards]


@dataclass(frozen=True)
class Together:
    """A workers.Drawing of PlacedShards. Its commits are (place of the corpus, its own commit)."""

    drawings: tuple[Drawing, ...]

    def each(self, wrap: Callable[[Drawing], Drawing]) -> "Together":
        return Together(tuple(map(wrap, self.drawings)))

    def labels(self) -> Mapping[str, str]:
        return self.drawings[0].labels()

    def is_committed(self, shard: Any) -> bool:
        return self.drawings[shard.corpus].is_committed(shard.plain)

    def start(self) -> Callable[[Any, Beat], tuple[int, Any]]:
        return _OneAtATime(self.drawings)

    def commit(self, drawn: tuple[int, Any], beat: Beat) -> tuple[int, Any]:
        corpus, shard = drawn
        return corpus, self.drawings[corpus].commit(shard, beat)

    def quarantine(self, shard: Any, reason: str) -> tuple[int, Any]:
        return shard.corpus, self.drawings[shard.corpus].quarantine(shard.plain, reason)


class _OneAtATime:
    """The models of one corpus; those of another replace them when its first shard comes."""

    def __init__(self, drawings: Sequence[Drawing]) -> None:
        self.drawings = drawings
        # What cannot be loaded is found here, where a worker starts.
        self.corpus, self.draw = 0, drawings[0].start()

    def __call__(self, shard: PlacedShard, beat: Beat) -> tuple[int, Any]:
        if self.draw is None or shard.corpus != self.corpus:
            self.draw = None
            gc.collect()  # two sets of models may not fit into a GPU
            beat()
            self.corpus, self.draw = shard.corpus, self.drawings[shard.corpus].start()
        return shard.corpus, self.draw(shard.plain, beat)
