"""Classifiers of ultrasound images: fitted on the train split, chosen and calibrated on val, and nothing else.

Two architectures, so that one can judge the other: `cnn` is small and starts from random weights, `efficientnet-lite0`
is a linear classifier on frozen ImageNet features. Every fit runs the same number of optimiser steps whatever the
number of images, so that training sets can be compared. On the CPU; the same seed and threads give the same weights.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from busray.identity import canonical_json

Augmentation = Literal["mirror", "classical"]


Architecture = Literal["cnn", "efficientnet-lite0"]


SIDE = 64
"""Pixels a side that the CNN sees."""


CHECKS = 10
"""Times in a fit at which val is looked at; the best of them is kept."""


VIEWS = 8
"""Augmented copies that a frozen backbone sees of each image under `classical`; under `mirror` there are two."""


WEIGHT_DECAY = 1e-2


WARMUP = 0.05
"""Share of the steps in which the learning rate rises to its value; it falls to 0 as a cosine after."""


COLDEST, HOTTEST = 0.05, 20.0
"""Temperatures of calibration."""


@dataclass(frozen=True)
class Training:
    """How every classifier of a comparison is trained; each learning rate is tried and val chooses."""

    architecture: Architecture
    steps: int
    batch_size: int
    learning_rates: tuple[float, ...]


@dataclass(frozen=True)
class Phase:
    """Images that a share of the steps is spent on. inputs [n, views, ...] from `represent`, labels int [n]."""

    inputs: np.ndarray
    labels: np.ndarray
    share: float = 1.0
    augmentation: Augmentation = "mirror"
    balanced: bool = False
    """Draw every class equally often, instead of every image."""


@dataclass(frozen=True)
class Trial:
    """One look at val during training: calibrated negative log-likelihood and accuracy there."""

    learning_rate: float
    step: int
    temperature: float
    nll: float
    accuracy: float


@dataclass(frozen=True)
class Classifier:
    """A fitted network. `weights` by tensor name; `trials` are all looks at val, `chosen` the one that was kept."""

    architecture: Architecture
    classes: int
    weights: dict[str, np.ndarray]
    chosen: Trial
    trials: tuple[Trial, ...]

    def to_bytes(self) -> bytes:
        """All that predictions follow from, as safetensors; the same classifier gives the same bytes."""
        from safetensors.numpy import save

        about = {"architecture": self.architecture, "classes": self.classes, "chosen": asdict(self.chosen)}
        return save(self.weights, {"classifier": canonical_json(about)})

    @staticmethod
    def from_bytes(data: bytes) -> "Classifier":
        """The looks at val that were not kept are not in the bytes."""
        from safetensors.numpy import load

        length = int.from_bytes(data[:8], "little")
        about = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["classifier"])
        chosen = Trial(**about["chosen"])
        return Classifier(about["architecture"], about["classes"], load(data), chosen, (chosen,))


def represent(
    pixels: np.ndarray,
    architecture: Architecture,
    augmentation: Augmentation | None = None,
    seed: int = 0,
    beat: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """uint8 [n, s, s] -> what the architecture's trainable part takes, [n, views, ...]; view 0 is the image itself.

    A frozen backbone sees the augmented views here, once; the CNN makes its own at every step, so it has one view.
    beat is called after each view that is made and each batch that the backbone sees.
    """
    if pixels.ndim != 3 or pixels.dtype != np.uint8:
        raise TypeError(f"a classifier takes uint8 [n, s, s], not {pixels.dtype} {list(pixels.shape)}")
    if architecture == "cnn":
        return _shrunk(pixels)[:, None]
    import torch

    from busray.vision.efficientnet import features

    views = [pixels]
    if augmentation == "mirror":
        views.append(pixels[:, :, ::-1])
    elif augmentation == "classical":
        noise = torch.Generator().manual_seed(seed)
        grey = torch.from_numpy(pixels)[:, None].float() / 255
        for _ in range(VIEWS - 1):
            views.append(_bytes(augmented(grey, augmentation, noise)))
            beat()
    return np.stack([features(view, beat) for view in views], axis=1)


def _bytes(grey: Any) -> np.ndarray:
    return (grey[:, 0] * 255).round().clamp(0, 255).byte().numpy()


def _shrunk(pixels: np.ndarray) -> np.ndarray:
    """uint8 [n, SIDE, SIDE], each pixel the mean of those it covers."""
    import torch
    from torch.nn import functional

    if pixels.shape[1:] == (SIDE, SIDE) or not len(pixels):
        return pixels.reshape(-1, SIDE, SIDE)
    grey = torch.from_numpy(np.ascontiguousarray(pixels))[:, None].float()
    return functional.adaptive_avg_pool2d(grey, SIDE)[:, 0].round().byte().numpy()


def augmented(grey: Any, augmentation: Augmentation, noise: Any) -> Any:
    """float [n, 1, s, s] in 0..1 -> the same shape, from a torch.Generator.

    mirror: left and right, every second time. classical: also turned up to 10 degrees, moved up to a tenth, scaled by
    0.9 to 1.1, gain 0.8 to 1.2, gamma 0.8 to 1.25; an ultrasound image is never upside down.
    """
    if augmentation == "mirror":
        import torch

        return torch.where(_flips(len(grey), noise)[:, None, None, None] < 0, grey.flip(3), grey)
    return toned(moved(grey, noise), noise)


def moved(images: Any, noise: Any) -> Any:
    """float [n, c, s, s] -> the same shape, mirrored, turned, moved and scaled as under `classical`; 0 where nothing
    was."""
    import torch
    from torch.nn import functional

    n = len(images)
    flips = _flips(n, noise)
    angle, scale = _uniform(n, -10, 10, noise).deg2rad(), _uniform(n, 0.9, 1.1, noise)
    cos, sin = angle.cos() / scale, angle.sin() / scale
    right, down = _uniform(n, -0.2, 0.2, noise), _uniform(n, -0.2, 0.2, noise)
    affine = torch.stack([cos * flips, -sin, right, sin * flips, cos, down], 1)
    places = functional.affine_grid(affine.view(n, 2, 3), list(images.shape), align_corners=False)
    return functional.grid_sample(images, places, padding_mode="zeros", align_corners=False)


def toned(grey: Any, noise: Any) -> Any:
    """float [n, 1, s, s] in 0..1 -> the same, gain and gamma as under `classical`."""
    n = len(grey)
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
    looked: Callable[[], None] = lambda: None,
) -> Classifier:
    """Train on the phases in turn; keep the learning rate and step whose calibrated likelihood on val is best.

    val: (inputs [n, views, ...], labels [n]). beat is called after every optimiser step and every
    batch of val, looked after each look at val.
    """
    if not np.isclose(sum(phase.share for phase in phases), 1):
        raise ValueError("the phases' shares of the steps do not add up to 1")
    best: tuple[Trial, dict[str, np.ndarray]] | None = None
    trials: list[Trial] = []
    for rate in training.learning_rates:
        for trial, weights in _train(phases, val, classes, training, rate, seed, beat):
            trials.append(trial)
            if best is None or trial.nll < best[0].nll:
                best = trial, weights()
            looked()
    assert best is not None
    return Classifier(training.architecture, classes, best[1], best[0], tuple(trials))


def _train(
    phases: Sequence[Phase],
    val: tuple[np.ndarray, np.ndarray],
    classes: int,
    training: Training,
    rate: float,
    seed: int,
    beat: Callable[[], None],
) -> Any:
    """Yields (trial, its weights' copy on demand) at each look at val."""
    import torch
    from torch.nn import functional

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _network(training.architecture, classes)
        optimiser = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=WEIGHT_DECAY)
        order, noise = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
        plan = _steps(phases, training.steps)
        looks = {round(training.steps * (i + 1) / CHECKS) for i in range(CHECKS)}
        done = 0
        for phase, steps in zip(phases, plan, strict=True):
            rows = _rows(phase, training.batch_size, order)
            for _ in range(steps):
                picked = next(rows)
                network.train()
                for group in optimiser.param_groups:
                    group["lr"] = rate * _schedule(done / training.steps)
                batch = _batch(phase, picked, training.architecture, noise)
                loss = functional.cross_entropy(network(batch), torch.from_numpy(phase.labels[picked]))
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                done += 1
                beat()
                if done in looks:
                    logits = _logits(network, val[0], training.architecture, beat)
                    temperature = calibrate(logits, val[1])
                    nll = negative_log_likelihood(logits / temperature, val[1])
                    accuracy = float((logits.argmax(1) == val[1]).mean())
                    yield Trial(rate, done, temperature, nll, accuracy), lambda: _copied(network)


