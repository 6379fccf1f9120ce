"""What an ablation compares: its sub-runs, their arms, and the pairs of arms.

Within a sub-run, an arm has its name of evaluate.arms. In the ablation, an arm of a sweep has the
sampling setting after that name, such as `lora+ti+refine strength=0.5`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from busray.config import Config, Refine, Sampling
from busray.config_file import validate
from busray.corpus.arms import most_compared
from busray.records import Arm, UserError

SWEPT_METHOD = "lora+ti"  # the method whose sampling settings are swept
SWEPT_REFINED = Arm(SWEPT_METHOD, refined=True).name
METHODS = ("lora", "ti", SWEPT_METHOD)
Sweep = Literal["strength", "guidance"]


def _own_names(*methods: str) -> dict[str, str]:
    """The arms of methods before and after refinement, called the same in sub-run and ablation."""
    names = {}
    for method in methods:
        for arm in (Arm(method), Arm(method, refined=True)):
            names[arm.name] = arm.name
    return names


ARMS = tuple(_own_names("base", *METHODS))


@dataclass(frozen=True)
class SubRunPlan:
    """A run of its own under the ablation's output, and the arms that are read from it."""

    prefix: str  # of its output; "" for the ablation's own
    config: Config  # of the sub-run; its evaluate.arms are the arms to read
    arms: Mapping[str, str]  # arm in the sub-run -> its name in the ablation
    point: tuple[Sweep, float] | None = None  # (sweep, value) that the sub-run adds to a sweep
    # It takes the adapters of SWEPT_METHOD instead of training its own
    shares_adapters: bool = False


def plan_sub_runs(config: Config) -> list[SubRunPlan]:
    """The sub-runs in the order of the table.

    The base and the configured method are the run itself: what `busray run` trained and drew there
    is used. UserError where the settings allow no ablation, or a sub-run's settings are invalid.
    """
    if config.refine is None:
        raise UserError("refine: null, but half of an ablation's arms are refined: give it settings")
    if config.corpus.gate is not None:
        raise UserError(
            "corpus.gate: an ablation compares first draws, so none of its corpora has a class gate: "
            "set it to null and give another output"
        )
    plans = [_sub_run(config, "", {}, _own_names("base", config.adapters.method))]
    for method in METHODS:
        if method != config.adapters.method:
            changes = {"adapters": {"method": method}, "corpus": {"keep_txt2img": True}}
            plans.append(_sub_run(config, f"methods/{method}", changes, _own_names(method)))
    return plans + _sweep_plans(config, config.refine)


def _sweep_plans(config: Config, refine: Refine) -> list[SubRunPlan]:
    """One sub-run for each value of a sweep that is not the configured one."""
    steps = equal_steps(config.sampling, refine)
    at_steps = {"sampling": {"steps": steps}, "refine": None}
    plans = [_sampling_plan(config, f"steps={steps}", at_steps, (SWEPT_METHOD,))]
    for strength in config.ablate.strengths:
        if strength != refine.strength:
            # The image before refinement is the same at every strength: one corpus keeps it.
            changes = {"refine": {"strength": strength}, "corpus": {"keep_txt2img": False}}
            point: tuple[Sweep, float] = ("strength", strength)
            plans.append(_sampling_plan(config, f"strength={strength:g}", changes, (SWEPT_REFINED,), point))
    for scale in config.ablate.guidance_scales:
        if not scale == config.sampling.guidance_scale == refine.guidance_scale:
            guidance = {"guidance_scale": scale}
            changes = {"sampling": guidance, "refine": guidance, "corpus": {"keep_txt2img": True}}
            arms = (SWEPT_METHOD, SWEPT_REFINED)
            plans.append(_sampling_plan(config, f"guidance={scale:g}", changes, arms, ("guidance", scale)))
    return plans


