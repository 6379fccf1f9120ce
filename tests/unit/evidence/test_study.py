"""A study's figures, what they say, and how the page shows them."""

from dataclasses import replace

import numpy as np
import pytest

from busray.config import Primary
from busray.evidence.stats import paired as study
from busray.evidence.stats.paired import Scores, compare, score
from busray.evidence.study import Outcome, study_figures
from busray.records import Figure
from busray.report.page import report_html
from busray.report.study import arm_rows, comparison_rows, study_section, study_sentences

ARMS = ("real", "synthetic@0.5", "synthetic@1", "mixed@0.5", "mixed@1", "real+balanced")
SKILL = {"synthetic@0.5": 0.3, "synthetic@1": 0.4, "mixed@1": 0.95}
GATED = (*ARMS[:5], "ungated@0.5", "ungated@1", ARMS[5])


def outcome(
    classes: tuple[str, ...] = ("benign", "malignant"), external: bool = False, arms: tuple[str, ...] = ARMS
) -> Outcome:
    """Two trainings an arm, 60 test images in 30 clusters; `mixed@1` is better than all, `synthetic` worse."""
    draw = np.random.default_rng(3)
    labels = np.arange(60) // 2 % 2

    def predictions(arm: str, truth: np.ndarray) -> np.ndarray:
        right = draw.random((2, len(truth))) < SKILL.get(arm, 0.7)
        sure = np.eye(2)[np.where(right, truth, 1 - truth)]
        return 0.9 * sure + 0.1 * draw.dirichlet([1, 1], sure.shape[:2])

    sets = {"test": labels} | ({"external": np.zeros(8, np.int64)} if external else {})
    return Outcome(
        classes=classes,
        architecture="cnn",
        frame="letterbox",
        size=64,
        primary=Primary(metric="macro_f1", arm="mixed@1"),
        images={arm: 100 + 10 * i for i, arm in enumerate(arms)},
        labels=sets,
        clusters={name: np.arange(len(truth)) // 2 for name, truth in sets.items()},
        probabilities={name: {arm: predictions(arm, truth) for arm in arms} for name, truth in sets.items()},
        tasks=12,
        seconds=1.0,
    )


@pytest.fixture(scope="module")
def found() -> tuple[Outcome, list[Figure]]:
    made = outcome(external=True)
    return made, study_figures(made)


def test_each_figure_says_what_it_was_trained_on_and_tested_with(found: tuple[Outcome, list[Figure]]) -> None:
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


def test_holm_runs_over_all_comparisons_of_all_sets_but_the_primary(found: tuple[Outcome, list[Figure]]) -> None:
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


def _score(made: Outcome, name: str, arm: str) -> Scores:
    return score(made.probabilities[name][arm], made.labels[name], made.clusters[name])


@pytest.fixture
def gated(monkeypatch: pytest.MonkeyPatch) -> Outcome:
    monkeypatch.setattr(study, "REPLICATES", 200)  # quick
    return outcome(arms=GATED)


def compared_arms(figures: list[Figure]) -> list[str]:
    return [f"{f.arm} - {f.against}" for f in figures if f.metric == "macro_f1_difference"]


def test_a_mixture_is_compared_with_the_same_one_without_the_gate_too(gated: Outcome) -> None:
    figures = study_figures(gated)
    to_real = [f"{arm} - real" for arm in GATED[1:]]
    assert compared_arms(figures) == [*to_real, "mixed@0.5 - ungated@0.5", "mixed@1 - ungated@1"]
    said = study_sentences(figures, gated)
    assert said[2].startswith("The class gate's part in macro F1 on test, p after Holm: mixed@0.5 - ungated@0.5 ")
    assert "; mixed@1 - ungated@1 +" in said[2]


@pytest.mark.parametrize(("arm", "against"), [("mixed@1", "ungated@1"), ("ungated@1", "mixed@1")])
def test_a_declared_comparison_with_the_gate_stands_once_and_is_the_primary(
    gated: Outcome, arm: str, against: str
) -> None:
    made = replace(gated, primary=Primary(metric="macro_f1", arm=arm, against=against))
    figures = study_figures(made)
    to_it = [f"{other} - {against}" for other in GATED if other != against]
    assert compared_arms(figures) == [*to_it, "mixed@0.5 - ungated@0.5"]
    assert [(f.arm, f.against) for f in figures if f.metric.endswith("_p_value")] == [(arm, against)]
    part = study_sentences(figures, made)[2]
    assert "mixed@0.5 - ungated@0.5" in part and "@1" not in part


def test_the_page_and_the_sentences_speak_of_the_gate_only_where_there_is_one(
    gated: Outcome, found: tuple[Outcome, list[Figure]]
) -> None:
    def page(made: Outcome, figures: list[Figure]) -> str:
        said, plain = study_sentences(figures, made), [figure.to_dict() for figure in figures]
        return study_section({"primary": {"metric": "macro_f1"}, "sentences": said, "figures": plain})

    with_gate, without = page(gated, study_figures(gated)), page(*found)
    assert with_gate.count("<circle") == 6 and ">ungated</text>" in with_gate
    assert "as if there were no class gate" in with_gate and "gate" not in without


def test_the_sentences_name_the_primary_first_and_own_up_to_one_split(found: tuple[Outcome, list[Figure]]) -> None:
    sentences = study_sentences(found[1], found[0])
    assert sentences[0].startswith("Primary comparison, declared beforehand: macro F1 on test, mixed@1 less real: +0.")
    assert "so the two are told apart" in sentences[0] and "would be found" in sentences[0]
    assert "60 test images in 30 clusters, 2 trainings an arm, classifier cnn" in sentences[1]
    assert "synthetic@0.5 - real, accuracy all on test -0." in sentences[2]
    assert sentences[-1].startswith("Single split")


def test_where_no_difference_can_be_found_none_is_called_detectable() -> None:
    """Five clusters of test images: no p-value of theirs is below 0.05, however large a difference."""
    made = outcome()
    few = replace(made, clusters={"test": np.minimum(made.clusters["test"], 4)})
    figures = study_figures(few)
    assert not [f for f in figures if f.metric.endswith("_detectable")]
    said = study_sentences(figures, few)[0]
    assert said.endswith(
        "With 5 clusters of test images and 2 trainings an arm no true difference would be found with a probability of "
        "80%."
    )
    columns, rows = comparison_rows([figure.to_dict() for figure in figures])
    assert rows and {row[columns.index("detectable")] for row in rows} == {"–"}


def test_a_control_like_the_real_arm_is_not_told_apart() -> None:
    made = replace(outcome(), primary=Primary(metric="macro_f1", arm="real+balanced"))
    assert "so the two are not told apart" in study_sentences(study_figures(made), made)[0]


def test_the_tables_hold_every_arm_and_every_comparison(found: tuple[Outcome, list[Figure]]) -> None:
    plain = [figure.to_dict() for figure in found[1]]
    columns, rows = arm_rows(plain)
    assert columns == ["arm", "training images", "accuracy", "macro F1", "AUC", "recall benign", "recall malignant"]
    assert [row[0] for row in rows] == list(ARMS) and rows[0][1] == "100"
    columns, rows = comparison_rows(plain)
    assert len(rows) == 5 * 5 and [row[5] for row in rows].count("primary") == 1
    _, outside = arm_rows(plain, "external")
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
    page = report_html({"run": {"name": "r"}}, {}, [study_section(part)])
    assert "<script" not in page
    for text in ("Downstream study", "macro F1 over corpus size", "On external images", "Configurations tried (1)"):
        assert text in page
    assert page.count("<circle") == 4
    assert study_section({}) == ""
