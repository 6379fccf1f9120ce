"""Looking a labelled data set over: counts, duplicates, label conflicts, colour, annotations, masks, framing.

Near-duplicates are pairs of images that show the same tissue. Two tests find them, and either is enough: of whole
frames, perceptual hashes are close, thumbnails correlate *and* fine detail (speckle, edges: what is left when the
blurred image is taken off) correlates; of images at another scale or in another crop, fine detail correlates once they
are aligned (align.py). Clusters are the transitive closure of such pairs. A loose threshold chains different patients,
so cluster sizes at neighbouring thresholds of either test are reported, of thumbnails also without the confirmation.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from busray.data.align import Scan, aligned_pairs, shrink
from busray.data.annotations import KINDS, find_annotations
from busray.data.frame import cut_share
from busray.data.read import READERS, class_names, read_grey, read_mask, read_rgb, scan
from busray.identity import sha256_bytes
from busray.records import SourceImage, UserError

THUMBNAIL = 32
"""Side of the thumbnails that hashes and correlations are computed from, in pixels."""
HASH_BITS = 24
"""Hamming distance of 64-bit perceptual hashes up to which a pair is a candidate."""
THRESHOLD = 0.90
"""Thumbnail correlation from which a candidate pair is looked at closely."""
DETAIL_SIDE = 96
"""Side of the images whose fine detail confirms a pair, in pixels."""
DETAIL = 0.25
"""Correlation of fine detail that confirms a pair. On BUSI unrelated pairs with like thumbnails stay below 0.2."""
NEIGHBOURS = (0.98, 0.95, 0.90, 0.85, 0.80)
ALIGNED = 0.2
"""Score of an aligned pair from which it is a near-duplicate. The images of BUSI's 25 pairs from 0.17 to 0.3 were
looked at: each pair seems to show one patient twice, so what is wrong here is what stays apart, not what is joined."""
ALIGNED_NEIGHBOURS = (0.5, 0.4, 0.3, 0.2, 0.15)
COLOURED = 40
"""Spread between channels (of 255) from which a pixel is coloured."""
DARK = 32
"""Grey level (of 255) below which an image is almost black."""
POLICIES = ("letterbox", "centre", "stretch")


@dataclass(frozen=True)
class Table:
    """A table for people; the terminal and the report print the same ones."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class CheckReport:
    """Everything the check found; files are relative to the folder."""

    images: tuple[SourceImage, ...]
    unreadable: tuple[tuple[str, str], ...]
    exact: tuple[tuple[str, ...], ...]
    """Groups of files with the same pixels."""
    clusters: tuple[tuple[str, ...], ...]
    """Near-duplicate clusters of two or more at THRESHOLD; exact duplicates are among them."""
    chains: tuple[tuple[float, int, int, int, int], ...]
    """(threshold, clusters, images in them, largest; largest by thumbnails alone) at neighbouring thresholds."""
    aligned_chains: tuple[tuple[float, int, int, int], ...]
    """(threshold of aligned pairs, clusters, images in them, largest), whole frames at THRESHOLD."""
    conflicts: tuple[tuple[str, ...], ...]
    """Clusters that span classes."""
    coloured: tuple[tuple[str, float], ...]
    """(file, share of coloured pixels) of images with colour overlays."""
    annotated: tuple[tuple[str, tuple[str, ...]], ...]
    """(file, what is burned into it) of images with text or calipers."""
    mask_problems: tuple[tuple[str, str], ...]
    cuts: dict[str, dict[str, tuple[int, int]]] = field(default_factory=dict)
    """policy -> class -> (lesions cut, lesions)."""
    dark: tuple[tuple[str, int], ...] = ()
    """(file, its brightest grey level) of images that are almost black."""

    def to_dict(self) -> dict[str, Any]:
        counts = Counter(image.class_name for image in self.images)
        return {
            "counts": dict(counts),
            "sizes": {
                name: {
                    "width": _spread(image.width for image in self._of(name)),
                    "height": _spread(image.height for image in self._of(name)),
                }
                for name in sorted(counts)
            },
            "modes": dict(Counter(image.mode for image in self.images)),
            "unreadable": [list(pair) for pair in self.unreadable],
            "exact_duplicates": [list(group) for group in self.exact],
            "near_duplicates": [list(group) for group in self.clusters],
            "near_duplicate_threshold": THRESHOLD,
            "chains": [
                {"threshold": t, "clusters": n, "images": images, "largest": largest, "largest_unconfirmed": loose}
                for t, n, images, largest, loose in self.chains
            ],
            "aligned_threshold": ALIGNED,
            "aligned_chains": [
                {"threshold": t, "clusters": n, "images": images, "largest": largest}
                for t, n, images, largest in self.aligned_chains
            ],
            "label_conflicts": [list(group) for group in self.conflicts],
            "colour_overlays": [{"file": file, "share": share} for file, share in self.coloured],
            "annotations": [{"file": file, "found": list(kinds)} for file, kinds in self.annotated],
            "almost_black": [{"file": file, "brightest": level} for file, level in self.dark],
            "mask_problems": [list(pair) for pair in self.mask_problems],
            "lesions_cut": {
                policy: {name: {"cut": cut, "lesions": n} for name, (cut, n) in by.items()}
                for policy, by in self.cuts.items()
            },
        }

    def _of(self, name: str) -> list[SourceImage]:
        return [image for image in self.images if image.class_name == name]

    def tables(self) -> list[Table]:
        """What people read, most important first; findings without a case are left out."""
        names = sorted({image.class_name for image in self.images})
        tables = [
            Table(
                "Images a class",
                ("class", "images", "with mask", "width min/median/max", "height min/median/max", "modes"),
                tuple(self._class_row(name) for name in names),
            ),
            Table(
                f"Near-duplicate clusters (this report uses {THRESHOLD:.2f}, confirmed by fine detail)",
                ("thumbnails correlate from", "clusters", "images in them", "largest", "largest, unconfirmed"),
                tuple((f"{t:.2f}", *map(str, counts)) for t, *counts in self.chains),
            ),
            Table(
                f"The same with other crops and scales (this report uses {ALIGNED:.2f})",
                ("aligned pairs score from", "clusters", "images in them", "largest"),
                tuple((f"{t:.2f}", *map(str, counts)) for t, *counts in self.aligned_chains),
            ),
            Table(
                "Lesions that a frame cuts",
                ("frame", *names),
                tuple(
                    (policy, *(f"{by[n][0]} of {by[n][1]}" if n in by else "no masks" for n in names))
                    for policy, by in self.cuts.items()
                ),
            ),
        ]
        if self.annotated:
            tables.append(self._annotations_table(names))
        lists = (
            ("Label conflicts: the same image in more than one class", ("files",), _joined(self.conflicts)),
            ("Exact duplicates: the same pixels", ("files",), _joined(self.exact)),
            ("Unreadable files", ("file", "reason"), self.unreadable),
            ("Mask problems", ("file", "problem"), self.mask_problems),
            (
                "Almost black images: perhaps 12 bits in 16, which are to be multiplied by 16",
                ("file", "brightest pixel"),
                tuple((file, f"{level} of 255") for file, level in self.dark),
            ),
            (
                "Colour overlays",
                ("file", "coloured pixels"),
                tuple((file, f"{share:.1%}") for file, share in self.coloured),
            ),
        )
        return tables + [
            Table(f"{title} ({len(rows)})", columns, tuple(rows)) for title, columns, rows in lists if rows
        ]

    def _annotations_table(self, names: Sequence[str]) -> Table:
        kinds_of = dict(self.annotated)
        rows = []
        for name in names:
            found = [kinds_of.get(image.file, ()) for image in self._of(name)]
            counts = [sum(kind in kinds for kinds in found) for kind in KINDS]
            rows.append((name, str(len(found)), *map(str, counts), str(sum(map(bool, found)))))
        return Table("Burned-in annotations (some are missed)", ("class", "images", *KINDS, "either"), tuple(rows))

    def _class_row(self, name: str) -> tuple[str, ...]:
        images = self._of(name)
        modes = Counter(image.mode for image in images)
        return (
            name,
            str(len(images)),
            str(sum(bool(image.masks) for image in images)),
            "/".join(str(value) for value in _spread(image.width for image in images)),
            "/".join(str(value) for value in _spread(image.height for image in images)),
            ", ".join(f"{n} {mode}" for mode, n in sorted(modes.items())),
        )


