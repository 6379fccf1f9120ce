"""Moving damaged objects aside, so that the next command makes exactly these again.

Nothing is deleted: what is moved lies under damaged/<time>/ in the run, by its old key.
"""

from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime

from busray.corpus.damage import Damage
from busray.corpus.manifest import Incomplete, publish_manifest
from busray.corpus.plan import read_segments
from busray.layout import DAMAGED, MANIFEST
from busray.records import Damaged
from busray.storage import Store


def move_aside(store: Store, damages: Sequence[Damage]) -> list[tuple[str, str]]:
    """(old key, new key) of what was moved. No other driver may work on the run meanwhile.

    A damaged or missing manifest is made again at once where every planned shard has its record.
    """
    folder = f"{DAMAGED}/{datetime.now(UTC):%Y-%m-%dT%H%M%S}"
    wanted = sorted({key for damage in damages if damage.mendable for key in damage.aside})
    moved: list[tuple[str, str]] = []
    for key in wanted:
        if store.exists(key):
            store.move(key, f"{folder}/{key}")
            moved.append((key, f"{folder}/{key}"))
    for damage in damages:
        if damage.key.endswith(MANIFEST):
            prefix = damage.key.removesuffix(MANIFEST).rstrip("/")
            _publish(store.sub(prefix) if prefix else store)
    return moved


def _publish(corpus: Store) -> None:
    with suppress(Incomplete, Damaged):  # the next command draws what is missing and publishes it
        if segments := read_segments(corpus):
            publish_manifest(corpus, segments)
