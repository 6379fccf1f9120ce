"""What the copy test finds of planted copies and takes real images for, on a folder of real images.

    nice -n 15 python benchmarks/copies.py BUSI

Prints the tables of benchmarks/copies.md. The images are split and framed as in a run (letterbox,
SIZE px). Scores use squares of pixels only: features would propose more pairs, never fewer.
"""

import sys
import time
from pathlib import Path

import numpy as np

from busray.config import Dataset
from busray.data.images import ImageFolder
from busray.data.prepare import prepare
from busray.data.read import class_names
from busray.evidence.copies import KINDS, Originals, are_copies, plant_copies, thresholds, unpadded
from busray.evidence.stats.intervals import wilson
from busray.records import SourceImage

SIZE = 128
PLANTED = 40
"""Training images that copies are made of."""
CORPORA = (1_000, 10_000, 1_000_000)


def main(folder: Path) -> None:
    classes = class_names(folder)
    dataset, _ = prepare(Dataset(path=str(folder)), classes, SIZE, folder)
    image_folder = ImageFolder(dataset, folder, tuple(classes))
    held_out = dataset.val + dataset.test

    def scans(images: tuple[SourceImage, ...]) -> tuple[list[np.ndarray], list[np.ndarray | None]]:
        loaded, masks = image_folder.load(images), image_folder.masks(images)
        lesions = [cut if ok else None for cut, ok in zip(unpadded(masks.lesions, loaded.boxes), masks.known)]
        return unpadded(loaded.pixels, loaded.boxes), lesions

    contents, lesions = scans(dataset.train)
    originals = Originals.of(contents, lesions)
    started = time.process_time()
    hosts, _ = scans(held_out)
    real = np.array([originals.find(i, content) for i, content in enumerate(hosts)])
    seconds = (time.process_time() - started) / len(real)
    chosen = np.random.default_rng(0).choice(len(contents), PLANTED, replace=False)
    copies = plant_copies([contents[i] for i in chosen], [lesions[i] for i in chosen], hosts, seed=0)
    found = {name: np.array([originals.find(i, c) for i, c in enumerate(made)]) for name, made in copies.items()}

    print(f"{len(contents)} training images, {len(real)} held out, {SIZE} px {dataset.frame}, {seconds:.2f} s each")
    print(f"\n| corpus of | threshold {' | threshold '.join(KINDS)} | real taken for copies | {' | '.join(found)} |")
    print("| ---: " * (3 + len(KINDS)) + "| ---: " * (len(found) - 1) + "|")
    for images in CORPORA:
        limits = thresholds(real, images)
        shares = [(int(are_copies(rows, limits).sum()), len(rows)) for rows in (real, *found.values())]
        cells = [f"{part} of {n} [{wilson(part, n)[0]:.3f}, {wilson(part, n)[1]:.3f}]" for part, n in shares]
        print(f"| {images:,} | " + " | ".join([f"{limits[kind][0]:.3f}" for kind in KINDS] + cells) + " |")
    print("\n| scores | " + " | ".join(f"{kind} {q:g} %" for kind in KINDS for q in (5, 50, 95, 100)) + " |")
    print("| --- " + "| ---: " * 4 * len(KINDS) + "|")
    for name, rows in {"real held out": real, **found}.items():
        quantiles = [np.quantile(rows[f"{kind}_score"], (0.05, 0.5, 0.95, 1)) for kind in KINDS]
        print(f"| {name} | " + " | ".join(f"{q:.3f}" for q in np.concatenate(quantiles)) + " |")
    for row in sorted(real, key=lambda row: -row["image_score"])[:6]:
        pair = held_out[row["index"]].file, dataset.train[row["image_of"]].file
        print(f"\nhighest of real held out: {pair[0]} and {pair[1]}, {row['image_score']:.3f}", end="")
    print()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
