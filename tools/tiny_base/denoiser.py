"""Trains `tiny`, the base that busray ships: a Stable Diffusion checkpoint small enough for two
CPU cores.

Stages, each restartable and each reading only what the one before left in the work folder: corpus
-> autoencoder -> latents -> decoder, denoiser -> checkpoint in Stable Diffusion's layout. The
autoencoder's own stages are in autoencoder.py.
"""

import copy
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F

from tools.tiny_base.autoencoder import LATENT_CHANNELS, SCANS, decoder_gain, load_decoder, new_vae, three_channels
from tools.tiny_base.pictures import SIDE, captioned, even, grained, procedural, varied
from tools.tiny_base.training import checkpoint, resume, trapezoid

UNET_WIDTHS = (64, 96, 192)
"""With 32 at full resolution, four a latent channel, speckle was hatched; with 64 it is less so."""


UNET_STEPS = 4500


UNET_BATCH = 16


UNET_RATE = 8e-4


WIDE_STEPS = 1500
"""Steps on `captioned` scans, after which EVEN_SHARE of a batch is `even`: see
benchmarks/tiny-base.md."""


EVEN_SHARE = 14 / 16


TEXTURE_STEPS = 10600


TEXTURE_RATE = 6e-4


TEXTURE_SCANS = 16


GAIN_SCANS = 16


LEAST_GAIN = 0.1
"""Share of the mean gain that a channel counts at least: what is not seen of one step guides
the next."""


FINE_SNR = 0.05
"""Signal-to-noise ratio at which detail within 4 x 4 latent cells counts half."""


COARSE_SNR = 0.008
"""Signal-to-noise ratio at which half of what 4 x 4 averages hold can be told."""


COARSE_TOLD = 0.3
"""Signal-to-noise ratio above which they count no more."""


TEXT_WIDTH = 128


TIME_WIDTH = 128


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


Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(error of v [b, c, h, w], signal-to-noise ratios [b]) -> their mean loss."""


def make_corpus(work: Path, seed: int, phantoms: int, pictures: int, workers: int = 2) -> None:
    """Writes what the autoencoder learns from, phantoms.npy and pictures.npy (uint8 [n, 128,
    128]), unless there."""
    for name, make, n in (("phantoms", varied, phantoms), ("pictures", procedural, pictures)):
        if not (work / f"{name}.npy").exists():
            np.save(work / f"{name}.npy", np.stack(_made(make, seed, n, workers)))


def make_scans(work: Path, seed: int, scans: int, workers: int = 2) -> None:
    """Writes what the denoiser learns from, unless there: uint8 [2 n, 128, 128] in .npy, captions
    in -captions.json.

    The first half of scans is `captioned`, the second `even`; both of grained are `grained`.
    """
    for name, halves in zip(SCANS, ((captioned, even), (grained, grained)), strict=True):
        if not (work / f"{name}.npy").exists():
            made = [one for half, make in enumerate(halves) for one in _made(make, seed + 1000 * half, scans, workers)]
            (work / f"{name}-captions.json").write_text(json.dumps([caption for _, caption in made]))
            np.save(work / f"{name}.npy", np.stack([image for image, _ in made]))


def _made(make: Callable[[int], Any], seed: int, n: int, workers: int) -> list[Any]:
    first = seed * 10_000_000
    with ProcessPoolExecutor(workers) as pool:
        return list(pool.map(make, range(first, first + n), chunksize=50))


def new_denoiser(vocabulary: int, end: int) -> tuple[Any, Any]:
    """An untrained UNet2DConditionModel and CLIPTextModel; ids: end of the end token, end - 1
    of the start token."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    unet = UNet2DConditionModel(
        sample_size=SIDE // 4,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=UNET_WIDTHS,
        time_embedding_dim=TIME_WIDTH,
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
        # The caption also enters every block beside the time: by cross-attention alone 1,000 steps
        # learnt no word.
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
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

    Linear up to a signal of 0.002 at the last step: with Stable Diffusion's own schedule the mean
    grey would leak through the noise, and samples could be neither dark nor bright.
    """
    return {"num_train_timesteps": 1000, "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.024,
            "prediction_type": "v_prediction"}  # fmt: skip


def with_strangers(ids: np.ndarray, strange: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Token ids [77] with up to 7 of the strange ids put in, so that the base bears words it
    has never learnt."""
    length = int(ids.argmax())  # of start token and words: the end token has the highest id
    put = rng.choice(strange, int(rng.integers(1, 8)))
    at = int(rng.integers(1, length + 1))
    return ids if length + len(put) >= len(ids) else np.concatenate([ids[:at], put, ids[at:]])[: len(ids)]


