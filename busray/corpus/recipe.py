"""The specification of each image of a shard, and the settings that identify a corpus."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from busray.config import Config, Sampling, template_fields
from busray.data.framing import content_box
from busray.data.templates import column_shares, fill, quota_value
from busray.identity import image_id, seed_for
from busray.layout import FORMAT
from busray.prompt_text import plain_caption
from busray.records import ContentBox, DataSet, ImageSpec, Shard

# class -> column of its prompts -> value -> share of the images
Quotas = dict[str, dict[str, dict[str, float]]]


@dataclass(frozen=True)
class Recipe:
    """Everything except the models that a worker needs to draw any shard of a corpus."""

    fingerprint: str
    seed: int
    prompts: dict[str, tuple[str, ...]]  # class -> templates, which its images take in turn
    # class -> what `{token}` becomes: the learned token, or its initializer without one
    token_texts: dict[str, str]
    # Of the training images of all classes, so that padding reveals no class
    boxes: tuple[ContentBox, ...]
    quotas: Quotas
    plain_words: Mapping[str, str] | None = None
    """token -> what a caption says in its place; None in a corpus of format 1, without captions."""

    def specs(self, shard: Shard) -> list[ImageSpec]:
        """The specifications of a shard's images, in their order."""
        indices = range(shard.first, shard.first + shard.count)
        return [self.spec(shard.class_name, index) for index in indices]

    def spec(self, name: str, index: int, attempt: int = 0) -> ImageSpec:
        """The image `index` of class `name`. Only the seeds depend on the attempt."""
        columns = {}
        for number, (column, shares) in enumerate(sorted(self.quotas.get(name, {}).items())):
            seed = seed_for(self.seed, f"{name}/{column}", 0, 0, "prompt")
            columns[column] = quota_value(shares, index, seed, number)
        templates = self.prompts[name]
        template = templates[index % len(templates)]
        prompt = fill(template, token=self.token_texts[name], class_name=name, columns=columns)
        caption = "" if self.plain_words is None else plain_caption(prompt, self.plain_words, name)
        return ImageSpec(
            image_id=image_id(self.fingerprint, name, index),
            class_name=name,
            index=index,
            attempt=attempt,
            prompt=prompt,
            seed_txt2img=seed_for(self.seed, name, index, attempt, "txt2img"),
            seed_img2img=seed_for(self.seed, name, index, attempt, "img2img"),
            box=self.boxes[seed_for(self.seed, name, index, 0, "frame") % len(self.boxes)],
            columns=columns,
            caption=caption,
        )


def make_recipe(
    config: Config, dataset: DataSet, fingerprint: str, use_tokens: bool, stored_format: int = FORMAT
) -> Recipe:
    """use_tokens: the adapters have learned tokens. stored_format: of the corpus. UserError as of
    quotas()."""
    boxes = []
    for image in dataset.train:
        boxes.append(content_box(image.width, image.height, dataset.size, dataset.frame))
    # Seeds choose among them by position, so the order must not depend on file names.
    boxes.sort(key=lambda box: (box.left, box.top, box.width, box.height))
    return Recipe(
        fingerprint=fingerprint,
        seed=config.seed,
        prompts={name: config.prompts(name) for name in config.classes},
        token_texts=_token_texts(config, use_tokens),
        boxes=tuple(boxes),
        quotas=quotas(config, dataset),
        plain_words=plain_words(config) if stored_format >= 2 else None,
    )


def plain_words(config: Config) -> dict[str, str]:
    """token -> its class's initializer."""
    return {config.token(name): settings.initializer for name, settings in config.classes.items()}


def corpus_identity(
    config: Config,
    base: dict[str, Any],
    adapter_sha256: str | None,
    dataset_hash: str,
    refine: bool,
    gate_sha256: str | None = None,
) -> dict[str, Any]:
    """Everything that decides pixels or what a shard holds, as run.json keeps it.

    Not among it: the number of images, where they lie, their batches. A corpus can grow and move.
    base: BaseIdentity.to_dict(). refine: whether the arm is refined.
    gate_sha256: of the class gate's classifier; None for a corpus of first draws.
    """
    # A base without a revision (a folder, `tiny`) is its files, wherever the folder lies.
    pinned = base if base.get("revision") else {"files": base["files"]}
    refined = config.refine is not None and refine
    identity = {
        "base": pinned,
        "dtype": config.base.dtype,
        "size": config.base.size,
        "adapters": adapter_sha256,
        # Content boxes and quotas come from the training split.
        "dataset": dataset_hash,
        "seed": config.seed,
        "prompts": {name: list(config.prompts(name)) for name in config.classes},
        "quotas": {name: settings.quotas for name, settings in config.classes.items()},
        "stand_ins": _token_texts(config, adapter_sha256 is not None and config.uses_tokens),
        "sampling": _sampling_identity(config.sampling),
        "refine": config.refine.model_dump() if config.refine and refine else None,
        "format": config.corpus.format,
        "keep_txt2img": config.corpus.keep_txt2img and refined,
    }
    gate = config.corpus.gate
    # Without a gate the field is absent: older corpora have none, and must keep their fingerprint.
    if gate is not None and gate_sha256 is not None:
        identity["gate"] = {"classifier": gate_sha256, "threshold": gate.threshold, "attempts": gate.attempts}
    return identity


def _sampling_identity(sampling: Sampling) -> dict[str, Any]:
    # What a preset sets stands in the settings themselves.
    identity = sampling.model_dump(exclude={"batch_size", "compile", "preset"})
    # Older corpora have neither, and must keep their fingerprint.
    if sampling.guidance_interval is None:
        del identity["guidance_interval"]
    if sampling.deep_every == 1:
        del identity["deep_every"]
    # Nor have they these two.
    if not sampling.negative_prompt:
        del identity["negative_prompt"]
    if sampling.lora_scale == 1:
        del identity["lora_scale"]
    return identity


def _token_texts(config: Config, use_tokens: bool) -> dict[str, str]:
    if use_tokens:
        return config.tokens()
    return {name: settings.initializer for name, settings in config.classes.items()}


def longest_prompts(
    config: Config, quotas: Mapping[str, Mapping[str, Iterable[str]]], use_tokens: bool, length: Callable[[str], int]
) -> dict[str, list[str]]:
    """class -> each of its templates, every column filled with its longest value.

    quotas: class -> column -> values. length: of a value, such as its number of tokens.
    """
    prompts = {}
    for name, token_text in _token_texts(config, use_tokens).items():
        columns = {column: max(values, key=length) for column, values in quotas[name].items()}
        prompts[name] = []
        for text in config.prompts(name):
            prompts[name].append(fill(text, token=token_text, class_name=name, columns=columns))
    return prompts


def quotas(config: Config, dataset: DataSet) -> Quotas:
    """Shares of the values of every column that a class's prompts name.

    The configured shares count first, then those of the training split. UserError for a column
    that has neither.
    """
    shares_of: Quotas = {}
    for name, settings in config.classes.items():
        columns = set[str]()
        for prompt in settings.prompts:
            columns |= template_fields(prompt) - {"token", "class"}
        shares_of[name] = dict(settings.quotas)
        for column in sorted(columns - settings.quotas.keys()):
            shares_of[name][column] = column_shares(dataset.train, name, column)
    return shares_of
