"""Inception features against torch-fidelity's own extraction, at the same batch and threads."""

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from benchmarks.speed.contest import Contest
from benchmarks.speed.images import simulated_images
from busray.vision.inception import InceptionFeatures, find_weights

IMAGES, SIDE, BATCH = 16, 128, 8


def questions() -> list[Contest]:
    images = np.stack(simulated_images(IMAGES, SIDE))
    extractor = InceptionFeatures(find_weights())
    rival_extractor = _torch_fidelitys(extractor)

    def ours() -> np.ndarray:
        return np.concatenate([extractor(images[at : at + BATCH]) for at in range(0, IMAGES, BATCH)])

    def rival() -> np.ndarray:
        rows = []
        with torch.no_grad():
            for at in range(0, IMAGES, BATCH):
                batch = torch.from_numpy(images[at : at + BATCH])[:, None].repeat(1, 3, 1, 1)
                rows.append(rival_extractor(batch)[0].numpy())
        return np.concatenate(rows)

    def same() -> str:
        mine, theirs = ours(), rival()
        differing = float(np.abs(mine - theirs).max() / np.abs(theirs).max())
        assert differing <= 1e-5, differing
        return f"differ by {differing:.0e} of the largest"

    name = f"Inception features, {IMAGES} images"
    return [Contest(name, "busray", "torch-fidelity", ours, rival, 1.25, same)]


def _torch_fidelitys(extractor: InceptionFeatures) -> FeatureExtractorInceptionV3:
    """A network of torch-fidelity, as it makes it, with the same weights."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "state.pth"
        torch.save(extractor.extractor.state_dict(), file)
        return FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(file))
