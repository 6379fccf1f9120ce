"""Features on Ray Data actors, stored once a shard; the figures are computed from what is stored."""

import io
import json
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import ray
import ray.data
from ray.exceptions import RayError

from busray.cluster.board import stopped, supervised, this_worker, watched
from busray.cluster.classify import classifier_record, load_classifier, trained_classifier
from busray.cluster.run import Run
from busray.cluster.session import device_of, session, use_threads
from busray.corpus.arms import Source, arm_sources, compared_images, gated_arm, released_arm
from busray.corpus.commit import (
    committed_shards,
    in_threads,
    read_commit,
    read_commits,
    read_rows,
    rejected_first_draws,
)
from busray.corpus.encode import png_pixels
from busray.corpus.manifest import quarantine
from busray.data.frame import content_box
from busray.data.prepare import load_images
from busray.identity import bottom_k, draw_id, fingerprint, index_of
from busray.quality import texture
from busray.quality.ablation import nearness_figures
from busray.quality.classifier import Classifier
from busray.quality.consistency import (
    AFTER_GATE,
    FIRST_DRAW,
    GateCounts,
    consistency_figures,
    gate_counts,
    gate_figures,
)
from busray.quality.extractors import Extractor
from busray.quality.figures import FEWEST, Real, arm_figures, clean_figures, clean_sentences
from busray.quality.frechet import MOST
from busray.quality.segmenter import Segmenter
from busray.records import CHECK, INCEPTION, Box, Commit, Figure, Stopped, features_key
from busray.storage import Store

SPLITS = ("train", "val", "test")
BLOCK = 128
"""Real images a block of features."""
Arms = dict[str, dict[str, np.ndarray]]
"""arm -> class -> features [n, d]"""
BOX = ["left", "top", "width", "height"]
"""A shard's columns of the content box."""


@dataclass(frozen=True)
class Piece:
    """Images whose features are one stored object: a shard's column, or a block of real images."""

    store: Store
    key: str
    commit: Commit | None = None
    column: str = "image"
    pixels: Any = None
    """Object reference to uint8 [n, h, w] of real images."""
    boxes: tuple[Box, ...] = ()
    """Where the content of real images lies; a shard has it in its columns."""
    images: int = 0
    class_name: str = ""
    """Of real images that make an arm; a shard names its own."""
    first_draws: bool = False
    """Only the shard's rows that no class gate had drawn again."""


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
    same = released in arms and _chosen(run, before) == _chosen(run, after)
    return Drawn(arms, {gated: found}, [(released, gated)] * same, real)


def _stop_at_too_few(run: Run, drawn: dict[str, list[Piece]]) -> None:
    """Stopped where so many images of a class are quarantined that nothing can be compared."""
    chosen = _chosen(run, drawn)
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
    return clean_sentences(_units(run), _clean(run), drawn)


def gated_counts(run: Run) -> dict[str, GateCounts]:
    """class -> what the class gate did with its images; nothing where there is no gate."""
    gate = run.config.corpus.gate
    return gate_counts(read_commits(run.store), gate.attempts) if gate else {}


def features(run: Run, wanted: dict[str, list[Piece]], extractor: str) -> tuple[Arms, Real]:
    """(arm -> class -> features, seed-paired over the arms and in an order by chance; the real images).

    wanted: arm -> its pieces, of this run or of others with the same seeds. What is not stored yet is extracted first.
    Of an arm no more images are held than figures look at, frechet.MOST times the real ones, however large the corpus.
    Texture is in units of the real training images (texture.standardised); what is stored is as it was measured.
    """
    missing = [piece for pieces in wanted.values() for piece in pieces if not piece.store.exists(piece.key)]
    real_missing = any(not run.store.exists(key) for key, *_ in real_blocks(run, extractor))
    if missing or real_missing:
        with session(run.config.cluster, run.log_file):
            extract(run, [*_unique(missing), *real_pieces(run, extractor)], extractor)
    arms, real = _paired(run, wanted), _real_images(run, extractor)
    if extractor == texture.NAME:
        arms, scaled = texture.standardised(arms, real.features)
        real = replace(real, features=scaled)
    return arms, real


