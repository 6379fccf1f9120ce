"""What is said about settings and values that busray does not have."""

import shlex
from typing import Any

import pytest

from busray.config_file import validate, with_flags
from busray.records import UserError
from busray.setting_mistakes import OWN_NAMES, setting_names

TREE: dict[str, Any] = {"dataset": {"path": "data"}, "classes": {"benign": {}}}


def said(*flags: str) -> str:
    with pytest.raises(UserError) as caught:
        with_flags({**TREE}, list(flags))
    return str(caught.value)


@pytest.mark.parametrize(
    "flag, own",
    [
        ("refine.negative_prompt=blurry", "busray's own is sampling.negative_prompt"),
        ("sampling.cfg_scale=7", "busray's own is sampling.guidance_scale"),
        ("cfg-scale=7", "busray's own is sampling.guidance_scale"),
        ("sampling.sampler=Euler a", "busray's own is sampling.scheduler"),
        ("adapters.network_alpha=16", "busray's own is adapters.alpha"),
        ("adapters.network_dim=16", "busray's own is adapters.rank"),
        ("adapters.scale=0.8", "busray's own is sampling.lora_scale"),
        ("adapters.vae=x/y", "busray's own is base.vae"),
        ("max_train_steps=8", "busray's own is adapters.steps"),
        ("sampling.scheduler=Euler a", "the nearest is euler, which is not ancestral"),
        ("sampling.scheduler=dpm++ 2m karras", "the nearest is dpmsolver++; Karras"),
        ("sampling.scheduler=unipcc", "did you mean unipc?"),
        ("base.dtype=fp16", "the nearest is float16"),
    ],
)
def test_habits_of_other_programs_are_told_busrays_own_setting(flag: str, own: str) -> None:
    assert own in said(f"--{flag}")


def test_every_own_name_is_a_setting() -> None:
    names = set(setting_names())
    for own in OWN_NAMES.values():
        setting = own.split(",")[0].split(":")[0].split("=")[0]
        assert setting in names or " " in own, own


@pytest.mark.parametrize(
    "flag, near",
    [
        ("sampling.stepz=4", "did you mean steps?"),
        ("sampling.guidance-scale=4", "did you mean guidance_scale?"),
        ("rank=4", "did you mean adapters.rank?"),
        ("stps=4", "steps?"),
        ("sampling.rank=4", "did you mean adapters.rank?"),
        ("datasett.path=x", "did you mean dataset?"),
        ("clasess.benign.images=4", "did you mean classes?"),
    ],
)
def test_a_mistyped_setting_gets_the_nearest_name(flag: str, near: str) -> None:
    assert near in said(f"--{flag}")


def test_a_class_that_is_not_there_gets_the_nearest_name() -> None:
    assert "no such class: did you mean benign?" in said("--classes.benig.images=4")


def test_a_wrong_kind_of_value_is_told_how_to_write_it() -> None:
    for tree, hint in (
        ({"dataset": "data"}, "a group of settings is expected, such as dataset: {...}"),
        ({"classes": {"benign": {"prompts": "text {token}"}}}, "a list is expected, such as prompts: [...]"),
        ({"classes": {"benign": {"caption": {"token": None}}}}, "braces, brackets or a colon needs quotes"),
        ({"name": 5}, "write it in quotes"),
    ):
        with pytest.raises(UserError) as caught:
            validate({**TREE, **tree})
        assert hint in str(caught.value)


@pytest.mark.parametrize(
    "flag, hint",
    [
        ("evaluate.arms=base,lora", """write '--evaluate.arms=["base", "lora"]'"""),
        ("dataset.masks=*_lbl", """write '--dataset.masks=["*_lbl"]'"""),
        ("adapters.num_workers=[1, 2, 3]", "at most 2 values are allowed"),
        ("refine=none", "such as refine: {...}, or null for none"),
        ("corpus.gate=true", "such as gate: {...}, or null for none"),
        ("seed=", "seed: it is empty: give a value after the `=`"),
        ("seed=-1", "seed: at least 0 is expected"),
        ("seed=99999999999999999999", "seed: less than 9223372036854775808 is expected"),
        ("adapters.rank=4.5", "adapters.rank: a whole number is expected"),
    ],
)
def test_a_wrong_value_of_a_flag_is_told_how_to_write_it(flag: str, hint: str) -> None:
    assert hint in said(f"--{flag}")


def test_the_list_that_is_advised_is_taken() -> None:
    advised = said("--dataset.masks=*_lbl,'*_seg'").partition("write ")[2]
    assert with_flags({**TREE}, shlex.split(advised)).dataset.masks == ("*_lbl", "*_seg")


def test_a_class_without_settings_has_the_defaults() -> None:
    config = validate({**TREE, "classes": {"benign": None, "fibroadénome": None}})
    assert config.folders() == {"benign": "benign", "fibroadenome": "fibroadénome"}


def test_a_setting_of_several_kinds_is_named_as_the_user_writes_it() -> None:
    lines = said("--dataset.frames=last").splitlines()
    assert lines and all(line.startswith("dataset.frames: ") for line in lines)
    assert with_flags({**TREE}, ["--dataset.frames=3"]).dataset.frames == 3
    assert with_flags({**TREE}, ["--dataset.frames=all"]).dataset.frames == "all"


def test_a_long_value_is_not_repeated_whole() -> None:
    assert len(said(f"--sampling.scheduler={'x' * 100_000}")) < 500
