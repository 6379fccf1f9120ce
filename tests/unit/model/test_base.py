"""A base is pinned by its files' hashes and loaded from safetensors only; what cannot be loaded
is refused."""

import shutil
from pathlib import Path

import pytest

from busray.config import Base
from busray.model.base import TINY, TextPlaces, identify_base
from busray.records import UserError


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "base"))


def test_the_embedded_base_is_small_enough_for_the_package() -> None:
    assert sum(path.stat().st_size for path in TINY.rglob("*.safetensors")) <= 24_000_000
    assert not [path for path in TINY.rglob("*") if path.suffix in (".bin", ".pt", ".ckpt", ".pkl")]


def test_plain_diffusers_loads_the_embedded_base_unchanged() -> None:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(TINY, use_safetensors=True, local_files_only=True)
    assert pipe.vae.config.sample_size == 128
    image = pipe("a breast ultrasound scan", num_inference_steps=1, guidance_scale=2.0).images[0]
    assert image.size == (128, 128)


def test_a_changed_file_is_another_base(copy: Path) -> None:
    before = identify_base(Base(path=str(copy)))
    assert before.files == identify_base(Base()).files
    config = copy / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("0.024", "0.025"))
    assert identify_base(Base(path=str(copy))).files != before.files


def test_pickled_weights_are_refused(copy: Path) -> None:
    weights = next((copy / "unet").glob("*.safetensors"))
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(UserError, match="pickled weights"):
        identify_base(Base(path=str(copy)))


def test_a_folder_that_is_no_base_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no model_index\.json"):
        identify_base(Base(path=str(tmp_path)))
    with pytest.raises(UserError, match=r"base\.path: no folder"):
        identify_base(Base(path="./nowhere"))


def test_every_vector_of_a_token_takes_a_place_of_the_text_encoder() -> None:
    """Begin and end take one each."""
    places = TextPlaces(Base(), {"<us>": 5})
    assert places.limit == 77
    assert [places(text) for text in ("dark", "dark " * 70, "dark " * 70 + "<us>", "<us> <us>")] == [3, 72, 77, 12]


def test_a_base_without_its_tokenizer_is_refused(copy: Path) -> None:
    shutil.rmtree(copy / "tokenizer")
    with pytest.raises(UserError, match=r"base\.path: .* has no tokenizer"):
        identify_base(Base(path=str(copy)))


def test_a_hub_id_has_to_be_pinned() -> None:
    with pytest.raises(UserError, match=r"base\.revision"):
        identify_base(Base(path="owner/name"))


def test_a_hub_that_is_out_of_reach_ends_in_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def offline(*_: object, **__: object) -> str:
        raise OSError("no route to the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(UserError, match="cannot fetch owner/name"):
        identify_base(Base(path="owner/name", revision="0" * 40))


def test_a_size_the_network_cannot_draw_is_refused() -> None:
    with pytest.raises(UserError, match=r"base\.size: 72 is no multiple"):
        identify_base(Base(size=72))


def test_a_network_without_a_configuration_is_named(tmp_path: Path) -> None:
    copy = tmp_path / "base"
    shutil.copytree(TINY, copy)
    (copy / "unet" / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"unet/config\.json is no configuration"):
        identify_base(Base(path=str(copy)))
