"""An image follows from its specification alone, padding stays black, and a broken image harms
no neighbour."""

from typing import Any

import numpy as np
import pytest
import torch

from busray.config import Refine, Sampling
from busray.model.latents import reconstruct
from busray.model.sample import Sampler
from busray.model.steps import SCHEDULERS, scheduler_for
from busray.records import ContentBox, ImageSpec, UserError
from tests.support.pipelines import tiny_pipeline

SIZE = 64


def spec(index: int, box: ContentBox | None = None, prompt: str = "a breast ultrasound scan") -> ImageSpec:
    box = box or ContentBox(0, 0, SIZE, SIZE)
    return ImageSpec(f"id-{index}", "benign", index, 0, prompt, 100 + index, 900 + index, box)


def sampler(refine: Refine | None = None, batch_size: int = 2, **changes: Any) -> Sampler:
    sampling = Sampling(**{"steps": 3, "guidance_scale": 2.0, "batch_size": batch_size, **changes})
    return Sampler(tiny_pipeline(), sampling, refine, SIZE, keep_txt2img=True)


@pytest.fixture(scope="module")
def plain() -> Sampler:
    return sampler()


@pytest.fixture(scope="module")
def refining() -> Sampler:
    return sampler(Refine(strength=0.5, steps=4, guidance_scale=2.0))


def test_an_image_does_not_depend_on_its_place_in_the_batch_or_its_neighbours(refining: Sampler) -> None:
    first = refining.draw([spec(0), spec(1)])
    swapped = refining.draw([spec(1), spec(2)])
    np.testing.assert_allclose(first[1].image.astype(int), swapped[0].image.astype(int), atol=1)
    assert not np.array_equal(first[0].image, first[1].image)


def test_the_same_specification_in_the_same_batch_is_the_same_bit_for_bit(refining: Sampler) -> None:
    a, b = refining.draw([spec(3), spec(4)]), refining.draw([spec(3), spec(4)])
    assert all(np.array_equal(x.image, y.image) for x, y in zip(a, b, strict=True))


def test_a_last_batch_is_padded_to_the_fixed_shape_and_gives_only_what_was_asked(plain: Sampler) -> None:
    drawn = plain.draw([spec(5)])
    assert [d.spec.index for d in drawn] == [5]
    assert drawn[0].image.shape == (SIZE, SIZE) and drawn[0].image.dtype == np.uint8


def test_refinement_changes_the_image_and_keeps_the_one_before(refining: Sampler) -> None:
    for drawn in refining.draw([spec(0), spec(1)]):
        assert drawn.txt2img is not None and not np.array_equal(drawn.image, drawn.txt2img)


def test_refinement_of_little_strength_stays_nearer_than_of_much() -> None:
    def distance(strength: float) -> float:
        drawn = sampler(Refine(strength=strength, steps=10, guidance_scale=1.0), steps=6).draw([spec(0), spec(1)])
        return float(np.mean([np.abs(d.image.astype(int) - d.txt2img.astype(int)).mean() for d in drawn]))

    assert distance(0.1) < distance(0.9)


def test_the_two_hand_overs_differ_by_the_round_trip_only() -> None:
    images = {
        handover: sampler(Refine(strength=0.5, steps=4, guidance_scale=2.0, handover=handover)).draw([spec(0), spec(1)])
        for handover in ("pixel", "latent")
    }
    assert np.array_equal(images["pixel"][0].txt2img, images["latent"][0].txt2img)
    assert not np.array_equal(images["pixel"][0].image, images["latent"][0].image)


def test_a_negative_prompt_changes_both_stages_where_there_is_guidance(plain: Sampler) -> None:
    refine = Refine(strength=0.5, steps=4, guidance_scale=2.0)
    bare, away = (sampler(refine, negative_prompt=text).draw([spec(0)])[0] for text in ("", "a dark lesion"))
    assert np.array_equal(bare.txt2img, plain.draw([spec(0)])[0].image)
    assert not np.array_equal(away.txt2img, bare.txt2img) and not np.array_equal(away.image, bare.image)
    without = [sampler(guidance_scale=1.0, negative_prompt=text).draw([spec(0)])[0] for text in ("", "a dark lesion")]
    assert np.array_equal(without[0].image, without[1].image)


def test_padding_stays_black_to_the_pixel(refining: Sampler) -> None:
    box = ContentBox(0, 10, SIZE, 40)
    drawn = refining.draw([spec(0, box), spec(1)])
    for image in (drawn[0].image, drawn[0].txt2img):
        assert image is not None
        assert not image[:10].any() and not image[50:].any()
        assert image[10:50].any()
    assert drawn[1].image[:10].any()


