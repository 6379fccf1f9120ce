"""Fine-tuning: existing adapters are copied from adapters.path, or workers train new ones.

Each worker takes some positions of every batch, and the gradients are summed. Sample order and
noise follow from (seed, step, position). So the result does not depend on how many workers there
are, except for the rounding of a sum. Checkpoints are in the run's store, and a rerun resumes from
the newest one.
"""

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from busray import config
from busray.corpus.encode import png_bytes
from busray.data.images import Images
from busray.evidence.val_distance import MOST_IMAGES, ValImages, extractor_at_hand, val_images
from busray.identity import fingerprint, seed_for
from busray.model import checkpoints
from busray.model.adapters import DECODER_FOLDER, adapter_sha256, offered_adapters
from busray.model.base import base_files, load_pipeline
from busray.model.checkpoints import Checkpoint, TrainingLog, commit_adapters, read_adapters
from busray.model.noise_schedule import SCHEDULER, changed_schedule
from busray.records import AdaptersRecord, ContentBox, ImageSpec, Stopped
from busray.report.contact_sheet import contact_sheet
from busray.report.warnings import not_nearer
from busray.run.events import put_training
from busray.run.images import adapters_folder
from busray.run.record import Run
from busray.storage import Store
from busray.workers import Beat, TrainingFailed, Workers

if TYPE_CHECKING:
    from busray.model.latents import EncodedImages, TrainingImages

LOG_EVERY = 10  # steps between two entries of the training loss
IMAGES_A_PART = 4096  # that are encoded into one object at most
GRID_IMAGES = 4  # of each class's images that a validation draws, those that people look at
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
    latents: Mapping[str, tuple[str, ...]]  # split -> keys of its encoded images, part by part
    grid: tuple[ImageSpec, ...]  # the images that are drawn at each validation
    val: ValImages | None  # what they are compared with; None: with nothing
    decoder: str | None  # key of the tuned decoder's weights; None where none is tuned
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
    training = _training(run, workers.device, _val_images(run, workers))
    _tune_decoder_once(run, workers, training)
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
        settings = run.config.adapters
        offered = offered_adapters(folder, settings.method, tokens, run.base, run.dataset.hash, settings=settings)
    return commit_adapters(run.store, offered.files, {**offered.record, "adopted": True})


def _val_images(run: Run, workers: Workers) -> ValImages | None:
    """What drawn images are compared with during training; None where nothing is measured."""
    if not run.config.adapters.validation_images:
        return None
    chosen = []
    for name in run.config.classes:
        of_class = [image for image in run.dataset.val if image.class_name == name]
        chosen += of_class[:: max(1, math.ceil(len(of_class) / MOST_IMAGES))]  # evenly spread
    if not chosen:
        return None
    images = run.images.load(chosen)
    return workers.call("val images", 0, _describe, images, tuple(run.config.classes), extractor_at_hand())


def _describe(beat: Beat, images: Images, classes: tuple[str, ...], extractor: str) -> ValImages | None:
    return val_images(images, classes, extractor, beat)


def _training(run: Run, device: str, val: ValImages | None) -> AdapterTraining:
    settings = run.config
    tokens = settings.tokens() if settings.uses_tokens else {}
    pins = {"base": run.base.to_dict(), "size": settings.base.size, "frame": settings.dataset.frame}
    latents, captions = {}, {}
    for split in ("train", "val"):
        # Everything that decides the encoded images; captions and tokens do not.
        identity = fingerprint([run.dataset.hash, pins, split, settings.adapters.mirror])
        images = run.dataset.split(split)
        latents[split] = _keys(f"finetune/latents-{split}-{identity[:16]}", len(images))
        captions[split] = run.captions(images)
    adapters = settings.adapters.model_dump(mode="json")
    metadata = {
        **pins,
        "dataset_hash": run.dataset.hash,
        "method": settings.adapters.method,
        "tokens": tokens,
        SCHEDULER: changed_schedule(settings.adapters, base_files(settings.base).configs["scheduler"]),
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
        grid=_grid(run, GRID_IMAGES if val is None else max(GRID_IMAGES, settings.adapters.validation_images)),
        val=val,
        decoder=_decoder_key(run, pins),
        seed=settings.seed,
        device=device,
        metadata=metadata,
    )


