"""Copies of training images are found whatever was done to them, and other images are not taken
for copies."""

import numpy as np
import pytest

from busray.data.phantom import CLASSES, PROBES, phantom
from busray.evidence.copies import (
    FALSE_ALARMS,
    KINDS,
    LESION_PASTED,
    SEARCH_ROW,
    TRANSFORMATIONS,
    GumbelLaw,
    Originals,
    are_copies,
    lesion_square,
    plant_copies,
    thresholds,
    unpadded,
)
from busray.records import ContentBox

CORPUS = 10_000


def scans(first: int, n: int) -> tuple[list[np.ndarray], list[np.ndarray | None]]:
    made = [phantom(first + i, CLASSES[i % 3], PROBES["general"], (104, 128)) for i in range(n)]
    return [scan.image for scan in made], [scan.mask for scan in made]


@pytest.fixture(scope="module")
def train() -> tuple[list[np.ndarray], list[np.ndarray | None]]:
    return scans(500, 6)


@pytest.fixture(scope="module")
def originals(train: tuple[list[np.ndarray], list[np.ndarray | None]]) -> Originals:
    return Originals.of(*train)


@pytest.fixture(scope="module")
def hosts() -> list[np.ndarray]:
    return scans(600, 30)[0]


@pytest.fixture(scope="module")
def real(originals: Originals, hosts: list[np.ndarray]) -> np.ndarray:
    return np.array([originals.find(i, host) for i, host in enumerate(hosts)])


def test_other_scans_are_not_taken_for_copies_in_a_corpus_of_thousands(real: np.ndarray) -> None:
    assert not are_copies(real, thresholds(real, CORPUS)).any()


@pytest.mark.parametrize("name", [*TRANSFORMATIONS, LESION_PASTED])
def test_planted_copies_are_found_with_what_they_copy(
    name: str,
    train: tuple[list[np.ndarray], list[np.ndarray | None]],
    originals: Originals,
    hosts: list[np.ndarray],
    real: np.ndarray,
) -> None:
    made = plant_copies(*train, hosts, seed=1)[name]
    found = np.array([originals.find(i, copy) for i, copy in enumerate(made)])
    assert are_copies(found, thresholds(real, CORPUS)).all()
    if name == LESION_PASTED:
        with_lesion = [i for i, lesion in enumerate(train[1]) if lesion is not None and lesion.any()]
        assert found["lesion_of"].tolist() == with_lesion
    else:
        assert found["image_of"].tolist() == list(range(len(made)))
        assert (found["image_mirrored"] == (name == "mirrored")).all()


def test_one_copy_in_ten_thousand_is_found_and_nothing_else(
    train: tuple[list[np.ndarray], list[np.ndarray | None]],
    originals: Originals,
    real: np.ndarray,
    rng: np.random.Generator,
) -> None:
    """The scores of images that are no copies are drawn from the law of those that were
    measured."""
    limits = thresholds(real, CORPUS)
    corpus = np.zeros(CORPUS, SEARCH_ROW)
    corpus["index"] = np.arange(CORPUS)
    for kind in KINDS:
        law = GumbelLaw.fitted(real[f"{kind}_score"])
        corpus[f"{kind}_score"] = rng.gumbel(law.middle, law.spread, CORPUS)
    copy = plant_copies([train[0][2]], [None], [], seed=4)["re-noised"][0]
    corpus[7_123] = originals.find(7_123, copy)
    assert np.nonzero(are_copies(corpus, limits))[0].tolist() == [7_123]


def test_features_propose_the_original_that_squares_do_not(
    train: tuple[list[np.ndarray], list[np.ndarray | None]], rng: np.random.Generator
) -> None:
    features = rng.normal(size=(6, 4)) * (1, 10, 100, 1000)
    with_features = Originals.of(*train, features)
    row = with_features.find(3, scans(700, 1)[0][0], features[5] + 0.01)
    assert row["nearest"] == 5
    assert row["distance"] == pytest.approx(np.linalg.norm(0.01 / features.std(0)), rel=1e-3)
    scores = np.zeros(len(with_features.originals))
    assert {with_features.originals[o].image for o in with_features._candidates("image", scores, 5)} >= {5}


def test_without_masks_there_are_no_lesions_to_find(train: tuple[list[np.ndarray], list[np.ndarray | None]]) -> None:
    found = Originals.of(train[0][:2], [None, None]).find(0, train[0][0])
    assert found["image_score"] > 0.9
    assert found["lesion_score"] == 0


def test_the_fitted_law_gives_the_quantiles_of_a_gumbel_sample(rng: np.random.Generator) -> None:
    law = GumbelLaw.fitted(rng.gumbel(0.2, 0.03, 200_000))
    assert (law.middle, law.spread) == (pytest.approx(0.2, abs=5e-4), pytest.approx(0.03, rel=0.02))
    for probability in (0.3, 1e-3, 1e-9):
        assert law.exceeds(law.threshold(probability)) == pytest.approx(probability)
    assert GumbelLaw(0.2, 0.03).threshold(1e-3) == pytest.approx(0.2 - 0.03 * np.log(-np.log(1 - 1e-3)))


def test_expected_false_alarms_are_those_of_the_law_whatever_the_corpus(rng: np.random.Generator) -> None:
    real = np.zeros(400, SEARCH_ROW)
    for kind in KINDS:
        real[f"{kind}_score"] = rng.gumbel(0.1, 0.02, 400)
    for images in (100, 1_000_000):
        limits = thresholds(real, images)
        assert images * sum(law.exceeds(limit) for limit, law in limits.values()) == pytest.approx(FALSE_ALARMS)


def test_a_copy_among_the_held_out_images_moves_no_threshold_much(rng: np.random.Generator) -> None:
    real = np.zeros(200, SEARCH_ROW)
    real["image_score"] = rng.gumbel(0.1, 0.02, 200)
    spoilt = real.copy()
    spoilt["image_score"][0] = 0.95
    before, after = thresholds(real, CORPUS)["image"][0], thresholds(spoilt, CORPUS)["image"][0]
    assert after == pytest.approx(before, abs=0.02)
    assert are_copies(spoilt, thresholds(spoilt, CORPUS))[0]


def test_a_lesions_square_holds_it_and_lies_in_the_image() -> None:
    lesion = np.zeros((100, 160), bool)
    lesion[40:60, 130:158] = True
    assert lesion_square(lesion) == (0.5, pytest.approx(0.25), pytest.approx(1.1))
    lesion[5:95, 100:158] = True
    assert lesion_square(lesion)[0] == 1


def test_padding_is_cut_off() -> None:
    image = np.arange(36, dtype=np.uint8).reshape(6, 6)
    assert np.array_equal(unpadded([image], [ContentBox(1, 2, 4, 3)])[0], image[2:5, 1:5])
