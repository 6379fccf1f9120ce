"""Points of scans that are found again however a copy is turned, mirrored, inverted or cropped.

A point is where the difference of two blurs is extreme, in place and in blur (Lowe 2004,
"Distinctive image features from scale-invariant keypoints"). It is described by the grey levels on
rings around it; their radii are in units of its blur. A turned copy has shifted rings, a mirrored
one reversed rings, an inverted one rings of the other sign. The sizes of a ring's Fourier
coefficients and the relative phases of two rings stay the same, so one description serves all of
these copies.

Two alike points of two scans are a guess at how one scan lies on the other. Where the points of
several guesses agree, the scans are a candidate. The fine detail decides about it
(align.align_turned).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from busray.data.align import Pose, Scan

# Sigmas of the blurs, in pixels of a scan (its short side has align.SIDE); three in an octave
SIGMAS = 1.6 * 2 ** (np.arange(10) / 3)
CONTRAST = 0.8  # least difference of two blurs at a point, in grey levels (of 255)
INSIDE = 2.5  # least distance of a point from the edges, in its sigmas
POINTS = 120  # most points of a scan: those of the highest contrast
RINGS = np.array([1.2, 2.4, 3.6, 4.8, 6.0])  # radii in sigmas of the point
ANGLES = 32  # samples of a ring
FREQUENCIES = 9  # Fourier coefficients of a ring, from 0 on
AXES = 32  # principal axes of all descriptions that are compared
NEIGHBOURS = 8  # most alike points of a point
ALIKE = 0.75  # least correlation of the descriptions of two alike points
# Points are compared within cells of about so many points. Each point is in the PROBES cells that
# are nearest to it, so comparisons grow with n and not with n squared.
CELL = 500
PROBES = 3
# Points that must agree on a pose. On BUSI (780 images) 4 leave 6 pairs of different groups.
AGREE = 4
# Points that must agree before a pose may be stretched, and how much: a ratio of the sides of 1.9
STRETCHED = 8
MOST_STRETCHED = 0.3
NEAR = 5.0  # largest distance in pixels between a point and where an agreed pose lays it
PARTNERS = 6  # most candidates of a scan: those on which the most points agree


@dataclass(frozen=True, eq=False)
class Points:
    """The points of a scan."""

    place: np.ndarray  # complex64 [n]: x + iy in pixels, 0 at the scan's corner
    sigma: np.ndarray  # float32 [n]: in pixels
    # float16 [n, rings, ANGLES]: grey levels about their mean, of unit length
    rings: np.ndarray


@dataclass(frozen=True)
class Candidate:
    """Two scans by position, and how the first seems to lie on the second."""

    i: int
    j: int
    pose: Pose
    agree: int  # points that agree on the pose


def find_points(scan: Scan) -> Points:
    """The points of a scan. None where it is empty."""
    grey = scan.pixels.astype(np.float32)
    height, width = grey.shape
    levels = np.empty((len(SIGMAS), height, width), np.float32)
    for level, down, across in zip(levels, _blurs(height), _blurs(width), strict=True):
        np.matmul(down @ grey, across.T, out=level)
    edges = np.abs(levels[1:] - levels[:-1])
    k, y, x = np.unravel_index(np.flatnonzero(_peaks(edges)), edges.shape)
    margin = np.minimum(np.minimum(y, x), np.minimum(height - 1 - y, width - 1 - x))
    chosen = np.flatnonzero(margin >= INSIDE * SIGMAS[k])
    chosen = chosen[np.argsort(-edges[k, y, x][chosen], kind="stable")[:POINTS]]
    k, y, x = k[chosen], y[chosen], x[chosen]
    # The blur at which the difference would be largest: of the parabola through three blurs.
    below, at, above = edges[k - 1, y, x], edges[k, y, x], edges[k + 1, y, x]
    offset = (above - below) / np.maximum(2 * (2 * at - above - below), 1e-6)
    sigma = SIGMAS[k] * 2 ** (offset.clip(-0.5, 0.5) / 3)
    angle = np.arange(ANGLES) * 2 * np.pi / ANGLES
    radius = sigma[:, None, None] * RINGS[:, None]
    rows = (y[:, None, None] + radius * np.sin(angle)).round().astype(int).clip(0, height - 1)
    columns = (x[:, None, None] + radius * np.cos(angle)).round().astype(int).clip(0, width - 1)
    rings = levels[k[:, None, None], rows, columns]
    rings = rings - rings.mean((1, 2), keepdims=True)
    rings /= np.maximum(np.linalg.norm(rings, axis=(1, 2), keepdims=True), 1e-6)
    place = (x + 0.5 + 1j * (y + 0.5)).astype(np.complex64)
    return Points(place, sigma.astype(np.float32), rings.astype(np.float16))


def candidates(points: Sequence[Points], others: Sequence[Points] | None = None) -> list[Candidate]:
    """The likeliest pairs of scans: of points with others, or with i < j of one list."""
    every = [*points, *(others or ())]
    owner = np.repeat(np.arange(len(every)), [len(of_one.sigma) for of_one in every])
    if len(owner) < AGREE:
        return []
    together = Points(
        np.concatenate([of_one.place for of_one in every]),
        np.concatenate([of_one.sigma for of_one in every]),
        np.concatenate([of_one.rings for of_one in every]),
    )
    # Points of the same scan are not compared; of two lists, neither are those of the same list.
    apart = owner if others is None else owner >= len(points)
    a, b = _alike(_descriptions(together.rings), apart)
    # Matches of one pair of scans stand together.
    pair = owner[a] * len(every) + owner[b]
    order = np.argsort(pair, kind="stable")
    edges = np.flatnonzero(np.diff(pair[order], prepend=-1, append=-1))
    groups = []
    for k in np.flatnonzero(np.diff(edges) >= AGREE).tolist():
        groups.append(order[edges[k] : edges[k + 1]])
    kept = np.sort(np.concatenate(groups)) if groups else np.zeros(0, int)
    guesses = _guesses(together, a[kept], b[kept])
    found = []
    for group in groups:
        agreed = _agreed(guesses.of(np.searchsorted(kept, group)))
        if agreed:
            i, j = int(owner[a[group[0]]]), int(owner[b[group[0]]])
            found.append(Candidate(i, j if others is None else j - len(points), *agreed))
    return _best(found, one_list=others is None)


def _best(found: Sequence[Candidate], one_list: bool) -> list[Candidate]:
    """Those that are among the PARTNERS best of one of their scans at least, by position."""
    ranks: Counter[tuple[str, int]] = Counter()
    kept = []
    for candidate in sorted(found, key=lambda candidate: -candidate.agree):
        ends = ("i", candidate.i), ("i" if one_list else "j", candidate.j)
        ranks.update(ends)
        if min(ranks[end] for end in ends) <= PARTNERS:
            kept.append(candidate)
    return sorted(kept, key=lambda candidate: (candidate.i, candidate.j))


@lru_cache(maxsize=8)
def _blurs(n: int) -> np.ndarray:
    """float32 [SIGMAS, n, n]: the matrices that blur along a side of n pixels."""
    at = np.arange(n)
    profiles = np.exp(-(at**2) / (2 * SIGMAS[:, None] ** 2)).astype(np.float32)
    # Products of denormal numbers are slow: they took two thirds of the time of find_points.
    profiles[profiles < np.finfo(np.float32).tiny * 1e20] = 0
    # Row i of a matrix is the profile to both sides of i.
    both = np.concatenate([profiles[:, :0:-1], profiles], axis=1)
    weights = np.lib.stride_tricks.sliding_window_view(both, n, axis=1)[:, ::-1].copy()
    weights /= weights.sum(2, keepdims=True)
    return weights


def _peaks(edges: np.ndarray) -> np.ndarray:
    """bool [levels, h, w]: the largest of the 27 values around them, of CONTRAST at least."""
    top = np.maximum(np.maximum(edges[:-2], edges[1:-1]), edges[2:])
    top = np.maximum(np.maximum(top[:, :-2], top[:, 1:-1]), top[:, 2:])
    top = np.maximum(np.maximum(top[:, :, :-2], top[:, :, 1:-1]), top[:, :, 2:])
    inner = edges[1:-1, 1:-1, 1:-1]
    peaks = np.zeros(edges.shape, bool)
    peaks[1:-1, 1:-1, 1:-1] = (inner >= top) & (inner >= CONTRAST)
    return peaks


# ---- points that are alike ----


def _descriptions(rings: np.ndarray) -> np.ndarray:
    """float32 [n, d]: of rings [n, rings, ANGLES]; equal for turned, mirrored, inverted ones."""
    waves = np.fft.rfft(rings.astype(np.float32), axis=2)[:, :, :FREQUENCIES].astype(np.complex64)
    size = np.abs(waves)
    parts = [size]
    for step in (1, 2):  # neighbouring rings, and those beyond them
        inner, outer = waves[:, :-step], waves[:, step:]
        # In units of a coefficient. Mirrored rings have the conjugate product: its real part.
        parts.append((inner.conj() * outer).real / np.sqrt(size[:, :-step] * size[:, step:] + 1e-9))
    return np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)


def _alike(descriptions: np.ndarray, apart: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(a, b), a < b: pairs of points whose `apart` differs and whose descriptions are alike."""
    vectors = descriptions - descriptions.mean(0)
    spread, axes = np.linalg.eigh(vectors.T @ vectors / len(vectors))
    spread, axes = spread[::-1][:AXES], axes[:, ::-1][:, :AXES]
    # Axes of wide spread would decide alone. Without any spread, those of noise would.
    vectors = vectors @ (axes / np.maximum(spread, 1e-6) ** 0.35)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
    links = [np.zeros(0, int)]
    for cell in _cells(vectors):
        of_cell = vectors[cell].T.copy()
        for start in range(0, len(cell), 256):  # in blocks that stay in the processor's cache
            block = cell[start : start + 256]
            alike = vectors[block] @ of_cell
            rows, columns = np.divmod(np.flatnonzero(alike >= ALIKE), len(cell))
            kept = apart[block[rows]] != apart[cell[columns]]
            rows, columns = rows[kept], columns[kept]
            order = np.lexsort((-alike[rows, columns], rows))
            rows, columns = rows[order], columns[order]
            # The rank of each in its row: positions minus the position at which the row begins.
            kept = np.arange(len(rows)) - np.searchsorted(rows, rows) < NEIGHBOURS
            one, other = block[rows[kept]], cell[columns[kept]]
            links.append(np.minimum(one, other) * len(apart) + np.maximum(one, other))
    pairs = np.unique(np.concatenate(links))
    return pairs // len(apart), pairs % len(apart)


