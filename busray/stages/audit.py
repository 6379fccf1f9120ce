"""The copy audit: every image of the released corpus is compared with the training images.

What the search finds is stored once per shard. The driver then reads one shard's rows at a time and
keeps counts and the closest pairs only, so its memory does not grow with the corpus.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np

from busray.corpus.arms import arm_after_gate, released_arm
from busray.corpus.commit import read_commits, read_rows
from busray.corpus.encode import png_bytes, png_pixels
from busray.corpus.features import put_array
from busray.corpus.verify import SHARD_THREADS
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
from busray.run.pieces import BOX, ImageBlock, block_pixels, load_array, load_arrays, real_blocks, rows_of
from busray.run.record import Run
from busray.stages.features import extract, missing_real_blocks
from busray.stages.report import add_to_report
from busray.storage import Store, in_threads
from busray.workers import Beat, Shared, Workers

# Training images of which copies are made, to see whether the search finds them
PLANTED_IMAGES = 24
# Most images that are compared with each other: pairs grow with the square of this number
SAMPLED_IMAGES = 500
PAIRS_A_ROW = 3  # of the picture of the closest pairs
Lesion = np.ndarray | None  # bool [h, w] without padding; None where it is not known


@dataclass(frozen=True)
class Search:
    """Images to compare with the training images. The rows found are stored at the block's key."""

    block: ImageBlock
    features: str | None = None  # key of the images' features; None: pixels alone are compared


def audit(run: Run, workers: Workers) -> tuple[list[Figure], list[str], bool]:
    """(figures, sentences, whether it passes); writes audit.json, audit.png, the report's part.

    UserError where the run has no corpus.
    """
    store, extractor = run.store, next(iter(run.extractors))
    commits = [commit for commit in read_commits(store) if commit.rows]
    if not commits:
        raise UserError(f"{store.url} has no corpus to audit: run `busray run` or `busray generate` first")
    _extract_missing(run, workers, commits, extractor)
    contents, lesions = _scans(run.images, run.dataset.train)
    identity = _identity(run.dataset.hash, extractor, lesions)
    held_out = _held_out(run, workers, identity, extractor)
    copies = _planted_copies(run, workers, identity)
    corpus = [_corpus_search(store, commit, identity, extractor) for commit in commits]
    searches = (*held_out, *copies.values(), *corpus)
    present = store.present(search.block.key for search in searches)
    missing = [search for search in searches if search.block.key not in present]
    if missing:
        originals = Originals.of(contents, lesions, _train_features(run, extractor))
        images = sum(search.block.images for search in missing)
        start = partial(_start_search, workers.share(originals))
        workers.map("copies", images, start, missing, "core")
    evidence = _evidence(run, commits, corpus, held_out, copies)
    figures, sentences = audit_figures(evidence), audit_sentences(evidence)
    _write(run, commits, evidence, figures, sentences)
    return figures, sentences, evidence.passes


def _write(
    run: Run, commits: list[Commit], evidence: AuditEvidence, figures: list[Figure], sentences: list[str]
) -> None:
    closest = evidence.tally.closest
    columns, rows = closest_rows(closest, [image.file for image in run.dataset.train])
    panels = _panels(run.store, run.images, commits, closest)
    part = {
        "sentences": sentences,
        "figures": [figure.to_dict() for figure in figures],
        "closest": {"columns": columns, "rows": rows},
        "spread": audit_spread(evidence),
    }
    run.store.replace(AUDIT_PANELS, panels)
    run.store.replace_checked(AUDIT_JSON, to_json(part))
    add_to_report(run, "audit", part)


def _extract_missing(run: Run, workers: Workers, commits: list[Commit], extractor: str) -> None:
    """Features of the corpus and of the real images, under the keys that evaluate reads."""
    missing = missing_real_blocks(run, workers, extractor)
    keys = [features_key(commit.digest, "image", extractor) for commit in commits]
    present = run.store.present(keys)
    for key, commit in zip(keys, commits, strict=True):
        if key not in present:
            missing.append(ImageBlock(run.store, key, commit, images=commit.rows, class_name=commit.class_name))
    if missing:
        extract(run, workers, missing, extractor)


