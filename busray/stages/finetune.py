"""Fine-tuning: existing adapters are copied from adapters.path, or workers train new ones.

Each worker takes some positions of every batch, and the gradients are summed. Sample order and
noise follow from (seed, step, position). So the result does not depend on how many workers there
are, except for the rounding of a sum. Checkpoints are in the run's store, and a rerun resumes from
the newest one.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from busray import config
from busray.corpus.encode import png_bytes
from busray.data.images import Images
from busray.identity import fingerprint, seed_for
from busray.model import checkpoints
from busray.model.adapters import adapter_sha256, offered_adapters
from busray.model.base import load_pipeline
from busray.model.checkpoints import Checkpoint, TrainingLog, commit_adapters, read_adapters
from busray.records import AdaptersRecord, ContentBox, ImageSpec, Stopped
from busray.report.contact_sheet import contact_sheet
from busray.run.images import adapters_folder
from busray.run.record import Run
from busray.storage import Store
from busray.workers import Beat, TrainingFailed, Workers

LOG_EVERY = 10  # steps between two entries of the training loss
GRID_IMAGES = 4  # images a class that are drawn at each validation, for people to look at
GRID_STEPS = 20  # at most so many sampling steps for these images
MAX_FAILURES = 3  # failures in a row without a new checkpoint after which training ends


@dataclass(frozen=True)
class AdapterTraining:
    """Everything a worker needs to train the run's adapters (workers.Training)."""

    store: Store
    base: config.Base
    adapters: config.Adapters
    sampling: config.Sampling
    tokens: Mapping[str, str]
    initializers: Mapping[str, str]
    captions: Mapping[str, list[str]]  # split -> caption of each image
    latents: Mapping[str, str]  # split -> key of its encoded images
    grid: tuple[ImageSpec, ...]  # the images that are drawn at each validation
    seed: int
    device: str
    metadata: Mapping[str, Any]  # what the adapters carry: base, data set, tokens, settings

    @property
    def steps(self) -> int:
        return self.adapters.steps

    @property
    def batch_size(self) -> int:
        return self.adapters.batch_size

    @property
    def num_workers(self) -> tuple[int, int]:
        return self.adapters.num_workers

    def scratch(self) -> tuple[Any, str]:
        return self.store.arrow()

    def start(self, world: int) -> "AdapterTrainingLoop":
        return AdapterTrainingLoop(self, world)


def finetune(run: Run, workers: Workers) -> AdaptersRecord:
    """The record of the run's adapters: stored ones, else adapters.path's, else freshly trained.

    Raises UserError for adapters that do not fit the run, and Stopped where training failed.
    """
    record = read_adapters(run.store)
    if record is not None:
        return record
    if run.config.adapters.path:
        return _adopt(run, run.config.adapters.path)
    training = _training(run, workers.device)
    _encode_once(run, workers, training)
    _train(run.store, workers, training)
    record = read_adapters(run.store)
    if record is None:
        raise RuntimeError(f"training ended without adapters; Ray's messages are in {run.log_file}")
    return record


def _adopt(run: Run, path: str) -> AdaptersRecord:
    """Check the adapters at this path and commit them as the run's."""
    # The run keeps a copy of its own: what is at the path may change or go.
    with tempfile.TemporaryDirectory() as cache:
        folder = adapters_folder(path, Path(cache))
        tokens = run.config.tokens() if run.config.uses_tokens else {}
        offered = offered_adapters(folder, run.config.adapters.method, tokens, run.base, run.dataset.hash)
    return commit_adapters(run.store, offered.files, {**offered.record, "adopted": True})


def _training(run: Run, device: str) -> AdapterTraining:
    settings = run.config
    tokens = settings.tokens() if settings.uses_tokens else {}
    pins = {"base": run.base.to_dict(), "size": settings.base.size, "frame": settings.dataset.frame}
    latents, captions = {}, {}
    for split in ("train", "val"):
        # Everything that decides the encoded images; captions and tokens do not.
        identity = fingerprint([run.dataset.hash, pins, split, settings.adapters.mirror])
        latents[split] = f"finetune/latents-{split}-{identity[:16]}.safetensors"
        captions[split] = run.captions(run.dataset.split(split))
    adapters = settings.adapters.model_dump(mode="json")
    metadata = {
        **pins,
        "dataset_hash": run.dataset.hash,
        "method": settings.adapters.method,
        "tokens": tokens,
        "config_hash": fingerprint([adapters, captions["train"], settings.seed]),
    }
    return AdapterTraining(
        store=run.store,
        base=settings.base,
        adapters=settings.adapters,
        sampling=settings.sampling,
        tokens=tokens,
        initializers={name: run.token_text(name) for name in settings.classes},
        captions=captions,
        latents=latents,
        grid=_grid(run),
        seed=settings.seed,
        device=device,
        metadata=metadata,
    )


def _grid(run: Run) -> tuple[ImageSpec, ...]:
    """GRID_IMAGES of each class with fixed seeds, from captions of training images."""
    size = run.config.base.size
    whole = ContentBox(0, 0, size, size)
    specs = []
    for name in run.config.classes:
        images = [image for image in run.dataset.train if image.class_name == name]
        for i, caption in enumerate(run.captions(tuple(images[:GRID_IMAGES]))):
            # The same at each validation, so that only the weights change from sheet to sheet.
            seed = seed_for(run.config.seed, name, i, 0, "validate")
            specs.append(ImageSpec(f"grid-{name}-{i}", name, i, 0, caption, seed, seed, whole))
    return tuple(specs)


