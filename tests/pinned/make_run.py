"""Makes the finished run that tests/unit/test_pinned_run.py opens: run.zip and expected.json.

They show that a later busray reads what this one stored: the same keys, digests, record formats
and figures. So both are made once and kept. Make them anew only where a stored format or a figure
changes on purpose, and say so:

    python tests/pinned/make_run.py

With a folder as its argument it writes them there.
"""

import json
import os
import sys
import tempfile
import zipfile
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import ray
import torch

from busray.cli import main
from busray.cluster.pool import ray_workers
from busray.config import Config
from busray.config_file import validate
from busray.identity import sha256_file
from busray.run.checks import open_run
from busray.stages import classifiers
from busray.stages.pipeline import run_all

HERE = Path(__file__).parent
ARCHIVE, EXPECTED = HERE / "run.zip", HERE / "expected.json"
OUTPUT = "runs/pinned"
"""Relative, so that no path of a machine is stored."""
CLASSIFIER_STEPS = 40
"""As in tests/integration/conftest.py, since a classifier is known by its steps."""
UNNEEDED = ("ray.log", "ray/", "finetune/", "phantoms-*/normal/")
"""Of no use to whom opens the run again: Ray's own files, states of training, a class that the run
does not have."""
MADE_AGAIN = ("report.html", "geometry.png")
"""Not packed, since `evaluate` makes them again."""
RECORDS = {
    "run.json": "run.json",
    "config.json": "config.json",
    "dataset.json": "dataset.json",
    "base.json": "base.json",
    "check.json": "check.json",
    "adapters.json": "adapters.json",
    "report.json": "report.json",
    "timings.json": "timings.json",
    "geometry.json": "geometry.json",
    "plan": "plan/*.json",
    "commit": "commits/*/*.json",
    "arm commit": "arms/*/commits/*/*.json",
    "arm run.json": "arms/*/run.json",
    "classifier": "classifiers/*.json",
    "segmenter": "segmenters/*.json",
}
"""Kind of record -> pattern of its files."""
TABLES = {"manifest": "manifest.parquet", "shard": "data/*/*.parquet", "first draws": "first-draws/*/*.parquet"}
"""Kind of Parquet file -> pattern of its files."""


def quiet(stage: str, done: int, total: int) -> None:
    """A report that nobody reads."""


def settings() -> Config:
    """Every part of a run, each as small as busray lets it be."""
    tree: dict[str, Any] = {
        "name": "pinned",
        "output": OUTPUT,
        "dataset": {"phantoms": {"images": 10, "seed": 3}, "val": 0.2, "test": 0.3},
        "classes": {name: {"images": 6, "token": f"<us-{name}>"} for name in ("benign", "malignant")},
        "adapters": {"steps": 4, "batch_size": 2, "checkpoint_every": 4, "validate_every": 2, "rank": 1},
        "sampling": {"steps": 2, "guidance_scale": 2.0, "batch_size": 4},
        "refine": {"steps": 4, "strength": 0.5, "guidance_scale": 2.0},
        "corpus": {"shard_size": 4, "keep_txt2img": True, "gate": {"attempts": 6}, "max_quarantined": 1},
        "evaluate": {"geometry": {"steps": 10}},
        "card": {"license": "cc0-1.0"},
        "cluster": {"threads": 1},
    }
    return validate(tree)


def make(folder: Path) -> Path:
    """The finished run with its card, in folder."""
    os.chdir(folder)
    classifiers.STEPS = CLASSIFIER_STEPS
    hook = {"worker_process_setup_hook": coarsen}
    config = settings()
    with ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, runtime_env=hook):
        run = open_run(config, quiet, command="python tests/pinned/make_run.py")
        with ray_workers(config.cluster, run.log_file, quiet) as workers:
            run_all(run, workers)
    assert main(["card", OUTPUT]) == 0
    return folder / OUTPUT


