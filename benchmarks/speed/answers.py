"""What questions were answered with, kept beside the page that is made of it.

An answer stays until its question is asked again, so an interrupted run keeps what it has, and one
question can be asked alone.
"""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

LIBRARIES = ("torch", "diffusers", "torch-fidelity", "numpy", "scipy", "pillow", "ray")
PROFILES = 2  # on the page, of the contests furthest below their goals


@dataclass(frozen=True)
class Loss:
    """A contest whose goal is missed, and where our time goes in it."""

    contest: str
    ratio: float
    goal: float
    profile: list[str]  # lines of Markdown


@dataclass
class Answer:
    """The rows that one question gave, and what they are from."""

    question: str
    date: str
    repeats: int
    machine: str
    rows: list[str] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)
    minutes: float = 0.0
    load: list[float] = field(default_factory=list)  # of the machine, after each row: processes that want a core


def read_answers(file: Path) -> dict[str, Answer]:
    """Question -> its last answer; none where there is no file."""
    if not file.exists():
        return {}
    answers = {}
    for kept in json.loads(file.read_text()):
        kept["losses"] = [Loss(**loss) for loss in kept["losses"]]
        answers[kept["question"]] = Answer(**kept)
    return answers


def write_answers(file: Path, answers: dict[str, Answer]) -> None:
    kept: list[dict[str, Any]] = [asdict(answer) for answer in answers.values()]
    file.write_text(json.dumps(kept, indent=1) + "\n")


def machine() -> str:
    """This machine's cores, and the versions of what is compared."""
    import torch

    versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    cores = f"{os.cpu_count()} cores of {_processor()}, torch with {torch.get_num_threads()} threads"
    return f"{cores}. Python {platform.python_version()}, {versions}."


def page(answers: dict[str, Answer], questions: Sequence[str], header: str) -> str:
    """Markdown: a row for each goal, the runs they are from, and profiles of the largest losses.

    questions: in the order of the rows. One without an answer says so.
    """
    lines = [
        "# Speed",
        "",
        "`make bench` asks all questions, `python -m benchmarks.speed QUESTION ...` some again: their",
        "rows are replaced, the others stay. Ours and the rival run in turn in one process. Times:",
        "median [least, most] of the repeats. The goal is the least value of rival / ours, or the most",
        "seconds of work without a rival. `by CPU` is the same ratio of the CPU seconds of all threads,",
        "which other work on the machine changes least.",
        "",
        header,
    ]
    for name in questions:
        lines += answers[name].rows if name in answers else [f"| `{name}`: not asked yet | | | | | | | |"]
    asked = [answers[name] for name in questions if name in answers]
    lines += ["", "## Runs", "", *_runs(asked)]
    losses = [loss for answer in asked for loss in answer.losses]
    losses.sort(key=lambda loss: loss.ratio / loss.goal)
    if losses:
        lines += ["", "## Where the time goes", "", "In the contests furthest below their goals."]
    for loss in losses[:PROFILES]:
        lines += ["", f"**{loss.contest}**: {loss.ratio:.2f}, goal {loss.goal:.3g}.", "", *loss.profile]
    return "\n".join(lines).rstrip() + "\n"


def _runs(asked: Sequence[Answer]) -> list[str]:
    """Load: of the machine after each row, the least and the most."""
    machines = list(dict.fromkeys(answer.machine for answer in asked))
    lines = ["| question | date | repeats | minutes | load | machine |", "|---|---|--:|--:|---|--:|"]
    for answer in asked:
        load = f"{min(answer.load):.1f} to {max(answer.load):.1f}" if answer.load else ""
        number = machines.index(answer.machine) + 1
        cells = [f"`{answer.question}`", answer.date, f"{answer.repeats}", f"{answer.minutes:.1f}", load, f"{number}"]
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    for number, name in enumerate(machines, 1):
        lines.append(f"{number}. {name}")
    return lines


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    models = {line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")}
    return ", ".join(sorted(models)) or platform.machine()
