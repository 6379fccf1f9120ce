"""Trains `tiny`, the base that busray ships: a Stable Diffusion checkpoint small enough for two CPU cores.

Stages, each restartable and each reading only what the one before left in the work folder:
corpus -> autoencoder -> latents -> decoder, denoiser -> checkpoint in Stable Diffusion's layout. The autoencoder is
grey while it trains; `three_channels` widens its first and last convolution when it is saved, so that pipelines see
RGB.
"""

import json
import math
import shutil
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from busray.model.tiny_corpus import SIDE, captioned, procedural

LATENT_CHANNELS = 8
VAE_WIDTHS = (12, 24, 48)
VAE_STEPS = 4000
VAE_RATE = 2e-3
DECODER_STEPS = 5000
DECODER_RATE = 1e-3
TEXTURE = 1.0
DECODER_TEXTURE = 2.0
"""Weight of the texture loss once the code is fixed: what the code cannot hold, the decoder has to make up."""
KL_WEIGHT = 1e-4
UNET_WIDTHS = (32, 64, 128)
UNET_STEPS = 4500
UNET_BATCH = 8
UNET_RATE = 8e-4
TEXT_WIDTH = 128
CONTEXT = 77
VOCABULARY = """
a an and above arc artifact at background band bands bars beam beside below between black border breast
bright brightness cells centre circle clear coarse colour contrast dark darker deep dense depth diagnostic
distal duct echo edge enhancement fat fatty fibrous field fine gain gland glandular grainy gray grey high
hyperechoic hypoechoic image in irregular is large layer layers left lesion light lighter line lines lobule
low lower lump margin mass medical medium middle mode mottled muscle near no noise nodule nothing of on or
oval patch patchy photo picture posterior probe ragged region rib right rough round scan scanner shadow
shadowing shallow shape showing side skin sloping small smooth soft sonogram sonography speckle spiculated
spiky spot streaks strong superficial tall texture the thick thin tissue to tone top transducer ultrasonic
ultrasound upper vertical very view weak white wide with without zone
"""
WORDS = tuple(VOCABULARY.split())


# --- corpus -------------------------------------------------------------------------------------------------


def make_corpus(work: Path, seed: int, phantoms: int, pictures: int, workers: int = 2) -> None:
    """Writes phantoms.npy (uint8 [n, 128, 128]), captions.json and pictures.npy into work, unless they are there."""
    first = seed * 10_000_000
    if not (work / "phantoms.npy").exists():
        with ProcessPoolExecutor(workers) as pool:
            made = list(pool.map(captioned, range(first, first + phantoms), chunksize=50))
        (work / "captions.json").write_text(json.dumps([caption for _, caption in made]))
        np.save(work / "phantoms.npy", np.stack([image for image, _ in made]))
    if not (work / "pictures.npy").exists():
        with ProcessPoolExecutor(workers) as pool:
            np.save(
                work / "pictures.npy",
                np.stack(list(pool.map(procedural, range(first, first + pictures), chunksize=50))),
            )


def to_unit(pixels: np.ndarray) -> torch.Tensor:
    """uint8 [n, h, w] -> float32 [n, 1, h, w] in -1..1."""
    return torch.from_numpy(pixels.astype(np.float32))[:, None] / 127.5 - 1


# --- autoencoder --------------------------------------------------------------------------------------------


def new_vae(channels: int = 1) -> Any:
    """An untrained AutoencoderKL, f=4, of so many image channels (1 while training, 3 as shipped)."""
    from diffusers import AutoencoderKL

    build: Any = AutoencoderKL  # whose annotations are those of one block
    return build(
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(VAE_WIDTHS),
        up_block_types=("UpDecoderBlock2D",) * len(VAE_WIDTHS),
        block_out_channels=VAE_WIDTHS,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=4,
        sample_size=SIDE,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )


