"""From a folder to the checked, split and hashed data set that every later stage reads."""

import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from busray import config
from busray.data.check import CheckReport, check, lesion_mask
from busray.data.frame import frame, frame_mask
from busray.data.phantom import PROBES, write_dataset
from busray.data.read import READERS, read_grey
from busray.data.split import SPLITS, split
from busray.identity import fingerprint
from busray.records import DataSet, SourceImage, UserError


def prepare(
    dataset: config.Dataset,
    classes: Sequence[str],
    size: int,
    folder: Path,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[DataSet, CheckReport]:
    """Check and split folder's images; UserError for what would make training or comparing impossible."""
    metadata = Path(dataset.metadata) if dataset.metadata else None
    report = check(folder, classes, metadata, progress)
    if report.unreadable:
        lines = "\n".join(f"  {file}: {reason}" for file, reason in report.unreadable)
        raise UserError(f"{folder}: {len(report.unreadable)} files cannot be read; mend or remove them:\n{lines}")
    sides = split(report.images, report.clusters, report.conflicts, dataset.val, dataset.test, dataset.seed)
    out = _annotated(report, sides["train"]) if dataset.annotations == "exclude" else ()
    sides["train"] = tuple(image for image in sides["train"] if image.file not in dict(out))
    for name in classes:
        for side in SPLITS:
            if not any(image.class_name == name for image in sides[side]):
                raise UserError(
                    f"class {name}: too few images for a {side} split ({folder / name}); add images, or change "
                    "dataset.val and dataset.test"
                    + (", or keep annotated images (dataset.annotations)" if side == "train" and out else "")
                )
    conflicts = tuple(
        (file, f"label conflict: also {', '.join(other for other in group if other != file)}")
        for group in report.conflicts
        for file in group
    )
    content = {
        "size": size,
        "frame": dataset.frame,
        "splits": {side: [[i.file, i.class_name, i.sha256, i.columns] for i in sides[side]] for side in SPLITS},
    }
    return DataSet(
        hash=fingerprint(content),
        size=size,
        frame=dataset.frame,
        seed=dataset.seed,
        train=sides["train"],
        val=sides["val"],
        test=sides["test"],
        left_out=conflicts + out,
    ), report


def _annotated(report: CheckReport, images: Sequence[SourceImage]) -> tuple[tuple[str, str], ...]:
    """(file, reason) of the images that have something burned in."""
    kinds = dict(report.annotated)
    return tuple(
        (i.file, f"not trained on: burned-in {' and '.join(kinds[i.file])}") for i in images if i.file in kinds
    )


def load_images(folder: Path, images: Sequence[SourceImage], size: int, policy: str) -> np.ndarray:
    """The images, framed: uint8 [n, size, size]."""
    if not images:
        return np.zeros((0, size, size), np.uint8)
    with ThreadPoolExecutor(READERS) as pool:
        return np.stack(list(pool.map(lambda i: frame(read_grey(folder / i.file), size, policy), images)))


def load_masks(folder: Path, images: Sequence[SourceImage], size: int, policy: str) -> tuple[np.ndarray, np.ndarray]:
    """(lesions bool [n, size, size] framed as the images are, known bool [n]).

    Several masks of an image are one; an empty one says that there is no lesion. An image without a mask, or with one
    that cannot be used, says nothing: it is not known.
    """

    def read(image: SourceImage) -> tuple[np.ndarray, bool]:
        mask, problems = lesion_mask(folder, image, (image.height, image.width))
        if mask is None or any(problem != "empty" for _, problem in problems):
            return np.zeros((size, size), bool), False
        return frame_mask(mask, size, policy), True

    with ThreadPoolExecutor(READERS) as pool:
        found = list(pool.map(read, images))
    return np.array([mask for mask, _ in found], bool).reshape(-1, size, size), np.array([ok for _, ok in found], bool)


def materialise_phantoms(phantoms: config.Phantoms, folder: Path) -> None:
    """Write the simulated data set into folder, unless it is there already; a torn one is written anew."""
    if phantoms.probe not in PROBES:
        raise UserError(f"dataset.phantoms.probe: no probe {phantoms.probe!r}; known: {', '.join(sorted(PROBES))}")
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as own:
        write_dataset(Path(own) / "whole", phantoms.images, phantoms.seed, PROBES[phantoms.probe])
        try:
            (Path(own) / "whole").rename(folder)
        except OSError:
            if not folder.is_dir():  # else another driver was first, with the same images
                raise
