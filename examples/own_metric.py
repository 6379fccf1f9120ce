"""Your own metric: local contrast of synthetic and of real images, class by class.

    python examples/own_metric.py RUN REAL

RUN: a run's folder in the default format, Parquet. REAL: a folder with one folder of images per
class. Replace `metric` by what you want to compare.
"""

import io
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image


def metric(image: np.ndarray) -> float:
    """Median standard deviation of 8 x 8 windows, of uint8 [h, w]."""
    h, w = (side // 8 * 8 for side in image.shape)
    windows = image[:h, :w].astype(float).reshape(h // 8, 8, w // 8, 8)
    return float(np.median(windows.std(axis=(1, 3))))


def synthetic(run: Path, name: str) -> list[float]:
    values = []
    for shard in sorted((run / "data" / name).glob("*.parquet")):
        for stored in pq.read_table(shard, columns=["image"])["image"].to_pylist():
            values.append(metric(np.asarray(Image.open(io.BytesIO(stored["bytes"])).convert("L"))))
    return values


def real(folder: Path, name: str, side: int) -> list[float]:
    values = []
    for path in sorted((folder / name).glob("*.png")):
        if "_mask" not in path.name:
            values.append(metric(np.asarray(Image.open(path).convert("L").resize((side, side)))))
    return values


def main(run: Path, folder: Path, side: int = 128) -> dict[str, tuple[float, float]]:
    """Class -> (mean of the synthetic images, mean of the real ones)."""
    means = {}
    for name in sorted(path.name for path in (run / "data").iterdir() if path.is_dir()):
        means[name] = float(np.mean(synthetic(run, name))), float(np.mean(real(folder, name, side)))
        print(f"{name:12} synthetic {means[name][0]:6.2f}   real {means[name][1]:6.2f}")
    return means


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
