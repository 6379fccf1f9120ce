"""`generate` on a plan of a million images that is drawn to the end: what it costs."""

from unittest.mock import patch

from benchmarks.resume import drive_apart, null_objects, share_out
from benchmarks.speed.contest import Limit, Seconds, scratch_folder
from busray.corpus.manifest import publish_manifest
from busray.corpus.plan import extend_plan, shards
from busray.storage import Store, in_threads

IMAGES, SHARD_SIZE = 1_000_000, 256


def questions() -> list[Limit]:
    store = Store(str(scratch_folder()))
    _finish(store)

    def ours() -> Seconds:
        figures = drive_apart(store.url, IMAGES, SHARD_SIZE)
        assert figures["pending"] == 0, figures
        return Seconds(figures["seconds to what is pending"])

    return [Limit(f"resume of a finished plan of {IMAGES:,} images, shards of {SHARD_SIZE}", ours, 10)]


def _finish(store: Store) -> None:
    """A corpus without pixels: its plan, its records with their digests, and its manifest."""
    # To wait for the disk after each of 16,000 small files would take minutes.
    with patch("os.fsync", lambda _: None):
        segments = extend_plan(store, share_out(IMAGES), SHARD_SIZE)
        plan = shards(segments)

        def put(shard) -> None:
            (key, data), (record_key, record) = null_objects(shard)
            store.put_named(key, data)
            store.put_checked(record_key, record)

        for _ in in_threads(put, plan):
            pass
        publish_manifest(store, segments, drawn=plan)
