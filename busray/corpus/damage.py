"""What is damaged in a run: every object that figures come from is read and compared with its
digest. Changes nothing.

A shard is compared with its commit record, weights and adapters with the records that name them,
everything else with the digest that Store.put_checked kept.
"""

import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from threading import Lock

import numpy as np

from busray.corpus.arms import corpora
from busray.corpus.plan import segment_of
from busray.corpus.verify import VerifyResult, verify
from busray.identity import sha256_bytes, sha256_file
from busray.layout import (
    ADAPTERS,
    BASE,
    CHECK,
    CONFIG,
    DAMAGED,
    DATA_FOLDERS,
    DATASET,
    DIGESTS,
    MANIFEST,
    MASKS,
    RUN,
    commit_key,
    data_shard,
)
from busray.records import Damaged, DataSet, Shard, UserError, json_object
from busray.storage import Store, in_threads

Progress = Callable[[int, int], None]
DERIVED = r"(report|audit|geometry|study|ablate|timings)\.json"
SEGMENT = r"plan/\d+\.json"
ARRAYS = r"(features|moments|copies|vae)/.*\.npy"
LATENTS = r"finetune/latents-.*\.safetensors"
READERS = 16  # objects that are read at once: most are small, some have a hundred megabytes
SUB_RUNS = ("methods", "points")  # folders of an ablation's sub-runs
CHECKPOINT = r"(finetune/checkpoints/\d+)(-[0-9a-f]{16}\.safetensors|\.json)"
TRAINED = r"((classifiers|segmenters)/[0-9a-f]{16})(-[0-9a-f]{16}\.safetensors|\.json)"

AGAIN: tuple[tuple[str, str], ...] = (
    (RUN, "the next `busray generate` writes it again"),
    (f"{CONFIG}|{BASE}", "the next `busray run CONFIG` writes it again"),
    (f"{DATASET}|{CHECK}|{MASKS}", "the next `busray run CONFIG` checks the images and writes it again"),
    (SEGMENT, "the next `busray generate` with the same settings plans these images again"),
    (f"{ADAPTERS}|adapters/.*", "the next `busray finetune` makes the adapters again"),
    (TRAINED, "the next command that needs it trains it again"),
    (CHECKPOINT, "a training goes on from an older checkpoint"),
    (LATENTS, "the next `busray finetune` that trains encodes the images again"),
    (r"compiled/.*", "the next worker compiles again"),
    (r"(features|moments)/.*", "the next `busray evaluate` computes them again"),
    (r"copies/.*", "the next `busray audit` searches again"),
    (r"vae/.*", "the next `busray ablate` decodes again"),
    (r"study/.*", "the next `busray study` makes it again"),
    (r"timings\.json", "the times of the stages are lost; nothing else needs it"),
    (DERIVED, "the command that wrote it writes it again"),
)
"""What is checked by its digest: pattern of keys, below the run or an arm -> what mends it."""


@dataclass(frozen=True)
class Damage:
    """One damaged, lost or changed object of a run."""

    key: str  # or the file, of a real image
    reason: str
    then: str  # what makes it again, or what somebody must do
    aside: tuple[str, ...] = ()  # keys to move aside first, as far as they are there
    mendable: bool = True  # by `busray repair --apply` and the commands that `then` names


@dataclass
class Findings:
    """What find_damage saw."""

    damages: list[Damage] = field(default_factory=list)
    compared: int = 0  # objects and images that were compared with a digest
    uncovered: list[str] = field(default_factory=list)  # keys that have none; they can be read
    notes: list[str] = field(default_factory=list)  # what could not be looked at
    corpora: dict[str, VerifyResult] = field(default_factory=dict)  # `released` or arm's folder


