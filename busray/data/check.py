"""The check of a labelled data set: counts, duplicates, label conflicts, colour overlays,
annotations, masks, and lesions that framing cuts off."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from busray.data.annotations import KINDS, find_annotations
from busray.data.duplicates import (
    ALIGNED,
    THRESHOLD,
    DuplicatePairs,
    Signature,
    duplicate_pairs,
    signature,
)
from busray.data.framing import FRAMINGS, cut_share
from busray.data.read import READ_THREADS, class_names, lesion_mask, read_grey, read_rgb, scan
from busray.records import SourceImage

FRAME_THRESHOLDS = (0.98, 0.95, 0.90, 0.85, 0.80)
"""Thumbnail correlations at which group sizes are reported."""
ALIGNED_THRESHOLDS = (0.5, 0.4, 0.3, 0.2, 0.15)
"""Scores of aligned pairs at which group sizes are reported."""
COLOURED = 40
"""Least difference between the channels (of 255) of a coloured pixel."""
DARK = 32
"""An image whose brightest pixel is below this grey level (of 255) is almost black."""


@dataclass(frozen=True)
class Table:
    """A table for people. The terminal and the report print the same ones."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class GroupSizes:
    """Sizes of the groups of near-duplicates at one threshold."""

    threshold: float
    groups: int
    images: int
    """In all groups together."""
    largest: int
    largest_unconfirmed: int | None = None
    """The largest group by thumbnails alone; None for aligned pairs."""

    def to_dict(self) -> dict[str, Any]:
        value = {"threshold": self.threshold, "clusters": self.groups, "images": self.images, "largest": self.largest}
        if self.largest_unconfirmed is not None:
            value["largest_unconfirmed"] = self.largest_unconfirmed
        return value

    def cells(self) -> tuple[str, ...]:
        """A row of a table."""
        counts = (self.groups, self.images, self.largest, self.largest_unconfirmed)
        return (f"{self.threshold:.2f}", *(str(count) for count in counts if count is not None))


