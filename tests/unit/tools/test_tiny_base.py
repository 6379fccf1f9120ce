"""The embedded base is what it promises to be, and its maker trains, goes on and saves as it
says."""

import contextlib
import importlib.abc
import json
import sys
import types
import warnings

import numpy as np
import pytest
import torch

from busray.data.phantom import CLASSES, PROBES, phantom
from busray.model.base import TINY
from busray.vision.speckle import local_snr, spectrum_slope
from tools.tiny_base import autoencoder as tiny_vae
from tools.tiny_base import denoiser as tiny_base
from tools.tiny_base import pictures as tiny_corpus
from tools.tiny_base import training as tiny_training

CLASS_WORDS = ("benign", "malignant", "normal", "cancer", "tumour", "tumor", "cyst", "carcinoma", "fibroadenoma")


@pytest.fixture(scope="module")
def pipe():
    from diffusers import StableDiffusionPipeline

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        made = StableDiffusionPipeline.from_pretrained(TINY, use_safetensors=True, local_files_only=True)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def phantoms():
    return np.stack([phantom(i, CLASSES[i % 3], PROBES["demo"], (128, 128)).image for i in range(18)])


@pytest.fixture(scope="module")
def captioned_scans():
    """(image, caption) of each of 32 scans that the denoiser learns from, and of 24 even ones."""
    return [tiny_corpus.captioned(5000 + i) for i in range(32)] + [tiny_corpus.even(i) for i in range(24)]


@pytest.fixture
def narrow(monkeypatch):
    """A denoiser of the same build that takes milliseconds a step."""
    monkeypatch.setattr(tiny_base, "UNET_WIDTHS", (16, 24, 32))


@torch.no_grad()
def through(vae, images):
    x = torch.from_numpy(images.astype(np.float32))[:, None].repeat(1, 3, 1, 1) / 127.5 - 1
    y = vae.decode(vae.encode(x).latent_dist.mean).sample
    return ((y + 1) * 127.5).clamp(0, 255).numpy()


def test_it_loads_and_draws_where_busray_cannot_be_imported(monkeypatch):
    from diffusers import StableDiffusionPipeline

    class NoBusray(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path, target=None):
            assert name.partition(".")[0] != "busray", f"{name} is needed to load the base"

    for name in [name for name in sys.modules if name.partition(".")[0] == "busray"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [NoBusray(), *sys.meta_path])
    pipe = StableDiffusionPipeline.from_pretrained(TINY)
    images = pipe("breast ultrasound", num_inference_steps=1, output_type="np").images
    assert images.shape == (1, 128, 128, 3)
    assert not any(name.partition(".")[0] == "busray" for name in sys.modules)


def test_it_is_small_and_holds_safetensors_only():
    files = [p for p in TINY.rglob("*") if p.is_file()]
    weights = [p for p in files if p.suffix not in (".json", ".txt")]
    assert len(weights) == 3 and all(p.suffix == ".safetensors" for p in weights)
    assert sum(p.stat().st_size for p in files) <= 24_000_000
    assert not any("/work" in p.read_text() or "/tmp" in p.read_text() for p in files if p.suffix == ".json")


def test_the_text_encoder_is_stored_in_full_and_the_rest_in_half_precision():
    from safetensors.torch import load_file

    for part, dtype in (("text_encoder", torch.float32), ("unet", torch.float16), ("vae", torch.float16)):
        (file,) = (TINY / part).glob("*.safetensors")
        assert {t.dtype for t in load_file(file).values() if t.is_floating_point()} == {dtype}


def test_the_pipeline_is_128_px_without_safety_checker(pipe):
    assert pipe.unet.config.sample_size * pipe.vae_scale_factor == 128
    assert pipe.safety_checker is None and pipe.feature_extractor is None
    assert json.loads((TINY / "model_index.json").read_text())["requires_safety_checker"] is False
    assert pipe.unet.config.in_channels == pipe.vae.config.latent_channels


def test_lora_finds_attention_in_the_unet(pipe):
    queries = [name for name, _ in pipe.unet.named_modules() if name.endswith("to_q")]
    assert len(queries) >= 10


