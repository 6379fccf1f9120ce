"""A run: its settings, storage, checked data set and pinned base. Opening one is where a user's mistake ends."""

import json
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from busray.cluster.session import Tell
from busray.config import Config
from busray.config_file import validate
from busray.corpus.arms import compared_images
from busray.corpus.recipe import longest_prompts, quotas
from busray.corpus.record import differences
from busray.data.frame import content_box
from busray.data.prepare import prepare
from busray.data.read import scan
from busray.doctor import require_create_only
from busray.evidence.distances import OTHER
from busray.evidence.stats.samples import FEWEST
from busray.layout import BASE, CHECK, CONFIG, DATASET
from busray.model.adapters import check_adapters, token_vectors
from busray.model.base import BaseIdentity, TextPlaces, identify_base
from busray.model.checkpoints import fetch_adapters, read_adapters
from busray.records import DataSet, UserError, to_json
from busray.run.images import fetch_folder, image_folder
from busray.run.record import Run
from busray.storage import Store
from busray.vision.extractors import find_extractors, refuse_small_content

T = TypeVar("T")


MAY_CHANGE = (
    "name",
    "output",
    "cluster",
    "evaluate",
    "ablate",
    "card",
    "study",
    "dataset.path",
    "dataset.metadata",
    "sampling.batch_size",
    "corpus.shard_size",
    "corpus.max_quarantined",
    "adapters.num_workers",
    "adapters.path",
)
"""Settings that decide neither pixels nor adapters (or are checked by content): free to change on a rerun."""


def open_run(
    config: Config, tell: Tell, *, needs_inception: bool = True, writes: bool = True, command: str = ""
) -> Run:
    """Check everything a user can get wrong, prepare the data set once, and refuse changed settings of an old run.

    Nothing is left behind before every check that needs no writing has passed; then, unless the work `writes` nothing,
    the store must show that it creates only.
    """
    store = Store(config.output)
    _refuse_changed_settings(store, config)
    base = identify_base(config.base)
    _refuse_changed_base(store, base)
    extractors = find_extractors(config.evaluate) if needs_inception else {}
    _find_classifier_weights(config, judges=needs_inception, gates=writes)
    if config.evaluate.images and config.evaluate.images > min(
        (c.images for c in config.classes.values() if c.images), default=0
    ):
        raise UserError("evaluate.images: above the smallest classes.<class>.images, so arms would have unequal n")
    if needs_inception and compared_images(config) < FEWEST:
        raise UserError(
            f"classes: at least {FEWEST} images a class are needed to compare anything (classes.<class>.images, "
            "evaluate.images)"
        )
    with image_folder(config, store) as folder:
        dataset, findings = _dataset(config, store, folder, tell)
        framed = [(i.file, content_box(i.width, i.height, dataset.size, dataset.frame)) for i in dataset.split("all")]
        refuse_small_content(extractors, framed)
        vectors = _vectors(config, store, base, dataset)
        run = Run(config, store, tell, dataset, folder, base, extractors, command)
        _refuse_unfit_texts(run, quotas(config, dataset), vectors)
        if needs_inception:
            _refuse_too_few(config, dataset)
    if writes:
        require_create_only(store)
    # Of two drivers that start at once the first one's settings hold, and the other leaves nothing of its own behind.
    store.put_once(CONFIG, to_json(config.model_dump(mode="json")))
    _refuse_changed_settings(store, config)
    if writes:
        store.put_once(BASE, to_json(base.files))
    _refuse_changed_base(store, base)
    if findings is not None:
        store.replace(CHECK, to_json(findings))
        store.put_once(DATASET, to_json(dataset))
        run = replace(run, dataset=DataSet.from_json(store.read(DATASET)))  # the first one's here too
    return run


def _vectors(config: Config, store: Store, base: BaseIdentity, dataset: DataSet) -> dict[str, int]:
    """Learned token -> its embedding vectors; those of adapters.path, which are checked here, where it is set."""
    tokens = config.tokens() if config.uses_tokens else {}
    if not config.adapters.path:
        return dict.fromkeys(tokens.values(), config.adapters.vectors)
    kept = read_adapters(store)
    with tempfile.TemporaryDirectory() as cache:
        if kept and not any(True for _ in Store(config.adapters.path).list()):
            local = fetch_adapters(store, Path(cache))  # adopted, so where they came from is needed no more
        else:
            local = fetch_folder(config.adapters.path, Path(cache))
        offered = check_adapters(local, config.adapters.method, tokens, base, dataset.hash)
        if kept and kept["sha256"] != offered["sha256"]:
            raise UserError(f"adapters.path: {config.output} has other adapters already: give another output")
        return token_vectors(local, tokens.values())


