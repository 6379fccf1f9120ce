# pyright: strict
"""The plan: create-only segments, and the shards that follow from them."""

import json
from collections.abc import Iterable, Mapping
from itertools import zip_longest

from busray.layout import segment_key
from busray.records import Segment, Shard, UserError, to_json
from busray.storage import Store


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


def extend_plan(
    store: Store, images: Mapping[str, int], shard_size: int, *, never_shrink: bool = False
) -> list[Segment]:
    """Append what the plan lacks of `images` (class -> images); returns the whole plan.

    never_shrink: a class that is planned with more images keeps them. Otherwise UserError, and
    nothing is appended for any class.
    """
    segments = read_segments(store)
    while missing := _missing(store, segments, images, shard_size, never_shrink):
        won = store.put_checked(segment_key(len(segments)), to_json(missing[0]))
        # Another driver may have taken the number: read what it planned, and look again.
        segments = [*segments, missing[0]] if won else read_segments(store)
    return segments


def _missing(
    store: Store, segments: Iterable[Segment], images: Mapping[str, int], shard_size: int, never_shrink: bool
) -> list[Segment]:
    """What the plan lacks, one segment per class."""
    planned = dict.fromkeys(images, 0)
    for segment in segments:
        planned[segment.class_name] = planned.get(segment.class_name, 0) + segment.count
    missing: list[Segment] = []
    for class_name, wanted in images.items():
        first = planned[class_name]
        if wanted < first and not never_shrink:
            raise UserError(
                f"classes.{class_name}.images: {wanted} is below the {first} already planned in {store.url}: "
                "a corpus only grows; give another output for a smaller one"
            )
        if wanted > first:
            missing.append(Segment(class_name, first, wanted - first, shard_size))
    return missing


def shards(segments: Iterable[Segment]) -> list[Shard]:
    """The shards of a plan, in its order. No shard crosses a segment."""
    found: list[Shard] = []
    for segment in segments:
        end = segment.first + segment.count
        for first in range(segment.first, end, segment.shard_size):
            found.append(Shard(segment.class_name, first, min(segment.shard_size, end - first)))
    return found


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
