"""What turns a shard into image specifications, and what makes a corpus that corpus."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from busray.config import Config, template_fields
from busray.data.framing import content_box
from busray.data.templates import fill, quota_value, shares
from busray.identity import image_id, seed_for
from busray.records import ContentBox, DataSet, ImageSpec, Shard


@dataclass(frozen=True)
class Recipe:
    """Everything a worker needs to know of a corpus to draw any shard of it, besides the models."""

    fingerprint: str
    seed: int
    prompts: dict[str, tuple[str, ...]]
    """class -> templates, taken in turn."""
    stand_ins: dict[str, str]
    """class -> what `{token}` becomes: the learned token, or its initializer where there is none."""
    boxes: tuple[ContentBox, ...]
    """Content boxes of the training images of all classes together, so that a frame never tells the class."""
    quotas: dict[str, dict[str, dict[str, float]]]
    """class -> column -> value -> share."""

    def specs(self, shard: Shard) -> list[ImageSpec]:
        return [self.spec(shard.class_name, index) for index in range(shard.first, shard.first + shard.count)]

    def spec(self, name: str, index: int, attempt: int = 0) -> ImageSpec:
        templates = self.prompts[name]
        columns = {
            column: quota_value(values, index, seed_for(self.seed, f"{name}/{column}", 0, 0, "prompt"), number)
            for number, (column, values) in enumerate(sorted(self.quotas.get(name, {}).items()))
        }
        prompt = fill(templates[index % len(templates)], token=self.stand_ins[name], class_name=name, columns=columns)
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
        )


def make_recipe(config: Config, dataset: DataSet, fingerprint: str, use_tokens: bool) -> Recipe:
    return Recipe(
        fingerprint=fingerprint,
        seed=config.seed,
        prompts={name: config.prompts(name) for name in config.classes},
        stand_ins=_stand_ins(config, use_tokens),
        boxes=_boxes(dataset),
        quotas=quotas(config, dataset),
    )


def corpus_identity(
    config: Config,
    base: dict[str, Any],
    adapter_sha256: str | None,
    dataset_hash: str,
    refine: bool,
    gate_sha256: str | None = None,
) -> dict[str, Any]:
    """Everything that decides pixels or what a shard holds; not how many images, where, or in which batches.

    base: BaseIdentity.to_dict(); a base without a revision (a folder, `tiny`) counts by its files alone, wherever it
    lies. The data set counts because content boxes and quotas come from its training split. gate_sha256: of the class
    gate's classifier; None for a corpus of first draws, whose identity says nothing of gates.
    """
    pinned = base if base.get("revision") else {"files": base["files"]}
    refined = config.refine is not None and refine
    return {
        "base": pinned,
        "dtype": config.base.dtype,
        "size": config.base.size,
        "adapters": adapter_sha256,
        "dataset": dataset_hash,
        "seed": config.seed,
        "prompts": {name: list(config.prompts(name)) for name in config.classes},
        "quotas": {name: c.quotas for name, c in config.classes.items()},
        "stand_ins": _stand_ins(config, adapter_sha256 is not None and config.uses_tokens),
        "sampling": config.sampling.model_dump(exclude={"batch_size"}),
        "refine": config.refine.model_dump() if config.refine and refine else None,
        "format": config.corpus.format,
        "keep_txt2img": config.corpus.keep_txt2img and refined,
        **_gate(config, gate_sha256),
    }


def _gate(config: Config, sha256: str | None) -> dict[str, Any]:
    gate = config.corpus.gate
    if gate is None or sha256 is None:
        return {}
    return {"gate": {"classifier": sha256, "threshold": gate.threshold, "attempts": gate.attempts}}


def _stand_ins(config: Config, use_tokens: bool) -> dict[str, str]:
    return config.tokens() if use_tokens else {name: c.initializer for name, c in config.classes.items()}


def _boxes(dataset: DataSet) -> tuple[ContentBox, ...]:
    boxes = [content_box(image.width, image.height, dataset.size, dataset.frame) for image in dataset.train]
    return tuple(sorted(boxes, key=lambda b: (b.left, b.top, b.width, b.height)))


def longest_prompts(
    config: Config,
    quotas: Mapping[str, Mapping[str, Iterable[str]]],
    use_tokens: bool,
    length: Callable[[str], int],
) -> dict[str, list[str]]:
    """class -> each of its templates, filled with each column's longest value. quotas: class -> column -> values."""
    found: dict[str, list[str]] = {}
    for name, stand_in in _stand_ins(config, use_tokens).items():
        longest = {column: max(values, key=length) for column, values in quotas[name].items()}
        found[name] = [
            fill(template, token=stand_in, class_name=name, columns=longest) for template in config.prompts(name)
        ]
    return found


def quotas(config: Config, dataset: DataSet) -> dict[str, dict[str, dict[str, float]]]:
    """Shares of every column that a class's prompts name: the configured ones, else the train split's.

    UserError for a column with neither.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, settings in config.classes.items():
        named = {field for prompt in settings.prompts for field in template_fields(prompt)} - {"token", "class"}
        columns = {column: shares(dataset.train, name, column) for column in sorted(named - set(settings.quotas))}
        found[name] = {**settings.quotas, **columns}
    return found
