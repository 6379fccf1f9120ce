"""The downstream study on Ray: every training is a task whose result is a create-only record of the run."""

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError

from busray.cluster.liveness import Pulse, stopped, supervised, watched
from busray.cluster.session import session, use_threads
from busray.corpus.commit import first_draws_held, in_threads, read_commit, read_rows, rejected_first_draws
from busray.corpus.encode import png_pixels
from busray.corpus.manifest import published_rows
from busray.corpus.record import differences
from busray.data.check import CheckReport, check, shared_images
from busray.data.images import load_images
from busray.data.read import class_names
from busray.data.split import SPLITS
from busray.evidence.stats.paired import without_spread
from busray.evidence.study import Outcome, study_figures
from busray.evidence.study_design import (
    Arm,
    Diet,
    Draws,
    clusters_of,
    first_rows,
    needed,
    positions,
    refuse_foreign_corpus,
    refuse_leaks,
    study_arms,
)
from busray.identity import fingerprint, seed_for
from busray.layout import (
    CHECK,
    RUN,
    STUDY_CSV,
    STUDY_DECLARED,
    STUDY_JSON,
    study_identity_key,
    study_key,
)
from busray.model.checkpoints import read_adapters
from busray.records import Figure, SourceImage, UserError, to_json
from busray.report.study import study_sentences
from busray.report.tables import figures_csv
from busray.run.record import Run
from busray.stages.report import add_to_report
from busray.storage import Store
from busray.vision.classifier import Architecture, Augmentation, Phase, Training, fit, predict, represent

SHOWN = 10
"""Problems of an external test set that are told."""


TRIES = 3
"""Times that Ray starts a training again whose worker died."""


@dataclass(frozen=True)
class Task:
    """One training: an arm from its number-th seed."""

    arm: Arm
    number: int


@dataclass(frozen=True)
class Job:
    """What every training of a study is told; travels to the workers."""

    store: Store
    identity: str
    training: Training
    classes: tuple[str, ...]
    seed: int
    threads: int


@dataclass(frozen=True)
class Images:
    """Pixels uint8 [n, s, s] and labels [n]."""

    pixels: np.ndarray
    labels: np.ndarray


def study(run: Run) -> tuple[list[Figure], list[str]]:
    """Train what the store still misses and compare on test: figures and what they say.

    study.json, study.csv and the report's part are written anew from the trainings' records.
    """
    config, store = run.config, run.store
    arms = study_arms(config.study.ratios, config.corpus.gate is not None)
    corpus = _refuse_unfit(run, arms)
    external = _external(run)
    settings = config.study
    training = Training(settings.architecture, settings.steps, settings.batch_size, settings.learning_rates)
    pins = {
        "dataset": run.dataset.hash,
        "corpus": corpus,
        "training": {**asdict(training), "learning_rates": list(training.learning_rates)},
        "seed": config.seed,
        "threads": config.cluster.threads,
        "external": [image.sha256 for image in external.images] if external else None,
    }
    identity = fingerprint(pins)
    job = Job(store, identity, training, tuple(config.classes), config.seed, config.cluster.threads)
    _declare(run, pins, identity)
    tasks = [Task(arm, number) for number in range(settings.seeds) for arm in arms]
    todo = [task for task in tasks if not store.exists(study_key(identity, task.arm.name, task.number))]
    if todo:
        with session(config.cluster, run.log_file):
            _train_all(run, job, todo, len(tasks), external)
    outcome = _outcome(run, job, tasks, external)
    run.tell("study figures", 0, 1)
    figures = study_figures(outcome)
    sentences = study_sentences(figures, outcome)
    part = {
        "identity": identity,
        "primary": settings.model_dump(mode="json")["primary"],
        "tried": _configurations(store),
        "sentences": sentences,
        "figures": [figure.to_dict() for figure in figures],
    }
    store.replace(STUDY_JSON, to_json(part))
    store.replace(STUDY_CSV, figures_csv(part["figures"]).encode())
    add_to_report(run, "study", part)
    run.tell("study figures", 1, 1)
    return figures, sentences


