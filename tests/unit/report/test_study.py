"""A study's report: its first sentences, its tables, its bars and curves."""

from dataclasses import replace

import numpy as np
import pytest

from busray.config import Primary
from busray.evidence.stats import paired
from busray.evidence.study import StudyResults, study_figures
from busray.records import Figure
from busray.report.page import report_html
from busray.report.study import arm_rows, comparison_rows, study_section, study_sentences
from tests.support.studies import ARMS, GATED, outcome


@pytest.fixture(scope="module")
def found() -> tuple[StudyResults, list[Figure]]:
    made = outcome(external=True)
    return made, study_figures(made)


@pytest.fixture
def gated(monkeypatch: pytest.MonkeyPatch) -> StudyResults:
    monkeypatch.setattr(paired, "BOOTSTRAP_REPLICATES", 200)  # quick
    return outcome(arms=GATED)


def test_a_sentence_compares_each_mixture_with_the_same_one_without_the_gate(gated: StudyResults) -> None:
    part = study_sentences(study_figures(gated), gated)[2]
    assert part.startswith("The class gate's part in macro F1 on test, p after Holm: mixed@0.5 - ungated@0.5 ")
    assert "; mixed@1 - ungated@1 +" in part


@pytest.mark.parametrize(("arm", "against"), [("mixed@1", "ungated@1"), ("ungated@1", "mixed@1")])
def test_a_declared_comparison_with_the_gate_is_not_repeated_in_the_gates_sentence(
    gated: StudyResults, arm: str, against: str
) -> None:
    made = replace(gated, primary=Primary(metric="macro_f1", arm=arm, against=against))
    part = study_sentences(study_figures(made), made)[2]
    assert "mixed@0.5 - ungated@0.5" in part and "@1" not in part


def test_the_page_and_the_sentences_speak_of_the_gate_only_where_there_is_one(
    gated: StudyResults, found: tuple[StudyResults, list[Figure]]
) -> None:
    def page(made: StudyResults, figures: list[Figure]) -> str:
        said, plain = study_sentences(figures, made), [figure.to_dict() for figure in figures]
        return study_section({"primary": {"metric": "macro_f1"}, "sentences": said, "figures": plain}).inside

    with_gate, without = page(gated, study_figures(gated)), page(*found)
    assert with_gate.count("<circle") == 6 and ">ungated</text>" in with_gate
    assert "as if there were no class gate" in with_gate and "gate" not in without


def test_the_sentences_name_the_primary_first_and_own_up_to_one_split(found: tuple[StudyResults, list[Figure]]) -> None:
    sentences = study_sentences(found[1], found[0])
    assert sentences[0].startswith("Primary comparison, declared beforehand: macro F1 on test, mixed@1 minus real: +0.")
    assert "so the two are distinguishable" in sentences[0] and "would be found" in sentences[0]
    assert "60 test images in 30 independent units, 2 trainings an arm, classifier cnn" in sentences[1]
    assert "synthetic@0.5 - real, accuracy all on test -0." in sentences[2]
    assert sentences[-1].startswith("Single split")


def test_where_no_difference_can_be_found_none_is_called_detectable() -> None:
    """With five units of test images no p-value is below 0.05, however large a difference."""
    made = outcome()
    few = replace(made, units={"test": np.minimum(made.units["test"], 4)})
    figures = study_figures(few)
    assert not [f for f in figures if f.metric.endswith("_detectable")]
    sentence = study_sentences(figures, few)[0]
    assert sentence.endswith(
        "With 5 independent units of test images and 2 trainings an arm, no true difference would be found "
        "with a probability of 80%."
    )
    columns, rows = comparison_rows(figures)
    assert rows and {row[columns.index("detectable")] for row in rows} == {"–"}


def test_a_control_like_the_real_arm_is_not_distinguishable() -> None:
    made = replace(outcome(), primary=Primary(metric="macro_f1", arm="real+balanced"))
    assert "so the two are not distinguishable" in study_sentences(study_figures(made), made)[0]


def test_the_tables_hold_every_arm_and_every_comparison(found: tuple[StudyResults, list[Figure]]) -> None:
    columns, rows = arm_rows(found[1])
    assert columns == ["arm", "training images", "accuracy", "macro F1", "AUC", "recall benign", "recall malignant"]
    assert [row[0] for row in rows] == list(ARMS) and rows[0][1] == "100"
    columns, rows = comparison_rows(found[1])
    assert len(rows) == 5 * 5 and [row[5] for row in rows].count("primary") == 1
    _, outside = arm_rows(found[1], "external")
    assert len(outside) == len(ARMS)


def test_the_page_has_bars_the_curve_and_the_configurations_and_escapes_names() -> None:
    hostile = "<script>benign"
    made = outcome((hostile, "malignant"), external=True)
    figures = study_figures(made)
    part = {
        "primary": {"metric": "macro_f1", "arm": "mixed@1", "against": "real"},
        "sentences": [*study_sentences(figures, made), "<script>"],
        "figures": [figure.to_dict() for figure in figures],
        "tried": [{"identity": "abc", "trainings": 12, "training": {"architecture": "cnn", "steps": 400}}],
    }
    page = report_html({"run": {"name": "r"}}, [], {}, [study_section(part)])
    assert "<script" not in page
    for text in ("Downstream study", "macro F1 over corpus size", "On external images", "Configurations tried (1)"):
        assert text in page
    assert page.count("<circle") == 4
    assert study_section({}).inside == ""
