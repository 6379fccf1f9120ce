"""A study's figures, what they say, and how the page shows them."""

from dataclasses import replace

import pytest

from busray.config import Primary
from busray.evidence.stats import paired as study
from busray.evidence.stats.paired import Scores, compare, score
from busray.evidence.study import StudyResults, study_figures
from busray.records import Figure
from tests.support.studies import GATED, outcome


@pytest.fixture(scope="module")
def found() -> tuple[StudyResults, list[Figure]]:
    made = outcome(external=True)
    return made, study_figures(made)


def test_each_figure_says_what_it_was_trained_on_and_tested_with(found: tuple[StudyResults, list[Figure]]) -> None:
    at = {(f.reference, f.arm, f.against, f.metric, f.class_name): f for f in found[1]}
    assert len(at) == len(found[1])
    recall = at["test", "mixed@0.5", None, "recall", "malignant"]
    assert (recall.n, recall.n_reference, recall.protocol, recall.extractor) == (130, 30, "single-split", "cnn")
    assert recall.interval is not None and recall.interval[0] <= recall.value <= recall.interval[1]
    difference = at["test", "mixed@1", "real", "accuracy_difference", "all"]
    arm, real = (at["test", name, None, "accuracy", "all"].value for name in ("mixed@1", "real"))
    assert difference.value == pytest.approx(arm - real) and difference.n == 140
    assert at["external", "real", None, "accuracy", "all"].n_reference == 8
    assert ("external", "real", None, "recall", "malignant") not in at


def test_holm_runs_over_all_comparisons_of_all_sets_but_the_primary(found: tuple[StudyResults, list[Figure]]) -> None:
    primary = [f for f in found[1] if f.metric.endswith("_p_value")]
    assert [(f.reference, f.arm, f.against, f.metric) for f in primary] == [
        ("test", "mixed@1", "real", "macro_f1_difference_p_value")
    ]
    corrected = [f.value for f in found[1] if f.metric.endswith("_p_holm")]
    assert len(corrected) == 5 * (3 + 2) - 1 + 5 * (2 + 1)
    raw = [
        compare(_score(found[0], name, arm), _score(found[0], name, "real"), (metric, None)).p_value
        for name, arm, metric in [("test", "synthetic@0.5", "accuracy"), ("external", "mixed@0.5", "accuracy")]
    ]
    held = {(f.reference, f.arm, f.against, f.metric, f.class_name): f.value for f in found[1]}
    for (name, arm), p_value in zip((("test", "synthetic@0.5"), ("external", "mixed@0.5")), raw, strict=True):
        assert held[name, arm, "real", "accuracy_difference_p_holm", "all"] >= p_value


def _score(made: StudyResults, name: str, arm: str) -> Scores:
    return score(made.probabilities[name][arm], made.labels[name], made.units[name])


@pytest.fixture
def gated(monkeypatch: pytest.MonkeyPatch) -> StudyResults:
    monkeypatch.setattr(study, "BOOTSTRAP_REPLICATES", 200)  # quick
    return outcome(arms=GATED)


def compared_arms(figures: list[Figure]) -> list[str]:
    return [f"{f.arm} - {f.against}" for f in figures if f.metric == "macro_f1_difference"]


def test_a_mixture_is_compared_with_the_same_one_without_the_gate_too(gated: StudyResults) -> None:
    figures = study_figures(gated)
    to_real = [f"{arm} - real" for arm in GATED[1:]]
    assert compared_arms(figures) == [*to_real, "mixed@0.5 - ungated@0.5", "mixed@1 - ungated@1"]


@pytest.mark.parametrize(("arm", "against"), [("mixed@1", "ungated@1"), ("ungated@1", "mixed@1")])
def test_a_declared_comparison_with_the_gate_stands_once_and_is_the_primary(
    gated: StudyResults, arm: str, against: str
) -> None:
    made = replace(gated, primary=Primary(metric="macro_f1", arm=arm, against=against))
    figures = study_figures(made)
    to_it = [f"{other} - {against}" for other in GATED if other != against]
    assert compared_arms(figures) == [*to_it, "mixed@0.5 - ungated@0.5"]
    assert [(f.arm, f.against) for f in figures if f.metric.endswith("_p_value")] == [(arm, against)]
