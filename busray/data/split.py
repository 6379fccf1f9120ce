"""Train, validation and test: stratified by class, duplicates and groups never apart."""

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain

from busray.data.duplicates import connected
from busray.identity import seed_for
from busray.records import SourceImage

SPLITS = ("train", "val", "test")


def split(
    images: Sequence[SourceImage],
    duplicates: Iterable[Sequence[str]],
    conflicts: Iterable[Sequence[str]],
    val: float,
    test: float,
    seed: int,
) -> dict[str, tuple[SourceImage, ...]]:
    """split -> its images with their units, sorted by file. Images of conflicts are in no split.

    duplicates: groups of files of near-duplicates; conflicts: those of them that span classes.
    val, test: shares of the images. Duplicates and metadata groups that share an image form one
    unit, which is never divided. Units are shuffled by seed; each goes to the split whose shares
    of the unit's classes are furthest from full, so every class keeps its proportions.
    """
    excluded = set(chain.from_iterable(conflicts))
    usable = [image for image in images if image.file not in excluded]
    usable.sort(key=lambda image: image.file)
    units = _units(usable, duplicates, excluded)
    random.Random(seed_for(seed, "all", 0, 0, "split")).shuffle(units)
    # Large units first, while there is room for them. The sort is stable, so the shuffle counts.
    units.sort(key=len, reverse=True)
    quotas = {"train": 1 - val - test, "val": val, "test": test}
    totals = Counter(image.class_name for image in usable)
    taken: Counter[tuple[str, str]] = Counter()

    def room(name: str, class_name: str) -> float:
        """How far a split is below its share of a class, relative to that share."""
        wanted = quotas[name] * totals[class_name]
        return (wanted - taken[name, class_name]) / wanted

    images_of: dict[str, list[SourceImage]] = defaultdict(list)
    for unit in units:
        chosen = max(SPLITS, key=lambda name: sum(room(name, image.class_name) for image in unit))
        images_of[chosen] += unit
        for image in unit:
            taken[chosen, image.class_name] += 1
    return {name: tuple(sorted(images_of[name], key=lambda image: image.file)) for name in SPLITS}


def given_split(
    images: Sequence[SourceImage],
    duplicates: Iterable[Sequence[str]],
    conflicts: Iterable[Sequence[str]],
    sides: Mapping[str, str],
) -> tuple[dict[str, tuple[SourceImage, ...]], tuple[tuple[str, str], ...]]:
    """(split -> its images, as split(); (file, reason) of the images that are left out).

    sides: file -> the split that it comes in. Of a unit in several splits only the images in test
    are kept, else those in val: what the model is measured by stays as it was given.
    """
    excluded = set(chain.from_iterable(conflicts))
    usable = sorted((image for image in images if image.file not in excluded), key=lambda image: image.file)
    images_of: dict[str, list[SourceImage]] = {name: [] for name in SPLITS}
    left_out = []
    for unit in _units(usable, duplicates, excluded):
        kept = max((sides[image.file] for image in unit), key=SPLITS.index)
        measured = next(image.file for image in unit if sides[image.file] == kept)
        for image in unit:
            if sides[image.file] == kept:
                images_of[kept].append(image)
            else:
                why = f"in {sides[image.file]}, and {measured} of {kept} shows the same or is of the same patient"
                left_out.append((image.file, why))
    return {name: tuple(sorted(images_of[name], key=lambda i: i.file)) for name in SPLITS}, tuple(sorted(left_out))


def _units(
    images: Sequence[SourceImage], duplicates: Iterable[Sequence[str]], excluded: set[str]
) -> list[list[SourceImage]]:
    """Images that must stay together; each image has its unit's first file as `cluster`."""
    by_file = {image.file: image for image in images}
    links = []
    for group in duplicates:
        if not excluded & set(group):
            links += [(group[0], other) for other in group[1:]]
    together: dict[tuple[str, str], list[str]] = defaultdict(list)
    for image in images:
        together["frames of", image.path].append(image.file)
        if image.group:
            together["images of", image.group].append(image.file)
    for files in together.values():
        links += [(files[0], other) for other in files[1:]]
    joined = connected(links)
    bound = set(chain.from_iterable(joined))
    joined += [(image.file,) for image in images if image.file not in bound]
    units = []
    for files in joined:
        unit = [by_file[file] for file in files if file in by_file]
        units.append([replace(image, cluster=unit[0].file) for image in unit])  # files are sorted
    return units
