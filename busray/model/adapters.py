"""LoRA and learned tokens: where they attach, how they are stored, and whether loading them works.

They are stored as diffusers loads them: `pytorch_lora_weights.safetensors`, and one
`<token>.safetensors` for each learned token. busray's `adapter.json` lies beside them.
Nothing here reads a pickle. LoRA: Hu et al. 2021, arXiv 2106.09685.
"""

import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from busray.config import Adapters, Base
from busray.identity import fingerprint, sha256_bytes
from busray.model.base import BaseIdentity, base_folder, vector_names
from busray.records import UserError, to_json

LORA_FILE = "pytorch_lora_weights.safetensors"
METADATA_FILE = "adapter.json"
# How the names of a LoRA's first matrices end: in diffusers' layout, in PEFT's. Both are loaded.
DOWN = (".lora.down.weight", ".lora_A.weight")
# Likewise of its second matrices, which are zero before training.
UP = (".lora.up.weight", ".lora_B.weight")
UNET_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
UNET_CONVOLUTIONS = ["conv1", "conv2"]  # of the residual blocks
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
TEXT_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj"]
# How the names of the UNet's weights end that a LoRA may be on.
UNET_WEIGHTS = tuple(f".{target}.weight" for target in UNET_TARGETS + UNET_CONVOLUTIONS)


def token_file(token: str) -> str:
    """`<us-benign>` -> `us-benign.safetensors`."""
    return f"{token.strip('<>')}.safetensors"


def adapter_sha256(files: Mapping[str, bytes]) -> str:
    """One digest for a set of adapter files, without adapter.json, which decides no pixel."""
    weights = {name: data for name, data in files.items() if name.endswith(".safetensors")}
    return fingerprint({name: _content(data) for name, data in weights.items()})


def _content(data: bytes) -> dict[str, Any]:
    """The header and the tensors' digest of a safetensors file.

    safetensors and PEFT write a header's metadata in an order that changes from process to
    process, so that the file's own digest is not the same for the same adapters.
    """
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    metadata = header.pop("__metadata__", {})
    lora = _sorted(json.loads(metadata.get("lora_adapter_metadata", "{}")))
    return {"tensors": header, "lora": lora, "data": sha256_bytes(data[8 + size :])}


def _sorted(value: Any) -> Any:
    """The same JSON with every list sorted: PEFT writes sets, as lists in any order."""
    if isinstance(value, dict):
        return {key: _sorted(inner) for key, inner in value.items()}
    return sorted(value, key=str) if isinstance(value, list) else value


def attach_lora(pipe: Any, settings: Adapters, seed: int) -> None:
    """Put a fresh LoRA on the UNet's attention, and on what else the settings name."""
    import torch
    from peft import LoraConfig

    alpha = settings.alpha or settings.rank
    common: dict[str, Any] = {"r": settings.rank, "lora_alpha": alpha}
    common["init_lora_weights"] = "gaussian"
    targets = UNET_TARGETS + (UNET_CONVOLUTIONS if settings.convolutions else [])
    # PEFT draws the first matrices from torch's global generator.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe.unet.add_adapter(LoraConfig(target_modules=targets, **common))
        if settings.text_encoder:
            pipe.text_encoder.add_adapter(LoraConfig(target_modules=TEXT_TARGETS, **common))


def lora_bytes(pipe: Any, text_encoder: bool) -> bytes:
    """The pipeline's LoRA as a file of diffusers."""
    from diffusers import StableDiffusionPipeline
    from diffusers.training_utils import _collate_lora_metadata
    from peft.utils import get_peft_model_state_dict

    modules = {"unet": pipe.unet}
    if text_encoder:
        modules["text_encoder"] = pipe.text_encoder
    # Without PEFT's metadata a LoRA with alpha != rank would be loaded at another scale.
    arguments = _collate_lora_metadata(modules)
    for name, module in modules.items():
        arguments[f"{name}_lora_layers"] = _in_one_layout(get_peft_model_state_dict(module))
    with tempfile.TemporaryDirectory() as folder:
        StableDiffusionPipeline.save_lora_weights(folder, **arguments, safe_serialization=True)
        return (Path(folder) / LORA_FILE).read_bytes()


