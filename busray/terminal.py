"""Tables, progress and figures on a terminal."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

LINE_SECONDS = 10.0
"""Between plain progress lines where there is no terminal."""


WIDEST = 1000
"""Characters of a table's line where there is no terminal."""


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(escape(column), justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(escape(str(cell)) for cell in row))
    # Into a file a table is as wide as it needs to be; rich would take 80 columns and fold its figures.
    Console(width=None if sys.stdout.isatty() else WIDEST).print(table)


def print_figures(figures: list[Any], sentences: list[str]) -> None:
    from busray.report.classes import consistency_rows
    from busray.report.metrics import DISTANCES, METRICS
    from busray.report.tables import by_extractor, narrow_rows, without_clean

    whole, _ = without_clean(figures)
    reference = next(figure.reference for figure in figures if figure.protocol == "synthetic-only")
    for extractor, measured in by_extractor(whole).items():
        for metric in (name for name in DISTANCES if any(f.metric == name and not f.floor for f in measured)):
            heading = f"{METRICS[metric].heading} ({extractor}) against {reference} images; synthetic-only unless noted"
            print_table(heading, *narrow_rows(measured, metric))
    agreement = consistency_rows(whole)
    if agreement[1]:
        print_table("Does a classifier of real images see each drawn image's class?", *agreement)
    for sentence in sentences:
        print(sentence)


def print_ablation(report: dict[str, Any]) -> None:
    from busray.records import INCEPTION
    from busray.report.ablation import compared, configuration_rows, nearness_rows, sweep_rows
    from busray.report.metrics import METRICS
    from busray.report.tables import difference_rows, figures_of, narrow_rows

    ablation, every = report["ablation"], figures_of(report)
    figures = compared(every, ablation)
    for metric in ("fid", "kid"):
        heading = f"{METRICS[metric].heading} against {ablation['reference']} images; synthetic-only unless noted"
        print_table(heading, *narrow_rows(figures, metric))
    for note in ablation["notes"]:
        print(note)
    overall = [f for f in figures if (f.class_name, f.extractor) == ("all", INCEPTION)]
    print_table("Seed-paired KID differences", *difference_rows(overall))
    print_table("Copying and class drift", *nearness_rows(figures, ablation["arms"], ablation["held_out"]))
    sweeps = sweep_rows(every, ablation["curves"], ablation["sweep_reference"])
    print_table(f"Sweeps, against {ablation['sweep_reference']} images", *sweeps)
    print_table("Every configuration tried", *configuration_rows(ablation["configurations"]))
    for sentence in report["verdicts"]:
        print(sentence)


@contextmanager
def reporter() -> Iterator[Any]:
    """tell(stage, done, total): bars with rate and time left on a terminal, a plain line now and then elsewhere."""
    if not sys.stderr.isatty():
        yield _plain_lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        tasks: dict[str, Any] = {}

        def tell(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total, completed=done, rate="")
            task = progress.tasks[tasks[stage]]
            speed = task.speed
            progress.update(tasks[stage], completed=done, total=total, rate=f"{speed:.1f}/s" if speed else "")

        yield tell


def _plain_lines() -> Any:
    first: dict[str, tuple[float, int]] = {}
    last: dict[str, float] = {}
    finished = set()

    def tell(stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        began, already = first.setdefault(stage, (now, done))
        if stage in finished or (stage in last and now - last[stage] < LINE_SECONDS and done < total):
            return
        last[stage] = now
        # over the whole stage: work comes in batches, and the last of a shard may be small
        rate = (done - already) / (now - began) if now > began else 0.0
        text = f"{stage}: {done}/{total}"
        if done >= total:
            finished.add(stage)
        elif rate:
            text += f", {rate:.1f}/s, {(total - done) / rate:.0f} s left"
        print(text, file=sys.stderr, flush=True)

    return tell