def _grid(run: Run, count: int) -> tuple[ImageSpec, ...]:
    """`count` images of each class with fixed seeds: captions and shapes of training images."""
    specs = []
    for name in run.config.classes:
        of_class = tuple(image for image in run.dataset.train if image.class_name == name)
        images = [of_class[i % len(of_class)] for i in range(count if of_class else 0)]
        captions, boxes = run.captions(tuple(images)), run.images.boxes(images)
        for i, (caption, box) in enumerate(zip(captions, boxes, strict=True)):
            # The same at each validation, so that only the weights change from sheet to sheet.
            seed = seed_for(run.config.seed, name, i, 0, "validate")
            specs.append(ImageSpec(f"grid-{name}-{i}", name, i, 0, caption, seed, seed, box))
    return tuple(specs)


def _keys(name: str, images: int) -> tuple[str, ...]:
    """Keys of the parts that so many images are encoded in: one part has no number."""
    if images <= IMAGES_A_PART:
        return (f"{name}.safetensors",)
    return tuple(f"{name}-{at // IMAGES_A_PART:05d}.safetensors" for at in range(0, images, IMAGES_A_PART))


def _decoder_key(run: Run, pins: dict[str, Any]) -> str | None:
    settings = run.config.adapters
    if not settings.decoder_steps:
        return None
    how = [settings.decoder_steps, settings.decoder_learning_rate, run.config.seed]
    return f"finetune/decoder-{fingerprint([run.dataset.hash, pins, how])[:16]}.safetensors"


def _tune_decoder_once(run: Run, workers: Workers, training: AdapterTraining) -> None:
    """Put the decoder that is tuned on the train images into the store, where it is missing."""
    if training.decoder is None or run.store.exists(training.decoder):
        return
    from busray.model.decoder import evenly_chosen  # imports torch

    images = run.images.load(evenly_chosen(run.dataset.train))
    workers.call("decoder", training.adapters.decoder_steps, _tune_decoder, training, images.pixels, kind="model")


def _tune_decoder(beat: Beat, training: AdapterTraining, pixels: np.ndarray) -> None:
    from busray.model.decoder import Decoding, tune_decoder
    from busray.model.tuned_networks import network_files, weights_file

    assert training.decoder is not None
    vae, settings = _load(training).vae, training.adapters
    tune_decoder(vae, pixels, Decoding(settings.decoder_steps, settings.decoder_learning_rate, training.seed), beat)
    training.store.put_checked(training.decoder, network_files(DECODER_FOLDER, vae)[weights_file(DECODER_FOLDER)])


def _encode_once(run: Run, workers: Workers, training: AdapterTraining) -> None:
    """Put the encoded train and validation images into the store, where they are missing."""
    small: dict[str, Images] = {}  # splits of one part are encoded together
    for split, keys in training.latents.items():
        images = run.dataset.split(split)
        for number, key in enumerate(keys):
            if run.store.exists(key):
                continue
            # A part at a time, so that memory does not grow with the data set.
            part = run.images.load(images[number * IMAGES_A_PART : (number + 1) * IMAGES_A_PART])
            if len(keys) == 1:
                small[key] = part
            else:
                workers.call("encode", len(part), _encode, training, {key: part}, kind="model")
    if small:
        total = sum(map(len, small.values()))
        workers.call("encode", total, _encode, training, small, kind="model")


def _encode(beat: Beat, training: AdapterTraining, images_of: Mapping[str, Images]) -> None:
    """images_of: key of the encoded images -> images."""
    from busray.model.latents import encode_images  # imports torch: in the worker only

    pipe = _load(training)
    batch_size = training.sampling.batch_size
    for key, images in images_of.items():
        mirror = training.adapters.mirror and key in training.latents["train"]
        encoded = encode_images(pipe, images.pixels, images.boxes, mirror=mirror, batch_size=batch_size, beat=beat)
        training.store.put_checked(key, encoded.to_bytes())


