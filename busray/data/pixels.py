"""Pixels of one file: which kind of file it is by its content, and its pixels as 8-bit grey.

Names and suffixes of files do not count here. data/read.py says which files belong together.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from busray.data import dicom, levels
from busray.data.dicom import refuse_bomb
from busray.data.levels import Deep, Levels
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

LFS_POINTER = b"version https://git-lfs"
NO_IMAGES = {
    b"PK\3\4": "it is an archive (zip): unpack it",
    b"\x1f\x8b": "it is compressed (gzip): unpack it",
    b"%PDF": "it is a PDF: save its images as PNG",
}
"""First bytes of a file -> what it is, whatever its name says."""

KINDS = {
    "1": "1-bit grey", "L": "8-bit grey", "LA": "8-bit grey with alpha", "P": "a palette", "RGB": "8-bit colour",
    "RGBA": "8-bit colour with alpha",
}  # fmt: skip
TIFF_BITS, TIFF_PHOTOMETRIC, TIFF_SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF 6.0
TIFF_GREATEST = (281, 341)  # MaxSampleValue, SMaxSampleValue
SAVE = "save it as 8-bit or 16-bit grey"


@dataclass(frozen=True)
class Picture:
    """A frame of a file that can be read."""

    width: int  # in pixels, upright
    height: int
    mode: str  # Pillow's mode, or `I;16` for 16-bit grey, or `DICOM`
    frames: int  # of the file: TIFF pages, frames of GIF and APNG, DICOM's NumberOfFrames
    sha256: str  # of the file's bytes
    odd: str = ""  # what is odd about its levels; empty where nothing is
    like_mask: bool = False  # it has two levels, as a mask has
    flat: bool = False  # all its pixels are equal
    # How its levels are read, where that is not its format's plain rule: `8 bits in 16-bit grey`
    reading: str = ""
    deep: Deep | None = None
    # PatientID and StudyInstanceUID of DICOM, each may be empty. Never shown, logged or stored.
    who: tuple[str, str] = field(repr=False, default=("", ""))


@dataclass(frozen=True)
class Unreadable:
    """Why a file, or a frame of it, cannot be read."""

    reason: str
    frame: int = 0


def kind_of(path: Path) -> str | None:
    """`picture`, `dicom`, or None for anything else; by the file's bytes, never by its name.

    A damaged file counts as what it begins as: describe() says why it cannot be read.
    """
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


def describe(path: Path, frame: int = 0, grey_bits: int = 0) -> Picture | Unreadable:
    """A frame of a file, decoded to be sure of it, or why it cannot be read."""
    found = describe_frames(path, [frame], grey_bits)
    return found if isinstance(found, Unreadable) else found[0]


def describe_frames(path: Path, frames: Sequence[int], grey_bits: int = 0) -> list[Picture] | Unreadable:
    """Frames of a file, each decoded to be sure of it, or why one of them cannot be read.

    frames: ascending.
    """
    pictures: list[Picture] = []
    try:
        with opened(path, grey_bits) as decode:
            digest = sha256_file(path)
            for frame in frames:
                pictures.append(_picture(decode(frame), digest))
    except Exception as error:  # decoders raise errors of any type
        reason = str(error) if isinstance(error, UserError) else _why(path, error)
        return Unreadable(reason, frames[len(pictures)])
    return pictures


def _picture(decoded: "Decoded", digest: str) -> Picture:
    seen = decoded.grey
    return Picture(
        width=seen.shape[1],
        height=seen.shape[0],
        mode=decoded.mode,
        frames=decoded.frames,
        sha256=digest,
        odd=levels.oddity(decoded.levels(), seen),
        like_mask=_like_mask(np.bincount(seen.ravel(), minlength=256)),
        flat=levels.is_flat(seen),
        reading=decoded.reading,
        deep=decoded.deep,
        who=decoded.who,
    )


def _like_mask(counts: np.ndarray) -> bool:
    """Whether a picture with so many pixels of each grey level (int [256]) can only be a mask.

    JPEG blurs the edge between a mask's two levels.
    """
    if 2 <= np.count_nonzero(counts) <= 4:
        return True
    dark, bright, n = counts[:24].sum(), counts[232:].sum(), counts.sum()
    return bool(dark + bright >= 0.985 * n and min(dark, bright) >= 0.001 * n)


def _why(path: Path, error: Exception) -> str:
    """Why Pillow cannot read a file, in words for the file's owner."""
    if isinstance(error, OSError) and error.errno is not None:
        return f"{error.strerror}"
    if not path.stat().st_size:
        return "it is empty (0 bytes)"
    if isinstance(error, Image.DecompressionBombError):
        return f"it has more than {MAX_PIXELS} pixels: a decompression bomb, or crop it"
    if isinstance(error, UnidentifiedImageError):
        with open(path, "rb") as file:
            return _what_it_is(file.read(512))
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _what_it_is(start: bytes) -> str:
    """Why a file that begins with these bytes, and that Pillow does not know, is no image here."""
    if start.startswith(LFS_POINTER):
        return "it is a Git-LFS pointer, not the image itself: run `git lfs pull` in its folder"
    if start.startswith(b"/annex/objects/"):
        return "it is a git-annex pointer, not the image itself: run `git annex get` in its folder"
    if re.match(rb"\s*<(?:!doctype html|html)", start, re.IGNORECASE):
        return "it is a web page, such as an error of the server that it was fetched from: fetch it again"
    if not start.strip(b"\0"):
        return "its first bytes are all zero, as in a download that did not end: fetch it again"
    for begins, known in NO_IMAGES.items():
        if start.startswith(begins):
            return known
    if start[4:8] == b"ftyp":
        return "it is HEIC or a video, which busray does not read: save it as PNG"
    if start.startswith(SIGNATURES):
        return f"its kind of pixels is none that busray reads, or its beginning is damaged: {SAVE}"
    return "it is no image that busray reads, or its beginning is damaged"


