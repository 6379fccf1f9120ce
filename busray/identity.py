# pyright: strict
"""Fingerprints, image ids and seeds: what makes an image the same image on any machine.

Nothing here does I/O except reading the file that it is asked to hash. Every function is part of
the stored format: another hash or another order of fields would be another corpus.
"""

import hashlib
import heapq
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

STAGES = (
    "txt2img", "img2img", "frame", "prompt", "train", "split",
    "validate", "study", "segmenter", "classify", "audit", "decoder",
)  # fmt: skip
"""Uses of random numbers. Each has seeds of its own, so that a change of one moves no other."""

T = TypeVar("T")


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces. TypeError for a type that JSON does not define: an
    object's text (`json.dumps(default=str)`) may differ between two runs."""
    _require_json_type(value, "value")
    options: dict[str, Any] = {"sort_keys": True, "separators": (",", ":")}
    return json.dumps(value, ensure_ascii=False, allow_nan=False, **options)


def _require_json_type(value: object, where: str) -> None:
    if value is None or isinstance(value, (bool, int, float, str)):
        return
    if isinstance(value, (list, tuple)):
        for i, item in enumerate(cast(Sequence[object], value)):
            _require_json_type(item, f"{where}[{i}]")
    elif isinstance(value, dict):
        for key, item in cast(dict[object, object], value).items():
            if not isinstance(key, str):
                raise TypeError(f"{where} has a key that is no string: {key!r}")
            _require_json_type(item, f"{where}.{key}")
    else:
        kind = type(value).__name__
        raise TypeError(f"{where} is a {kind}, which has no canonical form: convert it first")


def fingerprint(value: Any) -> str:
    """SHA-256 (64 hex digits) of the canonical JSON of value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def fingerprint_rows(rows: Iterable[Any]) -> str:
    """fingerprint(list(rows)), with one row at a time in memory."""
    digest = hashlib.sha256(b"[")  # the JSON of the list, written row by row
    for i, row in enumerate(rows):
        digest.update((b"," if i else b"") + canonical_json(row).encode())
    digest.update(b"]")
    return digest.hexdigest()


def sha256_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """64 hex digits; OSError if the file cannot be read."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seed_for(seed: int, class_name: str, index: int, attempt: int, stage: str) -> int:
    """The seed of one draw, 0 .. 2**63 - 1 (what torch and Arrow can hold).

    seed: the configured one, never a fingerprint, so that the arms of a comparison share their
    noise. attempt: how often the image was drawn before. stage: one of STAGES.
    """
    if stage not in STAGES:
        raise ValueError(f"unknown stage {stage!r}: one of {', '.join(STAGES)}")
    # As JSON, so that class `a` and index 11 are not the same text as class `a1` and index 1. The
    # prefix keeps these seeds apart from any other use of the same hash.
    text = canonical_json(["busray-seed-1", seed, class_name, index, attempt, stage])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def image_id(corpus_fingerprint: str, class_name: str, index: int) -> str:
    """The id of a class's image number `index`: unique over all corpora, sortable within one."""
    return f"{corpus_fingerprint[:12]}-{draw_id(class_name, index)}"


def draw_id(class_name: str, index: int) -> str:
    """The part of an image's id that is the same in every corpus of the same seed."""
    return f"{class_name}-{index:08d}"


def index_of(image_id: str) -> int:
    return int(image_id.rpartition("-")[2])


def bottom_k(items: Iterable[T], k: int, id_of: Callable[[T], str]) -> list[T]:
    """A random sample: the k items whose ids have the smallest SHA-256, smallest first.

    The sample does not depend on the order of the items, a smaller sample is the beginning of a
    larger one, and only k items are kept in memory.
    """
    return heapq.nsmallest(k, items, key=lambda item: hashlib.sha256(id_of(item).encode()).digest())
