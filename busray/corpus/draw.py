"""Drawing a corpus: load the models, draw shards, commit them. Drawing one image of it again."""

import json
import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from busray import config
from busray.corpus.commit import commit_shard, committed_shards, read_commit, read_rows
from busray.corpus.encode import Row, png_pixels
from busray.corpus.features import InlineFeatures
from busray.corpus.gate import GatedShard, draw_gated, place
from busray.corpus.recipe import Recipe
from busray.layout import FORMAT, commit_key
from busray.model.checkpoints import fetch_adapters, read_adapters
from busray.model.compiled import compiled_key, keep_compiled, load_compiled
from busray.model.device import choose, prepare
from busray.model.noise_schedule import with_schedule
from busray.records import Commit, Computing, Execution, ImageSpec, Redrawn, Shard
from busray.storage import Store
from busray.vision.classifier import Classifier, probabilities
from busray.workers import Beat

if TYPE_CHECKING:  # torch and diffusers cost 800 MB, which only the drawing workers need
    from busray.model.sample import DrawnImage, Sampler

GATE_BATCH = 128  # images that the class gate classifies between two signs of life

# Their versions stand in every commit record
LIBRARIES = ("torch", "diffusers", "transformers", "peft", "numpy")


def silent(n: int = 0, /) -> None:
    """The Beat of work that nobody watches."""


@dataclass(frozen=True)
class ClassGate:
    """A class gate and its classifier."""

    settings: config.Gate
    classifier: Classifier
    classes: tuple[str, ...]  # the order of the classifier's outputs


@dataclass(frozen=True)
class DrawnShard:
    """A shard that waits for its commit. It needs no torch to be unpickled."""

    shard: Shard
    rows: tuple[Row, ...]
    rejects: tuple[tuple[str, str], ...]  # (image id, problem) of the images that cannot be used
    redrawn: tuple[Redrawn, ...]
    first_draws: tuple[Row, ...]  # the first draws that the class gate rejected
    # The one used: below sampling.batch_size where the device had too little memory for that
    batch_size: int
    device: str  # where it was drawn; it may be committed on a machine with another card, or none
    seconds: float
    computing: Computing  # how that device computed
    decode_batch: int = 0  # images decoded at once; 0: batch_size


@dataclass(frozen=True)
class DrawJob:
    """Everything a worker needs to draw and commit any shard of one corpus (workers.Drawing)."""

    store: Store  # of the corpus: the run's, or an arm's
    run_store: Store  # of the run, where the adapters are
    base: config.Base
    method: str | None  # adapters to load; None for the bare base
    tokens: dict[str, str]
    sampling: config.Sampling
    refine: config.Refine | None
    keep_txt2img: bool
    format: str
    recipe: Recipe
    provenance: dict[str, Any]
    threads: int
    device: str
    # A corpus with the same images before refinement, which then are not drawn again
    txt2img_source: Store | None = None
    gate: ClassGate | None = None
    inline: InlineFeatures | None = None  # what is measured of a shard where it is drawn
    stored_format: int = FORMAT  # of the corpus

    def labels(self) -> dict[str, str]:
        """What metrics are tagged by."""
        return {"arm": self.provenance["arm"], "device": device_name(self.device)}

    def is_committed(self, shard: Shard) -> bool:
        return self.store.exists(commit_key(shard))

    def start(self) -> "ShardDrawer":
        return ShardDrawer(self)

    def commit(self, drawn: DrawnShard, beat: Beat = silent) -> Commit:
        """Encode, hash, put once, record; returns the commit that won. Then measure the pixels that
        were written, where that is wanted."""
        libraries = {name: version(name) for name in LIBRARIES}
        execution = Execution(
            device=drawn.device,
            batch_size=drawn.batch_size,
            threads=self.threads,
            libraries=libraries,
            decode_batch=drawn.decode_batch,
            **asdict(drawn.computing),
        )
        commit = commit_shard(
            self.store,
            drawn.shard,
            drawn.rows,
            drawn.rejects,
            self.provenance,
            execution,
            self.format,
            drawn.seconds,
            drawn.redrawn,
            drawn.first_draws,
            self.stored_format,
            self.keep_txt2img,
        )
        if self.inline is not None:
            self.inline.put(self.store, commit, drawn.rows, drawn.first_draws, self.device, beat)
        return commit

    def quarantine(self, shard: Shard, reason: str) -> Commit:
        """Record a shard as quarantined, image by image, since its workers die; returns the commit
        that won. It is as final as any other."""
        rejects = tuple((spec.image_id, reason) for spec in self.recipe.specs(shard))
        batch_size, device = self.sampling.batch_size, device_name(self.device)
        computing = Computing(self.base.dtype)  # nothing was drawn
        return self.commit(DrawnShard(shard, (), rejects, (), (), batch_size, device, 0.0, computing))


