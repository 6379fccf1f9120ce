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
    load_adapters,
    lora_bytes,
    offered_adapters,
    token_file,
)
from busray.model.base import BaseIdentity, identify_base
from busray.model.lora import LoraFile, written_anew
from busray.records import UserError
from tests.support.adapters import check_adapters
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


def test_half_a_lora_changes_half_as_much_and_tokens_as_before(folder: Path) -> None:
    plain, whole, half = tiny_pipeline(), tiny_pipeline(), tiny_pipeline()
    load_adapters(whole, folder, "lora+ti", TOKENS)
    load_adapters(half, folder, "lora+ti", TOKENS, lora_scale=0.5)
    changed = 0
    for bare, all_of_it, some in zip(plain.unet.parameters(), whole.unet.parameters(), half.unet.parameters()):
        torch.testing.assert_close(some, (bare + all_of_it) / 2, atol=1e-5, rtol=1e-5)
        changed += not torch.equal(some, bare)
    assert changed == sum(name.endswith(("lora.up.weight", "lora_B.weight")) for name in load_file(folder / LORA_FILE))
    embeddings = (pipe.text_encoder.get_input_embeddings().weight for pipe in (whole, half))
    assert torch.equal(*embeddings)


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
    remark = offered_adapters(tmp_path, "lora", {}, identify_base(Base()), None).remark
    assert "is on 1 of" in remark
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
    assert "320 wide, here 96" in refused(folder, base)


def test_adapters_that_saw_another_split_are_refused(folder: Path, base: BaseIdentity) -> None:
    assert "may have seen images that are held out" in refused(folder, base, dataset_hash="e" * 64)


def test_a_file_that_is_no_safetensors_is_refused(folder: Path, base: BaseIdentity) -> None:
    (folder / LORA_FILE).write_bytes(b"\x80\x04 pickle")
    assert "is no safetensors file" in refused(folder, base)


def test_a_real_lora_of_another_base_is_refused_by_its_true_reason(tmp_path: Path, base: BaseIdentity) -> None:
    files = sorted((FIXTURES / "sd15-lora").glob("*.safetensors"))
    if not files:
        pytest.skip(f"the fixture of a LoRA is not here: {FIXTURES / 'sd15-lora'}")
    (tmp_path / LORA_FILE).write_bytes(files[0].read_bytes())
    message = refused(tmp_path, base, method="lora", tokens={})
    assert "is another base's" in message and "of its 128 layers" in message


class ShapesOfNetworks:
    """What LoraFile asks of a base, of networks that have no weights."""

    def __init__(self, networks: dict[str, Any]) -> None:
        self.networks = networks

    def shapes(self, part: str) -> dict[str, tuple[int, ...]]:
        return {name: tuple(weight.shape) for name, weight in self.networks[part].named_parameters()}


def test_every_layer_of_a_real_lora_finds_its_layer_in_stable_diffusion_v1_5() -> None:
    path, layout = FIXTURES / "sd15-lora" / LORA_FILE, FIXTURES / "sd15-layout"
    if not path.exists() or not layout.is_dir():
        pytest.skip(f"the fixtures of a LoRA and of Stable Diffusion v1.5's layout are not here: {FIXTURES}")
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(layout / "unet"))
        text = CLIPTextModel(CLIPTextConfig.from_pretrained(layout / "text_encoder"))
    base: Any = ShapesOfNetworks({"unet": unet, "text_encoder": text})
    file = LoraFile(path, "adapters.path", base)
    assert file.counts() == {"unet": 128, "text_encoder": 0}
    assert file.missing_layers() == {} and not file.standard
    written = load(written_anew(file, file.layers_tensors(None)))
    assert len(written) == 256
    assert {name.rsplit(".lora_", 1)[0].removeprefix("unet.") + ".weight" for name in written} <= set(
        base.shapes("unet")
    )


def test_a_real_pickled_embedding_is_refused(tmp_path: Path, base: BaseIdentity) -> None:
    files = sorted((FIXTURES / "sd15-textual-inversion").glob("*.bin"))
    if not files:
        pytest.skip(f"the fixture of a pickled embedding is not here: {FIXTURES / 'sd15-textual-inversion'}")
    (tmp_path / files[0].name).write_bytes(files[0].read_bytes())
    assert "pickles are never loaded" in refused(tmp_path, base, method="ti")


ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


def pairs(unet: Any, *, seed: int = 5, rank: int = 2) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Layer -> (down, up) of a LoRA on all of a UNet's attention, as if trained."""
    generator, found = torch.Generator().manual_seed(seed), {}
    for name, weight in unet.named_parameters():
        layer = name.removesuffix(".weight")
        if name.endswith(tuple(f".{target}.weight" for target in ATTENTION)):
            down = torch.randn(rank, weight.shape[1], generator=generator) / weight.shape[1] ** 0.5
            found[layer] = down, 0.05 * torch.randn(weight.shape[0], rank, generator=generator)
    return found


