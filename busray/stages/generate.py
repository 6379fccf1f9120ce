"""Generation on Ray Data: a row is a shard; actors sample, CPU tasks encode and commit, in a stream."""

import json
import platform
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from random import sample
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
import ray.data
from ray.exceptions import RayError

from busray import config as settings
from busray.cluster.liveness import Worker, stopped, supervised, this_worker, watched
from busray.cluster.session import device_of, session, use_threads
from busray.config import split_arm
from busray.corpus.arms import compared_images, gated_arm, released_arm, uses_adapters
from busray.corpus.commit import commit_shard, committed_shards, read_commit, read_rows
from busray.corpus.encode import Row, png_pixels
from busray.corpus.gate import Gated, draw_gated, place
from busray.corpus.manifest import publish_manifest
from busray.corpus.plan import extend_plan, pending, shards
from busray.corpus.recipe import Recipe, corpus_identity, make_recipe
from busray.corpus.record import open_run
from busray.layout import RUN, arm_prefix, commit_key
from busray.model.checkpoints import fetch_adapters, read_adapters
from busray.records import Commit, Execution, ImageSpec, Redrawn, Shard, UserError
from busray.run.record import Run
from busray.stages.classifiers import classifier_record, load_classifier, probabilities, trained_classifier
from busray.storage import Store

if TYPE_CHECKING:  # torch and diffusers would take the driver 800 MB, which only the workers need
    from busray.model.sample import Drawn, Sampler
from busray.corpus.arms import corpora
from busray.corpus.commit import find_image

TRIES = 5
"""Times a shard is begun whose workers die, before the command ends: it may be the shard that kills them.

Ray's own max_task_retries will not do: asking a lost node's actor again and again uses them up within seconds.
"""


JUDGED = 128
"""Images that the class gate looks at in one go."""


LIBRARIES = ("torch", "diffusers", "transformers", "peft", "numpy")


@dataclass(frozen=True)
class DrawJob:
    """What a sampling worker needs to draw any shard of one corpus; travels to it pickled."""

    store: Store
    """Of the corpus: the run's, or an arm's."""
    run_store: Store
    """Of the run, where the adapters lie."""
    base: settings.Base
    method: str | None
    """Adapters to load; None for the bare base."""
    tokens: dict[str, str]
    sampling: settings.Sampling
    refine: settings.Refine | None
    keep_txt2img: bool
    format: str
    recipe: Recipe
    provenance: dict[str, Any]
    threads: int
    device: str
    start: Store | None = None
    """A corpus with the same images before refinement, which need not be drawn again."""
    gate: settings.Gate | None = None
    gate_record: dict[str, Any] | None = None
    """Of the gate's classifier, in the run's store."""


def draw_job(run: Run, arm: str | None = None, start: Store | None = None) -> DrawJob:
    """The job of an arm's corpus, or of the released one. Refuses an output that holds another recipe.

    start: a corpus with txt2img images that differs in the refinement only; ValueError where it differs in more.
    """
    config = run.config
    name = arm or released_arm(config)
    adapted = uses_adapters(name)
    refine = config.refine if split_arm(name)[1] else None
    adapters = read_adapters(run.store) if adapted else None
    if adapted and adapters is None:
        raise UserError(f"{run.store.url} has no adapters yet: run `busray finetune` first")
    gate = None if arm else config.corpus.gate
    gate_record = classifier_record(run, gate.architecture) if gate else None
    if gate and gate_record is None:
        raise UserError(f"{run.store.url} has no class gate yet: run `busray generate` first")
    identity = corpus_identity(
        config,
        run.base.to_dict(),
        adapters["sha256"] if adapters else None,
        run.dataset.hash,
        refine is not None,
        gate_record["digest"] if gate_record else None,
    )
    if start is not None and (differs := _txt2img_differences(start, identity)):
        raise ValueError(f"{start.url} was drawn with another {', '.join(differs)}")
    store = run.store.sub(arm_prefix(arm)) if arm else run.store
    corpus = open_run(store, identity)
    return DrawJob(
        store=store,
        run_store=run.store,
        base=config.base,
        method=config.adapters.method if adapted else None,
        tokens=config.tokens() if adapted and config.uses_tokens else {},
        sampling=config.sampling,
        refine=refine,
        keep_txt2img=config.corpus.keep_txt2img and refine is not None,
        format=config.corpus.format,
        recipe=make_recipe(config, run.dataset, corpus, use_tokens=adapted and config.uses_tokens),
        provenance={
            "fingerprint": corpus,
            "identity": identity,
            "synthetic": True,
            "arm": (None if arm else gated_arm(config)) or name,
        },
        threads=config.cluster.threads,
        device=device_of(config.cluster.gpus_per_actor),
        start=start,
        gate=gate,
        gate_record=gate_record,
    )


