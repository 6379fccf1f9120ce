# pyright: strict
"""Records: the nouns that one package hands to another, and the errors that end a command.

Records are data only. Most of them are stored as JSON, so a field's name is part of the stored
format (see CONTRIBUTING.md, "How to change a stored format").
"""

import builtins
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, cast

REAL = "real"  # arm of the figures that compare real images with real images
CLASS_ALL = "all"  # class of a figure over all classes
IMAGE_COLUMNS = ("image", "image_txt2img")
"""Columns of a shard with images: the final one, and the one before refinement."""


# ---- errors: how a command ends


class UserError(Exception):
    """A user's mistake: the message names the field or file and how to fix it. Exit status 2."""


class Stopped(Exception):
    """Work that ended early, but not by the user's mistake. The same command resumes it. Exit
    status 1."""


class StoreError(Stopped):
    """The store failed for as long as Store retries: the message names store, key and attempts."""


class HubError(Stopped):
    """The Hugging Face hub cannot be reached, or refuses. `fix` comes before the same command."""

    def __init__(self, message: str, fix: str, status: int | None) -> None:
        super().__init__(message, fix, status)
        self.fix, self.status = fix, status  # status: of the hub's answer

    def __str__(self) -> str:
        return str(self.args[0])


class StoppedForGood(Stopped):
    """Work that the same command cannot finish. `fix` says what to do instead."""

    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(message, fix)  # both are pickled
        self.fix = fix

    def __str__(self) -> str:
        return str(self.args[0])


class Damaged(StoppedForGood, ValueError):
    """A stored object is lost, or not what busray wrote: the message names it."""

    key = ""  # of the object in its store
    reason = ""  # what is wrong with it


NEWER_FIELDS = {
    "frame": 0,
    "reading": "",
    "grey_bits": 0,
    "channels_last": False,
    "fused_qkv": False,
    "compiled": False,
    "decode_batch": 0,
}
"""Fields that older records lack, and their defaults. A default is not written, so that a record
without anything new keeps its bytes."""


def to_json(record: Any) -> bytes:
    """A record (dataclass) or a dict as indented UTF-8 JSON. ValueError for NaN and infinity."""
    value: Any = cast(Any, record) if isinstance(record, dict) else asdict(record, dict_factory=_without_defaults)
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode()


def json_object(data: bytes) -> dict[str, Any]:
    """The JSON object of data as a dict. ValueError or TypeError for anything else."""
    value: Any = json.loads(data)
    if not isinstance(value, dict):
        raise TypeError("not a JSON object")
    return cast(dict[str, Any], value)


