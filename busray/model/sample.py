"""Sampling: txt2img, then img2img over it (SDEdit: Meng et al. 2021, arXiv 2108.01073).

Batches have a fixed size, and every image has noise generators of its own. Training images are
padded with black around their content box. So at each step the latent cells outside an image's box
are set to those of black at that step's noise, and the padded pixels come out black.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor

from busray import config
from busray.failures import is_device_error
from busray.records import ContentBox, ImageSpec, UserError

SCHEDULERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "dpmsolver++": (diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
    "sde-dpmsolver++": (diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    # DDIM's default clips latents to -1..1, as if they were pixels.
    "ddim": (diffusers.DDIMScheduler, {"clip_sample": False}),
    "euler": (diffusers.EulerDiscreteScheduler, {}),
    "unipc": (diffusers.UniPCMultistepScheduler, {}),
}

# Text embeddings in memory at most: nearly every image may have a prompt of its own.
CACHED_PROMPTS = 256

# Images of a shard that must fail alike and in a row before a further batch that fails so is given
# up without trying its images one by one. A few bad prompts in a row are fewer.
FAILED_IN_A_ROW = 8


@dataclass(frozen=True)
class DrawnImage:
    """What was drawn for one specification."""

    spec: ImageSpec
    image: np.ndarray  # uint8 [s, s]
    txt2img: np.ndarray | None = None  # before refinement, uint8 [s, s], where it is kept
    problem: str | None = None  # why the image cannot be used; None where it can


class _FromLatents(diffusers.StableDiffusionImg2ImgPipeline):
    """img2img from latents with any number of channels; diffusers' own takes 4 channels only."""

    def prepare_latents(  # type: ignore[override]
        self, image: Any, timestep: Any, batch_size: int, num_images_per_prompt: int, dtype: Any, device: Any,
        generator: Any = None,
    ) -> Tensor:  # fmt: skip
        noise = _noises(image.shape[1:], generator).to(device, dtype)
        return self.scheduler.add_noise(image.to(device, dtype), noise, timestep)


