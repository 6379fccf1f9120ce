"""What a finished run says on a terminal: a verdict of five lines, one table of 80 columns."""

import json
import zipfile
from dataclasses import replace

import pytest

from busray.records import Figure, Interval
from busray.report.outcome import outcome_table, verdict_lines
from busray.report.tables import figures_of
from busray.report.warnings import SIMULATED, Warned, warnings
from busray.terminal import print_outcome
from tests.support.figures import arm_and_floor_figures, difference
from tests.support.pinned_run import ARCHIVE

CORPUS = {"committed": 198, "quarantined": 2, "classes": {"benign": 98, "malignant": 100}}


def lines(figures: list[Figure], warned: list[Warned] | None = None) -> list[str]:
    return verdict_lines(figures, warned or [], CORPUS, "lora+ti", "runs/mine")


def test_the_verdict_says_what_was_made_what_is_nearest_and_where_the_report_is() -> None:
    said = lines(arm_and_floor_figures())
    assert said[0] == "Made: 198 images (98 benign, 100 malignant), by lora+ti; 2 quarantined."
    assert said[1] == "Nearest by KID: lora+ti."
    assert said[-2:] == ["Use: nothing measured here speaks against it.", "Report: runs/mine/report.html"]
    assert len(said) == 5


def test_an_arm_that_chance_may_have_put_first_is_not_said_to_be_the_nearest_alone() -> None:
    unsure = replace(difference(-0.06), interval=Interval(-0.13, 0.01))
    figures = [f for f in arm_and_floor_figures() if f.metric != "kid_difference"]
    assert lines([*figures, unsure])[1] == "Nearest by KID: lora+ti; not distinguishable from it: base."
    assert lines(figures)[1] == "Nearest by KID: lora+ti."


def test_figures_against_other_images_than_test_give_no_nearest_arm() -> None:
    figures = [replace(figure, reference="val") for figure in arm_and_floor_figures()]
    said = "Nearest arm: not known, it takes KID against test images; figures are against val images."
    assert lines(figures)[1] == said


def test_the_worst_warning_says_whether_to_use_it_and_all_are_counted() -> None:
    said = lines(arm_and_floor_figures(), [SIMULATED, Warned("a", "b", "c")])
    assert said[-2:] == [
        "Use: none; it is a test of the method on simulated images.",
        "Report: runs/mine/report.html (2 warnings in it)",
    ]


def test_the_table_has_the_real_images_first_and_marks_the_released_corpus() -> None:
    table = outcome_table(arm_and_floor_figures(), "lora+ti", 80)
    assert table.columns == ["arm", "n", "FID", "KID x 1000 [95 % interval]"]
    assert [row[0] for row in table.rows] == ["real images", "base", "lora+ti *"]
    assert table.rows[1][2:] == ["150.2", "80.00 [70.00, 90.00]"]


def test_a_narrow_terminal_keeps_fid_and_kid() -> None:
    figures, released = pinned()
    assert "class seen" in outcome_table(figures, released, 80).columns
    assert outcome_table(figures, released, 62).columns == ["arm", "n", "FID", "KID x 1000 [95 % interval]"]


def pinned() -> tuple[list[Figure], str]:
    with zipfile.ZipFile(ARCHIVE) as packed:
        return figures_of(json.loads(packed.read("report.json"))), "lora+ti+refine+gate"


@pytest.mark.parametrize("simulated", [True, False])
def test_a_finished_run_fits_80_columns_and_ends_with_what_to_do(
    simulated: bool, capsys: pytest.CaptureFixture
) -> None:
    figures, released = pinned()
    warned = warnings(figures, "lora+ti+refine")
    print_outcome(figures, warned, CORPUS, released, "runs/pinned", simulated=simulated)
    shown = capsys.readouterr().out.splitlines()
    assert max(map(len, shown)) <= 80
    assert shown[5] == "" and shown[4].startswith("Report: runs/pinned/report.html")
    assert "FID" in shown[7] and len(shown[7:12]) == 5 and shown[-1] == "  busray card runs/pinned"
    assert ("real" in " ".join(shown[:12])) != simulated


def test_every_warning_has_its_short_form() -> None:
    figures, _ = pinned()
    found = warnings(figures, "lora+ti+refine")
    assert found and all(warned.short and len(warned.short) <= 75 for warned in found)
