"""Sampling: txt2img, then img2img over it, in fixed-size batches with one noise generator an image.

Where an image's content box is smaller than the square, the latent cells outside it are held at each step to the noised
latents of black, as the padding of the training images is, and the padded pixels come out black.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
    UniPCMultistepScheduler,
)

from busray import config
from busray.records import ContentBox, ImageSpec, UserError

SCHEDULERS = {
    "dpmsolver++": DPMSolverMultistepScheduler,
    "sde-dpmsolver++": DPMSolverMultistepScheduler,
    "ddim": DDIMScheduler,
    "euler": EulerDiscreteScheduler,
    "unipc": UniPCMultistepScheduler,
}


KEPT_PROMPTS = 256
"""Prompts whose text embeddings are kept: with columns filled in, nearly every image may have a prompt of its own."""


@dataclass(frozen=True)
class Drawn:
    """An image uint8 [s, s], the one before refinement where kept, and why it cannot be used, if so."""

    spec: ImageSpec
    image: np.ndarray
    txt2img: np.ndarray | None = None
    problem: str | None = None


class _FromLatents(StableDiffusionImg2ImgPipeline):
    """img2img that starts from latents of any number of channels (diffusers' own takes exactly 4 as latents)."""

    def prepare_latents(  # type: ignore[override]
        self, image: Any, timestep: Any, batch_size: int, num_images_per_prompt: int, dtype: Any, device: Any,
        generator: Any = None,
    ) -> torch.Tensor:  # fmt: skip
        noise = torch.cat([_noise(image.shape[1:], one) for one in generator]).to(device, dtype)
        return self.scheduler.add_noise(image.to(device, dtype), noise, timestep)


class Sampler:
    """Draws specifications. The pipeline's adapters must be loaded already; its scheduler is replaced."""

    def __init__(
        self, pipe: Any, sampling: config.Sampling, refine: config.Refine | None, size: int, keep_txt2img: bool
    ) -> None:
        self.pipe = pipe
        self.sampling = sampling
        self.refine = refine
        self.size = size
        self.keep_txt2img = keep_txt2img and refine is not None
        pipe.scheduler = scheduler_for(sampling.scheduler, pipe.scheduler.config)
        self.device, self.dtype = pipe.unet.device, pipe.unet.dtype
        parts = {name: part for name, part in pipe.components.items() if name != "image_encoder"}
        self.img2img = _FromLatents(**parts, requires_safety_checker=False)
        self.img2img.image_processor.register_to_config(vae_latent_channels=pipe.vae.config.latent_channels)
        self.img2img.set_progress_bar_config(disable=True)
        self.embeddings: dict[str, torch.Tensor] = {}
        self.held: Mapping[tuple[str, int], np.ndarray] = {}
        """(class, index) -> txt2img image uint8 [s, s] that is there already: a batch of such is refined only."""
        self._black: Any = None

    def halve_batch(self) -> None:
        """Half the images a forward pass from now on."""
        half = self.sampling.batch_size // 2
        self.sampling = self.sampling.model_copy(update={"batch_size": half})

    @torch.no_grad()
    def draw(self, specs: Sequence[ImageSpec]) -> list[Drawn]:
        """Up to sampling.batch_size images; the batch is padded to that size, so its shape never changes."""
        size = self.sampling.batch_size
        if not 0 < len(specs) <= size:
            raise ValueError(f"{len(specs)} specifications for a batch of {size}")
        batch = [*specs, *[specs[-1]] * (size - len(specs))]
        before, (first, problems) = None, self._held(batch)
        if first is None:
            before = self._txt2img(batch)
            first, problems = self._pixels(before, batch)
        final = first
        if self.refine is not None:
            after = self._img2img(batch, before, first)
            final, later = self._pixels(after, batch)
            problems = [a or b for a, b in zip(problems, later, strict=True)]
        return [
            Drawn(spec, final[i], first[i] if self.keep_txt2img else None, problems[i]) for i, spec in enumerate(specs)
        ]

    def _held(self, batch: list[ImageSpec]) -> tuple[np.ndarray | None, list[str | None]]:
        """The batch's images before refinement, if all are there and refinement starts from pixels; no problems."""
        found = [self.held.get((spec.class_name, spec.index)) for spec in batch]
        images = [image for image in found if image is not None]
        if self.refine is None or self.refine.handover != "pixel" or len(images) < len(batch):
            return None, []
        return np.stack(images), [None] * len(batch)

    def _txt2img(self, batch: list[ImageSpec]) -> torch.Tensor:
        pipe, factor = self.pipe, self.pipe.vae_scale_factor
        shape = (pipe.unet.config.in_channels, self.size // factor, self.size // factor)
        generators = [_generator(spec.seed_txt2img) for spec in batch]
        noise = torch.cat([_noise(shape, one) for one in generators])
        return pipe(
            **self._conditioning(batch, self.sampling.guidance_scale),
            height=self.size,
            width=self.size,
            num_inference_steps=self.sampling.steps,
            latents=noise.to(self.device, self.dtype),
            generator=generators,  # past the first noise, which a stochastic scheduler must not draw again
            output_type="latent",
            callback_on_step_end=self._hold_padding(batch, noise),
        ).images

    def _img2img(self, batch: list[ImageSpec], latents: torch.Tensor | None, pixels: np.ndarray) -> torch.Tensor:
        assert self.refine is not None
        generators = [_generator(spec.seed_img2img) for spec in batch]
        if latents is None or self.refine.handover == "pixel":
            latents = self._encode(pixels, generators)
        latents = torch.nan_to_num(latents)  # a broken image is reported already; it must not touch its neighbours
        noise = torch.cat([_noise(latents.shape[1:], _generator(spec.seed_img2img ^ 1)) for spec in batch])
        done: Any = self.img2img(
            **self._conditioning(batch, self.refine.guidance_scale),
            image=latents,
            strength=self.refine.strength,
            num_inference_steps=self.refine.steps,
            generator=generators,
            output_type="latent",
            callback_on_step_end=self._hold_padding(batch, noise),
        )
        return done.images

    def _conditioning(self, batch: list[ImageSpec], guidance_scale: float) -> dict[str, Any]:
        prompts = torch.cat([self._embedding(spec.prompt) for spec in batch])
        negative = torch.cat([self._embedding("")] * len(batch)) if guidance_scale > 1 else None
        return {"prompt_embeds": prompts, "negative_prompt_embeds": negative, "guidance_scale": guidance_scale}

    def _embedding(self, prompt: str) -> torch.Tensor:
        """Text embedding [1, tokens, width] of a prompt, computed once while it is among the last KEPT_PROMPTS."""
        if prompt not in self.embeddings:
            if len(self.embeddings) == KEPT_PROMPTS:
                del self.embeddings[next(iter(self.embeddings))]
            check_length(self.pipe, prompt)
            encoded, _ = self.pipe.encode_prompt(prompt, self.device, 1, do_classifier_free_guidance=False)
            self.embeddings[prompt] = encoded
        return self.embeddings[prompt]

    def _encode(self, pixels: np.ndarray, generators: list[torch.Generator]) -> torch.Tensor:
        """Scaled latents of grey images uint8 [b, s, s], sampled from the posterior with each image's own noise."""
        posterior = self.pipe.vae.encode(to_model(pixels).to(self.device, self.dtype)).latent_dist
        noise = torch.cat([_noise(posterior.mean.shape[1:], one) for one in generators]).to(self.device, self.dtype)
        return (posterior.mean + posterior.std * noise) * self.pipe.vae.config.scaling_factor

    def _pixels(self, latents: torch.Tensor, batch: list[ImageSpec]) -> tuple[np.ndarray, list[str | None]]:
        """(uint8 [b, s, s] with black padding, problem or None an image) of latents [b, c, h, w]."""
        images, finite = decode_grey(self.pipe.vae, latents, [spec.box for spec in batch])
        return images, [None if good else "latents or pixels are not finite" for good in finite]

    def _hold_padding(self, batch: list[ImageSpec], noise: torch.Tensor) -> Any:
        """A callback_on_step_end that puts black back where the batch's images are padding; None where none is."""
        factor = self.pipe.vae_scale_factor
        keep = torch.stack([latent_weight(spec.box, self.size, factor) > 0 for spec in batch]).to(self.device)
        if bool(keep.all()):
            return None
        black = self._black_latents()
        noise = noise.to(self.device, self.dtype)

        def hold(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
            latents = values["latents"]
            following = _next_timestep(pipe.scheduler, timestep)
            padding = black.expand_as(latents)
            if following is not None:
                padding = pipe.scheduler.add_noise(padding, noise, following.reshape(1).expand(len(latents)))
            return {"latents": torch.where(keep, latents, padding)}

        return hold

    def _black_latents(self) -> torch.Tensor:
        if self._black is None:
            black = torch.full((1, 3, self.size, self.size), -1.0, device=self.device, dtype=self.dtype)
            self._black = self.pipe.vae.encode(black).latent_dist.mean * self.pipe.vae.config.scaling_factor
        return self._black


def draw_shard(sampler: Any, specs: Sequence[ImageSpec], told: Callable[[int], None]) -> list[Drawn]:
    """Draws specs in batches; told(n) after every n images. An image that cannot be drawn comes with its `problem`.

    One bad image never costs its neighbours: what fails in a batch is tried once more by itself, in its old place.
    Where memory, the device's or the machine's, does not hold a batch, the sampler's batch is halved for good and the
    shard begun again, so that one shard has one batch size; that error is the caller's where even one image is too
    many. So is that of a device that broke (torch.AcceleratorError): it would fail every later image.
    """
    while True:
        try:
            drawn: list[Drawn] = []
            while len(drawn) < len(specs):
                batch = specs[len(drawn) : len(drawn) + sampler.sampling.batch_size]
                drawn += _draw_batch(sampler, batch)
                told(len(batch))
            return drawn
        except Exception as error:
            if not out_of_memory(error) or sampler.sampling.batch_size == 1:
                raise
            told(-len(drawn))
            sampler.halve_batch()
            torch.cuda.empty_cache()


def _draw_batch(sampler: Any, batch: Sequence[ImageSpec]) -> list[Drawn]:
    try:
        drawn = sampler.draw(batch)
    except Exception as error:  # of which image is not known: each by itself will tell
        if _of_no_image(error):
            raise
        return [_draw_alone(sampler, batch, i) for i in range(len(batch))]
    return [one if one.problem is None else _draw_alone(sampler, batch, i) for i, one in enumerate(drawn)]


def _draw_alone(sampler: Any, batch: Sequence[ImageSpec], place: int) -> Drawn:
    """The image at that place with copies of itself for neighbours: the same pixels as among healthy ones."""
    spec = batch[place]
    try:
        return sampler.draw([spec] * len(batch))[place]
    except Exception as error:
        if _of_no_image(error):
            raise
        black = np.zeros((sampler.size, sampler.size), np.uint8)
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return Drawn(spec, black, black if sampler.keep_txt2img else None, reason)


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory is used up; torch raises a plain RuntimeError where it is the machine's."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator" in str(error)


def _of_no_image(error: Exception) -> bool:
    return out_of_memory(error) or isinstance(error, torch.AcceleratorError)


def scheduler_for(name: str, settings: Any) -> Any:
    """A scheduler of config's name with the base's noise schedule and prediction type."""
    extra: dict[str, Any] = {
        "dpmsolver++": {"algorithm_type": "dpmsolver++"},
        "sde-dpmsolver++": {"algorithm_type": "sde-dpmsolver++"},
        "ddim": {"clip_sample": False},  # its default cuts latents off at 1, as if they were pixels
    }.get(name, {})
    return SCHEDULERS[name].from_config(settings, **extra)


def check_length(pipe: Any, prompt: str) -> None:
    """UserError for a prompt that the text encoder would cut off in silence."""
    tokenizer = pipe.tokenizer
    ids = tokenizer(pipe.maybe_convert_prompt(prompt, tokenizer), verbose=False).input_ids
    if len(ids) > tokenizer.model_max_length:
        raise UserError(f"prompt {prompt!r} has {len(ids)} tokens; this base reads {tokenizer.model_max_length}")


def to_model(pixels: np.ndarray) -> torch.Tensor:
    """Grey uint8 [b, h, w] -> float [b, 3, h, w] in -1..1."""
    return (torch.from_numpy(np.ascontiguousarray(pixels)).float() / 127.5 - 1)[:, None].repeat(1, 3, 1, 1)


def decode_grey(vae: Any, latents: torch.Tensor, boxes: Sequence[ContentBox]) -> tuple[np.ndarray, torch.Tensor]:
    """(grey images uint8 [b, s, s], black outside their boxes; bool [b]: whether all was finite, else all is black) of
    scaled latents [b, c, h, w]."""
    decoded = vae.decode(latents / vae.config.scaling_factor).sample.float()
    finite = torch.isfinite(latents).flatten(1).all(1) & torch.isfinite(decoded).flatten(1).all(1)
    grey = torch.nan_to_num(decoded).mean(1).clamp(-1, 1)
    images = ((grey + 1) * 127.5).round().to(torch.uint8).cpu().numpy()
    for image, box, good in zip(images, boxes, finite, strict=True):
        image[~content_mask(box, len(image))] = 0
        if not good:
            image[:] = 0
    return images, finite


def content_mask(box: ContentBox, size: int) -> np.ndarray:
    """bool [size, size]: where the content is."""
    mask = np.zeros((size, size), bool)
    mask[box.top : box.top + box.height, box.left : box.left + box.width] = True
    return mask


def latent_weight(box: ContentBox, size: int, factor: int) -> torch.Tensor:
    """float [1, h, w]: the share of each latent cell (factor x factor pixels) that is content."""
    mask = torch.from_numpy(content_mask(box, size)).float()[None, None]
    return torch.nn.functional.avg_pool2d(mask, factor)[0]


def _generator(seed: int) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


def _noise(shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """Unit noise [1, *shape], drawn on the CPU so that it is the same on every device."""
    return torch.randn((1, *shape), generator=generator)


def _next_timestep(scheduler: Any, timestep: Any) -> torch.Tensor | None:
    """The timestep that the latents are at after the step at `timestep`; None after the last."""
    later = scheduler.timesteps[scheduler.timesteps < timestep]
    return later[0] if len(later) else None
