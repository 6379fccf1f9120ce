"""A UNet that learns whole: it comes nearer to the images, diffusers loads it, and one that does
not fit is refused."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load, save

from busray.config import Adapters, Base
from busray.data.phantom import PROBES, phantom
from busray.model.adapters import load_adapters, offered_adapters
from busray.model.base import identify_base
from busray.model.finetune import FineTuner
from busray.model.latents import TrainingImages, encode_images
from busray.model.tuned_networks import network_files, settings_file, weights_file
from busray.records import ContentBox, UserError
from busray.run import checks
from tests.support.pipelines import tiny_pipeline
from tests.support.runs import settings

WEIGHTS, SETTINGS = weights_file("unet"), settings_file("unet")
NAME = "conv_in.weight"


@pytest.fixture(scope="module")
def encoded() -> TrainingImages:
    images = np.stack([phantom(i, "benign", PROBES["demo"], (32, 32)).image for i in range(2)])
    boxes = [ContentBox(0, 0, 32, 32)] * 2
    return TrainingImages([encode_images(tiny_pipeline(), images, boxes, mirror=False, batch_size=2)])


def trained(encoded: TrainingImages, steps: int, method: str = "full", **changes: Any) -> FineTuner:
    how = Adapters(**{"method": method, "batch_size": 2, "steps": 4, "learning_rate": 1e-3, **changes})
    tokens = {"benign": "<us-benign>"} if "ti" in method else {}
    caption = "ultrasound image <us-benign>" if tokens else "ultrasound image"
    tuner = FineTuner(tiny_pipeline(), how, tokens, {"benign": "oval"}, encoded, [caption] * 2, seed=5)
    for step in range(steps):
        tuner.accumulate(step, range(2))
        tuner.apply(step)
    return tuner


@pytest.fixture(scope="module")
def files(encoded: TrainingImages) -> dict[str, bytes]:
    return trained(encoded, 2).adapter_files({"layers": 1})


@pytest.fixture
def folder(tmp_path: Path, files: dict[str, bytes]) -> Path:
    (tmp_path / "unet").mkdir()
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


def test_every_weight_of_the_unet_learns_and_nothing_else(encoded: TrainingImages) -> None:
    tuner, before = trained(encoded, 1), tiny_pipeline()
    assert tuner.parameters.keys() == {f"unet.{name}" for name, _ in tuner.pipe.unet.named_parameters()}
    old, new = before.unet.state_dict(), tuner.pipe.unet.state_dict()
    assert not any(torch.equal(old[name], new[name]) for name in old)
    for part in ("vae", "text_encoder"):
        old, new = getattr(before, part).state_dict(), getattr(tuner.pipe, part).state_dict()
        assert all(torch.equal(old[name], new[name]) for name in old)


def test_tokens_may_learn_with_the_whole_unet(encoded: TrainingImages) -> None:
    tuner = trained(encoded, 1, "full+ti")
    assert {"tokens", f"unet.{NAME}"} <= tuner.parameters.keys()
    assert {WEIGHTS, SETTINGS, "us-benign.safetensors"} <= tuner.adapter_files({}).keys()


def test_training_resumes_with_the_weights_that_were_kept(encoded: TrainingImages) -> None:
    tuner = trained(encoded, 1)
    tuner.keep()
    expected = load(tuner.adapter_files({})[WEIGHTS])[NAME]
    tuner.accumulate(1, range(2))
    tuner.apply(1)
    again = trained(encoded, 0)
    again.load_state(tuner.state_bytes())
    assert torch.equal(load(again.adapter_files({})[WEIGHTS])[NAME], expected)
    assert not torch.equal(again.pipe.unet.conv_in.weight.half(), expected)


def test_plain_diffusers_loads_it(folder: Path, files: dict[str, bytes]) -> None:
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", use_safetensors=True)
    assert torch.equal(unet.state_dict()[NAME], load(files[WEIGHTS])[NAME].float())


def test_it_is_drawn_with_in_the_place_of_the_bases(folder: Path, files: dict[str, bytes]) -> None:
    pipe = tiny_pipeline()
    load_adapters(pipe, folder, "full", {})
    assert torch.equal(pipe.unet.state_dict()[NAME], load(files[WEIGHTS])[NAME].float())


def test_the_bases_own_weights_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    for name, data in network_files("unet", tiny_pipeline().unet).items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(RuntimeError, match="changed nothing"):
        load_adapters(tiny_pipeline(), tmp_path, "full", {})


def test_an_offered_one_is_taken_over_and_refused_as_a_lora(folder: Path, files: dict[str, bytes]) -> None:
    base = identify_base(Base())
    offered = offered_adapters(folder, "full", {}, base, None).files
    assert {name: offered[name] for name in (WEIGHTS, SETTINGS)} == {name: files[name] for name in (WEIGHTS, SETTINGS)}
    with pytest.raises(UserError, match=r"a whole UNet is there \(unet/\).*give full"):
        offered_adapters(folder, "none", {}, base, None)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / SETTINGS).unlink(), "unet/config.json is missing"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b"no"), "is damaged"),
        (lambda folder: _rewrite(folder, lambda state: state.pop(NAME)), "does not fit this base's UNet"),
        (lambda folder: _rewrite(folder, lambda state: state[NAME].fill_(torch.nan)), "NaN"),
    ],
)
def test_one_that_does_not_fit_is_refused(folder: Path, spoil: Any, said: str) -> None:
    spoil(folder)
    with pytest.raises(UserError, match=said):
        offered_adapters(folder, "full", {}, identify_base(Base()), None)


def _rewrite(folder: Path, change: Any) -> None:
    state = load((folder / WEIGHTS).read_bytes())
    change(state)
    (folder / WEIGHTS).write_bytes(save(state))


def test_a_large_unet_is_refused_with_what_to_use_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arms = {"arms": ["base", "full+ti"]}
    config = settings(tmp_path, adapters={"method": "full+ti"}, evaluate=arms)
    checks.check_unet_is_small(config)
    # The UNet of Stable Diffusion 1.5, which diffusers' own defaults describe but for the text.
    large = SimpleNamespace(configs={"unet": {"cross_attention_dim": 768, "attention_head_dim": 8}})
    monkeypatch.setattr(checks, "base_files", lambda _: large)
    with pytest.raises(UserError, match=r"adapters\.method: full\+ti .* 860 million .* take lora\+ti"):
        checks.check_unet_is_small(config)
    checks.check_unet_is_small(settings(tmp_path, adapters={"method": "lora+ti"}))


def test_a_whole_unet_learns_along_a_cosine_with_an_average_unless_set_otherwise() -> None:
    assert (Adapters(method="full").learning_rate_schedule, Adapters(method="full").ema) == ("cosine", 0.99)
    assert Adapters(method="full", ema=None).ema is None
    assert (Adapters().learning_rate_schedule, Adapters().ema) == ("constant", None)
