"""Adapters are drawn with the noise schedule that they were trained for."""

from collections.abc import Mapping
from typing import Any

import diffusers
import pytest
import torch

from busray.config import Adapters, Sampling
from busray.model.noise_schedule import changed_schedule, offered_schedule, training_alphas, with_schedule
from busray.model.sample import Sampler
from busray.model.steps import SCHEDULERS, scheduler_for
from busray.records import ContentBox, ImageSpec, UserError
from tests.support.pipelines import tiny_pipeline

SD15: Mapping[str, Any] = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}
"""Stable Diffusion v1.5's, which predicts noise and does not say so."""
ZERO = Adapters(prediction="v_prediction", zero_terminal_snr=True)
WHOLE = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


def bases() -> dict[str, Any]:
    return {"sd15": diffusers.PNDMScheduler.from_config(dict(SD15)), "tiny": tiny_pipeline().scheduler}


def test_only_what_differs_from_the_base_is_a_change() -> None:
    assert changed_schedule(Adapters(), SD15) == {}
    assert changed_schedule(Adapters(prediction="epsilon"), SD15) == {}
    assert changed_schedule(ZERO, SD15) == WHOLE
    tiny = tiny_pipeline().scheduler.config
    assert changed_schedule(ZERO, tiny) == {"rescale_betas_zero_snr": True}
    assert with_schedule(base := tiny_pipeline().scheduler, {}) is base


@pytest.mark.parametrize("base", [SD15, {**SD15, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}])
def test_pure_noise_is_refused_for_a_network_that_predicts_noise(base: Mapping[str, Any]) -> None:
    settings = Adapters(prediction="epsilon", zero_terminal_snr=base is SD15)
    with pytest.raises(UserError, match=r"set adapters\.prediction=v_prediction"):
        changed_schedule(settings, base)


@pytest.mark.parametrize("base", ["sd15", "tiny"])
def test_training_ends_in_pure_noise_and_starts_as_before(base: str) -> None:
    scheduler = bases()[base]
    plain = training_alphas(scheduler)
    assert torch.equal(plain, scheduler.alphas_cumprod)
    changed = training_alphas(with_schedule(scheduler, changed_schedule(ZERO, scheduler.config)))
    assert plain[-1] > 1e-6 and changed[-1] == 0
    torch.testing.assert_close(changed[0], plain[0])
    assert bool((changed.diff() < 0).all())


@pytest.mark.parametrize("base", ["sd15", "tiny"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_sampler_draws_from_pure_noise_with_the_trained_schedule(base: str, name: str) -> None:
    scheduler = bases()[base]
    trained = with_schedule(scheduler, changed_schedule(ZERO, scheduler.config))
    sampler = scheduler_for(name, trained.config)
    assert {key: sampler.config[key] for key in WHOLE} == WHOLE
    sampler.set_timesteps(4)
    assert int(sampler.timesteps[0]) == 999
    assert float(sampler.alphas_cumprod[-1]) <= 2**-24
    torch.testing.assert_close(sampler.alphas_cumprod[:-1], training_alphas(trained)[:-1])


@pytest.mark.parametrize("name", SCHEDULERS)
def test_images_are_drawn_from_pure_noise(name: Any) -> None:
    pipe = tiny_pipeline()
    pipe.scheduler = with_schedule(pipe.scheduler, {"rescale_betas_zero_snr": True})
    sampler = Sampler(
        pipe, Sampling(scheduler=name, steps=2, guidance_scale=1, batch_size=1), None, 32, keep_txt2img=False
    )
    (drawn,) = sampler.draw([ImageSpec("id", "benign", 0, 0, "a smooth spot", 1, 2, ContentBox(0, 8, 32, 16))])
    assert drawn.problem is None and drawn.image[8:24].std() > 0 and not drawn.image[:8].any()


def offered(metadata: dict[str, Any], **settings: Any) -> dict[str, Any]:
    return offered_schedule(metadata, Adapters(**settings), SD15, "adapters.path: here")


def test_what_adapters_say_of_themselves_is_taken() -> None:
    assert offered({"scheduler": WHOLE}) == WHOLE
    assert offered({"scheduler": WHOLE}, prediction="v_prediction", zero_terminal_snr=True) == WHOLE
    assert offered({"base": {}}) == {}  # of an older busray


def test_of_adapters_that_say_nothing_the_settings_speak() -> None:
    assert offered({}) == {}
    assert offered({}, prediction="v_prediction", zero_terminal_snr=True) == WHOLE


@pytest.mark.parametrize(
    ("metadata", "settings", "words"),
    [
        ({"scheduler": WHOLE}, {"prediction": "epsilon"}, "but adapters.prediction is epsilon"),
        ({"scheduler": {}}, {"prediction": "v_prediction"}, "trained for epsilon"),
        ({"base": {}}, {"prediction": "v_prediction"}, "trained for epsilon"),
        ({"scheduler": {"prediction_type": "v_prediction"}}, {"zero_terminal_snr": True}, "zero_terminal_snr is on"),
        ({"scheduler": {"prediction_type": "sample"}}, {}, "it may give prediction_type"),
        ({"scheduler": {"beta_start": 0.1}}, {}, "it may give prediction_type"),
        ({"scheduler": "v"}, {}, "it may give prediction_type"),
    ],
)  # fmt: skip
def test_a_schedule_that_is_not_the_one_trained_for_is_a_users_mistake(
    metadata: dict[str, Any], settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=r"adapters\.path: here") as caught:
        offered(metadata, **settings)
    assert words in str(caught.value)
