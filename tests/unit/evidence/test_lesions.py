"""Lesions' measures against closed forms, their statistics against scipy and simulation, the figures and the page."""

import numpy as np
import pytest
from scipy import stats

from busray.evidence.lesions import DICE, LESION_FOUND, unmeasurable
from busray.evidence.stats.intervals import jackknife_mean, share_of_units
from busray.evidence.stats.samples import Sample
from busray.evidence.stats.wasserstein import enough_permutations, wasserstein, wasserstein_p_value
from busray.records import CLASS_ALL, ContentBox, Figure
from busray.vision.lesion_shape import COLUMNS, NAME, TRUE, measures, outlined
from tests.support.lesions import lesion_figures

WHOLE = ContentBox(0, 0, 256, 256)


def ellipse(width: float, height: float, turn: float = 0.0, side: int = 256) -> np.ndarray:
    """bool [side, side], half axes width and height in pixels, turned by radians."""
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    u, v = x * np.cos(turn) + y * np.sin(turn), -x * np.sin(turn) + y * np.cos(turn)
    return (u / width) ** 2 + (v / height) ** 2 <= 1


def measured(mask: np.ndarray, box: ContentBox = WHOLE) -> dict[str, float]:
    return dict(zip(COLUMNS, measures(mask[None], [box])[0], strict=True))


# ---- measures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), [(60, 30), (30, 60), (40, 40), (15, 50)])
def test_an_ellipse_has_the_area_and_aspect_of_its_axes_and_is_elliptic(width: int, height: int) -> None:
    found = measured(ellipse(width, height))
    assert found["found"] == 1
    assert found["area"] == pytest.approx(np.pi * width * height / 256**2, rel=0.01)
    assert found["aspect"] == pytest.approx(height / width, rel=0.01)
    assert found["ellipticity"] == pytest.approx(1, abs=0.01)


def test_a_turned_ellipses_aspect_is_that_of_its_bounding_box() -> None:
    turn, a, b = 0.5, 70, 30
    tall, wide = np.hypot(a * np.sin(turn), b * np.cos(turn)), np.hypot(a * np.cos(turn), b * np.sin(turn))
    found = measured(ellipse(a, b, turn))
    assert found["aspect"] == pytest.approx(tall / wide, rel=0.01)
    assert found["ellipticity"] == pytest.approx(1, abs=0.01)


def test_a_rectangle_is_exact_and_its_ellipticity_is_nine_over_pi_squared() -> None:
    mask = np.zeros((256, 256), bool)
    mask[100:110, 50:80] = True
    assert measured(mask) == pytest.approx(
        {"found": 1, "area": 300 / 256**2, "aspect": 1 / 3, "ellipticity": 9 / np.pi**2}
    )


def test_a_spiky_lesion_is_less_elliptic_than_a_smooth_one() -> None:
    y, x = np.mgrid[:256, :256] - 127.5
    star = np.hypot(y, x) <= 50 * (1 + 0.5 * np.cos(7 * np.arctan2(y, x)))
    assert measured(star)["ellipticity"] < 0.85 < measured(ellipse(50, 50))["ellipticity"]


def test_area_is_a_share_of_the_content_and_not_of_the_square() -> None:
    half = ContentBox(0, 64, 256, 128)
    assert measured(ellipse(60, 30), half)["area"] == pytest.approx(2 * measured(ellipse(60, 30))["area"])


def test_the_largest_lesion_counts_and_a_speck_is_none() -> None:
    mask = ellipse(40, 20)
    beside = mask.copy()
    beside[5:15, 5:15] = True
    assert measured(beside) == measured(mask)
    speck = np.zeros((256, 256), bool)
    speck[:8, :8] = True  # 64 of 65,536 pixels
    for empty in (speck, np.zeros((256, 256), bool)):
        found = measured(empty)
        assert found["found"] == 0 and all(np.isnan(found[name]) for name in COLUMNS[1:])


