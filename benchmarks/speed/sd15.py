"""A base in Stable Diffusion v1.5's shape with random weights: speed does not depend on weights."""

from pathlib import Path
from typing import Any

LAYOUT = Path(__file__).parents[3] / "shared" / "fixtures" / "sd15-layout"
"""The configurations and the tokenizer, beside the project."""


def write_base(folder: Path) -> None:
    """diffusers' layout in float32, 4 GB."""
    import diffusers
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    library: Any = diffusers  # its types do not fit each other
    with torch.device("meta"):
        unet = library.UNet2DConditionModel.from_config(library.UNet2DConditionModel.load_config(LAYOUT / "unet"))
        vae = library.AutoencoderKL.from_config(library.AutoencoderKL.load_config(LAYOUT / "vae"))
    tokenizer = CLIPTokenizer.from_pretrained(LAYOUT / "tokenizer")
    library.StableDiffusionPipeline(
        vae=_filled(vae),
        text_encoder=CLIPTextModel(CLIPTextConfig.from_pretrained(LAYOUT / "text_encoder")),
        tokenizer=tokenizer,
        unet=_filled(unet),
        scheduler=library.PNDMScheduler.from_pretrained(LAYOUT / "scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder, safe_serialization=True)


def _filled(model: Any) -> Any:
    """A model of the meta device, with small random weights."""
    import torch

    model = model.to_empty(device="cpu")
    some = torch.empty(2**20).uniform_(-0.02, 0.02, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(some.repeat(-(-parameter.numel() // len(some)))[: parameter.numel()].view_as(parameter))
    return model