def gradients(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Differences between neighbours, down and across."""
    return x[..., 1:, :] - x[..., :-1, :], x[..., :, 1:] - x[..., :, :-1]


def _windows(x: torch.Tensor, size: int) -> torch.Tensor:
    """[b, 1, h, w] -> half-overlapping windows [n, size, size], their means taken off, under a Hann window."""
    w = x[:, 0].unfold(1, size, size // 2).unfold(2, size, size // 2).reshape(-1, size, size)
    hann = torch.hann_window(size + 2, periodic=False)[1:-1]
    return (w - w.mean((1, 2), keepdim=True)) * torch.outer(hann, hann)


def texture_loss(made: torch.Tensor, real: torch.Tensor, size: int = 16) -> torch.Tensor:
    """How far the local amplitude spectra of two images [b, 1, h, w] are apart, phases aside.

    The absolute difference of amplitudes, plus the log ratio of power summed over rings of frequency: the first keeps
    each grain's strength where its place is known, the second gives back the energy that a code cannot hold.
    """
    made_power, real_power = (torch.fft.rfft2(_windows(x, size), norm="ortho").abs().square() for x in (made, real))
    amplitude = ((made_power + 1e-6).sqrt() - (real_power + 1e-6).sqrt()).abs().mean()
    fy, fx = torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)[None]
    ring = (torch.sqrt(fy**2 + fx**2) * size).round().long().clamp(max=size // 2).flatten()
    rings = F.one_hot(ring).float()
    floor = 5e-5 * rings.sum(0)  # speckle of 2 grey levels
    ratio = torch.log(made_power.flatten(1) @ rings + floor) - torch.log(real_power.flatten(1) @ rings + floor)
    return 2 * amplitude + 0.25 * ratio.abs().mean()


def vae_loss(
    vae: Any, real: torch.Tensor, generator: torch.Generator, texture_weight: float = TEXTURE
) -> tuple[torch.Tensor, dict[str, float]]:
    """Loss of a batch [b, 1, h, w] in -1..1, and its parts."""
    posterior = vae.encode(real).latent_dist
    made = vae.decode(posterior.sample(generator=generator)).sample
    pixel = (made - real).abs().mean()
    down, across = ((a - b).abs().mean() for a, b in zip(gradients(made), gradients(real), strict=True))
    edge = down + across
    texture = texture_loss(made, real)
    kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
    parts = {"pixel": pixel.item(), "edge": edge.item(), "texture": texture.item(), "kl": kl.item()}
    return pixel + 0.25 * edge + texture_weight * texture + KL_WEIGHT * kl, parts


def vae_batch(phantoms: np.ndarray, pictures: np.ndarray, step: int, seed: int) -> torch.Tensor:
    """A step's batch: 8 crops of 64 px or, every fourth time, 2 whole images; half phantoms; mirrored by chance."""
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
    """Trains the autoencoder on work's corpus into vae.pt; goes on from vae-train.pt if a run was cut short."""
    torch.manual_seed(seed)
    vae = new_vae()
    _train_vae(vae, work, "vae", VAE_STEPS, VAE_RATE, TEXTURE, seed, log)


def train_decoder(work: Path, seed: int, log: Callable[[str], None]) -> None:
    """Trains the decoder on, its encoder and so the latents fixed: vae-normal.pt -> decoder.pt; restartable."""
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


# --- training in general ------------------------------------------------------------------------------------


def cosine(step: int, steps: int, warm: int) -> float:
    """Share of the peak learning rate: linear warm-up, then a cosine to 1 % of it."""
    if step < warm:
        return (step + 1) / warm
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, steps - warm))))


