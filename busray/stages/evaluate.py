"""The figures of a run: distances, nearness and class consistency of every arm."""

from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from busray.corpus.arms import Source, arm_after_gate, arm_sources, released_arm
from busray.corpus.commit import read_commits
from busray.corpus.manifest import quarantine
from busray.evidence.classes import AFTER_GATE, FIRST_DRAW, GateCounts, consistency_figures, gate_counts, gate_figures
from busray.evidence.distances import arm_figures, clean_figures, clean_sentences
from busray.evidence.nearness import nearness_figures
from busray.evidence.real import RealFeatures
from busray.evidence.stats.samples import FEWEST_UNITS
from busray.layout import CHECK
from busray.records import Figure, StoppedForGood, json_object
from busray.run.pieces import ImageBlock, synthetic_blocks
from busray.run.record import Run, timed
from busray.stages.classifiers import load_classifier, trained_classifier
from busray.stages.features import Arms, chosen_indices, extract_missing, features, of_real_images, real_units
from busray.stages.whole_corpus import evaluate_whole_corpus, whole_corpus_stage
from busray.vision.extractors import Extractor
from busray.workers import Workers


def evaluate(run: Run, workers: Workers) -> list[Figure]:
    """Every arm's distances to the real images of evaluate.reference, by each extractor.

    Where these are the test images, also to those without burned-in annotations. Class consistency
    of the first draws. Where a class gate chose the released images, distances and consistency
    after it too, and nearness to the training images before and after. With evaluate.whole_corpus
    the Frechet distance of all released images too.
    """
    _extract_missing(run, workers)
    figures: list[Figure] = []
    clean = _clean(run)
    reference, released = run.config.evaluate.reference, released_arm(run.config)
    for done, extractor in enumerate(run.extractors):
        arms, gated, gate_pairs, real = _before_and_after_gate(run, workers, extractor)
        workers.report("figures", done, len(run.extractors))
        pairs = [*pairwise(arms), *gate_pairs]
        figures += arm_figures({**arms, **gated}, real, reference, pairs)
        if reference == "test":
            figures += clean_figures({**arms, **gated}, real, clean, pairs)
        if gated:
            # A gate may prefer images near the training images. Both sides show whether it did.
            before = {released: arms[released]} if released in arms else {}
            held_out = reference if reference in ("val", "test") else "test"
            figures += nearness_figures({**before, **gated}, real, held_out)
        if run.config.evaluate.whole_corpus:
            work = partial(evaluate_whole_corpus, run, workers, extractor)
            figures += timed(run, whole_corpus_stage(extractor), work)
    workers.report("figures", len(run.extractors), len(run.extractors))
    return [*figures, *_class_figures(run, workers)]


def _extract_missing(run: Run, workers: Workers) -> None:
    """All that is compared, by all extractors, so that no image is read for each of them."""
    before = arm_sources(run.config)
    _stop_at_too_few(run, synthetic_blocks(run, before, ""))
    gated = arm_after_gate(run.config)
    after = [{gated: Source("", "image")}] if gated else []
    extract_missing(run, workers, [before, *after])


class GateComparison(NamedTuple):
    """An extractor's features before and after a class gate."""

    arms: Arms  # all arms, of first draws and seed-paired
    gated: Arms  # the images that the gate let pass; empty where there is no gate
    # (arm, gated arm) whose row i is one image, before and after the gate
    pairs: list[tuple[str, str]]
    real: RealFeatures


def _before_and_after_gate(run: Run, workers: Workers, extractor: str) -> GateComparison:
    """The two sides are read separately: an image that the gate gave up is missing after it only.

    Where fewer than FEWEST_UNITS images of a class passed, nothing is compared after the gate.
    """
    before = synthetic_blocks(run, arm_sources(run.config), extractor)
    arms, real = features(run, workers, before, extractor)
    gated, released = arm_after_gate(run.config), released_arm(run.config)
    if not gated:
        return GateComparison(arms, {}, [], real)
    after = synthetic_blocks(run, {gated: Source("", "image")}, extractor)
    passed = features(run, workers, after, extractor)[0][gated] if after[gated] else {}
    classes = next(iter(arms.values()))
    if min(len(passed.get(name, ())) for name in classes) < FEWEST_UNITS:
        return GateComparison(arms, {}, [], real)
    # Where a compared image is missing, later rows hold other images: no longer seed-paired.
    same_images = released in arms and chosen_indices(run, before) == chosen_indices(run, after)
    return GateComparison(arms, {gated: passed}, [(released, gated)] if same_images else [], real)


def _stop_at_too_few(run: Run, blocks: dict[str, list[ImageBlock]]) -> None:
    """StoppedForGood where too few images of a class are left, after quarantine, to compare."""
    chosen = chosen_indices(run, blocks)
    for name, settings in run.config.classes.items():
        n = len(chosen.get(name, ()))
        if settings.images and n < FEWEST_UNITS:
            raise StoppedForGood(
                f"evaluate: every arm has {n} images of {name}, at least {FEWEST_UNITS} are needed to "
                f"compare anything, and the others were quarantined{_example_of_quarantine(run)}",
                "fix the cause and draw into another output",
            )


def _example_of_quarantine(run: Run) -> str:
    """The reason of one quarantined image of any arm, in brackets; empty where there is none."""
    for source in arm_sources(run.config).values():
        store = run.store.sub(source.prefix) if source.prefix else run.store
        for _, reason in quarantine(store).examples:
            return f" ({reason})"
    return ""


def _class_figures(run: Run, workers: Workers) -> list[Figure]:
    """Which class the judge sees in the arms, before and after the gate; and what the gate did."""
    config, figures = run.config, []
    names = list(config.classes)
    if config.evaluate.judge:
        record = trained_classifier(run, workers, config.evaluate.judge)
        # The weights' digest is in the name: what another judge saw is stored under other keys.
        judge = Extractor(f"judge-{record.digest[:16]}", load_classifier(run.store, record))
        judged_run = replace(run, extractors={judge.name: judge})
        judged = _before_and_after_gate(judged_run, workers, judge.name)
        real = replace(judged.real, extractor=config.evaluate.judge)
        figures += consistency_figures(judged.arms, real, names, FIRST_DRAW)
        figures += consistency_figures(judged.gated, real, names, AFTER_GATE)
    counts = class_gate_counts(run)
    if counts:
        assert config.corpus.gate is not None
        # Trained again where its record was lost, or was damaged and moved aside by `repair`.
        record = trained_classifier(run, workers, config.corpus.gate.architecture)
        figures += gate_figures(counts, record, released_arm(config), run.dataset.frame, run.dataset.size)
    return figures


def _clean(run: Run) -> dict[str, dict[str, np.ndarray]]:
    """split -> class -> bool [n]: no text or caliper was found in it; as real_units has them."""
    annotations = run.store.read_record(CHECK, json_object).get("annotations", [])
    annotated = {annotation["file"] for annotation in annotations}
    return of_real_images(run, lambda _, images: [image.file not in annotated for image in images])


def no_clean_figures_sentences(run: Run) -> list[str]:
    """Why there are no figures on test images without annotations, where some have annotations."""
    if run.config.evaluate.reference != "test":
        return []
    drawn = [name for name, settings in run.config.classes.items() if settings.images]
    return clean_sentences(real_units(run), _clean(run), drawn)


def class_gate_counts(run: Run) -> dict[str, GateCounts]:
    """class -> what the class gate did with its images; empty where there is no gate."""
    gate = run.config.corpus.gate
    return gate_counts(read_commits(run.store), gate.attempts) if gate else {}
