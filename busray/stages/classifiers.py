"""The classifiers of a run: each is trained once, on the train split alone, as a task on Ray, and kept in its store.

Chosen and calibrated on val; its accuracy on test, scored when it is trained, stands in its record. The class gate and
the judge of class consistency are such classifiers, of different architectures.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError

from busray.cluster.liveness import Pulse, stopped, supervised, watched
from busray.cluster.session import session, use_threads
from busray.data.images import load_images
from busray.data.split import SPLITS
from busray.evidence.classes import recalls
from busray.identity import fingerprint, seed_for, sha256_bytes
from busray.layout import classifier_key
from busray.records import CLASS_ALL, to_json
from busray.run.record import Run
from busray.storage import Store
from busray.vision.classifier import CHECKS, Architecture, Classifier, Phase, Training, fit, predict, represent

STEPS, BATCH_SIZE, LEARNING_RATE = 400, 32, 3e-3
"""As study's defaults; val chooses the step."""


TRIES = 3
"""Times that Ray starts a training again whose worker died."""


@dataclass(frozen=True)
class Split:
    """Pixels uint8 [n, s, s], labels [n], and the cluster of each image [n]."""

    pixels: np.ndarray
    labels: np.ndarray
    units: np.ndarray


def classifier_record(run: Run, architecture: Architecture) -> dict[str, Any] | None:
    """What the run's store says of its classifier of this architecture; None where it has none yet."""
    data = run.store.read_or_none(classifier_key(fingerprint(_pins(run, architecture))))
    return None if data is None else json.loads(data)


def trained_classifier(run: Run, architecture: Architecture) -> dict[str, Any]:
    """The record of the run's classifier, which is trained first where there is none."""
    found = classifier_record(run, architecture)
    if found is None:
        with session(run.config.cluster, run.log_file):
            _train(run, architecture)
        found = classifier_record(run, architecture)
        assert found is not None
    return found


def load_classifier(store: Store, record: dict[str, Any]) -> Classifier:
    """ValueError where the weights are not the recorded ones."""
    data = store.read(record["object"])
    if sha256_bytes(data) != record["digest"]:
        raise ValueError(f"{store.url}/{record['object']} is not what its record names")
    return Classifier.from_bytes(data)


def probabilities(classifier: Classifier, pixels: np.ndarray, beat: Callable[[], None] = lambda: None) -> np.ndarray:
    """Calibrated, float64 [n, classes], of images uint8 [n, s, s]. beat is called after each batch."""
    return predict(classifier, represent(pixels, classifier.architecture, beat=beat), beat)


def _pins(run: Run, architecture: Architecture) -> dict[str, Any]:
    """What decides a classifier; its last bits also hang on machine and threads, so the first one of a run is kept."""
    training = {"steps": STEPS, "batch_size": BATCH_SIZE, "learning_rates": [LEARNING_RATE]}
    return {
        "architecture": architecture,
        "dataset": run.dataset.hash,
        "classes": list(run.config.classes),
        "training": training,
        "seed": seed_for(run.config.seed, "all", 0, 0, "classify") % 2**31,
    }


def _train(run: Run, architecture: Architecture) -> None:
    names, cluster = list(run.config.classes), run.config.cluster
    stage = f"classifier {architecture}"
    with watched(run.tell, stage, CHECKS) as board:

        def work() -> None:
            splits = {}
            for split in SPLITS:
                images = run.dataset.split(split)
                pixels = load_images(run.folder, images, run.dataset.size, run.dataset.frame)
                labels = np.array([names.index(image.class_name) for image in images], np.int64)
                splits[split] = Split(pixels, labels, np.array([image.unit for image in images]))
            task = _fit.options(num_cpus=cluster.cpus_per_actor, max_retries=TRIES)
            pins = _pins(run, architecture)
            ray.get(task.remote(run.store, pins, ray.put(splits), cluster.threads, board))

        try:
            supervised(board, stage, cluster.hang_seconds, work)
        except RayError as error:
            raise stopped(stage, error) from error


@ray.remote
def _fit(store: Store, pins: dict[str, Any], splits: dict[str, Split], threads: int, board: Any) -> None:
    use_threads(threads)
    beat = Pulse(board)
    beat()
    fitted, test = fitted_and_tested(pins, splits, beat)
    data = fitted.to_bytes()
    digest = sha256_bytes(data)
    key = classifier_key(fingerprint(pins))
    weights = f"{key.removesuffix('.json')}-{digest[:16]}.safetensors"
    store.put_once(weights, data)
    trials = {"chosen": asdict(fitted.chosen), "trials": [asdict(trial) for trial in fitted.trials]}
    counts = {split: len(found.labels) for split, found in splits.items()}
    record = {**pins, **trials, "images": counts, "test": test, "object": weights, "digest": digest}
    store.put_once(key, to_json(record))
    beat.rest()


def fitted_and_tested(pins: dict[str, Any], splits: dict[str, Split], beat: Pulse) -> tuple[Classifier, dict[str, Any]]:
    """(classifier, class or `all` -> share of its test images that are said to be of it, with interval)."""
    architecture, names, training = pins["architecture"], pins["classes"], pins["training"]
    train, val, test = (splits[split] for split in SPLITS)
    phase = Phase(represent(train.pixels, architecture, "mirror", beat=beat), train.labels)
    how = Training(architecture, training["steps"], training["batch_size"], tuple(training["learning_rates"]))
    seen = represent(val.pixels, architecture, beat=beat), val.labels
    fitted = fit([phase], seen, len(names), how, pins["seed"], beat, partial(beat, 1))
    found = recalls(probabilities(fitted, test.pixels, beat), test.labels, test.units, names)
    counts = {name: int((test.labels == label).sum()) for label, name in enumerate(names)}
    counts[CLASS_ALL] = len(test.labels)
    told = {n: {"value": share.value, "interval": list(share.interval), "n": counts[n]} for n, share in found.items()}
    return fitted, told
