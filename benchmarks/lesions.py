"""Lesion geometry of BUSI's real images, by true masks and by the segmenter's; prints lesions.md.

.venv/bin/python benchmarks/lesions.py BUSI [--a.b=c ...]
"""

import json
import sys
import tempfile
from pathlib import Path

from busray.cluster.pool import ray_workers
from busray.config_file import load_config
from busray.evidence.lesions import DICE
from busray.layout import GEOMETRY_JSON
from busray.report.lesions import geometry_rows
from busray.report.tables import markdown_table
from busray.run.checks import open_run
from busray.stages.lesions import geometry

CONFIG = Path(__file__).parents[1] / "configs" / "busi-tiny.yaml"


def main(folder: str, flags: list[str]) -> None:
    """Measure a run that has drawn nothing yet: its geometry is that of the real images alone."""

    def report(stage: str, done: int, total: int) -> None:
        pass

    with tempfile.TemporaryDirectory() as output:
        config = load_config(CONFIG, [f"--dataset.path={folder}", f"--output={output}/run", *flags])
        run = open_run(config, report, measures=False)
        with ray_workers(config.cluster, run.log_file, report) as workers:
            figures = geometry(run, workers)
        segmenter = json.loads(run.store.read(GEOMETRY_JSON))["segmenter"]
    for validation in segmenter["looks"]:
        dice = f"{validation['dice']:.3f}"
        print(f"- step {validation['step']}: Dice on val {dice}, empty masks that agree counted as 1")
    for f in figures:
        if f.metric == DICE and f.interval:
            low, high = f.interval
            print(f"- Dice, {f.class_name}: {f.value:.3f} [{low:.3f}, {high:.3f}], {f.n_reference} test images")
    print(f"\n{markdown_table(*geometry_rows(figures))}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
