"""Each option of training changes what it should; loss and gradients are those of diffusers."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import compute_snr
from safetensors.torch import load

from busray.config import Adapters, Base
from busray.data.phantom import CLASSES, PROBES, phantom
from busray.model.adapters import LORA_FILE, adapter_sha256, load_adapters, offered_adapters
from busray.model.base import identify_base
from busray.model.finetune import LORA_DECAY, FineTuner, rate_factor
from busray.model.latents import TrainingImages, encode_images
from busray.records import ContentBox
from tests.support.pipelines import tiny_pipeline

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE, BATCH = 32, 3
CAPTION = "smooth ultrasound image"
CONVOLUTION = "down_blocks.0.resnets.0.conv1"
FEED_FORWARD = "down_blocks.1.attentions.0.transformer_blocks.0.ff.net.2"


@pytest.fixture(scope="module")
def encoded() -> TrainingImages:
    images = np.stack([phantom(i, CLASSES[i % 2], PROBES["demo"], (SIZE, SIZE)).image for i in range(4)])
    boxes = [ContentBox(0, 0, SIZE, SIZE)] * 4
    return TrainingImages([encode_images(tiny_pipeline(), images, boxes, mirror=False, batch_size=4)])


def tuner(encoded: TrainingImages, trained: bool = False, **changes: Any) -> FineTuner:
    """LoRA in training; `trained`: as if it had been for a while, with no zeros in any matrix."""
    settings = Adapters(**{"method": "lora", "rank": 2, "alpha": 4, "batch_size": BATCH, **changes})
    made = FineTuner(tiny_pipeline(), settings, {}, {}, encoded, [CAPTION] * 4, seed=5)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in made.parameters.items():
            if trained and "lora_A" not in name:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return made


def prediction(pipe: Any) -> torch.Tensor:
    """What a pipeline's text encoder and UNet make of fixed noise."""
    latents = torch.randn((1, 8, 16, 16), generator=torch.Generator().manual_seed(4))
    ids = pipe.tokenizer(CAPTION, padding="max_length", return_tensors="pt").input_ids
    with torch.inference_mode():
        return pipe.unet(latents, 500, pipe.text_encoder(ids)[0]).sample


# ---- the loss is diffusers'


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"snr_gamma": 5.0, "noise_offset": 0.1},
        {"prediction": "epsilon", "snr_gamma": 5.0},
        {"zero_terminal_snr": True},
    ],
    ids=["v", "v, min-SNR, noise offset", "epsilon, min-SNR", "zero terminal SNR"],
)
def test_loss_and_gradients_are_those_of_diffusers_training_scripts(
    encoded: TrainingImages, changes: dict[str, Any]
) -> None:
    made = tuner(encoded, trained=True, caption_dropout=0, **changes)
    samples = [made._sample(0, position) for position in range(BATCH)]
    if made.settings.zero_terminal_snr:
        assert made.alphas[-1] == 0
    found = made.accumulate(0, range(BATCH)) / BATCH
    gradients = {name: parameter.grad for name, parameter in made.parameters.items()}

    # As in diffusers' examples/text_to_image/train_text_to_image_lora.py.
    kind = changes.get("prediction", "v_prediction")
    options = {"prediction_type": kind, "rescale_betas_zero_snr": made.settings.zero_terminal_snr}
    scheduler: Any = DDPMScheduler.from_config({**tiny_pipeline().scheduler.config, **options})
    part = encoded.parts[0]
    rows = [sample.row for sample in samples]
    latents = part.mean[rows] + part.std[rows] * torch.stack([sample.posterior_noise for sample in samples])
    noise, timesteps = torch.stack([sample.noise for sample in samples]), torch.tensor([s.timestep for s in samples])
    target = noise if kind == "epsilon" else scheduler.get_velocity(latents, noise, timesteps)
    ids = made.pipe.tokenizer([CAPTION] * BATCH, padding="max_length", return_tensors="pt").input_ids
    noisy = scheduler.add_noise(latents, noise, timesteps)
    predicted = made.pipe.unet(noisy, timesteps, made.pipe.text_encoder(ids)[0]).sample
    loss = torch.nn.functional.mse_loss(predicted.float(), target.float(), reduction="none").mean((1, 2, 3))
    if made.settings.snr_gamma:
        snr = compute_snr(scheduler, timesteps)
        loss = loss * snr.clamp(max=made.settings.snr_gamma) / (snr if kind == "epsilon" else snr + 1)
    wanted = torch.autograd.grad(loss.mean(), list(made.parameters.values()))
    assert found == pytest.approx(float(loss.detach().mean()), rel=1e-6)
    total = torch.sqrt(sum(((gradient**2).sum() for gradient in wanted), torch.tensor(0.0)))
    for (name, gradient), other in zip(gradients.items(), wanted, strict=True):
        assert gradient is not None and (gradient - other).norm() < 1e-5 * total, name


