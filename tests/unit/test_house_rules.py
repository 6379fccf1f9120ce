"""The architecture's rules, kept by tests: who imports whom, what is loaded when, how long a job may be."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

HEAVY = ("torch", "diffusers", "transformers", "ray", "pandas")


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


def test_ray_is_imported_in_cluster_and_jobs_only() -> None:
    users = {path.relative_to(ROOT).as_posix() for path in (ROOT / "busray").rglob("*.py") if "ray" in imported(path)}
    assert users and all(name.startswith("busray/cluster/") for name in users)


@pytest.mark.parametrize("module", ["busray", "busray.cli", "busray.config", "busray.run.checks"])
def test_nothing_heavy_is_loaded_before_it_is_needed(module: str) -> None:
    code = f"import sys, {module}; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("module", ["busray.stages.pipeline", "busray.stages.audit"])
def test_a_driver_and_the_audits_actors_load_torch_where_they_use_it(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('torch', 'diffusers', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_readme_has_a_line_for_every_module() -> None:
    tree = (ROOT / "README.md").read_text().partition("## What is where")[2]
    modules = [p for folder in ("busray", "jobs") for p in (ROOT / folder).rglob("*.py") if p.name != "__init__.py"]
    assert [path.name for path in modules if path.name not in tree] == []


def test_jobs_are_thin() -> None:
    for path in (ROOT / "jobs").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 60, path


def test_imports_go_up_the_house_only() -> None:
    tool = Path(sys.executable).with_name("lint-imports")
    if not tool.exists():
        pytest.skip("import-linter is not installed beside this Python")
    done = subprocess.run([tool], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-1500:]


def test_nothing_of_a_pickle_is_loaded_but_training_state_of_the_embedded_base() -> None:
    allowed = set()
    for path in (ROOT / "busray").rglob("*.py"):
        text, name = path.read_text(), path.relative_to(ROOT).as_posix()
        assert "weights_only=False" not in text and "allow_pickle=True" not in text, name
        assert "trust_remote_code" not in text and "custom_pipeline" not in text, name
        if "torch.load(" in text:
            pinned = {"busray/vision/inception.py", "busray/vision/efficientnet.py"}  # by the file's SHA-256
            assert name in allowed | pinned and "weights_only=True" in text, name
