"""Reading a folder of labelled images: one sub-folder per class, masks beside images as in BUSI.

Nothing here judges the images; check.py does. pixels.py reads a file, metadata.py the table.
"""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from busray.config import hidden_character
from busray.data.metadata import metadata_rows
from busray.data.pixels import READ_THREADS, Unreadable, describe
from busray.data.pixels import read_grey as read_grey  # programs of users import it from here
from busray.records import SourceImage, UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".dcm")
MASK = re.compile(r"^(?P<image>.+)_mask(?:_\d+)?$")


@dataclass(frozen=True)
class FolderScan:
    """What a folder holds."""

    images: tuple[SourceImage, ...]  # readable images, sorted by file
    unreadable: tuple[tuple[str, str], ...]  # (file, reason)
    stray_masks: tuple[str, ...]  # masks without an image


def scan(folder: Path, classes: Sequence[str], metadata: Path | None = None) -> FolderScan:
    """Read every image of the classes' folders once.

    metadata: CSV with the column `file` (relative to folder), optionally `group` (images of one
    patient share it), and any others. Spaces around names and values do not count.
    UserError for a missing folder, an unusable name or file, and a wrong metadata file.
    """
    present = class_names(folder)
    for name in classes:
        if name not in present:
            raise UserError(f"class {name}: no folder {folder / name}; folders there: {', '.join(present)}")
    files_of_class = {name: _class_files(folder, name) for name in classes}
    rows = metadata_rows(metadata, folder) if metadata else {}
    images, unreadable, stray = [], [], []
    with ThreadPoolExecutor(READ_THREADS) as pool:
        for name, (files, masks) in files_of_class.items():
            for stem in masks.keys() - {file.stem for file in files}:
                stray += masks[stem]
            for file, described in zip(files, pool.map(describe, files), strict=True):
                relative = f"{name}/{file.name}"
                if isinstance(described, Unreadable):
                    unreadable.append((relative, described.reason))
                    continue
                row = dict(rows.get(relative, {}))
                group, of_image = row.pop("group", None) or None, tuple(masks.get(file.stem, ()))
                size, content = (described.width, described.height), (described.mode, described.sha256)
                images.append(SourceImage(relative, name, *size, *content, of_image, group, row))
    if any("group" in row for row in rows.values()):
        # An image without a row would count as a patient of its own and could cross the split.
        without = [image.file for image in images if image.file not in rows]
        if without:
            raise UserError(
                f"dataset.metadata: {metadata} has no row for {len(without)} images, such as {without[0]!r}; "
                "with a column `group` every image needs one (its group may be empty)"
            )
    images.sort(key=lambda image: image.file)
    return FolderScan(tuple(images), tuple(sorted(unreadable)), tuple(sorted(stray)))


def class_names(folder: Path) -> list[str]:
    """The names of the folder's class folders. UserError where there is none."""
    if not folder.is_dir():
        raise UserError(f"data folder {folder}: there is no such folder")
    folders = [entry.name for entry in folder.iterdir() if entry.is_dir()]
    names = sorted(name for name in folders if not name.startswith("."))
    if not names:
        raise UserError(f"data folder {folder} is empty: it needs one folder of images per class")
    return names


def _class_files(folder: Path, name: str) -> tuple[list[Path], dict[str, list[str]]]:
    """(images, stem of an image -> CLASS/NAME of its masks) of a class's folder."""
    root, files, masks = folder.resolve(), [], {}
    for path in sorted((folder / name).iterdir()):
        if path.suffix.lower() not in SUFFIXES or not path.is_file():
            continue
        relative = f"{name}/{path.name}"
        problem = hidden_character(relative)
        if problem:
            raise UserError(f"{folder}: {relative!a}: {problem} is in the name; rename it")
        if not path.resolve().is_relative_to(root):
            raise UserError(f"{path}: leads out of the data folder; copy the file there instead")
        match = MASK.match(path.stem)
        if match:
            masks.setdefault(match["image"], []).append(relative)
        else:
            files.append(path)
    if not files:
        raise UserError(f"class {name}: no images in {folder / name} (looked for {', '.join(SUFFIXES)})")
    return files, masks
