"""DICOM: from a file to grey or colour, or to the reason why not.

Only pixels, their kind, and who is shown leave this module; who is shown is never printed. No
message quotes an element's value that could say who a patient is.
"""

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from busray.data import levels
from busray.data.levels import Deep, Levels
from busray.records import UserError

LONGEST_FIRST = 256  # bytes of a data set's first element: a character set, a type of image
KNOWN_BITS = (1, 8, 16, 32)  # bits that pydicom decodes
COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "YBR_PARTIAL_422", "YBR_PARTIAL_420")
GREYS = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
OVERLAY_BIT = 0x60000102  # the element that says in which bit of a pixel an overlay is
BEYOND = 0.01  # share of values beyond BitsStored that are not some pixels of padding or text
FAR = 10**9  # a stored value outside any window of a DICOM file
NEEDED = ("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored")
# One decoder for each compression, so that the same file gives the same pixels whatever else is
# installed. pydicom's own order would prefer gdcm also where Pillow decodes.
DECODERS = ("pydicom", "pillow", "gdcm", "pyjpegls", "pylibjpeg")
NOT_WHOLE = "zeros stand where its data should: it was not copied to its end; copy it again"
INSTALL = "pip install 'busray[dicom]'"
VIDEO = ("MPEG", "HEVC", "SMPTE")  # in the names of transfer syntaxes
ENCAPSULATED = b"\xfe\xff\x00\xe0"  # the first bytes of compressed pixels: an item's tag


@dataclass(frozen=True)
class Decoded:
    """A frame of a DICOM file."""

    pixels: np.ndarray  # uint8 [h, w], or [h, w, 3] in colour
    levels: Levels
    frames: int  # NumberOfFrames
    deep: Deep | None = None
    # PatientID and StudyInstanceUID, each may be empty. Never shown, logged or stored.
    who: tuple[str, str] = field(repr=False, default=("", ""))


def is_dicom(path: Path) -> bool:
    """Whether the file's bytes are DICOM, with or without preamble; its name does not count."""
    with open(path, "rb") as file:
        start = file.read(132)
    if start[128:] == b"DICM":
        return True
    return _begins_as_data_set(start) and _is_image(path)


def _begins_as_data_set(start: bytes) -> bool:
    """Whether these bytes can begin a file without preamble: an element of group 2 or 8, of a low
    number and a plausible length. Any other file that begins so would be searched to its end."""
    if len(start) < 12 or start[:2] not in (b"\x02\x00", b"\x08\x00") or start[3] != 0:
        return False
    if start[4:6].isalpha() and start[4:6].isupper():
        return True  # the kind of its value is written out
    length = int.from_bytes(start[4:8], "little")
    return length == 4 if start[2] == 0 else length <= LONGEST_FIRST


def _is_image(path: Path) -> bool:
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    _pydicom()
    try:
        if _syntax(path) == DeflatedExplicitVRLittleEndian:
            return True  # nothing more is known before all of it is inflated
        dataset = _dataset(path, pixels=False)
        return bool(dataset.get("SOPClassUID") or dataset.get("Rows"))
    except Exception:  # what is no DICOM can raise anything
        return False


def _syntax(path: Path) -> str:
    """The transfer syntax; empty where the file states none."""
    from pydicom.filereader import _read_file_meta_info, read_preamble

    with open(path, "rb") as file:
        read_preamble(file, force=True)
        return str(_read_file_meta_info(file).get("TransferSyntaxUID") or "")


@cache
def _pydicom() -> Any:
    """pydicom, silent: its warnings quote values, which may be a patient's."""
    import pydicom
    import pydicom.config

    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    return pydicom


def refuse_bomb(width: int, height: int, most: int) -> None:
    """UserError for a picture of more than `most` pixels."""
    # Pillow only warns up to twice its own limit, and threads cannot filter warnings apart.
    if width * height > most:
        raise UserError(f"{width} x {height} pixels are more than {most}: a decompression bomb, or crop it")