def _refuse_unfit(run: Run, arms: list[Arm]) -> str:
    """The corpus's fingerprint; UserError for a leak, an unfinished run, too few images, no or an unknown primary."""
    settings, names = run.config.study, [arm.name for arm in arms]
    primary = settings.primary
    if primary is None:
        raise UserError(
            "study.primary: declare the one comparison that this study is about before it runs, such as "
            f"--study.primary='{{metric: macro_f1, arm: {names[-4]}, against: real}}'; arms: {', '.join(names)}"
        )
    for field, arm in (("arm", primary.arm), ("against", primary.against)):
        if arm not in names:
            raise UserError(f"study.primary.{field}: no arm {arm!r} in this study; arms: {', '.join(names)}")
    if primary.arm == primary.against:
        raise UserError("study.primary: arm and against are the same arm")
    if settings.architecture == "efficientnet-lite0":
        from busray.vision.efficientnet import find_weights

        find_weights()
    record = run.store.read_or_none(RUN)
    if record is None or not published_rows(run.store):
        raise UserError(f"{run.store.url} has no finished corpus to study: run `busray run` or `busray generate` first")
    refuse_leaks(run.dataset, _near_duplicates(run))
    if lone := _without_spread(run, run.dataset.test, _near_duplicates(run)):
        raise UserError(
            f"dataset.test: {', '.join(lone)} has fewer than 2 independent test images, so no spread can be told: "
            "raise dataset.test in another output"
        )
    corpus, adapters = json.loads(record), read_adapters(run.store)
    carried = {"the corpus (run.json)": corpus["identity"].get("dataset")}
    if corpus["identity"].get("adapters"):
        carried["its adapters (adapters.json)"] = (adapters or {}).get("dataset_hash")
    refuse_foreign_corpus(run.dataset.hash, carried)
    labels = _labels(run, run.dataset.train)
    wanted = needed(labels, len(run.config.classes), max(settings.ratios))
    for draws in _draws(arms):
        for (name, found), n in zip(_held(run, draws).items(), wanted, strict=True):
            if n > found:
                raise UserError(
                    f"study.ratios: {max(settings.ratios):g} needs {n} synthetic images of {name}, the corpus has "
                    f"{found} {draws}: lower the ratios, or raise classes.{name}.images and run `busray generate`"
                )
    return corpus["fingerprint"]


def _draws(arms: Iterable[Arm]) -> list[Draws]:
    """Which images of the corpus the arms take."""
    return list(dict.fromkeys(diet.draws for arm in arms for diet in arm.diets))


def _held(run: Run, draws: Draws) -> dict[str, int]:
    """class -> how many such images the published corpus has."""
    shards = published_rows(run.store)
    if draws == "released":
        counts = [row["rows"] for row in shards.values()]
    else:
        counts = [first_draws_held(one) for one in in_threads(partial(read_commit, run.store), list(shards))]
    held = dict.fromkeys(run.config.classes, 0)
    for shard, count in zip(shards, counts, strict=True):
        if shard.class_name in held:
            held[shard.class_name] += count
    return held


def _without_spread(run: Run, images: tuple[SourceImage, ...], near_duplicates: Iterable[Sequence[str]]) -> list[str]:
    clusters = clusters_of(images, near_duplicates)
    names = list(run.config.classes)
    return [
        names[label] for label in without_spread(_labels(run, images), np.array([clusters[i.file] for i in images]))
    ]


def _near_duplicates(run: Run) -> list[list[str]]:
    return json.loads(run.store.read(CHECK))["near_duplicates"]


def _external(run: Run) -> CheckReport | None:
    """What is in study.external; UserError where there is nothing to use, or where it is the data set's own."""
    path = run.config.study.external
    if path is None:
        return None
    folder = Path(path)
    names = [name for name in class_names(folder) if name in run.config.classes]
    if not names:
        raise UserError(
            f"study.external: {folder} has no folder of a class of this run ({', '.join(run.config.classes)})"
        )
    found = check(folder, names, progress=lambda done, total: run.tell("check external", done, total))
    problems = [f"{file} cannot be read: {reason}" for file, reason in found.unreadable]
    problems += [f"{' = '.join(files)}: one image in more than one class" for files in found.conflicts]
    problems += [
        f"class {name} has fewer than 2 images that are no near-duplicates: no spread can be told"
        for name in _without_spread(run, found.images, found.clusters)
    ]
    problems += [
        f"{theirs} is, or is nearly, the data set's {ours}"
        for ours, theirs in shared_images(run.folder, run.dataset.split("all"), folder, found.images)
    ]
    if problems:
        raise UserError(
            f"study.external: {folder} is no test set as it is ({len(problems)} problems); mend or remove:\n  "
            + "\n  ".join(problems[:SHOWN])
        )
    return found


