"""A blinded reader study: real and synthetic images for readers, and scores of the returned sheets.

The key lies outside the folder that readers get. Only its pixels show whether an image is real:
order, names, encoder, file size and time stamp are the same for both sides, or random. Burned-in
text or a maker's mark in the pixels stays visible.
"""

import csv
import io
import os
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from busray.corpus.commit import read_commit, read_rows
from busray.corpus.encode import png_pixels
from busray.corpus.manifest import published_rows
from busray.data.images import ImageFolder
from busray.evidence.stats.intervals import Estimate, wilson
from busray.evidence.stats.separability import auc
from busray.identity import sha256_bytes
from busray.records import DataSet, UserError
from busray.storage import Store, naming

SHEET = "sheet.csv"

INSTRUCTIONS = "instructions.txt"

SHEET_COLUMNS = ("image", "real_or_synthetic", "class")

KEY_COLUMNS = ("image", "side", "class", "source", "sha256")

SURE_REAL, SURE_SYNTHETIC = 1, 5

SIDES = ("real", "synthetic")

WRITTEN = 946_684_800
"""Seconds since 1970 that every file is dated: 2000-01-01 UTC."""


@dataclass(frozen=True)
class Exhibit:
    """One image of the study before it is blinded."""

    pixels: np.ndarray
    """uint8 [h, w]"""
    side: str
    """One of SIDES."""
    class_name: str
    source: str
    """A real image's file, a synthetic one's id."""


def real_exhibits(dataset: DataSet, folder: Path, classes: Sequence[str], n: int, seed: int) -> list[Exhibit]:
    """n framed test images of each class, one of each unit; UserError where there are fewer."""
    rng = random.Random(seed)
    exhibits: list[Exhibit] = []
    for name in classes:
        # One image of each unit: a reader who knows a near-duplicate would know this one too.
        by_unit = {image.unit: image for image in dataset.test if image.class_name == name}
        _refuse_too_many(name, "test images that are no duplicates of each other", len(by_unit), n)
        chosen = [by_unit[unit] for unit in rng.sample(sorted(by_unit), n)]
        pixels = ImageFolder(dataset, folder, tuple(classes)).load(chosen).pixels
        for square, image in zip(pixels, chosen, strict=True):
            exhibits.append(Exhibit(square, "real", name, image.file))
    return exhibits


def synthetic_exhibits(store: Store, classes: Sequence[str], n: int, seed: int) -> list[Exhibit]:
    """n random images of each class of the released corpus; UserError where there are fewer."""
    rng = random.Random(seed)
    published = published_rows(store)
    exhibits: list[Exhibit] = []
    for name in classes:
        rows_of = {shard: row["rows"] for shard, row in published.items() if shard.class_name == name}
        total = sum(rows_of.values())
        _refuse_too_many(name, "synthetic images", total, n)
        # Places in the class's corpus as a whole, so that each image is as likely as any other.
        wanted = sorted(rng.sample(range(total), n))
        first = 0
        for shard, rows in rows_of.items():
            places = [place - first for place in wanted if first <= place < first + rows]
            first += rows
            if places:
                table = read_rows(store, read_commit(store, shard)).take(places)
                for row in table.to_pylist():
                    pixels = png_pixels(row["image"]["bytes"])
                    exhibits.append(Exhibit(pixels, "synthetic", name, row["image_id"]))
    return exhibits


def _refuse_too_many(name: str, what: str, available: int, wanted: int) -> None:
    if available < wanted:
        raise UserError(f"--images={wanted}: class {name} has {available} {what}; ask for no more than {available}")


def blind(exhibits: Sequence[Exhibit], seed: int) -> tuple[dict[str, bytes], bytes]:
    """(file name -> bytes of the readers' folder, bytes of the key), shuffled by seed and named
    by place.

    The seed decides which name is which side: it must be random and stay with the key. ValueError
    where the images differ in size.
    """
    shapes = {exhibit.pixels.shape for exhibit in exhibits}
    if len(shapes) != 1:
        raise ValueError(f"images of one size are needed, not of {sorted(shapes)}")
    order = list(exhibits)
    # Sides and classes mixed: the place in the folder must tell nothing.
    random.Random(seed).shuffle(order)
    # Leading zeros: every viewer then shows the images in this order.
    digits = len(str(len(order)))
    names = [f"{i + 1:0{digits}d}.png" for i in range(len(order))]
    images = {name: plain_png(exhibit.pixels) for name, exhibit in zip(names, order, strict=True)}
    key = [
        (name, exhibit.side, exhibit.class_name, exhibit.source, sha256_bytes(images[name]))
        for name, exhibit in zip(names, order, strict=True)
    ]
    classes = sorted({exhibit.class_name for exhibit in exhibits})
    sheet = _csv(SHEET_COLUMNS, [(name, "", "") for name in names])
    return {**images, SHEET: sheet, INSTRUCTIONS: instructions(classes).encode()}, _csv(KEY_COLUMNS, key)


def plain_png(pixels: np.ndarray) -> bytes:
    """uint8 [h, w] as a grey PNG without text chunks. It is not compressed, so that its length
    shows nothing but the size."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "png", compress_level=0)
    return buffer.getvalue()


def instructions(classes: Sequence[str]) -> str:
    return f"""Some of these breast-ultrasound images are scans of patients, some are synthetic; how many is not said.