def _in_one_layout(state: dict[str, Any]) -> dict[str, Any]:
    """The LoRA's tensors in diffusers' own names or, where these do not fit them all, in PEFT's.

    diffusers' names are for attention alone. Of a file in both layouts it would load one half.
    """
    from diffusers.utils import convert_state_dict_to_diffusers

    converted = convert_state_dict_to_diffusers(dict(state))
    return state if any(name.endswith(DOWN[1]) for name in converted) else converted


def adapter_files(lora: bytes | None, tokens: Mapping[str, Any], metadata: Mapping[str, Any]) -> dict[str, bytes]:
    """file name -> bytes of a set of adapters. tokens: placeholder -> vectors [k, width]."""
    from safetensors.torch import save

    files = {}
    for token, rows in tokens.items():
        files[token_file(token)] = save({token: rows.detach().cpu().float().contiguous()})
    if lora is not None:
        files[LORA_FILE] = lora
    return {**files, METADATA_FILE: to_json(dict(metadata))}


def check_adapters(
    folder: Path, method: str, tokens: Mapping[str, str], base: BaseIdentity, dataset_hash: str | None
) -> dict[str, Any]:
    """The adapters' metadata with `method`, `tokens` and `sha256` of what was checked.

    UserError for anything that would load wrong, or not at all. tokens: class -> placeholder,
    empty where the method has none. dataset_hash: of the run's data set; adapters trained on
    another one may have seen images that this run holds out.
    """
    where = f"adapters.path: {folder}"
    if not folder.is_dir():
        raise UserError(f"{where}: no such folder")
    metadata = _metadata(folder / METADATA_FILE, where)
    parts = method.split("+")
    placeholders = sorted(set(tokens.values())) if "ti" in parts else []
    needed = [LORA_FILE] if "lora" in parts else []
    needed += sorted(map(token_file, placeholders))
    _refuse_missing(folder, needed, where)
    base_path = base_folder(Base(path=base.repository, revision=base.revision))
    if "lora" in parts:
        _check_lora(folder / LORA_FILE, where, base_path / "unet")
    for token in placeholders:
        _check_token(folder / token_file(token), token, where, base_path / "text_encoder")
    _refuse_other_training(metadata, base, dataset_hash, where)
    files = {name: (folder / name).read_bytes() for name in needed}
    return {**metadata, "method": method, "tokens": dict(tokens), "sha256": adapter_sha256(files)}


def _metadata(path: Path, where: str) -> dict[str, Any]:
    """adapter.json's content; nothing where other software wrote the adapters without one."""
    try:
        return json.loads(path.read_text()) if path.is_file() else {}
    except ValueError as error:
        raise UserError(f"{where}: {METADATA_FILE} is not JSON: {error}") from error


def _refuse_missing(folder: Path, needed: Iterable[str], where: str) -> None:
    """UserError for the first missing file; it names pickles, which may be what is meant."""
    for name in needed:
        if not (folder / name).is_file():
            pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
            there = f"{', '.join(pickles)} there: pickles are never loaded, convert to safetensors"
            raise UserError(f"{where}: {name} is missing" + (f" ({there})" if pickles else ""))


def _refuse_other_training(
    metadata: Mapping[str, Any], base: BaseIdentity, dataset_hash: str | None, where: str
) -> None:
    """UserError where adapter.json names another base or another data-set split."""
    if metadata.get("base") and metadata["base"]["files"] != base.files:
        other = metadata["base"]["repository"]
        raise UserError(f"{where}: trained on another base ({other}) than base.path's")
    trained_on = metadata.get("dataset_hash")
    if dataset_hash and trained_on and trained_on != dataset_hash:
        raise UserError(
            f"{where}: trained on another data-set split ({trained_on[:12]}) than this run's "
            f"({dataset_hash[:12]}), so it may have seen images that are held out here"
        )