def _declare(run: Run, pins: dict[str, Any], identity: str) -> None:
    """Keep what is compared before its results exist; UserError where another comparison, or another number of arms or
    trainings, was declared: to add seeds until p is small, or to drop ratios and so comparisons that Holm corrects for,
    is not to have declared."""
    store, settings = run.store, run.config.study
    assert settings.primary is not None
    primary = settings.primary.model_dump(mode="json")
    declaration = {"primary": primary, "ratios": sorted(set(settings.ratios)), "seeds": settings.seeds}
    # Listed before the declaration is looked for: another driver's trainings come after its declaration.
    begun = any(key.count("/") == 2 and not key.endswith("/identity.json") for key in store.list("study"))
    if begun and not store.exists(STUDY_DECLARED):
        raise UserError(
            f"study.ratios, study.seeds: {store.url} has trainings of a study that did not declare them, so whether "
            f"they are still {declaration['ratios']} and {declaration['seeds']} cannot be told: give another output"
        )
    store.put_once(STUDY_DECLARED, to_json(declaration))
    _refuse_other(store, json.loads(store.read(STUDY_DECLARED)), declaration)
    store.put_once(study_identity_key(identity), to_json(pins))


def _refuse_other(store: Store, declared: dict[str, Any], now: dict[str, Any]) -> None:
    changes = "; ".join(f"study.{field}: {values}" for field, values in differences(declared, now).items())
    if changes:
        raise UserError(
            f"{changes}. Another study was declared in {store.url} before its results: take the declared values back, "
            "or give another output"
        )


def _labels(run: Run, images: tuple[SourceImage, ...]) -> np.ndarray:
    names = list(run.config.classes)
    return np.array([names.index(image.class_name) for image in images], np.int64)


def _real(run: Run, images: tuple[SourceImage, ...], folder: Path) -> Images:
    return Images(load_images(folder, images, run.dataset.size, run.dataset.frame), _labels(run, images))


def _synthetic(run: Run, draws: Draws, wanted: list[int]) -> Images:
    """The first such images of each class of the corpus, in the order of their indices."""
    pixels, labels = [], []
    for label, (name, count) in enumerate(zip(run.config.classes, wanted)):
        left = count
        for shard in sorted((s for s in published_rows(run.store) if s.class_name == name), key=lambda s: s.first):
            if left <= 0:
                break
            commit = read_commit(run.store, shard)
            parts = [commit, rejected_first_draws(commit) if draws == "first draws" else None]
            columns = ["image", "index", "attempt"]
            rows = [row for part in parts if part for row in read_rows(run.store, part, columns).to_pylist()]
            taken = first_rows(draws, rows, left)
            pixels += [png_pixels(row["image"]["bytes"]) for row in taken]
            labels += [label] * len(taken)
            left -= len(taken)
    return Images(np.stack(pixels), np.array(labels, np.int64))


def _train_all(run: Run, job: Job, todo: list[Task], planned: int, external: CheckReport | None) -> None:
    splits = {split: _real(run, run.dataset.split(split), run.folder) for split in SPLITS}
    classes = len(job.classes)
    wanted = needed(splits["train"].labels, classes, max(run.config.study.ratios))
    synthetic = {draws: _synthetic(run, draws, wanted) for draws in _draws(task.arm for task in todo)}
    sets: dict[str, tuple[np.ndarray, Augmentation | None]] = {
        "train": (splits["train"].pixels, "mirror"),
        "classical": (splits["train"].pixels, "classical"),
        **{draws: (images.pixels, "mirror") for draws, images in synthetic.items()},
        "val": (splits["val"].pixels, None),
        "test": (splits["test"].pixels, None),
    }
    if external:
        sets["external"] = (_real(run, external.images, Path(run.config.study.external or "")).pixels, None)
    cpus = run.config.cluster.cpus_per_actor
    with watched(run.tell, "study", planned, planned - len(todo)) as board:

        def work() -> None:
            seen = _represent.options(num_cpus=cpus)
            inputs = {
                name: seen.remote(pixels, job.training.architecture, kind, job.seed, job.threads, board)
                for name, (pixels, kind) in sets.items()
            }
            labels = {name: images.labels for name, images in {**splits, **synthetic}.items()}
            started = _train.options(num_cpus=cpus, max_retries=TRIES)
            waiting = [started.remote(job, task, labels, list(inputs), board, *inputs.values()) for task in todo]
            while waiting:  # the first failure ends the study at once, not when its turn in the list comes
                done, waiting = ray.wait(waiting)
                ray.get(done)

        try:
            supervised(board, "study", run.config.cluster.hang_seconds, work)
        except RayError as error:
            raise stopped("study", error) from error