def test_words_of_captions_are_whole_tokens_and_any_prompt_comes_back(pipe, captioned_scans):
    for _, caption in captioned_scans:
        words = caption.replace(",", " ,").split()
        assert [t.removesuffix("</w>") for t in pipe.tokenizer.tokenize(caption)] == words
        assert len(pipe.tokenizer(caption).input_ids) <= pipe.tokenizer.model_max_length
    for prompt in ("an ultrasound image of a benign breast lesion", "naïve qwertz 12 mm", "sks <x>"):
        ids = pipe.tokenizer(prompt).input_ids
        assert pipe.tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == prompt.replace(" ", "")
    assert len(pipe.tokenizer.tokenize("benign")) > 1, "class words were never learnt"


def test_captions_and_vocabulary_hold_no_class_word(captioned_scans):
    assert not set(tiny_base.WORDS) & set(CLASS_WORDS)
    for _, caption in captioned_scans:
        assert not set(caption.replace(",", " ").split()) & set(CLASS_WORDS)


@pytest.mark.parametrize(
    "make, probes",
    [
        (tiny_corpus.varied, set(PROBES) - {"demo"}),
        (tiny_corpus.captioned, {"plain", *tiny_corpus.DRAWN}),
        (tiny_corpus.even, {"even"}),
    ],
)
def test_the_demo_probe_is_held_out(monkeypatch, make, probes):
    seen = set()
    monkeypatch.setattr(
        tiny_corpus, "phantom", lambda seed, c, probe, size: seen.add(probe.name) or phantom(1, c, probe, (8, 8))
    )
    for i in range(120):
        with contextlib.suppress(ValueError):  # the stand-in image does not fit its frame
            make(i)
    assert seen == probes and "demo" not in seen


def test_a_batch_has_its_share_of_even_scans():
    for share in (0, 0.25, tiny_base.EVEN_SHARE):
        picked = tiny_base.pick_scans(np.random.default_rng(1), 200, 16, share)
        assert (picked >= 100).mean() == share
        assert len(set(picked.tolist())) == 16 and np.array_equal(picked, np.sort(picked))


def test_batches_are_of_latents_and_their_captions(tmp_path):
    """Stand-in latents whose value names the scan, without spread."""
    latents = np.zeros((20, 2, 8, 32, 32), np.float16)
    latents[:, 0] = np.arange(20)[:, None, None, None]
    np.save(tmp_path / "scans-latents.npy", latents)
    (tmp_path / "scans-captions.json").write_text(json.dumps([" ".join(["dark"] * (i + 1)) for i in range(20)]))
    scans = tiny_base.Scans(tmp_path, "scans")
    dark = scans.tokenizer.convert_tokens_to_ids("dark</w>")
    clean, noise, times, words = scans.batch(np.random.default_rng(2), 16, 0.5, np.arange(16))
    assert clean.shape == noise.shape == (16, 8, 32, 32) and times.tolist() == list(range(16))
    count = (words == dark).sum(1)
    right = count == clean[:, 0, 0, 0] + 1
    assert right.float().mean() > 0.5, "captions of others"
    assert torch.all(count[~right] == 0), "what is not the scan's caption is empty"


def test_every_noise_level_is_trained_and_the_high_ones_most():
    times = tiny_base.draw_times(np.random.default_rng(1), 20_000)
    share, _ = np.histogram(times, bins=10, range=(0, 1000))
    assert times.min() >= 0 and times.max() <= 999 and share.sum() == 20_000
    assert share.min() > 700 and share[5:8].min() > 1.5 * share[:3].max()


def test_the_loss_counts_the_scene_at_every_noise_level_and_detail_only_where_it_can_be_told():
    scene = torch.ones(2, 8, 32, 32)
    detail = torch.ones(2, 8, 32, 32)
    detail[..., ::2] = -1
    clear, drowned = torch.full((2,), 50.0), torch.full((2,), 1e-4)
    assert tiny_base.denoising_loss(detail, clear) == pytest.approx(1, rel=0.01)
    assert tiny_base.denoising_loss(detail, drowned) < 0.01
    assert tiny_base.denoising_loss(scene, drowned) > 4
    assert tiny_base.denoising_loss(scene, clear) > 4 * tiny_base.denoising_loss(scene, drowned)


def test_the_texture_loss_counts_a_channel_by_its_gain():
    gain = torch.tensor([3.0, 1.0, 0.5])
    error = torch.zeros(2, 3, 4, 4)
    error[:, 1] = 2
    assert tiny_base.texture_loss(error, torch.ones(2), gain) == pytest.approx(4 * 1 / 3)
    error[:, 0] = 2
    assert tiny_base.texture_loss(error, torch.ones(2), gain) == pytest.approx(4 * (3 + 1) / 3)


