"""Lesions as masks show them: is there one, how large, how tall, how near to an ellipse; and what that says of an arm.

Drawn images have no masks but a segmenter's (pseudo-masks), which errs. So real held-out images are measured the same
way, and stand once more by their true masks beside it, so that the segmenter's own bias is seen. Figures are a class's
only: arms and real images have other shares of each class, so a mean over all would compare these.

Pure: masks and numbers in, records and text out. Of several lesions the largest is measured. Under the frame `stretch`
aspects are those of the stretched images, drawn and real alike.
"""

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape as _e

import numpy as np

from busray.data.annotations import components
from busray.quality.figures import FEWEST, REAL, Features, Real, Sample, some
from busray.quality.kernel import PERMUTATIONS, Estimate, picked
from busray.quality.page import table
from busray.quality.readers import wilson
from busray.quality.study import t_quantile
from busray.quality.tables import NONE, Json
from busray.records import CLASS_ALL, Box, Figure

NAME = "segmenter-1"
"""Extractor of what pseudo-masks measure. Another network or definition of a measure is another number."""
TRUE = "masks"
"""Extractor of what the data set's own masks measure."""
MEASURES = ("area", "aspect", "ellipticity")
COLUMNS = ("found", *MEASURES)
BLOCK = 500
"""Permutations that are in memory at once."""
SPECK = 1e-3
"""Share of the content below which an area is no lesion: BUSI's smallest has 2.9e-3."""
FLOOR = {"test": "val", "val": "test"}
"""reference -> the split held against it: neither was trained on. Of training images pseudo-masks are too good."""

DICE, FOUND, TALLER = "lesion_dice", "lesion_found", "lesion_taller_than_wide"
"""Dice of the segmenter's masks of real test images with lesions; share of images in which there is a lesion; share of
lesions whose aspect is above 1."""


# ---- measuring ------------------------------------------------------------------------------------------------------


def measures(masks: np.ndarray, boxes: Sequence[Box]) -> np.ndarray:
    """bool [n, s, s] and where each image's content lies -> float64 [n, 4], columns as in COLUMNS.

    found: 1 or 0. Of the largest 8-connected area, NaN where nothing is found: area, its share of the content box;
    aspect, height over width, as the ratio of its standard deviations downwards and sideways: for an ellipse, turned
    or not, that of its bounding box, but a stray pixel does not change it. Above 1 is taller than wide, a sign of
    malignancy (Stavros et al. 1995, doi 10.1148/radiology.196.1.7862998; ACR BI-RADS: orientation not parallel).
    ellipticity: its area over that of the ellipse with its second moments, squared: 1 for an ellipse, less for any
    other shape (Rosin 2003, doi 10.1007/s00138-002-0118-6).
    """
    found = np.full((len(masks), len(COLUMNS)), np.nan)
    for row, mask, box in zip(found, masks, boxes, strict=True):
        ys, xs = max(components(mask), key=lambda c: len(c[0]), default=(np.zeros(0), np.zeros(0)))
        share = len(ys) / (box.width * box.height)
        row[0] = share >= SPECK
        if row[0]:
            row[1:] = share, *_shape(ys, xs)
    return found


def _shape(ys: np.ndarray, xs: np.ndarray) -> tuple[float, float]:
    """(aspect, ellipticity) of pixels, each a square of side 1: hence the twelfth, the variance within one."""
    down, side = ys.var() + 1 / 12, xs.var() + 1 / 12
    ellipse = 4 * np.pi * np.sqrt(down * side - np.cov(ys, xs, bias=True)[0, 1] ** 2)
    return float(np.sqrt(down / side)), float((len(ys) / ellipse) ** 2)


