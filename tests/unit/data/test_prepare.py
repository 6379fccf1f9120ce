"""From the check's report to the prepared data set: what is left out, what stays together, what
the hash covers."""

import csv
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from busray.data.check import CheckReport
from busray.data.phantom import write_dataset
from busray.data.prepare import make_dataset, materialise_phantoms, prepare
from busray.records import DataSet, UserError, to_json
from tests.support.planted import CLASSES, scan_pixels, settings


def test_unreadable_images_end_the_preparation_and_are_all_named(planted: Path, report: CheckReport) -> None:
    with pytest.raises(UserError, match="2 files cannot be used") as caught:
        make_dataset(settings(), CLASSES, 128, planted, report)
    assert "normal/torn.png" in str(caught.value)
    assert "normal/no image.png" in str(caught.value)


def test_unreadable_images_are_left_out_with_their_reason_where_the_setting_says_so(
    planted: Path, report: CheckReport
) -> None:
    dataset = make_dataset(settings(unreadable="leave_out"), CLASSES, 128, planted, report)
    left_out = dict(dataset.left_out)
    assert "truncated" in left_out["normal/torn.png"]
    assert left_out["normal/no image.png"] == "it is no image that busray reads, or its beginning is damaged"
    assert not left_out.keys() & {image.file for image in dataset.split("all")}


