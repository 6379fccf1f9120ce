"""Opening a run: a mistake in its settings or files ends here, before any work.

Each check raises UserError, whose message names the setting or the file and what to do.
"""

import math
import tempfile
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from busray.config import Config
from busray.config_file import validate
from busray.corpus.arms import most_compared
from busray.corpus.recipe import longest_prompts, quotas
from busray.corpus.record import differences, read_run
from busray.data.folder import class_root
from busray.data.images import ImageFolder, unchanged
from busray.data.patients import is_personal, regrouped
from busray.data.prepare import prepare
from busray.data.read import scan
from busray.doctor import require_create_only
from busray.evidence.distances import FLOOR_SPLIT
from busray.evidence.stats.samples import FEWEST_UNITS
from busray.layout import BASE, CHECK, CONFIG, DATASET, MASKS
from busray.model.adapters import offered_adapters
from busray.model.base import BaseIdentity, TextPlaces, base_files, identify_base, inspect_base, same_base
from busray.model.checkpoints import fetch_adapters, read_adapters
from busray.model.noise_schedule import changed_schedule
from busray.records import DataSet, UserError, json_object, to_json
from busray.run.images import adapters_folder, image_folder
from busray.run.record import Run
from busray.setting_mistakes import shortened
from busray.storage import Store
from busray.vision import efficientnet
from busray.vision.extractors import find_extractors, refuse_small_content
from busray.workers import Report

# They decide neither pixels nor adapters, or the files that they name are compared instead.
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
    "dataset.links",
    "sampling.batch_size",
    "sampling.compile",
    "corpus.shard_seconds",
    "corpus.shard_size",
    "corpus.max_quarantined",
    "adapters.num_workers",
    "adapters.micro_batch_size",
    "adapters.gradient_checkpointing",
    "adapters.compile",
    "adapters.path",
)
"""Settings that a rerun may change."""


def open_run(config: Config, report: Report, *, measures: bool = True, writes: bool = True, command: str = "") -> Run:
    """Check the settings and the files that they name, and prepare the data set, once.

    measures: the work measures images. writes: it writes into the run.
    """
    store = Store(config.output)
    read_run(store)  # a newer stored format is refused before anything else is read
    check_settings(store, config)
    base = kept_base(store, identify_base(config.base))
    if store.read_or_none(BASE) is None:
        check_rank(config)
        check_unet_is_small(config)
        check_noise_schedule(config)
        inspect_base(config.base)
    # First what settings and weights show in moments, then what has to read every image.
    inline = writes and config.evaluate.inline
    extractors = find_extractors(config.evaluate) if measures or inline else {}
    check_classifier_weights(config, judges=measures, gates=writes)
    check_image_counts(config, compares=measures)
    with image_folder(config, store) as folder:
        dataset, findings, account = checked_dataset(store, config, folder, report)
        root = class_root(folder, config.folders(), config.dataset)
        images = ImageFolder(dataset, root, tuple(config.classes), recorded_masks(store, root))
        run = Run(config, store, images, base, extractors, command, f"{root}: {account}")
        check_content_sizes(run)
        vectors, remark = checked_vectors(run)
        check_texts(run, vectors)
        run = replace(run, account="\n".join(filter(None, (run.account, remark))))
        check_independent_images(run, compares=measures)
    # This check writes, so it is the last one: a mistake in the settings leaves nothing behind.
    if writes:
        require_create_only(store)
    return _record(run, findings, writes=writes)


def check_settings(store: Store, config: Config) -> None:
    """A run goes on with the settings that it started with, but for MAY_CHANGE."""
    before = store.read_record_or_none(CONFIG, json_object)
    if before is None:
        return
    # validate gives settings that are newer than the run their defaults. What is not valid any
    # more is compared as it is stored.
    with suppress(UserError):
        before = validate(before).model_dump(mode="json")
    changed = differences(before, config.model_dump(mode="json"))
    lines = [f"  {key}: {change}\n" for key, change in changed.items() if not _may_change(key)]
    if lines:
        raise UserError(
            f"output: {store.url} holds a run with other settings:\n{''.join(lines)}"
            "give another output, or take the old settings back"
        )