def _refuse_unfit_texts(run: Run, quotas: dict[str, dict[str, dict[str, float]]], vectors: dict[str, int]) -> None:
    """UserError for a caption or prompt that cannot be filled, or that the base's text encoder would cut off."""
    places, texts = TextPlaces(run.config.base, vectors), {}
    for use_tokens in {False, run.config.uses_tokens}:
        for name, prompts in longest_prompts(run.config, quotas, use_tokens, places).items():
            texts |= dict.fromkeys(prompts, f"classes.{name}.prompts")
    if not run.config.adapters.path:
        images = (*run.dataset.train, *run.dataset.val)
        names = [f"classes.{image.class_name}.caption" for image in images]
        texts |= dict(zip(run.captions(images), names, strict=True))
    for text, where in texts.items():
        if (taken := places(text)) > places.limit:
            raise UserError(
                f"{where}: {text!r} has {taken} tokens and this base reads {places.limit}: the rest would be cut off, "
                "so write less"
            )


def _find_classifier_weights(config: Config, *, judges: bool, gates: bool) -> None:
    """UserError where a classifier of the coming work stands on weights that are not there."""
    from busray.vision.efficientnet import find_weights

    wanted = [config.evaluate.judge if judges else None]
    wanted.append(config.corpus.gate.architecture if config.corpus.gate and gates else None)
    if "efficientnet-lite0" in wanted:
        find_weights()


def _dataset(config: Config, store: Store, folder: Path, tell: Tell) -> tuple[DataSet, dict[str, Any] | None]:
    """The run's data set, and what the check found where it was not recorded before."""
    classes = list(config.classes)
    stored = store.read_or_none(DATASET)
    if stored is not None:
        dataset = DataSet.from_json(stored)
        _refuse_changed_images(dataset, config, folder)
        return dataset, None
    dataset, report = prepare(
        config.dataset, classes, config.base.size, folder, lambda done, total: tell("check", done, total)
    )
    findings = {**report.to_dict(), "tables": [_plain(table) for table in report.tables()]}
    return dataset, findings


def _plain(table: Any) -> dict[str, Any]:
    return {"title": table.title, "columns": list(table.columns), "rows": [list(row) for row in table.rows]}


def _refuse_changed_images(dataset: DataSet, config: Config, folder: Path) -> None:
    metadata = Path(config.dataset.metadata) if config.dataset.metadata else None
    found = {image.file: image for image in scan(folder, list(config.classes), metadata).images}
    known = {image.file: image for image in dataset.split("all")} | {file: None for file, _ in dataset.left_out}
    changed = sorted(set(found) ^ set(known))
    changed += sorted(
        file for file, image in known.items() if image and file in found and found[file].sha256 != image.sha256
    )
    if changed:
        raise UserError(
            f"dataset.path: {folder} is not what this run started from ({len(changed)} files differ, "
            f"such as {changed[0]}): give another output, or bring the images back"
        )
    told = sorted(
        file
        for file, image in known.items()
        if image and (found[file].group, found[file].columns) != (image.group, image.columns)
    )
    if told:
        raise UserError(
            f"dataset.metadata: {metadata or 'null'} gives {len(told)} images, such as {told[0]}, another group or "
            "other columns than this run was split by: give another output, or take the old table back"
        )


def _refuse_changed_settings(store: Store, config: Config) -> None:
    stored = store.read_or_none(CONFIG)
    if stored is None:
        return
    before = json.loads(stored)
    with suppress(UserError):  # a run from before a setting has what is now its default; else compared as it stands
        before = validate(before).model_dump(mode="json")
    changed = differences(before, config.model_dump(mode="json"))
    lines = [f"  {key}: {change}" for key, change in changed.items() if not _free(key)]
    if lines:
        raise UserError(
            f"output: {store.url} holds a run with other settings:\n" + "\n".join(lines) + "\n"
            "give another output, or take the old settings back"
        )


def _refuse_changed_base(store: Store, base: BaseIdentity) -> None:
    """Adapters and checkpoints of a run are of one base, whatever lies at base.path by now."""
    stored = store.read_or_none(BASE)
    if stored is not None and json.loads(stored) != base.files:
        raise UserError(
            f"base.path: the files of {base.repository} are not those that {store.url} started with: give another "
            "output, or bring them back (`tiny` comes with a version of busray)"
        )


def _refuse_too_few(config: Config, dataset: DataSet) -> None:
    """UserError where an overall kernel distance would have fewer independent images on a side than it needs."""
    reference = config.evaluate.reference
    splits = [reference, OTHER[reference]] if reference in OTHER else ["all"]
    least = FEWEST if reference in OTHER else 2 * FEWEST
    for split in splits:
        units = len({image.unit for image in dataset.split(split)})
        if units < least:
            raise UserError(
                f"dataset: {units} independent images (patients, or clusters of near-duplicates) in the split {split}, "
                f"at least {least} are needed to compare anything: give more images, or a larger dataset.test"
            )


def _free(key: str) -> bool:
    counts = key.startswith("classes.") and key.endswith(".images")
    return counts or any(key == free or key.startswith(free + ".") for free in MAY_CHANGE)
