"""The copy audit on Ray: every image of the released corpus against the training images, found rows stored a shard.

The driver holds counts and the closest pairs, whatever the corpus's size; what one shard's actor found is read once.
"""

import io
from collections import deque
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import ray
import ray.data
from ray.exceptions import RayError

from busray.cluster.liveness import stopped, supervised, this_worker, watched
from busray.cluster.session import session
from busray.corpus.arms import gated_arm, released_arm
from busray.corpus.commit import committed_shards, in_threads, read_commit, read_rows
from busray.corpus.encode import png_bytes, png_pixels
from busray.data.align import Scan, aligned_pairs, shrink
from busray.data.check import ALIGNED
from busray.data.frame import content_box
from busray.data.images import load_images, load_masks
from busray.evidence.audit import Evidence, Sighting, audit_figures, audit_spread, tally
from busray.evidence.copies import METHOD, Originals, planted, unpadded
from busray.identity import bottom_k, draw_id, fingerprint, seed_for, sha256_bytes
from busray.layout import AUDIT_JSON, AUDIT_PANELS, features_key, found_key
from busray.records import CLASS_ALL, Box, Commit, Figure, SourceImage, UserError, to_json
from busray.report.audit import audit_sentences, closest_rows
from busray.report.contact_sheet import contact_sheet
from busray.run.pieces import BOX, Piece, load_features, piece_pixels, real_blocks, rows_of
from busray.run.record import Run
from busray.stages.features import extract, real_pieces
from busray.stages.report import add_to_report
from busray.storage import Store

PLANTED = 24
"""Training images that copies are made of."""


INSIDE = 500
"""Images at most that are compared with each other, sampled over the whole corpus."""


ACROSS = 3
"""Pairs a row of panels."""


@dataclass(frozen=True)
class Hunt:
    """Images whose found rows are one stored object, at the piece's key; features are stored under another, if any."""

    piece: Piece
    features: str | None = None


def audit(run: Run) -> tuple[list[Figure], list[str], bool]:
    """(figures, sentences, whether it passes: Evidence.passes); audit.json, its panels and the report's part anew."""
    store, extractor = run.store, next(iter(run.extractors))
    commits = [c for c in in_threads(partial(read_commit, store), committed_shards(store)) if c.rows]
    if not commits:
        raise UserError(f"{store.url} has no corpus to audit: run `busray run` or `busray generate` first")
    shards = [
        Piece(store, features_key(c.digest, "image", extractor), c, images=c.rows, class_name=c.class_name)
        for c in commits
    ]
    arm = gated_arm(run.config) or released_arm(run.config)
    with session(run.config.cluster, run.log_file):
        missing = [piece for piece in shards if not store.exists(piece.key)]
        if missing or real_pieces(run, extractor):
            extract(run, [*missing, *real_pieces(run, extractor)], extractor)
        originals, identity = _originals(run, extractor)
        corpus = [
            Hunt(replace(piece, key=found_key(identity, c.digest)), piece.key) for c, piece in zip(commits, shards)
        ]
        held_out, copies = _held_out(run, identity, extractor), _planted(run, identity)
        _find(run, originals, [*held_out, *copies.values(), *corpus])
    counts = {c.class_name: max(o.first + o.count for o in commits if o.class_name == c.class_name) for c in commits}
    real_rows = np.concatenate([_found(hunt) for hunt in held_out])
    of = Evidence(
        tally(real_rows, counts, ((c.class_name, _found(hunt)) for c, hunt in zip(commits, corpus))),
        real_rows,
        _held_out_units(run, extractor),
        {name: _found(hunt) for name, hunt in copies.items()},
        _inside(store, commits),
        len(run.dataset.train),
        arm,
        run.dataset.frame,
        run.dataset.size,
    )
    figures, sentences = audit_figures(of), audit_sentences(of)
    columns, rows = closest_rows(of.tally.closest, [image.file for image in run.dataset.train])
    part = {
        "sentences": sentences,
        "figures": [figure.to_dict() for figure in figures],
        "closest": {"columns": columns, "rows": rows},
        "spread": audit_spread(of),
    }
    store.replace(AUDIT_PANELS, _panels(run, commits, of.tally.closest))
    store.replace(AUDIT_JSON, to_json(part))
    add_to_report(run, "audit", part)
    return figures, sentences, of.passes


