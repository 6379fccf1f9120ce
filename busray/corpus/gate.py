"""The class gate: an image that it rejects is drawn again, from the seed of its next attempt.

Each round draws the images that the round before rejected, in the order of their indices. From the
record one can compute the position of each image in the batch it was drawn in. `reproduce` needs
that position.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from busray.corpus.recipe import Recipe
from busray.records import Commit, ImageSpec, Redrawn, Shard

if TYPE_CHECKING:  # torch and diffusers cost 800 MB, which only the drawing workers need
    from busray.model.sample import DrawnImage

Draw = Callable[[Sequence[ImageSpec]], "list[DrawnImage]"]
# (class, images uint8 [n, s, s]) -> probability of that class [n]
ClassProbability = Callable[[str, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class GatedShard:
    """What the gate made of a shard."""

    # In the order of their indices; each specification names its attempt. An image whose draws
    # were all rejected has that as its `problem`.
    images: "list[DrawnImage]"
    first_draws: "list[DrawnImage]"  # the first draws that were rejected
    redrawn: tuple[Redrawn, ...]


def draw_gated(
    recipe: Recipe, shard: Shard, draw: Draw, probability: ClassProbability, threshold: float, attempts: int
) -> GatedShard:
    """Draw a shard; what the gate rejects is drawn again, up to `attempts` draws per image.

    A draw is rejected if its class's probability is below the threshold, or NaN. An image that
    cannot be drawn is not drawn again: its problem stands.
    """
    class_name = shard.class_name
    latest: dict[int, DrawnImage] = {}
    rejected: dict[int, tuple[float, ...]] = {}
    first_draws: list[DrawnImage] = []
    waiting = list(range(shard.first, shard.first + shard.count))
    for attempt in range(attempts):
        images = draw([recipe.spec(class_name, index, attempt) for index in waiting])
        sound = [image for image in images if image.problem is None]
        pixels = [image.image for image in sound]
        probabilities = probability(class_name, np.stack(pixels)).tolist() if sound else []
        latest |= {image.spec.index: image for image in images}
        waiting = []
        for image, p in zip(sound, probabilities, strict=True):
            index = image.spec.index
            if not p >= threshold:  # NaN too
                rejected[index] = (*rejected.get(index, ()), p)
                waiting.append(index)
                if attempt == 0:
                    first_draws.append(image)
        if not waiting:
            break
    for index in waiting:
        best = max(rejected[index])
        reason = f"class gate: {attempts} draws rejected, at best {best:.3f} for {class_name}, not {threshold:g}"
        latest[index] = replace(latest[index], problem=reason)
    redrawn = []
    for index, probabilities in rejected.items():
        spec = latest[index].spec
        kept = None if latest[index].problem else spec.attempt
        redrawn.append(Redrawn(spec.image_id, probabilities, kept))
    return GatedShard([latest[index] for index in sorted(latest)], first_draws, tuple(redrawn))


def place(commit: Commit, spec: ImageSpec) -> tuple[int, int]:
    """(position of a committed image's draw in its round, number of draws of that round)."""
    if not spec.attempt:
        return spec.index - commit.first, commit.count
    redrawn = [record for record in commit.redrawn if len(record.rejected) >= spec.attempt]
    return [record.image_id for record in redrawn].index(spec.image_id), len(redrawn)
