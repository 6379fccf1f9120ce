"""Arms: what is compared, and where each arm's images are read from, so that none is drawn twice."""

from dataclasses import dataclass

from busray.config import Config, split_arm
from busray.layout import arm_prefix
from busray.storage import Store


@dataclass(frozen=True)
class Source:
    """Where an arm's images lie: the corpus under `prefix` ("" for the released one), column `column`."""

    prefix: str
    column: str
    first_draws: bool = False
    """Of a gated corpus: what the gate saw first, instead of what it let pass."""


def released_arm(config: Config) -> str:
    """The arm whose settings the released corpus has."""
    return config.adapters.method + ("+refine" if config.refine else "")


def gated_arm(config: Config) -> str | None:
    """The arm that the released corpus is where a class gate chose its images; all other arms are first draws."""
    return f"{released_arm(config)}+gate" if config.corpus.gate else None


def arm_sources(config: Config) -> dict[str, Source]:
    """arm -> source. An arm X is the txt2img column of X+refine wherever that one is drawn anyway.

    A gated corpus holds the first draws too, so that every arm is measured before the gate, as it was drawn; what the
    gate let pass is an arm of its own, gated_arm, which is not among these.
    """
    sources = {}
    released, gated = released_arm(config), config.corpus.gate is not None
    for arm in config.evaluate.arms:
        refined = f"{arm}+refine"
        if arm == released:
            sources[arm] = Source("", "image", gated)
        elif refined == released and config.corpus.keep_txt2img:
            sources[arm] = Source("", "image_txt2img", gated)
        elif refined in config.evaluate.arms and config.corpus.keep_txt2img:
            sources[arm] = Source(arm_prefix(refined), "image_txt2img")
        else:
            sources[arm] = Source(arm_prefix(arm), "image")
    return sources


def arms_to_draw(config: Config) -> list[str]:
    """Arms with a corpus of their own under arms/."""
    own = {source.prefix for source in arm_sources(config).values()}
    return [arm for arm in config.evaluate.arms if arm_prefix(arm) in own]


def corpora(store: Store) -> dict[str, Store]:
    """Prefix -> store of every corpus that a run holds: "" for the released one, then the arms; from one listing."""
    arms = sorted({key.split("/")[1] for key in store.list("arms") if key.count("/") > 1})
    return {"": store} | {arm_prefix(arm): store.sub(arm_prefix(arm)) for arm in arms}


def uses_adapters(arm: str) -> bool:
    return split_arm(arm)[0] != "base"


def compared_images(config: Config) -> int:
    """Images a class and arm: n is equal across arms and classes."""
    drawn = [settings.images for settings in config.classes.values() if settings.images]
    return config.evaluate.images or min(drawn, default=0)