def _txt2img_differences(start: Store, identity: dict[str, Any]) -> list[str]:
    theirs = json.loads(start.read(RUN))["identity"]
    keys = (identity.keys() | theirs.keys()) - {"refine", "keep_txt2img", "format"}
    return sorted(key for key in keys if identity.get(key) != theirs.get(key))


def generate(run: Run, arm: str | None = None, start: Store | None = None, *, keep_more: bool = False) -> str:
    """Draw what the plan of a corpus still misses and publish its manifest; returns the manifest's digest.

    start: as of draw_job. keep_more: as of extend_plan, for the released corpus; an arm always keeps its images, since
    how many of them are compared may change.
    """
    config = run.config
    if config.corpus.gate and not arm:
        trained_classifier(run, config.corpus.gate.architecture)
    job = draw_job(run, arm, start)
    if arm:
        images = {name: compared_images(config) for name, c in config.classes.items() if c.images}
    else:
        images = {name: c.images for name, c in config.classes.items()}
    segments = extend_plan(job.store, images, config.corpus.shard_size, keep_more=keep_more or arm is not None)
    plan = shards(segments)
    todo = pending(plan, committed_shards(job.store))
    if todo:
        with session(config.cluster, run.log_file):
            _draw(run, job, todo, sum(s.count for s in plan), f"generate {arm or 'corpus'}")
    return publish_manifest(job.store, segments, drawn=todo)


def _draw(run: Run, job: DrawJob, todo: list[Shard], planned: int, stage: str) -> None:
    cluster = run.config.cluster
    pool = ray.data.ActorPoolStrategy(min_size=cluster.min_actors, max_size=cluster.max_actors)
    # In an order of this driver's own: drivers beside each other then meet on few shards, and share the work.
    rows = [{"class_name": s.class_name, "first": s.first, "count": s.count} for s in sample(todo, len(todo))]
    with watched(run.tell, stage, planned, planned - sum(s.count for s in todo)) as board:
        stream = (
            ray.data.from_items(rows, override_num_blocks=len(rows))
            .map(
                DrawShards,  # pyright: ignore[reportArgumentType] (a callable class, which Ray's types leave out)
                fn_constructor_args=(job, board),
                compute=pool,
                num_cpus=cluster.cpus_per_actor,
                num_gpus=cluster.gpus_per_actor,
            )
            .map(CommitShard(job, board), num_cpus=1)
        )
        try:
            supervised(board, stage, cluster.hang_seconds, lambda: deque(stream.iter_rows(), maxlen=0))
            again: Any = ray.get(board.again.remote())
        except RayError as error:
            raise stopped(stage, error) from error
    if again:
        run.tell(f"{stage}, shards begun again", again, again)


NOT_DRAWN = {
    "pixels": np.zeros((1, 1, 1, 1), np.uint8),
    "problems": "",
    "attempts": "[]",
    "first_draws": "[]",
    "redrawn": "[]",
    "batch_size": 0,
    "device": "",
    "seconds": 0.0,
}
"""In place of a shard that meanwhile has its record, by another driver or before its node was lost; without a batch
there is nothing to commit."""