def read_grey(path: Path, frame: int = 0) -> np.ndarray:
    """Pixels as uint8 [h, w], upright as EXIF says, black where the file is transparent.

    Colour becomes luma (ITU-R 601), LAB its lightness, DICOM goes through its window. 16-bit grey
    is divided by 257, unless its file says that it holds fewer bits, or it holds 8 or 12 by its
    values (levels.held_bits); floating-point grey is from 0 to 1 or to 255. Raises what the decoder
    raises; UserError for pixels that do not say what is white and for over MAX_PIXELS.
    """
    with opened(path) as decode:
        return decode(frame).grey


def read_rgb(path: Path, frame: int = 0) -> np.ndarray | None:
    """Pixels as uint8 [h, w, 3] where the file has colour channels, else None."""
    with opened(path) as decode:
        return decode(frame).rgb


@dataclass(frozen=True)
class Decoded:
    """The pixels of a frame; read_grey and read_rgb say how they are read."""

    grey: np.ndarray  # uint8 [h, w]
    rgb: np.ndarray | None  # uint8 [h, w, 3]
    mode: str
    frames: int  # of the file
    levels: Callable[[], Levels]  # counted only where they are asked for
    reading: str = ""
    deep: Deep | None = None
    who: tuple[str, str] = field(repr=False, default=("", ""))


@contextmanager
def opened(path: Path, grey_bits: int = 0) -> Iterator[Callable[[int], Decoded]]:
    """A function of the number of a frame, which decodes it. Raises as read_grey.

    grey_bits: dataset.grey_bits; 0 without it.

    The file is read once. Frames have to be asked for in ascending order, each once: then a clip
    whose frames build on each other is decoded once too.
    """
    if dicom.is_dicom(path):
        file = dicom.OpenedDicom(path, MAX_PIXELS, grey_bits)
        yield lambda frame: _decode_dicom(file, frame)
        return
    with Image.open(path, formats=FORMATS) as image:
        # With a file name, Pillow maps a raw TIFF into memory and takes its size after the turn.
        image.filename = ""
        frames = _frame_count(image)
        stated = _png_bits(path) if image.format == "PNG" and image.mode.startswith("I") else 0
        yield lambda frame: _decode_picture(_upright(image, frame, frames, stated), frames, grey_bits)


def by_file(images: Sequence[SourceImage]) -> list[list[SourceImage]]:
    """The images of each file together, each once, in the order in which opened() wants them."""
    images_of: dict[str, dict[int, SourceImage]] = {}
    for image in images:
        images_of.setdefault(image.path, {})[image.frame] = image
    return [[frames[number] for number in sorted(frames)] for frames in images_of.values()]


def _decode_dicom(file: dicom.OpenedDicom, frame: int) -> Decoded:
    found = file.decode(frame)
    rgb = found.pixels if found.pixels.ndim == 3 else None
    grey = found.pixels if rgb is None else np.array(Image.fromarray(rgb).convert("L"))
    return Decoded(grey, rgb, "DICOM", found.frames, lambda: found.levels, found.levels.reading, found.deep, found.who)


