"""The downstream study: classifiers trained with and without synthetic images, tested on real ones.

Each training runs in one worker, and its result is a create-only record of the run.
"""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from busray.config import Study as StudySettings
from busray.corpus.commit import count_first_draws, each_commit, read_commit, read_rows, rejected_first_draws
from busray.corpus.encode import png_pixels
from busray.corpus.manifest import published_rows
from busray.corpus.record import differences, read_run
from busray.data.check import CheckReport, check
from busray.data.duplicates import shared_images
from busray.data.folder import class_names, class_root
from busray.data.patients import NOBODY
from busray.data.split import SPLITS
from busray.evidence import study_design
from busray.evidence.stats.paired import classes_without_spread
from busray.evidence.study import StudyResults, study_figures
from busray.evidence.study_design import Arm, Draws, TrainingMix, study_arms
from busray.identity import fingerprint, seed_for, sha256_bytes
from busray.layout import CHECK, STUDY_CSV, STUDY_DECLARED, STUDY_JSON, study_identity_key, study_key
from busray.model.checkpoints import read_adapters
from busray.records import Figure, SourceImage, UserError, json_object, to_json
from busray.report.study import study_sentences
from busray.report.tables import figures_csv
from busray.run.record import Run
from busray.stages.report import add_to_report
from busray.storage import Store, in_threads
from busray.vision import efficientnet
from busray.vision.classifier import Architecture, Augmentation, Phase, Training, fit, predict, represent
from busray.workers import Beat, Report, Shared, Workers

Arrays = Mapping[str, np.ndarray]  # by name of a set of images
PROBLEMS_SHOWN = 10  # problems of an external test set that the message lists


@dataclass(frozen=True)
class ArmSeed:
    """One training: an arm from its number-th seed."""

    arm: Arm
    number: int


@dataclass(frozen=True)
class StudyJob:
    """What every training of a study needs; travels pickled to the workers."""

    store: Store
    identity: str
    training: Training
    classes: tuple[str, ...]
    seed: int


@dataclass(frozen=True)
class TrainingRecord:
    """The result of one training, by the names of its stored JSON."""

    arm: str
    number: int
    seed: int
    classes: tuple[str, ...]  # the order of the columns of `probabilities`
    # For each phase: numbers of `real` and `synthetic` images, `share` of the steps
    fed: tuple[Mapping[str, float], ...]
    chosen: Mapping[str, Any]  # the validation whose weights were kept
    trials: tuple[Mapping[str, Any], ...]  # all validations
    # `val`, `test` and, where there is one, `external` -> [n, classes]
    probabilities: Mapping[str, Sequence[Sequence[float]]]
    seconds: float

    @staticmethod
    def from_json(data: bytes) -> "TrainingRecord":
        fields = json.loads(data)
        for name in ("classes", "fed", "trials"):
            fields[name] = tuple(fields[name])  # JSON has no tuples
        return TrainingRecord(**fields)


class LabelledImages(NamedTuple):
    pixels: np.ndarray  # uint8 [n, s, s]
    labels: np.ndarray  # int64 [n]: the number of each image's class


def study(run: Run, workers: Workers) -> tuple[list[Figure], list[str]]:
    """(figures, sentences) of the arms, compared on test; what the store misses is trained first.

    study.json, study.csv and the report's part are written anew from the trainings' records.
    UserError where the run, the settings or the external test set do not allow a fair comparison.
    """
    settings = run.config.study
    arms = study_arms(settings.ratios, run.config.corpus.gate is not None)
    corpus = _check_study(run, arms)
    external = _external_images(run, workers.report)
    job, pins = _job(run, corpus, external)
    _declare(run.store, settings, pins, job.identity)
    trainings: list[ArmSeed] = []
    for number in range(settings.seeds):  # all arms of a seed, then the next: pairs come early
        trainings += [ArmSeed(arm, number) for arm in arms]
    present = run.store.present(_key(job, training) for training in trainings)
    missing = [training for training in trainings if _key(job, training) not in present]
    if missing:
        images = _study_images(run, missing, external)
        inputs = _represent_all(workers, job, images)
        labels = {name: labelled.labels for name, labelled in images.items()}
        done = len(trainings) - len(missing)
        workers.call_all("study", len(trainings), _train, missing, job, inputs, labels, done=done)
    workers.report("study figures", 0, 1)
    outcome = _outcome(run, job, trainings, external)
    figures = study_figures(outcome)
    sentences = study_sentences(figures, outcome)
    _write(run, job.identity, figures, sentences)
    workers.report("study figures", 1, 1)
    return figures, sentences


