"""A run: its settings, storage, checked data set and pinned base."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from busray.config import Config
from busray.data.images import ImageFolder
from busray.data.templates import fill
from busray.layout import LOG, TIMINGS
from busray.model.base import BaseIdentity
from busray.records import Damaged, DataSet, SourceImage, json_object, to_json
from busray.run.images import cache_folder
from busray.storage import Store
from busray.vision.extractors import Extractor

T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """What the entry point of every stage gets."""

    config: Config
    store: Store
    images: ImageFolder  # the checked data set and its images on the local disk
    base: BaseIdentity
    # By name, in the order of evaluate.extractors; empty where the work measures nothing
    extractors: dict[str, Extractor]
    command: str = ""  # the command line, for the report
    # A line on what each file of the data folder is, and one on adapters of part of the layers
    account: str = ""

    @property
    def dataset(self) -> DataSet:
        return self.images.dataset

    @property
    def log_file(self) -> Path:
        """Where Ray's messages go: beside a local run, else into the cache folder."""
        url = self.store.url
        return (Path(url) if self.store.local else cache_folder(url)) / LOG

    def captions(self, images: tuple[SourceImage, ...]) -> list[str]:
        """The training caption of each image."""
        tokens, captions = self.config.tokens(), []
        for image in images:
            name = image.class_name
            token = tokens[name] if self.config.uses_tokens else self.token_text(name)
            caption = self.config.caption(name)
            captions.append(fill(caption, token=token, class_name=name, columns=image.columns))
        return captions

    def token_text(self, class_name: str) -> str:
        """The plain words that stand where a prompt says {token}, if no token is learned."""
        return self.config.classes[class_name].initializer


def read_timings(store: Store) -> dict[str, float]:
    """stage -> seconds. A damaged timings.json must not end finished work: it counts as empty."""
    try:
        return store.read_record_or_none(TIMINGS, json_object) or {}
    except Damaged as error:
        log.warning("%s; its timings are lost", error)
        return {}


def timed(run: Run, stage: str, work: Callable[[], T]) -> T:
    """Do a stage's work and keep its longest wall time in timings.json."""
    started = time.perf_counter()
    result = work()
    keep_seconds(run, stage, time.perf_counter() - started)
    return result


def keep_seconds(run: Run, stage: str, seconds: float) -> None:
    """A stage's wall time for timings.json, which has the longest one."""
    timings = read_timings(run.store)
    # A rerun that finds everything done must not overwrite the time that the work took.
    if seconds > timings.get(stage, 0):
        timings[stage] = seconds
        run.store.replace_checked(TIMINGS, to_json(timings))
