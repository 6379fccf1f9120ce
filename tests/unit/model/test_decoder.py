"""A tuned decoder: it alone changes, its images come nearer to the real ones, diffusers loads it,
and one that does not fit is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from busray.config import Base
from busray.data.phantom import PROBES, phantom
from busray.model.adapters import adapter_sha256, load_adapters, offered_adapters
from busray.model.base import identify_base
from busray.model.decoder import Decoding, evenly_chosen, tune_decoder
from busray.model.tuned_networks import network_files, settings_file, weights_file
from busray.records import UserError
from tests.support.pipelines import tiny_pipeline

WEIGHTS, SETTINGS = weights_file("vae"), settings_file("vae")
HOW = Decoding(steps=6, learning_rate=1e-3, seed=3)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    scans = [phantom(seed, "benign", PROBES["demo"], (64, 64)).image for seed in range(4)]
    return np.stack(scans)


@pytest.fixture(scope="module")
def tuned(images: np.ndarray) -> dict[str, bytes]:
    vae = tiny_pipeline().vae
    tune_decoder(vae, images, HOW)
    return network_files("vae", vae)


@pytest.fixture
def folder(tmp_path: Path, tuned: dict[str, bytes]) -> Path:
    (tmp_path / "vae").mkdir()
    for name, data in tuned.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


def test_only_the_decoder_changes(tuned: dict[str, bytes]) -> None:
    before, after = tiny_pipeline().vae.state_dict(), load(tuned[WEIGHTS])
    changed = {name for name in before if not torch.equal(before[name].half(), after[name])}
    assert changed and all(name.startswith(("decoder.", "post_quant_conv.")) for name in changed)


def test_the_same_seed_tunes_the_same_decoder(images: np.ndarray, tuned: dict[str, bytes]) -> None:
    vae, beats = tiny_pipeline().vae, []
    tune_decoder(vae, images, HOW, beats.append)
    again = load(network_files("vae", vae)[WEIGHTS])
    for name, tensor in load(tuned[WEIGHTS]).items():
        torch.testing.assert_close(again[name], tensor, atol=1e-3, rtol=0)
    assert beats == [1] * HOW.steps


def test_noisy_latents_come_out_nearer_to_the_images(images: np.ndarray) -> None:
    losses = tune_decoder(tiny_pipeline().vae, images, Decoding(steps=40, learning_rate=1e-3, seed=3))
    assert np.mean(losses[-10:]) < 0.95 * np.mean(losses[:10])


def test_plain_diffusers_loads_it_as_an_autoencoder(folder: Path, tuned: dict[str, bytes]) -> None:
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", use_safetensors=True)
    weights = load(tuned[WEIGHTS])["decoder.conv_in.weight"]
    assert torch.equal(vae.state_dict()["decoder.conv_in.weight"], weights.float())


def test_it_is_drawn_with_where_it_lies_beside_the_adapters(folder: Path, tuned: dict[str, bytes]) -> None:
    pipe = tiny_pipeline()
    load_adapters(pipe, folder, "none", {})
    weights = load(tuned[WEIGHTS])["decoder.conv_in.weight"]
    assert torch.equal(pipe.vae.state_dict()["decoder.conv_in.weight"], weights.float())


def test_one_that_changes_nothing_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    for name, data in network_files("vae", tiny_pipeline().vae).items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(RuntimeError, match="changed nothing"):
        load_adapters(tiny_pipeline(), tmp_path, "none", {})


def test_it_is_part_of_the_adapters_digest(tuned: dict[str, bytes]) -> None:
    assert adapter_sha256(tuned) != adapter_sha256({})


def test_offered_adapters_bring_it_along(folder: Path, tuned: dict[str, bytes]) -> None:
    offered = offered_adapters(folder, "none", {}, identify_base(Base()), None)
    assert offered.files == tuned


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / SETTINGS).unlink(), "vae/config.json is missing"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b"no"), "is damaged"),
        (lambda folder: _rewrite(folder, lambda state: state.pop("decoder.conv_in.bias")), "does not fit"),
        (lambda folder: _rewrite(folder, lambda state: state["decoder.conv_in.bias"].fill_(torch.nan)), "NaN"),
    ],
)
def test_one_that_does_not_fit_is_refused(folder: Path, spoil: object, said: str) -> None:
    assert callable(spoil)
    spoil(folder)
    with pytest.raises(UserError, match=said):
        offered_adapters(folder, "none", {}, identify_base(Base()), None)


def _rewrite(folder: Path, change: object) -> None:
    assert callable(change)
    state = load((folder / WEIGHTS).read_bytes())
    change(state)
    (folder / WEIGHTS).write_bytes(save(state))


def test_evenly_chosen_keeps_all_of_few() -> None:
    assert evenly_chosen(["a", "b", "c"]) == ("a", "b", "c")


def test_a_loss_that_is_not_finite_ends_the_tuning(images: np.ndarray) -> None:
    with pytest.raises(ValueError, match="lower adapters"):
        tune_decoder(tiny_pipeline().vae, images, Decoding(steps=50, learning_rate=1e9, seed=1))
