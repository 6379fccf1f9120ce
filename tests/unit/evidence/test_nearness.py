"""An ablation: its parts share what they must and draw nothing twice; its figures agree with other computations."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

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
from busray.corpus.arms import arm_sources, arms_to_draw, compared_images
from busray.evidence.nearness import DISTANCE, SAME_CLASS, nearness_figures
from busray.evidence.real import RealFeatures
from busray.evidence.stats.intervals import median_interval
from busray.records import ContentBox, Figure, ImageSpec, UserError
from tests.support.ablations import config, draws, real_draws, through_the_autoencoder

# ---- parts ----------------------------------------------------------------------------------------------------------


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
        assert compared_images(part.config) == 24
        assert {c.images for c in part.config.classes.values()} == {24}


def test_no_arm_is_drawn_that_another_corpus_holds() -> None:
    """A corpus for each of base, lora, ti, lora+ti (refined, with what was before), and for each sampling setting."""
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
        "strength": {"lora+ti+refine": [(0.0, SWEPT_METHOD), (0.3, "lora+ti+refine"), (0.5, "lora+ti+refine strength=0.5")]},
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


# ---- figures --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real() -> RealFeatures:
    return real_draws()


def of(figures: list[Figure], metric: str, arm: str, name: str = "all", floor: bool = False) -> Figure:
    (found,) = [f for f in figures if (f.metric, f.arm, f.class_name, f.floor) == (metric, arm, name, floor)]
    return found


def test_nearness_agrees_with_a_loop_and_exposes_copies_and_swapped_classes(real: RealFeatures) -> None:
    copies = {name: rows[:12] for name, rows in real.features["train"].items()}
    swapped = {"b": draws(12, 1, 3.0), "m": draws(12, 2)}
    figures = nearness_figures({"copies": copies, "swapped": swapped}, real, "test")
    assert of(figures, DISTANCE, "copies").value == pytest.approx(0, abs=1e-5)
    assert of(figures, SAME_CLASS, "copies").value == 1
    assert of(figures, SAME_CLASS, "swapped").value < 0.2
    everything = [(row, name) for name in ("b", "m") for row in real.features["train"][name]]
    distances, same = [], []
    for name, rows in real.features["test"].items():
        for row in rows:
            lengths = [float(np.linalg.norm(row - other)) for other, _ in everything]
            distances.append(min(lengths))
            same.append(everything[int(np.argmin(lengths))][1] == name)
    floor = of(figures, DISTANCE, "real test", floor=True)
    assert floor.value == pytest.approx(np.median(distances), rel=1e-5)
    assert of(figures, SAME_CLASS, "real test", floor=True).value == pytest.approx(np.mean(same))
    assert (floor.n, floor.n_reference, floor.reference, floor.interval) == (28, 60, "train", None)
    one = of(figures, DISTANCE, "swapped", "m")
    assert (one.n, one.n_reference, one.protocol) == (12, 60, "synthetic-only")


@pytest.mark.parametrize("n", [6, 7, 72, 301])
def test_the_medians_interval_is_the_binomial_one_and_covers(n: int) -> None:
    ordered = np.arange(n, dtype=float)
    interval = median_interval(ordered[::-1])
    assert interval is not None
    rank = int(interval[0]) + 1  # P(the interval misses) = 2 P(binomial < rank)
    assert interval[1] == n - rank
    assert stats.binom.cdf(rank - 1, n, 0.5) <= 0.025 < stats.binom.cdf(rank, n, 0.5)
    rng = np.random.default_rng(n)
    hits = 0
    for _ in range(1000):
        low, high = median_interval(rng.exponential(size=n)) or (1.0, 0.0)
        hits += low <= np.log(2) <= high
    assert hits / 1000 > 0.94


def test_too_few_values_have_no_interval_and_very_many_have_one() -> None:
    assert median_interval(np.arange(5.0)) is None
    low, high = median_interval(np.arange(100_000.0)) or (0, 0)
    assert 49_600 < low < 50_000 < high < 50_400


def test_the_references_own_images_through_the_autoencoder_have_a_frechet_distance_alone(real: RealFeatures) -> None:
    """An image and its reconstruction are not independent: no interval, kernel distance or AUC holds for them."""
    itself, others = (through_the_autoencoder(real, *arm) for arm in (("vae", "test", 14), ("vae-train", "train", 14)))
    assert {f.protocol for f in itself + others} == {"reconstruction"}
    assert {f.metric for f in itself} == {"fid"} and {f.class_name for f in itself} == {"all", "b", "m"}
    assert all(f.interval is None and f.replicates is None for f in itself)
    assert {"kid_p_value", "told_apart_auc", "recall"} < {f.metric for f in others}
    assert of(others, "kid", "vae-train").interval and of(others, "fid", "vae-train").interval
    assert of(itself, "fid", "vae").value < of(others, "fid", "vae-train").value


def test_a_perfect_autoencoder_has_no_distance_below_that_of_the_images_to_themselves(real: RealFeatures) -> None:
    perfect = through_the_autoencoder(real, "vae", "test", 14, noise=0.0)
    assert perfect and all(f.value == pytest.approx(0, abs=1e-5) for f in perfect)


def test_fid_of_decoded_real_images_of_shared_units_has_no_spread_over_parts(real: RealFeatures) -> None:
    """Images 0 and 1 of class b are one patient's; those of class m are each on their own."""
    twins = {**real.units["train"], "b": np.maximum(real.units["train"]["b"], 1)}
    made = through_the_autoencoder(replace(real, units={**real.units, "train": twins}), "vae-train", "train", 14)
    fid = {f.class_name: f for f in made if f.metric == "fid"}
    assert fid["m"].interval is not None and fid["m"].replicates == 5
    assert [(fid[name].interval, fid[name].replicates) for name in ("all", "b")] == [(None, None)] * 2
    assert of(made, "kid", "vae-train").interval is not None
