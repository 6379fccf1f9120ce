"""The plan: create-only segments, and the shards that follow from them."""

import json
from collections.abc import Iterable, Mapping
from itertools import zip_longest

from busray.layout import segment_key
from busray.records import Segment, Shard, UserError, to_json
from busray.storage import Store


def read_segments(store: Store) -> list[Segment]:
    """The plan so far: plan/0000.json, 0001, ... up to the first number that is free."""
    segments: list[Segment] = []
    while (data := store.read_or_none(segment_key(len(segments)))) is not None:
        segments.append(Segment(**json.loads(data)))
    return segments


def extend_plan(store: Store, images: Mapping[str, int], shard_size: int, *, keep_more: bool = False) -> list[Segment]:
    """The plan with at least `images` a class: appends what is missing, never takes back what was planned.

    keep_more: a class planned with more images keeps them; else that is refused, and nothing appended for any class.
    """
    segments = read_segments(store)
    while missing := _missing(store, segments, images, shard_size, keep_more):
        won = store.put_once(segment_key(len(segments)), to_json(missing[0]))
        segments = [*segments, missing[0]] if won else read_segments(store)
    return segments


def _missing(
    store: Store, segments: Iterable[Segment], images: Mapping[str, int], shard_size: int, keep_more: bool
) -> list[Segment]:
    """What the plan lacks, a segment a class; UserError where a class is to have fewer images than planned."""
    planned = dict.fromkeys(images, 0)
    for segment in segments:
        planned[segment.class_name] = planned.get(segment.class_name, 0) + segment.count
    for class_name, wanted in images.items():
        if wanted < planned[class_name] and not keep_more:
            raise UserError(
                f"classes.{class_name}.images: {wanted} is below the {planned[class_name]} already planned in "
                f"{store.url}: a corpus only grows; give another output for a smaller one"
            )
    return [
        Segment(class_name, planned[class_name], wanted - planned[class_name], shard_size)
        for class_name, wanted in images.items()
        if wanted > planned[class_name]
    ]


def shards(segments: Iterable[Segment]) -> list[Shard]:
    """The shards of a plan, in its order; none crosses a segment."""
    return [
        Shard(s.class_name, first, min(s.shard_size, s.first + s.count - first))
        for s in segments
        for first in range(s.first, s.first + s.count, s.shard_size)
    ]


def pending(plan: Iterable[Shard], done: Iterable[Shard]) -> list[Shard]:
    """Shards that are not done, classes taken in turn, so that an early stop leaves something of each."""
    done = set(done)
    by_class: dict[str, list[Shard]] = {}
    for shard in plan:
        if shard not in done:
            by_class.setdefault(shard.class_name, []).append(shard)
    return [shard for turn in zip_longest(*by_class.values()) for shard in turn if shard is not None]