def in_diffusers(layer: str) -> tuple[str, str]:
    return f"unet.{layer}.lora.down.weight", f"unet.{layer}.lora.up.weight"


def in_peft_of_diffusers(layer: str) -> tuple[str, str]:
    return f"unet.{layer}.lora_A.weight", f"unet.{layer}.lora_B.weight"


def in_peft(layer: str) -> tuple[str, str]:
    return f"base_model.model.{layer}.lora_A.weight", f"base_model.model.{layer}.lora_B.weight"


def in_kohya(layer: str) -> tuple[str, str]:
    flat = "lora_unet_" + layer.replace(".", "_")
    return f"{flat}.lora_down.weight", f"{flat}.lora_up.weight"


def in_attention_processors(layer: str) -> tuple[str, str]:
    """As diffusers wrote them before 0.17; ../shared/fixtures/sd15-lora is such a file."""
    path, _, target = layer.removesuffix(".0").rpartition(".")
    return f"{path}.processor.{target}_lora.down.weight", f"{path}.processor.{target}_lora.up.weight"


def in_attention_processors_of_unet(layer: str) -> tuple[str, str]:
    down, up = in_attention_processors(layer)
    return f"unet.{down}", f"unet.{up}"


LAYOUTS = [
    in_diffusers,
    in_peft_of_diffusers,
    in_peft,
    in_kohya,
    in_attention_processors,
    in_attention_processors_of_unet,
]