# ---- settings that contradict each other


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"learning_rate_schedule": "cosine", "warmup": 10, "steps": 10}, "lower warmup"),
        ({"zero_terminal_snr": True, "snr_gamma": 5.0}, "leave one of them out"),
    ],
)
def test_settings_of_a_training_that_contradict_each_other_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Adapters(**settings)


# ---- schedules of the learning rate


def test_a_cosine_falls_from_the_whole_rate_after_warmup_to_nothing(encoded: TrainingImages) -> None:
    settings = Adapters(warmup=4, steps=24, learning_rate_schedule="cosine")
    factors = [rate_factor(settings, step) for step in range(24)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = get_cosine_schedule_with_warmup(optimiser, 0, 20)
    for factor in factors[4:]:
        assert factor == pytest.approx(schedule.get_last_lr()[0])
        optimiser.step()
        schedule.step()
    assert rate_factor(settings, 24) == pytest.approx(0)
    assert {rate_factor(Adapters(steps=24), step) for step in range(24)} == {1.0}


def test_the_optimiser_steps_at_the_schedules_rate(encoded: TrainingImages) -> None:
    made = tuner(encoded, steps=4, learning_rate_schedule="cosine", learning_rate=1e-3)
    made.accumulate(0, range(1))
    made.apply(3)
    assert made.optimiser.param_groups[0]["lr"] == pytest.approx(1e-3 * 0.5 * (1 + math.cos(0.75 * math.pi)))


# ---- noise


def test_a_noise_offset_moves_the_mean_of_the_noise_and_nothing_else(encoded: TrainingImages) -> None:
    plain, offset = tuner(encoded), tuner(encoded, noise_offset=0.5)
    means = []
    for position in range(40):
        before, after = plain._sample(0, position), offset._sample(0, position)
        assert (after.row, after.timestep, after.dropped) == (before.row, before.timestep, before.dropped)
        assert torch.equal(after.posterior_noise, before.posterior_noise)
        moved = (after.noise - before.noise).flatten(1)  # [c, h * w]: equal in all cells of a channel
        torch.testing.assert_close(moved, moved[:, :1].expand_as(moved), atol=1e-5, rtol=0)
        means.append(moved[:, 0])
    assert float(torch.stack(means).std()) == pytest.approx(0.5, rel=0.2)


# ---- kinds of LoRA


def saved(made: FineTuner, folder: Path) -> Path:
    for name, data in made.adapter_files({}).items():
        (folder / name).write_bytes(data)
    return folder


KINDS = {
    "DoRA": {"dora": True},
    "rsLoRA": {"rslora": True},
    "feed-forward": {"feed_forward": True},
    "all at once": {"dora": True, "rslora": True, "feed_forward": True, "convolutions": True, "text_encoder": True},
}


@pytest.mark.parametrize("kind", KINDS)
def test_plain_diffusers_and_busray_load_what_was_trained(encoded: TrainingImages, tmp_path: Path, kind: str) -> None:
    made = tuner(encoded, trained=True, **KINDS[kind])
    folder = saved(made, tmp_path)
    wanted, base = prediction(made.pipe), prediction(tiny_pipeline())
    effect = float((wanted - base).norm())
    assert effect > 0.01 * float(base.norm())
    plain = tiny_pipeline()
    plain.load_lora_weights(folder, weight_name=LORA_FILE)
    assert float((prediction(plain) - wanted).norm()) < 1e-3 * effect
    offered = offered_adapters(folder, "lora", {}, identify_base(Base()), None)
    assert offered.files[LORA_FILE] == (folder / LORA_FILE).read_bytes() and not offered.remark
    fused = tiny_pipeline()
    load_adapters(fused, folder, "lora", {})
    assert float((prediction(fused) - wanted).norm()) < 1e-3 * effect


def test_dora_learns_magnitudes_which_start_as_the_norms_of_the_bases_weights(encoded: TrainingImages) -> None:
    made = tuner(encoded, dora=True, text_encoder=True)
    magnitudes = {name: value for name, value in made.parameters.items() if "lora_magnitude_vector" in name}
    assert 3 * len(magnitudes) == sum(name.startswith("unet.") for name in made.parameters)
    layer = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    norms = tiny_pipeline().unet.get_submodule(layer).weight.norm(dim=1)
    torch.testing.assert_close(magnitudes[f"unet.{layer}.lora_magnitude_vector.default.weight"].detach(), norms)
    before = {name: value.detach().clone() for name, value in magnitudes.items()}
    decays = {
        id(parameter): group["weight_decay"] for group in made.optimiser.param_groups for parameter in group["params"]
    }
    assert {decays[id(value)] for value in magnitudes.values()} == {0.0}
    assert set(decays.values()) == {0.0, LORA_DECAY}
    made.accumulate(0, range(BATCH))
    made.apply(0)
    assert all(not torch.equal(before[name], value) for name, value in magnitudes.items())
    assert not any("magnitude" in name for name in tuner(encoded).parameters)


def test_rslora_scales_by_the_root_of_the_rank(encoded: TrainingImages) -> None:
    layer = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    scales = [tuner(encoded, rslora=on).pipe.unet.get_submodule(layer).scaling["default"] for on in (False, True)]
    assert scales == pytest.approx([4 / 2, 4 / math.sqrt(2)])


def test_lora_on_the_feed_forward_layers_is_an_option(encoded: TrainingImages) -> None:
    with_them, without = tuner(encoded, feed_forward=True).parameters, tuner(encoded).parameters
    added = {name.rpartition(".lora_")[0] for name in with_them.keys() - without.keys()}
    assert f"unet.{FEED_FORWARD}" in added and all(".ff.net." in name for name in added)
    blocks = [name for name, _ in tiny_pipeline().unet.named_modules() if name.endswith(".ff")]
    assert len(added) == 2 * len(blocks)


def test_bfloat16_trains_every_kind_of_lora(encoded: TrainingImages) -> None:
    made = tuner(encoded, precision="bfloat16", **KINDS["all at once"])
    before = {name: value.detach().clone() for name, value in made.parameters.items()}
    made.accumulate(0, range(2))
    made.apply(0)
    moved = [name for name, value in made.parameters.items() if not torch.equal(before[name], value)]
    assert {name for name in before if "lora_B" in name} <= set(moved)
    assert {value.dtype for value in made.parameters.values()} == {torch.float32}


# ---- what the adapters need at sampling


def test_a_changed_schedule_is_another_set_of_adapters(encoded: TrainingImages, tmp_path: Path) -> None:
    files = tuner(encoded, trained=True).adapter_files({"scheduler": {"rescale_betas_zero_snr": True}})
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    base = identify_base(Base())
    changed = offered_adapters(tmp_path, "lora", {}, base, None).record
    assert changed["scheduler"] == {"rescale_betas_zero_snr": True}
    (tmp_path / "adapter.json").write_text(json.dumps({"scheduler": {}}))
    plain = offered_adapters(tmp_path, "lora", {}, base, None).record
    assert plain["sha256"] == adapter_sha256(files) != changed["sha256"]


def test_the_trainings_own_pictures_are_drawn_with_the_trained_schedule(encoded: TrainingImages) -> None:
    pipe = tuner(encoded, zero_terminal_snr=True).sample_pipe()
    assert pipe.scheduler.config.rescale_betas_zero_snr and pipe.scheduler.config.timestep_spacing == "trailing"


def test_magnitudes_are_in_the_file(encoded: TrainingImages) -> None:
    names = load(tuner(encoded, dora=True).adapter_files({})[LORA_FILE])
    layers = {name.partition(".lora")[0] for name in names}
    assert {f"{layer}.lora_magnitude_vector" for layer in layers} <= names.keys()
