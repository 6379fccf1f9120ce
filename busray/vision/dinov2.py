"""DINOv2 (Oquab et al. 2023, arXiv 2304.07193): a self-supervised vision transformer.

The features are torch-fidelity's: the class token after the last norm, of the image resized and
normalised as there. torch-fidelity fetches the newest code of the network from GitHub and runs it.
Here the network is the few lines below, and the weights are a local safetensors file.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from busray.identity import sha256_file
from busray.records import UserError
from busray.vision.fitting import rgb_tensor

# ViT-L/14: published distances on DINOv2 use it (Stein et al. 2023, arXiv 2306.04675).
ADDRESS = "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth"
# (width, blocks) -> size in the extractor's name
SIZES = {(384, 12): "s", (768, 12): "b", (1024, 24): "l"}
HEAD = 64  # width of an attention head, in every size
PATCH, SIDE = 14, 224  # sides of a patch and of the square that the network sees, in px
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of red, green and blue in 0..1
EPS = 1e-6  # of the layer norms
BLOCK = (
    *("norm1.weight", "norm1.bias", "attn.qkv.weight", "attn.qkv.bias", "attn.proj.weight"),
    *("attn.proj.bias", "ls1.gamma", "norm2.weight", "norm2.bias", "mlp.fc1.weight", "mlp.fc1.bias"),
    *("mlp.fc2.weight", "mlp.fc2.bias", "ls2.gamma"),
)
OUTER = (
    *("cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"),
    *("norm.weight", "norm.bias"),
)
UNUSED = "mask_token"  # only training needs it; some files leave it out


@dataclass(frozen=True)
class DinoWeights:
    """A safetensors file with the tensor names of DINOv2's authors."""

    path: Path
    size: str
    sha256: str

    @property
    def name(self) -> str:
        """The extractor's name, such as `dinov2-vit-l-14-0123456789abcdef`."""
        # The digest keeps apart stored features of a network that was fine-tuned from this one.
        return f"dinov2-vit-{self.size}-14-{self.sha256[:16]}"


def find_dino_weights(path: str | None) -> DinoWeights:
    """The file at path; UserError where it is not DINOv2 ViT-S/14, B/14 or L/14."""
    from safetensors import SafetensorError, safe_open

    if path is None or not Path(path).is_file():
        missing = "no path of DINOv2 weights" if path is None else f"no file {path}"
        raise UserError(
            f"evaluate.dinov2: {missing}: fetch {ADDRESS} (1.2 GB; dinov2_vits14 and dinov2_vitb14 are "
            "smaller), save the tensors in it once as safetensors (safetensors.torch.save_file) and "
            "set evaluate.dinov2 to that file; or leave dinov2 out of evaluate.extractors"
        )
    try:
        with safe_open(path, "pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        wrong = f"{path} is no safetensors file ({error})"
        raise UserError(f"evaluate.dinov2: {wrong}: convert it with save_file") from error
    depth = _depth(shapes)
    wanted = set(OUTER)
    for i in range(depth):
        wanted |= {f"blocks.{i}.{part}" for part in BLOCK}
    complete = wanted == shapes.keys() - {UNUSED}
    size = SIZES.get((shapes["pos_embed"][-1], depth)) if complete else None
    if size is None:
        raise UserError(
            f"evaluate.dinov2: {path} is not DINOv2 ViT-S/14, B/14 or L/14 without registers, with its "
            "authors' names of tensors, such as blocks.0.attn.qkv.weight"
        )
    return DinoWeights(Path(path), size, sha256_file(Path(path)))


def _depth(names: Iterable[str]) -> int:
    """Number of transformer blocks: each has one tensor of this name."""
    return sum(name.endswith(".ls1.gamma") for name in names)


class DinoFeatures:
    """uint8 [n, h, w] grey or [n, h, w, 3] RGB -> float32 [n, d]; d is 384, 768 or 1024."""

    def __init__(self, weights: DinoWeights, device: str = "cpu") -> None:
        import torch
        from safetensors.torch import load_file

        if sha256_file(weights.path) != weights.sha256:
            raise UserError(
                f"evaluate.dinov2: {weights.path} is not the file that this command started with: it has "
                "changed, or this node has another; put the same one on every node and run the command again"
            )
        self.device = torch.device(device)
        state = load_file(weights.path)
        self.state = {name: tensor.float().to(self.device) for name, tensor in state.items()}
        self.state["pos_embed"] = position_embedding(self.state["pos_embed"])

    def __call__(self, images: np.ndarray) -> np.ndarray:
        import torch
        from torch_fidelity import interpolate_compat_tensorflow as tensorflow

        batch = rgb_tensor(images).to(self.device).float()
        mean = 255 * torch.tensor(MEAN, device=self.device)[:, None, None]
        std = 255 * torch.tensor(STD, device=self.device)[:, None, None]
        resize = tensorflow.interpolate_bilinear_2d_like_tensorflow1x
        with torch.inference_mode():
            batch = resize(batch, size=(SIDE, SIDE), align_corners=False)
            return class_token(self.state, (batch - mean) / std).cpu().numpy()


def position_embedding(trained: Any) -> Any:
    """[1, 1 + m^2, d] of the training's m x m patches -> [1, 1 + 16^2, d]."""
    import torch

    first, patches = trained[:, :1], trained[:, 1:]
    side, wanted = round(patches.shape[1] ** 0.5), SIDE // PATCH
    if side == wanted:
        return trained
    grid = patches.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    # The authors' code adds this 0.1, which moves the sampled places a little.
    factor = (wanted + 0.1) / side
    scaled = torch.nn.functional.interpolate(grid, scale_factor=factor, mode="bicubic")
    return torch.cat([first, scaled.permute(0, 2, 3, 1).reshape(1, wanted**2, -1)], dim=1)


def class_token(state: dict[str, Any], images: Any) -> Any:
    """Normalised images [n, 3, 224, 224] -> the class token after the last norm, [n, d]."""
    import torch
    from torch.nn import functional as f

    def norm(x: Any, name: str) -> Any:
        return f.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], EPS)

    def linear(x: Any, name: str) -> Any:
        return f.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    weight, bias = state["patch_embed.proj.weight"], state["patch_embed.proj.bias"]
    patches = f.conv2d(images, weight, bias, stride=PATCH).flatten(2).mT
    x = torch.cat([state["cls_token"].expand(len(images), -1, -1), patches], dim=1)
    x = x + state["pos_embed"]
    n, tokens, width = x.shape
    for i in range(_depth(state)):
        at = f"blocks.{i}"
        heads = linear(norm(x, f"{at}.norm1"), f"{at}.attn.qkv")
        q, k, v = heads.reshape(n, tokens, 3, width // HEAD, HEAD).permute(2, 0, 3, 1, 4)
        mixed = f.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, width)
        x = x + state[f"{at}.ls1.gamma"] * linear(mixed, f"{at}.attn.proj")
        wide = f.gelu(linear(norm(x, f"{at}.norm2"), f"{at}.mlp.fc1"))
        x = x + state[f"{at}.ls2.gamma"] * linear(wide, f"{at}.mlp.fc2")
    return norm(x, "norm")[:, 0]
