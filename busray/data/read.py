"""Reading a folder of labelled images: one sub-folder a class, BUSI's masks beside the images.

Nothing here judges the images; check.py does. Pixels come out as 8-bit grey.
"""

import csv
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from busray.config import unfit
from busray.identity import sha256_file
from busray.records import SourceImage, UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".dcm")
MASK = re.compile(r"^(?P<image>.+)_mask(?:_\d+)?$")
READERS = 2
MAX_PIXELS = 2**26
"""Of one image or DICOM frame: the decoded picture would fill memory. Ultrasound has a few million at most."""
FAR = 10**9
"""Beyond any window of a DICOM file."""


@dataclass(frozen=True)
class Scan:
    """What a folder holds: readable images, sorted by file, (file, reason) of the others, masks of no image."""

    images: tuple[SourceImage, ...]
    unreadable: tuple[tuple[str, str], ...]
    stray_masks: tuple[str, ...]


def scan(folder: Path, classes: Sequence[str], metadata: Path | None = None) -> Scan:
    """Look at every image of the classes' folders; UserError for what a user must mend first.

    metadata: CSV with the column `file` (relative to folder), optionally `group` (a patient's images share one), and
    any others; spaces around names and values are no part of them.
    """
    found = {name: _class_files(folder, name) for name in _existing(folder, classes)}
    rows = _metadata(metadata, folder) if metadata else {}
    images, unreadable, stray = [], [], []
    with ThreadPoolExecutor(READERS) as pool:
        for name, (files, masks) in found.items():
            lone = masks.keys() - {file.stem for file in files}
            stray += [f"{name}/{mask.name}" for stem in lone for mask in masks[stem]]
            for file, looked in zip(files, pool.map(_look, files), strict=True):
                relative = f"{name}/{file.name}"
                if isinstance(looked, str):
                    unreadable.append((relative, looked))
                    continue
                row = dict(rows.get(relative, {}))
                image = replace(
                    looked,
                    file=relative,
                    class_name=name,
                    masks=tuple(f"{name}/{mask.name}" for mask in masks.get(file.stem, ())),
                    group=row.pop("group", None) or None,
                    columns=row,
                )
                images.append(image)
    if any("group" in row for row in rows.values()):
        without = [image.file for image in images if image.file not in rows]
        if without:
            raise UserError(
                f"dataset.metadata: {metadata} has no row for {len(without)} images, such as {without[0]!r}; "
                "with a column `group` every image needs one (its group may be empty)"
            )
    return Scan(tuple(sorted(images, key=lambda i: i.file)), tuple(sorted(unreadable)), tuple(sorted(stray)))


def class_names(folder: Path) -> list[str]:
    """The names of the folder's class folders."""
    if not folder.is_dir():
        raise UserError(f"data folder {folder}: there is no such folder")
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise UserError(f"data folder {folder} is empty: it needs one folder of images a class")
    return names


def _existing(folder: Path, classes: Sequence[str]) -> Sequence[str]:
    there = class_names(folder)
    for name in classes:
        if name not in there:
            raise UserError(f"class {name}: no folder {folder / name}; folders there: {', '.join(there)}")
    return classes


def _class_files(folder: Path, name: str) -> tuple[list[Path], dict[str, list[Path]]]:
    """(images, stem -> its masks) of a class's folder."""
    root = folder.resolve()
    files, masks = [], {}
    for path in sorted((folder / name).iterdir()):
        if path.suffix.lower() not in SUFFIXES or not path.is_file():
            continue
        odd = unfit(f"{name}/{path.name}")
        if odd:
            raise UserError(f"{folder}: {f'{name}/{path.name}'!a}: {odd} is in the name; rename it")
        if not path.resolve().is_relative_to(root):
            raise UserError(f"{path}: leads out of the data folder; copy the file there instead")
        match = MASK.match(path.stem)
        if match:
            masks.setdefault(match["image"], []).append(path)
        else:
            files.append(path)
    if not files:
        raise UserError(f"class {name}: no images in {folder / name} (looked for {', '.join(SUFFIXES)})")
    return files, masks


