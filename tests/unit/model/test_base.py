"""A base is pinned by its files' hashes and loaded from safetensors only; what cannot be loaded
is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from busray.config import Base
from busray.model.base import TINY, TextPlaces, identify_base, inspect_base, load_pipeline, same_base
from busray.model.inspect_base import current_name
from busray.records import UserError

VAE_FILE = "diffusion_pytorch_model.safetensors"


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


def test_another_autoencoder_takes_the_place_of_the_bases_own(copy: Path) -> None:
    other = copy / "vae"
    weights = load_file(other / VAE_FILE)
    name = "decoder.conv_out.bias"
    weights[name] = weights[name] + np.float32(0.25)
    save_file(weights, other / VAE_FILE)
    settings = Base(vae=str(other))
    before, after = identify_base(Base()).files, identify_base(settings).files
    assert before.keys() == after.keys() and not same_base(before, after)
    assert {name for name in before if before[name] != after[name]} == {f"vae/{VAE_FILE}"}
    inspect_base(settings)
    pipe = load_pipeline(settings)
    np.testing.assert_array_equal(pipe.vae.decoder.conv_out.bias.numpy(), weights[name])
    assert pipe.vae.dtype == pipe.unet.dtype


def test_an_autoencoder_that_is_missing_or_of_another_kind_is_refused_by_name(copy: Path) -> None:
    with pytest.raises(UserError, match=r"base\.vae: .*nowhere"):
        identify_base(Base(vae=str(copy / "nowhere")))
    with pytest.raises(UserError, match=r"config\.json"):
        identify_base(Base(vae=str(copy)))
    edit(copy / "vae" / "config.json", latent_channels=16)
    with pytest.raises(UserError, match="16 latent channels: the parts are of different bases"):
        identify_base(Base(vae=str(copy / "vae")))
    one_file = copy / "sd.safetensors"
    one_file.touch()
    with pytest.raises(UserError, match=r"base\.vae: base\.path is one file"):
        identify_base(Base(path=str(one_file), vae=str(copy / "vae")))


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


UNET, VAE = "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d66\nsize 3438167534\n"


def edit(file: Path, **changes: Any) -> None:
    """Change fields of a configuration."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def refusal(folder: Path) -> str:
    """What a new run says about this base, before any work."""
    settings = Base(path=str(folder))
    with pytest.raises(UserError) as caught:
        identify_base(settings)
        inspect_base(settings)
    assert str(caught.value).startswith("base.path: ")
    return str(caught.value)


def test_files_that_are_not_loaded_do_not_make_another_base(copy: Path) -> None:
    before = identify_base(Base())
    for name in ("README.md", "notes.txt", "tokenizer/readme.txt", "unet/training.json", "v1-5-pruned.safetensors"):
        (copy / name).write_text("{}")
    for name in (UNET, VAE):
        file = copy / name
        shutil.copy(file, file.with_name("diffusion_pytorch_model.fp16.safetensors"))
        shutil.copy(file, file.with_name("diffusion_pytorch_model.non_ema.safetensors"))
    (copy / "safety_checker").mkdir()
    (copy / "safety_checker" / "model.safetensors").write_bytes(b"?")
    assert identify_base(Base(path=str(copy))).files == before.files


def test_a_record_of_files_that_were_never_loaded_is_of_the_same_base() -> None:
    """Older runs hashed every file beside those that are loaded."""
    files = identify_base(Base()).files
    older = {**files, "unet/diffusion_pytorch_model.fp16.safetensors": "0" * 64, "notes.txt": "1" * 64}
    assert same_base(older, files)
    assert not same_base({**older, UNET: "2" * 64}, files)
    assert not same_base({**older, "tokenizer/added_tokens.json": "3" * 64}, files)
    variant = {name.replace("model.safe", "model.fp16.safe"): digest for name, digest in files.items()}
    assert not same_base(older, variant)


