"""Images and their rows as bytes.

A shard is a Parquet file that Hugging Face `datasets` reads, or PNG files and a metadata file.
The same rows give the same bytes, so two drivers that draw one shard put one object.
"""

import io
import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from busray.identity import canonical_json, sha256_bytes
from busray.records import IMAGE_COLUMNS, ImageSpec

# What `datasets` decodes as an Image
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
# The columns of a row besides the images. The types have the same names in Arrow and `datasets`.
FIELDS: dict[str, pa.DataType] = {
    **dict.fromkeys(("image_id", "class", "prompt"), pa.string()),
    **dict.fromkeys(("index", "attempt", "seed_txt2img", "seed_img2img"), pa.int64()),
    **dict.fromkeys(("left", "top", "width", "height"), pa.int64()),
    "columns": pa.string(),
}
CAPTION = "caption"
"""A column more, since format 2."""


@dataclass(frozen=True)
class Row:
    """One image of a shard."""

    spec: ImageSpec
    image: np.ndarray  # uint8 [h, w]
    # uint8 [h, w]: the image before refinement, where it is kept
    txt2img: np.ndarray | None = None


def png_bytes(image: np.ndarray, text: Mapping[str, str]) -> bytes:
    """An 8-bit grey PNG of uint8 [h, w] with text chunks (Latin-1); no time stamp.

    Each pixel less its left neighbour, then Huffman codes: speckle holds few repeats, and a search
    for them takes most of an encoder's time. Format: W3C, PNG Specification, 3rd edition.
    """
    height, width = image.shape
    lines = np.empty((height, 1 + width), np.uint8)
    lines[:, 0] = 1  # the filter type Sub
    lines[:, 1] = image[:, 0]
    np.subtract(image[:, 1:], image[:, :-1], out=lines[:, 2:])
    codes = zlib.compressobj(level=1, strategy=zlib.Z_HUFFMAN_ONLY)
    chunks = [_png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))]
    for key, value in text.items():
        chunks.append(_png_chunk(b"tEXt", f"{key}\0{value}".encode("latin-1")))
    chunks.append(_png_chunk(b"IDAT", codes.compress(lines.tobytes()) + codes.flush()))
    return b"".join([b"\x89PNG\r\n\x1a\n", *chunks, _png_chunk(b"IEND", b"")])


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_pixels(data: bytes) -> np.ndarray:
    """uint8 [h, w] of a grey PNG."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        return np.asarray(image.convert("L"))


def _synthetic_png(row: Row, column: str, provenance: Mapping[str, Any]) -> bytes:
    pixels = row.image if column == "image" else row.txt2img
    assert pixels is not None
    text = {
        "Comment": "SYNTHETIC image made by busray; not for clinical use",
        "image_id": row.spec.image_id,
        "fingerprint": str(provenance["fingerprint"]),
    }
    return png_bytes(pixels, text)


def image_columns(rows: Sequence[Row]) -> list[str]:
    """The image columns of these rows; that before refinement only if every row has one."""
    txt2img = bool(rows) and all(row.txt2img is not None for row in rows)
    return [column for column in IMAGE_COLUMNS if column == "image" or txt2img]


def describe(row: Row) -> dict[str, Any]:
    """A row's columns besides the images."""
    spec = row.spec
    caption = {CAPTION: spec.caption} if spec.caption else {}
    return {
        "image_id": spec.image_id,
        "class": spec.class_name,
        "prompt": spec.prompt,
        **caption,
        "index": spec.index,
        "attempt": spec.attempt,
        "seed_txt2img": spec.seed_txt2img,
        "seed_img2img": spec.seed_img2img,
        **asdict(spec.box),
        "columns": canonical_json(spec.columns),
    }


def encode_parquet(
    rows: Sequence[Row], provenance: Mapping[str, Any], *, txt2img: bool = False, caption: bool = False
) -> bytes:
    """A Parquet shard. The run-wide provenance is in the metadata of its schema.

    txt2img, caption: whether shards of this corpus have these columns. It is used where there are
    no rows to tell: some readers take only files with the same columns.
    """
    images = image_columns(rows) if rows or not txt2img else list(IMAGE_COLUMNS)
    captioned = any(row.spec.caption for row in rows) if rows else caption
    fields = FIELDS | ({CAPTION: pa.string()} if captioned else {})
    features = {column: {"_type": "Image"} for column in images}
    features |= {name: {"dtype": str(kind), "_type": "Value"} for name, kind in fields.items()}
    schema = pa.schema(
        [*((column, IMAGE) for column in images), *fields.items()],
        metadata={
            "huggingface": json.dumps({"info": {"features": features}}),
            "busray": canonical_json(dict(provenance)),
        },
    )
    cells = []
    for row in rows:
        values = describe(row)
        for column in images:
            values[column] = {"bytes": _synthetic_png(row, column, provenance), "path": f"{row.spec.image_id}.png"}
        cells.append(values)
    table = pa.Table.from_pylist(cells, schema=schema)
    compression = dict.fromkeys(fields, "zstd")
    for column in images:  # the bytes are a PNG, compressed already
        compression |= {f"{column}.bytes": "none", f"{column}.path": "zstd"}
    buffer = io.BytesIO()
    pq.write_table(
        table,
        buffer,
        compression=compression,  # pyright: ignore[reportArgumentType] (stubs know no choice a column)
        use_dictionary=["class", "prompt"],  # pyright: ignore[reportArgumentType]
        write_statistics=False,
    )
    return buffer.getvalue()


def encode_png(
    rows: Sequence[Row], provenance: Mapping[str, Any], prefix: str, txt2img_prefix: str
) -> tuple[bytes, dict[str, bytes]]:
    """(metadata.jsonl, object key -> PNG) of a PNG shard whose keys begin with `prefix`, those of
    images before refinement with `txt2img_prefix`.

    The metadata's first line is the run-wide provenance. Each further line names the PNGs of a row
    by key and SHA-256, so that the digest of the metadata covers every image.
    """
    pngs: dict[str, bytes] = {}
    lines = [canonical_json({"busray": dict(provenance)})]
    for row in rows:
        cells = {}
        for column in image_columns(rows):
            data = _synthetic_png(row, column, provenance)
            digest = sha256_bytes(data)
            suffix, folder = ("", prefix) if column == "image" else (".txt2img", txt2img_prefix)
            # The digest in the key keeps two drivers from writing different bytes to one object.
            key = f"{folder}/{row.spec.image_id}{suffix}-{digest[:16]}.png"
            pngs[key] = data
            cells[column] = {"key": key, "sha256": digest}
        lines.append(canonical_json({**cells, **describe(row)}))
    return ("\n".join(lines) + "\n").encode(), pngs
