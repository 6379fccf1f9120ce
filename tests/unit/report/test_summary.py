"""The first screen: what the corpus is, whether classes show, whether images pass for real."""

from dataclasses import replace
from typing import Any

from busray.evidence.classes import FIRST_DRAW, consistency_figures
from busray.records import SEPARABILITY_AUC, Interval
from busray.report.summary import drawn_arm, not_measured, short_sentences, short_table
from tests.support.figures import arm_and_floor_figures, figure
from tests.support.judged import NAMES, SEVEN_OF_TEN, real, said

REPORT: dict[str, Any] = {
    "run": {"settings": {"adapters": {"method": "lora+ti"}, "refine": None}},
    "dataset": {"counts": {"train": {"benign": 30, "malignant": 20}, "test": {"benign": 9}}},
    "corpus": {"committed": 1200, "classes": {"benign": 1000, "malignant": 200}},
}
DRAWN = {"benign": said(*[0] * 9, 1), "malignant": said(*[1] * 4, *[0] * 6)}
JUDGED = consistency_figures({"lora+ti": DRAWN}, real(*SEVEN_OF_TEN), NAMES, FIRST_DRAW)


def separability(value: float) -> Any:
    area = figure(SEPARABILITY_AUC, value, "lora+ti")
    return replace(area, interval=Interval(value - 0.05, value + 0.05))


def test_three_sentences_say_what_it_is_whether_classes_show_and_whether_images_pass_for_real() -> None:
    assert short_sentences(REPORT, [*JUDGED, separability(0.98)]) == [
        "This corpus has 1,200 synthetic images (1,000 benign, 200 malignant), drawn by a model that learned from "
        "50 real images.",
        "A classifier of real images sees the class that was asked for in 65 of 100 synthetic images, and the true "
        "class in 70 of 100 real ones; the weakest class is malignant with 40 of 100.",
        "Of a real and a synthetic image, a computer picks the synthetic one in 98 of 100 pairs (50 would be "
        "guessing): the images do not pass for real ones.",
    ]
    assert short_sentences(REPORT, [separability(0.6)])[-1].endswith("60 of 100 pairs (50 would be guessing).")


def test_what_was_not_measured_is_said_with_the_command_that_measures_it() -> None:
    assert "Nobody has measured" in short_sentences(REPORT, [])[1]
    assert "`busray audit RUN`" in not_measured(REPORT) and "`busray study CONFIG`" in not_measured(REPORT)
    assert not_measured({"audit": {"sentences": []}, "study": {"sentences": []}}) == ""
    assert short_sentences({}, []) == []


def test_the_small_table_has_a_row_for_each_arm_and_for_other_real_images() -> None:
    columns, rows = short_table(REPORT, [*arm_and_floor_figures(), *JUDGED])
    assert columns == ["arm", "FID", "KID x 1000", "worst class by agreement", "agreement"]
    assert rows == [
        ["base", "150.2", "80.00", "–", "–"],
        ["lora+ti (this corpus)", "90.5", "20.00", "malignant 0.40", "0.65"],
        ["other real images", "70.0", "0.00", "–", "0.70"],
    ]
    assert short_table(REPORT, []).rows == []
    of_distances = short_table(REPORT, arm_and_floor_figures())
    assert of_distances.columns[3] == "worst class by FID" and of_distances.rows[1][3:] == ["malignant 90.5", "–"]


def test_the_arm_of_the_corpus_follows_from_its_settings() -> None:
    refined = {"run": {"settings": {"adapters": {"method": "lora"}, "refine": {"strength": 0.3}}}}
    assert drawn_arm(refined) == "lora+refine"
    assert drawn_arm({}) == ""