def _joined(groups: Iterable[Sequence[str]]) -> tuple[tuple[str], ...]:
    return tuple((" = ".join(group),) for group in groups)


def _spread(values: Iterable[int]) -> tuple[int, int, int]:
    numbers = sorted(values)
    return numbers[0], round(median(numbers)), numbers[-1]


def check(
    folder: Path,
    classes: Sequence[str] | None = None,
    metadata: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CheckReport:
    """Look a folder over; classes None means every sub-folder. UserError where there is nothing to look at."""
    tell = progress or (lambda done, total: None)
    found = scan(folder, classes if classes is not None else class_names(folder), metadata)
    looks: list[_Looked] = []
    coloured, annotated, dark = [], [], []
    problems: list[tuple[str, str]] = [(file, "a mask without its image") for file in found.stray_masks]
    cuts: dict[str, dict[str, list[float]]] = {policy: defaultdict(list) for policy in POLICIES}
    with ThreadPoolExecutor(READERS) as pool:
        looked = pool.map(lambda image: _look(folder, image), found.images)
        for i, (image, one) in enumerate(zip(found.images, looked, strict=True)):
            looks.append(one)
            if one.coloured > 0:
                coloured.append((image.file, one.coloured))
            if one.annotations:
                annotated.append((image.file, one.annotations))
            if one.brightest < DARK:
                dark.append((image.file, one.brightest))
            problems += one.mask_problems
            for policy, share in one.cuts.items():
                cuts[policy][image.class_name].append(share)
            tell(i + 1, len(found.images))
    files = [image.file for image in found.images]
    pairs = near_pairs(looks, min(NEIGHBOURS))
    aligned = [(i, j, match.score) for i, j, match in aligned_pairs([one.small for one in looks])]
    same: dict[str, list[str]] = defaultdict(list)
    for file, one in zip(files, looks, strict=True):
        same[one.digest].append(file)
    exact = sorted(tuple(group) for group in same.values() if len(group) > 1)
    copies = [(i, j) for i, j, score in aligned if score >= ALIGNED]
    clusters = _clusters(files, pairs, THRESHOLD, copies, exact)
    class_of = {image.file: image.class_name for image in found.images}
    return CheckReport(
        images=found.images,
        unreadable=found.unreadable,
        exact=tuple(exact),
        clusters=tuple(clusters),
        chains=tuple(_chain(files, pairs, threshold, copies, exact) for threshold in NEIGHBOURS),
        aligned_chains=tuple(
            (t, *_sizes(_clusters(files, pairs, THRESHOLD, [(i, j) for i, j, score in aligned if score >= t], exact)))
            for t in ALIGNED_NEIGHBOURS
        ),
        conflicts=tuple(group for group in clusters if len({class_of[file] for file in group}) > 1),
        coloured=tuple(coloured),
        annotated=tuple(annotated),
        mask_problems=tuple(_without_lesionless(problems, found.images)),
        cuts={
            policy: {name: (sum(s > 0 for s in shares), len(shares)) for name, shares in sorted(by.items())}
            for policy, by in cuts.items()
        },
        dark=tuple(dark),
    )


@dataclass(frozen=True)
class Pair:
    """Two images (by position) and how their thumbnails and their fine detail correlate, as whole frames."""

    i: int
    j: int
    thumbnail: float
    detail: float


@dataclass(frozen=True)
class _Looked:
    thumbnail: np.ndarray
    detail: np.ndarray
    small: Scan
    digest: str
    brightest: int
    coloured: float
    annotations: tuple[str, ...]
    mask_problems: list[tuple[str, str]]
    cuts: dict[str, float]


def _look(folder: Path, image: SourceImage) -> _Looked:
    path = folder / image.file
    pixels = read_grey(path)
    thumbnail = Image.fromarray(pixels).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    rgb = read_rgb(path)
    coloured = 0.0
    if rgb is not None:
        coloured = float((np.ptp(rgb.astype(np.int16), axis=2) >= COLOURED).mean())
    lesion, problems = lesion_mask(folder, image, pixels.shape)
    cuts = {policy: cut_share(lesion, policy) for policy in POLICIES} if lesion is not None and lesion.any() else {}
    return _Looked(
        thumbnail=np.asarray(thumbnail, np.float32),
        detail=_detail(pixels),
        small=shrink(pixels),
        digest=_digest(pixels),
        brightest=int(pixels.max()),
        coloured=coloured,
        annotations=find_annotations(pixels).kinds,
        mask_problems=problems,
        cuts=cuts,
    )


def _detail(pixels: np.ndarray) -> np.ndarray:
    """The image less its blur, as a vector of unit length float32 [DETAIL_SIDE ** 2]."""
    small = Image.fromarray(pixels).resize((DETAIL_SIDE, DETAIL_SIDE), Image.Resampling.BOX)
    fine = np.asarray(small, np.float32) - np.asarray(small.filter(ImageFilter.GaussianBlur(3)), np.float32)
    fine = (fine - fine.mean()).ravel()
    return fine / max(float(np.linalg.norm(fine)), 1e-6)


def _digest(pixels: np.ndarray) -> str:
    return sha256_bytes(repr(pixels.shape).encode() + pixels.tobytes())


def _without_lesionless(
    problems: Iterable[tuple[str, str]], images: Iterable[SourceImage]
) -> Iterable[tuple[str, str]]:
    """Empty masks of a class that has no other masks say that it has no lesions: one line instead of one an image."""
    masks = Counter(image.class_name for image in images for _ in image.masks)
    problems = list(problems)
    empty = Counter(file.split("/")[0] for file, problem in problems if problem == "empty")
    lesionless = {name for name, n in empty.items() if n == masks[name]}
    yield from ((f"{name}/", f"all {empty[name]} masks are empty: a class without lesions") for name in lesionless)
    yield from (pair for pair in problems if pair[1] != "empty" or pair[0].split("/")[0] not in lesionless)


def lesion_mask(
    folder: Path, image: SourceImage, shape: tuple[int, ...]
) -> tuple[np.ndarray | None, list[tuple[str, str]]]:
    """The union of an image's masks, and what is wrong with them. An empty one is right where there is no lesion."""
    problems: list[tuple[str, str]] = []
    union = None
    for file in image.masks:
        try:
            mask = read_mask(folder / file)
        except UserError as error:
            problems.append((file, str(error)))
            continue
        except Exception as error:  # decoders raise what they like; the reason goes to the user
            problems.append((file, f"unreadable: {error}"))
            continue
        if mask.shape != shape:
            problems.append((file, f"{mask.shape[1]} x {mask.shape[0]}, its image {shape[1]} x {shape[0]}"))
            continue
        if not mask.any():
            problems.append((file, "empty"))
        union = mask if union is None else union | mask
    return union, problems


def near_pairs(looks: Sequence[_Looked], threshold: float) -> list[Pair]:
    """Pairs of whole frames that are close by hash and whose thumbnails correlate from threshold on."""
    if not looks:
        return []
    thumbnails = np.array([one.thumbnail for one in looks])
    details = np.array([one.detail for one in looks])
    flat = thumbnails.reshape(len(looks), -1)
    flat = flat - flat.mean(1, keepdims=True)
    flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
    bits = perceptual_bits(thumbnails).astype(np.float32) * 2 - 1
    pairs = []
    for at in range(0, len(flat), 1024):
        correlation = flat[at : at + 1024] @ flat.T
        distance = (bits.shape[1] - bits[at : at + 1024] @ bits.T) / 2
        for row, j in zip(*np.nonzero((correlation >= threshold) & (distance <= HASH_BITS)), strict=True):
            i = at + int(row)
            if i < j:
                pairs.append(Pair(i, int(j), float(correlation[row, j]), float(details[i] @ details[j])))
    return pairs


def perceptual_bits(thumbnails: np.ndarray) -> np.ndarray:
    """bool [n, 64]: signs about the median of the low 8 x 8 frequencies (pHash, Zauner 2010)."""
    k = np.arange(THUMBNAIL)
    basis = np.cos(np.pi * (2 * k[None] + 1) * np.arange(8)[:, None] / (2 * THUMBNAIL))
    low = np.einsum("ui,nij,vj->nuv", basis, thumbnails.astype(np.float64), basis).reshape(len(thumbnails), -1)
    return low > np.median(low[:, 1:], axis=1, keepdims=True)


def shared_images(
    folder: Path, images: Sequence[SourceImage], other: Path, others: Sequence[SourceImage]
) -> list[tuple[str, str]]:
    """(file, other file) of images of two data sets that are the same or near-duplicates."""
    places = [(folder, image) for image in images] + [(other, image) for image in others]
    with ThreadPoolExecutor(READERS) as pool:
        looked = list(pool.map(lambda place: _look(place[0], replace(place[1], masks=())), places))
    ours, theirs = looked[: len(images)], looked[len(images) :]
    found = {(p.i, p.j) for p in near_pairs(looked, THRESHOLD) if p.detail >= DETAIL}
    likely = aligned_pairs([one.small for one in ours], [one.small for one in theirs])
    found |= {(i, len(images) + j) for i, j, match in likely if match.score >= ALIGNED}
    at = {one.digest: i for i, one in enumerate(ours)}
    found |= {(at[one.digest], j) for j, one in enumerate(looked) if j >= len(images) and one.digest in at}
    crossing = sorted((i, j) for i, j in found if i < len(images) <= j)
    return [(places[i][1].file, places[j][1].file) for i, j in crossing]


def _clusters(
    files: Sequence[str],
    pairs: Iterable[Pair],
    threshold: float,
    copies: Iterable[tuple[int, int]],
    exact: Iterable[Sequence[str]],
    detail: float = DETAIL,
) -> list[tuple[str, ...]]:
    """What whole frames from threshold on, aligned copies and exact duplicates join."""
    links = [(files[p.i], files[p.j]) for p in pairs if p.thumbnail >= threshold and p.detail >= detail]
    links += [(files[i], files[j]) for i, j in copies]
    links += [(group[0], other) for group in exact for other in group[1:]]
    return connected(links)


def _chain(
    files: Sequence[str],
    pairs: Sequence[Pair],
    threshold: float,
    copies: Sequence[tuple[int, int]],
    exact: Sequence[Sequence[str]],
) -> tuple[float, int, int, int, int]:
    confirmed = _sizes(_clusters(files, pairs, threshold, copies, exact))
    return threshold, *confirmed, _sizes(_clusters(files, pairs, threshold, copies, exact, detail=-1))[2]


def _sizes(clusters: Sequence[Sequence[str]]) -> tuple[int, int, int]:
    """(clusters, images in them, largest)."""
    sizes = [len(group) for group in clusters]
    return len(sizes), sum(sizes), max(sizes, default=0)


def connected(links: Iterable[tuple[str, str]]) -> list[tuple[str, ...]]:
    """The connected components of two or more, each sorted, by their first member."""
    root: dict[str, str] = {}

    def find(x: str) -> str:
        while root.setdefault(x, x) != x:
            root[x] = root[root[x]]
            x = root[x]
        return x

    for a, b in links:
        root[find(a)] = find(b)
    groups: dict[str, list[str]] = defaultdict(list)
    for x in root:
        groups[find(x)].append(x)
    return sorted(tuple(sorted(group)) for group in groups.values() if len(group) > 1)
