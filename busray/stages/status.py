"""What the store alone says of a run, from any machine, while it is drawn or after.

Few requests, however large the run is: listings, the plan, and at most RECORDS_READ records of a
corpus. A copy of a run has the copy's times, so its images an hour mean nothing.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from busray.corpus.arms import corpora
from busray.corpus.commit import RECORDS_READ, sampled_commits
from busray.corpus.pace import Sampled, drawing_hours, hours_left, images_per_hour, quarantined
from busray.corpus.plan import read_segments
from busray.layout import CONFIG, commit_key, committed_shard
from busray.model.checkpoints import FOLDER as CHECKPOINTS
from busray.records import Shard, UserError, json_object
from busray.run.progress import Driver, drivers
from busray.storage import Store

NOTES_SHOWN = 5
RELEASED = "released"
SUB_RUNS = ("methods", "points")
"""Folders of an ablation's sub-runs."""


@dataclass(frozen=True)
class ClassStatus:
    """A class of a corpus. Images; quarantined ones count as committed, as their shard is done."""

    class_name: str
    planned: int
    committed: int
    per_hour: float  # over the last ten minutes
    hours_left: float | None  # None while nothing is drawn


@dataclass(frozen=True)
class CorpusStatus:
    """The released corpus or an arm."""

    name: str
    classes: tuple[ClassStatus, ...]
    per_hour: float  # images of all classes
    hours_left: float | None
    is_planned: bool  # False: no plan is stored yet, and `planned` is what the settings ask for
    shards: int  # committed
    newest: float | None  # Unix seconds of the newest record
    quarantined: Sampled
    reasons: tuple[tuple[str, str], ...]  # (image id, reason) of some quarantined images
    hours: Mapping[str, Sampled]  # device -> hours of drawing
    unreadable: tuple[str, ...]  # records of the sample that are damaged


@dataclass(frozen=True)
class RunStatus:
    """What `busray status` prints."""

    url: str
    now: float  # Unix seconds
    corpora: tuple[CorpusStatus, ...]
    drivers: tuple[Driver, ...]  # the newest first
    checkpoint: tuple[int, float | None] | None  # (optimiser step, Unix seconds) of the newest
    gpus_per_actor: float

    @property
    def notes(self) -> list[tuple[float, str]]:
        """(time, message) of drivers' last errors, warnings and messages, the newest first."""
        found: list[tuple[float, str]] = []
        for driver in self.drivers:
            word = driver.word
            found += word.notes
            if word.ended not in (None, "done"):
                found.append((word.time, f"ended: {word.ended}"))
        return sorted(found, reverse=True)[:NOTES_SHOWN]

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "notes": self.notes, "lives": any(driver.lives for driver in self.drivers)}


def read_status(store: Store, now: float) -> RunStatus:
    """now: Unix seconds. UserError where there is no run."""
    stored = store.read_or_none(CONFIG)
    if stored is None:
        raise UserError(f"{store.url}: no run there (no {CONFIG})")
    asked, gpus = store.parsed(CONFIG, stored, _asked_for)
    spoke = drivers(store, now)
    began = min((driver.word.started for driver in spoke if driver.lives), default=None)
    found: list[CorpusStatus] = []
    for name, corpus in _all_corpora(store).items():
        wanted = asked if name == RELEASED else {}  # of the others, the plan is the first that is stored
        found.append(_corpus_status(corpus, name, wanted, now, began))
    return RunStatus(
        url=store.url,
        now=now,
        corpora=tuple(found),
        drivers=tuple(spoke),
        checkpoint=_newest_checkpoint(store),
        gpus_per_actor=gpus,
    )


def _asked_for(data: bytes) -> tuple[dict[str, int], float]:
    """(class -> images, GPUs of an actor) of stored settings. Nothing else is looked at, so that
    the settings of a newer busray can be read too."""
    settings = json_object(data)
    images = {name: int(of_class["images"]) for name, of_class in settings["classes"].items()}
    gpus = settings["cluster"]["gpus_per_actor"]
    return images, 1.0 if gpus == "auto" else float(gpus)


def _all_corpora(store: Store) -> dict[str, Store]:
    """name -> corpus: the released one, the arms, and those of an ablation's sub-runs."""
    found = {prefix.removeprefix("arms/") or RELEASED: corpus for prefix, corpus in corpora(store).items()}
    for folder in SUB_RUNS:
        for name in store.folders(folder):
            below = store.sub(f"{folder}/{name}")
            for prefix, corpus in corpora(below).items():
                found[f"{name} {prefix.removeprefix('arms/')}".strip()] = corpus
    return found


def _corpus_status(store: Store, name: str, wanted: Mapping[str, int], now: float, began: float | None) -> CorpusStatus:
    written: list[tuple[Shard, float | None]] = []
    for key, time in store.modified("commits").items():
        try:
            written.append((committed_shard(key), time))
        except ValueError:
            continue  # a file of others, which `busray verify` names
    newest = max((time for _, time in written if time is not None), default=None)
    if newest is not None:
        now = max(now, newest)  # the store's clock may be ahead of this machine's
    segments = read_segments(store)
    planned = dict.fromkeys(wanted, 0)
    for segment in segments:
        planned[segment.class_name] = planned.get(segment.class_name, 0) + segment.count
    classes: list[ClassStatus] = []
    for class_name, images in (planned if segments else wanted).items():
        mine = [(time, shard.count) for shard, time in written if shard.class_name == class_name]
        committed = sum(count for _, count in mine)
        per_hour = images_per_hour([(time, count) for time, count in mine if time is not None], now, began)
        classes.append(ClassStatus(class_name, images, committed, per_hour, hours_left(images - committed, per_hour)))
    pace = sum(one.per_hour for one in classes)
    left = sum(max(0, one.planned - one.committed) for one in classes)
    commits, unreadable = sampled_commits(store, [shard for shard, _ in written], RECORDS_READ)
    images, records = sum(shard.count for shard, _ in written), len(written)
    reasons = [reject for commit in commits for reject in commit.rejects]
    return CorpusStatus(
        name=name,
        classes=tuple(classes),
        per_hour=pace,
        hours_left=hours_left(left, pace),
        is_planned=bool(segments),
        shards=records,
        newest=newest,
        quarantined=quarantined(commits, images, records),
        reasons=tuple(reasons[:NOTES_SHOWN]),
        hours=drawing_hours(commits, images, records),
        unreadable=tuple(map(commit_key, unreadable)),
    )


def _newest_checkpoint(store: Store) -> tuple[int, float | None] | None:
    records = {key: time for key, time in store.modified(CHECKPOINTS).items() if key.endswith(".json")}
    if not records:
        return None
    newest = max(records)
    return int(newest.rpartition("/")[2].removesuffix(".json")), records[newest]
