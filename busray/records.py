"""Features of every arm and of the real images -> the flat list of figures, and what they say in sentences."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

REAL = "real"


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


class Interval(NamedTuple):
    """The ends of a 95 % interval."""

    low: float
    high: float

    def excludes(self, value: float) -> bool:
        return not self.low <= value <= self.high


FLOOR_SUFFIX = "_floor"
PAIR_SEPARATOR = " - "


@dataclass(frozen=True)
class Figure:
    """One number of the evidence with all that is needed to read it."""

    metric: str
    """Such as `fid`, `kid`, `kid_p_value`, `kid_difference`, `precision`, `told_apart_auc`. Other
    extractors than Inception have distance_names. The modules of evidence/ name their own."""
    value: float
    interval: Interval | None
    """95 % interval, or None where no valid one is known."""
    n: int
    n_reference: int
    reference: str
    """`train`, `val`, `test`, `all` or CLEAN_TEST."""
    protocol: str
    """`synthetic-only`, `paper-mixture` or `real-against-real`; `reconstruction` in an ablation;
    `single-split` of a classifier; `first-draw` or `after-gate` of the classes that one sees in
    drawn images; `copy-audit`."""
    extractor: str
    class_name: str
    arm: str
    frame: str
    """dataset.frame: how images of any size became squares."""
    size: int
    """Side of the square in pixels."""
    replicates: int | None = None
    """Disjoint samples of drawn images that the interval is from. The reference stays as it is."""
    drawn: int | None = None
    """Of an arm's `fid`: images in the reference's shares of the classes. n of them are compared;
    `fid_infinity`, where it is estimable, uses all."""
    floor: bool = False
    """True where real images stand in for drawn ones: the best that an arm can reach."""
    against: str | None = None
    """Of a difference: the other arm. The figure is `arm` minus `against`."""

    def to_dict(self) -> dict[str, Any]:
        """As in report.json: `class` for the class, `_floor` after a floor's metric, and the arms
        of a difference in one name, `<arm> - <against>`."""
        value = asdict(self)
        value["class"] = value.pop("class_name")
        value["interval"] = list(self.interval) if self.interval else None
        value["metric"] += FLOOR_SUFFIX if value.pop("floor") else ""
        against = value.pop("against")
        if against is not None:
            value["arm"] += PAIR_SEPARATOR + against
        return value

    @staticmethod
    def from_dict(value: Mapping[str, Any]) -> "Figure":
        """Of a dict that to_dict made. A report from before 0.1.0 may lack frame and size."""
        fields = {"frame": "", "size": 0, **value}
        fields["class_name"] = fields.pop("class")
        metric = fields["metric"]
        fields["metric"], fields["floor"] = metric.removesuffix(FLOOR_SUFFIX), metric.endswith(FLOOR_SUFFIX)
        arm, separator, against = fields["arm"].partition(PAIR_SEPARATOR)
        fields["arm"], fields["against"] = arm, against if separator else None
        fields["interval"] = Interval(*fields["interval"]) if fields["interval"] else None
        return Figure(**fields)