def test_padding_is_held_without_a_lookup_of_timesteps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lookup waits for the GPU at each step."""
    made = sampler()
    specs = [spec(0, ContentBox(0, 10, SIZE, 40)), spec(1)]
    expected = made.draw(specs)
    monkeypatch.setattr(type(made.pipe.scheduler), "add_noise", None)
    for image, other in zip(made.draw(specs), expected, strict=True):
        assert np.array_equal(image.image, other.image)


def test_latent_hand_over_decodes_no_txt2img_that_nobody_keeps() -> None:
    refine = Refine(strength=0.5, steps=4, guidance_scale=2.0, handover="latent")
    kept = sampler(refine)
    sampling = kept.sampling
    lean = Sampler(kept.pipe, sampling, refine, SIZE, keep_txt2img=False)
    decodes = []
    hook = lean.pipe.vae.decoder.register_forward_hook(lambda module, given, out: decodes.append(1))
    drawn, expected = lean.draw([spec(0), spec(1)]), kept.draw([spec(0), spec(1)])
    hook.remove()
    assert len(decodes) == 1 + 2
    assert drawn[0].txt2img is None
    assert all(np.array_equal(a.image, b.image) for a, b in zip(drawn, expected, strict=True))


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_every_scheduler_draws_a_finite_image_and_keeps_the_bases_prediction_type(name: str) -> None:
    made = sampler(Refine(strength=0.5, steps=4, guidance_scale=2.0), scheduler=name, steps=4)
    assert made.pipe.scheduler.config.prediction_type == "v_prediction"
    drawn = made.draw([spec(0, ContentBox(0, 8, SIZE, 48)), spec(1)])
    assert [d.problem for d in drawn] == [None, None]
    assert drawn[0].image.std() > 0


def test_a_stochastic_scheduler_draws_by_the_images_own_seed_and_never_its_first_noise_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = sampler(scheduler="sde-dpmsolver++", steps=4)
    seen: list[torch.Tensor] = []
    whole = torch.randn

    def kept(*shape: Any, **options: Any) -> torch.Tensor:
        seen.append(whole(*shape, **options))
        return seen[-1]

    monkeypatch.setattr(torch, "randn", kept)
    first = made.draw([spec(0), spec(1)])
    noises = [noise.flatten().tolist() for noise in seen if noise.numel() > 1]
    assert len(noises) > 2 * 4, "a noise for each image and step"
    assert len({tuple(noise) for noise in noises}) == len(noises)
    alone = made.draw([spec(1)])
    assert np.abs(alone[0].image.astype(int) - first[1].image).max() <= 1


def test_no_scheduler_cuts_latents_off_as_if_they_were_pixels() -> None:
    settings = tiny_pipeline().scheduler.config
    for name in SCHEDULERS:
        assert not scheduler_for(name, settings).config.get("clip_sample", False), name


def test_guidance_and_prompts_matter(plain: Sampler) -> None:
    dark, bright = spec(0, prompt="a medium black oval spot, centre"), spec(0, prompt="without lesion, bright tissue")
    assert not np.array_equal(plain.draw([dark])[0].image, plain.draw([bright])[0].image)
    unguided = sampler(guidance_scale=1.0)
    assert not np.array_equal(plain.draw([dark])[0].image, unguided.draw([dark])[0].image)


def test_a_broken_image_is_reported_and_its_neighbour_is_untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    made = sampler(Refine(strength=0.5, steps=4, guidance_scale=2.0))
    good = made.draw([spec(0), spec(1)])
    whole = made._txt2img

    def broken(batch: list[ImageSpec]) -> torch.Tensor:
        latents = whole(batch)
        latents[0, 0, 0, 0] = float("nan")
        return latents

    monkeypatch.setattr(made, "_txt2img", broken)
    drawn = made.draw([spec(0), spec(1)])
    assert drawn[0].problem == "latents or pixels are not finite"
    assert drawn[1].problem is None
    assert np.array_equal(drawn[1].image, good[1].image)


def test_a_prompt_that_would_be_cut_off_is_refused(plain: Sampler) -> None:
    with pytest.raises(UserError, match="this base reads 77"):
        plain.draw([spec(0, prompt="dark " * 90)])


def test_reconstruction_is_the_autoencoders_and_leaves_padding_black(plain: Sampler) -> None:
    rows = np.arange(SIZE, dtype=np.uint8)[:, None] * np.ones(SIZE, np.uint8)
    images = np.stack([rows * 3, 255 - rows * 3, rows * 2])
    whole, boxed = ContentBox(0, 0, SIZE, SIZE), ContentBox(0, 16, SIZE, 32)
    made = reconstruct(plain.pipe, images, [whole, boxed, whole], batch_size=2)
    assert made.dtype == np.uint8 and made.shape == images.shape
    assert not made[1, :16].any() and not made[1, 48:].any() and made[1, 16:48].any()
    correlation = np.corrcoef(made[0].ravel().astype(float), images[0].ravel().astype(float))[0, 1]
    assert correlation > 0.95
    alone = reconstruct(plain.pipe, images[2:], [whole], batch_size=2)
    np.testing.assert_allclose(alone[0].astype(int), made[2].astype(int), atol=1)


def test_an_image_whose_txt2img_exists_is_only_refined_and_comes_out_as_if_drawn_whole(refining: Sampler) -> None:
    specs = [spec(0, ContentBox(0, 16, SIZE, 32)), spec(1)]
    whole = refining.draw(specs)
    evaluations = []
    hook = refining.pipe.unet.register_forward_hook(lambda module, given, out: evaluations.append(1))
    refining.txt2img_source = {(s.class_name, s.index): d.txt2img for s, d in zip(specs, whole, strict=True)}
    again = refining.draw(specs)
    refined_only = len(evaluations)
    refining.txt2img_source = {("benign", 0): whole[0].txt2img}
    other = refining.draw(specs)
    hook.remove()
    refining.txt2img_source = {}
    assert all(np.array_equal(a.image, b.image) for a, b in zip(whole, again, strict=True))
    assert all(np.array_equal(a.image, b.image) for a, b in zip(whole, other, strict=True))
    assert refined_only == 2 and len(evaluations) == 2 + 2 + 3
