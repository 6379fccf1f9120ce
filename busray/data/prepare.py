"""From a folder to the checked, split and hashed data set that every later stage reads."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from busray import config
from busray.data.check import CheckReport, check
from busray.data.phantom import PROBES, write_dataset
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
