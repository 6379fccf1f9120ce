"""Figures of lesions: an arm whose lesions are too large, one that is right, a class without
lesions."""

import numpy as np

from busray.evidence.lesions import DiceScores, dice_figures, geometry_figures
from busray.evidence.real import RealFeatures
from busray.records import Figure
from busray.vision.lesion_shape import NAME, TRUE


def lesion_rows(rng: np.random.Generator, n: int, area: float, lesions: float = 1.0) -> np.ndarray:
    """float32 [n, 4] as `measures` gives, a share of them with lesions."""
    found = np.column_stack(
        [np.ones(n), rng.uniform(0.8, 1.2, n) * area, rng.uniform(0.5, 1.3, n), rng.uniform(0.8, 1, n)]
    )
    found[round(lesions * n) :] = [0, np.nan, np.nan, np.nan]
    return found.astype(np.float32)


def lesion_figures() -> list[Figure]:
    """An arm whose benign lesions are too large and one that is right; normal images without
    lesions."""
    rng = np.random.default_rng(8)

    def real(extractor: str, area: float) -> RealFeatures:
        features = {
            split: {"benign": lesion_rows(rng, n, area, 0.9), "normal": lesion_rows(rng, n, area, 0)}
            for split, n in (("train", 40), ("val", 20), ("test", 30))
        }
        units = {
            split: {name: np.array([f"{split} {i}" for i in range(len(found))]) for name, found in by.items()}
            for split, by in features.items()
        }
        return RealFeatures(features, units, extractor, "letterbox", 128)

    arms = {
        "base": {"benign": lesion_rows(rng, 25, 0.2), "normal": lesion_rows(rng, 25, 0.2, 0)},
        "lora+ti": {"benign": lesion_rows(rng, 25, 0.1, 0.8), "normal": lesion_rows(rng, 25, 0.1, 0)},
    }
    scored = DiceScores(rng.uniform(0.4, 0.9, 30), np.array(["benign"] * 30), np.arange(30).astype(str), trained_on=80)
    truth = real(TRUE, 0.11)
    return [*dice_figures(scored, "letterbox", 128), *geometry_figures(arms, real(NAME, 0.1), truth, "test")]