class ShardDrawer:
    """A worker's loaded models, which draw shard after shard."""

    def __init__(self, job: DrawJob) -> None:
        self.job = job
        self.sampler = load_sampler(job)
        if self.sampler.computing.compiled:
            keep_compiled(job.run_store, compiled_key(_compiled_for(job, self.sampler)))
        if job.inline is not None:
            job.inline.load(job.device)
        # Once: that corpus was finished before this one was begun.
        self.source_shards = committed_shards(job.txt2img_source) if job.txt2img_source else []

    def __call__(self, shard: Shard, beat: Beat) -> DrawnShard:
        started = time.perf_counter()
        if self.job.txt2img_source is not None:
            self.sampler.txt2img_source = txt2img_images(self.job.txt2img_source, self.source_shards, shard)
        gated = self._draw(shard, beat)
        rows, rejects = [], []
        for image in gated.images:
            if image.problem:
                rejects.append((image.spec.image_id, image.problem))
            else:
                rows.append(_row(image))
        return DrawnShard(
            shard=shard,
            rows=tuple(rows),
            rejects=tuple(rejects),
            redrawn=gated.redrawn,
            first_draws=tuple(map(_row, gated.first_draws)),
            batch_size=self.sampler.sampling.batch_size,
            device=device_name(self.job.device),
            seconds=time.perf_counter() - started,
            computing=self.sampler.computing,
            decode_batch=self.sampler.fewer_decoded,
        )

    def _draw(self, shard: Shard, beat: Beat) -> GatedShard:
        """The shard's images, through the class gate where there is one."""
        from busray.model.sample import draw_shard

        recipe, gate = self.job.recipe, self.job.gate
        if gate is None:
            return GatedShard(draw_shard(self.sampler, recipe.specs(shard), beat), [], ())
        settings = gate.settings

        def draw(specs: Sequence[ImageSpec]) -> "list[DrawnImage]":
            first = specs[0].attempt == 0  # redraws are no further images: they only beat
            return draw_shard(self.sampler, specs, lambda n: beat(n if first else 0))

        def probability(class_name: str, images: np.ndarray) -> np.ndarray:
            return _class_probability(gate, class_name, images, beat)

        while True:
            sizes = self.sampler.sampling.batch_size, self.sampler.decode_batch
            gated = draw_gated(recipe, shard, draw, probability, settings.threshold, settings.attempts)
            if (self.sampler.sampling.batch_size, self.sampler.decode_batch) == sizes:
                return gated
            # A batch did not fit into memory and was halved. A shard has one size: begin again.
            beat(-shard.count)


def _row(image: "DrawnImage") -> Row:
    return Row(image.spec, image.image, image.txt2img)


def _class_probability(gate: ClassGate, class_name: str, images: np.ndarray, beat: Beat) -> np.ndarray:
    """The gate's probability [n] of a class."""
    label = gate.classes.index(class_name)
    batches = []
    for at in range(0, len(images), GATE_BATCH):
        batches.append(probabilities(gate.classifier, images[at : at + GATE_BATCH])[:, label])
        beat()
    return np.concatenate(batches)


