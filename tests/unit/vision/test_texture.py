"""Texture features are what their definitions say, of the content alone, and tell textures
apart."""

import itertools

import numpy as np
import pytest
from PIL import Image, ImageFilter
from scipy import ndimage, stats

from busray.evidence.stats.frechet import Moments, frechet
from busray.evidence.stats.kernel import kid
from busray.records import ContentBox
from busray.vision.speckle import local_snr, spectrum_slope
from busray.vision.texture import (
    BIN,
    FEATURES,
    HARALICK,
    LEVELS,
    PERCENTILES,
    co_occurrence,
    correlation_widths,
    first_order,
    standardised,
    texture_features,
)

WHOLE = ContentBox(0, 0, 64, 64)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def speckled(height: int, width: int, seed: int = 0) -> np.ndarray:
    """uint8 [height, width] with correlated, unevenly bright grey values."""
    smooth = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((height, width)), (1, 2))
    return np.clip(110 + 45 * smooth / smooth.std() + np.linspace(-20, 20, width), 0, 255).astype(np.uint8)


# ---- each feature against an independent computation ----


def test_first_order_features_are_scipys() -> None:
    content = speckled(40, 56)
    x = content.ravel().astype(float)
    mean, sd, skewness, kurtosis, entropy, *percentiles = first_order(content)
    assert (mean, sd) == pytest.approx((x.mean(), x.std()))
    assert (skewness, kurtosis) == pytest.approx((stats.skew(x), stats.kurtosis(x)))
    counts, _ = np.histogram(x, bins=LEVELS, range=(0, 256))
    assert entropy == pytest.approx(stats.entropy(counts, base=2))
    assert percentiles == list(np.percentile(x, PERCENTILES, method="inverted_cdf"))


def looped(content: np.ndarray, steps: list[tuple[int, int]]) -> dict[str, float]:
    """Haralick's features pixel by pixel, pair by pair."""
    height, width = content.shape
    p = np.zeros((LEVELS, LEVELS))
    for (down, right), y, x in itertools.product(steps, range(height), range(width)):
        if 0 <= y + down < height and 0 <= x + right < width:
            i, j = int(content[y, x]) // BIN, int(content[y + down, x + right]) // BIN
            p[i, j] += 1
            p[j, i] += 1
    p /= p.sum()
    pairs = list(itertools.product(range(LEVELS), repeat=2))
    mean = sum(i * p[i, j] for i, j in pairs)
    variance = sum((i - mean) ** 2 * p[i, j] for i, j in pairs)
    return {
        "contrast": sum((i - j) ** 2 * p[i, j] for i, j in pairs),
        "homogeneity": sum(p[i, j] / (1 + (i - j) ** 2) for i, j in pairs),
        "energy": sum(p[i, j] ** 2 for i, j in pairs),
        "correlation": sum((i - mean) * (j - mean) * p[i, j] for i, j in pairs) / variance,
        "entropy": -sum(p[i, j] * np.log2(p[i, j]) for i, j in pairs if p[i, j]),
    }


@pytest.mark.parametrize("direction", ["axial", "lateral", "diagonal"])
@pytest.mark.parametrize("d", [1, 4])
def test_co_occurrence_features_are_those_of_a_loop_over_all_pairs(direction: str, d: int) -> None:
    content = speckled(18, 23)
    steps = {"axial": [(d, 0)], "lateral": [(0, d)], "diagonal": [(d, d), (d, -d)]}[direction]
    named = dict(zip((name for name in FEATURES if name.startswith("glcm_")), co_occurrence(content), strict=True))
    wanted = looped(content, steps)
    assert {n: named[f"glcm_{n}_{direction}_{d}"] for n in HARALICK} == pytest.approx(wanted, rel=1e-9)


def test_a_checkerboards_neighbours_are_opposites_and_its_second_neighbours_alike() -> None:
    board = np.kron(np.indices((8, 8)).sum(0) % 2, np.ones((2, 2))).astype(np.uint8) * BIN  # squares of 2 px
    named = dict(zip(FEATURES[10:55], co_occurrence(board), strict=True))
    assert named["glcm_contrast_axial_2"] == named["glcm_contrast_lateral_2"] == 1
    assert named["glcm_correlation_axial_2"] == pytest.approx(-1)
    assert named["glcm_correlation_axial_4"] == named["glcm_correlation_diagonal_2"] == pytest.approx(1)
    assert named["glcm_entropy_axial_4"] == pytest.approx(1)  # two cells of a half each


@pytest.mark.parametrize(("axial", "lateral"), [(1.0, 1.0), (1.0, 2.5), (2.0, 1.5)])
def test_correlation_widths_are_those_of_the_gaussian_that_noise_was_blurred_with(axial: float, lateral: float) -> None:
    blurred = ndimage.gaussian_filter(np.random.default_rng(1).standard_normal((400, 400)), (axial, lateral))
    content = np.clip(128 + 40 * blurred / blurred.std(), 0, 255).astype(np.uint8)
    wide = 4 * np.sqrt(np.log(2))  # full width at half maximum of exp(-k^2 / (4 sigma^2)), a sigma
    assert correlation_widths(content, 25) == pytest.approx((wide * axial, wide * lateral), rel=0.05)


def test_a_slow_change_of_brightness_does_not_widen_speckle() -> None:
    content = np.clip(speckled(128, 128) / 2 + np.linspace(0, 120, 128)[:, None], 0, 255).astype(np.uint8)
    assert correlation_widths(content, 8) == pytest.approx(correlation_widths(speckled(128, 128), 8), rel=0.1)