def _cells(vectors: np.ndarray) -> list[np.ndarray]:
    """The numbers of the vectors [n, d] in each cell. A vector is in PROBES cells."""
    n = len(vectors) // CELL
    if n <= PROBES:
        return [np.arange(len(vectors))]
    rng = np.random.default_rng(0)
    sample = vectors[rng.choice(len(vectors), 40 * n, replace=False)]
    centres = sample[:n].copy()
    for _ in range(5):  # Lloyd's iteration
        np.add.at(centres, (sample @ centres.T).argmax(1), sample)
        centres /= np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-6)
    near = np.empty((len(vectors), PROBES), int)
    for start in range(0, len(vectors), 4096):
        distance = -(vectors[start : start + 4096] @ centres.T)
        near[start : start + 4096] = np.argpartition(distance, PROBES - 1, axis=1)[:, :PROBES]
    order = np.argsort(near.ravel(), kind="stable") // PROBES
    ends = np.cumsum(np.bincount(near.ravel(), minlength=n))[:-1]
    return [cell for cell in np.split(order, ends) if len(cell)]


# ---- how one scan lies on the other ----


@dataclass(frozen=True, eq=False)
class _Guesses:
    """Of each pair of alike points: their places and the pose that lays one on the other."""

    place: np.ndarray  # complex64 [m]: in one scan
    on: np.ndarray  # complex64 [m]: in the other scan
    # complex64 [m]: turn and scale, after the scan is mirrored upside down where it is mirrored
    turn: np.ndarray
    mirrored: np.ndarray  # bool [m]
    inverted: np.ndarray  # bool [m]

    def of(self, chosen: np.ndarray) -> "_Guesses":
        return _Guesses(
            self.place[chosen], self.on[chosen], self.turn[chosen], self.mirrored[chosen], self.inverted[chosen]
        )


