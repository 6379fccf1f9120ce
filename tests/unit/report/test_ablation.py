"""An ablation's page, tables and sentences: arms on test, sweeps on val, what is no verdict."""

import csv
import io
from typing import Any

import pytest

from busray.corpus.ablation import ARMS, SWEPT_METHOD, compared_pairs, plan_sub_runs, sweep_curves
from busray.evidence.distances import arm_figures
from busray.evidence.nearness import nearness_figures
from busray.evidence.real import RealFeatures
from busray.records import Figure
from busray.report.ablation import (
    ablation_html,
    ablation_notes,
    ablation_sentences,
    compared,
    configuration_rows,
    nearness_rows,
    sweep_rows,
)
from busray.report.tables import class_rows, figures_csv, figures_of, metrics_rows, neighbour_rows
from busray.report.verdicts import distance_sentences
from tests.support.ablations import config, draws, real_draws, through_the_autoencoder
from tests.support.html import Page


@pytest.fixture(scope="module")
def real() -> RealFeatures:
    return real_draws()


def test_no_verdict_is_on_the_autoencoder(real: RealFeatures) -> None:
    arms = arm_figures({"base": {"b": draws(12, 1, 0.5), "m": draws(12, 2, 2.5)}}, real, "test")
    made = [*through_the_autoencoder(real, "vae", "test", 14), *through_the_autoencoder(real, "vae-train", "train", 14)]
    assert distance_sentences([*arms, *made]) == distance_sentences(arms)


@pytest.fixture(scope="module")
def report(real: RealFeatures) -> dict[str, Any]:
    found = plan_sub_runs(config())
    names = [name for part in found for name in part.arms.values()]
    drawn = {name: {"b": draws(12, i, 0.5), "m": draws(12, i + 50, 2.5)} for i, name in enumerate(names)}
    table = [*ARMS, "lora+ti steps=26"]
    compared_arms = {name: drawn[name] for name in table}
    arms = arm_figures(compared_arms, real, "test", compared_pairs(table, "base"))
    arms += nearness_figures(compared_arms, real, "test")
    arms += through_the_autoencoder(real, "vae", "test", 14) + through_the_autoencoder(real, "vae-train", "train", 14)
    of_sweeps = sweep_curves(config(), found)
    swept = {name: drawn[name] for by in of_sweeps.values() for points in by.values() for _, name in points}
    sweep = arm_figures(swept, real, "val", []) + nearness_figures(swept, real, "val")
    return {
        "run": {"name": "mine"},
        "figures": [f.to_dict() for f in dict.fromkeys([*arms, *sweep])],
        "verdicts": ablation_sentences(arms, sweep, "lora+ti+refine", "val"),
        "ablation": {
            "against": "base",
            "full": SWEPT_METHOD,
            "arms": table,
            "sweep_only": [name for part in found if part.point for name in part.arms.values()],
            "reference": "test",
            "sweep_reference": "val",
            "held_out": "test",
            "notes": ablation_notes(arms, "lora+ti+refine"),
            "curves": of_sweeps,
            "configurations": [{"arm": "base", "steps": 20, "strength": None}, {"arm": "<b>", "strength": 0.5}],
        },
    }


@pytest.fixture(scope="module")
def figures(report: dict) -> list[Figure]:
    return figures_of(report)


@pytest.fixture(scope="module")
def table(figures: list[Figure], report: dict) -> list[Figure]:
    """The figures of the arms' tables."""
    return compared(figures, report["ablation"])


def test_arms_are_compared_on_test_and_sweeps_on_val(report: dict, figures: list[Figure], table: list[Figure]) -> None:
    assert {f.reference for f in table} == {"test", "all", "train"}
    assert not any("strength=" in f.arm or "guidance=" in f.arm for f in table)
    columns, rows = sweep_rows(figures, report["ablation"]["curves"], "val")
    assert [row[:3] for row in rows[:3]] == [
        ["strength", "0", "lora+ti"],
        ["strength", "0.3", "lora+ti+refine"],
        ["strength", "0.5", "lora+ti+refine strength=0.5"],
    ]
    wanted = ("kid", "lora+ti guidance=4", "val", "all")
    value = next(f.value for f in figures if (f.metric, f.arm, f.reference, f.class_name) == wanted)
    cell = next(row for row in rows if row[2] == "lora+ti guidance=4")[columns.index("KID x 1000 [95 % interval]")]
    assert cell.startswith(f"{1000 * value:.2f} [")
    assert rows[-1][2] == "real"


