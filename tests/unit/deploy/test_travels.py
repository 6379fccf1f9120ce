"""What leaves a clone for a cluster or for an image: the program, and no folder of images.

Ray's own code is asked for `ray job submit`; the patterns of .dockerignore are read as Docker does.
"""

import fnmatch
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from ray._private.runtime_env import packaging

from tests.support.paths import ROOT

PLANTED = (
    "patients/benign/0001.png",
    "patients/IM000001",  # DICOM often has no suffix
    "patients/labels.csv",
    "scan.png",
    "busray/data/patients/0002.jpg",
    "busray/scan.dcm",
    "configs/scan.nii.gz",
    "configs/patients/0003.tiff",
    "jobs/.hidden.png",
    "deploy/scan.dcm",
    "runs/mine/data/benign/0-4.parquet",
    ".venv/lib/python3.11/site-packages/x.py",
    ".git/objects/aa",
    ".env",
)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that git knows, with images and other things planted among them."""
    folder = tmp_path_factory.mktemp("clone") / "busray"
    known = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    files = known.stdout.splitlines()
    if not files:
        pytest.skip("no git here, which knows the files of a clone")
    for name in files:
        if (ROOT / name).is_file() and not name.startswith("benchmarks/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    for name in PLANTED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("a patient")
    return folder


def uploaded(folder: Path) -> set[str]:
    """What Ray puts into the package of --working-dir."""
    seen: set[str] = set()

    def keep(path: Path) -> None:
        if path.is_file():
            seen.add(path.relative_to(folder).as_posix())

    packaging._dir_travel(folder, [], keep, include_gitignore=True)
    return seen


def needed(folder: Path) -> set[str]:
    """The program: what of it lies in the clone, but for what was planted."""
    return {
        path.relative_to(folder).as_posix()
        for part in ("busray", "jobs", "configs")
        for path in (folder / part).rglob("*")
        if path.is_file() and path.relative_to(folder).as_posix() not in PLANTED
    }


def test_a_job_takes_the_program_along_and_no_image_of_the_clone(clone: Path) -> None:
    travels = uploaded(clone)
    assert travels.isdisjoint(PLANTED)
    assert needed(clone) <= travels
    assert not [name for name in travels if name.startswith(("tests/", "benchmarks/", "tools/"))]


def test_without_the_rayignore_the_images_would_travel(clone: Path, tmp_path: Path) -> None:
    """So that the test above looks where Ray looks."""
    bare = tmp_path / "bare"
    shutil.copytree(clone, bare)
    (bare / ".rayignore").unlink()
    assert "patients/benign/0001.png" in uploaded(bare)


def test_settings_of_ones_own_beside_the_program_go_along(clone: Path) -> None:
    (clone / "my.yaml").write_text("output: runs/mine\n")
    (clone / "configs" / "mine.yaml").write_text("output: runs/mine\n")
    assert {"my.yaml", "configs/mine.yaml"} <= uploaded(clone)


# ---- the image ----


def in_image(folder: Path, ignore: Path) -> set[str]:
    """What Docker sends to the builder: of a file, the last pattern that matches decides."""
    patterns = [line for line in ignore.read_text().splitlines() if line and not line.startswith("#")]
    kept: set[str] = set()
    for path in folder.rglob("*"):
        name, ignored = path.relative_to(folder).as_posix(), False
        for pattern in patterns:
            if matches(pattern.removeprefix("!"), name):
                ignored = not pattern.startswith("!")
        if path.is_file() and not ignored:
            kept.add(name)
    return kept


def matches(pattern: str, name: str) -> bool:
    """Docker's pattern: `*` within a folder, `**/` any number of folders; a folder means all of
    it."""
    regex = ""
    for part in re.split(r"(\*\*/|\*)", pattern):
        regex += {"**/": "(?:.*/)?", "*": "[^/]*"}.get(part, re.escape(part))
    return re.fullmatch(f"{regex}(?:/.*)?", name) is not None


def test_the_image_holds_the_program_and_no_image_of_the_clone(clone: Path) -> None:
    holds = in_image(clone, clone / ".dockerignore")
    assert holds.isdisjoint(PLANTED)
    assert needed(clone) - holds <= {"my.yaml", "configs/mine.yaml"}
    assert {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "deploy/spot_watcher.py"} <= holds
    copied = re.findall(r"^COPY --chown=ray (.+) \./$", (clone / "deploy" / "Dockerfile").read_text(), re.MULTILINE)
    wanted = {name for line in copied for name in line.split() if name != "."}
    assert wanted and wanted <= holds


def test_every_builder_finds_the_same_list() -> None:
    """BuildKit reads the one beside the Dockerfile, other builders the one at the root."""
    assert (ROOT / ".dockerignore").read_text() == (ROOT / "deploy" / "Dockerfile.dockerignore").read_text()


def test_both_lists_begin_by_leaving_everything_out() -> None:
    for name, all_of_it in ((".dockerignore", "*"), (".rayignore", "/*")):
        first = next(line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#"))
        assert first == all_of_it
        assert fnmatch.fnmatch("patients", first.removeprefix("/"))
