"""Measures the embedded base: what its autoencoder keeps of images, its speed, its samples.

    python benchmarks/tiny_base.py --busi BUSI --pictures benchmarks

Prints Markdown. BUSI: all images without the masks, shuffled with seed 0. The first n are the
reference, the next n go through the autoencoder (posterior mean, decoded, rounded to 8 bits).
128 px letterbox, grey. Features: Inception-2015.
"""

import argparse
import random
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from busray.data.framing import frame
from busray.data.phantom import CLASSES, PROBES, phantom
from busray.data.pixels import read_grey
from busray.evidence.stats.frechet import Moments, frechet
from busray.model.sample import scheduler_for
from busray.vision.inception import InceptionFeatures, find_weights
from busray.vision.speckle import local_snr, radial_power, spectrum_slope
from tools.tiny_base.pictures import captioned

TINY = Path(__file__).parents[1] / "busray" / "model" / "tiny"
LESION = "an ultrasound image of breast tissue with a lesion, a {} spot, {}, "
SMOOTH = LESION + "smooth edge, bright below, fat layer, fibrous streaks, medium gain"
RAGGED = LESION + "irregular edge, shadow below, fat layer, fibrous streaks"
ROWS = (
    [SMOOTH.format(*words) for words in (
        ("medium dark oval", "left"), ("medium grey oval", "centre"), ("large grey oval", "right"),
        ("medium dark round", "centre"), ("small dark oval", "left"), ("large dark oval", "centre"),
        ("medium grey round", "right"), ("medium dark oval", "right"),
    )],
    [RAGGED.format(*words) for words in (
        ("medium dark ragged", "left"), ("medium grey ragged", "centre"), ("large grey tall", "right"),
        ("medium dark tall", "centre"), ("medium grey ragged", "left"), ("large dark ragged", "centre"),
        ("large grey ragged", "right"), ("medium grey tall", "right"),
    )],
    [f"ultrasound image of breast tissue, without lesion, {words}" for words in (
        "thick fat layer, fibrous streaks", "thin fat layer, high gain",
        "fat layer, strong fibrous streaks, high contrast", "sloping layers, thin fat layer, fibrous streaks",
        "thick fat layer, high gain, dark deep zone", "fat layer, bright deep zone",
        "thick fat layer, high contrast", "thin fat layer, dark deep zone",
    )],
)  # fmt: skip
"""What a blind onlooker is shown beside the trial's sheet, in its order."""


