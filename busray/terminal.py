"""What commands show on a terminal: tables, sentences, progress."""

import io
import shlex
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import TYPE_CHECKING, Any

from busray.records import CLASS_ALL, INCEPTION, Figure

if TYPE_CHECKING:
    from busray.corpus.damage import Findings
    from busray.corpus.manifest import Quarantine
    from busray.corpus.pace import Sampled
    from busray.corpus.verify import VerifyResult
    from busray.doctor import Finding
    from busray.evidence.reader_study import Score
    from busray.report.tables import Table
    from busray.report.warnings import Warned
    from busray.run.progress import Driver
    from busray.settings_text import Setting
    from busray.stages.plan import JobPlan
    from busray.stages.status import CorpusStatus, RunStatus
    from busray.workers import Report


class Talk(Enum):
    """How much is printed besides results and errors."""

    QUIET = "-q"
    USUAL = ""
    VERBOSE = "-v"


talk = Talk.USUAL
"""Of this process; cli.py sets it for each command."""

LINE_SECONDS = 10.0  # between plain progress lines where there is no terminal
TERMINAL_WIDTH = 80
WRAPPER = textwrap.TextWrapper(TERMINAL_WIDTH, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
LONG_CELL = 30  # characters: longer cells of words are wrapped
WIDEST = 1000  # characters of a table's line where there is no terminal
PROBLEMS_SHOWN = 20  # problems of `verify` that are printed; the rest is counted


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    # Into a file a table is as wide as it needs: rich would take 80 columns and fold figures.
    is_terminal = sys.stdout.isatty()
    # Not printed by rich, which itself ends the process where a pipe is closed.
    printed = io.TextIOWrapper(io.BytesIO(), sys.stdout.encoding or "utf-8", "backslashreplace", newline="")
    console = Console(file=printed, force_terminal=is_terminal or None, width=None if is_terminal else WIDEST)
    widths = column_widths([columns, *rows])
    for shown in fitting_columns([columns, *rows], console.width):
        table = Table(title=escape(title), title_justify="left")
        for i in shown:
            side, least = "left" if i == 0 else "right", min(widths[i], console.width - 4)
            table.add_column(escape(columns[i]), justify=side, overflow="fold", min_width=least)
        for row in rows:
            table.add_row(*(escape(str(row[i])) for i in shown))
        console.print(table)
        title = f"{title.removesuffix(' (more columns)')} (more columns)"
    printed.seek(0)
    sys.stdout.write(printed.read())


def column_widths(rows: Sequence[Sequence[str]]) -> list[int]:
    """Characters that each column needs; the first row are the headings, which may be wrapped."""
    widths = []
    for heading, *cells in zip(*rows, strict=True):
        words = [word for cell in (heading, *cells) for word in str(cell).split()]
        longest = max(map(len, words), default=0)
        widths.append(max(longest, min(LONG_CELL, max((len(str(cell)) for cell in cells), default=0))))
    return widths


def fitting_columns(rows: Sequence[Sequence[str]], width: int) -> list[list[int]]:
    """The columns of each part of a table that together are too wide; each part has the first.

    No word is broken: a column is as wide as its longest cell, or as LONG_CELL where that has
    spaces to be wrapped at.
    """
    needs = [needed + 3 for needed in column_widths(rows)]
    parts, used = [[0]], 1 + needs[0]
    for i in range(1, len(needs)):
        if used + needs[i] > width and len(parts[-1]) > 1:
            parts.append([0])
            used = 1 + needs[0]
        parts[-1].append(i)
        used += needs[i]
    return parts


def print_outcome(
    figures: Sequence[Figure],
    warned: Sequence["Warned"],
    corpus: Mapping[str, Any],
    released: str,
    url: str,
    *,
    simulated: bool,
) -> None:
    """What a run came to: a verdict, one table of 80 columns, what to do next.

    corpus: of report.json. released: the arm that the corpus is. simulated: phantoms stand in for
    real images.
    """
    from busray.report.outcome import outcome_table, verdict_lines
    from busray.report.simulated import words_for

    words = words_for(simulated=simulated)
    _print_wrapped(list(map(words, verdict_lines(figures, warned, corpus, released, url))))
    table = outcome_table(figures, released, TERMINAL_WIDTH)
    reference = next(figure.reference for figure in figures if figure.protocol == "synthetic-only")
    print()
    _print_wrapped([words(f"Against real {reference} images; lower FID, KID, AUC: nearer. *: released corpus")])
    _print_columns([list(map(words, row)) for row in (table.columns, *table.rows)])
    quoted = shlex.quote(url)
    print()
    print("Next: look at the report's images, search for copies, write the data-set card:")
    print(f"  busray audit {quoted}\n  busray card {quoted}")


def _print_columns(rows: Sequence[Sequence[str]]) -> None:
    """The first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths))]
        print("  ".join(cells).rstrip())


def print_figures(
    figures: Sequence[Figure], sentences: Sequence[str], warned: Sequence["Warned"], *, simulated: bool
) -> None:
    """A table for each extractor and distance, class consistency, what the figures say, and what
    to know before the corpus is used: last, where it is seen.

    simulated: phantoms stand in for real images.
    """
    from busray.report.classes import consistency_rows
    from busray.report.metrics import DISTANCES, METRICS
    from busray.report.simulated import words_for
    from busray.report.tables import by_extractor, narrow_rows, without_clean

    words = words_for(simulated=simulated)
    whole, _ = without_clean(figures)
    reference = next(figure.reference for figure in figures if figure.protocol == "synthetic-only")
    for extractor, of_extractor in by_extractor(whole).items():
        measured = {figure.metric for figure in of_extractor if not figure.floor}
        for metric in DISTANCES:
            if metric in measured:
                heading = f"{METRICS[metric].heading} ({extractor})"
                title = f"{heading} against {reference} images; synthetic-only unless noted"
                _print_words(title, narrow_rows(of_extractor, metric), words)
    agreement = consistency_rows(whole)
    if agreement.rows:
        _print_words("Does a classifier of real images see each drawn image's class?", agreement, words)
    print(*sentences, sep="\n")
    print_warned(warned)


def print_warned(warned: Sequence["Warned"]) -> None:
    """Warnings, with what to do about each."""
    if warned:
        print("", "Read this first:", sep="\n")
    for warning in warned:
        print(f"- {warning.text} {warning.advice}")


def _print_words(title: str, table: "Table", words: Callable[[str], str]) -> None:
    """A table whose texts call images by what they are."""
    print_table(words(title), list(map(words, table.columns)), [list(map(words, row)) for row in table.rows])


def print_settings(settings: Sequence["Setting"]) -> None:
    """Each with its default, what it takes and what it means; in at most 80 columns."""
    for setting in settings:
        print(f"{setting.name} = {setting.default}")
        for text in (f"({setting.takes})", setting.text):
            if text:
                print(textwrap.fill(text, 80, initial_indent="    ", subsequent_indent="    ", break_long_words=False))


def print_differences(a: str, b: str, changed: Mapping[str, tuple[Any, Any]]) -> None:
    """changed: setting -> (value in a, value in b)."""
    for name, (first, second) in changed.items():
        print(f"{name}\n  - {_value(first)}\n  + {_value(second)}")
    print(f"{len(changed)} settings differ (- {a}, + {b})" if changed else "no setting differs")


def _value(value: Any) -> str:
    from busray.settings_text import yaml_value

    return yaml_value(value)


def print_ablation(report: dict[str, Any]) -> None:
    """report: what ablate.json holds."""
    from busray.report.ablation import compared, configuration_rows, nearness_rows, sweep_rows
    from busray.report.metrics import METRICS
    from busray.report.tables import difference_rows, figures_of, narrow_rows

    ablation, figures = report["ablation"], figures_of(report)
    of_arms = compared(figures, ablation)
    for metric in ("fid", "kid"):
        heading = f"{METRICS[metric].heading} against {ablation['reference']} images"
        print_table(f"{heading}; synthetic-only unless noted", *narrow_rows(of_arms, metric))
    for note in ablation["notes"]:
        print(note)
    overall = [f for f in of_arms if (f.class_name, f.extractor) == (CLASS_ALL, INCEPTION)]
    print_table("Seed-paired KID differences", *difference_rows(overall))
    nearness = nearness_rows(of_arms, ablation["arms"], ablation["held_out"])
    print_table("Copying and class drift", *nearness)
    sweeps = sweep_rows(figures, ablation["curves"], ablation["sweep_reference"])
    print_table(f"Sweeps, against {ablation['sweep_reference']} images", *sweeps)
    print_table("Every configuration tried", *configuration_rows(ablation["configurations"]))
    print(*report["verdicts"], sep="\n")


def print_study(architecture: str, figures: Sequence[Figure], sentences: Sequence[str]) -> None:
    from busray.report.study import arm_rows, comparison_rows

    for reference in dict.fromkeys(figure.reference for figure in figures):
        what = f"{architecture}, {reference} images [95 % interval]"
        print_table(f"Classifiers of real images, {what}", *arm_rows(figures, reference))
        print_table(f"Comparisons, {what}", *comparison_rows(figures, reference))
    print(*sentences, sep="\n")


def print_audit(figures: Sequence[Figure], sentences: Sequence[str]) -> None:
    from busray.report.audit import audit_rows

    print_table("Copies of training images", *audit_rows(figures))
    print(*sentences, sep="\n")


def print_scores(scores: Sequence[tuple[str, "Score"]]) -> None:
    """(reader, score) of each returned sheet of a reader study."""
    from busray.report.metrics import Metric

    share, rows = Metric("", 3), []
    for reader, score in scores:
        estimates = (score.class_synthetic.estimate, score.class_real.estimate)
        n = f"{score.synthetic} / {score.real}"
        rows.append([reader, share.text(score.auc), n, *map(share.text, estimates)])
    columns = ("reader", "AUC", "n synthetic / real", "class right, synthetic", "class right, real")
    title = "Synthetic against real images, with 95 % intervals (AUC 0.5: guessing)"
    print_table(title, columns, rows)


def print_doctor(url: str, findings: Sequence["Finding"]) -> None:
    answers = {True: "yes", False: "NO", None: "not tried"}
    rows = [(finding.check, answers[finding.passed]) for finding in findings]
    print_table(f"{url}: is it safe to run on?", ("check", "passed"), rows)


def print_verify(url: str, results: Mapping[str, "VerifyResult"]) -> None:
    """results: corpus -> what verify() found."""
    rows, problems = [], []
    for name, result in results.items():
        counts = (result.planned, result.committed, result.quarantined, result.shards)
        rows.append((name, *map(str, counts), str(len(result.problems))))
        problems += [f"{name}: {problem}" for problem in result.problems]
    columns = ("corpus", "planned", "committed", "quarantined", "shards", "problems")
    print_table(f"{url}: the manifest against the world", columns, rows)
    for name, result in results.items():
        print(f"{name}: manifest digest {result.digest}")
    for problem in problems[:PROBLEMS_SHOWN]:
        print(problem)
    if len(problems) > PROBLEMS_SHOWN:
        print(f"... and {len(problems) - PROBLEMS_SHOWN} more")


def print_status(status: "RunStatus") -> None:
    """How far a run is; in at most 80 columns."""
    rows: list[tuple[str, ...]] = []
    for corpus in status.corpora:
        for row in corpus.classes:
            share = f"{100 * row.committed / row.planned:.0f} %" if row.planned else "-"
            left = "-" if row.hours_left is None else duration(3600 * row.hours_left)
            left = "" if row.committed >= row.planned else left
            counts = (f"{row.planned:,}", f"{row.committed:,}", share, f"{row.per_hour:,.0f}", left)
            rows.append((corpus.name, row.class_name, *counts))
    columns = ("corpus", "class", "planned", "done", "", "images/h", "left")
    print_table(f"{status.url}; images/h over the last ten minutes", columns, rows)
    lines: list[str] = []
    for corpus in status.corpora:
        lines += _corpus_lines(corpus, status)
    if status.checkpoint:
        step, time_of = status.checkpoint
        lines.append(f"newest checkpoint: step {step:,},{_ago(time_of, status.now)}".rstrip(","))
    if not any(driver.lives for driver in status.drivers):
        seen = "" if status.drivers else " (none has left a word here: an older busray drew it, or nobody yet)"
        lines.append(f"driver: none works on it{seen}")
    for driver in status.drivers:
        if driver.lives or driver is status.drivers[0]:
            lines += _driver_lines(driver)
    lines += [f"said{_ago(time_of, status.now)}: {message}" for time_of, message in status.notes]
    _print_wrapped(lines)


def _print_wrapped(lines: Sequence[str]) -> None:
    for line in lines:
        print(WRAPPER.fill(line))


def _corpus_lines(corpus: "CorpusStatus", status: "RunStatus") -> list[str]:
    lines: list[str] = []
    if not corpus.is_planned:
        lines.append("not planned yet; the settings ask for these images")
    if corpus.shards:
        rejects = corpus.quarantined
        lines.append(
            f"{corpus.shards:,} shards, the newest{_ago(corpus.newest, status.now)}; "
            f"quarantined images: {rejects.value:,.0f}{_sample(rejects)}{_left(corpus)}"
        )
    for device, hours in corpus.hours.items():
        unit, value = "actor-hours", hours.value
        if device.startswith("cuda"):
            unit, value = "GPU-hours", hours.value * status.gpus_per_actor
        lines.append(f"{value:,.2f} {unit} of drawing{_sample(hours)} on {device}")
    lines += [f"quarantined {image_id}: {reason}" for image_id, reason in corpus.reasons]
    lines += [f"{key} cannot be read" for key in corpus.unreadable]
    return [f"{corpus.name}: {line}" for line in lines]


def _driver_lines(driver: "Driver") -> list[str]:
    word = driver.word
    state = "works"
    if word.ended is not None:
        state = "has ended"
    elif not driver.lives:
        state = "is gone without an end"
    lines = [
        f"driver: process {word.process} on {word.host} {state}; its last word is {duration(driver.age)} old",
        f"    {word.command}",
    ]
    if word.total:
        lines.append(f"    {word.stage}: {word.done:,}/{word.total:,}")
    elif word.stage:
        lines.append(f"    {word.stage}")
    return lines


def _sample(sum_of: "Sampled") -> str:
    return "" if sum_of.is_exact else f" (from {sum_of.n:,} of {sum_of.of:,} records)"


def _left(corpus: "CorpusStatus") -> str:
    if not corpus.hours_left:
        return ""
    return f"; {corpus.per_hour:,.0f} images/h, {duration(3600 * corpus.hours_left)} left"


def _ago(time_of: float | None, now: float) -> str:
    return "" if time_of is None else f" {duration(max(0.0, now - time_of))} ago"


def duration(seconds: float) -> str:
    """Such as `12 s`, `4.5 min`, `3.2 h`, `11.0 days`."""
    for unit, length, most in (("s", 1.0, 100), ("min", 60.0, 100), ("h", 3600.0, 48)):
        if seconds < most * length:
            return f"{seconds / length:.{0 if unit == 's' else 1}f} {unit}"
    return f"{seconds / 86400:.1f} days"


def print_plan(plan: "JobPlan", price: float | None, warnings: Sequence[str]) -> None:
    """What a job takes; in at most 80 columns."""
    estimates, sums = plan.estimates(), plan.total(price)
    uses_gpus = any(work.gpus for work in (*plan.drawing, *plan.features))
    rows = [
        ("left to do", "images", "shards", "each", "GPU-h" if uses_gpus else "actor-h", "wall", "bytes", "requests")
    ]
    for one in estimates:
        hours = one.gpu_hours if uses_gpus else one.worker_hours
        times = (_time(one.unit_seconds), _hours(hours), _time(one.wall_seconds))
        rows.append((one.name, f"{one.images:,}", _count(one.units), *times, _bytes(one.bytes), _count(one.requests)))
    images, units = sum(one.images for one in estimates), sum(one.units or 0 for one in estimates)
    hours, known = sums.gpu_hours if uses_gpus else sums.worker_hours, sums.times_known
    times = ("", _at_least(hours, known, _hours), _at_least(sums.wall_seconds, known, _time))
    size = _at_least(sums.bytes, sums.bytes_known, _bytes)
    counts = [_at_least(count, sums.units_known, _count) for count in (units, sums.requests)]
    rows.append(("all", f"{images:,}", counts[0], *times, size, counts[1]))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths))]
        print(" ".join(cells).rstrip())
    lines: list[str] = []
    by_rate: dict[str, list[str]] = {}
    for work in (*plan.drawing, *plan.features):
        text = f"{work.rate.seconds:.3g} s an image ({work.rate.source})" if work.rate else ""
        by_rate.setdefault(text, []).append(work.name)
    for text, names in by_rate.items():
        known = text or "not known; --probe measures it"
        if not text and any(work.rate is None for work in plan.drawing):
            known += ", --rates=RUN takes that of drawing from an earlier run"
        lines.append(f"rate of {', '.join(names)}: {known}")
    if price is not None and sums.cost is None:
        lines.append("cost: not known without a rate")
    elif sums.cost is not None:
        least = "" if sums.times_known else "at least "
        lines.append(f"cost: {least}{sums.cost:,.2f} at {price:g} a GPU-hour; a GPU is held until its stage ends")
    if not sums.times_known:
        lines.append("> and ?: the stages without a rate are not in it")
    lines += plan.notes
    lines += [f"warning: {warning}" for warning in warnings]
    _print_wrapped(lines)


def short_plan(plan: "JobPlan") -> str:
    """What `run` says of it before it starts, in one or two lines."""
    from busray.corpus.cost import estimate, total

    left: list[str] = []
    for work in plan.drawing:
        if work.units:
            cut = f" ({len(work.units):,} shards)" if work.is_cut else ""
            left.append(f"{work.name} {work.images:,} images{cut}")
    if not left:
        return "plan: every image is drawn"
    drawn = f"plan: to draw: {', '.join(left)}, on {plan.drawing[0].workers} actors"
    sums = total([estimate(work) for work in plan.drawing])
    if not sums.worker_hours:
        return f"{drawn}\n    how long that takes is known after the first shards; `busray plan --probe` measures it"
    least = "" if sums.times_known else "at least "
    hours = f", {sums.gpu_hours:,.1f} GPU-hours" if sums.gpu_hours else ""
    source = next(work.rate.source for work in plan.drawing if work.rate)
    return f"{drawn}\n    {least}{duration(sums.wall_seconds)}{hours}, by {source}"


def _time(seconds: float | None) -> str:
    return "?" if seconds is None else duration(seconds)


def _count(count: float | None) -> str:
    return "?" if count is None else f"{count:,.0f}"


def _hours(hours: float | None) -> str:
    return "?" if hours is None else f"{hours:,.1f}"


def _at_least(amount: float, known: bool, text: Callable[[float | None], str]) -> str:
    """A sum; `>` before one that lacks a part, `?` where nothing of it is known."""
    if known:
        return text(amount)
    return f">{text(amount)}" if amount else "?"


def _bytes(size: float | None) -> str:
    """Such as `312 kB`, `1.5 GB`."""
    if size is None:
        return "?"
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.{0 if unit in ('B', 'kB') else 1}f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"


def print_evidence(found: "Findings") -> None:
    """What `verify --evidence` read, and every damaged object."""
    for damage in found.damages:
        print(f"{damage.key}: {damage.reason}")
    print(f"evidence: {found.compared} objects and images compared with their digests, {len(found.damages)} damaged")
    _print_not_covered(found)


def print_damages(url: str, found: "Findings") -> None:
    """What `repair` found: each damaged object, and what makes it again."""
    for damage in found.damages:
        print(f"{damage.key}: {damage.reason}\n    {damage.then}")
        for key in damage.aside if len(damage.aside) > 1 else ():
            print(f"    aside: {key}")
    print(f"{url}: {len(found.damages)} damaged of {found.compared} objects and images with a digest")
    _print_not_covered(found)


def _print_not_covered(found: "Findings") -> None:
    if found.uncovered:
        print(
            f"not covered: {len(found.uncovered)} objects, such as {found.uncovered[0]}, were stored before busray "
            "kept digests. They can be read, and that is all that is known"
        )
    for note in found.notes:
        print(f"not covered: {note}")


def print_quarantine(url: str, found: "Quarantine", allowed: float) -> None:
    """Say, on standard error, that a corpus has more quarantined images than allowed."""
    examples = "".join(f"  {image_id}: {reason}\n" for image_id, reason in found.examples)
    print(
        f"busray: {found.images} of {found.planned} planned images are quarantined, more than "
        f"corpus.max_quarantined={allowed} allows:\n{examples}"
        f"every id and reason is in the records, {url}/commits/; the corpus and its manifest are "
        "complete otherwise. Fix the cause and draw into another output, or raise "
        "corpus.max_quarantined",
        file=sys.stderr,
    )


def note(text: str) -> None:
    """A line on standard error, unless `-q` asks for results and errors alone."""
    if talk is not Talk.QUIET:
        print(text, file=sys.stderr)


@contextmanager
def reporter() -> Iterator["Report"]:
    """report(stage, done, total): bars on a terminal, a plain line now and then elsewhere; nothing
    with `-q`."""
    if talk is Talk.QUIET:
        yield lambda stage, done, total: None
        return
    if not sys.stderr.isatty():
        yield _plain_lines()
        return
    from rich import progress as bars
    from rich.console import Console

    name, rates = bars.TextColumn("{task.description}"), bars.TextColumn("{task.fields[rate]}")
    columns = (bars.SpinnerColumn(), name, bars.BarColumn(), bars.MofNCompleteColumn(), rates)
    console = Console(stderr=True)  # standard output has the figures only
    with bars.Progress(*columns, bars.TimeRemainingColumn(), console=console) as progress:
        tasks: dict[str, Any] = {}

        def report(stage: str, done: int, total: int) -> None:
            if not total:
                console.print(stage, markup=False, highlight=False)
                return
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total, completed=done, rate="")
            speed = progress.tasks[tasks[stage]].speed
            rate = f"{speed:.1f}/s" if speed else ""
            progress.update(tasks[stage], completed=done, total=total, rate=rate)

        yield report


def _plain_lines() -> "Report":
    """A line when a stage starts and ends, and every LINE_SECONDS between."""
    first: dict[str, tuple[float, int]] = {}
    last: dict[str, float] = {}
    finished: set[str] = set()

    def report(stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        started, already_done = first.setdefault(stage, (now, done))
        too_soon = stage in last and now - last[stage] < LINE_SECONDS and done < total
        if stage in finished or too_soon:
            return
        last[stage] = now
        # Over the whole stage: items come in batches, and the last batch of a shard may be small.
        rate = (done - already_done) / (now - started) if now > started else 0.0
        line = f"{stage}: {done}/{total}" if total else stage
        if done >= total:
            finished.add(stage)
        elif rate:
            line += f", {rate:.1f}/s, {(total - done) / rate:.0f} s left"
        print(line, file=sys.stderr, flush=True)

    return report
