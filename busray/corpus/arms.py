# pyright: strict
"""Arms: what is compared, and where each arm's images are stored, so that none is drawn twice."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from busray.config import Config
from busray.layout import RUN, arm_prefix
from busray.records import MOST_REPLICATES, Arm, DataSet
from busray.storage import Store


@dataclass(frozen=True)
class Source:
    """Where an arm's images are stored."""

    prefix: str  # of the corpus that holds them: "" for the released one, else below arms/
    column: str  # of the corpus's rows: `image` or `image_txt2img`
    # Of a gated corpus: what was drawn first, instead of what the class gate let pass
    first_draws: bool = False


def released_arm(config: Config) -> str:
    """The arm that the released corpus is, before any class gate."""
    return Arm(config.adapters.method, refined=config.refine is not None).name


def arm_after_gate(config: Config) -> str | None:
    """The arm of the images that the class gate let pass; None where the corpus has no gate.

    Only the released corpus has a gate. All other arms are first draws.
    """
    if config.corpus.gate is None:
        return None
    return replace(Arm.parse(released_arm(config)), gated=True).name


def arm_sources(config: Config) -> dict[str, Source]:
    """arm -> source, for the arms of evaluate.arms; arm_after_gate is not among them.

    An arm before refinement is the txt2img column of the refined arm, where that one is drawn
    anyway. A gated corpus keeps the first draws too, so every arm is measured as it was drawn.
    """
    sources: dict[str, Source] = {}
    released, gated = released_arm(config), config.corpus.gate is not None
    for name in config.evaluate.arms:
        refined = replace(Arm.parse(name), refined=True).name
        if name == released:
            sources[name] = Source("", "image", gated)
        elif refined == released and config.corpus.keep_txt2img:
            sources[name] = Source("", "image_txt2img", gated)
        elif refined != name and refined in config.evaluate.arms and config.corpus.keep_txt2img:
            sources[name] = Source(arm_prefix(refined), "image_txt2img")
        else:
            sources[name] = Source(arm_prefix(name), "image")
    return sources


def arms_to_draw(config: Config) -> list[str]:
    """Arms with a corpus of their own under arms/."""
    prefixes = {source.prefix for source in arm_sources(config).values()}
    return [arm for arm in config.evaluate.arms if arm_prefix(arm) in prefixes]


def corpora(store: Store) -> dict[str, Store]:
    """prefix -> store of every corpus of a run: "" for the released one, then the arms."""
    prefixes = [arm_prefix(name) for name in store.folders("arms")]
    # A disk may have a folder without objects, which is no corpus.
    prefixes = [prefix for prefix in prefixes if store.folders(prefix) or store.exists(f"{prefix}/{RUN}")]
    return {"": store} | {prefix: store.sub(prefix) for prefix in prefixes}


def compared_images(config: Config, dataset: DataSet) -> dict[str, int]:
    """class -> images of each arm that figures may look at: those of the lowest indices.

    As many as evaluate.images says. Without it as many as the smallest class has, but no more than
    MOST_REPLICATES for each real image: no figure looks at more, so they need not be drawn.
    """
    real = dict.fromkeys(config.classes, 0)
    for image in dataset.split("all"):
        if image.class_name in real:
            real[image.class_name] += 1
    return images_compared(config, real)


def images_compared(config: Config, real: Mapping[str, int]) -> dict[str, int]:
    """The same by the number of real images of each class."""
    most = most_compared(config)
    if config.evaluate.images:
        return dict.fromkeys(real, most)
    return {name: min(most, MOST_REPLICATES * n) for name, n in real.items()}


def most_compared(config: Config) -> int:
    """Images of a class that are compared where there are enough real ones; equal for all classes,
    since distances depend on n."""
    drawn = [settings.images for settings in config.classes.values() if settings.images]
    return config.evaluate.images or min(drawn, default=0)