def find_damage(store: Store, images: Path | None, progress: Progress = lambda done, total: None) -> Findings:
    """Everything of a run, and of an ablation's sub-runs below it, that is not what was stored.

    images: the folder of its real images; None where it is not here. progress(objects read, all).
    """
    found = _check_run(store, progress)
    _check_images(store, images, found)
    for prefix in _sub_runs(store):
        below = _check_run(store.sub(prefix), progress)
        for damage in below.damages:
            aside = tuple(f"{prefix}/{key}" for key in damage.aside)
            found.damages.append(replace(damage, key=f"{prefix}/{damage.key}", aside=aside))
        found.compared += below.compared
        found.uncovered += [f"{prefix}/{key}" for key in below.uncovered]
        found.corpora |= {f"{prefix} {name}": result for name, result in below.corpora.items()}
    return found


def _sub_runs(store: Store) -> list[str]:
    """Folders of an ablation's sub-runs: those with settings, or with the digest of lost ones."""
    prefixes: list[str] = []
    for folder in SUB_RUNS:
        for name in store.folders(folder):
            below = store.sub(f"{folder}/{name}")
            if below.exists(CONFIG) or below.digests(CONFIG):
                prefixes.append(f"{folder}/{name}")
    return prefixes


def _check_run(store: Store, progress: Progress) -> Findings:
    """All of a run but its sub-runs and the real images."""
    found = Findings()
    keys = [key for key in store.list() if key.split("/")[0] not in (DAMAGED, DIGESTS)]
    _check_corpora(store, found)
    _check_records(store, keys, found, progress)
    _check_named(store, keys, found)
    return found


# ---- shards ----


def _check_corpora(store: Store, found: Findings) -> None:
    for prefix, corpus in corpora(store).items():
        name, start = prefix or "released", f"{prefix}/" if prefix else ""
        try:
            result = verify(corpus)
        except Damaged as error:
            if error.key != RUN:  # which _check_records names
                found.damages.append(_damage(start + error.key, error.reason, set()))
            found.notes.append(f"the shards of {name}: they can be compared when {start}{RUN} is made again")
            continue
        except UserError as error:
            if corpus.exists(RUN):  # a file of others among the records
                then = "move that file elsewhere"
                found.damages.append(Damage(f"{start}commits", str(error), then, mendable=False))
            elif any(True for _ in corpus.list("commits")):
                reason = "it is not there, but records of shards are"
                found.damages.append(Damage(f"{start}{RUN}", reason, _mends(RUN)))
                found.notes.append(f"the shards of {name}: they can be compared when {start}{RUN} is there again")
            continue
        found.corpora[name] = result
        found.compared += 2 * result.shards
        objects: dict[Shard, list[str]] = {}
        # Listed only where they are asked for: there are as many as shards, or as images.
        folders = DATA_FOLDERS if result.broken else ()
        for key in chain.from_iterable(map(corpus.list, folders)):
            shard = data_shard(key)
            if shard is not None and shard in result.broken:
                objects.setdefault(shard, []).append(start + key)
        for shard, problems in result.broken.items():
            record = start + commit_key(shard)
            aside = (record, *objects.get(shard, ()))
            then = "the next `busray run CONFIG` draws this shard again"
            reason = "; ".join(start + problem for problem in problems)
            found.damages.append(Damage(record, reason.removeprefix(f"{record}: "), then, aside))
        for problem in result.plan_problems:
            key, _, reason = problem.partition(": ")
            if re.fullmatch(SEGMENT, key):
                found.damages.append(_segment_damage(corpus, start, key, reason))
            else:  # a gap, or a record of no plan: nobody knows which of the two is wrong
                found.damages.append(Damage(start + key, reason, _mends("plan/0000.json"), mendable=False))
        if not result.broken and not result.plan_problems:
            for problem in result.manifest_problems:
                then = "repair makes it again from the records"
                key = f"{start}{MANIFEST}"
                found.damages.append(Damage(key, problem.partition(": ")[2], then, (key,)))


# ---- what has a digest of its own ----


def _mends(key: str) -> str:
    """What makes the object of this key again; empty where nothing figures come from."""
    return next((then for pattern, then in AGAIN if re.fullmatch(pattern, key)), "")