def _job(run: Run, corpus: str, external: CheckReport | None) -> tuple[StudyJob, dict[str, Any]]:
    """(job, everything that decides its trainings); corpus: its fingerprint."""
    config, settings = run.config, run.config.study
    steps, batch_size = settings.steps, settings.batch_size
    training = Training(settings.architecture, steps, batch_size, settings.learning_rates)
    pins = {
        "dataset": run.dataset.hash,
        "corpus": corpus,
        "training": {**asdict(training), "learning_rates": list(training.learning_rates)},
        "seed": config.seed,
        "threads": config.cluster.threads,
        "external": [image.sha256 for image in external.images] if external else None,
    }
    return StudyJob(run.store, fingerprint(pins), training, tuple(config.classes), config.seed), pins


def _key(job: StudyJob, training: ArmSeed) -> str:
    return study_key(job.identity, training.arm.name, training.number)


def _write(run: Run, identity: str, figures: list[Figure], sentences: list[str]) -> None:
    part = {
        "identity": identity,
        "primary": run.config.study.model_dump(mode="json")["primary"],
        "tried": _studies_tried(run.store),
        "sentences": sentences,
        "figures": [figure.to_dict() for figure in figures],
    }
    run.store.replace_checked(STUDY_JSON, to_json(part))
    run.store.replace(STUDY_CSV, figures_csv(figures).encode())
    add_to_report(run, "study", part)


def _studies_tried(store: Store) -> list[dict[str, Any]]:
    """Every study that was ever begun in this run: its settings and how many trainings it has."""
    # Who tries many settings finds a good one by luck: the report says how many were tried.
    keys = list(store.list("study"))
    studies = []
    for key in keys:
        folder, _, file = key.rpartition("/")
        if file == "identity.json":
            trainings = sum(other.startswith(f"{folder}/") for other in keys) - 1
            pins, identity = store.read_record(key, json_object), folder.rpartition("/")[2]
            studies.append({"identity": identity, "trainings": trainings, **pins})
    return studies


# ---- checks before anything is trained ----


def _check_study(run: Run, arms: list[Arm]) -> str:
    """The corpus's fingerprint.

    UserError for a leak between splits, an unfinished run, too few images, or no valid primary.
    """
    _check_primary(run.config.study, [arm.name for arm in arms])
    if run.config.study.architecture == "efficientnet-lite0":
        efficientnet.find_weights()
    store = run.store
    corpus = read_run(store)
    if corpus is None or not published_rows(store):
        missing = f"{store.url} has no finished corpus to study"
        raise UserError(f"{missing}: run `busray run` or `busray generate` first")
    near_duplicates = _near_duplicates(store)
    study_design.refuse_leaks(run.dataset, near_duplicates)
    if alone := _classes_without_spread(list(run.config.classes), run.dataset.test, near_duplicates):
        raise UserError(
            f"dataset.test: {', '.join(alone)} has fewer than 2 independent test images, so their "
            "spread cannot be estimated: raise dataset.test in another output"
        )
    # Trained on another split, adapters may have seen images that are test images here.
    adapters = read_adapters(store)
    carried = {"the corpus (run.json)": corpus["identity"].get("dataset")}
    if corpus["identity"].get("adapters"):
        carried["its adapters (adapters.json)"] = adapters.dataset_hash if adapters else None
    study_design.refuse_foreign_corpus(run.dataset.hash, carried)
    _check_enough_drawn(run, arms)
    return corpus["fingerprint"]


def _check_primary(settings: StudySettings, arms: list[str]) -> None:
    primary = settings.primary
    if primary is None:
        raise UserError(
            "study.primary: declare the one comparison that this study is about before it runs, such "
            f"as --study.primary='{{metric: macro_f1, arm: {arms[-4]}, against: real}}'; "
            f"arms: {', '.join(arms)}"
        )
    for field, arm in (("arm", primary.arm), ("against", primary.against)):
        if arm not in arms:
            known = ", ".join(arms)
            raise UserError(f"study.primary.{field}: no arm {arm!r} in this study; arms: {known}")
    if primary.arm == primary.against:
        raise UserError("study.primary: arm and against are the same arm")


