"""Settings: a file and flags. Every mistake is named with its path, value and what is allowed."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from busray.config import Config, Sampling, Settings, warnings
from busray.config_file import load_config, validate
from busray.records import UserError, to_json
from tests.support.paths import ROOT

MINIMAL: dict[str, Any] = {"dataset": {"path": "data"}, "classes": {"benign": {}, "malignant": {}}}


def written(folder: Path, tree: object, name: str = "mine.yaml") -> Path:
    path = folder / name
    path.write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree))
    return path


def mistakes(tree: dict[str, Any] | str, *flags: str, folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_config(written(folder, tree), list(flags))
    return str(caught.value)


# ---- what a file and flags become ----


def test_a_minimal_file_gets_every_default(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, MINIMAL))
    assert config.name == "mine"
    assert config.output == "runs/mine"
    assert config.sampling.steps == 50
    assert config.refine is not None and config.refine.strength == 0.3
    assert config.tokens() == {"benign": "<benign>", "malignant": "<malignant>"}


def test_a_name_in_the_file_wins_over_the_file_name(tmp_path: Path) -> None:
    assert load_config(written(tmp_path, {**MINIMAL, "name": "other"})).output == "runs/other"


def test_flags_win_over_the_file_and_reach_into_groups(tmp_path: Path) -> None:
    tree = {**MINIMAL, "sampling": {"steps": 10, "guidance_scale": 3.0}}
    config = load_config(
        written(tmp_path, tree),
        ["--sampling.steps=25", "--classes.benign.images=7", "--evaluate.arms=[base, lora+ti]", "--refine=null"],
    )
    assert config.sampling.steps == 25
    assert config.sampling.guidance_scale == 3.0
    assert config.classes["benign"].images == 7
    assert config.classes["malignant"].images == 100
    assert config.evaluate.arms == ("base", "lora+ti")
    assert config.refine is None


def test_a_flag_can_unset_a_value(tmp_path: Path) -> None:
    tree = {**MINIMAL, "dataset": {"phantoms": {"images": 9}}}
    config = load_config(written(tmp_path, tree), ["--dataset.phantoms=null", "--dataset.path=elsewhere"])
    assert config.dataset.phantoms is None
    assert config.dataset.path == "elsewhere"


def test_a_config_cannot_be_changed(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, MINIMAL))
    with pytest.raises(ValidationError):
        config.seed = 5  # pyright: ignore[reportAttributeAccessIssue]


def test_the_fast_preset_sets_what_is_not_given_and_reads_back_as_itself(tmp_path: Path) -> None:
    fast = load_config(written(tmp_path, MINIMAL), ["--sampling.preset=fast", "--sampling.guidance_scale=3"])
    assert (fast.sampling.steps, fast.sampling.deep_every) == (20, 2)
    assert fast.sampling.guidance_scale == 3 and fast.refine is not None
    assert int(fast.refine.steps * fast.refine.strength) == 8
    assert validate(json.loads(to_json(fast.model_dump(mode="json")))) == fast
    own = {**MINIMAL, "sampling": {"preset": "fast", "steps": 30, "deep_every": 1}, "refine": {"steps": 40}}
    given = validate(own)
    assert (given.sampling.steps, given.sampling.deep_every) == (30, 1)
    assert given.refine is not None and given.refine.steps == 40
    unrefined = {**own, "refine": None, "evaluate": {"arms": ["base"]}}
    assert validate(unrefined).refine is None
    assert validate(MINIMAL).sampling == Sampling()


@pytest.mark.parametrize("strength", [0.1, 0.25, 0.3, 0.4, 0.7, 1.0])
def test_the_fast_preset_refines_by_eight_steps_at_any_strength(strength: float) -> None:
    refine = validate({**MINIMAL, "sampling": {"preset": "fast"}, "refine": {"strength": strength}}).refine
    assert refine is not None and int(refine.steps * refine.strength) == 8


def test_an_interval_of_guidance_that_is_empty_is_refused(tmp_path: Path) -> None:
    assert "low is not below high" in mistakes(MINIMAL, "--sampling.guidance_interval=[5, 1]", folder=tmp_path)


def test_a_stored_config_reads_back_as_itself() -> None:
    config = validate({**MINIMAL, "name": "again", "refine": None, "evaluate": {"arms": ["base"]}})
    assert validate(config.model_dump(mode="json")) == config


def test_the_order_of_classes_is_no_setting_and_is_the_stored_one() -> None:
    names = ["normal", "benign", "malignant"]
    config = validate({**MINIMAL, "classes": {name: {} for name in names}})
    assert list(config.classes) == list(config.tokens()) == sorted(names)
    stored = validate(json.loads(to_json(config.model_dump(mode="json"))))
    assert list(stored.classes) == list(config.classes)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_the_configs_of_the_repository_are_valid(path: Path) -> None:
    tree = yaml.safe_load(path.read_text())
    needs_path = not (tree["dataset"].get("path") or tree["dataset"].get("phantoms"))
    config = load_config(path, ["--dataset.path=somewhere"] if needs_path else [])
    assert config.name == path.stem


# ---- the list of settings ----


def setting_names(model: type[Settings], prefix: str = "") -> list[str]:
    """Dotted names of all settings; `<class>` stands for any class's name."""
    names = []
    for name, field in model.model_fields.items():
        group = group_in(field.annotation)
        if group is None:
            names.append(prefix + name)
        else:
            names += setting_names(group, f"{prefix}{name}.<class>." if name == "classes" else f"{prefix}{name}.")
    return sorted(names)


