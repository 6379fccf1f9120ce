"""The autoencoder of 8 px cells trains, goes on, and is saved as plain diffusers loads it."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from busray.model.base import TINY
from tools.tiny_base import autoencoder_f8, critic, scans

SIDE = 128


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A work folder of few images, and a model that takes milliseconds a step."""
    monkeypatch.setattr(autoencoder_f8, "WIDTHS", (8, 8, 8, 8))
    monkeypatch.setattr(autoencoder_f8, "BATCH", 4)
    monkeypatch.setattr(autoencoder_f8, "SAVE_EVERY", 2)
    monkeypatch.setattr(autoencoder_f8, "CRITIC_FIRST", 1)
    monkeypatch.setattr(critic, "CRITIC_WIDTHS", (4, 8))
    monkeypatch.setattr(autoencoder_f8, "Features", RawPixels)
    rng = np.random.default_rng(0)
    for name, _ in autoencoder_f8.SOURCES:
        np.save(tmp_path / f"{name}.npy", rng.integers(0, 256, (4, SIDE, SIDE), dtype=np.uint8))
    return tmp_path


class RawPixels(critic.Features):
    """Features without weights, which only an extra package has."""

    def __init__(self):
        pass

    def __call__(self, images):
        return [images + 1]


def states(path):
    return torch.load(path, weights_only=True)["model"]


def test_both_stages_train_and_go_on_where_they_were_cut_short(small):
    logged = []
    for stage in ("code", "decoder"):
        autoencoder_f8.train(small, stage, 2, 1, logged.append)
        first = states(small / f"{stage}-train.pt")
        autoencoder_f8.train(small, stage, 3, 1, logged.append)
        after = torch.load(small / ("code.pt" if stage == "code" else "decoder-f8.pt"), weights_only=True)
        moved = {name for name in first if not torch.equal(first[name], after[name])}
        assert any("decoder" in name for name in moved)
        assert any("encoder" in name for name in moved) == (stage == "code")
    assert [line.split()[:2] for line in logged] == [["code", "0"], ["decoder", "0"]]


def test_settled_latents_have_mean_0_and_variance_1(small):
    torch.manual_seed(0)
    model = autoencoder_f8.Autoencoder().requires_grad_(False)
    sources = {name: np.load(small / f"{name}.npy") for name, _ in autoencoder_f8.SOURCES}
    for _ in range(2):  # the second starts from other moments than 0 and 1
        autoencoder_f8.settle(model, sources, seed=1, batches=4)
    latents = torch.cat([model.encode(autoencoder_f8.batch(sources, 4 * i + 3, 1)) for i in range(4)])
    assert latents.mean((0, 2, 3)).abs().max() < 1e-3
    assert (latents.var((0, 2, 3)) - 1).abs().max() < 1e-2


def test_the_outer_levels_come_from_the_shipped_autoencoder():
    from diffusers import AutoencoderKL

    from tools.tiny_base.autoencoder import one_channel

    shipped = one_channel(AutoencoderKL.from_pretrained(TINY / "vae", dtype=torch.float32))
    vae = autoencoder_f8.Autoencoder().vae
    assert autoencoder_f8.take_up(vae, TINY / "vae") > 80
    for name in ("encoder.conv_in.weight", "encoder.down_blocks.2.resnets.0.conv1.weight", "decoder.conv_out.weight"):
        assert torch.equal(vae.state_dict()[name], shipped.state_dict()[name])
    inner, outer = vae.decoder.up_blocks[3], shipped.decoder.up_blocks[2]
    assert torch.equal(inner.resnets[0].conv1.weight, outer.resnets[0].conv1.weight)


def test_the_decoder_answers_to_the_critic(small):
    """The critic's gradient reaches every weight of the decoder and none of the encoder."""
    model = autoencoder_f8.Autoencoder()
    with torch.no_grad():
        latents = model.encode(torch.rand(2, 1, 32, 32))
    critic.maker_loss(critic.Critic(), model.decode(latents)).backward()
    assert all(p.grad is not None for p in model.vae.decoder.parameters())
    assert all(p.grad is None for p in model.vae.encoder.parameters())


def test_the_critic_learns_to_tell_noise_from_smooth_images(monkeypatch):
    monkeypatch.setattr(critic, "CRITIC_WIDTHS", (8, 16))
    torch.manual_seed(0)
    judge = critic.Critic()
    optimiser = torch.optim.Adam(judge.parameters(), lr=5e-3)
    for _ in range(40):
        loss = critic.critic_loss(judge, torch.randn(4, 1, 32, 32), torch.zeros(4, 1, 32, 32))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 1 and critic.maker_loss(judge, torch.zeros(1, 1, 32, 32)) > 0


def test_spread_ignores_where_grains_lie_and_place_does_not():
    image = torch.rand(2, 1, 32, 32)
    place, spread = RawPixels().distances(image.roll(5, 3), image)
    assert place > 0.1 and spread < 1e-5


@torch.no_grad()
def test_the_saved_autoencoder_has_normalised_latents_and_three_equal_channels(small, tmp_path):
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    model = autoencoder_f8.Autoencoder()
    assert model.norm.running_mean is not None and model.norm.running_var is not None
    model.norm.running_mean += 0.5
    model.norm.running_var *= 4
    model.eval()
    images = torch.rand(2, 1, SIDE, SIDE) * 2 - 1
    model.plain().save_pretrained(tmp_path / "vae")
    plain = AutoencoderKL.from_pretrained(tmp_path / "vae")
    latents, posterior = model.encode(images), plain.encode(images.expand(-1, 3, -1, -1)).latent_dist
    assert latents.shape == (2, 4, 16, 16)
    assert torch.allclose(posterior.mean, latents, atol=1e-5) and posterior.std.max() < 0.02
    made, wanted = plain.decode(latents).sample, model.decode(latents)
    assert torch.allclose(made, wanted.expand(-1, 3, -1, -1), atol=1e-5)
    again = autoencoder_f8.Autoencoder().eval()
    assert autoencoder_f8.take_up(again.vae, tmp_path / "vae") == len(again.vae.state_dict())
    assert torch.allclose(again.encode(images), latents, atol=1e-4)


def test_openus_is_counted_and_every_image_has_its_views(tmp_path, monkeypatch):
    monkeypatch.setattr(scans, "VIEWS", {"leg": 3})
    (tmp_path / "leg").mkdir()
    pixels = np.random.default_rng(0).integers(1, 256, (60, 90), dtype=np.uint8)
    for i in range(2):
        Image.fromarray(pixels).save(tmp_path / "leg" / f"{i}.png")
    (tmp_path / "leg" / "PROVENANCE.json").write_text(json.dumps({"images": 2}))
    made = scans.load_openus(tmp_path, seed=1)
    assert made.shape == (6, SIDE, SIDE) and len({view.tobytes() for view in made}) == 5
    (tmp_path / "leg" / "1.png").unlink()
    with pytest.raises(FileNotFoundError, match="1 images, PROVENANCE"):
        scans.load_openus(tmp_path, seed=1)
