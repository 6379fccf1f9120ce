"""Figures as tables: a row for each arm, n and intervals in it, extractors and protocols apart."""

from dataclasses import replace

from busray.records import Interval
from busray.report.tables import (
    by_extractor,
    class_rows,
    difference_rows,
    figures_csv,
    markdown_table,
    metrics_rows,
    narrow_rows,
    neighbour_rows,
)
from tests.support.figures import (
    CLASSES,
    arm_and_floor_figures,
    difference,
    figure,
    neighbour_figures,
    texture_figures,
)


def test_a_row_for_each_arm_and_protocol_with_the_floor_as_its_own() -> None:
    columns, rows = metrics_rows([*arm_and_floor_figures(), figure("told_apart_auc", 0.875, "base")])
    assert columns == ["arm", "protocol", "n", "FID [spread]", "KID x 1000 [95 % interval]", "AUC [95 % interval]"]
    assert [row[:4] for row in rows] == [
        ["real", "real-against-real", "40", "70.0"],
        ["base", "synthetic-only", "40", "150.2"],
        ["lora+ti", "synthetic-only", "40", "90.5"],
        ["base", "paper-mixture", "40", "30.0"],
        ["lora+ti", "paper-mixture", "40", "30.0"],
    ]
    assert rows[1][4:] == ["80.00 [70.00, 90.00]", "0.875"]
    assert rows[3][4:] == ["–"] * 2


def test_fid_is_printed_with_its_spread() -> None:
    spread = replace(figure("fid", 150.25, "base"), interval=Interval(148.0, 152.5), replicates=5)
    assert metrics_rows([spread])[1][0][-1] == "150.2 [148.0, 152.5]"
    assert narrow_rows([spread], "fid")[1] == [["base", "40", "150.2 [148.0, 152.5]"]]


def test_a_row_for_each_class_and_arm() -> None:
    columns, rows = class_rows(arm_and_floor_figures())
    assert columns == ["class", "arm", "n", "FID [spread]", "KID x 1000 [95 % interval]"]
    assert [row[:3] for row in rows] == [[c, arm, "20"] for c in CLASSES for arm in ("real", "base", "lora+ti")]
    assert rows[1][3:] == ["150.2", "80.00 [70.00, 90.00]"]


def test_no_figures_make_no_rows() -> None:
    assert metrics_rows([]) == (["arm", "protocol", "n"], [])


def test_a_difference_says_whether_its_interval_excludes_zero() -> None:
    found = [difference(value) for value in (-0.06, 0.004, 0.02)]
    found.append(replace(found[0], interval=None))
    _, rows = difference_rows([*arm_and_floor_figures()[:-1], *found])
    assert rows[0] == ["lora+ti - base", "all", "-60.00", "[-70.00, -50.00]", "yes"]
    assert [row[-1] for row in rows] == ["yes", "no", "yes", "–"]
    assert rows[1][2] == "+4.00"


def test_a_number_that_rounds_to_zero_has_no_minus_sign() -> None:
    _, rows = metrics_rows([replace(figure("kid", -1e-7, "base"), interval=None)])
    assert rows[0][-1] == "0.00"


def test_markdown_escapes_pipes_and_puts_numbers_to_the_right() -> None:
    table = markdown_table(["arm", "FID"], [["a|b", "1.5"], ["c\nd", "–"]])
    assert table == "| arm | FID |\n| --- | ---: |\n| a\\|b | 1.5 |\n| c d | – |\n"


def test_each_extractor_has_tables_of_its_own() -> None:
    inception, texture = (
        by_extractor([*texture_figures(), *arm_and_floor_figures(), figure("copies", 0.0, "base")])[name]
        for name in ("inception-v3-2015", "texture-1")
    )
    assert metrics_rows(inception) == metrics_rows(arm_and_floor_figures())
    columns, rows = metrics_rows(texture)
    assert columns[3:5] == ["FD-texture [spread]", "KD-texture [95 % interval]"]
    assert not [column for column in columns if "FID" in column or "KID" in column]
    assert rows[1][3:5] == ["150.25", "0.08 [0.07, 0.09]"]
    columns, rows = difference_rows(texture)
    assert columns[2] == "KD-texture difference" and rows == [
        ["lora+ti - base", "all", "-0.06", "[-0.07, -0.05]", "yes"]
    ]
    assert neighbour_rows(inception)[1] == [] and neighbour_rows(texture)[1][0][2:] == ["0.12"] * 4


def test_neighbourhoods_have_a_row_for_each_class_and_arm() -> None:
    figures = [
        replace(f, value=value)
        for f, value in zip(neighbour_figures(0, ("real", "base")), (0.5, 0.25, 1.104, 0.75) * 2, strict=True)
    ]
    columns, rows = neighbour_rows(figures)
    assert columns == ["class", "arm", "precision", "recall", "density", "coverage"]
    assert rows == [["all", arm, "0.50", "0.25", "1.10", "0.75"] for arm in ("real", "base")]


def test_the_csv_has_the_columns_of_report_json_with_the_interval_in_two() -> None:
    head, first, *_ = figures_csv([difference(-0.06)]).splitlines()
    assert head == (
        "metric,value,interval_low,interval_high,n,n_reference,reference,protocol,extractor,arm,frame,size,"
        "replicates,drawn,class"
    )
    assert first.startswith("kid_difference,-0.06,-0.0") and ",lora+ti - base,letterbox,128,,,all" in first
