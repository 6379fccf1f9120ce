"""An autoencoder of 8 px cells whose latents hold structure and whose decoder makes up texture.

Two stages, both restartable. `code` trains encoder and decoder. `decoder` keeps the encoder, and so
the latents, and trains the decoder on against a critic. Latents have mean 0 and variance 1 in every
channel. The decoder sees them with noise, since a denoiser will not draw them exactly.

python -m tools.tiny_base.autoencoder_f8 WORK --openus FOLDER [--out VAE]
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from busray.model.decoder import differences, texture_loss
from tools.tiny_base.autoencoder import new_vae, one_channel, three_channels, to_unit
from tools.tiny_base.critic import Critic, Features, critic_loss, maker_loss
from tools.tiny_base.denoiser import make_corpus
from tools.tiny_base.pictures import SIDE
from tools.tiny_base.scans import load_openus
from tools.tiny_base.training import checkpoint, resume, trapezoid, write_log

WIDTHS = (12, 24, 48, 96)  # the first three are those of autoencoder.py: see take_up
LATENT_CHANNELS = 4
RATE, CRITIC_RATE = 2e-3, 2e-3
STEPS = {"code": 1500, "decoder": 1500}
BATCH = 8  # crops of half the side; every fourth step as many pixels in whole images
SOURCES = (("openus", 0.5), ("phantoms", 0.35), ("pictures", 0.15))
SAVE_EVERY = 50  # steps
CRITIC_FIRST = 50  # steps in which the critic learns and the decoder does not yet heed it
NOISE = 0.25  # most noise on latents, in their standard deviations
LOG_VARIANCE = -8.0  # of the posterior, which plain diffusers may sample: a deviation of 0.018
WEIGHTS = {
    "code": {"pixel": 0.5, "cells": 2.0, "edge": 0.25, "pooled": 0.5, "normal": 0.1},
    "decoder": {
        "pixel": 0.2, "cells": 2.0, "edge": 0.05, "pooled": 0.5, "normal": 0.0,
        "texture": 1.0, "place": 0.1, "spread": 0.5, "maker": 0.3,
    },
}  # fmt: skip
"""Stage -> weights of the parts of its loss. Pixels count little in the second: a grain that is not
in its place still does."""


class Autoencoder(nn.Module):
    """Grey AutoencoderKL, and the mean and variance of its latents, which are taken off."""

    def __init__(self) -> None:
        super().__init__()

        self.vae = new_vae(1, WIDTHS, LATENT_CHANNELS)
        # Only its running moments are used. Those of a batch would take the brightness from its few
        # images, which the decoder cannot know.
        self.norm = nn.BatchNorm2d(LATENT_CHANNELS, affine=False)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """[b, 1, h, w] in -1..1 -> latents [b, 4, h / 8, w / 8]."""
        raw = self.vae.encode(images).latent_dist.mean
        return F.batch_norm(raw, self.norm.running_mean, self.norm.running_var, training=False)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self.vae.decode(latents).sample

    @torch.no_grad()
    def plain(self) -> Any:
        """An AutoencoderKL of three equal channels that gives and takes normalised latents."""
        mean, variance = self.norm.running_mean, self.norm.running_var
        assert mean is not None and variance is not None
        std = (variance + self.norm.eps).sqrt()
        made, c = three_channels(self.vae), LATENT_CHANNELS
        made.quant_conv.weight[:c] /= std[:, None, None, None]
        made.quant_conv.bias[:c] = (made.quant_conv.bias[:c] - mean) / std
        made.quant_conv.weight[c:] = 0
        made.quant_conv.bias[c:] = LOG_VARIANCE
        return made


def batch(sources: dict[str, np.ndarray], step: int, seed: int) -> torch.Tensor:
    """A step's images [b, 1, h, w] in -1..1: crops, or whole images every fourth step; mirrored and
    brightened by chance."""
    rng = np.random.default_rng([seed, step])
    whole = step % 4 == 3
    n, side = (BATCH // 4, SIDE) if whole else (BATCH, SIDE // 2)
    names, shares = [name for name, _ in SOURCES], [share for _, share in SOURCES]
    picked = []
    for name in rng.choice(names, n, p=shares):
        source = sources[name]
        y, x = rng.integers(0, SIDE - side + 1, 2)
        image = source[int(rng.integers(len(source)))][y : y + side, x : x + side]
        image = image[:, ::-1] if rng.random() < 0.5 else image
        bright = 255 * (image / 255.0) ** np.exp(rng.uniform(-0.3, 0.3))
        picked.append(np.rint(bright).astype(np.uint8))
    return to_unit(np.stack(picked))


def structure(
    model: Autoencoder, latents: torch.Tensor, real: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """(images decoded from noisy latents, the parts of the loss of `code`)."""
    strength = NOISE * torch.rand((len(latents), 1, 1, 1), generator=generator)
    noise = torch.randn(latents.shape, generator=generator)
    made = model.decode(latents + strength * noise)
    down, across = ((a - b).abs().mean() for a, b in zip(differences(made), differences(real), strict=True))
    # Latents at half the resolution should mean the image at half the resolution: this keeps them
    # smooth (Skorokhodov et al. 2025, arXiv 2502.14831).
    pooled = model.decode(F.avg_pool2d(latents, 2))
    return made, {
        "pixel": (made - real).abs().mean(),
        "cells": (F.avg_pool2d(made, 4) - F.avg_pool2d(real, 4)).abs().mean(),
        "edge": down + across,
        "pooled": (pooled - F.avg_pool2d(real, 2)).abs().mean(),
        "normal": _normal(latents),
    }


def _normal(latents: torch.Tensor) -> torch.Tensor:
    """Divergence of each channel's mean and variance in a batch from 0 and 1: else the code would
    outgrow its noise."""
    mean, variance = latents.mean((0, 2, 3)), latents.var((0, 2, 3)) + 1e-6
    return 0.5 * (mean**2 + variance - 1 - variance.log()).mean()


@torch.no_grad()
def settle(model: Autoencoder, sources: dict[str, np.ndarray], seed: int, batches: int = 100) -> None:
    """Sets the model's mean and variance, so that latents of its training data have 0 and 1."""
    latents = torch.cat([model.encode(batch(sources, 4 * i + 3, seed)) for i in range(batches)])
    before, variance = model.norm.running_mean, model.norm.running_var
    assert before is not None and variance is not None
    before += latents.mean((0, 2, 3)) * (variance + model.norm.eps).sqrt()
    variance *= latents.var((0, 2, 3))