class DrawShards:
    """The sampling actor: loads the models once, then draws shard after shard."""

    def __init__(self, job: DrawJob, board: Any) -> None:
        use_threads(job.threads)
        self.job = job
        self.board = board
        self.sampler = build_sampler(job)
        self.classifier = load_classifier(job.run_store, job.gate_record) if job.gate_record else None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        started = time.perf_counter()
        shard = Shard(str(row["class_name"]), int(row["first"]), int(row["count"]))
        me = this_worker()
        if self.job.store.exists(commit_key(shard)):
            self.board.add.remote(shard.count, me)
            self.board.rest.remote(me)
            return {**row, **NOT_DRAWN}
        begun: Any = ray.get(self.board.begin.remote(f"{shard.class_name}/{shard.name}", me))
        if begun > TRIES:
            raise RuntimeError(f"shard {shard.class_name}/{shard.name} was begun {TRIES} times and its workers died")
        if self.job.start is not None:
            self.sampler.held = _held(self.job.start, shard)
        gated = self._draw(shard, me)
        self.board.rest.remote(me)
        drawn = [*gated.drawn, *gated.first_draws]
        columns: list[list[np.ndarray | None]] = [[d.image for d in drawn]]
        if self.job.keep_txt2img:
            columns.append([d.txt2img for d in drawn])
        return {
            **row,
            "pixels": np.asarray(columns),  # uint8 [columns, images and then rejected first draws, size, size]
            "problems": "\n".join(d.problem or "" for d in gated.drawn),
            "attempts": json.dumps([d.spec.attempt for d in gated.drawn]),
            "first_draws": json.dumps([d.spec.index for d in gated.first_draws]),
            "redrawn": json.dumps([asdict(one) for one in gated.redrawn]),
            "batch_size": self.sampler.sampling.batch_size,
            "device": device_name(self.job.device),
            "seconds": time.perf_counter() - started,
        }

    def _draw(self, shard: Shard, me: Worker) -> Gated:
        """The shard's images, through the class gate where there is one; redraws count as no further images."""
        from busray.model.sample import draw_shard

        gate, recipe = self.job.gate, self.job.recipe
        if gate is None:
            drawn = draw_shard(self.sampler, recipe.specs(shard), lambda n: self.board.add.remote(n, me))
            return Gated(drawn, [], ())

        def draw(specs: Sequence[ImageSpec]) -> "list[Drawn]":
            first = not specs[0].attempt
            return draw_shard(self.sampler, specs, lambda n: self.board.add.remote(n if first else 0, me))

        def judge(name: str, images: np.ndarray) -> np.ndarray:
            return self._chances(name, images, me)

        while True:
            size = self.sampler.sampling.batch_size
            gated = draw_gated(recipe, shard, draw, judge, gate.threshold, gate.attempts)
            if self.sampler.sampling.batch_size == size:
                return gated
            self.board.add.remote(-shard.count, me)  # a batch did not fit: one shard has one batch size

    def _chances(self, name: str, images: np.ndarray, me: Worker) -> np.ndarray:
        """The class gate's probability [n] of a class."""
        assert self.classifier is not None and self.job.gate_record is not None
        label = self.job.gate_record["classes"].index(name)
        found = []
        for at in range(0, len(images), JUDGED):
            found.append(probabilities(self.classifier, images[at : at + JUDGED])[:, label])
            self.board.add.remote(0, me)
        return np.concatenate(found)


def _held(store: Store, shard: Shard) -> dict[tuple[str, int], np.ndarray]:
    """(class, index) -> image before refinement, of a shard's images that a corpus has."""
    held = {}
    wanted = range(shard.first, shard.first + shard.count)
    for other in committed_shards(store):
        if (
            other.class_name == shard.class_name
            and other.first < wanted.stop
            and other.first + other.count > shard.first
        ):
            rows = read_rows(store, read_commit(store, other), columns=["index", "image_txt2img"]).to_pylist()
            held |= {(shard.class_name, row["index"]): png_pixels(row["image_txt2img"]["bytes"]) for row in rows}
    return held


