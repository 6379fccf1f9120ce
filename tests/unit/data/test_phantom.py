"""Phantoms: seeded, labelled, with masks; classes look as the textbook says, captions never name
them."""

import re
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from PIL import Image

from busray.data.phantom import CLASSES, PROBES, Phantom, Probe, phantom, write_dataset

SIZE = (128, 128)


@cache
def many(class_name: str, n: int = 24, size: tuple[int, int] = SIZE) -> list[Phantom]:
    probes = [p for p in PROBES.values() if p.name != "demo"]
    return [phantom(i, class_name, probes[i % len(probes)], size) for i in range(n)]


def test_a_seed_decides_the_scan_and_nothing_else_does():
    first = phantom(7, "benign", PROBES["demo"], SIZE)
    np.random.seed(0)
    again = phantom(7, "benign", PROBES["demo"], SIZE)
    assert np.array_equal(first.image, again.image) and np.array_equal(first.mask, again.mask)
    assert first.caption == again.caption
    for other in (phantom(8, "benign", PROBES["demo"], SIZE), phantom(7, "malignant", PROBES["demo"], SIZE)):
        assert not np.array_equal(first.image, other.image)


@pytest.mark.parametrize("size", [(128, 128), (96, 150), (17, 33)])
@pytest.mark.parametrize("class_name", CLASSES)
def test_shapes_and_types(class_name, size):
    scan = phantom(1, class_name, PROBES["general"], size)
    assert scan.image.shape == scan.mask.shape == size
    assert scan.image.dtype == np.uint8 and scan.mask.dtype == bool


def test_lesions_have_masks_and_normal_scans_have_none():
    for class_name in ("benign", "malignant"):
        areas = [scan.mask.mean() for scan in many(class_name)]
        assert min(areas) > 0.002 and max(areas) < 0.5
    assert not any(scan.mask.any() for scan in many("normal"))


def test_lesions_are_darker_than_what_surrounds_them():
    for class_name in ("benign", "malignant"):
        darker = [s.image[s.mask].mean() < s.image[~s.mask].mean() for s in many(class_name)]
        assert np.mean(darker) > 0.8


def roundness(mask: np.ndarray) -> float:
    """4 pi area / perimeter^2, with the count of boundary edges as perimeter."""
    edges = np.abs(np.diff(mask.astype(int), axis=0)).sum() + np.abs(np.diff(mask.astype(int), axis=1)).sum()
    return float(4 * np.pi * mask.sum() / edges**2)


def test_malignant_outlines_are_more_ragged_than_benign_ones():
    benign, malignant = ([roundness(s.mask) for s in many(c)] for c in ("benign", "malignant"))
    assert np.median(benign) > 1.2 * np.median(malignant)


def below(scan) -> float:
    """Grey level under the lesion minus that beside it, at the same depths."""
    rows, columns = np.nonzero(scan.mask)
    zone = slice(rows.max() + 3, min(rows.max() + 24, SIZE[0]))
    under = np.zeros(SIZE[1], bool)
    under[columns.min() : columns.max() + 1] = True
    strip = scan.image[zone].astype(float)
    return float(strip[:, under].mean() - strip[:, ~under].mean()) if strip.size else 0.0


def test_benign_lesions_are_bright_below_and_malignant_ones_cast_shadows():
    plain = replace(PROBES["demo"], streaks=(0.0, 1.0), patches=(0.5, 1.0))
    benign, malignant = (np.mean([below(phantom(i, c, plain, SIZE)) for i in range(40)]) for c in CLASSES[:2])
    assert benign > 4
    assert malignant < -4


def test_a_probe_decides_how_dark_shadows_are():
    plain = replace(PROBES["demo"], streaks=(0.0, 1.0), patches=(0.5, 1.0))
    faint, dark = (
        np.mean([below(phantom(i, "malignant", replace(plain, shadow=(db, db)), SIZE)) for i in range(20)])
        for db in (4.0, 20.0)
    )
    assert dark < 2 * faint < 0


def test_fibres_draw_lines_across_muscle():
    plain = replace(PROBES["general"], gain=(3.0, 3.0), fading=(4.0, 4.0), streaks=(0.0, 0.0), layers=(8.0, 8.0))

    def lines(probe: Probe) -> float:
        """Power of changes from row to row of the deepest quarter, averaged over 8 neighbours
        across."""
        deep = np.stack([phantom(seed, "normal", probe, (96, 96)).image[72:] for seed in range(12)]).astype(float)
        return float((np.diff(deep.reshape(12, 24, 12, 8).mean(3), axis=1) ** 2).mean())

    assert lines(replace(plain, fibres=(9.0, 9.0))) > 1.3 * lines(plain)


def test_captions_never_name_a_class():
    for class_name in CLASSES:
        for scan in many(class_name, 60, (48, 48)):
            assert re.fullmatch(r"[a-z, ]+", scan.caption)
            assert not re.search(r"benign|malignan|normal|cancer|cyst|tumou?r", scan.caption)


def test_speckle_of_one_look_is_fully_developed():
    """Before log compression one look has an exponential power; in decibels its standard
    deviation is 5.57."""
    flat = Probe("flat", looks=(1, 1), dynamic_range=(200.0, 200.0), gain=(20.0, 20.0), fading=(0.0, 0.0))
    spreads = []
    for seed in range(6):
        image = phantom(seed, "normal", replace(flat, streaks=(0, 0), patches=(0, 0), ribs=0.0), SIZE).image
        centre = image[40:120].astype(float)
        windows = centre.reshape(10, 8, 16, 8).transpose(0, 2, 1, 3).reshape(-1, 64)
        spreads.append(np.median(windows.std(1)))
    assert 4 < np.mean(spreads) * 200 / 255 < 7


def test_an_unknown_class_is_refused():
    with pytest.raises(ValueError, match=r"unknown class .cyst.: one of benign, malignant, normal"):
        phantom(0, "cyst", PROBES["demo"], SIZE)


def test_the_dataset_has_the_layout_of_busi(tmp_path):
    write_dataset(tmp_path, 3, seed=5, size=(60, 80))
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(CLASSES)
    sizes = set()
    for class_name in CLASSES:
        assert len(list((tmp_path / class_name).iterdir())) == 6
        for i in (1, 2, 3):
            image = Image.open(tmp_path / class_name / f"{class_name} ({i}).png")
            mask = Image.open(tmp_path / class_name / f"{class_name} ({i})_mask.png")
            assert image.mode == "L" and mask.mode == "1" and image.size == mask.size
            assert np.asarray(mask).any() == (class_name != "normal")
            sizes.add(image.size)
    assert len(sizes) > 3


def test_the_dataset_is_seeded_and_can_grow(tmp_path):
    write_dataset(tmp_path / "a", 2, seed=5, size=(40, 48))
    write_dataset(tmp_path / "b", 3, seed=5, size=(40, 48))
    write_dataset(tmp_path / "c", 2, seed=6, size=(40, 48))
    name = "malignant/malignant (2).png"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert (tmp_path / "a" / name).read_bytes() != (tmp_path / "c" / name).read_bytes()