def texture(features: Features, made: torch.Tensor, real: torch.Tensor) -> dict[str, torch.Tensor]:
    """What `decoder` adds to them, apart from its critic.

    In `code` it would hide the scene: with it, the averages of 4 x 4 px were learnt more slowly.
    """
    place, spread = features.distances(made, real)
    return {"texture": texture_loss(made, real), "place": place, "spread": spread}


@torch.no_grad()
def take_up(vae: Any, folder: Path) -> int:
    """Copies what fits of a saved autoencoder; returns how many tensors.

    Of one of these levels that is everything; of autoencoder.py's, which has a level fewer, the
    outer levels. A decoder's blocks count from the inside, so that each of its blocks moves by one.
    """
    from diffusers import AutoencoderKL

    saved: Any = AutoencoderKL.from_pretrained(folder, use_safetensors=True, dtype=torch.float32)
    shift = len(WIDTHS) - len(saved.config.block_out_channels)
    state, taken = vae.state_dict(), 0
    for name, tensor in one_channel(saved).state_dict().items():
        if name.startswith("decoder.up_blocks."):
            block = int(name.split(".")[2])
            name = name.replace(f"up_blocks.{block}.", f"up_blocks.{block + shift}.", 1)
        if name in state and state[name].shape == tensor.shape:
            state[name].copy_(tensor)
            taken += 1
    return taken


def weighed(parts: dict[str, torch.Tensor], stage: str) -> torch.Tensor:
    return torch.stack([WEIGHTS[stage][name] * part for name, part in parts.items()]).sum()