def _scans(folder: ImageFolder, images: Sequence[SourceImage]) -> tuple[list[np.ndarray], list[Lesion]]:
    """Real images without padding, and their lesions."""
    real, masks = folder.load(images), folder.masks(images)
    lesions: list[Lesion] = []
    for lesion, known in zip(unpadded(masks.lesions, real.boxes), masks.known, strict=True):
        lesions.append(lesion if known else None)
    return unpadded(real.pixels, real.boxes), lesions


def _identity(dataset_hash: str, extractor: str, lesions: Sequence[Lesion]) -> str:
    """Of everything that decides what is found in an image; part of the keys of the found rows."""
    # The masks are not in the data set's hash, but copies of lesions are searched by them.
    digests: list[str | None] = []
    for lesion in lesions:
        digests.append(None if lesion is None else sha256_bytes(np.packbits(lesion).tobytes()))
    return fingerprint([METHOD, dataset_hash, extractor, digests])


def _train_features(run: Run, extractor: str) -> np.ndarray:
    """[n, d] of the training images, in the data set's order."""
    row_of: dict[str, np.ndarray] = {}
    for key, split, _, images in real_blocks(run, extractor):
        if split == "train":
            for image, row in zip(images, load_array(run.store, key), strict=True):
                row_of[image.file] = row
    return np.array([row_of[image.file] for image in run.dataset.train])


def _corpus_search(store: Store, commit: Commit, identity: str, extractor: str) -> Search:
    key = copies_key(identity, commit.digest)
    block = ImageBlock(store, key, commit, images=commit.rows, class_name=commit.class_name)
    return Search(block, features_key(commit.digest, "image", extractor))


def _held_out(run: Run, workers: Workers, identity: str, extractor: str) -> list[Search]:
    """The real images of val and test: none is a copy, so they show the scores without copying."""
    searches: list[Search] = []
    for features, images in _held_out_blocks(run, extractor):
        key = copies_key(identity, fingerprint([image.sha256 for image in images]))
        # Pixels are read only where they are searched.
        pixels = None if run.store.exists(key) else workers.share(run.images.load(images).pixels)
        boxes = run.images.boxes(images)
        block = ImageBlock(run.store, key, pixels=pixels, boxes=boxes, images=len(images))
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
    # Pasted into a training image, that image would be found and not the lesion.
    hosts, _ = _scans(run.images, run.dataset.val + run.dataset.test)
    searches = {}
    for name, copies in plant_copies(contents, lesions, hosts, seed).items():
        pixels, boxes = at_top_left(copies, run.dataset.size)
        key = copies_key(identity, fingerprint([name, seed, PLANTED_IMAGES]))
        shared = None if run.store.exists(key) else workers.share(pixels)
        block = ImageBlock(run.store, key, pixels=shared, boxes=boxes, images=len(pixels))
        searches[name] = Search(block)
    return searches


def at_top_left(contents: Sequence[np.ndarray], size: int) -> tuple[np.ndarray, tuple[ContentBox, ...]]:
    """(squares uint8 [n, size, size], where the contents lie) of contents uint8 [h, w]."""
    squares = np.zeros((len(contents), size, size), np.uint8)
    boxes: list[ContentBox] = []
    for square, content in zip(squares, contents, strict=True):
        height, width = content.shape
        square[:height, :width] = content
        boxes.append(ContentBox(0, 0, width, height))
    return squares, tuple(boxes)


def _start_search(originals: Shared[Originals]) -> Callable[[Search, Beat], None]:
    return partial(_search, originals.get())


def _search(originals: Originals, search: Search, beat: Beat) -> None:
    """Compare a block's images with the training images; put their SEARCH_ROWs."""
    block = search.block
    contents = unpadded(*block_pixels(block))
    features = [None] * len(contents)
    if search.features is not None:
        features = load_array(block.store, search.features)
    rows = []
    for index, content, feature in zip(rows_of(block), contents, features, strict=True):
        rows.append(originals.find(index, content, feature))
        beat(1)
    put_array(block.store, block.key, np.array(rows))


