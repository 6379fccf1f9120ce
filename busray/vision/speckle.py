"""Two measures of speckle. Pure NumPy; images are uint8 or float [n, h, w], 0..255."""

import numpy as np


def local_snr(images: np.ndarray, size: int = 8, darkest: float = 24.0) -> float:
    """Speckle signal-to-noise ratio: the median of mean / standard deviation over windows.

    Windows are size x size px. Those whose mean is below `darkest` are left out: a black bar has no
    speckle. NaN where none is left. Fully developed speckle has 1.91 before log compression
    (Wagner et al. 1983, doi 10.1109/T-SU.1983.31404).
    """
    n, h, w = images.shape
    cut = images[:, : h - h % size, : w - w % size].astype(np.float64)
    windows = cut.reshape(n, h // size, size, w // size, size).transpose(0, 1, 3, 2, 4)
    windows = windows.reshape(-1, size * size)
    mean, std = windows.mean(1), windows.std(1)
    bright = (mean >= darkest) & (std > 0)
    return float(np.median(mean[bright] / std[bright])) if bright.any() else float("nan")


def radial_power(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(frequencies [cycles/px], mean power at each) of square images, averaged over rings."""
    side = images.shape[-1]
    # A Hann window, or the step between opposite borders would add power at every frequency.
    x = images.astype(np.float64) - images.mean((1, 2), keepdims=True)
    power = np.abs(np.fft.fft2(x * np.outer(np.hanning(side), np.hanning(side)))) ** 2
    frequency = np.fft.fftfreq(side)
    ring = np.rint(np.hypot(frequency[:, None], frequency[None]) * side).astype(int).ravel()
    total, count = np.bincount(ring, power.mean(0).ravel()), np.bincount(ring)
    rings = np.arange(1, side // 2 + 1)
    return rings / side, total[rings] / count[rings]


def spectrum_slope(images: np.ndarray, low: float = 0.06, high: float = 0.5) -> float:
    """Exponent of the radial power between two frequencies [cycles/px], fitted to logarithms."""
    frequency, power = radial_power(images)
    band = (frequency >= low) & (frequency <= high)
    return float(np.polyfit(np.log(frequency[band]), np.log(power[band]), 1)[0])
