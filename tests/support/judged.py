"""What a judge sees in a few images of two classes, and a class gate's record."""

import numpy as np

from busray.evidence.real import RealFeatures

NAMES = ["benign", "malignant"]


def said(*labels: int) -> np.ndarray:
    """Probabilities of a judge that is rather sure."""
    return np.eye(2)[list(labels)] * 0.8 + 0.1


def real(benign: tuple[int, ...], malignant: tuple[int, ...]) -> RealFeatures:
    """What the judge says of real test images, each its own patient."""
    test = {"benign": said(*benign), "malignant": said(*malignant)}
    train = {"benign": said(*[0] * 30), "malignant": said(*[1] * 20)}
    units = {
        split: {name: np.array([f"{name} {i}" for i in range(len(rows))]) for name, rows in by.items()}
        for split, by in (("train", train), ("test", test))
    }
    return RealFeatures({"train": train, "test": test}, units, "cnn", "letterbox", 128)


SEVEN_OF_TEN = (0,) * 7 + (1,) * 3, (1,) * 7 + (0,) * 3


RECORD = {
    "architecture": "efficientnet-lite0",
    "images": {"train": 50, "val": 10, "test": 20},
    "test": {"all": {"value": 0.8, "interval": [0.6, 0.9], "n": 20}},
}
