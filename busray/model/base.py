"""Loading a pinned base: `tiny` of the package, a folder in diffusers' layout, a file of the
original Stable Diffusion 1 code, or a hub id.

Only safetensors are loaded, no remote code and no custom pipelines. There is no safety checker: it
judges photographs.
"""

import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from busray import config
from busray.failures import missing_folder
from busray.identity import sha256_bytes, sha256_file
from busray.model.base_files import NETWORKS, PARTS, PICKLES, SUFFIXES, BaseFiles, loaded_files
from busray.model.device import number_format
from busray.model.inspect_base import kind_problems, shape_problems, text_config
from busray.model.single_file import SingleFile
from busray.model.weights import NoWeights, scan
from busray.records import UserError

TINY = Path(__file__).parent / "tiny"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class BaseIdentity:
    """Where a base came from, and the SHA-256 of each file that is loaded, by path in its
    folder."""

    repository: str
    revision: str | None
    files: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def same_base(files: Mapping[str, str], others: Mapping[str, str]) -> bool:
    """Whether two bases are one, by the digests of their files.

    Older runs and adapters also recorded files that are not loaded; these are not compared.
    """
    loaded = loaded_files(files)
    return loaded == loaded_files(others) and all(files[name] == others[name] for name in loaded)


def identify_base(settings: config.Base, *, values: bool = True) -> BaseIdentity:
    """Find, look at and hash a base; UserError if it is missing, or busray cannot draw with it.

    All that the configurations, the headers and the values of the weights show is said at once.
    The weights are read once, for their digest and to find NaN and infinity in them, which takes
    about twice as long as the digest alone. values=False leaves the latter out, for a run that
    has recorded the base's digests.
    """
    files = base_files(settings)
    _refuse(files.folder, kind_problems(files))
    _refuse_size(files, settings.size)
    digests, problems = {}, []
    for name, path in files.entries():
        header = files.header(name)
        try:
            if header is None or not values:
                digests[name] = sha256_file(path)
                continue
            scanned = scan(path, header)
        except NoWeights as error:
            problems.append(f"{name} is {error}")
            continue
        except OSError as error:
            problems.append(f"{name} cannot be read: {error.strerror or error}")
            continue
        digests[name] = scanned.sha256
        if scanned.not_finite:
            n, first = len(scanned.not_finite), scanned.not_finite[0]
            problems.append(f"{name}: NaN or infinity in {n} of {len(header.tensors)} tensors, such as {first}")
        if scanned.blank:
            problems.append(f"{name}: its end is all zeros, as in a download that was broken off")
    if problems:
        problems.append("download the file again, or save it again from the software that made it")
    _refuse(files.folder, problems)
    digests |= {name: sha256_bytes(data) for name, data in files.written().items()}
    return BaseIdentity(settings.path, settings.revision, digests)


def inspect_base(settings: config.Base) -> None:
    """UserError where weights are missing, or have other shapes than the configurations say.

    It imports torch and diffusers, so it is for a new run; a run keeps the files of its base.
    """
    if settings.path != "tiny" or settings.vae:  # `tiny` comes with the package
        files = base_files(settings)
        _refuse(files.folder, shape_problems(files))


def base_folder(settings: config.Base) -> Path:
    """The base's local folder; a hub id is fetched at its pinned commit.

    UserError where it is missing, is not in diffusers' layout, or has pickled weights only.
    """
    return base_files(settings).folder


def base_files(settings: config.Base) -> BaseFiles:
    """The base's files, a hub id's at its pinned commit; UserError where one is not readable."""
    folder = TINY if settings.path == "tiny" else Path(settings.path)
    vae = Path(settings.vae) if settings.vae else None
    if vae is not None and not vae.is_dir():
        raise missing_folder("base.vae", vae, "give the folder of an AutoencoderKL in diffusers' layout")
    if folder.is_file():
        if vae is not None:
            raise UserError("base.vae: base.path is one file with an autoencoder in it: give base.path as a folder")
        files: BaseFiles = SingleFile(folder)
    else:
        files = BaseFiles(folder if folder.is_dir() else _fetch(settings), vae)
    # What can be told of the kind is told at once, too.
    _refuse(files.folder, [*files.problems, *([] if files.kind else kind_problems(files))] if files.problems else [])
    return files


def _refuse(folder: Path, problems: list[str]) -> None:
    """UserError that says all problems; one of them alone stands in one line."""
    if len(problems) == 1:
        (problem,) = problems
        raise UserError(f"base.path: {problem}" if str(folder) in problem else f"base.path: {folder}: {problem}")
    if problems:
        lines = "".join(f"\n  {problem}" for problem in problems)
        raise UserError(f"base.path: {folder} cannot be used:{lines}")


