"""Bases whose layers are known without a file of them: what an adapter of each can attach to."""

from functools import cache
from pathlib import Path
from typing import Any

from busray.config import Base
from busray.model.adapters import peft_config
from busray.model.base import base_files
from busray.model.base_files import BaseFiles
from busray.model.lora import LoraFile
from busray.records import UserError

WIDTHS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 128: "the embedded base `tiny`"}
"""Width of a text encoder's vectors -> the base that has it."""
TINY, SD1, SD2 = WIDTHS[128], WIDTHS[768], WIDTHS[1024]


class Family(BaseFiles):
    """A base's layers and their shapes, without weights."""

    def __init__(self, unet: dict[str, Any], text: dict[str, Any]) -> None:
        import torch
        from diffusers import UNet2DConditionModel
        from transformers import CLIPTextConfig, CLIPTextModel

        with torch.device("meta"):
            networks = {
                "unet": UNet2DConditionModel(**unet),
                "text_encoder": CLIPTextModel(CLIPTextConfig(**text)),
            }
        self._shapes = {}
        for part, network in networks.items():
            self._shapes[part] = {name: tuple(weight.shape) for name, weight in network.named_parameters()}

    def shapes(self, part: str) -> dict[str, tuple[int, ...]]:
        return self._shapes[part]


@cache
def family(name: str) -> BaseFiles:
    """Layers of `tiny`, of Stable Diffusion 1.x or of 2.x. No shape depends on heads."""
    if name == TINY:
        return base_files(Base(path="tiny"))
    if name == SD1:
        text = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
        return Family({"cross_attention_dim": 768}, text)
    text = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
    return Family({"cross_attention_dim": 1024, "use_linear_projection": True}, text)


def lora_of_family(path: Path, where: str, base: str | None) -> tuple[LoraFile, str]:
    """(the LoRA file with its layers, the base that has them).

    base: as base.path; None tries the known families. UserError where none of them has all of its
    layers, with the reason for the one that has most.
    """
    if base is not None:
        return LoraFile(path, where, base_files(Base(path=base))), base
    reasons = {}
    for name in (TINY, SD1, SD2):
        try:
            return LoraFile(path, where, family(name)), name
        except UserError as error:
            reasons[name] = str(error)
    if len(set(reasons.values())) == 1:
        raise UserError(reasons[SD1])
    raise UserError(f"{reasons[SD1]} ({SD1}), nor of {SD2} or {TINY}: give its base with --base")


def tensors_of(file: LoraFile) -> dict[tuple[str, str], tuple[Any, Any, float]]:
    """Layer -> (down, up, scale), with PEFT's scale from the settings beside the file."""
    return file.layers_tensors(peft_config(file.path, str(file.path.parent)) if "PEFT" in file.layouts else None)
