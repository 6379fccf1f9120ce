"""Breast ultrasound simulated in NumPy: labelled scans with masks, without patients or downloads.

Tissue (skin, fat, gland with fibrous septa, muscle, ribs) is drawn as echo strength in decibels.
It scales a complex random field, which a Gaussian point-spread function blurs into speckle; the
result is log-compressed into 8 bits. Benign lesions are smooth ovals, bright below; malignant ones
are irregular, spiculated and shadowing. The classes overlap in appearance, as real ones do.
A seed decides a scan. Imports NumPy and Pillow only.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("benign", "malignant", "normal")
Range = tuple[float, float]
Field = np.ndarray
Rng = np.random.Generator


@dataclass(frozen=True)
class Probe:
    """How a scanner shows tissue. One value is drawn uniformly from each range for each scan.

    Speckle sizes are standard deviations of the point-spread function in 1/1000 of the width.
    """

    name: str
    axial: Range = (4.0, 9.0)  # speckle size along depth
    lateral: Range = (6.0, 16.0)  # speckle size across the beam
    looks: tuple[int, int] = (1, 4)  # compounded views; more of them smooth the speckle
    dynamic_range: Range = (45.0, 75.0)  # decibels between black and white
    gain: Range = (-4.0, 8.0)  # decibels added everywhere
    fading: Range = (0.0, 32.0)  # decibels lost from top to bottom after time-gain compensation
    streaks: Range = (2.0, 16.0)  # decibels by which fibrous septa stand out
    patches: Range = (1.0, 6.0)  # standard deviation of slow changes of echo strength, decibels
    fat: Range = (0.06, 0.32)  # thickness of the fat layer, share of the height
    skin: Range = (4.0, 16.0)  # decibels by which the skin stands out
    tilt: Range = (-0.35, 0.35)  # slope of layers and septa
    bend: Range = (0.0, 0.05)  # height of the waves of layers, share of the image's
    ribs: float = 0.15  # probability of a shadowing rib
    bands: float = 0.6  # mean number of columns where the probe hardly touches the skin
    shadow: Range = (5.0, 24.0)  # decibels by which the shadow of a lesion is darker
    # Decibels by which fat and muscle are at least darker than gland; None for any order
    layers: Range | None = None
    # Decibels by which fibres of muscle and slanting septa of fat stand out; None without them
    fibres: Range | None = None


PROBES: dict[str, Probe] = {
    p.name: p
    for p in (
        Probe("general"),
        Probe("fine", axial=(2.5, 4.5), lateral=(3.0, 8.0), looks=(2, 5), dynamic_range=(50.0, 80.0)),
        Probe("coarse", axial=(7.0, 11.0), lateral=(14.0, 24.0), looks=(1, 3), streaks=(2.0, 10.0)),
        Probe(
            "fibrous", lateral=(5.0, 14.0), looks=(2, 5), streaks=(12.0, 28.0), patches=(2.0, 6.0), fading=(6.0, 30.0)
        ),
        Probe("deep", fading=(16.0, 36.0), gain=(0.0, 10.0), fat=(0.04, 0.18), ribs=0.3),
        Probe("fatty", fat=(0.25, 0.5), streaks=(6.0, 18.0), patches=(3.0, 8.0)),
        Probe("bright", gain=(4.0, 12.0), dynamic_range=(60.0, 85.0), fading=(-6.0, 16.0)),
        Probe("dark", gain=(-9.0, -1.0), dynamic_range=(44.0, 60.0), fading=(6.0, 26.0)),
        # The embedded base is not trained on it: the demo adapts to a scanner new to the base.
        Probe(
            "demo",
            axial=(5.0, 6.5),
            lateral=(11.0, 14.0),
            looks=(2, 3),
            dynamic_range=(42.0, 50.0),
            gain=(1.0, 4.0),
            fading=(12.0, 22.0),
            streaks=(12.0, 20.0),
            patches=(3.0, 5.0),
            fat=(0.1, 0.2),
            tilt=(-0.12, 0.12),
            ribs=0.0,
        ),
    )
}


@dataclass(frozen=True)
class Phantom:
    """One simulated scan."""

    image: np.ndarray  # uint8 [h, w]
    mask: np.ndarray  # bool [h, w], true inside the lesion; all false for a normal scan
    caption: str  # what can be seen, in the words of the embedded base; never the class


def phantom(seed: int, class_name: str, probe: Probe, size: tuple[int, int]) -> Phantom:
    """The scan of a seed, of size (h, w) pixels. ValueError for a class that is not in CLASSES."""
    if class_name not in CLASSES:
        raise ValueError(f"unknown class {class_name!r}: one of {', '.join(CLASSES)}")
    rng = np.random.default_rng([seed, CLASSES.index(class_name)])
    h, w = size
    y, x = np.mgrid[0:h, 0:w].astype(np.float32)
    y, x = y / h, x / w
    words: list[str] = []
    echo = _tissue(rng, probe, y, x, words)
    mask, lesion = np.zeros((h, w), bool), "without lesion"
    if class_name != "normal":
        echo, mask, lesion = _lesion(rng, class_name, probe, echo, y, x)
    words.insert(0, lesion)
    pixels = _scan(rng, probe, echo, y, words)
    return Phantom(pixels, mask, _sentence(rng, words))


def _draw(rng: Rng, bounds: Range) -> float:
    return float(rng.uniform(*bounds))


def _noise(rng: Rng, shape: tuple[int, int], sy: float, sx: float, tilt: float = 0.0) -> Field:
    """Smooth noise of unit variance. sy, sx: Gaussian sigmas in pixels; tilt: slope of its
    grain."""
    h, w = shape
    ph, pw = h + min(h // 2, int(2 * sy) + 4), w + min(w // 2, int(2 * sx) + 4)
    fy, fx = np.fft.fftfreq(ph)[:, None], np.fft.rfftfreq(pw)[None]
    squares = (sy * fy) ** 2 + (sx * (fx + tilt * fy)) ** 2
    transfer = np.exp(-2 * np.pi**2 * squares).astype(np.float32)
    white = rng.standard_normal((ph, pw), dtype=np.float32)
    field = np.fft.irfft2(np.fft.rfft2(white) * transfer, s=(ph, pw))[:h, :w].astype(np.float32)
    return field / (np.sqrt((field**2).mean()) + 1e-6)


def _step(distance: Field, softness: float) -> Field:
    """0 to 1 as distance goes from negative to positive."""
    return 1 / (1 + np.exp(np.clip(-distance / softness, -30, 30)))


def _bump(distance: Field, width: float) -> Field:
    return np.exp(-np.minimum((distance / width) ** 2, 30))


def _tissue(rng: Rng, probe: Probe, y: Field, x: Field, words: list[str]) -> Field:
    """Echo strength of healthy tissue in decibels [h, w]; appends what can be seen to words."""
    h, w = y.shape
    tilt = _draw(rng, probe.tilt)
    bend = _draw(rng, probe.bend) * np.sin(2 * np.pi * (x * rng.uniform(0.4, 1.6) + rng.uniform()))
    depth = y + 0.35 * tilt * (x - 0.5) + bend
    skin, fat = rng.uniform(0.02, 0.07), _draw(rng, probe.fat)
    gland = skin + fat + rng.uniform(0.2, 0.55)
    wander = 0.03 * _noise(rng, (1, w), 1, w / rng.uniform(6, 14))
    fat_db, gland_db, muscle_db = rng.uniform(-16, -4), rng.uniform(-5, 3), rng.uniform(-18, -3)
    swapped = rng.random() < 0.3
    if probe.layers:
        fat_db = min(fat_db, gland_db - _draw(rng, probe.layers))
        muscle_db = min(muscle_db, gland_db - _draw(rng, probe.layers))
    elif swapped:
        fat_db, gland_db = gland_db - 3, fat_db
    soft = rng.uniform(0.005, 0.02)
    echo = fat_db + (gland_db - fat_db) * _step(depth - skin - fat - wander, soft)
    echo = echo + (muscle_db - gland_db) * _step(depth - gland + wander, soft)

    grain = -tilt * h / w
    if probe.fibres:
        muscle = _step(depth - gland + wander - 0.02, 0.01)
        fatty = _step(skin + fat + wander - depth, 0.01) * _step(depth - skin, 0.01)
        sy, sx = rng.uniform(0.012, 0.024) * h, rng.uniform(0.2, 0.5) * w
        level = _noise(rng, (h, w), sy, sx, grain)
        slope = float(rng.choice((-1, 1))) * rng.uniform(0.8, 2.0)
        slant = _noise(rng, (h, w), 0.03 * h, 0.06 * w, slope)
        fibres = _draw(rng, probe.fibres)
        echo = echo + fibres * muscle * (_bump(level - 0.6, 0.5) - 0.2)
        echo = echo + 0.6 * fibres * fatty * _bump(slant, 0.15)

    streaks = _draw(rng, probe.streaks)
    for _ in range(int(rng.integers(2, 4))):
        scale, stretch = rng.uniform(0.012, 0.05), rng.uniform(2.5, 8.0)
        field = _noise(rng, (h, w), scale * h, scale * stretch * w, grain * rng.uniform(0.5, 1.5))
        where = _step(_noise(rng, (h, w), 0.12 * h, 0.2 * w) - rng.uniform(-0.8, 0.8), 0.35)
        echo = echo + streaks * rng.uniform(0.4, 1.0) * where * (_bump(field, rng.uniform(0.12, 0.35)) - 0.15)
    patches = _draw(rng, probe.patches)
    sy, sx = rng.uniform(0.03, 0.12) * h, rng.uniform(0.05, 0.25) * w
    echo = echo + patches * _noise(rng, (h, w), sy, sx, grain)
    fascia = rng.uniform(0, 12)
    for level in (skin + fat, gland):
        echo = echo + fascia * rng.uniform(0.3, 1) * _bump(depth - level - wander, rng.uniform(0.006, 0.02))
    echo = echo + _draw(rng, probe.skin) * _bump(np.maximum(depth - rng.uniform(0, 0.4) * skin, 0), skin)
    if rng.random() < 0.5:
        echo = echo - rng.uniform(4, 14) * _bump(depth - skin - 0.02, 0.015)

    if rng.random() < probe.ribs:
        centre, half, top = rng.uniform(0, 1), rng.uniform(0.08, 0.2), min(gland + 0.05, 0.9)
        arc = y - top - 0.5 * (x - centre) ** 2 / half * 0.6
        column = _step(half - np.abs(x - centre), 0.02)
        echo = echo + column * (14 * _bump(arc, 0.015) - 22 * _step(arc - 0.02, 0.01))
        words.append("a bright arc above a shadow")
    words.append("thick fat layer" if fat > 0.24 else "thin fat layer" if fat < 0.12 else "fat layer")
    if streaks > 9:
        words.append("strong fibrous streaks" if streaks > 15 else "fibrous streaks")
    if patches > 4.5:
        words.append("patchy tissue")
    if abs(tilt) > 0.18:
        words.append("sloping layers")
    for _ in range(int(rng.poisson(probe.bands))):
        centre, width = rng.uniform(0, 1), rng.uniform(0.02, 0.12)
        column = rng.uniform(3, 12) * _bump(x - centre - 0.1 * tilt * y, width)
        echo = echo - column * _step(y - rng.uniform(0, 0.5), 0.05)
    return echo


def _outline(rng: Rng, class_name: str, angle: Field) -> Field:
    """Relative radius of a lesion at each angle [radians]."""
    radius = np.ones_like(angle)
    if class_name == "benign":
        for k in (2, 3):
            radius = radius + rng.uniform(0, 0.08) * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
        return radius
    for k in range(2, 9):
        radius = radius + rng.uniform(0, 0.42) / np.sqrt(k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) * 0.8
    for _ in range(int(rng.integers(3, 10))):
        away = np.abs((angle - rng.uniform(0, 2 * np.pi) + np.pi) % (2 * np.pi) - np.pi)
        radius = radius + rng.uniform(0.15, 0.6) * np.exp(-away / rng.uniform(0.06, 0.18))
    return np.clip(radius, 0.35, 1.8)


def _lesion(rng: Rng, class_name: str, probe: Probe, echo: Field, y: Field, x: Field) -> tuple[Field, np.ndarray, str]:
    """Echo strength with a lesion put in [decibels], its mask, and what can be seen of it."""
    h, w = y.shape
    benign = class_name == "benign"
    a = rng.uniform(0.06, 0.2) if rng.random() < 0.8 else rng.uniform(0.2, 0.28)
    b = a * (rng.uniform(0.5, 0.9) if benign else rng.uniform(0.65, 1.35))
    cx, cy = rng.uniform(0.2, 0.8), float(np.clip(rng.uniform(0.16, 0.66), 0.1 + b, 0.8))
    turn = rng.uniform(-0.35, 0.35)
    dx, dy = (x - cx), (y - cy) * h / w
    u, v = dx * np.cos(turn) + dy * np.sin(turn), -dx * np.sin(turn) + dy * np.cos(turn)
    r = np.hypot(u / a, v / b) / _outline(rng, class_name, np.arctan2(v / b, u / a))
    edge = rng.uniform(0.02, 0.07) if benign else rng.uniform(0.05, 0.16)
    inside = _step(1 - r, edge)
    mask = r < 1

    level = rng.uniform(-34, -14) if benign else rng.uniform(-28, -12)
    local = float((echo * inside).sum() / (inside.sum() + 1e-6))
    rough = rng.uniform(0, 3) if benign else rng.uniform(1, 6)
    texture = level + rough * _noise(rng, (h, w), 0.02 * h, 0.02 * w)
    echo = echo * (1 - inside) + inside * (0.25 * (echo - local) + min(local, 0.0) * 0.5 + texture)
    rim = _bump(r - 1.08, 0.1) if benign else _bump(r - 1.3, 0.3)
    echo = echo + (rng.uniform(0, 8) if benign else rng.uniform(0, 7)) * rim

    half = b * w / h
    below = _step(y - cy - 0.6 * half, 0.25 * half) * (1 - inside)
    reach = np.exp(-np.maximum(y - cy - half, 0) / rng.uniform(0.15, 0.7))
    beam = _step(0.85 * a - np.abs(dx), 0.12 * a) * below
    if benign:
        change = rng.uniform(2, 14) if rng.random() < 0.85 else rng.uniform(-2, 2)
        walls = _bump(np.abs(dx) - a, 0.12 * a) * below
        echo = echo + change * beam * reach - rng.uniform(0, 7) * walls * reach
    else:
        change = -_draw(rng, probe.shadow) if rng.random() < 0.85 else rng.uniform(-2, 2)
        ragged = 1 + 0.25 * _noise(rng, (1, w), 1, 0.02 * w)
        echo = echo + change * beam * ragged * (0.4 + 0.6 * reach)
        if rng.random() < 0.25:  # microcalcifications
            echo = echo + 24 * ((rng.random((h, w)) < 0.012) & (r < 0.9))
    extent = "small" if a < 0.1 else "large" if a > 0.18 else "medium"
    tone = "black" if level < -26 else "dark" if level < -18 else "grey"
    side = "left" if cx < 0.4 else "right" if cx > 0.6 else "centre"
    border = ("smooth edge" if edge < 0.045 else "soft smooth edge") if benign else "irregular edge"
    shape = ("oval" if b < 0.75 * a else "round") if benign else ("tall" if b > 1.05 * a else "ragged")
    tail = "bright below" if change > 3 else "shadow below" if change < -3 else "nothing below"
    return echo, mask, f"a {extent} {tone} {shape} spot, {side}, {border}, {tail}"


def _scan(rng: Rng, probe: Probe, echo: Field, y: Field, words: list[str]) -> np.ndarray:
    """uint8 [h, w]: echo strength [decibels] with speckle, fading, gain and log compression."""
    h, w = echo.shape
    sy, sx = _draw(rng, probe.axial) * w / 1000, _draw(rng, probe.lateral) * w / 1000
    looks = int(rng.integers(probe.looks[0], probe.looks[1] + 1))
    margin = int(np.ceil(3 * max(sx, sy)))  # the FFT wraps: keep skin out of the deep zone
    amplitude = np.pad(10 ** (echo / 20), margin, mode="edge").astype(np.float32)
    fy, fx = map(np.fft.fftfreq, amplitude.shape)
    squares = (sy * fy[:, None]) ** 2 + (sx * fx[None]) ** 2
    transfer = np.exp(-2 * np.pi**2 * squares).astype(np.float32)
    transfer /= np.sqrt((transfer**2).mean())
    power = np.zeros(amplitude.shape, np.float32)
    for _ in range(looks):
        scatter = rng.standard_normal((2, *amplitude.shape), dtype=np.float32)
        echoes = (scatter[0] + np.complex64(1j) * scatter[1]) * amplitude
        wave = np.fft.ifft2(np.fft.fft2(echoes) * transfer)
        power += (wave.real**2 + wave.imag**2) / (2 * looks)
    power = power[margin : margin + h, margin : margin + w]
    decibels = 10 * np.log10(power + 1e-7)

    span, gain, fading = _draw(rng, probe.dynamic_range), _draw(rng, probe.gain), _draw(rng, probe.fading)
    knee = rng.uniform(0, 0.6)
    decibels = decibels + gain - fading * np.maximum(y - knee, 0) / (1 - knee)
    decibels = decibels + rng.uniform(-4, 8) * np.exp(-y / rng.uniform(0.05, 0.2))
    grey = np.clip((decibels + 0.62 * span) / span, 0, 1) ** rng.uniform(0.85, 1.25)
    words.append("high gain" if gain > 5 else "low gain" if gain < -3 else "medium gain")
    words.append("dark deep zone" if fading > 18 else "bright deep zone" if fading < 6 else "grey deep zone")
    grainy = "fine" if sx < 0.007 * w else "coarse" if sx > 0.013 * w else "medium"
    words.append(f"{'smooth' if looks > 2 else 'grainy'} {grainy} speckle")
    if span < 50:
        words.append("high contrast")
    return np.rint(255 * grey).astype(np.uint8)


OPENINGS = (
    "ultrasound image of breast tissue",
    "an ultrasound image of a breast",
    "a breast ultrasound scan",
    "ultrasound scan",
    "an ultrasound image of breast tissue with a lesion",
    "ultrasound of a breast lesion",
    "breast ultrasound image",
)


def _sentence(rng: Rng, words: list[str]) -> str:
    """An opening, nearly always the lesion, then a random subset of the other words."""
    lesion = not words[0].startswith("without")
    openings = [o for o in OPENINGS if lesion or "lesion" not in o]
    keep = rng.uniform(0.0, 0.8)
    chosen = [word for word in words if rng.random() < keep]
    if words[0] not in chosen and rng.random() < 0.9:
        chosen.insert(0, words[0])
    return ", ".join([openings[int(rng.integers(len(openings)))], *chosen])


def write_dataset(
    folder: Path, images_per_class: int, seed: int, probe: Probe = PROBES["demo"], size: tuple[int, int] = (168, 208)
) -> None:
    """Write phantoms in BUSI's layout: `benign/benign (1).png`, `benign/benign (1)_mask.png`, ...

    Images are 8-bit grey PNG of about size (h, w; sides vary by up to 12 %), masks 1-bit PNG.
    """
    for c, class_name in enumerate(CLASSES):
        (folder / class_name).mkdir(parents=True, exist_ok=True)
        for i in range(images_per_class):
            rng = np.random.default_rng([seed, c, i])
            h, w = (max(16, round(side * rng.uniform(0.88, 1.12))) for side in size)
            scan = phantom(int(rng.integers(2**62)), class_name, probe, (h, w))
            name = f"{class_name} ({i + 1})"
            Image.fromarray(scan.image).save(folder / class_name / f"{name}.png")
            mask = Image.fromarray(scan.mask.astype(np.uint8) * 255).convert("1")
            mask.save(folder / class_name / f"{name}_mask.png")
