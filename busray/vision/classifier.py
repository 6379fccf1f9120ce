"""Classifiers of ultrasound images, trained on the train split, chosen and calibrated on val.

There are two architectures, so that one can judge the other: `cnn` is small and starts from random
weights; `efficientnet-lite0` is a linear classifier on frozen ImageNet features. Every fit runs the
same number of optimiser steps whatever the number of images, so that training sets can be compared.
On the CPU; the same seed and number of threads give the same weights.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from busray.identity import canonical_json
from busray.vision.fitting import grey_tensor, load_weights, optimise, shrunk, shuffled_rows, weights_of

Augmentation = Literal["mirror", "classical"]
Architecture = Literal["cnn", "efficientnet-lite0"]

SIDE = 64  # pixels a side that the CNN sees
VIEWS = 8  # of an image, itself included, that a frozen backbone sees under `classical`
WARMUP = 0.05  # share of the steps in which the learning rate rises
COLDEST, HOTTEST = 0.05, 20.0  # temperatures that calibration may find


@dataclass(frozen=True)
class Training:
    """How each classifier of a comparison is trained; val chooses among the learning rates."""

    architecture: Architecture
    steps: int
    batch_size: int
    learning_rates: tuple[float, ...]


@dataclass(frozen=True)
class Phase:
    """Images that a share of the steps trains on: inputs [n, views, ...], labels int [n]."""

    inputs: np.ndarray
    labels: np.ndarray
    share: float = 1.0
    augmentation: Augmentation = "mirror"
    balanced: bool = False  # draw every class equally often, instead of every image


@dataclass(frozen=True)
class Validation:
    """What one validation during training found on val."""

    learning_rate: float
    step: int  # optimiser steps done
    temperature: float  # of the calibration; logits are divided by it
    nll: float  # mean negative log-likelihood of the calibrated probabilities, in nats
    accuracy: float


@dataclass(frozen=True)
class Classifier:
    """A fitted network with the weights of its best validation."""

    architecture: Architecture
    classes: int
    weights: dict[str, np.ndarray]  # by tensor name
    chosen: Validation  # the one that the weights are of
    validations: tuple[Validation, ...]  # all of them, by learning rate and step

    def to_bytes(self) -> bytes:
        """All that predictions need, as safetensors; equal classifiers have equal bytes."""
        from safetensors.numpy import save

        about = {"architecture": self.architecture, "classes": self.classes}
        about["chosen"] = asdict(self.chosen)
        return save(self.weights, {"classifier": canonical_json(about)})

    @staticmethod
    def from_bytes(data: bytes) -> "Classifier":
        """The bytes hold the chosen validation only, so that `validations` is that one."""
        from safetensors.numpy import load

        length = int.from_bytes(data[:8], "little")
        about = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["classifier"])
        chosen = Validation(**about["chosen"])
        return Classifier(about["architecture"], about["classes"], load(data), chosen, (chosen,))


def represent(
    pixels: np.ndarray,
    architecture: Architecture,
    augmentation: Augmentation | None = None,
    seed: int = 0,
    beat: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """uint8 [n, s, s] -> what the trainable part of the architecture takes, [n, views, ...].

    View 0 is the image itself. A frozen backbone sees the augmented views here, once. The CNN is
    augmented at every step instead, so it has one view. beat is called after each view that is made
    and each batch that the backbone sees. TypeError where pixels are not uint8 [n, s, s].
    """
    if pixels.ndim != 3 or pixels.dtype != np.uint8:
        shape = list(pixels.shape)
        raise TypeError(f"a classifier takes uint8 [n, s, s], not {pixels.dtype} {shape}")
    if architecture == "cnn":
        return shrunk(pixels, SIDE)[:, None]
    import torch

    from busray.vision.efficientnet import features

    views = [pixels]
    if augmentation == "mirror":
        views.append(pixels[:, :, ::-1])
    elif augmentation == "classical":
        noise = torch.Generator().manual_seed(seed)
        grey = grey_tensor(pixels)
        for _ in range(VIEWS - 1):
            view = augmented(grey, augmentation, noise)
            views.append((view[:, 0] * 255).round().clamp(0, 255).byte().numpy())
            beat()
    return np.stack([features(view, beat) for view in views], axis=1)


def augmented(grey: Any, augmentation: Augmentation, noise: Any) -> Any:
    """float [n, 1, s, s] in 0..1 -> the same shape; noise is a torch.Generator.

    mirror: left and right, every second time. classical: also turned by up to 10 degrees, moved by
    up to a tenth of the side, scaled by 0.9 to 1.1, gain 0.8 to 1.2, gamma 0.8 to 1.25. No image is
    turned upside down: the probe is always at its top.
    """
    if augmentation == "mirror":
        flips = _flips(len(grey), noise)[:, None, None, None]
        return grey.flip(3).where(flips < 0, grey)
    return toned(moved(grey, noise), noise)


def moved(images: Any, noise: Any) -> Any:
    """float [n, c, s, s] -> mirrored, turned, moved and scaled; 0 comes in from outside."""
    import torch
    from torch.nn import functional

    n = len(images)
    flips = _flips(n, noise)
    angle, scale = _uniform(n, -10, 10, noise).deg2rad(), _uniform(n, 0.9, 1.1, noise)
    cos, sin = angle.cos() / scale, angle.sin() / scale
    # affine_grid takes the map from output to input places, in -1..1: 0.2 is a tenth of the side.
    right, down = _uniform(n, -0.2, 0.2, noise), _uniform(n, -0.2, 0.2, noise)
    affine = torch.stack([cos * flips, -sin, right, sin * flips, cos, down], 1)
    places = functional.affine_grid(affine.view(n, 2, 3), list(images.shape), align_corners=False)
    return functional.grid_sample(images, places, padding_mode="zeros", align_corners=False)


def toned(grey: Any, noise: Any) -> Any:
    """float [n, 1, s, s] in 0..1 -> the same, gain and gamma as under `classical`."""
    n = len(grey)
    # exp(+-0.223) is 0.8 and 1.25: darker as often as brighter.
    gain, gamma = _uniform(n, 0.8, 1.2, noise), _uniform(n, -0.223, 0.223, noise).exp()
    return (grey.clamp(0, 1) ** gamma[:, None, None, None] * gain[:, None, None, None]).clamp(0, 1)


def _flips(n: int, noise: Any) -> Any:
    """-1 for an image to mirror, else 1."""
    import torch

    return 1 - 2 * torch.randint(0, 2, (n,), generator=noise).float()


def _uniform(n: int, low: float, high: float, noise: Any) -> Any:
    import torch

    return torch.empty(n).uniform_(low, high, generator=noise)


def fit(
    phases: Sequence[Phase],
    val: tuple[np.ndarray, np.ndarray],
    classes: int,
    training: Training,
    seed: int,
    beat: Callable[[], None] = lambda: None,
    validated: Callable[[], None] = lambda: None,
) -> Classifier:
    """Train on the phases in turn; keep the weights of the best calibrated likelihood on val.

    val: (inputs [n, views, ...], labels int [n]). beat is called after every optimiser step and
    every batch of val, validated after each validation. ValueError where the phases' shares do not
    sum to 1.
    """
    if not np.isclose(sum(phase.share for phase in phases), 1):
        raise ValueError("the phases' shares of the steps do not add up to 1")
    best: tuple[Validation, dict[str, np.ndarray]] | None = None
    validations: list[Validation] = []
    for learning_rate in training.learning_rates:
        for validation, network in _train(phases, val, classes, training, learning_rate, seed, beat):
            validations.append(validation)
            if best is None or validation.nll < best[0].nll:
                best = validation, weights_of(network)
            validated()
    assert best is not None
    chosen, weights = best
    return Classifier(training.architecture, classes, weights, chosen, tuple(validations))


def _train(
    phases: Sequence[Phase],
    val: tuple[np.ndarray, np.ndarray],
    classes: int,
    training: Training,
    learning_rate: float,
    seed: int,
    beat: Callable[[], None],
) -> Iterator[tuple[Validation, Any]]:
    """Yields (validation, network) at each validation; the next step changes the network."""
    import torch
    from torch.nn import functional

    # The network's weights and its dropout draw from torch's global generator.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _network(training.architecture, classes)
        batches = _batches(phases, training, seed)

        def loss(step: int) -> torch.Tensor:
            inputs, labels = next(batches)
            return functional.cross_entropy(network(inputs), labels)

        def rate(step: int) -> float:
            # A linear warm-up times a cosine to 0.
            progress = step / training.steps
            warm = min(progress / WARMUP + 1e-3, 1.0)
            return learning_rate * (warm * 0.5 * (1 + float(np.cos(np.pi * progress))))

        for done in optimise(network, loss, training.steps, rate, beat):
            logits = _logits(network, val[0], training.architecture, beat)
            temperature = calibrate(logits, val[1])
            nll = negative_log_likelihood(logits / temperature, val[1])
            accuracy = float((logits.argmax(1) == val[1]).mean())
            yield Validation(learning_rate, done, temperature, nll, accuracy), network


def _batches(phases: Sequence[Phase], training: Training, seed: int) -> Iterator[tuple[Any, Any]]:
    """(inputs, labels) of every step: each phase's batches for its share of the steps."""
    import torch

    order, noise = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    # Ends are rounded, not lengths, so that the phases' whole steps add up to all steps.
    ends = np.round(np.cumsum([phase.share for phase in phases]) * training.steps).astype(int)
    for phase, steps in zip(phases, np.diff(ends, prepend=0), strict=True):
        rows = _rows(phase, training.batch_size, order)
        for _ in range(steps):
            batch = next(rows)
            labels = torch.from_numpy(phase.labels[batch])
            yield _batch(phase, batch, training.architecture, noise), labels


