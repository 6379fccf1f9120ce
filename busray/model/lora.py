"""LoRA files in the layouts that people have, checked against a base and as diffusers loads them.

diffusers loads nothing, or a part, from some layouts and says nothing. So every tensor is assigned
to a layer of the base here, and a file in another layout is written anew.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from busray.model.base_files import BaseFiles
from busray.model.inspect_base import some
from busray.model.weights import Header, NoWeights, read_header
from busray.records import UserError

UNET, TEXT = "unet", "text_encoder"
# How the names of a LoRA's first matrices end: in diffusers' layout, in PEFT's, in kohya's.
DOWN = (".lora.down.weight", ".lora_A.weight", ".lora_linear_layer.down.weight")
# Likewise of its second matrices, which are zero before training.
UP = (".lora.up.weight", ".lora_B.weight", ".lora_linear_layer.up.weight")
HALVES = re.compile(
    r"(?P<module>.+?)(?:[._]lora(?:_linear_layer)?\.(?P<half>down|up)|\.lora_(?P<other>down|up|A|B)(?:\.\w+)?)\.weight"
)
MAGNITUDE = re.compile(r"(?P<module>.+?)\.lora_magnitude_vector(?:\.weight)?")
"""DoRA's third tensor of a layer: the norm of each of its outputs."""
PREFIXES = {
    "unet.": ("diffusers", UNET),
    "text_encoder.": ("diffusers", TEXT),
    "lora_unet_": ("kohya", UNET),
    "lora_te_": ("kohya", TEXT),
    "lora_te1_": ("kohya", TEXT),
    "base_model.model.": ("PEFT", None),
    "": ("diffusers before 0.17", None),
}
"""How a tensor's name begins -> (layout, network); None where the name does not say the network."""
OTHER_METHODS = {
    "hada_w": "LoHa (LyCORIS)",
    "lokr_": "LoKr (LyCORIS)",
    "oft_": "OFT",
    "glora": "GLoRA (LyCORIS)",
    "lora_mid": "LoCon with a third matrix (LyCORIS)",
    "dora_scale": "DoRA in kohya's layout",
    ".diff": "whole weights (LyCORIS full)",
    "lora_embedding_": "LoRA of an embedding",
}
"""What else than LoRA's two matrices is in such files, by a part of a tensor's name."""
OTHER_BASES = {
    "lora_te2_": "SDXL's",
    "text_encoder_2.": "SDXL's",
    "transformer.": "a transformer's (SD3, Flux)",
    "lora_transformer_": "a transformer's (SD3, Flux)",
    "diffusion_model.": "ComfyUI's, mostly of a transformer (SD3, Flux)",
}
ABSURD = 1000.0
"""A LoRA that changes a layer by more than so many times the layer's own norm."""


@dataclass
class Pair:
    """The matrices of one layer: the layer's weight becomes W + alpha / rank * up @ down."""

    down: str | None = None  # names of the tensors in the file
    up: str | None = None
    alpha: str | None = None
    magnitude: str | None = None  # DoRA's


Layers = dict[tuple[str, str], Pair]  # (network, layer of the base) -> its matrices


