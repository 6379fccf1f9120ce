# pyright: strict
"""Records: the nouns that one room hands to another, and the errors that end a command.

Records are data only. Most of them are stored as JSON, so a field's name is part of the stored
format (see CONTRIBUTING.md, "How to change a stored format").
"""

import builtins
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, cast

REAL = "real"
"""Arm of the figures that compare real images with real images."""

IMAGE_COLUMNS = ("image", "image_txt2img")
"""Columns of a shard with images: the final one, and the one before refinement."""

CLASS_ALL = "all"
"""Class of a figure over all classes."""


# ---- errors: how a command ends


class UserError(Exception):
    """A user's mistake: the message names the field or file and how to fix it. Exit status 2."""


class Stopped(Exception):
    """Work that ended early, but not by the user's mistake. The same command resumes it. Exit
    status 1."""


class StoreError(Stopped):
    """The store failed for as long as Store retries: the message names store, key and attempts."""


def to_json(record: Any) -> bytes:
    """A record (dataclass) or a dict as indented UTF-8 JSON. ValueError for NaN and infinity."""
    value: Any = cast(Any, record) if isinstance(record, dict) else asdict(record)
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


# ---- data/: the checked data set


@dataclass(frozen=True)
class SourceImage:
    """One labelled image of the user's folder. file and masks are relative to it, with `/`."""

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
    columns: dict[str, str] = field(default_factory=dict[str, str])
    """Further columns of dataset.metadata."""
    cluster: str | None = None
    """The images that the split keeps together (near-duplicates, groups, and what these join) have
    the same value here: the first file of them all. None before the split, and in a dataset.json
    that is older than this field."""

    @property
    def unit(self) -> str:
        """What statistics count as one independent draw: all images of one unit count once."""
        return self.cluster or self.group or self.file

    @staticmethod
    def from_dict(value: dict[str, Any]) -> "SourceImage":
        value["masks"] = tuple(value["masks"])
        return SourceImage(**value)


@dataclass(frozen=True)
class ContentBox:
    """Where an image's content lies in the model's square, in pixels; the rest is black padding."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True)
class DataSet:
    """The checked and split data set: dataset.json, which every later stage reads."""

    hash: str
    """Covers the files' digests, classes, splits and the framing; adapters carry it too."""
    size: int
    """Side of the model's square in pixels."""
    frame: str
    """The framing (dataset.frame): how images of any size become squares."""
    seed: int
    train: tuple[SourceImage, ...]
    val: tuple[SourceImage, ...]
    test: tuple[SourceImage, ...]
    left_out: tuple[tuple[str, str], ...]
    """(file, reason) of the images in no split: label conflicts, and images with annotations if
    `dataset.annotations` is `exclude`."""

    def split(self, name: str) -> tuple[SourceImage, ...]:
        """The images of `train`, `val`, `test`, or of all three for `all`."""
        return self.train + self.val + self.test if name == "all" else getattr(self, name)

    def counts(self, classes: Iterable[str]) -> dict[str, dict[str, int]]:
        """split -> class -> images."""
        counts: dict[str, dict[str, int]] = {}
        for split in ("train", "val", "test"):
            labels = [image.class_name for image in self.split(split)]
            counts[split] = {name: labels.count(name) for name in classes}
        return counts

    @staticmethod
    def from_json(data: bytes) -> "DataSet":
        value = json.loads(data)
        for name in ("train", "val", "test"):
            value[name] = tuple(map(SourceImage.from_dict, value[name]))
        value["left_out"] = tuple((file, reason) for file, reason in value["left_out"])
        return DataSet(**value)


# ---- corpus/: plan, images, commits


@dataclass(frozen=True)
class Arm:
    """What is compared: the images that one method draws, before or after refinement and the gate.

    The only place that knows how an arm's name is written: `lora+ti+refine+gate`.
    """

    method: str
    """`base`, or the method of its adapters, such as `lora+ti`."""
    refined: bool = False
    """img2img was run on the txt2img images."""
    gated: bool = False
    """The images that the class gate let pass, instead of all first draws."""

    @staticmethod
    def parse(name: str) -> "Arm":
        ungated = name.removesuffix("+gate")
        method = ungated.removesuffix("+refine")
        return Arm(method, refined=ungated != method, gated=name != ungated)

    @property
    def name(self) -> str:
        return self.method + ("+refine" if self.refined else "") + ("+gate" if self.gated else "")

    @property
    def uses_adapters(self) -> bool:
        return self.method != "base"


