"""A new run stores what an earlier busray stored: the same records and tables, field by field."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PINNED = Path(__file__).parents[1] / "pinned"
CAPTION = (
    "caption: string",
    "metadata huggingface info.features.caption._type: str",
    "metadata huggingface info.features.caption.dtype: str",
)
"""A column since format 2."""
pytestmark = pytest.mark.slow  # minutes of training and drawing


def test_a_new_run_stores_the_pinned_fields_and_names(tmp_path: Path) -> None:
    subprocess.run([sys.executable, PINNED / "make_run.py", tmp_path], check=True, capture_output=True)
    before, after = (json.loads((folder / "expected.json").read_text()) for folder in (PINNED, tmp_path))
    assert after["tables"] == {
        kind: sorted([*fields, *(CAPTION if kind in ("shard", "first draws") else ())])
        for kind, fields in before["tables"].items()
    }
    since = {kind: ["format: int"] for kind in ("run.json", "arm run.json")}
    assert after["records"] == {
        kind: sorted([*fields, *since.get(kind, [])]) for kind, fields in before["records"].items()
    }
    assert kinds(after) == kinds(before) - {"card.md"} | {"README.md"}


def kinds(pinned: dict[str, Any]) -> set[str]:
    """Folders of a run's files, or the files at its top."""
    return {key.rpartition("/")[0] or key for key in pinned["keys"]}
