"""Reading a folder of labelled images: one sub-folder per class, masks beside images as in BUSI.

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

from busray.config import hidden_character
from busray.identity import sha256_file
from busray.records import SourceImage, UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".dcm")
MASK = re.compile(r"^(?P<image>.+)_mask(?:_\d+)?$")
READ_THREADS = 2  # threads that decode images at once
# Most pixels of an image or DICOM frame; ultrasound has a few million at most. A decompression
# bomb would fill memory.
MAX_PIXELS = 2**26
FAR = 10**9  # a stored value outside any window of a DICOM file


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
    rows = _metadata(metadata, folder) if metadata else {}
    images, unreadable, stray = [], [], []
    with ThreadPoolExecutor(READ_THREADS) as pool:
        for name, (files, masks) in files_of_class.items():
            for stem in masks.keys() - {file.stem for file in files}:
                stray += masks[stem]
            for file, described in zip(files, pool.map(_describe, files), strict=True):
                if isinstance(described, str):
                    unreadable.append((f"{name}/{file.name}", described))
                    continue
                row = dict(rows.get(described.file, {}))
                group, of_image = row.pop("group", None) or None, tuple(masks.get(file.stem, ()))
                images.append(replace(described, masks=of_image, group=group, columns=row))
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


def _metadata(path: Path, folder: Path) -> dict[str, dict[str, str]]:
    """file -> its other columns."""
    rows = _csv_rows(path)
    if not rows or "file" not in rows[0]:
        raise UserError(f"dataset.metadata: {path} needs a header with the column `file` and at least one row")
    columns_of = {}
    for row in rows:
        file = (row.pop("file") or "").strip()
        problem = hidden_character(file)
        normal = not file or str(PurePosixPath(file)) == file
        if problem or file.startswith("/") or ".." in file.split("/") or not normal:
            why = f"{problem} is in it; rename the file" if problem else "write it as CLASS/NAME, below the data folder"
            raise UserError(f"dataset.metadata: {path} names {file!a}: {why}")
        if not (folder / file).is_file():
            raise UserError(f"dataset.metadata: {path} names {file!r}, which is not in {folder}")
        if file in columns_of:
            raise UserError(f"dataset.metadata: {path} names {file!r} twice")
        columns_of[file] = {key: (value or "").strip() for key, value in row.items() if key}
    return columns_of


def _csv_rows(path: Path) -> list[dict[str, str]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)  # else `, "group"` keeps its quotes
            header = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = header
            rows = list(reader)
    except OSError as error:
        raise UserError(f"dataset.metadata: {path}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"dataset.metadata: {path} is not a CSV file in UTF-8: {error}") from error
    problems = []
    for name, n in Counter(header).items():
        # Another spelling of `group` would let a patient's images fall on both sides of a split.
        if name.lower() in ("file", "group") and not name.islower():
            problems.append(f"{name!r} must be spelt `{name.lower()}`")
        if name and n > 1:
            problems.append(f"{name!r} is there twice")
    if problems:
        raise UserError(f"dataset.metadata: {path}, header: {', '.join(problems)}")
    return rows


def _describe(path: Path) -> SourceImage | str:
    """A readable image without what the folder says of it, or why it cannot be read."""
    try:
        height, width = read_grey(path).shape
        mode = "DICOM"
        if not _is_dicom(path):
            with Image.open(path) as image:
                mode = image.mode
    except UserError as error:
        return str(error)
    except Exception as error:  # decoders raise errors of any type
        if _is_dicom(path):  # its message could quote the patient's data
            return f"{type(error).__name__}: pydicom cannot decode it (compressed pixels may need pylibjpeg)"
        return f"{type(error).__name__}: {error}".splitlines()[0]
    name = path.parent.name
    return SourceImage(f"{name}/{path.name}", name, width, height, mode, sha256_file(path))


def _is_dicom(path: Path) -> bool:
    return path.suffix.lower() == ".dcm"


# ---- pixels ----


def read_grey(path: Path) -> np.ndarray:
    """Pixels as uint8 [h, w], upright as EXIF says, black where the file is transparent.

    Colour becomes luma (ITU-R 601), 16-bit grey is divided by 257, DICOM goes through its window.
    Raises what the decoder raises; UserError for floating-point pixels and for over MAX_PIXELS.
    """
    if _is_dicom(path):
        pixels = _read_dicom(path)
        return pixels if pixels.ndim == 2 else np.array(Image.fromarray(pixels).convert("L"))
    image = _open_upright(path)
    if image.mode == "F":
        raise UserError("floating-point pixels do not say what is black and white: save it as 8-bit or 16-bit grey")
    levels, top = _levels(image)
    return levels if top == 255 else ((levels + 128) // 257).astype(np.uint8)


def _levels(image: Image.Image) -> tuple[np.ndarray, int]:
    """(grey [h, w] as stored, top level of its type); floating-point pixels count as 8 bits."""
    if image.mode.startswith("I"):
        return np.asarray(image, dtype=np.int64).clip(0, 65535), 65535
    return np.array(image if image.mode == "F" else image.convert("L")), 255


def _open_upright(path: Path) -> Image.Image:
    """The decoded picture, turned by its EXIF orientation, and black where it is transparent."""
    with Image.open(path) as image:
        _refuse_bomb(*image.size)
        # With a file name, Pillow maps a raw TIFF into memory and takes its size after the turn.
        image.filename = ""
        ImageOps.exif_transpose(image, in_place=True)
    if not image.has_transparency_data or image.mode.startswith("I"):
        return image
    mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
    opaque = image.convert("RGBA")
    on_black = Image.new(mode, opaque.size)
    on_black.paste(opaque.convert(mode), mask=opaque.getchannel("A"))
    return on_black


def _refuse_bomb(width: int, height: int) -> None:
    # Pillow only warns up to twice its own limit, and threads cannot filter warnings apart.
    if width * height > MAX_PIXELS:
        raise UserError(f"{width} x {height} pixels are more than {MAX_PIXELS}: a decompression bomb, or crop it")


def read_rgb(path: Path) -> np.ndarray | None:
    """Pixels as uint8 [h, w, 3] where the file has colour channels, else None."""
    if _is_dicom(path):
        pixels = _read_dicom(path)
        return pixels if pixels.ndim == 3 else None
    image = _open_upright(path)
    return np.array(image.convert("RGB")) if image.mode in ("RGB", "P", "YCbCr", "CMYK") else None


def read_mask(path: Path) -> np.ndarray:
    """A mask as bool [h, w]: foreground is whatever is above half of its type's range.

    Of 0 and one darker value, that value is foreground: masks of 0 and 1, or of 0 and 255 in 16
    bits, are common. UserError for several dark values, and for what read_grey refuses except
    floating-point pixels.
    """
    levels, top = (read_grey(path), 255) if _is_dicom(path) else _levels(_open_upright(path))
    lesion = levels > top // 2
    nonzero = levels[levels != 0]
    if lesion.any() or not nonzero.size:
        return lesion
    if nonzero.size == levels.size or (nonzero != nonzero[0]).any():
        raise UserError(f"values up to {nonzero.max():g}, not 0 and {top}")
    return levels != 0


def lesion_mask(
    folder: Path, image: SourceImage, shape: tuple[int, ...]
) -> tuple[np.ndarray | None, list[tuple[str, str]]]:
    """(union of an image's masks, bool of `shape`; (mask, problem) of each unusable or empty one).

    The union is None where no mask can be used. An empty mask is right where there is no lesion.
    """
    problems: list[tuple[str, str]] = []
    union = None
    for file in image.masks:
        try:
            mask = read_mask(folder / file)
        except UserError as error:
            problems.append((file, str(error)))
            continue
        except Exception as error:  # decoders raise errors of any type
            problems.append((file, f"unreadable: {error}"))
            continue
        if mask.shape != shape:
            sizes = f"{mask.shape[1]} x {mask.shape[0]}, its image {shape[1]} x {shape[0]}"
            problems.append((file, sizes))
            continue
        if not mask.any():
            problems.append((file, "empty"))
        union = mask if union is None else union | mask
    return union, problems


# ---- DICOM ----


def _read_dicom(path: Path) -> np.ndarray:
    """The first frame of a DICOM file, uint8 [h, w] or [h, w, 3].

    Only pixels leave this function, never an identifier.
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
    pixels = pixel_array(dataset, index=0)  # decodes the first frame alone; YBR becomes RGB
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, dataset)
    if pixels.ndim == 3:
        return (pixels >> (8 * pixels.dtype.itemsize - 8)).astype(np.uint8)  # the upper 8 bits
    bits = int(dataset.BitsStored)
    lowest = -(2 ** (bits - 1)) if dataset.PixelRepresentation else 0
    values = apply_modality_lut(pixels, dataset)
    ends = apply_modality_lut(np.array([[lowest, lowest + 2**bits - 1]]), dataset)
    # Grey goes through the file's own lookup table, else through its window; else the whole range
    # of its stored bits becomes 0 to 255, so that one image's extremes do not decide.
    table = next(iter(dataset.get("VOILUTSequence") or ()), {})
    if table.get("LUTDescriptor") is not None and table.get("LUTData") is not None:
        byte_order = "<" if dataset.original_encoding[1] else ">"
        values, ends = _apply_voi_lut(values, table, f"{byte_order}u2")
    elif dataset.get("WindowWidth") is not None and dataset.get("WindowCenter") is not None:
        # What a window makes of values far outside it are its output's ends.
        values = apply_windowing(values, dataset)
        ends = apply_windowing(np.array([[-FAR, FAR]]), dataset)
    low, high = float(np.min(ends)), float(np.max(ends))
    grey = (values.astype(np.float64) - low) / max(high - low, 1e-9) * 255
    grey = grey.round().clip(0, 255).astype(np.uint8)
    return 255 - grey if dataset.PhotometricInterpretation == "MONOCHROME1" else grey


def _apply_voi_lut(values: np.ndarray, table: Any, uint16: str) -> tuple[np.ndarray, np.ndarray]:
    """(values looked up in the table, the table's entries).

    table: an item of a VOI LUT Sequence (DICOM PS3.3 C.11.2). uint16: the file's type of 16 bits.
    pydicom's own look-up has an index of 8 bits for a table of 8-bit entries: 12-bit values wrap.
    """
    size, first, _ = table.LUTDescriptor
    entries = table.LUTData
    if isinstance(entries, bytes):
        entries = np.frombuffer(entries, uint16, size or 2**16)  # 0 stands for 2 ** 16 entries
    entries = np.atleast_1d(np.asarray(entries, np.int64))
    index = (values.astype(np.float64) - first).clip(0, len(entries) - 1).astype(np.int64)
    return entries[index], entries
