"""Near-duplicates: images that show the same tissue, found as pairs and joined into groups.

Two tests find pairs, and either is enough. Whole frames: perceptual hashes are close, thumbnails
correlate and fine detail correlates (speckle and edges: the image minus its blur). Images at
another scale or in another crop: fine detail correlates once they are aligned (align.py).

A group is whatever pairs connect, directly or through others. A loose threshold would connect
different patients, so the check reports group sizes at neighbouring thresholds of either test.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from busray.data.align import Scan, aligned_pairs, shrink
from busray.data.pixels import READ_THREADS, read_grey
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


@dataclass(frozen=True, eq=False)
class Signature:
    """What an image is compared by."""

    thumbnail: np.ndarray  # float32 [THUMBNAIL, THUMBNAIL]
    # float32 [DETAIL_SIDE ** 2], of unit length: fine detail of the whole frame
    detail: np.ndarray
    scan: Scan  # for the alignment
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
    return Signature(thumbnail, detail, shrink(pixels), digest)


@dataclass(frozen=True)
class FramePair:
    """Two whole frames, by position, and how their thumbnails and fine detail correlate."""

    i: int
    j: int
    thumbnail: float
    detail: float


@dataclass(frozen=True)
class DuplicatePairs:
    """All pairs that may be duplicates; groups() joins those that reach given thresholds."""

    files: Sequence[str]
    frames: Sequence[FramePair]
    aligned: Sequence[tuple[int, int, float]]  # (i, j, score) of aligned images
    exact: Sequence[tuple[str, ...]]  # groups of files with the same pixels

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
    return DuplicatePairs(files, frame_pairs(signatures, least), aligned, exact)


def frame_pairs(signatures: Sequence[Signature], least: float) -> list[FramePair]:
    """Pairs of whole frames with close hashes and a thumbnail correlation of at least `least`."""
    if not signatures:
        return []
    thumbnails = np.array([image.thumbnail for image in signatures])
    flat = thumbnails.reshape(len(signatures), -1)
    flat = flat - flat.mean(1, keepdims=True)
    flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
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
    paths = [folder / image.file for image in images]
    paths += [other_folder / image.file for image in others]
    with ThreadPoolExecutor(READ_THREADS) as pool:
        signatures = list(pool.map(lambda path: signature(read_grey(path)), paths))
    n = len(images)
    pairs: set[tuple[int, int]] = set()
    for pair in frame_pairs(signatures, THRESHOLD):
        if pair.detail >= DETAIL and pair.i < n <= pair.j:
            pairs.add((pair.i, pair.j))
    scans = [image.scan for image in signatures]
    for i, j, match in aligned_pairs(scans[:n], scans[n:]):
        if match.score >= ALIGNED:
            pairs.add((i, n + j))
    position_of = {image.digest: i for i, image in enumerate(signatures[:n])}
    for j, other in enumerate(signatures[n:], n):
        if other.digest in position_of:
            pairs.add((position_of[other.digest], j))
    return [(images[i].file, others[j - n].file) for i, j in sorted(pairs)]


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
