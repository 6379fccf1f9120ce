"""Parts of a page: tables put numbers to the right; data are escaped, markup is not."""

import pytest
from markupsafe import Markup

from busray.report import html
from busray.report.html import Section, table
from tests.support.figures import png
from tests.support.html import Page

MARKUP = "<script>"


def test_a_table_puts_numbers_to_the_right_and_escapes_its_cells() -> None:
    page = Page(table(["arm", "FID"], [[MARKUP, "<0.001"], ["b", "–"]]))
    assert page.named("th") == page.named("td")[:2] == [{"class": "left"}, {}]
    assert MARKUP in page.text and not page.named("script")
    assert table(["arm"], []) == ""


def test_every_part_escapes_words_and_keeps_markup() -> None:
    inside = html.paragraph(MARKUP, MARKUP)
    parts = (
        html.heading(MARKUP),
        html.sentence_list([MARKUP]),
        html.folded(MARKUP, inside),
        html.image(png(1), MARKUP),
        html.figure(inside, MARKUP, MARKUP),
        html.legend([("c0", MARKUP)]),
        html.columns(inside),
    )
    for part in parts:
        assert isinstance(part, Markup) and not Page(part).named("script") and "script" in part
    assert Page(html.columns(inside)).named("p")


@pytest.mark.parametrize("empty", [html.sentence_list([]), html.folded("a", html.NOTHING), html.columns(html.NOTHING)])
def test_a_part_without_content_is_nothing(empty: str) -> None:
    assert empty == ""


def test_the_name_of_a_section_can_stand_in_a_link() -> None:
    assert Section("Distances in DINOv2's features", html.NOTHING).anchor == "distances-in-dinov2-s-features"
