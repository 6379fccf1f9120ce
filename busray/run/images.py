"""Where a run's images and adapters lie on the local disk."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from busray.config import Config
from busray.data.folder import class_root
from busray.data.prepare import materialise_phantoms
from busray.failures import missing_folder
from busray.identity import fingerprint
from busray.layout import CONFIG
from busray.records import UserError
from busray.storage import Store


@contextmanager
def image_folder(config: Config, store: Store) -> Iterator[Path]:
    """The folder of the real images, or of simulated ones, which are written if they are missing.

    Simulated images of a new run are removed where a check in the block raises UserError.
    """
    phantoms = config.dataset.phantoms
    if phantoms is None:
        assert config.dataset.path is not None
        path = Path(config.dataset.path)
        if not path.is_dir():
            raise missing_folder("dataset.path", path, "--dataset.path=FOLDER says where it lies")
        yield path
        return
    folder = _phantom_folder(config, store)
    new = not folder.exists()
    materialise_phantoms(phantoms, folder)
    try:
        yield folder
    except UserError:
        # A mistake in the settings leaves nothing behind. A run that has started keeps its images.
        if new and store.read_or_none(CONFIG) is None:
            shutil.rmtree(folder)
            with suppress(OSError):  # the parent has other files
                folder.parent.rmdir()
        raise


def stored_images(config: Config, store: Store) -> Path | None:
    """The folder with the class folders of a run's images, simulated ones too; None where it is not
    here."""
    dataset = config.dataset
    path = Path(dataset.path or "") if dataset.phantoms is None else _phantom_folder(config, store)
    return class_root(path, config.folders(), dataset) if path.is_dir() else None


def _phantom_folder(config: Config, store: Store) -> Path:
    parent = Path(store.url) if store.local else cache_folder(store.url)
    assert config.dataset.phantoms is not None
    # Other settings make other images: they get another folder, so none mixes with older ones.
    return parent / f"phantoms-{fingerprint(config.dataset.phantoms.model_dump())[:12]}"


def adapters_folder(url: str, cache: Path) -> Path:
    """A local folder with the adapter files of url: url itself, or cache with copies of them.

    UserError where url is a local folder that is not there.
    """
    source = Store(url)
    if source.local:
        if not Path(source.url).is_dir():
            raise missing_folder("adapters.path", Path(source.url))
        return Path(source.url)
    cache.mkdir(parents=True, exist_ok=True)
    # As in a local folder, where only files of the top level are read.
    for key in source.list():
        if key.endswith((".safetensors", ".json")) and "/" not in key:
            (cache / key).write_bytes(source.read(key))
    return cache


def cache_folder(name: str) -> Path:
    return Path.home() / ".cache" / "busray" / fingerprint(name)[:16]
