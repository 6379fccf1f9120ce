"""Texture features against those of an earlier commit, each in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.speed.check import BEFORE, ROOT, earlier_code
from benchmarks.speed.contest import Contest, Seconds, Skipped, scratch_folder
from benchmarks.speed.images import simulated_images
from benchmarks.speed.profiles import profile_program

IMAGES, SIDE = 16, 512
MOST_DIFFERING = 1e-9
PROGRAM = """
import sys, time
import numpy as np
from busray.records import ContentBox
from busray.vision.texture import texture_features
images = np.load(sys.argv[1])
boxes = [ContentBox(0, 0, images.shape[2], images.shape[1])] * len(images)
texture_features(images[:2], boxes[:2])
started = time.process_time()
features = texture_features(images, boxes)
print(time.process_time() - started)
np.save(sys.argv[2], features)
"""
"""Prints the seconds of CPU that the images take, without what the process does before."""


def questions() -> list[Contest | Skipped]:
    scratch, before = scratch_folder(), earlier_code()
    if isinstance(before, Skipped):
        return [Skipped("texture features", before.reason)]
    np.save(scratch / "images.npy", np.stack(simulated_images(IMAGES, SIDE)))

    def extracted(code: Path, features: Path) -> Seconds:
        environment = {**os.environ, "PYTHONPATH": str(code)}
        command = [sys.executable, "-c", PROGRAM, str(scratch / "images.npy"), str(features)]
        done = subprocess.run(command, cwd=code, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr)
        return Seconds(done.stdout)

    def ours() -> Seconds:
        return extracted(ROOT, scratch / "ours.npy")

    def rival() -> Seconds:
        return extracted(before, scratch / "rival.npy")

    def profiled() -> list[str]:
        program = scratch / "program.py"
        program.write_text(PROGRAM)
        arguments = [str(program), str(scratch / "images.npy"), str(scratch / "profiled.npy")]
        return profile_program(arguments, ROOT, {**os.environ, "PYTHONPATH": str(ROOT)})

    def same() -> str:
        ours()
        rival()
        mine, theirs = np.load(scratch / "ours.npy"), np.load(scratch / "rival.npy")
        differing = float((np.abs(mine - theirs) / np.maximum(np.abs(theirs), 1)).max())
        assert differing <= MOST_DIFFERING, differing
        return f"differ by {differing:.0e}"

    name = f"Texture features, {IMAGES} of {SIDE} px, seconds of CPU"
    return [Contest(name, "busray", f"commit {BEFORE}", ours, rival, 3, same, by_cpu=False, profile_of_ours=profiled)]
