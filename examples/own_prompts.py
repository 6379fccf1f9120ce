"""Your own prompts: a corpus from adapters that a run has trained, with other words.

    python examples/own_prompts.py RUN NEW_RUN

Nothing is trained: the new run takes over the adapters of the old one.
"""

import json
import sys
from pathlib import Path

import busray

PROMPTS = {
    "benign": ["an ultrasound image of breast tissue, a {token} spot near the skin, smooth edge"],
    "malignant": ["an ultrasound image of breast tissue, a large {token} spot, irregular edge"],
}
"""Class -> prompts that its images take in turn; `{token}` is the class's learned token."""


def new_config(run: Path, target: Path, images: int = 20) -> dict[str, object]:
    """The old run's settings with the new prompts and the old adapters."""
    settings = json.loads((run / "config.json").read_text())
    adapters = json.loads((run / "adapters.json").read_text())
    settings["output"] = str(target)
    settings["adapters"]["path"] = str(run / adapters["folder"])
    for name, prompts in PROMPTS.items():
        if name in settings["classes"]:
            settings["classes"][name].update(prompts=prompts, images=images)
    return settings


if __name__ == "__main__":
    settings = new_config(Path(sys.argv[1]), Path(sys.argv[2]))
    print("manifest digest:", busray.generate(settings))
