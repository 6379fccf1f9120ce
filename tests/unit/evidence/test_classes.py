"""Class consistency: shares and their intervals against closed forms, and agreement beyond real
accuracy is flagged."""

from dataclasses import replace

import numpy as np
import pytest

from busray.evidence.classes import (
    ACCEPTANCE,
    AFTER_GATE,
    CONSISTENCY,
    EXCESS,
    FIRST_DRAW,
    GATE,
    JUDGE,
    SEEN_AS,
    GateCounts,
    consistency_figures,
    gate_counts,
    gate_figures,
    recalls,
)
from busray.evidence.stats.intervals import Estimate, difference_of_estimates, wilson
from busray.records import ClassifierRecord, Commit, Execution, Figure, Interval, Recall, Redrawn
from tests.support.judged import NAMES, SEVEN_OF_TEN, real, said


def share(part: int, whole: int) -> Estimate:
    return Estimate(part / whole, wilson(part, whole))


def found(figures: list[Figure], metric: str, name: str, arm: str = "lora+ti") -> Figure:
    (figure,) = [f for f in figures if (f.metric, f.class_name, f.arm) == (metric, name, arm)]
    return figure


def test_recalls_are_shares_of_each_class_and_their_mean_whatever_its_number_of_images() -> None:
    probabilities, labels = said(0, 0, 0, 1, 1, 0), np.array([0, 0, 0, 0, 1, 1])
    got = recalls(probabilities, labels, np.arange(6), NAMES)
    assert {name: e.value for name, e in got.items()} == {"all": 0.625, "benign": 0.75, "malignant": 0.5}
    assert got["benign"].interval == wilson(3, 4)