def _guesses(points: Points, a: np.ndarray, b: np.ndarray) -> _Guesses:
    """The guesses of points a [m] and b [m]: the turn and the sign at which rings match best."""
    waves = np.fft.rfft(points.rings.astype(np.float32), axis=2).astype(np.complex64)
    turn = (points.sigma[b] / points.sigma[a]).astype(np.complex64)
    mirrored, inverted = np.zeros(len(a), bool), np.zeros(len(a), bool)
    for start in range(0, len(a), 8192):
        part = slice(start, start + 8192)
        one, other = waves[a[part]], waves[b[part]]
        # Correlations of the rings at each turn, of the point as it is and of its mirror image
        upright = np.fft.irfft((one.conj() * other).sum(1), ANGLES, axis=1)
        flipped = np.fft.irfft((one * other).sum(1), ANGLES, axis=1)
        match = np.concatenate([upright, flipped], axis=1)
        at = np.abs(match).argmax(1)
        mirrored[part] = at >= ANGLES
        inverted[part] = match[np.arange(len(at)), at] < 0
        turn[part] *= np.exp(2j * np.pi * (at % ANGLES) / ANGLES).astype(np.complex64)
    return _Guesses(points.place[a], points.place[b], turn, mirrored, inverted)


def _agreed(guesses: _Guesses) -> tuple[Pose, int] | None:
    """The pose on which the most points of two scans agree, and how many. None below AGREE."""
    turn, mirrored, on = guesses.turn, guesses.mirrored, guesses.on
    place = np.where(mirrored, guesses.place.conj(), guesses.place)
    # Row: a guess's pose. Column: another guess, and where that pose lays its point.
    same = (mirrored[:, None] == mirrored) & (guesses.inverted[:, None] == guesses.inverted)
    away = place - place[:, None]
    off = np.abs(on[:, None] + turn[:, None] * away - on) / np.maximum(np.abs(turn), 1)[:, None]
    # A point's own turn and scale are inexact: what is far from it may lie further off.
    near = off < NEAR + 0.15 * np.abs(away)
    factor = turn[:, None] / turn
    near &= (np.abs(np.log(np.abs(factor))) < 0.4) & (np.abs(np.angle(factor)) < 0.5)
    near &= same
    counts = np.count_nonzero(near, axis=1)
    best = int(counts.argmax())
    if counts[best] < AGREE:
        return None
    agree = near[best]
    pose = None
    for reach, may_stretch in ((2 * NEAR, False), (2 * NEAR, True), (NEAR, True)):
        count = _distinct(guesses, agree)
        if count < AGREE:
            return None
        pose = _fitted(guesses.of(np.flatnonzero(agree)), may_stretch and count >= STRETCHED)
        laid = pose.along * guesses.place + pose.across * guesses.place.conj() + pose.shift
        agree = same[best] & (np.abs(laid - on) < reach * max(abs(pose.along), abs(pose.across), 1))
    count = _distinct(guesses, agree)
    return None if pose is None or count < AGREE else (pose, count)


