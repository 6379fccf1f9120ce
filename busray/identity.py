"""What makes an image the same image anywhere: fingerprints, image ids and seeds.

Nothing here does I/O beyond reading the bytes it is asked to hash.
"""

import hashlib
import heapq
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

STAGES = (
    "txt2img",
    "img2img",
    "frame",
    "prompt",
    "train",
    "split",
    "validate",
    "study",
    "segmenter",
    "classify",
    "audit",
)


T = TypeVar("T")


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces; raises TypeError on anything whose form is not fixed by JSON itself."""
    _refuse_unknown(value, "value")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _refuse_unknown(value: Any, where: str) -> None:
    if value is None or isinstance(value, (bool, int, float, str)):
        return
    if isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            _refuse_unknown(item, f"{where}[{i}]")
        return
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{where} has a key that is no string: {key!r}")
            _refuse_unknown(item, f"{where}.{key}")
        return
    raise TypeError(f"{where} is a {type(value).__name__}, which has no canonical form: convert it first")


def fingerprint(value: Any) -> str:
    """SHA-256 (64 hex digits) of the canonical JSON of value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def fingerprint_rows(rows: Iterable[Any]) -> str:
    """fingerprint(list(rows)), holding one row at a time."""
    digest = hashlib.sha256(b"[")
    for i, row in enumerate(rows):
        digest.update((b"," if i else b"") + canonical_json(row).encode())
    digest.update(b"]")
    return digest.hexdigest()


def sha256_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seed_for(seed: int, class_name: str, index: int, attempt: int, stage: str) -> int:
    """The 63-bit seed of one draw. It never sees a fingerprint, so arms of a comparison share their noise.

    stage is one of STAGES; attempt counts the redraws of an image (0 for the first).
    """
    if stage not in STAGES:
        raise ValueError(f"unknown stage {stage!r}: one of {', '.join(STAGES)}")
    text = canonical_json(["busray-seed-1", seed, class_name, index, attempt, stage])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def image_id(corpus_fingerprint: str, class_name: str, index: int) -> str:
    """The id of the index-th image of a class: unique over corpora and sortable within one."""
    return f"{corpus_fingerprint[:12]}-{draw_id(class_name, index)}"


def draw_id(class_name: str, index: int) -> str:
    """What an image's id has in common with those of the same seed in other corpora."""
    return f"{class_name}-{index:08d}"


def index_of(image_id: str) -> int:
    """The index in an image's id."""
    return int(image_id.rpartition("-")[2])


def bottom_k(items: Iterable[T], k: int, id_of: Callable[[T], str]) -> list[T]:
    """The k items whose ids have the smallest SHA-256, smallest first: a sample by chance that is the same whatever
    the order of the items, holds any smaller one as its beginning, and needs memory for k of them only."""
    return heapq.nsmallest(k, items, key=lambda item: hashlib.sha256(id_of(item).encode()).digest())
