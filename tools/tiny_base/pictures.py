"""What the embedded base learns from: phantoms with captions, and, for its autoencoder's reach,
procedural pictures.

No image of a patient enters here, and no phantom of the probe "demo". Pure NumPy and Pillow.
"""

from dataclasses import replace

import numpy as np
from PIL import Image, ImageDraw

from busray.data.phantom import CLASSES, PROBES, Probe, phantom

SIDE = 128


HELD_OUT = "demo"


DRAWN = ("general", "fine", "fibrous", "deep")
"""Probes that the denoiser learns beside PLAIN; the autoencoder has to carry all but the one
held out."""


PLAIN = Probe(
    "plain", axial=(4.0, 7.0), lateral=(6.0, 13.0), looks=(1, 3), dynamic_range=(48.0, 66.0), gain=(-1.0, 5.0),
    fading=(2.0, 18.0), streaks=(1.0, 6.0), patches=(0.5, 2.5), fat=(0.06, 0.25), tilt=(-0.12, 0.12), ribs=0.0,
)  # fmt: skip
"""Tissue in level layers, in which a lesion is what catches the eye."""


EVEN = Probe(
    "even", axial=(4.5, 6.5), lateral=(8.0, 12.0), looks=(1, 3), dynamic_range=(50.0, 60.0), gain=(0.0, 4.0),
    fading=(4.0, 14.0), streaks=(1.0, 4.0), patches=(0.3, 1.2), fat=(0.08, 0.22), tilt=(-0.08, 0.08), ribs=0.0,
    bands=0.0,
)  # fmt: skip
"""Plainer still and always the same probe, so that lesions are most of what there is to learn."""


GRAINED = Probe(
    "grained", axial=(5.5, 7.0), lateral=(13.0, 17.0), looks=(2, 2), dynamic_range=(44.0, 50.0), gain=(3.0, 6.0),
    fading=(0.0, 10.0), streaks=(8.0, 16.0), patches=(0.3, 1.5), fat=(0.12, 0.24), skin=(14.0, 22.0),
    tilt=(-0.12, 0.12), bend=(0.02, 0.06), ribs=0.0, bands=0.0, shadow=(5.0, 14.0), layers=(10.0, 16.0),
    fibres=(9.0, 16.0),
)  # fmt: skip
"""Marked layers, and speckle that the autoencoder's cells of 4 px carry: finer grains come back
from it as a grid."""


def _jittered(rng: np.random.Generator, probe: Probe, donors: list[Probe]) -> Probe:
    """The probe with one range borrowed from a donor, so that looks mix."""
    donor = donors[int(rng.integers(len(donors)))]
    field = ("axial", "looks", "dynamic_range", "gain", "fading", "streaks", "patches", "fat")[int(rng.integers(8))]
    return replace(probe, **{field: getattr(donor, field)})


def varied(seed: int, side: int = SIDE) -> np.ndarray:
    """A phantom in its frame for the autoencoder, uint8 [side, side]: any probe, half
    letterboxed, upright or flat."""
    rng = np.random.default_rng([seed, 1])
    probes = [p for name, p in PROBES.items() if name != HELD_OUT]
    probe = _jittered(rng, probes[int(rng.integers(len(probes)))], probes)
    class_name = CLASSES[int(rng.integers(len(CLASSES)))]
    aspect = 1.0 if rng.random() < 0.5 else float(np.exp(rng.uniform(np.log(0.65), np.log(1.7))))
    return _framed(rng, probe, class_name, aspect, side)[0]