def _decode_picture(picture: "_Upright", frames: int, grey_bits: int) -> Decoded:
    image, mode = picture.image, picture.mode
    if image.mode == "F" or image.mode.startswith("I"):
        stored = _deep_levels(picture, grey_bits)
        seen = levels.grey(stored.values, stored.low, stored.high)
        found = partial(levels.measured, stored.kind, stored.values, stored.reading)
        return Decoded(seen, None, mode, frames, found, stored.reading, stored.deep)
    _refuse_negative(picture)
    # LAB says how light a pixel is; Pillow makes no grey of it.
    seen = np.array(image.getchannel("L") if image.mode == "LAB" else image.convert("L"))
    rgb = np.array(image.convert("RGB")) if image.mode in ("RGB", "P", "YCbCr", "CMYK") else None
    kind = f"{mode}, of whose 16 bits a channel the upper 8 are read" if picture.deep else KINDS.get(mode, mode)
    return Decoded(seen, rgb, mode, frames, partial(levels.measured, kind, seen, picture.reading), picture.reading)


@dataclass(frozen=True)
class _Stored:
    """Grey values of more than 8 bits."""

    values: np.ndarray  # [h, w]
    low: float  # the value that is black
    high: float  # the value that is white
    kind: str
    reading: str = ""
    deep: Deep | None = None


@dataclass(frozen=True)
class _Upright:
    """A frame of an opened picture, turned upright."""

    image: Image.Image
    mode: str  # of the file
    deep: bool  # its channels have 16 bits, of which Pillow keeps 8
    bits: int  # of a value's type, as the format says; 0 where it does not
    stated: int  # bits that the file says its 16-bit values hold; 0 where it does not
    signed: bool
    white_is_zero: bool
    reading: str = ""


def _deep_levels(picture: _Upright, grey_bits: int) -> _Stored:
    values = np.asarray(picture.image)
    if values.dtype.kind == "f":
        return _float_levels(values)
    values = values.astype(np.int64)
    bits = picture.bits or 16  # what Pillow has scaled to 16 bits is of no stated size
    if bits == 32 and not picture.signed:
        values &= 2**32 - 1  # Pillow keeps them as signed
    least, greatest = int(values.min()), int(values.max())
    kind = f"{bits}-bit {'signed ' if picture.signed else ''}grey"
    if least < 0:
        raise UserError(f"{kind} with values {least} to {greatest} does not say what is black: {SAVE}")
    held, deep = levels.held_bits(least, greatest, bits, picture.signed), None
    if bits == 16 and greatest < 2**picture.stated:
        held = picture.stated
    elif bits == 16:
        held, deep = levels.of_unstated_bits(least, greatest, held, grey_bits)
    if bits == 32 and held == bits and greatest < 2**31 * levels.HELD_BY_FEWER:
        raise UserError(f"{kind} with values up to {greatest} does not say what is white: {SAVE}")
    # Signed 16-bit grey above 0 has always been read as unsigned.
    signed = picture.signed and held == 32
    low, high = 0, levels.bit_range(held, signed)[1]
    reading = f"{held} bits in {kind}" if held != 16 else ""
    if picture.white_is_zero and bits > 8:
        low, high, reading = high, low, f"{held} bits in {kind}, 0 being white"
    return _Stored(values, low, high, kind, reading, deep)


def _refuse_negative(picture: _Upright) -> None:
    """UserError for signed 8-bit grey below 0, which Pillow reads as unsigned."""
    if picture.signed and picture.bits == 8 and picture.image.mode == "L":
        values = np.asarray(picture.image).view(np.int8)
        if values.min() < 0:
            raise UserError(
                f"8-bit signed grey with values {values.min()} to {values.max()} does not say what is black: {SAVE}"
            )


def _float_levels(values: np.ndarray) -> _Stored:
    kind = "floating-point grey"
    if not np.isfinite(values).all():
        raise UserError(f"{kind} with {np.count_nonzero(~np.isfinite(values))} values that are no numbers: {SAVE}")
    least, greatest = float(values.min()), float(values.max())
    high = 1.0 if greatest <= 1 else 255.0
    # Between the two a picture could be either: from 0 to 1 and sharpened, or from 0 to 255.
    if least < 0 or greatest > 255 or 1 < greatest < 255 * levels.HELD_BY_FEWER:
        raise UserError(
            f"{kind} with values {least:g} to {greatest:g} does not say what is black and white "
            f"(0 to 1 and 0 to 255 do): {SAVE}"
        )
    return _Stored(values, 0.0, high, kind, f"0 to {high:g} in {kind}")


