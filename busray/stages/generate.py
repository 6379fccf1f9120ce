"""Generation: draw the planned shards that are not committed yet; draw one image again."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from random import sample
from typing import Any

import numpy as np

from busray.cluster.session import gpus_here
from busray.corpus.arms import arm_after_gate, compared_images, corpora, released_arm
from busray.corpus.breaker import Breaker
from busray.corpus.commit import committed_shards, find_image, read_commit
from busray.corpus.cost import Budget
from busray.corpus.draw import ClassGate, DrawJob, redraw
from busray.corpus.encode import png_pixels
from busray.corpus.features import inline_features
from busray.corpus.manifest import publish_manifest
from busray.corpus.plan import extend_plan, first_of_each_class, pending, shards
from busray.corpus.recipe import corpus_identity, make_recipe
from busray.corpus.record import claim_corpus, read_run, stored_format
from busray.layout import RUN, arm_prefix
from busray.model.checkpoints import read_adapters
from busray.records import Arm, Commit, Damaged, Segment, Shard, StoppedForGood, UserError
from busray.run.record import Run, keep_seconds, timed
from busray.stages.classifiers import classifier_record, load_classifier, trained_classifier
from busray.stages.plan import gpu_budget
from busray.stages.shard_size import ShardSizes
from busray.storage import Store
from busray.together import Together, placed
from busray.workers import DrawStage, Report, Workers


def generate(
    run: Run,
    workers: Workers,
    arm: str | None = None,
    txt2img_source: Store | None = None,
    *,
    never_shrink: bool = False,
) -> str:
    """Draw what the plan of a corpus still misses and publish its manifest; returns its digest.

    arm: draw that arm's corpus instead of the released one. txt2img_source: see draw_job.
    never_shrink: see extend_plan.
    """
    corpus = _planned(run, workers, ShardSizes(run, workers), arm, txt2img_source, never_shrink)
    if corpus.todo:
        corpus.draw(workers)
    corpus.watch.say()
    return corpus.publish()


def generate_together(
    run: Run,
    workers: Workers,
    arms: Sequence[str | None],
    txt2img_source: Store | None = None,
    *,
    never_shrink: bool = False,
) -> None:
    """As generate() for each of these arms (None: the released corpus), in this order, by one pool
    of workers: they do not start again for each. Each corpus has its manifest once it is drawn.

    txt2img_source: of the released corpus. never_shrink: as of generate().
    """
    sizes, corpora = ShardSizes(run, workers), list[_Planned]()
    for arm in arms:
        corpora.append(_planned(run, workers, sizes, arm, None if arm else txt2img_source, never_shrink))
    left = [corpus for corpus in corpora if corpus.todo]
    published: list[_Planned] = []
    if len(left) > 1:
        published = _draw_together(run, workers, left)
    elif left:
        timed(run, left[0].timing, lambda: left[0].draw(workers))
    for corpus in corpora:
        corpus.watch.say()
        if corpus not in published:
            corpus.publish()


@dataclass(frozen=True, eq=False)
class _Planned:
    """A corpus with its whole plan, and what of it is not drawn."""

    stage: str
    timing: str  # its name in timings.json
    job: DrawJob
    segments: list[Segment]
    images: int  # of the whole plan
    todo: list[Shard]  # in the order in which it is drawn
    canaries: list[Shard]  # of these, what is drawn before all else
    watch: "Watch"

    def draw(self, workers: Workers) -> None:
        workers.draw(DrawStage(self.stage, self.job, self.todo, self.images, self.canaries, self.watch))

    def publish(self) -> str:
        return publish_manifest(self.job.store, self.segments, drawn=self.todo)


def _planned(
    run: Run,
    workers: Workers,
    sizes: ShardSizes,
    arm: str | None = None,
    txt2img_source: Store | None = None,
    never_shrink: bool = False,
) -> _Planned:
    config = run.config
    if config.corpus.gate and not arm:
        trained_classifier(run, workers, config.corpus.gate.architecture)
    job = draw_job(run, workers.device, arm, txt2img_source)
    if arm:  # no more than is compared, for the released corpus alone is given out
        compared = compared_images(config, run.dataset)
        images = {name: compared[name] for name, c in config.classes.items() if c.images}
    else:
        images = {name: c.images for name, c in config.classes.items()}
    # The number of images compared may change: an arm keeps those that it has.
    keep = never_shrink or arm is not None
    segments = extend_plan(job.store, images, sizes.of(job.refine is not None), never_shrink=keep)
    plan = shards(segments)
    # Only the records say what is done. So a rerun draws what an interrupted one left open.
    done = committed_shards(job.store)
    todo = pending(plan, done)
    stage = f"generate {arm or 'corpus'}"
    # Asked for at the first commit: of a corpus before this one, the records then tell the hours.
    budget = cache(partial(gpu_budget, config, run.store, arm))
    watch = Watch(job, todo, config.corpus.max_quarantined, stage, workers.report, budget)
    proven = watch.look_back(done) if todo else set[str]()
    canaries = [shard for shard in first_of_each_class(todo) if shard.class_name not in proven]
    # In a random order: drivers that run beside each other then share the work.
    todo, canaries = sample(todo, len(todo)), sample(canaries, len(canaries))
    timing = stage if arm else "generate"
    return _Planned(stage, timing, job, segments, sum(shard.count for shard in plan), todo, canaries, watch)


def _draw_together(run: Run, workers: Workers, corpora: Sequence[_Planned]) -> list[_Planned]:
    """Draw what is left of several corpora, one after the other. The canaries of the first come
    before all else: the others differ in their models alone. Returns those that are published: a
    corpus whose last shards another driver committed is not."""
    waiting = [{*corpus.todo} for corpus in corpora]
    published: list[_Planned] = []
    since = time.perf_counter()

    def report(place: int) -> None:
        left = sum(shard.count for shard in waiting[place])
        workers.report(corpora[place].stage, corpora[place].images - left, corpora[place].images)

    def seen(commit: tuple[int, Commit]) -> None:
        place, own = commit
        corpora[place].watch(own)
        waiting[place].discard(own.shard)
        report(place)
        if not waiting[place]:
            end(place)

    def end(place: int) -> None:
        nonlocal since
        now = time.perf_counter()
        keep_seconds(run, corpora[place].timing, now - since)
        since = now
        corpora[place].publish()  # not only when the last corpus is drawn
        published.append(corpora[place])

    todo: list[Shard] = []
    for place, corpus in enumerate(corpora):
        todo += placed(corpus.todo, place)
        report(place)
    names = ", ".join(corpus.stage.removeprefix("generate ") for corpus in corpora)
    together = Together(tuple(corpus.job for corpus in corpora))
    images = sum(corpus.images for corpus in corpora)
    workers.draw(DrawStage(f"generate {names}", together, todo, images, placed(corpora[0].canaries, 0), seen))
    return published


WORDS_SECONDS = 30.0  # least time between two messages of a Watch


class Watch:
    """The circuit breaker of one stage: it is called with every commit, and ends what is broken or
    takes more GPU-hours than cluster.max_gpu_hours."""

    def __init__(
        self,
        job: DrawJob,
        todo: Sequence[Shard],
        allowed: float,
        stage: str,
        report: Report,
        budget: Callable[[], Budget | None],
    ) -> None:
        self.breaker = Breaker(allowed, job.gate.settings.attempts if job.gate else None)
        self.store, self.stage, self.report = job.store, stage, report
        self.budget = budget
        self.said, self.said_at = "", -math.inf
        self.left = sum(shard.count for shard in todo)

    def __call__(self, commit: Commit) -> None:
        self.left -= commit.count
        why = self.breaker.add(commit)
        if why and self.left > 0:
            raise StoppedForGood(
                f"{self.stage}: stopped early, {why}",
                f"what is drawn stays in {self.store.url}; look at it, then give another recipe (base, adapters, "
                "sampling, prompts) another output, or allow more by corpus.max_quarantined",
            )
        budget = self.budget()
        over = budget.add(commit) if budget else None
        if over and self.left > 0:
            raise StoppedForGood(
                f"{self.stage}: stopped early, {over}",
                f"what is drawn stays in {self.store.url}; raise cluster.max_gpu_hours and run the same command "
                "again, or draw fewer images into another output",
            )
        if time.monotonic() - self.said_at > WORDS_SECONDS:
            self.say()

    def look_back(self, done: Sequence[Shard]) -> set[str]:
        """Count the first committed shard of each class, as the canary of an earlier command.
        Returns these classes."""
        proven: set[str] = set()
        for shard in first_of_each_class(done):
            try:
                commit = read_commit(self.store, shard)
            except Damaged:  # the manifest and `verify` say so
                continue
            if commit.seconds:  # not quarantined without being drawn
                proven.add(shard.class_name)
                self.left += commit.count
                self(commit)
        return proven

    def say(self) -> None:
        """Report what was quarantined and redrawn, where that is news."""
        words = self.breaker.words()
        if words and words != self.said:
            self.said, self.said_at = words, time.monotonic()
            self.report(f"{self.stage}: of {self.breaker.seen.images} images {words}", 0, 0)


def draw_job(run: Run, device: str, arm: str | None = None, txt2img_source: Store | None = None) -> DrawJob:
    """The job of an arm's corpus, or of the released one.

    txt2img_source: a corpus that differs in the refinement only, whose images before refinement
    are used again. Raises ValueError where it differs in more, UserError where the output holds
    another recipe or the adapters or the class gate are missing.
    """
    config = run.config
    name = arm or released_arm(config)
    adapted = Arm.parse(name).uses_adapters
    refine = config.refine if Arm.parse(name).refined else None
    adapters = read_adapters(run.store) if adapted else None
    if adapted and adapters is None:
        raise UserError(f"{run.store.url} has no adapters yet: run `busray finetune` first")
    use_tokens = adapted and config.uses_tokens
    adapters_digest = adapters.sha256 if adapters else None
    # Other arms have no gate: they are compared as they were drawn.
    gate, gate_digest = (None, None) if arm else _class_gate(run)
    identity = corpus_identity(
        config, run.base.to_dict(), adapters_digest, run.dataset.hash, refine is not None, gate_digest
    )
    if txt2img_source is not None:
        _refuse_other_txt2img(txt2img_source, identity)
    store = run.store.sub(arm_prefix(arm)) if arm else run.store
    corpus = claim_corpus(store, identity)
    format = stored_format(store)
    return DrawJob(
        store=store,
        run_store=run.store,
        base=config.base,
        method=config.adapters.method if adapted else None,
        tokens=config.tokens() if use_tokens else {},
        sampling=config.sampling,
        refine=refine,
        keep_txt2img=config.corpus.keep_txt2img and refine is not None,
        format=config.corpus.format,
        recipe=make_recipe(config, run.dataset, corpus, use_tokens=use_tokens, stored_format=format),
        provenance={
            "fingerprint": corpus,
            "identity": identity,
            "synthetic": True,
            "arm": (None if arm else arm_after_gate(config)) or name,
        },
        threads=config.cluster.threads,
        device=device,
        txt2img_source=txt2img_source,
        gate=gate,
        inline=inline_features(config, run.dataset, run.extractors, arm),
        stored_format=format,
    )


def _class_gate(run: Run) -> tuple[ClassGate | None, str | None]:
    """(the class gate, the digest of its classifier); (None, None) where no gate is set."""
    gate = run.config.corpus.gate
    if gate is None:
        return None, None
    record = classifier_record(run, gate.architecture)
    if record is None:
        raise UserError(f"{run.store.url} has no class gate yet: run `busray generate` first")
    return ClassGate(gate, load_classifier(run.store, record), record.classes), record.digest


def _refuse_other_txt2img(source: Store, identity: dict[str, Any]) -> None:
    """ValueError where a corpus had other images before refinement than this identity's."""
    record = read_run(source)
    if record is None:
        raise FileNotFoundError(f"{source.url}/{RUN}")
    source_identity = record["identity"]
    # Settings that decide nothing before refinement
    later = {"refine", "keep_txt2img", "format"}
    differing = []
    for key in sorted((identity.keys() | source_identity.keys()) - later):
        if identity.get(key) != source_identity.get(key):
            differing.append(key)
    if differing:
        raise ValueError(f"{source.url} was drawn with another {', '.join(differing)}")


def reproduce(run: Run, image_id: str) -> tuple[np.ndarray, np.ndarray]:
    """(stored, redrawn) pixels uint8 [h, w] of an image of the released corpus or of a stored arm.

    Drawn in this process. UserError where the run has no such image.
    """
    # The stored settings do not list the stored arms, since later commands may have added some.
    for prefix, store in corpora(run.store).items():
        match = find_image(store, image_id)
        if match is None:
            continue
        commit, row = match
        arm = prefix.removeprefix(arm_prefix("")) or None
        on_gpu = commit.execution.device.startswith("cuda") and gpus_here() > 0
        job = draw_job(run, "cuda" if on_gpu else "cpu", arm)
        spec = job.recipe.spec(commit.class_name, row["index"], row["attempt"])
        redrawn = redraw(job, commit, spec)
        return png_pixels(row["image"]["bytes"]), redrawn.image
    hint = "ids are in the shards' image_id column"
    raise UserError(f"{image_id}: no such image in {run.store.url}; {hint}")