def _refuse_size(files: BaseFiles, size: int) -> None:
    """UserError where a square of this side cannot be halved as often as the networks do it."""
    # Every block of the autoencoder and of the UNet but the last one halves the side.
    halvings = 0
    for part in ("vae", "unet"):
        blocks = files.configs[part].get("block_out_channels")
        if not isinstance(blocks, list):
            path = files.folder / part / "config.json"
            raise UserError(f"base.path: {path} is no configuration of diffusers: it has no block_out_channels")
        halvings += len(blocks) - 1
    if size % 2**halvings:
        raise UserError(f"base.size: {size} is no multiple of this base's {2**halvings}")


def _fetch(settings: config.Base) -> Path:
    if settings.path.endswith((".safetensors", *PICKLES)):
        raise UserError(f"base.path: no file {settings.path}")
    if not HUB_ID.fullmatch(settings.path) or settings.path.startswith("."):
        known = "give `tiny`, a folder, a .safetensors file, or a hub id such as owner/name"
        raise missing_folder("base.path", Path(settings.path), known)
    if settings.revision is None:
        fix = "so pin it by its commit hash (40 hex digits)"
        raise UserError(f"base.revision: {settings.path} is a hub id, {fix}")
    from huggingface_hub import snapshot_download

    wanted = ["model_index.json"]
    for part in PARTS:
        wanted += [f"{part}/*{suffix}" for suffix in SUFFIXES]
    # Further copies of the same weights, which are not loaded where the plain ones are there.
    copies = ["*.fp16.*", "*.non_ema.*"]
    repository, commit = settings.path, settings.revision
    try:
        folder = Path(snapshot_download(repository, revision=commit, allow_patterns=wanted, ignore_patterns=copies))
        if not all(any((folder / part).glob("*.safetensors")) for part in NETWORKS):
            folder = Path(snapshot_download(repository, revision=commit, allow_patterns=wanted))
        return folder
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

        files = base_files(settings)
        with _layout(files) as folder:
            self.tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        # A tokenizer that does not say its limit has one of 10**30; the encoder has places for so
        # many.
        places = text_config(files.configs["text_encoder"]).get("max_position_embeddings", 77)
        self.limit: int = min(self.tokenizer.model_max_length, places)
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
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    kind = getattr(torch, number_format(dtype or settings.dtype, device))
    files = base_files(settings)
    pipe = _loaded(files, kind)
    pipe.set_progress_bar_config(disable=True)
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.requires_grad_(False).eval()
    return pipe.to(device)


def _loaded(files: BaseFiles, kind: Any) -> Any:
    """diffusers' pipeline of these files, its weights as this type."""
    from diffusers import StableDiffusionPipeline

    absent: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "image_encoder": None}
    common = {"dtype": kind, "local_files_only": True, "requires_safety_checker": False, **absent}
    if isinstance(files, SingleFile):
        with _layout(files) as folder:
            return StableDiffusionPipeline.from_single_file(str(files.folder), config=str(folder), **common)
    return StableDiffusionPipeline.from_pretrained(
        files.folder, use_safetensors=True, **common, **_variants(files, kind)
    )


@contextmanager
def _layout(files: BaseFiles) -> Iterator[Path]:
    """A folder in diffusers' layout with the base's configurations and tokenizer."""
    made = files.written()
    if not made:
        yield files.folder
        return
    with tempfile.TemporaryDirectory(prefix="busray-base-") as folder:
        for name, data in made.items():
            (Path(folder) / name).parent.mkdir(exist_ok=True)
            (Path(folder) / name).write_bytes(data)
        yield Path(folder)


def _variants(files: BaseFiles, kind: Any) -> dict[str, Any]:
    """The networks whose weights lie there as a variant only (fp16), or elsewhere (base.vae), as
    this type."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    classes: dict[str, Any] = {"text_encoder": CLIPTextModel, "unet": UNet2DConditionModel, "vae": AutoencoderKL}
    loaded = {}
    for part in NETWORKS:
        weights = files.weights(part)
        folder = files.part_folder(part)
        if weights is not None and (weights.variant is not None or folder != files.folder / part):
            loaded[part] = classes[part].from_pretrained(
                folder, variant=weights.variant, dtype=kind, use_safetensors=True, local_files_only=True
            )
    return loaded