def _scans(run: Run, images: tuple[SourceImage, ...]) -> tuple[list[np.ndarray], list[np.ndarray | None]]:
    """Real images and their lesions (None where not known), without padding."""
    size, policy = run.dataset.size, run.dataset.frame
    boxes = _boxes(run, images)
    masks, known = load_masks(run.folder, images, size, policy)
    lesions = [mask if ok else None for mask, ok in zip(unpadded(masks, boxes), known)]
    return unpadded(load_images(run.folder, images, size, policy), boxes), lesions


def _boxes(run: Run, images: tuple[SourceImage, ...]) -> tuple[Box, ...]:
    return tuple(content_box(i.width, i.height, run.dataset.size, run.dataset.frame) for i in images)


def _originals(run: Run, extractor: str) -> tuple[Originals, str]:
    """The training images, numbered as in the data set; the identity of what is found of them."""
    contents, lesions = _scans(run, run.dataset.train)
    rows: dict[str, np.ndarray] = {}
    for key, split, _, images in real_blocks(run, extractor):
        if split == "train":
            rows.update(zip((image.file for image in images), load_features(run.store, key), strict=True))
    by_features = np.array([rows[image.file] for image in run.dataset.train])
    known = [None if lesion is None else sha256_bytes(np.packbits(lesion).tobytes()) for lesion in lesions]
    identity = fingerprint([METHOD, run.dataset.hash, extractor, known])
    return Originals.of(contents, lesions, by_features), identity


def _held_out(run: Run, identity: str, extractor: str) -> list[Hunt]:
    hunts = []
    for key, split, _, images in real_blocks(run, extractor):
        if split != "train":
            pixels = ray.put(load_images(run.folder, images, run.dataset.size, run.dataset.frame))
            content = fingerprint([image.sha256 for image in images])
            found = found_key(identity, content)
            boxes = _boxes(run, images)
            hunts.append(Hunt(Piece(run.store, found, pixels=pixels, boxes=boxes, images=len(images)), key))
    return hunts


def _held_out_units(run: Run, extractor: str) -> np.ndarray:
    """Labels of independent draws of _held_out's images, in their order."""
    blocks = real_blocks(run, extractor)
    return np.array([image.unit for _, split, _, images in blocks if split != "train" for image in images])


def _planted(run: Run, identity: str) -> dict[str, Hunt]:
    """transformation -> copies made of some training images, by their pixels alone: their features are not computed."""
    train, seed = run.dataset.train, seed_for(run.config.seed, CLASS_ALL, 0, 0, "audit")
    chosen = np.random.default_rng(seed).permutation(len(train))[:PLANTED]
    contents, lesions = _scans(run, tuple(train[i] for i in chosen))
    hosts, _ = _scans(run, run.dataset.val + run.dataset.test)
    hunts = {}
    for name, made in planted(contents, lesions, hosts, seed).items():
        pixels, boxes = framed(made, run.dataset.size)
        key = found_key(identity, fingerprint([name, seed, PLANTED]))
        hunts[name] = Hunt(Piece(run.store, key, pixels=ray.put(pixels), boxes=boxes, images=len(pixels)))
    return hunts


def framed(contents: list[np.ndarray], size: int) -> tuple[np.ndarray, tuple[Box, ...]]:
    """Contents of at most size at the top left of squares uint8 [n, size, size], and where they lie."""
    pixels = np.zeros((len(contents), size, size), np.uint8)
    for square, content in zip(pixels, contents, strict=True):
        square[: content.shape[0], : content.shape[1]] = content
    return pixels, tuple(Box(0, 0, content.shape[1], content.shape[0]) for content in contents)