class OpenedDicom:
    """A DICOM file that is read once, whatever number of its frames is decoded.

    grey_bits: dataset.grey_bits; 0 without it. UserError, with the reason, where it or a frame
    cannot be read, and for over most_pixels.
    """

    def __init__(self, path: Path, most_pixels: int, grey_bits: int) -> None:
        self.grey_bits = grey_bits
        with _in_own_words():
            self.dataset = _read(path)
            _refuse_without_pixels(self.dataset)
            refuse_bomb(int(self.dataset.Columns), int(self.dataset.Rows), most_pixels)
            self.frames = max(int(self.dataset.get("NumberOfFrames") or 1), 1)

    def decode(self, frame: int) -> Decoded:
        if frame >= self.frames:
            raise UserError(f"no frame {frame}: it has {self.frames}, counted from 0")
        with _in_own_words():
            dataset = self.dataset
            stored = _stored_pixels(dataset, frame)
            who = (_text(dataset, "IssuerOfPatientID", "PatientID"), _text(dataset, "StudyInstanceUID"))
            pixels, found, deep = (*_colour(stored, dataset), None) if stored.ndim == 3 else _grey(stored, self)
        return Decoded(pixels, found, self.frames, deep, who if who[0] or who[1] else ("", ""))

    def extent(self, pixels: np.ndarray) -> tuple[int, int]:
        """(least, greatest) stored value of a clip, so that a dark frame is read as the others are;
        of a compressed clip, of this frame alone."""
        return self._extent_of_clip or (int(pixels.min()), int(pixels.max()))

    @cached_property
    def _extent_of_clip(self) -> tuple[int, int] | None:
        dataset = self.dataset
        deep = int(dataset.BitsAllocated) == 16 and int(dataset.BitsStored) == 16
        if not deep or self.frames == 1 or dataset.file_meta.TransferSyntaxUID.is_compressed:
            return None
        order = "<" if dataset.original_encoding[1] else ">"
        whole = len(dataset.PixelData) // 2
        kind = f"{order}{'i' if dataset.get('PixelRepresentation') else 'u'}2"
        values = np.frombuffer(dataset.PixelData, kind, whole)
        return int(values.min()), int(values.max())


@contextmanager
def _in_own_words() -> Iterator[None]:
    """UserError without a word of pydicom's."""
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:  # its message, and those before it, could quote the patient's data
        name = type(error).__name__
        raise UserError(f"pydicom cannot read it ({name}): it is damaged; export it again") from None


def _text(dataset: Any, *names: str) -> str:
    """The element of the last name, told apart by the others; empty where it is."""
    values = [str(dataset.get(name) or "").strip() for name in names]
    return "\0".join(values) if values[-1] else ""


def _read(path: Path) -> Any:
    """The data set with a transfer syntax. UserError for what busray does not open."""
    from pydicom.uid import (
        DeflatedExplicitVRLittleEndian,
        ExplicitVRBigEndian,
        ExplicitVRLittleEndian,
        ImplicitVRLittleEndian,
    )

    _pydicom()
    if _syntax(path) == DeflatedExplicitVRLittleEndian:
        raise UserError("a deflated DICOM file has no size until all of it is inflated: save it in another encoding")
    dataset = _dataset(path)
    if not dataset.file_meta.get("TransferSyntaxUID"):
        if bytes(dataset.get("PixelData") or b"")[:4] == ENCAPSULATED:
            raise UserError(
                "it has no transfer syntax (TransferSyntaxUID), and its pixels are compressed: nothing says how. "
                "Export the file again"
            )
        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    return dataset


def _dataset(path: Path, *, pixels: bool = True) -> Any:
    """A file's elements. UserError where zeros stand instead, as of a download that did not end:
    pydicom would read them one by one."""
    from pydicom.filereader import _read_file_meta_info, read_partial, read_preamble

    def ends(tag: Any, vr: str | None, length: int) -> bool:
        if tag.group == 0:
            raise UserError(NOT_WHOLE)
        return not pixels and tag == 0x7FE00010

    with open(path, "rb") as file:
        read_preamble(file, force=True)
        _read_file_meta_info(file)
        if file.read(8) == bytes(8):
            raise UserError(NOT_WHOLE)
        file.seek(0)
        return read_partial(file, stop_when=ends, force=True)


def _refuse_without_pixels(dataset: Any) -> None:
    from pydicom.uid import UID

    if "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset:
        raise UserError("floating-point pixels do not say what is black and white: export it as 8-bit or 16-bit grey")
    if "PixelData" not in dataset:
        sop = dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID")
        known = UID(str(sop or ""))
        # Of a damaged file what should be a class can be any text, so only known names are quoted.
        name = known.name if known.type else "of no kind that DICOM defines"
        raise UserError(f"it has no pixels ({name}), so it is no image")
    missing = [name for name in NEEDED if dataset.get(name) in (None, "")]
    if missing:
        raise UserError(f"it does not say {', '.join(missing)}, without which its pixels mean nothing")
    if not dataset.PixelData:
        raise UserError("its pixels (PixelData) are empty")
    _refuse_odd_kind(dataset)


