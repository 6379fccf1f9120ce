"""Train, validation and test: stratified by class, duplicates and groups never apart."""

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from busray.data.check import connected
from busray.identity import seed_for
from busray.records import SourceImage

SPLITS = ("train", "val", "test")


def split(
    images: Sequence[SourceImage],
    clusters: Iterable[Sequence[str]],
    conflicts: Iterable[Sequence[str]],
    val: float,
    test: float,
    seed: int,
) -> dict[str, tuple[SourceImage, ...]]:
    """split -> its images with their clusters, sorted by file; images of conflicting clusters are in none.

    Clusters and metadata groups that share an image move together. Units are shuffled by seed and each goes where its
    classes are furthest below their shares, so every class keeps its proportions as far as its units allow.
    """
    out = {file for group in conflicts for file in group}
    kept = sorted((image for image in images if image.file not in out), key=lambda i: i.file)
    units = _units(kept, clusters, out)
    random.Random(seed_for(seed, "all", 0, 0, "split")).shuffle(units)
    units.sort(key=len, reverse=True)  # stable: large ones first, while there is room for them
    totals: dict[str, int] = defaultdict(int)
    for image in kept:
        totals[image.class_name] += 1
    shares = {"train": 1 - val - test, "val": val, "test": test}
    taken: dict[str, dict[str, int]] = {name: defaultdict(int) for name in SPLITS}
    sides: dict[str, list[SourceImage]] = {name: [] for name in SPLITS}
    for unit in units:
        side = max(SPLITS, key=lambda name: sum(_room(name, i.class_name, shares, totals, taken) for i in unit))
        sides[side] += unit
        for image in unit:
            taken[side][image.class_name] += 1
    return {name: tuple(sorted(side, key=lambda i: i.file)) for name, side in sides.items()}


def _room(
    name: str, class_name: str, shares: dict[str, float], totals: dict[str, int], taken: dict[str, dict[str, int]]
) -> float:
    """How far a split is below its share of a class, relative to that share."""
    wanted = shares[name] * totals[class_name]
    return (wanted - taken[name][class_name]) / wanted


def _units(images: Sequence[SourceImage], clusters: Iterable[Sequence[str]], out: set[str]) -> list[list[SourceImage]]:
    """Images that must stay together, as lists, each with its unit's first file as its cluster."""
    by_file = {image.file: image for image in images}
    links = [(group[0], other) for group in clusters for other in group[1:] if not out & set(group)]
    groups: dict[str, list[str]] = defaultdict(list)
    for image in images:
        if image.group:
            groups[image.group].append(image.file)
    links += [(files[0], other) for files in groups.values() for other in files[1:]]
    together = connected(links)
    bound = {file for unit in together for file in unit}
    units = [[by_file[file] for file in unit if file in by_file] for unit in together]
    units += [[image] for image in images if image.file not in bound]
    return [[replace(image, cluster=min(i.file for i in unit)) for image in unit] for unit in units]