def _upright(opened_image: Image.Image, frame: int, frames: int, stated: int) -> _Upright:
    """A frame, turned by its EXIF orientation, and black where it is transparent.

    opened_image: a picture of so many frames, left as it is for the frames after this one.
    stated: see _Upright.
    """
    if frame >= frames:
        raise UserError(f"no frame {frame}: it has {frames}, counted from 0")
    if frame:
        opened_image.seek(frame)
    refuse_bomb(*opened_image.size, MAX_PIXELS)
    deep, mode = _is_deep(opened_image), opened_image.mode
    tags = getattr(opened_image, "tag_v2", {})
    bits = min(tags.get(TIFF_BITS, (0,))) if opened_image.format == "TIFF" else 0
    signed = tags.get(TIFF_SAMPLE_FORMAT, (1,))[0] == 2
    white_is_zero = tags.get(TIFF_PHOTOMETRIC) == 0
    image = ImageOps.exif_transpose(opened_image)
    picture = _Upright(image, mode, deep, bits, stated or _tiff_bits(tags), signed, white_is_zero)
    if not image.has_transparency_data or image.mode.startswith("I"):
        return picture
    grey = "L" if image.mode in ("1", "L", "LA") else "RGB"
    opaque = image.convert("RGBA")
    alpha = opaque.getchannel("A")
    values = np.asarray(alpha)
    least, most = int(values.min()), int(values.max())
    if least == most < 255:  # such a channel says nothing; all would be black, or darker by one factor
        said = f"opaque, as its alpha channel is {most} everywhere"
        return replace(picture, image=opaque.convert(grey), reading=said)
    on_black = Image.new(grey, opaque.size)
    on_black.paste(opaque.convert(grey), mask=alpha)
    return replace(picture, image=on_black)


def _frame_count(image: Image.Image) -> int:
    if image.format not in FRAME_FORMATS:
        return 1
    try:
        return getattr(image, "n_frames", 1)
    except Exception:  # a later frame is damaged; decoders raise errors of any type
        return 1


def _is_deep(image: Image.Image) -> bool:
    """Whether Pillow cuts a picture's 16-bit channels to 8 bits."""
    return len(image.getbands()) > 1 and any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))


def _tiff_bits(tags: Mapping[int, Any]) -> int:
    """How many bits the greatest possible value has that a TIFF states; 0 where it states none.

    Programs also write the greatest value that is there, so only 1023, 4095 and the like count.
    """
    for tag in TIFF_GREATEST:
        greatest = int(np.max(tags.get(tag, 0)))
        if greatest in [2**bits - 1 for bits in range(8, 16)]:
            return greatest.bit_length()
    return 0


def _png_bits(path: Path) -> int:
    """The bits of a grey value that a PNG states in its chunk sBIT; 0 without one."""
    with open(path, "rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = int.from_bytes(head[:4]), head[4:]
            if kind == b"sBIT":
                return file.read(1)[0] if length == 1 else 0
            if kind in (b"IDAT", b"IEND"):
                break
            file.seek(length + 4, 1)
    return 0


def read_mask(path: Path) -> np.ndarray:
    """A mask as bool [h, w]: foreground is whatever is above half of its type's range.

    Of 0 and one darker value, that value is foreground: masks of 0 and 1, or of 0 and 255 in 16
    bits, are common. UserError for several dark values, and for what read_grey refuses except
    floating-point pixels.
    """
    values, top = (read_grey(path), 255) if dicom.is_dicom(path) else _mask_values(path)
    lesion = values > top // 2
    nonzero = values[values != 0]
    if lesion.any() or not nonzero.size:
        return lesion
    if nonzero.size == values.size or (nonzero != nonzero[0]).any():
        raise UserError(f"values up to {nonzero.max():g}, not 0 and {top}")
    return values != 0


def _mask_values(path: Path) -> tuple[np.ndarray, int]:
    """(grey [h, w] as stored, top level of its type); floating-point pixels count as 8 bits."""
    with Image.open(path, formats=FORMATS) as opened_image:
        opened_image.filename = ""  # as in opened()
        image = _upright(opened_image, 0, 1, 0).image
    if image.mode.startswith("I"):
        return np.asarray(image, dtype=np.int64).clip(0, 65535), 65535
    return np.array(image if image.mode == "F" else image.convert("L")), 255


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
            problems.append((file, f"unreadable: {_why(folder / file, error)}"))
            continue
        if mask.shape != shape:
            sizes = f"{mask.shape[1]} x {mask.shape[0]}, its image {shape[1]} x {shape[0]}"
            problems.append((file, sizes))
            continue
        if not mask.any():
            problems.append((file, "empty"))
        union = mask if union is None else union | mask
    return union, problems