class Sampler:
    """Draws images. The pipeline's adapters must be loaded; its scheduler is replaced."""

    def __init__(
        self, pipe: Any, sampling: config.Sampling, refine: config.Refine | None, size: int, keep_txt2img: bool
    ) -> None:
        self.pipe, self.sampling, self.refine, self.size = pipe, sampling, refine, size
        self.keep_txt2img = keep_txt2img and refine is not None
        pipe.scheduler = scheduler_for(sampling.scheduler, pipe.scheduler.config)
        self.device, self.dtype = pipe.unet.device, pipe.unet.dtype
        parts = {name: part for name, part in pipe.components.items() if name != "image_encoder"}
        self.img2img = _FromLatents(**parts, requires_safety_checker=False)
        channels = pipe.vae.config.latent_channels
        self.img2img.image_processor.register_to_config(vae_latent_channels=channels)
        self.img2img.set_progress_bar_config(disable=True)
        self.embeddings: dict[str, Tensor] = {}
        # (class, index) -> stored txt2img image uint8 [s, s]; a batch of such is only refined.
        self.txt2img_source: Mapping[tuple[str, int], np.ndarray] = {}
        self._black: Any = None

    def halve_batch(self) -> None:
        """Draw half as many images a forward pass from now on."""
        self.sampling = self.sampling.model_copy(update={"batch_size": self.sampling.batch_size // 2})

    @torch.no_grad()
    def draw(self, specs: Sequence[ImageSpec]) -> list[DrawnImage]:
        """An image for each of 1 .. batch_size specifications; ValueError for any other number."""
        size = self.sampling.batch_size
        if not 0 < len(specs) <= size:
            raise ValueError(f"{len(specs)} specifications for a batch of {size}")
        # The last one is repeated: a batch of another shape would round the same pixels otherwise.
        batch = [*specs, *[specs[-1]] * (size - len(specs))]
        latents, finite = None, np.ones(size, bool)
        first = self._existing_txt2img(batch)
        if first is None:
            latents = self._txt2img(batch)
            if self.refine is not None and self.refine.handover == "latent" and not self.keep_txt2img:
                finite = torch.isfinite(latents).flatten(1).all(1).cpu().numpy()  # no need of its pixels
            else:
                first, finite = self._pixels(latents, batch)
        final = first
        if self.refine is not None:
            final, refined_finite = self._pixels(self._img2img(batch, latents, first), batch)
            finite = finite & refined_finite
        assert final is not None
        drawn = []
        for i, spec in enumerate(specs):
            problem = None if finite[i] else "latents or pixels are not finite"
            txt2img = first[i] if self.keep_txt2img and first is not None else None
            drawn.append(DrawnImage(spec, final[i], txt2img, problem))
        return drawn

    def _existing_txt2img(self, batch: list[ImageSpec]) -> np.ndarray | None:
        """The batch's txt2img images uint8 [b, s, s], if all exist and pixels are enough."""
        if self.refine is None or self.refine.handover != "pixel":
            return None
        images = []
        for spec in batch:
            image = self.txt2img_source.get((spec.class_name, spec.index))
            if image is None:
                return None
            images.append(image)
        return np.stack(images)

    def _txt2img(self, batch: list[ImageSpec]) -> Tensor:
        """Scaled latents [b, c, h, w]."""
        pipe, side = self.pipe, self.size // self.pipe.vae_scale_factor
        shape = (pipe.unet.config.in_channels, side, side)
        generators = [_generator(spec.seed_txt2img) for spec in batch]
        noise = _noises(shape, generators)
        return pipe(
            **self._conditioning(batch, self.sampling.guidance_scale),
            height=self.size,
            width=self.size,
            num_inference_steps=self.sampling.steps,
            latents=noise.to(self.device, self.dtype),
            # They are past the first noise, so that a stochastic scheduler does not draw it again.
            generator=generators,
            output_type="latent",
            callback_on_step_end=self._hold_padding(batch, noise),
        ).images

    def _img2img(self, batch: list[ImageSpec], latents: Tensor | None, pixels: np.ndarray | None) -> Tensor:
        """Scaled latents [b, c, h, w] of the refined images.

        Of txt2img's latents, or of its pixels uint8 [b, s, s] where these are handed over.
        """
        assert self.refine is not None
        generators = [_generator(spec.seed_img2img) for spec in batch]
        if latents is None or self.refine.handover == "pixel":
            assert pixels is not None
            latents = self._encode(pixels, generators)
        # A broken image is reported already; its NaN must not reach the others of the batch.
        latents = torch.nan_to_num(latents)
        # Padding has noise of its own, so that an image's generators do not depend on its padding.
        noise = _noises(latents.shape[1:], [_generator(spec.seed_img2img ^ 1) for spec in batch])
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
        """Arguments for classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598)."""
        arguments: dict[str, Any] = {"guidance_scale": guidance_scale}
        arguments["prompt_embeds"] = torch.cat([self._embedding(spec.prompt) for spec in batch])
        if guidance_scale > 1:
            arguments["negative_prompt_embeds"] = torch.cat([self._embedding("")] * len(batch))
        return arguments

    def _embedding(self, prompt: str) -> Tensor:
        """Text embedding [1, tokens, width]; the CACHED_PROMPTS newest are kept."""
        if prompt not in self.embeddings:
            if len(self.embeddings) == CACHED_PROMPTS:  # the oldest one goes: dicts keep their order
                del self.embeddings[next(iter(self.embeddings))]
            check_length(self.pipe, prompt)
            guided = {"do_classifier_free_guidance": False}  # the empty prompt is encoded apart
            self.embeddings[prompt], _ = self.pipe.encode_prompt(prompt, self.device, 1, **guided)
        return self.embeddings[prompt]

    def _encode(self, pixels: np.ndarray, generators: list[torch.Generator]) -> Tensor:
        """Scaled latents of images uint8 [b, s, s], drawn from the autoencoder's posterior."""
        posterior = self.pipe.vae.encode(to_model(pixels).to(self.device, self.dtype)).latent_dist
        noise = _noises(posterior.mean.shape[1:], generators).to(self.device, self.dtype)
        return (posterior.mean + posterior.std * noise) * self.pipe.vae.config.scaling_factor

    def _pixels(self, latents: Tensor, batch: list[ImageSpec]) -> tuple[np.ndarray, np.ndarray]:
        """Latents [b, c, h, w] -> (images uint8 [b, s, s], finite bool [b])."""
        return decode_grey(self.pipe.vae, latents, [spec.box for spec in batch])

    def _hold_padding(self, batch: list[ImageSpec], noise: Tensor) -> Any:
        """A callback_on_step_end that sets padding to black; None where there is none."""
        factor = self.pipe.vae_scale_factor
        weights = [latent_weight(spec.box, self.size, factor) for spec in batch]
        content = torch.stack(weights).to(self.device) > 0
        if bool(content.all()):
            return None
        black = self._black_latents()
        noise = noise.to(self.device, self.dtype)
        levels: list[tuple[Tensor, Tensor]] = []

        def hold(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
            latents = values["latents"]
            if not step:
                # On the CPU and once a draw: a lookup at each step would wait for the GPU.
                levels[:] = noise_levels(pipe.scheduler, self.dtype)[-pipe.num_timesteps :]
            padding = black.expand_as(latents)
            if step + 1 < len(levels):  # after the last step latents have no noise
                alpha, sigma = levels[step + 1]
                padding = alpha * padding + sigma * noise
            return {"latents": torch.where(content, latents, padding)}

        return hold

    def _black_latents(self) -> Tensor:
        """Scaled latents [1, c, h, w] of a black square, computed once."""
        if self._black is None:
            vae, shape = self.pipe.vae, (1, 3, self.size, self.size)
            black = torch.full(shape, -1.0, device=self.device, dtype=self.dtype)
            self._black = vae.encode(black).latent_dist.mean * vae.config.scaling_factor
        return self._black


def draw_shard(sampler: Any, specs: Sequence[ImageSpec], beat: Callable[[int], None]) -> list[DrawnImage]:
    """Draw specifications in batches; beat(n) after every n images.

    An image that cannot be drawn comes with its `problem`. When a batch fails, each of its images
    is tried once more alone, unless whole batches fail: see _draw_batch. Where memory does not hold
    a batch, the sampler's batch is halved for good and the shard is begun again, so that all its
    images have one batch size. The error is raised where even one image is too many, and where the
    device is broken.
    """
    while True:
        try:
            drawn: list[DrawnImage] = []
            failed, kind = 0, ""  # images that failed in a row, and how
            while len(drawn) < len(specs):
                batch = specs[len(drawn) : len(drawn) + sampler.sampling.batch_size]
                images, how = _draw_batch(sampler, batch, kind if failed >= FAILED_IN_A_ROW else None)
                failed = (failed if how == kind else 0) + len(batch) if how else 0
                kind = how
                drawn += images
                beat(len(batch))
            return drawn
        except Exception as error:
            if not _out_of_memory(error) or sampler.sampling.batch_size == 1:
                raise
            beat(-len(drawn))  # they will be drawn, and counted, again
            sampler.halve_batch()
            torch.cuda.empty_cache()


def _draw_batch(sampler: Any, batch: Sequence[ImageSpec], expected: str | None) -> tuple[list[DrawnImage], str]:
    """(images, how all of them failed; empty where one is sound).

    expected: how the images before failed, if so many did that the recipe is to blame. A batch that
    fails in the same way is given up as it is: to draw its images one by one would cost as much
    again for each of them.
    """
    try:
        drawn = sampler.draw(batch)
    except Exception as error:
        if _concerns_no_image(error):
            raise
        kind = type(error).__name__
        if kind == expected:
            reason = f"{_reason(error)} (its whole batch, as those before)"
            return [_given_up(sampler, spec, reason) for spec in batch], kind
        # Which image failed is not known, so each is drawn alone.
        drawn = [_draw_alone(sampler, batch, i) for i in range(len(batch))]
        return drawn, kind if all(image.problem for image in drawn) else ""
    problems = {image.problem for image in drawn}
    kind = next(iter(problems)) or "" if len(problems) == 1 else ""
    if kind and kind == expected:
        return drawn, kind
    for i, image in enumerate(drawn):
        if image.problem is not None:
            drawn[i] = _draw_alone(sampler, batch, i)
            if kind and drawn[i].problem:  # all failed, and the first one twice
                break
    return drawn, kind if all(image.problem for image in drawn) else ""


def _draw_alone(sampler: Any, batch: Sequence[ImageSpec], place: int) -> DrawnImage:
    """The batch's image at this place, drawn among copies of itself.

    Batch shape and place are as before, so that its pixels are what they would be in a sound batch.
    """
    spec = batch[place]
    try:
        return sampler.draw([spec] * len(batch))[place]
    except Exception as error:
        if _concerns_no_image(error):
            raise
        return _given_up(sampler, spec, _reason(error))


def _given_up(sampler: Any, spec: ImageSpec, reason: str) -> DrawnImage:
    black = np.zeros((sampler.size, sampler.size), np.uint8)
    return DrawnImage(spec, black, black if sampler.keep_txt2img else None, reason)


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _out_of_memory(error: Exception) -> bool:
    # torch raises a plain RuntimeError where it is the machine's memory.
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator" in str(error)


def _concerns_no_image(error: Exception) -> bool:
    # On a broken device every later image would fail too.
    return _out_of_memory(error) or is_device_error(error)


def scheduler_for(name: str, settings: Any) -> Any:
    """The scheduler of this name, with the base's noise schedule and prediction type."""
    kind, options = SCHEDULERS[name]
    return kind.from_config(settings, **options)


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


def check_length(pipe: Any, prompt: str) -> None:
    """UserError for a prompt of more tokens than the text encoder reads: it drops the rest."""
    tokenizer, most = pipe.tokenizer, pipe.tokenizer.model_max_length
    ids = tokenizer(pipe.maybe_convert_prompt(prompt, tokenizer), verbose=False).input_ids
    if len(ids) > most:
        raise UserError(f"prompt {prompt!r} has {len(ids)} tokens; this base reads {most}")


def to_model(pixels: np.ndarray) -> Tensor:
    """Grey uint8 [b, h, w] -> float [b, 3, h, w] in -1..1."""
    return (torch.from_numpy(np.ascontiguousarray(pixels)).float() / 127.5 - 1)[:, None].repeat(1, 3, 1, 1)


def decode_grey(vae: Any, latents: Tensor, boxes: Sequence[ContentBox]) -> tuple[np.ndarray, np.ndarray]:
    """Scaled latents [b, c, h, w] -> (grey images uint8 [b, s, s], finite bool [b]).

    Images are black outside their boxes. One with a value that is not finite is all black.
    """
    decoded = vae.decode(latents / vae.config.scaling_factor).sample.float()
    finite = torch.isfinite(latents).flatten(1).all(1) & torch.isfinite(decoded).flatten(1).all(1)
    # The decoder gives three channels that are nearly alike; their mean is the grey value.
    grey = torch.nan_to_num(decoded).mean(1).clamp(-1, 1)
    images = ((grey + 1) * 127.5).round().to(torch.uint8).cpu().numpy()
    for image, box, good in zip(images, boxes, finite, strict=True):
        image[~content_mask(box, len(image))] = 0
        if not good:
            image[:] = 0
    return images, finite.cpu().numpy()


def content_mask(box: ContentBox, size: int) -> np.ndarray:
    """bool [size, size], true inside the box."""
    mask = np.zeros((size, size), bool)
    mask[box.top : box.top + box.height, box.left : box.left + box.width] = True
    return mask


def latent_weight(box: ContentBox, size: int, factor: int) -> Tensor:
    """float [1, h, w]: share of content in each latent cell of factor x factor pixels."""
    mask = torch.from_numpy(content_mask(box, size)).float()[None]
    return torch.nn.functional.avg_pool2d(mask, factor)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


def _noises(shape: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
    """Unit noise [b, *shape], a row from each CPU generator: the same on every device."""
    return torch.cat([torch.randn((1, *shape), generator=generator) for generator in generators])
