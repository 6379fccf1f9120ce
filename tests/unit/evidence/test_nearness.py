"""An ablation: its parts share what they must and draw nothing twice; its figures agree with other computations."""

import csv
import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from busray.config import Base, Config, Refine, Sampling
from busray.config_file import validate
from busray.corpus.ablation import ARMS, FULL, curves, equal_steps, pairs, parts, unet_evaluations
from busray.corpus.arms import arm_sources, arms_to_draw, compared_images
from busray.evidence.distances import arm_figures
from busray.evidence.nearness import DISTANCE, SAME_CLASS, nearness_figures, reconstruction_figures
from busray.evidence.stats.intervals import median_interval
from busray.evidence.stats.samples import Real
from busray.records import ContentBox, Figure, ImageSpec, UserError
from busray.report.ablation import (
    ablation_html,
    compared,
    configuration_rows,
    nearness_rows,
    notes,
    sentences,
    sweep_rows,
)
from busray.report.tables import class_rows, figures_csv, metrics_rows, neighbour_rows
from busray.report.verdicts import verdicts
from tests.support.html import Page

EXTRACTOR = "inception-v3-2015"


def config(**changes: Any) -> Config:
    tree: dict[str, Any] = {
        "output": "runs/mine/",
        "dataset": {"path": "data"},
        "classes": {"benign": {"images": 40}, "malignant": {"images": 24}},
        "sampling": {"steps": 20, "guidance_scale": 2.0},
        "refine": {"steps": 20, "strength": 0.3, "guidance_scale": 2.0},
        "evaluate": {"arms": ["base"]},
        "ablate": {"strengths": [0.3, 0.5], "guidance_scales": [2.0, 4.0]},
    }
    for key, value in changes.items():
        tree[key] = {**tree.get(key, {}), **value} if isinstance(value, dict) else value
    return validate(tree)


# ---- parts ----------------------------------------------------------------------------------------------------------


def test_the_arms_of_the_papers_table_are_there_each_once() -> None:
    names = [name for part in parts(config()) for name in part.arms.values()]
    assert len(names) == len(set(names))
    assert set(ARMS) < set(names)
    assert "lora+ti steps=26" in names


def test_parts_share_data_seeds_and_training_budget_and_have_equal_n() -> None:
    whole = config()
    for part in parts(whole):
        assert part.config.seed == whole.seed
        assert part.config.dataset == whole.dataset
        assert part.config.adapters.model_copy(update={"method": FULL}) == whole.adapters
        assert compared_images(part.config) == 24
        assert {c.images for c in part.config.classes.values()} == {24}


def test_no_arm_is_drawn_that_another_corpus_holds() -> None:
    """A corpus for each of base, lora, ti, lora+ti (refined, with what was before), and for each sampling setting."""
    drawn = []
    for part in parts(config()):
        released = any(source.prefix == "" for source in arm_sources(part.config).values())
        drawn += [part.prefix] * released + [f"{part.prefix}/arms/{arm}" for arm in arms_to_draw(part.config)]
    points = ["points/guidance=4", "points/steps=26", "points/strength=0.5"]
    assert sorted(drawn) == ["", "/arms/base+refine", "methods/lora", "methods/ti", *points]


def test_what_busray_run_left_under_the_output_serves() -> None:
    for method, others in (("lora+ti", {"lora", "ti"}), ("lora", {"ti", "lora+ti"})):
        found = parts(config(adapters={"method": method}))
        assert found[0].prefix == "" and set(found[0].arms) >= {method, f"{method}+refine"}
        assert {part.prefix for part in found if part.prefix.startswith("methods/")} == {f"methods/{m}" for m in others}


