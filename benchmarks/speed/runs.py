"""Small runs that questions of whole stages are asked of."""

from pathlib import Path
from typing import Any

from busray.config_file import validate
from busray.run.checks import open_run
from busray.run.record import Run

PROMPTS = {
    "benign": "an ultrasound image of breast tissue with a lesion, a {token} spot, smooth edge",
    "malignant": "an ultrasound image of breast tissue with a lesion, a {token} spot, irregular edge",
}
SIDE, BATCH = 64, 8


def small_run(folder: Path, images: int, **changes: dict[str, Any]) -> Run:
    """A run of simulated images with the embedded base at SIDE px, two classes of `images` each.

    changes: sections of the settings, which replace those here.
    """
    classes = {}
    for name, prompt in PROMPTS.items():
        classes[name] = {"images": images, "token": f"<us-{name}>", "caption": prompt, "prompts": [prompt]}
    tree: dict[str, Any] = {
        "output": str(folder),
        "dataset": {"phantoms": {"images": 24, "seed": 3}, "val": 0.2, "test": 0.3},
        "base": {"path": "tiny", "size": SIDE},
        "classes": classes,
        "adapters": {"steps": 2, "batch_size": 2, "checkpoint_every": 2, "validate_every": 2},
        "sampling": {"steps": 15, "guidance_scale": 2.0, "batch_size": BATCH},
        "refine": {"strength": 0.3, "steps": 20, "guidance_scale": 2.0},
        "evaluate": {"arms": ["base+refine"], "judge": None},
        "cluster": {"threads": 2},
    }
    return open_run(validate(tree | changes), lambda stage, done, total: None)
