"""What a downstream study trains: its arms, their images, and the data leaks that it checks for.

Takes labels and records, returns indices of images.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from busray.data.duplicates import connected
from busray.data.split import SPLITS
from busray.records import DataSet, SourceImage, UserError
from busray.vision.classifier import Augmentation

REAL, MIXED, UNGATED = "real", "mixed", "ungated"

PRETRAINED = 0.5
"""Share of the steps on synthetic images alone in the arms that are trained on these first."""

Draws = Literal["released", "first draws"]
"""Which images of a corpus: those that it released, or the first draw of each, accepted by the
class gate or not."""


@dataclass(frozen=True)
class TrainingMix:
    """The images of a part of a training's steps."""

    real: bool
    synthetic: float = 0.0
    """Synthetic images for each real training image, class by class."""
    draws: Draws = "released"
    """Which synthetic images."""
    repeated: float = 0.0
    """Repeated real images for each real training image, class by class."""
    augmentation: Augmentation = "mirror"
    balanced: bool = False
    """Whether every class is drawn equally often."""
    share: float = 1.0
    """Of the steps."""


@dataclass(frozen=True)
class Arm:
    name: str
    mixes: tuple[TrainingMix, ...]
    """Trained on one after the other."""


def study_arms(ratios: Sequence[float], gated: bool = False) -> list[Arm]:
    """All arms of a study at these ratios of synthetic to real images.

    Real images alone. At each ratio: synthetic images alone (train on synthetic, test on real),
    both together and, if a class gate chose the corpus, both together without the gate. At the
    largest ratio: first synthetic, then real.

    Then the controls, which have no synthetic image and which any gain has to beat: classical
    augmentation; every class drawn equally often; as many images as the largest mixture, the
    added ones being real images again.
    """
    ratios = sorted(set(ratios))
    most = ratios[-1]
    arms = [Arm(REAL, (TrainingMix(True),))]
    arms += [Arm(f"synthetic@{ratio:g}", (TrainingMix(False, ratio),)) for ratio in ratios]
    arms += [Arm(f"{MIXED}@{ratio:g}", (TrainingMix(True, ratio),)) for ratio in ratios]
    if gated:
        arms += [Arm(f"{UNGATED}@{ratio:g}", (TrainingMix(True, ratio, draws="first draws"),)) for ratio in ratios]
    first, then = TrainingMix(False, most, share=PRETRAINED), TrainingMix(True, share=1 - PRETRAINED)
    return [
        *arms,
        Arm(f"pretrained@{most:g}", (first, then)),
        Arm("real+classical", (TrainingMix(True, augmentation="classical"),)),
        Arm("real+balanced", (TrainingMix(True, balanced=True),)),
        Arm(f"real+repeated@{most:g}", (TrainingMix(True, repeated=most),)),
    ]


def gate_pairs(arms: Iterable[str]) -> list[tuple[str, str]]:
    """(mixture, the same one without the class gate) of each ratio among the arms of a study."""
    return [(f"{MIXED}{arm.removeprefix(UNGATED)}", arm) for arm in arms if arm.startswith(f"{UNGATED}@")]


def synthetic_counts(labels: np.ndarray, classes: int, ratio: float) -> list[int]:
    """Synthetic images of each class at a ratio to real training images of classes labels [n]; at
    least one of each."""
    return [max(1, round(ratio * int((labels == label).sum()))) for label in range(classes)]


def first_rows(draws: Draws, rows: Iterable[Mapping[str, Any]], n: int) -> list[Mapping[str, Any]]:
    """The first n of a class's rows by index, or all if there are fewer; of first draws those of
    attempt 0."""
    # Both kinds begin at the class's first planned image and are equally many. Where an image was
    # quarantined, the released images go one further in the plan, but the first draws include it:
    # an ungated corpus would have it. Without it the gate would keep its hardest cases out of the
    # ungated arms too.
    wanted = [row for row in rows if draws == "released" or row["attempt"] == 0]
    return sorted(wanted, key=lambda row: row["index"])[:n]


