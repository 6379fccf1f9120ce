"""The segmenter learns lesions, repeats itself, sees no padding, and is chosen on val."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from busray.records import ContentBox
from busray.vision import segmenter
from busray.vision.fitting import VALIDATIONS
from busray.vision.segmenter import MaskedImages, Segmenter, dice, fit, reduced, segment

CONTENT = ContentBox(0, 16, 64, 32)


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    """A network that takes milliseconds a step."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segmenter, "SIDE", 64)
        patch.setattr(segmenter, "WIDTHS", (8, 8, 8))
        patch.setattr(segmenter, "BATCH", 8)
        yield


def discs(rng: np.random.Generator, n: int) -> MaskedImages:
    """Noise with a dark disc in its content, every fourth without; black bars above and below."""
    y, x = np.mgrid[:64, :64]
    pixels, masks = np.zeros((n, 64, 64), np.uint8), np.zeros((n, 64, 64), bool)
    pixels[:, 16:48] = rng.integers(110, 170, (n, 32, 64))
    for i in range(n):
        if i % 4:
            masks[i] = np.hypot(y - rng.uniform(26, 38), x - rng.uniform(15, 49)) < rng.uniform(5, 9)
    return MaskedImages(np.where(masks, pixels // 3, pixels), masks, (CONTENT,) * n)


@pytest.fixture(scope="module")
def splits() -> dict[str, MaskedImages]:
    rng = np.random.default_rng(20240)
    return {name: discs(rng, n) for name, n in (("train", 24), ("val", 8), ("test", 12))}


@pytest.fixture(scope="module")
def learnt(splits: dict[str, MaskedImages], small: None) -> Segmenter:
    """Trained for long enough to find lesions."""
    return fit(splits["train"], splits["val"], 80, seed=1)


def test_lesions_are_learnt_to_a_dice_that_no_constant_mask_reaches(
    splits: dict[str, MaskedImages], learnt: Segmenter
) -> None:
    test = splits["test"]
    found = segment(learnt, test.pixels, test.boxes)
    there = test.masks.any((1, 2))
    everywhere = np.zeros_like(test.masks)
    everywhere[:, 16:48] = True
    reached = dice(found, test.masks)[there].mean()
    assert reached > 0.7 > 0.4 > dice(everywhere, test.masks)[there].mean()
    assert dice(np.zeros_like(found), test.masks)[there].mean() == 0


def test_the_same_seed_and_threads_give_the_same_bytes_and_another_seed_others(splits: dict[str, MaskedImages]) -> None:
    torch.manual_seed(5)
    first = fit(splits["train"], splits["val"], 10, seed=1)
    torch.manual_seed(6)  # the state around it is neither used nor changed
    before = torch.rand(1)
    torch.manual_seed(6)
    again = fit(splits["train"], splits["val"], 10, seed=1)
    assert torch.rand(1) == before
    assert first.to_bytes() == again.to_bytes() and first.validations == again.validations
    assert fit(splits["train"], splits["val"], 10, seed=2).to_bytes() != first.to_bytes()


def test_val_chooses_the_step_and_the_kept_weights_are_its(splits: dict[str, MaskedImages]) -> None:
    validations: list[int] = []
    val = splits["val"]
    found = fit(splits["train"], val, 30, seed=1, validated=lambda: validations.append(1))
    assert len(found.validations) == len(validations) == VALIDATIONS and found.validations[-1].step == 30
    assert found.chosen.dice == max(validation.dice for validation in found.validations)
    scores = dice(segment(found, val.pixels, val.boxes), val.masks)
    assert np.nan_to_num(scores, nan=1).mean() == pytest.approx(found.chosen.dice)


def test_each_step_and_each_batch_of_val_and_test_is_a_sign_of_life(splits: dict[str, MaskedImages]) -> None:
    beats: list[int] = []
    val = splits["val"]
    found = fit(splits["train"], val, 20, seed=1, beat=lambda: beats.append(1))
    assert len(beats) == 20 + VALIDATIONS
    beats.clear()
    segment(found, np.repeat(val.pixels, 5, 0), val.boxes * 5, lambda: beats.append(1))
    assert len(beats) == 2


def test_bytes_bring_the_segmenter_back(splits: dict[str, MaskedImages]) -> None:
    found, test = fit(splits["train"], splits["val"], 10, seed=1), splits["test"]
    again = Segmenter.from_bytes(found.to_bytes(), found.validations)
    assert again.chosen == found.chosen
    assert (segment(again, test.pixels, test.boxes) == segment(found, test.pixels, test.boxes)).all()


def test_masks_in_the_padding_are_neither_learnt_nor_found(splits: dict[str, MaskedImages]) -> None:
    train = splits["train"]
    painted = train.masks.copy()
    painted[:, :8] = painted[:, 56:] = True  # two rows or more from the content: interpolation must not reach it
    wrong = replace(train, masks=painted)
    first, second = (fit(images, splits["val"], 10, seed=1) for images in (train, wrong))
    assert first.to_bytes() == second.to_bytes()
    bright = np.full((1, 64, 64), 255, np.uint8)
    assert not segment(first, bright, [ContentBox(0, 0, 64, 1)])[:, 1:].any()


def test_larger_squares_are_answered_in_their_own_size(splits: dict[str, MaskedImages], learnt: Segmenter) -> None:
    found, test = learnt, splits["test"]
    small = segment(found, test.pixels, test.boxes)
    large = segment(found, test.pixels.repeat(2, 1).repeat(2, 2), [ContentBox(0, 32, 128, 64)] * len(test.boxes))
    assert large.shape == (12, 128, 128)
    assert dice(large, small.repeat(2, 1).repeat(2, 2))[small.any((1, 2))].min() > 0.9
    assert segment(found, np.zeros((0, 128, 128), np.uint8), []).shape == (0, 128, 128)


def test_dice_is_twice_the_overlap_over_both_areas() -> None:
    a, b = np.zeros((2, 4, 4), bool), np.zeros((2, 4, 4), bool)
    a[0, :2], b[0, 1:3] = True, True
    first, nothing = dice(a, b)
    assert first == 0.5 and np.isnan(nothing)


def test_nothing_to_learn_and_other_than_8_bit_are_refused(
    splits: dict[str, MaskedImages], rng: np.random.Generator
) -> None:
    blank = replace(splits["train"], masks=np.zeros_like(splits["train"].masks))
    with pytest.raises(ValueError, match="lesion"):
        fit(blank, splits["val"], 10, seed=1)
    with pytest.raises(TypeError, match="uint8"):
        reduced(rng.random((2, 64, 64)))
