"""The classifiers of a run: the class gate, and the judge of class consistency.

Each is trained once in one worker, on the train split alone, chosen and calibrated on val, and kept
in the run's store. Its accuracy on test, measured when it is trained, is part of its record.
"""

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np

from busray.corpus.commit import read_named
from busray.data.images import Images
from busray.data.split import SPLITS
from busray.evidence.classes import recalls
from busray.identity import fingerprint, seed_for, sha256_bytes
from busray.layout import classifier_key
from busray.records import CLASS_ALL, ClassifierRecord, Recall, to_json
from busray.run.record import Run
from busray.storage import Store
from busray.vision.classifier import Architecture, Classifier, Phase, Training, fit, probabilities, represent
from busray.vision.fitting import VALIDATIONS
from busray.workers import Beat, Workers

# The defaults of a study's trainings too; val chooses the step whose weights are kept.
STEPS, BATCH_SIZE, LEARNING_RATE = 400, 32, 3e-3


def classifier_record(run: Run, architecture: Architecture) -> ClassifierRecord | None:
    """The record of the run's classifier of this architecture; None where it has none yet."""
    key = classifier_key(fingerprint(_pins(run, architecture)))
    return run.store.read_record_or_none(key, ClassifierRecord.from_json)


def trained_classifier(run: Run, workers: Workers, architecture: Architecture) -> ClassifierRecord:
    """The record of the run's classifier, which is trained first where there is none."""
    record = classifier_record(run, architecture)
    if record is None:
        images = {split: run.images.load(run.dataset.split(split)) for split in SPLITS}
        pins = _pins(run, architecture)
        workers.call(f"classifier {architecture}", VALIDATIONS, _train, run.store, pins, images)
        record = classifier_record(run, architecture)
        assert record is not None
    return record


def load_classifier(store: Store, record: ClassifierRecord) -> Classifier:
    """Damaged where the weights are lost, or are not the recorded ones."""
    return Classifier.from_bytes(read_named(store, record.object, record.digest, "its record"))


def _pins(run: Run, architecture: Architecture) -> dict[str, Any]:
    """Everything that decides a classifier but the machine and its threads."""
    # Those change last bits. So there is one record per pins, and the first one put is kept.
    return {
        "architecture": architecture,
        "dataset": run.dataset.hash,
        "classes": list(run.config.classes),
        "training": {"steps": STEPS, "batch_size": BATCH_SIZE, "learning_rates": [LEARNING_RATE]},
        "seed": seed_for(run.config.seed, "all", 0, 0, "classify") % 2**31,
    }


def _train(beat: Beat, store: Store, pins: dict[str, Any], images: Mapping[str, Images]) -> None:
    """Train, score test, put the weights and then their record. The first record wins."""
    classifier, test = fit_and_test(pins, images, beat)
    key = classifier_key(fingerprint(pins))
    weights, digest = put_weights(store, key, classifier.to_bytes())
    record = ClassifierRecord(
        **pins,
        chosen=asdict(classifier.chosen),
        trials=tuple(map(asdict, classifier.validations)),
        images={split: len(images[split]) for split in SPLITS},
        test=test,
        object=weights,
        digest=digest,
    )
    store.put_checked(key, to_json(record))


def put_weights(store: Store, record_key: str, data: bytes) -> tuple[str, str]:
    """Put trained weights, before the record that names them; returns (their key, their digest)."""
    digest = sha256_bytes(data)
    # The digest in the key keeps apart what two workers trained; a record names one of them.
    key = f"{record_key.removesuffix('.json')}-{digest[:16]}.safetensors"
    store.put_named(key, data)
    return key, digest


def fit_and_test(
    pins: dict[str, Any], images: Mapping[str, Images], beat: Beat
) -> tuple[Classifier, dict[str, Recall]]:
    """(classifier, class or `all` -> its score on test), of the images of each split."""
    architecture, classes, training = pins["architecture"], pins["classes"], pins["training"]
    rates = tuple(training["learning_rates"])
    train, val, test = (images[split] for split in SPLITS)
    phase = Phase(represent(train.pixels, architecture, "mirror", beat=beat), train.labels)
    validation = represent(val.pixels, architecture, beat=beat), val.labels
    how = Training(architecture, training["steps"], training["batch_size"], rates)
    classifier = fit([phase], validation, len(classes), how, pins["seed"], beat, partial(beat, 1))
    images_of = np.bincount(test.labels, minlength=len(classes)).tolist()
    counts = {**dict(zip(classes, images_of, strict=True)), CLASS_ALL: len(test)}
    scores = {}
    predicted: np.ndarray = probabilities(classifier, test.pixels, beat)
    for name, recall in recalls(predicted, test.labels, test.units, classes).items():
        scores[name] = Recall(recall.value, recall.interval, counts[name])
    return classifier, scores
