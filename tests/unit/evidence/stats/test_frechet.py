"""The Frechet distance is that of a float64 SVD and torch-fidelity's, and moments merge in any
order."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from busray.evidence.stats import frechet as module
from busray.evidence.stats.frechet import Moments, frechet, frechet_at_infinity, frechet_spread

D = 128


def features(n: int, seed: int, shift: float = 0.0) -> np.ndarray:
    """Correlated, skewed, non-negative features as a network's are; float32 [n, D]."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(0).standard_normal((D, D)) / np.sqrt(D)
    return np.abs(rng.standard_normal((n, D)) @ mixing + shift).astype(np.float32)


def steep(n: int, seed: int, decades: float, d: int = D) -> np.ndarray:
    """float64 [n, d] in a basis of their own, standard deviations from 1 down to 10^-decades."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((d, d)))[0]
    return rng.standard_normal((n, d)) * np.logspace(0, -decades, d) @ basis + 0.05 * rng.standard_normal(d)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return frechet(Moments.of(a), Moments.of(b))


def by_svd(a: np.ndarray, b: np.ndarray) -> float:
    """The definition, in terms of the singular values of each sample: no covariance is formed."""
    means, values, vectors = [], [], []
    for x in (a.astype(np.float64), b.astype(np.float64)):
        means.append(x.mean(0))
        _, s, v = np.linalg.svd((x - x.mean(0)) / np.sqrt(len(x) - 1), full_matrices=False)
        values.append(s)
        vectors.append(v)
    product = values[0][:, None] * (vectors[0] @ vectors[1].T) * values[1]
    root = np.linalg.svd(product, compute_uv=False).sum()
    return float(((means[0] - means[1]) ** 2).sum() + (values[0] ** 2).sum() + (values[1] ** 2).sum() - 2 * root)


SHAPES = [(300, 260), (300, 40), (30, 40), (30, 300), (128, 129), (2, 300)]


@pytest.mark.parametrize(("n", "m"), SHAPES)
def test_it_is_the_svds_number_to_1e_8(n: int, m: int) -> None:
    a, b = features(n, 1), features(m, 2, shift=0.2)
    assert distance(a, b) == pytest.approx(by_svd(a, b), rel=1e-8)


@pytest.mark.parametrize("decades", [3, 6, 9])
@pytest.mark.parametrize(("n", "m"), SHAPES)
def test_it_is_so_on_steep_spectra_too_and_after_merging(n: int, m: int, decades: float) -> None:
    a, b = steep(n, 1, decades), steep(m, 2, decades)
    truth = by_svd(a, b)
    assert distance(a, b) == pytest.approx(truth, rel=1e-8)
    parts = [Moments.of(part) for part in np.array_split(a, 2)]
    assert frechet(parts[1].merge(parts[0]), Moments.of(b)) == pytest.approx(truth, rel=1e-8)


@pytest.mark.parametrize("decades", [4, 8])
def test_samples_with_a_distance_known_from_their_construction_have_it(decades: float) -> None:
    """Equal principal axes: the distance is that of the standard deviations; their squares span
    2 x decades."""
    rng = np.random.default_rng(3)
    n, d = 400, 64
    white = rng.standard_normal((n, d))
    white = np.linalg.qr(white - white.mean(0))[0] * np.sqrt(n - 1)
    axes = np.linalg.qr(rng.standard_normal((d, d)))[0]
    one, other = np.logspace(0, -decades, d), np.logspace(-0.3, -decades, d)
    found = distance(white * one @ axes, white * other @ axes + 0.01)
    assert found == pytest.approx(((one - other) ** 2).sum() + d * 0.01**2, rel=1e-8)


@pytest.mark.parametrize(("n", "m"), [(300, 260), (30, 40)])
def test_it_is_torch_fidelitys_number_to_1e_5(n: int, m: int) -> None:
    import torch
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    a, b = features(n, 1), features(m, 2, shift=0.2)
    theirs = fid_statistics_to_metric(*(fid_features_to_statistics(torch.from_numpy(x)) for x in (a, b)), False)
    assert distance(a, b) == pytest.approx(theirs["frechet_inception_distance"], rel=1e-5)


def test_images_against_themselves_are_at_distance_0() -> None:
    a = features(50, 1)
    assert distance(a, a) == pytest.approx(0, abs=1e-10)


def test_moments_merge_in_any_order_to_those_of_all_images_in_no_more_memory() -> None:
    parts = [features(n, seed) for seed, n in enumerate((1, 7, 300, 2))]
    whole = Moments.of(np.concatenate(parts))
    for order in ((0, 1, 2, 3), (3, 1, 0, 2), (2, 3, 1, 0)):
        merged = Moments.of(parts[order[0]])
        for i in order[1:]:
            merged = merged.merge(Moments.of(parts[i]))
        assert merged.n == whole.n and len(merged.factor) <= D
        np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-12)
        np.testing.assert_allclose(
            merged.factor.T @ merged.factor, whole.factor.T @ whole.factor, rtol=1e-9, atol=1e-10
        )


def test_a_large_common_offset_costs_no_precision() -> None:
    a, b = features(60, 1).astype(np.float64), features(50, 2, shift=0.2).astype(np.float64)
    moved = frechet(Moments.of(a + 1e4).merge(Moments.of(a[:20] + 1e4)), Moments.of(b + 1e4))
    assert moved == pytest.approx(distance(np.concatenate([a, a[:20]]), b), rel=1e-7)


def test_features_that_are_not_finite_are_refused() -> None:
    a = features(5, 1)
    a[2, 3] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        Moments.of(a)


def test_one_image_has_no_covariance() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        distance(features(5, 1), features(1, 2))


def gaussian(n: int, seed: int, shift: float = 0.0, d: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d)) * np.logspace(0, -1, d) + shift


@pytest.mark.parametrize(("drawn", "n", "d"), [(60, 60, 12), (60, 60, 100), (400, 60, 12)])
def test_the_spread_covers_the_mean_distance_from_this_reference(drawn: int, n: int, d: int) -> None:
    """By sectioning, for few and for many features, and by whole replicates; 95 times in 100,
    or more often."""
    reference = gaussian(50, 0, d=d)
    truth = np.mean([distance(gaussian(n, seed, 0.2, d), reference) for seed in range(10_000, 10_300)])
    hits = 0
    for seed in range(150):
        spread = frechet_spread([gaussian(drawn, seed, 0.2, d)], [n], reference)
        assert spread.interval is not None and spread.replicates == (6 if drawn > n else 5)
        hits += spread.interval[0] <= truth <= spread.interval[1]
    assert hits / 150 >= 0.9


def test_each_part_has_its_share_of_every_class_and_too_few_images_have_no_spread() -> None:
    a, b, reference = gaussian(40, 1), gaussian(20, 2, 3.0), gaussian(30, 3)
    spread = frechet_spread([a, b], [20, 10], reference)
    assert spread.value == pytest.approx(distance(np.concatenate([a[:20], b[:10]]), reference))
    parts = [distance(np.concatenate([a[:20][i::5], b[:10][i::5]]), reference) for i in range(5)]
    half = 2.776445 * np.std(parts, ddof=1) / 5**0.5  # Student's t at 97.5 %, 4 degrees of freedom
    assert spread.interval == pytest.approx((spread.value - half, spread.value + half), rel=1e-5)
    assert frechet_spread([a, b], [20, 9], reference).interval is None


def test_at_infinity_the_bias_of_finitely_many_drawn_images_is_gone() -> None:
    reference = gaussian(2048, 0)
    held = np.cov(reference, rowvar=False)
    values, vectors = np.linalg.eigh(held)
    root = vectors * np.sqrt(values) @ vectors.T
    true = np.logspace(0, -1, 12) ** 2
    both = np.sqrt(np.linalg.eigvalsh(root * true @ root)).sum()
    truth = ((0.05 - reference.mean(0)) ** 2).sum() + values.sum() + true.sum() - 2 * both
    drawn = [gaussian(10_240, seed, 0.05) for seed in range(1, 9)]
    at_infinity = [frechet_at_infinity([x], reference) for x in drawn]
    assert all(value is not None for value in at_infinity)
    plain = np.mean([distance(x[:2048], reference) for x in drawn]) - truth
    left = np.mean([value or 0 for value in at_infinity]) - truth
    assert plain > 0 and abs(left) < plain / 3


def test_it_is_not_estimable_from_fewer_images_than_inception_has_features() -> None:
    assert frechet_at_infinity([gaussian(10_240, 1)], gaussian(2047, 2)) is None
    assert frechet_at_infinity([gaussian(2048, 1), gaussian(2047, 3)], gaussian(2048, 2)) is None


@pytest.mark.parametrize("decades", [0, 9])
@given(cuts=st.lists(st.integers(0, 400), max_size=9), order=st.randoms(use_true_random=False))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_moments_of_parts_in_any_cut_and_order_are_those_of_one_pass_to_1e_9(
    decades: int, cuts: list[int], order: Any
) -> None:
    x, reference = steep(400, 1, decades, 24), steep(60, 2, decades, 24)
    truth = frechet(Moments.of(x), Moments.of(reference))
    parts = [part for part in np.split(x, sorted(cuts)) if len(part)]
    order.shuffle(parts)
    merged = Moments.merged([Moments.of(part) for part in parts])
    assert merged.n == len(x)
    assert frechet(merged, Moments.of(reference)) == pytest.approx(truth, rel=1e-9, abs=1e-14)
    through_store = Moments.unpacked(merged.packed())
    assert frechet(through_store, Moments.of(reference)) == pytest.approx(truth, rel=1e-9, abs=1e-14)


def test_a_stream_of_parts_is_taken_in_batches_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    x, seen = features(1000, 3), []
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 150)
    of = Moments.of
    monkeypatch.setattr(Moments, "of", staticmethod(lambda rows: (seen.append(len(rows)), of(rows))[1]))
    streamed = Moments.of_parts(iter(np.split(x, [3, 70, 71, 500, 900])))
    assert sum(seen) == 1000 and max(seen) <= 150
    np.testing.assert_allclose(streamed.mean, of(x).mean, rtol=1e-12)
    assert frechet(streamed, of(features(40, 4))) == pytest.approx(frechet(of(x), of(features(40, 4))), rel=1e-9)


@pytest.mark.parametrize("n", [1, 5, 300])
def test_packed_moments_are_a_triangle_and_come_back(n: int) -> None:
    moments = Moments.of(features(n, 5))
    packed = moments.packed()
    assert packed.shape == (2 + D + D * (D + 1) // 2,) and packed.dtype == np.float64
    again = Moments.unpacked(packed)
    assert again.n == n
    np.testing.assert_array_equal(again.mean, moments.mean)
    np.testing.assert_allclose(again.factor.T @ again.factor, moments.factor.T @ moments.factor, atol=1e-10)


@pytest.mark.parametrize("spoil", [lambda v: v[:-1], lambda v: v * np.nan, lambda v: v[None], lambda v: v.astype("f4")])
def test_what_are_no_packed_moments_is_refused(spoil: Any) -> None:
    with pytest.raises(ValueError, match="moments"):
        Moments.unpacked(spoil(Moments.of(features(5, 1)).packed()))


def test_scaled_moments_are_those_of_scaled_features() -> None:
    x, centre, scale = features(200, 1), np.linspace(0, 3, D), np.linspace(0.1, 4, D)
    scaled, direct = Moments.of(x).scaled(centre, scale), Moments.of((x - centre) / scale)
    np.testing.assert_allclose(scaled.mean, direct.mean, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(scaled.factor, direct.factor, rtol=1e-10, atol=1e-12)


def test_no_features_have_no_moments() -> None:
    with pytest.raises(ValueError, match="no features"):
        Moments.of_parts([])
