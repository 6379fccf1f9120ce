"""README.md of a run: made without a report, with files that a reader finds, and never over the
user's own."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from busray.corpus.manifest import published_rows
from busray.layout import CARD, CARD_STATEMENTS, PNG_INDEX
from busray.report import hub
from busray.stages.card import keep_statements, write_card
from busray.storage import Store
from tests.support.corpora import with_settings
from tests.support.released import IMAGES, RELEASED, finish
from tests.support.runs import quiet


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "run"))


def header(store: Store) -> dict[str, Any]:
    return yaml.safe_load(store.read(CARD).decode().split("---\n")[1])


def paths(store: Store) -> list[str]:
    return header(store)["configs"][0]["data_files"][0]["path"]


def test_the_card_of_a_run_without_a_report_names_the_shards_and_counts_the_images(store: Store) -> None:
    finish(store)
    (split,) = header(store)["dataset_info"]["splits"]
    assert (split["name"], split["num_examples"]) == ("train", RELEASED)
    recorded = {row["object"] for row in published_rows(store).values() if row["rows"]}
    assert set(paths(store)) == recorded and len(recorded) == sum(IMAGES.values()) // 2 - 1
    assert "Not measured." in store.read(CARD).decode()


def test_classes_take_turns_in_the_list_of_files(store: Store) -> None:
    finish(store)
    assert {path.split("/")[1] for path in paths(store)[:3]} == set(IMAGES) - {"normal"} | {"benign"}
    assert {path.split("/")[1] for path in paths(store)[:6]} == set(IMAGES)


def test_classes_are_numbered_as_torchvision_numbers_folders(store: Store) -> None:
    finish(store)
    (label,) = [f for f in header(store)["dataset_info"]["features"] if f["name"] == "class"]
    assert label["dtype"] == {"class_label": {"names": {"0": "benign", "1": "malignant", "2": "normal"}}}


def test_images_from_before_refinement_are_no_column_of_the_card(store: Store) -> None:
    finish(store)
    first = published_rows(store)
    stored = pq.read_schema(io.BytesIO(store.read(next(row["object"] for row in first.values() if row["rows"]))))
    columns = header(store)["configs"][0]["columns"]
    assert set(stored.names) - set(columns) == {"image_txt2img"}
    assert columns == [feature["name"] for feature in header(store)["dataset_info"]["features"]]
    assert "caption" in columns


def test_a_corpus_of_format_1_has_no_captions_and_its_card_none(store: Store) -> None:
    finish(store, version=1)
    assert "caption" not in header(store)["configs"][0]["columns"]
    (name, *_) = paths(store)
    assert "caption" not in pq.read_schema(io.BytesIO(store.read(name))).names


def test_more_shards_than_a_header_can_hold_are_a_pattern_unless_one_is_empty(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "MOST_FILES", 3)
    finish(store)
    assert len(paths(store)) > 3
    monkeypatch.setattr("tests.support.released.QUARANTINED", {})
    whole = Store(str(tmp_path / "whole"))
    finish(whole)
    assert paths(whole) == ["data/*/*.parquet"]


def test_a_png_corpus_has_an_index_of_its_released_images(store: Store) -> None:
    finish(store, "png")
    index = pq.read_table(io.BytesIO(store.read(PNG_INDEX)))
    names = {f"data/{name}" for name in index.column("file_name").to_pylist()}
    assert names == {key for key in store.list("data") if key.endswith(".png")} and len(names) == RELEASED
    assert all(key.startswith("txt2img/") for key in store.list("txt2img"))
    assert len(list(store.list("txt2img"))) == RELEASED
    assert len(set(index.column("class_name").to_pylist()[:8])) > 1
    features = json.loads(index.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["class"] == {"names": ["benign", "malignant", "normal"], "_type": "ClassLabel"}
    assert paths(store) == [PNG_INDEX, "data/*/*/*.png"]


def test_a_png_corpus_of_format_1_keeps_all_its_pictures_in_one_folder(store: Store) -> None:
    finish(store, "png", version=1)
    assert list(store.list("txt2img")) == []
    index = pq.read_table(io.BytesIO(store.read(PNG_INDEX)))
    assert not any(".txt2img-" in name for name in index.column("file_name").to_pylist())
    assert "<us-" not in "".join(index.column("caption").to_pylist())


def test_what_a_flag_once_stated_stays_in_a_card_that_is_made_again(store: Store) -> None:
    run = finish(store)
    keep_statements(store, with_settings(run, card={"license": "cc-by-4.0", "source": "A et al."}).config)
    assert json.loads(store.read(CARD_STATEMENTS)) == {"license": "cc-by-4.0", "source": "A et al."}
    write_card(run, quiet)
    assert header(store)["license"] == "cc-by-4.0"
    write_card(with_settings(run, card={"license": "cc0-1.0"}), quiet)
    assert header(store)["license"] == "cc0-1.0" and "A et al." in store.read(CARD).decode()


def test_a_readme_of_the_users_own_stays_and_is_reported(store: Store) -> None:
    store.replace(CARD, b"# my notes\n")
    run, said = finish(store), list[str]()
    write_card(run, lambda stage, done, total: said.append(stage))
    assert store.read(CARD) == b"# my notes\n"
    assert len(said) == 1 and CARD in said[0]