def test_speckle_snr_and_spectrum_slope_are_the_models_figures() -> None:
    image = speckled(64, 64)
    named = dict(zip(FEATURES, texture_features(image[None], [WHOLE])[0], strict=True))
    assert named["speckle_snr"] == local_snr(image[None])
    assert named["spectrum_slope"] == spectrum_slope(image[None])


# ---- content, padding, order ----


def test_padding_and_what_lies_in_it_do_not_count() -> None:
    content = speckled(40, 64)
    black, filled = np.zeros((64, 64), np.uint8), noise(64, 64)
    black[12:52], filled[12:52] = content, content
    box = ContentBox(0, 12, 64, 40)
    features = texture_features(np.stack([black, filled]), [box, box])
    np.testing.assert_array_equal(features[0], features[1])
    assert abs(features[0] - texture_features(black[None], [WHOLE])[0]).max() > 1  # else the test shows nothing


def test_an_image_has_the_same_features_in_any_batch() -> None:
    images, boxes = np.stack([speckled(64, 64, seed) for seed in range(3)]), [WHOLE, ContentBox(4, 0, 40, 64), WHOLE]
    together = texture_features(images, boxes)
    assert together.shape == (3, len(FEATURES)) == (3, 59)
    for i in range(3):
        np.testing.assert_array_equal(together[i], texture_features(images[i : i + 1], boxes[i : i + 1])[0])


def test_a_mirrored_image_has_the_same_texture_and_a_turned_one_has_not() -> None:
    image = speckled(64, 64)
    as_is, mirrored, turned = texture_features(np.stack([image, image[:, ::-1], image.T]), [WHOLE] * 3)
    np.testing.assert_allclose(mirrored, as_is, rtol=1e-9)
    named = dict(zip(FEATURES, zip(as_is, turned, strict=True), strict=True))
    assert named["width_axial"][0] == pytest.approx(named["width_lateral"][1])
    assert named["width_axial"][0] < 0.7 * named["width_axial"][1]


@pytest.mark.parametrize("grey", [0, 7, 200])
def test_a_flat_image_has_finite_features(grey: int) -> None:
    flat = np.full((1, 64, 64), grey, np.uint8)
    named = dict(zip(FEATURES, texture_features(flat, [WHOLE])[0], strict=True))
    assert np.isfinite(list(named.values())).all()
    assert (named["mean"], named["sd"], named["entropy"]) == (grey, 0, 0)
    assert (named["glcm_correlation_axial_1"], named["glcm_energy_axial_1"], named["width_axial"]) == (1, 1, 0)


def test_a_box_too_small_and_images_of_another_depth_are_refused() -> None:
    image = speckled(64, 64)[None]
    with pytest.raises(ValueError, match="64 x 15"):
        texture_features(image, [ContentBox(0, 0, 64, 15)])
    with pytest.raises(TypeError, match="8-bit"):
        texture_features(image / 255, [WHOLE])
    assert np.isfinite(texture_features(image, [ContentBox(0, 0, 16, 16)])).all()


# ---- the space ----


def test_the_scale_is_that_of_the_real_training_images_alone() -> None:
    rng = np.random.default_rng(0)
    real = {split: {c: 7 + 3 * rng.standard_normal((20, 4)) for c in "bm"} for split in ("train", "test")}
    arms = {"base": {"b": 7 + 6 * rng.standard_normal((20, 4))}}
    for by in (*real.values(), *arms.values()):
        for rows in by.values():
            rows[:, 3] = 5
    arms["base"]["b"][:, 3] = 6
    scaled_arms, scaled = standardised(arms, real)
    train = np.concatenate([scaled["train"]["b"], scaled["train"]["m"]])
    np.testing.assert_allclose(train.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(train.std(0), [1, 1, 1, 0], atol=1e-9)
    pooled = np.concatenate(list(real["train"].values()))
    wanted = (arms["base"]["b"] - pooled.mean(0))[:, :3] / pooled.std(0)[:3]
    np.testing.assert_allclose(scaled_arms["base"]["b"][:, :3], wanted)
    np.testing.assert_allclose(scaled_arms["base"]["b"][:, 3], 1)  # the same in every training image: only centred


def scans(first: int, n: int = 40) -> np.ndarray:
    """uint8 [n, 64, 64], each with a brightness of its own."""
    gains = np.random.default_rng(first).uniform(0.6, 1.2, (n, 1, 1))
    images = np.stack([speckled(64, 64, seed) for seed in range(first, first + n)])
    return np.clip(images * gains, 0, 255).astype(np.uint8)


def test_distance_grows_with_blur_and_noise_and_is_least_between_equal_textures() -> None:
    train, test, other = scans(0), scans(100), scans(200)
    filtered = [
        np.stack([np.asarray(Image.fromarray(x).filter(ImageFilter.GaussianBlur(r))) for x in other]) for r in (0.5, 1)
    ]
    shaken = np.random.default_rng(0).normal(0, 20, other.shape)
    noisy = np.clip(other + shaken, 0, 255).astype(np.uint8)
    features = [texture_features(x, [WHOLE] * len(x)) for x in (train, test, other, *filtered, noisy)]
    arms = {str(i): {"b": x} for i, x in enumerate(features[2:])}
    scaled, real = standardised(arms, {"train": {"b": features[0]}, "test": {"b": features[1]}})
    same, little, much, grainy = (frechet(Moments.of(by["b"]), Moments.of(real["test"]["b"])) for by in scaled.values())
    assert same < little < much and same < grainy
    assert kid(scaled["0"]["b"], real["test"]["b"]).interval[0] < 0
    assert all(kid(scaled[arm]["b"], real["test"]["b"]).interval[0] > 0 for arm in ("2", "3"))
