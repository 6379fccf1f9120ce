"""Files of an export: what each format makes of some images, and which images a file holds."""

import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from busray.corpus.columns import LABEL, LABEL_NAME, FlatColumns
from busray.corpus.encode import CAPTION, png_pixels
from busray.corpus.secondary_capture import image_of, secondary_capture
from busray.identity import canonical_json

FORMATS = ("huggingface", "imagefolder", "webdataset", "dicom")
ROW_GROUP_BYTES = 64_000_000
"""Of a Parquet file: what a reader must load to see one image."""

Images = Sequence[tuple[Mapping[str, Any], bytes]]  # (flat columns, PNG)
Encoder = Callable[[Images, FlatColumns, int, int, str], dict[str, bytes]]
"""(images, columns, number of this file, number of all, fingerprint) -> key -> bytes."""


def encoder(to: str) -> Encoder:
    return {"huggingface": parquet, "imagefolder": folders, "webdataset": tar, "dicom": dicom}[to]


def data_files(to: str) -> list[str]:
    """Patterns of an export's files, as Hugging Face's `datasets` needs them; none for DICOM."""
    return {
        "huggingface": ["data/train-*.parquet"],
        "imagefolder": ["train/metadata.parquet", "train/*/*.png"],
        "webdataset": ["train-*.tar"],
        "dicom": [],
    }[to]


def parquet(images: Images, columns: FlatColumns, part: int, parts: int, fingerprint: str) -> dict[str, bytes]:
    """One Parquet file, as `datasets` itself names and writes them."""
    cells = []
    for values, png in images:
        cells.append({"image": {"bytes": png, "path": f"{values['image_id']}.png"}, **values})
    table = pa.Table.from_pylist(cells, schema=columns.schema(image=True))
    each = max(1, sum(len(png) for _, png in images) // max(1, len(images)))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", row_group_size=max(1, ROW_GROUP_BYTES // each))
    return {f"data/train-{part:05d}-of-{parts:05d}.parquet": buffer.getvalue()}


def folders(images: Images, columns: FlatColumns, part: int, parts: int, fingerprint: str) -> dict[str, bytes]:
    """A PNG for each image, in a folder for each class."""
    return {f"train/{values[LABEL_NAME]}/{values['image_id']}.png": png for values, png in images}


def tar(images: Images, columns: FlatColumns, part: int, parts: int, fingerprint: str) -> dict[str, bytes]:
    """A tar of WebDataset: of each image `png`, `cls` (the class's number), `txt` and `json`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for values, png in images:
            parts_of = {"png": png, "cls": str(values[LABEL]).encode(), "txt": values[CAPTION].encode()}
            parts_of["json"] = canonical_json(dict(values)).encode()
            for suffix, data in parts_of.items():
                # A sample's name ends at the first dot, and names of classes may have some.
                entry = tarfile.TarInfo(f"{values['image_id'].replace('.', '_')}.{suffix}")
                entry.size, entry.mode = len(data), 0o644
                archive.addfile(entry, io.BytesIO(data))
    return {f"train-{part:06d}.tar": buffer.getvalue()}


def dicom(images: Images, columns: FlatColumns, part: int, parts: int, fingerprint: str) -> dict[str, bytes]:
    """A Secondary Capture for each image, in a folder for each class."""
    return {
        f"{values[LABEL_NAME]}/{values['image_id']}.dcm": secondary_capture(png_pixels(png), values, fingerprint)
        for values, png in images
    }


def names_in(to: str, key: str, data: bytes) -> list[str]:
    """Ids of the images in a file of an export, read back by another way than it was written."""
    if to == "huggingface":
        return pq.read_table(io.BytesIO(data), columns=["image_id"]).column(0).to_pylist()
    if to == "webdataset":
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            texts = [archive.extractfile(entry) for entry in archive if entry.name.endswith(".json")]
            return [json.loads(text.read())["image_id"] for text in texts if text is not None]
    if to == "dicom":
        return [image_of(data)]
    return [PurePosixPath(key).stem]