def captioned(seed: int, side: int = SIDE) -> tuple[np.ndarray, str]:
    """A phantom in its frame (uint8 [side, side]) and its caption, for the denoiser; two in five
    are letterboxed.

    Narrower than `varied`: some 50,000 draws of it are what two cores afford, and of varied tissue
    as many taught a denoiser texture, depth and gain, and no lesion.
    """
    rng = np.random.default_rng([seed, 3])
    probe = PLAIN
    if rng.random() < 0.25:
        probes = [replace(PROBES[name], ribs=0.05) for name in DRAWN]
        probe = _jittered(rng, probes[int(rng.integers(len(probes)))], probes)
    class_name = CLASSES[int(rng.choice(3, p=(0.4, 0.4, 0.2)))]
    aspect = 1.0 if rng.random() < 0.6 else float(rng.uniform(1.0, 1.5))
    return _framed(rng, probe, class_name, aspect, side)


def even(seed: int, side: int = SIDE) -> tuple[np.ndarray, str]:
    """As captioned, all of the probe EVEN and one in five letterboxed."""
    rng = np.random.default_rng([seed, 4])
    class_name = CLASSES[int(rng.choice(3, p=(0.4, 0.4, 0.2)))]
    aspect = 1.0 if rng.random() < 0.8 else float(rng.uniform(1.0, 1.5))
    return _framed(rng, EVEN, class_name, aspect, side)


def grained(seed: int, side: int = SIDE) -> tuple[np.ndarray, str]:
    """As captioned, all of the probe GRAINED and one in seven letterboxed."""
    rng = np.random.default_rng([seed, 5])
    class_name = CLASSES[int(rng.choice(3, p=(0.4, 0.4, 0.2)))]
    aspect = 1.0 if rng.random() < 0.85 else float(rng.uniform(1.0, 1.6))
    return _framed(rng, GRAINED, class_name, aspect, side)


def _framed(
    rng: np.random.Generator, probe: Probe, class_name: str, aspect: float, side: int
) -> tuple[np.ndarray, str]:
    """A phantom of that aspect (width over height) in the middle of a black square, and its
    caption."""
    h, w = (round(side / aspect), side) if aspect >= 1 else (side, round(side * aspect))
    scan = phantom(int(rng.integers(2**62)), class_name, probe, (h, w))
    frame = np.zeros((side, side), np.uint8)
    top, left = (side - h) // 2, (side - w) // 2
    frame[top : top + h, left : left + w] = scan.image
    boxed = min(h, w) < 0.97 * side and rng.random() < 0.6
    return frame, scan.caption + (", with black bars" if boxed else "")


def _fractal(rng: np.random.Generator, side: int) -> np.ndarray:
    """Noise with a power spectrum of frequency^-beta, stretched and turned at random; values in
    0..1."""
    fy, fx = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]
    turn, stretch = rng.uniform(-0.5, 0.5), np.exp(rng.uniform(0, 1.6))
    u, v = fx * np.cos(turn) + fy * np.sin(turn), -fx * np.sin(turn) + fy * np.cos(turn)
    radius = np.sqrt((u * stretch) ** 2 + v**2) + 0.5 / side
    spectrum = np.fft.rfft2(rng.standard_normal((side, side))) * radius ** -rng.uniform(0.6, 2.2)
    field = np.fft.irfft2(spectrum, s=(side, side))
    field = (field - field.mean()) / (field.std() + 1e-9)
    return np.clip(0.5 + field * rng.uniform(0.1, 0.35), 0, 1)


def _leaves(rng: np.random.Generator, side: int) -> np.ndarray:
    """Dead leaves: overlapping discs and polygons whose sizes follow a power law; values in
    0..1."""
    canvas = Image.new("L", (side, side), int(rng.integers(256)))
    draw = ImageDraw.Draw(canvas)
    for _ in range(int(rng.integers(8, 160))):
        r = min(3 / max(rng.random(), 0.02), 0.5 * side)
        cx, cy = rng.uniform(0, side, 2)
        grey, flat = int(rng.integers(256)), rng.uniform(0.3, 1)
        if rng.random() < 0.5:
            draw.ellipse((cx - r, cy - r * flat, cx + r, cy + r * flat), fill=grey)
        else:
            angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 7))))
            draw.polygon([(cx + r * np.cos(t), cy + flat * r * np.sin(t)) for t in angles], fill=grey)
    return np.asarray(canvas, np.float32) / 255