def _header(path: Path) -> dict[str, list[int]]:
    """tensor -> shape, from the header of a safetensors file; UserError where it is none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{path} is no safetensors file: {error}") from error


def _check_lora(path: Path, where: str, unet: Path) -> None:
    """UserError unless every first matrix names a layer of this base's UNet and fits it.

    diffusers loads nothing from a LoRA of another layout, and says nothing.
    """
    where = f"{where}: {path.name}"
    header = _header(path)
    widths = _input_widths(header)
    if not widths:
        raise UserError(
            f"{where} would load nothing: none of its {len(header)} tensors is named "
            f"unet.*{DOWN[0]} or unet.*{DOWN[1]} (an older layout; load it with the diffusers "
            "version that wrote it and save it again)"
        )
    base_shapes: dict[str, list[int]] = {}
    for file in unet.glob("*.safetensors"):
        base_shapes |= _header(file)
    for module, width in widths.items():
        name = f"{module}.weight"
        if name not in base_shapes or not name.endswith(UNET_WEIGHTS):
            raise UserError(f"{where} is for unet.{module}, which this base lacks: another base's")
        here = base_shapes[name][1]
        if width != here:
            raise UserError(f"{where}: unet.{module} is {width} wide, here {here}: another base's")
    if not _changes_something(path):
        raise UserError(f"{where} would load nothing: its second matrices are zero, as before training")


def _input_widths(header: Mapping[str, list[int]]) -> dict[str, int]:
    """UNet module -> input width, of a LoRA file's tensors."""
    widths: dict[str, int] = {}
    for name, shape in header.items():
        for ending in DOWN:
            if name.startswith("unet.") and name.endswith(ending):
                widths[name.removeprefix("unet.").removesuffix(ending)] = shape[1]
    return widths


def _changes_something(path: Path) -> bool:
    """Whether any second matrix of the UNet is not zero."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 (it is no dict)
            if name.startswith("unet.") and name.endswith(UP) and bool(file.get_tensor(name).any()):
                return True
    return False


def _check_token(path: Path, token: str, where: str, text_encoder: Path) -> None:
    """UserError unless the file holds this token alone, in vectors of this base's width."""
    where = f"{where}: {path.name}"
    header = _header(path)
    if set(header) != {token}:
        raise UserError(f"{where} holds {', '.join(header)}, not the token {token} alone")
    width = json.loads((text_encoder / "config.json").read_text())["hidden_size"]
    if header[token][-1] != width:
        wide = header[token][-1]
        raise UserError(f"{where}: vectors of {wide}, this base has {width}: another base's")


def token_vectors(folder: Path, tokens: Iterable[str]) -> dict[str, int]:
    """token -> number of embedding vectors in its file."""
    counts = {}
    for token in tokens:
        shape = _header(folder / token_file(token))[token]
        counts[token] = shape[0] if len(shape) > 1 else 1
    return counts


def load_adapters(pipe: Any, folder: Path, method: str, tokens: Mapping[str, str]) -> None:
    """Load checked adapters into a pipeline and fuse the LoRA; RuntimeError if nothing changed."""
    if "ti" in method.split("+"):
        for token in sorted(set(tokens.values())):
            _load_token(pipe, folder / token_file(token), token)
    if "lora" in method.split("+"):
        _load_lora(pipe, folder)


def _load_token(pipe: Any, path: Path, token: str) -> None:
    import torch
    from safetensors.torch import load_file

    vectors = load_file(path)[token]
    if vectors.ndim == 1:  # of a single vector, stored by other software
        vectors = vectors[None]
    pipe.load_textual_inversion({token: vectors}, token=token)
    ids = pipe.tokenizer.convert_tokens_to_ids(vector_names(token, len(vectors)))
    loaded = pipe.text_encoder.get_input_embeddings().weight[ids]
    if not torch.equal(loaded, vectors.to(loaded)):
        raise RuntimeError(f"{path}: the token {token} did not reach the text encoder")


def _load_lora(pipe: Any, folder: Path) -> None:
    import torch

    before = {}
    for name, weight in pipe.unet.named_parameters():
        if name.endswith(UNET_WEIGHTS):
            before[name] = weight.detach().clone()
    pipe.load_lora_weights(folder, weight_name=LORA_FILE, use_safetensors=True, local_files_only=True)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    after = dict(pipe.unet.named_parameters())
    # diffusers can load a LoRA, change nothing and say nothing, so the weights are compared.
    for module in _input_widths(_header(folder / LORA_FILE)):
        name = f"{module}.weight"
        if name in before and not torch.equal(before[name], after[name]):
            return
    raise RuntimeError(
        f"{folder / LORA_FILE}: loading it changed nothing of the UNet's {len(before)} layers that a LoRA may be on"
    )