@dataclass(frozen=True)
class Segment:
    """A create-only part of the plan: `count` images of a class from index `first` on, in shards of
    `shard_size` images."""

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
    """Everything that is needed to draw one image again, except the models."""

    image_id: str
    class_name: str
    index: int
    attempt: int
    """0 for the first draw; higher where the class gate rejected earlier ones."""
    prompt: str
    seed_txt2img: int
    seed_img2img: int
    box: ContentBox
    columns: dict[str, str] = field(default_factory=dict[str, str])
    """Values that quotas gave to this image's template columns."""


@dataclass(frozen=True)
class Execution:
    """Everything outside the fingerprint that can change a pixel; part of every commit record."""

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
    """Of each rejected draw, in order: the probability of the image's class that the gate saw."""
    kept: int | None
    """The attempt that became the image; None if the image is quarantined."""

    @staticmethod
    def from_dict(value: dict[str, Any]) -> "Redrawn":
        return Redrawn(value["image_id"], tuple(value["rejected"]), value["kept"])


@dataclass(frozen=True)
class FirstDraws:
    """The object (always Parquet) with the first draws of a shard that the class gate rejected.

    They are evidence and not part of the corpus: with the shard's rows of attempt 0 they are what
    the corpus would be without the gate.
    """

    object: str
    digest: str
    bytes: int
    indices: tuple[int, ...]
    """Index of the image in each row."""

    @staticmethod
    def from_dict(value: dict[str, Any]) -> "FirstDraws":
        return FirstDraws(value["object"], value["digest"], value["bytes"], tuple(value["indices"]))


@dataclass(frozen=True)
class Commit:
    """The create-only record that makes a shard done."""

    class_name: str
    first: int
    count: int
    object: str
    """Key of the data object."""
    digest: str
    """SHA-256 of the data object's bytes."""
    bytes: int
    rows: int
    rejects: tuple[tuple[str, str], ...]
    """(image id, reason) of the quarantined images: rows + len(rejects) = count."""
    execution: Execution
    seconds: float
    """Wall time of drawing in the worker, with the class gate's redraws, without loading models
    and encoding. Used for the report's timings only."""
    redrawn: tuple[Redrawn, ...] = ()
    """In the order of their indices; empty without a class gate."""
    first_draws: FirstDraws | None = None
    """None if no first draw was rejected."""

    @property
    def shard(self) -> Shard:
        return Shard(self.class_name, self.first, self.count)

    @staticmethod
    def from_json(data: builtins.bytes) -> "Commit":
        value = json.loads(data)
        value["execution"] = Execution(**value["execution"])
        value["rejects"] = tuple((image_id, reason) for image_id, reason in value["rejects"])
        value["redrawn"] = tuple(map(Redrawn.from_dict, value.get("redrawn", ())))
        first_draws = value.get("first_draws")
        value["first_draws"] = FirstDraws.from_dict(first_draws) if first_draws else None
        return Commit(**value)


# ---- evidence/: figures


INCEPTION = "inception-v3-2015"
"""The one extractor whose distances are called FID and KID."""


CLEAN_TEST = "test-clean"
"""Reference of figures against the test images without burned-in text or calipers. The real images
of its floor are without them too."""


SEPARABILITY_AUC = "told_apart_auc"
"""AUC of a classifier that separates synthetic from real images by an extractor's features."""


