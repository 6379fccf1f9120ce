"""Adapters from one layout into another, read back and compared before they count.

LoRA: diffusers, kohya (also A1111 and ComfyUI), PEFT. Tokens: diffusers, A1111 (also kohya). A
pickle (.bin, .pt) is read by torch's weights-only loader, which runs no code of the file.
"""

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from busray.model.adapters import EMB_PARAMS, PEFT_CONFIG, PEFT_FILE, find_lora
from busray.model.base_files import PICKLES
from busray.model.describe import token_rows
from busray.model.families import lora_of_family, tensors_of
from busray.model.lora import UNET, LoraFile, header_of, refuse_numbers, written_anew
from busray.records import UserError

Layout = Literal["diffusers", "kohya", "peft"]
TOLERANCE = 1e-4
"""Most that a layer's change may differ after conversion, as a share of its size."""


def convert(source: Path, target: Path, to: Layout, base: str | None = None) -> list[Path]:
    """Write the adapters of source in another layout; returns the files that were written.

    source: a file, or a folder with one LoRA. target: a new file, for `peft` a new folder. base: as
    base.path, where the LoRA is of no base that busray knows. UserError where the layout cannot
    hold all that there is.
    """
    path = find_lora(source, str(source)) if source.is_dir() else source
    if not path.is_file():
        raise UserError(f"{source}: no file there")
    if target.exists():
        raise UserError(f"{target} is there already: name a new one")
    if not target.absolute().parent.is_dir():
        raise UserError(f"{target}: no folder {target.parent}: make it first")
    with tempfile.TemporaryDirectory(prefix="busray-convert-") as folder:
        if path.suffix in PICKLES:
            path = _unpickled(path, Path(folder))
        if token_rows(header_of(path, str(source.parent))):
            return [_convert_token(path, target, to)]
        file, _ = lora_of_family(path, str(source.parent), base)
        return _convert_lora(file, target, to, base)


# ---- pickles


def _unpickled(path: Path, folder: Path) -> Path:
    """A safetensors file in folder with the tensors of a pickle; UserError for anything else."""
    import torch
    from safetensors.torch import save_file

    try:
        found = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # torch has many kinds of failure for a file that is no archive of tensors
        first = (str(error).splitlines() or [repr(error)])[0]
        raise UserError(f"{path} holds something else than tensors, so it is not loaded: {first}") from error
    if isinstance(found, dict) and isinstance(found.get("string_to_param"), dict):  # a token of A1111
        rows = list(found["string_to_param"].values())
        name = found.get("name")
        found = {f"<{name}>" if isinstance(name, str) and name else EMB_PARAMS: rows[0]} if len(rows) == 1 else {}
    if not isinstance(found, dict) or not found or not all(isinstance(t, torch.Tensor) for t in found.values()):
        raise UserError(f"{path} holds no dictionary of tensors, so it is neither a LoRA nor one token")
    target = folder / f"{path.stem}.safetensors"
    save_file({str(name): tensor.detach().contiguous() for name, tensor in found.items()}, target)
    if (path.parent / PEFT_CONFIG).is_file():
        shutil.copyfile(path.parent / PEFT_CONFIG, folder / PEFT_CONFIG)  # it has the scale
    return target


# ---- tokens


def _convert_token(path: Path, target: Path, to: Layout) -> Path:
    """diffusers names the token in its file; A1111 and kohya name it by the file's name."""
    from safetensors.torch import load_file, save_file

    if to == "peft":
        raise UserError("--to peft: PEFT has no layout of a learned token: take diffusers or kohya")
    _refuse_other_suffix(target)
    ((name, rows),) = load_file(path).items()
    if rows.ndim == 1:
        rows = rows[None]
    if to == "kohya":
        name = EMB_PARAMS
    elif name == EMB_PARAMS:
        name = f"<{target.stem}>"
    save_file({name: rows.contiguous()}, target)
    return target


# ---- LoRA


