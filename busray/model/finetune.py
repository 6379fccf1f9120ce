"""Fine-tuning of LoRA or the whole UNet, of learned tokens (Gal et al. 2022, arXiv 2208.01618), or
of both at once.

Pure torch; the caller adds up gradients over workers. A training sample follows from (seed, step,
position in the global batch) and never from a worker's rank. So any number of workers trains the
same adapters, up to the rounding of a sum.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from busray import config
from busray.identity import seed_for
from busray.model.adapters import UNET_FOLDER, adapter_files, attach_lora, lora_bytes
from busray.model.base import vector_names
from busray.model.latents import TrainingImages
from busray.model.memory import in_slices
from busray.model.noise_schedule import changed_schedule, training_alphas, with_schedule
from busray.model.prompts import token_ids
from busray.model.tuned_networks import network_files
from busray.records import UserError

CLIP_NORM = 1.0  # of the gradients of a step
# Weight decay of the LoRA; tokens have none, as their vectors' length has a meaning.
LORA_DECAY = 1e-2
VALIDATION_IMAGES = 128  # that a validation loss is the mean of, at most
VALIDATION_BATCH = 16
# Its multiples modulo 1 are spread evenly over 0..1, however many there are.
GOLDEN_RATIO = 0.6180339887498949


@dataclass(frozen=True)
class TrainingSample:
    """What one position of a step's global batch is trained on."""

    row: int  # of the encoded images
    posterior_noise: Tensor  # [c, h, w]; with it latents are drawn from the autoencoder's posterior
    noise: Tensor  # [c, h, w]; the network has to find it in the noisy latents
    timestep: int
    dropped: bool  # no caption, so that the base keeps its unconditional prediction


