"""Flat columns: a type for each quota, the class as a number, a caption in plain words."""

import pyarrow as pa
import pytest

from busray.corpus.columns import FlatColumns, _kind, flat_name
from busray.corpus.commit import read_commits, read_rows
from busray.storage import Store
from tests.support.released import finish

COLUMNS = FlatColumns(("benign", "malignant"), {"<us>": "ultrasound"}, {"birads": pa.int64(), "site": pa.string()})
ROW = {"image_id": "f-malignant-00000001", "class": "malignant", "prompt": "<us> image", "columns": '{"birads":"4"}'}
ROW |= dict.fromkeys(("index", "attempt", "seed_txt2img", "seed_img2img", "left", "top", "width", "height"), 3)


def test_a_row_is_flat_and_its_values_have_types() -> None:
    flat = COLUMNS.flat(ROW)
    assert list(flat) == list(COLUMNS.fields())
    assert (flat["class"], flat["class_name"], flat["birads"], flat["site"]) == (1, "malignant", 4, None)
    assert flat["caption"] == "ultrasound image, malignant"
    assert pa.Table.from_pylist([flat], schema=COLUMNS.schema()).num_rows == 1


def test_a_caption_that_is_stored_is_taken() -> None:
    assert COLUMNS.flat({**ROW, "caption": "as stored"})["caption"] == "as stored"


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["3", "4"], pa.int64()),
        (["0.5", "4.25"], pa.float64()),
        (["4a", "4b"], pa.string()),
        (["007", "12"], pa.string()),
        (["1", "left"], pa.string()),
        (["nan x"], pa.string()),
    ],
)
def test_a_quota_has_the_type_that_holds_each_of_its_values(values: list[str], kind: pa.DataType) -> None:
    assert _kind(values) == kind


def test_a_quota_of_a_name_that_is_taken_gets_another() -> None:
    assert [flat_name(name) for name in ("site", "index", "image")] == ["site", "quota_index", "quota_image"]


def test_new_shards_have_captions_without_tokens(store: Store) -> None:
    finish(store)
    texts = [text for c in read_commits(store) if c.rows for text in read_rows(store, c)["caption"].to_pylist()]
    assert "ultrasound image of benign breast tissue, BI-RADS 4, left" in texts
    assert "ultrasound seen, malignant" in texts
    assert not any("<" in text for text in texts)