def _convert_lora(file: LoraFile, target: Path, to: Layout, base: str | None) -> list[Path]:
    tensors = tensors_of(file)
    refuse_numbers(file, tensors)
    if to != "diffusers" and file.magnitudes():
        raise UserError(f"{file.where} is DoRA, which busray writes for diffusers alone")
    if to == "peft":
        return _write_peft(file, tensors, target, base)
    _refuse_other_suffix(target)
    if to == "diffusers":
        data = file.path.read_bytes() if file.standard else written_anew(file, tensors)
    else:
        data = _in_kohya(tensors)
    _write_compared(data, target, tensors, base)
    return [target]


Tensors = Mapping[tuple[str, str], tuple[Any, Any, float]]  # layer -> (down, up, scale)


def _in_kohya(tensors: Tensors) -> bytes:
    """kohya's layout: names with underscores, the scale as alpha."""
    import torch
    from safetensors.torch import save

    out = {}
    for (network, layer), (down, up, scale) in sorted(tensors.items()):
        prefix = "lora_unet_" if network == UNET else "lora_te_text_model_"
        name = prefix + layer.replace(".", "_")
        out[f"{name}.lora_down.weight"] = down.contiguous()
        out[f"{name}.lora_up.weight"] = up.contiguous()
        out[f"{name}.alpha"] = torch.tensor(scale * len(down))
    ranks = {len(down) for down, _, _ in tensors.values()}
    metadata = {"format": "pt", "ss_network_module": "networks.lora", "ss_network_dim": str(max(ranks))}
    return save(out, metadata)


def _write_peft(file: LoraFile, tensors: Tensors, target: Path, base: str | None) -> list[Path]:
    """PEFT's own folder, of a LoRA on the UNet: each layer with its rank and a scale of 1."""
    from safetensors.torch import save

    if other := [layer for network, layer in tensors if network != UNET]:
        raise UserError(
            f"{file.where} is also on {len(other)} layers of the text encoder, and PEFT's layout is of one network: "
            "convert to diffusers or kohya"
        )
    out, ranks = {}, {}
    for (_, layer), (down, up, scale) in sorted(tensors.items()):
        out[f"base_model.model.{layer}.lora_A.weight"] = down.contiguous()
        out[f"base_model.model.{layer}.lora_B.weight"] = (up * scale).contiguous()
        ranks[layer] = len(down)
    rank = max(ranks.values())
    others = {layer: own for layer, own in ranks.items() if own != rank}
    settings = {
        "peft_type": "LORA", "r": rank, "lora_alpha": rank, "rank_pattern": others, "alpha_pattern": others,
        "target_modules": sorted(ranks), "bias": "none", "lora_dropout": 0.0, "inference_mode": True,
        "base_model_name_or_path": None, "task_type": None,
    }  # fmt: skip
    target.mkdir()
    (target / PEFT_CONFIG).write_text(json.dumps(settings, indent=1) + "\n")
    _write_compared(save(out, {"format": "pt"}), target / PEFT_FILE, tensors, base)
    return [target / PEFT_CONFIG, target / PEFT_FILE]


def _write_compared(data: bytes, target: Path, wanted: Tensors, base: str | None) -> None:
    """Write the file and read it back; RuntimeError where a layer is changed by something else."""
    target.write_bytes(data)
    again, _ = lora_of_family(target, str(target.parent), base)
    found = tensors_of(again)
    lost = wanted.keys() ^ found.keys()
    for key in wanted.keys() & found.keys():
        (down, up, scale), (own_down, own_up, own_scale) = wanted[key], found[key]
        left, right = up.flatten(1) @ down.flatten(1) * scale, own_up.flatten(1) @ own_down.flatten(1) * own_scale
        if (left - right).norm() > TOLERANCE * left.norm():
            lost = {*lost, key}
    if lost:
        target.unlink()
        raise RuntimeError(f"{target}: {len(lost)} of {len(wanted)} layers differ after conversion; it was removed")


def _refuse_other_suffix(target: Path) -> None:
    if target.suffix != ".safetensors":
        raise UserError(f"{target}: only safetensors files are written: name it {target.with_suffix('.safetensors')}")
