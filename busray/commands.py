"""One function per command of `busray`: open the run, do the stage, print what came out.

Imports of anything heavy stand in the functions, so that `busray --help` and a mistake are answered
at once.
"""

import argparse
import json
import secrets
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from busray import layout, terminal
from busray.records import Damaged, UserError, json_object

if TYPE_CHECKING:
    from busray.config import Config
    from busray.corpus.damage import Findings
    from busray.corpus.verify import VerifyResult
    from busray.records import Figure
    from busray.run.record import Run
    from busray.storage import Store
    from busray.workers import Report, Workers


# ---- stages of a config ----


def _run(options: argparse.Namespace, flags: list[str]) -> int:
    return _whole_job(options, options.config, flags, _command("run", options.config, *flags))


def _plan(options: argparse.Namespace, flags: list[str]) -> int:
    from busray.cluster.session import machines
    from busray.corpus.cost import Machine, shard_warnings, width_warnings
    from busray.run.devices import choose_devices
    from busray.stages.plan import job_plan, rates_of

    config, _ = choose_devices(_load(options.config, flags))
    price = options.price
    if price is not None and not 0 < price < float("inf"):
        raise UserError(f"--price={price}: a price of a GPU-hour above 0")
    if price is not None and not config.cluster.gpus:
        raise UserError("--price: it is of a GPU-hour, and no GPU is used (cluster.gpus_per_actor)")
    with terminal.reporter() as report:
        plan = job_plan(config, rates_of(config, options.rates, report, probe=options.probe))
        where, nodes = machines(config.cluster)
    drawing = plan.estimates()[: len(plan.drawing)]
    warnings = shard_warnings(drawing)
    warnings += width_warnings(config.cluster, [Machine(*node) for node in nodes], where, drawing)
    if options.json:
        print(json.dumps(plan.to_dict(price, warnings), indent=1))
    else:
        terminal.print_plan(plan, price, warnings)
    return 0


def _demo(options: argparse.Namespace, flags: list[str]) -> int:
    folder = Path(__file__).parent / "configs"  # in an installed wheel
    if not folder.is_dir():
        folder = Path(__file__).parents[1] / "configs"  # in a checkout
    return _whole_job(options, folder / "demo.yaml", flags, _command("demo", *flags))


def _whole_job(options: argparse.Namespace, file: Path, flags: list[str], command: str) -> int:
    config = _load(file, flags)
    with _opened(config, command=command) as (run, workers):
        from busray.stages.pipeline import run_all
        from busray.stages.plan import job_plan, recorded_rates, refuse_above

        plan = job_plan(run.config, recorded_rates(run.config, run.store))
        terminal.note(terminal.short_plan(plan))
        refuse_above(run.config, plan)
        figures = run_all(run, workers)
    _print_figures(run, figures, as_json=options.json)
    return _quarantine_status(config, released=True, arms=True)


def _finetune(options: argparse.Namespace, flags: list[str]) -> int:
    config = _load(options.config, flags)
    with _opened(config, measures=False) as (run, workers):
        from busray.report.warnings import not_nearer
        from busray.run.record import timed
        from busray.stages.finetune import finetune

        record = timed(run, "finetune", lambda: finetune(run, workers))
    terminal.print_warned(not_nearer(record.about))
    print(f"adapters: {_url(config)}/{record.folder}")
    return 0


def _generate(options: argparse.Namespace, flags: list[str]) -> int:
    config = _load(options.config, flags)
    with _opened(config, measures=False) as (run, workers):
        from busray.run.record import timed
        from busray.stages.card import write_card
        from busray.stages.generate import generate

        digest = timed(run, "generate", lambda: generate(run, workers))
        write_card(run, workers.report)
    print(f"corpus: {_url(config)}, manifest digest {digest}")
    return _quarantine_status(config, released=True)


def _evaluate(options: argparse.Namespace, flags: list[str]) -> int:
    config = _load(options.config, flags)
    with _opened(config, command=_command("evaluate", options.config, *flags)) as (run, workers):
        from busray.stages.pipeline import check_finished, evaluate_all

        check_finished(run)
        figures = evaluate_all(run, workers)
    _print_figures(run, figures, as_json=options.json)
    return _quarantine_status(config, arms=True)