def _may_change(key: str) -> bool:
    if key.startswith("classes.") and key.endswith(".images"):
        return True  # a corpus may grow; extend_plan refuses to shrink it
    return any(key == free or key.startswith(free + ".") for free in MAY_CHANGE)


def kept_base(store: Store, base: BaseIdentity) -> BaseIdentity:
    """The base as the run recorded it; UserError for another one.

    A run keeps its base, since its adapters and checkpoints fit no other.
    """
    files = store.read_record_or_none(BASE, json_object)
    if files is None:
        return base
    if not same_base(files, base.files):
        raise UserError(
            f"base.path: the files of {base.repository} are not those that {store.url} started with: "
            "give another output, or bring them back (`tiny` comes with a version of busray)"
        )
    # Older runs hashed more files than are loaded; what was derived from them keeps its names.
    return replace(base, files=files)


def check_rank(config: Config) -> None:
    """A LoRA's matrices have no more columns than the narrowest layer that they change."""
    adapters = config.adapters
    if adapters.path or "lora" not in adapters.method.split("+"):
        return
    unet = base_files(config.base).configs["unet"]
    widths = []
    for kind, width in zip(unet.get("down_block_types", ()), unet.get("block_out_channels", ()), strict=False):
        if "Attn" in kind:
            widths.append(width)
    if widths and adapters.rank > min(widths):
        raise UserError(
            f"adapters.rank: {adapters.rank} is above {min(widths)}, the width of this base's narrowest layer: "
            f"more than that adds nothing, so give at most {min(widths)} (4 to 32 are usual)"
        )


MOST_WEIGHTS = 100_000_000
"""Of a UNet that learns whole: its optimiser's state and checkpoints have several times as many
numbers."""


def check_unet_is_small(config: Config) -> None:
    """A UNet that is to learn whole has few enough weights, by the base's configuration."""
    adapters = config.adapters
    if adapters.path or "full" not in adapters.method.split("+"):
        return
    from busray.model.inspect_base import built_shapes  # imports torch

    shapes = built_shapes("unet", base_files(config.base).configs["unet"])
    weights = sum(map(math.prod, shapes.values()))
    if weights > MOST_WEIGHTS:
        other = adapters.method.replace("full", "lora")
        raise UserError(
            f"adapters.method: {adapters.method} would train all {weights / 1e6:.0f} million weights of this base's "
            f"UNet, and is for bases of at most {MOST_WEIGHTS // 10**6} million: take {other}, with "
            "adapters.convolutions and adapters.feed_forward where attention alone learns too little"
        )


def check_noise_schedule(config: Config) -> None:
    """The adapters' noise schedule can be learned with this base."""
    changed_schedule(config.adapters, base_files(config.base).configs["scheduler"])


def check_classifier_weights(config: Config, *, judges: bool, gates: bool) -> None:
    """The pretrained weights of the judge and of the class gate are there, if needed."""
    architectures = [config.evaluate.judge if judges else None]
    if config.corpus.gate and gates:
        architectures.append(config.corpus.gate.architecture)
    if "efficientnet-lite0" in architectures:
        efficientnet.find_weights()


def check_image_counts(config: Config, *, compares: bool) -> None:
    """Every class has as many images as are compared, and as a comparison needs."""
    fewest = min((c.images for c in config.classes.values() if c.images), default=0)
    if config.evaluate.images and config.evaluate.images > fewest:
        raise UserError("evaluate.images: above the smallest classes.<class>.images, so arms would have unequal n")
    if compares and most_compared(config) < FEWEST_UNITS:
        raise UserError(
            f"classes: at least {FEWEST_UNITS} images a class are needed to compare anything "
            "(classes.<class>.images, evaluate.images)"
        )


