"""The `busray` command: prints for people; every stage's work is elsewhere. Imports nothing heavy until needed."""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from busray import __version__
from busray.records import Stopped, UserError

CONFIGS = (Path(__file__).parent / "configs", Path(__file__).parents[1] / "configs")
"""In an installed wheel, and in a checkout."""
LINE_SECONDS = 10.0
"""Between plain progress lines where there is no terminal."""
SHOWN = 20
"""Problems that `verify` prints; the rest is counted."""
WIDEST = 1000
"""Characters of a table's line where there is no terminal."""

COMMANDS = {
    "doctor": "prove that a store is safe to run on: create-only, consistent, permissions",
    "check": "look a folder of labelled images over: counts, duplicates, conflicts, masks, framing",
    "run": "the whole job of a config: check, fine-tune, generate, evaluate, report",
    "demo": "the whole job on simulated images, into runs/demo",
    "finetune": "train the config's adapters",
    "generate": "draw the config's corpus",
    "evaluate": "compare the config's arms with the real images and write the report",
    "ablate": "compare base, LoRA, textual inversion and both, each also refined, and sweep strength and guidance",
    "study": "train classifiers with and without a finished run's synthetic images and test them on real ones",
    "audit": "look for copies of training images in a run's corpus; exit status 1 unless there is none",
    "reproduce": "make one image of a run again and compare its pixels",
    "card": "write a run's data-set card; --card.license, .source, .ethics and .contact state what it says",
    "readers": "a blinded reader study: real and synthetic images to be told apart, and the score of a returned sheet",
    "verify": "check a run's manifest against its records, objects and plan: every planned image exactly once",
    "gc": "list a run's orphaned objects, or delete them",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 failed or found a difference, 2 a user's mistake, 130 interrupted."""
    parser = _parser()
    options, flags = parser.parse_known_args(arguments)
    command = shlex.join(["busray", *(sys.argv[1:] if arguments is None else arguments)])
    try:
        return COMMAND_FUNCTIONS[options.command](options, flags)
    except UserError as error:
        print(f"busray: {error}", file=sys.stderr)
        return 2
    except Stopped as error:
        print(f"busray: {error}\nrun the same command again to go on from here: {command}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("busray: interrupted; run the same command again to go on from here", file=sys.stderr)
        return 130


def finish(status: int) -> NoReturn:
    """Ends the process here: all is stored, and what aborted a finished driver once came after this, it seems (native
    threads in the interpreter's teardown)."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def process() -> NoReturn:
    """`main` of this process's arguments, as the whole process."""
    finish(main())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="busray",
        description="From a folder of labelled breast-ultrasound images to a synthetic corpus with its evidence.",
        epilog="Settings of the config are overridden by flags such as --sampling.steps=25. See README.md.",
    )
    parser.add_argument("--version", action="version", version=f"busray {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        if name == "check":
            command.add_argument("data", type=Path, help="folder with one folder of images a class")
            command.add_argument("--json", type=Path, help="also write the findings to this file")
            command.add_argument("--metadata", type=Path, help="CSV with the columns file, group and any others")
        elif name == "doctor":
            command.add_argument("url", help="folder or URL that runs are to be under, such as s3://BUCKET/runs")
        elif name == "readers":
            _readers_parser(command)
        elif name in ("audit", "reproduce", "card", "verify", "gc"):
            command.add_argument("run", help="folder or URL of the run")
            if name == "reproduce":
                command.add_argument("image_id")
            elif name == "gc":
                command.add_argument("--delete", action="store_true", help="delete what is listed")
        elif name != "demo":
            command.add_argument("config", type=Path, help="YAML file, such as configs/demo.yaml")
    return parser


def _readers_parser(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    export = actions.add_parser("export", help="write the readers' folder and, beside it, the key")
    export.add_argument("run", help="folder or URL of the run")
    export.add_argument("folder", type=Path, help="new folder for the readers; the key becomes FOLDER-key.csv")
    export.add_argument("--images", type=int, default=20, help="a class and side (default %(default)s)")
    export.add_argument("--seed", type=int, help="of choice and order; default: drawn by chance, and printed")
    score = actions.add_parser("score", help="score a returned sheet")
    score.add_argument("sheets", type=Path, nargs="+", metavar="SHEET", help="filled-in sheet, one a reader")
    score.add_argument("key", type=Path, metavar="KEY", help="the study's key")


# ---- commands -------------------------------------------------------------------------------------------------------


def _doctor(options: argparse.Namespace, flags: list[str]) -> int:
    from busray.storage import Store
    from busray.store_check import complaint, examine

    _refuse(flags)
    store = Store(options.url)
    findings = examine(store)
    answers = {True: "yes", False: "NO", None: "not tried"}
    rows = [(finding.promise, answers[finding.held]) for finding in findings]
    print_table(f"{store.url}: is it safe to run on?", ("promise", "kept"), rows)
    problem = complaint(store, findings)
    if problem:
        raise UserError(problem)
    return 0


def _check(options: argparse.Namespace, flags: list[str]) -> int:
    from busray.data.check import check
    from busray.records import to_json

    _refuse(flags)
    if options.json and not options.json.absolute().parent.is_dir():
        raise UserError(f"--json: no folder {options.json.parent}: make it first, or name another")
    with reporter() as tell:
        report = check(options.data, None, options.metadata, lambda done, total: tell("check", done, total))
    for table in report.tables():
        print_table(table.title, table.columns, table.rows)
    if options.json:
        options.json.write_bytes(to_json(report.to_dict()))
    return 0


def _run(options: argparse.Namespace, flags: list[str]) -> int:
    from busray.config import load_config

    return whole_job(load_config(options.config, flags), f"busray run {options.config} {shlex.join(flags)}".strip())


def _demo(options: argparse.Namespace, flags: list[str]) -> int:
    from busray.config import load_config

    folder = next((folder for folder in CONFIGS if folder.is_dir()), CONFIGS[0])
    return whole_job(load_config(folder / "demo.yaml", flags), f"busray demo {shlex.join(flags)}".strip())


def whole_job(config: Any, command: str) -> int:
    """Run everything, print the figures and where the report is; status 1 if an image is neither drawn nor excused."""
    with reporter() as tell:
        run = _open(config, tell, command=command)
        from busray.cluster.pipeline import run_all, said

        figures = run_all(run)
    _print_figures(figures, said(run, figures))
    print(f"report: {config.output.rstrip('/')}/report.html")
    return _quarantine_status(config, released=True, arms=True)


def _quarantine_status(config: Any, *, released: bool = False, arms: bool = False) -> int:
    """1, with a message, where a corpus has more quarantined images than corpus.max_quarantined; else 0."""
    from busray.corpus.arms import arms_to_draw
    from busray.corpus.manifest import quarantine
    from busray.records import arm_prefix
    from busray.storage import Store

    prefixes = [""] if released else []
    prefixes += [arm_prefix(arm) for arm in arms_to_draw(config)] if arms else []
    allowed = config.corpus.max_quarantined
    status = 0
    for prefix in prefixes:
        store = Store(config.output).sub(prefix) if prefix else Store(config.output)
        found = quarantine(store)
        if found.share > allowed:
            status = 1
            print(
                f"busray: {found.images} of {found.planned} planned images are quarantined, more than "
                f"corpus.max_quarantined={allowed} allows:\n"
                + "".join(f"  {image_id}: {reason}\n" for image_id, reason in found.examples)
                + f"every id and reason is in the records, {store.url}/commits/; the corpus and its manifest are "
                "complete otherwise. Mend the cause and draw into another output, or raise corpus.max_quarantined",
                file=sys.stderr,
            )
    return status


def _open(config: Any, tell: Any, **options: Any) -> Any:
    """Checked before Ray and torch are loaded, so that a mistake is told at once."""
    from busray.cluster.run import open_run

    tell("start", 0, 1)
    run = open_run(config, tell, **options)
    tell("start", 1, 1)
    return run


def _finetune(options: argparse.Namespace, flags: list[str]) -> int:
    from busray.config import load_config

    config = load_config(options.config, flags)
    with reporter() as tell:
        run = _open(config, tell, needs_inception=False)
        from busray.cluster.finetune import finetune
        from busray.cluster.pipeline import timed

        record = timed(run, "finetune", lambda: finetune(run))
    print(f"adapters: {config.output.rstrip('/')}/{record['folder']}")
    return 0


def _generate(options: argparse.Namespace, flags: list[str]) -> int:
    from busray.config import load_config

    config = load_config(options.config, flags)
    with reporter() as tell:
        run = _open(config, tell, needs_inception=False)
        from busray.cluster.generate import generate
        from busray.cluster.run import timed

        digest = timed(run, "generate", lambda: generate(run))
    print(f"corpus: {config.output.rstrip('/')}, manifest digest {digest}")
    return _quarantine_status(config, released=True)


def _evaluate(options: argparse.Namespace, flags: list[str]) -> int:
    from busray.config import load_config

    config = load_config(options.config, flags)
    with reporter() as tell:
        run = _open(config, tell, command=f"busray evaluate {options.config} {shlex.join(flags)}".strip())
        from busray.cluster.generate import generate
        from busray.cluster.pipeline import measure, refuse_unfinished, said, timed, write_report
        from busray.corpus.arms import arms_to_draw

        refuse_unfinished(run)
        for arm in arms_to_draw(config):
            timed(run, f"generate {arm}", lambda arm=arm: generate(run, arm))
        figures = measure(run)
        write_report(run, figures)
    _print_figures(figures, said(run, figures))
    print(f"report: {config.output.rstrip('/')}/report.html")
    return _quarantine_status(config, arms=True)


def _ablate(options: argparse.Namespace, flags: list[str]) -> int:
    from busray.config import load_config
    from busray.corpus.ablation import parts

    config = load_config(options.config, flags)
    drawn = parts(config)
    with reporter() as tell:
        run = _open(config, tell, command=f"busray ablate {options.config} {shlex.join(flags)}".strip())
        from busray.cluster.ablate import PAGE, TABLE, ablate

        report = ablate(run)
    _print_ablation(report)
    folder = config.output.rstrip("/")
    print(f"figures: {folder}/{TABLE}\nreport: {folder}/{PAGE}")
    return max(_quarantine_status(part.config, released=True, arms=True) for part in drawn)


def _study(options: argparse.Namespace, flags: list[str]) -> int:
    from busray.config import load_config

    config = load_config(options.config, flags)
    with reporter() as tell:
        run = _open(config, tell, needs_inception=False)
        from busray.cluster.pipeline import timed
        from busray.cluster.study import study

        figures, sentences = timed(run, "study", lambda: study(run))
    from busray.quality.study_figures import arm_rows, comparison_rows
    from busray.records import STUDY_CSV

    plain = [figure.to_dict() for figure in figures]
    for reference in dict.fromkeys(figure.reference for figure in figures):
        told = f"{config.study.architecture}, {reference} images [95 % interval]"
        print_table(f"Classifiers of real images, {told}", *arm_rows(plain, reference))
        print_table(f"Comparisons, {told}", *comparison_rows(plain, reference))
    for sentence in sentences:
        print(sentence)
    print(f"figures: {config.output.rstrip('/')}/{STUDY_CSV}")
    return 0


def _audit(options: argparse.Namespace, flags: list[str]) -> int:
    with reporter() as tell:
        run = _reopen(options.run, flags, tell, needs_inception=True, writes=True)
        from busray.cluster.audit import audit
        from busray.cluster.pipeline import timed

        figures, sentences, passes = timed(run, "audit", lambda: audit(run))
    from busray.quality.copies_page import audit_rows
    from busray.records import AUDIT_JSON

    print_table("Copies of training images", *audit_rows([figure.to_dict() for figure in figures]))
    print("\n".join(sentences))
    print(f"figures: {options.run.rstrip('/')}/{AUDIT_JSON}")
    return 0 if passes else 1


def _reopen(url: str, flags: list[str], tell: Any, *, needs_inception: bool = False, writes: bool = False) -> Any:
    """A stored run with the settings it holds, but for flags such as --dataset.path where its images lie now.

    By default for work that writes nothing into it and measures nothing.
    """
    import json

    from busray.config import with_flags
    from busray.records import CONFIG
    from busray.storage import Store

    stored = Store(url).read_or_none(CONFIG)
    if stored is None:
        raise UserError(f"{url}: no run there (no {CONFIG})")
    config = with_flags({**json.loads(stored), "output": url}, flags)
    return _open(config, tell, needs_inception=needs_inception, writes=writes)


def _reproduce(options: argparse.Namespace, flags: list[str]) -> int:
    with reporter() as tell:
        run = _reopen(options.run, flags, tell)
        tell("reproduce", 0, 1)
        import numpy as np

        from busray.cluster.pipeline import reproduce

        kept, redrawn = reproduce(run, options.image_id)
        tell("reproduce", 1, 1)
    difference = np.abs(kept.astype(int) - redrawn.astype(int))
    if not difference.any():
        print(f"{options.image_id}: made again, every pixel matches")
        return 0
    changed = int((difference > 0).sum())
    print(
        f"{options.image_id}: made again, {changed} of {difference.size} pixels differ, by at most "
        f"{int(difference.max())}/255 (same device model, libraries and threads give the same pixels)"
    )
    return 1


def _card(options: argparse.Namespace, flags: list[str]) -> int:
    import json

    from busray.config import with_flags
    from busray.corpus.manifest import published_rows
    from busray.identity import fingerprint_rows
    from busray.quality.card import data_card
    from busray.records import CARD, MANIFEST, REPORT_JSON

    _refuse([flag for flag in flags if not flag.startswith("--card.")])
    store = _stored_run(options.run)
    report, shards = store.read_or_none(REPORT_JSON), list(published_rows(store).values())
    if report is None or not shards:
        missing = REPORT_JSON if report is None else MANIFEST
        raise UserError(f"{options.run}: no {missing} there: finish it with `busray run CONFIG` first")
    content = json.loads(report)
    config = with_flags(content["run"]["settings"], flags)
    store.replace(CARD, data_card(content, config, shards, fingerprint_rows(shards)).encode())
    print(f"card: {options.run.rstrip('/')}/{CARD}")
    undeclared = [f"card.{field}" for field, value in config.card if value is None]
    if undeclared:
        print(f"undeclared: {', '.join(undeclared)}; state them in the config, or as flags of this command")
    return 0


def _readers(options: argparse.Namespace, flags: list[str]) -> int:
    if options.action == "export":
        return _readers_export(options, flags)
    _refuse(flags)
    return _readers_score(options)


def _readers_export(options: argparse.Namespace, flags: list[str]) -> int:
    import secrets

    from busray.quality.readers import blind, real_exhibits, synthetic_exhibits, write_study

    if options.images < 1:
        raise UserError(f"--images={options.images}: at least 1 image a class and side is needed")
    _stored_run(options.run)
    seed = secrets.randbits(63) if options.seed is None else options.seed
    with reporter() as tell:
        run = _reopen(options.run, flags, tell)
        tell("readers", 0, 2)
        classes = list(run.config.classes)
        exhibits = real_exhibits(run.dataset, run.folder, classes, options.images, seed)
        tell("readers", 1, 2)
        exhibits += synthetic_exhibits(run.store, classes, options.images, seed)
        tell("readers", 2, 2)
    key = write_study(options.folder, *blind(exhibits, seed))
    print(f"for the readers: {options.folder} ({len(exhibits)} images)\nkeep from them: {key} and the seed {seed}")
    return 0


def _readers_score(options: argparse.Namespace) -> int:
    from busray.quality.readers import score

    def cell(estimate: Any) -> str:
        return f"{estimate.value:.3f} [{estimate.interval[0]:.3f}, {estimate.interval[1]:.3f}]"

    scores = [(sheet.stem, score(sheet, options.key)) for sheet in options.sheets]
    rows = [
        (name, cell(s.auc), f"{s.synthetic} / {s.real}", cell(s.class_synthetic.estimate), cell(s.class_real.estimate))
        for name, s in scores
    ]
    columns = ("reader", "AUC", "n synthetic / real", "class right, synthetic", "class right, real")
    print_table("Synthetic told from real, with 95 % intervals (AUC 0.5: guessing)", columns, rows)
    return 0


def _verify(options: argparse.Namespace, flags: list[str]) -> int:
    from busray.corpus.arms import corpora
    from busray.corpus.verify import verify

    _refuse(flags)
    rows, digests, problems = [], [], []
    with reporter() as tell:
        for prefix, store in corpora(_stored_run(options.run)).items():
            name = prefix or "released"
            verdict = verify(store, lambda done, total, name=name: tell(f"verify {name}", done, total))
            counts = (verdict.planned, verdict.committed, verdict.quarantined, verdict.shards, len(verdict.problems))
            rows.append((name, *map(str, counts)))
            digests.append(f"{name}: manifest digest {verdict.digest}")
            problems += [f"{name}: {problem}" for problem in verdict.problems]
    columns = ("corpus", "planned", "committed", "quarantined", "shards", "problems")
    print_table(f"{options.run}: the manifest against the world", columns, rows)
    print("\n".join(digests))
    for problem in problems[:SHOWN]:
        print(problem)
    if len(problems) > SHOWN:
        print(f"... and {len(problems) - SHOWN} more")
    return 1 if problems else 0


def _gc(options: argparse.Namespace, flags: list[str]) -> int:
    from busray.corpus.arms import corpora
    from busray.corpus.manifest import orphans

    _refuse(flags)
    run = _stored_run(options.run)
    keys = [f"{prefix}/{key}".lstrip("/") for prefix, store in corpora(run).items() for key in orphans(store)]
    for key in keys:
        if options.delete:
            run.delete(key)
        print(key)
    what = "deleted" if options.delete else "listed, not deleted; --delete deletes them"
    print(f"{len(keys)} orphaned objects ({what})", file=sys.stderr)
    return 0


def _stored_run(url: str) -> Any:
    from busray.records import RUN
    from busray.storage import Store

    store = Store(url)
    if not store.exists(RUN):
        raise UserError(f"{url}: no corpus there (no {RUN})")
    return store


COMMAND_FUNCTIONS = {
    "doctor": _doctor,
    "check": _check,
    "run": _run,
    "demo": _demo,
    "finetune": _finetune,
    "generate": _generate,
    "evaluate": _evaluate,
    "ablate": _ablate,
    "study": _study,
    "audit": _audit,
    "reproduce": _reproduce,
    "card": _card,
    "readers": _readers,
    "verify": _verify,
    "gc": _gc,
}


def _refuse(flags: list[str]) -> None:
    if flags:
        raise UserError(f"{flags[0]}: this command takes no such argument; see --help")


# ---- printing -------------------------------------------------------------------------------------------------------


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


def _print_figures(figures: list[Any], sentences: list[str]) -> None:
    from busray.quality.consistency import consistency_rows
    from busray.quality.tables import METRICS, by_extractor, headed, narrow_rows, without_clean

    plain, _ = without_clean([figure.to_dict() for figure in figures])
    reference = next(figure.reference for figure in figures if figure.protocol == "synthetic-only")
    for extractor, measured in by_extractor(plain).items():
        for metric in (m for m in METRICS if any(f["metric"] == m for f in measured)):
            heading = f"{headed(metric)} ({extractor}) against {reference} images, synthetic-only where not said else"
            print_table(heading, *narrow_rows(measured, metric))
    agreement = consistency_rows(plain)
    if agreement[1]:
        print_table("Does a classifier of real images see each drawn image's class?", *agreement)
    for sentence in sentences:
        print(sentence)


def _print_ablation(report: dict[str, Any]) -> None:
    from busray.quality.ablation import compared, configuration_rows, nearness_rows, sweep_rows
    from busray.quality.tables import difference_rows, headed, narrow_rows
    from busray.records import INCEPTION

    ablation, figures = report["ablation"], compared(report)
    for metric in ("fid", "kid"):
        heading = f"{headed(metric)} against {ablation['reference']} images, synthetic-only where nothing else is said"
        print_table(heading, *narrow_rows(figures, metric))
    for note in ablation["notes"]:
        print(note)
    overall = [f for f in figures if (f["class"], f["extractor"]) == ("all", INCEPTION)]
    print_table("Seed-paired KID differences", *difference_rows(overall))
    print_table("Copying and class drift", *nearness_rows(figures, ablation["arms"], ablation["held_out"]))
    sweeps = sweep_rows(report["figures"], ablation["curves"], ablation["sweep_reference"])
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


if __name__ == "__main__":
    process()