def write_lora(folder: Path, layout: Any, alpha: float | None = None, name: str = LORA_FILE) -> None:
    """A LoRA on all of the embedded base's attention, in this layout."""
    tensors = {}
    for layer, (down, up) in pairs(tiny_pipeline().unet).items():
        for key, value in zip(layout(layer), (down, up), strict=True):
            tensors[key] = value.contiguous()
        if alpha is not None and layout is in_kohya:
            tensors["lora_unet_" + layer.replace(".", "_") + ".alpha"] = torch.tensor(alpha)
    save_file(tensors, folder / name)
    if layout is in_peft:
        (folder / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": alpha or 2}))


def adopted(folder: Path, base: BaseIdentity, target: Path) -> Path:
    """What a run keeps of the adapters in this folder."""
    target.mkdir()
    for name, data in offered_adapters(folder, "lora", {}, base, None).files.items():
        (target / name).write_bytes(data)
    return target


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("alpha", [None, 1.0])
def test_a_lora_in_each_layout_reaches_every_layer_at_its_scale(
    tmp_path: Path, base: BaseIdentity, layout: Any, alpha: float | None
) -> None:
    if alpha is not None and layout not in (in_kohya, in_peft):
        pytest.skip("this layout has no scale")
    (tmp_path / "given").mkdir()
    write_lora(tmp_path / "given", layout, alpha)
    pipe, plain = tiny_pipeline(), tiny_pipeline()
    load_adapters(pipe, adopted(tmp_path / "given", base, tmp_path / "kept"), "lora", {})
    scale = 1.0 if alpha is None else alpha / 2
    for layer, (down, up) in pairs(plain.unet).items():
        expected = plain.unet.get_submodule(layer).weight + scale * up @ down
        torch.testing.assert_close(pipe.unet.get_submodule(layer).weight, expected, atol=1e-5, rtol=1e-5)


def test_the_only_lora_of_a_folder_is_taken_whatever_its_name(tmp_path: Path, base: BaseIdentity) -> None:
    write_lora(tmp_path, in_kohya, name="my-ultrasound-000010.safetensors")
    assert set(offered_adapters(tmp_path, "lora", {}, base, None).files) == {LORA_FILE}
    write_lora(tmp_path, in_kohya, name="my-ultrasound-000020.safetensors")
    assert "several LoRA files" in refused(tmp_path, base, method="lora", tokens={})


def test_a_lora_of_the_text_encoder_in_kohyas_layout_reaches_every_layer(tmp_path: Path, base: BaseIdentity) -> None:
    write_lora(tmp_path, in_kohya)
    tensors = load_file(tmp_path / LORA_FILE)
    encoder = tiny_pipeline().text_encoder
    layers = [name for name, module in encoder.named_modules() if isinstance(module, torch.nn.Linear)]
    generator = torch.Generator().manual_seed(6)
    for layer in layers:
        flat = "lora_te_text_model_" + layer.removeprefix("text_model.").replace(".", "_")
        out, wide = encoder.get_submodule(layer).weight.shape
        tensors[f"{flat}.lora_down.weight"] = torch.randn(4, wide, generator=generator) / wide**0.5
        tensors[f"{flat}.lora_up.weight"] = 0.05 * torch.randn(out, 4, generator=generator)
        tensors[f"{flat}.alpha"] = torch.tensor(2.0)
    save_file(tensors, tmp_path / LORA_FILE)
    pipe = tiny_pipeline()
    load_adapters(pipe, adopted(tmp_path, base, tmp_path / "kept"), "lora", {})
    for layer in layers:
        flat = "lora_te_text_model_" + layer.removeprefix("text_model.").replace(".", "_")
        product = tensors[f"{flat}.lora_up.weight"] @ tensors[f"{flat}.lora_down.weight"]
        expected = encoder.get_submodule(layer).weight + 0.5 * product
        torch.testing.assert_close(pipe.text_encoder.get_submodule(layer).weight, expected, atol=1e-5, rtol=1e-5)


OTHER_LAYERS = (".ff.net.0.proj", ".ff.net.2", ".proj_in", ".proj_out", ".conv1", ".conv_shortcut", ".time_emb_proj")


def test_a_foreign_lora_beyond_attention_reaches_every_layer(tmp_path: Path, base: BaseIdentity) -> None:
    """As kohya's LoCon and LoRA with all of its targets: convolutions and feed-forward layers."""
    unet, generator, tensors = tiny_pipeline().unet, torch.Generator().manual_seed(6), {}
    layers = [name for name, _ in unet.named_modules() if name.endswith(OTHER_LAYERS)]
    assert {layer.rpartition(".")[2] for layer in layers} >= {"proj", "2", "conv1", "conv_shortcut", "time_emb_proj"}
    for layer in layers:
        weight, (down, up) = unet.get_submodule(layer).weight, in_kohya(layer)
        sides = weight.shape[2:]
        tensors[down] = torch.randn(2, weight.shape[1], *sides, generator=generator) / weight[0].numel() ** 0.5
        tensors[up] = 0.05 * torch.randn(weight.shape[0], 2, *(1 for _ in sides), generator=generator)
        tensors[down.replace("lora_down.weight", "alpha")] = torch.tensor(1.0)
    save_file(tensors, tmp_path / LORA_FILE)
    pipe = tiny_pipeline()
    load_adapters(pipe, adopted(tmp_path, base, tmp_path / "kept"), "lora", {})
    for layer in layers:
        down, up = (tensors[name].flatten(1) for name in in_kohya(layer))
        weight = unet.get_submodule(layer).weight
        expected = weight + 0.5 * (up @ down).view_as(weight)
        torch.testing.assert_close(pipe.unet.get_submodule(layer).weight, expected, atol=1e-5, rtol=1e-5)


FIRST = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"


def spoilt(value: float) -> Any:
    """What sets one value of a LoRA's first matrices."""

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{FIRST}.lora.down.weight"][0, 0] = value

    return spoil


def lose_half(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[f"{FIRST}.lora.up.weight"]


def lose_layer(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[f"{FIRST}.lora.up.weight"], tensors[f"{FIRST}.lora.down.weight"]


def lose_blocks(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if "up_blocks" in name]:
        del tensors[name]


def other_rank(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{FIRST}.lora.up.weight"] = torch.ones(96, 3)


def grow(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{FIRST}.lora.up.weight"] *= 1e6


def vanish(tensors: dict[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        if "up.weight" in name:
            tensor.zero_()


def foreign(name: str) -> Any:
    """What adds a tensor of this name."""

    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = torch.ones(2, 2)

    return add


def dora_on_text(tensors: dict[str, torch.Tensor]) -> None:
    layer = "text_encoder.encoder.layers.0.self_attn.q_proj"
    tensors[f"{layer}.lora_linear_layer.down.weight"] = torch.ones(2, WIDTH)
    tensors[f"{layer}.lora_linear_layer.up.weight"] = torch.ones(WIDTH, 2)
    tensors[f"{layer}.lora_magnitude_vector"] = torch.ones(WIDTH)


SPOILT = {
    "NaN": (spoilt(float("nan")), ["is damaged: NaN or infinity in 1 of", FIRST]),
    "infinity": (spoilt(float("inf")), ["is damaged: NaN or infinity in 1 of", FIRST]),
    "a missing half": (lose_half, ["1 of 56 layers have only their first (down, lora_A) matrix", FIRST]),
    "a missing layer": (lose_layer, ["55 are there, 1 of unet's attn1.to_q are not", '{"layers": 55}']),
    "missing blocks": (lose_blocks, ["are there", "of unet's attn1.to_q"]),
    "ranks that differ": (other_rank, ["[2, 96] and [96, 3], which do not fit"]),
    "absurd values": (grow, [f"it changes {FIRST} by", "times the layer's own norm"]),
    "zeros": (vanish, ["would load nothing", "zero, as before training"]),
    "LoHa": (foreign("lora_unet_mid_block.hada_w1_a"), ["holds LoHa (LyCORIS) (1 of 113 tensors)"]),
    "DoRA": (foreign("lora_unet_mid_block.dora_scale"), ["holds DoRA"]),
    "DoRA on one layer": (
        foreign(f"{FIRST}.lora_magnitude_vector"),
        ["55 of 56 layers of the UNet have no magnitude (DoRA)"],
    ),
    "DoRA of the text encoder": (
        dora_on_text,
        ["DoRA on 1 layers of the text encoder", "whose magnitudes diffusers does not load"],
    ),
    "SDXL": (foreign("lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight"), ["is SDXL's: 1 of 113"]),
    "Flux": (foreign("transformer.blocks.0.attn.to_q.lora_A.weight"), ["a transformer's (SD3, Flux)"]),
    "the original code's names": (
        foreign("lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.lora_down.weight"),
        ["is another base's: 1 of its 57 layers (SDXL's names)", "input_blocks_4_1"],
    ),
    "other tensors": (foreign("epoch"), ["1 of 113 tensors that are not LoRA's: epoch"]),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_lora_that_would_load_wrong_is_refused_by_its_true_reason(
    tmp_path: Path, base: BaseIdentity, case: str
) -> None:
    write_lora(tmp_path, in_diffusers)
    tensors, (spoil, words) = load_file(tmp_path / LORA_FILE), SPOILT[case]
    spoil(tensors)
    save_file(tensors, tmp_path / LORA_FILE)
    message = refused(tmp_path, base, method="lora", tokens={})
    assert not [word for word in words if word not in message], message


def test_a_lora_on_a_part_of_the_layers_is_taken_where_its_metadata_say_so(tmp_path: Path, base: BaseIdentity) -> None:
    write_lora(tmp_path, in_diffusers)
    tensors = load_file(tmp_path / LORA_FILE)
    lose_layer(tensors)
    save_file(tensors, tmp_path / LORA_FILE)
    (tmp_path / "adapter.json").write_text('{"layers": 55}')
    check_adapters(tmp_path, "lora", {}, base, None)


def test_pefts_own_layout_needs_its_settings(tmp_path: Path, base: BaseIdentity) -> None:
    write_lora(tmp_path, in_peft, name="adapter_model.safetensors")
    check_adapters(tmp_path, "lora", {}, base, None)
    (tmp_path / "adapter_config.json").unlink()
    assert "adapter_config.json is needed beside it" in refused(tmp_path, base, method="lora", tokens={})


TOKEN_CASES = {
    "NaN": ({"<us-benign>": torch.full((1, WIDTH), float("nan"))}, "NaN or infinity in its vectors"),
    "zeros": ({"<us-benign>": torch.zeros(1, WIDTH)}, "all zeros"),
    "absurd": ({"<us-benign>": torch.full((1, WIDTH), 1e6)}, "times as long as the base's longest"),
    "integers": ({"<us-benign>": torch.ones(1, WIDTH, dtype=torch.int64)}, "are no vectors"),
    "no vectors": ({"<us-benign>": torch.ones(0, WIDTH)}, "are no vectors"),
    "another token": ({"<us-other>": torch.ones(1, WIDTH)}, "holds <us-other>, not the token <us-benign> alone"),
    "SDXL": ({"clip_l": torch.ones(1, 768), "clip_g": torch.ones(1, 1280)}, "is for SDXL"),
    "too many": ({"<us-benign>": torch.ones(77, WIDTH)}, "at most 16"),
}


@pytest.mark.parametrize("case", TOKEN_CASES)
def test_a_token_that_would_load_wrong_is_refused_by_its_true_reason(
    folder: Path, base: BaseIdentity, case: str
) -> None:
    tensors, words = TOKEN_CASES[case]
    save_file(tensors, folder / "us-benign.safetensors")
    assert words in refused(folder, base)


def test_a_token_of_a1111_is_stored_under_its_own_name(folder: Path, base: BaseIdentity) -> None:
    rows = load_file(folder / "us-benign.safetensors")["<us-benign>"]
    save_file({"emb_params": rows}, folder / "us-benign.safetensors")
    offered = offered_adapters(folder, "ti", TOKENS, base, "d" * 64)
    assert offered.vectors == {"<us-benign>": 2}
    assert torch.equal(load(offered.files["us-benign.safetensors"])["<us-benign>"], rows)