def kept_with_digest(key: str) -> bool:
    """Whether an object of this key, below its corpus, is put with a digest of its own."""
    named = re.fullmatch(TRAINED, key) or re.fullmatch(CHECKPOINT, key)
    by_record = named is not None and not key.endswith(".json")
    return key == MANIFEST or key.startswith("commits/") or (bool(_mends(key)) and not by_record)


def _in_arm(key: str) -> str:
    """The key below its corpus."""
    return re.sub(r"^arms/[^/]+/", "", key)


def _check_records(store: Store, keys: Sequence[str], found: Findings, progress: Progress) -> None:
    """Records, arrays and latents: what put_checked stored, and what it should have."""
    known: dict[str, set[str]] = {}
    stores = corpora(store)
    for prefix, corpus in stores.items():
        start = f"{prefix}/" if prefix else ""
        for name in corpus.list(DIGESTS):
            key, _, digest = name.removeprefix(f"{DIGESTS}/").rpartition("/")
            known.setdefault(start + key, set()).add(digest)
    must_have = store.has_digests()
    there, told = set(keys), {damage.key for damage in found.damages}
    # A shard's record was read with its corpus.
    wanted = [key for key in sorted(known.keys() | there) if _mends(_in_arm(key))]
    look = partial(_problem, store, known, there)
    for done, (key, problem) in enumerate(zip(wanted, in_threads(look, wanted, READERS), strict=True), 1):
        progress(done, len(wanted))
        has_digest = key in known
        found.compared += has_digest
        if problem is None and not has_digest:
            if key.startswith("adapters/") or not kept_with_digest(_in_arm(key)):
                continue  # a record names its digest
            if must_have:
                problem = "its digest is lost, so nobody can tell whether it is what was stored"
            else:
                found.uncovered.append(key)
        if problem and key not in told:
            found.damages.append(_damage(key, problem, there))


def _problem(store: Store, known: Mapping[str, set[str]], there: set[str], key: str) -> str | None:
    """What is wrong with an object; None where nothing is."""
    if key not in there:
        return "it is not there, but its digest is"
    try:
        data = store.read(key)
    except FileNotFoundError:
        return "it is not there any more"
    if key in known and sha256_bytes(data) not in known[key]:
        return "it is not what was stored"
    try:
        _read_as_its_kind(_in_arm(key), data)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        return f"it is cut or damaged and cannot be read ({' '.join(str(error).split())[:100]})"
    return None


def _read_as_its_kind(key: str, data: bytes) -> None:
    """ValueError and others where the bytes are not of the kind that the key says."""
    if re.fullmatch(ARRAYS, key):
        array_of(data)
    elif re.fullmatch(SEGMENT, key):
        segment_of(data)
    elif key == DATASET:
        DataSet.from_json(data)
    elif key.endswith(".json"):
        json_object(data)
    elif key.endswith(".safetensors"):
        safetensors_header(data)


ONE_ARRAY_AT_A_TIME = Lock()
"""NumPy parses an array's header as Python. Where threads do so at once, CPython 3.11 may count the
parser's depth wrong and raise SystemError (python/cpython, issue 106905)."""


def array_of(data: bytes) -> np.ndarray:
    """The array of a .npy object. ValueError where the bytes are not exactly one."""
    if not data.startswith(b"\x93NUMPY"):
        raise ValueError("it does not begin as an array does")
    buffer = io.BytesIO(data)
    try:
        with ONE_ARRAY_AT_A_TIME:
            array = np.load(buffer, allow_pickle=False)
    except (EOFError, OSError, SyntaxError) as error:
        raise ValueError(f"no array: {error}") from error
    if buffer.read(1):
        raise ValueError("there is more than one array")
    return array


