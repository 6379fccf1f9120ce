"""The functions behind the commands, for scripts and notebooks: `import busray; busray.check(...)`.

Each does what the command of its name does, returns what the command prints, and prints nothing.
What takes a config takes a YAML file, a dictionary of the same form, or a `Config`; `settings`
override it by their dotted names, as flags do: `{"sampling.steps": 25}`. What reads a finished run
takes its folder or URL.

Errors: `UserError` for a mistake, before any work; `Stopped` where work ended early, and the same
call goes on from there. Ray starts at the first use and ends with the call, unless
`cluster.address` names a cluster.
"""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from busray import layout
from busray.config import Config
from busray.config_file import dataset_settings, load_config, with_flags
from busray.records import AdaptersRecord, Figure, UserError, json_object
from busray.storage import Store
from busray.workers import Report, Workers

if TYPE_CHECKING:
    import numpy as np

    from busray.corpus.verify import VerifyResult
    from busray.data.check import CheckReport
    from busray.run.record import Run
    from busray.stages.plan import JobPlan
    from busray.stages.status import RunStatus

ConfigLike = str | Path | Mapping[str, Any] | Config
Settings = Mapping[str, Any]
"""Dotted name of a setting -> value."""


def _silent(stage: str, done: int, total: int) -> None:
    """The progress that nobody asked for."""


# ---- before a run


def read_config(source: ConfigLike, settings: Settings | None = None) -> Config:
    """The checked settings of a YAML file or a dictionary. UserError lists every mistake."""
    if isinstance(source, Config):
        source = source.model_dump(mode="json")
    if isinstance(source, Mapping):
        # A copy in plain values, since overriding changes the tree.
        return with_flags(json.loads(json.dumps(dict(source))), _flags(settings))
    return load_config(source, _flags(settings))


def check(
    data: str | Path, metadata: str | Path | None = None, settings: Settings | None = None, report: Report = _silent
) -> "CheckReport":
    """What is in a folder of labelled images: counts, duplicates, conflicts, masks, framing.

    metadata: CSV with the columns `file`, `group` and any others. settings: of `dataset`, such as
    `{"dataset.frames": "all"}`.
    """
    from busray.data.check import check as check_folder

    def progress(done: int, total: int) -> None:
        report("check", done, total)

    table = None if metadata is None else Path(metadata)
    return check_folder(Path(data), None, table, progress, dataset_settings(_flags(settings)))


def plan(
    source: ConfigLike,
    settings: Settings | None = None,
    *,
    probe: bool = False,
    rates: str | None = None,
    report: Report = _silent,
) -> "JobPlan":
    """What a config's job takes: images, GPU-hours, bytes, requests.

    probe: measure rates here. rates: a run whose records have them.
    """
    from busray.run.devices import choose_devices
    from busray.stages.plan import job_plan, rates_of

    checked, _ = choose_devices(read_config(source, settings))
    return job_plan(checked, rates_of(checked, rates, report, probe=probe))


# ---- stages of a config


def run_job(source: ConfigLike, settings: Settings | None = None, *, report: Report = _silent) -> list[Figure]:
    """The whole job, as `busray run`: fine-tune, generate, evaluate, report. Returns its figures.

    It is not named `run`: `busray.run` is the package that opens runs.
    """
    from busray.stages.pipeline import run_all

    with _opened(read_config(source, settings), report, command="busray.run_job") as (run, workers):
        return run_all(run, workers)


def finetune(source: ConfigLike, settings: Settings | None = None, *, report: Report = _silent) -> AdaptersRecord:
    """Train the config's adapters, or take those of adapters.path; the record of where they are."""
    from busray.run.record import timed
    from busray.stages import finetune as stage

    with _opened(read_config(source, settings), report, measures=False) as (run, workers):
        return timed(run, "finetune", lambda: stage.finetune(run, workers))


def generate(source: ConfigLike, settings: Settings | None = None, *, report: Report = _silent) -> str:
    """Draw the config's corpus; the digest of its manifest."""
    from busray.run.record import timed
    from busray.stages import generate as stage

    with _opened(read_config(source, settings), report, measures=False) as (run, workers):
        return timed(run, "generate", lambda: stage.generate(run, workers))


