"""The nouns that stages hand on: frozen dataclasses, their JSON and Arrow forms, and the names of a run's objects.

Nothing here reads, writes or computes.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

IMAGE_COLUMNS = ("image", "image_txt2img")
CLASS_ALL = "all"


class UserError(Exception):
    """A user's mistake: the message names the field or file and the mend. The command ends with status 2."""


class Stopped(Exception):
    """Work that ended early through no mistake of the user's; the same command goes on from there. Exit status 1."""


class StoreError(Stopped):
    """The store did not do it for as long as Store is patient: the message names store, key, tries and seconds."""


def to_json(record: Any) -> bytes:
    """A record (dataclass) or plain dict as indented UTF-8 JSON."""
    value = record if isinstance(record, dict) else asdict(record)
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


# ---- data set -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SourceImage:
    """One labelled image of the user's folder, as found. file and masks are relative to the folder, with `/`."""

    file: str
    class_name: str
    width: int
    height: int
    mode: str
    """Pillow's mode, or `I;16` for 16-bit grey, or `DICOM`."""
    sha256: str
    """Of the file's bytes."""
    masks: tuple[str, ...] = ()
    group: str | None = None
    """Patient or study from dataset.metadata; images of a group never cross the split."""
    columns: dict[str, str] = field(default_factory=dict)
    """Further columns of dataset.metadata."""
    cluster: str | None = None
    """First file of all that the split keeps together (near-duplicates, groups, and what these join); its own file
    where the image stands alone. None before the split, and in a dataset.json from before this field."""

    @property
    def unit(self) -> str:
        """What statistics count as one independent draw; without a recorded cluster the group, else the image."""
        return self.cluster or self.group or self.file


@dataclass(frozen=True)
class Box:
    """Where the image's content lies in the model's square, in pixels; the rest is padding (black)."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True)
class DataSet:
    """The checked and split data set: what dataset.json holds and every later stage reads.

    `hash` covers the files' digests, classes, splits and the framing; adapters carry it.
    """

    hash: str
    size: int
    """Side of the model's square in pixels."""
    frame: str
    seed: int
    train: tuple[SourceImage, ...]
    val: tuple[SourceImage, ...]
    test: tuple[SourceImage, ...]
    left_out: tuple[tuple[str, str], ...]
    """(file, reason) of images in no split: conflicts, and annotated ones where these are excluded."""

    def split(self, name: str) -> tuple[SourceImage, ...]:
        """The images of `train`, `val`, `test`, or of all three for `all`."""
        return self.train + self.val + self.test if name == "all" else getattr(self, name)

    def counts(self, classes: Iterable[str]) -> dict[str, dict[str, int]]:
        """split -> class -> images."""
        return {
            split: {name: sum(image.class_name == name for image in self.split(split)) for name in classes}
            for split in ("train", "val", "test")
        }

    @staticmethod
    def from_json(data: bytes) -> "DataSet":
        value = json.loads(data)
        for name in ("train", "val", "test"):
            value[name] = tuple(SourceImage(**{**image, "masks": tuple(image["masks"])}) for image in value[name])
        value["left_out"] = tuple((file, reason) for file, reason in value["left_out"])
        return DataSet(**value)


# ---- corpus ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Segment:
    """A create-only piece of the plan: `count` images of a class from index `first` on, in shards of `shard_size`."""

    class_name: str
    first: int
    count: int
    shard_size: int


@dataclass(frozen=True)
class Shard:
    """The unit of work, retry and output: images `first` .. `first + count - 1` of a class."""

    class_name: str
    first: int
    count: int

    @property
    def name(self) -> str:
        return f"{self.first:08d}-{self.count:05d}"


@dataclass(frozen=True)
class ImageSpec:
    """All that is needed to draw one image again, besides the models."""

    image_id: str
    class_name: str
    index: int
    attempt: int
    prompt: str
    seed_txt2img: int
    seed_img2img: int
    box: Box
    columns: dict[str, str] = field(default_factory=dict)
    """Values that quotas gave to this image's template columns."""


@dataclass(frozen=True)
class Execution:
    """What besides the fingerprint decides an image's last bit; kept in every commit record."""

    device: str
    dtype: str
    batch_size: int
    threads: int
    libraries: dict[str, str]


@dataclass(frozen=True)
class Redrawn:
    """What the class gate did with an image whose first draw it rejected."""

    image_id: str
    rejected: tuple[float, ...]
    """The probability of the image's class that the gate saw in draw 0, 1, ...; each of these draws was rejected."""
    kept: int | None
    """The attempt that became the image; None where the image is quarantined."""

    @staticmethod
    def from_dict(value: dict[str, Any]) -> "Redrawn":
        return Redrawn(**{**value, "rejected": tuple(value["rejected"])})