def _ablate(options: argparse.Namespace, flags: list[str]) -> int:
    from busray.corpus.ablation import plan_sub_runs

    config = _load(options.config, flags)
    plans = plan_sub_runs(config)
    with _opened(config, command=_command("ablate", options.config, *flags)) as (run, workers):
        from busray.stages.ablate import ablate

        report = ablate(run, workers)
    terminal.print_ablation(report)
    print(f"figures: {_url(config)}/{layout.ABLATE_CSV}")
    print(f"report: {_url(config)}/{layout.ABLATE_HTML}")
    return max(_quarantine_status(plan.config, released=True, arms=True) for plan in plans)


def _study(options: argparse.Namespace, flags: list[str]) -> int:
    config = _load(options.config, flags)
    with _opened(config, measures=False) as (run, workers):
        from busray.run.record import timed
        from busray.stages.study import study

        figures, sentences = timed(run, "study", lambda: study(run, workers))
    if options.json:
        return _print_stored(run.store, layout.STUDY_JSON)
    terminal.print_study(config.study.architecture, figures, sentences)
    print(f"figures: {_url(config)}/{layout.STUDY_CSV}")
    return 0


# ---- stages and readings of a finished run ----


def _audit(options: argparse.Namespace, flags: list[str]) -> int:
    with _opened(_stored_config(options.run, flags)) as (run, workers):
        from busray.run.record import timed
        from busray.stages.audit import audit

        figures, sentences, passes = timed(run, "audit", lambda: audit(run, workers))
    if options.json:
        _print_stored(run.store, layout.AUDIT_JSON)
    else:
        terminal.print_audit(figures, sentences)
        print(f"figures: {options.run.rstrip('/')}/{layout.AUDIT_JSON}")
    return 0 if passes else 1


def _reproduce(options: argparse.Namespace, flags: list[str]) -> int:
    with terminal.reporter() as report:
        run = _open_to_read(options.run, flags, report)
        report("reproduce", 0, 1)
        from busray.stages.generate import reproduce

        stored, redrawn = reproduce(run, options.image_id)
        report("reproduce", 1, 1)
    differences = abs(stored.astype(int) - redrawn.astype(int))
    if not differences.any():
        print(f"{options.image_id}: made again, every pixel matches")
        return 0
    changed = int((differences > 0).sum())
    print(
        f"{options.image_id}: made again, {changed} of {differences.size} pixels differ, by at "
        f"most {int(differences.max())}/255 (same device model, libraries and threads give the same "
        "pixels)"
    )
    return 1


def _card(options: argparse.Namespace, flags: list[str]) -> int:
    from busray.config_file import with_flags
    from busray.corpus.manifest import published_rows
    from busray.stages.card import is_foreign, keep_statements, put_card

    _refuse([flag for flag in flags if not flag.startswith("--card.")])
    store = _stored_run(options.run)
    report, shards = store.read_record_or_none(layout.REPORT_JSON, json_object), list(published_rows(store).values())
    if report is None or not shards:
        missing = f"no {layout.REPORT_JSON if report is None else layout.MANIFEST} there"
        raise UserError(f"{options.run}: {missing}: finish it with `busray run CONFIG` first")
    config = with_flags(report["run"]["settings"], flags)
    if is_foreign(store):
        raise UserError(f"{options.run}: {layout.CARD} there was not written by busray: move it elsewhere")
    if flags:
        keep_statements(store, config)
    config = put_card(store, report, config, shards)
    print(f"card: {options.run.rstrip('/')}/{layout.CARD}")
    undeclared = [f"card.{field}" for field, value in config.card if value is None]
    if undeclared:
        places = "in the config, or as flags of this command"
        print(f"undeclared: {', '.join(undeclared)}; state them {places}")
    return 0


def _export(options: argparse.Namespace, flags: list[str]) -> int:
    from busray.stages.export import export_run
    from busray.stages.push import check_push
    from busray.storage import Store

    _refuse(flags)
    store, target = _stored_run(options.run), Store(options.target)
    if options.push_to_hub is not None:
        check_push(options.push_to_hub, target)
    with terminal.reporter() as report:
        found = export_run(store, _stored_config(options.run, []), target, options.to, options.seed, report)
    counts = ", ".join(f"{images} {name}" for name, images in found.images.items())
    print(f"exported and verified: {sum(found.images.values())} images ({counts}) in {found.files} files: {target.url}")
    if options.push_to_hub is not None:
        _push(target, options.push_to_hub)
    return 0


def _push(target: "Store", repository: str) -> None:
    from huggingface_hub.utils import disable_progress_bars

    from busray.stages.push import push

    if terminal.talk is terminal.Talk.QUIET:
        disable_progress_bars()  # the hub's client has its own, on a terminal
    terminal.note(f"push to {repository}")
    print(f"pushed: {push(target, repository)}")


