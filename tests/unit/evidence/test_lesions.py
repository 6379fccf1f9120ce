"""The figures of lesions: what they are of, their n, and what they are compared with."""

import numpy as np
import pytest

from busray.evidence.lesions import DICE, LESION_FOUND, unmeasurable
from busray.records import CLASS_ALL, Figure
from busray.vision.lesion_shape import NAME, TRUE
from tests.support.lesions import lesion_figures

# ---- figures ----


@pytest.fixture(scope="module")
def figures() -> list[Figure]:
    return lesion_figures()


def one(figures: list[Figure], metric: str, arm: str, class_name: str = "benign", extractor: str = NAME) -> Figure:
    (found,) = [
        f for f in figures if (f.metric, f.arm, f.class_name, f.extractor) == (metric, arm, class_name, extractor)
    ]
    return found


def test_means_are_over_the_lesions_found_and_carry_their_number(figures: list[Figure]) -> None:
    found = one(figures, LESION_FOUND, "lora+ti")
    assert (found.value, found.n, found.n_reference, found.reference) == (0.8, 25, 30, "test")
    area = one(figures, "lesion_area", "lora+ti")
    assert area.n == 20 and area.value == pytest.approx(0.1, rel=0.1)
    assert area.interval is not None and area.interval[0] < area.value < area.interval[1]
    assert area.protocol == "synthetic-only" and (area.frame, area.size) == ("letterbox", 128)


def test_real_images_are_measured_by_true_and_by_pseudo_masks(figures: list[Figure]) -> None:
    true, pseudo = (one(figures, "lesion_area", "real", extractor=e) for e in (TRUE, NAME))
    assert true.n == pseudo.n == 27 and true.value > pseudo.value


def test_distances_are_to_the_reference_by_pseudo_masks_and_beside_a_floor_that_was_not_trained_on(
    figures: list[Figure],
) -> None:
    far, near = (one(figures, "lesion_area_distance", arm) for arm in ("base", "lora+ti"))
    assert far.value == pytest.approx(0.1, abs=0.02) and far.interval is None
    assert near.value < 0.02 and near.n <= 20 and near.n_reference == 27  # of 20 images, as many as the floor has
    chance = one(figures, "lesion_area_p_value", "lora+ti")
    assert (chance.n, chance.n_reference) == (20, 27)  # of all 25
    floor = one(figures, "lesion_area_distance", "real val")
    assert floor.floor and not far.floor
    assert floor.value < 0.02 and (floor.n, floor.protocol) == (18, "real-against-real")
    assert one(figures, "lesion_area_p_value", "base").value == 0.001
    assert one(figures, "lesion_area_p_value", "lora+ti").value > 0.01
    assert not [f for f in figures if f.metric.startswith("lesion_area_distance") and f.extractor != NAME]


def test_a_class_without_lesions_has_a_share_and_nothing_else(figures: list[Figure]) -> None:
    assert {f.metric for f in figures if f.class_name == "normal"} == {LESION_FOUND}
    found = one(figures, LESION_FOUND, "base", "normal")
    assert found.value == 0 and found.interval is not None and found.interval[1] > 0.1


def test_only_dice_is_overall_since_arms_and_real_images_mix_classes_otherwise(figures: list[Figure]) -> None:
    assert {f.metric for f in figures if f.class_name == CLASS_ALL} == {DICE}
    dice = one(figures, DICE, "real", CLASS_ALL)
    assert (dice.n, dice.n_reference) == (80, 30) and dice.interval is not None


def test_masks_that_teach_nothing_are_told() -> None:
    some, none = np.ones((4, 2, 2), bool), np.zeros((4, 2, 2), bool)
    assert unmeasurable({"train": some, "val": some, "test": some}) is None
    assert "0 val images" in (unmeasurable({"train": some, "val": none, "test": some}) or "")
    assert "2 test images" in (unmeasurable({"train": some, "val": some, "test": some[:2]}) or "")