def _metadata(path: Path, folder: Path) -> dict[str, dict[str, str]]:
    """file -> its other columns."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)  # else `, "group"` keeps its quotes
            header = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = header
            rows = list(reader)
    except OSError as error:
        raise UserError(f"dataset.metadata: {path}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"dataset.metadata: {path} is no CSV in UTF-8: {error}") from error
    wrong = [f"{n!r} must be spelt `{n.lower()}`" for n in header if n.lower() in ("file", "group") and not n.islower()]
    wrong += [f"{name!r} is there twice" for name, n in Counter(header).items() if name and n > 1]
    if wrong:  # another spelling of `group` would let a patient's images fall on both sides of a split
        raise UserError(f"dataset.metadata: {path}, header: {', '.join(wrong)}")
    if not rows or "file" not in rows[0]:
        raise UserError(f"dataset.metadata: {path} needs a header with the column `file` and at least one row")
    table = {}
    for row in rows:
        file = (row.pop("file") or "").strip()
        odd = unfit(file)
        if odd or file.startswith("/") or ".." in file.split("/") or (file and str(PurePosixPath(file)) != file):
            why = f"{odd} is in it; rename the file" if odd else "write it as CLASS/NAME, below the data folder"
            raise UserError(f"dataset.metadata: {path} names {file!a}: {why}")
        if not (folder / file).is_file():
            raise UserError(f"dataset.metadata: {path} names {file!r}, which is not in {folder}")
        if file in table:
            raise UserError(f"dataset.metadata: {path} names {file!r} twice")
        table[file] = {key: (value or "").strip() for key, value in row.items() if key}
    return table


def _look(path: Path) -> SourceImage | str:
    """Size, mode and digest of a readable image, or why it cannot be read."""
    try:
        pixels = read_grey(path)
        mode = _mode(path)
    except UserError as error:
        return str(error)
    except Exception as error:  # decoders raise what they like; the reason goes to the user
        if _is_dicom(path):  # whose words could be a patient's
            return f"{type(error).__name__}: pydicom cannot decode it (compressed pixels may need pylibjpeg)"
        return f"{type(error).__name__}: {error}".splitlines()[0]
    height, width = pixels.shape
    return SourceImage("", "", width, height, mode, sha256_file(path))


def _is_dicom(path: Path) -> bool:
    return path.suffix.lower() == ".dcm"


def _mode(path: Path) -> str:
    if _is_dicom(path):
        return "DICOM"
    with Image.open(path) as image:
        return image.mode


def read_grey(path: Path) -> np.ndarray:
    """Pixels as uint8 [h, w]: colour by luma (ITU-R 601), 16-bit grey divided by 257, DICOM by its window.

    Upright as EXIF has it, and black where the file is transparent.
    Raises whatever the decoder raises; UserError for more than MAX_PIXELS, before any is decoded, and for
    floating-point pixels.
    """
    if _is_dicom(path):
        pixels = _read_dicom(path)
        return pixels if pixels.ndim == 2 else np.array(Image.fromarray(pixels).convert("L"))
    image = _opened(path)
    if image.mode == "F":
        raise UserError("floating-point pixels do not say what is black and white: save it as 8-bit or 16-bit grey")
    values, top = _levels(image)
    return values if top == 255 else ((values + 128) // 257).astype(np.uint8)


def _levels(image: Image.Image) -> tuple[np.ndarray, int]:
    """(grey [h, w] as the file has it, its type's greatest level); floating-point numbers count as 8 bits."""
    if image.mode.startswith("I"):
        return np.asarray(image, dtype=np.int64).clip(0, 65535), 65535
    return np.array(image if image.mode == "F" else image.convert("L")), 255


def _opened(path: Path) -> Image.Image:
    """The decoded picture, turned upright by its EXIF orientation, and black where it is transparent."""
    with Image.open(path) as image:
        _refuse_bomb(*image.size)
        image.filename = ""  # else Pillow maps a raw TIFF into memory, by the size that it has once turned
        ImageOps.exif_transpose(image, in_place=True)
    if not image.has_transparency_data or image.mode.startswith("I"):
        return image
    mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
    shown = image.convert("RGBA")
    on_black = Image.new(mode, shown.size)
    on_black.paste(shown.convert(mode), mask=shown.getchannel("A"))
    return on_black


def _refuse_bomb(width: int, height: int) -> None:
    """Pillow's own limit is a warning up to twice its size, and warnings are the process's, not the thread's."""
    if width * height > MAX_PIXELS:
        raise UserError(f"{width} x {height} pixels are more than {MAX_PIXELS}: a decompression bomb, or crop it")


def read_rgb(path: Path) -> np.ndarray | None:
    """Pixels as uint8 [h, w, 3] where the file has colour channels, else None."""
    if _is_dicom(path):
        pixels = _read_dicom(path)
        return pixels if pixels.ndim == 3 else None
    image = _opened(path)
    return np.array(image.convert("RGB")) if image.mode in ("RGB", "P", "YCbCr", "CMYK") else None


def read_mask(path: Path) -> np.ndarray:
    """A mask as bool [h, w]: foreground is whatever is above half of its type's range.

    Where nothing is, a file of 0 and one other value has that as its foreground: 0 and 1, or 0 and 255 in 16 bits.
    UserError for other dark values, which say nothing, and for what read_grey refuses, but for floating-point numbers.
    """
    values, top = (read_grey(path), 255) if _is_dicom(path) else _levels(_opened(path))
    lesion = values > top // 2
    shown = values[values != 0]
    if lesion.any() or not shown.size:
        return lesion
    if shown.size == values.size or (shown != shown[0]).any():
        raise UserError(f"values up to {shown.max():g}, not 0 and {top}")
    return values != 0


def _read_dicom(path: Path) -> np.ndarray:
    """The first frame of a DICOM file, uint8 [h, w] or [h, w, 3]; only pixels leave this function, no identifier.

    Grey is what the file's own table holds, else its window, else all that its bits can say, over 0 to 255, whatever
    this image's extremes are.
    """
    import pydicom
    from pydicom.filereader import read_file_meta_info
    from pydicom.pixels import pixel_array
    from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_windowing
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    if read_file_meta_info(path).get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        raise UserError("a deflated DICOM file has no size until all of it is inflated: save it in another encoding")
    dataset = pydicom.dcmread(path)
    _refuse_bomb(int(dataset.Columns), int(dataset.Rows))
    pixels = pixel_array(dataset, index=0)  # the first frame alone is decoded; YBR comes as RGB
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, dataset)
    if pixels.ndim == 3:
        return pixels if pixels.dtype == np.uint8 else (pixels >> (8 * pixels.dtype.itemsize - 8)).astype(np.uint8)
    bits = int(dataset.BitsStored)
    lowest = -(2 ** (bits - 1)) if dataset.PixelRepresentation else 0
    values = apply_modality_lut(pixels, dataset)
    ends = apply_modality_lut(np.array([[lowest, lowest + 2**bits - 1]]), dataset)
    table = next(iter(dataset.get("VOILUTSequence") or ()), {})
    if table.get("LUTDescriptor") is not None and table.get("LUTData") is not None:
        values, ends = _looked_up(values, table, "<u2" if dataset.original_encoding[1] else ">u2")
    elif dataset.get("WindowWidth") is not None and dataset.get("WindowCenter") is not None:
        values, ends = apply_windowing(values, dataset), apply_windowing(np.array([[-FAR, FAR]]), dataset)
    low, high = float(np.min(ends)), float(np.max(ends))
    grey = ((values.astype(np.float64) - low) / max(high - low, 1e-9) * 255).round().clip(0, 255).astype(np.uint8)
    return 255 - grey if dataset.PhotometricInterpretation == "MONOCHROME1" else grey


def _looked_up(values: np.ndarray, table: Any, word: str) -> tuple[np.ndarray, np.ndarray]:
    """(values looked up in an item of a VOI LUT Sequence, DICOM PS3.3 C.11.2, its entries); word: the file's uint16.

    Not by pydicom, whose index into a table of 8-bit entries is itself of 8 bits: 12-bit values come out wrapped.
    """
    size, first, _ = table.LUTDescriptor
    size = size or 2**16
    data = table.LUTData
    entries = np.frombuffer(data, word, size) if isinstance(data, bytes) else data
    entries = np.atleast_1d(np.asarray(entries, np.int64))
    at = (values.astype(np.float64) - first).clip(0, len(entries) - 1).astype(np.int64)
    return entries[at], entries
