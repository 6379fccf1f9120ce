"""data/metadata.parquet of a corpus of format `png`: a row for each released PNG.

Readers of image folders take labels and captions from it, and no PNG that it does not name.
Derived: it is made again from the shards' own metadata.
"""

import io
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from busray.corpus.columns import FlatColumns
from busray.corpus.commit import read_named
from busray.layout import PNG_INDEX
from busray.storage import Store, in_threads


def publish_index(store: Store, published: Sequence[Mapping[str, Any]], columns: FlatColumns) -> None:
    """published: rows of the manifest. The images stand in a random order, so that a reader that
    takes them one after the other sees all classes from the start."""
    rows = [row for lines in in_threads(lambda shard: _rows(store, shard, columns), published) for row in lines]
    random.Random(0).shuffle(rows)
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=columns.schema(file_name=True)), buffer)
    store.replace(PNG_INDEX, buffer.getvalue())


def _rows(store: Store, shard: Mapping[str, Any], columns: FlatColumns) -> list[dict[str, Any]]:
    return [{"file_name": key, **columns.flat(row)} for key, row in _pictures(store, shard)]


def _pictures(store: Store, shard: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name of the PNG below data/, row) of each image. Damaged."""
    data = read_named(store, shard["object"], shard["digest"], "the manifest")
    for line in data.decode().splitlines()[1:]:
        row = json.loads(line)
        yield row["image"]["key"].removeprefix(f"{PNG_INDEX.rpartition('/')[0]}/"), row
