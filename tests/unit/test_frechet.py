"""Every route to the Frechet distance gives one number, torch-fidelity's, and moments merge in any order."""

import numpy as np
import pytest

from busray.quality.frechet import Moments, frechet, frechet_between, frechet_to

D = 128


def features(n: int, seed: int, shift: float = 0.0) -> np.ndarray:
    """Correlated, skewed, non-negative features as a network's are; float32 [n, D]."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(0).standard_normal((D, D)) / np.sqrt(D)
    return np.abs(rng.standard_normal((n, D)) @ mixing + shift).astype(np.float32)


@pytest.mark.parametrize(("n", "m"), [(300, 260), (300, 40), (30, 40), (30, 300)])
def test_the_exact_routes_agree_to_1e_7(n: int, m: int) -> None:
    a, b = features(n, 1), features(m, 2, shift=0.2)
    full = frechet(Moments.of(a), Moments.of(b))
    assert frechet_to(b, Moments.of(a)) == pytest.approx(full, rel=1e-7)
    assert frechet_between(a, b) == pytest.approx(full, rel=1e-7)


@pytest.mark.parametrize(("n", "m"), [(300, 260), (30, 40)])
def test_it_is_torch_fidelitys_number_to_1e_5(n: int, m: int) -> None:
    import torch
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    a, b = features(n, 1), features(m, 2, shift=0.2)
    theirs = fid_statistics_to_metric(*(fid_features_to_statistics(torch.from_numpy(x)) for x in (a, b)), False)
    assert frechet_to(b, Moments.of(a)) == pytest.approx(theirs["frechet_inception_distance"], rel=1e-5)


def test_gaussians_with_a_known_distance_have_it() -> None:
    rng = np.random.default_rng(3)
    white = rng.standard_normal((400, 4))
    white = (white - white.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(white, rowvar=False))).T
    other = white * [1, 2, 3, 4] + [1, 0, 0, 0]
    assert frechet_between(white, other) == pytest.approx(1 + 0 + 1 + 4 + 9)


def test_images_against_themselves_are_at_distance_0() -> None:
    a = features(50, 1)
    assert frechet_to(a, Moments.of(a)) == pytest.approx(0, abs=1e-6)


def test_moments_merge_in_any_order_to_those_of_all_images() -> None:
    parts = [features(n, seed) for seed, n in enumerate((1, 7, 30, 2))]
    whole = Moments.of(np.concatenate(parts))
    for order in ((0, 1, 2, 3), (3, 1, 0, 2), (2, 3, 1, 0)):
        merged = Moments.of(parts[order[0]])
        for i in order[1:]:
            merged = merged.merge(Moments.of(parts[i]))
        assert merged.n == whole.n
        np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-12)
        np.testing.assert_allclose(merged.covariance(), whole.covariance(), rtol=1e-9, atol=1e-12)


def test_a_large_common_offset_costs_no_precision() -> None:
    a, b = features(60, 1).astype(np.float64), features(50, 2, shift=0.2).astype(np.float64)
    moved = frechet(Moments.of(a + 1e4).merge(Moments.of(a[:20] + 1e4)), Moments.of(b + 1e4))
    assert moved == pytest.approx(frechet(Moments.of(np.concatenate([a, a[:20]])), Moments.of(b)), rel=1e-7)


def test_features_that_are_not_finite_are_refused() -> None:
    a = features(5, 1)
    a[2, 3] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        Moments.of(a)


def test_one_image_has_no_covariance() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        frechet_to(features(5, 1), Moments.of(features(1, 2)))