class CommitShard:
    """The CPU task behind it: encode, hash, put once, record."""

    def __init__(self, job: DrawJob, board: Any) -> None:
        self.job = job
        self.board = board

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        if not int(row["batch_size"]):
            return {"rows": 0, "rejects": 0}
        job, me = self.job, this_worker()
        self.board.add.remote(0, me)
        shard = Shard(str(row["class_name"]), int(row["first"]), int(row["count"]))
        attempts = json.loads(str(row["attempts"]))
        specs = [job.recipe.spec(shard.class_name, shard.first + i, attempt) for i, attempt in enumerate(attempts)]
        problems = str(row["problems"]).split("\n")
        pixels = np.asarray(row["pixels"], dtype=np.uint8)

        def as_row(spec: ImageSpec, at: int) -> Row:
            return Row(spec, pixels[0, at], pixels[1, at] if len(pixels) > 1 else None)

        rows, rejects = [], []
        for i, (spec, problem) in enumerate(zip(specs, problems, strict=True)):
            if problem:
                rejects.append((spec.image_id, problem))
            else:
                rows.append(as_row(spec, i))
        indices = json.loads(str(row["first_draws"]))
        first_draws = [
            as_row(job.recipe.spec(shard.class_name, index), shard.count + i) for i, index in enumerate(indices)
        ]
        commit = commit_shard(
            job.store,
            shard,
            rows,
            rejects,
            job.provenance,
            _execution(job, int(row["batch_size"]), str(row["device"])),
            job.format,
            float(row["seconds"]),
            [Redrawn.from_dict(one) for one in json.loads(str(row["redrawn"]))],
            first_draws,
        )
        self.board.rest.remote(me)
        return {"rows": commit.rows, "rejects": len(commit.rejects)}


def _execution(job: DrawJob, batch_size: int, device: str) -> Execution:
    """What besides the fingerprint decides the last bit of a pixel drawn by this job.

    batch_size: the one used, which is below the job's where the device's memory did not hold that. device: device_name
    where it was drawn: where it is committed there may be another card, or none.
    """
    return Execution(
        device=device,
        dtype=job.base.dtype,
        batch_size=batch_size,
        threads=job.threads,
        libraries={name: version(name) for name in LIBRARIES},
    )


def device_name(device: str) -> str:
    """The model of this machine's processor, or of this process's GPU."""
    if device == "cpu":
        told = Path("/proc/cpuinfo")
        lines = told.read_text().splitlines() if told.exists() else []
        names = {line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")}
        return f"cpu: {', '.join(sorted(names)) or platform.processor() or platform.machine()}"
    import torch

    return f"cuda: {torch.cuda.get_device_name()}"


def build_sampler(job: DrawJob) -> "Sampler":
    """The pipeline of the job's base with its adapters fused, ready to draw."""
    from busray.model.adapters import load_adapters
    from busray.model.base import load_pipeline
    from busray.model.sample import Sampler

    pipe = load_pipeline(job.base, job.device, job.base.dtype)
    if job.method:
        with tempfile.TemporaryDirectory() as folder:
            load_adapters(pipe, fetch_adapters(job.run_store, Path(folder)), job.method, job.tokens)
    return Sampler(pipe, job.sampling, job.refine, job.base.size, job.keep_txt2img)


def redraw(job: DrawJob, commit: Commit, spec: ImageSpec) -> "Drawn":
    """Draw one image of a committed shard again, with the batch size and threads its record names.

    It takes its old place in the batch, since a place can decide a last bit.
    """
    use_threads(commit.execution.threads)
    size = commit.execution.batch_size
    sampler = build_sampler(
        DrawJob(**{**job.__dict__, "sampling": job.sampling.model_copy(update={"batch_size": size})})
    )
    position, together = place(commit, spec)
    in_batch = position % size
    filled = min(size, together - (position - in_batch))
    return sampler.draw([spec] * filled)[in_batch]


def reproduce(run: Run, image_id: str) -> tuple[np.ndarray, np.ndarray]:
    """(stored, redrawn) pixels uint8 [h, w] of one image of the released corpus or of an arm that is there.

    Which arms are there the stored settings do not say: they are the first command's, and arms may be added later.
    """
    for prefix, store in corpora(run.store).items():
        found = find_image(store, image_id)
        if found is None:
            continue
        commit, row = found
        job = draw_job(run, prefix.removeprefix(arm_prefix("")) or None)
        drawn = redraw(job, commit, job.recipe.spec(commit.class_name, row["index"], row["attempt"]))
        return png_pixels(row["image"]["bytes"]), drawn.image
    raise UserError(f"{image_id}: no such image in {run.store.url}; ids are in the shards' image_id column")
