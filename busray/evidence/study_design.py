"""What a downstream study trains: its arms, the images of each, and the leaks that make it refuse.

Pure: labels and records in, positions out.
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
"""Share of the steps that are spent on synthetic images alone where they are trained on first."""


Draws = Literal["released", "first draws"]
"""Which images of a corpus: those that it released, or what its class gate saw first, whether or not that passed."""


@dataclass(frozen=True)
class TrainingMix:
    """What a share of a training's steps is fed with."""

    real: bool
    synthetic: float = 0.0
    """Synthetic images for each real training image, class by class."""
    draws: Draws = "released"
    """Which synthetic images."""
    repeated: float = 0.0
    """Real images taken once more, likewise."""
    augmentation: Augmentation = "mirror"
    balanced: bool = False
    share: float = 1.0


@dataclass(frozen=True)
class Arm:
    name: str
    mixes: tuple[TrainingMix, ...]


def study_arms(ratios: Sequence[float], gated: bool = False) -> list[Arm]:
    """All arms: real images alone; synthetic alone (train on synthetic, test on real) and both together at each ratio,
    where a class gate chose the corpus also both together without the gate; at the largest ratio also first synthetic,
    then real; then the controls, which any gain has to beat.

    The controls have no synthetic image: classical augmentation; every class drawn equally often; as many images as
    the largest mixture, the added ones being real ones again.
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
    """Synthetic images of each class at a ratio to real training images with these labels; at least one."""
    return [max(1, round(ratio * int((labels == label).sum()))) for label in range(classes)]


def first_rows(draws: Draws, rows: Iterable[Mapping[str, Any]], n: int) -> list[Mapping[str, Any]]:
    """The first n of the rows of a class, or all if there are fewer, by index; of first draws those of attempt 0."""
    # Both kinds start at a class's first planned image and are equally many. Where the gate's budget was spent on an
    # image, the released ones go one further in the plan, but its first draw is taken: an ungated corpus would hold it,
    # and taking only images that were released would let the gate keep its hardest cases out of the ungated arms too.
    kept = [row for row in rows if draws == "released" or row["attempt"] == 0]
    return sorted(kept, key=lambda row: row["index"])[:n]


def mix_positions(
    mix: TrainingMix, labels: np.ndarray, synthetic: np.ndarray, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """(positions of real images, of synthetic ones): the first of each class, so that larger ratios add to smaller.

    labels [n] of the real training images, synthetic [m] of the synthetic ones. ValueError where those are too few.
    """
    ours = np.arange(len(labels)) if mix.real else np.zeros(0, np.int64)
    if mix.repeated:
        again = [
            np.resize(np.flatnonzero(labels == label), n)
            for label, n in enumerate(synthetic_counts(labels, classes, mix.repeated))
        ]
        ours = np.concatenate([ours, *again])
    drawn: list[np.ndarray] = []
    for label, n in enumerate(synthetic_counts(labels, classes, mix.synthetic) if mix.synthetic else []):
        found = np.flatnonzero(synthetic == label)[:n]
        if len(found) < n:
            raise ValueError(f"class {label}: {n} synthetic images are needed, there are {len(found)}")
        drawn.append(found)
    return ours, np.concatenate(drawn) if drawn else np.zeros(0, np.int64)


def units_of(images: Iterable[SourceImage], near_duplicates: Iterable[Sequence[str]]) -> dict[str, str]:
    """file -> the first file of its cluster: near-duplicates and images of one group, and what they link.

    Not SourceImage.unit, which the split wrote: an external set has no split, and the split's own word proves no leak.
    """
    images = list(images)
    links = [(files[0], other) for files in near_duplicates for other in files[1:]]
    groups: dict[str, list[str]] = {}
    for image in images:
        if image.group:
            groups.setdefault(image.group, []).append(image.file)
    links += [(files[0], other) for files in groups.values() for other in files[1:]]
    first = {image.file: image.file for image in images}
    return first | {file: cluster[0] for cluster in connected(links) for file in cluster if file in first}


def refuse_leaks(dataset: DataSet, near_duplicates: Iterable[Sequence[str]]) -> None:
    """UserError where an image, its cluster or its group is in more than one split."""
    clusters = units_of(dataset.split("all"), near_duplicates)
    kinds: dict[str, Mapping[str, Any]] = {
        "the same file content": {image.file: image.sha256 for image in dataset.split("all")},
        "one group (patient)": {image.file: image.group for image in dataset.split("all")},
        "one near-duplicate cluster": clusters,
    }
    for kind, key_of in kinds.items():
        held: dict[Any, tuple[str, str]] = {}
        for split in SPLITS:
            for image in dataset.split(split):
                key = key_of[image.file]
                other, file = held.setdefault(key, (split, image.file)) if key else (split, image.file)
                if other != split:
                    raise UserError(
                        f"dataset: {image.file} of {split} and {file} of {other} have {kind}, so a study would test on "
                        "what it trained on: give another output, so that the data set is split anew"
                    )


def refuse_foreign_corpus(dataset_hash: str, carried: Mapping[str, str | None]) -> None:
    """UserError where something synthetic images came from (name -> split hash) has seen another split.

    None: it carries no hash, which is no proof that test images were held out.
    """
    for name, found in carried.items():
        if found != dataset_hash:
            told = f"carries the split hash {found[:12]}" if found else "carries no split hash"
            raise UserError(
                f"{name}: it {told}, the data set has {dataset_hash[:12]}: images drawn with it may show the test "
                "images; draw the corpus with adapters trained on this split"
            )