def checked_dataset(
    store: Store, config: Config, folder: Path, report: Report
) -> tuple[DataSet, dict[str, Any] | None, str]:
    """(data set, findings of its check, line on its files); no findings where the run has both
    already."""
    stored = store.read_record_or_none(DATASET, DataSet.from_json)
    if stored is not None:
        line = check_same_images(stored, config, folder)
        # `busray repair` moved the findings aside. A sub-run of an ablation never had any.
        lost = store.digests(CHECK) or not store.digests(DATASET)
        if store.exists(CHECK) or not lost:
            return stored, None, line
    progress = partial(report, "check")
    dataset, checked = prepare(config.dataset, config.folders(), config.base.size, folder, progress)
    findings = {**checked.to_dict(), "tables": [asdict(table) for table in checked.tables()]}
    return stored or dataset, findings, f"{checked.account.line()}. {checked.patients.sentences()[0]}"


def check_same_images(dataset: DataSet, config: Config, folder: Path) -> str:
    """The folder and the metadata are those that the data set was made of; returns the line on its
    files."""
    metadata = Path(config.dataset.metadata) if config.dataset.metadata else None
    scanned = scan(folder, config.folders(), metadata, config.dataset)
    now = {image.file: image for image in scanned.images}
    before = {image.file: image for image in dataset.split("all")}
    # Images that were left out are in no split, so their bytes are not compared, only their names.
    left_out = {file for file, _ in dataset.left_out}
    # Those that cannot be read are there too; of a run without them they are left out by name.
    there = now.keys() | {file for file, _ in scanned.unreadable}
    differing = sorted(there ^ (before.keys() | left_out))
    redescribed, reread = [], []
    for file in sorted(before.keys() & now.keys()):
        old, new = before[file], now[file]
        if new.sha256 != old.sha256:
            differing.append(file)
        elif new.columns != {name: value for name, value in old.columns.items() if not is_personal(name)}:
            redescribed.append(file)
        elif new.reading != old.reading:
            reread.append(file)
    redescribed += regrouped(list(before.values()), scanned.images, scanned.patients)
    if differing:
        raise UserError(
            f"dataset.path: {folder} is not what this run started from ({len(differing)} files differ, "
            f"such as {differing[0]}): give another output, or bring the images back"
        )
    if reread:
        raise UserError(
            f"dataset.path: this busray reads the grey levels of {len(reread)} images otherwise than the one that "
            f"began this run, such as {reread[0]} (now {now[reread[0]].reading or 'by its format'}): "
            "give another output"
        )
    if redescribed:
        raise UserError(
            f"dataset.metadata: {metadata or 'null'} gives {len(redescribed)} images, such as "
            f"{redescribed[0]}, another group or other columns than this run was split by: "
            "give another output, or take the old table back"
        )
    return f"{scanned.account.line()}. {scanned.patients.sentences()[0]}"


def recorded_masks(store: Store, folder: Path) -> dict[str, str]:
    """mask -> SHA-256, of masks.json. UserError where a file is another one now."""
    digests = store.read_record_or_none(MASKS, json_object) or {}
    for file, digest in digests.items():
        with unchanged(folder / file, digest):
            pass
    return digests


def check_content_sizes(run: Run) -> None:
    """No image is framed too small for an extractor."""
    images = run.dataset.split("all")
    files = [image.file for image in images]
    refuse_small_content(run.extractors, list(zip(files, run.images.boxes(images), strict=True)))