def _find(run: Run, originals: Originals, hunts: list[Hunt]) -> None:
    """Find and store what is not stored yet, within a session, on actors of one CPU."""
    todo = [hunt for hunt in hunts if not run.store.exists(hunt.piece.key)]
    if not todo:
        return
    cluster = run.config.cluster
    width = max(1, int(cluster.cpus_per_actor))
    pool = ray.data.ActorPoolStrategy(min_size=cluster.min_actors, max_size=width * cluster.max_actors)
    with watched(run.tell, "copies", sum(hunt.piece.images for hunt in todo)) as board:
        stream = ray.data.from_items([{"hunt": i} for i in range(len(todo))], override_num_blocks=len(todo)).map(
            Find,  # pyright: ignore[reportArgumentType] (a callable class, which Ray's types leave out)
            fn_constructor_args=(todo, ray.put(originals), board),
            compute=pool,
            num_cpus=1,
        )
        try:
            supervised(board, "copies", cluster.hang_seconds, lambda: deque(stream.iter_rows(), maxlen=0))
        except RayError as error:
            raise stopped("copies", error) from error


class Find:
    """The search actor: reads a hunt's images, puts their FOUND rows beside the corpus."""

    def __init__(self, hunts: list[Hunt], originals: Any, board: Any) -> None:
        self.hunts = hunts
        self.originals: Originals = ray.get(originals)
        self.board = board

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        hunt = self.hunts[int(row["hunt"])]
        piece, me = hunt.piece, this_worker()
        self.board.add.remote(0, me)
        contents = unpadded(*piece_pixels(piece))
        by_features = load_features(piece.store, hunt.features) if hunt.features else [None] * len(contents)
        found = []
        for i, content, feature in zip(rows_of(piece), contents, by_features, strict=True):
            found.append(self.originals.find(i, content, feature))
            self.board.add.remote(1, me)
        buffer = io.BytesIO()
        np.save(buffer, np.array(found), allow_pickle=False)
        piece.store.put_once(piece.key, buffer.getvalue())
        self.board.rest.remote(me)
        return {"images": len(found)}


def _found(hunt: Hunt) -> np.ndarray:
    return load_features(hunt.piece.store, hunt.piece.key)


def _inside(store: Store, commits: list[Commit]) -> tuple[int, int]:
    """(images with a near-duplicate among the sampled, images sampled)."""
    smalls = _sampled(store, commits)
    alike = {i for a, b, match in aligned_pairs(smalls) if match.score >= ALIGNED for i in (a, b)}
    return len(alike), len(smalls)


def _sampled(store: Store, commits: list[Commit]) -> list[Scan]:
    """INSIDE images of the whole corpus, by the hashes of their ids. Shards without one are not read, of
    the others one at a time, and only sampled images are decoded."""
    drawn = ((commit.class_name, index) for commit in commits for index in rows_of(Piece(store, "", commit)))
    chosen = set(bottom_k(drawn, INSIDE, lambda one: draw_id(*one)))
    smalls = []
    for commit in commits:
        rows = [row for index, row in rows_of(Piece(store, "", commit)).items() if (commit.class_name, index) in chosen]
        if rows:
            for cell in read_rows(store, commit, columns=["image", *BOX]).take(rows).to_pylist():
                box = Box(**{side: cell[side] for side in BOX})
                smalls += [shrink(content) for content in unpadded([png_pixels(cell["image"]["bytes"])], [box])]
    return smalls


def _panels(run: Run, commits: list[Commit], closest: list[Sighting]) -> bytes:
    """PNG of the closest pairs, ACROSS a row: the image, then the training image, mirrored where that matches."""
    cells: list[bytes | None] = []
    for s in closest:
        commit = next(c for c in commits if c.class_name == s.class_name and c.first <= s.index < c.first + c.count)
        rows = read_rows(run.store, commit, columns=["index", "image"]).to_pylist()
        drawn = next(row["image"]["bytes"] for row in rows if row["index"] == s.index)
        (real,) = load_images(run.folder, [run.dataset.train[s.original]], run.dataset.size, run.dataset.frame)
        cells += [drawn, png_bytes(np.ascontiguousarray(real[:, ::-1]) if s.mirrored else real, {})]
    width = 2 * ACROSS
    labels = ["drawn", "training"] * ACROSS
    return contact_sheet([cells[at : at + width] for at in range(0, len(cells), width)], labels)