def _check_enough_drawn(run: Run, arms: list[Arm]) -> None:
    ratio, classes = max(run.config.study.ratios), run.config.classes
    labels = _labels(classes, run.dataset.train)
    wanted = study_design.synthetic_counts(labels, len(classes), ratio)
    for draws in _draws(arms):
        drawn = _images_drawn(run.store, draws)
        for name, n in zip(classes, wanted, strict=True):
            available = drawn.get(name, 0)
            if n > available:
                raise UserError(
                    f"study.ratios: {ratio:g} needs {n} synthetic images of {name}, the corpus has "
                    f"{available} {draws}: lower the ratios, or raise classes.{name}.images and run "
                    "`busray generate`"
                )


def _draws(arms: Iterable[Arm]) -> list[Draws]:
    """Which images of the corpus the arms take."""
    mixes = chain.from_iterable(arm.mixes for arm in arms)
    return list(dict.fromkeys(mix.draws for mix in mixes))


def _images_drawn(store: Store, draws: Draws) -> dict[str, int]:
    """class -> how many such images the published corpus has."""
    shards = published_rows(store)
    if draws == "released":
        counts = [row["rows"] for row in shards.values()]
    else:  # the manifest does not count them
        counts = map(count_first_draws, each_commit(store, list(shards)))
    available: dict[str, int] = {}
    for shard, count in zip(shards, counts, strict=True):
        available[shard.class_name] = available.get(shard.class_name, 0) + count
    return available


def _classes_without_spread(
    names: list[str], images: Sequence[SourceImage], near_duplicates: Iterable[Sequence[str]]
) -> list[str]:
    """Classes of which there are fewer than two independent images."""
    units = _units(images, near_duplicates)
    return [names[label] for label in classes_without_spread(_labels(names, images), units)]


def _near_duplicates(store: Store) -> list[list[str]]:
    return store.read_record(CHECK, json_object)["near_duplicates"]


def _labels(names: Iterable[str], images: Sequence[SourceImage]) -> np.ndarray:
    """int64 [n]: the number of each image's class."""
    order = list(names)
    return np.array([order.index(image.class_name) for image in images], np.int64)


def _units(images: Sequence[SourceImage], near_duplicates: Iterable[Sequence[str]]) -> np.ndarray:
    """str [n]: the unit of each image, as study_design.units_of."""
    unit_of = study_design.units_of(images, near_duplicates)
    return np.array([unit_of[image.file] for image in images])


def _external_images(run: Run, report: Report) -> CheckReport | None:
    """The check of study.external; None where it is unset.

    UserError where nothing there can be used, or where it has images of the data set.
    """
    path = run.config.study.external
    if path is None:
        return None
    classes, of_run = list(run.config.classes), run.config.dataset
    # There is no table of these images, so only DICOM can say who is who.
    group = NOBODY if of_run.group == NOBODY else None
    settings = of_run.model_copy(update={"split": "shares", "group": group})
    folder = class_root(Path(path), run.config.folders(), settings)
    present = class_names(folder, settings)
    folders = {name: of for name, of in run.config.folders().items() if name in present or of in present}
    if not folders:
        known = ", ".join(classes)
        raise UserError(f"study.external: {folder} has no folder of a class of this run ({known})")
    checked = check(folder, folders, None, partial(report, "check external"), settings)
    problems = [f"{file} cannot be read: {reason}" for file, reason in checked.unreadable]
    problems += [f"{' = '.join(files)}: one image in more than one class" for files in checked.conflicts]
    for name in _classes_without_spread(classes, checked.images, checked.duplicates):
        reason = "their spread cannot be estimated"
        problems.append(f"class {name} has fewer than 2 images that are no near-duplicates: {reason}")
    images = run.dataset.split("all")
    for file, external in shared_images(run.images.path, images, folder, checked.images):
        problems.append(f"{external} is, or is nearly, the data set's {file}")
    if problems:
        raise UserError(
            f"study.external: {folder} cannot be a test set ({len(problems)} problems); fix or remove:\n  "
            + "\n  ".join(problems[:PROBLEMS_SHOWN])
        )
    return checked