def mix_positions(
    mix: TrainingMix, labels: np.ndarray, synthetic: np.ndarray, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """(positions of real images, of synthetic ones) of a mix.

    labels [n] are the classes of the real training images, synthetic [m] those of the synthetic
    ones. The first ones of each class are taken, so a larger ratio adds to a smaller one.
    ValueError where there are too few synthetic images.
    """
    none = np.zeros(0, np.int64)
    real_positions = [np.arange(len(labels)) if mix.real else none]
    synthetic_positions = [none]
    if mix.repeated:
        for label, n in enumerate(synthetic_counts(labels, classes, mix.repeated)):
            real_positions.append(np.resize(np.flatnonzero(labels == label), n))
    if mix.synthetic:
        for label, n in enumerate(synthetic_counts(labels, classes, mix.synthetic)):
            available = np.flatnonzero(synthetic == label)
            if len(available) < n:
                raise ValueError(f"class {label}: {n} synthetic images are needed, there are {len(available)}")
            synthetic_positions.append(available[:n])
    return np.concatenate(real_positions), np.concatenate(synthetic_positions)


def units_of(images: Sequence[SourceImage], near_duplicates: Iterable[Sequence[str]]) -> dict[str, str]:
    """file -> first file of its unit: near-duplicates, images of one group, frames of
    one file, and what these link.

    Not SourceImage.unit, which the split wrote: an external set has no split, and a check for
    leaks must not rest on what the split recorded.
    """
    first = {image.file: image.file for image in images}
    same = [list(files) for files in near_duplicates]
    groups: dict[tuple[str, str], list[str]] = {}
    for image in images:
        groups.setdefault(("frames of", image.path), []).append(image.file)
        if image.group:
            groups.setdefault(("images of", image.group), []).append(image.file)
    links = [(files[0], other) for files in [*same, *groups.values()] for other in files[1:]]
    for unit in connected(links):
        first |= {file: unit[0] for file in unit if file in first}
    return first


def refuse_leaks(dataset: DataSet, near_duplicates: Iterable[Sequence[str]]) -> None:
    """UserError where two splits share an image, a group, or near-duplicates."""
    images = dataset.split("all")
    unit_of = units_of(images, near_duplicates)
    _refuse_shared(dataset, "the same file content", {image.file: image.sha256 for image in images})
    _refuse_shared(dataset, "one group (patient)", {image.file: image.group for image in images})
    _refuse_shared(dataset, "near-duplicates in common", unit_of)


def _refuse_shared(dataset: DataSet, shared: str, key_of: Mapping[str, str | None]) -> None:
    """UserError where images of two splits have one key; None or empty is no key."""
    first_with: dict[str, tuple[str, str]] = {}
    for split in SPLITS:
        for image in dataset.split(split):
            key = key_of[image.file]
            if not key:
                continue
            first_split, first_file = first_with.setdefault(key, (split, image.file))
            if first_split != split:
                raise UserError(
                    f"dataset: {image.file} of {split} and {first_file} of {first_split} have {shared}, so a "
                    "study would test on what it trained on: give another output, so that the data set is split "
                    "anew"
                )


def refuse_foreign_corpus(dataset_hash: str, carried: Mapping[str, str | None]) -> None:
    """UserError where synthetic images come from something (name -> hash of the split that it was
    made with) made with another split.

    None: it carries no hash, so nothing shows that it has not seen the test images.
    """
    for name, split_hash in carried.items():
        if split_hash != dataset_hash:
            carries = f"carries the split hash {split_hash[:12]}" if split_hash else "carries no split hash"
            raise UserError(
                f"{name}: it {carries}, the data set has {dataset_hash[:12]}: images drawn with it may show the test "
                "images; draw the corpus with adapters trained on this split"
            )
