"""Settings and callbacks that tests of whole runs share."""

from pathlib import Path
from typing import Any

from busray.config import Config
from busray.config_file import validate


def quiet(stage: str, done: int, total: int) -> None:
    """A progress callback that prints nothing."""


def settings(output: Path | str, **changes: Any) -> Config:
    """Settings of a small run: two classes of six images, four sampling and six optimiser steps."""
    tree: dict[str, Any] = {
        "output": str(output),
        "dataset": {"phantoms": {"images": 12, "seed": 3}, "val": 0.2, "test": 0.3},
        "classes": {name: {"images": 6, "token": f"<us-{name}>"} for name in ("benign", "malignant")},
        "adapters": {
            "steps": 6,
            "batch_size": 4,
            "checkpoint_every": 3,
            "validate_every": 6,
            "learning_rate": 1e-3,
            "vectors": 2,
            "validation_images": 0,
        },
        "sampling": {"steps": 4, "guidance_scale": 2.0, "batch_size": 4},
        "refine": {"steps": 4, "strength": 0.5, "guidance_scale": 2.0},
        "corpus": {"shard_size": 4},
        "evaluate": {"geometry": {"steps": 10}},
        "cluster": {"threads": 1},  # with one thread a training run repeats bit for bit
    }
    for key, value in changes.items():
        tree[key] = {**tree.get(key, {}), **value} if isinstance(value, dict) else value
    return validate(tree)