def group_in(annotation: Any) -> type[Settings] | None:
    """The group of settings in `X`, `X | None` or `dict[str, X]`."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return annotation
    groups = map(group_in, getattr(annotation, "__args__", ()))
    return next((group for group in groups if group is not None), None)


def test_a_setting_is_added_or_removed_on_purpose_only() -> None:
    frozen = (Path(__file__).parent / "settings.txt").read_text().split()
    names = setting_names(Config)
    assert names == frozen, (
        f"settings added: {sorted(set(names) - set(frozen))}, removed: {sorted(set(frozen) - set(names))}. A setting "
        "is a promise to users and one more thing to test: add one only if a constant cannot do (ARCHITECTURE.md, "
        '"How to add"), then change tests/unit/settings.txt'
    )


# ---- mistakes ----


def test_all_mistakes_are_reported_at_once_each_on_its_line(tmp_path: Path) -> None:
    tree = {**MINIMAL, "sampling": {"stepz": 4}, "seed": -1, "corpus": {"format": "tfrecord"}}
    lines = mistakes(tree, "--refine.strength=1.5", folder=tmp_path).splitlines()
    assert {line.split(":")[0] for line in lines} == {"sampling.stepz", "seed", "corpus.format", "refine.strength"}
    assert len(lines) == 4


def test_a_misspelt_setting_gets_the_nearest_name(tmp_path: Path) -> None:
    assert "sampling.stepz: no such setting; did you mean steps?" in mistakes(
        MINIMAL, "--sampling.stepz=5", folder=tmp_path
    )


def test_a_misspelt_setting_of_a_class_gets_the_nearest_name(tmp_path: Path) -> None:
    message = mistakes(MINIMAL, "--classes.benign.promts=[x]", folder=tmp_path)
    assert message == "classes.benign.promts: no such setting; did you mean prompts?"


def test_a_setting_of_drawing_without_an_effect_is_said(tmp_path: Path) -> None:
    flags = ["--sampling.negative_prompt=blurred", "--sampling.guidance_scale=1", "--refine.guidance_scale=1"]
    lines = warnings(load_config(written(tmp_path, MINIMAL), flags))
    assert any(line.startswith("sampling.negative_prompt: has no effect") for line in lines)
    lines = warnings(
        load_config(
            written(tmp_path, MINIMAL),
            ["--sampling.lora_scale=0.5", "--adapters.method=ti", "--evaluate.arms=[base, ti]"],
        )
    )
    assert any(line.startswith("sampling.lora_scale: has no effect") for line in lines)


def test_an_unknown_setting_gets_the_list_of_known_ones(tmp_path: Path) -> None:
    assert (
        "known here: batch_size, compile, deep_every, guidance_interval, guidance_scale, lora_scale, negative_prompt, "
        "preset, scheduler, steps" in mistakes(MINIMAL, "--sampling.zzz=1", folder=tmp_path)
    )


@pytest.mark.parametrize(
    "flag, named, allowed",
    [
        ("--sampling.steps=0", "sampling.steps", "at least 1 is expected"),
        ("--sampling.steps=many", "sampling.steps", "a whole number is expected"),
        ("--refine.strength=0", "refine.strength", "more than 0 is expected"),
        ("--dataset.val=0.5", "dataset.val", "less than 0.5"),
        ("--base.size=100", "base.size", "multiple of 8"),
        ("--sampling.scheduler=ddpm", "sampling.scheduler", "'ddim'"),
        ("--classes.benign.token=benign", "classes.benign.token", "pattern"),
        ("--base.revision=main", "base.revision", "40 hex digits"),
        ("--adapters.alpha=.inf", "adapters.alpha", "finite"),
        ("--sampling.guidance_scale=.nan", "sampling.guidance_scale", "finite"),
        ("--classes.benign.quotas={birads: {}}", "classes.benign.quotas.birads", "at least 1"),
    ],
)
def test_a_value_out_of_bounds_is_reported_with_its_path_and_what_is_allowed(
    tmp_path: Path, flag: str, named: str, allowed: str
) -> None:
    message = mistakes(MINIMAL, flag, folder=tmp_path)
    assert message.startswith(f"{named}: ")
    assert allowed in message
    assert "given: " in message


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "", "all", "x" * 65])
def test_a_class_name_that_is_no_plain_name_is_refused(tmp_path: Path, name: str) -> None:
    message = mistakes({**MINIMAL, "classes": {name: {}}}, folder=tmp_path)
    assert message.startswith("classes: ")
    assert repr(name) in message


def test_a_config_without_classes_is_refused(tmp_path: Path) -> None:
    assert "classes" in mistakes({"dataset": {"path": "x"}}, folder=tmp_path)
    assert "classes" in mistakes({"dataset": {"path": "x"}, "classes": {}}, folder=tmp_path)


@pytest.mark.parametrize("dataset", [{}, {"path": "data", "phantoms": {}}])
def test_exactly_one_source_of_images_is_wanted(tmp_path: Path, dataset: dict[str, Any]) -> None:
    assert "exactly one of dataset.path and dataset.phantoms" in mistakes(
        {**MINIMAL, "dataset": dataset}, folder=tmp_path
    )


def test_splits_that_leave_too_little_to_train_on_are_refused(tmp_path: Path) -> None:
    assert "dataset.val" in mistakes(MINIMAL, "--dataset.val=0.45", "--dataset.test=0.45", folder=tmp_path)


def test_a_quota_of_a_column_that_no_prompt_names_is_refused(tmp_path: Path) -> None:
    message = mistakes(MINIMAL, "--classes.benign.quotas={birads: {'4': 1}}", folder=tmp_path)
    assert message == "classes.benign.quotas.birads: no prompt of this class names {birads}"


def test_a_token_in_no_prompt_is_refused_unless_no_token_is_learned(tmp_path: Path) -> None:
    tree = {**MINIMAL, "classes": {"benign": {"prompts": ["a scan"], "caption": "{token}"}, "malignant": {}}}
    message = mistakes(tree, folder=tmp_path)
    assert message == "classes.benign.prompts: the token <benign> is in no prompt: write {token} where it belongs"
    lora = ["--adapters.method=lora", "--evaluate.arms=[base, lora]"]
    assert load_config(written(tmp_path, tree), lora).classes["benign"].prompts == ("a scan",)


def test_a_token_written_out_counts_as_in_the_prompt() -> None:
    tree = {**MINIMAL, "classes": {"benign": {"prompts": ["a <benign> scan"], "caption": "<benign>"}}}
    assert validate(tree).classes["benign"].prompts == ("a <benign> scan",)


def test_braces_that_do_not_pair_are_named(tmp_path: Path) -> None:
    tree = {**MINIMAL, "classes": {"benign": {"prompts": ["{token"]}}}
    assert "classes.benign.prompts" in mistakes(tree, folder=tmp_path)


def test_an_arm_that_the_settings_cannot_draw_is_refused(tmp_path: Path) -> None:
    assert "'lora'" in mistakes(MINIMAL, "--evaluate.arms=[base, lora]", folder=tmp_path)
    assert "refine is null" in mistakes(MINIMAL, "--refine=null", folder=tmp_path)
    assert "named twice" in mistakes(MINIMAL, "--evaluate.arms=[base, base]", folder=tmp_path)


def test_refinement_that_would_run_no_step_is_refused(tmp_path: Path) -> None:
    assert "no step" in mistakes(MINIMAL, "--refine.strength=0.1", "--refine.steps=5", folder=tmp_path)


@pytest.mark.parametrize(("low", "high", "actors"), [(None, 6, 6), (2, 6, 6), (3, None, 3)])
def test_the_old_names_of_the_width_are_read_and_the_new_one_is_said(
    tmp_path: Path, low: int | None, high: int | None, actors: int
) -> None:
    given = {"min_actors": low, "max_actors": high}
    flags = [f"--cluster.{name}={value}" for name, value in given.items() if value is not None]
    config = load_config(written(tmp_path, MINIMAL), flags)
    assert config.cluster.actors == actors
    assert "now cluster.actors" in "".join(warnings(config))
    assert not any("cluster" in line for line in warnings(load_config(written(tmp_path, MINIMAL))))


def test_the_old_and_the_new_name_of_the_width_together_are_refused(tmp_path: Path) -> None:
    message = mistakes(MINIMAL, "--cluster.actors=4", "--cluster.max_actors=2", folder=tmp_path)
    assert message.startswith("cluster: max_actors: give cluster.actors alone")


# ---- files and flags that are none ----


@pytest.mark.parametrize(
    "text, reason",
    [
        ("a: [1", "is not YAML"),
        ("", "holds no settings"),
        ("- a list", "holds no settings"),
        ("just words", "settings"),
    ],
)
def test_a_file_that_is_no_config_is_named(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        load_config(written(tmp_path, text))
    assert "mine.yaml" in str(caught.value)


def test_a_missing_file_a_folder_and_a_binary_file_are_named(tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(b"\x89PNG\xff\xfe\x00")
    for path, reason in (("none.yaml", "No such file"), (".", "Is a directory"), ("image.png", "UTF-8")):
        with pytest.raises(UserError, match=reason):
            load_config(tmp_path / path)


def test_a_file_is_data_and_never_code(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    path = written(tmp_path, f"name: !!python/object/apply:os.mkdir ['{marker}']\n")
    with pytest.raises(UserError, match="not YAML"):
        load_config(path)
    assert not marker.exists()


@pytest.mark.parametrize("flag", ["sampling.steps=5", "--sampling.steps", "--=5", "--sampling.steps=[1"])
def test_an_argument_that_is_no_setting_is_named(tmp_path: Path, flag: str) -> None:
    assert flag in mistakes(MINIMAL, flag, folder=tmp_path)


def test_a_flag_below_a_value_is_refused(tmp_path: Path) -> None:
    assert "seed is a value" in mistakes({**MINIMAL, "seed": 4}, "--seed.x=5", folder=tmp_path)


# ---- places ----


def test_home_and_variables_are_filled_in_where_a_place_is_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("WEIGHTS", "/big")
    tree = {**MINIMAL, "dataset": {"path": "~/busi"}, "evaluate": {"inception": "$WEIGHTS/i.pth"}, "name": "a~$b"}
    config = load_config(written(tmp_path, tree), ["--base.path=~/base", "--output=${HOME}/$WEIGHTS/runs"])
    assert (config.dataset.path, config.evaluate.inception) == ("/home/me/busi", "/big/i.pth")
    assert (config.base.path, config.output, config.name) == ("/home/me/base", "/home/me//big/runs", "a~$b")
    stored = validate(json.loads(to_json(config.model_dump(mode="json"))))
    assert stored == config  # the expanded place is stored, and read as it is


def test_every_unset_variable_is_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_SET", raising=False)
    tree = {**MINIMAL, "dataset": {"path": "$NOT_SET/busi"}, "adapters": {"path": "${NOT_SET}"}, "seed": -1}
    message = mistakes(tree, "--output=$NOT_SET", folder=tmp_path)
    assert {line.split(":")[0] for line in message.splitlines()} == {"dataset.path", "adapters.path", "output", "seed"}
    assert "the variable $NOT_SET is not set" in message
    assert load_config(written(tmp_path, MINIMAL | {"dataset": {"path": "$NOT_SET"}}), ["--dataset.path=here"])


@pytest.mark.parametrize("field", ["output", "dataset.path", "dataset.metadata", "adapters.path", "evaluate.dinov2"])
@pytest.mark.parametrize(
    "place", ["", " ", "s3:x", "S3://b/x", "s3://", "s3:///x", "file:/x", "file://host/x", "C:\\x"]
)
def test_what_is_no_place_is_refused_in_every_setting(tmp_path: Path, field: str, place: str) -> None:
    assert mistakes(MINIMAL, f"--{field}={place}", folder=tmp_path).startswith(f"{field}: ")


def test_what_is_read_from_disk_takes_no_url_and_says_how_to_copy(tmp_path: Path) -> None:
    for field in ("dataset.path", "dataset.metadata", "base.path", "evaluate.inception", "study.external"):
        message = mistakes(MINIMAL, f"--{field}=s3://bucket/x", folder=tmp_path)
        assert message.startswith(f"{field}: it is read from this machine's disk") and "aws s3 sync" in message
    for url in ("https://huggingface.co/owner/name", "hf://owner/name"):
        assert "write owner/name, and its commit in base.revision" in mistakes(
            MINIMAL, f"--base.path={url}", folder=tmp_path
        )
    assert load_config(written(tmp_path, MINIMAL), ["--adapters.path=s3://bucket/x"]).adapters.path == "s3://bucket/x"


def test_a_run_and_its_images_do_not_lie_in_each_other(tmp_path: Path) -> None:
    for output in ("data", "data/runs/x", "data/../data/x"):
        message = mistakes(MINIMAL, f"--output={output}", folder=tmp_path)
        assert message.startswith(f"output: {output} lies in the data folder data") and "give --output=" in message
    message = mistakes(MINIMAL, "--output=runs", "--dataset.path=runs/data", folder=tmp_path)
    assert "the data folder runs/data lies in runs" in message
    assert "lies in the data folder" in mistakes(MINIMAL, "--dataset.path=.", folder=tmp_path)
    assert load_config(written(tmp_path, MINIMAL), ["--output=data-runs"]).output == "data-runs"


def test_every_setting_that_is_a_place_is_filled_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", "/there")
    places = ["output", "base.path", "adapters.path", "dataset.metadata", "evaluate.inception"]
    places += ["evaluate.dinov2", "study.external", "dataset.path"]
    config = load_config(written(tmp_path, MINIMAL), [f"--{name}=$PLACE/{name}" for name in places])
    stored = config.model_dump()
    for name in places:
        value: Any = stored
        for part in name.split("."):
            value = value[part]
        assert value == f"/there/{name}"


# ---- words that YAML reads otherwise ----


def test_a_word_is_read_as_its_setting_wants_it(tmp_path: Path) -> None:
    text = """
