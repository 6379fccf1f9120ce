"""LoRA and learned tokens: where they attach, how they are stored, and proof that loading them had an effect.

Stored exactly as diffusers' users expect: `pytorch_lora_weights.safetensors` and one `<token>.safetensors` a learned
token, with `adapter.json` of ours beside them. Nothing here reads a pickle.
"""

import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from busray.config import Adapters, Base
from busray.identity import fingerprint, sha256_bytes
from busray.model.base import BaseIdentity
from busray.records import UserError, to_json

LORA_FILE = "pytorch_lora_weights.safetensors"
METADATA_FILE = "adapter.json"
DOWN = (".lora.down.weight", ".lora_A.weight")
"""Endings of a LoRA's first matrix in the two layouts that diffusers loads: its own and PEFT's."""
UP = (".lora.up.weight", ".lora_B.weight")
"""Of its second matrix, which is zero until it is trained."""
UNET_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
UNET_CONVOLUTIONS = ["conv1", "conv2"]
"""Of the residual blocks."""
TEXT_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj"]


def token_file(token: str) -> str:
    """`<us-benign>` -> `us-benign.safetensors`."""
    return f"{token.strip('<>')}.safetensors"


def adapter_sha256(files: Mapping[str, bytes]) -> str:
    """One digest for a set of adapter files: of what decides pixels, so adapter.json does not count.

    safetensors and PEFT write a file's metadata in an order that changes from process to process; here it is sorted.
    """
    return fingerprint({name: _content(data) for name, data in files.items() if name.endswith(".safetensors")})


def _content(data: bytes) -> dict[str, Any]:
    """Header and digest of the tensors of a safetensors file, the same however its header is ordered."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    metadata = header.pop("__metadata__", {})
    lora = _sorted(json.loads(metadata.get("lora_adapter_metadata", "{}")))
    return {"tensors": header, "lora": lora, "data": sha256_bytes(data[8 + size :])}


def _sorted(value: Any) -> Any:
    """PEFT's sets become lists of any order."""
    if isinstance(value, dict):
        return {key: _sorted(inner) for key, inner in value.items()}
    return sorted(value, key=str) if isinstance(value, list) else value


def attach_lora(pipe: Any, settings: Adapters, seed: int) -> None:
    """Put a fresh LoRA on the UNet's attention; where settings ask, on its convolutions and the text encoder too."""
    import torch
    from peft import LoraConfig

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        alpha = settings.alpha or settings.rank
        common: dict[str, Any] = {"r": settings.rank, "lora_alpha": alpha, "init_lora_weights": "gaussian"}
        targets = UNET_TARGETS + (UNET_CONVOLUTIONS if settings.convolutions else [])
        pipe.unet.add_adapter(LoraConfig(target_modules=targets, **common))
        if settings.text_encoder:
            pipe.text_encoder.add_adapter(LoraConfig(target_modules=TEXT_TARGETS, **common))


def lora_bytes(pipe: Any, text_encoder: bool) -> bytes:
    """The pipeline's LoRA in diffusers' file form, PEFT's metadata kept (without it alpha != rank reloads wrong)."""
    from diffusers import StableDiffusionPipeline
    from diffusers.training_utils import _collate_lora_metadata
    from peft.utils import get_peft_model_state_dict

    modules = {"unet": pipe.unet, **({"text_encoder": pipe.text_encoder} if text_encoder else {})}
    layers = {f"{n}_lora_layers": _in_one_layout(get_peft_model_state_dict(m)) for n, m in modules.items()}
    with tempfile.TemporaryDirectory() as folder:
        StableDiffusionPipeline.save_lora_weights(
            folder, **layers, safe_serialization=True, **_collate_lora_metadata(modules)
        )
        return (Path(folder) / LORA_FILE).read_bytes()


def _in_one_layout(state: dict[str, Any]) -> dict[str, Any]:
    """In diffusers' own names, or, since these are for attention alone, all in PEFT's: of both, one half is loaded."""
    from diffusers.utils import convert_state_dict_to_diffusers

    converted = convert_state_dict_to_diffusers(dict(state))
    return state if any(name.endswith(DOWN[1]) for name in converted) else converted


