"""python -m benchmarks.speed [QUESTION ...] [--repeats N] [--out FILE] [--busi FOLDER]

Answers all questions, or those named, and writes them as dated Markdown.
"""

import argparse
import importlib
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path

from benchmarks.speed.contest import (
    HEADER,
    REPEATS,
    Contest,
    Limit,
    Outcome,
    Question,
    Times,
    limit_row,
    row,
    run,
    seconds_of,
    skipped_row,
)
from benchmarks.speed.profiles import profile

QUESTIONS = (
    "png",
    "frechet",
    "tokens",
    "generate",
    "features",
    "texture",
    "again",
    "check",
    "resume",
    "start",
    "job",
    "gpu",
)
LIBRARIES = ("torch", "diffusers", "torch-fidelity", "numpy", "scipy", "pillow", "ray")
PROFILES = 2
"""Of the questions furthest below their goals."""


@dataclass
class Answers:
    """The rows of the table so far, and what they are from."""

    rows: list[str] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    load: list[float] = field(default_factory=list)
    """Of the machine, after each question: processes that want a core."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("questions", nargs="*", choices=[*QUESTIONS, []], metavar="QUESTION", help=", ".join(QUESTIONS))
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/speed.md"))
    parser.add_argument("--busi", type=Path, help="real images for `check`; without them it reads simulated ones")
    options = parser.parse_args()
    if options.busi:
        os.environ["BUSRAY_BUSI"] = str(options.busi.resolve())
    asked, answers, began = options.questions or QUESTIONS, Answers(), time.monotonic()
    command = "make bench"
    if asked != QUESTIONS or options.repeats != REPEATS:
        command = f"python -m benchmarks.speed {' '.join(asked)} --repeats {options.repeats}"
    for name in asked:
        for question in importlib.import_module(f"benchmarks.speed.{name}").questions():
            answer(question, options.repeats, answers)
            print(answers.rows[-1], flush=True)
            # After each question: one that fails does not take the others with it.
            options.out.write_text(_page(answers, command, (time.monotonic() - began) / 60))
    losses = _losses(answers.outcomes)
    options.out.write_text(_page(answers, command, (time.monotonic() - began) / 60, losses))
    print(f"written: {options.out}")


def answer(question: Question, repeats: int, answers: Answers) -> None:
    """Measure one question; its row joins the answers."""
    if isinstance(question, Contest):
        outcome = run(question, repeats)
        answers.outcomes.append(outcome)
        answers.rows.append(row(outcome))
    elif isinstance(question, Limit):
        times = Times.of([seconds_of(question.work) for _ in range(repeats)])
        answers.rows.append(limit_row(question, times))
    else:
        answers.rows.append(skipped_row(question))
    answers.load.append(os.getloadavg()[0])


def _page(answers: Answers, command: str, minutes: float, losses: Sequence[str] = ()) -> str:
    import torch

    versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    lines = [
        f"# Speed, {date.today()}",
        "",
        f"`{command}`: {minutes:.0f} minutes.",
        "",
        f"Machine: {os.cpu_count()} cores of {_processor()}, torch with {torch.get_num_threads()} threads.",
        f"Load of the machine after each question: {min(answers.load):.1f} to {max(answers.load):.1f}.",
        f"Python {platform.python_version()}, {versions}.",
        "",
        "Ours and the rival run in turn. Times: median [least, most] of the repeats. The goal is the",
        "least value of rival / ours, or the most seconds of work without a rival. `by CPU` is the same",
        "ratio of the CPU seconds of all threads, which other work on the machine changes least.",
        "",
        HEADER,
        *answers.rows,
        "",
        *losses,
    ]
    return "\n".join(lines)


def _losses(outcomes: list[Outcome]) -> list[str]:
    """Where our time goes in the questions furthest below their goals."""
    missed = [outcome for outcome in outcomes if not outcome.met and outcome.contest.profiled]
    missed.sort(key=lambda outcome: outcome.ratio / outcome.contest.goal)
    if not missed:
        return []
    lines = ["## Where the time goes", ""]
    for outcome in missed[:PROFILES]:
        contest = outcome.contest
        lines += [f"**{contest.question}** against {contest.rival_name}: {outcome.ratio:.2f}, goal {contest.goal:g}."]
        lines += ["", *profile(contest.ours), ""]
    return lines


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    models = {line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")}
    return ", ".join(sorted(models)) or platform.machine()


if __name__ == "__main__":
    main()
