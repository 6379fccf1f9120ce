"""Is an image a copy of a training image? Search in two spaces, align, compare fine detail.

The two spaces are squares of the pixels at many scales and places (data/align.py) and an
extractor's features. The search looks for the originals: the training images, their mirror
images, and their lesions with what surrounds them.

Thresholds come from held-out real images that are not near any training image. They are scored in
the same way. A score is a maximum over all originals, so a Gumbel distribution is fitted to the
quartiles of these scores. It gives the probability of such a score when nothing was copied. One
copy among the held-out images does not change the threshold; it counts as a false alarm.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from busray.data.align import (
    Place,
    Scan,
    SquareBox,
    align_coarsely,
    align_finely,
    shrink,
    square,
    templates,
    windows,
)
from busray.evidence.stats.neighbours import nearest
from busray.records import ContentBox

METHOD = "aligned-1"
"""Extractor of the copy audit's figures. Another search or comparison needs another name."""

KINDS = ("image", "lesion")

PROPOSED_PER_KIND = 2
"""Originals of each kind that the squares propose for alignment."""

SMALLEST_PATCH = 0.5
"""Least side of a lesion's square, in short sides of its image: that of the smallest windows."""

MARGIN = 1.25
"""Side of a lesion's square over that of its bounding box."""

FALSE_ALARMS = 0.05
"""Expected number that is allowed among all images of a corpus together, shared by the kinds."""

SEARCH_ROW = np.dtype(
    [("index", "<i8"), ("nearest", "<i4"), ("distance", "<f4")]
    + [(f"{kind}_{field}", of) for kind in KINDS for field, of in (("score", "<f4"), ("of", "<i4"), ("mirrored", "?"))]
)
"""The search's result for an image: its index, the nearest training image by features (-1 without
features) and its distance, and for each kind the best score and the training image that has it."""


@dataclass(frozen=True)
class Original:
    """What can be copied: a training image or its lesion, or the mirror image of either."""

    image: int
    """Number of the training image."""
    kind: str
    mirrored: bool
    small: Scan


@dataclass(frozen=True)
class Originals:
    """All originals with their templates, of which those of one original stand together."""

    originals: tuple[Original, ...]
    templates: np.ndarray
    """float32 [t, d]"""
    boxes: tuple[SquareBox, ...]
    """Of each template in its original."""
    first: np.ndarray
    """[originals]: the number of each original's first template."""
    features: np.ndarray | None
    """float [n, f] of the training images, in units of their own mean and spread."""
    mean: np.ndarray
    spread: np.ndarray

    @staticmethod
    def of(
        contents: Sequence[np.ndarray], lesions: Sequence[np.ndarray | None], features: np.ndarray | None = None
    ) -> "Originals":
        """The originals of training images.

        contents: uint8 [h, w] without padding; lesions: bool [h, w] of each, None if not known;
        features: float [n, f].
        """
        originals: list[Original] = []
        vectors: list[np.ndarray] = []
        boxes: list[SquareBox] = []
        first: list[int] = []
        for i, (content, lesion) in enumerate(zip(contents, lesions, strict=True)):
            # A copy may be mirrored, since training may mirror images (adapters.mirror).
            for mirrored in (False, True):
                turned = content[:, ::-1] if mirrored else content
                small = shrink(turned)
                first.append(len(boxes))
                originals.append(Original(i, "image", mirrored, small))
                squares, places = templates(small)
                vectors += list(squares)
                boxes += places
                if lesion is not None and lesion.any():
                    box = lesion_square(lesion[:, ::-1] if mirrored else lesion)
                    first.append(len(boxes))
                    originals.append(Original(i, "lesion", mirrored, shrink(cut_square(turned, box))))
                    # The patch is an original of its own, and its one template is all of it.
                    vectors.append(square(small, box))
                    boxes.append((1.0, 0.0, 0.0))
        known = np.zeros((1, 1)) if features is None else features
        mean, spread = known.mean(0), known.std(0)
        # A constant feature says nothing; divided by 0 it would make every distance NaN.
        spread[spread == 0] = 1
        scaled = None if features is None else (features - mean) / spread
        return Originals(tuple(originals), np.array(vectors), tuple(boxes), np.array(first), scaled, mean, spread)

    def find(self, index: int, content: np.ndarray, feature: np.ndarray | None = None) -> np.ndarray:
        """One SEARCH_ROW for an image uint8 [h, w] without padding; feature [f]."""
        row = np.zeros((), SEARCH_ROW)
        row["index"], row["nearest"] = index, -1
        if feature is not None and self.features is not None:
            at, distance = nearest(((feature - self.mean) / self.spread)[None], self.features)
            row["nearest"], row["distance"] = at[0], distance[0]
        small = shrink(content)
        squares, places = windows(small)
        # The best window of the image for each template, then the best template of each original.
        correlation = squares @ self.templates.T
        best_window = correlation.argmax(0)
        best = np.take_along_axis(correlation, best_window[None], 0)[0]
        # reduceat takes the maximum from each first template to the next one.
        scores = np.maximum.reduceat(best, self.first)
        ends = np.append(self.first[1:], len(best))
        # Coarse first: a fine alignment costs far more than a product of two small squares.
        for kind in KINDS:
            aligned: list[tuple[float, int, Place]] = []
            for number in self._candidates(kind, scores, int(row["nearest"])):
                start = self.first[number]
                template = start + int(best[start : ends[number]].argmax())
                guess = self.boxes[template], places[best_window[template]]
                match, place = align_coarsely(self.originals[number].small, small, *guess)
                aligned.append((match.score, number, place))
            if aligned:
                # Fine detail is compared once, with the original that aligns best.
                _, number, place = max(aligned)
                original = self.originals[number]
                row[f"{kind}_score"] = align_finely(original.small, small, place).score
                row[f"{kind}_of"], row[f"{kind}_mirrored"] = original.image, original.mirrored
        return row

    def _candidates(self, kind: str, scores: np.ndarray, nearest_image: int) -> set[int]:
        """Numbers of the originals of a kind that squares or features propose."""
        of_kind = [number for number, original in enumerate(self.originals) if original.kind == kind]
        by_score = sorted(of_kind, key=lambda number: -scores[number])
        # An image and its mirror image have the same features: the better of the two is enough.
        by_features = [number for number in by_score if self.originals[number].image == nearest_image]
        return {*by_score[:PROPOSED_PER_KIND], *by_features[:1]}


