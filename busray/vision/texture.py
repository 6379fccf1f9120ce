"""Ultrasound texture: 59 documented radiomics and speckle features of an image.

Pure NumPy. Only an image's content counts, never its padding. First-order and co-occurrence
features follow the Image Biomarker Standardisation Initiative (IBSI; Zwanenburg et al. 2020, doi
10.1148/radiol.2020191145; reference manual arXiv 1612.07003), at 32 fixed grey levels, each of 8
of the 256 grey values.

The Frechet Radiomic Distance (FRD; Konz et al., arXiv 2412.01496) takes 464 features of
PyRadiomics, standardises on its reference images and gives a logarithm. Here there are 59 features,
which fewer reference images determine; axial and lateral features differ, as a scanner resolves
depth and width differently; all arms and the floor are scaled by the training images; and the
distance itself is given. So values here are not FRD's.
"""

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np

from busray.records import ContentBox
from busray.vision.speckle import local_snr, spectrum_slope

# Of the extractor; stored features are found by it. Any other definition needs another name.
NAME = "texture-1"
LEVELS = 32
BIN = 256 // LEVELS
PERCENTILES = (10, 25, 50, 75, 90)
# Between co-occurring pixels, in px; on a diagonal this many px down and across.
DISTANCES = (1, 2, 4)
DIRECTIONS = ("axial", "lateral", "diagonal")
HARALICK = ("contrast", "homogeneity", "energy", "correlation", "entropy")
SMALLEST = 16  # least side in px of a content box that texture can be measured in
FEATURES = (
    *("mean", "sd", "skewness", "kurtosis", "entropy"),
    *(f"p{p}" for p in PERCENTILES),
    *(f"glcm_{name}_{way}_{d}" for d, way, name in product(DISTANCES, DIRECTIONS, HARALICK)),
    *("width_axial", "width_lateral", "speckle_snr", "spectrum_slope"),
)


def texture_features(images: np.ndarray, boxes: Sequence[ContentBox]) -> np.ndarray:
    """Images uint8 [n, s, s] and their content boxes -> finite float64 [n, 59], as in FEATURES.

    TypeError where images are not 8-bit; ValueError where a content box has a side below SMALLEST.
    """
    if images.dtype != np.uint8:
        raise TypeError(f"features are of 8-bit images, not {images.dtype}")
    # The C library gives freed memory back to the system beyond twice the largest block that was
    # ever freed. Its pages are then fetched again for each image, which takes more time than all
    # arithmetic. So one block of the largest size that counts (32 MiB) is freed, never touched.
    np.empty(2**25 - 2**16, np.uint8)
    features = np.empty((len(images), len(FEATURES)))
    for row, image, box in zip(features, images, boxes, strict=True):
        if min(box.width, box.height) < SMALLEST:
            size = f"{box.width} x {box.height} px"
            raise ValueError(f"a content box of {size} is too small for texture: {SMALLEST}")
        content = image[box.top : box.top + box.height, box.left : box.left + box.width]
        widths = correlation_widths(content, len(image) // 16)
        row[:] = [*first_order(content), *co_occurrence(content), *widths, *_speckle(content)]
    return features


def standardised(
    arms: Mapping[str, Mapping[str, np.ndarray]], real: Mapping[str, Mapping[str, np.ndarray]]
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, dict[str, np.ndarray]]]:
    """The same (arms, real), scaled so that the real training images have mean 0 and deviation 1.

    Both are name -> class -> features [n, d].
    """
    mean, sd = scale_of(real)

    def scaled(sides: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, dict[str, np.ndarray]]:
        result: dict[str, dict[str, np.ndarray]] = {}
        for side, rows_by_class in sides.items():
            result[side] = {name: (rows - mean) / sd for name, rows in rows_by_class.items()}
        return result

    return scaled(arms), scaled(real)


