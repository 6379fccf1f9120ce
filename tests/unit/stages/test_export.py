"""`busray export`: what leaves a run is what was released, in any format, resumed and verified."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from busray.cli import main
from busray.corpus import export
from busray.corpus.commit import read_commits, read_rows
from busray.corpus.export_files import FORMATS, names_in
from busray.layout import CARD, MANIFEST, REPORT_JSON
from busray.records import StoppedForGood, UserError
from busray.stages.export import export_run
from busray.storage import Store
from tests.support.released import IMAGES, RELEASED, finish
from tests.support.runs import quiet


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "run"))


@pytest.fixture
def target(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "corpus"))


def data_of(target: Store) -> dict[str, bytes]:
    """The files that a reader opens."""
    return {key: target.read(key) for key in target.list() if not key.startswith("export/") and key != CARD}


def ids(target: Store, to: str) -> list[str]:
    index = ("train/metadata.parquet", "images.csv")
    return [name for key, data in data_of(target).items() if key not in index for name in names_in(to, key, data)]


def released(store: Store) -> dict[str, bytes]:
    """id -> PNG, read from the shards."""
    found = {}
    for commit in read_commits(store):
        for row in read_rows(store, commit).to_pylist():
            found[row["image_id"]] = row["image"]["bytes"]
    return found


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("format", ["parquet", "png"])
def test_every_released_image_leaves_once_and_no_other(store: Store, target: Store, to: str, format: str) -> None:
    run = finish(store, format)
    found = export_run(store, run.config, target, to, 0, quiet)
    assert sorted(ids(target, to)) == sorted(released(store)) and len(released(store)) == RELEASED
    assert found.images == {"benign": 9, "malignant": 6, "normal": 2}
    assert json.loads(target.read(export.VERIFIED))["images"] == found.images


@pytest.mark.parametrize("version", [1, 2])
def test_a_parquet_export_has_the_stored_bytes_in_a_mixed_order(store: Store, target: Store, version: int) -> None:
    run = finish(store, version=version)
    export_run(store, run.config, target, "huggingface", 0, quiet)
    table = pq.read_table(io.BytesIO(target.read("data/train-00000-of-00001.parquet")))
    pngs = {row["image_id"]: row["image"]["bytes"] for row in table.to_pylist()}
    assert pngs == released(store)
    names = table.column("class_name").to_pylist()
    assert names != sorted(names) and len(set(names[:8])) > 1
    assert "<us-" not in "".join(table.column("caption").to_pylist())
    assert set(table.column("birads").to_pylist()) == {4, 5}


def test_the_card_of_an_export_names_its_own_files(store: Store, target: Store) -> None:
    run = finish(store)
    export_run(store, run.config, target, "webdataset", 0, quiet)
    text = target.read(CARD).decode()
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["configs"][0]["data_files"] == [{"split": "train", "path": ["train-*.tar"]}]
    assert front["dataset_info"]["splits"][0]["num_examples"] == RELEASED
    assert "## Congruence" in text and not store.exists(REPORT_JSON)


def test_images_as_files_have_a_table_of_their_columns(store: Store, target: Store) -> None:
    run = finish(store)
    export_run(store, run.config, target, "imagefolder", 0, quiet)
    index = pq.read_table(io.BytesIO(target.read("train/metadata.parquet"))).to_pylist()
    assert {f"train/{row['file_name']}" for row in index} == {key for key in target.list("train") if key[-4:] == ".png"}
    assert all(row["file_name"].startswith(f"{row['class_name']}/") for row in index)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(export, "PART_BYTES", 2500)
    yield


@pytest.mark.usefixtures("small_parts")
def test_an_export_that_was_stopped_goes_on_and_ends_as_one_that_was_not(
    store: Store, target: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, written = finish(store), list[int]()
    write = export.write_batch

    def stops(*arguments: Any) -> Any:
        written.append(arguments[3])
        if len(written) == 2:
            raise KeyboardInterrupt
        return write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(export, "write_batch", stops)
        with pytest.raises(KeyboardInterrupt):
            export_run(store, run.config, target, "webdataset", 0, quiet)
        assert not target.exists(export.VERIFIED)
        export_run(store, run.config, target, "webdataset", 0, quiet)
    assert len(written) > 2 and written.count(0) == 1  # the first batch was not written again
    whole = Store(str(tmp_path / "whole"))
    export_run(store, run.config, whole, "webdataset", 0, quiet)
    assert data_of(target) == data_of(whole) and len(data_of(whole)) > 2


def test_a_file_that_is_damaged_after_it_was_written_is_found(store: Store, target: Store) -> None:
    run = finish(store)
    export_run(store, run.config, target, "webdataset", 0, quiet)
    target.replace("train-000000.tar", b"torn")
    with pytest.raises(StoppedForGood, match=r"train-000000\.tar: it is not what was written"):
        export_run(store, run.config, target, "webdataset", 0, quiet)


def test_a_file_of_others_among_the_images_is_found(store: Store, target: Store) -> None:
    run = finish(store)
    export_run(store, run.config, target, "imagefolder", 0, quiet)
    target.replace("train/benign/mine.png", b"x")
    with pytest.raises(StoppedForGood, match=r"1 files are no part of the export, such as train/benign/mine\.png"):
        export_run(store, run.config, target, "imagefolder", 0, quiet)


def test_a_quarantined_image_that_is_in_a_shard_after_all_is_found(
    store: Store, target: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, real = finish(store), export.ids_of
    monkeypatch.setattr(export, "ids_of", lambda *of: list(real(*of))[1:])
    with pytest.raises(StoppedForGood, match="0 released images are not there, 1 are there that should not be"):
        export_run(store, run.config, target, "huggingface", 0, quiet)


@pytest.mark.parametrize(("to", "seed"), [("huggingface", 0), ("webdataset", 1)])
def test_another_export_does_not_go_into_the_same_folder(store: Store, target: Store, to: str, seed: int) -> None:
    run = finish(store)
    export_run(store, run.config, target, "webdataset", 0, quiet)
    with pytest.raises(UserError, match="name a new folder"):
        export_run(store, run.config, target, to, seed, quiet)


def test_a_folder_with_other_things_is_refused(store: Store, target: Store) -> None:
    run = finish(store)
    target.replace("notes.txt", b"mine")
    with pytest.raises(UserError, match=r"it holds other things, such as notes\.txt"):
        export_run(store, run.config, target, "webdataset", 0, quiet)
    assert list(target.list()) == ["notes.txt"]


@pytest.mark.parametrize("inside", ["export", "a/b"])
def test_a_target_inside_the_run_is_refused(store: Store, inside: str) -> None:
    run = finish(store)
    with pytest.raises(UserError, match="lies outside its run"):
        export_run(store, run.config, store.sub(inside), "webdataset", 0, quiet)


def test_an_unfinished_corpus_is_sent_to_finish(store: Store, target: Store) -> None:
    run = finish(store)
    store.delete(MANIFEST)
    for key in list(store.list("commits"))[:1]:
        store.delete(key)
    with pytest.raises(UserError, match="is not finished"):
        export_run(store, run.config, target, "webdataset", 0, quiet)


def test_the_command_says_what_it_exported(store: Store, target: Store, capsys: pytest.CaptureFixture[str]) -> None:
    finish(store)
    assert main(["export", store.url, target.url, "--to", "huggingface"]) == 0
    said = f"exported and verified: {RELEASED} images (9 benign, 6 malignant, 2 normal) in 1 files: {target.url}"
    assert said in capsys.readouterr().out
    assert sum(IMAGES.values()) > RELEASED