def _copied(network: Any) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy().copy() for name, tensor in network.state_dict().items()}


def _steps(phases: Sequence[Phase], total: int) -> list[int]:
    """Whole steps of each phase: they add up to total."""
    ends = np.round(np.cumsum([phase.share for phase in phases]) * total).astype(int)
    return np.diff(ends, prepend=0).tolist()


def _schedule(progress: float) -> float:
    return min(progress / WARMUP + 1e-3, 1.0) * 0.5 * (1 + float(np.cos(np.pi * progress)))


def _rows(phase: Phase, batch_size: int, order: np.random.Generator) -> Any:
    """Endless batches of rows: shuffled passes over all images, or as many of each class in the long run."""
    if phase.balanced:
        members = [np.flatnonzero(phase.labels == label) for label in np.unique(phase.labels)]
        while True:
            picked = order.integers(0, len(members), batch_size)
            yield np.array([order.choice(members[i]) for i in picked])
    waiting = np.zeros(0, np.int64)
    while True:
        while len(waiting) < batch_size:
            waiting = np.concatenate([waiting, order.permutation(len(phase.labels))])
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]


def _batch(phase: Phase, rows: np.ndarray, architecture: Architecture, noise: Any) -> Any:
    import torch

    if architecture == "cnn":
        return augmented(_grey(phase.inputs[rows, 0]), phase.augmentation, noise)
    view = torch.randint(0, phase.inputs.shape[1], (len(rows),), generator=noise).numpy()
    return torch.from_numpy(phase.inputs[rows, view])


