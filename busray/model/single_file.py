"""A base in one `.safetensors` file of the original Stable Diffusion 1 code.

Such a file has weights alone. Its configurations follow from their shapes, and what Stable
Diffusion 1 fixes (heads, noise schedule, CLIP's vocabulary) is here, so nothing is fetched.
"""

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from busray.model.base_files import SINGLE, BaseFiles
from busray.model.inspect_base import some
from busray.model.weights import NoWeights, read_header

MERGES = Path(__file__).parent / "clip" / "merges.txt.gz"
PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "cond_stage_model.transformer.text_model.",
}
TITLES = {"unet": "the UNet", "vae": "the autoencoder", "text_encoder": "the text encoder"}
OTHER_KINDS = {
    "conditioner.embedders.": "SDXL",
    "cond_stage_model.model.": "Stable Diffusion 2.x, whose file does not say what its UNet predicts",
    "model.diffusion_model.double_blocks.": "Flux",
    "model.diffusion_model.joint_blocks.": "Stable Diffusion 3",
    "double_blocks.": "Flux",
}
"""How tensors of other families' files begin."""
HEADS = 8  # of the UNet's attention
CLIP_HEAD = 64  # width of a head of CLIP's text encoder
SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}
"""Stable Diffusion 1's noise schedule, as diffusers writes it."""
INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
BEGIN, END = "<|startoftext|>", "<|endoftext|>"


Converted = dict[str, tuple[str, tuple[int, ...]]]
"""diffusers' name of a tensor -> (its name in the file, its shape for diffusers)."""


class SingleFile(BaseFiles):
    """A checkpoint file, read as far as its header; `folder` is the file."""

    def __init__(self, path: Path) -> None:
        self.folder, self.kind, self.vae = path, None, None
        self.problems, self.headers, self.configs = [], {}, {}
        self._converted: dict[str, Converted] = {}
        if path.suffix != ".safetensors":
            self.kind = (
                f"{path} is no .safetensors file; pickled weights (.ckpt, .bin) are not loaded: convert it with "
                "`diffusers.StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER)` and give the folder"
            )
        else:
            self._read(path)
        self.problems += [self.kind] if self.kind else []

    def _read(self, path: Path) -> None:
        try:
            header = read_header(path)
        except NoWeights as error:
            self.kind = f"{path} is {error}"
            return
        self.headers = {"": {SINGLE: header}}
        for beginning, family in OTHER_KINDS.items():
            if any(name.startswith(beginning) for name in header.tensors):
                self.kind = (
                    f"{path} is of {family}; of single files busray loads those of Stable Diffusion 1.x. "
                    "Give a folder in diffusers' layout of Stable Diffusion 1.x or 2.x"
                )
                return
        lost = [part for part, prefix in PREFIXES.items() if not any(n.startswith(prefix) for n in header.tensors)]
        if lost:
            names = some(list(header.tensors))
            lacks = " and ".join(TITLES[part] for part in lost)
            self.kind = f"{path} is no whole base of Stable Diffusion 1: it lacks {lacks}; its tensors are {names}"
            return
        try:
            self.configs = _configurations({part: self._part(part) for part in PREFIXES})
        except (KeyError, IndexError, StopIteration) as error:
            self.kind = f"{path} is no whole base of Stable Diffusion 1: it has no tensor {error}"

    def _part(self, part: str) -> dict[str, tuple[int, ...]]:
        """Tensor without its prefix -> shape."""
        prefix, shapes = PREFIXES[part], self.headers[""][SINGLE].shapes()
        return {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}

    def entries(self) -> Iterator[tuple[str, Path]]:
        yield SINGLE, self.folder

    def written(self) -> dict[str, bytes]:
        """The configurations and the tokenizer, by path in diffusers' layout."""
        files = {"model_index.json": INDEX, "scheduler/scheduler_config.json": SCHEDULER}
        files |= {f"{part}/config.json": self.configs[part] for part in PREFIXES}
        special = {"bos_token": BEGIN, "eos_token": END, "pad_token": END, "unk_token": END}
        files["tokenizer/tokenizer_config.json"] = {
            **special,
            "model_max_length": self.configs["text_encoder"]["max_position_embeddings"],
            "tokenizer_class": "CLIPTokenizer",
        }
        merges = gzip.decompress(MERGES.read_bytes())
        files["tokenizer/vocab.json"] = vocabulary(merges.decode())
        encoded = {name: json.dumps(content, sort_keys=True).encode() for name, content in files.items()}
        return {**encoded, "tokenizer/merges.txt": merges}

    def shapes(self, part: str) -> dict[str, tuple[int, ...]]:
        return {name: shape for name, (_, shape) in self._in_diffusers(part).items()}

    def stored(self, part: str) -> Iterator[tuple[str, Path, str]]:
        for name, (own, _) in self._in_diffusers(part).items():
            yield name, self.folder, own

    def _in_diffusers(self, part: str) -> "Converted":
        if part not in self._converted:
            shapes = self.headers[""][SINGLE].shapes()
            prefix, skipped = PREFIXES["text_encoder"], "embeddings.position_ids"
            if part == "text_encoder":
                names = [name for name in shapes if name.startswith(prefix) and not name.endswith(skipped)]
                own = {f"text_model.{name.removeprefix(prefix)}": (name, shapes[name]) for name in names}
                self._converted[part] = own
            else:
                self._converted[part] = _converted(part, shapes, self.configs[part])
        return self._converted[part]

    def largest_token(self) -> int | None:
        return None  # the vocabulary is CLIP's; its size is compared by shape