def _rows(phase: Phase, batch_size: int, order: np.random.Generator) -> Iterator[np.ndarray]:
    """Endless batches of rows: shuffled passes over all, or each class equally often."""
    if not phase.balanced:
        yield from shuffled_rows(len(phase.labels), batch_size, order)
    rows_of_class = [np.flatnonzero(phase.labels == label) for label in np.unique(phase.labels)]
    while True:
        classes = order.integers(0, len(rows_of_class), batch_size)
        yield np.array([order.choice(rows_of_class[i]) for i in classes])


def _batch(phase: Phase, rows: np.ndarray, architecture: Architecture, noise: Any) -> Any:
    """These rows, float [b, ...]: augmented for the CNN; a random view for a backbone."""
    import torch

    if architecture == "cnn":
        return augmented(grey_tensor(phase.inputs[rows, 0]), phase.augmentation, noise)
    view = torch.randint(0, phase.inputs.shape[1], (len(rows),), generator=noise).numpy()
    return torch.from_numpy(phase.inputs[rows, view])


def _network(architecture: Architecture, classes: int) -> Any:
    """The trainable part, with random weights."""
    from torch import nn

    if architecture == "efficientnet-lite0":
        from busray.vision.efficientnet import FEATURES

        # Strong dropout: 1,280 features of a few hundred images are easily learned by heart.
        layers = [nn.BatchNorm1d(FEATURES, affine=False), nn.Dropout(0.5), nn.Linear(FEATURES, classes)]
        return nn.Sequential(*layers)
    layers, inside = [nn.BatchNorm2d(1)], 1
    for outside in (16, 32, 64, 128):
        layers += [nn.Conv2d(inside, outside, 3, padding=1, bias=False)]  # the norm has the bias
        layers += [nn.BatchNorm2d(outside), nn.ReLU(), nn.MaxPool2d(2)]
        inside = outside
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(inside, classes)]
    return nn.Sequential(*layers)