def _sampling_plan(
    config: Config, setting: str, changes: dict[str, Any], arms: Sequence[str], point: tuple[Sweep, float] | None = None
) -> SubRunPlan:
    """SWEPT_METHOD with another sampling setting."""
    names = {arm: f"{arm} {setting}" for arm in arms}
    changes = {"adapters": {"method": SWEPT_METHOD}, **changes}
    return _sub_run(config, f"points/{setting}", changes, names, point, shares_adapters=True)


def _sub_run(
    config: Config,
    prefix: str,
    changes: dict[str, Any],
    arms: dict[str, str],
    point: tuple[Sweep, float] | None = None,
    shares_adapters: bool = False,
) -> SubRunPlan:
    """changes: section of the configuration -> the settings to change there, or its new value."""
    tree = config.model_dump(mode="json")
    n = most_compared(config)
    tree["output"] = f"{config.output.rstrip('/')}/{prefix}".rstrip("/")
    tree["evaluate"] |= {"images": n, "arms": list(arms)}
    for settings in tree["classes"].values():
        settings["images"] = n if settings["images"] else 0  # a class without images stays without
    for section, change in changes.items():
        tree[section] = {**tree[section], **change} if isinstance(change, dict) else change
    try:
        return SubRunPlan(prefix, validate(tree), arms, point, shares_adapters)
    except UserError as error:
        raise UserError(f"busray ablate, {prefix or 'base and the configured method'}: {error}") from error


def compared_pairs(arms: Sequence[str], against: str) -> list[tuple[str, str]]:
    """(before, after) of the KID differences.

    Every arm is compared with `against`, each refined arm with itself before refinement, and
    refinement with txt2img of as many UNet evaluations.
    """
    pairs = [(against, arm) for arm in arms if arm != against]
    for method in ("base", *METHODS):
        pairs.append((Arm(method).name, Arm(method, refined=True).name))
    pairs += [(arm, SWEPT_REFINED) for arm in arms if arm.startswith(f"{SWEPT_METHOD} steps=")]
    return list(dict.fromkeys(pairs))  # each once, in order


# sweep -> arm as it is configured -> (value, arm at that value), values rising
SweepCurves = dict[Sweep, dict[str, list[tuple[float, str]]]]


def sweep_curves(config: Config, plans: Sequence[SubRunPlan]) -> SweepCurves:
    """The points of each sweep with the configured one. Strength 0 is before refinement."""
    assert config.refine is not None
    strength = [(0.0, SWEPT_METHOD), (config.refine.strength, SWEPT_REFINED)]
    guidance: dict[str, list[tuple[float, str]]] = {SWEPT_METHOD: [], SWEPT_REFINED: []}
    # The sweep sets both scales to one value; a configuration with two values is no point of it.
    if config.sampling.guidance_scale == config.refine.guidance_scale:
        for arm, points in guidance.items():
            points.append((config.sampling.guidance_scale, arm))
    for plan in plans:
        if plan.point is None:
            continue
        sweep, value = plan.point
        for arm, name in plan.arms.items():
            (strength if sweep == "strength" else guidance[arm]).append((value, name))
    return {
        "strength": {SWEPT_REFINED: sorted(strength)},
        "guidance": {arm: sorted(points) for arm, points in guidance.items()},
    }


def unet_evaluations(sampling: Sampling, refine: Refine | None) -> int:
    """UNet evaluations of one image, by a scheduler that evaluates once per step."""
    evaluations = sampling.steps * _per_step(sampling.guidance_scale)
    if refine is not None:
        evaluations += int(refine.steps * refine.strength) * _per_step(refine.guidance_scale)
    return evaluations


def equal_steps(sampling: Sampling, refine: Refine) -> int:
    """Steps of txt2img alone with as many UNet evaluations as with refinement, rounded."""
    return round(unet_evaluations(sampling, refine) / _per_step(sampling.guidance_scale))


def _per_step(guidance_scale: float) -> int:
    """Classifier-free guidance evaluates the UNet with and without the prompt."""
    return 2 if guidance_scale > 1 else 1