def _refuse_odd_kind(dataset: Any) -> None:
    """UserError for values that pydicom would stumble over with a message of its own."""
    rows, columns, samples = int(dataset.Rows), int(dataset.Columns), int(dataset.SamplesPerPixel)
    if rows < 1 or columns < 1:
        raise UserError(f"it says {columns} columns and {rows} rows (Columns, Rows)")
    if int(dataset.BitsAllocated) not in KNOWN_BITS:
        raise UserError(f"BitsAllocated is {int(dataset.BitsAllocated)}, and busray reads 1, 8, 16 and 32")
    kind = str(dataset.PhotometricInterpretation)
    if kind not in COLOURS + GREYS:  # of a damaged file it can be any text, so it is not quoted
        raise UserError("its PhotometricInterpretation is none that DICOM defines: nothing says what is black")
    if samples != (3 if kind in COLOURS else 1):
        raise UserError(f"it says {kind} and {samples} values a pixel (SamplesPerPixel): they cannot both be true")
    if samples == 3 and dataset.get("PlanarConfiguration") is None:
        raise UserError("it does not say how its colours are stored (PlanarConfiguration)")
    if kind == "PALETTE COLOR" and dataset.get("RedPaletteColorLookupTableData") is None:
        raise UserError("it has no table of its colours (RedPaletteColorLookupTableData)")


def _stored_pixels(dataset: Any, frame: int) -> np.ndarray:
    """The frame [h, w] or [h, w, 3] as stored; YBR becomes RGB, a palette its colours."""
    from pydicom.pixels import pixel_array
    from pydicom.pixels.processing import apply_color_lut

    syntax = dataset.file_meta.TransferSyntaxUID
    decoder = _decoder(syntax)
    if not syntax.is_compressed:
        _refuse_wrong_length(dataset)
        _refuse_values_beyond_bits(dataset, frame)
    if not (0 < int(dataset.BitsStored) <= int(dataset.BitsAllocated)):
        raise UserError(
            f"BitsStored is {dataset.BitsStored}, BitsAllocated {dataset.BitsAllocated}: they cannot both be true"
        )
    try:
        # Decodes this frame alone.
        pixels = pixel_array(dataset, index=frame, decoding_plugin=decoder)
    except Exception as error:
        # Its message could quote the patient's data.
        deep = " (Pillow decodes 8 bits only)" if decoder == "pillow" and int(dataset.BitsStored) > 8 else ""
        raise UserError(
            f"its pixels cannot be decoded ({syntax.name}, {decoder or 'pydicom'}: {type(error).__name__}){deep}: "
            "the file is damaged or not what it says; save it uncompressed, or export it again"
        ) from None
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, dataset)
    return pixels


def _decoder(syntax: Any) -> str:
    """The installed decoder of a transfer syntax, empty for uncompressed pixels. UserError where
    there is none."""
    from pydicom.pixels import get_decoder
    from pydicom.uid import AllTransferSyntaxes

    if syntax not in AllTransferSyntaxes:
        raise UserError("its transfer syntax (TransferSyntaxUID) is none that DICOM defines: export the file again")
    if any(video in syntax.name for video in VIDEO):
        raise UserError(f"it is a video ({syntax.name}), which busray does not decode: export its frames as images")
    if not syntax.is_compressed:
        return ""
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise UserError(
            f"its pixels are in {syntax.name}, for which pydicom has no decoder: save it uncompressed"
        ) from None
    for plugin in DECODERS:
        if plugin in decoder.available_plugins:
            return plugin
    # pydicom lists what is missing as `PLUGIN - requires PACKAGE>=VERSION and PACKAGE>=VERSION`.
    missing = "\n".join(decoder.missing_dependencies)
    others = " ".join(re.findall(r"pylibjpeg\S*(?=>=)", missing))
    install = INSTALL if re.search(r"^gdcm\b", missing, re.M) else f"pip install {others}"
    raise UserError(f"its pixels are in {syntax.name}, for which no decoder is installed: {install}")


def _refuse_wrong_length(dataset: Any) -> None:
    from pydicom.pixels.utils import get_expected_length

    expected, there = get_expected_length(dataset), len(dataset.PixelData)
    if there < expected:
        raise UserError(f"it is cut off or says a wrong size: {there} bytes of pixels, and its size needs {expected}")
    if there >= 2 * expected and there % expected == 0:
        frames = max(int(dataset.get("NumberOfFrames") or 1), 1)
        raise UserError(
            f"it has pixels for {frames * there // expected} frames and says {frames} (NumberOfFrames): nothing says "
            "which are meant; export it again"
        )


