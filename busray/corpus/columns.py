"""Flat, typed columns of released images, for readers that know nothing of busray.

Stored shards keep what they always had: the class as text, and quotas' values as one JSON text.
What leaves a run has the class as a number with its name beside, and a column for each quota.
"""

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from busray.config import Config
from busray.corpus.encode import CAPTION, IMAGE
from busray.corpus.recipe import Quotas, plain_words, quotas
from busray.prompt_text import plain_caption
from busray.records import DataSet

LABEL, LABEL_NAME = "class", "class_name"
TEXTS = ("image_id", LABEL_NAME, CAPTION, "prompt")
NUMBERS = ("index", "attempt", "seed_txt2img", "seed_img2img", "left", "top", "width", "height")

Json = dict[str, Any]


@dataclass(frozen=True)
class FlatColumns:
    """The columns of a corpus's released images."""

    classes: tuple[str, ...]  # a class's number is its place here; sorted, as torchvision sorts
    words: Mapping[str, str]  # token -> what a caption says in its place
    quotas: Mapping[str, pa.DataType]  # column of a quota -> type of its values

    def flat(self, row: Mapping[str, Any]) -> Json:
        """A row of read_rows without its images."""
        values: Json = {"image_id": row["image_id"], LABEL: self.classes.index(row["class"]), LABEL_NAME: row["class"]}
        # A corpus of format 1 has no captions.
        values[CAPTION] = row.get(CAPTION) or plain_caption(row["prompt"], self.words, row["class"])
        values["prompt"] = row["prompt"]
        values |= {name: row[name] for name in NUMBERS}
        given = json.loads(row["columns"])
        for name, kind in self.quotas.items():
            value = given.get(name)  # a class need not have every quota
            values[flat_name(name)] = None if value is None else _typed(value, kind)
        return values

    def fields(self) -> dict[str, pa.DataType]:
        """column -> type, in their order, without images."""
        kinds: dict[str, pa.DataType] = {"image_id": pa.string(), LABEL: pa.int64()}
        kinds |= dict.fromkeys(TEXTS[1:], pa.string()) | dict.fromkeys(NUMBERS, pa.int64())
        return kinds | {flat_name(name): kind for name, kind in self.quotas.items()}

    def schema(self, *, image: bool = False, file_name: bool = False) -> pa.Schema:
        """Of a table whose rows are `flat`, with what Hugging Face's `datasets` must know of it."""
        first = {"image": IMAGE} if image else {}
        first |= {"file_name": pa.string()} if file_name else {}
        fields = first | self.fields()
        features: Json = {}
        for name, kind in fields.items():
            features[name] = {"dtype": dtype(kind), "_type": "Value"}
        features[LABEL] = {"names": list(self.classes), "_type": "ClassLabel"}
        if image:
            features["image"] = {"_type": "Image"}
        return pa.schema(list(fields.items()), metadata={"huggingface": json.dumps({"info": {"features": features}})})

    def table(self, rows: Sequence[Mapping[str, Any]]) -> bytes:
        """Parquet of `flat` rows, without images."""
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist([dict(row) for row in rows], schema=self.schema()), buffer)
        return buffer.getvalue()


def flat_columns(config: Config, dataset: DataSet, classes: Iterable[str]) -> FlatColumns:
    """classes: those that have images."""
    return FlatColumns(tuple(sorted(classes)), plain_words(config), _kinds(quotas(config, dataset)))


def _kinds(shares: Quotas) -> dict[str, pa.DataType]:
    """column -> the type that holds each of its values, of all classes."""
    values: dict[str, set[str]] = {}
    for columns in shares.values():
        for column, of_column in columns.items():
            values.setdefault(column, set()).update(of_column)
    return {column: _kind(values[column]) for column in sorted(values)}


def _kind(values: Iterable[str]) -> pa.DataType:
    if all(_is_written_as(value, int) for value in values):
        return pa.int64()
    return pa.float64() if all(_is_written_as(value, float) for value in values) else pa.string()


def _is_written_as(value: str, number: type[int] | type[float]) -> bool:
    """Whether text stands for this number and nothing else: `007` is a code, and no 7."""
    try:
        return str(number(value)) == value
    except ValueError:
        return False


def _typed(value: str, kind: pa.DataType) -> int | float | str:
    if kind == pa.int64():
        return int(value)
    return float(value) if kind == pa.float64() else value


def flat_name(column: str) -> str:
    """A quota's column. Its name may be that of a column that every image has."""
    return f"quota_{column}" if column in (*TEXTS, *NUMBERS, LABEL, "image", "file_name") else column


def dtype(kind: pa.DataType) -> str:
    """A type's name in `datasets`."""
    return "float64" if kind == pa.float64() else str(kind)  # Arrow calls it double


def class_names(published: Iterable[Mapping[str, Any]]) -> list[str]:
    """The classes that have images, by rows of the manifest; sorted."""
    return sorted({row["class"] for row in published if row["rows"]})
