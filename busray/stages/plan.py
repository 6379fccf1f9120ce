"""What a run is going to cost, before it spends: counts from the settings and the store, rates from
a probe or from an earlier run's records. Reads only."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from busray.config import Config
from busray.config_file import validate
from busray.corpus.arms import (
    Source,
    arm_sources,
    arms_to_draw,
    corpora,
    images_compared,
    most_compared,
    released_arm,
)
from busray.corpus.commit import RECORDS_READ, committed_shards, sampled_commits
from busray.corpus.cost import (
    BLOCK_REQUESTS,
    SHARD_REQUESTS,
    Budget,
    Estimate,
    Rate,
    Total,
    Work,
    estimate,
    total,
    whole_gpu_hours,
)
from busray.corpus.plan import pending, read_segments, shard_size, shards
from busray.corpus.record import differences
from busray.data.read import scan
from busray.layout import CONFIG, DATASET, arm_prefix
from busray.records import Arm, DataSet, Segment, UserError, json_object
from busray.run.pieces import REAL_IMAGES_A_BLOCK
from busray.storage import Store
from busray.workers import Report

FEATURES = {"inception": 2048, "texture": 59}  # numbers (float32) of an image; DINOv2's depend on its weights


@dataclass(frozen=True)
class JobPlan:
    """What `busray plan` prints."""

    url: str
    drawing: tuple[Work, ...]
    features: tuple[Work, ...]
    notes: tuple[str, ...]  # what is not counted or not known, and why

    def estimates(self) -> list[Estimate]:
        return [estimate(work) for work in (*self.drawing, *self.features)]

    def total(self, price: float | None = None) -> Total:
        return total(self.estimates(), price)

    def to_dict(self, price: float | None, warnings: Sequence[str]) -> dict[str, Any]:
        works = (*self.drawing, *self.features)
        stages = [{**asdict(work), **asdict(estimate(work))} for work in works]
        sums = asdict(self.total(price))
        return {"url": self.url, "stages": stages, "total": sums, "notes": self.notes, "warnings": warnings}


@dataclass(frozen=True)
class Rates:
    """What is known of a config's speed."""

    drawing: Mapping[bool, Rate]  # whether refined -> rate
    extractors: Mapping[str, Rate]  # of evaluate.extractors -> rate
    notes: tuple[str, ...] = ()


UNKNOWN = Rates({}, {})


def rates_of(config: Config, run: str | None, report: Report, *, probe: bool) -> Rates:
    """By a probe on this machine; else of the records of `run`, or of the config's own output."""
    if not probe:
        return recorded_rates(config, Store(run or config.output), asked=run is not None)
    from busray.stages.probe import probe_device, probe_drawing, probe_extractors

    device = probe_device(config)
    drawing, images = probe_drawing(config, device, report)
    return Rates(drawing, probe_extractors(config, images, device, report))


def job_plan(config: Config, rates: Rates, store: Store | None = None) -> JobPlan:
    """The work that is left, with these rates. store: of the run, by default config.output.
    UserError where the data folder has a mistake."""
    store = store or Store(config.output)
    real = real_images(config, store)
    notes = [*rates.notes]
    released = Arm.parse(released_arm(config))
    images = {name: settings.images for name, settings in config.classes.items()}
    drawing = [_drawing(config, store, "corpus", images, rates.drawing.get(released.refined))]
    compared = compared_counts(config, real)
    for arm in arms_to_draw(config):
        prefix = arm_prefix(arm)
        rate = rates.drawing.get(Arm.parse(arm).refined)
        drawing.append(_drawing(config, store.sub(prefix), f"arm {arm}", compared, rate))
    features = [_features(config, name, compared, real, rates) for name in config.evaluate.extractors]
    if real is None:
        notes.append("not counted: features of real images, since dataset.path is not given")
    if config.corpus.gate:
        most = config.corpus.gate.attempts
        notes.append(f"corpus.gate draws an image up to {most} times; a probe counts one, records count what was drawn")
    notes.append("not counted: training, class gate and judge, nodes that start, models that load, lost nodes")
    return JobPlan(store.url, tuple(drawing), tuple(features), tuple(notes))


def real_images(config: Config, store: Store) -> dict[str, int] | None:
    """class -> real images; None where no folder is named."""
    dataset = store.read_record_or_none(DATASET, DataSet.from_json)
    if dataset is not None:
        labels = [image.class_name for image in dataset.split("all")]
    elif config.dataset.phantoms:
        return dict.fromkeys(config.classes, config.dataset.phantoms.images)
    elif config.dataset.path:
        if not Path(config.dataset.path).is_dir():
            raise UserError(f"dataset.path: no folder {config.dataset.path}; --dataset.path=FOLDER says where it lies")
        metadata = Path(config.dataset.metadata) if config.dataset.metadata else None
        found = scan(Path(config.dataset.path), config.folders(), metadata, config.dataset)
        labels = [image.class_name for image in found.images]
    else:
        return None
    return {name: labels.count(name) for name in config.classes}


