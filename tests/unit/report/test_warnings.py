"""What is said first: lost classes, steps that do not help, little variety, images recognised."""

from dataclasses import replace

from busray.evidence.classes import FIRST_DRAW, consistency_figures
from busray.records import SEPARABILITY_AUC, Figure, Interval
from busray.report.warnings import Warned, not_nearer, warnings
from tests.support.figures import difference, figure
from tests.support.judged import NAMES, real, said


def judged(benign: tuple[int, ...], arm: str = "lora+ti", base: tuple[int, ...] | None = None) -> list[Warned]:
    """Warnings where the judge says this of 20 benign images; the malignant ones are right."""
    right = said(*[1] * 20)
    arms = {arm: {"benign": said(*benign), "malignant": right}}
    if base:
        arms["base"] = {"benign": said(*base), "malignant": right}
    return warnings(consistency_figures(arms, real((0,) * 50, (1,) * 50), NAMES, FIRST_DRAW), arm)


def test_a_class_that_the_judge_takes_for_another_is_named_with_both_and_with_what_to_try() -> None:
    (collapsed,) = judged((0,) * 2 + (1,) * 18)
    assert "Do not train on the 'benign' images" in collapsed.text
    assert "most of them for 'malignant' (0.90 of 20)" in collapsed.text
    assert "in 1.00 [" in collapsed.text and "--corpus.gate.attempts" in collapsed.advice


def test_a_class_that_is_seen_as_itself_less_often_than_real_images_is_named() -> None:
    (weak,) = judged((0,) * 12 + (1,) * 8)
    assert weak.text.startswith("Fewer 'benign' images show their class") and "0.60 [" in weak.text


def test_a_class_that_adaptation_made_worse_is_named_with_the_share_before() -> None:
    (worse,) = judged((0,) * 16 + (1,) * 4, base=(0,) * 20)
    assert worse.text.endswith("Adaptation made it worse: of the base's images it was 1.00.")
    assert judged((0,) * 19 + (1,), base=(0,) * 20) == []


def test_the_collapsed_class_comes_before_a_weaker_one() -> None:
    arms = {"lora+ti": {"benign": said(*[0] * 12, *[1] * 8), "malignant": said(*[0] * 20)}}
    figures = consistency_figures(arms, real((0,) * 50, (1,) * 50), NAMES, FIRST_DRAW)
    first, second = warnings(figures, "lora+ti")
    assert "'malignant' images: the judge takes most" in first.text and "Fewer 'benign'" in second.text


def test_a_judge_that_errs_on_most_real_images_of_a_class_condemns_no_drawn_image() -> None:
    arms = {"lora+ti": {"benign": said(*[1] * 20), "malignant": said(*[1] * 20)}}
    figures = consistency_figures(arms, real((0,) * 4 + (1,) * 6, (1,) * 10), NAMES, FIRST_DRAW)
    (unknown,) = warnings(figures, "lora+ti")
    assert "is not known: the judge recognises only 0.40 [" in unknown.text


def test_nothing_is_warned_of_where_all_is_well() -> None:
    assert judged((0,) * 20) == [] and warnings([difference(-0.06)], "lora+ti") == []


def test_adaptation_that_is_not_distinguishable_from_none_is_said_and_one_that_harms() -> None:
    (none,) = warnings([difference(0.005)], "lora+ti")
    assert none.text.startswith("Adaptation is not shown to help") and "+5.00 [-5.00, +15.00]" in none.text
    (harm,) = warnings([difference(0.06)], "lora+ti")
    assert harm.text.startswith("Adaptation made the images less like real ones")


def test_refinement_is_judged_only_where_the_released_images_are_refined() -> None:
    refined = replace(difference(0.005), arm="lora+ti+refine", against="lora+ti")
    (found,) = warnings([refined], "lora+ti+refine")
    assert found.text.startswith("Refinement is not shown to help")
    assert warnings([refined], "lora+ti") == []


def recall(value: float, floor: float) -> list[Figure]:
    of_floor = figure("recall", floor, "real", protocol="real-against-real")
    return [figure("recall", value, "lora+ti"), of_floor]


def test_images_that_reach_less_than_half_of_the_variety_of_real_ones_are_said_to_vary_less() -> None:
    (little,) = warnings(recall(0.07, 0.85), "lora+ti")
    assert "they reach 0.07 of the real images' variety, other real images 0.85" in little.text
    assert warnings(recall(0.5, 0.85), "lora+ti") == []


def test_images_that_a_linear_classifier_surely_recognises_are_said_to_be_recognised() -> None:
    area = figure(SEPARABILITY_AUC, 0.99, "lora+ti")
    sure = replace(area, interval=Interval(0.95, 1.0))
    (found,) = warnings([sure], "lora+ti")
    assert "AUC 0.990 [0.950, 1.000]" in found.text
    assert warnings([replace(sure, interval=Interval(0.6, 1.0))], "lora+ti") == []


def test_a_training_that_came_no_nearer_to_the_val_images_than_its_base_is_named_with_both() -> None:
    measured = {"distance_features": "texture-1", "distance": [[0, 0.159], [30, 0.17], [60, 0.185]]}
    (warned,) = not_nearer(measured)
    assert "0 on texture-1 features is 170 at its best (step 30), and 159 before training" in warned.text
    assert "adapters.learning_rate" in warned.advice
    once = {**measured, "distance": [[0, 0.159], [60, 0.185]]}
    assert "validate_every" in not_nearer(once)[0].advice


def test_a_training_that_came_nearer_or_measured_nothing_is_not_warned_of() -> None:
    assert not_nearer({"distance_features": "texture-1", "distance": [[0, 0.2], [30, 0.1], [60, 0.3]]}) == []
    assert not_nearer({}) == not_nearer({"distance": []}) == []