def checked_vectors(run: Run) -> tuple[dict[str, int], str]:
    """(learned token -> its number of embedding vectors, what to say of the adapters that
    adapters.path gives); checks these."""
    config, store = run.config, run.store
    tokens = config.tokens() if config.uses_tokens else {}
    if not config.adapters.path:
        return dict.fromkeys(tokens.values(), config.adapters.vectors), ""
    adopted = read_adapters(store)
    with tempfile.TemporaryDirectory() as cache:
        if adopted and not any(True for _ in Store(config.adapters.path).list()):
            # The run has its own copy of these adapters, so the source may be gone.
            local = fetch_adapters(store, Path(cache))
        else:
            local = adapters_folder(config.adapters.path, Path(cache))
        known, settings = adopted is not None, config.adapters
        offered = offered_adapters(
            local, settings.method, tokens, run.base, run.dataset.hash, settings=settings, known=known
        )
        if adopted and adopted.sha256 != offered.record["sha256"]:
            raise UserError(f"adapters.path: {config.output} has other adapters already: give another output")
        return offered.vectors, offered.remark


def check_texts(run: Run, vectors: dict[str, int]) -> None:
    """The base's text encoder reads every prompt and caption to its end.

    vectors: learned token -> its number of embedding vectors; each takes the place of a token.
    """
    config, places = run.config, TextPlaces(run.config.base, vectors)
    longest_values = quotas(config, run.dataset)
    setting_of: dict[str, str] = {}
    # Prompts of the base alone, an arm of its own, have plain words in place of the tokens.
    for use_tokens in {False, config.uses_tokens}:
        for name, prompts in longest_prompts(config, longest_values, use_tokens, places).items():
            setting_of |= dict.fromkeys(prompts, f"classes.{name}.prompts")
    if not config.adapters.path:  # else nothing is trained, so captions are not read
        images = (*run.dataset.train, *run.dataset.val)
        for image, caption in zip(images, run.captions(images), strict=True):
            setting_of[caption] = f"classes.{image.class_name}.caption"
    if config.sampling.negative_prompt:
        setting_of[config.sampling.negative_prompt] = "sampling.negative_prompt"
    for text, setting in setting_of.items():
        if (taken := places(text)) > places.limit:
            raise UserError(
                f"{setting}: {shortened(repr(text))} has {taken} tokens and this base reads {places.limit}: "
                "the rest would be cut off, so write less"
            )


def check_independent_images(run: Run, *, compares: bool) -> None:
    """An overall kernel distance has enough independent real images on each side."""
    if not compares:
        return
    reference = run.config.evaluate.reference
    # Where all images are the reference, one half of them is compared with the other half.
    splits, fewest = ["all"], 2 * FEWEST_UNITS
    if reference in FLOOR_SPLIT:
        splits, fewest = [reference, FLOOR_SPLIT[reference]], FEWEST_UNITS
    for split in splits:
        units = len({image.unit for image in run.dataset.split(split)})
        if units < fewest:
            raise UserError(
                f"dataset: {units} independent images (patients, or groups of near-duplicates) in the "
                f"split {split}, at least {fewest} are needed to compare anything: give more images, "
                "or a larger dataset.test"
            )


def _record(run: Run, findings: dict[str, Any] | None, *, writes: bool) -> Run:
    """Put settings, base and data set into the store; returns the run with the stored data set."""
    store, config = run.store, run.config
    # If two drivers start at once, the first one's settings hold. So they are put before all else
    # and checked again: the other driver ends here and leaves nothing behind.
    store.put_checked(CONFIG, to_json(config.model_dump(mode="json")))
    check_settings(store, config)
    if writes:
        store.put_checked(BASE, to_json(run.base.files))
    kept_base(store, run.base)
    if findings is None:
        return run
    masks = run.images.digest_masks()
    if masks:
        store.put_checked(MASKS, to_json(masks))
    store.replace_checked(CHECK, to_json(findings))
    store.put_checked(DATASET, to_json(run.dataset))
    dataset = store.read_record(DATASET, DataSet.from_json)  # the first driver's
    masks = store.read_record_or_none(MASKS, json_object) or {}
    return replace(run, images=replace(run.images, dataset=dataset, mask_digests=masks))
