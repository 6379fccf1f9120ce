"""Sampling: txt2img, then img2img over it (SDEdit: Meng et al. 2021, arXiv 2108.01073).

Batches have a fixed size, and every image has noise generators of its own. Training images are
padded with black around their content box. So at each step the latent cells outside an image's box
are set to those of black at that step's noise, and the padded pixels come out black.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from busray import config
from busray.failures import is_compile_error, is_device_error
from busray.model.memory import in_slices, is_out_of_memory
from busray.model.prompts import PromptTexts
from busray.model.reuse import ReusingUnet
from busray.model.steps import (
    Guidance,
    Padding,
    denoise,
    first_step,
    noise_levels,
    scheduler_for,
    to_device,
    unit_noise,
)
from busray.records import Computing, ContentBox, ImageSpec

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


class Sampler:
    """Draws images. The pipeline's adapters must be loaded; its scheduler is replaced."""

    def __init__(
        self, pipe: Any, sampling: config.Sampling, refine: config.Refine | None, size: int, keep_txt2img: bool
    ) -> None:
        self.pipe, self.sampling, self.refine, self.size = pipe, sampling, refine, size
        self.keep_txt2img = keep_txt2img and refine is not None
        pipe.scheduler = scheduler_for(sampling.scheduler, pipe.scheduler.config)
        self.device, self.dtype = pipe.unet.device, pipe.unet.dtype
        self.unet = pipe.unet if sampling.deep_every == 1 else ReusingUnet(pipe.unet, sampling.deep_every)
        self.computing = Computing(str(self.dtype).removeprefix("torch."))  # unless prepare() did more
        # Images decoded at once. Only a memory that is too small makes them fewer than a batch.
        self.decode_batch = sampling.batch_size
        self.texts = PromptTexts(pipe)
        # (class, index) -> stored txt2img image uint8 [s, s]; a batch of such is only refined.
        self.txt2img_source: Mapping[tuple[str, int], np.ndarray] = {}
        self._black: Any = None

    @property
    def is_float32(self) -> bool:
        return self.dtype == torch.float32

    @property
    def fewer_decoded(self) -> int:
        """Images decoded at once where memory holds no whole batch, else 0."""
        return self.decode_batch if self.decode_batch < self.sampling.batch_size else 0

    def halve_batch(self) -> None:
        """Draw half as many images a forward pass from now on."""
        self.sampling = self.sampling.model_copy(update={"batch_size": self.sampling.batch_size // 2})
        self.decode_batch = self.sampling.batch_size

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

    @torch.no_grad()
    def warm_up(self) -> None:
        """Run the networks once at each shape of a batch, so that they are compiled."""
        count, side = self.sampling.batch_size, self.size // self.pipe.vae_scale_factor
        latents = torch.zeros(
            (count, self.pipe.unet.config.in_channels, side, side), device=self.device, dtype=self.dtype
        )
        text, empty = self.texts([""] * count), self.texts([""]).expand(count, -1, -1)
        scales = [self.sampling.guidance_scale, *([self.refine.guidance_scale] if self.refine else [])]
        kinds = [Guidance(2.0, text, empty)] if max(scales) > 1 else []
        if min(scales) <= 1 or self.sampling.guidance_interval is not None:
            kinds.append(Guidance(1.0, text, None))
        for guidance in kinds:
            self.pipe.scheduler.set_timesteps(1)
            self._denoise(latents, guidance, [_generator(0)] * count)
        decode_grey(self.pipe.vae, latents, [ContentBox(0, 0, self.size, self.size)] * count)

    @torch.no_grad()
    def draw_in_float32(self, spec: ImageSpec) -> DrawnImage:
        """The image alone, in float32 and not compiled: for one that is not finite otherwise."""
        with _float32(self.pipe):
            sampling = self.sampling.model_copy(update={"batch_size": 1})
            other = Sampler(self.pipe, sampling, self.refine, self.size, self.keep_txt2img)
            other.txt2img_source = self.txt2img_source
            return other.draw([spec])[0]

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
        generators = [_generator(spec.seed_txt2img) for spec in batch]
        noise = self._there(unit_noise((pipe.unet.config.in_channels, side, side), generators))
        pipe.scheduler.set_timesteps(self.sampling.steps)
        start = noise * pipe.scheduler.init_noise_sigma
        # The generators are past the first noise: a stochastic scheduler does not draw it again.
        guidance, padding = self._guidance(batch, self.sampling.guidance_scale), self._padding(batch, noise)
        return self._denoise(start, guidance, generators, padding)

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
        shape, scheduler = latents.shape[1:], self.pipe.scheduler
        # Padding has noise of its own, so that an image's generators do not depend on its padding.
        noise = unit_noise(shape, [_generator(spec.seed_img2img ^ 1) for spec in batch])
        scheduler.set_timesteps(self.refine.steps)
        first = first_step(self.refine.steps, self.refine.strength)
        alpha, sigma = noise_levels(scheduler, self.dtype)[first]
        start = alpha * latents + sigma * self._there(unit_noise(shape, generators))
        guidance, padding = self._guidance(batch, self.refine.guidance_scale), self._padding(batch, self._there(noise))
        return self._denoise(start, guidance, generators, padding, first)

    def _denoise(
        self,
        start: Tensor,
        guidance: Guidance,
        generators: Sequence[torch.Generator],
        padding: Padding | None = None,
        first: int = 0,
    ) -> Tensor:
        """denoise() by this sampler's networks; its scheduler has its timesteps."""
        if isinstance(self.unet, ReusingUnet):
            self.unet.begin()
        return denoise(self.unet, self.pipe.scheduler, start, guidance, generators, padding, first)

    def _guidance(self, batch: list[ImageSpec], scale: float) -> Guidance:
        prompts = [spec.prompt for spec in batch]
        if scale <= 1:
            return Guidance(scale, self.texts(prompts), None)
        texts = self.texts([*prompts, self.sampling.negative_prompt])
        empty = texts[-1:].expand(len(batch), -1, -1)
        return Guidance(scale, texts[:-1], empty, self.sampling.guidance_interval)

    def _encode(self, pixels: np.ndarray, generators: list[torch.Generator]) -> Tensor:
        """Scaled latents of images uint8 [b, s, s], drawn from the autoencoder's posterior."""
        posterior = self.pipe.vae.encode(to_model(pixels).to(self.device, self.dtype)).latent_dist
        noise = self._there(unit_noise(posterior.mean.shape[1:], generators))
        return (posterior.mean + posterior.std * noise) * self.pipe.vae.config.scaling_factor

    def _pixels(self, latents: Tensor, batch: list[ImageSpec]) -> tuple[np.ndarray, np.ndarray]:
        """Latents [b, c, h, w] -> (images uint8 [b, s, s], finite bool [b])."""
        parts: list[tuple[np.ndarray, np.ndarray]] = []
        boxes = [spec.box for spec in batch]

        def decode(part: slice) -> None:
            parts.append(decode_grey(self.pipe.vae, latents[part], boxes[part]))

        self.decode_batch = in_slices(len(batch), self.decode_batch, decode)
        return np.concatenate([images for images, _ in parts]), np.concatenate([finite for _, finite in parts])

    def _padding(self, batch: list[ImageSpec], noise: Tensor) -> Padding | None:
        """What holds the padding black; None where there is none. noise: of the first step."""
        factor = self.pipe.vae_scale_factor
        content = torch.stack([latent_weight(spec.box, self.size, factor) for spec in batch]) > 0
        if bool(content.all()):
            return None
        return Padding(content.to(self.device), self._black_latents(), noise)

    def _black_latents(self) -> Tensor:
        """Scaled latents [1, c, h, w] of a black square, computed once."""
        if self._black is None:
            vae, shape = self.pipe.vae, (1, 3, self.size, self.size)
            black = torch.full(shape, -1.0, device=self.device, dtype=self.dtype)
            self._black = vae.encode(black).latent_dist.mean * vae.config.scaling_factor
        return self._black

    def _there(self, noise: Tensor) -> Tensor:
        return to_device(noise, self.device, self.dtype)


@contextmanager
def _float32(network: Any) -> Iterator[None]:
    """The network, or a pipeline, in float32 and not compiled; then as it was, bit for bit."""
    before = network.dtype
    with torch.compiler.set_stance("force_eager"):
        try:
            network.to(torch.float32)
            yield
        finally:
            network.to(before)


def draw_shard(sampler: Any, specs: Sequence[ImageSpec], beat: Callable[[int], None]) -> list[DrawnImage]:
    """Draw specifications in batches; beat(n) after every n images.

    An image that cannot be drawn comes with its `problem`. When a batch raises an error, each of
    its images is tried once more alone, unless whole batches fail: see _draw_batch. An image that
    is not finite in a 16-bit format is drawn once more in float32. Where memory does not hold a
    batch, or not its decoding, the sampler's batch is halved for good and the shard is begun again,
    so that all its images have one batch size. The error is raised where even one image is too
    many, and where the device is broken.
    """
    while True:
        decode_batch = sampler.decode_batch
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
            if sampler.decode_batch == decode_batch:
                return drawn
        except Exception as error:
            if not is_out_of_memory(error) or sampler.sampling.batch_size == 1:
                raise
            sampler.halve_batch()
            torch.cuda.empty_cache()
        beat(-len(drawn))  # they will be drawn, and counted, again


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
    if sampler.is_float32:  # it would fail again
        return drawn, kind
    for i, image in enumerate(drawn):
        if image.problem is not None:
            drawn[i] = sampler.draw_in_float32(image.spec)
            if kind and drawn[i].problem:  # all failed, and the first one in float32 too
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


def _concerns_no_image(error: Exception) -> bool:
    # On a broken device, and without a compiler, every later image would fail too.
    return is_out_of_memory(error) or is_device_error(error) or is_compile_error(error)


def to_model(pixels: np.ndarray) -> Tensor:
    """Grey uint8 [b, h, w] -> float [b, 3, h, w] in -1..1."""
    return (torch.from_numpy(np.ascontiguousarray(pixels)).float() / 127.5 - 1)[:, None].repeat(1, 3, 1, 1)


def decode_grey(vae: Any, latents: Tensor, boxes: Sequence[ContentBox]) -> tuple[np.ndarray, np.ndarray]:
    """Scaled latents [b, c, h, w] -> (grey images uint8 [b, s, s], finite bool [b]).

    Images are black outside their boxes. One with a value that is not finite is all black: where
    its latents are finite, it was decoded in float32 too.
    """
    latents_finite = torch.isfinite(latents).flatten(1).all(1)
    decoded = _decode(vae, latents)
    finite = latents_finite & torch.isfinite(decoded).flatten(1).all(1)
    if vae.dtype != torch.float32:
        for row in torch.nonzero(latents_finite & ~finite).flatten().tolist():  # rarely any
            with _float32(vae):
                decoded[row] = _decode(vae, latents[row : row + 1].float())[0]
            finite[row] = torch.isfinite(decoded[row]).all()
    # The decoder gives three channels that are nearly alike; their mean is the grey value.
    grey = torch.nan_to_num(decoded).mean(1).clamp(-1, 1)
    images = ((grey + 1) * 127.5).round().to(torch.uint8).cpu().numpy()
    for image, box, good in zip(images, boxes, finite.tolist(), strict=True):
        image[~content_mask(box, len(image))] = 0
        if not good:
            image[:] = 0
    return images, finite.cpu().numpy()


def _decode(vae: Any, latents: Tensor) -> Tensor:
    """float32 [b, 3, s, s]."""
    return vae.decode(latents / vae.config.scaling_factor).sample.float()


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