def _readers(options: argparse.Namespace, flags: list[str]) -> int:
    if options.action == "export":
        return _readers_export(options, flags)
    from busray.evidence.reader_study import score

    _refuse(flags)
    terminal.print_scores([(sheet.stem, score(sheet, options.key)) for sheet in options.sheets])
    return 0


def _readers_export(options: argparse.Namespace, flags: list[str]) -> int:
    from busray.evidence.reader_study import blind, real_exhibits, synthetic_exhibits, write_study

    if options.images < 1:
        raise UserError(f"--images={options.images}: at least 1 image per class and side is needed")
    _stored_run(options.run)
    seed = secrets.randbits(63) if options.seed is None else options.seed
    with terminal.reporter() as report:
        run = _open_to_read(options.run, flags, report)
        report("readers", 0, 2)
        classes = list(run.config.classes)
        exhibits = real_exhibits(run.dataset, run.images.path, classes, options.images, seed)
        report("readers", 1, 2)
        exhibits += synthetic_exhibits(run.store, classes, options.images, seed)
        report("readers", 2, 2)
    key = write_study(options.folder, *blind(exhibits, seed))
    print(f"for the readers: {options.folder} ({len(exhibits)} images)")
    print(f"keep from them: {key} and the seed {seed}")
    return 0


def _verify(options: argparse.Namespace, flags: list[str]) -> int:
    from busray.corpus.arms import corpora
    from busray.corpus.verify import verify

    if options.evidence:
        found = _damage(options.run, flags, "verify")
        if options.json:
            damaged = [asdict(damage) for damage in found.damages]
            return _print_verified(options.run, found.corpora, {"compared": found.compared, "damaged": damaged})
        terminal.print_verify(options.run, found.corpora)
        terminal.print_evidence(found)
        return _advise_repair(options.run, bool(found.damages))
    _refuse(flags)
    results = {}
    with terminal.reporter() as report:
        for prefix, store in corpora(_stored_run(options.run)).items():
            name = prefix or "released"
            results[name] = verify(store, partial(report, f"verify {name}"))
    if options.json:
        return _print_verified(options.run, results, None)
    terminal.print_verify(options.run, results)
    return _advise_repair(options.run, any(result.problems for result in results.values()))


def _print_verified(url: str, results: dict[str, "VerifyResult"], evidence: dict[str, Any] | None) -> int:
    """As JSON; returns the exit status."""
    corpora = {}
    for name, result in results.items():
        counts = {field: getattr(result, field) for field in ("planned", "committed", "quarantined", "shards")}
        corpora[name] = {**counts, "digest": result.digest, "problems": result.problems}
    damaged = any(result.problems for result in results.values()) or bool(evidence and evidence["damaged"])
    print(json.dumps({"url": url, "sound": not damaged, "corpora": corpora, "evidence": evidence}, indent=1))
    return int(damaged)


def _advise_repair(run: str, damaged: bool) -> int:
    """The exit status; names the command that helps."""
    if damaged:
        print(f"what can be made again, and how: busray repair {shlex.quote(run)}")
    return int(damaged)


def _repair(options: argparse.Namespace, flags: list[str]) -> int:
    from busray.corpus.repair import move_aside
    from busray.run.progress import refuse_beside_drivers
    from busray.storage import Store

    store = Store(options.run)
    if options.apply:
        refuse_beside_drivers(store)
    found = _damage(options.run, flags, "repair")
    terminal.print_damages(options.run, found)
    if not found.damages:
        return 0
    if options.apply:
        refuse_beside_drivers(store)  # to read everything takes a while
        moved = move_aside(store, found.damages)
        for old, new in moved:
            print(f"{old} -> {new}")
        print(f"{len(moved)} objects were moved and are kept; the next `busray run CONFIG` makes again what is missing")
    else:
        again = f"busray repair {shlex.quote(options.run)} --apply"
        print(f"nothing was changed; with no command at work on this run: {again}")
    return 0 if options.apply and all(damage.mendable for damage in found.damages) else 1


