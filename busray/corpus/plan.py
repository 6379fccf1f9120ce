# pyright: strict
"""The plan: create-only segments, and the shards that follow from them."""

import json
from collections.abc import Callable, Iterable, Mapping
from itertools import zip_longest

from busray import config
from busray.layout import segment_key
from busray.records import Segment, Shard, UserError, to_json
from busray.storage import Store

SMALL = 16
"""Batches an actor, below which a plan's shards are single batches and no speed is measured."""
SHARDS_AN_ACTOR = 4
"""So many at least, where the plan has them: the last ones then end at about the same time."""


def read_segments(store: Store) -> list[Segment]:
    """The plan so far: plan/0000.json, 0001, ... up to the first number that is free. Damaged."""
    segments: list[Segment] = []
    while (segment := store.read_record_or_none(segment_key(len(segments)), segment_of)) is not None:
        segments.append(segment)
    return segments


def segment_of(data: bytes) -> Segment:
    """The segment of its stored JSON. ValueError where it plans nothing."""
    segment = Segment(**json.loads(data))
    if not (segment.first >= 0 < segment.count and segment.shard_size > 0):
        raise ValueError(f"{segment} plans no image")
    return segment


def shard_size(corpus: config.Corpus, batch_size: int, actors: int, missing: int, seconds: Callable[[], float]) -> int:
    """Images of a shard of a new segment. missing: images that it and its like are to have.
    seconds(): of drawing one image; called only where it decides.

    Whole batches, so that an image's place in its batch does not depend on the shard's size.
    """
    if corpus.shard_size is not None:
        return corpus.shard_size
    if missing <= SMALL * batch_size * actors:
        return batch_size
    by_time = corpus.shard_seconds / (seconds() * batch_size)
    by_width = missing / (SHARDS_AN_ACTOR * batch_size * actors)
    return batch_size * max(1, int(min(by_time, by_width)))


def extend_plan(
    store: Store, images: Mapping[str, int], shard_size: int | Callable[[int], int], *, never_shrink: bool = False
) -> list[Segment]:
    """Append what the plan lacks of `images` (class -> images); returns the whole plan.

    shard_size: of new segments, or what gives it for the number of images that they have; it is
    kept with them. never_shrink: a class that is planned with more images keeps them. Otherwise
    UserError, and nothing is appended for any class.
    """
    segments = read_segments(store)
    while missing := _missing(store, segments, images, never_shrink):
        if not isinstance(shard_size, int):
            shard_size = shard_size(sum(shard.count for shard in missing))
        new = Segment(missing[0].class_name, missing[0].first, missing[0].count, shard_size)
        won = store.put_checked(segment_key(len(segments)), to_json(new))
        # Another driver may have taken the number: read what it planned, and look again.
        segments = [*segments, new] if won else read_segments(store)
    return segments


def _missing(store: Store, segments: Iterable[Segment], images: Mapping[str, int], never_shrink: bool) -> list[Shard]:
    """What the plan lacks, in one piece per class."""
    planned = dict.fromkeys(images, 0)
    for segment in segments:
        planned[segment.class_name] = planned.get(segment.class_name, 0) + segment.count
    missing: list[Shard] = []
    for class_name, wanted in images.items():
        first = planned[class_name]
        if wanted < first and not never_shrink:
            raise UserError(
                f"classes.{class_name}.images: {wanted} is below the {first} already planned in {store.url}: "
                "a corpus only grows; give another output for a smaller one"
            )
        if wanted > first:
            missing.append(Shard(class_name, first, wanted - first))
    return missing


def shards(segments: Iterable[Segment]) -> list[Shard]:
    """The shards of a plan, in its order. No shard crosses a segment."""
    found: list[Shard] = []
    for segment in segments:
        end = segment.first + segment.count
        for first in range(segment.first, end, segment.shard_size):
            found.append(Shard(segment.class_name, first, min(segment.shard_size, end - first)))
    return found


def first_of_each_class(plan: Iterable[Shard]) -> list[Shard]:
    found: dict[str, Shard] = {}
    for shard in plan:
        found.setdefault(shard.class_name, shard)
    return list(found.values())


def in_class_order(plan: Iterable[Shard]) -> list[Shard]:
    """Shards by class, then by their first image: the order of the manifest."""
    return sorted(plan, key=lambda shard: (shard.class_name, shard.first))


def pending(plan: Iterable[Shard], done: Iterable[Shard]) -> list[Shard]:
    """The shards that are not done. Classes take turns, so an early stop leaves images of each."""
    done = set(done)
    by_class: dict[str, list[Shard]] = {}
    for shard in plan:
        if shard not in done:
            by_class.setdefault(shard.class_name, []).append(shard)
    in_turn: list[Shard] = []
    for turn in zip_longest(*by_class.values()):
        in_turn += [shard for shard in turn if shard is not None]
    return in_turn