def _fitted(guesses: _Guesses, stretched: bool) -> Pose:
    """The pose that lays the points of one scan nearest to those of the other, by least squares.

    All are mirrored, or none is, and so with inverted. stretched: any affine map; else turn, scale
    and shift alone, which fewer points tell.
    """
    mirrored, inverted = bool(guesses.mirrored[0]), bool(guesses.inverted[0])
    place = guesses.place.astype(np.complex128)
    terms = [place.conj(), place] if mirrored else [place, place.conj()]
    if stretched:
        columns = np.stack([*terms, np.ones_like(place)], axis=1)
        (main, rest, shift), *_ = np.linalg.lstsq(columns, guesses.on.astype(np.complex128))
        if abs(rest) <= MOST_STRETCHED * abs(main):
            along, across = (rest, main) if mirrored else (main, rest)
            return Pose(complex(along), complex(across), complex(shift), inverted)
    columns = np.stack([terms[0], np.ones_like(place)], axis=1)
    (main, shift), *_ = np.linalg.lstsq(columns, guesses.on.astype(np.complex128))
    along, across = (0, main) if mirrored else (main, 0)
    return Pose(complex(along), complex(across), complex(shift), inverted)


def _distinct(guesses: _Guesses, chosen: np.ndarray) -> int:
    """Points of each scan among the chosen guesses; a point may be alike to several."""
    return min(len(np.unique(guesses.place[chosen])), len(np.unique(guesses.on[chosen])))
