"""Shards are what their readers expect: Parquet that Hugging Face decodes, PNGs that say they
are synthetic."""

import io
import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from busray.corpus.encode import Row, encode_parquet, encode_png, png_bytes, png_pixels
from busray.records import ContentBox, ImageSpec

PROVENANCE = {"fingerprint": "f" * 64, "synthetic": True}


def rows(refined: bool = True) -> list[Row]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 2, 16, 16), dtype=np.uint8)
    return [
        Row(
            ImageSpec(
                f"f-benign-{i:08d}", "benign", i, 0, "a prompt", 2**62 + i, i, ContentBox(0, 2, 16, 12), {"birads": "4"}
            ),
            images[i, 0],
            images[i, 1] if refined else None,
        )
        for i in range(3)
    ]


def test_pixels_survive_a_parquet_shard() -> None:
    table = pq.read_table(io.BytesIO(encode_parquet(rows(), PROVENANCE)))
    for cell, before, row in zip(
        *(table.column(c).to_pylist() for c in ("image", "image_txt2img")), rows(), strict=True
    ):
        assert np.array_equal(png_pixels(cell["bytes"]), row.image)
        assert row.txt2img is not None and np.array_equal(png_pixels(before["bytes"]), row.txt2img)
    assert table.column("seed_txt2img").to_pylist() == [2**62, 2**62 + 1, 2**62 + 2]
    assert json.loads(table.column("columns")[0].as_py()) == {"birads": "4"}


def test_a_parquet_shard_carries_the_provenance_and_what_hugging_face_needs_to_decode_images() -> None:
    schema = pq.read_schema(io.BytesIO(encode_parquet(rows(), PROVENANCE)))
    assert schema.field("image").type == pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"}
    assert set(features) == set(schema.names)
    assert json.loads(schema.metadata[b"busray"]) == PROVENANCE


def test_a_corpus_without_refinement_has_one_image_column() -> None:
    schema = pq.read_schema(io.BytesIO(encode_parquet(rows(refined=False), PROVENANCE)))
    assert "image_txt2img" not in schema.names


def test_the_same_rows_give_the_same_bytes() -> None:
    assert encode_parquet(rows(), PROVENANCE) == encode_parquet(rows(), PROVENANCE)
    assert encode_png(rows(), PROVENANCE, "data/b/s", "txt2img/b/s") == encode_png(
        rows(), PROVENANCE, "data/b/s", "txt2img/b/s"
    )


def test_every_image_says_that_it_is_synthetic_and_which() -> None:
    cell = pq.read_table(io.BytesIO(encode_parquet(rows(), PROVENANCE))).column("image")[1].as_py()
    with Image.open(io.BytesIO(cell["bytes"])) as image:
        assert image.mode == "L"
        assert image.text["Comment"].startswith("SYNTHETIC")  # type: ignore[attr-defined]
        assert image.text["image_id"] == "f-benign-00000001"  # type: ignore[attr-defined]


def test_a_png_shard_names_every_image_by_its_digest() -> None:
    metadata, pngs = encode_png(rows(), PROVENANCE, "data/benign/s", "txt2img/benign/s")
    head, *lines = [json.loads(line) for line in metadata.decode().splitlines()]
    assert head == {"busray": PROVENANCE}
    assert len(lines) == 3 and len(pngs) == 6
    for line in lines:
        for column in ("image", "image_txt2img"):
            assert line[column]["sha256"][:16] in line[column]["key"]
            assert pngs[line[column]["key"]].startswith(b"\x89PNG")


def test_a_shard_whose_images_were_all_rejected_is_still_a_shard() -> None:
    assert pq.read_table(io.BytesIO(encode_parquet([], PROVENANCE))).num_rows == 0


@pytest.mark.parametrize("refined", [False, True])
@pytest.mark.parametrize("caption", ["", "benign breast tissue"])
def test_a_shard_without_rows_has_the_columns_of_its_corpus(refined: bool, caption: str) -> None:
    full = [replace(row, spec=replace(row.spec, caption=caption)) for row in rows(refined)]
    empty = encode_parquet([], PROVENANCE, txt2img=refined, caption=bool(caption))
    there = pq.read_schema(io.BytesIO(encode_parquet(full, PROVENANCE)))
    assert pq.read_schema(io.BytesIO(empty)).equals(there, check_metadata=True)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (128, 96)])
@pytest.mark.parametrize("content", ["noise", "flat", "ramp"])
def test_pillow_reads_the_pixels_and_texts_of_a_png(shape: tuple[int, int], content: str) -> None:
    image = np.random.default_rng(3).integers(0, 256, shape, dtype=np.uint8)
    if content == "flat":
        image[:] = 255
    if content == "ramp":
        image = (np.arange(image.size).reshape(shape) % 256).astype(np.uint8)[::-1]
    data = png_bytes(image, {"Comment": "synthetic, \u00e4", "image_id": "a-1"})
    with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
        picture.verify()
    with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
        assert (picture.mode, picture.info) == ("L", {"Comment": "synthetic, \u00e4", "image_id": "a-1"})
        assert np.array_equal(np.asarray(picture), image)
    assert np.array_equal(png_pixels(data), image)
