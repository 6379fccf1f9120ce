# pyright: strict
"""Names of a run's objects, and the version of the stored format. The other keys are made in the
module that alone writes them: checkpoints, latents, adapters, an ablation's pixels."""

import re

from busray.records import Shard

FORMAT = 2
"""Version of all that a run stores; `format` in run.json. Raise it when an older busray would
misread what this one writes (CONTRIBUTING.md, "How to change a stored format").

2: shards have captions, and PNGs of images before refinement lie under txt2img/."""

# Create-only: written once, never changed.
RUN = "run.json"
CONFIG = "config.json"
DATASET = "dataset.json"
MASKS = "masks.json"
BASE = "base.json"
ADAPTERS = "adapters.json"
STUDY_DECLARED = "study/declared.json"

DIGESTS = "digests"
DAMAGED = "damaged"
"""Folders: digests of what is checked when it is read; what `busray repair` moved aside."""

# Derived: a later command replaces them.
CHECK = "check.json"
MANIFEST = "manifest.parquet"
REPORT_JSON, REPORT_HTML = "report.json", "report.html"
CARD = "README.md"
PNG_INDEX = "data/metadata.parquet"
CARD_STATEMENTS = "card.json"
"""What flags of `busray card` said of licence, source, ethics and contact."""
OLD_CARD = "card.md"
"""Where an older busray wrote the card."""
AUDIT_JSON, AUDIT_PANELS = "audit.json", "audit.png"
GEOMETRY_JSON, GEOMETRY_PNG = "geometry.json", "geometry.png"
STUDY_JSON, STUDY_CSV = "study.json", "study.csv"
ABLATE_JSON, ABLATE_CSV, ABLATE_HTML = "ablate.json", "ablate.csv", "ablate.html"
TIMINGS = "timings.json"

PROGRESS = "progress"
"""Folder: what each driver says of itself, replaced each minute."""

LOG = "ray.log"
"""Beside a local run where something went wrong: Ray's last messages, tracebacks of commands."""

LEFT_BY_SYSTEMS = re.compile(
    r"\._.*|\.ds_store|\.localized|__macosx|\.appledouble|\.trashes|\.spotlight-v100|icon\r"
    r"|thumbs.*\.db|ehthumbs.*\.db|desktop\.ini|folder\.htt|\$recycle\.bin|system volume information"
    r"|@eadir|#recycle|lost\+found"
)
"""Names, in lower case, of what operating systems leave in folders that they show: macOS, Windows,
network disks. None is an object of a run or an image."""


def left_by_a_system(name: str) -> bool:
    """Whether an operating system leaves files or folders of this name (one part of a path)."""
    return LEFT_BY_SYSTEMS.fullmatch(name.lower()) is not None


def digest_key(key: str, digest: str) -> str:
    """Says that an object with this SHA-256 may be under this key. The name alone counts."""
    # In the name, and not in an object that is overwritten: two writers of a key leave two of them,
    # and none can be half written.
    return f"{DIGESTS}/{key}/{digest}"


def segment_key(number: int) -> str:
    """The plan's segment of this number, from 0 on."""
    return f"plan/{number:04d}.json"


def commit_key(shard: Shard) -> str:
    """The record whose existence means that the shard is done."""
    return f"commits/{shard.class_name}/{shard.name}.json"


def committed_shard(key: str) -> Shard:
    """The shard whose commit record has this key. ValueError if commit_key makes no such key."""
    # Another name of the same shard, such as 1-2.json, would count it twice.
    match = re.fullmatch(r"commits/([^/]+)/([0-9]+)-([0-9]+)\.json", key)
    shard = Shard(match[1], int(match[2]), int(match[3])) if match else None
    if shard is None or commit_key(shard) != key:
        raise ValueError(f"{key!r} is no commit record's key: commits/<class>/<first>-<count>.json")
    return shard


def data_key(shard: Shard, digest: str, suffix: str) -> str:
    """The data object of these bytes (their SHA-256). The digest in the name keeps apart what two
    workers drew for one shard; the commit record says which of them counts."""
    return f"data/{shard.class_name}/{shard.name}-{digest[:16]}{suffix}"


def first_draws_key(shard: Shard, digest: str) -> str:
    """The object with the first draws of a shard that the class gate rejected."""
    return f"first-draws/{shard.class_name}/{shard.name}-{digest[:16]}.parquet"


def png_prefix(shard: Shard) -> str:
    """Folder of the PNG files of a shard of format `png`."""
    return f"data/{shard.class_name}/{shard.name}"


def txt2img_prefix(shard: Shard) -> str:
    """Folder of its PNG files from before refinement. It is no folder of data/, where readers of
    image folders take every file for a sample."""
    return f"txt2img/{shard.class_name}/{shard.name}"


DATA_FOLDERS = ("data", "txt2img", "first-draws")
"""Folders with the objects of shards."""


def data_shard(key: str) -> Shard | None:
    """The shard of a data object, a PNG file or first draws; None for any other key."""
    ending = r"(?:-[0-9a-f]{16}\.(?:parquet|jsonl)|/[^/]+-[0-9a-f]{16}\.png)"
    match = re.fullmatch(r"(?:data|txt2img|first-draws)/([^/]+)/([0-9]+)-([0-9]+)" + ending, key)
    shard = Shard(match[1], int(match[2]), int(match[3])) if match else None
    return shard if shard and f"/{shard.class_name}/{shard.name}" in key else None


def features_key(digest: str, column: str, extractor: str) -> str:
    """Features of the object of this digest. They are never computed again: the extractor's name
    must change with its weights."""
    return f"features/{extractor}/{digest[:32]}-{column}.npy"


def moments_key(content: str, column: str, extractor: str) -> str:
    """Moments of the features of several shards. content: fingerprint of their digests."""
    return f"moments/{extractor}/{content[:32]}-{column}.npy"


def segmenter_key(identity: str) -> str:
    return f"segmenters/{identity[:16]}.json"


def classifier_key(identity: str) -> str:
    return f"classifiers/{identity[:16]}.json"


def copies_key(identity: str, content: str) -> str:
    """The nearest training images that the copy audit of this identity found. content: digest of a
    shard, or fingerprint of other images."""
    return f"copies/{identity[:16]}/{content[:32]}.npy"


def study_key(identity: str, arm: str, number: int) -> str:
    """The result of an arm's training number `number` in the study of this identity."""
    return f"study/{identity[:16]}/{arm}-{number:02d}.json"


def study_identity_key(identity: str) -> str:
    return f"study/{identity[:16]}/identity.json"


def progress_key(driver: str) -> str:
    """What the driver of this name last said of itself. Several drivers may work on one run."""
    return f"{PROGRESS}/{driver}.json"


def arm_prefix(arm: str) -> str:
    """Folder of an arm that is not the released corpus; it is a corpus with the same layout."""
    return f"arms/{arm}"
