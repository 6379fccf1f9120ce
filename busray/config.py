"""Every setting: its unit, default and bound. One frozen tree from a YAML file and `--a.b=c` flags.

Only what can be told from the settings alone is checked here; folders, bases and adapters are looked at by the stage
that reads them, before any work starts.
"""

import re
import string
import unicodedata
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


TOKEN = re.compile(r"<[a-z0-9][a-z0-9_-]*>")


HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
"""Unicode categories of characters that do not show, or change how the others show."""


SIGNED = re.compile(r"[?&]([\w-]*(signature|token|secret|password|key)|sig)=", re.IGNORECASE)


def unfit(name: str) -> str | None:
    """What in a name could fool a reader or a program (control, bidirectional, zero-width characters; letters that are
    not composed, NFC); None where nothing does."""
    for character in name:
        if unicodedata.category(character) in HIDDEN:
            return f"the character U+{ord(character):04X}"
    return None if unicodedata.is_normalized("NFC", name) else "letters that are not composed (Unicode NFC)"


def credentials_in(text: str) -> bool:
    """Whether a URL in text carries a password, a token or a signature.

    Not meant: a port, an access point's ARN, the container of `abfs://container@account`, the user of `sftp://user@host`.
    """
    for scheme, host, path in re.findall(r"(\w*)://([^/?#]*)([^?#]*)", text):
        user, at, _ = host.rpartition("@")
        port = host.rpartition(":")[2]
        if at and (":" in user or scheme.lower() in ("http", "https")):
            return True
        plain = ":" not in host or host.startswith("arn:") or host.endswith("]")
        if not at and not plain and (not port.isdigit() or "@" in path):  # a secret can hold a slash
            return True
    return SIGNED.search(text) is not None


def _location(value: str) -> str:
    if credentials_in(value):
        raise ValueError(
            "credentials in a URL end up in logs and records: leave them out, they come from the instance's role or "
            "the environment (AWS_PROFILE, AWS_ACCESS_KEY_ID and so on)"
        )
    what = unfit(value)
    if what:
        raise ValueError(f"{what} is in it: use characters that show")
    if "://" in value and ".." in value.split("/"):
        raise ValueError("a URL with `..` in it: write where it leads")
    return value


Location = Annotated[str, AfterValidator(_location)]
"""A path or URL, without credentials."""


Positive = Annotated[int, Field(ge=1)]


Count = Annotated[int, Field(ge=0)]


Seed = Annotated[int, Field(ge=0, lt=2**63)]


Workers = Annotated[int, Field(ge=1, le=512)]


def _both(value: Any) -> Any:
    """A single number as [min, max]."""
    return (value, value) if isinstance(value, int) and not isinstance(value, bool) else value


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


class Phantoms(Settings):
    """Simulated labelled images in place of a folder: for the demo and for tests."""

    images: Annotated[int, Field(ge=8, le=100_000)] = 60
    """Images a class."""
    seed: Seed = 7
    probe: str = "demo"
    """Probe preset of busray.data.phantom."""


class Dataset(Settings):
    path: Location | None = None
    """Folder with one folder a class."""
    phantoms: Phantoms | None = None
    """Simulate the data set instead of reading one; exactly one of path and phantoms is set."""
    metadata: Location | None = None
    """CSV with the column `file` (relative to path), optionally `group`, and any others."""
    frame: Literal["letterbox", "centre", "stretch"] = "letterbox"
    """How an image of any size becomes the model's square."""
    annotations: Literal["keep", "exclude"] = "keep"
    """`exclude` drops images with burned-in text or calipers from training; val and test stay what they were, so that
    figures of both ways have one reference."""
    val: Annotated[float, Field(gt=0, lt=0.5)] = 0.15
    """Share of each class for validation."""
    test: Annotated[float, Field(gt=0, lt=0.5)] = 0.2
    """Share of each class for the test split."""
    seed: Seed = 42


