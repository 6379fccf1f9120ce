"""Precision, recall, density and coverage are their definitions, and say what they should of
planted faults."""

import numpy as np
import pytest

from busray.evidence.stats import neighbours
from busray.evidence.stats.neighbours import Neighbourhood, nearest, neighbourhood


def sample(n: int, seed: int, shift: float = 0.0, d: int = 8) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((n, d)) + shift).astype(np.float32)


def brute_force(images: np.ndarray, reference: np.ndarray, k: int) -> Neighbourhood:
    """By the papers' definitions, pair by pair."""
    x, y = images.astype(np.float64), reference.astype(np.float64)

    def radius(z: np.ndarray, i: int) -> float:
        return sorted(float(np.linalg.norm(z[i] - z[j])) for j in range(len(z)) if j != i)[k - 1]

    image_radii = [radius(x, i) for i in range(len(x))]
    reference_radii = [radius(y, i) for i in range(len(y))]
    distance = np.array([[np.linalg.norm(a - b) for b in y] for a in x])
    in_reference = distance <= np.array(reference_radii)[None]
    in_images = distance <= np.array(image_radii)[:, None]
    return Neighbourhood(
        in_reference.any(1).mean(),
        in_images.any(0).mean(),
        in_reference.sum() / (k * len(x)),
        in_reference.any(0).mean(),
    )


@pytest.mark.parametrize("block", [7, 512])
def test_they_are_the_definition_pair_by_pair_in_blocks_of_any_size(
    monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(neighbours, "DISTANCE_ROWS", block)
    for k, shift in ((1, 0.0), (3, 0.8), (5, 0.4)):
        x, y = sample(30, 1, shift), sample(23, 2)
        ours, theirs = neighbourhood(x, y, k), brute_force(x, y, k)
        for name in ("precision", "recall", "density", "coverage"):
            assert getattr(ours, name) == pytest.approx(getattr(theirs, name), abs=1e-12), name


def test_one_distribution_has_density_1_and_the_coverage_of_naeem_et_al() -> None:
    """Their closed form where n = m: coverage is 1 - ((m - 1) ... (m - k)) / ((2m - 1) ... (2m
    - k))."""
    m, k = 60, 5
    found = [neighbourhood(sample(m, 2 * i), sample(m, 2 * i + 1), k) for i in range(200)]
    expected = 1 - np.prod([(m - j) / (2 * m - j) for j in range(1, k + 1)])
    coverage = np.array([f.coverage for f in found])
    density = np.array([f.density for f in found])
    assert abs(coverage.mean() - expected) < 4 * coverage.std() / np.sqrt(200)
    assert abs(density.mean() - 1) < 4 * density.std() / np.sqrt(200)


def test_a_lost_mode_costs_recall_and_coverage_and_not_precision() -> None:
    real = np.concatenate([sample(60, 1), sample(60, 2, 9.0)])
    one_mode = sample(120, 3)
    whole, lost = (
        neighbourhood(np.concatenate([sample(60, 4), sample(60, 5, 9.0)]), real),
        neighbourhood(one_mode, real),
    )
    assert lost.coverage <= 0.5 and lost.recall <= 0.5 and lost.precision > 0.8
    assert whole.coverage > 0.9


def test_images_far_off_have_none_of_it() -> None:
    assert neighbourhood(sample(20, 1, 50.0), sample(20, 2)) == Neighbourhood(0, 0, 0, 0)


def test_the_nearest_is_found_though_features_lie_far_from_zero() -> None:
    reference = sample(700, 1) + 1e4
    order = np.random.default_rng(3).permutation(700)
    index, distance = nearest(reference[order], reference)
    assert np.array_equal(index, order) and distance.max() < 1e-3
    other, distance = nearest(sample(40, 4), sample(30, 5))
    every = np.linalg.norm(sample(40, 4)[:, None].astype(float) - sample(30, 5)[None], axis=2)
    assert np.array_equal(other, every.argmin(1)) and np.allclose(distance, every.min(1))


def test_too_few_images_for_the_neighbour_are_refused() -> None:
    with pytest.raises(ValueError, match="5-th neighbour"):
        neighbourhood(sample(5, 1), sample(20, 2))
