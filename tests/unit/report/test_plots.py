"""Drawings of a page: plots put values where they belong; words of data are escaped."""

from itertools import pairwise

import pytest

from busray.records import Interval
from busray.report.plots import Point, Row, RowGroup, Series, curve_plot, row_plot, ticks
from tests.support.html import Page

MARKUP = "<script>"


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.2, 7.9), (1e-6, 3e-6), (0, 123_456)])
def test_ticks_are_four_to_ten_round_numbers_within_the_ends(low: float, high: float) -> None:
    values = ticks(low, high)
    assert 4 <= len(values) <= 10 and low <= values[0] and values[-1] <= high
    assert ticks(2, 2) == [2]


def test_rows_have_dots_where_their_values_are_and_whiskers_over_their_intervals() -> None:
    rows = [Row("a", 0.0, None, "0", "c0"), Row(MARKUP, 5.0, Interval(2.5, 10.0), "5", "c1")]
    page = Page(row_plot([RowGroup("all", rows, (5.0, "5"))], "axis", "label"))
    zero, five = (float(dot["cx"]) for dot in page.named("circle"))
    whisker = next(path["d"] for path in page.named("path", "c1"))
    low, high = (float(end.split()[0]) for end in whisker.removeprefix("M").split("L"))
    assert five - zero == pytest.approx((high - zero) / 2, abs=0.1)
    assert low - zero == pytest.approx((high - zero) / 4, abs=0.1)
    (floor,) = page.named("path", "floor")
    assert floor["d"].startswith(f"M{five:.1f} ") and MARKUP in page.text


def test_names_at_the_ends_of_lines_do_not_cover_each_other() -> None:
    series = [Series(name, [Point(0, 0.0), Point(1, end)], "c1") for name, end in (("a", 1.0), ("b", 1.0), ("c", 0.0))]
    page = Page(curve_plot(series, "axis", "label", floor=("real", 1.0), named=True))
    at_the_right = [text for text in page.named("text") if float(text["x"]) > 320]
    heights = sorted(float(text["y"]) for text in at_the_right)
    assert len(heights) == 4 and all(after - before >= 12 for before, after in pairwise(heights))
