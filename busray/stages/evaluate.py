"""Features on Ray Data actors, stored once a shard; the figures are computed from what is stored."""

import json
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from busray.corpus.arms import Source, arm_sources, gated_arm, released_arm
from busray.corpus.commit import (
    read_commits,
)
from busray.corpus.manifest import quarantine
from busray.data.split import SPLITS
from busray.evidence.classes import AFTER_GATE, FIRST_DRAW, GateCounts, consistency_figures, gate_counts, gate_figures
from busray.evidence.distances import arm_figures, clean_figures, clean_sentences
from busray.evidence.nearness import nearness_figures
from busray.evidence.stats.samples import FEWEST, Real
from busray.layout import CHECK
from busray.records import Figure, Stopped
from busray.run.pieces import Piece, real_blocks, synthetic_pieces
from busray.run.record import Run
from busray.stages.classifiers import classifier_record, load_classifier, trained_classifier
from busray.stages.features import Arms, chosen_indices, features, real_units
from busray.vision.extractors import Extractor


def evaluate(run: Run) -> list[Figure]:
    """Every arm's distances to the real images of evaluate.reference, by each extractor; to test images without
    burned-in annotations too, where these are the reference; class consistency of first draws. Where a class gate chose
    the released images, distances and consistency after that too, and nearness to training images before and after."""
    figures: list[Figure] = []
    clean = _clean(run)
    reference, released = run.config.evaluate.reference, released_arm(run.config)
    for done, extractor in enumerate(run.extractors):
        arms, gated, pairs, real = _before_and_after(run, extractor)
        run.tell("figures", done, len(run.extractors))
        figures += arm_figures({**arms, **gated}, real, reference, [*pairwise(arms), *pairs])
        if reference == "test":
            figures += clean_figures({**arms, **gated}, real, clean, [*pairwise(arms), *pairs])
        if gated:
            before = {released: arms[released]} if released in arms else {}
            figures += nearness_figures(
                {**before, **gated}, real, reference if reference in ("val", "test") else "test"
            )
    run.tell("figures", len(run.extractors), len(run.extractors))
    return [*figures, *_class_figures(run)]


class Drawn(NamedTuple):
    """What an extractor sees before and after a class gate."""

    arms: Arms
    """All of first draws and seed-paired."""
    gated: Arms
    """What the gate let pass, if there is one."""
    pairs: list[tuple[str, str]]
    """(arm, gated arm) of which row i is one image, before and after."""
    real: Real


def _before_and_after(run: Run, extractor: str) -> Drawn:
    """First draws and what a class gate let pass are read apart: an image whose budget was spent is missing after the
    gate, and must not be missing before. Where that is a whole class, nothing is left to be compared. Where it is an
    image that would be compared, later rows hold other images, and the two are not seed-paired."""
    before = synthetic_pieces(run, arm_sources(run.config), extractor)
    _stop_at_too_few(run, before)
    arms, real = features(run, before, extractor)
    gated, released = gated_arm(run.config), released_arm(run.config)
    if not gated:
        return Drawn(arms, {}, [], real)
    after = synthetic_pieces(run, {gated: Source("", "image")}, extractor)
    found = features(run, after, extractor)[0][gated] if after[gated] else {}
    if not all(len(found.get(c, ())) for c in next(iter(arms.values()))):
        return Drawn(arms, {}, [], real)
    same = released in arms and chosen_indices(run, before) == chosen_indices(run, after)
    return Drawn(arms, {gated: found}, [(released, gated)] * same, real)


def _stop_at_too_few(run: Run, drawn: dict[str, list[Piece]]) -> None:
    """Stopped where so many images of a class are quarantined that nothing can be compared."""
    chosen = chosen_indices(run, drawn)
    for name, settings in run.config.classes.items():
        if settings.images and (n := len(chosen.get(name, ()))) < FEWEST:
            corpora = (run.store.sub(s.prefix) if s.prefix else run.store for s in arm_sources(run.config).values())
            reasons = [f" ({reason})" for store in corpora for _, reason in quarantine(store).examples]
            raise Stopped(
                f"evaluate: every arm has {n} images of {name}, at least {FEWEST} are needed to compare anything, and "
                f"the others were quarantined{''.join(reasons[:1])}: mend the cause and draw into another output"
            )


def _class_figures(run: Run) -> list[Figure]:
    """Which class the judge sees in each arm's first draws and in what the gate let pass; what the gate itself did."""
    config, figures = run.config, []
    names = list(config.classes)
    if config.evaluate.judge:
        record = trained_classifier(run, config.evaluate.judge)
        judge = Extractor(f"judge-{record['digest'][:16]}", load_classifier(run.store, record))
        arms, gated, _, real = _before_and_after(replace(run, extractors={judge.name: judge}), judge.name)
        real = replace(real, extractor=config.evaluate.judge)
        figures += consistency_figures(arms, real, names, FIRST_DRAW)
        figures += consistency_figures(gated, real, names, AFTER_GATE)
    counts = gated_counts(run)
    if counts:
        assert config.corpus.gate is not None
        record = classifier_record(run, config.corpus.gate.architecture)
        assert record is not None
        figures += gate_figures(counts, record, released_arm(config), run.dataset.frame, run.dataset.size)
    return figures


def _clean(run: Run) -> dict[str, dict[str, np.ndarray]]:
    """split -> class -> whether no text or caliper was found in an image, in the order of _real_images."""
    found = json.loads(run.store.read(CHECK)).get("annotations", [])
    annotated = {one["file"] for one in found}
    clean: dict[str, dict[str, list[bool]]] = {split: {} for split in SPLITS}
    for _, split, name, images in real_blocks(run, ""):
        clean[split].setdefault(name, []).extend(image.file not in annotated for image in images)
    return {split: {name: np.array(kept) for name, kept in by.items()} for split, by in clean.items()}


def clean_reason(run: Run) -> list[str]:
    """In a sentence why no figures are on test images without annotations, where there are annotated ones."""
    if run.config.evaluate.reference != "test":
        return []
    drawn = [name for name, settings in run.config.classes.items() if settings.images]
    return clean_sentences(real_units(run), _clean(run), drawn)


def gated_counts(run: Run) -> dict[str, GateCounts]:
    """class -> what the class gate did with its images; nothing where there is no gate."""
    gate = run.config.corpus.gate
    return gate_counts(read_commits(run.store), gate.attempts) if gate else {}