@dataclass(frozen=True)
class FirstDraws:
    """The object, always Parquet, with those first draws of a shard that the class gate rejected: evidence, no part of
    the corpus. Together with the shard's rows of attempt 0 they are what an ungated corpus would hold."""

    object: str
    digest: str
    bytes: int
    indices: tuple[int, ...]
    """Of its rows."""


@dataclass(frozen=True)
class Commit:
    """The create-only record that makes a shard done. `object` names the data object, `digest` is its SHA-256."""

    class_name: str
    first: int
    count: int
    object: str
    digest: str
    bytes: int
    rows: int
    rejects: tuple[tuple[str, str], ...]
    """(image id, reason) of the images quarantined: rows + len(rejects) = count."""
    execution: Execution
    seconds: float
    """Wall time of drawing in its actor, the class gate's redraws included, without loading models and encoding; for
    the report's timings only."""
    redrawn: tuple[Redrawn, ...] = ()
    """In the order of their indices; empty without a class gate."""
    first_draws: FirstDraws | None = None
    """None where no first draw was rejected."""

    @property
    def shard(self) -> Shard:
        return Shard(self.class_name, self.first, self.count)

    @staticmethod
    def from_json(data: bytes) -> "Commit":  # pyright: ignore[reportInvalidTypeForm] (a field is called bytes)
        value = json.loads(data)
        value["execution"] = Execution(**value["execution"])
        value["rejects"] = tuple((image_id, reason) for image_id, reason in value["rejects"])
        value["redrawn"] = tuple(map(Redrawn.from_dict, value.get("redrawn", ())))
        first = value.get("first_draws")
        value["first_draws"] = FirstDraws(**{**first, "indices": tuple(first["indices"])}) if first else None
        return Commit(**value)


# ---- evidence -------------------------------------------------------------------------------------------------------

INCEPTION = "inception-v3-2015"
"""The one extractor whose distances are called FID and KID."""


CLEAN_TEST = "test-clean"
"""Reference of figures on the test images that no text or caliper was found in; so are the real images of its floor."""
TOLD_APART = "told_apart_auc"
"""Metric of how well a classifier on an extractor's features tells synthetic from real images."""


def distance_names(extractor: str) -> tuple[str, str]:
    """Metrics of the Frechet and of the kernel distance between an extractor's features: `fid` and `kid` of Inception
    of 2015 alone, else `fd-` and `kd-` and the extractor's family, the part of its name before the first hyphen."""
    family = extractor.partition("-")[0]
    return ("fid", "kid") if extractor == INCEPTION else (f"fd-{family}", f"kd-{family}")


@dataclass(frozen=True)
class Figure:
    """One number of the evidence with all that is needed to read it."""

    metric: str
    """`kid_difference`, `fid_infinity`; `fid`, `kid`, `kid_p_value`, `precision`, `recall`, `density`, `coverage`,
    TOLD_APART, and each of these with `_floor`. For `fid` and `kid`, other extractors than Inception have
    distance_names. Class consistency and the class gate have those of quality/consistency; an ablation adds those of
    quality/ablation, a study those of quality/study_figures."""
    value: float
    interval: tuple[float, float] | None
    """95 % interval, or None where none is honest."""
    n: int
    n_reference: int
    reference: str
    """`train`, `val`, `test`, `all` or CLEAN_TEST."""
    protocol: str
    """`synthetic-only`, `paper-mixture` or `real-against-real`; `reconstruction` in an ablation, `single-split` of a
    classifier; `first-draw` or `after-gate` of what one says of drawn images; `copy-audit`."""
    extractor: str
    class_name: str
    arm: str
    frame: str
    """dataset.frame: how images of any size became squares."""
    size: int
    """Side of the square in pixels."""
    replicates: int | None = None
    """Disjoint samples of drawn images that the interval is from; it is then conditional on the reference's images."""
    drawn: int | None = None
    """Of an arm's `fid`: how many images there are in the reference's shares of the classes, of which n are compared;
    `fid_infinity`, where it is estimable, is of all of them."""

    def to_dict(self) -> dict[str, Any]:
        """As in report.json, where the class is called `class`."""
        value = asdict(self)
        value["class"] = value.pop("class_name")
        value["interval"] = list(self.interval) if self.interval else None
        return value


# ---- names of a run's objects ---------------------------------------------------------------------------------------

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
STUDY_PRIMARY = "study/primary.json"
"""What studies declared before they declared their ratios and seeds too."""


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
