"""A classifier of your own, trained on a run's corpus in plain PyTorch.

    python examples/train_classifier.py RUN

It shows how to read a corpus. Whether synthetic images help is what `busray study` measures, on
real test images.
"""

import io
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Corpus(Dataset[tuple[torch.Tensor, int]]):
    """The images of a run's folder: float [1, side, side] from -1 to 1, and the class's number."""

    def __init__(self, run: Path) -> None:
        folders = sorted(path for path in (run / "data").iterdir() if path.is_dir())
        self.classes = [folder.name for folder in folders]
        self.rows: list[tuple[bytes, int]] = []
        for label, folder in enumerate(folders):
            for shard in sorted(folder.glob("*.parquet")):
                stored = pq.read_table(shard, columns=["image"])["image"].to_pylist()
                self.rows += [(image["bytes"], label) for image in stored]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        data, label = self.rows[index]
        pixels = np.asarray(Image.open(io.BytesIO(data)).convert("L").resize((64, 64)), np.float32)
        return torch.from_numpy(pixels)[None] / 127.5 - 1, label


def main(run: Path, epochs: int = 20) -> tuple[nn.Module, list[float]]:
    """The trained network, and the mean loss of each epoch."""
    torch.manual_seed(0)
    corpus = Corpus(run)
    network = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(512, len(corpus.classes))),
    )
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3)
    losses = []
    for epoch in range(epochs):
        total = 0.0
        for images, labels in DataLoader(corpus, batch_size=16, shuffle=True):
            loss = nn.functional.cross_entropy(network(images), labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += float(loss) * len(images)
        losses.append(total / len(corpus))
        print(f"epoch {epoch + 1}: loss {losses[-1]:.3f}")
    return network, losses


if __name__ == "__main__":
    main(Path(sys.argv[1]))
