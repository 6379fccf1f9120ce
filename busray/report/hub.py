"""What a card's header tells Hugging Face's `datasets`: files, columns and classes."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from busray.corpus.columns import LABEL, FlatColumns, class_names, dtype
from busray.corpus.encode import CAPTION, FIELDS
from busray.layout import PNG_INDEX

Json = dict[str, Any]

MOST_FILES = 100
"""Shards that the header names one by one, so that classes take turns and only committed objects
are read. A longer list would bury the card."""


def files_of_run(stored_format: int, shards: Sequence[Mapping[str, Any]], index: FlatColumns | None = None) -> Json:
    """Of the released corpus of a run. shards: rows of its manifest. index: columns of the index
    that a PNG corpus has."""
    used = [row for row in shards if row["rows"]]
    images, size = sum(row["rows"] for row in used), sum(row["bytes"] for row in used)
    if index is not None:
        columns = image_columns(index.fields(), index.classes)
        return split_files([PNG_INDEX, "data/*/*/*.png"], columns, images, size)
    fields = dict(FIELDS)
    if stored_format >= 2:
        fields[CAPTION] = pa.string()
    names = [str(row["object"]) for row in sorted(used, key=_turn(used))]
    # In older runs an object without rows lacks columns that the others have.
    if len(names) > MOST_FILES and len(used) == len(shards):
        names = ["data/*/*.parquet"]
    # The columns are named, since a shard may also have its images before refinement.
    columns = image_columns(fields, class_names(used))
    return split_files(names, columns, images, size, columns=["image", *fields])


def _turn(shards: Sequence[Mapping[str, Any]]) -> Any:
    """A key by which classes take turns: how far a shard is in its own class."""
    ends = dict[str, int]()
    for row in shards:
        ends[row["class"]] = max(ends.get(row["class"], 0), row["first"] + row["count"])
    return lambda row: (row["first"] / ends[row["class"]], row["class"])


def split_files(paths: Sequence[str], features: Sequence[Json], images: int, size: int, **reader: Any) -> Json:
    """`configs` and `dataset_info` of a data set with one split, `train`. features: columns that a
    reader finds there. size: bytes. reader: further settings of the reader."""
    config = {"config_name": "default", **reader, "data_files": [{"split": "train", "path": list(paths)}]}
    split = {"name": "train", "num_bytes": size, "num_examples": images}
    info = {"config_name": "default", "features": list(features), "splits": [split]}
    return {"configs": [config], "dataset_info": {**info, "download_size": size, "dataset_size": size}}


def image_columns(fields: Mapping[str, pa.DataType], classes: Sequence[str]) -> list[Json]:
    """An image and these columns; LABEL numbers the classes."""
    columns: list[Json] = [{"name": "image", "dtype": "image"}]
    for name, kind in fields.items():
        columns.append(_class_label(name, classes) if name == LABEL else {"name": name, "dtype": dtype(kind)})
    return columns


def tar_columns(fields: Mapping[str, pa.DataType], classes: Sequence[str]) -> list[Json]:
    """What `datasets` makes of WebDataset's files: a column for each suffix."""
    inner = [{"name": name, "dtype": dtype(kind)} for name, kind in fields.items()]
    return [
        {"name": "png", "dtype": "image"},
        _class_label("cls", classes),
        {"name": "txt", "dtype": "string"},
        {"name": "json", "struct": inner},
        {"name": "__key__", "dtype": "string"},
        {"name": "__url__", "dtype": "string"},
    ]


def _class_label(name: str, classes: Sequence[str]) -> Json:
    labels = {str(i): label for i, label in enumerate(classes)}
    return {"name": name, "dtype": {"class_label": {"names": labels}}}
