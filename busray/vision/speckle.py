"""Two measures of speckle. Pure NumPy; images are uint8 or float [n, h, w], 0..255."""

from functools import lru_cache

import numpy as np


def local_snr(images: np.ndarray, size: int = 8, darkest: float = 24.0) -> float:
    """Speckle signal-to-noise ratio: the median of mean / standard deviation over windows.

    Windows are size x size px. Those whose mean is below `darkest` are left out: a black bar has no
    speckle. NaN where none is left. Fully developed speckle has 1.91 before log compression
    (Wagner et al. 1983, doi 10.1109/T-SU.1983.31404).
    """
    n, h, w = images.shape
    windows = images[:, : h - h % size, : w - w % size].astype(np.float64)
    windows = windows.reshape(n, h // size, size, w // size, size)
    mean = windows.sum(2).sum(-1) / size**2
    windows -= mean[:, :, None, :, None]
    std = np.sqrt((windows**2).sum(2).sum(-1) / size**2)
    bright = (mean >= darkest) & (std > 0)
    return float(np.median(mean[bright] / std[bright])) if bright.any() else float("nan")


def radial_power(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(frequencies [cycles/px], mean power at each) of square images, averaged over rings."""
    side = images.shape[-1]
    # A Hann window, or the step between opposite borders would add power at every frequency.
    x = images.astype(np.float64) - images.mean((1, 2), keepdims=True)
    x *= np.outer(np.hanning(side), np.hanning(side))
    spectrum = np.fft.rfft2(x)
    power = spectrum.real**2
    power += spectrum.imag**2
    power = power.mean(0)
    # Power is the same at opposite frequencies. rfft2 gives one of the two: these count twice.
    power[:, 1 : (side + 1) // 2] *= 2
    ring, count = _rings(side)
    total = np.bincount(ring, power.ravel())
    rings = np.arange(1, side // 2 + 1)
    return rings / side, total[rings] / count[rings]


@lru_cache(maxsize=2)
def _rings(side: int) -> tuple[np.ndarray, np.ndarray]:
    """(the ring of each frequency of rfft2, flat; how many frequencies of fft2 each ring has)."""
    frequency = np.fft.fftfreq(side)
    ring = np.rint(np.hypot(frequency[:, None], frequency[None]) * side).astype(int)
    return ring[:, : side // 2 + 1].ravel(), np.bincount(ring.ravel())


def spectrum_slope(images: np.ndarray, low: float = 0.06, high: float = 0.5) -> float:
    """Exponent of the radial power between two frequencies [cycles/px], fitted to logarithms."""
    frequency, power = radial_power(images)
    band = (frequency >= low) & (frequency <= high)
    return float(np.polyfit(np.log(frequency[band]), np.log(power[band]), 1)[0])
