"""The copy audit: every image of the released corpus is compared with the training images.

What the search finds is stored once a shard. The driver then reads one shard's rows at a time and
keeps counts and the closest pairs only, so its memory does not grow with the corpus.
"""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from busray.corpus.arms import arm_after_gate, released_arm
from busray.corpus.commit import committed_shards, in_threads, read_commit, read_rows
from busray.corpus.encode import png_bytes, png_pixels
from busray.data.align import Scan, aligned_pairs, shrink
from busray.data.check import ALIGNED
from busray.data.images import ImageFolder
from busray.evidence.audit import AuditEvidence, NearestPair, audit_figures, audit_spread, tally
from busray.evidence.copies import METHOD, Originals, plant_copies, unpadded
from busray.identity import bottom_k, draw_id, fingerprint, seed_for, sha256_bytes
from busray.layout import AUDIT_JSON, AUDIT_PANELS, copies_key, features_key
from busray.records import CLASS_ALL, Commit, ContentBox, Figure, SourceImage, UserError, to_json
from busray.report.audit import audit_sentences, closest_rows
from busray.report.contact_sheet import contact_sheet
from busray.run.pieces import BOX, ImageBlock, block_pixels, load_array, real_blocks, rows_of
from busray.run.record import Run
from busray.stages.features import extract, missing_real_blocks
from busray.stages.report import add_to_report
from busray.storage import Store
from busray.workers import Beat, Shared, Workers

PLANTED_IMAGES = 24
"""Training images of which copies are made, to see whether the search finds them."""

SAMPLED_IMAGES = 500
"""Images at most that are compared with each other, sampled over the whole corpus."""

PAIRS_A_ROW = 3
"""Of the picture of the closest pairs."""


@dataclass(frozen=True)
class Search:
    """Images to compare with the training images. The rows found are stored at the block's key."""

    block: ImageBlock
    features: str | None = None
    """Key of the images' features; None where pixels alone are compared."""


def audit(run: Run, workers: Workers) -> tuple[list[Figure], list[str], bool]:
    """(figures, sentences, whether it passes); writes audit.json, audit.png, the report's part.

    UserError where the run has no corpus.
    """
    store, extractor = run.store, next(iter(run.extractors))
    commits = [c for c in in_threads(partial(read_commit, store), committed_shards(store)) if c.rows]
    if not commits:
        raise UserError(f"{store.url} has no corpus to audit: run `busray run` or `busray generate` first")
    _extract_missing(run, workers, commits, extractor)
    contents, lesions = _scans(run.images, run.dataset.train)
    identity = _identity(run.dataset.hash, extractor, lesions)
    held_out = _held_out(run, workers, identity, extractor)
    copies = _planted_copies(run, workers, identity)
    corpus = [_corpus_search(store, commit, identity, extractor) for commit in commits]
    missing = [s for s in (*held_out, *copies.values(), *corpus) if not store.exists(s.block.key)]
    if missing:
        originals = Originals.of(contents, lesions, _train_features(run, extractor))
        images = sum(search.block.images for search in missing)
        workers.map("copies", images, partial(_start_search, workers.share(originals)), missing, "core")
    evidence = _evidence(run, commits, corpus, held_out, copies)
    figures, sentences = audit_figures(evidence), audit_sentences(evidence)
    _write(run, commits, evidence, figures, sentences)
    return figures, sentences, evidence.passes


def _write(
    run: Run, commits: list[Commit], evidence: AuditEvidence, figures: list[Figure], sentences: list[str]
) -> None:
    closest = evidence.tally.closest
    columns, rows = closest_rows(closest, [image.file for image in run.dataset.train])
    part = {
        "sentences": sentences,
        "figures": [figure.to_dict() for figure in figures],
        "closest": {"columns": columns, "rows": rows},
        "spread": audit_spread(evidence),
    }
    run.store.replace(AUDIT_PANELS, _panels(run.store, run.images, commits, closest))
    run.store.replace(AUDIT_JSON, to_json(part))
    add_to_report(run, "audit", part)


# ---- what is compared ----


def _extract_missing(run: Run, workers: Workers, commits: list[Commit], extractor: str) -> None:
    """Features of the corpus and of the real images, under the keys that evaluate reads."""
    missing = missing_real_blocks(run, workers, extractor)
    for commit in commits:
        key = features_key(commit.digest, "image", extractor)
        if not run.store.exists(key):
            missing.append(ImageBlock(run.store, key, commit, images=commit.rows, class_name=commit.class_name))
    if missing:
        extract(run, workers, missing, extractor)


