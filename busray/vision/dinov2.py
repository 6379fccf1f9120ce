"""DINOv2 (Oquab et al. 2023, arXiv 2304.07193), a self-supervised vision transformer, as extractor.

The features are torch-fidelity's: the class token after the last norm, of the image resized and
normalised as there. torch-fidelity fetches the newest code of the network from GitHub and runs it.
Here the network is the few lines below, and the weights are a local safetensors file, which cannot
run anything.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from busray.identity import sha256_file
from busray.records import UserError

if TYPE_CHECKING:
    import torch

ADDRESS = "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth"
"""ViT-L/14: published distances on DINOv2 use it (Stein et al. 2023, arXiv 2306.04675)."""

SIZES = {(384, 12): "s", (768, 12): "b", (1024, 24): "l"}
"""(width, blocks) -> size in the extractor's name"""

HEAD = 64
"""Width of an attention head, in every size."""

PATCH, SIDE = 14, 224
"""Sides of a patch and of the square that the network sees, in px."""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's, of red, green and blue in 0..1."""

EPS = 1e-6
"""Of the layer norms."""

BLOCK = (
    *("norm1.weight", "norm1.bias", "attn.qkv.weight", "attn.qkv.bias", "attn.proj.weight", "attn.proj.bias"),
    *("ls1.gamma", "norm2.weight", "norm2.bias", "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias"),
    "ls2.gamma",
)

OUTER = (
    *("cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"),
    *("norm.weight", "norm.bias"),
)

UNUSED = "mask_token"
"""A tensor that only training needs; some files leave it out."""


@dataclass(frozen=True)
class DinoWeights:
    """A safetensors file with the tensor names of DINOv2's authors."""

    path: Path
    size: str
    sha256: str

    @property
    def name(self) -> str:
        """The extractor's name, such as `dinov2-vit-l-14-0123456789abcdef`.

        It holds the digest, so that stored features of other weights of the same shapes, such as a
        fine-tuned network's, are not taken for these.
        """
        return f"dinov2-vit-{self.size}-14-{self.sha256[:16]}"


def find_dino_weights(path: str | None) -> DinoWeights:
    """The file at path; UserError where it is not DINOv2 ViT-S/14, B/14 or L/14."""
    from safetensors import SafetensorError, safe_open

    if path is None or not Path(path).is_file():
        missing = "no path of DINOv2 weights" if path is None else f"no file {path}"
        raise UserError(
            f"evaluate.dinov2: {missing}: fetch {ADDRESS} (1.2 GB; dinov2_vits14 and dinov2_vitb14 are smaller), save "
            "the tensors in it once as safetensors (safetensors.torch.save_file) and set evaluate.dinov2 to that file; "
            "or leave dinov2 out of evaluate.extractors"
        )
    try:
        with safe_open(path, "pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (it is no dict)
    except SafetensorError as error:
        raise UserError(
            f"evaluate.dinov2: {path} is no safetensors file ({error}): convert it with save_file"
        ) from error
    depth = 1 + max((int(name.split(".")[1]) for name in shapes if re.match(r"blocks\.\d+\.", name)), default=-1)
    wanted = {*OUTER, *(f"blocks.{i}.{part}" for i in range(depth) for part in BLOCK)}
    size = SIZES.get((shapes["pos_embed"][-1], depth)) if wanted == shapes.keys() - {UNUSED} else None
    if size is None:
        raise UserError(
            f"evaluate.dinov2: {path} is not DINOv2 ViT-S/14, B/14 or L/14 without registers, with its authors' names "
            "of tensors, such as blocks.0.attn.qkv.weight"
        )
    return DinoWeights(Path(path), size, sha256_file(Path(path)))


class DinoFeatures:
    """uint8 [n, h, w] grey or [n, h, w, 3] RGB -> float32 [n, d]; d is 384, 768 or 1024."""

    def __init__(self, weights: DinoWeights, device: str = "cpu") -> None:
        import torch
        from safetensors.torch import load_file

        if sha256_file(weights.path) != weights.sha256:
            raise UserError(
                f"evaluate.dinov2: {weights.path} is not the file that this command started with: it has changed, or "
                "this node has another; put the same one on every node and run the command again"
            )
        self.device = torch.device(device)
        state = load_file(weights.path)
        self.state = {name: tensor.float().to(self.device) for name, tensor in state.items()}
        self.state["pos_embed"] = position_embedding(self.state["pos_embed"])

    def __call__(self, images: np.ndarray) -> np.ndarray:
        import torch
        from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

        if images.dtype != np.uint8:
            raise TypeError(f"features are of 8-bit images, not {images.dtype}")
        batch = torch.from_numpy(np.ascontiguousarray(images)).to(self.device).float()
        batch = batch[:, None].expand(-1, 3, -1, -1) if batch.ndim == 3 else batch.permute(0, 3, 1, 2)
        mean, std = (255 * torch.tensor(v, device=self.device)[:, None, None] for v in (MEAN, STD))
        with torch.inference_mode():
            batch = interpolate_bilinear_2d_like_tensorflow1x(batch, size=(SIDE, SIDE), align_corners=False)
            return class_token(self.state, (batch - mean) / std).cpu().numpy()


def position_embedding(trained: "torch.Tensor") -> "torch.Tensor":
    """[1, 1 + m^2, d] of the training's m x m patches -> [1, 1 + 16^2, d].

    The authors' code adds 0.1 to the target before it scales, which moves the sampled places a
    little; so does this.
    """
    import torch

    first, patches = trained[:, :1], trained[:, 1:]
    side, wanted = round(patches.shape[1] ** 0.5), SIDE // PATCH
    if side == wanted:
        return trained
    grid = patches.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    scaled = torch.nn.functional.interpolate(grid, scale_factor=(wanted + 0.1) / side, mode="bicubic")
    return torch.cat([first, scaled.permute(0, 2, 3, 1).reshape(1, wanted**2, -1)], dim=1)


def class_token(state: "dict[str, torch.Tensor]", images: "torch.Tensor") -> "torch.Tensor":
    """Normalised images [n, 3, 224, 224] -> the class token after the last norm, [n, d]."""
    import torch
    from torch.nn import functional as f

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return f.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], EPS)

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return f.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    patches = f.conv2d(images, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=PATCH)
    x = torch.cat([state["cls_token"].expand(len(images), -1, -1), patches.flatten(2).mT], dim=1) + state["pos_embed"]
    n, tokens, width = x.shape
    for i in range(sum(name.endswith("ls1.gamma") for name in state)):
        at = f"blocks.{i}"
        heads = linear(norm(x, f"{at}.norm1"), f"{at}.attn.qkv").reshape(n, tokens, 3, width // HEAD, HEAD)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        mixed = f.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, width)
        x = x + state[f"{at}.ls1.gamma"] * linear(mixed, f"{at}.attn.proj")
        wide = f.gelu(linear(norm(x, f"{at}.norm2"), f"{at}.mlp.fc1"))
        x = x + state[f"{at}.ls2.gamma"] * linear(wide, f"{at}.mlp.fc2")
    return norm(x, "norm")[:, 0]
