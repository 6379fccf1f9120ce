"""A run opens with the settings and files that it started with; others are refused."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save, save_file

from busray.cli import main
from busray.config_file import validate
from busray.data.prepare import prepare
from busray.layout import CONFIG
from busray.model.adapters import LORA_FILE, adapter_sha256
from busray.model.base import TINY
from busray.model.checkpoints import commit_adapters
from busray.records import SourceImage, UserError, to_json
from busray.run import checks
from busray.run.checks import check_same_images, open_run
from busray.run.record import Run
from busray.stages.finetune import finetune
from busray.storage import Store
from tests.support.runs import quiet
from tests.support.workers import InProcessWorkers


def settings(folder: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """Two classes of the images in folder."""
    classes = {"benign": {"images": 4}, "normal": {"images": 4}}
    return {"output": str(output), "dataset": {"path": str(folder)}, "classes": classes, **changes}


def opened(tree: dict[str, Any]) -> Run:
    return open_run(validate(tree), quiet, measures=False)


def test_a_run_from_before_a_setting_opens_with_that_settings_default_and_with_no_other(
    tmp_path: Path, phantom_folder: Path
) -> None:
    tree = settings(phantom_folder, tmp_path / "out")
    config = validate(tree)
    store = Store(config.output)
    stored = config.model_dump(mode="json")
    del stored["card"], stored["dataset"]["annotations"]
    store.put_once(CONFIG, to_json(stored))
    opened(tree)
    with pytest.raises(UserError, match=r"dataset\.annotations: 'keep' there, 'exclude' now"):
        opened({**tree, "dataset": {**tree["dataset"], "annotations": "exclude"}})
    opened({**tree, "card": {"license": "cc0-1.0"}})


def write_groups(file: Path, folder: Path, patients: int) -> None:
    images = sorted(path.relative_to(folder).as_posix() for path in folder.glob("*/*.png") if "_mask" not in path.name)
    rows = "".join(f"{image},p{i % patients}\n" for i, image in enumerate(images))
    file.write_text("file,group\n" + rows)


def test_a_run_that_was_split_by_one_table_of_patients_refuses_another_and_none(
    tmp_path: Path, phantom_folder: Path
) -> None:
    write_groups(tmp_path / "a.csv", phantom_folder, patients=12)
    write_groups(tmp_path / "b.csv", phantom_folder, patients=6)

    def reopen(table: str | None) -> None:
        dataset = {"path": str(phantom_folder), "metadata": table and str(tmp_path / table)}
        opened(settings(phantom_folder, tmp_path / "out", dataset=dataset))

    reopen("a.csv")
    reopen("a.csv")
    for table in ("b.csv", None):
        with pytest.raises(UserError, match=r"dataset\.metadata: .* gives \d+ images, such as benign/benign"):
            reopen(table)


def test_a_run_whose_patients_an_older_busray_named_opens_and_no_other_grouping_does(
    tmp_path: Path, phantom_folder: Path
) -> None:
    """Older ones kept names and all columns; now patients are numbered and identifiers dropped."""
    write_groups(tmp_path / "a.csv", phantom_folder, patients=12)
    tree = settings(phantom_folder, tmp_path / "out")
    tree["dataset"]["metadata"] = str(tmp_path / "a.csv")
    dataset = opened(tree).dataset
    assert "p1" not in {image.group for image in dataset.split("all")}
    config = validate(tree)
    for changed, opens in ((dataset.train[0].group, True), (None, False)):
        older = []
        for image in dataset.train:
            group = changed if image.file == dataset.train[0].file else image.group
            older.append(replace(image, group=group and f"p {group}", columns={**image.columns, "patient_name": "N"}))
        stored = replace(dataset, train=tuple(older))
        stored = replace(stored, val=named(dataset.val), test=named(dataset.test))
        if opens:
            check_same_images(stored, config, phantom_folder)
        else:
            with pytest.raises(UserError, match=r"dataset\.metadata: .* gives 1 images, such as"):
                check_same_images(stored, config, phantom_folder)


def named(images: tuple[SourceImage, ...]) -> tuple[SourceImage, ...]:
    return tuple(replace(image, group=image.group and f"p {image.group}") for image in images)


def test_a_run_whose_levels_were_read_otherwise_is_refused(tmp_path: Path, phantom_folder: Path) -> None:
    tree = settings(phantom_folder, tmp_path / "out")
    dataset = opened(tree).dataset
    first = dataset.train[0]
    stored = replace(dataset, train=(replace(first, reading="12 bits"), *dataset.train[1:]))
    with pytest.raises(UserError, match=r"reads the grey levels of 1 images otherwise .* such as benign/.*by its form"):
        check_same_images(stored, validate(tree), phantom_folder)


def test_a_run_without_its_unreadable_images_opens_again(tmp_path: Path, phantom_folder: Path) -> None:
    shutil.copytree(phantom_folder, tmp_path / "data")
    (tmp_path / "data" / "benign" / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    Image.new("L", (64, 48)).save(tmp_path / "data" / "normal" / "black.png")
    tree = settings(tmp_path / "data", tmp_path / "out")
    with pytest.raises(UserError, match="2 files cannot be used"):
        opened(tree)
    tree["dataset"]["unreadable"] = "leave_out"
    for _ in range(2):
        assert dict(opened(tree).dataset.left_out).keys() == {"benign/torn.png", "normal/black.png"}
    (tmp_path / "data" / "benign" / "torn.png").unlink()
    with pytest.raises(UserError, match=r"1 files differ, such as benign/torn\.png"):
        opened(tree)


def test_a_command_on_a_run_takes_where_its_images_lie_now_and_no_other_setting(
    tmp_path: Path, phantom_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(phantom_folder, tmp_path / "data")
    opened(settings(tmp_path / "data", tmp_path / "out"))
    (tmp_path / "data").rename(tmp_path / "moved")

    def message(*flags: str) -> str:
        assert main(["reproduce", str(tmp_path / "out"), "benign-0", *flags]) == 2
        return capsys.readouterr().err

    assert "--dataset.path=FOLDER" in message()
    assert "benign-0" in message(f"--dataset.path={tmp_path / 'moved'}")
    assert "sampling.steps" in message(f"--dataset.path={tmp_path / 'moved'}", "--sampling.steps=3")


def test_a_base_whose_files_have_changed_is_refused(tmp_path: Path, phantom_folder: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(TINY, base)
    tree = settings(phantom_folder, tmp_path / "out", base={"path": str(base)})
    opened(tree)
    opened(tree)
    (base / "scheduler" / "scheduler_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"base\.path: the files of .* are not those that .* started with"):
        opened(tree)


def test_of_two_drivers_with_different_settings_that_start_at_once_the_second_is_refused(
    tmp_path: Path, phantom_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = settings(phantom_folder, tmp_path / "out")

    def slowly(*arguments: Any) -> Any:
        monkeypatch.setattr(checks, "prepare", prepare)
        opened({**tree, "seed": 1})  # the other driver starts and is done while this one checks
        return prepare(*arguments)

    monkeypatch.setattr(checks, "prepare", slowly)
    with pytest.raises(UserError, match="seed"):
        opened(tree)


def test_too_few_independent_images_to_compare_are_refused_before_work(
    tmp_path: Path, phantom_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "find_extractors", lambda _: {})
    (tmp_path / "data" / "benign").mkdir(parents=True)
    for i in range(1, 9):
        shutil.copy(phantom_folder / "benign" / f"benign ({i}).png", tmp_path / "data" / "benign")
    tree = settings(tmp_path / "data", tmp_path / "out", classes={"benign": {"images": 4}})
    with pytest.raises(UserError, match=r"dataset: 2 independent images .* in the split test, at least 3 are needed"):
        open_run(validate(tree), quiet)
    assert not (tmp_path / "out" / CONFIG).exists()


def test_a_run_with_adapters_refuses_others(tmp_path: Path, phantom_folder: Path) -> None:
    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    for name, value in (("one", 1.0), ("other", 2.0)):
        (tmp_path / name).mkdir()
        rows = {f"{layer}.lora_A.weight": np.full((2, 192), value, np.float32)}
        rows[f"{layer}.lora_B.weight"] = np.full((192, 2), value, np.float32)
        save_file(rows, tmp_path / name / LORA_FILE)

    def reopen(folder: str) -> Run:
        adapters = {"path": str(tmp_path / folder), "method": "lora"}
        evaluate = {"arms": ["base", "lora"]}
        return opened(settings(phantom_folder, tmp_path / "out", adapters=adapters, evaluate=evaluate))

    workers = InProcessWorkers()
    finetune(reopen("one"), workers)
    finetune(reopen("one"), workers)
    with pytest.raises(UserError, match=r"adapters\.path: .* has other adapters already"):
        reopen("other")


def test_a_noise_schedule_that_the_base_cannot_learn_ends_before_work(tmp_path: Path, phantom_folder: Path) -> None:
    adapters = {"prediction": "epsilon", "zero_terminal_snr": True}
    with pytest.raises(UserError, match=r"set adapters\.prediction=v_prediction"):
        opened(settings(phantom_folder, tmp_path / "out", adapters=adapters))
    assert not (tmp_path / "out" / CONFIG).exists()


def test_the_source_of_adopted_adapters_may_be_gone(tmp_path: Path, phantom_folder: Path) -> None:
    layer = "unet.down_blocks.0.resnets.0.conv1.lora"
    matrices = {f"{layer}.down.weight": np.ones((2, 64, 3, 3)), f"{layer}.up.weight": np.ones((64, 2, 1, 1))}
    (tmp_path / "given").mkdir()
    save_file(matrices, tmp_path / "given" / LORA_FILE)
    adapters = {"method": "lora", "path": str(tmp_path / "given")}
    tree = settings(phantom_folder, tmp_path / "out", adapters=adapters, evaluate={"arms": ["base"]})
    first = opened(tree)
    shutil.rmtree(tmp_path / "given")
    with pytest.raises(UserError, match=r"adapters\.path: no folder"):
        opened(tree)
    record = {"method": "lora", "sha256": adapter_sha256({LORA_FILE: save(matrices)})}
    commit_adapters(first.store, {LORA_FILE: save(matrices)}, record)
    opened(tree)
