"""A user's mistake ends before work starts: one message names it, status 2, nothing written."""

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.numpy import save_file

from busray import __version__
from busray.cli import main
from busray.command_line import COMMANDS, build_parser, split_settings
from busray.commands import COMMAND_FUNCTIONS
from busray.records import UserError
from tests.support.paths import ROOT, SHARED


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A labelled folder of two classes, ten different images each."""
    rng = np.random.default_rng(0)
    for name in ("benign", "malignant"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(10):
            pixels = rng.integers(0, 256, (40, 50), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{name} ({i}).png")
    return tmp_path


def write_config(folder: Path, **changes: object) -> Path:
    tree = {
        "output": str(folder / "out"),
        "dataset": {"path": str(folder / "data")},
        "classes": {"benign": {"images": 4}, "malignant": {"images": 4}},
        **changes,
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def refused(capsys: pytest.CaptureFixture, folder: Path, *arguments: object) -> str:
    """The message of a command that must end with status 2 and leave no output."""
    assert main([str(a) for a in arguments]) == 2
    assert not (folder / "out").exists()
    message = capsys.readouterr().err
    assert message.count("busray:") == 1
    assert "Traceback" not in message
    return message


def test_a_missing_config_file_is_named(capsys: pytest.CaptureFixture, folder: Path) -> None:
    assert "nowhere.yaml" in refused(capsys, folder, "run", folder / "nowhere.yaml")


def test_a_missing_data_folder_is_named(capsys: pytest.CaptureFixture, folder: Path) -> None:
    config = write_config(folder, dataset={"path": str(folder / "nowhere")})
    assert "nowhere" in refused(capsys, folder, "run", config)
    assert "nowhere" in refused(capsys, folder, "check", folder / "nowhere")


def test_an_empty_data_folder_is_named(capsys: pytest.CaptureFixture, folder: Path) -> None:
    (folder / "empty").mkdir()
    assert "empty" in refused(capsys, folder, "run", write_config(folder, dataset={"path": str(folder / "empty")}))
    assert "empty" in refused(capsys, folder, "check", folder / "empty")


def test_a_class_without_images_is_named(capsys: pytest.CaptureFixture, folder: Path) -> None:
    (folder / "data" / "normal").mkdir()
    config = write_config(folder, classes={"benign": {"images": 4}, "normal": {"images": 4}})
    assert "normal" in refused(capsys, folder, "run", config)


def test_an_unreadable_image_is_named(capsys: pytest.CaptureFixture, folder: Path) -> None:
    (folder / "data" / "benign" / "benign (3).png").write_bytes(b"not an image")
    assert "benign (3).png" in refused(capsys, folder, "run", write_config(folder))


def test_a_misspelt_setting_is_named_with_the_nearest_one(capsys: pytest.CaptureFixture, folder: Path) -> None:
    message = refused(capsys, folder, "run", write_config(folder), "--sampling.stepz=5")
    assert "sampling.stepz" in message
    assert "steps" in message


@pytest.mark.parametrize("field", ["caption", "prompts"])
def test_a_text_too_long_for_the_base_is_quoted(capsys: pytest.CaptureFixture, folder: Path, field: str) -> None:
    text = "{token} " + "dark " * 80
    classes = {"benign": {"images": 4, field: text if field == "caption" else [text]}, "malignant": {"images": 4}}
    message = refused(capsys, folder, "run", write_config(folder, classes=classes))
    assert f"classes.benign.{field}: " in message and "this base reads 77" in message


def test_a_lora_that_was_never_trained_is_refused(capsys: pytest.CaptureFixture, folder: Path) -> None:
    down = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.lora.down.weight"
    matrices = {
        down: np.ones((4, 96), np.float32),
        down.replace("down.weight", "up.weight"): np.zeros((96, 4), np.float32),
    }
    (folder / "lora").mkdir()
    method = ("--adapters.method=lora", "--evaluate.arms=[base, lora]", f"--adapters.path={folder / 'lora'}")
    save_file(matrices, folder / "lora" / "pytorch_lora_weights.safetensors")
    assert "would load nothing" in refused(capsys, folder, "run", write_config(folder), *method)
    older = {name.removeprefix("unet.").replace(".lora.", "_lora."): matrix for name, matrix in matrices.items()}
    save_file(older, folder / "lora" / "pytorch_lora_weights.safetensors")
    assert "would load nothing" in refused(capsys, folder, "run", write_config(folder), *method)


def test_simulated_images_of_a_run_that_is_refused_are_gone_again(capsys: pytest.CaptureFixture, folder: Path) -> None:
    config = write_config(folder, dataset={"phantoms": {"images": 8}}, classes={"cyst": {"images": 4}})
    assert "cyst" in refused(capsys, folder, "run", config)


def test_a_table_that_cannot_be_written_is_refused_before_the_check(
    capsys: pytest.CaptureFixture, folder: Path
) -> None:
    message = refused(capsys, folder, "check", folder / "data", f"--json={folder / 'nowhere' / 'check.json'}")
    assert "--json: no folder" in message


def test_too_few_images_to_compare_are_refused(capsys: pytest.CaptureFixture, folder: Path) -> None:
    config = write_config(folder, classes={"benign": {"images": 2}, "malignant": {"images": 4}})
    assert "at least 3 images a class" in refused(capsys, folder, "run", config)


def test_a_value_out_of_bounds_is_named_with_the_bound(capsys: pytest.CaptureFixture, folder: Path) -> None:
    message = refused(capsys, folder, "run", write_config(folder), "--refine.strength=1.5")
    assert "refine.strength" in message
    assert "at most 1 is expected" in message


def test_a_class_name_that_leaves_the_folder_is_refused(capsys: pytest.CaptureFixture, folder: Path) -> None:
    config = write_config(folder, classes={"../x": {"images": 4}})
    assert "'../x'" in refused(capsys, folder, "run", config)


def test_a_base_that_is_not_there_is_named(capsys: pytest.CaptureFixture, folder: Path) -> None:
    message = refused(capsys, folder, "run", write_config(folder), f"--base.path={folder / 'no-base'}")
    assert "base.path" in message
    assert "no-base" in message


def test_a_hub_base_needs_a_pinned_revision(capsys: pytest.CaptureFixture, folder: Path) -> None:
    message = refused(capsys, folder, "run", write_config(folder), "--base.path=someone/some-model")
    assert "base.revision" in message


def test_a_token_in_no_prompt_is_refused(capsys: pytest.CaptureFixture, folder: Path) -> None:
    config = write_config(folder, classes={"benign": {"prompts": ["an ultrasound image"]}, "malignant": {}})
    message = refused(capsys, folder, "run", config)
    assert "classes.benign.prompts" in message
    assert "<benign>" in message


def test_a_size_that_the_base_cannot_draw_is_refused(capsys: pytest.CaptureFixture, folder: Path) -> None:
    message = refused(capsys, folder, "run", write_config(folder), "--base.size=72")
    assert "base.size: 72 is no multiple of this base's 16" in message


def test_a_column_that_no_metadata_has_is_named(capsys: pytest.CaptureFixture, folder: Path) -> None:
    caption = {"benign": {"images": 4, "caption": "{token}, BI-RADS {birads}"}, "malignant": {"images": 4}}
    message = refused(capsys, folder, "run", write_config(folder, classes=caption))
    assert "classes.benign" in message and "'birads'" in message
    prompt = {"benign": {"images": 4, "prompts": ["{token}, BI-RADS {birads}"]}, "malignant": {"images": 4}}
    message = refused(capsys, folder, "run", write_config(folder, classes=prompt))
    assert "classes.benign.prompts: {birads} is no column of dataset.metadata" in message


def test_adapters_that_are_not_there_are_named(capsys: pytest.CaptureFixture, folder: Path) -> None:
    message = refused(capsys, folder, "run", write_config(folder), f"--adapters.path={folder / 'no-lora'}")
    assert "adapters.path" in message


def test_a_lora_that_loads_nothing_is_refused(capsys: pytest.CaptureFixture, folder: Path) -> None:
    legacy = SHARED / "fixtures" / "sd15-lora"
    if not legacy.is_dir():
        pytest.skip("../shared/fixtures with the legacy LoRA is not here")
    message = refused(
        capsys, folder, "run", write_config(folder), f"--adapters.path={legacy}", "--adapters.method=lora",
        "--evaluate.arms=[base, lora]",
    )  # fmt: skip
    assert "adapters.path" in message
    assert "pytorch_lora_weights.safetensors" in message


def split(*arguments: str) -> tuple[list[str], list[str]]:
    return split_settings(arguments, build_parser())


def test_a_setting_and_its_value_may_be_two_words() -> None:
    given = split(
        "run", "--sampling.steps", "25", "c.yaml", "--seed=3", "--adapters.alpha", "-1", "--card.source", "a b"
    )
    flags = ["--sampling.steps=25", "--seed=3", "--adapters.alpha=-1", "--card.source=a b"]
    assert given == (["run", "c.yaml"], flags)
    assert split("check", "data", "--json", "x.json") == (["check", "data", "--json", "x.json"], [])
    assert split("readers", "export", "r", "f", "--seed", "4") == (["readers", "export", "r", "f", "--seed", "4"], [])
    assert split("readers", "export", "r", "f", "--dataset.path", "d")[1] == ["--dataset.path=d"]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["run", "c.yaml", "--seed"], "--seed: its value is missing: write --seed=VALUE"),
        (["run", "--seed", "--output=x", "c.yaml"], "--seed: its value is missing"),
        (["check", "data", "--jsn=x"], "--jsn=x: this command takes no such argument; did you mean --json?"),
        (["gc", "data", "--dataset.path=x"], "this command takes no such argument"),
        (["check", "data", "--json=a", "--json=b"], "--json is given twice"),
        (["gc", "run", "--delet"], "did you mean --delete?"),
    ],
)
def test_an_option_without_its_value_or_of_no_command_is_named(arguments: list[str], said: str) -> None:
    with pytest.raises(UserError) as caught:
        split(*arguments)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["check", "s3://bucket/busi"], "copy it to a folder (`aws s3 sync s3://bucket/busi FOLDER`)"),
        (["check", "$NOT_SET/busi"], "the variable $NOT_SET is not set"),
        (["run", "s3://bucket/c.yaml"], "it is read from this machine's disk"),
        (["verify", "s3:bucket"], "write s3://bucket"),
        (["doctor", "memory://x"], "memory:// is lost when the command ends"),
        (["doctor", ""], "it is empty"),
        (["audit", "https://host/run"], "https:// is not supported"),
        (["run", "c.yaml", "—seed=3"], "it starts with a long dash: write --seed=3"),
        (["check", "My", "Data"], "Data: one argument too many; a name with spaces needs quotes"),
        (["check", ".", "--json", "."], "--json: . is a folder: name a file in it"),
        (["run", "c.yaml", "d.yaml"], "d.yaml: one argument too many; a name with spaces needs quotes"),
    ],
)
def test_what_is_no_place_or_no_setting_ends_with_status_2_and_one_message(
    capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NOT_SET", raising=False)
    (tmp_path / "c.yaml").write_text("dataset: {path: data}\nclasses: {benign: {}}\n")
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert said in message and message.count("\n") == 1


def test_home_is_filled_in_where_no_shell_does_it(
    capsys: pytest.CaptureFixture, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(folder))
    write_config(folder, dataset={"path": "~/nowhere"})
    assert f"{folder}/nowhere" in refused(capsys, folder, "run", "~/config.yaml")
    assert main(["check", "~/data"]) == 0


def test_a_rank_above_the_narrowest_layer_is_refused(capsys: pytest.CaptureFixture, folder: Path) -> None:
    message = refused(capsys, folder, "run", write_config(folder), "--adapters.rank", "200")
    assert "adapters.rank: 200 is above 96" in message and "give at most 96" in message


def test_a_finished_command_is_not_failed_by_a_library_that_aborts_the_teardown() -> None:
    code = "import atexit, os; atexit.register(os.abort); from busray.cli import finish; print('told'); finish(3)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (3, "told\n")


def test_python_m_busray_is_the_command() -> None:
    ended = subprocess.run([sys.executable, "-m", "busray", "--version"], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, f"busray {__version__}\n")


def test_jobs_differ_in_nothing_but_the_stage() -> None:
    jobs = {path.stem: path.read_text() for path in (ROOT / "jobs").glob("*.py")}
    assert {"finetune", "generate", "evaluate", "pipeline", "ablate", "study", "audit"} == jobs.keys()
    for name, text in jobs.items():
        command = "run" if name == "pipeline" else name
        assert command in COMMANDS and f'process(["{command}",' in text, name
        alike = text.replace(f"jobs/{name}.py", "jobs/audit.py").replace(f'process(["{command}",', 'process(["audit",')
        assert alike.replace(".py CONFIG ", ".py RUN ") == jobs["audit"], name


def test_every_command_has_its_function() -> None:
    assert list(COMMAND_FUNCTIONS) and COMMAND_FUNCTIONS.keys() == COMMANDS.keys()


def test_a_limit_of_memory_at_which_libraries_abort_is_said(
    capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (600_000 * 1024, resource.RLIM_INFINITY))
    assert main(["verify", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "may use 585 MiB of memory here (`ulimit -v`)" in said and "at least 1024 MiB" in said