def checkpoint(path: Path, step: int, **parts: Any) -> None:
    """Replaces path by the state of each part, never leaving half a file under that name."""
    torch.save({"step": step, **{name: part.state_dict() for name, part in parts.items()}}, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def resume(path: Path, **parts: Any) -> int:
    """Loads what checkpoint() left at path into parts; returns the step to go on from, 0 where there is none."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return state["step"]


# --- latents ------------------------------------------------------------------------------------------------


def load_vae(work: Path) -> Any:
    """The trained grey autoencoder of work, in evaluation mode."""
    vae = new_vae()
    vae.load_state_dict(torch.load(work / "vae.pt", weights_only=True))
    return vae.eval().requires_grad_(False)


@torch.no_grad()
def fold_normalisation(vae: Any, mean: torch.Tensor, std: torch.Tensor) -> None:
    """Moves latents of per-channel mean and std [c] to zero mean and unit variance, inside the 1x1 convolutions.

    quant_conv then gives normalised means and log variances, post_quant_conv takes normalised latents: encoding and
    decoding an image gives what it gave before.
    """
    c = len(mean)
    into, out = vae.quant_conv, vae.post_quant_conv
    into.weight[:c] /= std[:, None, None, None]
    into.bias[:c] = (into.bias[:c] - mean) / std
    into.bias[c:] -= 2 * torch.log(std)
    out.bias += out.weight[:, :, 0, 0] @ mean
    out.weight *= std[None, :, None, None]


@torch.no_grad()
def encode_corpus(work: Path, log: Callable[[str], None]) -> None:
    """Normalises the autoencoder (vae-normal.pt); writes latents.npy, float16 [n, 2, c, 32, 32], mean and std."""
    vae, phantoms = load_vae(work), np.load(work / "phantoms.npy")
    start = torch.cat([vae.encode(to_unit(batch)).latent_dist.mean for batch in np.array_split(phantoms[:960], 30)])
    mean, std = start.mean((0, 2, 3)), start.std((0, 2, 3))
    log(f"latents mean {mean.tolist()} std {std.tolist()}")
    fold_normalisation(vae, mean, std)
    torch.save(vae.state_dict(), work / "vae-normal.pt")
    kept = []
    for batch in np.array_split(phantoms, max(1, len(phantoms) // 32)):
        posterior = vae.encode(to_unit(batch)).latent_dist
        kept.append(torch.stack([posterior.mean, posterior.std], 1).half().numpy())
    np.save(work / "latents.npy", np.concatenate(kept))


# --- denoiser -----------------------------------------------------------------------------------------------


def new_denoiser(vocabulary: int, end: int) -> tuple[Any, Any]:
    """An untrained UNet2DConditionModel and CLIPTextModel; ids: end of the end token, end - 1 of the start token."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    unet = UNet2DConditionModel(
        sample_size=SIDE // 4,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=UNET_WIDTHS,
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=CONTEXT,
            bos_token_id=end - 1,
            eos_token_id=end,
            pad_token_id=end,
        )
    )
    return unet, text


def schedule() -> dict[str, Any]:
    """Noise schedule and prediction type, for training and sampling alike.

    Linear up to a signal of 0.002 at the last step: with Stable Diffusion's own schedule the mean grey would leak
    through the noise, and samples could be neither dark nor bright.
    """
    return {"num_train_timesteps": 1000, "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.024,
            "prediction_type": "v_prediction"}  # fmt: skip


def with_strangers(ids: np.ndarray, strange: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Token ids [77] with up to 7 of the strange ids put in, so that the base bears words it has never learnt."""
    length = int(ids.argmax())  # of start token and words: the end token has the highest id
    put = rng.choice(strange, int(rng.integers(1, 8)))
    at = int(rng.integers(1, length + 1))
    return ids if length + len(put) >= len(ids) else np.concatenate([ids[:at], put, ids[at:]])[: len(ids)]


def train_unet(work: Path, seed: int, log: Callable[[str], None]) -> None:
    """Trains UNet and text encoder on work's latents and captions into denoiser.pt (weight averages); restartable."""
    from diffusers import DDPMScheduler
    from diffusers.training_utils import EMAModel

    latents = np.load(work / "latents.npy", mmap_mode="r")
    captions = json.loads((work / "captions.json").read_text())
    tokenizer = make_tokenizer(work / "tokenizer")
    ids = np.asarray(tokenizer(captions, padding="max_length", max_length=CONTEXT, truncation=True)["input_ids"])
    empty = np.asarray(tokenizer("", padding="max_length", max_length=CONTEXT)["input_ids"])
    strange = np.setdiff1d(np.arange(len(tokenizer)), ids)
    torch.manual_seed(seed)
    unet, text = new_denoiser(len(tokenizer), tokenizer.eos_token_id)
    both = torch.nn.ModuleList([unet, text])
    optimiser = torch.optim.AdamW(both.parameters(), lr=UNET_RATE, betas=(0.9, 0.99), weight_decay=1e-3)
    rate = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda s: cosine(s, UNET_STEPS, warm=200))
    average = EMAModel(both.parameters(), decay=0.998, use_ema_warmup=True, power=0.75)
    noiser: Any = DDPMScheduler(**schedule())
    start = resume(work / "unet-train.pt", both=both, optimiser=optimiser, rate=rate, average=average)
    began, running = time.monotonic(), 1.0
    for step in range(start, UNET_STEPS):
        rng = np.random.default_rng([seed, 7, step])
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        picked = np.sort(rng.choice(len(latents), UNET_BATCH, replace=False))
        words = ids[picked]
        for row, chance in enumerate(rng.random(UNET_BATCH)):
            if chance < 0.1:
                words[row] = empty
            elif chance < 0.2:
                words[row] = with_strangers(words[row], strange, rng)
        moments = torch.from_numpy(latents[picked].astype(np.float32))
        clean = moments[:, 0] + moments[:, 1] * torch.randn(moments[:, 0].shape, generator=generator)
        noise = torch.randn(clean.shape, generator=generator)
        times = torch.randint(0, 1000, (UNET_BATCH,), generator=generator)
        made = unet(noiser.add_noise(clean, noise, times), times, text(torch.from_numpy(words))[0]).sample
        loss = F.mse_loss(made, noiser.get_velocity(clean, noise, times))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimiser.step()
        rate.step()
        average.step(both.parameters())
        running = 0.99 * running + 0.01 * loss.item()
        if step % 50 == 0:
            log(f"unet {step} {(time.monotonic() - began) / (step - start + 1):.3f} s/step loss {running:.4f}")
        if step % 250 == 249:
            checkpoint(work / "unet-train.pt", step + 1, both=both, optimiser=optimiser, rate=rate, average=average)
            average.store(both.parameters())
            average.copy_to(both.parameters())
            torch.save({"unet": unet.state_dict(), "text": text.state_dict()}, work / "denoiser.pt")
            average.restore(both.parameters())


