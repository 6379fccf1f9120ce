"""Settings as a user reads them: help, JSON schema, a config to begin with, show and diff."""

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import yaml
from PIL import Image

from busray.cli import main
from busray.config_file import load_config
from busray.settings_text import all_settings, config_yaml, matching, schema, starting_config, yaml_value
from tests.support.paths import ROOT

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def test_every_setting_says_what_it_is() -> None:
    assert [setting.name for setting in all_settings() if not setting.text or setting.takes == "None"] == []


def test_the_settings_are_those_of_the_frozen_list() -> None:
    frozen = (ROOT / "tests" / "unit" / "settings.txt").read_text().split()
    assert sorted(setting.name for setting in all_settings()) == frozen


def test_what_a_setting_takes_and_its_default_are_said() -> None:
    listed = {setting.name: setting for setting in all_settings()}
    assert (listed["sampling.steps"].takes, listed["sampling.steps"].default) == ("integer 1..1,000", "50")
    assert listed["adapters.alpha"].takes == "number above 0, at most 1,000,000 or null"
    assert listed["sampling.compile"].choices == ("auto", "true", "false")
    assert listed["study.primary.arm"].default == "(needed)"


@pytest.mark.parametrize(
    "prefix, names",
    [
        ("refine", ["refine.strength", "refine.steps", "refine.guidance_scale", "refine.handover"]),
        ("--refine.steps", ["refine.steps"]),
        ("micro_batch_size", ["adapters.micro_batch_size"]),
        ("refin", []),
    ],
)
def test_settings_are_found_by_group_and_by_last_name(prefix: str, names: list[str]) -> None:
    assert [setting.name for setting in matching(prefix)] == names


@pytest.mark.parametrize("value", ["dpmsolver++", "", "no", "1", "a: b", "{token} x", None, True, 0.5, ["a", 1]])
def test_a_value_is_written_as_yaml_reads_it(value: object) -> None:
    assert yaml.safe_load(yaml_value(value)) == value


# ---- the schema


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_schema_takes_every_config_of_ours(path: Path) -> None:
    jsonschema.validate(yaml.safe_load(path.read_text()), schema())


@pytest.mark.parametrize(
    "tree",
    [
        {"classes": {"benign": {}}, "sampling": {"stepz": 4}},
        {"classes": {"benign": {}}, "sampling": {"steps": 0}},
        {"classes": {}},
        {"sampling": {}},
    ],
)
def test_the_schema_refuses_what_busray_refuses(tree: dict[str, object]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(tree, schema())


def test_the_schema_takes_the_short_forms_of_a_config() -> None:
    jsonschema.validate({"classes": {"benign": None}, "adapters": {"num_workers": 2}, "refine": None}, schema())


# ---- config show, diff, init, settings, schema


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_what_show_prints_is_a_config_with_the_same_settings(path: Path, tmp_path: Path) -> None:
    config = load_config(path, [] if path.stem == "demo" else ["--dataset.path=data"])
    (tmp_path / "again.yaml").write_text(config_yaml(config))
    assert load_config(tmp_path / "again.yaml") == config


def write(path: Path, text: str = "") -> str:
    path.write_text("dataset: {path: data}\nclasses: {benign: {}}\n" + text)
    return str(path)


def test_show_prints_defaults_and_flags_too(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["config", "show", write(tmp_path / "c.yaml"), "--sampling.steps", "7"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["name"], shown["sampling"]["steps"], shown["refine"]["strength"]) == ("c", 7, 0.3)
    assert main(["config", "show", write(tmp_path / "c.yaml"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sampling"]["steps"] == 50


def test_diff_names_each_setting_with_both_values(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    first = write(tmp_path / "c.yaml")
    second = write(tmp_path / "d.yaml", "name: c\nrefine: null\nevaluate: {arms: [base]}\nsampling: {steps: 9}\n")
    assert main(["config", "diff", first, first]) == 0
    assert capsys.readouterr().out == "no setting differs\n"
    assert main(["config", "diff", first, second]) == 1
    said = capsys.readouterr().out
    assert "sampling.steps\n  - 50\n  + 9\n" in said and "refine" in said
    assert main(["config", "diff", first, second, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["sampling.steps"] == {"a": 50, "b": 9}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of two classes; the tests work beside it."""
    for name in ("benign", "fibro adenoma"):
        (tmp_path / "scans" / name).mkdir(parents=True)
        for i in range(3):
            pixels = np.random.default_rng(i).integers(0, 256, (40, 50), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "scans" / name / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "scans"


def test_init_writes_a_config_with_the_classes_of_the_folder(data: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["config", "init", "scans"]) == 0
    assert "busray run scans.yaml" in capsys.readouterr().out
    config = load_config("scans.yaml")
    assert config.folders() == {"benign": "benign", "fibro-adenoma": "fibro adenoma"}
    assert (config.dataset.path, config.output) == (str(data), "runs/scans")
    jsonschema.validate(yaml.safe_load(Path("scans.yaml").read_text()), schema())


def test_init_overwrites_no_file(data: Path, capsys: pytest.CaptureFixture) -> None:
    Path("scans.yaml").write_text("mine")
    assert main(["config", "init", "scans"]) == 2
    assert "scans.yaml: it is there already: name another with --to=FILE" in capsys.readouterr().err
    assert Path("scans.yaml").read_text() == "mine"
    assert main(["config", "init", "scans", "--to=nowhere/c.yaml"]) == 2
    assert "no folder nowhere" in capsys.readouterr().err


def test_init_without_a_folder_writes_two_classes(data: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["config", "init", "--to=c.yaml"]) == 0
    assert list(load_config("c.yaml").classes) == ["benign", "malignant"]


def test_a_starting_config_has_at_most_100_columns_besides_texts_of_settings() -> None:
    for line in starting_config("c.yaml", "data", {"benign": "benign"}).splitlines():
        assert len(line) <= 120, line


def test_settings_are_listed_within_80_columns(capsys: pytest.CaptureFixture) -> None:
    assert main(["config", "settings"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "sampling.steps = 50" in lines and "    (integer 1..1,000)" in lines
    # A default may be a long text; it is shown on one line so that it can be copied.
    assert all(len(line) <= 80 for line in lines if line.startswith(" "))


def test_a_setting_that_is_not_there_gets_the_nearest_name(capsys: pytest.CaptureFixture) -> None:
    assert main(["config", "settings", "samplin"]) == 2
    assert "samplin: no such setting or group; did you mean sampling?" in capsys.readouterr().err


def test_settings_and_schema_are_json_for_programs(capsys: pytest.CaptureFixture) -> None:
    assert main(["config", "settings", "sampling.steps", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["default"] == "50"
    assert main(["config", "schema"]) == 0
    assert json.loads(capsys.readouterr().out)["properties"]["seed"]["description"]
