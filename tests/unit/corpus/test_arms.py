"""An arm's name is what is compared; no arm is drawn that another corpus holds."""

from types import SimpleNamespace
from typing import Any

import pytest

from busray.config import Config
from busray.config_file import validate
from busray.corpus.arms import arm_after_gate, arm_sources, arms_to_draw, compared_images, most_compared, released_arm
from busray.records import Arm


def config(**changes: Any) -> Config:
    classes = {"benign": {"images": 10}, "malignant": {"images": 10}}
    return validate({"dataset": {"path": "data"}, "classes": classes, **changes})


@pytest.mark.parametrize(
    "name, arm",
    [
        ("base", Arm("base")),
        ("lora+ti", Arm("lora+ti")),
        ("lora+ti+refine", Arm("lora+ti", refined=True)),
        ("lora+ti+gate", Arm("lora+ti", gated=True)),
        ("base+refine+gate", Arm("base", refined=True, gated=True)),
    ],
)
def test_an_arm_is_its_method_and_whether_it_is_refined_and_gated(name: str, arm: Arm) -> None:
    assert Arm.parse(name) == arm
    assert arm.name == name
    assert arm.uses_adapters == (arm.method != "base")


def test_an_arm_that_the_released_corpus_holds_is_not_drawn_again() -> None:
    made = config(evaluate={"arms": ["base", "base+refine", "lora+ti", "lora+ti+refine"]})
    sources = arm_sources(made)
    assert released_arm(made) == "lora+ti+refine"
    assert (sources["lora+ti+refine"].prefix, sources["lora+ti+refine"].column) == ("", "image")
    assert (sources["lora+ti"].prefix, sources["lora+ti"].column) == ("", "image_txt2img")
    assert (sources["base"].prefix, sources["base"].column) == ("arms/base+refine", "image_txt2img")
    assert arms_to_draw(made) == ["base+refine"]
    apart = config(evaluate={"arms": ["base", "lora+ti"]}, corpus={"keep_txt2img": False})
    assert arms_to_draw(apart) == ["base", "lora+ti"]


def test_a_gated_corpus_is_an_arm_of_its_own_beside_the_first_draws_that_it_holds() -> None:
    gated = config(corpus={"gate": {}}, evaluate={"arms": ["base", "lora+ti", "lora+ti+refine"]})
    assert arm_after_gate(gated) == "lora+ti+refine+gate" and arm_after_gate(config()) is None
    assert {arm: (s.prefix, s.first_draws) for arm, s in arm_sources(gated).items()} == {
        "base": ("arms/base", False),
        "lora+ti": ("", True),
        "lora+ti+refine": ("", True),
    }
    assert arms_to_draw(gated) == ["base"]


def test_every_arm_is_compared_at_the_smallest_classs_n() -> None:
    classes = {"benign": {"images": 10}, "malignant": {"images": 4}, "normal": {"images": 0}}
    assert most_compared(config(classes=classes)) == 4
    assert most_compared(config(classes=classes, evaluate={"images": 3})) == 3


def test_no_more_images_are_drawn_for_an_arm_than_figures_look_at() -> None:
    images = [SimpleNamespace(class_name="benign")] * 20 + [SimpleNamespace(class_name="malignant")] * 7
    dataset: Any = SimpleNamespace(split=lambda name: images)
    classes = {"benign": {"images": 1_000_000}, "malignant": {"images": 500_000}}
    assert compared_images(config(classes=classes), dataset) == {"benign": 200, "malignant": 70}
    classes["malignant"] = {"images": 90}
    assert compared_images(config(classes=classes), dataset) == {"benign": 90, "malignant": 70}
    asked = config(classes=classes, evaluate={"images": 80})
    assert compared_images(asked, dataset) == {"benign": 80, "malignant": 80}
