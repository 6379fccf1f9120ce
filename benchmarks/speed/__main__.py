"""python -m benchmarks.speed [QUESTION ...] [--repeats N] [--out FILE]

Answers all questions, or those named, and writes them as dated Markdown.
"""

import argparse
import importlib
import os
import platform
from datetime import date
from importlib.metadata import version
from pathlib import Path

from benchmarks.speed.contest import HEADER, REPEATS, row, run

QUESTIONS = ("png", "frechet", "tokens", "generate", "features")
LIBRARIES = ("torch", "diffusers", "torch-fidelity", "numpy", "scipy", "pillow")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("questions", nargs="*", choices=[*QUESTIONS, []], metavar="QUESTION", help=", ".join(QUESTIONS))
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--out", type=Path, default=Path(f"benchmarks/speed-{date.today()}.md"))
    options = parser.parse_args()
    asked = options.questions or QUESTIONS
    rows = []
    for question in asked:
        for contest in importlib.import_module(f"benchmarks.speed.{question}").contests():
            rows.append(row(run(contest, options.repeats)))
            print(rows[-1], flush=True)
    options.out.write_text(_page(rows, asked, options.repeats))
    print(f"written: {options.out}")


def _page(rows: list[str], questions: tuple[str, ...] | list[str], repeats: int) -> str:
    import torch

    versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    lines = [
        f"# Speed, {date.today()}",
        "",
        f"`python -m benchmarks.speed {' '.join(questions)} --repeats {repeats}`",
        "",
        f"Machine: {os.cpu_count()} cores of {_processor()}, torch with {torch.get_num_threads()} threads.",
        f"Python {platform.python_version()}, {versions}.",
        "",
        "Ours and the rival run in turn. Times: median [least, most] of the repeats.",
        "",
        HEADER,
        *rows,
        "",
    ]
    return "\n".join(lines)


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    models = {line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")}
    return ", ".join(sorted(models)) or platform.machine()


if __name__ == "__main__":
    main()