def _declare(store: Store, settings: StudySettings, pins: dict[str, Any], identity: str) -> None:
    """Record what is compared before any result; UserError if something else was declared."""
    # Changes after results are seen would make the p-values invalid: seeds could be added until p
    # is small, or ratios dropped, so that Holm corrects for fewer comparisons.
    assert settings.primary is not None
    primary = settings.primary.model_dump(mode="json")
    ratios = sorted(set(settings.ratios))
    declaration = {"primary": primary, "ratios": ratios, "seeds": settings.seeds}
    # First the trainings, then the declaration: another driver declares before it trains.
    has_trainings = False
    for key in store.list("study"):
        has_trainings |= key.count("/") == 2 and not key.endswith("/identity.json")
    # After `busray repair` the declaration may be gone. Its digest still says what it was.
    known = sha256_bytes(to_json(declaration)) in store.digests(STUDY_DECLARED)
    if has_trainings and not known and not store.exists(STUDY_DECLARED):
        raise UserError(
            f"study.ratios, study.seeds: {store.url} has trainings of a study that did not declare "
            f"them, so nobody knows whether they are still {ratios} and {settings.seeds}: "
            "give another output"
        )
    store.put_checked(STUDY_DECLARED, to_json(declaration))
    declared = store.read_record(STUDY_DECLARED, json_object)
    changes = [f"study.{field}: {now}" for field, now in differences(declared, declaration).items()]
    if changes:
        raise UserError(
            f"{'; '.join(changes)}. Another study was declared in {store.url} before its results: "
            "take the declared values back, or give another output"
        )
    store.put_checked(study_identity_key(identity), to_json(pins))


# ---- trainings ----


def _study_images(run: Run, missing: list[ArmSeed], external: CheckReport | None) -> dict[str, LabelledImages]:
    """The images of each split, of each kind of draws that an arm takes, and of study.external."""
    images: dict[str, LabelledImages] = {}
    for split in SPLITS:
        real = run.images.load(run.dataset.split(split))
        images[split] = LabelledImages(real.pixels, real.labels)
    classes, ratio = run.config.classes, max(run.config.study.ratios)
    counts = study_design.synthetic_counts(images["train"].labels, len(classes), ratio)
    wanted = dict(zip(classes, counts, strict=True))
    for draws in _draws(training.arm for training in missing):
        images[draws] = _synthetic(run.store, draws, wanted)
    if external:
        folder = replace(run.images, path=Path(run.config.study.external or ""))
        real = folder.load(external.images)
        images["external"] = LabelledImages(real.pixels, real.labels)
    return images


def _synthetic(store: Store, draws: Draws, wanted: dict[str, int]) -> LabelledImages:
    """The first such images of each class of the corpus, in the order of their indices."""
    pixels, labels = [], []
    for label, (name, count) in enumerate(wanted.items()):
        shards = [shard for shard in published_rows(store) if shard.class_name == name]
        missing = count
        for shard in sorted(shards, key=lambda shard: shard.first):
            if missing <= 0:
                break  # so that no further shard is read
            stored = _rows(store, read_commit(store, shard), draws)
            rows = study_design.first_rows(draws, stored, missing)
            pixels += [png_pixels(row["image"]["bytes"]) for row in rows]
            labels += [label] * len(rows)
            missing -= len(rows)
    return LabelledImages(np.stack(pixels), np.array(labels, np.int64))


def _rows(store: Store, commit: Any, draws: Draws) -> list[dict[str, Any]]:
    columns = ["image", "index", "attempt"]
    rows = read_rows(store, commit, columns).to_pylist()
    rejected = rejected_first_draws(commit) if draws == "first draws" else None
    if rejected is not None:
        rows += read_rows(store, rejected, columns).to_pylist()
    return rows


def _represent_all(
    workers: Workers, job: StudyJob, images: Mapping[str, LabelledImages]
) -> dict[str, Shared[np.ndarray]]:
    """set -> its classifier inputs; `classical` is train, prepared for classical augmentation."""
    # Once, and shared by all trainings: they differ in which images they take, not in the inputs.
    sets: dict[str, tuple[np.ndarray, Augmentation | None]] = {}
    for name, labelled in images.items():
        augmentation = None if name in ("val", "test", "external") else "mirror"
        sets[name] = labelled.pixels, augmentation
    sets["classical"] = images["train"].pixels, "classical"
    arguments = (list(sets.values()), job.training.architecture, job.seed)
    shared = workers.call_all("study inputs", len(sets), _represent, *arguments)
    return dict(zip(sets, shared, strict=True))


