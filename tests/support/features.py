"""Features of real images and of two arms, one close to them and one far."""

import numpy as np

from busray.evidence.real import RealFeatures
from busray.records import INCEPTION


def features(n: int, seed: int, shift: float = 0.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((n, 12)) + shift).astype(np.float32)


def independent(images: dict[str, dict[str, np.ndarray]], extractor: str = INCEPTION) -> RealFeatures:
    """Real images that are independent of each other."""
    units = {
        split: {name: np.array([f"{split} {name} {i}" for i in range(len(rows))]) for name, rows in by.items()}
        for split, by in images.items()
    }
    return RealFeatures(images, units, extractor, "letterbox", 64)


def real_features() -> RealFeatures:
    sizes = {"train": 30, "val": 6, "test": 12}
    return independent({split: {"b": features(n, n), "m": features(n // 2, n + 1, 1.0)} for split, n in sizes.items()})


def arm_features() -> dict[str, dict[str, np.ndarray]]:
    return {
        "base": {"b": features(20, 5, 2.0), "m": features(20, 6, 3.0)},
        "lora+ti": {"b": features(20, 5, 0.2), "m": features(20, 6, 1.2)},
    }