class Base(Settings):
    path: Location = "tiny"
    """`tiny` (embedded), a folder in diffusers' layout, or a hub id."""
    revision: str | None = None
    """Commit hash of a hub id: 40 hex digits, required there."""
    size: Annotated[int, Field(ge=64, le=1024, multiple_of=8)] = 128
    """Side of the square in pixels: 128 for tiny, 512 for SD v1.5."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Of sampling; training keeps its weights in float32."""

    @field_validator("revision")
    @classmethod
    def _is_commit(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[0-9a-f]{40}", value):
            raise ValueError("a revision is pinned by its commit hash: 40 hex digits")
        return value


class Class(Settings):
    images: Count = 100
    """Images to draw for the released corpus."""
    token: Annotated[str, Field(pattern=f"^{TOKEN.pattern}$")] | None = None
    """Placeholder token of textual inversion; classes may share one. Default `<class name>`."""
    initializer: Annotated[str, Field(min_length=1)] = "ultrasound"
    """Word whose embedding the token starts from, and its stand-in in arms without textual inversion."""
    caption: str = "{token} ultrasound image of {class} breast tissue"
    """Training caption; `{token}`, `{class}` and columns of dataset.metadata are filled in."""
    prompts: Annotated[tuple[str, ...], Field(min_length=1)] = ("{token} ultrasound image of {class} breast tissue",)
    """Templates of the prompts, taken in turn."""
    quotas: dict[str, Annotated[dict[str, Annotated[float, Field(gt=0)]], Field(min_length=1)]] = {}
    """column -> value -> share: what fills `{column}` in prompts. Default: the train split's shares."""


class Adapters(Settings):
    method: Literal["lora", "ti", "lora+ti"] = "lora+ti"
    path: Location | None = None
    """Folder or URL of existing adapters, taken instead of training."""
    rank: Annotated[int, Field(ge=1, le=256)] = 4
    alpha: Annotated[float, Field(gt=0)] | None = None
    """LoRA scaling numerator; default: the rank."""
    convolutions: bool = False
    """Also put LoRA on the UNet's residual blocks: `tiny` makes speckle where it has no attention."""
    text_encoder: bool = False
    """Also put LoRA on the text encoder's attention."""
    vectors: Annotated[int, Field(ge=1, le=16)] = 1
    """Embedding vectors a learned token."""
    steps: Positive = 3000
    """Optimiser steps."""
    batch_size: Positive = 4
    """Global batch: over all workers."""
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 1e-4
    """Of LoRA."""
    token_learning_rate: Annotated[float, Field(gt=0, lt=1)] = 5e-4
    """Of the learned tokens' embeddings."""
    warmup: Count = 0
    """Steps of linear warm-up; constant after."""
    snr_gamma: Annotated[float, Field(gt=0)] | None = None
    """Min-SNR weighting (arXiv 2303.09556); off where unset."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of the moving average of the adapters' weights; off where unset."""
    mirror: bool = True
    """Also train on left-right mirrored copies."""
    caption_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of samples trained with the empty caption, so that guidance keeps its meaning."""
    validate_every: Positive = 500
    """Steps between validation losses with a sample grid."""
    checkpoint_every: Positive = 500
    """Steps between checkpoints."""
    num_workers: Annotated[tuple[Workers, Workers], BeforeValidator(_both)] = (1, 1)
    """Ray Train workers: a number, or [min, max] to train on whatever nodes there are. The global batch stays."""

    @field_validator("num_workers")
    @classmethod
    def _fewest_is_not_above_most(cls, value: tuple[int, int]) -> tuple[int, int]:
        if value[0] > value[1]:
            raise ValueError("[min, max]: min is above max")
        return value


class Sampling(Settings):
    scheduler: Literal["dpmsolver++", "sde-dpmsolver++", "ddim", "euler", "unipc"] = "dpmsolver++"
    steps: Annotated[int, Field(ge=1, le=1000)] = 50
    guidance_scale: Annotated[float, Field(ge=1, le=50)] = 7.5
    """1 switches classifier-free guidance off."""
    batch_size: Annotated[int, Field(ge=1, le=512)] = 8
    """Images a forward pass; the last batch is padded to it."""


class Refine(Settings):
    """img2img over the txt2img result."""

    strength: Annotated[float, Field(gt=0, le=1)] = 0.3
    steps: Annotated[int, Field(ge=1, le=1000)] = 50
    """Of the whole schedule; strength x steps are run."""
    guidance_scale: Annotated[float, Field(ge=1, le=50)] = 7.5
    handover: Literal["pixel", "latent"] = "pixel"
    """`pixel` decodes, rounds to 8 bits and encodes again (the paper); `latent` skips that round trip."""

    @model_validator(mode="after")
    def _runs_a_step(self) -> "Refine":
        if int(self.steps * self.strength) < 1:
            raise ValueError("strength x steps is below 1, so refinement would run no step: raise either")
        return self


class Gate(Settings):
    """The class gate: an image that a classifier of real images does not take for one of its class is drawn again, from
    the seed of its next attempt. The classifier is trained on the train split and calibrated on val."""

    architecture: Literal["cnn", "efficientnet-lite0"] = "efficientnet-lite0"
    """As study.architecture."""
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Calibrated probability of its class that an image must reach."""
    attempts: Annotated[int, Field(ge=1, le=100)] = 8
    """Draws an image, the first one included; an image whose last is rejected too is quarantined."""


class Corpus(Settings):
    shard_size: Annotated[int, Field(ge=1, le=100_000)] = 256
    """Images a shard: the unit of work, retry and output."""
    format: Literal["parquet", "png"] = "parquet"
    keep_txt2img: bool = True
    """Keep the image before refinement beside the refined one."""
    gate: Gate | None = None
    """null: the first draw of every image is kept, whatever it shows."""
    max_quarantined: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Share of a corpus's planned images that may be quarantined before the command ends with exit status 1."""


class Geometry(Settings):
    """Size and shape of lesions, in drawn images by the masks of a small segmenter trained on the train split's masks;
    an image without a mask file is not trained on, an empty mask says that there is no lesion."""

    steps: Annotated[int, Field(ge=10, le=100_000)] = 800
    """Optimiser steps of the segmenter, of 8 images each."""


class Evaluate(Settings):
    arms: tuple[str, ...] = ("base", "lora+ti", "lora+ti+refine")
    """What is compared: `base` or adapters.method, each also with `+refine`."""
    images: Positive | None = None
    """Images a class and arm; default: the smallest class of the corpus."""
    reference: Literal["train", "val", "test", "all"] = "test"
    """Real images the arms are compared with."""
    extractors: Annotated[tuple[Literal["inception", "texture", "dinov2"], ...], Field(min_length=1)] = (
        "inception",
        "texture",
    )
    """Feature spaces of the distances: Inception-2015 (FID, KID), ultrasound texture, DINOv2 (FD- and KD- of each)."""
    inception: Location | None = None
    """Path of Inception-2015 weights, which are known by their SHA-256; default: looked for as README says."""
    dinov2: Location | None = None
    """Path of DINOv2 weights (ViT-S, B or L/14) as safetensors with the authors' names; the extractor needs it, and is
    named by the file's SHA-256."""
    geometry: Geometry | None = None
    """null: no lesion geometry, which takes minutes of training and needs masks."""
    judge: Literal["cnn", "efficientnet-lite0"] | None = "cnn"
    """Classifier, as study.architecture, that says which class each first draw shows; another one than the class
    gate's. null: no class consistency."""
    batch_size: Annotated[int, Field(ge=1, le=1024)] = 32

    @field_validator("extractors")
    @classmethod
    def _extractors_differ(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError("an extractor is named twice")
        return value


class Ablate(Settings):
    """`busray ablate`: the arms above, and sweeps of lora+ti measured against the validation images."""

    against: Literal["base", "base+refine", "lora", "lora+refine", "ti", "ti+refine", "lora+ti", "lora+ti+refine"] = (
        "base"
    )
    """Arm that the others' KID is compared with, seed by seed."""
    strengths: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (0.15, 0.5, 0.7)
    """Further values of refine.strength to try; what is configured is tried anyway."""
    guidance_scales: tuple[Annotated[float, Field(ge=1, le=50)], ...] = (1.0, 4.0, 7.5)
    """Further values of sampling.guidance_scale and refine.guidance_scale, set together."""


class Primary(Settings):
    """The one comparison that a study is about, declared before its results; all others are corrected for."""

    metric: Literal["accuracy", "macro_f1", "auc"]
    arm: str
    """Of the study, such as `mixed@0.5`."""
    against: str = "real"


class Study(Settings):
    """`busray study`: what synthetic images are worth to a classifier of real ones."""

    primary: Primary | None = None
    """Needed by `busray study`. It, the ratios and the seeds are kept before any result is there, and cannot change."""
    ratios: Annotated[tuple[Annotated[float, Field(gt=0, le=1000)], ...], Field(min_length=1)] = (0.25, 0.5, 1.0)
    """Synthetic images for each real training image, class by class; with corpus.gate also as they were without it."""
    seeds: Annotated[int, Field(ge=2, le=100)] = 5
    """Trainings of each arm, the same seeds in each."""
    architecture: Literal["cnn", "efficientnet-lite0"] = "cnn"
    """`cnn`: from random weights; `efficientnet-lite0`: linear on frozen ImageNet features, whose weights
    requirements-classifier.txt installs."""
    steps: Annotated[int, Field(ge=10, le=1_000_000)] = 400
    """Optimiser steps of every training, whatever its number of images."""
    batch_size: Annotated[int, Field(ge=2, le=4096)] = 32
    learning_rates: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(min_length=1)] = (3e-3,)
    """Each is tried in every training; val chooses."""
    external: Location | None = None
    """Folder of a further test set, one folder a class (not every class is needed); never trained on."""


class Cluster(Settings):
    address: str | None = None
    """Ray address; default: RAY_ADDRESS, else Ray is started in this process."""
    allow_insecure: bool = False
    """Also join a cluster that asks for no token, or whose dashboard has a public address: whoever reaches such a
    cluster runs code on it."""
    min_actors: Positive = 1
    max_actors: Positive = 1
    """Sampling and feature actors (a pool that grows from min to max)."""
    gpus_per_actor: Annotated[float, Field(ge=0, le=16)] = 0
    cpus_per_actor: Annotated[float, Field(ge=0, le=256)] = 1
    threads: Positive = 2
    """CPU threads of torch in each actor; part of what makes pixels repeat exactly."""
    hang_seconds: Annotated[float, Field(ge=5, le=86_400)] = 900
    """A worker not heard of for so long (a batch, an optimiser step) is killed and its work given to another; where
    for four times as long no worker gets on with its work, the command ends with status 1."""

    @model_validator(mode="after")
    def _min_is_not_above_max(self) -> "Cluster":
        if self.min_actors > self.max_actors:
            raise ValueError(f"min_actors ({self.min_actors}) is above max_actors ({self.max_actors})")
        return self


class Card(Settings):
    """What only the user can state of a corpus; `busray card` says "undeclared" until it is stated here."""

    license: Annotated[str, Field(min_length=1)] | None = None
    """Of the synthetic images: an identifier of Hugging Face's list (`cc-by-4.0`, `other`, ...)."""
    source: Annotated[str, Field(min_length=1)] | None = None
    """Citation and licence of the real images."""
    ethics: Annotated[str, Field(min_length=1)] | None = None
    """Approval or exemption under which the real images are used."""
    contact: Annotated[str, Field(min_length=1)] | None = None
    """Whom to write to."""


class Config(Settings):
    name: str = "run"
    """Of the run; default: the config file's name."""
    output: Location = ""
    """Folder or URL of the run; default `runs/<name>`."""
    seed: Seed = 1000
    """Of every draw of the corpus."""
    dataset: Dataset = Dataset()
    base: Base = Base()
    classes: Annotated[dict[str, Class], Field(min_length=1)]
    """By name, which is a folder of dataset.path; sorted by it, so that the file's order means nothing."""
    adapters: Adapters = Adapters()
    sampling: Sampling = Sampling()
    refine: Refine | None = Refine()
    """null: no refinement."""
    corpus: Corpus = Corpus()
    evaluate: Evaluate = Evaluate()
    ablate: Ablate = Ablate()
    card: Card = Card()
    study: Study = Study()
    cluster: Cluster = Cluster()

    @field_validator("name")
    @classmethod
    def _name_is_one_folder(cls, value: str) -> str:
        if unfit(value) or "/" in value or value in ("", ".", ".."):
            raise ValueError("a run's name becomes a folder: visible characters, no `/`")
        return value

    @field_validator("classes")
    @classmethod
    def _class_names_are_plain_and_sorted(cls, value: dict[str, Class]) -> dict[str, Class]:
        for name in value:
            if not NAME.fullmatch(name) or name == "all":
                raise ValueError(f"{name!r} is no class name: letters, digits, `_`, `.`, `-`, at most 64, not `all`")
        # a class's place is its label, and stored settings have their keys sorted: another order would be other labels
        return dict(sorted(value.items()))

    @model_validator(mode="after")
    def _parts_fit(self) -> "Config":
        problems = [*_token_problems(self), *_arm_problems(self)]
        if self.corpus.gate and self.corpus.gate.architecture == self.evaluate.judge:
            problems.append(
                f"evaluate.judge: {self.evaluate.judge} is the class gate's architecture too, and a gate may not judge "
                "itself: give the other one, or null"
            )
        if (self.dataset.path is None) == (self.dataset.phantoms is None):
            problems.append("dataset.path: set exactly one of dataset.path and dataset.phantoms")
        if self.dataset.val + self.dataset.test >= 0.8:
            problems.append("dataset.val: val and test leave less than a fifth for training")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def tokens(self) -> dict[str, str]:
        """class -> placeholder token."""
        return {name: settings.token or f"<{name.lower()}>" for name, settings in self.classes.items()}

    def prompts(self, class_name: str) -> tuple[str, ...]:
        """A class's prompts; a token typed out in them reads `{token}`, so that arms without it get its stand-in."""
        token = self.tokens()[class_name]
        return tuple(prompt.replace(token, "{token}") for prompt in self.classes[class_name].prompts)

    def caption(self, class_name: str) -> str:
        """A class's caption, its token as in `prompts`."""
        return self.classes[class_name].caption.replace(self.tokens()[class_name], "{token}")

    @property
    def uses_tokens(self) -> bool:
        return "ti" in self.adapters.method.split("+")


def template_fields(template: str) -> set[str]:
    """The names in braces of a caption or prompt; ValueError where the braces do not pair."""
    return {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}


def split_arm(arm: str) -> tuple[str, bool]:
    """`lora+ti+refine` -> (`lora+ti`, True)."""
    return arm.removesuffix("+refine"), arm.endswith("+refine")


def _token_problems(config: Config) -> list[str]:
    problems = []
    for name, settings in config.classes.items():
        token = config.tokens()[name]
        twins = [other for other in config.classes if other != name and config.tokens()[other] == token]
        if settings.token is None and (twins or not TOKEN.fullmatch(token)):
            problems.append(f"classes.{name}.token: set one, the default {token} is another class's or no good token")
        places = {"prompts": settings.prompts, "caption": (settings.caption,)}
        for where, texts in ((f"classes.{name}.{field}", texts) for field, texts in places.items()):
            try:
                fields = [template_fields(text) for text in texts]
            except ValueError as error:
                problems.append(f"{where}: {error}")
                continue
            used = any("token" in names or token in text for names, text in zip(fields, texts, strict=True))
            if config.uses_tokens and not used:
                problems.append(f"{where}: the token {token} is in no prompt: write {{token}} where it belongs")
            for column in sorted(settings.quotas.keys() - set().union(*fields)) if texts is settings.prompts else ():
                problems.append(f"classes.{name}.quotas.{column}: no prompt of this class names {{{column}}}")
    return problems


def _arm_problems(config: Config) -> list[str]:
    problems = []
    allowed = ("base", config.adapters.method)
    for arm in config.evaluate.arms:
        adapters, refined = split_arm(arm)
        if adapters not in allowed:
            problems.append(f"evaluate.arms: {arm!r}: an arm is one of {', '.join(allowed)}, each also with +refine")
        if refined and config.refine is None:
            problems.append(f"evaluate.arms: {arm!r} needs refinement, but refine is null")
    if len(set(config.evaluate.arms)) < len(config.evaluate.arms):
        problems.append("evaluate.arms: an arm is named twice")
    return problems