def _represent(
    beat: Beat, images: tuple[np.ndarray, Augmentation | None], architecture: Architecture, seed: int
) -> np.ndarray:
    pixels, augmentation = images
    inputs = represent(pixels, architecture, augmentation, seed, beat)
    beat(1)
    return inputs


def _train(
    beat: Beat, training: ArmSeed, job: StudyJob, inputs: Mapping[str, Shared[np.ndarray]], labels: Arrays
) -> None:
    """Train, predict the held-out sets, put the record. A record that is there already stays."""
    started = time.perf_counter()
    arrays: Arrays = {name: shared.get() for name, shared in inputs.items()}
    phases, fed, classes = [], [], len(job.classes)
    for mix in training.arm.mixes:
        available = labels["train"], labels[mix.draws]
        real, synthetic = study_design.mix_positions(mix, *available, classes)
        phases.append(_phase(mix, arrays, labels, real, synthetic))
        fed.append({"real": len(real), "synthetic": len(synthetic), "share": mix.share})
    # One seed for all arms: they are compared in pairs of equal seeds, so that what a seed does to
    # all arms alike cancels out.
    seed = seed_for(job.seed, "all", training.number, 0, "study") % 2**31
    fitted = fit(phases, (arrays["val"], labels["val"]), classes, job.training, seed, beat)
    tested = [name for name in ("val", "test", "external") if name in arrays]
    record = TrainingRecord(
        arm=training.arm.name,
        number=training.number,
        seed=seed,
        classes=job.classes,
        fed=tuple(fed),
        chosen=asdict(fitted.chosen),
        trials=tuple(map(asdict, fitted.validations)),
        probabilities={name: predict(fitted, arrays[name], beat).tolist() for name in tested},
        seconds=time.perf_counter() - started,
    )
    job.store.put_checked(_key(job, training), to_json(record))
    beat(1)


def _phase(mix: TrainingMix, inputs: Arrays, labels: Arrays, real: np.ndarray, synthetic: np.ndarray) -> Phase:
    """The images of a phase, by their positions among the real and the synthetic ones."""
    real_inputs = inputs["classical" if mix.augmentation == "classical" else "train"]
    images, classes = real_inputs[real], labels["train"][real]
    if len(synthetic):  # else the real images would be copied for nothing
        images = np.concatenate([images, inputs[mix.draws][synthetic]])
        classes = np.concatenate([classes, labels[mix.draws][synthetic]])
    return Phase(images, classes, mix.share, mix.augmentation, mix.balanced)


# ---- result ----


def _outcome(run: Run, job: StudyJob, trainings: list[ArmSeed], external: CheckReport | None) -> StudyResults:
    keys = [_key(job, training) for training in trainings]
    # From the store also those of this session: the first record counts, whoever put it.
    records = list(in_threads(lambda key: run.store.read_record(key, TrainingRecord.from_json), keys))
    images_fed: dict[str, int] = {}
    for record in records:
        images_fed[record.arm] = int(sum(fed["real"] + fed["synthetic"] for fed in record.fed))
    sets: dict[str, tuple[Sequence[SourceImage], Sequence[Sequence[str]]]] = {}
    sets["test"] = run.dataset.test, _near_duplicates(run.store)
    if external:
        sets["external"] = external.images, external.duplicates
    labels, units, probabilities = {}, {}, {}
    for name, (images, duplicates) in sets.items():
        labels[name], units[name] = _labels(job.classes, images), _units(images, duplicates)
        probabilities[name] = _probabilities(records, name, job.classes)
    assert run.config.study.primary is not None
    return StudyResults(
        classes=job.classes,
        architecture=job.training.architecture,
        frame=run.dataset.frame,
        size=run.dataset.size,
        primary=run.config.study.primary,
        images=images_fed,
        labels=labels,
        units=units,
        probabilities=probabilities,
        tasks=len(records),
        seconds=sum(record.seconds for record in records),
    )


def _probabilities(records: Sequence[TrainingRecord], name: str, classes: tuple[str, ...]) -> dict[str, np.ndarray]:
    """arm -> [seeds, n, classes] of a set's images, the columns in the order of `classes`."""
    by_arm: dict[str, list[np.ndarray]] = {}
    for record in records:
        # A record from before classes were sorted has its columns in the order of its config.
        columns = list(map(record.classes.index, classes))
        by_arm.setdefault(record.arm, []).append(np.array(record.probabilities[name])[:, columns])
    return {arm: np.array(of_arm) for arm, of_arm in by_arm.items()}
