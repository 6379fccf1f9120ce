"""Two numbers that say whether an image kept its speckle. Pure NumPy; images are uint8 or float [n, h, w], 0..255."""

import numpy as np


def local_snr(images: np.ndarray, size: int = 8, darkest: float = 24.0) -> float:
    """Speckle signal-to-noise ratio: the median, over windows of size x size px, of mean / standard deviation.

    Windows darker than `darkest` are left out: a black bar has no speckle. NaN where none is left.
    """
    n, h, w = images.shape
    cut = images[:, : h - h % size, : w - w % size].astype(np.float64)
    windows = cut.reshape(n, h // size, size, w // size, size).transpose(0, 1, 3, 2, 4).reshape(-1, size * size)
    mean, std = windows.mean(1), windows.std(1)
    kept = (mean >= darkest) & (std > 0)
    return float(np.median(mean[kept] / std[kept])) if kept.any() else float("nan")


def radial_power(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies [cycles/px] and mean power at each, over rings of the Hann-windowed spectrum of square images."""
    side = images.shape[-1]
    x = images.astype(np.float64) - images.mean((1, 2), keepdims=True)
    power = np.abs(np.fft.fft2(x * np.outer(np.hanning(side), np.hanning(side)))) ** 2
    frequency = np.fft.fftfreq(side)
    ring = np.rint(np.hypot(frequency[:, None], frequency[None]) * side).astype(int).ravel()
    total, count = np.bincount(ring, power.mean(0).ravel()), np.bincount(ring)
    rings = np.arange(1, side // 2 + 1)
    return rings / side, total[rings] / count[rings]


def spectrum_slope(images: np.ndarray, low: float = 0.06, high: float = 0.5) -> float:
    """Exponent of the radial power spectrum between two frequencies [cycles/px], by least squares on logarithms."""
    frequency, power = radial_power(images)
    band = (frequency >= low) & (frequency <= high)
    return float(np.polyfit(np.log(frequency[band]), np.log(power[band]), 1)[0])