def compared_counts(config: Config, real: Mapping[str, int] | None) -> dict[str, int]:
    """class -> images of each arm that figures look at."""
    drawn = [name for name, c in config.classes.items() if c.images]
    if real is None:  # as if there were enough of them
        return dict.fromkeys(drawn, most_compared(config))
    compared = images_compared(config, real)
    return {name: compared[name] for name in drawn}


def _drawing(config: Config, store: Store, name: str, images: Mapping[str, int], rate: Rate | None) -> Work:
    segments = read_segments(store)
    planned = dict.fromkeys(images, 0)
    for segment in segments:
        planned[segment.class_name] = planned.get(segment.class_name, 0) + segment.count
    missing = {class_name: max(0, wanted - planned[class_name]) for class_name, wanted in images.items()}
    size = _shard_size(config, sum(missing.values()), rate)
    for class_name, count in missing.items():
        if count:
            segments.append(Segment(class_name, planned[class_name], count, size or count))
    plan = shards(segments)
    left = pending(plan, committed_shards(store))
    units = tuple(shard.count for shard in left)
    requests = SHARD_REQUESTS * len(left)
    if config.corpus.format == "png":  # each image is an object of its own
        kept = 2 if config.corpus.keep_txt2img and config.refine else 1
        requests += kept * sum(units)
    return Work(
        name=name,
        units=units,
        done=sum(shard.count for shard in plan) - sum(units),
        workers=config.cluster.actors,
        gpus=config.cluster.gpus,
        rate=rate,
        requests=requests,
        is_cut=size is not None,
    )


def _features(
    config: Config,
    name: str,
    compared: Mapping[str, int],
    real: Mapping[str, int] | None,
    rates: Rates,
) -> Work:
    """Of every compared image of every arm, and of the real ones; with evaluate.whole_corpus of
    every released image. What is stored already is not looked for, so a resumed run may do less.

    The blocks are shards, cut as they are if all of them were drawn now.
    """
    parts: list[tuple[Rate | None, dict[str, int]]] = []
    for arm, source in arm_sources(config).items():
        if config.evaluate.whole_corpus and source == Source("", "image"):
            continue  # the images of the whole corpus are counted below
        parts.append((rates.drawing.get(Arm.parse(arm).refined), dict(compared)))
    if config.evaluate.whole_corpus:
        whole = {class_name: settings.images for class_name, settings in config.classes.items()}
        parts.append((rates.drawing.get(Arm.parse(released_arm(config)).refined), whole))
    units: list[int] = []
    is_cut = True
    for rate, images in parts:
        size = _shard_size(config, sum(images.values()), rate)
        is_cut &= size is not None
        for count in images.values():
            units += _cut(count, size or max(1, count))
    for count in (real or {}).values():
        units += _cut(count, REAL_IMAGES_A_BLOCK)
    cluster = config.cluster
    is_plain = name == "texture"  # arithmetic on one CPU
    workers = cluster.actors * max(1, int(cluster.cpus_per_actor)) if is_plain else cluster.actors
    return Work(
        name=f"features {name}",
        units=tuple(units),
        done=0,
        workers=workers,
        gpus=0.0 if is_plain else cluster.gpus,
        rate=rates.extractors.get(name),
        requests=BLOCK_REQUESTS * len(units),
        bytes_an_image=4.0 * FEATURES[name] if name in FEATURES else None,
        is_cut=is_cut,
    )


def _shard_size(config: Config, missing: int, rate: Rate | None) -> int | None:
    """As `generate` will choose it; None where it follows from a speed that is not known."""

    def seconds() -> float:
        if rate is None:
            raise _Unknown
        return rate.seconds

    try:
        return shard_size(config.corpus, config.sampling.batch_size, config.cluster.actors, missing, seconds)
    except _Unknown:
        return None


class _Unknown(Exception):
    """The speed is asked for, and nobody knows it."""


def _cut(images: int, size: int) -> list[int]:
    whole, rest = divmod(images, size)
    return [size] * whole + ([rest] if rest else [])


# ---- rates of records