def unpadded(images: Sequence[np.ndarray] | np.ndarray, boxes: Sequence[ContentBox]) -> list[np.ndarray]:
    """The content of framed images [s, s], which lies in their boxes."""
    return [i[b.top : b.top + b.height, b.left : b.left + b.width] for i, b in zip(images, boxes, strict=True)]


def lesion_square(lesion: np.ndarray) -> SquareBox:
    """The square about a lesion, bool [h, w] with a pixel at least, inside its image."""
    height, width = lesion.shape
    rows, columns = np.nonzero(lesion.any(1))[0], np.nonzero(lesion.any(0))[0]
    longest = max(rows[-1] + 1 - rows[0], columns[-1] + 1 - columns[0])
    short = min(height, width)
    # Not smaller than the smallest windows, else no window of an image could match it.
    side = min(max(MARGIN * longest, SMALLEST_PATCH * short), short)
    top = _centred(rows[0], rows[-1] + 1, side, height)
    left = _centred(columns[0], columns[-1] + 1, side, width)
    return side / short, top / short, left / short


def _centred(start: int, end: int, side: float, whole: int) -> float:
    """Where a span of `side` begins that is centred on start..end, as far as 0..whole allows."""
    return min(max((start + end - side) / 2, 0), whole - side)


def cut_square(content: np.ndarray, box: SquareBox) -> np.ndarray:
    """The pixels of a square of content [h, w]."""
    side, top, left = (round(part * min(content.shape)) for part in box)
    return content[top : top + side, left : left + side]


@dataclass(frozen=True)
class GumbelLaw:
    """The distribution of a kind's scores among images that are no copies."""

    middle: float
    spread: float

    @staticmethod
    def fitted(scores: np.ndarray) -> "GumbelLaw":
        """The law whose quartiles are those of scores [n]."""
        # Quartiles and not moments: a real near-duplicate among the scores must not widen the law.
        low, high = np.quantile(scores, (0.25, 0.75))
        reduced = -np.log(-np.log(np.array([0.25, 0.75])))
        spread = max((high - low) / (reduced[1] - reduced[0]), 1e-6)
        return GumbelLaw(float(low - spread * reduced[0]), float(spread))

    def exceeds(self, score: float) -> float:
        """Probability of a higher score."""
        # expm1 and log1p keep probabilities far below the rounding of 1 minus a small number.
        return float(-np.expm1(-np.exp(-(score - self.middle) / self.spread)))

    def threshold(self, probability: float) -> float:
        """The score that is exceeded with this probability, above 0 and below 1."""
        return float(self.middle - self.spread * np.log(-np.log1p(-probability)))


class Threshold(NamedTuple):
    score: float
    """Above it an image is a copy."""
    law: GumbelLaw


