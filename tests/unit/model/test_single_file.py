"""A base in one file of the original Stable Diffusion 1 code is loaded without the hub."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from busray.config import Base
from busray.model.base import TextPlaces, identify_base, inspect_base, load_pipeline, same_base
from busray.model.single_file import vocabulary
from busray.records import UserError
from tests.support.paths import SHARED

WIDTHS, WIDTH, TOKENS = (32, 64), 64, 49408


def resnet(prefix: str, wide: int, out: int, time: int) -> dict[str, tuple[int, ...]]:
    shapes = {
        "in_layers.0": (wide,), "in_layers.2": (out, wide, 3, 3), "emb_layers.1": (out, time),
        "out_layers.0": (out,), "out_layers.3": (out, out, 3, 3),
    }  # fmt: skip
    if wide != out:
        shapes["skip_connection"] = (out, wide, 1, 1)
    return {f"{prefix}.{name}": shape for name, shape in shapes.items()}


def attention(prefix: str, n: int) -> dict[str, tuple[int, ...]]:
    block = f"{prefix}.transformer_blocks.0"
    shapes: dict[str, tuple[int, ...]] = {f"{prefix}.norm": (n,)}
    shapes |= {f"{prefix}.proj_in": (n, n, 1, 1), f"{prefix}.proj_out": (n, n, 1, 1)}
    for name, wide in (("attn1", n), ("attn2", WIDTH)):
        shapes |= {f"{block}.{name}.to_q": (n, n), f"{block}.{name}.to_out.0": (n, n)}
        shapes |= {f"{block}.{name}.to_{x}": (n, wide) for x in "kv"}
    shapes |= {f"{block}.norm{i}": (n,) for i in (1, 2, 3)}
    return {**shapes, f"{block}.ff.net.0.proj": (8 * n, n), f"{block}.ff.net.2": (n, 4 * n)}


def unet(in_channels: int = 4) -> dict[str, tuple[int, ...]]:
    """Layer -> shape of a UNet of two blocks in the original layout, the first with attention."""
    a, b = WIDTHS
    time = 4 * a
    shapes: dict[str, tuple[int, ...]] = {"time_embed.0": (time, a), "time_embed.2": (time, time)}
    shapes |= {"input_blocks.0.0": (a, in_channels, 3, 3), "out.0": (a,), "out.2": (4, a, 3, 3)}
    for i in (1, 2):
        shapes |= {**resnet(f"input_blocks.{i}.0", a, a, time), **attention(f"input_blocks.{i}.1", a)}
    shapes["input_blocks.3.0.op"] = (a, a, 3, 3)
    shapes |= {**resnet("input_blocks.4.0", a, b, time), **resnet("input_blocks.5.0", b, b, time)}
    shapes |= {**resnet("middle_block.0", b, b, time), **attention("middle_block.1", b)}
    shapes |= resnet("middle_block.2", b, b, time)
    for i, wide in enumerate((b + b, b + b, b + a)):
        shapes |= resnet(f"output_blocks.{i}.0", wide, b, time)
    shapes["output_blocks.2.1.conv"] = (b, b, 3, 3)
    for i, wide in enumerate((b + a, a + a, a + a), start=3):
        shapes |= {**resnet(f"output_blocks.{i}.0", wide, a, time), **attention(f"output_blocks.{i}.1", a)}
    return shapes


def autoencoder() -> dict[str, tuple[int, ...]]:
    a, b = WIDTHS
    shapes: dict[str, tuple[int, ...]] = {"quant_conv": (8, 8, 1, 1), "post_quant_conv": (4, 4, 1, 1)}

    def block(prefix: str, wide: int, out: int) -> None:
        shapes.update({f"{prefix}.norm1": (wide,), f"{prefix}.conv1": (out, wide, 3, 3)})
        shapes.update({f"{prefix}.norm2": (out,), f"{prefix}.conv2": (out, out, 3, 3)})
        if wide != out:
            shapes[f"{prefix}.nin_shortcut"] = (out, wide, 1, 1)

    for half, first, last in (("encoder", 3, 8), ("decoder", 4, 3)):
        edge = a if half == "encoder" else b
        shapes |= {f"{half}.conv_in": (edge, first, 3, 3)}
        end = b if half == "encoder" else a
        shapes |= {f"{half}.norm_out": (end,), f"{half}.conv_out": (last, end, 3, 3)}
        for i in (1, 2):
            block(f"{half}.mid.block_{i}", b, b)
        shapes[f"{half}.mid.attn_1.norm"] = (b,)
        shapes |= {f"{half}.mid.attn_1.{name}": (b, b, 1, 1) for name in ("q", "k", "v", "proj_out")}
    for layer, wide in enumerate((a, a)):
        block(f"encoder.down.0.block.{layer}", wide, a)
    for layer, wide in enumerate((a, b)):
        block(f"encoder.down.1.block.{layer}", wide, b)
    shapes["encoder.down.0.downsample.conv"] = (a, a, 3, 3)
    for layer in range(3):
        block(f"decoder.up.1.block.{layer}", b, b)
        block(f"decoder.up.0.block.{layer}", b if layer == 0 else a, a)
    shapes["decoder.up.1.upsample.conv"] = (b, b, 3, 3)
    return shapes


def text_encoder() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"final_layer_norm": (WIDTH,)}
    for i in range(2):
        layer = f"encoder.layers.{i}"
        shapes |= {f"{layer}.self_attn.{x}_proj": (WIDTH, WIDTH) for x in ("q", "k", "v", "out")}
        shapes |= {f"{layer}.mlp.fc1": (2 * WIDTH, WIDTH), f"{layer}.mlp.fc2": (WIDTH, 2 * WIDTH)}
        shapes |= {f"{layer}.layer_norm{n}": (WIDTH,) for n in (1, 2)}
    return shapes


WITHOUT_BIAS = ("to_q", "to_k", "to_v")


def tensors(in_channels: int = 4) -> dict[str, torch.Tensor]:
    """A whole small checkpoint, with random weights."""
    generator, found = torch.Generator().manual_seed(0), {}
    text = "cond_stage_model.transformer.text_model."
    parts = {"model.diffusion_model.": unet(in_channels), "first_stage_model.": autoencoder(), text: text_encoder()}
    for prefix, layers in parts.items():
        for layer, shape in layers.items():
            wide = max(1, shape[1] if len(shape) > 1 else 1)
            noise = torch.randn(shape, generator=generator) * (1 if len(shape) == 1 else 0.3 / wide**0.5)
            found[f"{prefix}{layer}.weight"] = noise
            if not layer.endswith(WITHOUT_BIAS):
                found[f"{prefix}{layer}.bias"] = torch.zeros(shape[0])
    found[f"{text}embeddings.token_embedding.weight"] = torch.randn(TOKENS, WIDTH, generator=generator).half()
    found[f"{text}embeddings.position_embedding.weight"] = torch.randn(77, WIDTH, generator=generator)
    found[f"{text}embeddings.position_ids"] = torch.arange(77)[None]
    found["alphas_cumprod"] = torch.linspace(0.99, 0.01, 1000)
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("single") / "v1-5-pruned-emaonly.safetensors"
    save_file(tensors(), path)
    return path


def test_a_single_file_is_loaded_into_every_network(whole: Path) -> None:
    settings = Base(path=str(whole), size=64)
    identify_base(settings)
    inspect_base(settings)
    pipe, given = load_pipeline(settings), load_file(whole)
    layers = {
        "unet": ("conv_in.weight", "model.diffusion_model.input_blocks.0.0.weight"),
        "vae": ("decoder.conv_out.weight", "first_stage_model.decoder.conv_out.weight"),
    }
    for part, (name, own) in layers.items():
        assert torch.equal(dict(getattr(pipe, part).named_parameters())[name], given[own])
    rows = given["cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"].float()
    assert torch.equal(pipe.text_encoder.get_input_embeddings().weight, rows)
    assert pipe.scheduler.config.prediction_type == "epsilon"
    image = pipe("a breast ultrasound scan", num_inference_steps=1, height=64, width=64).images[0]
    assert image.size == (64, 64)


def test_its_identity_is_its_content_whatever_its_name(whole: Path, tmp_path: Path) -> None:
    shutil.copy(whole, tmp_path / "other.safetensors")
    before = identify_base(Base(path=str(whole)))
    other = identify_base(Base(path=str(tmp_path / "other.safetensors")))
    assert other.files == before.files and "checkpoint.safetensors" in before.files
    assert not same_base({**before.files, "checkpoint.safetensors": "0" * 64}, before.files)


def test_it_reads_texts_as_clip_does(whole: Path) -> None:
    places = TextPlaces(Base(path=str(whole)), {})
    assert places.limit == 77
    assert places("a breast ultrasound scan") == 6
    vocab = SHARED / "fixtures" / "sd15-layout" / "tokenizer"
    if vocab.is_dir():
        import json

        assert vocabulary((vocab / "merges.txt").read_text()) == json.loads((vocab / "vocab.json").read_text())


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        identify_base(Base(path=str(path), size=64))
        inspect_base(Base(path=str(path), size=64))
    return str(caught.value)


def lost(*names: str) -> Any:
    def lose(given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: t for name, t in given.items() if not name.startswith(names)}

    return lose


def renamed(old: str, new: str) -> Any:
    def rename(given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name.replace(old, new): t for name, t in given.items()}

    return rename


CASES = {
    "SDXL": (renamed("cond_stage_model.", "conditioner.embedders.0."), "is of SDXL"),
    "SD 2": (renamed("cond_stage_model.transformer", "cond_stage_model.model"), "is of Stable Diffusion 2.x"),
    "no autoencoder": (lost("first_stage_model."), "it lacks the autoencoder"),
    "a LoRA": (lambda _: {"lora_unet_x.lora_down.weight": torch.ones(2, 2)}, "it lacks the UNet and the autoencoder"),
    "inpainting": (lambda _: tensors(9), "an inpainting base"),
    "a lost tensor": (lost("model.diffusion_model.middle_block.1.norm.weight"), "missing"),
}


@pytest.mark.parametrize("case", CASES)
def test_another_single_file_is_refused_by_its_true_reason(whole: Path, tmp_path: Path, case: str) -> None:
    change, words = CASES[case]
    save_file(change(load_file(whole)), tmp_path / "x.safetensors")
    assert words in refusal(tmp_path / "x.safetensors")


def test_a_pickled_checkpoint_is_refused_and_told_how_to_convert(tmp_path: Path) -> None:
    (tmp_path / "v1-5-pruned.ckpt").write_bytes(b"PK\x03\x04")
    message = refusal(tmp_path / "v1-5-pruned.ckpt")
    assert "pickled weights" in message and "from_single_file" in message
