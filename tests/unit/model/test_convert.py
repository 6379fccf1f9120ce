"""Adapters in another layout have the same effect, and `describe` says what a file holds."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from busray.cli import main
from busray.config import Adapters
from busray.model.adapters import LORA_FILE, PEFT_FILE, attach_lora, lora_bytes
from busray.model.convert import convert
from busray.model.describe import LoraDescription, TokenDescription, describe
from busray.records import UserError
from tests.support.paths import SHARED
from tests.support.pipelines import tiny_pipeline

FIXTURES = SHARED / "fixtures"


def trained_lora(folder: Path, *, text_encoder: bool = False, **settings: Any) -> Path:
    """A file of busray's own with weights as if trained: rank 2, alpha 8."""
    pipe = tiny_pipeline()
    options = {"method": "lora", "rank": 2, "alpha": 8, "text_encoder": text_encoder, **settings}
    attach_lora(pipe, Adapters(**options), seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for network in (pipe.unet, pipe.text_encoder):
            for name, parameter in network.named_parameters():
                if "lora_B" in name:
                    parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
    path = folder / LORA_FILE
    path.write_bytes(lora_bytes(pipe, text_encoder=text_encoder))
    return path


def fused(path: Path) -> tuple[Any, Any]:
    """The tiny base's networks with a LoRA as diffusers itself loads the file."""
    pipe = tiny_pipeline()
    pipe.load_lora_weights(path.parent, weight_name=path.name, use_safetensors=True)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    return pipe.unet, pipe.text_encoder


def assert_same_weights(found: Any, wanted: Any, plain: Any) -> None:
    weights, changed = dict(wanted.named_parameters()), 0
    for name, weight in found.named_parameters():
        torch.testing.assert_close(weight, weights[name], atol=1e-5, rtol=1e-5)
        changed += not torch.equal(weight, dict(plain.named_parameters())[name])
    assert changed >= 8


def test_kohyas_layout_has_the_same_effect_in_diffusers_and_comes_back(tmp_path: Path) -> None:
    source = trained_lora(tmp_path, text_encoder=True, convolutions=True)
    kohya, back = tmp_path / "kohya.safetensors", tmp_path / "back.safetensors"
    assert convert(source, kohya, "kohya") == [kohya]
    assert all(name.startswith(("lora_unet_", "lora_te_text_model_")) for name in load_file(kohya))
    convert(kohya, back, "diffusers")
    plain, wanted = tiny_pipeline(), fused(source)
    # diffusers' own reader of kohya's files knows no convolutions of residual blocks here, so the
    # way back is by busray's.
    for found, expected, bare in zip(fused(back), wanted, (plain.unet, plain.text_encoder), strict=True):
        assert_same_weights(found, expected, bare)


def test_diffusers_own_reader_loads_a_converted_file_of_attention(tmp_path: Path) -> None:
    source, kohya = trained_lora(tmp_path), tmp_path / "kohya.safetensors"
    convert(source, kohya, "kohya")
    assert_same_weights(fused(kohya)[0], fused(source)[0], tiny_pipeline().unet)


def test_pefts_own_loader_reads_a_converted_folder(tmp_path: Path) -> None:
    from peft import PeftModel

    source, target = trained_lora(tmp_path), tmp_path / "peft"
    assert [path.name for path in convert(source, target, "peft")] == ["adapter_config.json", PEFT_FILE]
    loaded = PeftModel.from_pretrained(tiny_pipeline().unet, str(target)).merge_and_unload()
    assert_same_weights(loaded, fused(source)[0], tiny_pipeline().unet)
    back = tmp_path / "back.safetensors"
    convert(target, back, "diffusers")
    assert_same_weights(fused(back)[0], fused(source)[0], tiny_pipeline().unet)


def test_what_a_layout_cannot_hold_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    for name in ("both", "dora"):
        (tmp_path / name).mkdir()
    both = trained_lora(tmp_path / "both", text_encoder=True)
    with pytest.raises(UserError, match="PEFT's layout is of one network"):
        convert(both, tmp_path / "peft", "peft")
    with pytest.raises(UserError, match="is DoRA"):
        convert(trained_lora(tmp_path / "dora", dora=True), tmp_path / "kohya.safetensors", "kohya")
    with pytest.raises(UserError, match=r"name it .*x\.safetensors"):
        convert(both, tmp_path / "x.bin", "kohya")
    with pytest.raises(UserError, match="is there already"):
        convert(both, both, "kohya")
    with pytest.raises(UserError, match="no file there"):
        convert(tmp_path / "none.safetensors", tmp_path / "x.safetensors", "kohya")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["both", "dora"]


def test_a_pickled_lora_is_converted_and_one_with_code_is_not(tmp_path: Path) -> None:
    source = trained_lora(tmp_path)
    pickled, target = tmp_path / "pickled.bin", tmp_path / "lora.safetensors"
    convert(source, tmp_path / "kohya.safetensors", "kohya")
    torch.save(load_file(tmp_path / "kohya.safetensors"), pickled)
    convert(pickled, target, "diffusers")
    assert_same_weights(fused(target)[0], fused(source)[0], tiny_pipeline().unet)
    torch.save({"code": print}, tmp_path / "code.bin")
    with pytest.raises(UserError, match="so it is not loaded"):
        convert(tmp_path / "code.bin", tmp_path / "code.safetensors", "diffusers")
    torch.save([torch.zeros(2)], tmp_path / "list.bin")
    with pytest.raises(UserError, match="no dictionary of tensors"):
        convert(tmp_path / "list.bin", tmp_path / "list.safetensors", "diffusers")
    assert not (tmp_path / "code.safetensors").exists()


def test_tokens_go_from_pickles_to_diffusers_and_a1111(tmp_path: Path) -> None:
    rows = torch.randn(2, 128, generator=torch.Generator().manual_seed(3))
    torch.save({"<us-benign>": rows[0]}, tmp_path / "learned_embeds.bin")
    torch.save({"string_to_param": {"*": rows}, "name": "us-malignant"}, tmp_path / "a1111.pt")
    convert(tmp_path / "learned_embeds.bin", tmp_path / "us-benign.safetensors", "diffusers")
    convert(tmp_path / "a1111.pt", tmp_path / "us-malignant.safetensors", "diffusers")
    convert(tmp_path / "us-malignant.safetensors", tmp_path / "for-a1111.safetensors", "kohya")
    convert(tmp_path / "for-a1111.safetensors", tmp_path / "again.safetensors", "diffusers")
    assert torch.equal(load_file(tmp_path / "us-benign.safetensors")["<us-benign>"], rows[:1])
    assert torch.equal(load_file(tmp_path / "us-malignant.safetensors")["<us-malignant>"], rows)
    assert torch.equal(load_file(tmp_path / "for-a1111.safetensors")["emb_params"], rows)
    assert torch.equal(load_file(tmp_path / "again.safetensors")["<again>"], rows)
    with pytest.raises(UserError, match="no layout of a learned token"):
        convert(tmp_path / "us-benign.safetensors", tmp_path / "peft", "peft")


def test_a_real_pickled_token_is_converted(tmp_path: Path) -> None:
    source = FIXTURES / "sd15-textual-inversion" / "learned_embeds.bin"
    if not source.is_file():
        pytest.skip(f"the fixture of a pickled embedding is not here: {source}")
    convert(source, tmp_path / "birb-style.safetensors", "diffusers")
    (found,) = describe(tmp_path / "birb-style.safetensors")
    assert isinstance(found, TokenDescription)
    assert (found.token, found.vectors, found.width, found.fits) == ("<birb-style>", 1, 768, "Stable Diffusion 1.x")


def test_a_folder_of_adapters_is_described_file_by_file(tmp_path: Path) -> None:
    trained_lora(tmp_path, text_encoder=True)
    save_file({"<us-benign>": torch.ones(2, 128)}, tmp_path / "us-benign.safetensors")
    record = {"base": {"repository": "owner/name", "revision": "a" * 40, "files": {}}, "dataset_hash": "d" * 64}
    (tmp_path / "adapter.json").write_text(json.dumps(record))
    lora, token = describe(tmp_path)
    assert isinstance(lora, LoraDescription) and isinstance(token, TokenDescription)
    assert (lora.ranks, lora.scales, lora.method, lora.layout) == ((2,), (4.0,), "LoRA", "diffusers")
    assert lora.layers.keys() == {"unet", "text_encoder"} and lora.fits == "the embedded base `tiny`"
    assert sum(lora.targets.values()) == sum(lora.layers.values()) and "unet's attn1.to_q" in lora.targets
    assert lora.base == token.base == f"owner/name at {'a' * 40}" and lora.training == token.training == "d" * 64
    changes = []
    for (name, found), plain in zip(
        fused(tmp_path / LORA_FILE)[0].named_parameters(), tiny_pipeline().unet.parameters()
    ):
        changes.append((float((found - plain).norm()), name))
    assert lora.largest[0].startswith(("unet.", "text_encoder.")) and lora.largest[1] >= max(changes)[0] - 1e-3
    assert token.norms == pytest.approx((128**0.5, 128**0.5))
    assert json.loads(json.dumps(lora.to_dict()))["ranks"] == [2] and dict(lora.rows())["rank"] == "2"


def test_the_command_converts_and_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, kohya = trained_lora(tmp_path), tmp_path / "kohya.safetensors"
    assert main(["adapters", "convert", str(source), str(kohya), "--to", "kohya"]) == 0
    assert capsys.readouterr().out == f"{kohya}\n"
    assert main(["adapters", "show", str(kohya), "--json"]) == 0
    (shown,) = json.loads(capsys.readouterr().out)
    assert (shown["layout"], shown["ranks"], shown["scales"]) == ("kohya", [2], [4.0])
    assert main(["adapters", "show", str(kohya)]) == 0
    assert "rank                       2\n" in capsys.readouterr().out
    assert main(["adapters", "convert", str(source), str(kohya), "--to", "kohya"]) == 2
    assert "is there already" in capsys.readouterr().err


def test_every_layer_of_a_real_lora_is_loaded_from_kohyas_layout_too(tmp_path: Path) -> None:
    source = FIXTURES / "sd15-lora" / LORA_FILE
    if not source.is_file():
        pytest.skip(f"the fixture of a LoRA is not here: {source}")
    convert(source, tmp_path / "kohya.safetensors", "kohya")
    (before,), (after,) = describe(source), describe(tmp_path / "kohya.safetensors")
    assert isinstance(before, LoraDescription) and isinstance(after, LoraDescription)
    assert before.layers == after.layers == {"unet": 128} and before.fits == "Stable Diffusion 1.x"
    assert (before.layout, after.layout) == ("diffusers before 0.17", "kohya")
    assert after.norm == pytest.approx(before.norm, rel=1e-6) and after.targets == before.targets


def test_what_is_no_adapter_is_refused_by_name(tmp_path: Path) -> None:
    save_file({"lora_te2_text_model_x.lora_down.weight": torch.ones(2, 8)}, tmp_path / "sdxl.safetensors")
    with pytest.raises(UserError, match="is SDXL's"):
        describe(tmp_path / "sdxl.safetensors")
    torch.save({"<a>": torch.ones(1, 8)}, tmp_path / "a.bin")
    with pytest.raises(UserError, match="busray adapters convert"):
        describe(tmp_path / "a.bin")
    with pytest.raises(UserError, match="no file there"):
        describe(tmp_path / "none.safetensors")