def synthetic_pieces(run: Run, sources: dict[str, Source], extractor: str) -> dict[str, list[Piece]]:
    """arm -> the shards that hold its first `compared_images` images a class."""
    limit = compared_images(run.config)
    pieces: dict[str, list[Piece]] = {}
    for arm, source in sources.items():
        store = run.store.sub(source.prefix) if source.prefix else run.store
        compared = sorted(
            (shard for shard in committed_shards(store) if shard.first < limit), key=lambda s: (s.class_name, s.first)
        )
        pieces[arm] = []
        for commit in in_threads(partial(read_commit, store), compared):
            rejected = rejected_first_draws(commit) if source.first_draws else None
            for c in (commit, rejected):
                if c is not None and c.rows:
                    key = features_key(c.digest, source.column, extractor)
                    piece = Piece(store, key, c, source.column, images=c.rows, first_draws=source.first_draws)
                    pieces[arm].append(piece)
    return pieces


def _unique(pieces: Sequence[Piece]) -> list[Piece]:
    return list({(piece.store.url, piece.key): piece for piece in pieces}.values())


def real_blocks(run: Run, extractor: str) -> list[tuple[str, str, str, tuple[Any, ...]]]:
    """(key, split, class, images) of each block of real images."""
    blocks = []
    for split in SPLITS:
        for name in run.config.classes:
            images = [image for image in run.dataset.split(split) if image.class_name == name]
            for at in range(0, len(images), BLOCK):
                block = tuple(images[at : at + BLOCK])
                content = fingerprint([run.dataset.size, run.dataset.frame, [image.sha256 for image in block]])
                blocks.append((features_key(content, f"real-{split}-{name}", extractor), split, name, block))
    return blocks


def real_pieces(run: Run, extractor: str) -> list[Piece]:
    pieces = []
    for key, _, _, images in real_blocks(run, extractor):
        if not run.store.exists(key):
            pixels = ray.put(load_images(run.folder, images, run.dataset.size, run.dataset.frame))
            boxes = tuple(content_box(i.width, i.height, run.dataset.size, run.dataset.frame) for i in images)
            pieces.append(Piece(run.store, key, pixels=pixels, boxes=boxes, images=len(images)))
    return pieces


def extract(run: Run, pieces: list[Piece], name: str) -> None:
    """Compute and store the pieces' features by the extractor of this name, within a session.

    One without weights gets no GPU, and as many actors of one CPU as the others' CPUs make.
    """
    extractor, cluster = run.extractors[name], run.config.cluster
    cpus, gpus, width = cluster.cpus_per_actor, cluster.gpus_per_actor, 1
    if extractor.weights is None:
        cpus, gpus, width = 1, 0, max(1, int(cpus))
    elif isinstance(extractor.weights, Segmenter | Classifier):
        gpus = 0
    pool = ray.data.ActorPoolStrategy(min_size=cluster.min_actors, max_size=width * cluster.max_actors)
    stage = "features" if name == INCEPTION else f"features {name}"
    with watched(run.tell, stage, sum(piece.images for piece in pieces)) as board:
        arguments = (pieces, extractor, run.config.evaluate.batch_size, cluster.threads, device_of(gpus))
        stream = ray.data.from_items([{"piece": i} for i in range(len(pieces))], override_num_blocks=len(pieces)).map(
            Extract,  # pyright: ignore[reportArgumentType] (a callable class, which Ray's types leave out)
            fn_constructor_args=(*arguments, board),
            compute=pool,
            num_cpus=cpus,
            num_gpus=gpus,
        )
        try:
            supervised(board, stage, cluster.hang_seconds, lambda: deque(stream.iter_rows(), maxlen=0))
        except RayError as error:
            raise stopped(stage, error) from error


class Extract:
    """The feature actor: reads a piece's images, puts their features float32 [n, d] beside the corpus."""

    def __init__(
        self, pieces: list[Piece], extractor: Extractor, batch_size: int, threads: int, device: str, board: Any
    ) -> None:
        if extractor.weights is not None:
            use_threads(threads)  # without weights torch is not imported at all
        self.pieces = pieces
        self.batch_size = batch_size
        self.board = board
        self.extractor = extractor.load(device)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        piece = self.pieces[int(row["piece"])]
        me = this_worker()
        self.board.add.remote(0, me)
        pixels, boxes = piece_pixels(piece)
        features = []
        for at in range(0, len(pixels), self.batch_size):
            batch = slice(at, at + self.batch_size)
            features.append(self.extractor(pixels[batch], boxes[batch]))
            self.board.add.remote(len(features[-1]), me)
        buffer = io.BytesIO()
        np.save(buffer, np.concatenate(features).astype(np.float32), allow_pickle=False)
        piece.store.put_once(piece.key, buffer.getvalue())
        self.board.rest.remote(me)
        return {"images": len(pixels)}


