"""Which copies of real images the check joins, and which strangers, on a folder of real images.

    nice -n 15 python benchmarks/duplicates.py BUSI

Prints the tables of benchmarks/duplicates.md. Each row plants a copy of PLANTED of the IMAGES
images, and groups and splits all of them together, as a run does.
"""

import io
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from busray.data.duplicates import duplicate_pairs, signature
from busray.data.read import class_names, scan
from busray.data.split import SPLITS, split
from busray.records import SourceImage

IMAGES = 120
PLANTED = 40
"""Images that copies are made of, the first ones."""
LEAST = 0.9
"""Least thumbnail correlation: what the check uses."""

Change = Callable[[Image.Image, np.random.Generator], Image.Image]


def crop(area: float) -> Change:
    """A part of this area at a random place, enlarged by a factor of 1.2."""

    def change(image: Image.Image, rng: np.random.Generator) -> Image.Image:
        width, height = (round(area**0.5 * side) for side in image.size)
        left, top = (int(rng.integers(0, whole - part + 1)) for whole, part in zip(image.size, (width, height)))
        part = image.crop((left, top, left + width, top + height))
        return part.resize((round(1.2 * width), round(1.2 * height)), Image.Resampling.BICUBIC)

    return change


def stretch(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return image.resize((round(0.8 * image.width), image.height), Image.Resampling.BICUBIC)


def turn(degrees: float) -> Change:
    """Within its own frame; the corners are black."""
    return lambda image, rng: image.rotate(degrees, Image.Resampling.BICUBIC)


def flip(method: Image.Transpose) -> Change:
    return lambda image, rng: image.transpose(method)


def invert(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return image.point(lambda value: 255 - value)


def speckle(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    pixels = np.asarray(image) * rng.normal(1, 0.2, image.size[::-1])
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def blur(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(min(image.size) / 100))


def brighten(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return image.resize((image.width // 2, image.height // 2)).point(lambda value: min(255, 0.8 * value + 30))


MIRROR = flip(Image.Transpose.FLIP_LEFT_RIGHT)
COPIES: dict[str, list[Change]] = {
    "half the size, brighter": [brighten],
    "blurred": [blur],
    "new speckle": [speckle],
    "stretched by a fifth": [stretch],
    "mirrored": [MIRROR],
    "upside down": [flip(Image.Transpose.FLIP_TOP_BOTTOM)],
    "turned by 90 degrees": [flip(Image.Transpose.ROTATE_90)],
    "turned by 180 degrees": [flip(Image.Transpose.ROTATE_180)],
    "turned by 270 degrees": [flip(Image.Transpose.ROTATE_270)],
    "turned by 3 degrees": [turn(3)],
    "turned by -10 degrees": [turn(-10)],
    "turned by 30 degrees": [turn(30)],
    "inverted": [invert],
    "cropped to 70 % of the area": [crop(0.7)],
    "cropped to 50 %": [crop(0.5)],
    "cropped to 35 %": [crop(0.35)],
    "cropped to 25 %": [crop(0.25)],
    "cropped to 16 %": [crop(0.16)],
    "mirrored, stretched by a fifth": [MIRROR, stretch],
    "mirrored, cropped to 50 %": [MIRROR, crop(0.5)],
    "turned by 90 degrees, cropped to 50 %": [flip(Image.Transpose.ROTATE_90), crop(0.5)],
    "mirrored, turned by 7 degrees, cropped to 50 %, inverted": [MIRROR, turn(7), crop(0.5), invert],
    "cropped to 50 %, new speckle": [crop(0.5), speckle],
    "cropped to 50 %, stretched by a fifth": [crop(0.5), stretch],
}
"""Every copy is written as JPEG of quality 85 in the end."""


def copied(image: Image.Image, changes: list[Change], rng: np.random.Generator) -> np.ndarray:
    for change in changes:
        image = change(image, rng)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return np.asarray(Image.open(file))


def grey(path: Path) -> Image.Image:
    return Image.open(path).convert("L")


def pair_count(found: list[tuple[str, ...]], unit_of: dict[str, str]) -> int:
    """Joins between units that belong apart."""
    return sum(len({unit_of[file] for file in group}) - 1 for group in found)


def main(folder: Path) -> None:
    images = scan(folder, class_names(folder), None).images
    started = time.process_time()
    signatures = {image.file: signature(np.asarray(grey(folder / image.file))) for image in images}
    whole = duplicate_pairs(list(signatures), list(signatures.values()), LEAST).groups()
    seconds = time.process_time() - started
    print(f"{len(images)} images: {len(whole)} groups of {sum(map(len, whole))} images, {seconds:.0f} s (CPU)")
    chosen = [images[i] for i in np.random.default_rng(0).permutation(len(images))[:IMAGES]]
    unit_of = {image.file: image.file for image in images}
    for group in whole:
        unit_of |= dict.fromkeys(group, group[0])
    print(f"\n| a copy that is | found of {PLANTED} | on both sides of the split | strangers joined |")
    print("| --- | ---: | ---: | ---: |")
    for name, changes in COPIES.items():
        rng = np.random.default_rng(0)
        every, every_signature = list(chosen), [signatures[image.file] for image in chosen]
        copies: dict[str, SourceImage] = {}
        for image in chosen[:PLANTED]:
            copy = replace(image, file=f"{image.file} copy")
            copies[image.file], unit_of[copy.file] = copy, unit_of[image.file]
            every.append(copy)
            every_signature.append(signature(copied(grey(folder / image.file), changes, rng)))
        groups = duplicate_pairs([image.file for image in every], every_signature, LEAST).groups()
        group_of = {file: number for number, group in enumerate(groups) for file in group}
        sides = split(every, groups, [], 0.15, 0.15, 0)
        side_of = {image.file: side for side in SPLITS for image in sides[side]}
        found = sum(file in group_of and group_of[file] == group_of.get(c.file) for file, c in copies.items())
        crossing = sum(side_of[file] != side_of[c.file] for file, c in copies.items())
        print(f"| {name} | {found} | {crossing} | {pair_count(groups, unit_of)} |", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