@dataclass(frozen=True)
class CheckReport:
    """The result of check(). Files are relative to the folder."""

    images: tuple[SourceImage, ...]
    unreadable: tuple[tuple[str, str], ...]
    """(file, reason)"""
    exact: tuple[tuple[str, ...], ...]
    """Groups of files with the same pixels."""
    duplicates: tuple[tuple[str, ...], ...]
    """Groups of near-duplicates at THRESHOLD and ALIGNED, exact duplicates included."""
    frame_sizes: tuple[GroupSizes, ...]
    """At FRAME_THRESHOLDS of whole frames; aligned pairs from ALIGNED on."""
    aligned_sizes: tuple[GroupSizes, ...]
    """At ALIGNED_THRESHOLDS of aligned pairs; whole frames from THRESHOLD on."""
    conflicts: tuple[tuple[str, ...], ...]
    """Groups of near-duplicates whose images are in more than one class."""
    coloured: tuple[tuple[str, float], ...]
    """(file, share of coloured pixels) of images with colour overlays."""
    annotated: tuple[tuple[str, tuple[str, ...]], ...]
    """(file, what is burned into it) of images with text or calipers."""
    mask_problems: tuple[tuple[str, str], ...]
    """(mask, problem)"""
    cuts: dict[str, dict[str, tuple[int, int]]] = field(default_factory=dict)
    """framing -> class -> (lesions that it cuts, lesions)."""
    dark: tuple[tuple[str, int], ...] = ()
    """(file, its brightest grey level) of images that are almost black."""

    def to_dict(self) -> dict[str, Any]:
        """What check.json holds."""
        counts = Counter(image.class_name for image in self.images)
        sizes, cuts = {}, {}
        for name in sorted(counts):
            images = self._of(name)
            sizes[name] = {
                "width": _low_median_high(image.width for image in images),
                "height": _low_median_high(image.height for image in images),
            }
        for framing, by_class in self.cuts.items():
            cuts[framing] = {name: {"cut": cut, "lesions": n} for name, (cut, n) in by_class.items()}
        return {
            "counts": dict(counts),
            "sizes": sizes,
            "modes": dict(Counter(image.mode for image in self.images)),
            "unreadable": [list(pair) for pair in self.unreadable],
            "exact_duplicates": [list(group) for group in self.exact],
            "near_duplicates": [list(group) for group in self.duplicates],
            "near_duplicate_threshold": THRESHOLD,
            "chains": [sizes.to_dict() for sizes in self.frame_sizes],
            "aligned_threshold": ALIGNED,
            "aligned_chains": [sizes.to_dict() for sizes in self.aligned_sizes],
            "label_conflicts": [list(group) for group in self.conflicts],
            "colour_overlays": [{"file": file, "share": share} for file, share in self.coloured],
            "annotations": [{"file": file, "found": list(kinds)} for file, kinds in self.annotated],
            "almost_black": [{"file": file, "brightest": level} for file, level in self.dark],
            "mask_problems": [list(pair) for pair in self.mask_problems],
            "lesions_cut": cuts,
        }

    def _of(self, name: str) -> list[SourceImage]:
        return [image for image in self.images if image.class_name == name]

    def tables(self) -> list[Table]:
        """What people read, most important first. Findings without a case are left out."""
        names = sorted({image.class_name for image in self.images})
        tables = [
            Table(
                "Images per class",
                ("class", "images", "with mask", "width min/median/max", "height min/median/max", "modes"),
                tuple(self._class_row(name) for name in names),
            ),
            Table(
                f"Groups of near-duplicates (this report uses {THRESHOLD:.2f}, confirmed by fine detail)",
                ("least thumbnail correlation", "groups", "images in them", "largest", "largest, unconfirmed"),
                tuple(sizes.cells() for sizes in self.frame_sizes),
            ),
            Table(
                f"The same with other crops and scales (this report uses {ALIGNED:.2f})",
                ("least score of aligned pairs", "groups", "images in them", "largest"),
                tuple(sizes.cells() for sizes in self.aligned_sizes),
            ),
            Table("Lesions that a framing cuts", ("framing", *names), tuple(self._cut_rows(names))),
        ]
        if self.annotated:
            tables.append(self._annotations_table(names))
        return tables + self._lists()

    def _class_row(self, name: str) -> tuple[str, ...]:
        images = self._of(name)
        modes = Counter(image.mode for image in images)
        return (
            name,
            str(len(images)),
            str(sum(bool(image.masks) for image in images)),
            "/".join(map(str, _low_median_high(image.width for image in images))),
            "/".join(map(str, _low_median_high(image.height for image in images))),
            ", ".join(f"{n} {mode}" for mode, n in sorted(modes.items())),
        )

    def _cut_rows(self, names: Sequence[str]) -> Iterable[tuple[str, ...]]:
        for framing, by_class in self.cuts.items():
            row = [framing]
            for name in names:
                cut, lesions = by_class.get(name, (0, 0))
                row.append(f"{cut} of {lesions}" if lesions else "no masks")
            yield tuple(row)

    def _annotations_table(self, names: Sequence[str]) -> Table:
        kinds_of = dict(self.annotated)
        rows = []
        for name in names:
            kinds_of_class = [kinds_of.get(image.file, ()) for image in self._of(name)]
            counts = [sum(kind in kinds for kinds in kinds_of_class) for kind in KINDS]
            annotated = sum(map(bool, kinds_of_class))
            rows.append((name, str(len(kinds_of_class)), *map(str, counts), str(annotated)))
        return Table("Burned-in annotations (some are missed)", ("class", "images", *KINDS, "either"), tuple(rows))

    def _lists(self) -> list[Table]:
        """One table for each kind of finding that has a case, a row a case."""
        conflicts = [(" = ".join(group),) for group in self.conflicts]
        exact = [(" = ".join(group),) for group in self.exact]
        dark = [(file, f"{level} of 255") for file, level in self.dark]
        coloured = [(file, f"{share:.1%}") for file, share in self.coloured]
        lists = (
            ("Label conflicts: the same image in more than one class", ("files",), conflicts),
            ("Exact duplicates: the same pixels", ("files",), exact),
            ("Unreadable files", ("file", "reason"), self.unreadable),
            ("Mask problems", ("file", "problem"), self.mask_problems),
            (
                "Almost black images: if they hold 12 bits in 16, multiply them by 16",
                ("file", "brightest pixel"),
                dark,
            ),
            ("Colour overlays", ("file", "coloured pixels"), coloured),
        )
        return [Table(f"{title} ({len(rows)})", columns, tuple(rows)) for title, columns, rows in lists if rows]


def _low_median_high(values: Iterable[int]) -> tuple[int, int, int]:
    ordered = sorted(values)
    return ordered[0], round(median(ordered)), ordered[-1]