def test_a_text_encoder_with_position_numbers_is_taken(copy: Path) -> None:
    """Stable Diffusion v1.5's has them, as integers; so has CLIP's other half, in some bases."""
    tensors = {f"text_model.{name.removeprefix('text_model.')}": t for name, t in load_file(copy / TEXT).items()}
    tensors["text_model.embeddings.position_ids"] = np.arange(77)[None]
    tensors["logit_scale"] = np.ones((), np.float32)
    save_file(tensors, copy / TEXT, {"format": "pt"})
    identify_base(Base(path=str(copy)))
    inspect_base(Base(path=str(copy)))


def test_an_autoencoder_with_old_names_of_its_attention_is_taken() -> None:
    """Stable Diffusion v1.5's was saved with them."""
    assert current_name("vae", "decoder.mid_block.attentions.0.proj_attn.bias").endswith(".to_out.0.bias")
    assert current_name("vae", "decoder.mid_block.attentions.0.query.weight").endswith(".to_q.weight")
    assert current_name("vae", "decoder.mid_block.attentions.0.group_norm.weight").endswith(".group_norm.weight")


def as_variant(folder: Path, *names: str) -> None:
    """Rename weights to the variant fp16, their values as 16-bit floats."""
    for name in names:
        tensors = {key: value.astype(np.float16) for key, value in load_file(folder / name).items()}
        save_file(tensors, folder / name.replace(".safetensors", ".fp16.safetensors"), {"format": "pt"})
        (folder / name).unlink()


@pytest.mark.parametrize("names", [(UNET, VAE, TEXT), (UNET,)])
def test_a_base_with_weights_of_the_variant_fp16_alone_is_loaded(copy: Path, names: tuple[str, ...]) -> None:
    import torch

    as_variant(copy, *names)
    settings = Base(path=str(copy))
    assert [name for name in identify_base(settings).files if ".fp16." in name] == sorted(
        name.replace(".safe", ".fp16.safe") for name in names
    )
    inspect_base(settings)
    loaded, plain = load_pipeline(settings).unet.conv_in.weight, load_pipeline(Base()).unet.conv_in.weight
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded, plain.half().float())


def test_weights_in_shards_are_loaded_and_a_lost_shard_is_named(copy: Path) -> None:
    tensors = load_file(copy / UNET)
    half = len(tensors) // 2
    names = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for name, keys in zip(names, (list(tensors)[:half], list(tensors)[half:]), strict=True):
        save_file({key: tensors[key] for key in keys}, copy / "unet" / name, {"format": "pt"})
    where = {key: names[i >= half] for i, key in enumerate(tensors)}
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (copy / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    (copy / UNET).unlink()
    settings = Base(path=str(copy))
    assert len([name for name in identify_base(settings).files if name.startswith("unet/")]) == 4
    inspect_base(settings)
    load_pipeline(settings)
    (copy / "unet" / names[1]).unlink()
    assert f"lacks 1 of 2 shards: {names[1]}" in refusal(copy)


def sdxl(folder: Path) -> None:
    edit(
        folder / "model_index.json",
        _class_name="StableDiffusionXLPipeline",
        text_encoder_2=["transformers", "CLIPTextModelWithProjection"],
        tokenizer_2=["transformers", "CLIPTokenizer"],
    )


def flux(folder: Path) -> None:
    shutil.rmtree(folder / "unet")
    edit(
        folder / "model_index.json",
        _class_name="FluxPipeline",
        unet=[None, None],
        transformer=["diffusers", "FluxTransformer2DModel"],
    )


def cut(folder: Path) -> None:
    (folder / UNET).write_bytes((folder / UNET).read_bytes()[:-1000])


def not_a_number(folder: Path) -> None:
    tensors = load_file(folder / VAE)
    tensors["encoder.conv_in.weight"] = tensors["encoder.conv_in.weight"].copy()
    tensors["encoder.conv_in.weight"][0, 0, 0, 0] = np.nan
    save_file(tensors, folder / VAE, {"format": "pt"})


def lost_tensor(folder: Path) -> None:
    tensors = load_file(folder / UNET)
    del tensors["conv_in.weight"]
    save_file(tensors, folder / UNET, {"format": "pt"})


def other_shape(folder: Path) -> None:
    tensors = load_file(folder / UNET)
    tensors["conv_in.weight"] = tensors["conv_in.weight"][:, :4].copy()
    save_file(tensors, folder / UNET, {"format": "pt"})


def inpainting(folder: Path) -> None:
    edit(folder / "unet" / "config.json", in_channels=9, out_channels=4)
    edit(folder / "vae" / "config.json", latent_channels=4)


def other_vocabulary(folder: Path) -> None:
    (folder / "tokenizer" / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 49407}}}))


