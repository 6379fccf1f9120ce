"""Which files of a base are loaded: one set of weights for each network, and what configures them.

Only these are hashed and looked at. Whatever else lies beside them (other variants, a README, a
safety checker) decides nothing.
"""

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from busray.model.weights import Header, NoWeights, pointer_problem, read_header

NETWORKS = ("text_encoder", "unet", "vae")
PARTS = ("scheduler", "text_encoder", "tokenizer", "unet", "vae")
SUFFIXES = (".json", ".txt", ".safetensors")
INDEX = "model_index.json"
SINGLE = "checkpoint.safetensors"  # a base of one file in its identity, whatever the file's name
CONFIG_OF = {
    "scheduler": "scheduler_config.json",
    "text_encoder": "config.json",
    "unet": "config.json",
    "vae": "config.json",
}
STEM = {
    "text_encoder": "model",
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
}
"""How the weights' file of each network is named, without suffix and variant."""
TOKENIZER_FILES = (
    "added_tokens.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
)
VARIANTS = ("fp16", "bf16", "fp32", "non_ema", "ema")
"""Variants that are loaded where the plain file is not there, the first one found."""
PICKLES = (".bin", ".ckpt", ".pt", ".pth")


@dataclass(frozen=True)
class Weights:
    """The file or files of one network that are loaded."""

    variant: str | None  # as diffusers names it; None for the plain file
    index: str | None  # name of the file that lists the shards, where there are several
    files: tuple[str, ...]  # names in the network's folder


def choose_weights(part: str, names: Collection[str]) -> Weights | None:
    """The weights that are loaded from a network's folder with these files; None without any."""
    stem, there = STEM[part], set(names)
    for variant in (None, *VARIANTS):
        single = f"{stem}.safetensors" if variant is None else f"{stem}.{variant}.safetensors"
        index = f"{stem}.safetensors.index{'' if variant is None else f'.{variant}'}.json"
        shard = re.compile(rf"{stem}{'' if variant is None else rf'[.]{variant}'}-\d+-of-\d+[.]safetensors")
        shards = tuple(sorted(name for name in there if shard.fullmatch(name)))
        # transformers takes the single file where both are there, diffusers the shards.
        if single in there and not (part != "text_encoder" and index in there):
            return Weights(variant, None, (single,))
        if index in there:
            return Weights(variant, index, shards)
    return None


def loaded_files(names: Collection[str]) -> set[str]:
    """Those of a base's files (by path in its folder) that are loaded."""
    by_part: dict[str, set[str]] = {part: set() for part in PARTS}
    for name in names:
        part, _, rest = name.partition("/")
        if part in by_part and "/" not in rest:
            by_part[part].add(rest)
    loaded = {INDEX}
    for part, there in by_part.items():
        wanted = set(TOKENIZER_FILES) if part == "tokenizer" else {CONFIG_OF[part]}
        weights = choose_weights(part, there) if part in STEM else None
        if weights is not None:
            wanted |= {*weights.files, *([weights.index] if weights.index else [])}
        loaded |= {f"{part}/{name}" for name in wanted}
    if choose_weights("unet", by_part["unet"]) is None:
        loaded.add(SINGLE)
    return loaded & set(names)