def _converted(part: str, shapes: dict[str, tuple[int, ...]], config: dict[str, Any]) -> "Converted":
    """The tensors of a network, by diffusers' own conversion; KeyError for a missing one."""
    import torch
    from diffusers.loaders import single_file_utils

    kinds = {"unet": "convert_ldm_unet_checkpoint", "vae": "convert_ldm_vae_checkpoint"}
    convert = getattr(single_file_utils, kinds[part])
    empty = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    # It renames tensors and cuts some; a cut one still has the storage of the whole.
    owners = {tensor.untyped_storage()._cdata: name for name, tensor in empty.items()}
    found = convert(dict(empty), config)
    return {name: (owners[t.untyped_storage()._cdata], tuple(t.shape)) for name, t in found.items()}


def _configurations(parts: dict[str, dict[str, tuple[int, ...]]]) -> dict[str, dict[str, Any]]:
    """Part -> diffusers' configuration, from the shapes of its tensors. KeyError for a lost one."""
    unet, vae, text = _unet(parts["unet"]), _vae(parts["vae"]), _text(parts["text_encoder"])
    return {
        "model_index.json": dict(INDEX),
        "scheduler": dict(SCHEDULER),
        "unet": unet,
        "vae": vae,
        "text_encoder": text,
    }


def _unet(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    widths, attends, layers = [shapes["input_blocks.0.0.weight"][0]], [False], [0]
    last = max(int(name.split(".")[1]) for name in shapes if name.startswith("input_blocks."))
    for i in range(1, last + 1):
        if f"input_blocks.{i}.0.op.weight" in shapes:  # the end of a block: the side is halved
            widths.append(widths[-1])
            attends.append(False)
            layers.append(0)
            continue
        widths[-1] = shapes[f"input_blocks.{i}.0.in_layers.2.weight"][0]
        attends[-1] = attends[-1] or f"input_blocks.{i}.1.proj_in.weight" in shapes
        layers[-1] += 1
    context = next(shape[1] for name, shape in shapes.items() if name.endswith("attn2.to_k.weight"))
    return {
        "_class_name": "UNet2DConditionModel",
        "attention_head_dim": HEADS,
        "block_out_channels": widths,
        "cross_attention_dim": context,
        "down_block_types": ["CrossAttnDownBlock2D" if there else "DownBlock2D" for there in attends],
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "layers_per_block": layers[0],
        "out_channels": shapes["out.2.weight"][0],
        "sample_size": 64,
        "up_block_types": ["CrossAttnUpBlock2D" if there else "UpBlock2D" for there in reversed(attends)],
    }


def _vae(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    blocks = [re.match(r"encoder\.down\.(\d+)\.block\.(\d+)\.", name) for name in shapes]
    found = {(int(match[1]), int(match[2])) for match in blocks if match}
    n = max(block for block, _ in found) + 1
    widths = [shapes[f"encoder.down.{block}.block.0.conv1.weight"][0] for block in range(n)]
    return {
        "_class_name": "AutoencoderKL",
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * n,
        "in_channels": shapes["encoder.conv_in.weight"][1],
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "layers_per_block": max(layer for _, layer in found) + 1,
        "out_channels": shapes["decoder.conv_out.weight"][0],
        "sample_size": 512,
        "scaling_factor": 0.18215,
        "up_block_types": ["UpDecoderBlock2D"] * n,
    }


def _text(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    rows, width = shapes["embeddings.token_embedding.weight"]
    layers = {name.split(".")[2] for name in shapes if name.startswith("encoder.layers.")}
    return {
        "architectures": ["CLIPTextModel"],
        "bos_token_id": 0,
        "eos_token_id": 2,
        "hidden_act": "quick_gelu",
        "hidden_size": width,
        "intermediate_size": shapes["encoder.layers.0.mlp.fc1.weight"][0],
        "max_position_embeddings": shapes["embeddings.position_embedding.weight"][0],
        "model_type": "clip_text_model",
        "num_attention_heads": max(1, width // CLIP_HEAD),
        "num_hidden_layers": len(layers),
        "pad_token_id": 1,
        "projection_dim": width,
        "vocab_size": rows,
    }


def vocabulary(merges: str) -> dict[str, int]:
    """CLIP's vocabulary, token -> number: bytes, bytes that end a word, merges, begin and end."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    # Bytes that cannot be printed are written as the characters from 256 on (GPT-2's table).
    letters = [*map(chr, printable), *(chr(256 + i) for i in range(len(others)))]
    pairs = ["".join(line.split()) for line in merges.splitlines()[1:] if line]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *pairs, BEGIN, END]
    return {token: i for i, token in enumerate(tokens)}