# --- checkpoint ---------------------------------------------------------------------------------------------


def byte_letters() -> list[str]:
    """The 256 printable stand-ins for bytes that CLIP's byte-pair encoding is written in, in CLIP's order."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [b for b in range(256) if b not in plain]
    return [chr(b) for b in plain] + [chr(256 + i) for i in range(len(rest))]


def merges_of(words: list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges after which every word is one token: the commonest pair first, until none is left."""
    split = {word: [*word[:-1], word[-1] + "</w>"] for word in words}
    merges = []
    while True:
        pairs = Counter(pair for pieces in split.values() for pair in pairwise(pieces))
        if not pairs:
            return merges
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for word, pieces in split.items():
            joined, i = [], 0
            while i < len(pieces):
                hit = tuple(pieces[i : i + 2]) == best
                joined.append("".join(best) if hit else pieces[i])
                i += 2 if hit else 1
            split[word] = joined


def make_tokenizer(folder: Path):
    """Writes a CLIP tokenizer into folder: WORDS are whole tokens, anything else falls apart into characters."""
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    letters = byte_letters()
    merges = merges_of(sorted(WORDS))
    tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges)]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    made = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=CONTEXT)
    made.save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)


def three_channels(grey: Any) -> Any:
    """The shipped autoencoder: reads the mean of RGB, gives three equal channels."""
    vae, state = new_vae(3), dict(grey.state_dict())
    state["encoder.conv_in.weight"] = state["encoder.conv_in.weight"].repeat(1, 3, 1, 1) / 3
    for name in ("decoder.conv_out.weight", "decoder.conv_out.bias"):
        state[name] = state[name].repeat(3, *[1] * (state[name].dim() - 1))
    vae.load_state_dict(state)
    return vae.eval()


def save_base(work: Path, out: Path) -> None:
    """Writes the checkpoint into out: UNet and VAE as fp16, text encoder as fp32, no safety checker."""
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    tokenizer = make_tokenizer(work / "tokenizer")
    unet, text = new_denoiser(len(tokenizer), tokenizer.eos_token_id)
    state = torch.load(work / "denoiser.pt", weights_only=True)
    unet.load_state_dict(state["unet"])
    text.load_state_dict(state["text"])
    grey = new_vae()
    grey.load_state_dict(torch.load(work / "decoder.pt", weights_only=True))
    build: Any = StableDiffusionPipeline  # whose annotations leave out None and newer schedulers
    build(
        vae=three_channels(grey).half(),
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet.half(),
        scheduler=DPMSolverMultistepScheduler(**schedule(), timestep_spacing="trailing", steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(out, safe_serialization=True)
    for name in ("vocab.json", "merges.txt"):
        shutil.copyfile(work / "tokenizer" / name, out / "tokenizer" / name)
    for file in out.rglob("*.safetensors"):
        file.chmod(0o644)
