"""Fine-tuning adapters: LoRA, learned tokens, or both at once. Pure torch; the caller adds gradients up over workers.

What a step sees follows from (seed, step, position in the global batch) and never from a rank, so any number of workers
trains the same adapters up to the rounding of a sum.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save

from busray import config
from busray.identity import seed_for
from busray.model.adapters import adapter_files, attach_lora, lora_bytes
from busray.model.latents import EncodedImages
from busray.records import UserError

CLIP_NORM = 1.0
LORA_DECAY = 1e-2
VALIDATION_IMAGES = 128
VALIDATION_BATCH = 16


class FineTuner:
    """Adapters in training on a loaded pipeline.

    tokens: class -> placeholder (empty: no textual inversion); initializers: class -> the word a token starts from;
    captions: one an image of `encoded` (mirrored rows share them).
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
            self._token_ids(caption)  # one that is too long ends training before it begins
        self._orders: dict[int, np.ndarray] = {}

    def _named(self) -> dict[str, torch.nn.Parameter]:
        parts = {"unet": self.pipe.unet, "text_encoder": self.pipe.text_encoder} if self.lora else {}
        named = {
            f"{part}.{name}": parameter
            for part, module in parts.items()
            for name, parameter in module.named_parameters()
            if "lora_" in name and parameter.requires_grad
        }
        if self.tokens is not None:
            named["tokens"] = self.tokens.rows
        return dict(sorted(named.items()))

    def _groups(self) -> list[dict[str, Any]]:
        lora = [p for n, p in self.parameters.items() if n != "tokens"]
        rows = [p for n, p in self.parameters.items() if n == "tokens"]
        groups = [
            {"params": lora, "lr": self.settings.learning_rate, "weight_decay": LORA_DECAY},
            {"params": rows, "lr": self.settings.token_learning_rate, "weight_decay": 0.0},
        ]
        return [{**group, "base_lr": group["lr"]} for group in groups if group["params"]]

    def trainable(self) -> list[torch.nn.Parameter]:
        """The parameters whose gradients the caller adds up over workers, in one order everywhere."""
        return list(self.parameters.values())

    # ---- a step -----------------------------------------------------------------------------------------------------

    def accumulate(self, step: int, positions: Sequence[int]) -> float:
        """Add the gradients of loss_i / batch_size for these positions of a step's global batch; their summed loss."""
        if not positions:
            return 0.0
        draws = [self._draw(step, position) for position in positions]
        rows = torch.tensor([draw["row"] for draw in draws])
        noise = torch.stack([draw["noise"] for draw in draws])
        jitter = torch.stack([draw["posterior"] for draw in draws])
        latents = self.encoded.mean[rows] + self.encoded.std[rows] * jitter
        captions = ["" if d["dropped"] else self.captions[d["row"] % self.encoded.images] for d in draws]
        timesteps = torch.tensor([draw["timestep"] for draw in draws])
        losses = self._losses(latents, self.encoded.weight[rows], noise, timesteps, captions)
        (losses.sum() / self.settings.batch_size).backward()
        return float(losses.detach().sum())

    def _draw(self, step: int, position: int) -> dict[str, Any]:
        """Row, noise, timestep and caption dropout of one position of a step."""
        at = step * self.settings.batch_size + position
        generator = torch.Generator().manual_seed(seed_for(self.seed, "all", at, 0, "train"))
        shape = self.encoded.mean.shape[1:]
        return {
            "row": self._row(at),
            "posterior": torch.randn(shape, generator=generator),
            "noise": torch.randn(shape, generator=generator),
            "timestep": int(torch.randint(self._timesteps, (), generator=generator)),
            "dropped": float(torch.rand((), generator=generator)) < self.settings.caption_dropout,
        }

    def _row(self, at: int) -> int:
        """The at-th sample's row: every epoch is a seeded permutation of all rows."""
        rows = len(self.encoded.mean)
        epoch = at // rows
        if epoch not in self._orders:
            self._orders = {epoch: np.random.default_rng([self.seed, epoch]).permutation(rows), **self._orders}
            self._orders = dict(list(self._orders.items())[:2])
        return int(self._orders[epoch][at % rows])

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
        """Squared error an image [b], averaged over content cells, of epsilon or v as the base predicts."""
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
        made = self.pipe.unet(noisy, timesteps.to(self.device), self._embed(captions)).sample
        error = ((made.float() - target) ** 2 * weight).sum((1, 2, 3)) / (weight.sum((1, 2, 3)) * latents.shape[1])
        return error * self._snr_weight(alpha.flatten(), kind)

    def _snr_weight(self, alpha: torch.Tensor, kind: str) -> torch.Tensor:
        """Min-SNR-gamma (arXiv 2303.09556) for this prediction type; ones where it is off."""
        if self.settings.snr_gamma is None:
            return torch.ones_like(alpha)
        snr = alpha / (1 - alpha)
        return snr.clamp(max=self.settings.snr_gamma) / (snr if kind == "epsilon" else snr + 1)

    @property
    def _alphas_cumprod(self) -> torch.Tensor:
        return self.pipe.scheduler.alphas_cumprod

    def _embed(self, captions: Sequence[str]) -> torch.Tensor:
        """Text states [b, tokens, width]; distinct captions go through the encoder once."""
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
        """Clip, step the optimiser at this step's rate, move the average, clear the gradients."""
        torch.nn.utils.clip_grad_norm_(self.trainable(), CLIP_NORM)
        factor = min(1.0, (step + 1) / self.settings.warmup) if self.settings.warmup else 1.0
        for group in self.optimiser.param_groups:
            group["lr"] = group["base_lr"] * factor
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        if self.ema is not None:
            assert self.settings.ema is not None
            decay = min(self.settings.ema, (1 + step) / (10 + step))
            for name, parameter in self.parameters.items():
                self.ema[name].lerp_(parameter.detach(), 1 - decay)

    @torch.no_grad()
    def validation_loss(
        self, encoded: EncodedImages, captions: Sequence[str], beat: Callable[[], None] = lambda: None
    ) -> float:
        """Mean loss over up to VALIDATION_IMAGES images, spread evenly, with noise and timesteps that never change.

        beat is called after each batch.
        """
        rows = np.unique(np.linspace(0, encoded.images - 1, min(VALIDATION_IMAGES, encoded.images)).round().astype(int))
        total = 0.0
        for at in range(0, len(rows), VALIDATION_BATCH):
            batch = rows[at : at + VALIDATION_BATCH]
            seeds = [seed_for(self.seed, "all", int(row), 0, "validate") for row in batch]
            shape = encoded.mean.shape[1:]
            noise = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds])
            spread = (np.arange(at, at + len(batch)) * 0.6180339887498949) % 1.0
            timesteps = torch.from_numpy((spread * self._timesteps).astype(np.int64))
            picked = torch.from_numpy(batch)
            texts = [captions[int(row)] for row in batch]
            total += float(self._losses(encoded.mean[picked], encoded.weight[picked], noise, timesteps, texts).sum())
            beat()
        return total / len(rows)

    # ---- what is kept -----------------------------------------------------------------------------------------------

    def state_bytes(self) -> bytes:
        """Everything that training goes on from, as safetensors."""
        tensors: dict[str, torch.Tensor] = {}
        for name, parameter in self.parameters.items():
            tensors[f"value/{name}"] = parameter.detach()
            for key, value in self.optimiser.state.get(parameter, {}).items():
                tensors[f"optimiser/{key}/{name}"] = value
            if self.ema is not None:
                tensors[f"ema/{name}"] = self.ema[name]
        return save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})

    def load_state(self, data: bytes) -> None:
        tensors = load(data)
        for name, parameter in self.parameters.items():
            with torch.no_grad():
                parameter.copy_(tensors[f"value/{name}"])
            keys = [k for k in ("step", "exp_avg", "exp_avg_sq") if f"optimiser/{k}/{name}" in tensors]
            self.optimiser.state[parameter] = {
                k: tensors[f"optimiser/{k}/{name}"].to("cpu" if k == "step" else self.device) for k in keys
            }
            if self.ema is not None:
                self.ema[name] = tensors[f"ema/{name}"].to(self.device)

    @contextmanager
    def released(self) -> Iterator[None]:
        """Within it the weights are those that will be given out: their moving average, where that is on."""
        if self.ema is None:
            yield
            return
        kept = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self._put(self.ema)
        try:
            yield
        finally:
            self._put(kept)

    def adapter_files(self, metadata: Mapping[str, Any]) -> dict[str, bytes]:
        """file name -> bytes of the adapters, as `released`."""
        with self.released():
            lora = lora_bytes(self.pipe, self.settings.text_encoder) if self.lora else None
            rows = self.tokens.by_token() if self.tokens is not None else {}
            return adapter_files(lora, rows, metadata)

    def _put(self, values: Mapping[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(values[name])

    def sample_pipe(self) -> Any:
        """A pipeline that draws with the weights as they are now; it shares them, so draw before the next step."""
        return type(self.pipe)(**self.pipe.components, requires_safety_checker=False)


class TokenRows:
    """Learned tokens: their vectors are one parameter [k, width] that a hook puts into the embedding's output.

    Only these rows get gradients and optimiser state, not the whole table.
    """

    def __init__(self, pipe: Any, tokens: Mapping[str, str], initializers: Mapping[str, str], vectors: int) -> None:
        tokenizer, encoder = pipe.tokenizer, pipe.text_encoder
        table = encoder.get_input_embeddings()
        self.tokens = sorted(set(tokens.values()))
        starts = []
        names = []
        for token in self.tokens:
            class_name = next(name for name, value in tokens.items() if value == token)
            ids = tokenizer(initializers[class_name], add_special_tokens=False).input_ids
            start = table.weight[ids].mean(0)
            for i in range(vectors):
                names.append(token if i == 0 else f"{token}_{i}")
                # Vectors that start alike would stay alike: the further ones start from a slightly scaled copy.
                starts.append(start * (1 + 0.05 * i))
        if tokenizer.add_tokens(names) != len(names):
            raise UserError(f"classes: a token of {', '.join(names)} is a word of this base already; choose another")
        self.first = min(tokenizer.convert_tokens_to_ids(names))
        self.vectors = vectors
        encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        table = encoder.get_input_embeddings()
        table.requires_grad_(False)
        self.rows = torch.nn.Parameter(torch.stack(starts).detach().clone().float())
        table.register_forward_hook(self._replace)

    def _replace(self, module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        at = inputs[0] - self.first
        ours = (at >= 0) & (at < len(self.rows))
        rows = self.rows[at.clamp(0, len(self.rows) - 1)].to(output.dtype)
        return torch.where(ours[..., None], rows, output)

    def by_token(self) -> dict[str, torch.Tensor]:
        """placeholder -> vectors [k, width]."""
        return {token: self.rows.detach()[i * self.vectors :][: self.vectors] for i, token in enumerate(self.tokens)}