name: 2024-01-01
seed: 0x10
dataset: {path: 010}
card: {license: no, source: 1.10}
adapters: {mirror: no, learning_rate: 1e-4, convolutions: on}
classes:
  no: {initializer: off, prompts: [yes <no>, "{token} 10:30"], quotas: {}}
  1: {token: <one>}
"""
    config = load_config(written(tmp_path, text))
    assert (config.name, config.seed, config.dataset.path) == ("2024-01-01", 16, "010")
    assert (config.card.license, config.card.source) == ("no", "1.10")
    assert (config.adapters.mirror, config.adapters.convolutions, config.adapters.learning_rate) == (False, True, 1e-4)
    assert list(config.classes) == ["1", "no"] and config.classes["no"].initializer == "off"
    assert config.classes["no"].prompts == ("yes <no>", "{token} 10:30")


@pytest.mark.parametrize("value", ["10:30", "1_000", "010", "0o10", "0b1", "true", "yes", "01.5"])
@pytest.mark.parametrize("field", ["seed", "refine.strength", "adapters.steps", "study.ratios"])
def test_a_number_that_readers_understand_differently_is_refused(tmp_path: Path, field: str, value: str) -> None:
    given = f"[{value}]" if field == "study.ratios" else value
    message = mistakes(MINIMAL, f"--{field}={given}", folder=tmp_path)
    assert message.startswith(field) and value in message and "\n" not in message
    group, _, leaf = field.rpartition(".")
    text = f"{group}:\n  {leaf}: {given}\n" if group else f"{leaf}: {given}\n"
    assert mistakes(yaml.safe_dump(MINIMAL) + text, folder=tmp_path).startswith(field)


def test_a_flag_for_a_text_is_taken_as_it_is(tmp_path: Path) -> None:
    texts = ["Al-Dhabyani 2020, doi: 10.1016/x", "a #b", "{x}", "[1]", "*x", "@x", "no", "12", "'", "null and void"]
    for text in texts:
        assert load_config(written(tmp_path, MINIMAL), [f"--card.source={text}"]).card.source == text
    assert load_config(written(tmp_path, MINIMAL), ['--card.source="a b"']).card.source == "a b"
    assert load_config(written(tmp_path, MINIMAL), ["--card.source=null"]).card.source is None


def test_a_name_given_twice_in_the_file_or_as_a_flag_is_refused(tmp_path: Path) -> None:
    text = "seed: 1\ndataset: {path: data}\nclasses: {benign: {}}\nseed: 2\n"
    assert "line 4: seed is given a second time, after line 1" in mistakes(text, folder=tmp_path)
    assert "--seed=1 and --seed=2: it is given twice" in mistakes(MINIMAL, "--seed=1", "--seed=2", folder=tmp_path)
    assert "one is inside the other" in mistakes(MINIMAL, "--refine=null", "--refine.steps=3", folder=tmp_path)


@pytest.mark.parametrize(
    "field, value",
    [
        ("evaluate.arms", "[]"),
        ("evaluate.arms", "[base, base]"),
        ("evaluate.extractors", "[texture, texture]"),
        ("ablate.strengths", "[0.1, 0.1]"),
        ("ablate.guidance_scales", "[2, 2.0]"),
        ("study.ratios", "[1, 1]"),
        ("study.learning_rates", "[0.1, 0.1]"),
    ],
)
def test_a_list_that_is_empty_or_names_something_twice_is_refused(tmp_path: Path, field: str, value: str) -> None:
    message = mistakes(MINIMAL, f"--{field}={value}", folder=tmp_path)
    assert message.startswith(f"{field}: ") and ("named twice" in message or "at least 1" in message)


ABSURD = [
    *("adapters.steps", "adapters.rank", "adapters.batch_size", "adapters.alpha", "adapters.warmup"),
    *("sampling.steps", "sampling.batch_size", "classes.benign.images", "evaluate.images", "evaluate.batch_size"),
    *("base.size", "corpus.shard_size", "cluster.actors", "cluster.threads", "study.steps", "study.ratios"),
]


@pytest.mark.parametrize("field", ABSURD)
@pytest.mark.parametrize("value", [str(10**15), "9" * 5000, "1e300", ".inf", ".nan", "-1"])
def test_absurd_numbers_are_refused_in_a_short_message(tmp_path: Path, field: str, value: str) -> None:
    given = f"[{value}]" if field == "study.ratios" else value
    message = mistakes(MINIMAL, f"--{field}={given}", folder=tmp_path)
    assert message.startswith(field) and len(message) < 400


# ---- texts of prompts ----


def test_what_only_other_programs_understand_in_a_prompt_is_refused_or_told(tmp_path: Path) -> None:
    for text in ("{token!r}", "{class:>1000000} {token}", "{token.__class__}", "{oval|round} {token}", "{token} {"):
        tree = {**MINIMAL, "classes": {"benign": {"prompts": [text]}}}
        assert mistakes(tree, folder=tmp_path).startswith("classes.benign.prompts: ")
    tree = {**MINIMAL, "classes": {"benign": {"prompts": ["(dark:1.3) {token} BREAK"], "caption": "{token}"}}}
    lines = warnings(load_config(written(tmp_path, tree)))
    assert len(lines) == 2 and all("classes.benign.prompts: " in line and "literally" in line for line in lines)
    assert warnings(load_config(written(tmp_path, MINIMAL))) == []


# ---- files ----


def test_a_file_that_is_not_utf8_or_far_too_large_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes("classes: {}".encode("utf-16"))
    with pytest.raises(UserError, match="UTF-16: save it as UTF-8"):
        load_config(tmp_path / "a.yaml")
    with pytest.raises(UserError, match="more than 1000000 bytes"):
        load_config("/dev/zero")
    (tmp_path / "b.yaml").write_bytes(b"\xef\xbb\xbf" + yaml.safe_dump(MINIMAL).encode())
    assert load_config(tmp_path / "b.yaml").name == "b"


def test_a_class_whose_name_has_dots_is_reached_by_a_flag(tmp_path: Path) -> None:
    tree = {**MINIMAL, "classes": {"a.b": {"token": "<ab>"}, "a": {}}}
    config = load_config(written(tmp_path, tree), ["--classes.a.b.images=3", "--classes.a.images=4"])
    assert (config.classes["a.b"].images, config.classes["a"].images) == (3, 4)


# ---- small readers ----


def test_default_tokens_that_clash_or_cannot_be_tokens_are_refused_by_name() -> None:
    clash = {"Benign": {"images": 1}, "benign": {"images": 1}}
    with pytest.raises(UserError, match=r"classes\.Benign\.token: set one"):
        validate({"dataset": {"path": "data"}, "classes": clash})
    with pytest.raises(UserError, match=r"classes\.a\.b\.token: set one"):
        validate({"dataset": {"path": "data"}, "classes": {"a.b": {"images": 1}}})
    shared = {name: {"images": 1, "token": "<us>"} for name in ("Benign", "benign")}
    assert set(validate({"dataset": {"path": "data"}, "classes": shared}).tokens().values()) == {"<us>"}


def test_extractors_are_known_and_named_once(tmp_path: Path) -> None:
    assert load_config(written(tmp_path, MINIMAL)).evaluate.extractors == ("inception", "texture")
    config = load_config(written(tmp_path, MINIMAL), ["--evaluate.extractors=[texture]"])
    assert config.evaluate.extractors == ("texture",)
    for given in ("[]", "[texture, texture]", "[clip]"):
        assert "evaluate.extractors" in mistakes(MINIMAL, f"--evaluate.extractors={given}", folder=tmp_path)


def test_lesion_geometry_is_off_unless_asked_for(tmp_path: Path) -> None:
    assert load_config(written(tmp_path, MINIMAL)).evaluate.geometry is None
    asked = load_config(written(tmp_path, MINIMAL), ["--evaluate.geometry={}"]).evaluate.geometry
    assert asked is not None and asked.steps == 800
    assert load_config(written(tmp_path, MINIMAL), ["--evaluate.geometry.steps=50"]).evaluate.geometry is not None
    assert "evaluate.geometry.steps" in mistakes(MINIMAL, "--evaluate.geometry.steps=0", folder=tmp_path)


def test_a_gate_does_not_judge_itself(tmp_path: Path) -> None:
    gated = {**MINIMAL, "corpus": {"gate": {}}}
    assert load_config(written(tmp_path, gated)).corpus.gate is not None
    message = mistakes(gated, "--corpus.gate.architecture=cnn", folder=tmp_path)
    assert message.startswith("evaluate.judge: cnn is the class gate's architecture too")
    assert load_config(written(tmp_path, gated), ["--corpus.gate.architecture=cnn", "--evaluate.judge=null"])


def test_the_texts_of_a_class_need_the_tokens_of_no_other_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """With all tokens for each of 300 classes, time would grow with the square of their number."""
    config = validate({**MINIMAL, "classes": {f"c{number}": {} for number in range(300)}})
    monkeypatch.setattr(Config, "tokens", lambda self: pytest.fail("all tokens were made"))
    assert config.prompts("c7") == ("{token} ultrasound image of {class} breast tissue",)
    assert config.caption("c7") == "{token} ultrasound image of {class} breast tissue"
