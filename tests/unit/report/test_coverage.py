"""The report says how many images figures look at, and gives those of all images beside them."""

import pytest

from busray.evidence.distances import WHOLE_CORPUS
from busray.records import CLASS_ALL, INCEPTION, Figure, Interval
from busray.report.card import PROTOCOLS
from busray.report.coverage import coverage_sentences, measured_whole, whole_corpus_sentences
from busray.report.distances import distance_sections
from busray.report.tables import class_rows, metrics_rows, narrow_rows


def figure(value: float, n: int, protocol: str = WHOLE_CORPUS, class_name: str = CLASS_ALL) -> Figure:
    interval = Interval(value - 1, value + 1) if protocol == "synthetic-only" else None
    return Figure("fid", value, interval, n, 130, "test", protocol, INCEPTION, class_name, "lora+ti", "letterbox", 128)


FIGURES = [
    figure(25.0, 120, "synthetic-only"),
    figure(27.0, 60, "synthetic-only", "benign"),
    figure(12.5, 1_000_000),
    figure(13.5, 500_000, class_name="benign"),
]


def test_distances_of_all_images_stand_beside_those_at_equal_n_and_each_says_its_n() -> None:
    rows = metrics_rows(FIGURES).rows
    assert [row[:3] for row in rows] == [["lora+ti", "synthetic-only", "120"], ["lora+ti", WHOLE_CORPUS, "1000000"]]
    each = class_rows(FIGURES).rows
    assert [row[:3] for row in each] == [
        ["benign", "lora+ti", "60"],
        ["benign", "lora+ti (whole-corpus)", "500000"],
    ]
    assert [row[:2] for row in narrow_rows(FIGURES, "fid").rows] == [
        ["lora+ti", "120"],
        ["lora+ti (whole-corpus)", "1000000"],
    ]
    (section,) = distance_sections(FIGURES)
    page = section.inside
    assert "FID falls as n grows" in page and "n = 1000000 against 130" in page
    assert WHOLE_CORPUS in PROTOCOLS


def test_a_sentence_gives_them_with_their_n_and_cost() -> None:
    (said,) = whole_corpus_sentences(FIGURES, {INCEPTION: 8192}, {INCEPTION: 1234.0})
    assert "FID of all images of lora+ti: 12.5 (n = 1,000,000), benign 13.5 (n = 500,000)" in said
    assert "At equal n it is 25.0 (n = 120)" in said and "8.19 GB, 1,234 s" in said
    assert measured_whole(FIGURES) == [INCEPTION]
    assert whole_corpus_sentences(FIGURES[:2], {INCEPTION: 8192}, {}) == []


def test_a_report_says_of_how_many_images_the_figures_are_and_what_the_rest_would_cost() -> None:
    compared, corpus = {"benign": 600, "malignant": 420}, {"benign": 500_000, "malignant": 420}
    said = coverage_sentences(compared, corpus, {INCEPTION: 8192}, asked=False)
    assert "600 of 500,000 images of benign (10 for each real image" in said[0] and "malignant" not in said[0]
    assert "499,400 more images (4.09 GB by inception-v3-2015)" in said[1] and "500,420 images" in said[1]
    assert len(coverage_sentences(compared, corpus, {}, asked=False)) == 1
    (asked,) = coverage_sentences(compared, corpus, {}, asked=True)
    assert "as evaluate.images says" in asked


@pytest.mark.parametrize("sizes", [{}, {INCEPTION: 8192}])
def test_nothing_is_said_where_the_figures_look_at_all_images(sizes: dict[str, int]) -> None:
    assert coverage_sentences({"benign": 6}, {"benign": 6}, sizes, asked=False) == []