Fill in {SHEET}, one line per image, in any order. Leave the lines' first column as it is.

real_or_synthetic   1 surely real, 2 probably real, 3 cannot tell, 4 probably synthetic, 5 surely synthetic
class               one of: {", ".join(classes)}

Look at each image once, at the same magnification, without editing it. Do not talk about it with other readers
before all have handed in their sheets. Save the sheet as CSV under your name or initials.
Not for clinical use.
"""


def write_study(folder: Path, files: Mapping[str, bytes], key: bytes) -> Path:
    """Write the readers' folder and the key beside it; returns the key's path. UserError where
    either exists."""
    key_path = folder.with_name(f"{folder.name}-key.csv")
    for path in (folder, key_path):
        if path.exists():
            raise UserError(f"{path}: exists already; name another folder: a study must not overwrite another's key")
    folder.mkdir(parents=True)
    # The key first: images without a key could never be scored.
    with naming(key_path):
        key_path.write_bytes(key)
    for name, data in sorted(files.items()):
        with naming(folder / name):
            (folder / name).write_bytes(data)
        # The time of writing would tell real images from synthetic ones.
        os.utime(folder / name, (WRITTEN, WRITTEN))
    return key_path


@dataclass(frozen=True)
class Share:
    """A part of a whole, as counts."""

    part: int
    whole: int

    @property
    def estimate(self) -> Estimate:
        return Estimate(self.part / self.whole, wilson(self.part, self.whole))


@dataclass(frozen=True)
class Score:
    """The result of one reader's sheet."""

    auc: Estimate
    """Of distinguishing synthetic from real by the scale of 1 to 5; 0.5 is guessing."""
    real: int
    synthetic: int
    """Images."""
    class_real: Share
    """Real images whose class was named as labelled."""
    class_synthetic: Share
    """Synthetic images whose class was named as in their prompt."""


def score(sheet: Path, key: Path) -> Score:
    """Score a returned sheet; one UserError where it is incomplete, altered or of another study."""
    truth = {row["image"]: row for row in _rows(key, KEY_COLUMNS, "key")}
    answers = _answers(_rows(sheet, SHEET_COLUMNS, "sheet"), truth, sheet)
    ratings: dict[str, np.ndarray] = {}
    class_named: dict[str, Share] = {}
    for side in SIDES:
        names = [name for name, row in truth.items() if row["side"] == side]
        if not names:
            raise UserError(f"key {key}: it needs images of both sides, {' and '.join(SIDES)}")
        ratings[side] = np.array([int(answers[name]["real_or_synthetic"]) for name in names])
        right = sum(answers[name]["class"].strip() == truth[name]["class"] for name in names)
        class_named[side] = Share(right, len(names))
    return Score(
        auc(ratings["synthetic"], ratings["real"]),
        len(ratings["real"]),
        len(ratings["synthetic"]),
        class_named["real"],
        class_named["synthetic"],
    )


def _answers(
    rows: Sequence[Mapping[str, str]], truth: Mapping[str, Mapping[str, str]], sheet: Path
) -> dict[str, Mapping[str, str]]:
    """image -> its row. UserError with all that is wrong at once: readers get a sheet back only
    once."""
    counts = Counter(row["image"] for row in rows)
    classes = sorted({row["class"] for row in truth.values()})
    scale = [str(value) for value in range(SURE_REAL, SURE_SYNTHETIC + 1)]
    problems = {
        "not images of this study": sorted(set(counts) - set(truth)),
        "lines missing": sorted(set(truth) - set(counts)),
        "named more than once": sorted(name for name, n in counts.items() if n > 1),
        f"real_or_synthetic is not one of {', '.join(scale)}": [
            row["image"] for row in rows if row["real_or_synthetic"].strip() not in scale
        ],
        f"class is not one of {', '.join(classes)}": [
            row["image"] for row in rows if row["class"].strip() not in classes
        ],
    }
    sentences = [f"{what}: {len(names)} ({', '.join(names[:3])})" for what, names in problems.items() if names]
    if sentences:
        raise UserError(
            f"sheet {sheet}: {'; '.join(sentences)}. Nothing was scored: complete the sheet as it was handed out"
        )
    return {row["image"]: row for row in rows}


def _csv(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> bytes:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return buffer.getvalue().encode()


def _rows(path: Path, columns: Sequence[str], what: str) -> list[dict[str, str]]:
    """The rows of a CSV with these columns. Some spreadsheets separate cells by semicolons."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror or error) if isinstance(error, OSError) else "not UTF-8 text; save it as CSV UTF-8"
        raise UserError(f"{what} {path}: {reason}") from error
    # By the first line, which has no free text. Answers may have either character.
    separator = ";" if ";" in text.partition("\n")[0] else ","
    reader = csv.DictReader(io.StringIO(text), delimiter=separator, strict=True)
    try:
        rows = list(reader)
    except csv.Error as error:
        raise UserError(f"{what} {path}: no CSV: {error}") from error
    if tuple(reader.fieldnames or ()) != tuple(columns):
        raise UserError(f"{what} {path}: its columns are {reader.fieldnames}, expected {', '.join(columns)}")
    # DictReader marks surplus cells by a None key and missing ones by None values.
    incomplete = [i for i, row in enumerate(rows, 2) if None in row or None in row.values()]
    if incomplete:
        raise UserError(f"{what} {path}: line {incomplete[0]} does not have {len(columns)} cells")
    return rows