def _scans(folder: ImageFolder, images: Sequence[SourceImage]) -> tuple[list[np.ndarray], list[np.ndarray | None]]:
    """Real images without padding, and their lesions (None where not known)."""
    real, masks = folder.load(images), folder.masks(images)
    lesions: list[np.ndarray | None] = []
    for lesion, known in zip(unpadded(masks.lesions, real.boxes), masks.known, strict=True):
        lesions.append(lesion if known else None)
    return unpadded(real.pixels, real.boxes), lesions


def _identity(dataset_hash: str, extractor: str, lesions: Sequence[np.ndarray | None]) -> str:
    """Of everything that decides what is found in an image; part of the keys of the found rows."""
    digests = [None if lesion is None else sha256_bytes(np.packbits(lesion).tobytes()) for lesion in lesions]
    return fingerprint([METHOD, dataset_hash, extractor, digests])


def _train_features(run: Run, extractor: str) -> np.ndarray:
    """[n, d] of the training images, in the data set's order."""
    row_of: dict[str, np.ndarray] = {}
    for key, split, _, images in real_blocks(run, extractor):
        if split == "train":
            row_of.update(zip((image.file for image in images), load_array(run.store, key), strict=True))
    return np.array([row_of[image.file] for image in run.dataset.train])


def _corpus_search(store: Store, commit: Commit, identity: str, extractor: str) -> Search:
    block = ImageBlock(
        store, copies_key(identity, commit.digest), commit, images=commit.rows, class_name=commit.class_name
    )
    return Search(block, features_key(commit.digest, "image", extractor))


def _held_out(run: Run, workers: Workers, identity: str, extractor: str) -> list[Search]:
    """The real images of val and test: none is a copy, so they show the scores without copying."""
    searches = []
    for features, images in _held_out_blocks(run, extractor):
        key = copies_key(identity, fingerprint([image.sha256 for image in images]))
        # Pixels are read only where they are searched.
        pixels = None if run.store.exists(key) else workers.share(run.images.load(images).pixels)
        block = ImageBlock(run.store, key, pixels=pixels, boxes=run.images.boxes(images), images=len(images))
        searches.append(Search(block, features))
    return searches


def _held_out_blocks(run: Run, extractor: str) -> Iterator[tuple[str, Sequence[SourceImage]]]:
    """(key of the features, images)"""
    for key, split, _, images in real_blocks(run, extractor):
        if split != "train":
            yield key, images


def _planted_copies(run: Run, workers: Workers, identity: str) -> dict[str, Search]:
    """transformation -> copies made of some training images; they have no features."""
    train, seed = run.dataset.train, seed_for(run.config.seed, CLASS_ALL, 0, 0, "audit")
    chosen = np.random.default_rng(seed).permutation(len(train))[:PLANTED_IMAGES]
    contents, lesions = _scans(run.images, [train[i] for i in chosen])
    hosts, _ = _scans(run.images, run.dataset.val + run.dataset.test)
    searches = {}
    for name, copies in plant_copies(contents, lesions, hosts, seed).items():
        pixels, boxes = at_top_left(copies, run.dataset.size)
        key = copies_key(identity, fingerprint([name, seed, PLANTED_IMAGES]))
        shared = None if run.store.exists(key) else workers.share(pixels)
        searches[name] = Search(ImageBlock(run.store, key, pixels=shared, boxes=boxes, images=len(pixels)))
    return searches


def at_top_left(contents: Sequence[np.ndarray], size: int) -> tuple[np.ndarray, tuple[ContentBox, ...]]:
    """(squares uint8 [n, size, size], where the contents lie) of contents uint8 [h, w]."""
    squares = np.zeros((len(contents), size, size), np.uint8)
    for square, content in zip(squares, contents, strict=True):
        square[: content.shape[0], : content.shape[1]] = content
    return squares, tuple(ContentBox(0, 0, content.shape[1], content.shape[0]) for content in contents)


# ---- the search, in a worker ----


def _start_search(originals: Shared[Originals]) -> Callable[[Search, Beat], None]:
    return partial(_search, originals.get())