def draw_times(rng: np.random.Generator, n: int) -> np.ndarray:
    """Noise levels [n] in 0..999 to train at, most of them high: layers and lesions are decided
    there.

    Measured on 64 latents at 1,500 steps: captions lower the error at t = 600 and 800 and nowhere
    below 450, where the noisy latents show the scene themselves. Logit-normal (Esser et al. 2024,
    arXiv 2403.03206), two fifths uniform for the speckle, which is decided at the low levels.
    """
    high = 1 / (1 + np.exp(-rng.normal(0.3, 0.7, n)))
    return (1000 * np.where(rng.random(n) < 0.4, rng.random(n), high)).astype(np.int64)


def pick_scans(rng: np.random.Generator, n: int, size: int, even_share: float) -> np.ndarray:
    """Rising indices [size] among n scans, that share of them from the second half, which is
    `even`."""
    evens = round(even_share * size)
    wide = rng.choice(n // 2, size - evens, replace=False)
    return np.sort(np.concatenate([wide, n // 2 + rng.choice(n // 2, evens, replace=False)]))


class Scans:
    """Latents and captions of one of work's SCANS, as batches."""

    def __init__(self, work: Path, name: str) -> None:
        self.latents = np.load(work / f"{name}-latents.npy", mmap_mode="r")
        captions = json.loads((work / f"{name}-captions.json").read_text())
        self.tokenizer = make_tokenizer(work / "tokenizer")
        self.ids = self._ids(captions)
        self.empty = self._ids([""])[0]
        self.strange = np.setdiff1d(np.arange(len(self.tokenizer)), self.ids)

    def _ids(self, captions: list[str]) -> np.ndarray:
        found = self.tokenizer(captions, padding="max_length", max_length=CONTEXT, truncation=True)
        return np.asarray(found["input_ids"])

    def some(self, n: int) -> torch.Tensor:
        """Mean latents [n, c, h, w] of scans evenly spread over all."""
        at = np.linspace(0, len(self.latents) - 1, n).astype(np.int64)
        return torch.from_numpy(self.latents[at, 0].astype(np.float32))

    def batch(
        self, rng: np.random.Generator, size: int, even_share: float, times: np.ndarray
    ) -> tuple[torch.Tensor, ...]:
        """Clean latents [size, c, h, w], noise, times, token ids; a tenth without words, a
        tenth with strange."""
        picked = pick_scans(rng, len(self.latents), size, even_share)
        words = self.ids[picked]
        for row, chance in enumerate(rng.random(size)):
            if chance < 0.1:
                words[row] = self.empty
            elif chance < 0.2:
                words[row] = with_strangers(words[row], self.strange, rng)
        moments = torch.from_numpy(self.latents[picked].astype(np.float32))
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        clean = moments[:, 0] + moments[:, 1] * torch.randn(moments[:, 0].shape, generator=generator)
        noise = torch.randn(clean.shape, generator=generator)
        return clean, noise, torch.from_numpy(times), torch.from_numpy(words)


def train_unet(work: Path, seed: int, log: Callable[[str], None], threads: int = 2) -> None:
    """Trains UNet and text encoder on work's latents and captions into denoiser.pt (weight
    averages); restartable."""
    scans = Scans(work, "scans")

    def learn(cores: OneCoreEach, rng: np.random.Generator, step: int) -> float:
        share = EVEN_SHARE if step >= WIDE_STEPS else 0
        return cores.gradients(denoising_loss, *scans.batch(rng, UNET_BATCH, share, draw_times(rng, UNET_BATCH)))

    torch.manual_seed(seed)
    both = torch.nn.ModuleList(new_denoiser(len(scans.tokenizer), scans.tokenizer.eos_token_id))
    _train(both, work, "unet", "denoiser", UNET_STEPS, UNET_RATE, learn, seed, log, threads)


def train_texture(work: Path, seed: int, log: Callable[[str], None], threads: int = 2) -> None:
    """Trains denoiser.pt on into textured.pt, every scale alike: speckle, and the edges of layers
    and lesions.

    What denoising_loss leaves is hatched where speckle should be, and blocky: averages over 4 x 4
    cells count some 40 times as much as what lies between them and speckle. The decoder shows some
    channels a hundred times as much as others, so errors count by what is seen of them.
    """
    scans = Scans(work, "grained")
    scans.strange = np.setdiff1d(scans.strange, Scans(work, "scans").ids)  # narrower captions must unlearn no word
    seen = decoder_gain(load_decoder(work), scans.some(GAIN_SCANS))
    seen = seen.clamp(min=LEAST_GAIN * seen.mean()) / seen.mean()
    log(f"decoder's gain by channel over its mean: {', '.join(f'{gain:.2f}' for gain in seen.tolist())}")
    loss = partial(texture_loss, gain=seen)

    def learn(cores: OneCoreEach, rng: np.random.Generator, step: int) -> float:
        return cores.gradients(loss, *scans.batch(rng, TEXTURE_SCANS, 0.5, draw_times(rng, TEXTURE_SCANS)))

    both = torch.nn.ModuleList(new_denoiser(len(scans.tokenizer), scans.tokenizer.eos_token_id))
    before = torch.load(work / "denoiser.pt", weights_only=True)
    for part, name in zip(both, ("unet", "text"), strict=True):
        part.load_state_dict(before[name])
    _train(both, work, "texture", "textured", TEXTURE_STEPS, TEXTURE_RATE, learn, seed + 1, log, threads)


def _train(
    both: torch.nn.ModuleList,
    work: Path,
    name: str,
    out: str,
    steps: int,
    peak: float,
    learn: "Callable[[OneCoreEach, np.random.Generator, int], float]",
    seed: int,
    log: Callable[[str], None],
    threads: int,
) -> None:
    """Steps of AdamW on the gradients that learn() leaves, into {out}.pt (weight averages) every
    250; restartable.

    Each thread takes a part of the batch on one core: at these sizes faster than every operation
    on all cores.
    """
    from diffusers.training_utils import EMAModel

    unet, text = both
    optimiser = torch.optim.AdamW(both.parameters(), lr=peak, betas=(0.9, 0.99), weight_decay=1e-3)
    rate = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda s: trapezoid(s, steps, warm=200))
    average = EMAModel(both.parameters(), decay=0.998, use_ema_warmup=True, power=0.75)
    parts = {"both": both, "optimiser": optimiser, "rate": rate, "average": average}
    start = resume(work / f"{name}-train.pt", **parts)
    began, running = time.monotonic(), 1.0
    with OneCoreEach(both, threads) as cores:
        for step in range(start, steps):
            optimiser.zero_grad()
            loss = learn(cores, np.random.default_rng([seed, 7, step]), step)
            torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
            optimiser.step()
            rate.step()
            average.step(both.parameters())
            running = 0.99 * running + 0.01 * loss
            if step % 50 == 0:
                log(f"{name} {step} {(time.monotonic() - began) / (step - start + 1):.3f} s/step loss {running:.4f}")
            if step % 250 == 249 or step == steps - 1:
                checkpoint(work / f"{name}-train.pt", step + 1, **parts)
                average.store(both.parameters())
                average.copy_to(both.parameters())
                torch.save({"unet": unet.state_dict(), "text": text.state_dict()}, work / f"{out}.pt")
                average.restore(both.parameters())


def texture_loss(error: torch.Tensor, snr: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    """Mean squared error of v [b, c, h, w], every noise level alike, every channel by its gain
    [c]."""
    return ((error**2).mean((0, 2, 3)) * gain).mean()


def denoising_loss(error: torch.Tensor, snr: torch.Tensor) -> torch.Tensor:
    """Mean squared error of v [b, c, h, w] in which the untellable drowns nothing.

    Where the signal-to-noise ratio snr [b] is low, detail finer than 4 x 4 cells is pure chance:
    it counts by the share of it that can be told. Averages over 4 x 4 cells hold layers and
    lesions; they count by the inverse of the error that the best linear estimate leaves, which was
    measured on 8,000 scans (0.11, 0.18, 0.29, 0.46, 0.64 of 0.72 at t = 400, 500, ... 800) and is
    fitted here within 0.04. The best estimate is the conditional mean whatever the weights; they
    decide how soon it is found.
    """
    fine = (error**2).mean((1, 2, 3)) * snr / (snr + FINE_SNR)
    coarse = 4 * (F.avg_pool2d(error, 4) ** 2).mean((1, 2, 3))
    return (fine + coarse * (1 + (snr.clamp(max=COARSE_TOLD) / COARSE_SNR) ** 0.55)).mean()


def fastest_dtype() -> torch.dtype:
    """bf16 where the processor has it (8 scans, a core: 0.37 s, fp32 0.54); elsewhere fp32.

    On two cores without AVX-512 the first step of 16 scans took 26 s in bf16; in fp32 a step took
    1.4 to 1.6.
    """
    return torch.bfloat16 if torch.cpu.get_capabilities().get("avx512_bf16") else torch.float32


class OneCoreEach:
    """Gradients of a loss, a part of the batch a thread, on replicas that share the weights."""

    def __init__(self, both: torch.nn.ModuleList, threads: int, dtype: torch.dtype | None = None) -> None:
        """dtype: of the arithmetic, left out what the processor is best at; weights stay as
        they are."""
        from diffusers import DDPMScheduler

        self.dtype = dtype or fastest_dtype()
        self.noiser: Any = DDPMScheduler(**schedule())
        self.replicas = [both]
        for _ in range(threads - 1):
            replica = copy.deepcopy(both)
            for own, shared in zip(replica.parameters(), both.parameters(), strict=True):
                own.data = shared.data
            self.replicas.append(replica)
        self.pool = ThreadPoolExecutor(threads, initializer=torch.set_flush_denormal, initargs=(True,))

    def __enter__(self) -> Self:
        self.before = torch.get_num_threads()
        torch.set_num_threads(1)
        return self

    def __exit__(self, *error: object) -> None:
        self.pool.shutdown()
        torch.set_num_threads(self.before)

    def gradients(self, loss: Loss, *batch: torch.Tensor) -> float:
        """Adds the gradients of the mean loss up in the weights; returns the mean loss.

        batch: clean latents, noise, times, token ids.
        """
        parts = list(zip(*(tensor.chunk(len(self.replicas)) for tensor in batch), strict=True))
        shares = [len(part[0]) / len(batch[0]) for part in parts]
        losses = list(self.pool.map(partial(self._part, loss), self.replicas, parts, shares))
        for replica in self.replicas[1:]:
            for kept, own in zip(self.replicas[0].parameters(), replica.parameters(), strict=True):
                if own.grad is not None:
                    kept.grad = own.grad if kept.grad is None else kept.grad.add_(own.grad)
                    own.grad = None
        return sum(part * share for part, share in zip(losses, shares, strict=True))

    def _part(self, loss: Loss, replica: torch.nn.ModuleList, part: tuple[torch.Tensor, ...], share: float) -> float:
        clean, noise, times, words = part
        unet, text = replica
        with torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32):
            made = unet(self.noiser.add_noise(clean, noise, times), times, text(words)[0]).sample.float()
        alpha = self.noiser.alphas_cumprod[times]
        value = loss(made - self.noiser.get_velocity(clean, noise, times), alpha / (1 - alpha))
        (share * value).backward()
        return value.item()


def byte_letters() -> list[str]:
    """The 256 printable stand-ins for bytes that CLIP's byte-pair encoding is written in, in
    CLIP's order."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [b for b in range(256) if b not in plain]
    return [chr(b) for b in plain] + [chr(256 + i) for i in range(len(rest))]


def merges_of(words: list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges after which every word is one token: the commonest pair first, until
    none is left."""
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
    """Writes a CLIP tokenizer into folder: WORDS are whole tokens, anything else falls apart
    into characters."""
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


def save_base(work: Path, out: Path) -> None:
    """Writes the checkpoint into out: UNet and VAE as fp16, text encoder as fp32, no safety
    checker."""
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    tokenizer = make_tokenizer(work / "tokenizer")
    unet, text = new_denoiser(len(tokenizer), tokenizer.eos_token_id)
    state = torch.load(work / "textured.pt", weights_only=True)
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
