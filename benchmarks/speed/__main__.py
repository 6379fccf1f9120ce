"""python -m benchmarks.speed [QUESTION ...] [--repeats N] [--out FILE] [--busi FOLDER]

Answers all questions, or those named. Writes them as Markdown to FILE, with FILE.json beside it,
from which answers of earlier runs are taken.
"""

import argparse
import importlib
import os
import sys
import time
import traceback
from datetime import date
from pathlib import Path

from benchmarks.speed.answers import Answer, Loss, machine, page, read_answers, write_answers
from benchmarks.speed.contest import (
    HEADER,
    REPEATS,
    Contest,
    Limit,
    Question,
    Times,
    limit_row,
    row,
    run,
    seconds_of,
    skipped_row,
)

QUESTIONS = (
    "png",
    "frechet",
    "tokens",
    "generate",
    "preset",
    "threads",
    "features",
    "texture",
    "again",
    "check",
    "resume",
    "start",
    "job",
    "gpu",
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("questions", nargs="*", choices=[*QUESTIONS, []], metavar="QUESTION", help=", ".join(QUESTIONS))
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/speed.md"))
    parser.add_argument("--busi", type=Path, help="real images for `check`; without them it reads simulated ones")
    options = parser.parse_args()
    if options.busi:
        os.environ["BUSRAY_BUSI"] = str(options.busi.resolve())
    kept = options.out.with_suffix(".json")
    answers, failed = read_answers(kept), []
    for name in options.questions or QUESTIONS:
        try:
            answers[name] = ask(name, options.repeats)
        except Exception:  # its older rows stay, and the others are asked
            traceback.print_exc()
            failed.append(name)
            continue
        write_answers(kept, answers)
        options.out.write_text(page(answers, QUESTIONS, HEADER))
    print(f"written: {options.out}")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def ask(name: str, repeats: int) -> Answer:
    """All contests of one question."""
    began = time.monotonic()
    answer = Answer(name, str(date.today()), repeats, machine())
    for question in importlib.import_module(f"benchmarks.speed.{name}").questions():
        measure(question, repeats, answer)
        answer.load.append(os.getloadavg()[0])
        answer.minutes = (time.monotonic() - began) / 60
        print(answer.rows[-1], flush=True)
    return answer


def measure(question: Question, repeats: int, answer: Answer) -> None:
    """The row of a contest joins the answer, with a profile where its goal is missed."""
    if isinstance(question, Contest):
        outcome = run(question, repeats)
        answer.rows.append(row(outcome))
        if question.goal is not None and not outcome.met:
            name = f"{question.question}, against {question.rival_name}"
            answer.losses.append(Loss(name, outcome.ratio, question.goal, question.profile()))
    elif isinstance(question, Limit):
        times = Times.of([seconds_of(question.work) for _ in range(repeats)])
        answer.rows.append(limit_row(question, times))
    else:
        answer.rows.append(skipped_row(question))


if __name__ == "__main__":
    main()
