"""Training that can be cut short at any step: a learning-rate schedule and checkpoints of
whatever has a state."""

from pathlib import Path
from typing import Any

import torch

from busray.vision.fitting import cosine


def write_log(work: Path, line: str) -> None:
    """Print a line, and keep it in the folder of a making."""
    print(line, flush=True)
    with open(work / "log.txt", "a") as file:
        file.write(line + "\n")


def trapezoid(step: int, steps: int, warm: int) -> float:
    """Share of the peak learning rate: linear warm-up, the peak held, a cosine to 1 % over the
    last quarter.

    Until that quarter begins, a restart may name another number of steps and nothing done is lost.
    """
    hold = steps - steps // 4
    return min(1.0, (step + 1) / warm) if step < hold else cosine(step - hold, steps - hold, warm=0)


def checkpoint(path: Path, step: int, **parts: Any) -> None:
    """Replaces path by the state of each part, never leaving half a file under that name."""
    torch.save({"step": step, **{name: part.state_dict() for name, part in parts.items()}}, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def resume(path: Path, **parts: Any) -> int:
    """Loads what checkpoint() left at path into parts; returns the step to go on from, 0 where
    there is none."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return state["step"]