def thresholds(held_out: np.ndarray, images: int) -> dict[str, Threshold]:
    """kind -> threshold for a corpus of so many images; held_out: SEARCH_ROW [n] of real images."""
    by_kind: dict[str, Threshold] = {}
    for kind in KINDS:
        law = GumbelLaw.fitted(held_out[f"{kind}_score"])
        # Bonferroni: the sum over kinds and images of the false alarms expected is FALSE_ALARMS.
        by_kind[kind] = Threshold(law.threshold(FALSE_ALARMS / len(KINDS) / images), law)
    return by_kind


def are_copies(rows: np.ndarray, limits: Mapping[str, Threshold]) -> np.ndarray:
    """bool [n]: whether SEARCH_ROW [n] are above the threshold of any kind."""
    return np.any([rows[f"{kind}_score"] > limit.score for kind, limit in limits.items()], axis=0)


SPACES = {"image": "image_score", "lesion": "lesion_score", "features": "distance"}
"""space -> its field of SEARCH_ROW. Higher scores are nearer. The distance decides nothing."""

BINS = 50


def bin_edges(held_out: np.ndarray) -> dict[str, np.ndarray]:
    """space -> edges [BINS + 1] of its histograms, from SEARCH_ROW [n] of held-out real images.

    Scores from 0 to 1, distances from 0 to twice the largest. A space that was not searched (no
    masks, no features) has none.
    """
    edges: dict[str, np.ndarray] = {}
    for space, field in SPACES.items():
        if held_out[field].any():
            edges[space] = np.linspace(0, 1 if space in KINDS else 2 * held_out[field].max(), BINS + 1)
    return edges


def histograms(rows: np.ndarray, edges: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """space -> counts [BINS] of SEARCH_ROW [n]; outer bins include what lies beyond the edges."""
    counts: dict[str, np.ndarray] = {}
    for space, ends in edges.items():
        counts[space], _ = np.histogram(rows[SPACES[space]].clip(ends[0], ends[-1]), ends)
    return counts


def _crop(content: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A part of 80 to 95 % of the sides, at the size of the whole."""
    share, height, width = rng.uniform(0.8, 0.95), *content.shape
    top, left = rng.uniform(0, 1 - share, 2) * content.shape
    box = (left, top, left + share * width, top + share * height)
    return np.asarray(Image.fromarray(content).resize((width, height), Image.Resampling.BICUBIC, box))


def _blur(content: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """By a Gaussian of a hundredth of the short side."""
    return np.asarray(Image.fromarray(content).filter(ImageFilter.GaussianBlur(min(content.shape) / 100)))


def _noise(content: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Multiplied by new speckle: normal, of mean 1 and spread 0.2."""
    return (content * rng.normal(1, 0.2, content.shape)).clip(0, 255).astype(np.uint8)


IDENTICAL = "identical"

TRANSFORMATIONS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    IDENTICAL: lambda content, rng: content,
    "mirrored": lambda content, rng: content[:, ::-1],
    "cropped": _crop,
    "blurred": _blur,
    "re-noised": _noise,
}

LESION_PASTED = "lesion pasted"


def plant_copies(
    contents: Sequence[np.ndarray], lesions: Sequence[np.ndarray | None], hosts: Sequence[np.ndarray], seed: int
) -> dict[str, list[np.ndarray]]:
    """transformation -> copies of training images; LESION_PASTED: their lesions in hosts.

    The search must find them: they show how sensitive it is.
    """
    copies: dict[str, list[np.ndarray]] = {}
    for name, transformation in TRANSFORMATIONS.items():
        # Anew for each kind: another kind added later changes none of these copies.
        rng = np.random.default_rng(seed)
        copies[name] = [np.ascontiguousarray(transformation(content, rng)) for content in contents]
    pasted_lesions: list[np.ndarray] = []
    for content, lesion in zip(contents, lesions, strict=True):
        if hosts and lesion is not None and lesion.any():
            pasted_lesions.append(pasted(content, lesion, hosts[len(pasted_lesions) % len(hosts)]))
    copies[LESION_PASTED] = pasted_lesions
    return {name: images for name, images in copies.items() if images}


def pasted(content: np.ndarray, lesion: np.ndarray, host: np.ndarray) -> np.ndarray:
    """The host with the square about a lesion, at the place and size that it has in its own image
    (measured in short sides)."""
    box = lesion_square(lesion)
    patch = Image.fromarray(np.ascontiguousarray(cut_square(content, box)))
    side, top, left = box
    height, width = host.shape
    short = min(height, width)
    pixels = round(side * short)
    y, x = round(min(top * short, height - pixels)), round(min(left * short, width - pixels))
    result = host.copy()
    resized = patch.resize((pixels, pixels), Image.Resampling.BICUBIC)
    result[y : y + pixels, x : x + pixels] = np.asarray(resized)
    return result
