"""A finished run without models: settings, a data set's record, shards, manifest and card.

Its pixels are arithmetic. It has what must not leave a run: quarantined images, first draws that a
class gate rejected, and images from before refinement. Its prompts hold learned tokens, its quotas
are numbers and texts.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from busray.config import Config
from busray.config_file import validate
from busray.corpus.commit import commit_shard
from busray.corpus.encode import Row
from busray.corpus.manifest import publish_manifest
from busray.corpus.plan import extend_plan, shards
from busray.corpus.recipe import make_recipe
from busray.corpus.record import claim_corpus, stored_format
from busray.data.images import ImageFolder
from busray.layout import CONFIG, DATASET, FORMAT, RUN
from busray.model.base import BaseIdentity
from busray.records import DataSet, ImageSpec, Redrawn, Shard, SourceImage, to_json
from busray.run.record import Run
from busray.stages.card import write_card
from busray.storage import Store
from tests.support.fake_corpus import EXECUTION
from tests.support.runs import quiet

IMAGES = {"malignant": 6, "benign": 10, "normal": 4}
QUARANTINED = {"benign": [3], "normal": [0, 1]}
"""class -> indices; all of the first shard of `normal`."""
SIDE = 16
RELEASED = sum(IMAGES.values()) - 3


def settings(output: str, format: str) -> Config:
    prompts = ["{token} ultrasound image of {class} breast tissue, BI-RADS {birads}, {site}", "{token} seen"]
    classes: dict[str, Any] = {}
    for name, images in IMAGES.items():
        quotas = {"birads": {"4": 1, "5": 1}, "site": {"left": 1, "right": 3}}
        classes[name] = {"images": images, "token": f"<us-{name}>", "prompts": prompts, "quotas": quotas}
    tree = {
        "name": "released",
        "output": output,
        "dataset": {"path": "scans"},
        "classes": classes,
        "base": {"size": 64},
        "corpus": {"format": format},
    }
    return validate(tree)


def pixels(spec: ImageSpec) -> np.ndarray:
    """uint8 [SIDE, SIDE]: another picture for each image."""
    return np.random.default_rng(spec.seed_txt2img).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)


def finish(store: Store, format: str = "parquet", version: int = FORMAT, images: int = 1) -> Run:
    """Draw the corpus into an empty store. version: of the stored format. images: a multiple of
    IMAGES."""
    config = settings(store.url, format)
    train = tuple(SourceImage(f"{name}/0.png", name, 80, 60, "L", "0" * 64) for name in IMAGES)
    dataset = DataSet("d" * 64, 64, "letterbox", 42, train, (), (), ())
    store.put_checked(CONFIG, to_json(config.model_dump(mode="json")))
    store.put_checked(DATASET, to_json(dataset))
    identity: dict[str, Any] = {"seed": 7}
    if version == 1:
        from busray.identity import fingerprint

        store.put_checked(RUN, to_json({"fingerprint": fingerprint(identity), "identity": identity}))
    corpus = claim_corpus(store, identity)
    recipe = make_recipe(config, dataset, corpus, use_tokens=True, stored_format=stored_format(store))
    segments = extend_plan(store, {name: images * n for name, n in IMAGES.items()}, 2)
    for shard in shards(segments):
        _commit(store, shard, recipe.specs(shard), corpus, format, version)
    publish_manifest(store, segments)
    folder = ImageFolder(dataset, Path("scans"), tuple(IMAGES))
    run = Run(config, store, folder, BaseIdentity("tiny", None, {"unet/x.safetensors": "b" * 64}), {})
    write_card(run, quiet)
    return run


def _commit(store: Store, shard: Shard, specs: Sequence[ImageSpec], corpus: str, format: str, version: int) -> None:
    rows, rejects, redrawn, first_draws = [], [], [], []
    for spec in specs:
        if spec.index in QUARANTINED.get(spec.class_name, ()):
            rejects.append((spec.image_id, "black"))
            continue
        rows.append(Row(spec, pixels(spec), 255 - pixels(spec)))
    if shard == Shard("malignant", 0, 2):  # the class gate rejected the first draw of its first image
        redrawn.append(Redrawn(specs[0].image_id, (0.1,), 0))
        first_draws.append(Row(specs[0], np.zeros((SIDE, SIDE), np.uint8)))
    provenance = {"fingerprint": corpus, "synthetic": True, "arm": "lora+ti+refine"}
    commit_shard(store, shard, rows, rejects, provenance, EXECUTION, format, 1.0, redrawn, first_draws, version, True)