def test_images_of_one_patient_count_as_one_in_the_interval_and_never_give_a_certain_one() -> None:
    labels = np.zeros(8, int)
    alone = recalls(said(*[0] * 8), labels, np.arange(8), NAMES)["benign"]
    paired = recalls(said(*[0] * 8), labels, np.arange(8) // 2, NAMES)["benign"]
    assert alone.value == paired.value == 1
    assert alone.interval == wilson(8, 8) and paired.interval == wilson(4, 4)
    assert paired.interval[0] < alone.interval[0] < 1


# ---- figures ----


def test_agreement_stands_beside_the_judges_own_accuracy_with_what_both_are_of() -> None:
    arms = {"lora+ti": {"benign": said(*[0] * 15, *[1] * 5), "malignant": said(*[1] * 10, *[0] * 10)}}
    figures = consistency_figures(arms, real(*SEVEN_OF_TEN), NAMES, FIRST_DRAW)
    assert [found(figures, CONSISTENCY, name).value for name in ("all", *NAMES)] == [0.625, 0.75, 0.5]
    assert found(figures, EXCESS, "malignant").value == pytest.approx(-0.2)
    assert found(figures, EXCESS, "malignant").interval == difference_of_estimates(share(10, 20), share(7, 10)).interval
    own = found(figures, JUDGE, "benign", "real")
    assert (own.value, own.n, own.n_reference, own.protocol) == (0.7, 50, 10, "single-split")
    one = found(figures, CONSISTENCY, "benign")
    assert (one.n, one.n_reference, one.reference, one.protocol) == (20, 10, "test", "first-draw")
    assert (one.extractor, one.frame, one.size) == ("cnn", "letterbox", 128)


def test_what_the_judge_sees_is_counted_by_class_for_real_images_and_first_draws() -> None:
    arms = {"lora+ti": {"benign": said(*[0] * 15, *[1] * 5), "malignant": said(*[1] * 10, *[0] * 10)}}
    figures = consistency_figures(arms, real(*SEVEN_OF_TEN), NAMES, FIRST_DRAW)
    cells = {
        (f.arm, f.class_name, f.metric.removeprefix(SEEN_AS)): (round(f.value * f.n), f.n, f.protocol)
        for f in figures
        if f.metric.startswith(SEEN_AS)
    }
    assert cells == {
        ("real", "benign", "benign"): (7, 10, "single-split"),
        ("real", "benign", "malignant"): (3, 10, "single-split"),
        ("real", "malignant", "benign"): (3, 10, "single-split"),
        ("real", "malignant", "malignant"): (7, 10, "single-split"),
        ("lora+ti", "benign", "benign"): (15, 20, "first-draw"),
        ("lora+ti", "benign", "malignant"): (5, 20, "first-draw"),
        ("lora+ti", "malignant", "benign"): (10, 20, "first-draw"),
        ("lora+ti", "malignant", "malignant"): (10, 20, "first-draw"),
    }


def test_after_the_gate_the_judge_is_not_scored_again() -> None:
    arms = {"lora+ti+gate": {"benign": said(*[0] * 5)}}
    figures = consistency_figures(arms, real(*SEVEN_OF_TEN), NAMES, AFTER_GATE)
    assert {f.metric for f in figures} == {CONSISTENCY, EXCESS} and {f.protocol for f in figures} == {AFTER_GATE}
    assert found(figures, CONSISTENCY, "all", "lora+ti+gate").value == 1  # of the class that is there
    assert consistency_figures({}, real(*SEVEN_OF_TEN), NAMES, AFTER_GATE) == []


# ---- the gate ----

COMMIT = Commit(
    class_name="benign",
    first=0,
    count=10,
    object="",
    digest="",
    bytes=0,
    rows=8,
    rejects=(("b-5", "class gate"), ("b-6", "not finite")),
    execution=Execution("cpu", "float32", 4, 1, {}),
    seconds=1.0,
    redrawn=(Redrawn("b-3", (0.1,), 1), Redrawn("b-4", (0.1, 0.2), 2), Redrawn("b-5", (0.1, 0.1, 0.1), None)),
)

GATE_RECORD = ClassifierRecord(
    architecture="efficientnet-lite0",
    dataset="hash",
    classes=("benign", "malignant"),
    training={},
    seed=1,
    chosen={},
    trials=(),
    images={"train": 50, "val": 10, "test": 20},
    test={"all": Recall(0.8, Interval(0.6, 0.9), 20)},
    object="",
    digest="",
)


def test_draws_are_counted_from_the_records() -> None:
    counts = gate_counts([COMMIT, replace(COMMIT, first=10, redrawn=(), rejects=())], attempts=3)
    assert counts == {"benign": GateCounts(planned=20, first=16, redrawn=2, spent=1, draws=20 + 1 + 2 + 2, undrawn=1)}


def test_the_gates_figures_say_how_many_first_draws_passed_and_how_good_it_is_itself() -> None:
    figures = gate_figures(gate_counts([COMMIT], 3), GATE_RECORD, "lora+ti", "letterbox", 128)
    passed = found(figures, ACCEPTANCE, "benign")
    assert (passed.value, passed.interval, passed.n) == (6 / 9, wilson(6, 9), 9)  # b-6 never came before the gate
    own = found(figures, GATE, "all", "real")
    assert (own.value, own.interval, own.n, own.n_reference) == (0.8, (0.6, 0.9), 50, 20)


def test_a_class_of_which_nothing_came_before_the_gate_has_no_acceptance() -> None:
    none = gate_counts([replace(COMMIT, count=1, rows=0, rejects=(("b-0", "not finite"),), redrawn=())], 3)
    assert not any(f.metric == ACCEPTANCE for f in gate_figures(none, GATE_RECORD, "lora+ti", "letterbox", 128))
    both = gate_figures({**none, "malignant": GateCounts(4, 3, 1, 0, 5)}, GATE_RECORD, "lora+ti", "letterbox", 128)
    assert {f.class_name: f.value for f in both if f.metric == ACCEPTANCE} == {"all": 0.75, "malignant": 0.75}