def piece_pixels(piece: Piece) -> tuple[np.ndarray, Sequence[Box]]:
    """A piece's images uint8 [n, h, w] and where the content of each lies."""
    if piece.commit is None:
        return ray.get(piece.pixels), piece.boxes
    table = read_rows(piece.store, piece.commit, columns=[piece.column, *BOX])
    pixels = np.stack([png_pixels(cell["bytes"]) for cell in table.column(piece.column).to_pylist()])
    return pixels, [Box(**row) for row in table.select(BOX).to_pylist()]


def load_features(store: Store, key: str) -> np.ndarray:
    """float32 [n, d]"""
    return np.load(io.BytesIO(store.read(key)), allow_pickle=False)


def _paired(run: Run, wanted: dict[str, list[Piece]]) -> dict[str, dict[str, np.ndarray]]:
    """arm -> class -> features of the chosen images, so that row i of each arm has the same seed."""
    chosen = _chosen(run, wanted)
    return {arm: _arm_features(run, pieces, chosen) for arm, pieces in wanted.items()}


def _chosen(run: Run, wanted: dict[str, list[Piece]]) -> dict[str, list[int]]:
    """class -> indices of images that every arm has, in the order of by_chance: one quarantined in one arm is left out
    of all."""
    chosen: dict[str, list[int]] = {}
    for name in sorted({_class_of(piece) for pieces in wanted.values() for piece in pieces}):
        common = np.ones(compared_images(run.config), bool)
        for pieces in wanted.values():
            held = np.zeros_like(common)
            for piece in pieces:
                if _class_of(piece) == name:
                    held[[i for i in rows_of(piece) if i < len(held)]] = True
            common &= held
        real = sum(image.class_name == name for image in run.dataset.split("all"))
        chosen[name] = by_chance(name, np.flatnonzero(common).tolist(), MOST * real)
    return chosen


def by_chance(class_name: str, indices: Iterable[int], k: int) -> list[int]:
    """k of a class's images, in an order by chance that is the same in each arm and however the shards are cut."""
    return bottom_k(indices, k, lambda index: draw_id(class_name, index))


def _class_of(piece: Piece) -> str:
    return piece.commit.class_name if piece.commit else piece.class_name


def rows_of(piece: Piece) -> dict[int, int]:
    """index -> row of a piece's images, from its record alone: a shard holds those of its images that were not
    quarantined. Of first draws those count that were not drawn again, and the rejected ones, which are a piece too."""
    commit = piece.commit
    if commit is None:
        return {i: i for i in range(piece.images)}
    if commit.first_draws and commit.object == commit.first_draws.object:
        return {index: row for row, index in enumerate(commit.first_draws.indices)}
    rejects = {index_of(image_id) for image_id, _ in commit.rejects}
    again = {index_of(one.image_id) for one in commit.redrawn} if piece.first_draws else set()
    kept = [index for index in range(commit.first, commit.first + commit.count) if index not in rejects]
    return {index: row for row, index in enumerate(kept) if index not in again}


def _arm_features(run: Run, pieces: list[Piece], chosen: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """class -> features of the chosen indices, a piece at a time in memory."""
    features: dict[str, np.ndarray] = {}
    for name, indices in chosen.items():
        place = {index: i for i, index in enumerate(indices)}
        for piece in pieces:
            rows = [(place[index], row) for index, row in rows_of(piece).items() if index in place]
            if _class_of(piece) == name and rows:
                stored = load_features(piece.store, piece.key)
                held = features.setdefault(name, np.empty((len(indices), stored.shape[1]), stored.dtype))
                held[[to for to, _ in rows]] = stored[[row for _, row in rows]]
    return features


def _real_images(run: Run, extractor: str) -> Real:
    features: dict[str, dict[str, list[np.ndarray]]] = {split: {} for split in SPLITS}
    for key, split, name, _ in real_blocks(run, extractor):
        features[split].setdefault(name, []).append(load_features(run.store, key))
    return Real(
        {split: {name: np.concatenate(blocks) for name, blocks in by.items()} for split, by in features.items()},
        _units(run),
        extractor,
        run.dataset.frame,
        run.dataset.size,
    )


def _units(run: Run) -> dict[str, dict[str, np.ndarray]]:
    """split -> class -> labels of independent draws, in the order of _real_images."""
    units: dict[str, dict[str, list[str]]] = {split: {} for split in SPLITS}
    for _, split, name, images in real_blocks(run, ""):
        units[split].setdefault(name, []).extend(image.unit for image in images)
    return {split: {name: np.array(labels) for name, labels in by.items()} for split, by in units.items()}