class LoraFile:
    """A LoRA file whose tensors are assigned to the layers of a base.

    UserError where it is none, or not of this base. where: begins every message.
    """

    def __init__(self, path: Path, where: str, base: BaseFiles) -> None:
        self.path, self.where = path, f"{where}: {path.name}"
        self.header = header_of(path, where)
        self.base_shapes = {network: layer_shapes(base, network) for network in (UNET, TEXT)}
        self.layers: Layers = {}
        self.layouts: set[str] = set()
        self._refuse_others()
        self._assign()
        self._refuse_shapes()

    def _refuse(self, problem: str) -> NoReturn:
        raise UserError(f"{self.where} {problem}")

    def _refuse_others(self) -> None:
        """UserError for what is no LoRA, and for LoRA of another family of bases."""
        names = list(self.header.tensors)
        for part, method in OTHER_METHODS.items():
            if found := [name for name in names if part in name]:
                self._refuse(f"holds {method} ({len(found)} of {len(names)} tensors): busray loads LoRA alone")
        for beginning, whose in OTHER_BASES.items():
            if found := [name for name in names if name.startswith(beginning)]:
                self._refuse(f"is {whose}: {len(found)} of {len(names)} tensors begin with {beginning}")

    def _assign(self) -> None:
        by_flat_name = {}
        for network, shapes in self.base_shapes.items():
            for layer in shapes:
                by_flat_name[network, layer.replace(".", "_")] = layer
        unknown: list[str] = []
        no_lora: list[str] = []
        for name in self.header.tensors:
            half, module = _half(name)
            if half is None:
                no_lora.append(name)
                continue
            prefix = next(prefix for prefix in PREFIXES if module.startswith(prefix))
            layout, network = PREFIXES[prefix]
            found = _find_layer(module.removeprefix(prefix), network, by_flat_name)
            if found is None:
                unknown.append(module)
                continue
            self.layouts.add(layout)
            pair = self.layers.setdefault(found, Pair())
            if getattr(pair, half) is not None:
                self._refuse(f"has two tensors for one layer: {getattr(pair, half)} and {name}")
            setattr(pair, half, name)
        self._refuse_unassigned(sorted(set(unknown)), no_lora)

    def _refuse_unassigned(self, unknown: list[str], no_lora: list[str]) -> None:
        total = len(self.header.tensors)
        if not self.layers and not unknown:
            self._refuse(f"would load nothing: none of its {total} tensors is a LoRA's, such as {some(no_lora)}")
        if unknown:
            wide = " (SDXL's names)" if any("input_blocks" in name for name in unknown) else ""
            self._refuse(
                f"is another base's: {len(unknown)} of its {len(unknown) + len(self.layers)} layers{wide}, such as "
                f"{unknown[0]}, are none of this base, which lacks them"
            )
        if no_lora:
            self._refuse(f"has {len(no_lora)} of {total} tensors that are not LoRA's: {some(no_lora)}")
        for missing, there in (("down", "second (up, lora_B)"), ("up", "first (down, lora_A)")):
            alone = [_name(key) for key, pair in self.layers.items() if getattr(pair, missing) is None]
            if alone:
                self._refuse(
                    f"is damaged: {len(alone)} of {len(self.layers)} layers have only their {there} matrix, "
                    f"such as {alone[0]}"
                )

    def _refuse_magnitudes(self) -> None:
        """UserError for DoRA of which diffusers would load a part, or on more layers than it is."""
        dora = [key for key, pair in self.layers.items() if pair.magnitude is not None]
        if text := [key for key in dora if key[0] == TEXT]:
            self._refuse(
                f"has DoRA on {len(text)} layers of the text encoder, whose magnitudes diffusers does not load"
            )
        plain = [key for key in self.layers if key[0] == UNET and key not in dora]
        if dora and plain:
            self._refuse(
                f"is damaged: {len(plain)} of {len(dora) + len(plain)} layers of the UNet have no magnitude (DoRA), "
                f"such as {_name(plain[0])}"
            )
        for network, layer in dora:
            weight = self.base_shapes[network][layer]
            shape = self.header.tensors[self.layers[network, layer].magnitude or ""].shape
            if list(shape) != ([weight[0]] if len(weight) == 2 else [1, weight[0], 1, 1]):
                self._refuse(f"is damaged: {network}.{layer} has a magnitude of {list(shape)}, here {list(weight)}")

    def _refuse_shapes(self) -> None:
        self._refuse_magnitudes()
        tensors = self.header.tensors
        for (network, layer), pair in self.layers.items():
            assert pair.down is not None and pair.up is not None
            down, up = tensors[pair.down].shape, tensors[pair.up].shape
            weight, name = self.base_shapes[network][layer], f"{network}.{layer}"
            if not len(down) == len(up) == len(weight) or 0 in (*down, *up):
                self._refuse(f"is damaged: {name} has matrices of {list(down)} and {list(up)}, here {list(weight)}")
            if pair.alpha is not None and math.prod(tensors[pair.alpha].shape) != 1:
                self._refuse(f"is damaged: {pair.alpha} is no single number")
            if down[1] != weight[1]:
                self._refuse(f"is another base's: {name} is {down[1]} wide, here {weight[1]}")
            if up[0] != weight[0]:
                self._refuse(f"is another base's: {name} has {up[0]} outputs, here {weight[0]}")
            if up[1] != down[0] or down[2:] != weight[2:] or any(side != 1 for side in up[2:]):
                self._refuse(f"is damaged: {name} has matrices of {list(down)} and {list(up)}, which do not fit")

    @property
    def standard(self) -> bool:
        """Whether diffusers loads the file, as it is, into all of its layers."""
        styles = set()
        for (network, layer), pair in self.layers.items():
            if pair.alpha is not None or pair.magnitude not in (None, f"{network}.{layer}.lora_magnitude_vector"):
                return False
            for style, (down, up) in enumerate(zip(DOWN, UP, strict=True)):
                plain = f"{network}.{layer}"
                old = f"{network}.text_model.{layer}"
                if (pair.down, pair.up) in ((plain + down, plain + up), (old + down, old + up)):
                    styles.add((network, style))
                    break
            else:
                return False
        return len([style for style in styles if style[0] == UNET]) <= 1

    def magnitudes(self) -> dict[tuple[str, str], Any]:
        """Layer -> DoRA's magnitude of it, read from the file; empty for plain LoRA."""
        from safetensors.torch import load_file

        tensors = load_file(self.path)
        return {key: tensors[pair.magnitude] for key, pair in self.layers.items() if pair.magnitude is not None}

    def counts(self) -> dict[str, int]:
        """Network -> how many of its layers have a LoRA."""
        found = {UNET: 0, TEXT: 0}
        for network, _ in self.layers:
            found[network] += 1
        return found

    def missing_layers(self) -> dict[str, list[str]]:
        """What the file lost, as it seems: a kind of layers -> those that it is not on.

        A LoRA is trained on all layers of a kind (say every attn1.to_q) or, on purpose, on few.
        Where it is on at least a quarter of a kind, the others seem to be lost. PEFT's metadata say
        for certain what it was trained on.
        """
        lost: dict[str, list[str]] = {}
        for (network, kind), (there, gone) in self._by_kind().items():
            trained = set(self._trained_on(network))
            certain = [layer for layer in gone if layer in trained]
            seeming = gone if 3 * there >= len(gone) else certain
            if seeming:
                lost[f"{network}'s {kind}"] = seeming
        return lost

    def partial(self) -> str:
        """On how many layers of its kinds the file is, in words; empty if it is on all."""
        counts = self._by_kind().values()
        there, gone = sum(n for n, _ in counts), sum(len(layers) for _, layers in counts)
        return f"{self.where} is on {there} of {there + gone} layers of their kinds; the others stay" if gone else ""

    def _by_kind(self) -> dict[tuple[str, str], tuple[int, list[str]]]:
        """(network, kind) -> layers that the file is on, and the layers of that kind it is not on.

        Kinds are those of the file's own layers and of what PEFT's metadata say.
        """
        found: dict[tuple[str, str], tuple[int, list[str]]] = {}
        for network, shapes in self.base_shapes.items():
            own = [layer for there, layer in self.layers if there == network]
            kinds = {kind_of_layer(layer) for layer in (*own, *self._trained_on(network))}
            for layer in shapes:
                kind = kind_of_layer(layer)
                if kind in kinds:
                    there, gone = found.get((network, kind), (0, []))
                    is_there = (network, layer) in self.layers
                    found[network, kind] = (there + is_there, gone if is_there else [*gone, layer])
        return found

    def _trained_on(self, network: str) -> list[str]:
        targets = self.peft_metadata().get(f"{network}.target_modules")
        if not isinstance(targets, list):
            return []
        there = self.base_shapes[network]
        return [layer for layer in there if any(layer == t or layer.endswith(f".{t}") for t in map(str, targets))]

    def peft_metadata(self) -> dict[str, Any]:
        """PEFT's settings as diffusers keeps them in a file's header, by `<network>.<setting>`."""
        try:
            found = json.loads(self.header.metadata.get("lora_adapter_metadata", "{}"))
        except ValueError:
            found = None
        if not isinstance(found, dict):
            self._refuse("has a header whose lora_adapter_metadata is no JSON")
        return found or {}

    def layers_tensors(self, peft_config: Mapping[str, Any] | None) -> dict[tuple[str, str], tuple[Any, Any, float]]:
        """Layer -> (down [r, in, ...], up [out, r, ...], scale), read from the file.

        peft_config: adapter_config.json of PEFT's own layout, which has the scale.
        """
        from safetensors.torch import load_file

        tensors, found, own = load_file(self.path), {}, self.peft_metadata()
        for (network, layer), pair in self.layers.items():
            down, up = tensors[pair.down or ""].float(), tensors[pair.up or ""].float()
            rank = len(down)
            scale = 1.0
            if pair.alpha is not None:
                scale = float(tensors[pair.alpha]) / rank
            else:
                settings = peft_config
                if settings is None and f"{network}.lora_alpha" in own:
                    settings = {key: own.get(f"{network}.{key}") for key in PEFT_SCALE}
                try:
                    scale = 1.0 if settings is None else _peft_scale(settings, layer, rank)
                except (TypeError, ValueError, AttributeError, re.error) as error:
                    self._refuse(f"has settings of PEFT that say no scale (lora_alpha, alpha_pattern): {error}")
            found[network, layer] = (down, up, scale)
        return found


