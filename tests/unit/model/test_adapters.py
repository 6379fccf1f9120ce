"""Adapters are stored as diffusers' users expect, and those that would load wrong or not at all
are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, load_file, save, save_file

from busray.config import Adapters, Base
from busray.model.adapters import (
    LORA_FILE,
    adapter_files,
    adapter_sha256,
    attach_lora,
    check_adapters,
    load_adapters,
    lora_bytes,
    token_file,
)
from busray.model.base import BaseIdentity, identify_base
from busray.records import UserError
from tests.support.paths import SHARED
from tests.support.pipelines import tiny_pipeline

FIXTURES = SHARED / "fixtures"
TOKENS = {"benign": "<us-benign>"}
WIDTH = 128


@pytest.fixture(scope="module")
def base() -> BaseIdentity:
    return identify_base(Base())


@pytest.fixture(scope="module")
def trained() -> dict[str, bytes]:
    """A rank-2 LoRA of alpha 8 with weights as if trained, and a token of two vectors."""
    pipe = tiny_pipeline()
    attach_lora(pipe, Adapters(rank=2, alpha=8), seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in pipe.unet.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
    rows = torch.randn((2, WIDTH), generator=generator)
    return adapter_files(lora_bytes(pipe, text_encoder=False), {"<us-benign>": rows}, {"dataset_hash": "d" * 64})


@pytest.fixture
def folder(tmp_path: Path, trained: dict[str, bytes]) -> Path:
    for name, data in trained.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


def refused(folder: Path, base: BaseIdentity, **changes: Any) -> str:
    settings = {"method": "lora+ti", "tokens": TOKENS, "dataset_hash": "d" * 64, **changes}
    with pytest.raises(UserError) as caught:
        check_adapters(folder, base=base, **settings)
    return str(caught.value)


def test_each_learned_token_has_a_file_of_its_own_with_nothing_else_in_it(trained: dict[str, bytes]) -> None:
    assert set(trained) == {LORA_FILE, "us-benign.safetensors", "adapter.json"}
    assert {name: tuple(t.shape) for name, t in load(trained["us-benign.safetensors"]).items()} == {
        "<us-benign>": (2, WIDTH)
    }


def test_good_adapters_pass_and_their_digest_is_of_what_decides_pixels(folder: Path, base: BaseIdentity) -> None:
    before = check_adapters(folder, "lora+ti", TOKENS, base, "d" * 64)
    (folder / "adapter.json").write_text("{}")
    assert check_adapters(folder, "lora+ti", TOKENS, base, None)["sha256"] == before["sha256"]
    rows = load_file(folder / token_file("<us-benign>"))
    save_file({name: value + 1 for name, value in rows.items()}, folder / token_file("<us-benign>"))
    assert check_adapters(folder, "lora+ti", TOKENS, base, None)["sha256"] != before["sha256"]


def test_the_digest_does_not_depend_on_the_order_in_which_a_header_was_written(trained: dict[str, bytes]) -> None:
    data = trained[LORA_FILE]
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    metadata = dict(reversed(header["__metadata__"].items()))
    config = json.loads(metadata["lora_adapter_metadata"])
    config = {name: value[::-1] if isinstance(value, list) else value for name, value in reversed(config.items())}
    metadata["lora_adapter_metadata"] = json.dumps(config)
    written = json.dumps({**header, "__metadata__": metadata}).encode()
    other = {**trained, LORA_FILE: len(written).to_bytes(8, "little") + written + data[8 + size :]}
    assert other[LORA_FILE] != data
    assert adapter_sha256(other) == adapter_sha256(trained)
    config["unet.lora_alpha"] = 16
    metadata["lora_adapter_metadata"] = json.dumps(config)
    written = json.dumps({**header, "__metadata__": metadata}).encode()
    scaled = {**trained, LORA_FILE: len(written).to_bytes(8, "little") + written + data[8 + size :]}
    assert adapter_sha256(scaled) != adapter_sha256(trained)


def test_loading_fuses_the_lora_at_its_scale_and_sets_the_tokens_vectors(folder: Path) -> None:
    plain, pipe = tiny_pipeline(), tiny_pipeline()
    load_adapters(pipe, folder, "lora+ti", TOKENS)
    lora = load_file(folder / LORA_FILE)
    module = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    down, up = (next(t for n, t in lora.items() if module in n and part in n) for part in ("down", "up"))
    expected = plain.unet.get_submodule(module).weight + (8 / 2) * up @ down
    torch.testing.assert_close(pipe.unet.get_submodule(module).weight, expected, atol=1e-5, rtol=1e-5)
    ids = pipe.tokenizer.convert_tokens_to_ids(["<us-benign>", "<us-benign>_1"])
    stored = load_file(folder / token_file("<us-benign>"))["<us-benign>"]
    torch.testing.assert_close(pipe.text_encoder.get_input_embeddings().weight[ids], stored)


def test_a_lora_on_convolutions_too_is_fused_at_its_scale(tmp_path: Path, base: BaseIdentity) -> None:
    trainee = tiny_pipeline()
    attach_lora(trainee, Adapters(method="lora", rank=2, alpha=8, convolutions=True), seed=1)
    with torch.no_grad():
        for name, parameter in trainee.unet.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    (tmp_path / LORA_FILE).write_bytes(lora_bytes(trainee, text_encoder=False))
    assert check_adapters(tmp_path, "lora", {}, base, None)["method"] == "lora"
    pipe = tiny_pipeline()
    load_adapters(pipe, tmp_path, "lora", {})
    generator = torch.Generator().manual_seed(4)
    latents = torch.randn(1, 8, 16, 16, generator=generator)
    states = torch.randn(1, 77, WIDTH, generator=generator)
    before = tiny_pipeline().unet
    with torch.inference_mode():
        wanted, found, plain = (unet(latents, 500, states).sample for unet in (trainee.unet, pipe.unet, before))
    effect = (wanted - plain).norm()
    assert effect > 0.01 * plain.norm()
    assert (found - wanted).norm() < 0.01 * effect
    layer = "down_blocks.0.resnets.0.conv1"
    assert not torch.equal(pipe.unet.get_submodule(layer).weight, before.get_submodule(layer).weight)


def test_a_lora_of_zeros_is_an_error_because_loading_it_changes_nothing(folder: Path) -> None:
    tensors = load_file(folder / LORA_FILE)
    save_file({n: torch.zeros_like(t) if "up" in n else t for n, t in tensors.items()}, folder / LORA_FILE)
    with pytest.raises(RuntimeError, match="changed nothing"):
        load_adapters(tiny_pipeline(), folder, "lora", {})


def test_a_lora_on_convolutions_alone_loads(tmp_path: Path) -> None:
    layer = "unet.down_blocks.0.resnets.0.conv1"
    whole = {"down": torch.ones(2, 64, 3, 3), "up": torch.ones(64, 2, 1, 1)}
    save_file({f"{layer}.lora.{part}.weight": tensor for part, tensor in whole.items()}, tmp_path / LORA_FILE)
    check_adapters(tmp_path, "lora", {}, identify_base(Base()), None)
    load_adapters(tiny_pipeline(), tmp_path, "lora", {})


def test_a_missing_file_is_named(folder: Path, base: BaseIdentity) -> None:
    (folder / "us-benign.safetensors").unlink()
    assert "us-benign.safetensors is missing" in refused(folder, base)


def test_a_pickle_beside_it_is_named_and_not_loaded(folder: Path, base: BaseIdentity) -> None:
    (folder / "us-benign.safetensors").rename(folder / "us-benign.bin")
    assert "pickles are never loaded" in refused(folder, base)


def test_two_tokens_in_one_file_are_refused(folder: Path, base: BaseIdentity) -> None:
    rows = torch.zeros(1, WIDTH)
    (folder / "us-benign.safetensors").write_bytes(save({"<us-benign>": rows, "<other>": rows.clone()}))
    assert "not the token <us-benign> alone" in refused(folder, base)


def test_a_token_of_another_width_is_refused(folder: Path, base: BaseIdentity) -> None:
    (folder / "us-benign.safetensors").write_bytes(save({"<us-benign>": torch.zeros(1, 768)}))
    assert "vectors of 768, this base has 128" in refused(folder, base)


def test_a_lora_of_another_base_is_refused(folder: Path, base: BaseIdentity) -> None:
    name = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.lora.down.weight"
    save_file({name: torch.zeros(4, 320), name.replace("down.w", "up.w"): torch.zeros(320, 4)}, folder / LORA_FILE)
    assert "320 wide" in refused(folder, base)


def test_adapters_that_saw_another_split_are_refused(folder: Path, base: BaseIdentity) -> None:
    assert "may have seen images that are held out" in refused(folder, base, dataset_hash="e" * 64)


def test_a_file_that_is_no_safetensors_is_refused(folder: Path, base: BaseIdentity) -> None:
    (folder / LORA_FILE).write_bytes(b"\x80\x04 pickle")
    assert "is no safetensors file" in refused(folder, base)


def test_a_real_lora_in_the_legacy_layout_is_refused_because_diffusers_loads_nothing_from_it(
    tmp_path: Path, base: BaseIdentity
) -> None:
    files = sorted((FIXTURES / "sd15-lora").glob("*.safetensors"))
    if not files:
        pytest.skip(f"the fixture of a legacy LoRA is not here: {FIXTURES / 'sd15-lora'}")
    (tmp_path / LORA_FILE).write_bytes(files[0].read_bytes())
    assert "would load nothing" in refused(tmp_path, base, method="lora", tokens={})


def test_a_real_pickled_embedding_is_refused(tmp_path: Path, base: BaseIdentity) -> None:
    files = sorted((FIXTURES / "sd15-textual-inversion").glob("*.bin"))
    if not files:
        pytest.skip(f"the fixture of a pickled embedding is not here: {FIXTURES / 'sd15-textual-inversion'}")
    (tmp_path / files[0].name).write_bytes(files[0].read_bytes())
    assert "pickles are never loaded" in refused(tmp_path, base, method="ti")
