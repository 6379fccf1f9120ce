"""The step loop of sampling. It never waits for the device: what a step needs to know of its noise
level is computed on the CPU, once a draw."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import Tensor

SCHEDULERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "dpmsolver++": (diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
    "sde-dpmsolver++": (diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    # DDIM's default clips latents to -1..1, as if they were pixels.
    "ddim": (diffusers.DDIMScheduler, {"clip_sample": False}),
    "euler": (diffusers.EulerDiscreteScheduler, {}),
    "unipc": (diffusers.UniPCMultistepScheduler, {}),
}


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598)."""

    scale: float
    prompts: Tensor  # text embeddings [b, tokens, width]
    empty: Tensor | None  # those of the negative or empty prompt, [b, tokens, width]; None: no guidance
    # Noise levels (sigma / alpha) between which it works (Kynkaanniemi et al. 2024, arXiv
    # 2404.07724); None: at all of them
    interval: tuple[float, float] | None = None

    def works_at(self, level: tuple[Tensor, Tensor]) -> bool:
        if self.empty is None or self.interval is None:
            return self.empty is not None
        alpha, sigma = level
        low, high = self.interval
        return low <= (float(sigma / alpha) if alpha else float("inf")) <= high


@dataclass(frozen=True)
class Padding:
    """The latent cells outside the images' content, which are black at each step's noise."""

    content: Tensor  # bool [b, 1, h, w]
    black: Tensor  # latents of a black square, [1, c, h, w]
    noise: Tensor  # [b, c, h, w]

    def hold(self, latents: Tensor, level: tuple[Tensor, Tensor] | None) -> Tensor:
        """The latents [b, c, h, w] with black padding. level: theirs; None: they have no noise."""
        padding = self.black.expand_as(latents)
        if level is not None:
            alpha, sigma = level
            padding = alpha * padding + sigma * self.noise
        return torch.where(self.content, latents, padding)


def scheduler_for(name: str, settings: Any) -> Any:
    """The scheduler of this name, with the base's noise schedule and prediction type."""
    kind, options = SCHEDULERS[name]
    return kind.from_config(settings, **options)


def is_stochastic(scheduler: Any) -> bool:
    """Whether it adds noise at each step. A scheduler keeps settings of others in its own."""
    solver = isinstance(scheduler, diffusers.DPMSolverMultistepScheduler)
    return solver and scheduler.config["algorithm_type"].startswith("sde")


def noise_levels(scheduler: Any, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """(alpha, sigma) at each of the scheduler's timesteps, in their order; scalars on the CPU.

    alpha * latents + sigma * noise is what its add_noise gives, to the last bit.
    """
    if not hasattr(scheduler, "sigmas"):  # DDIM
        kept = scheduler.alphas_cumprod.cpu().to(dtype)[scheduler.timesteps.cpu()]
        return list(zip(kept**0.5, (1 - kept) ** 0.5, strict=True))
    sigmas = scheduler.sigmas.cpu().to(dtype)[: len(scheduler.timesteps)]
    if hasattr(scheduler, "_sigma_to_alpha_sigma_t"):
        return [scheduler._sigma_to_alpha_sigma_t(sigma) for sigma in sigmas]
    return [(torch.ones_like(sigma), sigma) for sigma in sigmas]


def first_step(steps: int, strength: float) -> int:
    """The step of a schedule at which refinement of this strength begins; diffusers rounds so."""
    return steps - min(int(steps * strength), steps)


def denoise(
    unet: Any,
    scheduler: Any,
    latents: Tensor,
    guidance: Guidance,
    generators: Sequence[torch.Generator],
    padding: Padding | None = None,
    first: int = 0,
) -> Tensor:
    """Latents [b, c, h, w] at the noise of step `first` -> latents without noise.

    The scheduler's timesteps are set, on the CPU. generators: of the images, for a stochastic
    scheduler. `unipc` alone copies a number or two to the device at each step.
    """
    levels = noise_levels(scheduler, latents.dtype)
    guided = [guidance.works_at(level) for level in levels]
    times = scheduler.timesteps
    # Copies of their own: compiled code would look at each one's place in the whole.
    times_there = [time.clone() for time in times.to(latents.device)]
    if hasattr(scheduler, "set_begin_index"):  # else it looks its first timestep up
        scheduler.set_begin_index(first)
    both = None if guidance.empty is None else torch.cat([guidance.empty, guidance.prompts])
    stochastic = is_stochastic(scheduler)
    noises = noises_ahead(latents.shape[1:], generators, len(times) - first if stochastic else 0, latents.device)
    for i in range(first, len(times)):
        text = both if guided[i] else guidance.prompts
        given = torch.cat([latents] * 2) if guided[i] else latents
        given = scheduler.scale_model_input(given, times[i])
        predicted = unet(given, times_there[i], encoder_hidden_states=text, return_dict=False)[0]
        if guided[i]:
            without, with_prompt = predicted.chunk(2)
            predicted = without + guidance.scale * (with_prompt - without)
        extra = {"variance_noise": next(noises)} if stochastic else {}
        latents = scheduler.step(predicted, times[i], latents, return_dict=False, **extra)[0]
        if padding is not None:
            latents = padding.hold(latents, levels[i + 1] if i + 1 < len(levels) else None)
    return latents


def noises_ahead(
    shape: Sequence[int], generators: Sequence[torch.Generator], count: int, device: torch.device
) -> Iterator[Tensor]:
    """`count` times unit noise [b, *shape] on the device, as unit_noise draws it. A thread draws
    the next one while the device works."""
    if not count:
        return
    with ThreadPoolExecutor(1, "noise") as thread:
        coming = thread.submit(unit_noise, shape, generators)
        for left in reversed(range(count)):
            noise = coming.result()
            if left:
                coming = thread.submit(unit_noise, shape, generators)
            yield to_device(noise, device, noise.dtype)


def unit_noise(shape: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
    """Unit noise [b, *shape], a row from each CPU generator: the same on every device."""
    return torch.cat([torch.randn((1, *shape), generator=generator) for generator in generators])


def to_device(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A copy of a CPU tensor there, for which the CPU does not wait."""
    tensor = tensor.to(dtype)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
