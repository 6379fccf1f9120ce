"""Store: the only code that touches a URL or a path of the run.

An object is written whole or not at all. `put_once` creates and never overwrites, so that of two writers of one key
the first wins and both learn it; `replace` is for derived files only (manifest, reports).
"""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec

from busray.records import UserError

TEMPORARY = ".tmp-"
"""How names of unfinished files on a local disk begin; no listing shows them."""


class Store:
    """A folder of objects: a local directory or any fsspec URL (s3://bucket/prefix). Keys use `/`.

    Picklable, so that it travels to workers; each process opens its own connection.
    """

    def __init__(self, url: str, **options: Any) -> None:
        scheme = urlsplit(url).scheme if "://" in url else "file"
        self.local = scheme == "file"
        self.url = (str(Path(url.removeprefix("file://")).absolute()) if self.local else url).rstrip("/")
        self.options = options
        self._fs: Any = None
        self._root = self.url

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_fs": None}

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    @property
    def fs(self) -> Any:
        if self._fs is None:
            try:
                self._fs, self._root = fsspec.core.url_to_fs(self.url, **self.options)
            except (ValueError, ImportError) as error:
                raise UserError(f"output: cannot open {self.url!r}: {error}") from error
            self._root = self._root.rstrip("/")
        return self._fs

    def _path(self, key: str) -> str:
        parts = key.split("/")
        if not key or any(part in ("", ".", "..") for part in parts):
            raise ValueError(f"not a key: {key!r}")
        return f"{self._folder()}/{key}"

    def arrow(self) -> tuple[Any, str]:
        """(pyarrow file system, path in it) of this folder, for Ray's own bookkeeping."""
        from pyarrow import fs as arrow_fs

        if self.local:
            return arrow_fs.LocalFileSystem(), self._folder()
        return arrow_fs.PyFileSystem(arrow_fs.FSSpecHandler(self.fs)), self._folder()

    def _folder(self) -> str:
        fs = self.fs  # resolves _root
        del fs
        return self._root

    def sub(self, prefix: str) -> "Store":
        """The store of the keys under prefix."""
        return Store(f"{self.url}/{prefix}", **self.options)

    def read(self, key: str) -> bytes:
        """The object's bytes; FileNotFoundError where there is none."""
        return self.fs.cat_file(self._path(key))

    def read_or_none(self, key: str) -> bytes | None:
        try:
            return self.read(key)
        except FileNotFoundError:
            return None

    def exists(self, key: str) -> bool:
        path = self._path(key)
        self.fs.invalidate_cache()  # a listing kept from before another machine's write would answer for the store
        return bool(self.fs.exists(path))

    def list(self, prefix: str = "") -> Iterator[str]:
        """Keys under prefix (a folder), sorted; nothing where there is no such folder."""
        folder = self._path(prefix) if prefix else self._folder()
        self.fs.invalidate_cache()
        for path in sorted(self.fs.find(folder)):
            key = path[len(self._root) :].lstrip("/")
            if not os.path.basename(key).startswith(TEMPORARY):
                yield key

    def put_once(self, key: str, data: bytes) -> bool:
        """Create the object; True if these bytes are what the key now holds, False if another writer's bytes are.

        A lost answer is settled by reading back, so a retry that meets its own object is no failure; neither is a
        store that says "exists" in words of its own. Where the key holds nothing, the error is the caller's.
        """
        if not data:
            raise ValueError(f"refusing to write the empty object {key!r}: empty objects do not count as existing")
        path = self._path(key)
        try:
            if self.local:
                _link_into_place(Path(path), data)
            else:
                self.fs.pipe_file(path, data, mode="create")
        except Exception:
            held = self.read_or_none(key)
            if held is None:
                raise
            return held == data
        return True

    def replace(self, key: str, data: bytes) -> None:
        """Write or overwrite a derived object, whole."""
        path = self._path(key)
        if not self.local:
            self.fs.pipe_file(path, data)
            return
        temporary = _temporary(Path(path), data)
        os.replace(temporary, path)

    def delete(self, key: str) -> None:
        """Remove an object; for `busray gc` and for superseded checkpoints only."""
        self.fs.rm_file(self._path(key))


def _temporary(path: Path, data: bytes) -> Path:
    """data beside path under a hidden name; readable by whom the user's umask lets, unlike tempfile's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{TEMPORARY}{secrets.token_hex(8)}"
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _link_into_place(path: Path, data: bytes) -> None:
    """Publish name and bytes at once: O_EXCL alone would publish the name first."""
    temporary = _temporary(path, data)
    try:
        os.link(temporary, path)
    finally:
        os.unlink(temporary)