def _encode_once(run: Run, workers: Workers, training: AdapterTraining) -> None:
    """Put the encoded train and validation images into the store, where they are missing."""
    images: dict[str, Images] = {}
    for split, key in training.latents.items():
        if not run.store.exists(key):
            images[split] = run.images.load(run.dataset.split(split))
    if images:
        total = sum(map(len, images.values()))
        workers.call("encode", total, _encode, training, images, kind="model")


def _encode(beat: Beat, training: AdapterTraining, images: Mapping[str, Images]) -> None:
    from busray.model.latents import encode_images  # imports torch: in the worker only

    pipe = load_pipeline(training.base, training.device, "float32")
    batch_size = training.sampling.batch_size
    for split, of_split in images.items():
        pixels, boxes = of_split.pixels, of_split.boxes
        mirror = training.adapters.mirror and split == "train"
        encoded = encode_images(pipe, pixels, boxes, mirror=mirror, batch_size=batch_size, beat=beat)
        training.store.put_checked(training.latents[split], encoded.to_bytes())


def _train(store: Store, workers: Workers, training: AdapterTraining) -> None:
    """Train until the adapters are there."""
    # Only failures in a row without a newer checkpoint count: lost nodes must not end a run, and a
    # failure that repeats must.
    failures = 0
    while read_adapters(store) is None:
        before = _newest_step(store)
        try:
            workers.train("finetune", training, done=before)
        except TrainingFailed as error:
            failures = 0 if _newest_step(store) > before else failures + 1
            if failures == MAX_FAILURES:
                reason = f"{failures} failures in a row without a new checkpoint, the last one: {error}"
                raise Stopped(f"finetune: {reason}") from error


def _newest_step(store: Store) -> int:
    checkpoint = checkpoints.newest_checkpoint(store)
    return checkpoint.step if checkpoint else 0


class AdapterTrainingLoop:
    """One worker's part in the training of the adapters (workers.TrainingLoop)."""

    def __init__(self, training: AdapterTraining, world: int) -> None:
        from busray.model.finetune import FineTuner
        from busray.model.latents import EncodedImages

        self.training = training
        self.world = world
        self.step = 0
        self.log = TrainingLog(workers=((0, world),))
        self.losses: list[float] = []  # of the steps since the last entry in the log
        self.encoded: dict[str, EncodedImages] = {}
        for split, key in training.latents.items():
            data = training.store.read_checked(key)
            self.encoded[split] = training.store.parsed(key, data, EncodedImages.from_bytes)
        self.tuner = FineTuner(
            load_pipeline(training.base, training.device, "float32"),
            training.adapters,
            training.tokens,
            training.initializers,
            self.encoded["train"],
            training.captions["train"],
            training.seed,
        )

    def checkpoint(self) -> Checkpoint | None:
        return checkpoints.newest_checkpoint(self.training.store)

    def resume(self, checkpoint: Checkpoint) -> None:
        self.tuner.load_state(checkpoint.state)
        self.step, log = checkpoint.step, checkpoint.log
        self.log = replace(log, workers=(*log.workers, (self.step, self.world)))

    def parameters(self) -> Sequence[Any]:
        return list(self.tuner.parameters.values())

    def accumulate(self, positions: range) -> float:
        return self.tuner.accumulate(self.step, positions)

    def apply(self, loss: float) -> None:
        self.losses.append(loss / self.training.batch_size)
        self.tuner.apply(self.step)
        self.step += 1

    def record(self, beat: Beat) -> None:
        settings, step = self.training.adapters, self.step
        last = step == settings.steps
        if step % LOG_EVERY == 0 or last:
            loss = float(np.mean(self.losses))
            self.log = replace(self.log, loss=(*self.log.loss, (step, loss)))
            self.losses.clear()
        if step % settings.validate_every == 0 or last:
            loss = self._validate(beat)
            self.log = replace(self.log, validation=(*self.log.validation, (step, loss)))
        # Last, so that a checkpoint holds the log up to its own step: a resumed one has no gap.
        if step % settings.checkpoint_every == 0 or last:
            checkpoint = Checkpoint(step, self.tuner.state_bytes(), self.log)
            checkpoints.put_checkpoint(self.training.store, checkpoint)

    def _validate(self, beat: Beat) -> float:
        """The validation loss; images are drawn too. Both are of the weights that are given out."""
        beat()
        with self.tuner.averaged_weights():
            loss = self.tuner.validation_loss(self.encoded["val"], self.training.captions["val"], beat)
            self._draw_grid(beat)
        return loss

    def _draw_grid(self, beat: Beat) -> None:
        """Put a contact sheet of the grid's images; beat is called after each class."""
        from busray.model.sample import Sampler

        training = self.training
        fewer = {"steps": min(training.sampling.steps, GRID_STEPS), "batch_size": GRID_IMAGES}
        sampling, pipe = training.sampling.model_copy(update=fewer), self.tuner.sample_pipe()
        sampler = Sampler(pipe, sampling, None, training.base.size, keep_txt2img=False)
        names = sorted({spec.class_name for spec in training.grid})
        rows = []
        for name in names:
            specs = [spec for spec in training.grid if spec.class_name == name]
            rows.append([png_bytes(drawn.image, {}) for drawn in sampler.draw(specs)])
            beat()
        sheet = contact_sheet(rows, [], row_labels=names)
        training.store.replace(f"finetune/grids/{self.step:08d}.png", sheet)

    def commit(self) -> None:
        metadata = {**self.training.metadata, "step": self.training.steps}
        files = self.tuner.adapter_files(metadata)
        record = {**metadata, "sha256": adapter_sha256(files), **asdict(self.log)}
        commit_adapters(self.training.store, files, record)
