"""Prompts are encoded once while they are used, together, and as if alone."""

import pytest
import torch

from busray.model import prompts
from busray.model.prompts import ENCODED_TOGETHER, PromptTexts, token_ids
from busray.records import UserError
from tests.support.pipelines import tiny_pipeline

WORDS = ["a dark oval spot", "a bright oval spot", "", "breast tissue, without lesion"]


def passes(texts: PromptTexts) -> list[int]:
    """The batches that the text encoder gets from now on."""
    sizes: list[int] = []
    texts.pipe.text_encoder.register_forward_pre_hook(lambda module, given: sizes.append(len(given[0])))
    return sizes


@torch.no_grad()
def test_prompts_encoded_together_are_what_diffusers_makes_of_each_alone() -> None:
    pipe = tiny_pipeline()
    together = PromptTexts(pipe)(WORDS)
    for row, prompt in zip(together, WORDS, strict=True):
        alone, _ = pipe.encode_prompt(prompt, "cpu", 1, do_classifier_free_guidance=False)
        assert torch.equal(row, alone[0])


@torch.no_grad()
def test_a_batchs_new_prompts_take_one_pass_of_a_fixed_size_and_known_ones_none() -> None:
    texts = PromptTexts(tiny_pipeline())
    sizes = passes(texts)
    texts([*WORDS, *WORDS])
    assert sizes == [ENCODED_TOGETHER]
    texts(WORDS[:2])
    assert len(sizes) == 1
    texts([f"oval {i}" for i in range(ENCODED_TOGETHER + 1)])
    assert sizes == [ENCODED_TOGETHER] * 3


@torch.no_grad()
def test_the_oldest_prompts_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "CACHED_PROMPTS", 2)
    texts = PromptTexts(tiny_pipeline())
    sizes = passes(texts)
    assert len(texts(["dark", "bright", "oval"])) == 3  # more in a batch than are kept
    assert list(texts.known) == ["bright", "oval"]
    texts(["bright", "dark"])
    assert len(sizes) == 2 and list(texts.known) == ["oval", "dark"]


def test_a_prompt_that_would_be_cut_off_is_refused() -> None:
    with pytest.raises(UserError, match="this base reads 77"):
        token_ids(tiny_pipeline(), "dark " * 90)
