"""What an ablation compares, as corpora that the stages already know how to draw: parts, their arms, pairs of arms."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from busray.config import Config, Refine, Sampling
from busray.config_file import validate
from busray.corpus.arms import compared_images
from busray.records import UserError

FULL = "lora+ti"
"""The method whose sampling is swept."""
METHODS = ("lora", "ti", FULL)
ARMS = tuple(arm for method in ("base", *METHODS) for arm in (method, f"{method}+refine"))
Axis = Literal["strength", "guidance"]


@dataclass(frozen=True)
class Part:
    """A run of its own below the ablation's output (the output itself for the prefix ""), and the arms read from it."""

    prefix: str
    config: Config
    """Of the part; its evaluate.arms are the arms to read."""
    arms: Mapping[str, str]
    """arm as the part calls it -> as the ablation does."""
    point: tuple[Axis, float] | None = None
    """The sweep and its value there."""
    shares_adapters: bool = False
    """Takes the adapters of FULL instead of training its own."""


def parts(config: Config) -> list[Part]:
    """The parts in the order of the table; UserError where a part's settings do not go together.

    The configured method and the base are the run itself, so that what `busray run` trained and drew there serves.
    """
    if config.refine is None:
        raise UserError("refine: null, but half of an ablation's arms are refined: give it settings")
    if config.corpus.gate is not None:
        raise UserError(
            "corpus.gate: an ablation compares first draws, so none of its corpora has a class gate: set it to null "
            "and give another output"
        )
    own = config.adapters.method
    found = [_part(config, "", {}, _plain("base", own))]
    found += [
        _part(
            config,
            f"methods/{method}",
            {"adapters": {"method": method}, "corpus": {"keep_txt2img": True}},
            _plain(method),
        )
        for method in METHODS
        if method != own
    ]
    steps = equal_steps(config.sampling, config.refine)
    at_steps = {"sampling": {"steps": steps}, "refine": None}
    found.append(_point(config, f"steps={steps}", at_steps, (FULL,)))
    for strength in config.ablate.strengths:
        if strength != config.refine.strength:
            changes = {"refine": {"strength": strength}, "corpus": {"keep_txt2img": False}}
            found.append(_point(config, f"strength={strength:g}", changes, (f"{FULL}+refine",), ("strength", strength)))
    for scale in config.ablate.guidance_scales:
        if not scale == config.sampling.guidance_scale == config.refine.guidance_scale:
            scales: dict[str, Any] = {group: {"guidance_scale": scale} for group in ("sampling", "refine")}
            changes = {**scales, "corpus": {"keep_txt2img": True}}
            found.append(_point(config, f"guidance={scale:g}", changes, (FULL, f"{FULL}+refine"), ("guidance", scale)))
    return found


def _plain(*methods: str) -> dict[str, str]:
    arms = [arm for method in methods for arm in (method, f"{method}+refine")]
    return dict(zip(arms, arms, strict=True))


def _point(
    config: Config, name: str, changes: dict[str, Any], arms: Sequence[str], point: tuple[Axis, float] | None = None
) -> Part:
    """Other sampling settings for FULL."""
    named = {arm: f"{arm} {name}" for arm in arms}
    changes = {"adapters": {"method": FULL}, **changes}
    return _part(config, f"points/{name}", changes, named, point, shares_adapters=True)


def _part(
    config: Config,
    prefix: str,
    changes: dict[str, Any],
    arms: dict[str, str],
    point: tuple[Axis, float] | None = None,
    shares_adapters: bool = False,
) -> Part:
    tree = config.model_dump(mode="json")
    n = compared_images(config)
    tree["output"] = f"{config.output.rstrip('/')}/{prefix}".rstrip("/")
    tree["evaluate"] = {**tree["evaluate"], "images": n, "arms": list(arms)}
    tree["classes"] = {name: {**c, "images": n if c["images"] else 0} for name, c in tree["classes"].items()}
    for group, change in changes.items():
        tree[group] = {**tree[group], **change} if isinstance(change, dict) else change
    try:
        return Part(prefix, validate(tree), arms, point, shares_adapters)
    except UserError as error:
        raise UserError(f"busray ablate, {prefix or 'base and the configured method'}: {error}") from error


def pairs(arms: Sequence[str], against: str) -> list[tuple[str, str]]:
    """(before, after) of the KID differences: every arm against the stated one, each refined arm against itself before
    refinement, and refinement against as many UNet evaluations of txt2img."""
    found = [(against, arm) for arm in arms if arm != against]
    found += [(method, f"{method}+refine") for method in ("base", *METHODS)]
    found += [(arm, f"{FULL}+refine") for arm in arms if arm.startswith(f"{FULL} steps=")]
    return list(dict.fromkeys(found))


Curves = dict[Axis, dict[str, list[tuple[float, str]]]]
"""sweep -> arm as it is configured -> (value, arm there), values rising."""


def curves(config: Config, found: Sequence[Part]) -> Curves:
    """The sweeps with the configured point among them; a strength of 0 is the image before refinement."""
    assert config.refine is not None
    refined = f"{FULL}+refine"
    strength = [(0.0, FULL), (config.refine.strength, refined)]
    guidance: dict[str, list[tuple[float, str]]] = {FULL: [], refined: []}
    if config.sampling.guidance_scale == config.refine.guidance_scale:
        guidance = {arm: [(config.sampling.guidance_scale, arm)] for arm in guidance}
    for part in found:
        for arm, name in part.arms.items():
            if part.point and part.point[0] == "strength":
                strength.append((part.point[1], name))
            elif part.point:
                guidance[arm].append((part.point[1], name))
    return {
        "strength": {refined: sorted(strength)},
        "guidance": {arm: sorted(points) for arm, points in guidance.items()},
    }


def unet_evaluations(sampling: Sampling, refine: Refine | None) -> int:
    """Of one image, by a scheduler that evaluates once a step; classifier-free guidance makes two of one."""
    evaluations = sampling.steps * _a_step(sampling.guidance_scale)
    if refine is not None:
        evaluations += int(refine.steps * refine.strength) * _a_step(refine.guidance_scale)
    return evaluations


def equal_steps(sampling: Sampling, refine: Refine) -> int:
    """Steps with which txt2img alone costs as many UNet evaluations as with refinement (to half a step's worth)."""
    return round(unet_evaluations(sampling, refine) / _a_step(sampling.guidance_scale))


def _a_step(guidance_scale: float) -> int:
    return 2 if guidance_scale > 1 else 1