def _strokes(rng: np.random.Generator, side: int) -> np.ndarray:
    """Thin curved bright lines, mostly lying, as an additive layer in 0..1."""
    scale = 2
    canvas = Image.new("L", (side * scale, side * scale))
    draw = ImageDraw.Draw(canvas)
    for _ in range(int(rng.integers(4, 50))):
        x0, y0 = rng.uniform(-0.2, 1, 2) * side * scale
        t = np.linspace(0, 1, 10)
        length, slope = rng.uniform(0.05, 0.6) * side * scale, rng.uniform(-0.5, 0.5)
        y = y0 + slope * length * t + rng.uniform(-8, 8) * scale * np.sin(np.pi * t * rng.uniform(0.5, 3))
        points = list(zip(x0 + length * t, y, strict=True))
        draw.line(points, fill=int(rng.integers(60, 256)), width=int(rng.integers(1, 5)))
    return np.asarray(canvas.resize((side, side), Image.Resampling.BOX), np.float32) / 255


def _write_on(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Labels, callipers and dotted lines as scanners burn them in."""
    canvas = Image.fromarray(image)
    draw = ImageDraw.Draw(canvas)
    side = image.shape[0]
    letters = "ABCDEFGHIKLMNOPQRSTUVXYZ0123456789 "
    for _ in range(int(rng.integers(1, 4))):
        x, y = (int(v) for v in rng.integers(0, side - 12, 2))
        if rng.random() < 0.5:
            text = "".join(letters[int(rng.integers(len(letters)))] for _ in range(int(rng.integers(2, 9))))
            draw.text((x, y), text, fill=int(rng.integers(120, 256)), font_size=float(rng.uniform(5, 12)))
        else:
            draw.line((x - 2, y, x + 2, y), fill=255)
            draw.line((x, y - 2, x, y + 2), fill=255)
            dx, dy = rng.uniform(-40, 40, 2)
            for t in np.linspace(0, 1, 12):
                draw.point((x + t * dx, y + t * dy), fill=220)
    return np.asarray(canvas)


def procedural(seed: int, side: int = SIDE) -> np.ndarray:
    """A picture of no thing, uint8 [side, side]: fractal noise, dead leaves, strokes, speckle,
    fading, text, bars."""
    rng = np.random.default_rng([seed, 2])
    kind = rng.random()
    image = _leaves(rng, side) if kind > 0.35 else _fractal(rng, side)
    if kind > 0.55:
        image = image * _fractal(rng, side)
    if rng.random() < 0.5:
        image = image * rng.uniform(0.4, 1) + rng.uniform(0.2, 0.8) * _strokes(rng, side)
    if rng.random() < 0.6:
        looks = np.exp(rng.uniform(0, 4))
        grain = rng.gamma(looks, 1 / looks, (side, side))
        width = rng.uniform(0.3, 1.6)
        fy, fx = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]
        blur = np.exp(-2 * np.pi**2 * width**2 * (fy**2 + (fx * rng.uniform(1, 2)) ** 2))
        image = image * np.clip(np.fft.irfft2(np.fft.rfft2(grain) * blur, s=(side, side)), 0, 3)
    if rng.random() < 0.5:
        image = image * np.exp(-rng.uniform(0, 3) * np.linspace(0, 1, side))[:, None]
    image = image / (np.percentile(image, 99) + 0.05)
    image = np.clip(image * rng.uniform(0.5, 1.3), 0, 1) ** np.exp(rng.uniform(-0.5, 0.7))
    pixels = np.rint(255 * image).astype(np.uint8)
    if rng.random() < 0.4:
        pixels = _write_on(rng, pixels)
    if rng.random() < 0.5:
        bar = int(rng.integers(2, side // 4))
        pixels = pixels.copy() if rng.random() < 0.75 else pixels.T.copy()
        pixels[:bar] = pixels[-bar:] = 0
    return pixels
