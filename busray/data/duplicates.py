"""Near-duplicates: images that show the same tissue, found as pairs and joined into groups.

Four tests find pairs, and each alone is enough. All of them compare fine detail at the end (speckle
and edges: the image minus its blur).

- Whole frames: perceptual hashes are close, thumbnails and fine detail correlate.
- Images at another scale or in another crop: fine detail correlates once they are aligned
  (align.py).
- Whole frames that are mirrored, turned by quarters or inverted: thumbnails and fine detail
  correlate in one of 16 orientations.
- Images that are turned by any angle, mirrored, inverted, or strongly cropped: points of the two
  agree on how one lies on the other (keypoints.py), and fine detail correlates there.

COPIES lists what is looked for. A group is whatever pairs connect, directly or through others. A
loose threshold would connect different patients, so the check reports group sizes at neighbouring
thresholds of the first two tests.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from busray.data.align import Scan, align_turned, aligned_pairs, shrink
from busray.data.keypoints import Points, candidates, find_points
from busray.data.pixels import READ_THREADS, by_file, opened
from busray.identity import sha256_bytes
from busray.records import SourceImage

THUMBNAIL = 32  # side in pixels of the thumbnails that hashes and correlations are computed from
HASH_BITS = 24  # largest Hamming distance of the 64-bit perceptual hashes of a candidate pair
THRESHOLD = 0.90  # least thumbnail correlation of a near-duplicate pair of whole frames
DETAIL_SIDE = 96  # side in pixels of the images whose fine detail confirms a pair
# Least correlation of fine detail that confirms a pair. On BUSI, unrelated pairs whose thumbnails
# are alike stay below 0.2.
DETAIL = 0.25
# Least score of an aligned near-duplicate pair. All 25 pairs of BUSI that score 0.17 to 0.3 were
# inspected: each seems to show one patient twice. So the threshold misses pairs rather than joins
# strangers.
ALIGNED = 0.2
# Least correlation of fine detail of whole frames in another orientation. On BUSI, strangers stay
# below 0.25; a lesion that is nearly symmetric has 0.35 with another frame of itself, mirrored.
TURNED_DETAIL = 0.5
# Least score of a pair that points found. On BUSI, strangers stay below 0.2, and below 0.3 where
# black corners are added. Skulls of different fetuses (HC18) reach 0.45, as their outlines fit.
# Nine in ten planted copies are above 0.7.
TURNED = 0.5
# (kind of copy, whether it is looked for)
COPIES = (
    ("the same pixels in another file", "yes"),
    ("brighter, darker, blurred, compressed again, at another scale", "yes"),
    ("mirrored, upside down, turned by any angle, inverted", "yes"),
    ("stretched by a fifth or less", "yes"),
    ("cropped, if a quarter of the area is left", "yes, 19 of 20 are found"),
    ("several of these together", "yes"),
    ("cropped to less than a quarter of the area", "no"),
    ("bent, or stretched by more", "no"),
    ("a part of an image pasted into another image", "no"),
    ("another frame of the same patient", "no, dataset.metadata keeps patients together"),
)


@dataclass(frozen=True, eq=False)
class Signature:
    """What an image is compared by."""

    thumbnail: np.ndarray  # float32 [THUMBNAIL, THUMBNAIL]
    # float32 [DETAIL_SIDE ** 2], of unit length: fine detail of the whole frame
    detail: np.ndarray
    scan: Scan  # for the alignment
    points: Points  # of the scan
    # SHA-256 of the pixels and their shape; the same for exact duplicates in any file format
    digest: str


def signature(pixels: np.ndarray) -> Signature:
    """The signature of an image uint8 [h, w]."""
    image = Image.fromarray(pixels)
    thumbnail = np.asarray(image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX), np.float32)
    small = image.resize((DETAIL_SIDE, DETAIL_SIDE), Image.Resampling.BOX)
    blurred = small.filter(ImageFilter.GaussianBlur(3))
    fine = np.asarray(small, np.float32) - np.asarray(blurred, np.float32)
    fine = (fine - fine.mean()).ravel()
    detail = fine / max(float(np.linalg.norm(fine)), 1e-6)
    digest = sha256_bytes(repr(pixels.shape).encode() + pixels.tobytes())
    scan = shrink(pixels)
    return Signature(thumbnail, detail, scan, find_points(scan), digest)


@dataclass(frozen=True)
class FramePair:
    """Two whole frames, by position, and how their thumbnails and fine detail correlate."""

    i: int
    j: int
    thumbnail: float
    detail: float


@dataclass(frozen=True)
class TurnedPair:
    """Two images by position, and how the second is made of the first: mirrored, then turned."""

    i: int
    j: int
    score: float  # correlation of fine detail, times the root of the overlap
    mirrored: bool  # left and right are exchanged
    degrees: float  # clockwise, -180 to 180
    inverted: bool  # bright and dark are exchanged

    @property
    def how(self) -> str:
        words = ["mirrored"] if self.mirrored else []
        if abs(self.degrees) >= 1:
            words.append(f"turned by {self.degrees:.0f} degrees")
        if self.inverted:
            words.append("inverted")
        return ", ".join(words) or "another crop"


@dataclass(frozen=True)
class DuplicatePairs:
    """All pairs that may be duplicates; groups() joins those that reach given thresholds."""

    files: Sequence[str]
    frames: Sequence[FramePair]
    aligned: Sequence[tuple[int, int, float]]  # (i, j, score) of aligned images
    exact: Sequence[tuple[str, ...]]  # groups of files with the same pixels
    # Duplicates that no other test joins
    turned: Sequence[TurnedPair] = ()

    def groups(
        self, thumbnail: float = THRESHOLD, detail: float = DETAIL, aligned: float = ALIGNED
    ) -> list[tuple[str, ...]]:
        """Groups of two or more files. The arguments: least correlations, and the least score."""
        links = []
        for pair in self.frames:
            if pair.thumbnail >= thumbnail and pair.detail >= detail:
                links.append((self.files[pair.i], self.files[pair.j]))
        for i, j, score in self.aligned:
            if score >= aligned:
                links.append((self.files[i], self.files[j]))
        links += [(self.files[pair.i], self.files[pair.j]) for pair in self.turned]
        for group in self.exact:
            links += [(group[0], other) for other in group[1:]]
        return connected(links)


def duplicate_pairs(files: Sequence[str], signatures: Sequence[Signature], least: float) -> DuplicatePairs:
    """Compare all images. least: the lowest thumbnail correlation that groups() will be given."""
    files_of: dict[str, list[str]] = defaultdict(list)
    for file, image in zip(files, signatures, strict=True):
        files_of[image.digest].append(file)
    aligned = []
    for i, j, match in aligned_pairs([image.scan for image in signatures]):
        aligned.append((i, j, match.score))
    exact = sorted(tuple(group) for group in files_of.values() if len(group) > 1)
    upright = DuplicatePairs(files, frame_pairs(signatures, least), aligned, exact)
    group_of = {file: number for number, group in enumerate(upright.groups()) for file in group}

    def apart(i: int, j: int) -> bool:
        return files[i] not in group_of or group_of[files[i]] != group_of.get(files[j])

    turned = turned_frames(signatures, apart) + turned_scans(signatures, None, apart)
    return replace(upright, turned=one_of_each(turned))


def one_of_each(pairs: Iterable[TurnedPair]) -> list[TurnedPair]:
    """The pair of the highest score of each two images, by position."""
    best: dict[tuple[int, int], TurnedPair] = {}
    for pair in pairs:
        if (pair.i, pair.j) not in best or pair.score > best[pair.i, pair.j].score:
            best[pair.i, pair.j] = pair
    return [best[key] for key in sorted(best)]


def frame_pairs(signatures: Sequence[Signature], least: float) -> list[FramePair]:
    """Pairs of whole frames with close hashes and a thumbnail correlation of at least `least`."""
    if not signatures:
        return []
    thumbnails = np.array([image.thumbnail for image in signatures])
    flat = _unit(thumbnails)
    # With bits as +1 and -1, a product of n bits is n minus twice the Hamming distance.
    bits = perceptual_bits(thumbnails).astype(np.float32) * 2 - 1
    pairs = []
    for start in range(0, len(flat), 1024):  # rows in blocks: n x n floats may not fit in memory
        correlation = flat[start : start + 1024] @ flat.T
        distance = (bits.shape[1] - bits[start : start + 1024] @ bits.T) / 2
        rows, columns = np.nonzero((correlation >= least) & (distance <= HASH_BITS))
        for row, column in zip(rows, columns, strict=True):
            i, j = start + int(row), int(column)
            if i < j:
                detail = float(signatures[i].detail @ signatures[j].detail)
                pairs.append(FramePair(i, j, float(correlation[row, column]), detail))
    return pairs


def _unit(thumbnails: np.ndarray) -> np.ndarray:
    """float32 [n, pixels]: of mean 0 and unit length, so that products are correlations."""
    flat = thumbnails.reshape(len(thumbnails), -1)
    flat = flat - flat.mean(1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)


def turned_frames(signatures: Sequence[Signature], wanted: Callable[[int, int], bool]) -> list[TurnedPair]:
    """Wanted pairs (i < j) of whole frames that match mirrored, turned by quarters or inverted."""
    if not signatures:
        return []
    thumbnails = np.array([image.thumbnail for image in signatures])
    flat = _unit(thumbnails)
    pairs = []
    for mirrored, quarters in product((False, True), range(4)):
        changed = _unit(np.ascontiguousarray(_changed(thumbnails, mirrored, quarters)))
        for start in range(0, len(flat), 1024):
            correlation = changed[start : start + 1024] @ flat.T
            likely = np.abs(correlation) >= THRESHOLD
            if not mirrored and quarters == 0:
                likely = correlation <= -THRESHOLD  # frame_pairs finds the upright ones
            for row in np.flatnonzero(likely.any(1)):
                i = start + int(row)
                detail = _changed(signatures[i].detail.reshape(DETAIL_SIDE, DETAIL_SIDE), mirrored, quarters).ravel()
                for j in (np.flatnonzero(likely[row, i + 1 :]) + i + 1).tolist():
                    inverted = bool(correlation[row, j] < 0)
                    score = float(detail @ signatures[j].detail) * (-1 if inverted else 1)
                    if score >= TURNED_DETAIL and wanted(i, j):
                        degrees = 90.0 * quarters if quarters < 3 else -90.0
                        pairs.append(TurnedPair(i, j, score, mirrored, degrees, inverted))
    return pairs


def _changed(frames: np.ndarray, mirrored: bool, quarters: int) -> np.ndarray:
    """Frames [..., side, side] mirrored, then turned clockwise by quarters."""
    return np.rot90(frames[..., ::-1] if mirrored else frames, -quarters, (-2, -1))


def turned_scans(
    signatures: Sequence[Signature], others: Sequence[Signature] | None, wanted: Callable[[int, int], bool]
) -> list[TurnedPair]:
    """Wanted pairs whose points agree on a pose and whose fine detail correlates there.

    Of signatures with others, or with i < j of one list.
    """
    theirs = signatures if others is None else others
    points = [image.points for image in signatures]
    pairs = []
    for candidate in candidates(points, None if others is None else [image.points for image in others]):
        i, j = candidate.i, candidate.j
        if wanted(i, j):
            match, pose = align_turned(signatures[i].scan, theirs[j].scan, candidate.pose)
            if match.score >= TURNED:
                pairs.append(TurnedPair(i, j, match.score, pose.mirrored, pose.degrees, pose.inverted))
    return pairs


def perceptual_bits(thumbnails: np.ndarray) -> np.ndarray:
    """bool [n, 64]: which of the 8 x 8 lowest frequencies exceed their median (Zauner 2010).

    thumbnails: float32 [n, THUMBNAIL, THUMBNAIL].
    """
    k = np.arange(THUMBNAIL)
    basis = np.cos(np.pi * (2 * k[None] + 1) * np.arange(8)[:, None] / (2 * THUMBNAIL))  # DCT-II
    low = np.einsum("ui,nij,vj->nuv", basis, thumbnails.astype(np.float64), basis)
    low = low.reshape(-1, 64)
    # The first frequency is the mean grey level: far larger than the others, so not in the median.
    return low > np.median(low[:, 1:], axis=1, keepdims=True)


def shared_images(
    folder: Path, images: Sequence[SourceImage], other_folder: Path, others: Sequence[SourceImage]
) -> list[tuple[str, str]]:
    """(file, other file) of images of two data sets that are the same or near-duplicates."""
    signatures = _signatures(folder, images) + _signatures(other_folder, others)
    n = len(images)
    pairs: set[tuple[int, int]] = set()
    for pair in frame_pairs(signatures, THRESHOLD):
        if pair.detail >= DETAIL and pair.i < n <= pair.j:
            pairs.add((pair.i, pair.j))
    scans = [image.scan for image in signatures]
    for i, j, match in aligned_pairs(scans[:n], scans[n:]):
        if match.score >= ALIGNED:
            pairs.add((i, n + j))
    for turned in turned_frames(signatures, lambda i, j: i < n <= j):
        pairs.add((turned.i, turned.j))
    for turned in turned_scans(signatures[:n], signatures[n:], lambda i, j: (i, n + j) not in pairs):
        pairs.add((turned.i, n + turned.j))
    position_of = {image.digest: i for i, image in enumerate(signatures[:n])}
    for j, other in enumerate(signatures[n:], n):
        if other.digest in position_of:
            pairs.add((position_of[other.digest], j))
    return [(images[i].file, others[j - n].file) for i, j in sorted(pairs)]


def _signatures(folder: Path, images: Sequence[SourceImage]) -> list[Signature]:
    def of_file(frames: Sequence[SourceImage]) -> dict[str, Signature]:
        with opened(folder / frames[0].path, frames[0].grey_bits) as decode:
            return {image.file: signature(decode(image.frame).grey) for image in frames}

    found: dict[str, Signature] = {}
    with ThreadPoolExecutor(READ_THREADS) as pool:
        for signatures in pool.map(of_file, by_file(images)):
            found |= signatures
    return [found[image.file] for image in images]


def connected(links: Iterable[tuple[str, str]]) -> list[tuple[str, ...]]:
    """The connected components of two or more, each sorted; components by their first member."""
    parent: dict[str, str] = {}

    def root(x: str) -> str:
        while parent.setdefault(x, x) != x:
            parent[x] = parent[parent[x]]  # halve the path, so that chains stay short
            x = parent[x]
        return x

    for a, b in links:
        parent[root(a)] = root(b)
    members: dict[str, list[str]] = defaultdict(list)
    for x in parent:
        members[root(x)].append(x)
    return sorted(tuple(sorted(group)) for group in members.values() if len(group) > 1)
