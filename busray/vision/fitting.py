"""The training loop that classifiers and the segmenter share. CPU only, and repeatable."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

# Validations in a fit, evenly spread over its steps; the weights of the best one are kept.
VALIDATIONS = 10
WEIGHT_DECAY = 1e-2


def cosine(step: int, steps: int, warm: int) -> float:
    """Share of the peak learning rate: linear warm-up, then a cosine to 1 % of it."""
    if step < warm:
        return (step + 1) / warm
    progress = min(1.0, (step - warm) / max(1, steps - warm))
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))


def optimise(
    network: Any, loss: Callable[[int], Any], steps: int, rate: Callable[[int], float], beat: Callable[[], None]
) -> Iterator[int]:
    """Train a network with AdamW; yields the number of steps done whenever a validation is due.

    loss(step) is the scalar loss of that step's batch, rate(step) its learning rate; steps count
    from 0. beat is called after every step.
    """
    import torch

    optimiser = torch.optim.AdamW(network.parameters(), lr=rate(0), weight_decay=WEIGHT_DECAY)
    due = {round(steps * (i + 1) / VALIDATIONS) for i in range(VALIDATIONS)}
    for step in range(steps):
        network.train()  # a validation may have left it in evaluation mode
        for group in optimiser.param_groups:
            group["lr"] = rate(step)
        optimiser.zero_grad()
        loss(step).backward()
        optimiser.step()
        beat()
        if step + 1 in due:
            yield step + 1


def shuffled_rows(rows: int, batch_size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Endless batches of row numbers int [batch_size]: shuffled passes over all rows."""
    waiting = np.zeros(0, np.int64)
    while True:
        # A batch may span two passes, so that every batch has the same size.
        while len(waiting) < batch_size:
            waiting = np.concatenate([waiting, rng.permutation(rows)])
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]


def weights_of(network: Any) -> dict[str, np.ndarray]:
    """A copy of every tensor by name, as later steps change the network's own."""
    return {name: tensor.detach().numpy().copy() for name, tensor in network.state_dict().items()}


def load_weights(network: Any, weights: dict[str, np.ndarray]) -> None:
    """Put weights from weights_of into a network of the same build."""
    import torch

    network.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})


def shrunk(pixels: np.ndarray, side: int) -> np.ndarray:
    """uint8 [n, s, s] -> uint8 [n, side, side], each pixel the mean of those it covers."""
    import torch
    from torch.nn import functional

    if pixels.shape[1:] == (side, side) or not len(pixels):
        return pixels.reshape(-1, side, side)
    grey = torch.from_numpy(np.ascontiguousarray(pixels))[:, None].float()
    return functional.adaptive_avg_pool2d(grey, side)[:, 0].round().byte().numpy()


def rgb_tensor(images: np.ndarray) -> Any:
    """uint8 grey [n, h, w] or RGB [n, h, w, 3] -> uint8 [n, 3, h, w]; else a TypeError."""
    import torch

    if images.dtype != np.uint8:
        raise TypeError(f"features are of 8-bit images, not {images.dtype}")
    batch = torch.from_numpy(np.ascontiguousarray(images))
    return batch[:, None].expand(-1, 3, -1, -1) if batch.ndim == 3 else batch.permute(0, 3, 1, 2)


def grey_tensor(pixels: np.ndarray) -> Any:
    """uint8 [n, s, s] -> float [n, 1, s, s] in 0..1."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(pixels))[:, None].float() / 255