def _grey(pixels: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(pixels))[:, None].float() / 255


def _network(architecture: Architecture, classes: int) -> Any:
    """The trainable part, with random weights."""
    from torch import nn

    if architecture == "efficientnet-lite0":
        from busray.vision.efficientnet import FEATURES

        return nn.Sequential(nn.BatchNorm1d(FEATURES, affine=False), nn.Dropout(0.5), nn.Linear(FEATURES, classes))
    layers, inside = [nn.BatchNorm2d(1)], 1
    for outside in (16, 32, 64, 128):
        layers += [nn.Conv2d(inside, outside, 3, padding=1, bias=False), nn.BatchNorm2d(outside), nn.ReLU()]
        layers += [nn.MaxPool2d(2)]
        inside = outside
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(inside, classes))


def _logits(network: Any, inputs: np.ndarray, architecture: Architecture, beat: Callable[[], None]) -> np.ndarray:
    """float64 [n, classes] of the images themselves (view 0)."""
    import torch

    network.eval()
    batches = []
    with torch.inference_mode():
        for at in range(0, len(inputs), 256):
            images = inputs[at : at + 256, 0]
            batches.append(network(_grey(images) if architecture == "cnn" else torch.from_numpy(images)))
            beat()
    return torch.cat(batches).double().numpy()


def predict(classifier: Classifier, inputs: np.ndarray, beat: Callable[[], None] = lambda: None) -> np.ndarray:
    """Calibrated probabilities float64 [n, classes] of inputs from `represent`. beat is called after each batch."""
    import torch

    network = _network(classifier.architecture, classifier.classes)
    network.load_state_dict({name: torch.from_numpy(value) for name, value in classifier.weights.items()})
    if not len(inputs):
        return np.zeros((0, classifier.classes))
    return softmax(_logits(network, inputs, classifier.architecture, beat) / classifier.chosen.temperature)


def probabilities(classifier: Classifier, pixels: np.ndarray, beat: Callable[[], None] = lambda: None) -> np.ndarray:
    """Calibrated, float64 [n, classes], of images uint8 [n, s, s]. beat is called after each batch."""
    return predict(classifier, represent(pixels, classifier.architecture, beat=beat), beat)


def softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


def negative_log_likelihood(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean over images, in nats, of logits [n, classes]."""
    shifted = logits - logits.max(1, keepdims=True)
    return float((np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(labels)), labels]).mean())


def calibrate(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature T that makes softmax(logits / T) most likely (Guo et al. 2017, arXiv 1706.04599).

    The likelihood is concave in 1 / T, so its slope is bisected; where it has no maximum, COLDEST or HOTTEST.
    """
    truth = logits[np.arange(len(labels)), labels]
    low, high = 1 / HOTTEST, 1 / COLDEST
    for _ in range(60):
        middle = (low + high) / 2
        slope = ((softmax(middle * logits) * logits).sum(1) - truth).mean()
        low, high = (middle, high) if slope < 0 else (low, middle)
    return 2 / (low + high)