def _damage(url: str, flags: list[str], stage: str) -> "Findings":
    """Everything that is damaged in a run; --dataset.path says where its images lie now."""
    from busray.config_file import with_flags
    from busray.corpus.damage import find_damage
    from busray.run.images import stored_images
    from busray.storage import Store

    store = Store(url)
    records = (layout.CONFIG, layout.RUN)
    if not (any(map(store.exists, records)) or store.folders(layout.DIGESTS) or store.folders("commits")):
        raise UserError(f"{url}: no run there (no {layout.CONFIG})")
    images = None
    try:
        stored = store.read_record_or_none(layout.CONFIG, json_object)
        if stored is not None:
            images = stored_images(with_flags({**stored, "output": url}, flags), store)
    except (Damaged, UserError):
        # Damaged settings are among what is found, and images without them are not looked for. A
        # flag is the user's own: its mistake is said.
        if flags:
            raise
    with terminal.reporter() as report:
        return find_damage(store, images, partial(report, stage))


def _status(options: argparse.Namespace, flags: list[str]) -> int:
    from busray.stages.status import read_status
    from busray.storage import Store

    _refuse(flags)
    status = read_status(Store(options.run), time.time())
    if options.json:
        print(json.dumps(status.to_dict(), indent=1))
    else:
        terminal.print_status(status)
    return 0


def _serve(options: argparse.Namespace, flags: list[str]) -> int:
    from busray.stages.serve import Server
    from busray.storage import Store

    _refuse(flags)
    if not 0 <= options.port <= 65535:
        raise UserError(f"--port={options.port}: a number from 0 (any free port) to 65535")
    store = Store(options.run)
    if not store.exists(layout.CONFIG):
        raise UserError(f"{options.run}: no run there (no {layout.CONFIG})")
    try:
        server = Server(store, options.port)
    except OSError as error:
        raise UserError(f"--port={options.port}: {error.strerror}; another port, or none for a free one") from error
    with server:
        print(f"open {server.url} in a browser on this machine; Ctrl-C ends it", flush=True)
        server.serve_forever()
    return 0


def _gc(options: argparse.Namespace, flags: list[str]) -> int:
    from busray.corpus.arms import corpora
    from busray.corpus.manifest import orphans
    from busray.storage import in_threads

    _refuse(flags)
    run, keys = _stored_run(options.run), []
    for prefix, store in corpora(run).items():
        keys += [f"{prefix}/{key}".lstrip("/") for key in orphans(store)]
    # Many at once: of format `png`, a shard is hundreds of objects. What is gone is printed.
    deleted = in_threads(run.delete, keys) if options.delete else iter([None] * len(keys))
    for key, _ in zip(keys, deleted, strict=True):
        print(key)
    outcome = "deleted" if options.delete else "listed, not deleted; --delete deletes them"
    terminal.note(f"{len(keys)} orphaned objects ({outcome})")
    return 0


# ---- settings ----


def _config(options: argparse.Namespace, flags: list[str]) -> int:
    from busray import settings_text

    if options.action == "show":
        config = _config_of(options.config, flags)
        print(json.dumps(config.model_dump(mode="json"), indent=1) if options.json else _shown_config(config))
        return 0
    _refuse(flags)
    if options.action == "settings":
        found = settings_text.matching(options.prefix)
        if not found:
            near = settings_text.nearest(options.prefix)
            raise UserError(f"{options.prefix}: no such setting or group{near}; busray config settings lists all")
        if options.json:
            print(json.dumps([setting._asdict() for setting in found], indent=1))
        else:
            terminal.print_settings(found)
    elif options.action == "schema":
        print(json.dumps(settings_text.schema(), indent=1))
    elif options.action == "init":
        _config_init(options.data, options.to)
    else:
        return _config_diff(options)
    return 0


def _completion(options: argparse.Namespace, flags: list[str]) -> int:
    from busray.completion import script

    _refuse(flags)
    sys.stdout.write(script(options.shell))
    return 0


def _shown_config(config: "Config") -> str:
    from busray.settings_text import config_yaml

    return config_yaml(config).rstrip()


def _config_init(data: Path | None, file: Path | None) -> None:
    """Write a config for the classes that are found in the folder."""
    from busray.config import Dataset
    from busray.data.folder import lay_out
    from busray.failures import missing_folder
    from busray.settings_text import starting_config

    classes = {"benign": "benign", "malignant": "malignant"}
    if data is not None:
        if not data.is_dir():
            raise missing_folder("config init", data, "give the folder with one folder of images per class")
        classes = lay_out(data, None, Dataset()).classes
    file = file or Path(f"{data.resolve().name if data else 'my'}.yaml")
    shown = shlex.quote(str(file))
    text = starting_config(shown, None if data is None else str(data.absolute()), classes)
    try:
        with open(file, "x", encoding="utf-8") as written:
            written.write(text)
    except FileExistsError as error:
        raise UserError(f"{file}: it is there already: name another with --to=FILE") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"--to={file}: no folder {file.parent}: make it first") from error
    print(f"config: {file}, {len(classes)} classes: {', '.join(classes)}")
    if data is None:
        print("set dataset.path and the classes in it")
    print("next: say in prompts how each class looks, then")
    print(f"  busray check {shlex.quote(str(data or 'FOLDER'))}")
    print(f"  busray run {shown}")


