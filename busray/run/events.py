"""TensorBoard's event files of a run: losses, samples and, after `evaluate`, figures.

An event file usually grows, which an object store cannot do. So each validation puts one whole
file, named by its step: `tensorboard --logdir RUN/finetune/tensorboard` reads them one after
another, and a training that goes on from a checkpoint puts the same names again.
"""

import io
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from busray.model.checkpoints import TrainingLog
from busray.records import CLASS_ALL, Figure
from busray.storage import Store

FOLDER = "finetune/tensorboard"
FIGURES = "figures"
"""Name of the file of `evaluate`: TensorBoard reads it after those of all steps."""


class Scalar(NamedTuple):
    tag: str
    step: int
    value: float


def put_events(store: Store, name: str, scalars: Sequence[Scalar], pictures: Mapping[str, bytes], step: int) -> None:
    """Put an event file. pictures: tag -> PNG, shown at this step."""
    from tensorboardX import SummaryWriter  # loads protobuf: only where something is tracked

    with tempfile.TemporaryDirectory(prefix="busray-events-") as folder:
        writer = SummaryWriter(folder)
        for scalar in scalars:
            writer.add_scalar(scalar.tag, scalar.value, scalar.step)
        for tag, png in pictures.items():
            with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
                writer.add_image(tag, np.asarray(image.convert("L")), step, dataformats="HW")
        writer.close()
        (file,) = Path(folder).iterdir()
        store.replace(f"{FOLDER}/events.out.tfevents.{name}.busray", file.read_bytes())


def put_training(store: Store, log: TrainingLog, images_per_second: float | None, sheet: bytes) -> None:
    """The losses since the validation before the last one, the last one, and its images."""
    step, value = log.validation[-1]
    before = log.validation[-2][0] if len(log.validation) > 1 else 0
    scalars = [Scalar("loss/training", at, of) for at, of in log.loss if before < at <= step]
    scalars.append(Scalar("loss/validation", step, value))
    scalars += [Scalar("distance/validation", at, of) for at, of in log.distance if at == step]
    if images_per_second is not None:
        scalars.append(Scalar("images_per_second", step, images_per_second))
    put_events(store, f"{step:010d}", scalars, {"samples": sheet}, step)


def put_figures(store: Store, figures: Sequence[Figure], step: int) -> None:
    """Figures of all classes and of each, under their extractor, protocol, reference and arm.

    step: of the adapters that they are of. Nothing where there are none.
    """
    scalars = []
    for figure in figures:
        of_class = "" if figure.class_name == CLASS_ALL else f" {figure.class_name}"
        stored = figure.to_dict()
        tag = f"{stored['metric']}{of_class}/{figure.extractor}/{figure.protocol}/{figure.reference}/{stored['arm']}"
        scalars.append(Scalar(tag, step, figure.value))
    if scalars:
        put_events(store, FIGURES, scalars, {}, step)