@ray.remote
def _represent(
    pixels: np.ndarray,
    architecture: Architecture,
    augmentation: Augmentation | None,
    seed: int,
    threads: int,
    board: Any,
) -> np.ndarray:
    use_threads(threads)
    beat = Pulse(board)
    beat()
    inputs = represent(pixels, architecture, augmentation, seed, beat)
    beat.rest()
    return inputs


@ray.remote
def _train(job: Job, task: Task, labels: dict[str, np.ndarray], names: list[str], board: Any, *arrays: Any) -> None:
    """Train, predict val, test and the external set, put the record; a record that is there already stays."""
    use_threads(job.threads)
    beat, started = Pulse(board), time.perf_counter()
    beat()
    inputs = dict(zip(names, arrays, strict=True))
    classes = len(job.classes)
    phases, counts = [], []
    for diet in task.arm.diets:
        real, synthetic = positions(diet, labels["train"], labels[diet.draws], classes)
        phases.append(_phase(diet, inputs, labels, real, synthetic))
        counts.append({"real": len(real), "synthetic": len(synthetic), "share": diet.share})
    seed = seed_for(job.seed, "all", task.number, 0, "study") % 2**31  # one for all arms: they are paired by it
    fitted = fit(phases, (inputs["val"], labels["val"]), classes, job.training, seed, beat)
    record = {
        "arm": task.arm.name,
        "number": task.number,
        "seed": seed,
        "classes": list(job.classes),
        "fed": counts,
        "chosen": asdict(fitted.chosen),
        "trials": [asdict(trial) for trial in fitted.trials],
        "probabilities": {
            name: predict(fitted, inputs[name], beat).tolist() for name in ("val", "test", "external") if name in inputs
        },
        "seconds": time.perf_counter() - started,
    }
    job.store.put_once(study_key(job.identity, task.arm.name, task.number), to_json(record))
    beat(1)
    beat.rest()


def _phase(
    diet: Diet, inputs: dict[str, Any], labels: dict[str, np.ndarray], real: np.ndarray, synthetic: np.ndarray
) -> Phase:
    ours = inputs["classical" if diet.augmentation == "classical" else "train"]
    drawn = (inputs[diet.draws][synthetic], labels[diet.draws][synthetic])
    parts = [(ours[real], labels["train"][real]), drawn]
    parts = [part for part in parts if len(part[1])]
    return Phase(
        np.concatenate([images for images, _ in parts]),
        np.concatenate([names for _, names in parts]),
        diet.share,
        diet.augmentation,
        diet.balanced,
    )


def _outcome(run: Run, job: Job, tasks: list[Task], external: CheckReport | None) -> Outcome:
    keys = [study_key(job.identity, task.arm.name, task.number) for task in tasks]
    records = [json.loads(data) for data in in_threads(run.store.read, keys)]
    sets = {"test": (run.dataset.test, clusters_of(run.dataset.test, _near_duplicates(run)))}
    if external:
        sets["external"] = (external.images, clusters_of(external.images, external.clusters))
    arms = dict.fromkeys(record["arm"] for record in records)
    assert run.config.study.primary is not None
    return Outcome(
        classes=job.classes,
        architecture=job.training.architecture,
        frame=run.dataset.frame,
        size=run.dataset.size,
        primary=run.config.study.primary,
        images={record["arm"]: sum(fed["real"] + fed["synthetic"] for fed in record["fed"]) for record in records},
        labels={name: _labels(run, images) for name, (images, _) in sets.items()},
        clusters={
            name: np.array([clusters[image.file] for image in images]) for name, (images, clusters) in sets.items()
        },
        probabilities={
            name: {
                arm: np.array([_probabilities(r, name, job.classes) for r in records if r["arm"] == arm])
                for arm in arms
            }
            for name in sets
        },
        tasks=len(records),
        seconds=sum(record["seconds"] for record in records),
    )


def _probabilities(record: dict[str, Any], name: str, classes: tuple[str, ...]) -> np.ndarray:
    """What a training says of a set's images, [n, classes]: records of before classes were sorted have them as the
    config named them."""
    return np.array(record["probabilities"][name])[:, [record["classes"].index(c) for c in classes]]


def _configurations(store: Store) -> list[dict[str, Any]]:
    """Every study that was ever begun in this run: its settings and how many trainings it has."""
    keys = list(store.list("study"))
    found = []
    for key in (key for key in keys if key.endswith("/identity.json")):
        folder = key.rpartition("/")[0]
        trainings = sum(other.startswith(f"{folder}/") for other in keys) - 1
        found.append({"identity": folder.rpartition("/")[2], "trainings": trainings, **json.loads(store.read(key))})
    return found
