"""An ablation's evidence beyond arm_figures: nearness to the training images, sweep curves, sentences, its page.

Pure: features and records in, records and text out. Copying and class drift are told from the nearest training image in
feature space only. TODO of nobody: a copy test or a classifier that judges images adds Figures of its own.
"""

import base64
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from busray.quality.figures import REAL, Features
from busray.quality.kernel import QUANTILE
from busray.quality.neighbours import nearest
from busray.quality.report import report_html
from busray.quality.tables import NONE, Json
from busray.records import CLASS_ALL, Figure

DISTANCE, SAME_CLASS = "nearest_train_distance", "nearest_train_class"
"""Median distance to the nearest training image; share of images whose nearest training image is of their class."""


# ---- figures --------------------------------------------------------------------------------------------------------


def nearness_figures(
    arms: Mapping[str, Features], real: Mapping[str, Features], held_out: str, extractor: str
) -> list[Figure]:
    """DISTANCE and SAME_CLASS of each arm, overall and a class, and as floor those of the real images of `held_out`.

    The nearest one is looked for among the training images of all classes, for every arm the same ones, so that arms
    are comparable whatever their n. The intervals are over drawn images, with the training images as they are; the
    real images have none, since near-duplicates among them are not independent.
    """
    classes = sorted(real["train"])
    train = np.concatenate([real["train"][name] for name in classes])
    owners = np.repeat(np.arange(len(classes)), [len(real["train"][name]) for name in classes])
    figures = []
    sides = [(arm, images, "synthetic-only", "") for arm, images in arms.items()]
    for arm, images, protocol, end in [*sides, (f"{REAL} {held_out}", real[held_out], "real-against-real", "_floor")]:
        distances, same = {}, {}
        for name in sorted(images):
            index, distances[name] = nearest(images[name], train)
            same[name] = owners[index] == classes.index(name)
        for name in (CLASS_ALL, *sorted(images)):
            d = np.concatenate(list(distances.values())) if name == CLASS_ALL else distances[name]
            s = np.concatenate(list(same.values())) if name == CLASS_ALL else same[name]
            common = (len(d), len(train), "train", protocol, extractor, name, arm)
            intervals = (None, None) if end else (median_interval(d), share_interval(int(s.sum()), len(s)))
            figures.append(Figure(DISTANCE + end, float(np.median(d)), intervals[0], *common))
            figures.append(Figure(SAME_CLASS + end, float(s.mean()), intervals[1], *common))
    return figures


def median_interval(values: np.ndarray) -> tuple[float, float] | None:
    """Distribution-free interval of the median of at least 95 % between two order statistics; None below 6 values."""
    n = len(values)
    below, tail = 0, 0.5**n  # tail: P(binomial(n, 1/2) <= below)
    if tail > 0.025:
        return None
    while (more := tail + math.exp(math.log(math.comb(n, below + 1)) - n * math.log(2))) <= 0.025:
        below, tail = below + 1, more
    ordered = np.sort(values)
    return float(ordered[below]), float(ordered[n - 1 - below])


def share_interval(hits: int, n: int) -> tuple[float, float]:
    """Wilson's (1927) 95 % interval of a share."""
    share, z2 = hits / n, QUANTILE**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = QUANTILE / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)