def test_sweeps_take_the_adapters_of_the_full_method_and_the_configured_value_is_not_drawn_again() -> None:
    points = [part for part in parts(config()) if part.prefix.startswith("points/")]
    assert all(part.shares_adapters and part.config.adapters.method == FULL for part in points)
    assert [part.point for part in points] == [None, ("strength", 0.5), ("guidance", 4.0)]
    assert curves(config(), points) == {
        "strength": {"lora+ti+refine": [(0.0, FULL), (0.3, "lora+ti+refine"), (0.5, "lora+ti+refine strength=0.5")]},
        "guidance": {
            FULL: [(2.0, FULL), (4.0, "lora+ti guidance=4")],
            "lora+ti+refine": [(2.0, "lora+ti+refine"), (4.0, "lora+ti+refine guidance=4")],
        },
    }


def test_settings_that_do_not_go_together_are_named() -> None:
    with pytest.raises(UserError, match=r"^refine: null"):
        parts(config(refine=None))
    with pytest.raises(UserError, match=r"^corpus\.gate: an ablation compares first draws"):
        parts(config(corpus={"gate": {}}))
    with pytest.raises(UserError, match=r"strength=0\.01.*refine: strength x steps"):
        parts(config(ablate={"strengths": [0.01]}))
    with pytest.raises(UserError, match=r"ablate\.against"):
        config(ablate={"against": "gan"})


def test_pairs_hold_every_arm_against_the_stated_one_and_refinement_against_what_it_refines() -> None:
    found = pairs([*ARMS, "lora+ti steps=26"], "lora")
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


def draws(n: int, seed: int, shift: float = 0.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((n, 8)) + shift).astype(np.float32)


@pytest.fixture(scope="module")
def real() -> Real:
    sizes = {"train": 30, "val": 10, "test": 14}
    features = {split: {"b": draws(n, n), "m": draws(n, n + 1, 3.0)} for split, n in sizes.items()}
    units = {split: {name: np.arange(len(rows)) for name, rows in by.items()} for split, by in features.items()}
    return Real(features, units, EXTRACTOR, "letterbox", 64)


def of(figures: list[Figure], metric: str, arm: str, name: str = "all", floor: bool = False) -> Figure:
    (found,) = [f for f in figures if (f.metric, f.arm, f.class_name, f.floor) == (metric, arm, name, floor)]
    return found


def test_nearness_agrees_with_a_loop_and_exposes_copies_and_swapped_classes(real: Real) -> None:
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


def through_the_autoencoder(real: Real, arm: str, split: str, n: int, noise: float = 0.1) -> list[Figure]:
    images = {name: rows[:n] + noise * draws(n, 7) for name, rows in real.features[split].items()}
    units = {name: labels[:n] for name, labels in real.units[split].items()}
    return reconstruction_figures({arm: images}, real, "test", {arm: units})


def test_the_references_own_images_through_the_autoencoder_have_a_frechet_distance_alone(real: Real) -> None:
    """An image and its reconstruction are not independent: no interval, kernel distance or AUC holds for them."""
    itself, others = (through_the_autoencoder(real, *arm) for arm in (("vae", "test", 14), ("vae-train", "train", 14)))
    assert {f.protocol for f in itself + others} == {"reconstruction"}
    assert {f.metric for f in itself} == {"fid"} and {f.class_name for f in itself} == {"all", "b", "m"}
    assert all(f.interval is None and f.replicates is None for f in itself)
    assert {"kid_p_value", "told_apart_auc", "recall"} < {f.metric for f in others}
    assert of(others, "kid", "vae-train").interval and of(others, "fid", "vae-train").interval
    assert of(itself, "fid", "vae").value < of(others, "fid", "vae-train").value


def test_a_perfect_autoencoder_has_no_distance_below_that_of_the_images_to_themselves(real: Real) -> None:
    perfect = through_the_autoencoder(real, "vae", "test", 14, noise=0.0)
    assert perfect and all(f.value == pytest.approx(0, abs=1e-5) for f in perfect)


def test_fid_of_decoded_real_images_of_shared_units_has_no_spread_over_parts(real: Real) -> None:
    """Images 0 and 1 of class b are one patient's; those of class m are each on their own."""
    twins = {**real.units["train"], "b": np.maximum(real.units["train"]["b"], 1)}
    made = through_the_autoencoder(replace(real, units={**real.units, "train": twins}), "vae-train", "train", 14)
    fid = {f.class_name: f for f in made if f.metric == "fid"}
    assert fid["m"].interval is not None and fid["m"].replicates == 5
    assert [(fid[name].interval, fid[name].replicates) for name in ("all", "b")] == [(None, None)] * 2
    assert of(made, "kid", "vae-train").interval is not None