class FineTuner:
    """Adapters in training on a loaded pipeline.

    tokens: class -> placeholder; empty without textual inversion. initializers: class -> word that
    its token starts from. captions: one for each image of `encoded`, mirrored rows aside.
    """

    def __init__(
        self,
        pipe: Any,
        settings: config.Adapters,
        tokens: Mapping[str, str],
        initializers: Mapping[str, str],
        encoded: TrainingImages,
        captions: Sequence[str],
        seed: int,
    ) -> None:
        if len(captions) != encoded.images:
            raise ValueError(f"{len(captions)} captions for {encoded.images} images")
        self.pipe, self.settings, self.encoded, self.seed = pipe, settings, encoded, seed
        self.captions = list(captions)
        parts = settings.method.split("+")
        self.lora, self.full = "lora" in parts, "full" in parts
        self.device = pipe.unet.device
        pipe.scheduler = with_schedule(pipe.scheduler, changed_schedule(settings, pipe.scheduler.config))
        self.timesteps: int = pipe.scheduler.config.num_train_timesteps
        self.alphas: Tensor = training_alphas(pipe.scheduler).to(self.device)
        if self.lora:
            attach_lora(pipe, settings, seed % 2**32)
        if self.full:
            pipe.text_encoder.requires_grad_(False)
            pipe.vae.requires_grad_(False)
            pipe.unet.requires_grad_(True)
        self.tokens = TokenRows(pipe, tokens, initializers, settings.vectors) if tokens else None
        self.parameters = self._named()
        self.half = works_in_bfloat16(settings.precision, self.device)
        if self.half:
            self._halve_frozen()
        if settings.gradient_checkpointing:
            pipe.unet.enable_gradient_checkpointing()
        if settings.compile:
            pipe.unet.compile()
        self.micro_batch = settings.micro_batch_size or settings.batch_size
        self.optimiser = torch.optim.AdamW(self._groups(), fused=self.device.type == "cuda")
        self.ema = self._copies() if settings.ema else None
        self.kept: dict[str, Tensor] | None = None  # values that the adapters will hold; None: the last
        self._ids: dict[str, Tensor] = {}
        for caption in sorted(set(captions)):
            self._token_ids(caption)  # UserError for one that is too long, before training begins
        self._orders: dict[int, np.ndarray] = {}

    def _named(self) -> dict[str, torch.nn.Parameter]:
        """Every trainable parameter by name, in an order that is the same in all workers."""
        named: dict[str, torch.nn.Parameter] = {}
        for network in ("unet", "text_encoder"):
            for name, parameter in getattr(self.pipe, network).named_parameters():
                learns = self.full and network == "unet"
                if parameter.requires_grad and (learns or "lora_" in name):
                    named[f"{network}.{name}"] = parameter
        if self.tokens is not None:
            named["tokens"] = self.tokens.rows
        return dict(sorted(named.items()))

    def _halve_frozen(self) -> None:
        """Keep what is not trained in bfloat16. Norms and biases stay: they are small, and a CPU
        wants those of a norm in float32."""
        for network in (self.pipe.unet, self.pipe.text_encoder, self.pipe.vae):
            for parameter in network.parameters():
                if not parameter.requires_grad and parameter.ndim > 1:
                    parameter.data = parameter.data.bfloat16()

    @contextmanager
    def arithmetic(self) -> Iterator[None]:
        """A context in which the networks compute as in training: in bfloat16 where it says so."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            yield

    @contextmanager
    def not_compiled(self) -> Iterator[None]:
        """A context for batches of other shapes, for which compiling again would not pay."""
        if not self.settings.compile:
            yield
            return
        with torch.compiler.set_stance("force_eager"):
            yield

    def _groups(self) -> list[dict[str, Any]]:
        """The optimiser's parameter groups; `base_lr` is a group's rate after warm-up."""
        groups = []
        if self.lora:
            lora: list[torch.nn.Parameter] = []
            magnitudes: list[torch.nn.Parameter] = []
            for name, parameter in self.parameters.items():
                if name != "tokens":
                    (magnitudes if "lora_magnitude" in name else lora).append(parameter)
            rate = self.settings.learning_rate
            groups.append({"params": lora, "lr": rate, "base_lr": rate, "weight_decay": LORA_DECAY})
            if magnitudes:  # DoRA's start as the norms of the base's weights: decay would shrink these
                groups.append({"params": magnitudes, "lr": rate, "base_lr": rate, "weight_decay": 0.0})
        if self.full:
            weights = [parameter for name, parameter in self.parameters.items() if name != "tokens"]
            rate = self.settings.learning_rate
            # Decay would pull the weights to 0, and not back to the base's.
            groups.append({"params": weights, "lr": rate, "base_lr": rate, "weight_decay": 0.0})
        if self.tokens is not None:
            rows, rate = [self.tokens.rows], self.settings.token_learning_rate
            groups.append({"params": rows, "lr": rate, "base_lr": rate, "weight_decay": 0.0})
        return groups

    def accumulate(self, step: int, positions: Sequence[int]) -> float:
        """Add the gradients of these positions of a step's global batch; returns their summed loss.

        A position's gradient is that of its loss over the global batch size, so that the workers'
        gradients add up to those of the mean loss.
        """
        total = 0.0

        def add(part: slice) -> None:
            nonlocal total
            total += self._add_gradients(step, positions[part])

        self.micro_batch = in_slices(len(positions), self.micro_batch, add)
        return total

    def _add_gradients(self, step: int, positions: Sequence[int]) -> float:
        """accumulate() of positions that go through the networks at once. All or none is added."""
        samples = [self._sample(step, position) for position in positions]
        rows, captions = [sample.row for sample in samples], []
        for sample in samples:
            captions.append("" if sample.dropped else self.captions[sample.row % self.encoded.images])
        mean, std, weight = self.encoded.batch(rows, self.device)
        # Drawn from the posterior anew at every step, as in latent diffusion's training.
        posterior_noise = torch.stack([sample.posterior_noise for sample in samples]).to(self.device)
        noise = torch.stack([sample.noise for sample in samples])
        timesteps = [sample.timestep for sample in samples]
        losses = self._losses(mean + std * posterior_noise, weight, noise, timesteps, captions)
        parameters = list(self.parameters.values())
        loss = losses.sum() / self.settings.batch_size
        # Not backward(): where memory ends half-way, it would leave a part of the gradients.
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        return float(losses.detach().sum())

    def _sample(self, step: int, position: int) -> TrainingSample:
        index = step * self.settings.batch_size + position
        generator = torch.Generator().manual_seed(seed_for(self.seed, "all", index, 0, "train"))
        shape = self.encoded.shape
        # The order of these draws is part of what a seed means.
        sample = TrainingSample(
            row=self._row(index),
            posterior_noise=torch.randn(shape, generator=generator),
            noise=torch.randn(shape, generator=generator),
            timestep=int(torch.randint(self.timesteps, (), generator=generator)),
            dropped=float(torch.rand((), generator=generator)) < self.settings.caption_dropout,
        )
        if not self.settings.noise_offset:
            return sample
        offset = self.settings.noise_offset * torch.randn((shape[0], 1, 1), generator=generator)
        return replace(sample, noise=sample.noise + offset)

    def _row(self, index: int) -> int:
        """The row of the training's index-th sample: each epoch is a seeded permutation."""
        rows = self.encoded.rows
        epoch = index // rows
        if epoch not in self._orders:
            # A batch may reach into the next epoch, so two orders are kept.
            order = np.random.default_rng([self.seed, epoch]).permutation(rows)
            self._orders = dict([(epoch, order), *self._orders.items()][:2])
        return int(self._orders[epoch][index % rows])

    def _losses(
        self, latents: Tensor, weight: Tensor, noise: Tensor, timesteps: Sequence[int], captions: Sequence[str]
    ) -> Tensor:
        """Loss of each image, [b]: the squared error of epsilon or v, averaged over content cells.

        latents and noise [b, c, h, w], weight [b, 1, h, w]: share of content in each cell.
        UserError where the base predicts neither epsilon nor v.
        """
        device = self.device
        latents, weight, noise = latents.to(device), weight.to(device), noise.to(device)
        steps = torch.tensor(timesteps, device=device)
        alpha = self.alphas[steps].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        kind = self.pipe.scheduler.config.prediction_type
        if kind == "epsilon":
            target = noise
        elif kind == "v_prediction":
            target = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
        else:
            known = "epsilon and v_prediction can be fine-tuned"
            raise UserError(f"base.path: its scheduler predicts {kind!r}; {known}")
        with self.arithmetic():
            predicted = self.pipe.unet(noisy, steps, self._embed(captions)).sample
        error = ((predicted.float() - target) ** 2 * weight).sum((1, 2, 3))
        # A mean over the content cells, or an image with much padding would count less.
        error = error / (weight.sum((1, 2, 3)) * latents.shape[1])
        return error * self._snr_weight(alpha.flatten(), kind)

    def _snr_weight(self, alpha: Tensor, kind: str) -> Tensor:
        """Min-SNR-gamma weights (Hang et al. 2023, arXiv 2303.09556) [b]; ones where it is off."""
        if self.settings.snr_gamma is None:
            return torch.ones_like(alpha)
        snr = alpha / (1 - alpha)
        return snr.clamp(max=self.settings.snr_gamma) / (snr if kind == "epsilon" else snr + 1)

    def _embed(self, captions: Sequence[str]) -> Tensor:
        """Text states [b, tokens, width]; equal captions go through the encoder once."""
        distinct = sorted(set(captions))
        ids = torch.cat([self._token_ids(caption) for caption in distinct]).to(self.device)
        states = self.pipe.text_encoder(ids)[0]
        return states[list(map(distinct.index, captions))]

    def _token_ids(self, caption: str) -> Tensor:
        if caption not in self._ids:
            self._ids[caption] = token_ids(self.pipe, caption)
        return self._ids[caption]

    def apply(self, step: int) -> None:
        """Clip the gradients, step the optimiser, move the average, clear the gradients."""
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), CLIP_NORM)
        factor = rate_factor(self.settings, step)
        for group in self.optimiser.param_groups:
            group["lr"] = group["base_lr"] * factor
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        if self.ema is not None:
            assert self.settings.ema is not None
            # A young average forgets sooner, or it would hold the start for hundreds of steps.
            decay = min(self.settings.ema, (1 + step) / (10 + step))
            for name, parameter in self.parameters.items():
                self.ema[name].lerp_(parameter.detach(), 1 - decay)

    @torch.no_grad()
    def validation_loss(
        self, encoded: TrainingImages, captions: Sequence[str], beat: Callable[[], None] = lambda: None
    ) -> float:
        """Mean loss over at most VALIDATION_IMAGES images, evenly spread over all.

        Noise and timesteps never change, so that losses of different steps can be compared. beat is
        called after each batch.
        """
        count = min(VALIDATION_IMAGES, encoded.images)
        rows: list[int] = np.unique(np.linspace(0, encoded.images - 1, count).round().astype(int)).tolist()
        total = 0.0
        for at in range(0, len(rows), VALIDATION_BATCH):
            batch = rows[at : at + VALIDATION_BATCH]
            noises = []
            for row in batch:
                rng = torch.Generator().manual_seed(seed_for(self.seed, "all", row, 0, "validate"))
                noises.append(torch.randn(encoded.shape, generator=rng))
            spread = (np.arange(at, at + len(batch)) * GOLDEN_RATIO) % 1.0
            timesteps = (spread * self.timesteps).astype(int).tolist()
            texts = [captions[row] for row in batch]
            latents, _, weight = encoded.batch(batch, self.device)
            with self.not_compiled():
                losses = self._losses(latents, weight, torch.stack(noises), timesteps, texts)
            total += float(losses.sum())
            beat()
        return total / len(rows)

    def state_bytes(self) -> bytes:
        """All that a resumed training needs, as safetensors: values, optimiser state, average,
        and the weights that were kept."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            tensors[f"value/{name}"] = parameter.detach()
            for key, value in self.optimiser.state.get(parameter, {}).items():
                tensors[f"optimiser/{key}/{name}"] = value
            if self.ema is not None:
                tensors[f"ema/{name}"] = self.ema[name]
            if self.kept is not None:
                tensors[f"kept/{name}"] = self.kept[name]
        return save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})

    def load_state(self, data: bytes) -> None:
        """Take over what state_bytes gave."""
        tensors = load(data)
        self._put({name: tensors[f"value/{name}"] for name in self.parameters})
        for name, parameter in self.parameters.items():
            state: dict[str, Tensor] = {}
            for key in ("step", "exp_avg", "exp_avg_sq"):
                stored = tensors.get(f"optimiser/{key}/{name}")
                if stored is not None:  # none before the first step
                    # The fused optimiser counts on the GPU, the other one on the CPU.
                    fused = self.optimiser.defaults["fused"]
                    state[key] = stored.to(self.device if fused or key != "step" else "cpu")
            self.optimiser.state[parameter] = state
            if self.ema is not None:
                self.ema[name] = tensors[f"ema/{name}"].to(self.device)
        kept = {name: tensors.get(f"kept/{name}") for name in self.parameters}
        self.kept = {name: value.to(self.device) for name, value in kept.items() if value is not None} or None

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """A context in which the parameters are their moving average, where that is on.

        The average is what the adapters will hold, so it is also what is validated.
        """
        raw = self._copies()
        self._put(raw if self.ema is None else self.ema)
        try:
            yield
        finally:
            self._put(raw)

    def keep(self) -> None:
        """Keep the present weights for the adapters, averaged where that is on."""
        with self.averaged_weights():
            self.kept = self._copies()

    @contextmanager
    def _given_out(self) -> Iterator[None]:
        """A context in which the parameters are what the adapters hold."""
        with self.averaged_weights():
            if self.kept is not None:
                self._put(self.kept)
            yield

    def adapter_files(self, metadata: Mapping[str, Any]) -> dict[str, bytes]:
        """file name -> bytes of the adapters: the weights that were kept, else the present ones."""
        with self._given_out():
            lora = lora_bytes(self.pipe, self.settings.text_encoder) if self.lora else None
            rows = self.tokens.by_token() if self.tokens is not None else {}
            whole = network_files(UNET_FOLDER, self.pipe.unet) if self.full else {}
            return {**whole, **adapter_files(lora, rows, metadata)}

    def _copies(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])

    def sample_pipe(self) -> Any:
        """A pipeline that shares the present weights: draw before the next step."""
        return type(self.pipe)(**self.pipe.components, requires_safety_checker=False)


def starting_vectors(words: Tensor, vectors: int) -> list[Tensor]:
    """What the vectors of a learned token start from, in the order of the words [n, width].

    With a word or more for each vector, each starts from the mean of its part of the phrase: so the
    phrase, which the base knows, is what the untrained token says. With fewer words all start from
    the mean of them.
    """
    if len(words) >= vectors:
        return [part.mean(0) for part in words.tensor_split(vectors)]
    # Equal vectors would get equal gradients for ever, so each starts a little longer.
    return [words.mean(0) * (1 + 0.05 * i) for i in range(vectors)]


def rate_factor(settings: config.Adapters, step: int) -> float:
    """The share of the learning rate that a step, from 0, is done with."""
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    if settings.learning_rate_schedule == "constant":
        return 1.0
    done = (step - settings.warmup) / (settings.steps - settings.warmup)
    return 0.5 * (1 + math.cos(math.pi * done))


def works_in_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether the networks of a training with adapters.precision compute in bfloat16 there."""
    if precision != "auto":
        return precision == "bfloat16"
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