def _load(training: AdapterTraining) -> Any:
    """The base's pipeline in float32, for a process that does nothing but encode or train."""
    if training.device == "cuda":
        import torch

        torch.set_float32_matmul_precision("high")  # TF32
    return load_pipeline(training.base, training.device, "float32")


def _encoded_images(training: AdapterTraining, split: str) -> "TrainingImages":
    """A split's encoded images from the store. Damaged."""
    import torch

    from busray.model.latents import training_images

    # The files may go once they are open: what is mapped into memory stays readable.
    with tempfile.TemporaryDirectory(prefix="busray-latents-") as folder:
        parts = [_encoded_part(training.store, key, Path(folder)) for key in training.latents[split]]
        return training_images(parts, torch.device(training.device))


def _encoded_part(store: Store, key: str, folder: Path) -> "EncodedImages":
    """The encoded images of an object, which is copied into this folder. Damaged."""
    from busray.model.latents import EncodedImages

    path, data = folder / Path(key).name, store.read_checked(key)
    path.write_bytes(data)
    return store.parsed(key, data, lambda _: EncodedImages.in_file(path))


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


def _grid_key(step: int) -> str:
    """The contact sheet of a validation."""
    return f"finetune/grids/{step:08d}.png"


class AdapterTrainingLoop:
    """One worker's part in the training of the adapters (workers.TrainingLoop)."""

    def __init__(self, training: AdapterTraining, world: int) -> None:
        from busray.model.finetune import FineTuner

        self.training = training
        self.world = world
        self.step = 0
        self.since = (0, time.monotonic())  # (step, then) of the last validation
        self.log = TrainingLog(workers=((0, world),))
        self.decodes_tuned = False  # images are drawn with the tuned decoder
        self.losses: list[float] = []  # of the steps since the last entry in the log
        self.encoded = {split: _encoded_images(training, split) for split in training.latents}
        self.tuner = FineTuner(
            _load(training),
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
        self.since = (self.step, time.monotonic())
        self.log = replace(log, workers=(*log.workers, (self.step, self.world)))

    def parameters(self) -> Sequence[Any]:
        return list(self.tuner.parameters.values())

    def accumulate(self, positions: range) -> float:
        return self.tuner.accumulate(self.step, positions)

    def apply(self, loss: float) -> None:
        self.losses.append(loss / self.training.batch_size)
        self.tuner.apply(self.step)
        self.step += 1

    def begin(self, beat: Beat) -> None:
        """Measure the base: LoRA changes nothing yet, and a token says what it starts from."""
        if self.step == 0 and self.training.val is not None:
            self._validate(beat)

    @property
    def over(self) -> bool:
        after = self.training.adapters.stop_after
        distances = [distance for step, distance in self.log.distance if step]
        if after is None or not distances:
            return False
        return len(distances) - 1 - distances.index(min(distances)) >= after

    @property
    def may_end(self) -> bool:
        settings = self.training.adapters
        return settings.stop_after is not None and self.step % settings.validate_every == 0

    def record(self, beat: Beat) -> None:
        settings, step = self.training.adapters, self.step
        last = step == settings.steps
        if step % LOG_EVERY == 0 or last:
            loss = float(np.mean(self.losses))
            self.log = replace(self.log, loss=(*self.log.loss, (step, loss)))
            self.losses.clear()
        if step % settings.validate_every == 0 or last:
            pace = self._images_per_second()
            self._validate(beat)
            put_training(self.training.store, self.log, pace, self.training.store.read(_grid_key(step)))
            self.since = (step, time.monotonic())
        # Last, so that a checkpoint holds the log up to its own step: a resumed one has no gap.
        if step % settings.checkpoint_every == 0 or last:
            checkpoint = Checkpoint(step, self.tuner.state_bytes(), self.log)
            checkpoints.put_checkpoint(self.training.store, checkpoint)

    def _images_per_second(self) -> float | None:
        """Since the last validation, or since the training began or went on."""
        step, began = self.since
        seconds = time.monotonic() - began
        return (self.step - step) * self.training.batch_size / seconds if seconds > 0 else None

    def _validate(self, beat: Beat) -> None:
        """Log loss and distance of the weights that are given out, and keep the nearest weights."""
        beat()
        if self.step and self.training.decoder is not None and not self.decodes_tuned:
            self._load_decoder(self.training.decoder)
        with self.tuner.averaged_weights(), self.tuner.arithmetic(), self.tuner.not_compiled():
            loss = self.tuner.validation_loss(self.encoded["val"], self.training.captions["val"], beat)
            drawn = self._draw_grid(beat)
        self.log = replace(self.log, validation=(*self.log.validation, (self.step, loss)))
        if self.training.val is None:
            return
        boxes: dict[str, list[ContentBox]] = {name: [] for name in drawn}
        for spec in self.training.grid:
            boxes[spec.class_name].append(spec.box)
        distance = self.training.val.distance(drawn, boxes)
        earlier = [distance for step, distance in self.log.distance if step]
        if self.step and distance < min(earlier, default=math.inf):
            self.tuner.keep()
        self.log = replace(self.log, distance=(*self.log.distance, (self.step, distance)))

    def _draw_grid(self, beat: Beat) -> dict[str, np.ndarray]:
        """class -> the grid's images, of which a contact sheet is put; beat after each batch."""
        from busray.model.sample import Sampler

        training = self.training
        fewer = {"steps": min(training.sampling.steps, GRID_STEPS), "batch_size": GRID_IMAGES}
        sampling, pipe = training.sampling.model_copy(update=fewer), self.tuner.sample_pipe()
        sampler = Sampler(pipe, sampling, None, training.base.size, keep_txt2img=False)
        names = sorted({spec.class_name for spec in training.grid})
        drawn: dict[str, np.ndarray] = {}
        for name in names:
            specs = [spec for spec in training.grid if spec.class_name == name]
            images: list[np.ndarray] = []
            for at in range(0, len(specs), GRID_IMAGES):
                images += [image.image for image in sampler.draw(specs[at : at + GRID_IMAGES])]
                beat()
            drawn[name] = np.stack(images)
        rows = [[png_bytes(image, {}) for image in drawn[name][:GRID_IMAGES]] for name in names]
        training.store.replace(_grid_key(self.step), contact_sheet(rows, [], row_labels=names))
        return drawn

    def _load_decoder(self, key: str) -> None:
        """Draw with the tuned decoder from now on, as the corpus will; the base has its own."""
        from safetensors.torch import load

        self.tuner.pipe.vae.load_state_dict(load(self.training.store.read_checked(key)))
        self.decodes_tuned = True

    def commit(self) -> None:
        distances = [pair for pair in self.log.distance if pair[0]]
        best = min(distances, key=lambda pair: pair[1])[0] if distances else self.step
        metadata = {**self.training.metadata, "step": best}
        files = {**self.tuner.adapter_files(metadata), **self._decoder_files()}
        record = {**metadata, "sha256": adapter_sha256(files, metadata[SCHEDULER]), **asdict(self.log)}
        if self.training.val is not None:
            record["distance_features"] = self.training.val.extractor
            record["warnings"] = [warned.text for warned in not_nearer(record)]
        commit_adapters(self.training.store, files, record)

    def _decoder_files(self) -> dict[str, bytes]:
        """The tuned decoder's files; none where none was tuned. Damaged."""
        if self.training.decoder is None:
            return {}
        from busray.model.tuned_networks import files_of_weights

        weights = self.training.store.read_checked(self.training.decoder)
        return files_of_weights(DECODER_FOLDER, weights, self.tuner.pipe.vae)