@torch.no_grad()
def through(vae: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    """uint8 [n, h, w] encoded and decoded; uint8 [n, h, w]."""
    out = []
    for batch in np.array_split(images, max(1, len(images) // 16)):
        x = torch.from_numpy(batch.astype(np.float32))[:, None].repeat(1, 3, 1, 1) / 127.5 - 1
        y = vae.decode(vae.encode(x).latent_dist.mean).sample.mean(1)
        out.append(((y + 1) * 127.5).clamp(0, 255).round().to(torch.uint8).numpy())
    return np.concatenate(out)


def features(extractor: InceptionFeatures, images: np.ndarray) -> np.ndarray:
    """float32 [n, 2048] of grey images uint8 [n, h, w]."""
    return np.concatenate([extractor(batch) for batch in np.array_split(images, max(1, len(images) // 25))])


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over images of the peak signal-to-noise ratio, dB."""
    mse = ((a.astype(np.float64) - b) ** 2).mean((1, 2))
    return float((10 * np.log10(255**2 / np.maximum(mse, 1e-9))).mean())


def row(name: str, real: np.ndarray, made: np.ndarray) -> str:
    """A line of the table: PSNR; speckle SNR and slope of both; power at 0.4-0.5 cycles/px."""
    snr, slope = [local_snr(x) for x in (real, made)], [spectrum_slope(x) for x in (real, made)]
    (f, p), (_, q) = radial_power(real), radial_power(made)
    top = float(np.mean(q[f > 0.4] / p[f > 0.4]))
    return (
        f"| {name} | {len(real)} | {psnr(real, made):.2f} | {snr[0]:.2f} "
        f"| {snr[1]:.2f} ({100 * (snr[1] / snr[0] - 1):+.1f} %) "
        f"| {slope[0]:.2f} | {slope[1]:.2f} ({100 * (slope[1] / slope[0] - 1):+.1f} %) | {top:.2f} |"
    )


def tile(rows: list[list[np.ndarray]], path: Path) -> None:
    """Saves rows of equal images as one JPEG."""
    Image.fromarray(np.concatenate([np.concatenate(r, 1) for r in rows])).save(path, quality=88)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=TINY)
    parser.add_argument("--busi", type=Path, help="folder of BUSI; left out, only phantoms are measured")
    parser.add_argument("--n", type=int, default=300)
    parser.add_argument("--pictures", type=Path, help="folder for tiny-base-*.jpg")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--guidance", type=float, default=2.0)
    args = parser.parse_args()
    torch.set_num_threads(2)
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(args.base, use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    print("| images | n | PSNR dB | SNR | SNR through the VAE | slope | slope through the VAE | top power ratio |")
    print("|---|---|---|---|---|---|---|---|")
    seen = np.stack([captioned(900_000_000 + i)[0] for i in range(256)])
    demo = np.stack([phantom(i, CLASSES[i % 3], PROBES["demo"], (128, 128)).image for i in range(256)])
    print(row("phantoms of the training probes, new seeds", seen, through(pipe.vae, seen)))
    print(row("phantoms of the demo probe (never trained on)", demo, through(pipe.vae, demo)), flush=True)
    if args.busi:
        paths = sorted(p for p in args.busi.glob("*/*.png") if "_mask" not in p.name)
        random.Random(0).shuffle(paths)
        scans = np.stack([frame(read_grey(p), 128, "letterbox") for p in paths[: 2 * args.n]])
        reference, others = scans[: args.n], scans[args.n :]
        made = through(pipe.vae, others)
        print(row("BUSI, letterbox", others, made), flush=True)
        extractor = InceptionFeatures(find_weights())
        first, second, third = (features(extractor, x) for x in (reference, others, made))
        floor, kept = frechet(Moments.of(first), Moments.of(second)), frechet(Moments.of(first), Moments.of(third))
        print(
            f"\nFID ({extractor.name}), BUSI, {args.n} against {args.n}: floor {floor:.1f}, through the VAE {kept:.1f}"
        )
    x, t = torch.randn(16, pipe.unet.config.in_channels, 32, 32), torch.full((16,), 500)
    h = torch.randn(16, 77, pipe.unet.config.cross_attention_dim)
    times = []
    for _ in range(6):
        began = time.perf_counter()
        with torch.no_grad():
            pipe.unet(x, t, h)
        times.append(time.perf_counter() - began)
    size = sum(p.stat().st_size for p in args.base.rglob("*.safetensors")) / 1e6
    print(f"\nUNet: {sum(p.numel() for p in pipe.unet.parameters()) / 1e6:.2f}M parameters, forward of 16 at 32x32: "
          f"best of 6 {min(times):.2f} s, median {np.median(times):.2f} s; safetensors {size:.1f} MB")  # fmt: skip
    if args.pictures:
        for name, images in (("phantom", seen), ("demo", demo)):
            made = through(pipe.vae, images[:8])
            tile([list(images[:8]), list(made)], args.pictures / f"tiny-base-{name}-vae.jpg")
        pipe.scheduler = scheduler_for("sde-dpmsolver++", pipe.scheduler.config)
        rows = []
        for r, prompts in enumerate(ROWS):
            generator = [torch.Generator().manual_seed(1000 * r + i) for i in range(len(prompts))]
            made = pipe(prompts, generator=generator, num_inference_steps=args.steps,
                        guidance_scale=args.guidance).images  # fmt: skip
            rows.append([np.asarray(image.convert("L")) for image in made])
        tile(rows, args.pictures / "tiny-base-samples.jpg")


if __name__ == "__main__":
    main()