class BaseFiles:
    """A base's folder, read as far as its configurations and the headers of its weights.

    problems: what keeps it from being loaded, all of it, each with the file's name.
    """

    def __init__(self, folder: Path, vae: Path | None = None) -> None:
        self.folder, self.vae = folder, vae  # vae: a folder that takes the place of folder/vae
        self.problems: list[str] = []
        self.headers: dict[str, dict[str, Header]] = {}  # part -> file -> header
        self.configs: dict[str, dict[str, Any]] = {}  # part, or INDEX -> its configuration
        if not (folder / INDEX).is_file():
            self.problems.append(f"{folder} has no {INDEX}, so it is no base in diffusers' layout; {_there(folder)}")
        else:
            self._read_config(INDEX, folder / INDEX)
        # A base of another kind lacks parts because of its kind; that is the reason to name.
        self.kind = other_kind(self.configs.get(INDEX, {}))
        if self.kind:
            self.problems.append(self.kind)
        elif not self.problems:
            for part in PARTS:
                self._read_part(part)

    def part_folder(self, part: str) -> Path:
        return self.vae if part == "vae" and self.vae else self.folder / part

    def names(self) -> list[str]:
        """The files that are loaded, by path in diffusers' layout, sorted."""
        there = []
        for part in ("", *PARTS):
            for path in self.part_folder(part).glob("*"):
                if path.is_file() and path.suffix in SUFFIXES:
                    there.append(f"{part}/{path.name}".lstrip("/"))
        return sorted(loaded_files(there))

    def entries(self) -> Iterator[tuple[str, Path]]:
        """(key in the base's identity, file) of what is loaded."""
        for name in self.names():
            part, _, file = name.rpartition("/")
            yield name, self.part_folder(part) / file

    def written(self) -> dict[str, bytes]:
        """Files that the base needs and lacks, made here, by path in diffusers' layout."""
        return {}

    def header(self, key: str) -> Header | None:
        """The header of the file of this key; None where it has no weights."""
        part, _, file = key.rpartition("/")
        return self.headers.get(part, {}).get(file)

    def stored(self, part: str) -> Iterator[tuple[str, Path, str]]:
        """(name, file, name in the file) of a network's tensors."""
        for file, header in self.headers.get(part, {}).items():
            for name in header.tensors:
                yield name, self.part_folder(part) / file, name

    def weights(self, part: str) -> Weights | None:
        return choose_weights(part, [path.name for path in self.part_folder(part).glob("*")])

    def shapes(self, part: str) -> dict[str, tuple[int, ...]]:
        """Tensor -> shape, of a network's weights."""
        found: dict[str, tuple[int, ...]] = {}
        for header in self.headers.get(part, {}).values():
            found |= header.shapes()
        return found

    def largest_token(self) -> int | None:
        """The largest number of the tokenizer's vocabulary; None where it cannot be read."""
        folder = self.folder / "tokenizer"
        try:
            if (folder / "tokenizer.json").is_file():
                vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
            else:
                vocabulary = json.loads((folder / "vocab.json").read_text())
            return max(vocabulary.values())
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            return None

    def _read_part(self, part: str) -> None:
        folder = self.part_folder(part)
        if not folder.is_dir():
            self.problems.append(f"{self.folder} has no {part}; {_there(self.folder)}")
            return
        if part == "tokenizer":
            self._look_at_tokenizer(folder)
        else:
            self._read_config(part, folder / CONFIG_OF[part])
        if part in STEM:
            self._read_weights(part)

    def _read_config(self, key: str, path: Path) -> None:
        if not path.is_file():
            above = self.folder if path.is_relative_to(self.folder) else path.parent
            self.problems.append(f"{above} has no {path.relative_to(above)}; {_there(path.parent)}")
            return
        try:
            data = path.read_bytes()
            if problem := pointer_problem(data):
                self.problems.append(f"{path} is {problem}")
                return
            config = json.loads(data)
            if not isinstance(config, dict):
                raise ValueError("no JSON object")
            self.configs[key] = config
        except (OSError, ValueError) as error:
            self.problems.append(f"{path} is no configuration of diffusers: {error}")

    def _look_at_tokenizer(self, folder: Path) -> None:
        names = {path.name for path in folder.iterdir()}
        if "tokenizer.json" not in names and not {"vocab.json", "merges.txt"} <= names:
            lacks = "neither tokenizer.json nor vocab.json with merges.txt"
            self.problems.append(f"{folder} has {lacks}; {_there(folder)}")
        for name in sorted(names.intersection(TOKENIZER_FILES)):
            with open(folder / name, "rb") as file:
                if problem := pointer_problem(file.read(64)):
                    self.problems.append(f"{folder / name} is {problem}")

    def _read_weights(self, part: str) -> None:
        folder = self.part_folder(part)
        weights = self.weights(part)
        if weights is None:
            self.problems.append(_no_weights(part, folder))
            return
        self.headers[part] = {}
        for name in self._listed_shards(folder, weights):
            try:
                self.headers[part][name] = read_header(folder / name)
            except NoWeights as error:
                self.problems.append(f"{folder / name} is {error}")
            except OSError as error:
                self.problems.append(f"{folder / name} cannot be read: {error.strerror or error}")

    def _listed_shards(self, folder: Path, weights: Weights) -> list[str]:
        """The names of the weights' files, less those that are not there, which are a problem."""
        if weights.index is None:
            return list(weights.files)
        path = folder / weights.index
        try:
            wanted = sorted(set(json.loads(path.read_text())["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            self.problems.append(f"{path} is no list of shards: {error!r}")
            return []
        missing = [name for name in wanted if not (folder / name).is_file()]
        if missing:
            self.problems.append(f"{folder} lacks {len(missing)} of {len(wanted)} shards: {', '.join(missing)}")
        return [name for name in wanted if name not in missing]


def _no_weights(part: str, folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    pickles = [name for name in names if name.endswith(PICKLES)]
    if pickles:
        return (
            f"{folder} has no .safetensors file but {', '.join(pickles)}; pickled weights (.bin, .ckpt) are not "
            "loaded: convert them with `save_pretrained(safe_serialization=True)`"
        )
    if named := [name for name in names if name.endswith(".safetensors")]:
        return f"{folder} has no {STEM[part]}.safetensors, the name that diffusers loads; there is {', '.join(named)}"
    return f"{folder} has no .safetensors file; {_there(folder)}"


def _there(folder: Path) -> str:
    """What a folder holds, for a message; where a base lies one or two levels down, its path."""
    if not folder.is_dir():
        return f"no folder {folder}"
    for pattern in ("*/", "*/*/"):
        if below := sorted(folder.glob(pattern + INDEX)):
            return f"there is one in {below[0].parent}: give that"
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return f"there is {shown}" if names else "it is empty"


CLASSES = {
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
}
"""The classes that busray works with, as model_index.json names them."""
UNUSED = ("feature_extractor", "image_encoder", "safety_checker")


def other_kind(index: dict[str, Any]) -> str | None:
    """Why a base of this model_index.json is of another kind; None for Stable Diffusion 1 and 2."""
    parts = {}
    for name, value in index.items():
        if isinstance(value, list) and len(value) == 2 and value[1] is not None:
            parts[name] = str(value[1])
    others = [name for name in parts if name not in (*PARTS, *UNUSED)]
    for name, classes in CLASSES.items():
        if name in parts and parts[name] not in classes:
            others.append(f"{name} of the class {parts[name]}")
    if others:
        kind = index.get("_class_name")
        return (
            f"{INDEX}: a {kind if isinstance(kind, str) else 'pipeline'} (with {', '.join(others)}); busray "
            "draws with Stable Diffusion 1.x and 2.x (StableDiffusionPipeline)"
        )
    return None