def train(work: Path, stage: str, steps: int, seed: int, log: Callable[[str], None], begin: Path | None = None) -> None:
    """Trains `code` into code.pt, or `decoder` from code.pt into decoder-f8.pt; goes on where it
    was cut short.

    begin: the saved autoencoder that `code` begins with, see take_up; without it, from nothing.
    """
    torch.manual_seed(seed)
    model, critic, features = Autoencoder(), Critic(), Features()
    fixed = stage == "decoder"
    if begin and not fixed:
        log(f"{take_up(model.vae, begin)} tensors of {begin}")
    if fixed:
        model.load_state_dict(torch.load(work / "code.pt", weights_only=True))
        model.vae.encoder.requires_grad_(False)
        model.vae.quant_conv.requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=RATE * (0.5 if fixed else 1), betas=(0.9, 0.99), weight_decay=1e-4)
    judging = torch.optim.AdamW(critic.parameters(), lr=CRITIC_RATE, betas=(0.5, 0.99))
    rate = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda s: trapezoid(s, steps, warm=50))
    parts_of_run = {"model": model, "critic": critic, "optimiser": optimiser, "judging": judging, "rate": rate}
    start = resume(work / f"{stage}-train.pt", **parts_of_run)
    sources = {name: np.load(work / f"{name}.npy", mmap_mode="r") for name, _ in SOURCES}
    began = time.monotonic()
    for step in range(start, steps):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        real = batch(sources, step, seed + fixed)
        with torch.set_grad_enabled(not fixed):
            latents = model.encode(real)
        made, parts = structure(model, latents, real, generator)
        if fixed:
            parts |= texture(features, made, real)
        if fixed and step >= CRITIC_FIRST:
            parts["maker"] = maker_loss(critic, made)
        optimiser.zero_grad()
        weighed(parts, stage).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        rate.step()
        if fixed:
            parts["critic"] = critic_loss(critic, real, made)
            judging.zero_grad()
            parts["critic"].backward()
            judging.step()
        if step % 20 == 0:
            figures = " ".join(f"{name} {part.item():.4f}" for name, part in parts.items())
            log(f"{stage} {step} {(time.monotonic() - began) / (step - start + 1):.3f} s/step {figures}")
        if step % SAVE_EVERY == SAVE_EVERY - 1:
            checkpoint(work / f"{stage}-train.pt", step + 1, **parts_of_run)
    if not fixed:
        settle(model, sources, seed)
    torch.save(model.state_dict(), work / ("decoder-f8.pt" if fixed else "code.pt"))


def load(path: Path) -> Autoencoder:
    """Of a trained state, or of a checkpoint while training goes on; in evaluation mode."""
    state = torch.load(path, weights_only=True)
    model = Autoencoder()
    model.load_state_dict(state.get("model", state))
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for everything in between (0.3 GB)")
    parser.add_argument("--openus", type=Path, required=True, help="folder with hc18, timtrack_cc0 and timtrack_ccby")
    parser.add_argument("--out", type=Path, help="folder for the AutoencoderKL in half precision; default WORK/vae")
    parser.add_argument("--begin", type=Path, help="a saved autoencoder to begin with; else from nothing")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--phantoms", type=int, default=5000)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=2)
    for stage, steps in STEPS.items():
        parser.add_argument(f"--{stage}", type=int, default=steps, metavar="STEPS", help=f"steps; default {steps}")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    args.work.mkdir(parents=True, exist_ok=True)

    log = partial(write_log, args.work)
    if not (args.work / "openus.npy").exists():
        np.save(args.work / "openus.npy", load_openus(args.openus, args.seed))
    make_corpus(args.work, args.seed, args.phantoms, args.pictures, args.threads)
    if not (args.work / "code.pt").exists():
        train(args.work, "code", args.code, args.seed, log, args.begin)
    if not (args.work / "decoder-f8.pt").exists():
        train(args.work, "decoder", args.decoder, args.seed, log)
    load(args.work / "decoder-f8.pt").plain().half().save_pretrained(args.out or args.work / "vae")


if __name__ == "__main__":
    main()
