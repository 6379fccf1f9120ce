"""An ablation: its sub-runs share what they must and draw nothing twice."""

from typing import Any

import pytest

from busray.config import Base, Refine, Sampling
from busray.corpus.ablation import (
    ARMS,
    SWEPT_METHOD,
    compared_pairs,
    equal_steps,
    plan_sub_runs,
    sweep_curves,
    unet_evaluations,
)
from busray.corpus.arms import arm_sources, arms_to_draw, most_compared
from busray.records import ContentBox, ImageSpec, UserError
from tests.support.ablations import config


def test_the_arms_of_the_papers_table_are_there_each_once() -> None:
    names = [name for part in plan_sub_runs(config()) for name in part.arms.values()]
    assert len(names) == len(set(names))
    assert set(ARMS) < set(names)
    assert "lora+ti steps=26" in names


def test_parts_share_data_seeds_and_training_budget_and_have_equal_n() -> None:
    whole = config()
    for part in plan_sub_runs(whole):
        assert part.config.seed == whole.seed
        assert part.config.dataset == whole.dataset
        assert part.config.adapters.model_copy(update={"method": SWEPT_METHOD}) == whole.adapters
        assert most_compared(part.config) == 24
        assert {c.images for c in part.config.classes.values()} == {24}


def test_no_arm_is_drawn_that_another_corpus_holds() -> None:
    """A corpus for each of base, lora, ti, lora+ti (refined, with what was before), and for each
    sampling setting."""
    drawn = []
    for part in plan_sub_runs(config()):
        released = any(source.prefix == "" for source in arm_sources(part.config).values())
        drawn += [part.prefix] * released + [f"{part.prefix}/arms/{arm}" for arm in arms_to_draw(part.config)]
    points = ["points/guidance=4", "points/steps=26", "points/strength=0.5"]
    assert sorted(drawn) == ["", "/arms/base+refine", "methods/lora", "methods/ti", *points]


def test_what_busray_run_left_under_the_output_serves() -> None:
    for method, others in (("lora+ti", {"lora", "ti"}), ("lora", {"ti", "lora+ti"})):
        found = plan_sub_runs(config(adapters={"method": method}))
        assert found[0].prefix == "" and set(found[0].arms) >= {method, f"{method}+refine"}
        assert {part.prefix for part in found if part.prefix.startswith("methods/")} == {f"methods/{m}" for m in others}


def test_sweeps_take_the_adapters_of_the_full_method_and_the_configured_value_is_not_drawn_again() -> None:
    points = [part for part in plan_sub_runs(config()) if part.prefix.startswith("points/")]
    assert all(part.shares_adapters and part.config.adapters.method == SWEPT_METHOD for part in points)
    assert [part.point for part in points] == [None, ("strength", 0.5), ("guidance", 4.0)]
    assert sweep_curves(config(), points) == {
        "strength": {
            "lora+ti+refine": [(0.0, SWEPT_METHOD), (0.3, "lora+ti+refine"), (0.5, "lora+ti+refine strength=0.5")]
        },
        "guidance": {
            SWEPT_METHOD: [(2.0, SWEPT_METHOD), (4.0, "lora+ti guidance=4")],
            "lora+ti+refine": [(2.0, "lora+ti+refine"), (4.0, "lora+ti+refine guidance=4")],
        },
    }


def test_settings_that_do_not_go_together_are_named() -> None:
    with pytest.raises(UserError, match=r"^refine: null"):
        plan_sub_runs(config(refine=None))
    with pytest.raises(UserError, match=r"^corpus\.gate: an ablation compares first draws"):
        plan_sub_runs(config(corpus={"gate": {}}))
    with pytest.raises(UserError, match=r"strength=0\.01.*refine: strength x steps"):
        plan_sub_runs(config(ablate={"strengths": [0.01]}))
    with pytest.raises(UserError, match=r"ablate\.against"):
        config(ablate={"against": "gan"})


def test_pairs_hold_every_arm_against_the_stated_one_and_refinement_against_what_it_refines() -> None:
    found = compared_pairs([*ARMS, "lora+ti steps=26"], "lora")
    assert {after for before, after in found if before == "lora"} == {*ARMS, "lora+ti steps=26"} - {"lora"}
    assert ("lora+ti", "lora+ti+refine") in found and ("base", "base+refine") in found
    assert ("lora+ti steps=26", "lora+ti+refine") in found
    assert len(found) == len(set(found))


@pytest.fixture(scope="module")
def pipe() -> Any:
    from busray.model.base import load_pipeline

    return load_pipeline(Base(size=64))


@pytest.mark.parametrize(
    ("scheduler", "guidance"),
    [("dpmsolver++", 2.0), ("sde-dpmsolver++", 2.0), ("ddim", 2.0), ("euler", 2.0), ("unipc", 1.0)],
)
def test_unet_evaluations_are_those_that_happen(pipe: Any, scheduler: str, guidance: float) -> None:
    from busray.model.sample import Sampler

    refine = Refine(steps=4, strength=0.5, guidance_scale=2.0)
    sampling = Sampling(scheduler=scheduler, steps=2, guidance_scale=guidance, batch_size=1)  # pyright: ignore
    longer = sampling.model_copy(update={"steps": equal_steps(sampling, refine)})
    spec = ImageSpec("id", "benign", 0, 0, "a breast ultrasound scan", 1, 2, ContentBox(0, 0, 64, 64))

    def evaluated(sampling: Sampling, refine: Refine | None) -> int:
        seen = []
        hook = pipe.unet.register_forward_hook(lambda module, given, out: seen.append(len(given[0])))
        Sampler(pipe, sampling, refine, 64, keep_txt2img=False).draw([spec])
        hook.remove()
        return sum(seen)

    assert evaluated(sampling, refine) == unet_evaluations(sampling, refine)
    assert evaluated(longer, None) == unet_evaluations(longer, None) == unet_evaluations(sampling, refine)
