"""Safetensors files, read without torch: header, digest, and whether their values are numbers."""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

LFS_POINTER = b"version https://git-lfs"
LONGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors library
CHUNK = 2**19  # bytes that are hashed and looked at in one go
BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}
EXPONENT = {"F16": 0x7C00, "BF16": 0x7F80}
"""Exponent bits of 16-bit floats: all are set in NaN and infinity, and in no number."""
FLOATS = ("F16", "BF16", "F32", "F64")


class NoWeights(Exception):
    """The file is no whole safetensors file; the message says why, without its name."""


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies in its file."""

    dtype: str  # safetensors' name: F32, F16, BF16, ...
    shape: tuple[int, ...]
    begin: int  # bytes from the end of the header
    end: int


@dataclass(frozen=True)
class Header:
    tensors: dict[str, Tensor]  # in the order of their bytes
    metadata: dict[str, str]
    size: int  # bytes before the first tensor

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tensor.shape for name, tensor in self.tensors.items()}


@dataclass(frozen=True)
class Scan:
    """What one reading of a whole file found."""

    sha256: str
    not_finite: tuple[str, ...]  # tensors with a NaN or an infinity
    blank: bool  # the last matrix is all zeros, as in a download that did not end


def pointer_problem(start: bytes) -> str | None:
    """What to do about a Git-LFS pointer, told by a file's first bytes; None for anything else."""
    if start.startswith(LFS_POINTER):
        return "a Git-LFS pointer, not the file itself: run `git lfs pull` in its folder"
    return None


def read_header(path: Path) -> Header:
    """The header of a safetensors file; NoWeights where the file is none or is not whole."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(64)
        if problem := pointer_problem(start):
            raise NoWeights(f"no safetensors file but {problem}")
        length = int.from_bytes(start[:8], "little")
        if len(start) < 8 or length > LONGEST_HEADER or start[8:9] != b"{":
            raise NoWeights(f"no safetensors file: {_kind(start, size)}")
        file.seek(8)
        text = file.read(length)
    if len(text) < length:
        raise NoWeights(f"no safetensors file any more: it is cut short in its header ({size:,} bytes)")
    try:
        entries = json.loads(text)
        metadata = entries.pop("__metadata__", {})
        tensors = {name: _tensor(entry) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NoWeights(f"no safetensors file: its header cannot be read ({error!r})") from error
    end = 0
    ordered = dict(sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)))
    for name, tensor in ordered.items():
        wanted = math.prod(tensor.shape) * BYTES[tensor.dtype]
        if tensor.begin != end or tensor.end - tensor.begin != wanted:
            raise NoWeights(f"no safetensors file: its header does not fit itself at {name}")
        end = tensor.end
    whole = 8 + length + end
    if size < whole:
        raise NoWeights(f"no safetensors file any more: it is cut short, {size:,} of {whole:,} bytes are there")
    if size > whole:
        raise NoWeights(f"no safetensors file: {size - whole:,} bytes follow its last tensor")
    return Header(ordered, metadata if isinstance(metadata, dict) else {}, 8 + length)


def _tensor(entry: dict[str, object]) -> Tensor:
    dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]  # type: ignore[misc]
    if dtype not in BYTES:
        raise ValueError(f"values of the type {dtype}")
    return Tensor(str(dtype), tuple(map(int, shape)), int(begin), int(end))  # type: ignore[arg-type]


def _kind(start: bytes, size: int) -> str:
    """What a file is instead, told by its first bytes."""
    if not size:
        return "it is empty"
    if start.lstrip()[:1] == b"<":
        return "it is a web page, so the download failed"
    if start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        return "it is a pickle (.bin, .ckpt, .pt) with another name, and pickles are never loaded"
    return f"{size:,} bytes of another kind"


def scan(path: Path, header: Header) -> Scan:
    """Hash a whole file and look at every value, in one reading."""
    digest, not_finite, blank = hashlib.sha256(), [], False
    matrices = [name for name, tensor in header.tensors.items() if len(tensor.shape) > 1]
    with open(path, "rb") as file:
        digest.update(file.read(header.size))
        for name, tensor in header.tensors.items():
            finite, zero = True, name in matrices[-1:]
            left = tensor.end - tensor.begin
            while left:
                data = file.read(min(CHUNK, left))
                if not data:
                    raise NoWeights("no safetensors file any more: it got shorter while it was read")
                left -= len(data)
                digest.update(data)
                finite = finite and _finite(data, tensor.dtype)
                zero = zero and not np.frombuffer(data, np.uint8).any()
            if not finite:
                not_finite.append(name)
            blank = blank or zero
    return Scan(digest.hexdigest(), tuple(not_finite), blank)


def _finite(data: bytes, dtype: str) -> bool:
    # CHUNK is a multiple of every width, so that no value is cut in two.
    if dtype in EXPONENT:  # numpy has no bfloat16, and is slow with float16
        exponent = np.uint16(EXPONENT[dtype])
        return bool(((np.frombuffer(data, "<u2") & exponent) != exponent).all())
    if dtype in ("F32", "F64"):
        return bool(np.isfinite(np.frombuffer(data, f"<f{BYTES[dtype]}")).all())
    return True