def _config_diff(options: argparse.Namespace) -> int:
    from busray.corpus.record import differing

    first, second = _config_of(options.a, []), _config_of(options.b, [])
    changed = differing(first.model_dump(mode="json"), second.model_dump(mode="json"))
    if options.json:
        print(json.dumps({key: {"a": a, "b": b} for key, (a, b) in changed.items()}, indent=1))
    else:
        terminal.print_differences(options.a, options.b, changed)
    return int(bool(changed))


def _config_of(place: str, flags: list[str]) -> "Config":
    """The settings of a config file or of a run."""
    return _load(Path(place), flags) if _is_config_file(place) else _stored_config(place, flags)


def _is_config_file(place: str) -> bool:
    return Path(place).is_file() or place.endswith((".yaml", ".yml"))


# ---- adapters by themselves ----


def _adapters(options: argparse.Namespace, flags: list[str]) -> int:
    _refuse(flags)
    if options.action == "convert":
        from busray.model.convert import convert

        for path in convert(options.source, options.target, options.to, options.base):
            print(path)
        return 0
    from busray.model.describe import describe

    found = describe(options.file, options.base)
    if options.json:
        print(json.dumps([description.to_dict() for description in found], indent=1))
    else:
        for description in found:
            print(description.file)
            for what, value in description.rows():
                print(f"  {what:<26} {value}")
    return 0


# ---- before a run ----


def _doctor(options: argparse.Namespace, flags: list[str]) -> int:
    from busray.doctor import complaint, examine, unproven
    from busray.storage import Store

    _refuse(flags)
    store = Store(options.url)
    findings = examine(store)
    if options.json:
        doubt, seen = unproven(store), [asdict(finding) for finding in findings]
        print(json.dumps({"url": store.url, "findings": seen, "not proven": doubt}, indent=1))
    else:
        terminal.print_doctor(store.url, findings)
    if problem := complaint(store, findings):
        raise UserError(problem)
    if not options.json and (doubt := unproven(store)):
        print(f"not proven: {doubt}")
    return 0


def _check(options: argparse.Namespace, flags: list[str]) -> int:
    from busray.config_file import dataset_settings
    from busray.data.check import check
    from busray.failures import missing_folder
    from busray.records import to_json
    from busray.storage import naming

    settings = dataset_settings(flags)
    printed = str(options.json) == "-"
    if options.json and not options.json.absolute().parent.is_dir():
        raise missing_folder("--json", options.json.parent, "make it first, or name another")
    if options.json and options.json.is_dir():
        raise UserError(f"--json: {options.json} is a folder: name a file in it")
    with terminal.reporter() as report:
        checked = check(options.data, None, options.metadata, partial(report, "check"), settings)
    if printed:
        print(to_json(checked.to_dict()).decode())
        return 0
    for table in checked.tables():
        terminal.print_table(table.title, table.columns, table.rows)
    if options.json:
        with naming(options.json):
            options.json.write_bytes(to_json(checked.to_dict()))
    return 0


COMMAND_FUNCTIONS: dict[str, Callable[[argparse.Namespace, list[str]], int]] = {
    "doctor": _doctor, "check": _check, "config": _config, "plan": _plan, "run": _run, "demo": _demo,
    "finetune": _finetune, "generate": _generate, "evaluate": _evaluate, "ablate": _ablate, "study": _study,
    "audit": _audit, "reproduce": _reproduce, "card": _card, "export": _export, "readers": _readers,
    "adapters": _adapters, "status": _status, "serve": _serve, "verify": _verify, "repair": _repair, "gc": _gc,
    "completion": _completion,
}  # fmt: skip


# ---- opening a run ----


@contextmanager
def _opened(config: "Config", **options: Any) -> Iterator[tuple["Run", "Workers"]]:
    """A checked run and the workers of its stages; progress is shown for the length of the block.

    options: of run.checks.open_run. Ray is loaded after the checks, and starts at the first use.
    """
    from busray.cluster_address import check_address
    from busray.run.devices import with_devices

    check_address(config.cluster)
    with terminal.reporter() as report:
        run, computes_on = with_devices(_open(config, report, **options))
        terminal.note(computes_on)
        from busray.cluster.pool import ray_workers
        from busray.run.progress import telling

        with telling(run.store, report) as noted, ray_workers(run.config.cluster, run.log_file, noted) as workers:
            yield run, workers


