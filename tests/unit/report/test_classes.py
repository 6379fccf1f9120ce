"""The report on class consistency and class gate: lost diversity, matrices, counts."""

from busray.evidence.classes import AFTER_GATE, FIRST_DRAW, GateCounts, consistency_figures
from busray.report.classes import consistency_rows, consistency_section, consistency_sentences
from tests.support.judged import NAMES, RECORD, SEVEN_OF_TEN, real, said


def test_the_page_draws_a_matrix_of_real_images_and_of_each_arm_with_counts_and_n() -> None:
    drawn = {"benign": said(*[0] * 1500, *[1] * 500), "malignant": said(*[1] * 20)}
    figures = consistency_figures({"<b>": drawn}, real(*SEVEN_OF_TEN), NAMES, FIRST_DRAW)
    page = consistency_section(figures, None).inside
    assert page.count("<svg") == 2 and "First draws of &lt;b&gt;" in page
    for words in ("n = 20 (benign 10, malignant 10)", "n = 2,020 (benign 2,000, malignant 20)", ">1,500<", ">0.25<"):
        assert words in page


def test_agreement_above_real_accuracy_is_flagged_as_lost_diversity_and_how_surely() -> None:
    images = (0,) * 70 + (1,) * 30, (1,) * 70 + (0,) * 30
    arms = {
        "sure": {"benign": said(*[0] * 95, *[1] * 5), "malignant": said(*[1] * 95, *[0] * 5)},
        "slight": {"benign": said(*[0] * 73, *[1] * 27), "malignant": said(*[1] * 60, *[0] * 40)},
    }
    figures = consistency_figures(arms, real(*images), NAMES, FIRST_DRAW)
    columns, rows = consistency_rows(figures)
    flagged = {(row[0], row[2]): row[columns.index("lost diversity")] for row in rows}
    assert flagged == {
        **{("sure", name): "yes" for name in ("all", *NAMES)},
        ("slight", "all"): "no",
        ("slight", "benign"): "perhaps",
        ("slight", "malignant"): "no",
    }
    told, lost = consistency_sentences(figures)
    assert "The judge, cnn, is right on 0.70 [" in told and "slight 0.67 [" in told
    assert lost.endswith(
        "sure all +0.25, sure benign +0.25, sure malignant +0.25, slight benign +0.03 (the interval contains 0)."
    )


def test_images_that_a_gate_selected_to_agree_say_nothing_of_lost_diversity() -> None:
    chosen = {"benign": said(*[0] * 95), "malignant": said(*[1] * 95)}
    before = consistency_figures({"lora+ti": chosen}, real(*SEVEN_OF_TEN), NAMES, FIRST_DRAW)
    after = consistency_figures({"lora+ti+gate": chosen}, real(*SEVEN_OF_TEN), NAMES, AFTER_GATE)
    _, rows = consistency_rows(before + after)
    assert {(row[1], row[-1]) for row in rows} == {(FIRST_DRAW, "yes"), (AFTER_GATE, "–")}


def test_nothing_is_said_of_arms_that_were_not_judged() -> None:
    assert consistency_sentences([]) == [] and consistency_section([], None).inside == ""


def test_the_page_names_the_gate_its_accuracy_and_what_became_of_each_class() -> None:
    gate = {**RECORD, "threshold": 0.5, "attempts": 3}
    counts = GateCounts(20, 16, 2, 1, 25, undrawn=1)
    page = consistency_section([], {**gate, "classes": {"<b>": counts.__dict__}}).inside
    assert "<td>16</td><td>2</td><td>1</td><td>1</td><td>25</td>" in page
    assert "trained on 50 real training images" in page and "all 0.80 [0.60, 0.90]" in page
    assert "&lt;b&gt;" in page and "<td>25</td>" in page
