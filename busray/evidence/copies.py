"""Is an image a copy of a training image: the nearest ones in two spaces, then compared in fine detail once aligned.

The two spaces are squares of the pixels at many scales and places (data/align.py) and an extractor's features. What is
looked for are the training images, their mirror images, and their lesions with what surrounds them, each an original
of its own. Thresholds come from real images that are in no training set and near none of it: they are scored alike,
and a Gumbel law through their quartiles says how often chance reaches a score (an image's score is a maximum over
all originals). Fitting by quartiles, a copy among the real images moves no threshold; it shows as a false alarm.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from busray.data.align import Scan, SquareBox, align_coarsely, align_finely, shrink, square, templates, windows
from busray.evidence.stats.neighbours import nearest
from busray.records import ContentBox as Content

METHOD = "aligned-1"
"""What found scores carry as their extractor; another way to search or to compare is another name."""


KINDS = ("image", "lesion")


PROPOSED_PER_KIND = 2
"""Originals of each kind that squares propose for alignment."""


SMALLEST_PATCH = 0.5
"""Side of a lesion's square, in short sides of its image: as small as windows are."""


MARGIN = 1.25
"""Side of a lesion's square over that of its bounding box."""


FALSE_ALARMS = 0.05
"""Allowed, as an expected number, among all of a corpus's images together, shared by the kinds."""


SEARCH_ROW = np.dtype(
    [("index", "<i8"), ("nearest", "<i4"), ("distance", "<f4")]
    + [(f"{kind}_{field}", of) for kind in KINDS for field, of in (("score", "<f4"), ("of", "<i4"), ("mirrored", "?"))]
)
"""An image's row: its index, the nearest training image by features (-1 without), and of each kind the best score and
the training image that has it."""


@dataclass(frozen=True)
class Original:
    """What a copy is looked for of: a training image or its lesion, or the mirror image of either."""

    image: int
    kind: str
    mirrored: bool
    small: Scan


@dataclass(frozen=True)
class Originals:
    """All originals; templates of one stand together, from `first` of it on."""

    originals: tuple[Original, ...]
    templates: np.ndarray
    """float32 [t, d]"""
    boxes: tuple[SquareBox, ...]
    first: np.ndarray
    features: np.ndarray | None
    """float [n, f] of the training images, in units of their own mean and spread."""
    mean: np.ndarray
    spread: np.ndarray

    @staticmethod
    def of(
        contents: Sequence[np.ndarray], lesions: Sequence[np.ndarray | None], features: np.ndarray | None = None
    ) -> "Originals":
        """contents: training images uint8 [h, w] without padding; lesions: bool [h, w] of each, None if not known."""
        found: list[Original] = []
        vectors: list[np.ndarray] = []
        boxes: list[SquareBox] = []
        first: list[int] = []
        for i, (content, lesion) in enumerate(zip(contents, lesions, strict=True)):
            for mirrored in (False, True):
                turned = content[:, ::-1] if mirrored else content
                small = shrink(turned)
                first.append(len(boxes))
                squares, places = templates(small)
                found.append(Original(i, "image", mirrored, small))
                vectors += list(squares)
                boxes += places
                if lesion is not None and lesion.any():
                    box = lesion_square(lesion[:, ::-1] if mirrored else lesion)
                    first.append(len(boxes))
                    found.append(Original(i, "lesion", mirrored, shrink(cut_square(turned, box))))
                    vectors.append(square(small, box))
                    boxes.append((1.0, 0.0, 0.0))
        known = np.zeros((1, 1)) if features is None else features
        spread = known.std(0)
        spread[spread == 0] = 1
        scaled = None if features is None else (features - known.mean(0)) / spread
        return Originals(tuple(found), np.array(vectors), tuple(boxes), np.array(first), scaled, known.mean(0), spread)

    def find(self, index: int, content: np.ndarray, feature: np.ndarray | None = None) -> np.ndarray:
        """One row of FOUND for an image uint8 [h, w] without padding."""
        row = np.zeros((), SEARCH_ROW)
        row["index"], row["nearest"] = index, -1
        if feature is not None and self.features is not None:
            at, distance = nearest(((feature - self.mean) / self.spread)[None], self.features)
            row["nearest"], row["distance"] = at[0], distance[0]
        small = shrink(content)
        squares, places = windows(small)
        correlation = squares @ self.templates.T
        window = correlation.argmax(0)
        best = np.take_along_axis(correlation, window[None], 0)[0]
        scores = np.maximum.reduceat(best, self.first)
        ends = np.append(self.first[1:], len(best))
        for kind in KINDS:
            aligned = []
            for o in self._candidates(kind, scores, int(row["nearest"])):
                t = self.first[o] + int(best[self.first[o] : ends[o]].argmax())
                guess = self.boxes[t], places[window[t]]
                match, place = align_coarsely(self.originals[o].small, small, *guess)
                aligned.append((match.score, o, place))
            if aligned:
                _, o, place = max(aligned)
                original = self.originals[o]
                row[f"{kind}_score"] = align_finely(original.small, small, place).score
                row[f"{kind}_of"], row[f"{kind}_mirrored"] = original.image, original.mirrored
        return row

    def _candidates(self, kind: str, scores: np.ndarray, near: int) -> set[int]:
        """Numbers of the originals of a kind that squares or features propose."""
        mine = [o for o, original in enumerate(self.originals) if original.kind == kind]
        proposed = sorted(mine, key=lambda o: -scores[o])[:PROPOSED_PER_KIND]
        by_features = [o for o in mine if self.originals[o].image == near]
        return set(proposed) | set(sorted(by_features, key=lambda o: -scores[o])[:1])