class TokenRows:
    """Learned tokens: one parameter [tokens * vectors, width].

    A hook puts it into the embedding's output. So only these rows get gradients and optimiser
    state, not the whole embedding table.
    """

    def __init__(self, pipe: Any, tokens: Mapping[str, str], initializers: Mapping[str, str], vectors: int) -> None:
        tokenizer, encoder = pipe.tokenizer, pipe.text_encoder
        table = encoder.get_input_embeddings()
        self.tokens = sorted(set(tokens.values()))
        initial_vectors, names = [], []
        for token in self.tokens:
            # Classes may share a token; it starts from the first one's phrase.
            class_name = next(name for name, placeholder in tokens.items() if placeholder == token)
            ids = tokenizer(initializers[class_name], add_special_tokens=False).input_ids
            names += vector_names(token, vectors)
            initial_vectors += starting_vectors(table.weight[ids], vectors)
        if tokenizer.add_tokens(names) != len(names):
            known = f"a token of {', '.join(names)} is a word of this base already"
            raise UserError(f"classes: {known}; choose another")
        self.first = min(tokenizer.convert_tokens_to_ids(names))
        self.vectors = vectors
        encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        table = encoder.get_input_embeddings()
        table.requires_grad_(False)
        self.rows = torch.nn.Parameter(torch.stack(initial_vectors).detach().clone().float())
        table.register_forward_hook(self._replace)

    def _replace(self, module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """The embedding's output [..., width] with the learned rows in the places of their ids."""
        offsets = inputs[0] - self.first
        learned = (offsets >= 0) & (offsets < len(self.rows))
        rows = self.rows[offsets.clamp(0, len(self.rows) - 1)].to(output.dtype)
        return torch.where(learned[..., None], rows, output)

    def by_token(self) -> dict[str, Tensor]:
        """placeholder -> vectors [k, width]."""
        return dict(zip(self.tokens, self.rows.detach().split(self.vectors), strict=True))
