"""What a file of adapters holds: LoRA of any layout that busray reads, and learned tokens."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from busray.identity import sha256_file
from busray.model.adapters import EMB_PARAMS, LORA_FILE, METADATA_FILE, PEFT_CONFIG, find_lora
from busray.model.base_files import PICKLES
from busray.model.families import WIDTHS, lora_of_family, tensors_of
from busray.model.lora import change_norm, header_of, kind_of_layer
from busray.model.weights import FLOATS, Header
from busray.records import UserError

BASE_IN_HEADER = ("ss_sd_model_name", "modelspec.architecture", "ss_base_model_version")
"""Where kohya's trainers write the base, the most exact first."""


@dataclass(frozen=True)
class LoraDescription:
    """A LoRA file as its tensors, its header and the files beside it show it."""

    file: str
    sha256: str
    layout: str  # such as diffusers, kohya, PEFT
    fits: str  # the base that has all of its layers
    ranks: tuple[int, ...]
    scales: tuple[float, ...]  # alpha / rank, or alpha / sqrt(rank) of rsLoRA
    layers: dict[str, int]  # network -> number of layers
    targets: dict[str, int]  # kind of layer -> number of layers
    method: str  # LoRA, DoRA
    norm: float  # Frobenius norm of all changes together
    largest: tuple[str, float]  # the layer that is changed most, and the norm of its change
    base: str | None  # as the files beside it say, or its header
    training: str | None  # digest of the data-set split, or of the weights as kohya writes it

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def rows(self) -> list[tuple[str, str]]:
        """(what, value) for a table."""
        layer, norm = self.largest
        rows = [
            ("holds", f"{self.method} in the layout of {self.layout}"),
            ("fits", self.fits),
            ("rank", ", ".join(map(str, self.ranks))),
            ("scale (alpha / rank)", ", ".join(f"{scale:g}" for scale in self.scales)),
        ]
        rows += [(f"layers of the {network}", str(count)) for network, count in self.layers.items()]
        rows += [(f"on {kind}", str(count)) for kind, count in self.targets.items()]
        rows += [("norm of the change", f"{self.norm:.4g}"), ("largest in", f"{layer} ({norm:.4g})")]
        return rows + _origin(self.base, self.training, self.sha256)


@dataclass(frozen=True)
class TokenDescription:
    """A learned token's file."""

    file: str
    sha256: str
    token: str | None  # None: the file names none, as A1111's
    vectors: int
    width: int
    fits: str | None  # the base whose text encoder has this width
    norms: tuple[float, ...]  # of each vector
    base: str | None
    training: str | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def rows(self) -> list[tuple[str, str]]:
        """(what, value) for a table."""
        rows = [
            ("holds", "a learned token"),
            ("token", self.token or "named by its file, as A1111 does"),
            ("vectors", f"{self.vectors} of {self.width}"),
            ("fits", self.fits or f"none that busray knows has vectors of {self.width}"),
            ("norms", ", ".join(f"{norm:.4g}" for norm in self.norms)),
        ]
        return rows + _origin(self.base, self.training, self.sha256)


def _origin(base: str | None, training: str | None, sha256: str) -> list[tuple[str, str]]:
    return [("base", base or "not stated"), ("trained on", training or "not stated"), ("SHA-256 of the file", sha256)]


def describe(path: Path, base: str | None = None) -> list[LoraDescription | TokenDescription]:
    """What a file holds, or each file of a folder of adapters. base: as base.path.

    UserError where one is none that busray reads.
    """
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        if not files:
            find_lora(path, str(path))  # says what lies there instead
        return [_describe_file(file, base) for file in files]
    if not path.is_file():
        raise UserError(f"{path}: no file there")
    if path.suffix in PICKLES:
        raise UserError(f"{path} is a pickle: make a safetensors file of it with `busray adapters convert`")
    return [_describe_file(path, base)]


def _describe_file(path: Path, base: str | None) -> LoraDescription | TokenDescription:
    header = header_of(path, str(path.parent))
    beside = _beside(path)
    if token_rows(header):
        return _describe_token(path, header, beside)
    file, fits = lora_of_family(path, str(path.parent), base)
    tensors = tensors_of(file)
    norms = {".".join(key): change_norm(*pair) for key, pair in tensors.items()}
    largest = max(norms, key=lambda name: norms[name])
    targets = Counter(f"{network}'s {kind_of_layer(layer)}" for network, layer in tensors)
    metadata = header.metadata
    stated = next((metadata[key] for key in BASE_IN_HEADER if metadata.get(key)), None)
    return LoraDescription(
        file=path.name,
        sha256=sha256_file(path),
        layout=" and ".join(sorted(file.layouts)),
        fits=fits,
        ranks=tuple(sorted({len(down) for down, _, _ in tensors.values()})),
        scales=tuple(sorted({round(scale, 6) for _, _, scale in tensors.values()})),
        layers={network: count for network, count in file.counts().items() if count},
        targets=dict(sorted(targets.items())),
        method="DoRA" if file.magnitudes() else "LoRA",
        norm=sum(norm**2 for norm in norms.values()) ** 0.5,
        largest=(largest, norms[largest]),
        base=_base(beside) or stated,
        training=beside.get("dataset_hash") or metadata.get("sshs_model_hash"),
    )


def _describe_token(path: Path, header: Header, beside: Mapping[str, Any]) -> TokenDescription:
    from safetensors.torch import load_file

    (name,) = header.tensors
    (rows,) = load_file(path).values()
    rows = rows.reshape(-1, rows.shape[-1]).float()
    return TokenDescription(
        file=path.name,
        sha256=sha256_file(path),
        token=None if name == EMB_PARAMS else name,
        vectors=len(rows),
        width=rows.shape[1],
        fits=WIDTHS.get(rows.shape[1]),
        norms=tuple(rows.norm(dim=1).tolist()),
        base=_base(beside),
        training=beside.get("dataset_hash"),
    )


def token_rows(header: Header) -> bool:
    """Whether a file holds one token's vectors and nothing else."""
    if len(header.tensors) != 1:
        return False
    ((name, tensor),) = header.tensors.items()
    return "lora" not in name and len(tensor.shape) in (1, 2) and tensor.dtype in FLOATS


def _beside(path: Path) -> dict[str, Any]:
    """busray's adapter.json or PEFT's settings in the same folder; empty where neither is there."""
    for name in (METADATA_FILE, PEFT_CONFIG):
        if (path.parent / name).is_file() and (name == METADATA_FILE or path.name != LORA_FILE):
            try:
                found = json.loads((path.parent / name).read_text())
            except ValueError as error:
                raise UserError(f"{path.parent / name} is not JSON: {error}") from error
            return found if isinstance(found, dict) else {}
    return {}


def _base(beside: Mapping[str, Any]) -> str | None:
    """The base that adapter.json or PEFT's settings name, with its revision."""
    recorded = beside.get("base")
    if isinstance(recorded, dict):
        revision = recorded.get("revision")
        return f"{recorded['repository']} at {revision}" if revision else str(recorded["repository"])
    return beside.get("base_model_name_or_path")
