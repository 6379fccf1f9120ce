"""The optimiser's part of textual inversion against an update of the whole table of embeddings."""

import torch

from benchmarks.speed.contest import Contest

WORDS, WIDTH, LEARNED = 49_408, 768, 3
"""Of Stable Diffusion 1.x, with a token for each of three classes."""
STEPS = 5


def questions() -> list[Contest]:
    torch.manual_seed(0)
    table = torch.randn(WORDS + LEARNED, WIDTH)
    gradients = torch.randn(STEPS, LEARNED, WIDTH)

    def ours() -> torch.Tensor:
        """As busray.model.finetune.TokenRows: the learned rows are the only parameter."""
        rows = torch.nn.Parameter(table[-LEARNED:].clone())
        optimiser = torch.optim.AdamW([rows], lr=1e-3, weight_decay=0.0)
        for gradient in gradients:
            rows.grad = gradient.clone()
            optimiser.step()
        return rows.detach()

    def rival() -> torch.Tensor:
        """As diffusers' example: the table is the parameter, and all other rows are put back."""
        everything = torch.nn.Parameter(table.clone())
        optimiser = torch.optim.AdamW([everything], lr=1e-3, weight_decay=0.0)
        others = torch.ones(len(table), dtype=torch.bool)
        others[-LEARNED:] = False
        for gradient in gradients:
            everything.grad = torch.zeros_like(everything)
            everything.grad[-LEARNED:] = gradient
            optimiser.step()
            with torch.no_grad():
                everything[others] = table[others]
        return everything.detach()[-LEARNED:]

    def same() -> str:
        assert torch.equal(ours(), rival())
        return "rows identical"

    name = f"textual inversion, {STEPS} optimiser steps"
    return [Contest(name, "busray", "whole table", ours, rival, 100, same)]