def test_images_that_show_nothing_are_refused_together_or_left_out_and_are_nobodys_copy(
    phantom_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(phantom_folder, tmp_path / "data")
    for name, level in (("benign/black.png", 0), ("malignant/black.png", 0), ("normal/white.png", 255)):
        Image.new("L", (64, 48), level).save(tmp_path / "data" / name)
    dataset, report = prepare(settings(unreadable="leave_out"), CLASSES, 128, tmp_path / "data")
    with pytest.raises(UserError, match="3 files cannot be used") as caught:
        make_dataset(settings(), CLASSES, 128, tmp_path / "data", report)
    assert "  malignant/black.png: black: every pixel is grey level 0; the file has 8-bit grey, 1 value: 0" in str(
        caught.value
    )
    assert "--dataset.unreadable=leave_out" in str(caught.value)
    assert [file for file, _ in dataset.left_out] == ["benign/black.png", "malignant/black.png", "normal/white.png"]
    assert report.conflicts == () and report.exact == ()
    assert dict(report.odd).keys() == set(report.flat) == set(dict(dataset.left_out))


def test_the_hash_covers_how_levels_are_read_where_the_format_does_not_say(
    phantom_folder: Path, phantom_report: CheckReport
) -> None:
    plain = make_dataset(settings(), CLASSES, 128, phantom_folder, phantom_report)
    images = tuple(replace(image, reading="8 bits") for image in phantom_report.images)
    read = make_dataset(settings(), CLASSES, 128, phantom_folder, replace(phantom_report, images=images))
    assert read.hash != plain.hash
    assert b"reading" not in to_json(plain)


def test_conflicts_are_left_out_and_listed_and_duplicates_are_on_one_side(
    planted: Path, readable_report: CheckReport
) -> None:
    for seed in range(4):
        dataset = make_dataset(settings(seed=seed), CLASSES, 128, planted, readable_report)
        side = {image.file: name for name in ("train", "val", "test") for image in dataset.split(name)}
        assert dict(dataset.left_out) == {
            "benign/in both.png": "label conflict: also malignant/in both.jpg",
            "malignant/in both.jpg": "label conflict: also benign/in both.png",
        }
        assert not set(dict(dataset.left_out)) & set(side)
        assert len(side) == 53
        assert side["benign/near (1).png"] == side["benign/near (2).jpg"]
        assert side["benign/benign (1).png"] == side["benign/same pixels.bmp"]


def test_groups_of_the_metadata_never_cross_the_split(phantom_folder: Path, tmp_path: Path) -> None:
    files = [f"{name}/{name} ({i + 1}).png" for name in CLASSES for i in range(12)]
    with open(tmp_path / "m.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("file", "group", "birads"))
        writer.writerows((file, f"p{i % 9}", str(i % 5)) for i, file in enumerate(files))
    dataset, _ = prepare(settings(metadata=str(tmp_path / "m.csv")), CLASSES, 128, phantom_folder)
    side = {image.group: name for name in ("train", "val", "test") for image in dataset.split(name)}
    assert len(side) == 9
    for name in ("train", "val", "test"):
        assert all(side[image.group] == name for image in dataset.split(name))
    assert {image.columns["birads"] for image in dataset.split("all")} == {"0", "1", "2", "3", "4"}


def test_the_hash_follows_content_split_and_framing(phantom_folder: Path, phantom_report: CheckReport) -> None:
    def prepared(classes: Sequence[str] = CLASSES, size: int = 128, **changes: object) -> DataSet:
        images = tuple(image for image in phantom_report.images if image.class_name in classes)
        report = replace(phantom_report, images=images)
        return make_dataset(settings(**changes), classes, size, phantom_folder, report)

    first = prepared()
    others = [prepared(seed=1), prepared(frame="centre"), prepared(size=64), prepared(CLASSES[:2])]
    assert len({dataset.hash for dataset in (first, *others)}) == 5


def test_another_preparation_is_the_same_wherever_the_folder_lies(
    phantom_folder: Path, phantom_report: CheckReport, tmp_path: Path
) -> None:
    shutil.copytree(phantom_folder, tmp_path / "elsewhere")
    here = make_dataset(settings(), CLASSES, 128, phantom_folder, phantom_report)
    there, report = prepare(settings(), CLASSES, 128, tmp_path / "elsewhere")
    assert report == phantom_report
    assert here == there


def test_a_changed_image_changes_the_hash(phantom_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(phantom_folder / "benign", tmp_path / "changed" / "benign")
    before, _ = prepare(settings(), ["benign"], 128, tmp_path / "changed")
    Image.fromarray(scan_pixels(999)).save(tmp_path / "changed" / "benign" / "benign (1).png")
    after, _ = prepare(settings(), ["benign"], 128, tmp_path / "changed")
    assert before.hash != after.hash


def test_a_data_set_reads_back_as_itself(planted: Path, readable_report: CheckReport) -> None:
    dataset = make_dataset(settings(), CLASSES, 128, planted, readable_report)
    assert DataSet.from_json(to_json(dataset)) == dataset


def test_a_data_set_from_before_clusters_still_reads_and_falls_back_to_groups(
    planted: Path, readable_report: CheckReport
) -> None:
    dataset = make_dataset(settings(), CLASSES, 128, planted, readable_report)
    plain = json.loads(to_json(dataset))
    for name in ("train", "val", "test"):
        for image in plain[name]:
            assert image.pop("cluster") is not None
    plain["test"][0]["group"] = "patient 7"
    old = DataSet.from_json(json.dumps(plain).encode())
    assert old.hash == dataset.hash and {image.cluster for image in old.split("all")} == {None}
    assert [image.unit for image in old.test[:2]] == ["patient 7", old.test[1].file]


def test_near_duplicates_share_their_cluster_in_the_data_set(planted: Path, readable_report: CheckReport) -> None:
    dataset = make_dataset(settings(), CLASSES, 128, planted, readable_report)
    found = {image.file: image.cluster for image in dataset.split("all")}
    kept = [group for group in readable_report.duplicates if set(group) <= set(found)]
    assert kept and all({found[file] for file in group} == {group[0]} for group in kept)
    bound = {file for group in kept for file in group}
    assert all(cluster == file for file, cluster in found.items() if file not in bound)


def test_a_class_with_too_few_images_to_split_is_named(tmp_path: Path) -> None:
    for name, n in (("benign", 10), ("malignant", 2)):
        (tmp_path / name).mkdir()
        for i in range(n):
            Image.fromarray(scan_pixels(10 * n + i)).save(tmp_path / name / f"{i}.png")
    with pytest.raises(UserError, match="class malignant: too few images for a"):
        prepare(settings(), ("benign", "malignant"), 128, tmp_path)


def test_phantoms_are_written_once_and_whole_whoever_writes_them_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from busray.config import Phantoms
    from busray.data import prepare as module

    write_small = partial(write_dataset, size=(32, 32))

    def write_twice(folder: Path, *rest: object) -> None:
        monkeypatch.setattr(module, "write_dataset", write_small)
        materialise_phantoms(Phantoms(images=8), tmp_path / "made")  # another driver, and it is first
        write_small(folder, *rest)

    monkeypatch.setattr(module, "write_dataset", write_twice)
    materialise_phantoms(Phantoms(images=8), tmp_path / "made")
    files = sorted(path.name for path in (tmp_path / "made").rglob("*.png"))
    assert len(files) == 3 * 8 * 2
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    (tmp_path / "made" / "benign" / "benign (1).png").unlink()
    materialise_phantoms(Phantoms(images=8), tmp_path / "made")
    assert len(list((tmp_path / "made").rglob("*.png"))) == 3 * 8 * 2 - 1


def test_an_unknown_probe_is_named_with_those_there_are(tmp_path: Path) -> None:
    from busray.config import Phantoms

    with pytest.raises(UserError, match=r"dataset\.phantoms\.probe: no probe 'mri'; known: .*demo"):
        materialise_phantoms(Phantoms(probe="mri"), tmp_path / "made")
    assert list(tmp_path.iterdir()) == []
