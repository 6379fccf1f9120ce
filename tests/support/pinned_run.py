"""The pinned run as this busray would store it: with the digest of everything that has one."""

import zipfile
from pathlib import Path

from busray.corpus.arms import corpora
from busray.corpus.damage import kept_with_digest
from busray.data.images import ImageFolder
from busray.identity import sha256_bytes
from busray.layout import DATASET, MASKS, digest_key
from busray.records import DataSet, to_json
from busray.storage import Store

ARCHIVE = Path(__file__).parents[1] / "pinned" / "run.zip"


def unpack(folder: Path) -> Store:
    """The finished run of an older busray, without digests."""
    with zipfile.ZipFile(ARCHIVE) as packed:
        packed.extractall(folder)
    return Store(str(folder))


def keep_digests(store: Store) -> None:
    """Put the digests that a run of this busray has, and its masks.json."""
    dataset = store.read_record(DATASET, DataSet.from_json)
    (images,) = Path(store.url).glob("phantoms-*")
    store.put_once(MASKS, to_json(ImageFolder(dataset, images, ("benign", "malignant")).digest_masks()))
    for corpus in corpora(store).values():
        for key in list(corpus.list()):
            if kept_with_digest(key):
                digest = sha256_bytes(corpus.read(key))
                corpus.put_once(digest_key(key, digest), b"kept\n")