def _open(config: "Config", report: "Report", **options: Any) -> "Run":
    from busray.run.checks import open_run

    report("start", 0, 1)
    run = open_run(config, report, **options)
    report("start", 1, 1)
    terminal.note(run.account)
    return run


def _open_to_read(url: str, flags: list[str], report: "Report") -> "Run":
    """A stored run for work that neither writes into it nor measures anything."""
    return _open(_stored_config(url, flags), report, measures=False, writes=False)


def _load(file: Path, flags: list[str]) -> "Config":
    from busray.config import warnings
    from busray.config_file import load_config

    config = load_config(file, flags)
    for line in warnings(config):
        print(f"busray: warning: {line}", file=sys.stderr)
    return config


def _stored_config(url: str, flags: list[str]) -> "Config":
    """A run's own settings; a flag such as --dataset.path says where its images lie now."""
    from busray.config_file import with_flags
    from busray.corpus.record import read_run
    from busray.storage import Store

    store = Store(url)
    read_run(store)  # a newer format is refused before its settings are read
    stored = store.read_record_or_none(layout.CONFIG, json_object)
    if stored is None:
        raise UserError(f"{url}: no run there (no {layout.CONFIG})")
    return with_flags({**stored, "output": url}, flags)


def log_file(options: argparse.Namespace, flags: list[str]) -> Path | None:
    """The log beside the command's run; None where no run was begun on the local disk."""
    from busray.config_file import load_config
    from busray.storage import Store

    try:
        if "run" in options:
            url = options.run
        elif "config" in options:
            url = load_config(options.config, flags).output
        else:
            return None
        store = Store(url)
        if store.local and (Path(store.url) / layout.CONFIG).is_file():
            return Path(store.url) / layout.LOG
    except (UserError, OSError, ValueError):
        pass  # this is asked while another error is reported
    return None


def _stored_run(url: str) -> "Store":
    from busray.corpus.record import read_run
    from busray.storage import Store

    store = Store(url)
    if read_run(store) is None:
        if store.folders("commits"):
            raise store.damaged(layout.RUN, "it is not there, but records of shards are")
        raise UserError(f"{url}: no corpus there (no {layout.RUN})")
    return store


def _print_stored(store: "Store", key: str) -> int:
    print(store.read(key).decode())
    return 0


def _print_figures(run: "Run", figures: list["Figure"], *, as_json: bool) -> None:
    if as_json:
        _print_stored(run.store, layout.REPORT_JSON)
        return
    from busray.corpus.arms import arm_after_gate, released_arm
    from busray.stages.report import is_simulated, report_sentences, report_warnings

    warned, simulated = report_warnings(run, figures), is_simulated(run)
    if terminal.talk is terminal.Talk.VERBOSE:
        terminal.print_figures(figures, report_sentences(run, figures), warned, simulated=simulated)
    corpus = run.store.read_record(layout.REPORT_JSON, json_object)["corpus"]
    released = arm_after_gate(run.config) or released_arm(run.config)
    terminal.print_outcome(figures, warned, corpus, released, _url(run.config), simulated=simulated)


def _quarantine_status(config: "Config", *, released: bool = False, arms: bool = False) -> int:
    """1, with a message, where more images are quarantined than corpus.max_quarantined; else 0."""
    from busray.corpus.arms import arms_to_draw
    from busray.corpus.manifest import quarantine
    from busray.storage import Store

    output, status = Store(config.output), 0
    stores = [output] if released else []
    stores += [output.sub(layout.arm_prefix(arm)) for arm in arms_to_draw(config)] if arms else []
    for store in stores:
        found = quarantine(store)
        if found.share > config.corpus.max_quarantined:
            status = 1
            terminal.print_quarantine(store.url, found, config.corpus.max_quarantined)
    return status


def _command(*words: object) -> str:
    """The command line, for the report: the first word is the command, the last ones its flags."""
    name, *arguments = map(str, words)
    return f"busray {name} {shlex.join(arguments)}".strip()


def _url(config: "Config") -> str:
    return config.output.rstrip("/")


def _refuse(flags: list[str]) -> None:
    if flags:
        raise UserError(f"{flags[0]}: this command takes no such argument; see --help")