DECIDES_TIME = (
    "base",
    "sampling",
    "refine",
    "corpus.gate",
    "cluster.threads",
    "cluster.gpus_per_actor",
)
"""Settings by which one image takes longer than another; an adapter is fused and costs nothing."""


def recorded_rates(config: Config, store: Store, *, asked: bool = False) -> Rates:
    """Rates of drawing of the records that a run has; without a rate where it has none.

    Only of records drawn with the settings that decide time: DECIDES_TIME. asked: the user named
    this run, so that one of no use is a UserError.
    """
    stored = store.read_record_or_none(CONFIG, json_object)
    if stored is None:
        if asked:
            raise UserError(f"--rates: {store.url}: no run there (no {CONFIG})")
        return UNKNOWN
    theirs, device = validate({**stored, "output": store.url}), ""
    if theirs.cluster.gpus_per_actor == "auto":  # their records say what it was
        device = "cuda" if config.cluster.gpus else "cpu"
        same = theirs.cluster.model_copy(update={"gpus_per_actor": config.cluster.gpus_per_actor})
        theirs = theirs.model_copy(update={"cluster": same})
    changed = _slower_or_faster(theirs, config)
    if changed:
        reason = "; ".join(f"{key}: {change}" for key, change in changed.items())
        message = f"{store.url} was drawn with other settings ({reason}), so its rates are not this job's"
        if asked:
            raise UserError(f"--rates: {message}")
        return Rates({}, {}, (message,))
    rates: dict[bool, Rate] = {}
    for prefix, corpus in corpora(store).items():
        refined = Arm.parse(prefix.removeprefix(arm_prefix("")) or released_arm(config)).refined
        rate = rate_of_records(corpus, device)
        if rate is not None and refined not in rates:
            rates[refined] = rate
    if asked and not rates:
        raise UserError(f"--rates: {store.url} has no records of shards yet")
    return Rates(rates, {})


def _slower_or_faster(theirs: Config, ours: Config) -> dict[str, str]:
    before, after = theirs.model_dump(mode="json"), ours.model_dump(mode="json")
    changed = differences(before, after)
    return {key: change for key, change in changed.items() if key.startswith(DECIDES_TIME)}


def rate_of_records(store: Store, device: str = "") -> Rate | None:
    """Of drawing, by the records of a corpus; None without any. device: `cpu` or `cuda`, where only
    what was drawn there counts."""
    done = committed_shards(store)
    commits, _ = sampled_commits(store, done, RECORDS_READ)
    # A shard that was quarantined without being drawn has no seconds.
    commits = [commit for commit in commits if commit.seconds and commit.execution.device.startswith(device)]
    images = sum(commit.count for commit in commits)
    if not images:
        return None
    devices = sorted({commit.execution.device for commit in commits})
    source = f"{len(commits):,} of {len(done):,} records of {store.url}, drawn on {', '.join(devices)}"
    seconds, size = sum(commit.seconds for commit in commits), sum(commit.bytes for commit in commits)
    return Rate(seconds / images, source, size / images)


# ---- the limit


def refuse_above(config: Config, plan: JobPlan) -> None:
    """UserError where drawing takes more GPU-hours than cluster.max_gpu_hours allows.

    What is drawn already counts too, at the same rate, so that a resumed run is judged as a whole.
    Where a rate is not known, nothing is refused: the first shards tell it (gpu_budget).
    """
    limit, hours = config.cluster.max_gpu_hours, whole_gpu_hours(plan.drawing)
    if limit is not None and hours is not None and hours > limit:
        raise UserError(
            f"cluster.max_gpu_hours: drawing the corpus and its arms takes {hours:,.1f} GPU-hours, and {limit:,.1f} "
            "are allowed: raise it, or draw fewer images (classes.<class>.images)"
        )


def gpu_budget(config: Config, store: Store, arm: str | None) -> Budget | None:
    """What watches the GPU-hours while an arm, or the released corpus, is drawn; None without a
    limit or without GPUs. Arms that take as long an image, refined or not, are counted with it."""
    limit = config.cluster.max_gpu_hours
    if limit is None or not config.cluster.gpus:
        return None
    plan = job_plan(config, recorded_rates(config, store), store)
    released = released_arm(config)
    refined = Arm.parse(arm or released).refined
    alike: list[Work] = []
    others: list[Work] = []
    for work, name in zip(plan.drawing, (released, *arms_to_draw(config)), strict=True):
        (alike if Arm.parse(name).refined == refined else others).append(work)
    images = sum(work.images + work.done for work in alike)
    known = [work for work in others if work.rate is not None]
    return Budget(limit, images, config.cluster.gpus, whole_gpu_hours(known) or 0.0)
