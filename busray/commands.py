"""One function a command of `busray`: prints for people; the work is in the stages."""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from busray.records import UserError
from busray.terminal import print_ablation, print_figures, print_table, reporter

CONFIGS = (Path(__file__).parent / "configs", Path(__file__).parents[1] / "configs")
"""In an installed wheel, and in a checkout."""


SHOWN = 20
"""Problems that `verify` prints; the rest is counted."""


def _doctor(options: argparse.Namespace, flags: list[str]) -> int:
    from busray.doctor import complaint, examine
    from busray.storage import Store

    _refuse(flags)
    store = Store(options.url)
    findings = examine(store)
    answers = {True: "yes", False: "NO", None: "not tried"}
    rows = [(finding.check, answers[finding.passed]) for finding in findings]
    print_table(f"{store.url}: is it safe to run on?", ("check", "passed"), rows)
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
    from busray.config_file import load_config

    return whole_job(load_config(options.config, flags), f"busray run {options.config} {shlex.join(flags)}".strip())


def _demo(options: argparse.Namespace, flags: list[str]) -> int:
    from busray.config_file import load_config

    folder = next((folder for folder in CONFIGS if folder.is_dir()), CONFIGS[0])
    return whole_job(load_config(folder / "demo.yaml", flags), f"busray demo {shlex.join(flags)}".strip())


def whole_job(config: Any, command: str) -> int:
    """Run everything, print the figures and where the report is; status 1 if an image is neither drawn nor excused."""
    with reporter() as tell:
        run = _open(config, tell, command=command)
        from busray.stages.pipeline import run_all
        from busray.stages.report import said

        figures = run_all(run)
    print_figures(figures, said(run, figures))
    print(f"report: {config.output.rstrip('/')}/report.html")
    return _quarantine_status(config, released=True, arms=True)


def _quarantine_status(config: Any, *, released: bool = False, arms: bool = False) -> int:
    """1, with a message, where a corpus has more quarantined images than corpus.max_quarantined; else 0."""
    from busray.corpus.arms import arms_to_draw
    from busray.corpus.manifest import quarantine
    from busray.layout import arm_prefix
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
    from busray.run.checks import open_run

    tell("start", 0, 1)
    run = open_run(config, tell, **options)
    tell("start", 1, 1)
    return run


def _finetune(options: argparse.Namespace, flags: list[str]) -> int:
    from busray.config_file import load_config

    config = load_config(options.config, flags)
    with reporter() as tell:
        run = _open(config, tell, needs_inception=False)
        from busray.run.record import timed
        from busray.stages.finetune import finetune

        record = timed(run, "finetune", lambda: finetune(run))
    print(f"adapters: {config.output.rstrip('/')}/{record['folder']}")
    return 0


def _generate(options: argparse.Namespace, flags: list[str]) -> int:
    from busray.config_file import load_config

    config = load_config(options.config, flags)
    with reporter() as tell:
        run = _open(config, tell, needs_inception=False)
        from busray.run.record import timed
        from busray.stages.generate import generate

        digest = timed(run, "generate", lambda: generate(run))
    print(f"corpus: {config.output.rstrip('/')}, manifest digest {digest}")
    return _quarantine_status(config, released=True)


def _evaluate(options: argparse.Namespace, flags: list[str]) -> int:
    from busray.config_file import load_config

    config = load_config(options.config, flags)
    with reporter() as tell:
        run = _open(config, tell, command=f"busray evaluate {options.config} {shlex.join(flags)}".strip())
        from busray.corpus.arms import arms_to_draw
        from busray.run.record import timed
        from busray.stages.generate import generate
        from busray.stages.pipeline import measure, refuse_unfinished
        from busray.stages.report import said, write_report

        refuse_unfinished(run)
        for arm in arms_to_draw(config):
            timed(run, f"generate {arm}", lambda arm=arm: generate(run, arm))
        figures = measure(run)
        write_report(run, figures)
    print_figures(figures, said(run, figures))
    print(f"report: {config.output.rstrip('/')}/report.html")
    return _quarantine_status(config, arms=True)


def _ablate(options: argparse.Namespace, flags: list[str]) -> int:
    from busray.config_file import load_config
    from busray.corpus.ablation import parts
    from busray.layout import ABLATE_CSV, ABLATE_HTML

    config = load_config(options.config, flags)
    drawn = parts(config)
    with reporter() as tell:
        run = _open(config, tell, command=f"busray ablate {options.config} {shlex.join(flags)}".strip())
        from busray.stages.ablate import ablate

        report = ablate(run)
    print_ablation(report)
    folder = config.output.rstrip("/")
    print(f"figures: {folder}/{ABLATE_CSV}\nreport: {folder}/{ABLATE_HTML}")
    return max(_quarantine_status(part.config, released=True, arms=True) for part in drawn)


def _study(options: argparse.Namespace, flags: list[str]) -> int:
    from busray.config_file import load_config

    config = load_config(options.config, flags)
    with reporter() as tell:
        run = _open(config, tell, needs_inception=False)
        from busray.run.record import timed
        from busray.stages.study import study

        figures, sentences = timed(run, "study", lambda: study(run))
    from busray.layout import STUDY_CSV
    from busray.report.study import arm_rows, comparison_rows

    for reference in dict.fromkeys(figure.reference for figure in figures):
        told = f"{config.study.architecture}, {reference} images [95 % interval]"
        print_table(f"Classifiers of real images, {told}", *arm_rows(figures, reference))
        print_table(f"Comparisons, {told}", *comparison_rows(figures, reference))
    for sentence in sentences:
        print(sentence)
    print(f"figures: {config.output.rstrip('/')}/{STUDY_CSV}")
    return 0


def _audit(options: argparse.Namespace, flags: list[str]) -> int:
    with reporter() as tell:
        run = _reopen(options.run, flags, tell, needs_inception=True, writes=True)
        from busray.run.record import timed
        from busray.stages.audit import audit

        figures, sentences, passes = timed(run, "audit", lambda: audit(run))
    from busray.layout import AUDIT_JSON
    from busray.report.audit import audit_rows

    print_table("Copies of training images", *audit_rows(figures))
    print("\n".join(sentences))
    print(f"figures: {options.run.rstrip('/')}/{AUDIT_JSON}")
    return 0 if passes else 1


def _reopen(url: str, flags: list[str], tell: Any, *, needs_inception: bool = False, writes: bool = False) -> Any:
    """A stored run with the settings it holds, but for flags such as --dataset.path where its images lie now.

    By default for work that writes nothing into it and measures nothing.
    """
    import json

    from busray.config_file import with_flags
    from busray.corpus.record import read_run
    from busray.layout import CONFIG
    from busray.storage import Store

    read_run(Store(url))  # a newer format is refused before its settings are read
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

        from busray.stages.generate import reproduce

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

    from busray.config_file import with_flags
    from busray.corpus.manifest import published_rows
    from busray.identity import fingerprint_rows
    from busray.layout import CARD, MANIFEST, REPORT_JSON
    from busray.report.card import data_card

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

    from busray.evidence.reader_study import blind, real_exhibits, synthetic_exhibits, write_study

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
    from busray.evidence.reader_study import score

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
    from busray.corpus.record import read_run
    from busray.layout import RUN
    from busray.storage import Store

    store = Store(url)
    if read_run(store) is None:
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