def scale_of(real: Mapping[str, Mapping[str, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """(mean, deviation), both [d], of the real training images: split -> class -> features."""
    train = np.concatenate(list(real["train"].values())).astype(np.float64)
    mean, sd = train.mean(0), train.std(0)
    sd[sd == 0] = 1  # such a feature is only centred
    return mean, sd


def first_order(content: np.ndarray) -> list[float]:
    """Of uint8 [h, w], N pixels x: intensity statistics (IBSI 3.3) and the histogram's entropy
    (IBSI 3.4).

    mean m = sum x / N; sd s = sqrt(sum (x - m)^2 / N); skewness = sum ((x - m) / s)^3 / N; excess
    kurtosis = sum ((x - m) / s)^4 / N - 3 (both 0 where s = 0); entropy = - sum p log2 p [bit] of
    the shares p of 32 grey levels; percentile q: the least grey value that at least q % of the
    pixels do not exceed.
    """
    counts = np.bincount(content.ravel(), minlength=256)
    grey, share = np.arange(256), counts / content.size
    mean = float(share @ grey)
    moments = [float(share @ (grey - mean) ** k) for k in (2, 3, 4)]
    sd = np.sqrt(moments[0])
    skewness, kurtosis = (moments[1] / sd**3, moments[2] / sd**4 - 3) if sd else (0.0, 0.0)
    entropy = _entropy(share.reshape(LEVELS, BIN).sum(1))
    ranks = np.ceil(np.array(PERCENTILES) * content.size / 100)
    return [mean, sd, skewness, kurtosis, float(entropy), *np.searchsorted(counts.cumsum(), ranks)]


def co_occurrence(content: np.ndarray) -> np.ndarray:
    """Haralick's features (Haralick et al. 1973, doi 10.1109/TSMC.1973.4309314; IBSI 3.6) of uint8
    [h, w] -> [45].

    p(i, j): the share of pixel pairs at an offset with grey levels i and j, counted both ways, so
    p(i, j) = p(j, i). Offsets: DISTANCES px down (axial), across (lateral), and along both
    diagonals, whose pairs are counted together, so that a mirrored image has the same features.
    With mean m and variance v of the levels under p:

    contrast = sum (i - j)^2 p; homogeneity (inverse difference moment) = sum p / (1 + (i - j)^2);
    energy (angular second moment) = sum p^2; correlation = (sum i j p - m^2) / v, 1 where v = 0;
    entropy = - sum p log2 p [bit].
    """
    p = _pair_shares(content // BIN)
    i = np.arange(LEVELS)
    apart = (i[:, None] - i) ** 2
    level_shares = p.sum(2)
    mean = level_shares @ i
    variance = level_shares @ i**2 - mean**2
    covariance = (p * np.outer(i, i)).sum((1, 2)) - mean**2
    spread = variance > 1e-12  # rounding leaves this much of a single level's 0
    features = (
        (p * apart).sum((1, 2)),
        (p / (1 + apart)).sum((1, 2)),
        (p**2).sum((1, 2)),
        np.where(spread, covariance / np.where(spread, variance, 1), 1.0),
        _entropy(p.reshape(len(p), -1)),
    )
    return np.stack(features, axis=1).ravel()


def _pair_shares(levels: np.ndarray) -> np.ndarray:
    """Shares [9, LEVELS, LEVELS] of pairs of levels uint8 [h, w], counted both ways.

    Of each of DISTANCES, in each of DIRECTIONS.
    """
    height, width = levels.shape
    steps = []  # (down, across, row of the result)
    for row, (d, direction) in enumerate(product(DISTANCES, DIRECTIONS)):
        ways = {"axial": [(d, 0)], "lateral": [(0, d)], "diagonal": [(d, d), (d, -d)]}[direction]
        steps += [(*way, row) for way in ways]

    # Counting takes the most time. So a pixel is counted with two others at once, as one number
    # below 2^16. The level LEVELS stands for what lies outside.
    margin, outside = max(DISTANCES), LEVELS + 1
    first = levels * np.uint16(outside**2)
    third = np.pad(levels.astype(np.uint16), margin, constant_values=LEVELS)
    second = third * np.uint16(outside)
    shares = np.zeros((len(DISTANCES) * len(DIRECTIONS), LEVELS, LEVELS))
    for one, other in zip(steps[::2], steps[1::2], strict=True):
        numbers = first.copy()
        for (down, across, _), added in ((one, second), (other, third)):
            top, left = margin + down, margin + across
            numbers += added[top : top + height, left : left + width]
        counts = np.bincount(numbers.ravel(), minlength=LEVELS * outside**2).reshape(LEVELS, outside, outside)
        shares[one[2]] += counts.sum(2)[:, :LEVELS]
        shares[other[2]] += counts.sum(1)[:, :LEVELS]
    both = shares + shares.transpose(0, 2, 1)
    return both / both.sum((1, 2), keepdims=True)


def _entropy(shares: np.ndarray) -> np.ndarray:
    """- sum p log2 p over the last axis, [bit]."""
    return -(shares * np.log2(np.where(shares > 0, shares, 1))).sum(-1)


def correlation_widths(content: np.ndarray, reach: int) -> tuple[float, float]:
    """(axial, lateral) size of a speckle in px: full width at half maximum of the autocovariance
    of [h, w] along an axis (Wagner et al. 1983, doi 10.1109/T-SU.1983.31404).

    The local mean, over a square of 2 reach + 1 px, is subtracted first: what changes more slowly
    is tissue. At lag k the autocovariance is the mean product of all pairs k px apart. The
    crossing of half the variance is interpolated between lags; it lies at `reach` where there is
    none before, and at 0 where nothing is left.
    """
    # Rows that lie one after the other in memory are multiplied faster than columns.
    lateral = _local_mean(content, reach)
    np.subtract(content.T, lateral, out=lateral)
    axial = lateral.T.copy()
    variance = float(np.vdot(axial, axial)) / axial.size
    if variance == 0:
        return 0.0, 0.0
    return _half_width(axial, reach, variance), _half_width(lateral, reach, variance)


def _half_width(rest: np.ndarray, reach: int, variance: float) -> float:
    """Along the first axis of [h, w]."""
    before = 1.0
    for lag in range(1, min(reach, len(rest) - 1) + 1):
        ahead, behind = rest[lag:], rest[:-lag]
        value = float(np.vdot(ahead, behind)) / ahead.size / variance
        if value < 0.5:
            return 2 * (lag - 1 + (before - 0.5) / (before - value))
        before = value
    return 2.0 * reach


def _local_mean(content: np.ndarray, reach: int) -> np.ndarray:
    """[w, h]: mean of uint8 [h, w] over squares of 2 reach + 1 px, cut at the border."""
    # Short numbers are several times as fast as long ones; these hold the sum of all pixels.
    kind = np.int32 if content.size * 255 < 2**31 else np.int64
    across, columns = _window_sums(content.astype(kind), reach)
    square, rows = _window_sums(across.T.copy(), reach)
    return square / np.outer(columns.astype(np.float64), rows)


def _window_sums(numbers: np.ndarray, reach: int) -> tuple[np.ndarray, np.ndarray]:
    """(sums [h, w] over up to `reach` numbers of a row to either side; how many numbers [w])."""
    height, width = numbers.shape
    before = np.zeros((height, width + 2 * reach + 1), numbers.dtype)
    within = before[:, reach + 1 : reach + 1 + width]
    np.cumsum(numbers, axis=1, out=within)
    before[:, reach + 1 + width :] = within[:, -1:]
    x = np.arange(width)
    count = np.minimum(x + reach + 1, width) - np.maximum(x - reach, 0)
    return before[:, 2 * reach + 1 :] - before[:, :width], count


def _speckle(content: np.ndarray) -> tuple[float, float]:
    """(speckle SNR, slope of the radial power of the central square); 0 where undefined."""
    height, width = content.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = content[top : top + side, left : left + side]
    snr = local_snr(content[None])
    slope = spectrum_slope(square[None]) if square.min() < square.max() else 0.0
    return 0.0 if np.isnan(snr) else snr, slope