def unpadded(images: Sequence[np.ndarray] | np.ndarray, boxes: Sequence[Content]) -> list[np.ndarray]:
    """The content of framed images [s, s], which lies where boxes say."""
    return [i[b.top : b.top + b.height, b.left : b.left + b.width] for i, b in zip(images, boxes, strict=True)]


def lesion_square(lesion: np.ndarray) -> SquareBox:
    """The square about a lesion, bool [h, w], as (side, top, left) in short sides."""
    rows, columns = np.nonzero(lesion.any(1))[0], np.nonzero(lesion.any(0))[0]
    spans = [(rows[0], rows[-1] + 1), (columns[0], columns[-1] + 1)]
    short = min(lesion.shape)
    side = min(max(MARGIN * max(end - start for start, end in spans), SMALLEST_PATCH * short), short)
    top, left = (
        min(max((start + end - side) / 2, 0), whole - side)
        for (start, end), whole in zip(spans, lesion.shape, strict=True)
    )
    return side / short, top / short, left / short


def cut_square(content: np.ndarray, box: SquareBox) -> np.ndarray:
    """The pixels of a square."""
    side, top, left = (round(part * min(content.shape)) for part in box)
    return content[top : top + side, left : left + side]


@dataclass(frozen=True)
class GumbelLaw:
    """The Gumbel law of a kind's scores among images that are no copies."""

    middle: float
    spread: float

    @staticmethod
    def fitted(scores: np.ndarray) -> "GumbelLaw":
        """Through the quartiles of scores [n]."""
        low, high = np.quantile(scores, (0.25, 0.75))
        reduced = -np.log(-np.log(np.array([0.25, 0.75])))
        spread = max((high - low) / (reduced[1] - reduced[0]), 1e-6)
        return GumbelLaw(float(low - spread * reduced[0]), float(spread))

    def exceeds(self, score: float) -> float:
        """Probability of a higher score."""
        return float(-np.expm1(-np.exp(-(score - self.middle) / self.spread)))

    def threshold(self, probability: float) -> float:
        """The score that is exceeded with this probability."""
        return float(self.middle - self.spread * np.log(-np.log1p(-probability)))


def thresholds(found: np.ndarray, images: int) -> dict[str, tuple[float, GumbelLaw]]:
    """kind -> (score above which an image is a copy, law), from real images' FOUND rows, for a corpus of images."""
    laws = {kind: GumbelLaw.fitted(found[f"{kind}_score"]) for kind in KINDS}
    return {kind: (law.threshold(FALSE_ALARMS / len(KINDS) / images), law) for kind, law in laws.items()}


def are_copies(found: np.ndarray, limits: dict[str, tuple[float, GumbelLaw]]) -> np.ndarray:
    """bool [n]: above the threshold of any kind."""
    return np.any([found[f"{kind}_score"] > limit for kind, (limit, _) in limits.items()], axis=0)


SPACES = {"image": "image_score", "lesion": "lesion_score", "features": "distance"}
"""space -> its field of FOUND: the kinds' scores, higher is nearer; the distance by features, which decides nothing."""


BINS = 50


def bin_edges(held_out: np.ndarray) -> dict[str, np.ndarray]:
    """space -> edges [BINS + 1] of histograms, from real images' FOUND rows: of scores from 0 to 1, of distances from 0
    to twice the largest among them. A space in which nothing was looked for (no masks, no features) has none."""
    found = {space: held_out[field] for space, field in SPACES.items() if held_out[field].any()}
    return {space: np.linspace(0, 1 if space in KINDS else 2 * x.max(), BINS + 1) for space, x in found.items()}


def histograms(found: np.ndarray, edges: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """space -> counts [BINS] of FOUND rows; what lies beyond the edges counts in the bin next to it."""
    return {space: np.histogram(found[SPACES[space]].clip(ends[0], ends[-1]), ends)[0] for space, ends in edges.items()}


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
    """transformation -> copies of training images; a lesion is also pasted, with its surroundings, into other scans."""
    copies = {}
    for name, transformation in TRANSFORMATIONS.items():
        rng = np.random.default_rng(seed)
        copies[name] = [np.ascontiguousarray(transformation(content, rng)) for content in contents]
    pairs = [(c, lesion) for c, lesion in zip(contents, lesions, strict=True) if lesion is not None and lesion.any()]
    copies[LESION_PASTED] = [pasted(*pair, hosts[i % len(hosts)]) for i, pair in enumerate(pairs) if hosts]
    return {name: made for name, made in copies.items() if made}


def pasted(content: np.ndarray, lesion: np.ndarray, host: np.ndarray) -> np.ndarray:
    """The host with the square about a lesion put where it lies in its own image, at the same share of the sides."""
    patch = cut_square(content, lesion_square(lesion))
    side, top, left = lesion_square(lesion)
    short = min(host.shape)
    pixels = round(side * short)
    y, x = (round(min(at * short, whole - pixels)) for at, whole in zip((top, left), host.shape, strict=True))
    result = host.copy()
    result[y : y + pixels, x : x + pixels] = np.asarray(
        Image.fromarray(np.ascontiguousarray(patch)).resize((pixels, pixels), Image.Resampling.BICUBIC)
    )
    return result
