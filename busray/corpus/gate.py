"""The class gate's part in drawing: an image that it rejects is drawn again, from the seed of its next attempt.

Knows no classifier: cluster/ hands one in. Each round draws, in the order of their indices, the images that the round
before rejected, so that an image's place in its batch follows from its shard's record.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from busray.corpus.recipe import Recipe
from busray.records import Commit, ImageSpec, Redrawn, Shard

if TYPE_CHECKING:
    from busray.model.sample import Drawn

Draw = Callable[[Sequence[ImageSpec]], "list[Drawn]"]
Judge = Callable[[str, np.ndarray], np.ndarray]
"""class, images uint8 [n, s, s] -> probability of that class [n]"""


@dataclass(frozen=True)
class Gated:
    """A shard through the gate. An image whose draws were all rejected has that as its `problem`."""

    drawn: "list[Drawn]"
    """What became of each image, in the order of their indices; a specification names its attempt."""
    first_draws: "list[Drawn]"
    """Those that were rejected."""
    redrawn: tuple[Redrawn, ...]


def draw_gated(recipe: Recipe, shard: Shard, draw: Draw, judge: Judge, threshold: float, attempts: int) -> Gated:
    """Draw a shard, and up to `attempts` times in all whatever the judge gives less than threshold.

    An image that cannot be drawn is not drawn again: its problem stands.
    """
    name = shard.class_name
    latest: dict[int, Drawn] = {}
    said: dict[int, tuple[float, ...]] = {}
    first_draws: list[Drawn] = []
    waiting = list(range(shard.first, shard.first + shard.count))
    for attempt in range(attempts):
        drawn = draw([recipe.spec(name, index, attempt) for index in waiting])
        latest |= {one.spec.index: one for one in drawn}
        sound = [one for one in drawn if one.problem is None]
        chances = judge(name, np.stack([one.image for one in sound])).tolist() if sound else []
        rejected = [(one, chance) for one, chance in zip(sound, chances, strict=True) if not chance >= threshold]
        if attempt == 0:
            first_draws = [one for one, _ in rejected]
        for one, chance in rejected:
            said[one.spec.index] = (*said.get(one.spec.index, ()), chance)
        waiting = [one.spec.index for one, _ in rejected]
        if not waiting:
            break
    for index in waiting:
        reason = f"class gate: {attempts} draws rejected, at best {max(said[index]):.3f} for {name}, not {threshold:g}"
        latest[index] = replace(latest[index], problem=reason)
    redrawn = [
        Redrawn(latest[i].spec.image_id, chances, None if latest[i].problem else latest[i].spec.attempt)
        for i, chances in said.items()
    ]
    return Gated([latest[index] for index in sorted(latest)], first_draws, tuple(redrawn))


def place(commit: Commit, spec: ImageSpec) -> tuple[int, int]:
    """(position of a committed image's draw in its round, draws of that round)."""
    if not spec.attempt:
        return spec.index - commit.first, commit.count
    asked = [one.image_id for one in commit.redrawn if len(one.rejected) >= spec.attempt]
    return asked.index(spec.image_id), len(asked)
