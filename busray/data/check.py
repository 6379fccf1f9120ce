"""The check of a labelled data set: counts, duplicates, label conflicts, colour overlays,
annotations, masks, and lesions that framing cuts off."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from busray.config import Dataset
from busray.data.account import Account
from busray.data.annotations import KINDS, find_annotations
from busray.data.duplicates import ALIGNED, COPIES, THRESHOLD, DuplicatePairs, Signature, duplicate_pairs, signature
from busray.data.folder import Classes, Side
from busray.data.framing import FRAMINGS, cut_share
from busray.data.patients import Patients
from busray.data.pixels import READ_THREADS, Decoded, by_file, lesion_mask, opened
from busray.data.read import FolderScan, scan
from busray.records import SourceImage

# Thumbnail correlations at which group sizes are reported
FRAME_THRESHOLDS = (0.98, 0.95, 0.90, 0.85, 0.80)
# Scores of aligned pairs at which group sizes are reported
ALIGNED_THRESHOLDS = (0.5, 0.4, 0.3, 0.2, 0.15)
COLOURED = 40  # least difference between the channels (of 255) of a coloured pixel
DARK = 32  # an image whose brightest pixel is below this grey level (of 255) is almost black


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
    images: int  # in all groups together
    largest: int
    # The largest group by thumbnails alone; None for aligned pairs
    largest_unconfirmed: int | None = None

    def to_dict(self) -> dict[str, Any]:
        value = {"threshold": self.threshold, "clusters": self.groups}
        value |= {"images": self.images, "largest": self.largest}
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
    unreadable: tuple[tuple[str, str], ...]  # (file, reason)
    exact: tuple[tuple[str, ...], ...]  # groups of files with the same pixels
    # Groups of near-duplicates at THRESHOLD and ALIGNED, exact duplicates included
    duplicates: tuple[tuple[str, ...], ...]
    # At FRAME_THRESHOLDS of whole frames; aligned pairs from ALIGNED on
    frame_sizes: tuple[GroupSizes, ...]
    # At ALIGNED_THRESHOLDS of aligned pairs; whole frames from THRESHOLD on
    aligned_sizes: tuple[GroupSizes, ...]
    # Groups of near-duplicates whose images are in more than one class
    conflicts: tuple[tuple[str, ...], ...]
    # (file, share of coloured pixels) of images with colour overlays
    coloured: tuple[tuple[str, float], ...]
    # (file, what is burned into it) of images with text or calipers
    annotated: tuple[tuple[str, tuple[str, ...]], ...]
    mask_problems: tuple[tuple[str, str], ...]  # (mask, problem)
    # framing -> class -> (lesions that it cuts, lesions)
    cuts: dict[str, dict[str, tuple[int, int]]] = field(default_factory=dict)
    # (file, its brightest grey level) of images that are almost black
    dark: tuple[tuple[str, int], ...] = ()
    # (file, its copy, how the copy is made of it) of turned, mirrored, inverted or cropped copies
    turned: tuple[tuple[str, str, str], ...] = ()
    odd: tuple[tuple[str, str], ...] = ()  # (file, what is odd about its grey levels)
    flat: tuple[str, ...] = ()  # images whose pixels are all equal; they are compared with none
    patients: Patients = field(default_factory=Patients)
    account: Account = field(default_factory=Account)
    # file -> the split that its folder says, with dataset.split=folders
    sides: dict[str, Side] = field(default_factory=dict[str, Side])

    def to_dict(self) -> dict[str, Any]:
        """What check.json holds."""
        counts, sizes, cuts = {}, {}, {}
        for name, images in self._by_class().items():
            counts[name] = len(images)
            widths, heights = _widths_and_heights(images)
            sizes[name] = {"width": widths, "height": heights}
        for framing, by_class in self.cuts.items():
            cuts[framing] = {name: {"cut": n[0], "lesions": n[1]} for name, n in by_class.items()}
        return {
            "counts": counts,
            "sizes": sizes,
            "modes": dict(Counter(image.mode for image in self.images)),
            "unreadable": self.unreadable,
            "exact_duplicates": self.exact,
            "near_duplicates": self.duplicates,
            "near_duplicate_threshold": THRESHOLD,
            "chains": [sizes.to_dict() for sizes in self.frame_sizes],
            "aligned_threshold": ALIGNED,
            "aligned_chains": [sizes.to_dict() for sizes in self.aligned_sizes],
            "turned_duplicates": [{"files": [file, copy], "how": how} for file, copy, how in self.turned],
            "copies_looked_for": [{"copy": copy, "looked_for": looked_for} for copy, looked_for in COPIES],
            "label_conflicts": self.conflicts,
            "colour_overlays": [{"file": file, "share": share} for file, share in self.coloured],
            "annotations": [{"file": file, "found": list(kinds)} for file, kinds in self.annotated],
            "almost_black": [{"file": file, "brightest": level} for file, level in self.dark],
            "odd_levels": [{"file": file, "found": found} for file, found in self.odd],
            "flat": self.flat,
            "readings": {image.file: image.reading for image in self.images if image.reading},
            "patients": self.patients.to_dict(),
            "mask_problems": self.mask_problems,
            "lesions_cut": cuts,
            "account": self.account.to_dict(),
        }

    def _by_class(self) -> dict[str, list[SourceImage]]:
        by_class: dict[str, list[SourceImage]] = {}
        for image in sorted(self.images, key=lambda image: image.class_name):
            by_class.setdefault(image.class_name, []).append(image)
        return by_class

    def tables(self) -> list[Table]:
        """What people read, most important first. Findings without a case are left out."""
        kinds_of, by_class = dict(self.annotated), self._by_class()
        classes, annotations, names = [], [], list(by_class)
        for name, images in by_class.items():
            classes.append(_class_row(name, images))
            counts: Counter[str] = Counter(dict.fromkeys(KINDS, 0))
            for image in images:
                counts.update(kinds_of.get(image.file, ()))
            annotated = sum(image.file in kinds_of for image in images)
            annotations.append(_cells(name, len(images), *map(counts.get, KINDS), annotated))
        tables = [
            Table(
                "Images per class",
                ("class", "images", "with mask", "width min/median/max", "height min/median/max", "modes"),
                tuple(classes),
            ),
            Table(
                f"Groups of near-duplicates (this report uses {THRESHOLD:.2f}, confirmed by fine detail)",
                ("least thumbnail correlation", "groups", "images in them", "largest", "largest, unconfirmed"),
                tuple(map(GroupSizes.cells, self.frame_sizes)),
            ),
            Table(
                f"The same with other crops and scales (this report uses {ALIGNED:.2f})",
                ("least score of aligned pairs", "groups", "images in them", "largest"),
                tuple(map(GroupSizes.cells, self.aligned_sizes)),
            ),
            Table("Which copies are looked for", ("a copy that is", "looked for"), COPIES),
            Table("Patients", ("what is known",), tuple((said,) for said in self.patients.sentences())),
            Table("Lesions that a framing cuts", ("framing", *names), self._cut_rows(names)),
        ]
        account = self.account
        if account.files:
            title = f"Every file of the folder ({len(account.files)})"
            tables.insert(1, Table(title, ("what it is", "files", "such as"), account.rows()))
        if account.remarks():
            tables.insert(2, Table("Of this folder", ("to know",), tuple((one,) for one in account.remarks())))
        if self.annotated:
            title = "Burned-in annotations (some are missed)"
            tables.append(Table(title, ("class", "images", *KINDS, "either"), tuple(annotations)))
        return tables + self._lists()

    def _cut_rows(self, names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
        rows = []
        for framing, by_class in self.cuts.items():
            row = [framing]
            for name in names:
                cut, lesions = by_class.get(name, (0, 0))
                row.append(f"{cut} of {lesions}" if lesions else "no masks")
            rows.append(tuple(row))
        return tuple(rows)

    def _readings(self) -> list[tuple[str, str, str]]:
        """(how levels are read, images, the first one), where the format does not say how."""
        files_of: dict[str, list[str]] = {}
        for image in self.images:
            if image.reading:
                files_of.setdefault(image.reading, []).append(image.file)
        return [(reading, str(len(files)), files[0]) for reading, files in sorted(files_of.items())]

    def _lists(self) -> list[Table]:
        """One table for each kind of finding that has a case, a row a case."""
        conflicts = [(" = ".join(group),) for group in self.conflicts]
        exact = [(" = ".join(group),) for group in self.exact]
        turned = [(f"{file} = {copy}", how) for file, copy, how in self.turned]
        coloured = [(file, f"{share:.1%}") for file, share in self.coloured]
        tables = []
        for title, columns, rows in (
            ("Label conflicts: the same image in more than one class", ("files",), conflicts),
            ("Exact duplicates: the same pixels", ("files",), exact),
            ("Near-duplicates that are turned, mirrored, inverted or cropped", ("files", "the second is"), turned),
            ("Unreadable files", ("file", "reason"), self.unreadable),
            ("Mask problems", ("file", "problem"), self.mask_problems),
            ("Images whose grey levels are odd", ("file", "what was found"), self.odd),
            ("Colour overlays", ("file", "coloured pixels"), coloured),
        ):
            if rows:
                tables.append(Table(f"{title} ({len(rows)})", columns, tuple(rows)))
        if readings := self._readings():
            title = "Images whose levels are not those of their type, and how they are read"
            tables.append(Table(title, ("read as", "images", "such as"), tuple(readings)))
        return tables


def _class_row(name: str, images: Sequence[SourceImage]) -> tuple[str, ...]:
    modes = Counter(image.mode for image in images)
    widths, heights = _widths_and_heights(images)
    return _cells(
        name,
        len(images),
        sum(bool(image.masks) for image in images),
        "/".join(map(str, widths)),
        "/".join(map(str, heights)),
        ", ".join(f"{n} {mode}" for mode, n in sorted(modes.items())),
    )


def _cells(*values: object) -> tuple[str, ...]:
    return tuple(map(str, values))


Spread = tuple[int, int, int]  # least, median, largest


def _widths_and_heights(images: Sequence[SourceImage]) -> tuple[Spread, Spread]:
    widths = sorted(image.width for image in images)
    heights = sorted(image.height for image in images)
    return (
        (widths[0], round(median(widths)), widths[-1]),
        (heights[0], round(median(heights)), heights[-1]),
    )


def check(
    folder: Path,
    classes: Classes = None,
    metadata: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    settings: Dataset | None = None,
) -> CheckReport:
    """Check the images of a folder. classes: as scan().

    progress(images examined, images). UserError where the folder or the metadata cannot be used.
    """
    scanned = scan(folder, classes, metadata, settings)
    examination_of: dict[str, Examination] = {}
    with ThreadPoolExecutor(READ_THREADS) as pool:
        for examinations in pool.map(partial(_examine_file, scanned.root), by_file(scanned.images)):
            examination_of |= examinations
            if progress:
                progress(len(examination_of), len(scanned.images))
    return _report(scanned, examination_of)


def _report(scanned: FolderScan, examination_of: Mapping[str, "Examination"]) -> CheckReport:
    coloured, annotated, dark, files, signatures = [], [], [], [], []
    problems = [(file, "a mask without its image") for file in scanned.stray_masks]
    flat = frozenset(scanned.flat)
    class_of = {image.file: image.class_name for image in scanned.images}
    cuts: dict[str, dict[str, tuple[int, int]]] = {framing: {} for framing in FRAMINGS}
    for image in scanned.images:
        examination = examination_of[image.file]
        if image.file not in flat:  # whatever shows nothing is nobody's copy
            files.append(image.file)
            signatures.append(examination.signature)
        if examination.coloured > 0:
            coloured.append((image.file, examination.coloured))
        if examination.annotations:
            annotated.append((image.file, examination.annotations))
        if examination.brightest < DARK:
            dark.append((image.file, examination.brightest))
        problems += examination.mask_problems
        for framing, share in examination.cuts.items():
            cut, lesions = cuts[framing].get(image.class_name, (0, 0))
            cuts[framing][image.class_name] = (cut + (share > 0), lesions + 1)
    pairs = duplicate_pairs(files, signatures, min(FRAME_THRESHOLDS))
    duplicates = pairs.groups()
    conflicts = []
    for group in duplicates:
        if len({class_of[file] for file in group}) > 1:
            conflicts.append(group)
    turned = [(files[pair.i], files[pair.j], pair.how) for pair in pairs.turned]
    return CheckReport(
        images=scanned.images,
        unreadable=scanned.unreadable,
        exact=tuple(pairs.exact),
        duplicates=tuple(duplicates),
        frame_sizes=tuple(_frame_sizes(pairs, threshold) for threshold in FRAME_THRESHOLDS),
        aligned_sizes=tuple(_sizes(t, pairs.groups(aligned=t)) for t in ALIGNED_THRESHOLDS),
        conflicts=tuple(conflicts),
        coloured=tuple(coloured),
        annotated=tuple(annotated),
        mask_problems=tuple(_summarise_empty_masks(problems, scanned.images)),
        cuts=cuts,
        dark=tuple(dark),
        turned=tuple(turned),
        odd=scanned.odd,
        flat=scanned.flat,
        patients=scanned.patients,
        account=scanned.account,
        sides=scanned.sides,
    )


@dataclass(frozen=True)
class Examination:
    """What is measured of one image."""

    signature: Signature
    brightest: int  # grey level
    coloured: float  # share of coloured pixels
    annotations: tuple[str, ...]  # of KINDS
    mask_problems: list[tuple[str, str]]
    cuts: dict[str, float]  # framing -> share of the lesion that it cuts off; {} without a lesion


def _examine_file(folder: Path, images: Sequence[SourceImage]) -> dict[str, Examination]:
    """The examination of each image of one file."""
    with opened(folder / images[0].path, images[0].grey_bits) as decode:
        return {image.file: examine(folder, image, decode(image.frame)) for image in images}


def examine(folder: Path, image: SourceImage, decoded: Decoded) -> Examination:
    """Read an image's masks, and measure all that the check reports."""
    pixels, rgb = decoded.grey, decoded.rgb
    coloured = 0.0
    if rgb is not None:
        coloured = float((np.ptp(rgb.astype(np.int16), axis=2) >= COLOURED).mean())
    lesion, problems = lesion_mask(folder, image, pixels.shape)
    cuts = {}
    if lesion is not None and lesion.any():
        cuts = {framing: cut_share(lesion, framing) for framing in FRAMINGS}
    annotations = find_annotations(pixels).kinds
    return Examination(signature(pixels), int(pixels.max()), coloured, annotations, problems, cuts)