def _logits(network: Any, inputs: np.ndarray, architecture: Architecture, beat: Callable[[], None]) -> np.ndarray:
    """float64 [n, classes] of the images themselves (view 0)."""
    import torch

    network.eval()
    convert = grey_tensor if architecture == "cnn" else torch.from_numpy
    batches = []
    with torch.inference_mode():
        for at in range(0, len(inputs), 256):
            batches.append(network(convert(inputs[at : at + 256, 0])))
            beat()
    return torch.cat(batches).double().numpy()


def predict(classifier: Classifier, inputs: np.ndarray, beat: Callable[[], None] = lambda: None) -> np.ndarray:
    """Calibrated probabilities float64 [n, classes] of inputs from `represent`."""
    network = _network(classifier.architecture, classifier.classes)
    load_weights(network, classifier.weights)
    if not len(inputs):
        return np.zeros((0, classifier.classes))
    return softmax(_logits(network, inputs, classifier.architecture, beat) / classifier.chosen.temperature)


def probabilities(classifier: Classifier, pixels: np.ndarray, beat: Callable[[], None] = lambda: None) -> np.ndarray:
    """Calibrated probabilities float64 [n, classes] of images uint8 [n, s, s]."""
    return predict(classifier, represent(pixels, classifier.architecture, beat=beat), beat)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities [n, classes] of logits [n, classes]."""
    shifted = np.exp(logits - logits.max(1, keepdims=True))  # no exponent is above 0: no overflow
    return shifted / shifted.sum(1, keepdims=True)


def negative_log_likelihood(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean over images, in nats, of logits [n, classes]."""
    shifted = logits - logits.max(1, keepdims=True)
    return float((np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(labels)), labels]).mean())


def calibrate(logits: np.ndarray, labels: np.ndarray) -> float:
    """The T that makes softmax(logits / T) most likely (Guo et al. 2017, arXiv 1706.04599).

    The likelihood is concave in 1 / T, so its slope is bisected; where it has no maximum, COLDEST
    or HOTTEST.
    """
    truth = logits[np.arange(len(labels)), labels]
    low, high = 1 / HOTTEST, 1 / COLDEST
    for _ in range(60):  # halves 1 / T's interval to below double precision
        middle = (low + high) / 2
        slope = ((softmax(middle * logits) * logits).sum(1) - truth).mean()
        low, high = (middle, high) if slope < 0 else (low, middle)
    return 2 / (low + high)
