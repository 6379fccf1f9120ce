"""An export: its order and batches; files of each format are read back by other code."""

import io
import json
import tarfile
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pydicom import dcmread
from pydicom.uid import UID, SecondaryCaptureImageStorage

from busray.corpus import export
from busray.corpus.encode import png_bytes, png_pixels
from busray.corpus.export import plan_export
from busray.corpus.export_files import FORMATS, encoder, names_in
from busray.corpus.secondary_capture import image_of, secondary_capture
from busray.records import Commit, Execution
from tests.unit.corpus.test_columns import COLUMNS, ROW

EXECUTION = Execution("cpu", "float32", 2, 1, {})


def commits(**shards: int) -> list[Commit]:
    """class -> shards of 10 images and 100 bytes."""
    made = []
    for name, n in shards.items():
        made += [Commit(name, 10 * i, 10, f"{name}-{i}", "d", 100, 10, (), EXECUTION, 1.0) for i in range(n)]
    return made


def plan(of: list[Commit], seed: int = 0, share: float = 1.0) -> Any:
    return plan_export(of, "f", "m", "webdataset", seed, share)


def test_each_batch_has_its_share_of_every_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "PART_BYTES", 1000)
    of = commits(benign=40, malignant=20)
    made = plan(of)
    assert len(made.batches) == 6 and made.parts == (1,) * 6
    for batch in made.batches:
        names = [of[i].class_name for i in batch]
        assert len(names) == 10 and 2 <= names.count("malignant") <= 5
    assert sorted(i for batch in made.batches for i in batch) == list(range(60))


def test_the_order_follows_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "PART_BYTES", 1000)
    of = commits(benign=40, malignant=20)
    assert plan(of) == plan(of) and plan(of).batches != plan(of, seed=1).batches


def test_a_batch_of_large_shards_has_every_class_and_several_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "PART_BYTES", 50)
    made = plan(commits(benign=2, malignant=2))
    assert [len(batch) for batch in made.batches] == [2, 2] and made.parts == (4, 4)


def test_what_is_not_exported_does_not_count_for_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "PART_BYTES", 500)
    assert len(plan(commits(benign=10)).batches) == 2
    assert len(plan(commits(benign=10), share=0.5).batches) == 1


PNG = png_bytes(np.arange(15, dtype=np.uint8).reshape(3, 5), {})
IMAGES = [({**COLUMNS.flat(ROW), "image_id": f"f-malignant-0000000{i}"}, PNG) for i in range(3)]


@pytest.mark.parametrize("to", FORMATS)
def test_the_images_of_a_format_are_found_in_its_files(to: str) -> None:
    files = encoder(to)(IMAGES, COLUMNS, 0, 1, "f" * 64)
    found = [name for key, data in files.items() for name in names_in(to, key, data)]
    assert sorted(found) == [values["image_id"] for values, _ in IMAGES]
    assert files == encoder(to)(IMAGES, COLUMNS, 0, 1, "f" * 64)  # the same bytes again


def test_a_parquet_file_has_a_class_label_and_the_images_bytes() -> None:
    ((key, data),) = encoder("huggingface")(IMAGES, COLUMNS, 1, 4, "f").items()
    assert key == "data/train-00001-of-00004.parquet"
    table = pq.read_table(io.BytesIO(data))
    assert table.column("class").to_pylist() == [1, 1, 1] and table.column("birads").to_pylist() == [4, 4, 4]
    assert table.column("image")[0].as_py() == {"bytes": PNG, "path": "f-malignant-00000000.png"}
    assert json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]["class"]["_type"] == "ClassLabel"


def test_a_sample_of_a_tar_is_together_and_its_name_has_no_dot() -> None:
    dotted = [({**IMAGES[0][0], "image_id": "f-v1.5-00000000"}, PNG)]
    ((_, data),) = encoder("webdataset")(dotted, COLUMNS, 0, 1, "f").items()
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert [entry.name.split(".", 1) for entry in archive] == [
            ["f-v1_5-00000000", suffix] for suffix in ("png", "cls", "txt", "json")
        ]
        assert {entry.mtime for entry in archive} == {0}
    assert names_in("webdataset", "", data) == ["f-v1.5-00000000"]


def test_a_secondary_capture_says_that_it_is_synthetic_and_keeps_every_pixel() -> None:
    values, png = IMAGES[0]
    read = dcmread(io.BytesIO(secondary_capture(png_pixels(png), values, "f" * 64)))
    assert np.array_equal(read.pixel_array, png_pixels(png))  # an odd number of bytes
    assert read[0x0008, 0x001C].value == "YES" and read.ConversionType == "SYN"
    assert read.SOPClassUID == SecondaryCaptureImageStorage
    assert read.ContributingEquipmentSequence[0].Manufacturer == "busray"
    assert "SYNTHETIC" in read.ImageComments and values["caption"] in read.ImageComments
    assert (read.PatientSex, read.PatientBirthDate, read.StudyDate) == ("", "", "")


def test_uids_are_valid_follow_from_the_image_and_differ() -> None:
    reads = [dcmread(io.BytesIO(secondary_capture(png_pixels(PNG), v, "f" * 64))) for v, _ in IMAGES]
    names = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
    uids = [getattr(read, name) for read in reads for name in names]
    assert len(set(uids)) == 9 and all(UID(uid).is_valid and len(uid) <= 64 for uid in uids)
    other = dcmread(io.BytesIO(secondary_capture(png_pixels(PNG), IMAGES[0][0], "e" * 64)))
    assert other.SOPInstanceUID != reads[0].SOPInstanceUID


def test_another_dicom_file_is_no_image_of_an_export() -> None:
    read = dcmread(io.BytesIO(secondary_capture(png_pixels(PNG), IMAGES[0][0], "f")))
    del read.SyntheticData
    buffer = io.BytesIO()
    read.save_as(buffer)
    with pytest.raises(ValueError, match="no synthetic"):
        image_of(buffer.getvalue())