def _summarise_empty_masks(problems: Sequence[tuple[str, str]], images: Iterable[SourceImage]) -> list[tuple[str, str]]:
    """The problems, but one line for a class whose masks are all empty: it has no lesions."""
    class_of: dict[str, str] = {}
    for image in images:
        class_of |= dict.fromkeys(image.masks, image.class_name)
    masks = Counter(class_of.values())
    empty = Counter(class_of[file] for file, problem in problems if problem == "empty")
    lesionless = [name for name, n in empty.items() if n == masks[name]]
    lines = []
    for name in lesionless:
        lines.append((f"{name}/", f"all {empty[name]} masks are empty: a class without lesions"))
    for file, problem in problems:
        if problem != "empty" or class_of[file] not in lesionless:
            lines.append((file, problem))
    return lines


def _frame_sizes(pairs: DuplicatePairs, threshold: float) -> GroupSizes:
    unconfirmed = pairs.groups(thumbnail=threshold, detail=-1)  # a correlation is never below -1
    largest = max(map(len, unconfirmed), default=0)
    return _sizes(threshold, pairs.groups(thumbnail=threshold), largest)


def _sizes(threshold: float, groups: Sequence[Sequence[str]], largest_unconfirmed: int | None = None) -> GroupSizes:
    sizes = list(map(len, groups))
    return GroupSizes(threshold, len(sizes), sum(sizes), max(sizes, default=0), largest_unconfirmed)
