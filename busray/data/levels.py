"""Levels: what a file's stored values are, how they become 8-bit grey, and what is odd about them.

A format says how many bits a value has, but software often writes 8 or 12 bits into 16 or 32.
Read over the whole range, such a picture would be black.
"""

from dataclasses import dataclass

import numpy as np

from busray.records import UserError

# Bits that pictures have inside larger types
USUAL_BITS = (8, 12, 16)
# A picture that would reach only this part of its type's range holds fewer bits than the type has.
# (4095 of 65535 is just below it.)
HELD_BY_FEWER = 1 / 16
DARK = 32  # a picture whose brightest pixel is below this grey level (of 255) is almost black
FEW = 8  # a picture of at most this many grey levels has few


@dataclass(frozen=True)
class Levels:
    """The stored values of a picture."""

    kind: str  # the file's own type, such as `16-bit signed DICOM`
    least: float
    greatest: float
    count: int  # distinct values
    # How they were read, where that is not the format's plain rule, such as `8 bits in 16-bit grey`
    reading: str = ""

    def __str__(self) -> str:
        values = "value" if self.count == 1 else "values"
        span = f"{self.least:g}" if self.count == 1 else f"{self.least:g} to {self.greatest:g}"
        return f"{self.kind}, {self.count} {values}: {span}"


def measured(kind: str, values: np.ndarray, reading: str = "") -> Levels:
    """The levels of values of any shape; they are not empty and finite."""
    least, greatest = values.min(), values.max()
    if values.dtype.kind in "iu" and int(greatest) - int(least) < 2**17:
        counts = np.bincount((values.astype(np.int64) - int(least)).ravel())
        count = np.count_nonzero(counts)
    else:
        count = len(np.unique(values))
    return Levels(kind, float(least), float(greatest), int(count), reading)


def held_bits(least: int, greatest: int, bits: int, signed: bool) -> int:
    """How many bits a picture has whose type has `bits`, by the values in it: fewer only where it
    would reach HELD_BY_FEWER of the type's range at most."""
    if least == greatest == 0:
        return bits
    for fewer in USUAL_BITS:
        if 2**fewer > 2**bits * HELD_BY_FEWER:
            break
        low, high = bit_range(fewer, signed and least < 0)
        if low <= least and greatest <= high:
            return fewer
    return bits


@dataclass(frozen=True)
class Deep:
    """16-bit grey of which no file says how many bits it holds."""

    greatest: int  # stored value
    bits: int  # as which it is read


def of_unstated_bits(least: int, greatest: int, held: int, grey_bits: int) -> tuple[int, Deep]:
    """(bits as which 16-bit grey is read that does not say how many it holds, the same as Deep).

    held: its bits by its values. grey_bits: dataset.grey_bits, 0 without it. UserError where
    values do not fit into grey_bits.
    """
    bits = grey_bits or held
    if greatest >= 2**bits or least < -(2 ** (bits - 1)):
        raise UserError(f"its values, {least} to {greatest}, do not fit into the {bits} bits of dataset.grey_bits")
    return bits, Deep(greatest, bits)


def bit_range(bits: int, signed: bool) -> tuple[int, int]:
    """(lowest, highest) value of so many bits."""
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def grey(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """uint8: low becomes 0 and high 255; high may be the smaller one."""
    scaled = (values.astype(np.float64) - low) / ((high - low) or 1e-9) * 255
    return scaled.round().clip(0, 255).astype(np.uint8)


def oddity(levels: Levels, seen: np.ndarray) -> str:
    """What is odd about a picture's levels; empty where nothing is.

    seen: the picture as uint8 [h, w].
    """
    present = np.flatnonzero(np.bincount(seen.ravel(), minlength=256))
    darkest, brightest = int(present[0]), int(present[-1])
    found = ""
    if is_flat(seen):
        named = {0: "black", 255: "white"}.get(darkest, "flat")
        found = f"{named}: every pixel is grey level {darkest}"
    elif len(present) <= FEW:
        found = f"{len(present)} grey levels: {', '.join(map(str, present))}"
    elif brightest < DARK:
        found = f"almost black: no pixel is above grey level {brightest}"
    elif darkest > 255 - DARK:
        found = f"almost white: no pixel is below grey level {darkest}"
    elif brightest - darkest < DARK:
        found = f"almost flat: grey levels {darkest} to {brightest} only"
    if not found:
        return ""
    read = f"; read as {levels.reading}" if levels.reading else ""
    return f"{found}; the file has {levels}{read}"


def is_flat(seen: np.ndarray) -> bool:
    """Whether a picture uint8 [h, w] shows nothing, as all its pixels are equal."""
    return bool((seen == seen.flat[0]).all())