def distance_names(extractor: str) -> tuple[str, str]:
    """Metrics of the Frechet and of the kernel distance between an extractor's features.

    `fid` and `kid` for Inception-2015 only. For another extractor `fd-<family>` and `kd-<family>`,
    where the family is the part of its name before the first hyphen.
    """
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
        # One name for metric and floor, and one for a pair of arms: so reports were always stored.
        value["metric"] += FLOOR_SUFFIX if value.pop("floor") else ""
        against = value.pop("against")
        if against is not None:
            value["arm"] += PAIR_SEPARATOR + against
        return value

    @staticmethod
    def from_dict(value: Mapping[str, Any]) -> "Figure":
        """The figure of a dict that to_dict made; an old report may have no frame and size."""
        fields: dict[str, Any] = {"frame": "", "size": 0, **value}
        fields["class_name"] = fields.pop("class")
        metric = fields["metric"]
        fields["metric"], fields["floor"] = metric.removesuffix(FLOOR_SUFFIX), metric.endswith(FLOOR_SUFFIX)
        arm, separator, against = fields["arm"].partition(PAIR_SEPARATOR)
        fields["arm"], fields["against"] = arm, against if separator else None
        fields["interval"] = Interval(*fields["interval"]) if fields["interval"] else None
        return Figure(**fields)


# ---- stages/: trained networks


@dataclass(frozen=True)
class Recall:
    """How many of a class's test images a classifier recognises."""

    value: float
    """Share of the images."""
    interval: Interval
    n: int
    """Test images of the class."""


@dataclass(frozen=True)
class ClassifierRecord:
    """The create-only record of a run's trained classifier."""

    architecture: str
    dataset: str
    """The data set's hash."""
    classes: tuple[str, ...]
    """In the order of the classifier's outputs."""
    training: Mapping[str, Any]
    """`steps`, `batch_size` and `learning_rates`."""
    seed: int
    chosen: Mapping[str, float]
    """The validation whose weights were kept."""
    trials: tuple[Mapping[str, float], ...]
    """All validations."""
    images: Mapping[str, int]
    """split -> number of images."""
    test: Mapping[str, Recall]
    """Of each class, and their mean under CLASS_ALL."""
    object: str
    """Key of the weights."""
    digest: str
    """SHA-256 of the weights' bytes."""

    @staticmethod
    def from_json(data: bytes) -> "ClassifierRecord":
        value = json.loads(data)
        test: dict[str, Recall] = {}
        for name, score in value["test"].items():
            test[name] = Recall(score["value"], Interval(*score["interval"]), score["n"])
        value |= {"classes": tuple(value["classes"]), "trials": tuple(value["trials"]), "test": test}
        return ClassifierRecord(**value)


@dataclass(frozen=True)
class SegmenterPins:
    """Everything that decides a segmenter."""

    segmenter: str
    dataset: str
    """The data set's hash."""
    masks: Mapping[str, str]
    """split -> SHA-256 of its images' names and masks."""
    steps: int
    seed: int


@dataclass(frozen=True)
class SegmenterRecord(SegmenterPins):
    """The create-only record of a run's trained segmenter."""

    images: Mapping[str, int]
    """split -> images with known masks."""
    looks: tuple[Mapping[str, Any], ...]
    """All validations: `step` and `dice`."""
    dice: tuple[float | None, ...]
    """Of each test image; None where neither mask has a lesion."""
    object: str
    """Key of the weights."""
    digest: str
    """SHA-256 of the weights' bytes."""

    @staticmethod
    def from_json(data: bytes) -> "SegmenterRecord":
        value = json.loads(data)
        value |= {"looks": tuple(value["looks"]), "dice": tuple(value["dice"])}
        return SegmenterRecord(**value)


@dataclass(frozen=True)
class AdaptersRecord:
    """adapters.json: the create-only record of a run's adapters."""

    sha256: str
    """Of what decides pixels: the tensors of all files."""
    folder: str
    """In the run's store."""
    files: Mapping[str, str]
    """file -> SHA-256."""
    about: Mapping[str, Any]
    """All else: what adapter.json says (base, data set, tokens, steps), and the training's losses.
    Adapters from elsewhere may say less."""

    @property
    def dataset_hash(self) -> str | None:
        """Of the data set that they were trained on."""
        return self.about.get("dataset_hash")

    @property
    def is_adopted(self) -> bool:
        """They were not trained here, but are a copy of adapters.path's."""
        return bool(self.about.get("adopted"))

    def to_dict(self) -> dict[str, Any]:
        return {**self.about, "sha256": self.sha256, "folder": self.folder, "files": dict(self.files)}

    @staticmethod
    def from_json(data: bytes) -> "AdaptersRecord":
        about = json.loads(data)
        return AdaptersRecord(about.pop("sha256"), about.pop("folder"), about.pop("files"), about)