def test_the_decoders_gain_is_that_of_a_linear_decoder():
    class Linear:
        def decode(self, latents):
            mixed = torch.einsum("c,nchw->nhw", torch.tensor([2.0, 0.0, -1.0]), latents)
            return types.SimpleNamespace(sample=mixed[:, None])

    gain = tiny_vae.decoder_gain(Linear(), torch.randn(4, 3, 32, 32))
    assert gain.tolist() == pytest.approx([4, 0, 1], rel=0.05)


def test_a_batch_in_parts_has_the_gradients_of_the_whole(narrow):
    def gradients(threads):
        torch.manual_seed(0)
        both = torch.nn.ModuleList(tiny_base.new_denoiser(600, 599))
        torch.manual_seed(1)
        batch = torch.randn(4, 8, 16, 16), torch.randn(4, 8, 16, 16), torch.randint(0, 1000, (4,))
        with tiny_base.OneCoreEach(both, threads, torch.float32) as cores:
            loss = cores.gradients(tiny_base.denoising_loss, *batch, torch.randint(0, 600, (4, 77)))
        return loss, {name: p.grad for name, p in both.named_parameters() if p.grad is not None}

    (one, whole), (two, parts) = gradients(1), gradients(2)
    assert two == pytest.approx(one, rel=1e-4) and whole.keys() == parts.keys()
    for name, grad in whole.items():
        assert torch.allclose(parts[name], grad, atol=1e-4), name


