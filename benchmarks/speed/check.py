"""`busray check` against the same command of an earlier commit, each in a process of its own.

The folder is BUSI where --busi names it, else simulated images.
"""

import atexit
import os
import subprocess
import sys
from pathlib import Path

from PIL import Image

from benchmarks.speed.contest import Contest, Skipped, scratch_folder
from benchmarks.speed.profiles import profile_program
from busray.data.phantom import CLASSES, PROBES, phantom

BEFORE = "91be7a5"
"""The commit before the check and the texture features were made faster."""
IMAGES = 160
IN_ONE_THREAD = """
import sys
from concurrent import futures

class Here:
    def __init__(self, threads): pass
    def __enter__(self): return self
    def __exit__(self, *error): pass
    map = staticmethod(map)

futures.ThreadPoolExecutor = Here
from busray.cli import main
main(["check", sys.argv[1]])
"""
"""The command without its pools: a profile sees the first thread only."""
ROOT = Path(__file__).parents[2]


def questions() -> list[Contest | Skipped]:
    scratch, before = scratch_folder(), earlier_code()
    if isinstance(before, Skipped):
        return [before]
    given = os.environ.get("BUSRAY_BUSI")
    images, name = (Path(given), "BUSI") if given else (scratch / "images", f"{IMAGES} simulated images")
    if not given:
        _simulate(images)

    def ours() -> str:
        return _check(ROOT, images)

    def rival() -> str:
        return _check(before, images)

    def profiled() -> list[str]:
        program = scratch / "program.py"
        program.write_text(IN_ONE_THREAD)
        return profile_program([str(program), str(images)], ROOT, _environment(ROOT))

    def same() -> str:
        mine, theirs = ours().splitlines(), rival().splitlines()
        differing = len(set(mine) ^ set(theirs))
        return "the same output" if mine == theirs else f"{differing} lines of the output differ"

    return [Contest(f"check of {name}", "busray", f"commit {BEFORE}", ours, rival, 3, same, profile_of_ours=profiled)]


def earlier_code() -> Path | Skipped:
    """A folder with the code of BEFORE; it is removed at exit."""
    before = scratch_folder() / "before"
    add = ["git", "-C", str(ROOT), "worktree", "add", "--detach", str(before), BEFORE]
    added = subprocess.run(add, capture_output=True, text=True, check=False)
    if added.returncode:
        return Skipped("check", f"no commit {BEFORE} to compare with ({added.stderr.strip().splitlines()[-1]})")
    remove = ["git", "-C", str(ROOT), "worktree", "remove", "--force", str(before)]
    atexit.register(lambda: subprocess.run(remove, capture_output=True, check=False))
    return before


def _check(code: Path, images: Path) -> str:
    """What the command prints."""
    command = [sys.executable, "-m", "busray", "check", str(images)]
    done = subprocess.run(command, cwd=code, env=_environment(code), capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1) or not done.stdout:
        raise RuntimeError(done.stderr)
    return done.stdout


def _environment(code: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(code)}


def _simulate(folder: Path) -> None:
    for i in range(IMAGES):
        name = CLASSES[i % len(CLASSES)]
        (folder / name).mkdir(parents=True, exist_ok=True)
        image = phantom(i, name, PROBES["general"], (256, 320)).image
        Image.fromarray(image).save(folder / name / f"{i}.png")
