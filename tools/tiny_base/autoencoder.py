"""The embedded base's autoencoder: losses that keep speckle, its two trainings, and what becomes
of it when saved.

It is grey while it trains; `three_channels` widens its first and last convolution when it is
saved, so that pipelines see RGB.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from busray.model.decoder import differences, texture_loss
from busray.vision.fitting import cosine
from tools.tiny_base.pictures import SIDE
from tools.tiny_base.training import checkpoint, resume

SCANS = ("scans", "grained")
"""What the denoiser learns from: scenes, then speckle."""


LATENT_CHANNELS = 8


VAE_WIDTHS = (12, 24, 48)


VAE_STEPS = 4000


VAE_RATE = 2e-3


DECODER_STEPS = 5000


DECODER_RATE = 1e-3


TEXTURE = 1.0


DECODER_TEXTURE = 2.0
"""Weight of the texture loss once the code is fixed: what the code cannot hold, the decoder has
to make up."""


KL_WEIGHT = 1e-4


def to_unit(pixels: np.ndarray) -> torch.Tensor:
    """uint8 [n, h, w] -> float32 [n, 1, h, w] in -1..1."""
    return torch.from_numpy(pixels.astype(np.float32))[:, None] / 127.5 - 1


def new_vae(channels: int = 1, widths: Sequence[int] = VAE_WIDTHS, latent_channels: int = LATENT_CHANNELS) -> Any:
    """An untrained AutoencoderKL of so many image channels (1 while training, 3 as shipped).

    widths: of its levels; each but the last halves the side, so three of them give f = 4.
    """
    from diffusers import AutoencoderKL

    build: Any = AutoencoderKL  # whose annotations are those of one block
    return build(
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=tuple(widths),
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=4,
        sample_size=SIDE,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )


def vae_loss(
    vae: Any, real: torch.Tensor, generator: torch.Generator, texture_weight: float = TEXTURE
) -> tuple[torch.Tensor, dict[str, float]]:
    """Loss of a batch [b, 1, h, w] in -1..1, and its parts."""
    posterior = vae.encode(real).latent_dist
    made = vae.decode(posterior.sample(generator=generator)).sample
    pixel = (made - real).abs().mean()
    down, across = ((a - b).abs().mean() for a, b in zip(differences(made), differences(real), strict=True))
    edge = down + across
    texture = texture_loss(made, real)
    kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
    parts = {"pixel": pixel.item(), "edge": edge.item(), "texture": texture.item(), "kl": kl.item()}
    return pixel + 0.25 * edge + texture_weight * texture + KL_WEIGHT * kl, parts


def vae_batch(phantoms: np.ndarray, pictures: np.ndarray, step: int, seed: int) -> torch.Tensor:
    """A step's batch: 8 crops of 64 px or, every fourth time, 2 whole images; half phantoms;
    mirrored by chance."""
    rng = np.random.default_rng([seed, step])
    whole = step % 4 == 3
    n, crop = (2, SIDE) if whole else (8, SIDE // 2)
    picked = []
    for i in range(n):
        source = phantoms if i % 2 else pictures
        y, x = rng.integers(0, SIDE - crop + 1, 2)
        image = source[int(rng.integers(len(source)))][y : y + crop, x : x + crop]
        picked.append(image[:, ::-1] if rng.random() < 0.5 else image)
    return to_unit(np.stack(picked))


def train_vae(work: Path, seed: int, log: Callable[[str], None]) -> None:
    """Trains the autoencoder on work's corpus into vae.pt; goes on from vae-train.pt if a run
    was cut short."""
    torch.manual_seed(seed)
    vae = new_vae()
    _train_vae(vae, work, "vae", VAE_STEPS, VAE_RATE, TEXTURE, seed, log)


def train_decoder(work: Path, seed: int, log: Callable[[str], None]) -> None:
    """Trains the decoder on, its encoder and so the latents fixed: vae-normal.pt -> decoder.pt;
    restartable."""
    vae = new_vae()
    vae.load_state_dict(torch.load(work / "vae-normal.pt", weights_only=True))
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    _train_vae(vae, work, "decoder", DECODER_STEPS, DECODER_RATE, DECODER_TEXTURE, seed + 1, log)


def _train_vae(
    vae: Any,
    work: Path,
    name: str,
    steps: int,
    peak: float,
    texture_weight: float,
    seed: int,
    log: Callable[[str], None],
) -> None:
    phantoms, pictures = np.load(work / "phantoms.npy"), np.load(work / "pictures.npy")
    trained = [p for p in vae.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=peak, betas=(0.9, 0.99), weight_decay=1e-4)
    rate = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda s: cosine(s, steps, warm=100))
    start = resume(work / f"{name}-train.pt", vae=vae, optimiser=optimiser, rate=rate)
    began = time.monotonic()
    for step in range(start, steps):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        loss, parts = vae_loss(vae, vae_batch(phantoms, pictures, step, seed), generator, texture_weight)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        rate.step()
        if step % 50 == 0:
            figures = " ".join(f"{k} {v:.4f}" for k, v in parts.items())
            log(f"{name} {step} {(time.monotonic() - began) / (step - start + 1):.3f} s/step {figures}")
        if step % 250 == 249:
            checkpoint(work / f"{name}-train.pt", step + 1, vae=vae, optimiser=optimiser, rate=rate)
    torch.save(vae.state_dict(), work / f"{name}.pt")


def _load(path: Path) -> Any:
    """A trained grey autoencoder, in evaluation mode."""
    vae = new_vae()
    vae.load_state_dict(torch.load(path, weights_only=True))
    return vae.eval().requires_grad_(False)


@torch.no_grad()
def fold_normalisation(vae: Any, mean: torch.Tensor, std: torch.Tensor) -> None:
    """Moves latents of per-channel mean and std [c] to zero mean and unit variance, inside the 1x1
    convolutions.

    quant_conv then gives normalised means and log variances, post_quant_conv takes normalised
    latents: encoding and decoding an image gives what it gave before.
    """
    c = len(mean)
    into, out = vae.quant_conv, vae.post_quant_conv
    into.weight[:c] /= std[:, None, None, None]
    into.bias[:c] = (into.bias[:c] - mean) / std
    into.bias[c:] -= 2 * torch.log(std)
    out.bias += out.weight[:, :, 0, 0] @ mean
    out.weight *= std[None, :, None, None]


@torch.no_grad()
def encode_scans(work: Path, log: Callable[[str], None]) -> None:
    """Writes {name}-latents.npy of each {name}.npy, float16 [n, 2, c, 32, 32]: mean and std.

    And, unless there, vae-normal.pt.
    """
    if not (work / "vae-normal.pt").exists():
        _normalise(work, np.load(work / "phantoms.npy")[:960], log)
    vae = _load(work / "vae-normal.pt")
    for name in SCANS:
        scans, kept = np.load(work / f"{name}.npy"), []
        for batch in np.array_split(scans, max(1, len(scans) // 32)):
            posterior = vae.encode(to_unit(batch)).latent_dist
            kept.append(torch.stack([posterior.mean, posterior.std], 1).half().numpy())
        np.save(work / f"{name}-latents.npy", np.concatenate(kept))


def _normalise(work: Path, phantoms: np.ndarray, log: Callable[[str], None]) -> None:
    vae = _load(work / "vae.pt")
    means = torch.cat([vae.encode(to_unit(batch)).latent_dist.mean for batch in np.array_split(phantoms, 30)])
    mean, std = means.mean((0, 2, 3)), means.std((0, 2, 3))
    log(f"latents mean {mean.tolist()} std {std.tolist()}")
    fold_normalisation(vae, mean, std)
    torch.save(vae.state_dict(), work / "vae-normal.pt")


def load_decoder(work: Path) -> Any:
    """The autoencoder as it will be saved, grey."""
    return _load(work / "decoder.pt")


@torch.no_grad()
def decoder_gain(vae: Any, latents: torch.Tensor, noise: float = 0.2) -> torch.Tensor:
    """What the decoder shows of a change, by channel [c]: mean square of its answer over that of
    white noise put in.

    latents: [n, c, h, w] of unit variance that the noise is added to; noise: its standard
    deviation.
    """
    generator = torch.Generator().manual_seed(0)
    plain = vae.decode(latents).sample
    gains = []
    for channel in range(latents.shape[1]):
        put = latents.clone()
        put[:, channel] += noise * torch.randn(put[:, channel].shape, generator=generator)
        gains.append(((vae.decode(put).sample - plain) ** 2).mean() / noise**2)
    return torch.stack(gains)


def take_autoencoder(base: Path, work: Path) -> None:
    """The autoencoder of a saved base as work's own, so that a denoiser can be trained on it
    alone."""
    from diffusers import AutoencoderKL

    saved: Any = AutoencoderKL.from_pretrained(base / "vae", use_safetensors=True, dtype=torch.float32)
    for name in ("vae-normal.pt", "decoder.pt"):
        torch.save(one_channel(saved).state_dict(), work / name)


def one_channel(shipped: Any) -> Any:
    """What three_channels was given."""
    vae = type(shipped).from_config({**shipped.config, "in_channels": 1, "out_channels": 1})
    state = dict(shipped.state_dict())
    state["encoder.conv_in.weight"] = state["encoder.conv_in.weight"].sum(1, keepdim=True)
    for name in ("decoder.conv_out.weight", "decoder.conv_out.bias"):
        state[name] = state[name][:1]
    vae.load_state_dict(state)
    return vae


def three_channels(grey: Any) -> Any:
    """The shipped autoencoder: reads the mean of RGB, gives three equal channels."""
    vae = type(grey).from_config({**grey.config, "in_channels": 3, "out_channels": 3})
    state = dict(grey.state_dict())
    state["encoder.conv_in.weight"] = state["encoder.conv_in.weight"].repeat(1, 3, 1, 1) / 3
    for name in ("decoder.conv_out.weight", "decoder.conv_out.bias"):
        state[name] = state[name].repeat(3, *[1] * (state[name].dim() - 1))
    vae.load_state_dict(state)
    return vae.eval()
