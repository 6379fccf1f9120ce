"""What `busray repair` moved aside is made again by the next command: the same bytes."""

from dataclasses import replace
from pathlib import Path

import pytest

from busray.corpus.arms import Source
from busray.corpus.damage import find_damage
from busray.corpus.repair import move_aside
from busray.identity import sha256_file
from busray.layout import CONFIG, DATASET
from busray.records import Damaged, UserError, to_json
from busray.run.pieces import synthetic_blocks
from busray.run.record import Run
from busray.stages.features import features
from busray.stages.generate import generate
from busray.storage import Store
from busray.vision import texture
from busray.vision.extractors import Extractor
from tests.support.corpora import with_settings
from tests.support.workers import InProcessWorkers

MADE = ("arms/base/data/", "arms/base/features/", "arms/base/manifest", "arms/base/run", "arms/base/plan/", "features/")


def draw_and_measure(run: Run) -> None:
    workers = InProcessWorkers()
    generate(run, workers, "base")
    features(run, workers, synthetic_blocks(run, {"base": Source("arms/base", "image")}, texture.NAME), texture.NAME)


def made(store: Store) -> dict[str, bytes]:
    """All but the records of shards, which say how long the drawing took."""
    return {key: store.read(key) for key in store.list() if key.startswith(MADE)}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.slow
def test_damaged_images_records_and_features_are_made_again_bit_for_bit(run: Run) -> None:
    small = with_settings(run, evaluate={"images": 2}, sampling={"steps": 1}, corpus={"shard_size": 1})
    run = replace(small, extractors={texture.NAME: Extractor(texture.NAME, None)})
    store, folder = run.store, Path(run.store.url)
    store.put_checked(CONFIG, to_json(run.config.model_dump(mode="json")))
    store.put_checked(DATASET, to_json(run.dataset))
    draw_and_measure(run)
    before = made(store)
    assert find_damage(store, run.images.path).damages == []

    shards = sorted(folder.glob("arms/base/data/*/*.parquet"))
    flip(shards[0])
    commits = sorted(folder.glob("arms/base/commits/*/*.json"))
    commits[-1].write_bytes(commits[-1].read_bytes()[:100])
    measured = sorted(folder.glob("arms/base/features/*/*.npy"))
    flip(measured[0])
    measured[1].unlink()
    (folder / "arms/base/manifest.parquet").unlink()
    with pytest.raises(Damaged, match="is damaged"):
        draw_and_measure(run)

    found = find_damage(store, run.images.path)
    assert len(found.damages) >= 4 and all(damage.mendable for damage in found.damages)
    moved = move_aside(store, found.damages)
    assert {new for _, new in moved} <= set(store.list("damaged"))
    draw_and_measure(run)
    assert made(store) == before
    assert find_damage(store, run.images.path).damages == []


def test_an_image_that_is_changed_while_a_run_goes_on_is_named(run: Run, tmp_path: Path) -> None:
    (image, *_) = run.dataset.train
    changed = tmp_path / "images"
    for file in {image.file, *image.masks}:
        (changed / file).parent.mkdir(parents=True, exist_ok=True)
        (changed / file).write_bytes((run.images.path / file).read_bytes())
    digests = {file: sha256_file(changed / file) for file in image.masks}
    folder = replace(run.images, path=changed, mask_digests=digests)
    assert len(folder.load([image])) == 1 and folder.masks([image]).known.all() and digests
    flip(changed / image.file)
    with pytest.raises(UserError, match="was changed after the run began with it"):
        folder.load([image])
    (changed / image.file).unlink()
    with pytest.raises(UserError, match="cannot be read any more"):
        folder.load([image])
    flip(changed / image.masks[0])
    with pytest.raises(UserError, match="was changed after the run began with it"):
        folder.masks([image])
