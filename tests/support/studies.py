"""A study's outcome with made-up predictions."""

import numpy as np

from busray.config import Primary
from busray.evidence.study import StudyResults

ARMS = ("real", "synthetic@0.5", "synthetic@1", "mixed@0.5", "mixed@1", "real+balanced")
SKILL = {"synthetic@0.5": 0.3, "synthetic@1": 0.4, "mixed@1": 0.95}
GATED = (*ARMS[:5], "ungated@0.5", "ungated@1", ARMS[5])


def outcome(
    classes: tuple[str, ...] = ("benign", "malignant"), external: bool = False, arms: tuple[str, ...] = ARMS
) -> StudyResults:
    """Two trainings an arm, 60 test images in 30 clusters; `mixed@1` is better than all,
    `synthetic` worse."""
    draw = np.random.default_rng(3)
    labels = np.arange(60) // 2 % 2

    def predictions(arm: str, truth: np.ndarray) -> np.ndarray:
        right = draw.random((2, len(truth))) < SKILL.get(arm, 0.7)
        sure = np.eye(2)[np.where(right, truth, 1 - truth)]
        return 0.9 * sure + 0.1 * draw.dirichlet([1, 1], sure.shape[:2])

    sets = {"test": labels} | ({"external": np.zeros(8, np.int64)} if external else {})
    return StudyResults(
        classes=classes,
        architecture="cnn",
        frame="letterbox",
        size=64,
        primary=Primary(metric="macro_f1", arm="mixed@1"),
        images={arm: 100 + 10 * i for i, arm in enumerate(arms)},
        labels=sets,
        units={name: np.arange(len(truth)) // 2 for name, truth in sets.items()},
        probabilities={name: {arm: predictions(arm, truth) for arm in arms} for name, truth in sets.items()},
        tasks=12,
        seconds=1.0,
    )
