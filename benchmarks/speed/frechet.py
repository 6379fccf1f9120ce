"""Frechet distance of 2,048 features against scipy's matrix root, as pytorch-fid computes it."""

import numpy as np
import scipy.linalg
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from benchmarks.speed.contest import Contest
from busray.evidence.stats.frechet import Moments, frechet

WIDTH = 2048
FEW, FULL = 780, 2500
"""Rows a side: BUSI's images, and more than there are features."""


def questions() -> list[Contest]:
    return [_contest(FEW, 40), _contest(FULL, 8)]


def _contest(rows: int, goal: float) -> Contest:
    rng = np.random.default_rng(0)
    # Inception's features are not independent and not negative
    mixing = rng.standard_normal((WIDTH, WIDTH)) / WIDTH**0.5
    samples = []
    for shift in (0.0, 0.1):
        samples.append(np.abs(rng.standard_normal((rows, WIDTH)) @ mixing + shift).astype(np.float32))

    def ours() -> float:
        return frechet(Moments.of(samples[0]), Moments.of(samples[1]))

    def rival() -> float:
        a, b = samples[0].astype(np.float64), samples[1].astype(np.float64)
        covariances = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
        root = scipy.linalg.sqrtm(covariances[0] @ covariances[1])
        gap = a.mean(0) - b.mean(0)
        return float(gap @ gap + np.trace(covariances[0] + covariances[1]) - 2 * np.trace(root).real)

    def same() -> str:
        import torch

        statistics = [fid_features_to_statistics(torch.from_numpy(sample)) for sample in samples]
        reference = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
        mine, scipys = ours(), rival()
        differing = abs(mine - reference) / reference
        assert differing <= 1e-5, (mine, reference)
        return f"{differing:.0e} of torch-fidelity's; scipy's differs by {abs(scipys - reference) / reference:.0e}"

    return Contest(f"Frechet distance, {rows} rows a side", "busray", "scipy sqrtm", ours, rival, goal, same)