def _evidence(
    run: Run, commits: list[Commit], corpus: list[Search], held_out: list[Search], copies: Mapping[str, Search]
) -> AuditEvidence:
    images: dict[str, int] = {}
    for commit in commits:
        name, end = commit.class_name, commit.first + commit.count
        images[name] = max(images.get(name, 0), end)
    held_out_rows = np.concatenate(list(_found(held_out)))
    units: list[str] = []
    for _, block_images in _held_out_blocks(run, ""):
        units += [image.unit for image in block_images]
    # Iterators, so that few shards' rows are in memory at a time
    corpus_rows = zip((search.block.class_name for search in corpus), _found(corpus), strict=True)
    planted = dict(zip(copies, _found(list(copies.values())), strict=True))
    return AuditEvidence(
        tally(held_out_rows, images, corpus_rows),
        held_out_rows,
        np.array(units),
        planted,
        _near_duplicates_inside(run.store, commits),
        len(run.dataset.train),
        arm_after_gate(run.config) or released_arm(run.config),
        run.dataset.frame,
        run.dataset.size,
    )


def _found(searches: Sequence[Search]) -> Iterator[np.ndarray]:
    """The rows that each search found, of dtype copies.SEARCH_ROW."""
    if not searches:
        return iter(())
    return load_arrays(searches[0].block.store, [search.block.key for search in searches])


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

    def images() -> Iterator[tuple[int, int, int]]:
        """(number of the commit, index, row); of one shard at a time, for there may be millions."""
        for number, commit in enumerate(commits):
            for index, row in rows_of(ImageBlock(store, "", commit)).items():
                yield number, index, row

    # By hash, so that the sample is the same however the corpus was cut into shards.
    sampled = bottom_k(images(), SAMPLED_IMAGES, lambda image: draw_id(commits[image[0]].class_name, image[1]))
    rows_by_commit: dict[int, list[int]] = {}
    for number, _, row in sorted(sampled):
        rows_by_commit.setdefault(number, []).append(row)

    def scans_of(wanted: tuple[int, list[int]]) -> list[Scan]:
        number, rows = wanted
        scans: list[Scan] = []
        for cell in read_rows(store, commits[number], columns=["image", *BOX]).take(rows).to_pylist():
            pixels = png_pixels(cell.pop("image")["bytes"])
            (content,) = unpadded([pixels], [ContentBox(**cell)])
            scans.append(shrink(content))
        return scans

    # Whole shards are read: only as many at once as memory has room for.
    return list(chain.from_iterable(in_threads(scans_of, list(rows_by_commit.items()), SHARD_THREADS)))


def _panels(store: Store, folder: ImageFolder, commits: list[Commit], closest: list[NearestPair]) -> bytes:
    """PNG of the closest pairs: an image, then the training image, mirrored if that matches."""
    cells: list[bytes | None] = []
    for pair in closest:
        (real,) = folder.load([folder.dataset.train[pair.original]]).pixels
        if pair.mirrored:  # so that both show the same thing at the same place
            real = np.ascontiguousarray(real[:, ::-1])
        cells += [_image_png(store, commits, pair.class_name, pair.index), png_bytes(real, {})]
    width = 2 * PAIRS_A_ROW
    rows = [cells[at : at + width] for at in range(0, len(cells), width)]
    return contact_sheet(rows, ["drawn", "training"] * PAIRS_A_ROW)


def _image_png(store: Store, commits: list[Commit], class_name: str, index: int) -> bytes:
    for commit in commits:
        in_shard = commit.first <= index < commit.first + commit.count
        if commit.class_name == class_name and in_shard:
            for row in read_rows(store, commit, columns=["index", "image"]).to_pylist():
                if row["index"] == index:
                    return row["image"]["bytes"]
    raise ValueError(f"{store.url} has no image {index} of {class_name}")