def test_no_verdict_is_on_the_autoencoder(real: Real) -> None:
    arms = arm_figures({"base": {"b": draws(12, 1, 0.5), "m": draws(12, 2, 2.5)}}, real, "test")
    made = [*through_the_autoencoder(real, "vae", "test", 14), *through_the_autoencoder(real, "vae-train", "train", 14)]
    assert verdicts([*arms, *made]) == verdicts(arms)


# ---- what is shown --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report(real: Real) -> dict[str, Any]:
    found = parts(config())
    names = [name for part in found for name in part.arms.values()]
    drawn = {name: {"b": draws(12, i, 0.5), "m": draws(12, i + 50, 2.5)} for i, name in enumerate(names)}
    table = [*ARMS, "lora+ti steps=26"]
    compared_arms = {name: drawn[name] for name in table}
    arms = arm_figures(compared_arms, real, "test", pairs(table, "base"))
    arms += nearness_figures(compared_arms, real, "test")
    arms += through_the_autoencoder(real, "vae", "test", 14) + through_the_autoencoder(real, "vae-train", "train", 14)
    of_sweeps = curves(config(), found)
    swept = {name: drawn[name] for by in of_sweeps.values() for points in by.values() for _, name in points}
    sweep = arm_figures(swept, real, "val", []) + nearness_figures(swept, real, "val")
    return {
        "run": {"name": "mine"},
        "figures": [f.to_dict() for f in dict.fromkeys([*arms, *sweep])],
        "verdicts": sentences(arms, sweep, "lora+ti+refine", "val"),
        "ablation": {
            "against": "base",
            "full": FULL,
            "arms": table,
            "sweep_only": [name for part in found if part.point for name in part.arms.values()],
            "reference": "test",
            "sweep_reference": "val",
            "held_out": "test",
            "notes": notes(arms, "lora+ti+refine"),
            "curves": of_sweeps,
            "configurations": [{"arm": "base", "steps": 20, "strength": None}, {"arm": "<b>", "strength": 0.5}],
        },
    }


def test_arms_are_compared_on_test_and_sweeps_on_val(report: dict) -> None:
    table = compared(report)
    assert {f["reference"] for f in table} == {"test", "all", "train"}
    assert not any("strength=" in f["arm"] or "guidance=" in f["arm"] for f in table)
    columns, rows = sweep_rows(report["figures"], report["ablation"]["curves"], "val")
    assert [row[:3] for row in rows[:3]] == [
        ["strength", "0", "lora+ti"],
        ["strength", "0.3", "lora+ti+refine"],
        ["strength", "0.5", "lora+ti+refine strength=0.5"],
    ]
    value = next(f["value"] for f in report["figures"] if (f["metric"], f["arm"], f["reference"], f["class"]) == (
        "kid", "lora+ti guidance=4", "val", "all"))  # fmt: skip
    cell = next(row for row in rows if row[2] == "lora+ti guidance=4")[columns.index("KID x 1000 [95 % interval]")]
    assert cell.startswith(f"{1000 * value:.2f} [")
    assert rows[-1][2] == "real"


def _cell(value: object) -> str:
    return "" if value is None else str(value)


def test_the_csv_has_every_figure_with_its_fields(report: dict) -> None:
    rows = list(csv.DictReader(io.StringIO(figures_csv(report["figures"]))))
    assert len(rows) == len(report["figures"])
    for row, figure in zip(rows, report["figures"], strict=True):
        assert float(row["value"]) == figure["value"]
        interval = [float(row[end]) for end in ("interval_low", "interval_high") if row[end]]
        assert interval == (figure["interval"] or [])
        assert all(row[key] == _cell(figure[key]) for key in figure if key not in ("value", "interval"))
    keys = [(r["metric"], r["arm"], r["class"], r["protocol"], r["reference"], r["extractor"]) for r in rows]
    assert len(set(keys)) == len(keys)


