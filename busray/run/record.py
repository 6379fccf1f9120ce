"""A run: its settings, storage, checked data set and pinned base."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from busray.config import Config
from busray.data.images import ImageFolder
from busray.data.templates import fill
from busray.layout import TIMINGS
from busray.model.base import BaseIdentity
from busray.records import DataSet, SourceImage, to_json
from busray.run.images import cache_folder
from busray.storage import Store
from busray.vision.extractors import Extractor

T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """What the entry point of every stage gets."""

    config: Config
    store: Store
    images: ImageFolder
    """The checked data set and its images on the local disk."""
    base: BaseIdentity
    extractors: dict[str, Extractor]
    """By name, in the order of evaluate.extractors; empty where the work measures nothing."""
    command: str = ""
    """The command line, for the report."""

    @property
    def dataset(self) -> DataSet:
        return self.images.dataset

    @property
    def log_file(self) -> Path:
        """Where Ray's own messages go: beside a local run, else into the cache folder."""
        return (Path(self.store.url) if self.store.local else cache_folder(self.store.url)) / "ray.log"

    def captions(self, images: tuple[SourceImage, ...]) -> list[str]:
        """The training caption of each image."""
        tokens = self.config.tokens()
        return [
            fill(
                self.config.caption(image.class_name),
                token=tokens[image.class_name] if self.config.uses_tokens else self.token_text(image.class_name),
                class_name=image.class_name,
                columns=image.columns,
            )
            for image in images
        ]

    def token_text(self, class_name: str) -> str:
        """The plain words that stand where a prompt says {token}, if no token is learned."""
        return self.config.classes[class_name].initializer


def timed(run: Run, stage: str, work: Callable[[], T]) -> T:
    """Do a stage's work and keep its longest wall time in timings.json.

    The longest, so that a rerun that finds everything done does not overwrite the time of the work.
    """
    started = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - started
    timings = json.loads(run.store.read_or_none(TIMINGS) or b"{}")
    if seconds > timings.get(stage, 0):
        timings[stage] = seconds
        run.store.replace(TIMINGS, to_json(timings))
    return result