def _refuse_values_beyond_bits(dataset: Any, frame: int) -> None:
    """UserError where many values of a frame have more bits than BitsStored says: pydicom would
    cut the upper ones, so that bright pixels become dark."""
    bits, allocated = int(dataset.BitsStored), int(dataset.BitsAllocated)
    # The upper bits can hold an overlay, and those of a signed value are its sign.
    if bits >= allocated or allocated not in (8, 16) or dataset.get("PixelRepresentation") or OVERLAY_BIT in dataset:
        return
    order = "<" if dataset.original_encoding[1] else ">"
    size = int(dataset.Rows) * int(dataset.Columns) * int(dataset.SamplesPerPixel) * allocated // 8
    data = dataset.PixelData[frame * size : (frame + 1) * size]
    beyond = float((np.frombuffer(data[: len(data) // 2 * 2], f"{order}u{allocated // 8}") >= 2**bits).mean())
    if beyond >= BEYOND:
        raise UserError(
            f"BitsStored is {bits}, and {beyond:.0%} of its values need more: it does not say what is white; "
            "export it again"
        )


def _colour(pixels: np.ndarray, dataset: Any) -> tuple[np.ndarray, Levels]:
    bits, reading = 8 * pixels.dtype.itemsize, ""
    kind = f"{bits}-bit colour DICOM"
    held = levels.held_bits(int(pixels.min()), int(pixels.max()), bits, signed=False)
    if held < bits:
        bits, reading = held, f"{held} bits in {kind}"
    return (pixels >> (bits - 8)).astype(np.uint8), levels.measured(kind, pixels, reading)  # the upper 8 bits


def _grey(pixels: np.ndarray, file: OpenedDicom) -> tuple[np.ndarray, Levels, Deep | None]:
    """Grey goes through the file's own lookup table, else through its window; else the whole range
    of its stored bits becomes 0 to 255, so that one image's extremes do not decide."""
    from pydicom.pixels.processing import apply_modality_lut, apply_windowing

    dataset, deep = file.dataset, None
    bits, signed, reading = int(dataset.BitsStored), bool(dataset.get("PixelRepresentation")), ""
    kind = f"{bits}-bit {'signed ' if signed else ''}DICOM"
    values = apply_modality_lut(pixels, dataset)
    table = next(iter(dataset.get("VOILUTSequence") or ()), {})
    if table.get("LUTDescriptor") is not None and table.get("LUTData") is not None:
        byte_order = "<" if dataset.original_encoding[1] else ">"
        values, ends = _apply_voi_lut(values, table, f"{byte_order}u2")
    elif dataset.get("WindowWidth") is not None and dataset.get("WindowCenter") is not None:
        _refuse_window(dataset)
        # What a window makes of values far outside it are its output's ends.
        values = apply_windowing(values, dataset)
        ends = apply_windowing(np.array([[-FAR, FAR]]), dataset)
    else:
        lowest, highest = levels.bit_range(bits, signed)
        if not dataset.get("ModalityLUTSequence"):  # which says what each stored value means
            least, greatest = file.extent(pixels)
            held = levels.held_bits(least, greatest, bits, signed)
            if bits == 16:
                held, deep = levels.of_unstated_bits(least, greatest, held, file.grey_bits)
            if held < bits:
                lowest, highest = levels.bit_range(held, signed and least < 0)
                reading = f"{held} bits in {kind}"
        ends = apply_modality_lut(np.array([[lowest, highest]]), dataset)
    seen = levels.grey(values, float(np.min(ends)), float(np.max(ends)))
    inverted = dataset.PhotometricInterpretation == "MONOCHROME1"
    return 255 - seen if inverted else seen, levels.measured(kind, pixels, reading), deep


def _refuse_window(dataset: Any) -> None:
    """UserError for a window that PS3.3 C.11.2.1.2 does not allow."""
    width = dataset.WindowWidth
    first = float(width if isinstance(width, int | float | str) else next(iter(width)))
    linear = (dataset.get("VOILUTFunction") or "LINEAR").upper() == "LINEAR"
    if first < 1 if linear else first <= 0:
        needed = "at least 1" if linear else "above 0"
        raise UserError(
            f"its window is {first:g} wide (WindowWidth) and must be {needed}: "
            "mend or remove WindowWidth and WindowCenter"
        )


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
