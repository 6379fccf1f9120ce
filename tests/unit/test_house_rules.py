"""Rules of the house: who imports whom, what is loaded when, what jobs and documents may hold."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT

HEAVY = ("torch", "diffusers", "transformers", "ray", "pandas")
DOCS = (
    *("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"),
    *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*.md"))),
)
TORCH_LOAD = {"busray/vision/inception.py", "busray/vision/efficientnet.py"}
"""Modules that may call torch.load: with weights_only, after they checked the file's SHA-256."""
TORCH_LOAD_OF_TENSORS = {"busray/model/convert.py"}
"""Modules that load a user's pickle, on his word, with weights_only."""
TORCH_LOAD_OF_OWN_FILES = {
    "tools/tiny_base/autoencoder.py",
    "tools/tiny_base/autoencoder_f8.py",
    "tools/tiny_base/denoiser.py",
    "tools/tiny_base/training.py",
}
"""Tools outside the wheel that resume from checkpoints that they wrote themselves."""


def modules(*folders: str) -> Iterator[tuple[str, str]]:
    """(path from the project's folder, source) of every module below these folders."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), path.read_text()


# ---- imports


def imported_packages(source: str) -> set[str]:
    """Top-level packages that a module imports, inside functions too."""
    packages = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            packages |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            packages.add(node.module.split(".")[0])
    return packages


def ray_outside_its_room(sources: Iterable[tuple[str, str]]) -> list[str]:
    """Modules that import Ray and may not."""
    allowed = ("busray/cluster/", "jobs/")
    return [path for path, source in sources if "ray" in imported_packages(source) and not path.startswith(allowed)]


def test_ray_is_imported_in_cluster_and_jobs_only() -> None:
    assert ray_outside_its_room(modules("busray", "jobs", "tools")) == []
    assert any("ray" in imported_packages(source) for _, source in modules("busray/cluster"))


@pytest.mark.parametrize("line", ["import ray", "from ray import data", "import ray.data", "def f():\n    import ray"])
def test_a_planted_import_of_ray_is_found(line: str) -> None:
    planted = [("busray/stages/evaluate.py", line), ("busray/cluster/pool.py", line), ("jobs/generate.py", line)]
    assert ray_outside_its_room(planted) == ["busray/stages/evaluate.py"]


def test_imports_go_down_the_house_only() -> None:
    tool = Path(sys.executable).with_name("lint-imports")
    if not tool.exists():
        pytest.skip("import-linter is not installed beside this Python")
    done = subprocess.run([tool], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-1500:]


# ---- what is loaded when


def loaded_by(names: str, packages: tuple[str, ...]) -> list[str]:
    """Those of the packages that `import <names>` loads in a fresh process."""
    code = f"import sys, {names}; print(*[name for name in {packages!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.split()


LIGHT = ["busray", "busray.cli", "busray.commands", "busray.config", "busray.run.checks", "busray.layout"]


def test_nothing_heavy_is_loaded_before_it_is_needed() -> None:
    assert loaded_by(", ".join(LIGHT), HEAVY) == []


SLOW_FOR_HELP = ("busray.commands", "busray.records", "busray.config", "dataclasses", "inspect", "difflib", "tempfile")


def test_help_loads_neither_commands_nor_records() -> None:
    """They and what they import take longer than the parser itself."""
    code = f"""
import sys
from busray.cli import main
try:
    main(["--help"])
except SystemExit:
    print("loaded:", *[name for name in {SLOW_FOR_HELP!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: busray") and done.stdout.splitlines()[-1] == "loaded:"


def test_drivers_load_torch_where_they_use_it_only() -> None:
    stages = [path.removesuffix(".py").replace("/", ".") for path, _ in modules("busray/stages")]
    assert "busray.stages.audit" in stages
    assert loaded_by(", ".join(stages), HEAVY) == []


def test_a_heavy_package_that_is_loaded_is_found() -> None:
    assert loaded_by("busray, pandas", HEAVY) == ["pandas"]


# ---- jobs, pickles


def test_jobs_are_thin() -> None:
    for path, source in modules("jobs"):
        assert len(source.splitlines()) <= 12, path


def test_no_pickle_is_loaded_except_pinned_weights() -> None:
    for path, source in modules("busray", "tools"):
        for banned in ("weights_only=False", "allow_pickle=True", "trust_remote_code", "custom_pipeline"):
            assert banned not in source, path
        assert "pickle" not in imported_packages(source), path
        if "torch.load(" in source:
            allowed = TORCH_LOAD | TORCH_LOAD_OF_TENSORS | TORCH_LOAD_OF_OWN_FILES
            assert path in allowed and "weights_only=True" in source, path


# ---- documents


def test_every_room_and_top_level_module_is_in_the_readme_or_the_architecture() -> None:
    text = (ROOT / "README.md").read_text() + (ROOT / "ARCHITECTURE.md").read_text()
    rooms = {f"{Path(path).parent.as_posix()}/" for path, _ in modules("busray")} - {"busray/"}
    top = {path for path, _ in modules("busray") if path.count("/") == 1} - {"busray/__init__.py"}
    assert {name for name in rooms | top | {"jobs/", "tools/"} if f"`{name}`" not in text} == set()


def documents() -> list[Path]:
    return [*(ROOT / name for name in DOCS), *sorted((ROOT / "benchmarks").rglob("*.md"))]


def names_of_a_machine(text: str) -> list[str]:
    """Paths of somebody's own machine, package indexes and hosts that a document names."""
    paths = re.findall(r"(?:(?<![\w.])/(?:work|root|Users|mnt)\b|/home/(?!ray\b)|\.\./shared)\S*", text)
    indexes = re.findall(r"\S*(?:index-url|artifactory|nexus|devpi)\S*", text, re.IGNORECASE)
    hosts = re.findall(r"https?://(?!127\.0\.0\.1[:/])\S+", text)
    return paths + indexes + hosts


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_document_names_a_path_of_a_machine_or_a_package_index(path: Path) -> None:
    assert names_of_a_machine(path.read_text()) == []


@pytest.mark.parametrize(
    "line",
    [
        "busray check /work" + "/data",  # in two parts: no file of ours names such a path
        "read ../shared/data/busi",
        "pip install --index-url=x busray",
        "https://artifactory.example.com/api/pypi",
        "cd /home/me/busray",
    ],
)
def test_a_planted_path_or_host_is_found(line: str) -> None:
    assert names_of_a_machine(line)


@pytest.mark.parametrize("name", DOCS)
def test_prose_has_at_most_100_columns(name: str) -> None:
    in_code, long = False, []
    for number, line in enumerate((ROOT / name).read_text().splitlines(), 1):
        in_code ^= line.startswith("```")
        if len(line) > 100 and not in_code and not line.startswith(("|", "![")):
            long.append(f"{name}:{number}")
    assert long == []


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_that_a_document_names_are_there(path: Path) -> None:
    """A path counts from the project's folder, from busray/ or from the document's own folder."""
    missing = []
    for name in re.findall(r"(?<![\w/.-])[a-z][\w-]*/[\w/.-]*\.(?:py|yaml|json|md|png)\b", path.read_text()):
        of_a_run = name.startswith(("plan/", "commits/", "data/", "runs/", "study/")) and not name.endswith(".py")
        if not of_a_run and not any((folder / name).exists() for folder in (ROOT, ROOT / "busray", path.parent)):
            missing.append(name)
    assert missing == []