def _without_defaults(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name, value in pairs:
        if name not in NEWER_FIELDS or value != NEWER_FIELDS[name]:
            kept[name] = value
    return kept


# ---- data/: the checked data set


@dataclass(frozen=True)
class SourceImage:
    """One labelled image of the user's folder. file and masks are relative to it, with `/`.

    A further frame of a file is an image of its own, whose `file` ends in `#` and the frame.
    """

    file: str
    class_name: str
    width: int
    height: int
    mode: str  # Pillow's mode, or `I;16` for 16-bit grey, or `DICOM`
    sha256: str  # of the file's bytes
    masks: tuple[str, ...] = ()
    group: str | None = None  # patient or study; images of one never cross the split
    columns: dict[str, str] = field(default_factory=dict[str, str])  # further ones of the metadata
    cluster: str | None = None
    """The first file of all images that the split keeps together with this one (near-duplicates,
    groups, and what these join). None before the split."""
    frame: int = 0
    """Which frame of its file this is, counted from 0."""
    reading: str = ""
    """How its levels are read, where its format does not say it: `8 bits in 16-bit grey`."""
    grey_bits: int = 0
    """dataset.grey_bits, by which it is read; 0 without it."""

    @property
    def path(self) -> str:
        """The file that holds it, relative to the folder."""
        return self.file.removesuffix(f"#{self.frame}") if self.frame else self.file

    @property
    def unit(self) -> str:
        """What statistics count as one independent draw: all images of one unit count once."""
        return self.cluster or self.group or self.path

    @staticmethod
    def from_dict(value: dict[str, Any]) -> "SourceImage":
        value["masks"] = tuple(value["masks"])
        return SourceImage(**value)


@dataclass(frozen=True)
class ContentBox:
    """Where an image's content lies in the model's square, in pixels; the rest is padding."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True)
class DataSet:
    """The checked and split data set: dataset.json, which every later stage reads."""

    hash: str  # covers the files' digests, classes, splits and the framing; adapters carry it too
    size: int  # side of the model's square in pixels
    frame: str  # the framing (dataset.frame): how images of any size become squares
    seed: int
    train: tuple[SourceImage, ...]
    val: tuple[SourceImage, ...]
    test: tuple[SourceImage, ...]
    left_out: tuple[tuple[str, str], ...]  # (file, reason): label conflicts, excluded annotations

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


# ---- run/: drivers


@dataclass(frozen=True)
class DriverProgress:
    """What a driver says of itself, each minute; times are Unix seconds of its own clock."""

    driver: str  # names it: random, so that drivers of one run differ
    busray: str  # its version
    command: str  # its command line
    host: str
    process: int  # its number on that host
    machine: str  # names host, boot and process numbers' space; empty where that is not known
    started: float
    time: float  # of this word
    stage: str = ""  # the one that moved last, with items done of all
    done: int = 0
    total: int = 0
    # (time, message) of its warnings and of what its stages said, the newest last
    notes: tuple[tuple[float, str], ...] = ()
    ended: str | None = None  # how the command ended: `done` or its error; None while it works

    @staticmethod
    def from_json(data: bytes) -> "DriverProgress":
        value = json.loads(data)
        known = {name: value[name] for name in DriverProgress.__dataclass_fields__ if name in value}
        known["notes"] = tuple((time, message) for time, message in known.get("notes", ()))
        return DriverProgress(**known)


# ---- corpus/: plan, images, commits


@dataclass(frozen=True)
class Arm:
    """What is compared: the images that one method draws, before or after refinement and the gate.
    The only place that knows how an arm's name is written: `lora+ti+refine+gate`."""

    method: str  # `base`, or the method of its adapters, such as `lora+ti`
    refined: bool = False  # img2img was run on the txt2img images
    gated: bool = False  # the images that the class gate let pass, instead of all first draws

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
    """A create-only part of the plan: `count` images of a class from index `first` on."""

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
    attempt: int  # 0 for the first draw; higher where the class gate rejected earlier ones
    prompt: str
    seed_txt2img: int
    seed_img2img: int
    box: ContentBox
    columns: dict[str, str] = field(default_factory=dict[str, str])  # values that quotas gave
    caption: str = ""  # the prompt in plain words; empty in a corpus of format 1


@dataclass(frozen=True)
class Execution:
    """Everything outside the fingerprint that can change a pixel; part of every commit record."""

    device: str
    dtype: str
    batch_size: int
    threads: int
    libraries: dict[str, str]
    channels_last: bool = False  # memory layout of the UNet and the autoencoder
    fused_qkv: bool = False  # an attention's projections are one matrix
    compiled: bool = False  # by torch.compile
    decode_batch: int = 0  # images decoded at once; 0: the whole batch

    @property
    def computing(self) -> "Computing":
        return Computing(self.dtype, self.channels_last, self.fused_qkv, self.compiled)


@dataclass(frozen=True)
class Computing:
    """How a device computes the networks: what of it decides an image's last bits. The fields mean
    what they mean in Execution."""

    dtype: str
    channels_last: bool = False
    fused_qkv: bool = False
    compiled: bool = False


@dataclass(frozen=True)
class Redrawn:
    """What the class gate did with an image whose first draw it rejected."""

    image_id: str
    rejected: tuple[float, ...]  # the gate's probability of the class, of each rejected draw
    kept: int | None  # the attempt that became the image; None if the image is quarantined


@dataclass(frozen=True)
class FirstDraws:
    """The object (always Parquet) with the first draws of a shard that the class gate rejected.
    With the shard's rows of attempt 0 they are what the corpus would be without the gate."""

    object: str
    digest: str
    bytes: int
    indices: tuple[int, ...]  # index of the image in each row


@dataclass(frozen=True)
class Commit:
    """The create-only record that makes a shard done."""

    class_name: str
    first: int
    count: int
    object: str  # key of the data object
    digest: str  # SHA-256 of the data object's bytes
    bytes: int
    rows: int
    rejects: tuple[tuple[str, str], ...]  # (image id, reason); rows + len(rejects) = count
    execution: Execution
    seconds: float  # of drawing with its redraws, not of loading and encoding; for timings
    redrawn: tuple[Redrawn, ...] = ()  # in the order of their indices; empty without a class gate
    first_draws: FirstDraws | None = None  # None if no first draw was rejected

    @property
    def shard(self) -> Shard:
        return Shard(self.class_name, self.first, self.count)

    @staticmethod
    def from_json(data: builtins.bytes) -> "Commit":
        value = json.loads(data)
        value["execution"] = Execution(**value["execution"])
        value["rejects"] = tuple((image_id, reason) for image_id, reason in value["rejects"])
        for redrawn in value["redrawn"]:
            redrawn["rejected"] = tuple(redrawn["rejected"])
        value["redrawn"] = tuple(Redrawn(**redrawn) for redrawn in value["redrawn"])
        if first_draws := value["first_draws"]:
            indices = tuple(first_draws.pop("indices"))
            value["first_draws"] = FirstDraws(**first_draws, indices=indices)
        return Commit(**value)


# ---- evidence/: figures

INCEPTION = "inception-v3-2015"  # the one extractor whose distances are called FID and KID
CLEAN_TEST = "test-clean"  # reference: test images without burned-in text or calipers; floor too
MOST_REPLICATES = 10
"""Disjoint samples of which a Frechet distance's spread is taken. So a figure looks at no more than
ten drawn images for each real one."""
SEPARABILITY_AUC = "told_apart_auc"
"""AUC of a classifier that separates synthetic from real images by an extractor's features."""
FLOOR_SUFFIX = "_floor"
PAIR_SEPARATOR = " - "


def distance_names(extractor: str) -> tuple[str, str]:
    """Metrics of an extractor's Frechet and kernel distance: `fid` and `kid` for Inception-2015,
    else `fd-<family>` and `kd-<family>` (the extractor's name up to its first hyphen)."""
    family = extractor.partition("-")[0]
    return ("fid", "kid") if extractor == INCEPTION else (f"fd-{family}", f"kd-{family}")


class Interval(NamedTuple):
    """The ends of a 95 % interval."""

    low: float
    high: float

    def excludes(self, value: float) -> bool:
        return not self.low <= value <= self.high


@dataclass(frozen=True)
class Figure:
    """One number of the evidence with all that is needed to read it."""

    metric: str  # such as `fid` or `precision`; the modules of evidence/ name their own
    value: float
    interval: Interval | None  # 95 %, or None where no valid one is known
    n: int
    n_reference: int
    reference: str  # `train`, `val`, `test`, `all` or CLEAN_TEST
    protocol: str
    """`synthetic-only`, `paper-mixture` or `real-against-real`; `reconstruction` in an ablation;
    `single-split` of a classifier; `first-draw` or `after-gate` of the classes that one sees in
    drawn images; `copy-audit`."""
    extractor: str
    class_name: str
    arm: str
    frame: str  # dataset.frame: how images of any size became squares
    size: int  # side of the square in pixels
    replicates: int | None = None  # disjoint samples of drawn images for the interval
    drawn: int | None = None
    """Of an arm's `fid`: images in the reference's shares of the classes. n of them are compared;
    `fid_infinity`, where it is estimable, uses all."""
    floor: bool = False  # of real images in place of drawn ones: the best for an arm
    against: str | None = None  # of a difference, which is `arm` minus `against`

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
        """The figure of a dict that to_dict made."""
        fields = dict(value)
        fields["class_name"] = fields.pop("class")
        fields["floor"] = fields["metric"].endswith(FLOOR_SUFFIX)
        fields["metric"] = fields["metric"].removesuffix(FLOOR_SUFFIX)
        arm, separator, against = fields["arm"].partition(PAIR_SEPARATOR)
        fields["arm"], fields["against"] = arm, against if separator else None
        fields["interval"] = Interval(*fields["interval"]) if fields["interval"] else None
        return Figure(**fields)


# ---- stages/: trained networks


@dataclass(frozen=True)
class Recall:
    """How many of a class's test images a classifier recognises."""

    value: float  # share of the images
    interval: Interval
    n: int  # test images of the class


@dataclass(frozen=True)
class ClassifierRecord:
    """The create-only record of a run's trained classifier."""

    architecture: str
    dataset: str  # the data set's hash
    classes: tuple[str, ...]  # in the order of the classifier's outputs
    training: Mapping[str, Any]  # `steps`, `batch_size` and `learning_rates`
    seed: int
    chosen: Mapping[str, float]  # the validation whose weights were kept
    trials: tuple[Mapping[str, float], ...]  # all validations
    images: Mapping[str, int]  # split -> number of images
    test: Mapping[str, Recall]  # of each class, and their mean under CLASS_ALL
    object: str  # key of the weights
    digest: str  # SHA-256 of the weights' bytes

    @staticmethod
    def from_json(data: bytes) -> "ClassifierRecord":
        value = json.loads(data)
        test: dict[str, Recall] = {}
        for name, score in value["test"].items():
            test[name] = Recall(score["value"], Interval(*score["interval"]), score["n"])
        value |= {"classes": tuple(value["classes"]), "trials": tuple(value["trials"])}
        value["test"] = test
        return ClassifierRecord(**value)


@dataclass(frozen=True)
class SegmenterPins:
    """Everything that decides a segmenter."""

    segmenter: str
    dataset: str  # the data set's hash
    masks: Mapping[str, str]  # split -> SHA-256 of its images' names and masks
    steps: int
    seed: int


@dataclass(frozen=True)
class SegmenterRecord(SegmenterPins):
    """The create-only record of a run's trained segmenter."""

    images: Mapping[str, int]  # split -> images with known masks
    looks: tuple[Mapping[str, Any], ...]  # all validations: `step` and `dice`
    dice: tuple[float | None, ...]  # of each test image; None where neither mask has a lesion
    object: str  # key of the weights
    digest: str  # SHA-256 of the weights' bytes

    @staticmethod
    def from_json(data: bytes) -> "SegmenterRecord":
        value = json.loads(data)
        value |= {"looks": tuple(value["looks"]), "dice": tuple(value["dice"])}
        return SegmenterRecord(**value)


@dataclass(frozen=True)
class AdaptersRecord:
    """adapters.json: the create-only record of a run's adapters."""

    sha256: str  # of what decides pixels: the tensors of all files
    folder: str  # in the run's store
    files: Mapping[str, str]  # file -> SHA-256
    about: Mapping[str, Any]
    """What adapter.json says (base, data set, tokens, steps), which adopted adapters may lack, and
    the training's losses."""

    @property
    def dataset_hash(self) -> str | None:
        """Of the data set that they were trained on."""
        return self.about.get("dataset_hash")

    @property
    def schedule(self) -> Mapping[str, Any]:
        """What they change of the base's noise schedule (model/noise_schedule.py)."""
        return self.about.get("scheduler", {})

    @property
    def is_adopted(self) -> bool:
        """They were not trained here, but are a copy of adapters.path's."""
        return bool(self.about.get("adopted"))

    def to_dict(self) -> dict[str, Any]:
        own = {"sha256": self.sha256, "folder": self.folder, "files": dict(self.files)}
        return {**self.about, **own}

    @staticmethod
    def from_json(data: bytes) -> "AdaptersRecord":
        about = json.loads(data)
        return AdaptersRecord(about.pop("sha256"), about.pop("folder"), about.pop("files"), about)
