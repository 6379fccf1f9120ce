"""Prompts as the UNet takes them: text embeddings, kept while they are used."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from busray.records import UserError

# Text embeddings in memory at most: nearly every image may have a prompt of its own.
CACHED_PROMPTS = 256

# Prompts a pass of the text encoder. Always as many, since another number would round otherwise,
# and an image must not depend on the prompts before it.
ENCODED_TOGETHER = 16


class PromptTexts:
    """A pipeline's text embeddings; the CACHED_PROMPTS newest are kept."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self.known: dict[str, Tensor] = {}  # prompt -> [1, tokens, width]

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings [n, tokens, width]. UserError as of token_ids()."""
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.known]
        for at in range(0, len(missing), ENCODED_TOGETHER):
            part = missing[at : at + ENCODED_TOGETHER]
            self.known.update(zip(part, self._encode(part), strict=True))
        embeddings = torch.cat([self.known[prompt] for prompt in prompts])
        while len(self.known) > CACHED_PROMPTS:  # the oldest go: dicts keep their order
            del self.known[next(iter(self.known))]
        return embeddings

    def _encode(self, prompts: Sequence[str]) -> Iterable[Tensor]:
        """[1, tokens, width] of each of at most ENCODED_TOGETHER prompts."""
        padded = [*prompts, *[prompts[-1]] * (ENCODED_TOGETHER - len(prompts))]
        rows = {prompt: token_ids(self.pipe, prompt) for prompt in prompts}
        ids = torch.cat([rows[prompt] for prompt in padded])
        encoder = self.pipe.text_encoder
        states = encoder(ids.to(encoder.device))[0][: len(prompts)]
        # Copies: a view would keep its whole pass in memory.
        return [state.clone() for state in states.split(1)]


def token_ids(pipe: Any, prompt: str) -> Tensor:
    """The text encoder's input [1, tokens]. UserError for a prompt of more tokens than it reads:
    the rest would be dropped."""
    tokenizer, most = pipe.tokenizer, pipe.tokenizer.model_max_length
    text = pipe.maybe_convert_prompt(prompt, tokenizer)  # a token's further vectors
    ids = tokenizer(text, padding="max_length", max_length=most, return_tensors="pt", verbose=False).input_ids
    if ids.shape[1] > most:
        raise UserError(f"prompt {prompt!r} has {ids.shape[1]} tokens; this base reads {most}")
    return ids
