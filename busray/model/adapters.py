"""LoRA and learned tokens: where they attach, how they are stored, and whether loading them works.

They are stored as diffusers loads them: `pytorch_lora_weights.safetensors`, and one
`<token>.safetensors` for each learned token. busray's `adapter.json` lies beside them.
Nothing here reads a pickle. LoRA: Hu et al. 2021, arXiv 2106.09685.
"""

import json
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from busray.config import Adapters, Base
from busray.failures import missing_folder
from busray.identity import fingerprint, sha256_bytes
from busray.model.base import BaseIdentity, base_files, same_base, vector_names
from busray.model.base_files import PICKLES, BaseFiles
from busray.model.inspect_base import some, text_config
from busray.model.lora import DOWN, LoraFile, header_of, refuse_values, written_anew
from busray.model.noise_schedule import SCHEDULER, offered_schedule
from busray.model.weights import FLOATS
from busray.records import UserError, to_json

LORA_FILE = "pytorch_lora_weights.safetensors"
METADATA_FILE = "adapter.json"
# Of networks that training changed whole, as diffusers names them.
DECODER_FOLDER, UNET_FOLDER = "vae", "unet"
PEFT_FILE = "adapter_model.safetensors"
PEFT_CONFIG = "adapter_config.json"
EMB_PARAMS = "emb_params"  # the name of a token's vectors in A1111's files
UNET_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
UNET_CONVOLUTIONS = ["conv1", "conv2"]  # of the residual blocks
UNET_FEED_FORWARD = ["ff.net.0.proj", "ff.net.2"]
TEXT_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj"]
LONGEST_TOKEN = 16  # embedding vectors of a token, as adapters.vectors allows
ABSURD_TOKEN = 1000.0
"""A token whose vectors are longer than so many times the base's longest one."""


def token_file(token: str) -> str:
    """`<us-benign>` -> `us-benign.safetensors`."""
    return f"{token.strip('<>')}.safetensors"


def adapter_sha256(files: Mapping[str, bytes], schedule: Mapping[str, Any] | None = None) -> str:
    """One digest for all of a set of adapters that decides pixels.

    schedule: what they change of the base's noise schedule. Nothing else in adapter.json decides a
    pixel.
    """
    weights = {name: data for name, data in files.items() if name.endswith(".safetensors")}
    content: dict[str, Any] = {name: _content(data) for name, data in weights.items()}
    return fingerprint({**content, SCHEDULER: dict(schedule)} if schedule else content)


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
    common["use_rslora"] = settings.rslora
    targets = list(UNET_TARGETS)
    targets += UNET_CONVOLUTIONS if settings.convolutions else []
    targets += UNET_FEED_FORWARD if settings.feed_forward else []
    # PEFT draws the first matrices from torch's global generator.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe.unet.add_adapter(LoraConfig(target_modules=targets, use_dora=settings.dora, **common))
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


@dataclass(frozen=True)
class Offered:
    """Adapters of a folder that were checked against a base."""

    record: dict[str, Any]  # adapter.json's content with `method`, `tokens` and `sha256`
    files: dict[str, bytes]  # as they are stored and as diffusers loads them; adapter.json if there
    vectors: dict[str, int]  # token -> number of its embedding vectors
    remark: str = ""  # what is not wrong and yet may not be what the user means


def offered_adapters(
    folder: Path,
    method: str,
    tokens: Mapping[str, str],
    base: BaseIdentity,
    dataset_hash: str | None,
    *,
    settings: Adapters | None = None,
    known: bool = False,
) -> Offered:
    """The adapters of this folder, in the layout that diffusers loads.

    UserError for anything that would load wrong, or not at all. tokens: class -> placeholder,
    empty where the method has none. dataset_hash: of the run's data set; adapters trained on
    another one may have seen images that this run holds out. settings: say for which noise schedule
    adapters without adapter.json were trained. known: the run has adopted adapters
    already, so that a LoRA on a part of the layers is not asked about again.
    """
    where = f"adapters.path: {folder}"
    if not folder.is_dir():
        raise missing_folder("adapters.path", folder)
    metadata = _metadata(folder / METADATA_FILE, where)
    parts = method.split("+")
    placeholders = sorted(set(tokens.values())) if "ti" in parts else []
    lora = find_lora(folder, where) if "lora" in parts else None
    _refuse_missing(folder, map(token_file, placeholders), where)
    files_of_base = base_files(Base(path=base.repository, revision=base.revision))
    files: dict[str, bytes] = {}
    vectors, remark = {}, ""
    if lora is not None:
        files[LORA_FILE], remark = _lora_bytes(lora, where, files_of_base, metadata, known)
    for token in placeholders:
        rows = _token_rows(folder / token_file(token), token, where, files_of_base)
        vectors[token] = 1 if rows.ndim == 1 else len(rows)
        files[token_file(token)] = _token_bytes(folder / token_file(token), token, rows)
    if (folder / DECODER_FOLDER).exists():
        from busray.model.tuned_networks import offered_network  # imports torch

        files |= offered_network(DECODER_FOLDER, "autoencoder", folder, files_of_base, where)
    if "full" in parts:
        from busray.model.tuned_networks import offered_network  # imports torch

        files |= offered_network(UNET_FOLDER, "UNet", folder, files_of_base, where)
    elif (folder / UNET_FOLDER).exists():
        whole = "full+ti" if placeholders else "full"
        raise UserError(
            f"{where}: a whole UNet is there ({UNET_FOLDER}/), and adapters.method is {method}: give {whole}"
        )
    _refuse_other_training(metadata, base, dataset_hash, where)
    schedule = offered_schedule(metadata, settings or Adapters(), files_of_base.configs["scheduler"], where)
    digest = adapter_sha256(files, schedule)
    record = {**metadata, "method": method, "tokens": dict(tokens), SCHEDULER: schedule, "sha256": digest}
    if metadata:
        files[METADATA_FILE] = (folder / METADATA_FILE).read_bytes()
    return Offered(record, files, vectors, remark)


