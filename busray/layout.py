"""Names of a run's objects, and the version of the stored format."""

import re

from busray.records import Shard

RUN = "run.json"


CONFIG = "config.json"


DATASET = "dataset.json"


BASE = "base.json"


CHECK = "check.json"


ADAPTERS = "adapters.json"


MANIFEST = "manifest.parquet"


REPORT_JSON = "report.json"


REPORT_HTML = "report.html"


CARD = "card.md"


AUDIT_JSON = "audit.json"


AUDIT_PANELS = "audit.png"


STUDY_JSON = "study.json"


GEOMETRY_JSON = "geometry.json"


GEOMETRY_PNG = "geometry.png"


STUDY_CSV = "study.csv"


STUDY_DECLARED = "study/declared.json"


def segment_key(number: int) -> str:
    return f"plan/{number:04d}.json"


def commit_key(shard: Shard) -> str:
    return f"commits/{shard.class_name}/{shard.name}.json"


def committed_shard(key: str) -> Shard:
    """The shard whose record has this key; ValueError names a key that commit_key does not make."""
    match = re.fullmatch(r"commits/([^/]+)/([0-9]+)-([0-9]+)\.json", key)
    shard = Shard(match[1], int(match[2]), int(match[3])) if match else None
    if shard is None or commit_key(shard) != key:
        raise ValueError(f"{key!r} is no commit record's key: commits/<class>/<first>-<count>.json")
    return shard


def data_key(shard: Shard, digest: str, suffix: str) -> str:
    return f"data/{shard.class_name}/{shard.name}-{digest[:16]}{suffix}"


def first_draws_key(shard: Shard, digest: str) -> str:
    return f"first-draws/{shard.class_name}/{shard.name}-{digest[:16]}.parquet"


def png_prefix(shard: Shard) -> str:
    """Under which the pictures of a shard of format `png` lie."""
    return f"data/{shard.class_name}/{shard.name}"


def data_shard(key: str) -> Shard | None:
    """The shard that a data object, a picture or first draws belong to; None for a key that is no name of ours."""
    match = re.fullmatch(
        r"(?:data|first-draws)/([^/]+)/([0-9]+)-([0-9]+)(?:-[0-9a-f]{16}\.(?:parquet|jsonl)|/[^/]+-[0-9a-f]{16}\.png)",
        key,
    )
    shard = Shard(match[1], int(match[2]), int(match[3])) if match else None
    return shard if shard and f"/{shard.class_name}/{shard.name}" in key else None


def features_key(digest: str, column: str, extractor: str) -> str:
    """extractor: a name that weights of its own have alone, since features under a key are never computed again."""
    return f"features/{extractor}/{digest[:32]}-{column}.npy"


def segmenter_key(identity: str) -> str:
    """The record of a run's segmenter of this identity."""
    return f"segmenters/{identity[:16]}.json"


def classifier_key(identity: str) -> str:
    """The record of a run's classifier of this identity."""
    return f"classifiers/{identity[:16]}.json"


def found_key(identity: str, content: str) -> str:
    """What a copy audit of this identity found of a shard (its digest) or of other images (their fingerprint)."""
    return f"copies/{identity[:16]}/{content[:32]}.npy"


def study_key(identity: str, arm: str, number: int) -> str:
    """The result of an arm's number-th training in the study of this identity."""
    return f"study/{identity[:16]}/{arm}-{number:02d}.json"


def study_identity_key(identity: str) -> str:
    return f"study/{identity[:16]}/identity.json"


def arm_prefix(arm: str) -> str:
    return f"arms/{arm}"
