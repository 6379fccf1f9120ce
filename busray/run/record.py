"""A run: its settings, storage, checked data set and pinned base."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from busray.cluster.session import Tell
from busray.config import Config
from busray.data.images import ImageFolder
from busray.data.templates import fill
from busray.model.base import BaseIdentity
from busray.records import DataSet, SourceImage, to_json
from busray.run.images import cache_folder
from busray.storage import Store
from busray.vision.extractors import Extractor

T = TypeVar("T")
TIMINGS = "timings.json"


@dataclass(frozen=True)
class Run:
    """What every stage is handed. `folder` is the local folder of real images."""

    config: Config
    store: Store
    tell: Tell
    dataset: DataSet
    folder: Path
    base: BaseIdentity
    extractors: dict[str, Extractor]
    """By name, in the order of evaluate.extractors; none where the work measures nothing."""
    command: str = ""

    @property
    def images(self) -> ImageFolder:
        """The data set with the folder of its images."""
        return ImageFolder(self.dataset, self.folder, tuple(self.config.classes))

    @property
    def log_file(self) -> Path:
        """Where Ray's own messages go: beside a local run, else into the cache folder."""
        return (Path(self.store.url) if self.store.local else cache_folder(self.store.url)) / "ray.log"

    def captions(self, images: tuple[SourceImage, ...]) -> list[str]:
        tokens = self.config.tokens()
        return [
            fill(
                self.config.caption(image.class_name),
                token=tokens[image.class_name] if self.config.uses_tokens else self.stand_in(image.class_name),
                class_name=image.class_name,
                columns=image.columns,
            )
            for image in images
        ]

    def stand_in(self, class_name: str) -> str:
        return self.config.classes[class_name].initializer


def timed(run: Run, stage: str, work: Callable[[], T]) -> T:
    """Run a stage and keep its longest wall time: a rerun that finds everything done does not overwrite it."""
    started = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - started
    timings = json.loads(run.store.read_or_none(TIMINGS) or b"{}")
    if seconds > timings.get(stage, 0):
        timings[stage] = seconds
        run.store.replace(TIMINGS, to_json(timings))
    return result