def find_lora(folder: Path, where: str) -> Path:
    """The folder's LoRA file, under diffusers' name, PEFT's, or any other if it is the only one."""
    for name in (LORA_FILE, PEFT_FILE):
        if (folder / name).is_file():
            return folder / name
    found = []
    for path in sorted(folder.glob("*.safetensors")):
        if any("lora" in name for name in header_of(path, where).tensors):
            found.append(path)
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise UserError(f"{where}: several LoRA files ({names}): name the one that is meant {LORA_FILE}")
    if not found:
        _refuse_missing(folder, [LORA_FILE], where)
    return found[0]


def _lora_bytes(path: Path, where: str, base: BaseFiles, metadata: Mapping[str, Any], known: bool) -> tuple[bytes, str]:
    """(the LoRA as diffusers loads it whole, what to say of it). The file's own bytes, if they are
    so already."""
    file = LoraFile(path, where, base)
    tensors = file.layers_tensors(peft_config(path, where) if "PEFT" in file.layouts else None)
    refuse_values(file, tensors, base)
    missing, layers = file.missing_layers(), len(file.layers)
    if missing and not known and metadata.get("layers") != layers:
        lost = [f"{len(gone)} of {kind}" for kind, gone in missing.items()]
        raise UserError(
            f"{file.where} is on a part of the layers: {layers} are there, {some(lost)} are not. Give the whole "
            f'file; if it was trained on these alone, say so in {METADATA_FILE} beside it: {{"layers": {layers}}}'
        )
    return path.read_bytes() if file.standard else written_anew(file, tensors), file.partial()


def peft_config(path: Path, where: str) -> Mapping[str, Any]:
    """PEFT's settings beside a file of its own layout, which say at which scale it is loaded."""
    beside = path.parent / PEFT_CONFIG
    if not beside.is_file():
        raise UserError(f"{where}: {path.name} is in PEFT's layout, so {PEFT_CONFIG} is needed beside it (its scale)")
    settings = _metadata(beside, where)
    if settings.get("peft_type", "LORA") != "LORA":
        raise UserError(f"{where}: {PEFT_CONFIG} is of {settings.get('peft_type')}: busray loads LoRA alone")
    return settings


def _metadata(path: Path, where: str) -> dict[str, Any]:
    """adapter.json's content; nothing where other software wrote the adapters without one."""
    try:
        found = json.loads(path.read_text()) if path.is_file() else {}
    except ValueError as error:
        raise UserError(f"{where}: {path.name} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{where}: {path.name} is no JSON object")
    return found


def _refuse_missing(folder: Path, needed: Iterable[str], where: str) -> None:
    """UserError for the first missing file; it names pickles, which may be what is meant."""
    for name in needed:
        if not (folder / name).is_file():
            raise UserError(f"{where}: {name} is missing; {_there(folder, name)}")


def _there(folder: Path, name: str) -> str:
    """What lies in the folder instead of this file, and what to do about it."""
    names = sorted(path.name for path in folder.iterdir())
    pickles = [there for there in names if there.endswith(PICKLES)]
    if pickles:
        # Only tensors are read; what is refused then has code in it.
        tensors = f"load('{pickles[0]}', weights_only=True)"
        if pickles[0].endswith(".pt") and name != LORA_FILE:  # A1111's layout of a token
            tensors = f"{{'emb_params': {tensors}['string_to_param']['*'].detach()}}"
        python = f"from torch import load; from safetensors.torch import save_file; save_file({tensors}, '{name}')"
        command = f'python -c "{python}"'
        return f"{', '.join(pickles)} there: pickles are never loaded; convert with `{command}`"
    return f"there is {', '.join(names)}" if names else "the folder is empty"


def _refuse_other_training(
    metadata: Mapping[str, Any], base: BaseIdentity, dataset_hash: str | None, where: str
) -> None:
    """UserError where adapter.json names another base or another data-set split."""
    if metadata.get("base") and not same_base(metadata["base"]["files"], base.files):
        other = metadata["base"]["repository"]
        raise UserError(f"{where}: trained on another base ({other}) than base.path's")
    trained_on = metadata.get("dataset_hash")
    if dataset_hash and trained_on and trained_on != dataset_hash:
        raise UserError(
            f"{where}: trained on another data-set split ({trained_on[:12]}) than this run's "
            f"({dataset_hash[:12]}), so it may have seen images that are held out here"
        )


