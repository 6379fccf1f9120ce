"""Features of every arm and of the real images: extracted once a shard, stored, and read back paired by seed."""

import io
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import ray
import ray.data
from ray.exceptions import RayError

from busray.cluster.liveness import stopped, supervised, this_worker, watched
from busray.cluster.session import device_of, session, use_threads
from busray.corpus.arms import compared_images
from busray.data.frame import content_box
from busray.data.images import load_images
from busray.data.split import SPLITS
from busray.evidence.stats.frechet import MOST
from busray.evidence.stats.samples import Real
from busray.records import INCEPTION
from busray.run.pieces import Piece, by_chance, class_of, load_features, piece_pixels, real_blocks, rows_of
from busray.run.record import Run
from busray.vision import texture
from busray.vision.classifier import Classifier
from busray.vision.extractors import Extractor
from busray.vision.segmenter import Segmenter

Arms = dict[str, dict[str, np.ndarray]]
"""arm -> class -> features [n, d]"""


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


def _unique(pieces: Sequence[Piece]) -> list[Piece]:
    return list({(piece.store.url, piece.key): piece for piece in pieces}.values())


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


def _paired(run: Run, wanted: dict[str, list[Piece]]) -> dict[str, dict[str, np.ndarray]]:
    """arm -> class -> features of the chosen images, so that row i of each arm has the same seed."""
    chosen = chosen_indices(run, wanted)
    return {arm: _arm_features(run, pieces, chosen) for arm, pieces in wanted.items()}


def chosen_indices(run: Run, wanted: dict[str, list[Piece]]) -> dict[str, list[int]]:
    """class -> indices of images that every arm has, in the order of by_chance: one quarantined in one arm is left out
    of all."""
    chosen: dict[str, list[int]] = {}
    for name in sorted({class_of(piece) for pieces in wanted.values() for piece in pieces}):
        common = np.ones(compared_images(run.config), bool)
        for pieces in wanted.values():
            held = np.zeros_like(common)
            for piece in pieces:
                if class_of(piece) == name:
                    held[[i for i in rows_of(piece) if i < len(held)]] = True
            common &= held
        real = sum(image.class_name == name for image in run.dataset.split("all"))
        chosen[name] = by_chance(name, np.flatnonzero(common).tolist(), MOST * real)
    return chosen


def _arm_features(run: Run, pieces: list[Piece], chosen: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """class -> features of the chosen indices, a piece at a time in memory."""
    features: dict[str, np.ndarray] = {}
    for name, indices in chosen.items():
        place = {index: i for i, index in enumerate(indices)}
        for piece in pieces:
            rows = [(place[index], row) for index, row in rows_of(piece).items() if index in place]
            if class_of(piece) == name and rows:
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
        real_units(run),
        extractor,
        run.dataset.frame,
        run.dataset.size,
    )


def real_units(run: Run) -> dict[str, dict[str, np.ndarray]]:
    """split -> class -> labels of independent draws, in the order of _real_images."""
    units: dict[str, dict[str, list[str]]] = {split: {} for split in SPLITS}
    for _, split, name, images in real_blocks(run, ""):
        units[split].setdefault(name, []).extend(image.unit for image in images)
    return {split: {name: np.array(labels) for name, labels in by.items()} for split, by in units.items()}
