"""An ablation's settings and features of real images, of two classes far apart."""

from typing import Any

import numpy as np

from busray.config import Config
from busray.config_file import validate
from busray.evidence.nearness import reconstruction_figures
from busray.evidence.real import RealFeatures
from busray.records import INCEPTION, Figure


def config(**changes: Any) -> Config:
    tree: dict[str, Any] = {
        "output": "runs/mine/",
        "dataset": {"path": "data"},
        "classes": {"benign": {"images": 40}, "malignant": {"images": 24}},
        "sampling": {"steps": 20, "guidance_scale": 2.0},
        "refine": {"steps": 20, "strength": 0.3, "guidance_scale": 2.0},
        "evaluate": {"arms": ["base"]},
        "ablate": {"strengths": [0.3, 0.5], "guidance_scales": [2.0, 4.0]},
    }
    for key, value in changes.items():
        tree[key] = {**tree.get(key, {}), **value} if isinstance(value, dict) else value
    return validate(tree)


def draws(n: int, seed: int, shift: float = 0.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((n, 8)) + shift).astype(np.float32)


def real_draws() -> RealFeatures:
    sizes = {"train": 30, "val": 10, "test": 14}
    features = {split: {"b": draws(n, n), "m": draws(n, n + 1, 3.0)} for split, n in sizes.items()}
    units = {split: {name: np.arange(len(rows)) for name, rows in by.items()} for split, by in features.items()}
    return RealFeatures(features, units, INCEPTION, "letterbox", 64)


def through_the_autoencoder(real: RealFeatures, arm: str, split: str, n: int, noise: float = 0.1) -> list[Figure]:
    images = {name: rows[:n] + noise * draws(n, 7) for name, rows in real.features[split].items()}
    units = {name: labels[:n] for name, labels in real.units[split].items()}
    return reconstruction_figures({arm: images}, real, "test", {arm: units})
