"""Extractors are found, named and refused before any work; each gives its own features."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from busray.config import Evaluate
from busray.config_file import validate
from busray.records import INCEPTION, ContentBox, UserError, distance_names
from busray.run.checks import open_run
from busray.vision import extractors
from busray.vision.extractors import find_extractors, refuse_small_content
from busray.vision.inception import InceptionWeights
from busray.vision.texture import texture_features


def test_extractors_come_in_the_order_asked_for_and_texture_needs_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    found = InceptionWeights(Path("weights.pth"), scripted=False)
    monkeypatch.setattr(extractors, "find_weights", lambda path: found)
    assert list(find_extractors(Evaluate())) == [INCEPTION, "texture-1"]
    assert list(find_extractors(Evaluate(extractors=("texture", "inception")))) == ["texture-1", INCEPTION]
    assert find_extractors(Evaluate())[INCEPTION].weights == found

    def none(path: str | None) -> None:
        raise AssertionError("Inception's weights are looked for though nothing needs them")

    monkeypatch.setattr(extractors, "find_weights", none)
    (texture,) = find_extractors(Evaluate(extractors=("texture",))).values()
    images, boxes = np.random.default_rng(0).integers(0, 256, (2, 32, 32), np.uint8), [ContentBox(0, 4, 32, 20)] * 2
    np.testing.assert_array_equal(texture.load("cpu")(images, boxes), texture_features(images, boxes))


def test_distances_are_named_by_the_family_of_their_extractor() -> None:
    assert distance_names(INCEPTION) == ("fid", "kid")
    assert distance_names("texture-1") == ("fd-texture", "kd-texture")
    assert distance_names("dinov2-vit-l-14-0123456789abcdef") == ("fd-dinov2", "kd-dinov2")
    assert distance_names("inception-v3-2016") == ("fd-inception", "kd-inception")


def test_content_too_small_for_texture_is_refused_where_texture_is_wanted() -> None:
    (texture,) = find_extractors(Evaluate(extractors=("texture",))).items()
    framed = [("a.png", ContentBox(0, 0, 64, 64)), ("benign/thin.png", ContentBox(0, 25, 64, 14))]
    with pytest.raises(UserError, match=r"evaluate\.extractors: benign/thin\.png is framed to 64 x 14 px"):
        refuse_small_content(dict([texture]), framed)
    refuse_small_content(dict([texture]), framed[:1])
    refuse_small_content({}, framed)


def test_a_run_with_images_too_thin_for_texture_ends_before_anything_is_written(tmp_path: Path) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    for i in range(12):
        for name in ("benign", "malignant"):
            (tmp_path / "data" / name).mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (20 if i else 8, 100), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{i}.png")
    tree: dict[str, Any] = {
        "output": str(tmp_path / "run"),
        "dataset": {"path": str(tmp_path / "data"), "test": 0.3},
        "classes": {name: {"images": 4} for name in ("benign", "malignant")},
        "evaluate": {"extractors": ["texture"]},
    }
    with pytest.raises(UserError, match="texture needs 16 on each side"):
        open_run(validate(tree), lambda *_: None)
    assert not (tmp_path / "run").exists()