def _cell(value: object) -> str:
    return "" if value is None else str(value)


def test_the_csv_has_every_figure_with_its_fields(report: dict) -> None:
    rows = list(csv.DictReader(io.StringIO(figures_csv(figures_of(report)))))
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


def test_tables_leave_blank_what_the_autoencoder_has_no_figure_of(table: list[Figure]) -> None:
    columns, rows = metrics_rows(table)
    vae, train = (next(row for row in rows if row[0] == arm) for arm in ("vae", "vae-train"))
    assert vae[1] == "reconstruction" and "[" not in "".join(vae)
    assert [vae[columns.index(f"{name} [95 % interval]")] for name in ("KID x 1000", "AUC")] == ["–", "–"]
    assert "[" in train[columns.index("AUC [95 % interval]")]
    assert "vae" in {row[1] for row in class_rows(table)[1]}
    assert {"vae", "vae-train"} & {row[1] for row in neighbour_rows(table)[1]} == {"vae-train"}


def test_sentences_say_the_fall_of_fid_against_test_images_and_the_best_of_the_sweep(
    report: dict, figures: list[Figure], table: list[Figure]
) -> None:
    said = "\n".join(report["verdicts"])
    wanted = ("fid", "all", "synthetic-only")
    by = {f.arm: f.value for f in table if (f.metric, f.class_name, f.protocol) == wanted}
    change = 100 * (by["lora+ti+refine"] / by["base"] - 1)
    against = "synthetic-only, against 28 test images (n 24)"
    assert f"{against}: {by['base']:.1f} to {by['lora+ti+refine']:.1f}, {change:+.0f} %." in said
    assert "against 28 test images" in next(line for line in report["verdicts"] if "autoencoder" in line)
    overall = [f for f in figures if (f.metric, f.reference, f.class_name) == ("kid", "val", "all") and not f.floor]
    kids = {f.arm: f.value for f in overall}
    assert f"{min(kids, key=lambda arm: kids[arm])} has the lowest KID" in said


def test_the_fall_of_fid_in_the_mixture_is_a_note_beside_the_tables_and_no_verdict(report: dict) -> None:
    assert not any("paper-mixture" in sentence for sentence in report["verdicts"])
    (note,) = report["ablation"]["notes"]
    assert note.startswith("FID from base to lora+ti+refine, paper-mixture, against 108 real images (n 132): ")
    assert note.endswith("No verdict: the same real images are on both sides.")
    assert note in Page(ablation_html(report, {})).text


@pytest.mark.parametrize("reference", ["val", "train", "all"])
def test_the_fall_of_fid_is_no_verdict_where_the_reference_is_not_test(real: RealFeatures, reference: str) -> None:
    drawn = {arm: {"b": draws(8, 1, shift), "m": draws(8, 2, shift)} for arm, shift in (("base", 1.0), ("lora", 0.5))}
    arms = arm_figures(drawn, real, reference)
    assert ablation_sentences(arms, [], "lora", "val") == []
    first, second = ablation_notes(arms, "lora")
    n = sum(len(sample.units) for sample in real.split(reference).values())
    named = "real" if reference == "all" else reference
    assert f"synthetic-only, against {n} {named} images" in first and first.endswith(
        "it needs test images as the reference."
    )
    assert "paper-mixture" in second


def test_rows_have_a_cell_for_each_column(report: dict, table: list[Figure]) -> None:
    columns, rows = configuration_rows(report["ablation"]["configurations"])
    assert columns == ["arm", "steps", "strength"] and rows == [["base", "20", "–"], ["<b>", "–", "0.5"]]
    columns, rows = nearness_rows(table, report["ablation"]["arms"], "test")
    assert rows[-1][0] == "real test" and all(len(row) == len(columns) for row in rows)
