"""Pixels of one file: which kind of file it is by its content, and its pixels as 8-bit grey.

Names and suffixes of files do not count here. data/read.py says which files belong together.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from busray.data import dicom
from busray.data.dicom import refuse_bomb
from busray.identity import sha256_file
from busray.records import SourceImage, UserError

READ_THREADS = 2  # threads that decode images at once
# Most pixels of an image or DICOM frame; ultrasound has a few million at most. A decompression
# bomb would fill memory.
MAX_PIXELS = 2**26
# Pillow's formats that their first bytes prove. Left out: EPS and WMF, which run other programs,
# and formats without a signature, as which any file might pass.
FORMATS = (
    "AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "PSD", "QOI", "SGI", "SUN",
    "TIFF", "WEBP", "XBM", "XPM",
)  # fmt: skip
# Of them those in which further pictures are frames. In MPO they are previews, in PSD layers.
FRAME_FORMATS = ("AVIF", "GIF", "PNG", "TIFF", "WEBP")
# First bytes of a file whose rest may be too damaged for Pillow to recognise
SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP")


@dataclass(frozen=True)
class Picture:
    """A frame of a file that can be read."""

    width: int  # in pixels, upright
    height: int
    mode: str  # Pillow's mode, or `I;16` for 16-bit grey, or `DICOM`
    frames: int  # of the file: TIFF pages, frames of GIF and APNG, DICOM's NumberOfFrames
    sha256: str  # of the file's bytes
    odd: str = ""  # what is odd about its levels


@dataclass(frozen=True)
class Unreadable:
    """Why a file, or a frame of it, cannot be read."""

    reason: str


def kind_of(path: Path) -> str | None:
    """`picture`, `dicom`, or None for anything else; by the file's bytes, never by its name."""
    if dicom.is_dicom(path):
        return "dicom"
    with open(path, "rb") as file:
        if file.read(12).startswith(SIGNATURES):
            return "picture"
    try:
        with Image.open(path, formats=FORMATS):
            return "picture"
    except Exception:  # decoders raise errors of any type
        return None


def describe(path: Path, frame: int = 0) -> Picture | Unreadable:
    """A frame of a file, decoded to be sure of it, or why it cannot be read."""
    is_dicom = dicom.is_dicom(path)
    try:
        height, width = read_grey(path, frame).shape
        if is_dicom:
            mode, frames = "DICOM", dicom.frame_count(path)
        else:
            with Image.open(path, formats=FORMATS) as image:
                mode, frames = image.mode, _frame_count(image)
    except UserError as error:
        return Unreadable(str(error))
    except Exception as error:  # decoders raise errors of any type
        if is_dicom:  # its message could quote the patient's data
            name = type(error).__name__
            return Unreadable(f"{name}: pydicom cannot decode it (compressed pixels may need pylibjpeg)")
        return Unreadable(f"{type(error).__name__}: {error}".splitlines()[0])
    return Picture(width, height, mode, frames, sha256_file(path))


def _frame_count(image: Image.Image) -> int:
    return getattr(image, "n_frames", 1) if image.format in FRAME_FORMATS else 1


def read_grey(path: Path, frame: int = 0) -> np.ndarray:
    """Pixels as uint8 [h, w], upright as EXIF says, black where the file is transparent.

    Colour becomes luma (ITU-R 601), 16-bit grey is divided by 257, DICOM goes through its window.
    Raises what the decoder raises; UserError for floating-point pixels and for over MAX_PIXELS.
    """
    if dicom.is_dicom(path):
        pixels = dicom.read_frame(path, frame, MAX_PIXELS)
        return pixels if pixels.ndim == 2 else np.array(Image.fromarray(pixels).convert("L"))
    image = _open_upright(path, frame)
    if image.mode == "F":
        raise UserError("floating-point pixels do not say what is black and white: save it as 8-bit or 16-bit grey")
    levels, top = _levels(image)
    return levels if top == 255 else ((levels + 128) // 257).astype(np.uint8)


def read_rgb(path: Path, frame: int = 0) -> np.ndarray | None:
    """Pixels as uint8 [h, w, 3] where the file has colour channels, else None."""
    if dicom.is_dicom(path):
        pixels = dicom.read_frame(path, frame, MAX_PIXELS)
        return pixels if pixels.ndim == 3 else None
    image = _open_upright(path, frame)
    return np.array(image.convert("RGB")) if image.mode in ("RGB", "P", "YCbCr", "CMYK") else None


def _levels(image: Image.Image) -> tuple[np.ndarray, int]:
    """(grey [h, w] as stored, top level of its type); floating-point pixels count as 8 bits."""
    if image.mode.startswith("I"):
        return np.asarray(image, dtype=np.int64).clip(0, 65535), 65535
    return np.array(image if image.mode == "F" else image.convert("L")), 255


def _open_upright(path: Path, frame: int = 0) -> Image.Image:
    """The decoded picture, turned by its EXIF orientation, and black where it is transparent."""
    with Image.open(path, formats=FORMATS) as image:
        if frame:
            image.seek(frame)
        refuse_bomb(*image.size, MAX_PIXELS)
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


def read_mask(path: Path) -> np.ndarray:
    """A mask as bool [h, w]: foreground is whatever is above half of its type's range.

    Of 0 and one darker value, that value is foreground: masks of 0 and 1, or of 0 and 255 in 16
    bits, are common. UserError for several dark values, and for what read_grey refuses except
    floating-point pixels.
    """
    levels, top = (read_grey(path), 255) if dicom.is_dicom(path) else _levels(_open_upright(path))
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
