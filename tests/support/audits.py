"""A copy audit's measurements as tests need them: a corpus with planted copies."""

import numpy as np

from busray.evidence.audit import AuditEvidence, tally
from busray.evidence.copies import KINDS, SEARCH_ROW

TRAINING = 8


def rows(rng: np.random.Generator, n: int, first: int = 0) -> np.ndarray:
    """FOUND rows of images that copy nothing."""
    found = np.zeros(n, SEARCH_ROW)
    found["index"] = np.arange(first, first + n)
    for kind in KINDS:
        found[f"{kind}_score"] = rng.gumbel(0.1, 0.02, n)
        found[f"{kind}_of"] = rng.integers(0, TRAINING, n)
    return found


def evidence(rng: np.random.Generator, copies: dict[int, int], missed: int = 0) -> AuditEvidence:
    """Of two classes of 5,000 images in five shards each.

    copies: index among the benign -> training image copied. missed: exact planted copies, of 20,
    that the search does not find. Held-out images are in units of three.
    """
    held_out, shards = rows(rng, 300), []
    for name in ("benign", "malignant"):
        for first in range(0, 5000, 1000):
            found = rows(rng, 1000, first)
            for index, original in copies.items() if name == "benign" else ():
                if first <= index < first + 1000:
                    found["image_score"][index - first], found["image_of"][index - first] = 0.9, original
            shards.append((name, found))
    planted = rows(rng, 20)
    planted["lesion_score"][:15] = 0.8
    identical = rows(rng, 20)
    identical["image_score"][missed:] = 1.0
    units = np.array([f"cluster {i // 3}" for i in range(300)])
    counted = tally(held_out, {"benign": 5000, "malignant": 5000}, shards)
    copied = {"identical": identical, "blurred": planted}
    return AuditEvidence(counted, held_out, units, copied, (3, 400), TRAINING, "lora+ti", "letterbox", 128)