def pointer(folder: Path) -> None:
    (folder / UNET).write_bytes(LFS)


def other_name(folder: Path) -> None:
    (folder / UNET).rename(folder / "unet" / "model.safetensors")


def broken(folder: Path) -> None:
    (folder / "vae" / "config.json").write_text("{")


def no_scheduler(folder: Path) -> None:
    shutil.rmtree(folder / "scheduler")


def changed(name: str, **changes: Any) -> Callable[[Path], None]:
    """What changes fields of this configuration of a base."""
    return lambda folder: edit(folder / name, **changes)


SCHEDULER = "scheduler/scheduler_config.json"
FLOW = "FlowMatchEulerDiscreteScheduler"
CASES: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "SDXL": (sdxl, ["a StableDiffusionXLPipeline (with text_encoder_2, tokenizer_2)"]),
    "Flux": (flux, ["a FluxPipeline (with transformer)"]),
    "inpainting": (inpainting, ["9 input channels for 4 latent channels", "an inpainting base"]),
    "another autoencoder": (changed("vae/config.json", latent_channels=16), ["16 latent channels", "different bases"]),
    "another text encoder": (changed("unet/config.json", cross_attention_dim=768), ["dim is 768", "gives 128"]),
    "another tokenizer": (other_vocabulary, ["largest token is 49407", "918 embeddings"]),
    "a distilled base": (changed("unet/config.json", time_cond_proj_dim=256), ["distilled base (LCM)"]),
    "another prediction": (changed(SCHEDULER, prediction_type="sample"), ["predicts 'sample'", "epsilon and v"]),
    "flow matching": (changed(SCHEDULER, _class_name=FLOW), [f"{FLOW} has another noise schedule"]),
    "a Git-LFS pointer": (pointer, [UNET, "Git-LFS pointer", "git lfs pull"]),
    "cut short": (cut, [UNET, "cut short"]),
    "NaN": (not_a_number, [VAE, "NaN or infinity in 1 of", "encoder.conv_in.weight", "download the file again"]),
    "a lost tensor": (lost_tensor, ["unet: 1 of", "missing: conv_in.weight"]),
    "a tensor of another shape": (other_shape, ["conv_in.weight [64, 4, 3, 3], not [64, 8, 3, 3]"]),
    "another file name": (other_name, ["no diffusion_pytorch_model.safetensors", "there is model.safetensors"]),
    "a broken configuration": (broken, ["vae/config.json is no configuration"]),
    "no scheduler": (no_scheduler, ["has no scheduler", "there is model_index.json"]),
}


@pytest.mark.parametrize("case", CASES)
def test_a_base_that_cannot_be_drawn_with_is_refused_by_its_true_reason_before_work(copy: Path, case: str) -> None:
    spoil, words = CASES[case]
    spoil(copy)
    message = refusal(copy)
    assert not [word for word in words if word not in message], message
    assert "\n" not in message or case in ("NaN",), message  # one reason, not what follows from it


def test_all_that_is_wrong_with_a_base_is_said_at_once(copy: Path) -> None:
    (copy / UNET).write_bytes(LFS)
    (copy / VAE).unlink()
    edit(copy / "scheduler" / "scheduler_config.json", prediction_type="sample")
    message = refusal(copy)
    assert all(word in message for word in ("Git-LFS pointer", "has no .safetensors file", "predicts 'sample'"))


def test_a_base_one_level_down_is_pointed_at(copy: Path) -> None:
    assert f"there is one in {copy}: give that" in refusal(copy.parent)