def evaluate(source: ConfigLike, settings: Settings | None = None, *, report: Report = _silent) -> list[Figure]:
    """Compare the config's arms with the real images, and write the report."""
    from busray.stages.pipeline import check_finished, evaluate_all

    with _opened(read_config(source, settings), report, command="busray.evaluate") as (run, workers):
        check_finished(run)
        return evaluate_all(run, workers)


def ablate(source: ConfigLike, settings: Settings | None = None, *, report: Report = _silent) -> dict[str, Any]:
    """Compare base, LoRA, textual inversion and both, also refined; sweep strength and guidance.

    Returns what `ablate.json` holds.
    """
    from busray.stages import ablate as stage

    with _opened(read_config(source, settings), report, command="busray.ablate") as (run, workers):
        return stage.ablate(run, workers)


def study(
    source: ConfigLike, settings: Settings | None = None, *, report: Report = _silent
) -> tuple[list[Figure], list[str]]:
    """Train classifiers with and without the corpus and test them on real images.

    Returns (figures, sentences on what they say).
    """
    from busray.run.record import timed
    from busray.stages import study as stage

    with _opened(read_config(source, settings), report, measures=False) as (run, workers):
        return timed(run, "study", lambda: stage.study(run, workers))


# ---- a finished run


def audit(
    run_url: str, settings: Settings | None = None, *, report: Report = _silent
) -> tuple[list[Figure], list[str], bool]:
    """Look for copies of training images: (figures, sentences, whether there are none).

    settings: where the images lie now, if they moved: `{"dataset.path": FOLDER}`.
    """
    from busray.run.record import timed
    from busray.stages import audit as stage

    with _opened(_stored(run_url, settings), report) as (run, workers):
        return timed(run, "audit", lambda: stage.audit(run, workers))


def reproduce(
    run_url: str, image_id: str, settings: Settings | None = None, *, report: Report = _silent
) -> "tuple[np.ndarray, np.ndarray]":
    """Draw one image again: (as it is stored, as it is drawn now), uint8 [side, side]."""
    from busray.run.checks import open_run
    from busray.stages import generate as stage

    run = open_run(_stored(run_url, settings), report, measures=False, writes=False)
    return stage.reproduce(run, image_id)


def verify(run_url: str) -> "dict[str, VerifyResult]":
    """Compare each corpus of a run with its plan, records and objects: prefix -> result.

    The released corpus has the prefix ``. A corpus is sound where `problems` is empty.
    """
    from busray.corpus import verify as corpus_verify
    from busray.corpus.arms import corpora
    from busray.corpus.record import read_run

    store = Store(run_url)
    if read_run(store) is None:
        raise UserError(f"{run_url}: no corpus there (no {layout.RUN})")
    return {prefix: corpus_verify.verify(corpus) for prefix, corpus in corpora(store).items()}


def status(run_url: str) -> "RunStatus":
    """How far a run is, how fast, and whether a driver works on it, from its store alone."""
    from busray.stages.status import read_status

    return read_status(Store(run_url), time.time())


# ---- opening


@contextmanager
def _opened(checked: Config, report: Report, **options: Any) -> "Iterator[tuple[Run, Workers]]":
    """A checked run and the workers of its stages. options: of run.checks.open_run."""
    from busray.cluster.pool import ray_workers
    from busray.cluster_address import check_address
    from busray.run.checks import open_run
    from busray.run.devices import with_devices
    from busray.run.progress import telling

    check_address(checked.cluster)
    run, computes_on = with_devices(open_run(checked, report, **options))
    report(computes_on, 0, 0)
    with telling(run.store, report) as noted, ray_workers(run.config.cluster, run.log_file, noted) as workers:
        yield run, workers


def _stored(run_url: str, settings: Settings | None) -> Config:
    from busray.corpus.record import read_run

    store = Store(run_url)
    read_run(store)  # a newer format is refused before its settings are read
    stored = store.read_record_or_none(layout.CONFIG, json_object)
    if stored is None:
        raise UserError(f"{run_url}: no run there (no {layout.CONFIG})")
    return with_flags({**stored, "output": run_url}, _flags(settings))


def _flags(settings: Settings | None) -> list[str]:
    """Settings as flags: a text as it is, anything else as JSON, which YAML reads."""
    flags = []
    for name, value in (settings or {}).items():
        if isinstance(value, Path):
            value = str(value)
        flags.append(f"--{name}={value if isinstance(value, str) else json.dumps(value)}")
    return flags
