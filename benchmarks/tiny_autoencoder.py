"""Measures autoencoders for the embedded base side by side: what they keep of BUSI, how smooth
their latents are, and how much noise on the latents costs.

    python benchmarks/tiny_autoencoder.py --busi BUSI --vae busray/model/tiny/vae --vae WORK/vae

Prints Markdown. The images are those of benchmarks/tiny_base.py: the first n are the reference, the
next n go through. Noise is in standard deviations of each channel. `smooth` is the share of the
latents' variance that a 3 x 3 mean keeps: 0.11 for white noise, 1 for a level image.
"""

import argparse
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tiny_base import features, psnr

from busray.data.framing import frame
from busray.data.phantom import CLASSES, PROBES, phantom
from busray.data.pixels import read_grey
from busray.evidence.stats.frechet import Moments, frechet
from busray.vision.inception import InceptionFeatures, find_weights
from busray.vision.speckle import local_snr, radial_power, spectrum_slope
from tools.tiny_base.autoencoder import to_unit
from tools.tiny_base.pictures import captioned

NOISES = (0.0, 0.1, 0.2)
SHOWN = 4  # phantoms of the training probes, and as many of the probe `demo`


@torch.no_grad()
def encode(vae: Any, images: np.ndarray) -> torch.Tensor:
    """Posterior means [n, c, h, w] of uint8 [n, h, w]."""
    batches = np.array_split(images, max(1, len(images) // 16))
    return torch.cat([vae.encode(to_unit(batch).expand(-1, 3, -1, -1)).latent_dist.mean for batch in batches])


@torch.no_grad()
def decode(vae: Any, latents: torch.Tensor) -> np.ndarray:
    """uint8 [n, h, w]"""
    grey = torch.cat([vae.decode(batch).sample.mean(1) for batch in latents.split(16)])
    return ((grey + 1) * 127.5).clamp(0, 255).round().to(torch.uint8).numpy()


def smooth(latents: torch.Tensor) -> float:
    """Share of the variance about each channel's mean that a 3 x 3 mean keeps, borders left out."""
    centred = latents - latents.mean((0, 2, 3), keepdim=True)
    kept = F.avg_pool2d(centred, 3, stride=1).square().mean((0, 2, 3))
    return float((kept / centred[..., 1:-1, 1:-1].square().mean((0, 2, 3))).mean())


def noisy(latents: torch.Tensor, strength: float) -> torch.Tensor:
    """The latents with seeded noise of so many standard deviations of each channel."""
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    return latents + strength * latents.std((0, 2, 3), keepdim=True) * noise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busi", type=Path, required=True)
    parser.add_argument("--vae", type=Path, action="append", required=True, help="folder of an AutoencoderKL")
    parser.add_argument("--n", type=int, default=300)
    parser.add_argument("--picture", type=Path, help="JPEG of phantoms, and below them each autoencoder's")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    from diffusers import AutoencoderKL

    paths = sorted(p for p in args.busi.glob("*/*.png") if "_mask" not in p.name)
    random.Random(0).shuffle(paths)
    scans = np.stack([frame(read_grey(p), 128, "letterbox") for p in paths[: 2 * args.n]])
    reference, others = scans[: args.n], scans[args.n :]
    extractor = InceptionFeatures(find_weights())
    wanted = Moments.of(features(extractor, reference))
    floor = frechet(wanted, Moments.of(features(extractor, others)))
    print(f"BUSI, n = {args.n} against {args.n}, 128 px letterbox, {extractor.name}: floor {floor:.1f}\n")
    print("| autoencoder | latents | smooth | PSNR dB | SNR | slope | top power ratio | FID, noise 0, 0.1, 0.2 |")
    print("|---|---|---|---|---|---|---|---|")
    print(f"| none | | | | {local_snr(others):.2f} | {spectrum_slope(others):.2f} | | {floor:.1f} |", flush=True)
    seen = [captioned(900_000_000 + i)[0] for i in range(SHOWN)]
    unseen = [phantom(i, CLASSES[i % 3], PROBES["demo"], (128, 128)).image for i in range(SHOWN)]
    phantoms = np.stack(seen + unseen)  # images of patients stay out of the repository
    rows = [phantoms]
    for folder in args.vae:
        vae: Any = AutoencoderKL.from_pretrained(folder, use_safetensors=True, dtype=torch.float32)
        latents = encode(vae, others)
        made = [decode(vae, noisy(latents, strength)) for strength in NOISES]
        distances = [frechet(wanted, Moments.of(features(extractor, images))) for images in made]
        (f, p), (_, q) = radial_power(others), radial_power(made[0])
        shape = " x ".join(str(side) for side in latents.shape[1:])
        print(f"| {folder} | {shape} | {smooth(latents):.2f} | {psnr(others, made[0]):.2f} | {local_snr(made[0]):.2f} "
              f"| {spectrum_slope(made[0]):.2f} | {np.mean(q[f > 0.4] / p[f > 0.4]):.2f} "
              f"| {', '.join(f'{d:.1f}' for d in distances)} |", flush=True)  # fmt: skip
        code = encode(vae, phantoms)
        rows += [decode(vae, noisy(code, strength)) for strength in (NOISES[0], NOISES[-1])]
    if args.picture:
        sheet = np.concatenate([np.concatenate(list(row), 1) for row in rows])
        Image.fromarray(sheet).save(args.picture, quality=85)


if __name__ == "__main__":
    main()