def safetensors_header(data: bytes) -> None:
    """ValueError where a safetensors file is not as long as its header says."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    if len(data) != 8 + length + max(ends, default=0):
        raise ValueError("it is not as long as its header says")


def _damage(key: str, reason: str, there: set[str]) -> Damage:
    """With all objects that go aside together."""
    below, start = _in_arm(key), key.removesuffix(_in_arm(key))
    aside = [key]
    if below in (CHECK, MASKS):
        aside = [start + CHECK, start + MASKS]  # one check makes both
    elif re.fullmatch(f"{ADAPTERS}|adapters/.*", below):
        aside = [start + ADAPTERS, *(other for other in there if other.startswith(f"{start}adapters/"))]
    elif match := re.fullmatch(TRAINED, below) or re.fullmatch(CHECKPOINT, below):
        aside = [other for other in there if other.startswith((f"{start}{match[1]}-", f"{start}{match[1]}."))]
    return Damage(key, reason, _mends(below), tuple(sorted({*aside, key})))


def _segment_damage(corpus: Store, start: str, key: str, reason: str) -> Damage:
    """Of a damaged or lost segment of the plan. start: the arm's folder.

    The same settings plan it again only where no class has a second segment. Otherwise what is
    planned again would begin at 0, over the images of later segments.
    """
    others = []
    for other in corpus.list("plan"):
        if other != key:
            try:
                others.append(corpus.read_record(other, segment_of))
            except (Damaged, FileNotFoundError):
                continue
    classes = {segment.class_name for segment in others}
    drawn = {shard_key.split("/")[1] for shard_key in corpus.list("commits")}
    if len(classes) == len(others) and len(others) < len(classes | drawn):
        return Damage(start + key, reason, _mends(key), (start + key,))
    then = "the corpus has grown, and later segments build on this one: take it from a copy of the run"
    return Damage(start + key, reason, then, mendable=False)


# ---- what a record names by its digest ----


def _check_named(store: Store, keys: Sequence[str], found: Findings) -> None:
    """Weights, adapters' files and states of training, as their records name them."""
    there, named = set(keys), set(keys) & {damage.key for damage in found.damages}
    for record, name, digest in _names(store, keys):
        if name in named:
            continue  # told already
        found.compared += 1
        try:
            data = store.read_or_none(name)
        except Damaged as error:  # no file at all stands there
            found.damages.append(_damage(name, error.reason, there))
            continue
        if data is None:
            found.damages.append(_damage(name, f"it is not there, but {record} names it", there))
        elif sha256_bytes(data) != digest:
            found.damages.append(_damage(name, f"it is not what {record} names", there))


def _names(store: Store, keys: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """(key of the record, key of the object that it names, the object's SHA-256)."""
    for key in keys:
        of_trained = re.fullmatch(rf"{TRAINED}|{CHECKPOINT}", key)
        if key != ADAPTERS and not (of_trained and key.endswith(".json")):
            continue
        try:
            record = store.read_record(key, json_object)
            if key == ADAPTERS:
                for name, digest in record["files"].items():
                    yield key, f"{record['folder']}/{name}", digest
            else:
                yield key, record["object"], record["digest"]
        except (Damaged, LookupError, AttributeError, TypeError):
            continue  # _check_records told it


# ---- real images ----


def _check_images(store: Store, folder: Path | None, found: Findings) -> None:
    """The images and masks that the data set was made of."""
    try:
        dataset = store.read_record_or_none(DATASET, DataSet.from_json)
        masks = store.read_record_or_none(MASKS, json_object) or {}
    except Damaged:
        return  # _check_records told it
    if dataset is None:
        return
    if folder is None or not folder.is_dir():
        found.notes.append("the real images are not here: give --dataset.path=FOLDER to compare them too")
        return
    digests = {image.path: image.sha256 for image in dataset.split("all")} | masks
    files = sorted(digests)
    for file, digest in zip(files, in_threads(lambda file: _digest_or_none(folder / file), files, 4), strict=True):
        found.compared += 1
        if digest != digests[file]:
            reason = "it is not there" if digest is None else "it is not the image that this run started from"
            then = "bring the file back; busray cannot make it again"
            if folder.name.startswith("phantoms-"):
                then = f"remove the folder {folder}; the next `busray run CONFIG` simulates the same images"
            found.damages.append(Damage(str(folder / file), reason, then, mendable=False))


def _digest_or_none(path: Path) -> str | None:
    try:
        return sha256_file(path)
    except OSError:
        return None