def _token_rows(path: Path, token: str, where: str, base: BaseFiles) -> Any:
    """A learned token's vectors [k, width] or [width]; UserError unless they fit this base.

    The file holds this token alone, or A1111's `emb_params`.
    """
    from safetensors.torch import load_file

    header, where = header_of(path, where), f"{where}: {path.name}"
    names = list(header.tensors)
    if {"clip_l", "clip_g"} & set(names):
        raise UserError(f"{where} is for SDXL (it holds {', '.join(names)})")
    if len(names) > 1:
        raise UserError(
            f"{where} holds {some(names)}, not the token {token} alone: save each token in a file of its own, "
            f"named {token_file('<name>')}"
        )
    if names not in ([token], [EMB_PARAMS]):
        raise UserError(
            f"{where} holds {', '.join(names) or 'nothing'}, not the token {token} alone: give the class that token "
            "(classes.<class>.token), or the right file"
        )
    (tensor,) = header.tensors.values()
    width = text_config(base.configs["text_encoder"]).get("hidden_size", 512)
    if tensor.dtype not in FLOATS or len(tensor.shape) not in (1, 2) or 0 in tensor.shape:
        raise UserError(f"{where} is damaged: {tensor.dtype} values of the shape {list(tensor.shape)} are no vectors")
    if tensor.shape[-1] != width:
        raise UserError(f"{where}: vectors of {tensor.shape[-1]}, this base has {width}: another base's")
    if len(tensor.shape) == 2 and tensor.shape[0] > LONGEST_TOKEN:
        raise UserError(f"{where}: {tensor.shape[0]} vectors; a token has at most {LONGEST_TOKEN}")
    (rows,) = load_file(path).values()
    _refuse_rows(rows, where, base)
    return rows


def _refuse_rows(rows: Any, where: str, base: BaseFiles) -> None:
    """UserError for vectors that are no numbers, or far from those of the base's words."""
    import torch
    from safetensors import safe_open

    if not bool(torch.isfinite(rows).all()):
        raise UserError(f"{where} is damaged: NaN or infinity in its vectors")
    if not bool(rows.any()):
        raise UserError(f"{where} is damaged: its vectors are all zeros")
    for name, file, own in base.stored("text_encoder"):
        if name.endswith("token_embedding.weight"):
            with safe_open(file, framework="pt") as opened:
                longest = float(opened.get_tensor(own).float().norm(dim=1).max())
            ratio = float(rows.float().reshape(-1, rows.shape[-1]).norm(dim=1).max()) / longest
            if ratio > ABSURD_TOKEN:
                raise UserError(f"{where} is damaged: a vector {ratio:,.0f} times as long as the base's longest")


def _token_bytes(path: Path, token: str, rows: Any) -> bytes:
    """The token as diffusers loads it; the file's own bytes where it is so already."""
    from safetensors.torch import save

    own = list(header_of(path, str(path.parent)).tensors) == [token]
    return path.read_bytes() if own else save({token: rows.contiguous()})


def load_adapters(pipe: Any, folder: Path, method: str, tokens: Mapping[str, str], lora_scale: float = 1.0) -> None:
    """Load checked adapters into a pipeline and fuse the LoRA; RuntimeError if nothing changed.

    A whole UNet takes the place of the base's. A tuned decoder beside them is part of them.
    lora_scale: share of the LoRA's change.
    """
    if (folder / DECODER_FOLDER).exists():
        from busray.model.tuned_networks import load_network  # imports torch

        load_network(DECODER_FOLDER, pipe.vae, folder)
    if "full" in method.split("+"):
        from busray.model.tuned_networks import load_network  # imports torch

        load_network(UNET_FOLDER, pipe.unet, folder)
    if "ti" in method.split("+"):
        for token in sorted(set(tokens.values())):
            _load_token(pipe, folder / token_file(token), token)
    if "lora" in method.split("+"):
        _load_lora(pipe, folder, lora_scale)


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


def _load_lora(pipe: Any, folder: Path, scale: float) -> None:
    import torch

    pipe.load_lora_weights(folder, weight_name=LORA_FILE, use_safetensors=True, local_files_only=True)
    # diffusers can leave layers out, change nothing and say nothing, so the layers are counted.
    reached, before = 0, []
    for network in (pipe.unet, pipe.text_encoder):
        for module in network.modules():
            if getattr(module, "lora_A", None):
                reached += 1
                before.append((module, module.get_base_layer().weight.detach().clone()))
    wanted = sum(name.endswith(DOWN) for name in header_of(folder / LORA_FILE, str(folder)).tensors)
    if reached != wanted:
        raise RuntimeError(f"{folder / LORA_FILE}: diffusers loaded {reached} of its {wanted} layers")
    pipe.fuse_lora(lora_scale=scale)
    changed = sum(not torch.equal(module.get_base_layer().weight, weight) for module, weight in before)
    pipe.unload_lora_weights()
    if not changed:
        raise RuntimeError(f"{folder / LORA_FILE}: loading it changed nothing of its {wanted} layers")