@pytest.mark.parametrize(("able", "dtype"), [({"avx512_bf16": True}, torch.bfloat16), ({"avx2": True}, torch.float32)])
def test_arithmetic_is_in_bf16_only_where_the_processor_has_it(monkeypatch, able, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    assert tiny_base.fastest_dtype() is dtype


def test_the_rate_is_held_for_three_quarters_whatever_the_end_and_then_falls():
    assert [tiny_training.trapezoid(s, 400, warm=10) for s in (0, 9, 299)] == [0.1, 1.0, 1.0]
    assert tiny_training.trapezoid(300, 800, warm=10) == 1.0
    falling = [tiny_training.trapezoid(s, 400, warm=10) for s in range(300, 401)]
    assert falling == sorted(falling, reverse=True) and falling[-1] == pytest.approx(0.01)


def test_the_autoencoder_keeps_speckle(pipe, phantoms):
    made = through(pipe.vae, phantoms)[:, 0]
    assert local_snr(made) == pytest.approx(local_snr(phantoms), rel=0.15)
    assert spectrum_slope(made) == pytest.approx(spectrum_slope(phantoms), rel=0.15)
    mse = ((made - phantoms) ** 2).mean((1, 2))
    assert (10 * np.log10(255**2 / mse)).mean() > 22


def test_speckle_measures_notice_blur(phantoms):
    blurred = (
        phantoms[:, :-1, :-1] / 4.0
        + phantoms[:, 1:, :-1] / 4.0
        + phantoms[:, :-1, 1:] / 4.0
        + phantoms[:, 1:, 1:] / 4.0
    )[:, :126, :126]
    sharp = phantoms[:, :126, :126]
    assert local_snr(blurred) > 1.15 * local_snr(sharp)
    assert spectrum_slope(blurred) < 1.15 * spectrum_slope(sharp)


def test_the_autoencoder_gives_grey_and_unit_variance(pipe, phantoms, captioned_scans):
    made = through(pipe.vae, phantoms[:2])
    assert np.abs(made[:, 0] - made[:, 2]).max() < 0.5
    images = np.stack([image for image, _ in captioned_scans[:32]])
    x = torch.from_numpy(images.astype(np.float32))[:, None].repeat(1, 3, 1, 1) / 127.5 - 1
    with torch.no_grad():
        posterior = pipe.vae.encode(x).latent_dist
    assert pipe.vae.config.scaling_factor == 1.0
    assert torch.all((posterior.mean.std((0, 2, 3)) - 1).abs() < 0.3)
    assert posterior.std.mean() < 0.2


def test_samples_look_like_speckle_and_follow_their_seed(pipe):
    def draw(seed, steps, side):
        noise = [torch.Generator().manual_seed(seed + i) for i in range(2)]
        made = pipe(
            ["a breast ultrasound scan"] * 2,
            generator=noise,
            height=side,
            width=side,
            num_inference_steps=steps,
            guidance_scale=2.0,
            output_type="np",
        )
        return 255 * made.images.mean(-1)

    small = draw(0, 2, 64)
    assert np.array_equal(small, draw(0, 2, 64)) and not np.array_equal(small, draw(9, 2, 64))
    first = draw(0, 6, 128)
    assert 2 < local_snr(first) < 16
    assert 20 < first.mean() < 220 and first.std((1, 2)).min() > 5


def test_folding_the_normalisation_changes_latents_and_not_images():
    torch.manual_seed(0)
    vae, x = tiny_vae.new_vae().eval(), torch.rand(2, 1, 32, 32) * 2 - 1
    with torch.no_grad():
        before = vae.encode(x).latent_dist
        image = vae.decode(before.mean).sample
        mean, std = before.mean.mean((0, 2, 3)) + 1, before.mean.std((0, 2, 3)) * 3
        tiny_vae.fold_normalisation(vae, mean, std)
        after = vae.encode(x).latent_dist
    shape = (1, -1, 1, 1)
    assert torch.allclose(after.mean, (before.mean - mean.view(shape)) / std.view(shape), atol=1e-5)
    assert torch.allclose(after.std, before.std / std.view(shape), rtol=1e-4)
    assert torch.allclose(vae.decode(after.mean).sample, image, atol=1e-4)


def test_training_goes_on_where_it_was_cut_short(tmp_path):
    part = torch.nn.Linear(2, 2)
    assert tiny_training.resume(tmp_path / "state.pt", part=part) == 0
    tiny_training.checkpoint(tmp_path / "state.pt", 7, part=part)
    other = torch.nn.Linear(2, 2)
    assert tiny_training.resume(tmp_path / "state.pt", part=other) == 7
    assert torch.equal(part.weight, other.weight) and [p.name for p in tmp_path.iterdir()] == ["state.pt"]


def test_the_texture_stage_trains_a_denoiser_on_and_goes_on_where_it_was_cut_short(tmp_path, pipe, narrow, monkeypatch):
    tiny_vae.take_autoencoder(TINY, tmp_path)
    for name, words in (("scans", "thick fat layer"), ("grained", "fat layer")):
        moments = np.random.default_rng(0).standard_normal((4, 2, 8, 16, 16)).astype(np.float16)
        np.save(tmp_path / f"{name}-latents.npy", abs(moments))
        (tmp_path / f"{name}-captions.json").write_text(json.dumps([words] * 4))
    unet, text = tiny_base.new_denoiser(len(pipe.tokenizer), pipe.tokenizer.eos_token_id)
    before = {"unet": unet.state_dict(), "text": text.state_dict()}
    torch.save(before, tmp_path / "denoiser.pt")
    monkeypatch.setattr(tiny_base, "TEXTURE_SCANS", 2)
    monkeypatch.setattr(tiny_base, "GAIN_SCANS", 1)
    strangers = []
    kept = tiny_base.with_strangers
    monkeypatch.setattr(tiny_base, "with_strangers", lambda *a: strangers.append(a[1]) or kept(*a))
    for steps in (1, 2):
        monkeypatch.setattr(tiny_base, "TEXTURE_STEPS", steps)
        tiny_base.train_texture(tmp_path, 1, lambda line: None)
        assert torch.load(tmp_path / "texture-train.pt", weights_only=True)["step"] == steps
    after = torch.load(tmp_path / "textured.pt", weights_only=True)
    moved = [name for part in before for name in before[part] if not torch.equal(before[part][name], after[part][name])]
    assert len(moved) > 100
    thick = pipe.tokenizer("thick", add_special_tokens=False).input_ids
    assert strangers and not any(np.isin(thick, strange).any() for strange in strangers), "a word of the wider captions"


def test_a_procedural_picture_is_seeded_and_varied():
    first = [tiny_corpus.procedural(i) for i in range(12)]
    assert all(np.array_equal(a, tiny_corpus.procedural(i)) for i, a in enumerate(first))
    assert len({a.tobytes() for a in first}) == 12 and np.std([a.mean() for a in first]) > 10


def test_a_saved_bases_autoencoder_can_be_taken_up_again(tmp_path, phantoms, pipe):
    tiny_vae.take_autoencoder(TINY, tmp_path)
    grey = tiny_vae.new_vae()
    grey.load_state_dict(torch.load(tmp_path / "decoder.pt", weights_only=True))
    again = tiny_vae.three_channels(grey)
    assert np.abs(through(again, phantoms[:4]) - through(pipe.vae, phantoms[:4])).max() < 1
