"""Loading a pinned base: `tiny` of the package, a local folder in diffusers' layout, or a hub id.

Only safetensors are loaded, no remote code and no custom pipelines. There is no safety checker: it
judges photographs.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from busray import config
from busray.identity import sha256_file
from busray.records import UserError

TINY = Path(__file__).parent / "tiny"
PARTS = ("scheduler", "text_encoder", "tokenizer", "unet", "vae")
SUFFIXES = (".json", ".txt", ".safetensors")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class BaseIdentity:
    """Where a base came from, and the SHA-256 of each of its files, by path in its folder."""

    repository: str
    revision: str | None
    files: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def identify_base(settings: config.Base) -> BaseIdentity:
    """Find and hash a base; UserError if it is missing, unsafe, or cannot draw base.size."""
    folder = base_folder(settings)
    _refuse_size(folder, settings.size)
    files: dict[str, str] = {}
    for part in (".", *PARTS):
        for path in sorted((folder / part).glob("*")):
            if path.is_file() and path.suffix in SUFFIXES:
                files[path.relative_to(folder).as_posix()] = sha256_file(path)
    return BaseIdentity(settings.path, settings.revision, files)


def base_folder(settings: config.Base) -> Path:
    """The base's local folder; a hub id is fetched at its pinned commit.

    UserError where it is missing, is not in diffusers' layout, or has pickled weights only.
    """
    folder = TINY if settings.path == "tiny" else Path(settings.path)
    if not folder.is_dir():
        folder = _fetch(settings)
    for name in ("model_index.json", *PARTS):
        if not (folder / name).exists():
            wrong = f"{folder} has no {name}, so it is no base in diffusers' layout"
            raise UserError(f"base.path: {wrong}")
    for part in ("unet", "vae", "text_encoder"):
        if not any((folder / part).glob("*.safetensors")):
            raise UserError(
                f"base.path: {folder / part} has no .safetensors file; pickled weights (.bin, .ckpt) "
                "are not loaded: convert them with `save_pretrained(safe_serialization=True)`"
            )
    return folder


def _refuse_size(folder: Path, size: int) -> None:
    """UserError where a square of this side cannot be halved as often as the networks do it."""
    # Every block of the autoencoder and of the UNet but the last one halves the side.
    halvings = 0
    for part in ("vae", "unet"):
        path = folder / part / "config.json"
        try:
            halvings += len(json.loads(path.read_text())["block_out_channels"]) - 1
        except (OSError, ValueError, KeyError) as error:
            wrong = f"{path} is no configuration of diffusers: {error!r}"
            raise UserError(f"base.path: {wrong}") from error
    if size % 2**halvings:
        raise UserError(f"base.size: {size} is no multiple of this base's {2**halvings}")


def _fetch(settings: config.Base) -> Path:
    if not HUB_ID.fullmatch(settings.path) or settings.path.startswith("."):
        known = "give `tiny`, a folder, or a hub id such as owner/name"
        raise UserError(f"base.path: no folder {settings.path}; {known}")
    if settings.revision is None:
        fix = "so pin it by its commit hash (40 hex digits)"
        raise UserError(f"base.revision: {settings.path} is a hub id, {fix}")
    from huggingface_hub import snapshot_download

    wanted = ["model_index.json"]
    for part in PARTS:
        wanted += [f"{part}/*{suffix}" for suffix in SUFFIXES]
    # Further copies of the same weights, which are not loaded.
    copies = ["*.fp16.safetensors", "*.non_ema.safetensors"]
    repository, commit = settings.path, settings.revision
    try:
        folder = snapshot_download(repository, revision=commit, allow_patterns=wanted, ignore_patterns=copies)
        return Path(folder)
    except Exception as error:  # the hub client has many kinds of failure; all have the same fix
        raise UserError(
            f"base.path: cannot fetch {repository} at {commit}: {str(error).splitlines()[0]}; "
            "give a local folder where the hub is out of reach"
        ) from error


def vector_names(token: str, vectors: int) -> list[str]:
    """diffusers' names of a learned token's vectors in the tokenizer: <t>, <t>_1, <t>_2, ..."""
    return [token, *(f"{token}_{i}" for i in range(1, vectors))]


class TextPlaces:
    """How many of the `limit` positions of the base's text encoder a text takes.

    The encoder drops what is beyond without a message. vectors: learned token -> number of its
    vectors; each takes a position.
    """

    def __init__(self, settings: config.Base, vectors: Mapping[str, int]) -> None:
        from transformers import CLIPTokenizer

        folder = base_folder(settings) / "tokenizer"
        self.tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        self.limit: int = self.tokenizer.model_max_length
        self.names = {token: vector_names(token, count) for token, count in vectors.items()}
        for names in self.names.values():
            self.tokenizer.add_tokens(names)

    def __call__(self, text: str) -> int:
        for token, names in self.names.items():
            text = text.replace(token, " ".join(names))
        return len(self.tokenizer(text, verbose=False).input_ids)


def load_pipeline(settings: config.Base, device: str = "cpu", dtype: str | None = None) -> Any:
    """A StableDiffusionPipeline in evaluation mode; dtype defaults to settings.dtype."""
    import torch
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    kind = getattr(torch, dtype or settings.dtype)
    absent = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipe = StableDiffusionPipeline.from_pretrained(
        base_folder(settings), dtype=kind, use_safetensors=True, local_files_only=True, **absent
    )
    pipe.set_progress_bar_config(disable=True)
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.requires_grad_(False).eval()
    return pipe.to(device)