def coarsen() -> None:
    """Let networks of this process be stored with the first two bits of each weight's fraction: a
    quarter of the bytes, once packed. What their records say of test images is of the weights
    before that."""
    from busray.vision.classifier import Classifier
    from busray.vision.segmenter import Segmenter

    def coarse(weights: np.ndarray) -> np.ndarray:
        if weights.dtype != np.float32:
            return weights
        return (
            (np.ascontiguousarray(weights).view(np.uint32) & np.uint32(0xFFE00000))
            .view(np.float32)
            .reshape(weights.shape)
        )

    def stored_coarsely(whole: Any) -> Any:
        return lambda network: whole(replace(network, weights={k: coarse(v) for k, v in network.weights.items()}))

    for kind in (Classifier, Segmenter):
        kind.to_bytes = stored_coarsely(kind.to_bytes)


def pack(run: Path, archive: Path) -> None:
    """The same files give the same archive, byte for byte."""
    with zipfile.ZipFile(archive, "w") as packed:
        for file in packed_files(run):
            entry = zipfile.ZipInfo(file.relative_to(run).as_posix(), date_time=(1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            packed.writestr(entry, file.read_bytes(), zipfile.ZIP_DEFLATED, 9)


def keys(run: Path) -> list[str]:
    """Names of the run's files that count, sorted."""
    names = [file.relative_to(run).as_posix() for file in run.rglob("*") if file.is_file()]
    return sorted(name for name in names if not any(fnmatch(name, f"{start}*") for start in UNNEEDED))


def packed_files(run: Path) -> list[Path]:
    """The run's files that are packed, by name."""
    return [run / key for key in keys(run) if key not in MADE_AGAIN]


def expected(run: Path) -> dict[str, Any]:
    """What a later busray must find in the run, and find again where it computes."""
    report = json.loads((run / "report.json").read_text())
    return {
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "keys": keys(run),
        "digests": {file.relative_to(run).as_posix(): sha256_file(file) for file in packed_files(run)},
        "manifests": {
            name: manifest_digest(run / name) for name in matching(run, "manifest.parquet", "arms/*/manifest.parquet")
        },
        "figures": report["figures"],
        "verdicts": report["verdicts"],
        "records": {kind: record_fields(run, pattern) for kind, pattern in RECORDS.items()},
        "tables": {kind: table_fields(run, pattern) for kind, pattern in TABLES.items()},
    }


def matching(run: Path, *patterns: str) -> list[str]:
    """Names of the run's files that fit a pattern."""
    return sorted(file.relative_to(run).as_posix() for pattern in patterns for file in run.glob(pattern))


def manifest_digest(manifest: Path) -> str:
    return json.loads(pq.read_schema(manifest).metadata[b"busray"])["digest"]


def record_fields(run: Path, pattern: str) -> list[str]:
    """`a.b[].c: type` of every field in the JSON files that fit the pattern."""
    return sorted({line for name in matching(run, pattern) for line in fields(json.loads((run / name).read_text()))})


def fields(value: Any, path: str = "") -> set[str]:
    """`a.b[].c: type` of everything in a plain tree; the elements of a list are taken together."""
    if isinstance(value, dict) and value:
        return {line for key, inner in value.items() for line in fields(inner, f"{path}.{key}" if path else key)}
    if isinstance(value, list) and value:
        return {line for inner in value for line in fields(inner, f"{path}[]")}
    return {f"{path}: {'null' if value is None else type(value).__name__}"}


def table_fields(run: Path, pattern: str) -> list[str]:
    """`column: type` of the Parquet files that fit the pattern, and `metadata key a.b: type` of
    their metadata."""
    lines: set[str] = set()
    for name in matching(run, pattern):
        schema = pq.read_schema(run / name)
        lines |= {f"{column.name}: {column.type}" for column in schema}
        for key, text in (schema.metadata or {}).items():
            lines |= {f"metadata {key.decode()} {line}" for line in fields(json.loads(text))}
    return sorted(lines)


def write_into(folder: Path) -> None:
    """Write the archive and what is expected of it into folder."""
    with tempfile.TemporaryDirectory() as temporary:
        made = make(Path(temporary))
        pack(made, folder / ARCHIVE.name)
        (folder / EXPECTED.name).write_text(json.dumps(expected(made), indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    write_into(Path(sys.argv[1]).absolute() if len(sys.argv) > 1 else HERE)