def token_bytes(token: str, rows: Any) -> bytes:
    """A learned token's vectors float [k, width] in diffusers' file form."""
    from safetensors.torch import save

    return save({token: rows.detach().cpu().float().contiguous()})


def adapter_files(lora: bytes | None, tokens: Mapping[str, Any], metadata: Mapping[str, Any]) -> dict[str, bytes]:
    """file name -> bytes of a set of adapters; tokens: placeholder -> vectors [k, width]."""
    files = {token_file(token): token_bytes(token, rows) for token, rows in tokens.items()}
    if lora is not None:
        files[LORA_FILE] = lora
    return {**files, METADATA_FILE: to_json(dict(metadata))}


def check_adapters(
    folder: Path, method: str, tokens: Mapping[str, str], base: BaseIdentity, dataset_hash: str | None
) -> dict[str, Any]:
    """The adapters' metadata with `sha256`; UserError for anything that would load wrong, or not at all.

    tokens: class -> placeholder, empty where the method has none. dataset_hash: of the run's data set; adapters that
    name another one have seen images that this run holds out.
    """
    parts = method.split("+")
    where = f"adapters.path: {folder}"
    if not folder.is_dir():
        raise UserError(f"{where}: no such folder")
    metadata = _metadata(folder, where)
    needed = ([LORA_FILE] if "lora" in parts else []) + (
        sorted({token_file(token) for token in tokens.values()}) if "ti" in parts else []
    )
    for name in needed:
        if not (folder / name).is_file():
            pickles = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt"))
            hint = f" ({', '.join(pickles)} there: pickles are never loaded, convert to safetensors)" if pickles else ""
            raise UserError(f"{where}: {name} is missing{hint}")
    width, modules = _shapes(base)
    if "lora" in parts:
        _check_lora(folder / LORA_FILE, where, modules)
    if "ti" in parts:
        for token in set(tokens.values()):
            _check_token(folder / token_file(token), token, where, width)
    if metadata.get("base") and metadata["base"]["files"] != base.files:
        raise UserError(f"{where}: trained on another base ({metadata['base']['repository']}) than base.path's")
    if dataset_hash and metadata.get("dataset_hash") and metadata["dataset_hash"] != dataset_hash:
        raise UserError(
            f"{where}: trained on another data-set split ({metadata['dataset_hash'][:12]}) than this run's "
            f"({dataset_hash[:12]}), so it may have seen images that are held out here"
        )
    files = {name: (folder / name).read_bytes() for name in needed}
    return {**metadata, "method": method, "tokens": dict(tokens), "sha256": adapter_sha256(files)}


def _metadata(folder: Path, where: str) -> dict[str, Any]:
    path = folder / METADATA_FILE
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{where}: {METADATA_FILE} is not JSON: {error}") from error


def _shapes(base: BaseIdentity) -> tuple[int, dict[str, tuple[int, int]]]:
    """(text width, UNet layer that a LoRA may be on -> channels [out, in]) of a base, from its files' headers."""
    from busray.model.base import base_folder

    folder = base_folder(Base(path=base.repository, revision=base.revision))
    width = json.loads((folder / "text_encoder" / "config.json").read_text())["hidden_size"]
    shapes: dict[str, tuple[int, int]] = {}
    targets = tuple(f".{target}" for target in UNET_TARGETS + UNET_CONVOLUTIONS)
    for path in (folder / "unet").glob("*.safetensors"):
        for name, shape in _header(path).items():
            module = name.removesuffix(".weight")
            if name.endswith(".weight") and module.endswith(targets):
                shapes[module] = (shape[0], shape[1])
    return width, shapes


