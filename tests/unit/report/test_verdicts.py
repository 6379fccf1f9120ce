"""The sentences on distances: the order of the arms, which differences chance explains."""

from dataclasses import replace

import numpy as np
import pytest

from busray.evidence.distances import arm_figures, clean_figures
from busray.evidence.real import RealFeatures
from busray.records import INCEPTION
from busray.report.verdicts import distance_sentences
from tests.support.features import arm_features, features, independent, real_features


@pytest.fixture
def real() -> RealFeatures:
    return real_features()


@pytest.fixture
def arms() -> dict[str, dict[str, np.ndarray]]:
    return arm_features()


def test_sentences_say_where_fid_at_infinity_is_not_estimable(real: RealFeatures, arms: dict) -> None:
    sentences = " ".join(distance_sentences(arm_figures(arms, real, "test")))
    assert "FID-infinity: not estimable (it needs 2,048 reference images" in sentences
    assert "here are 18 and 30" in sentences
    large = independent(
        {"train": {"b": features(60, 1)}, "val": {"b": features(9, 2)}, "test": {"b": features(2100, 3)}}
    )
    figures = arm_figures({"base": {"b": features(4400, 4, 0.1)}}, large, "test")
    assert "not estimable" not in " ".join(distance_sentences(figures))


def test_images_for_fid_at_infinity_are_counted_in_the_references_shares(real: RealFeatures) -> None:
    drawn = {"base": {"b": features(200, 4), "m": features(200, 5, 2.0)}}
    sentences = " ".join(distance_sentences(arm_figures(drawn, real, "test")))
    assert "here are 18 and 300" in sentences  # 2 to 1, of which the overall FID counts 30


def test_figures_on_clean_test_images_change_no_sentence(real: RealFeatures, arms: dict) -> None:
    clean = {}
    for split, by_class in real.features.items():
        clean[split] = {name: np.ones(len(rows), bool) for name, rows in by_class.items()}
    clean["test"]["b"][:3] = False
    whole, without = arm_figures(arms, real, "test"), clean_figures(arms, real, clean)
    assert without and distance_sentences([*whole, *without]) == distance_sentences(whole)


def test_only_test_images_carry_a_verdict(real: RealFeatures, arms: dict) -> None:
    (said,) = distance_sentences(arm_figures(arms, real, "train"))
    assert said.startswith("No verdict") and "train" in said


def test_the_verdict_names_the_order_and_whether_chance_explains_it(real: RealFeatures, arms: dict) -> None:
    sentences = distance_sentences(arm_figures(arms, real, "test"))
    assert "lora+ti" in sentences[0] and sentences[0].index("lora+ti") < sentences[0].index("base")
    assert "excludes 0" in sentences[-1]
    same = {"base": arms["base"], "lora+ti": {c: x + 1e-3 * features(20, 9) for c, x in arms["base"].items()}}
    assert "contains 0" in distance_sentences(arm_figures(same, real, "test"))[-1]


def test_texture_has_its_own_verdict_after_inceptions(real: RealFeatures, arms: dict) -> None:
    ours, others = (arm_figures(arms, replace(real, extractor=name), "test") for name in (INCEPTION, "texture-1"))
    *first, last = distance_sentences(others + ours)
    assert first == distance_sentences(ours)
    assert "texture" in last and "FID" not in last and "KID" not in last
    assert last.index("lora+ti ") < last.index("base ") < last.index("other real images")
    assert last.endswith("exclude 0 for: lora+ti - base.")
    same = {"base": arms["base"], "lora+ti": {c: x + 1e-3 * features(20, 9) for c, x in arms["base"].items()}}
    assert distance_sentences(arm_figures(same, replace(real, extractor="texture-1"), "test"))[-1].endswith(
        "exclude 0 for: no pair of arms."
    )
