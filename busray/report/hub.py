"""What a card's header tells Hugging Face's `datasets`: files, columns and classes."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from busray.corpus.columns import LABEL, FlatColumns, class_names
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
        return split_files([PNG_INDEX, "data/*/*/*.png"], index.fields(), index.classes, images, size)
    fields = dict(FIELDS)
    if stored_format >= 2:
        fields[CAPTION] = pa.string()
    names = [str(row["object"]) for row in sorted(used, key=_turn(used))]
    # An object without rows has no column of images before refinement, or of captions.
    if len(names) > MOST_FILES and len(used) == len(shards):
        names = ["data/*/*.parquet"]
    # The columns are named, since a shard may also have its images before refinement.
    return split_files(names, fields, class_names(used), images, size, columns=["image", *fields])


def _turn(shards: Sequence[Mapping[str, Any]]) -> Any:
    """A key by which classes take turns: how far a shard is in its own class."""
    ends = dict[str, int]()
    for row in shards:
        ends[row["class"]] = max(ends.get(row["class"], 0), row["first"] + row["count"])
    return lambda row: (row["first"] / ends[row["class"]], row["class"])


def split_files(
    paths: Sequence[str],
    fields: Mapping[str, pa.DataType],
    classes: Sequence[str],
    images: int,
    size: int,
    **reader: Any,
) -> Json:
    """`configs` and `dataset_info` of a data set with one split, `train`. fields: columns besides
    the image. size: bytes. reader: further settings of the reader."""
    features: list[Json] = [{"name": "image", "dtype": "image"}]
    for name, kind in fields.items():
        if name == LABEL:
            labels = {str(i): label for i, label in enumerate(classes)}
            features.append({"name": name, "dtype": {"class_label": {"names": labels}}})
        else:
            features.append({"name": name, "dtype": "float64" if kind == pa.float64() else str(kind)})
    config = {"config_name": "default", **reader, "data_files": [{"split": "train", "path": list(paths)}]}
    split = {"name": "train", "num_bytes": size, "num_examples": images}
    info = {"config_name": "default", "features": features, "splits": [split]}
    return {"configs": [config], "dataset_info": {**info, "download_size": size, "dataset_size": size}}
