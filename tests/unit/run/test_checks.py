"""A run opens with the settings and files that it started with; others are refused."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save, save_file

from busray.cli import main
from busray.config import Config
from busray.config_file import validate
from busray.data.phantom import write_dataset
from busray.data.prepare import prepare
from busray.layout import CONFIG
from busray.model.adapters import LORA_FILE, adapter_sha256
from busray.model.base import TINY
from busray.model.checkpoints import commit_adapters
from busray.records import UserError, to_json
from busray.run import checks as run_module
from busray.run.checks import open_run as open_whole_run
from busray.run.record import Run
from busray.stages.finetune import finetune
from busray.storage import Store


def test_a_run_from_before_a_setting_opens_with_that_settings_default_and_with_no_other(tmp_path: Path) -> None:
    tree = {
        "output": str(tmp_path / "out"),
        "dataset": {"phantoms": {"images": 12}},
        "classes": {"benign": {"images": 2}, "normal": {"images": 2}},
    }
    config = validate(tree)
    store = Store(config.output)
    stored = config.model_dump(mode="json")
    del stored["card"], stored["dataset"]["annotations"]
    store.put_once(CONFIG, to_json(stored))
    open_whole_run(config, lambda *_: None, needs_inception=False)
    excluding = validate({**tree, "dataset": {**tree["dataset"], "annotations": "exclude"}})
    with pytest.raises(UserError, match=r"dataset\.annotations: 'keep' there, 'exclude' now"):
        open_whole_run(excluding, lambda *_: None, needs_inception=False)
    stated = validate({**tree, "card": {"license": "cc0-1.0"}})
    open_whole_run(stated, lambda *_: None, needs_inception=False)


def write_groups(file: Path, folder: Path, patients: int) -> None:
    images = sorted(path.relative_to(folder).as_posix() for path in folder.glob("*/*.png") if "_mask" not in path.name)
    rows = "".join(f"{image},p{i % patients}\n" for i, image in enumerate(images))
    file.write_text("file,group\n" + rows)


def test_a_run_that_was_split_by_one_table_of_patients_refuses_another_and_none(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", 12, seed=0)
    write_groups(tmp_path / "a.csv", tmp_path / "data", patients=12)
    write_groups(tmp_path / "b.csv", tmp_path / "data", patients=6)

    def reopen(table: str | None) -> None:
        tree = {
            "output": str(tmp_path / "out"),
            "dataset": {"path": str(tmp_path / "data"), "metadata": table and str(tmp_path / table)},
            "classes": {"benign": {"images": 2}, "normal": {"images": 2}},
        }
        open_whole_run(validate(tree), lambda *_: None, needs_inception=False)

    reopen("a.csv")
    reopen("a.csv")
    for table in ("b.csv", None):
        with pytest.raises(UserError, match=r"dataset\.metadata: .* gives \d+ images, such as benign/benign"):
            reopen(table)


def test_a_command_on_a_run_takes_where_its_images_lie_now_and_no_other_setting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_dataset(tmp_path / "data", 12, seed=0)
    tree = {
        "output": str(tmp_path / "out"),
        "dataset": {"path": str(tmp_path / "data")},
        "classes": {"benign": {"images": 2}, "normal": {"images": 2}},
    }
    open_whole_run(validate(tree), lambda *_: None, needs_inception=False)
    (tmp_path / "data").rename(tmp_path / "moved")

    def message(*flags: str) -> str:
        assert main(["reproduce", str(tmp_path / "out"), "benign-0", *flags]) == 2
        return capsys.readouterr().err

    assert "--dataset.path=FOLDER" in message()
    assert "benign-0" in message(f"--dataset.path={tmp_path / 'moved'}")
    assert "sampling.steps" in message(f"--dataset.path={tmp_path / 'moved'}", "--sampling.steps=3")


def small(tmp_path: Path, base: Path | None = None, images: int = 12) -> Config:
    tree: dict[str, Any] = {
        "output": str(tmp_path / "out"),
        "dataset": {"phantoms": {"images": images}},
        "classes": {"benign": {"images": 4}, "normal": {"images": 4}},
    }
    return validate({**tree, "base": {"path": str(base)}} if base else tree)


def test_a_base_whose_files_have_changed_is_refused(tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(TINY, base)
    config = small(tmp_path, base)
    open_whole_run(config, lambda *_: None, needs_inception=False)
    open_whole_run(config, lambda *_: None, needs_inception=False)
    (base / "scheduler" / "scheduler_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"base\.path: the files of .* are not those that .* started with"):
        open_whole_run(config, lambda *_: None, needs_inception=False)


def test_of_two_drivers_with_different_settings_that_start_at_once_the_second_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small(tmp_path)
    other = config.model_copy(update={"seed": config.seed + 1})

    def slowly(*arguments: Any) -> Any:
        monkeypatch.setattr(run_module, "prepare", prepare)
        open_whole_run(other, lambda *_: None, needs_inception=False)  # starts and is done while this one checks
        return prepare(*arguments)

    monkeypatch.setattr(run_module, "prepare", slowly)
    with pytest.raises(UserError, match="seed"):
        open_whole_run(config, lambda *_: None, needs_inception=False)


def test_too_few_independent_images_to_compare_are_refused_before_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "find_extractors", lambda _: {})
    config = small(tmp_path, images=8)
    alone = config.model_copy(update={"classes": {"benign": config.classes["benign"]}})
    with pytest.raises(UserError, match=r"dataset: 2 independent images .* in the split test, at least 3 are needed"):
        open_whole_run(alone, lambda *_: None)
    assert not (tmp_path / "out" / CONFIG).exists()


def test_a_run_with_adapters_refuses_others(tmp_path: Path) -> None:
    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    for name, value in (("one", 1.0), ("other", 2.0)):
        (tmp_path / name).mkdir()
        rows = {f"{layer}.lora_A.weight": np.full((2, 192), value, np.float32)}
        rows[f"{layer}.lora_B.weight"] = np.full((192, 2), value, np.float32)
        save_file(rows, tmp_path / name / LORA_FILE)

    def reopen(adapters: str) -> Run:
        tree = {
            "output": str(tmp_path / "out"),
            "dataset": {"phantoms": {"images": 12}},
            "classes": {"benign": {"images": 2}, "normal": {"images": 2}},
            "adapters": {"path": str(tmp_path / adapters), "method": "lora"},
            "evaluate": {"arms": ["base", "lora"]},
        }
        return open_whole_run(validate(tree), lambda *_: None, needs_inception=False)

    finetune(reopen("one"))
    finetune(reopen("one"))
    with pytest.raises(UserError, match=r"adapters\.path: .* has other adapters already"):
        reopen("other")


def test_adopted_adapters_are_needed_where_they_came_from_no_more(tmp_path: Path) -> None:
    layer = "unet.down_blocks.0.resnets.0.conv1.lora"
    matrices = {f"{layer}.down.weight": np.ones((2, 64, 3, 3)), f"{layer}.up.weight": np.ones((64, 2, 1, 1))}
    (tmp_path / "given").mkdir()
    save_file(matrices, tmp_path / "given" / LORA_FILE)
    tree: dict[str, Any] = {
        "output": str(tmp_path / "run"),
        "dataset": {"phantoms": {"images": 12, "seed": 3}},
        "classes": {"benign": {"images": 6}, "malignant": {"images": 6}},
        "adapters": {"method": "lora", "path": str(tmp_path / "given")},
        "evaluate": {"arms": ["base"]},
    }
    first = open_whole_run(validate(tree), lambda *_: None, needs_inception=False)
    shutil.rmtree(tmp_path / "given")
    with pytest.raises(UserError, match=r"adapters\.path: no folder"):
        open_whole_run(validate(tree), lambda *_: None, needs_inception=False)
    record = {"method": "lora", "sha256": adapter_sha256({LORA_FILE: save(matrices)})}
    commit_adapters(first.store, {LORA_FILE: save(matrices)}, record)
    open_whole_run(validate(tree), lambda *_: None, needs_inception=False)
