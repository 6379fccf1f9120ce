"""Fine-tuning of LoRA, of learned tokens (Gal et al. 2022, arXiv 2208.01618), or of both at once.

Pure torch; the caller adds up gradients over workers. A training sample follows from (seed, step,
position in the global batch) and never from a worker's rank. So any number of workers trains the
same adapters, up to the rounding of a sum.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save

from busray import config
from busray.identity import seed_for
from busray.model.adapters import adapter_files, attach_lora, lora_bytes
from busray.model.base import vector_names
from busray.model.latents import EncodedImages
from busray.records import UserError

CLIP_NORM = 1.0
"""Norm that the gradients of a step are clipped to."""

LORA_DECAY = 1e-2
"""Weight decay of the LoRA; tokens have none, as their vectors' length has a meaning."""

VALIDATION_IMAGES = 128
"""Images at most that a validation loss is the mean of."""

VALIDATION_BATCH = 16

GOLDEN_RATIO = 0.6180339887498949
"""Its multiples modulo 1 are spread evenly over 0..1, however many there are."""


@dataclass(frozen=True)
class TrainingSample:
    """What one position of a step's global batch is trained on."""

    row: int
    """Of the encoded images."""
    posterior_noise: torch.Tensor
    """Unit noise [c, h, w]; with it the latents are drawn from the autoencoder's posterior."""
    noise: torch.Tensor
    """Unit noise [c, h, w] that the network has to find in the noisy latents."""
    timestep: int
    dropped: bool
    """True where the caption is left out, so that the base keeps its unconditional prediction."""


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
        encoded: EncodedImages,
        captions: Sequence[str],
        seed: int,
    ) -> None:
        if len(captions) != encoded.images:
            raise ValueError(f"{len(captions)} captions for {encoded.images} images")
        self.pipe, self.settings, self.encoded, self.seed = pipe, settings, encoded, seed
        self.captions = list(captions)
        self.lora = "lora" in settings.method.split("+")
        self.device = pipe.unet.device
        if self.lora:
            attach_lora(pipe, settings, seed % 2**32)
        self.tokens = TokenRows(pipe, tokens, initializers, settings.vectors) if tokens else None
        self.parameters = self._named()
        self.optimiser = torch.optim.AdamW(self._groups())
        self.ema = {n: p.detach().clone() for n, p in self.parameters.items()} if settings.ema else None
        self._ids: dict[str, torch.Tensor] = {}
        for caption in sorted(set(captions)):
            self._token_ids(caption)  # UserError for one that is too long, before training begins
        self._orders: dict[int, np.ndarray] = {}

    def _named(self) -> dict[str, torch.nn.Parameter]:
        """Every trainable parameter by name, in an order that is the same in all workers."""
        networks = {"unet": self.pipe.unet, "text_encoder": self.pipe.text_encoder} if self.lora else {}
        named: dict[str, torch.nn.Parameter] = {}
        for network, module in networks.items():
            for name, parameter in module.named_parameters():
                if "lora_" in name and parameter.requires_grad:
                    named[f"{network}.{name}"] = parameter
        if self.tokens is not None:
            named["tokens"] = self.tokens.rows
        return dict(sorted(named.items()))

    def _groups(self) -> list[dict[str, Any]]:
        """The optimiser's parameter groups; `base_lr` is a group's rate after warm-up."""
        lora = [p for n, p in self.parameters.items() if n != "tokens"]
        rows = [p for n, p in self.parameters.items() if n == "tokens"]
        groups = [
            {"params": lora, "lr": self.settings.learning_rate, "weight_decay": LORA_DECAY},
            {"params": rows, "lr": self.settings.token_learning_rate, "weight_decay": 0.0},
        ]
        return [{**group, "base_lr": group["lr"]} for group in groups if group["params"]]

    def trainable(self) -> list[torch.nn.Parameter]:
        """The parameters whose gradients the caller adds up; their order is the same everywhere."""
        return list(self.parameters.values())

    # ---- a step ----

    def accumulate(self, step: int, positions: Sequence[int]) -> float:
        """Add the gradients of these positions of a step's global batch; returns their summed loss.

        A position's gradient is that of its loss over the global batch size, so that the workers'
        gradients add up to those of the mean loss.
        """
        if not positions:
            return 0.0
        samples = [self._sample(step, position) for position in positions]
        rows = torch.tensor([sample.row for sample in samples])
        posterior_noise = torch.stack([sample.posterior_noise for sample in samples])
        noise = torch.stack([sample.noise for sample in samples])
        timesteps = torch.tensor([sample.timestep for sample in samples])
        captions = [self._caption(sample) for sample in samples]
        latents = self.encoded.mean[rows] + self.encoded.std[rows] * posterior_noise
        losses = self._losses(latents, self.encoded.weight[rows], noise, timesteps, captions)
        (losses.sum() / self.settings.batch_size).backward()
        return float(losses.detach().sum())

    def _sample(self, step: int, position: int) -> TrainingSample:
        index = step * self.settings.batch_size + position
        generator = torch.Generator().manual_seed(seed_for(self.seed, "all", index, 0, "train"))
        shape = self.encoded.mean.shape[1:]
        # The order of these draws is part of what a seed means.
        return TrainingSample(
            row=self._row(index),
            posterior_noise=torch.randn(shape, generator=generator),
            noise=torch.randn(shape, generator=generator),
            timestep=int(torch.randint(self._timesteps, (), generator=generator)),
            dropped=float(torch.rand((), generator=generator)) < self.settings.caption_dropout,
        )

    def _caption(self, sample: TrainingSample) -> str:
        return "" if sample.dropped else self.captions[sample.row % self.encoded.images]

    def _row(self, index: int) -> int:
        """The row of the training's index-th sample: each epoch is a seeded permutation."""
        rows = len(self.encoded.mean)
        epoch = index // rows
        if epoch not in self._orders:
            # A batch may reach into the next epoch, so two orders are kept.
            self._orders = {epoch: np.random.default_rng([self.seed, epoch]).permutation(rows), **self._orders}
            self._orders = dict(list(self._orders.items())[:2])
        return int(self._orders[epoch][index % rows])

    @property
    def _timesteps(self) -> int:
        return self.pipe.scheduler.config.num_train_timesteps

    def _losses(
        self,
        latents: torch.Tensor,
        weight: torch.Tensor,
        noise: torch.Tensor,
        timesteps: torch.Tensor,
        captions: list[str],
    ) -> torch.Tensor:
        """Loss of each image, [b]: the squared error of epsilon or v, averaged over content cells.

        latents and noise [b, c, h, w], weight [b, 1, h, w]: share of content in each cell.
        UserError where the base predicts neither epsilon nor v.
        """
        latents, weight, noise = (t.to(self.device) for t in (latents, weight, noise))
        alpha = self._alphas_cumprod.to(self.device)[timesteps.to(self.device)].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        kind = self.pipe.scheduler.config.prediction_type
        if kind == "epsilon":
            target = noise
        elif kind == "v_prediction":
            target = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
        else:
            raise UserError(f"base.path: its scheduler predicts {kind!r}; epsilon and v_prediction can be fine-tuned")
        predicted = self.pipe.unet(noisy, timesteps.to(self.device), self._embed(captions)).sample
        error = ((predicted.float() - target) ** 2 * weight).sum((1, 2, 3)) / (weight.sum((1, 2, 3)) * latents.shape[1])
        return error * self._snr_weight(alpha.flatten(), kind)

    def _snr_weight(self, alpha: torch.Tensor, kind: str) -> torch.Tensor:
        """Min-SNR-gamma weights (Hang et al. 2023, arXiv 2303.09556) [b]; ones where it is off."""
        if self.settings.snr_gamma is None:
            return torch.ones_like(alpha)
        snr = alpha / (1 - alpha)
        return snr.clamp(max=self.settings.snr_gamma) / (snr if kind == "epsilon" else snr + 1)

    @property
    def _alphas_cumprod(self) -> torch.Tensor:
        return self.pipe.scheduler.alphas_cumprod

    def _embed(self, captions: Sequence[str]) -> torch.Tensor:
        """Text states [b, tokens, width]; equal captions go through the encoder once."""
        distinct = sorted(set(captions))
        ids = torch.cat([self._token_ids(caption) for caption in distinct]).to(self.device)
        states = self.pipe.text_encoder(ids)[0]
        return states[[distinct.index(caption) for caption in captions]]

    def _token_ids(self, caption: str) -> torch.Tensor:
        if caption not in self._ids:
            from busray.model.sample import check_length

            check_length(self.pipe, caption)
            tokenizer = self.pipe.tokenizer
            text = self.pipe.maybe_convert_prompt(caption, tokenizer)
            self._ids[caption] = tokenizer(
                text, padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt"
            ).input_ids
        return self._ids[caption]

    def apply(self, step: int) -> None:
        """Clip the gradients, step the optimiser, move the average, clear the gradients."""
        torch.nn.utils.clip_grad_norm_(self.trainable(), CLIP_NORM)
        factor = min(1.0, (step + 1) / self.settings.warmup) if self.settings.warmup else 1.0
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
        self, encoded: EncodedImages, captions: Sequence[str], beat: Callable[[], None] = lambda: None
    ) -> float:
        """Mean loss over at most VALIDATION_IMAGES images, evenly spread over all.

        Noise and timesteps never change, so that losses of different steps can be compared. beat is
        called after each batch.
        """
        count = min(VALIDATION_IMAGES, encoded.images)
        rows = np.unique(np.linspace(0, encoded.images - 1, count).round().astype(int))
        total = 0.0
        for at in range(0, len(rows), VALIDATION_BATCH):
            batch = rows[at : at + VALIDATION_BATCH]
            seeds = [seed_for(self.seed, "all", int(row), 0, "validate") for row in batch]
            shape = encoded.mean.shape[1:]
            noise = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds])
            spread = (np.arange(at, at + len(batch)) * GOLDEN_RATIO) % 1.0
            timesteps = torch.from_numpy((spread * self._timesteps).astype(np.int64))
            latents, weight = encoded.mean[batch], encoded.weight[batch]
            losses = self._losses(latents, weight, noise, timesteps, [captions[int(row)] for row in batch])
            total += float(losses.sum())
            beat()
        return total / len(rows)

    # ---- state and adapters ----

    def state_bytes(self) -> bytes:
        """All that a resumed training needs, as safetensors: values, optimiser state, average."""
        tensors: dict[str, torch.Tensor] = {}
        for name, parameter in self.parameters.items():
            tensors[f"value/{name}"] = parameter.detach()
            for key, value in self.optimiser.state.get(parameter, {}).items():
                tensors[f"optimiser/{key}/{name}"] = value
            if self.ema is not None:
                tensors[f"ema/{name}"] = self.ema[name]
        return save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})

    def load_state(self, data: bytes) -> None:
        """Take over what state_bytes gave."""
        tensors = load(data)
        for name, parameter in self.parameters.items():
            with torch.no_grad():
                parameter.copy_(tensors[f"value/{name}"])
            state: dict[str, torch.Tensor] = {}
            for key in ("step", "exp_avg", "exp_avg_sq"):
                stored = tensors.get(f"optimiser/{key}/{name}")
                if stored is not None:  # none before the first step
                    state[key] = stored.to("cpu" if key == "step" else self.device)
            self.optimiser.state[parameter] = state
            if self.ema is not None:
                self.ema[name] = tensors[f"ema/{name}"].to(self.device)

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """A context in which the parameters are their moving average, where that is on.

        The average is what the adapters will hold, so it is also what is validated.
        """
        if self.ema is None:
            yield
            return
        raw = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self._put(self.ema)
        try:
            yield
        finally:
            self._put(raw)

    def adapter_files(self, metadata: Mapping[str, Any]) -> dict[str, bytes]:
        """file name -> bytes of the adapters, with their averaged weights."""
        with self.averaged_weights():
            lora = lora_bytes(self.pipe, self.settings.text_encoder) if self.lora else None
            rows = self.tokens.by_token() if self.tokens is not None else {}
            return adapter_files(lora, rows, metadata)

    def _put(self, values: Mapping[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(values[name])

    def sample_pipe(self) -> Any:
        """A pipeline that shares the present weights: draw before the next step."""
        return type(self.pipe)(**self.pipe.components, requires_safety_checker=False)


class TokenRows:
    """Learned tokens: one parameter [tokens * vectors, width].

    A hook puts it into the embedding's output. So only these rows get gradients and optimiser
    state, not the whole embedding table.
    """

    def __init__(self, pipe: Any, tokens: Mapping[str, str], initializers: Mapping[str, str], vectors: int) -> None:
        tokenizer, encoder = pipe.tokenizer, pipe.text_encoder
        table = encoder.get_input_embeddings()
        self.tokens = sorted(set(tokens.values()))
        initial_vectors = []
        names = []
        for token in self.tokens:
            class_name = next(name for name, placeholder in tokens.items() if placeholder == token)
            ids = tokenizer(initializers[class_name], add_special_tokens=False).input_ids
            mean = table.weight[ids].mean(0)
            for i, name in enumerate(vector_names(token, vectors)):
                names.append(name)
                # Equal vectors would get equal gradients for ever, so each starts a little longer.
                initial_vectors.append(mean * (1 + 0.05 * i))
        if tokenizer.add_tokens(names) != len(names):
            raise UserError(f"classes: a token of {', '.join(names)} is a word of this base already; choose another")
        self.first = min(tokenizer.convert_tokens_to_ids(names))
        self.vectors = vectors
        encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        table = encoder.get_input_embeddings()
        table.requires_grad_(False)
        self.rows = torch.nn.Parameter(torch.stack(initial_vectors).detach().clone().float())
        table.register_forward_hook(self._replace)

    def _replace(self, module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        """The embedding's output [..., width] with the learned rows in the places of their ids."""
        offsets = inputs[0] - self.first
        learned = (offsets >= 0) & (offsets < len(self.rows))
        rows = self.rows[offsets.clamp(0, len(self.rows) - 1)].to(output.dtype)
        return torch.where(learned[..., None], rows, output)

    def by_token(self) -> dict[str, torch.Tensor]:
        """placeholder -> vectors [k, width]."""
        return {token: self.rows.detach()[i * self.vectors :][: self.vectors] for i, token in enumerate(self.tokens)}