def outlined(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """uint8 [h, w] with a white line around the mask bool [h, w]."""
    wide = np.pad(mask, 1)
    near = wide[:-2, 1:-1] | wide[2:, 1:-1] | wide[1:-1, :-2] | wide[1:-1, 2:]
    return np.where(near & ~mask, 255, image).astype(np.uint8)


def unmeasurable(masks: Mapping[str, np.ndarray]) -> str | None:
    """Why masks bool [n, s, s] by split allow no figure; None where they do."""
    for split, found in masks.items():
        if (n := int(found.any((1, 2)).sum())) < FEWEST:
            return f"{n} {split} images have a mask with a lesion, and {FEWEST} are needed (files NAME_mask.png)"
    return None


# ---- statistics -----------------------------------------------------------------------------------------------------


def mean(values: np.ndarray, units: np.ndarray) -> Estimate:
    """Mean of values [n] with the delete-one-cluster jackknife over units [n], at least 2 of them, and Student's t."""
    _, number = np.unique(units, return_inverse=True)
    sizes, sums = np.bincount(number), np.bincount(number, values)
    without = (values.sum() - sums) / (len(values) - sizes)
    k = len(sizes)
    half = t_quantile(0.975, k - 1) * float(np.sqrt((k - 1) / k * ((without - without.mean()) ** 2).sum()))
    return Estimate(float(values.mean()), (float(values.mean()) - half, float(values.mean()) + half))


def share(values: np.ndarray, units: np.ndarray) -> Estimate:
    """Share of true values [n]. Images of one of units [n] are not independent: Wilson's interval is that of as many
    images as there are units."""
    part, whole = float(values.mean()), len(np.unique(units))
    return Estimate(part, wilson(part * whole, whole))


def wasserstein(x: np.ndarray, y: np.ndarray) -> float:
    """Wasserstein-1 distance of samples [n] and [m]: the area between their distribution functions, in their unit."""
    values = np.concatenate([x, y])
    order = np.argsort(values, kind="stable")
    return float(_between(np.diff(values[order]), (np.arange(len(values)) < len(x))[order]))


def enough_permutations(tests: int) -> int:
    """Permutations of each of so many tests: PERMUTATIONS, or as many more as let the least p-value be a fifth of the
    level 0.05 / tests that Bonferroni asks of each."""
    return max(PERMUTATIONS, 100 * tests - 1)


def wasserstein_p_value(x: Sample, y: Sample, seed: int = 0, permutations: int = PERMUTATIONS) -> float:
    """Probability of a distance at least this large between samples of one distribution, by permutation; the observed
    one counts among them, so it is at least 1 / (permutations + 1).

    Clusters change sides as wholes, each carried by one of its images, as in kernel.kid_p_value.
    """
    rng = np.random.default_rng(seed)
    first, second = (s.features[picked(s.units, rng)] for s in (x, y))
    values = np.concatenate([first, second])
    order = np.argsort(values, kind="stable")
    gaps, ours = np.diff(values[order]), (np.arange(len(values)) < len(first))[order]
    observed = _between(gaps, ours)
    reached = 0
    for at in range(0, permutations, BLOCK):
        sides = rng.permuted(np.tile(ours, (min(BLOCK, permutations - at), 1)), axis=1)
        reached += int((_between(gaps, sides) >= observed * (1 - 1e-12)).sum())
    return (reached + 1) / (permutations + 1)


def _between(gaps: np.ndarray, ours: np.ndarray) -> np.ndarray:
    """The distances [...] from the gaps between sorted values [n - 1], and which of these are the first sample's: bool
    [..., n]."""
    below = np.cumsum(ours, -1)
    first = below[..., -1:]
    other = np.arange(1, ours.shape[-1] + 1) - below
    return (np.abs(below / first - other / (ours.shape[-1] - first))[..., :-1] * gaps).sum(-1)


# ---- figures --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scored:
    """Dice of the segmenter on test images with lesions: [n], their classes and clusters."""

    dice: np.ndarray
    classes: np.ndarray
    units: np.ndarray
    trained_on: int


def dice_figures(scored: Scored, frame: str, size: int) -> list[Figure]:
    """DICE overall and a class, interval over test clusters; n is the number of images trained on."""
    figures = []
    for name in (CLASS_ALL, *sorted(set(scored.classes.tolist()))):
        mine = np.ones(len(scored.dice), bool) if name == CLASS_ALL else scored.classes == name
        if len(np.unique(scored.units[mine])) < FEWEST:
            continue
        found = mean(scored.dice[mine], scored.units[mine])
        common = (scored.trained_on, int(mine.sum()), "test", "single-split", NAME, name, REAL, frame, size)
        figures.append(Figure(DICE, found.value, found.interval, *common))
    return figures


def geometry_figures(arms: Mapping[str, Features], real: Real, truth: Real, reference: str) -> list[Figure]:
    """Of each class: FOUND, TALLER and the mean of each of MEASURES, for the arms, for the real images of `reference`
    and of its FLOOR by pseudo-masks (`real`), for those of `reference` by true masks (`truth`); Wasserstein-1 distances
    of the arms and the FLOOR to `reference`, all by pseudo-masks, with the probability of such a one by chance.

    arms, real, truth: `measures` as features, the arms' in an order by chance. A mean is over the lesions found, and so
    is n. The distances have no interval: they are above 0 by chance alone, so resampling misses them; floor and
    probability are in its place. They fall as n grows, so arms and floor count as many images of a class, as far as
    there are; a probability holds at any n and is of all images.
    """
    other = FLOOR[reference]
    held_out, against = real.split(reference), real.split(other)
    drawn = {arm: {name: Sample.drawn(rows, name) for name, rows in sorted(by.items())} for arm, by in arms.items()}
    sides = [(f"{REAL} {other}", against, "real-against-real", "_floor")]
    sides += [(arm, samples, "synthetic-only", "") for arm, samples in drawn.items()]
    sizes: dict[str, int] = {}
    for _, samples, _, _ in sides:
        for name, images in samples.items():
            sizes[name] = min(sizes.get(name, len(images.units)), len(images.units))
    figures, tests = [], []
    for name, images in truth.split(reference).items():
        figures += _about(images, len(images.units), truth, reference, "real-against-real", name, REAL)
    for name, images in held_out.items():
        figures += _about(images, len(images.units), real, reference, "real-against-real", name, REAL)
    for arm, samples, protocol, end in sides:
        for name, images in samples.items():
            if name not in held_out:
                continue
            figures += _about(images, len(held_out[name].units), real, reference, protocol, name, arm)
            about = (reference, protocol, real.extractor, name, arm, real.frame, real.size)
            for measure, mine, theirs in _lesions(some(images, sizes[name]), held_out[name]):
                far, n = wasserstein(mine.features, theirs.features), (len(mine.units), len(theirs.units))
                figures.append(Figure(f"lesion_{measure}_distance{end}", far, None, *n, *about))
            tests += [
                (f"lesion_{measure}_p_value{end}", mine, theirs, about)
                for measure, mine, theirs in _lesions(images, held_out[name])
            ]
    for metric, mine, theirs, about in tests:
        chance = wasserstein_p_value(mine, theirs, permutations=enough_permutations(len(tests)))
        figures.append(Figure(metric, chance, None, len(mine.units), len(theirs.units), *about))
    return figures


def _about(
    images: Sample, against: int, real: Real, reference: str, protocol: str, name: str, arm: str
) -> Iterator[Figure]:
    """FOUND of a class's images, and of the lesions, where there are clusters enough, TALLER and the means."""

    def figure(metric: str, found: Estimate, n: int) -> Figure:
        common = (n, against, reference, protocol, real.extractor, name, arm, real.frame, real.size)
        return Figure(metric, found.value, found.interval, *common)

    there = images.features[:, 0] == 1
    yield figure(FOUND, share(there, images.units), len(there))
    lesions = images.rows(there)
    if len(np.unique(lesions.units)) < FEWEST:
        return
    n = len(lesions.units)
    for measure, values in zip(MEASURES, lesions.features[:, 1:].T.astype(np.float64), strict=True):
        yield figure(f"lesion_{measure}", mean(values, lesions.units), n)
    yield figure(TALLER, share(lesions.features[:, COLUMNS.index("aspect")] > 1, lesions.units), n)


def _lesions(images: Sample, others: Sample) -> Iterator[tuple[str, Sample, Sample]]:
    """(measure, its values among the lesions of one side, of the other), where both have clusters enough."""
    sides = [side.rows(side.features[:, 0] == 1) for side in (images, others)]
    if min(len(np.unique(side.units)) for side in sides) < FEWEST:
        return
    for i, measure in enumerate(MEASURES, 1):
        first, second = (side._replace(features=side.features[:, i].astype(np.float64)) for side in sides)
        yield measure, first, second


# ---- in words and tables --------------------------------------------------------------------------------------------


def geometry_sentences(figures: Sequence[Figure], reason: str | None) -> list[str]:
    """The segmenter's Dice, and which arms' lesions differ from real test ones in size or shape beyond chance; or why
    there are no figures."""
    if reason:
        return [f"Lesion geometry is not measured: {reason}."]
    trust = next((f for f in figures if (f.metric, f.class_name) == (DICE, CLASS_ALL)), None)
    if trust is None or trust.interval is None:
        return []
    low, high = trust.interval
    said = [
        f"Lesion geometry is by pseudo-masks; on real test images with lesions they reach a mean Dice of "
        f"{trust.value:.2f} [{low:.2f}, {high:.2f}]."
    ]
    ends = "_p_value"
    tested = [f for f in figures if f.metric.startswith("lesion_") and f.metric.endswith(ends)]
    tested = [f for f in tested if f.reference == "test"]
    apart = [f for f in tested if f.value <= 0.05 / len(tested)]
    if tested:
        named = ", ".join(
            f"{f.arm} {f.class_name} {f.metric.removeprefix('lesion_').removesuffix(ends)}" for f in apart
        )
        said.append(
            f"Lesions that differ from real ones beyond chance (permutations, 5 % over all {len(tested)} comparisons, "
            f"Bonferroni): {named or 'none'}."
        )
    return said


def geometry_rows(figures: Sequence[Json]) -> tuple[list[str], list[list[str]]]:
    """(columns, rows): a row for each class and arm; real images by true masks, by pseudo-masks, those of the floor."""
    mine = [f for f in figures if f["metric"].startswith("lesion_") and f["metric"] != DICE]
    found = {(f["class"], f["arm"], f["extractor"], f["metric"].removesuffix("_floor")): f for f in mine}
    columns = ["class", "arm", "masks", "images", "with lesion", "lesions", "area (% of content)", "height / width"]
    columns += ["taller than wide", "ellipticity", *(f"distance of {measure} (p)" for measure in MEASURES)]
    rows = []
    for name, arm, extractor in dict.fromkeys(key[:3] for key in sorted(found, key=lambda key: key[0])):

        def at(metric: str, key: tuple[str, str, str] = (name, arm, extractor)) -> Json | None:
            return found.get((*key, metric))

        there, area = at(FOUND), at("lesion_area")
        assert there is not None
        cells = [str(there["n"]), _cell(there, 100, 0), str(area["n"]) if area else NONE, _cell(area, 100, 1)]
        cells += [_cell(at("lesion_aspect"), 1, 2), _cell(at(TALLER), 100, 0), _cell(at("lesion_ellipticity"), 1, 2)]
        for measure, factor, decimals in (("area", 100, 1), ("aspect", 1, 2), ("ellipticity", 1, 3)):
            far, chance = at(f"lesion_{measure}_distance"), at(f"lesion_{measure}_p_value")
            told = f"{factor * far['value']:.{decimals}f} ({_chance(chance['value'])})" if far and chance else NONE
            cells.append(told)
        rows.append([name, arm, "true" if extractor == TRUE else "pseudo", *cells])
    return columns, rows


def _chance(p_value: float) -> str:
    """Three decimals; never 0, which no permutation test finds."""
    return f"{p_value:.3f}" if p_value >= 0.001 else "<0.001"


def _cell(figure: Json | None, factor: float, decimals: int) -> str:
    if figure is None:
        return NONE
    low, high = (f"{bound * factor:z.{decimals}f}" for bound in figure["interval"])
    return f"{figure['value'] * factor:z.{decimals}f} [{low}, {high}]"


def geometry_section(figures: Sequence[Json], reason: str | None, picture: bytes | None) -> str:
    """The report's part; reason: why there are no figures, where there are none; picture: PNG of images outlined."""
    columns, rows = geometry_rows(figures)
    if not rows:
        return f"<section><h2>Lesion geometry</h2><p>Not measured: {_e(reason)}.</p></section>" if reason else ""
    trust = [f for f in figures if f["metric"] == DICE]
    told = "; ".join(f"{f['class']} {_cell(f, 1, 2)}, n = {f['n_reference']}" for f in trust)
    about = next(f for f in figures if f["metric"] == FOUND)
    shown = ""
    if picture:
        source = base64.b64encode(picture).decode()
        shown = (
            f'<figure><img style="max-width:100%" alt="images with the outlines of pseudo-masks" '
            f'src="data:image/png;base64,{source}"><figcaption>The first images of each class, not a selection, with '
            "the outline of the pseudo-mask; none where no lesion is found.</figcaption></figure>"
        )
    return (
        "<section><h2>Lesion geometry</h2><p>Drawn images have no masks, so a small segmenter trained on "
        f"{trust[0]['n'] if trust else 'the'} real training images gives them pseudo-masks. Its mean Dice on real test "
        f"images with lesions: {_e(told)}. It errs on real images too, so read an arm next to the real images by "
        "pseudo-masks, and these next to those by true masks. Taller than wide is a sign of malignancy; ellipticity is "
        f"1 for an ellipse. Distance: Wasserstein-1 to the lesions of the real {_e(about['reference'])} images, in the "
        "measure&#x27;s unit, of as many images in every arm as in the floor, which is other real images; p: the "
        "probability that chance alone sets all lesions so far apart. Square brackets: 95 % intervals.</p>"
        f"{table(columns, rows)}{shown}</section>"
    )