def test_the_outline_is_outside_the_mask_and_one_pixel_wide() -> None:
    image, mask = np.full((9, 9), 7, np.uint8), np.zeros((9, 9), bool)
    mask[3:6, 0:4] = True
    line = outlined(image, mask) == 255
    assert line.sum() == 4 + 4 + 3 and not (line & mask).any()
    assert (outlined(image, np.zeros((9, 9), bool)) == image).all()


# ---- statistics -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "m"), [(1, 1), (7, 7), (30, 11)])
def test_the_distance_is_scipys_also_with_ties(n: int, m: int, rng: np.random.Generator) -> None:
    for x, y in ((rng.normal(size=n), rng.exponential(size=m)), (rng.integers(0, 4, n), rng.integers(1, 5, m))):
        assert wasserstein(x, y) == pytest.approx(stats.wasserstein_distance(x, y), abs=1e-12)


def test_the_distance_to_a_shifted_copy_is_the_shift(rng: np.random.Generator) -> None:
    x = rng.normal(size=40)
    assert wasserstein(x, x + 0.3) == pytest.approx(0.3)
    assert wasserstein(x, rng.permutation(x)) == 0


def test_the_permutation_test_is_scipys(rng: np.random.Generator) -> None:
    x, y = rng.normal(size=25), rng.normal(0.5, size=18)
    wanted = stats.permutation_test(
        (x, y), stats.wasserstein_distance, alternative="greater", n_resamples=999, rng=np.random.default_rng(1)
    )
    found = wasserstein_p_value(Sample.drawn(x, "a"), Sample.drawn(y, "b"))
    assert found == pytest.approx(float(wanted.pvalue), abs=0.04)


def test_chance_alone_is_seldom_improbable_also_where_the_real_images_come_in_copies() -> None:
    rng, low = np.random.default_rng(3), 0
    for seed in range(60):
        real = np.repeat(rng.normal(size=12), 3)
        reference = Sample.of(real, np.repeat(np.arange(12), 3).astype(str), "b")
        low += wasserstein_p_value(Sample.drawn(rng.normal(size=20), "a"), reference, seed) <= 0.05
    assert low <= 7  # binomial(60, 0.05) exceeds it in 1 % of all cases


def test_a_means_interval_without_units_is_students(rng: np.random.Generator) -> None:
    values = rng.exponential(size=23)
    found = jackknife_mean(values, np.arange(23))
    low, high = stats.t.interval(0.95, 22, loc=values.mean(), scale=stats.sem(values))
    assert found.value == values.mean()
    assert found.interval == pytest.approx((low, high), abs=1e-4)


def test_a_means_interval_with_units_is_the_brute_force_jackknife(rng: np.random.Generator) -> None:
    values, units = rng.normal(size=30), rng.integers(0, 9, 30).astype(str)
    names = np.unique(units)
    without = np.array([values[units != name].mean() for name in names])
    error = np.sqrt((len(names) - 1) / len(names) * ((without - without.mean()) ** 2).sum())
    half = stats.t.ppf(0.975, len(names) - 1) * error
    assert jackknife_mean(values, units).interval == pytest.approx(
        (values.mean() - half, values.mean() + half), abs=1e-4
    )


def test_a_means_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng, inside = np.random.default_rng(5), 0
    for _ in range(400):
        sizes = rng.integers(1, 4, 25)
        shared = rng.normal(1, 1, 25)
        units = np.repeat(np.arange(25), sizes)
        low, high = jackknife_mean(np.repeat(shared, sizes) + rng.normal(0, 0.3, sizes.sum()), units).interval
        inside += low <= 1 <= high
    assert 0.92 <= inside / 400 <= 0.975


def test_copies_do_not_narrow_a_shares_interval() -> None:
    once = share_of_units(np.array([True, False, True, True]), np.arange(4))
    copied = share_of_units(np.tile([True, False, True, True], 5), np.tile(np.arange(4), 5))
    assert copied == once and once.value == 0.75