def txt2img_images(store: Store, committed: Sequence[Shard], shard: Shard) -> dict[tuple[str, int], np.ndarray]:
    """(class, index) -> image before refinement, of the shard's images that a corpus has."""
    images = {}
    for other in committed:
        overlaps = other.first < shard.first + shard.count and other.first + other.count > shard.first
        if other.class_name == shard.class_name and overlaps:
            rows = read_rows(store, read_commit(store, other), columns=["index", "image_txt2img"])
            for row in rows.to_pylist():
                images[shard.class_name, row["index"]] = png_pixels(row["image_txt2img"]["bytes"])
    return images


def device_name(device: str) -> str:
    """The model of this machine's processor, or of this process's GPU."""
    if device == "cpu":
        path = Path("/proc/cpuinfo")
        lines = path.read_text().splitlines() if path.exists() else []
        models = {line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")}
        return f"cpu: {', '.join(sorted(models)) or platform.processor() or platform.machine()}"
    import torch

    return f"cuda: {torch.cuda.get_device_name()}"


def load_sampler(job: DrawJob, computing: Computing | None = None) -> "Sampler":
    """The pipeline of the job's base with its adapters fused, ready to draw.

    computing: as a record says; None: what suits this device.
    """
    from busray.model.adapters import load_adapters
    from busray.model.base import load_pipeline
    from busray.model.sample import Sampler

    computing = computing or choose(job.base.dtype, job.sampling.compile, job.device)
    pipe = load_pipeline(job.base, job.device, computing.dtype)
    if job.method:
        adapters = read_adapters(job.run_store)
        assert adapters is not None  # draw_job saw them
        pipe.scheduler = with_schedule(pipe.scheduler, adapters.schedule)
        with tempfile.TemporaryDirectory() as folder:
            local = fetch_adapters(job.run_store, Path(folder))
            load_adapters(pipe, local, job.method, job.tokens, job.sampling.lora_scale)
    prepare(pipe, computing)
    sampler = Sampler(pipe, job.sampling, job.refine, job.base.size, job.keep_txt2img)
    sampler.computing = computing
    if computing.compiled:
        load_compiled(job.run_store, compiled_key(_compiled_for(job, sampler)))
        sampler.warm_up()
    return sampler


def _compiled_for(job: DrawJob, sampler: "Sampler") -> dict[str, Any]:
    """All that decides what torch.compile makes."""
    about: dict[str, Any] = {"device": device_name(job.device), "python": platform.python_version()}
    about |= {name: version(name) for name in ("torch", "diffusers")}
    about |= {"size": job.base.size, "batch_size": job.sampling.batch_size, **asdict(sampler.computing)}
    about["deep_every"] = job.sampling.deep_every
    for name in ("unet", "vae"):
        about[name] = json.loads(getattr(sampler.pipe, name).to_json_string())
    return about


def redraw(job: DrawJob, commit: Commit, spec: ImageSpec) -> "DrawnImage":
    """Draw one image of a committed shard again, as its record says that it was computed.

    It takes its old place in the batch, since a place can change the last bit of a pixel.
    """
    import torch

    execution = commit.execution
    torch.set_num_threads(execution.threads)
    batch_size = execution.batch_size
    sampling = job.sampling.model_copy(update={"batch_size": batch_size})
    sampler = load_sampler(replace(job, sampling=sampling), execution.computing)
    sampler.decode_batch = execution.decode_batch or batch_size
    position, drawn_together = place(commit, spec)
    place_in_batch = position % batch_size
    filled = min(batch_size, drawn_together - (position - place_in_batch))
    drawn = sampler.draw([spec] * filled)[place_in_batch]
    return drawn if drawn.problem is None or sampler.is_float32 else sampler.draw_in_float32(spec)
