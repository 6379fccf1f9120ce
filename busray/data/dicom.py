"""DICOM: from a file to grey or colour. Nothing but pixels and their kind leaves this module."""

from pathlib import Path
from typing import Any

import numpy as np

from busray.records import UserError

FAR = 10**9  # a stored value outside any window of a DICOM file


def is_dicom(path: Path) -> bool:
    """Whether the file's bytes are DICOM, with or without preamble; its name does not count."""
    with open(path, "rb") as file:
        start = file.read(132)
    if start[128:] == b"DICM":
        return True
    # Without preamble a data set begins with an element of group 2 or 8, of a low number.
    return start[:2] in (b"\x02\x00", b"\x08\x00") and start[3:4] == b"\x00" and _has_sop_class(path)


def _has_sop_class(path: Path) -> bool:
    import pydicom

    try:
        dataset = pydicom.dcmread(path, stop_before_pixels=True, force=True)
        return bool(dataset.get("SOPClassUID") or dataset.get("Rows"))
    except Exception:  # what is no DICOM can raise anything
        return False


def frame_count(path: Path) -> int:
    """NumberOfFrames, or 1."""
    import pydicom

    frames = pydicom.dcmread(path, stop_before_pixels=True, force=True).get("NumberOfFrames")
    return max(int(frames or 1), 1)


def refuse_bomb(width: int, height: int, most: int) -> None:
    """UserError for a picture of more than `most` pixels."""
    # Pillow only warns up to twice its own limit, and threads cannot filter warnings apart.
    if width * height > most:
        raise UserError(f"{width} x {height} pixels are more than {most}: a decompression bomb, or crop it")


def read_frame(path: Path, frame: int, most_pixels: int) -> np.ndarray:
    """A frame of a DICOM file, uint8 [h, w] or [h, w, 3]; UserError for over most_pixels.

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
    refuse_bomb(int(dataset.Columns), int(dataset.Rows), most_pixels)
    pixels = pixel_array(dataset, index=frame)  # decodes this frame alone; YBR becomes RGB
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
