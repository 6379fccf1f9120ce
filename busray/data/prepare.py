"""From a folder to the checked, split and hashed data set that every later stage reads."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from busray import config
from busray.data.check import CheckReport, check
from busray.data.phantom import PROBES, write_dataset
from busray.data.split import SPLITS, given_split, split
from busray.identity import fingerprint
from busray.records import DataSet, SourceImage, UserError


def prepare(
    dataset: config.Dataset,
    classes: Mapping[str, str] | Sequence[str],
    size: int,
    folder: Path,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[DataSet, CheckReport]:
    """Check and split folder's images; as check() and make_dataset()."""
    metadata = Path(dataset.metadata) if dataset.metadata else None
    report = check(folder, classes, metadata, progress, dataset)
    return make_dataset(dataset, list(classes), size, folder, report), report


def make_dataset(
    settings: config.Dataset, classes: Sequence[str], size: int, folder: Path, report: CheckReport
) -> DataSet:
    """Split the checked images and hash the result; `size`: side of the model's square in pixels.

    UserError for unreadable files and for a class without an image in one of the splits.
    """
    unusable = _unusable(report)
    if unusable and settings.unreadable == "refuse":
        lines = "\n".join(f"  {file}: {reason}" for file, reason in unusable)
        raise UserError(
            f"{folder}: {len(unusable)} files cannot be used; fix or remove them, or go on without them "
            f"(--dataset.unreadable=leave_out):\n{lines}"
        )
    usable = [image for image in report.images if image.file not in report.flat]
    crossing: tuple[tuple[str, str], ...] = ()
    if settings.split == "folders":
        images_of, crossing = given_split(usable, report.duplicates, report.conflicts, report.sides)
    else:
        images_of = split(usable, report.duplicates, report.conflicts, settings.val, settings.test, settings.seed)
    excluded = _annotated(report, images_of["train"]) if settings.annotations == "exclude" else ()
    left_out = dict(excluded)
    images_of["train"] = tuple(i for i in images_of["train"] if i.file not in left_out)
    for name in classes:
        for side in SPLITS:
            if name not in {image.class_name for image in images_of[side]}:
                fix = "dataset.split" if settings.split == "folders" else "dataset.val and dataset.test"
                message = (
                    f"class {name}: too few images for a {side} split ({folder / name}); add images, or change {fix}"
                )
                if side == "train" and excluded:
                    message += ", or keep annotated images (dataset.annotations)"
                lost = [file for file, _ in _conflicting(report) + crossing]
                if lost:
                    message += f". {len(lost)} images are left out, such as {lost[0]}, since another one shows the same"
                message += "".join(f". {remark}" for remark in report.account.remarks())
                raise UserError(message)
    # What the hash covers decides what adapters are trained on; adding a field orphans them all.
    content = {"size": size, "frame": settings.frame, "splits": {}}
    for side in SPLITS:
        content["splits"][side] = [[i.file, i.class_name, i.sha256, i.columns] for i in images_of[side]]
        # Only there where it is not the format's plain rule, so that the hash of other sets stays.
        read = {i.file: i.reading for i in images_of[side] if i.reading}
        if read:
            content.setdefault("readings", {})[side] = read
    return DataSet(
        hash=fingerprint(content),
        size=size,
        frame=settings.frame,
        seed=settings.seed,
        train=images_of["train"],
        val=images_of["val"],
        test=images_of["test"],
        left_out=tuple(unusable) + _conflicting(report) + crossing + excluded,
    )


def _unusable(report: CheckReport) -> list[tuple[str, str]]:
    """(file, reason) of what cannot be read, and of images that show nothing."""
    odd = dict(report.odd)
    return [*report.unreadable, *((file, odd[file]) for file in report.flat)]


def _conflicting(report: CheckReport) -> tuple[tuple[str, str], ...]:
    """(file, reason) of the images whose near-duplicates are of another class."""
    pairs = []
    for group in report.conflicts:
        for file in group:
            others = ", ".join(other for other in group if other != file)
            pairs.append((file, f"label conflict: also {others}"))
    return tuple(pairs)


def _annotated(report: CheckReport, images: Sequence[SourceImage]) -> tuple[tuple[str, str], ...]:
    """(file, reason) of the images that have text or calipers burned in."""
    pairs = []
    kinds_of = dict(report.annotated)
    for image in images:
        if image.file in kinds_of:
            pairs.append((image.file, f"not trained on: burned-in {' and '.join(kinds_of[image.file])}"))
    return tuple(pairs)


def materialise_phantoms(phantoms: config.Phantoms, folder: Path) -> None:
    """Write the simulated data set into folder, unless the folder exists.

    A folder appears under its name only when it is complete. UserError for an unknown probe.
    """
    if phantoms.probe not in PROBES:
        raise UserError(f"dataset.phantoms.probe: no probe {phantoms.probe!r}; known: {', '.join(sorted(PROBES))}")
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        complete = Path(temporary) / "complete"
        write_dataset(complete, phantoms.images, phantoms.seed, PROBES[phantoms.probe])
        try:
            complete.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another driver was first, with the same images
                raise