PEFT_SCALE = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora")


def _peft_scale(settings: Mapping[str, Any], layer: str, rank: int) -> float:
    alpha = settings.get("lora_alpha") or 8  # PEFT's default
    for pattern, value in (settings.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", layer):
            alpha = value
    return float(alpha) / (rank**0.5 if settings.get("use_rslora") else rank)


def _half(name: str) -> tuple[str | None, str]:
    """(which field of a Pair a tensor of this name is, the name of its layer in the file)."""
    if match := HALVES.fullmatch(name):
        return {"down": "down", "A": "down", "up": "up", "B": "up"}[match["half"] or match["other"]], match["module"]
    if match := MAGNITUDE.fullmatch(name):
        return "magnitude", match["module"]
    return ("alpha" if name.endswith(".alpha") else None), name.removesuffix(".alpha")


def kind_of_layer(layer: str) -> str:
    """What layers of the same role share: their name without numbers of blocks."""
    parts = layer.split(".")
    roles = [part for part in parts if part in ("attn1", "attn2", "self_attn", "mlp", "ff")]
    tail = parts[-2:] if parts[-1].isdigit() else parts[-1:]
    return ".".join([*roles[-1:], *tail])


def _name(key: tuple[str, str]) -> str:
    return ".".join(key)


def _find_layer(
    module: str, network: str | None, by_flat_name: Mapping[tuple[str, str], str]
) -> tuple[str, str] | None:
    """The (network, layer) that a module's name means, in any of the layouts."""
    flat = module.replace(".processor.", ".").replace(".", "_").removeprefix("text_model_")
    for candidate in (UNET, TEXT) if network is None else (network,):
        names = [flat, f"{flat}_0"]  # before 0.17 diffusers wrote to_out for to_out.0
        if candidate == TEXT:
            for old, new in (("to_q", "q_proj"), ("to_k", "k_proj"), ("to_v", "v_proj"), ("to_out", "out_proj")):
                if flat.endswith(old):
                    names.append(flat.removesuffix(old) + new)
        for name in names:
            if (candidate, name) in by_flat_name:
                return candidate, by_flat_name[candidate, name]
    return None


def layer_shapes(base: BaseFiles, network: str) -> dict[str, tuple[int, ...]]:
    """Layer -> shape of its weight, of what a LoRA can be on: linear layers and convolutions."""
    shapes = {}
    for name, shape in base.shapes(network).items():
        layer = name.removeprefix("text_model.").removesuffix(".weight")
        if name.endswith(".weight") and len(shape) in (2, 4) and not layer.endswith("_embedding"):
            shapes[layer] = shape
    return shapes


def header_of(path: Path, where: str) -> Header:
    """A safetensors file's header; UserError where it is none."""
    try:
        return read_header(path)
    except NoWeights as error:
        raise UserError(f"{where}: {path.name} is {error}") from error
    except OSError as error:
        raise UserError(f"{where}: {path.name} cannot be read: {error.strerror or error}") from error


def written_anew(file: LoraFile, tensors: Mapping[tuple[str, str], tuple[Any, Any, float]]) -> bytes:
    """The LoRA as a file that diffusers loads whole, its scale in the second matrices."""
    from safetensors.torch import save

    out = {}
    for (network, layer), (down, up, scale) in sorted(tensors.items()):
        down_name, up_name = (".lora_A.weight", ".lora_B.weight") if network == UNET else (DOWN[2], UP[2])
        name = f"{network}.{layer}"
        out[name + down_name] = down.contiguous()
        out[name + up_name] = (up * scale).contiguous()
    for (network, layer), magnitude in file.magnitudes().items():
        out[f"{network}.{layer}.lora_magnitude_vector"] = magnitude.contiguous()
    return save(out, {"format": "pt"})


def refuse_numbers(file: LoraFile, tensors: Mapping[tuple[str, str], tuple[Any, Any, float]]) -> None:
    """UserError for values that are no numbers."""
    import torch

    bad = []
    for key, (down, up, scale) in tensors.items():
        if not (bool(torch.isfinite(down).all()) and bool(torch.isfinite(up).all()) and abs(scale) < float("inf")):
            bad.append(_name(key))
    for key, magnitude in file.magnitudes().items():
        if not bool(torch.isfinite(magnitude).all()):
            bad.append(_name(key))
    if bad:
        raise UserError(
            f"{file.where} is damaged: NaN or infinity in {len(bad)} of {len(tensors)} layers, such as {bad[0]}"
        )


def refuse_values(file: LoraFile, tensors: Mapping[tuple[str, str], tuple[Any, Any, float]], base: BaseFiles) -> None:
    """UserError for values that are no numbers, that change nothing, or far too much."""
    refuse_numbers(file, tensors)
    sizes = {key: change_norm(*pair) for key, pair in tensors.items()}
    if not any(sizes.values()):
        raise UserError(f"{file.where} would load nothing: its second matrices are zero, as before training")
    norms = weight_norms(base, tensors)
    worst = max(sizes, key=lambda key: sizes[key] / max(norms[key], 1e-12))
    ratio = sizes[worst] / max(norms[worst], 1e-12)
    if ratio > ABSURD:
        raise UserError(
            f"{file.where} is damaged: it changes {_name(worst)} by {ratio:,.0f} times the layer's own norm "
            "(a trained LoRA by less than once)"
        )


def change_norm(down: Any, up: Any, scale: float) -> float:
    """Frobenius norm of scale * up @ down, without making the product."""
    a, b = down.flatten(1).double(), up.flatten(1).double()
    squared = float(((b.T @ b) * (a @ a.T)).sum())
    return abs(scale) * max(squared, 0.0) ** 0.5


def weight_norms(base: BaseFiles, layers: Mapping[tuple[str, str], Any]) -> dict[tuple[str, str], float]:
    """Frobenius norms of these layers' weights; they alone are read from the base's files."""
    from safetensors import safe_open

    wanted: dict[Path, dict[str, tuple[str, str]]] = {}
    for network in {network for network, _ in layers}:
        for name, file, own in base.stored(network):
            key = (network, name.removeprefix("text_model.").removesuffix(".weight"))
            if key in layers and name.endswith(".weight"):
                wanted.setdefault(file, {})[own] = key
    norms = {}
    for file, names in wanted.items():
        with safe_open(file, framework="pt") as opened:
            for own, key in names.items():
                norms[key] = float(opened.get_tensor(own).float().norm())
    return norms