def _search(originals: Originals, search: Search, beat: Beat) -> None:
    """Compare a block's images with the training images; put their rows, of dtype copies.FOUND."""
    block = search.block
    contents = unpadded(*block_pixels(block))
    features = [None] * len(contents) if search.features is None else load_array(block.store, search.features)
    rows = []
    for index, content, feature in zip(rows_of(block), contents, features, strict=True):
        rows.append(originals.find(index, content, feature))
        beat(1)
    buffer = io.BytesIO()
    np.save(buffer, np.array(rows), allow_pickle=False)
    block.store.put_once(block.key, buffer.getvalue())


# ---- what was found ----


def _evidence(
    run: Run,
    commits: list[Commit],
    corpus: list[Search],
    held_out: list[Search],
    copies: Mapping[str, Search],
) -> AuditEvidence:
    images: dict[str, int] = {}
    for commit in commits:
        images[commit.class_name] = max(images.get(commit.class_name, 0), commit.first + commit.count)
    held_out_rows = np.concatenate([_found(search) for search in held_out])
    units: list[str] = []
    for _, block_images in _held_out_blocks(run, ""):
        units += [image.unit for image in block_images]
    corpus_rows = ((search.block.class_name, _found(search)) for search in corpus)  # one shard at a time
    return AuditEvidence(
        tally(held_out_rows, images, corpus_rows),
        held_out_rows,
        np.array(units),
        {name: _found(search) for name, search in copies.items()},
        _near_duplicates_inside(run.store, commits),
        len(run.dataset.train),
        arm_after_gate(run.config) or released_arm(run.config),
        run.dataset.frame,
        run.dataset.size,
    )


def _found(search: Search) -> np.ndarray:
    """Rows of dtype copies.FOUND."""
    return load_array(search.block.store, search.block.key)


def _near_duplicates_inside(store: Store, commits: list[Commit]) -> tuple[int, int]:
    """(sampled images with a near-duplicate among them, sampled images) of the corpus."""
    scans = _sampled_scans(store, commits)
    alike: set[int] = set()
    for a, b, match in aligned_pairs(scans):
        if match.score >= ALIGNED:
            alike |= {a, b}
    return len(alike), len(scans)


def _sampled_scans(store: Store, commits: list[Commit]) -> list[Scan]:
    """SAMPLED_IMAGES images of the whole corpus, those whose ids have the lowest hashes.

    Shards without a sampled image are not read, and of the others only sampled images are decoded.
    """
    rows = [(commit, rows_of(ImageBlock(store, "", commit))) for commit in commits]
    ids = ((commit.class_name, index) for commit, row_of in rows for index in row_of)
    sampled = set(bottom_k(ids, SAMPLED_IMAGES, lambda image: draw_id(*image)))
    scans = []
    for commit, row_of in rows:
        wanted = [row for index, row in row_of.items() if (commit.class_name, index) in sampled]
        if wanted:
            for cell in read_rows(store, commit, columns=["image", *BOX]).take(wanted).to_pylist():
                box = ContentBox(**{side: cell[side] for side in BOX})
                (content,) = unpadded([png_pixels(cell["image"]["bytes"])], [box])
                scans.append(shrink(content))
    return scans


def _panels(store: Store, folder: ImageFolder, commits: list[Commit], closest: list[NearestPair]) -> bytes:
    """PNG of the closest pairs: an image, then the training image, mirrored if that matches."""
    cells: list[bytes | None] = []
    for pair in closest:
        (real,) = folder.load([folder.dataset.train[pair.original]]).pixels
        if pair.mirrored:
            real = np.ascontiguousarray(real[:, ::-1])
        cells += [_image_png(store, commits, pair.class_name, pair.index), png_bytes(real, {})]
    width = 2 * PAIRS_A_ROW
    rows = [cells[at : at + width] for at in range(0, len(cells), width)]
    return contact_sheet(rows, ["drawn", "training"] * PAIRS_A_ROW)


def _image_png(store: Store, commits: list[Commit], class_name: str, index: int) -> bytes:
    for commit in commits:
        if commit.class_name == class_name and commit.first <= index < commit.first + commit.count:
            for row in read_rows(store, commit, columns=["index", "image"]).to_pylist():
                if row["index"] == index:
                    return row["image"]["bytes"]
    raise ValueError(f"{store.url} has no image {index} of {class_name}")