def check(
    folder: Path,
    classes: Sequence[str] | None = None,
    metadata: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CheckReport:
    """Check the images of a folder. classes None: every sub-folder is a class.

    progress(images examined, images). UserError where the folder or the metadata cannot be used.
    """
    scanned = scan(folder, classes if classes is not None else class_names(folder), metadata)
    images = scanned.images
    examinations: list[Examination] = []
    with ThreadPoolExecutor(READ_THREADS) as pool:
        for examination in pool.map(lambda image: examine(folder, image), images):
            examinations.append(examination)
            if progress:
                progress(len(examinations), len(images))
    coloured, annotated, dark = [], [], []
    problems = [(file, "a mask without its image") for file in scanned.stray_masks]
    for image, examination in zip(images, examinations, strict=True):
        if examination.coloured > 0:
            coloured.append((image.file, examination.coloured))
        if examination.annotations:
            annotated.append((image.file, examination.annotations))
        if examination.brightest < DARK:
            dark.append((image.file, examination.brightest))
        problems += examination.mask_problems
    signatures = [examination.signature for examination in examinations]
    pairs = duplicate_pairs([image.file for image in images], signatures, min(FRAME_THRESHOLDS))
    duplicates = pairs.groups()
    class_of = {image.file: image.class_name for image in images}
    return CheckReport(
        images=images,
        unreadable=scanned.unreadable,
        exact=tuple(pairs.exact),
        duplicates=tuple(duplicates),
        frame_sizes=tuple(_frame_sizes(pairs, threshold) for threshold in FRAME_THRESHOLDS),
        aligned_sizes=tuple(_sizes(t, pairs.groups(aligned=t)) for t in ALIGNED_THRESHOLDS),
        conflicts=tuple(group for group in duplicates if len({class_of[file] for file in group}) > 1),
        coloured=tuple(coloured),
        annotated=tuple(annotated),
        mask_problems=tuple(_summarise_empty_masks(problems, images)),
        cuts=_count_cuts(images, examinations),
        dark=tuple(dark),
    )


@dataclass(frozen=True)
class Examination:
    """What is measured of one image."""

    signature: Signature
    brightest: int
    """Grey level."""
    coloured: float
    """Share of coloured pixels."""
    annotations: tuple[str, ...]
    """Of KINDS."""
    mask_problems: list[tuple[str, str]]
    cuts: dict[str, float]
    """framing -> share of the lesion that it cuts off; empty without a lesion."""


def examine(folder: Path, image: SourceImage) -> Examination:
    """Read an image and its masks once, and measure all that the check reports."""
    path = folder / image.file
    pixels = read_grey(path)
    rgb = read_rgb(path)
    coloured = 0.0
    if rgb is not None:
        coloured = float((np.ptp(rgb.astype(np.int16), axis=2) >= COLOURED).mean())
    lesion, problems = lesion_mask(folder, image, pixels.shape)
    cuts = {}
    if lesion is not None and lesion.any():
        cuts = {framing: cut_share(lesion, framing) for framing in FRAMINGS}
    return Examination(
        signature=signature(pixels),
        brightest=int(pixels.max()),
        coloured=coloured,
        annotations=find_annotations(pixels).kinds,
        mask_problems=problems,
        cuts=cuts,
    )


def _count_cuts(
    images: Sequence[SourceImage], examinations: Sequence[Examination]
) -> dict[str, dict[str, tuple[int, int]]]:
    """framing -> class -> (lesions that it cuts, lesions)."""
    counts = {}
    for framing in FRAMINGS:
        lesions: Counter[str] = Counter()
        cut: Counter[str] = Counter()
        for image, examination in zip(images, examinations, strict=True):
            if framing in examination.cuts:
                lesions[image.class_name] += 1
                cut[image.class_name] += examination.cuts[framing] > 0
        counts[framing] = {name: (cut[name], lesions[name]) for name in sorted(lesions)}
    return counts


def _summarise_empty_masks(problems: Sequence[tuple[str, str]], images: Iterable[SourceImage]) -> list[tuple[str, str]]:
    """One line instead of one per image for a class whose masks are all empty: it has no
    lesions."""
    masks: Counter[str] = Counter()
    for image in images:
        masks[image.class_name] += len(image.masks)
    empty = Counter(file.split("/")[0] for file, problem in problems if problem == "empty")
    lesionless = [name for name, n in empty.items() if n == masks[name]]
    lines = [(f"{name}/", f"all {empty[name]} masks are empty: a class without lesions") for name in lesionless]
    for file, problem in problems:
        if problem != "empty" or file.split("/")[0] not in lesionless:
            lines.append((file, problem))
    return lines


def _frame_sizes(pairs: DuplicatePairs, threshold: float) -> GroupSizes:
    unconfirmed = pairs.groups(thumbnail=threshold, detail=-1)  # a correlation is never below -1
    largest = max((len(group) for group in unconfirmed), default=0)
    return _sizes(threshold, pairs.groups(thumbnail=threshold), largest)


def _sizes(threshold: float, groups: Sequence[Sequence[str]], largest_unconfirmed: int | None = None) -> GroupSizes:
    sizes = [len(group) for group in groups]
    return GroupSizes(threshold, len(sizes), sum(sizes), max(sizes, default=0), largest_unconfirmed)