# ---- figures --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def figures() -> list[Figure]:
    return lesion_figures()


def one(figures: list[Figure], metric: str, arm: str, class_name: str = "benign", extractor: str = NAME) -> Figure:
    (found,) = [
        f for f in figures if (f.metric, f.arm, f.class_name, f.extractor) == (metric, arm, class_name, extractor)
    ]
    return found


def test_means_are_over_the_lesions_found_and_carry_their_number(figures: list[Figure]) -> None:
    found = one(figures, LESION_FOUND, "lora+ti")
    assert (found.value, found.n, found.n_reference, found.reference) == (0.8, 25, 30, "test")
    area = one(figures, "lesion_area", "lora+ti")
    assert area.n == 20 and area.value == pytest.approx(0.1, rel=0.1)
    assert area.interval is not None and area.interval[0] < area.value < area.interval[1]
    assert area.protocol == "synthetic-only" and (area.frame, area.size) == ("letterbox", 128)


def test_real_images_are_measured_by_true_and_by_pseudo_masks(figures: list[Figure]) -> None:
    true, pseudo = (one(figures, "lesion_area", "real", extractor=e) for e in (TRUE, NAME))
    assert true.n == pseudo.n == 27 and true.value > pseudo.value


def test_distances_are_to_the_reference_by_pseudo_masks_and_beside_a_floor_that_was_not_trained_on(
    figures: list[Figure],
) -> None:
    far, near = (one(figures, "lesion_area_distance", arm) for arm in ("base", "lora+ti"))
    assert far.value == pytest.approx(0.1, abs=0.02) and far.interval is None
    assert near.value < 0.02 and near.n <= 20 and near.n_reference == 27  # of 20 images, as many as the floor has
    chance = one(figures, "lesion_area_p_value", "lora+ti")
    assert (chance.n, chance.n_reference) == (20, 27)  # of all 25
    floor = one(figures, "lesion_area_distance", "real val")
    assert floor.floor and not far.floor
    assert floor.value < 0.02 and (floor.n, floor.protocol) == (18, "real-against-real")
    assert one(figures, "lesion_area_p_value", "base").value == 0.001
    assert one(figures, "lesion_area_p_value", "lora+ti").value > 0.01
    assert not [f for f in figures if f.metric.startswith("lesion_area_distance") and f.extractor != NAME]


def test_a_class_without_lesions_has_a_share_and_nothing_else(figures: list[Figure]) -> None:
    assert {f.metric for f in figures if f.class_name == "normal"} == {LESION_FOUND}
    found = one(figures, LESION_FOUND, "base", "normal")
    assert found.value == 0 and found.interval is not None and found.interval[1] > 0.1


def test_only_dice_is_overall_since_arms_and_real_images_mix_classes_otherwise(figures: list[Figure]) -> None:
    assert {f.metric for f in figures if f.class_name == CLASS_ALL} == {DICE}
    dice = one(figures, DICE, "real", CLASS_ALL)
    assert (dice.n, dice.n_reference) == (80, 30) and dice.interval is not None


def test_masks_that_teach_nothing_are_told() -> None:
    some, none = np.ones((4, 2, 2), bool), np.zeros((4, 2, 2), bool)
    assert unmeasurable({"train": some, "val": some, "test": some}) is None
    assert "0 val images" in (unmeasurable({"train": some, "val": none, "test": some}) or "")
    assert "2 test images" in (unmeasurable({"train": some, "val": some, "test": some[:2]}) or "")


@pytest.mark.parametrize("tests", [1, 10, 27, 60, 500])
def test_the_least_p_value_is_well_below_bonferronis_level_at_any_number_of_tests(tests: int) -> None:
    assert enough_permutations(tests) >= 999
    assert 1 / (enough_permutations(tests) + 1) <= 0.05 / tests / 5 * (1 + 1e-12)
