"""Lesion geometry of BUSI's real images, by true masks and by the segmenter's; lesions.md is what this prints.

.venv/bin/python benchmarks/lesions.py ../shared/data/busi [--a.b=c ...]
"""

import json
import sys
import tempfile
from pathlib import Path

from busray.cluster.geometry import geometry
from busray.cluster.run import open_run
from busray.config import load_config
from busray.quality.geometry import DICE, geometry_rows
from busray.quality.tables import markdown_table
from busray.records import GEOMETRY_JSON

CONFIG = Path(__file__).parents[1] / "configs" / "busi-tiny.yaml"


def main(folder: str, flags: list[str]) -> None:
    """A run that has drawn nothing yet: its geometry is that of the real images alone."""
    with tempfile.TemporaryDirectory() as output:
        config = load_config(CONFIG, [f"--dataset.path={folder}", f"--output={output}/run", *flags])
        run = open_run(config, lambda *_: None, needs_inception=False)
        figures = geometry(run)
        segmenter = json.loads(run.store.read(GEOMETRY_JSON))["segmenter"]
    for look in segmenter["looks"]:
        print(f"- step {look['step']}: Dice on val {look['dice']:.3f}, empty masks that agree counted as 1")
    plain = [figure.to_dict() for figure in figures]
    for f in (f for f in plain if f["metric"] == DICE):
        low, high = f["interval"]
        print(f"- Dice, {f['class']}: {f['value']:.3f} [{low:.3f}, {high:.3f}], {f['n_reference']} test images")
    print(f"\n{markdown_table(*geometry_rows(plain))}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