def _header(path: Path) -> dict[str, list[int]]:
    """tensor -> shape of a safetensors file, its data unread."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{path} is no safetensors file: {error}") from error


def _check_lora(path: Path, where: str, modules: Mapping[str, tuple[int, int]]) -> None:
    """Every first matrix must name a layer of this base's UNet and fit it."""
    header = _header(path)
    widths = _unet_modules(header)
    if not widths:
        raise UserError(
            f"{where}: {path.name} would load nothing: none of its {len(header)} tensors is named unet.*{DOWN[0]} or "
            f"unet.*{DOWN[1]} (an older layout; load it with the diffusers version that wrote it and save it again)"
        )
    for module, width in widths.items():
        if module not in modules:
            raise UserError(f"{where}: {path.name} is for unet.{module}, which this base does not have: another base's")
        if width != modules[module][1]:
            raise UserError(
                f"{where}: {path.name}: unet.{module} is {width} wide, here {modules[module][1]}: another base's"
            )
    if not _changes_something(path):
        raise UserError(f"{where}: {path.name} would load nothing: every second matrix is zero, as before training")


def _changes_something(path: Path) -> bool:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        names = [name for name in file.keys() if name.startswith("unet.") and name.endswith(UP)]  # noqa: SIM118
        return any(bool(file.get_tensor(name).any()) for name in names)


def _unet_modules(header: Mapping[str, list[int]]) -> dict[str, int]:
    """UNet module -> input width, of a LoRA file's tensors."""
    return {
        name.removeprefix("unet.").removesuffix(ending): shape[1]
        for name, shape in header.items()
        for ending in DOWN
        if name.startswith("unet.") and name.endswith(ending)
    }


def _check_token(path: Path, token: str, where: str, width: int) -> None:
    header = _header(path)
    if set(header) != {token}:
        raise UserError(f"{where}: {path.name} holds {', '.join(header)}, not the token {token} alone")
    if header[token][-1] != width:
        raise UserError(f"{where}: {path.name}: vectors of {header[token][-1]}, this base has {width}: another base's")


def token_vectors(folder: Path, tokens: Iterable[str]) -> dict[str, int]:
    """token -> how many embedding vectors its file holds."""
    shapes = {token: _header(folder / token_file(token))[token] for token in tokens}
    return {token: shape[0] if len(shape) > 1 else 1 for token, shape in shapes.items()}


def load_adapters(pipe: Any, folder: Path, method: str, tokens: Mapping[str, str]) -> None:
    """Load adapters into a pipeline and fuse the LoRA; RuntimeError where loading had no effect.

    diffusers can load a LoRA and change nothing without a word, so the weights themselves are compared.
    """
    if "ti" in method.split("+"):
        for token in sorted(set(tokens.values())):
            _load_token(pipe, folder / token_file(token), token)
    if "lora" in method.split("+"):
        _load_lora(pipe, folder)


def _load_token(pipe: Any, path: Path, token: str) -> None:
    import torch
    from safetensors.torch import load_file

    rows = load_file(path)[token]
    pipe.load_textual_inversion({token: rows if rows.ndim > 1 else rows[None]}, token=token)
    names = [token, *(f"{token}_{i}" for i in range(1, len(rows) if rows.ndim > 1 else 1))]
    ids = pipe.tokenizer.convert_tokens_to_ids(names)
    loaded = pipe.text_encoder.get_input_embeddings().weight[ids]
    wanted = rows.reshape(len(names), -1).to(loaded)
    if not torch.equal(loaded, wanted):
        raise RuntimeError(f"{path}: the token {token} did not reach the text encoder")


def _load_lora(pipe: Any, folder: Path) -> None:
    import torch

    before = {n: p.detach().clone() for n, p in pipe.unet.named_parameters() if n.endswith(".weight") and _targeted(n)}
    expected = set(_unet_modules(_header(folder / LORA_FILE)))
    pipe.load_lora_weights(folder, weight_name=LORA_FILE, use_safetensors=True, local_files_only=True)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    after = dict(pipe.unet.named_parameters())
    changed = {n.removesuffix(".weight") for n, weight in before.items() if not torch.equal(weight, after[n])}
    if not changed & expected:
        raise RuntimeError(
            f"{folder / LORA_FILE}: loading it changed nothing of the UNet's {len(before)} layers that a LoRA may be on"
        )


def _targeted(name: str) -> bool:
    module = name.removesuffix(".weight")
    return any(module.endswith(f".{target}") for target in UNET_TARGETS + UNET_CONVOLUTIONS)