def test_the_page_is_whole_and_escaped_and_shows_every_arm_and_configuration(report: dict) -> None:
    html = ablation_html(report, {"benign <1>": b"png"})
    page = Page(html)
    assert "<b>" not in html.split("Every configuration tried")[1] and "benign <1>" in page.text
    for name in (*report["ablation"]["arms"], *report["ablation"]["sweep_only"]):
        assert name in page.text
    for heading in ("Arms side by side", "Copying and class drift", "Sweeps", "Every configuration tried"):
        assert heading in page.text


def test_tables_leave_blank_what_the_autoencoder_has_no_figure_of(report: dict) -> None:
    columns, rows = metrics_rows(compared(report))
    vae, train = (next(row for row in rows if row[0] == arm) for arm in ("vae", "vae-train"))
    assert vae[1] == "reconstruction" and "[" not in "".join(vae)
    assert [vae[columns.index(f"{name} [95 % interval]")] for name in ("KID x 1000", "AUC")] == ["–", "–"]
    assert "[" in train[columns.index("AUC [95 % interval]")]
    assert "vae" in {row[1] for row in class_rows(compared(report))[1]}
    assert {"vae", "vae-train"} & {row[1] for row in neighbour_rows(compared(report))[1]} == {"vae-train"}


def test_sentences_say_the_fall_of_fid_against_test_images_and_the_best_of_the_sweep(report: dict) -> None:
    said = "\n".join(report["verdicts"])
    by = {f["arm"]: f["value"] for f in compared(report) if f["metric"] == "fid" and f["class"] == "all"
          and f["protocol"] == "synthetic-only"}  # fmt: skip
    change = 100 * (by["lora+ti+refine"] / by["base"] - 1)
    against = "synthetic-only, against 28 test images (n 24)"
    assert f"{against}: {by['base']:.1f} to {by['lora+ti+refine']:.1f}, {change:+.0f} %." in said
    assert "against 28 test images" in next(line for line in report["verdicts"] if "autoencoder" in line)
    kids = {f["arm"]: f["value"] for f in report["figures"]
            if (f["metric"], f["reference"], f["class"]) == ("kid", "val", "all")}  # fmt: skip
    assert f"{min(kids, key=lambda arm: kids[arm])} has the lowest KID" in said


def test_the_fall_of_fid_in_the_mixture_is_a_note_beside_the_tables_and_no_verdict(report: dict) -> None:
    assert not any("paper-mixture" in sentence for sentence in report["verdicts"])
    (note,) = report["ablation"]["notes"]
    assert note.startswith("FID from base to lora+ti+refine, paper-mixture, against 108 real images (n 132): ")
    assert note.endswith("No verdict: the real images stand on both sides.")
    assert note in Page(ablation_html(report, {})).text


@pytest.mark.parametrize("reference", ["val", "train", "all"])
def test_the_fall_of_fid_is_no_verdict_where_the_reference_is_not_test(real: Real, reference: str) -> None:
    drawn = {arm: {"b": draws(8, 1, shift), "m": draws(8, 2, shift)} for arm, shift in (("base", 1.0), ("lora", 0.5))}
    arms = arm_figures(drawn, real, reference)
    assert sentences(arms, [], "lora", "val") == []
    first, second = notes(arms, "lora")
    n = sum(len(sample.units) for sample in real.split(reference).values())
    named = "real" if reference == "all" else reference
    assert f"synthetic-only, against {n} {named} images" in first and first.endswith("only test images carry one.")
    assert "paper-mixture" in second


def test_rows_have_a_cell_for_each_column(report: dict) -> None:
    columns, rows = configuration_rows(report["ablation"]["configurations"])
    assert columns == ["arm", "steps", "strength"] and rows == [["base", "20", "–"], ["<b>", "–", "0.5"]]
    columns, rows = nearness_rows(compared(report), report["ablation"]["arms"], "test")
    assert rows[-1][0] == "real test" and all(len(row) == len(columns) for row in rows)
