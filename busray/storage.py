"""Store: the only code that touches a URL or a path of the run.

An object is written whole or not at all. `put_once` creates and never overwrites, so that of two writers of one key
the first wins and both learn it; `replace` is for derived files only (manifest, reports).

Object storage answers late, twice or not at all. Each request is tried a few times within seconds by botocore; the
whole operation is tried again by Store, for PATIENCE seconds, before StoreError ends it. A local disk is asked once.
"""

import errno
import logging
import os
import random
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from fsspec.asyn import AsyncFileSystem

from busray.records import StoreError, UserError

T = TypeVar("T")
log = logging.getLogger(__name__)

TEMPORARY = ".tmp-"
"""How names of unfinished files on a local disk begin; no listing shows them."""

PATIENCE = 600.0
"""Seconds for which an operation is tried again: enough for 40 refusals in a row with room for slow answers."""
LONGEST_ATTEMPT = 600.0
"""Seconds after which one attempt is given up: no connection that swallows bytes in silence holds a worker for good."""
FIRST_DELAY = 0.5
"""Seconds, at most, before the second try; doubled before each further one up to LONGEST_DELAY."""
LONGEST_DELAY = 10.0

S3_CLIENT = {"connect_timeout": 10, "read_timeout": 60, "retries": {"mode": "standard", "total_max_attempts": 3}}
"""botocore's settings, seconds and tries a request: a page of a listing or a part of an upload is asked again alone."""

TRANSIENT_STATUS = {408, 429, 500, 502, 503, 504}
TRANSIENT_CODES = {"ConditionalRequestConflict", "IncompleteBody", "OperationAborted", "RequestTimeout", "SlowDown"}
"""S3's own words where the HTTP status alone (400, 409) does not tell."""


def delays() -> Iterator[float]:
    """Seconds to wait before each further try, without end.

    Doubling up to LONGEST_DELAY, each drawn from the upper half of its range: a fleet that was throttled at one moment
    does not come back at one moment.
    """
    longest = FIRST_DELAY
    while True:
        yield random.uniform(longest / 2, longest)
        longest = min(2 * longest, LONGEST_DELAY)


def transient(error: BaseException) -> bool:
    """Whether the same request may succeed later: no answer, server errors, throttling, a conditional write in flight.

    Missing objects, existing ones (412) and missing permissions are answers and never worth another try.
    """
    from aiohttp import ClientError as NetworkError
    from botocore import exceptions as boto

    broken = (
        TimeoutError,
        ConnectionError,
        NetworkError,
        boto.HTTPClientError,  # closed connections, read timeouts, broken bodies
        boto.ConnectionError,  # refused connections, connect timeouts
        boto.IncompleteReadError,
        boto.FlexibleChecksumError,
    )
    answer = _answer(error)
    if answer is not None:
        return answer[0] in TRANSIENT_STATUS or answer[1] in TRANSIENT_CODES
    return isinstance(error, broken) or getattr(error, "errno", None) in (errno.EBUSY, errno.EREMOTEIO)


def _answer(error: BaseException) -> tuple[int, str, str] | None:
    """(HTTP status, S3's code, its message) where the store answered; None where it did not, or is not S3."""
    cause: BaseException | None = error
    while cause is not None:  # s3fs translates botocore's errors and keeps them as the cause
        response = getattr(cause, "response", None)
        if isinstance(response, dict) and "Error" in response:
            said = response["Error"]
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return status, said.get("Code", ""), said.get("Message", "")
        cause = cause.__cause__
    return None


def words(error: BaseException) -> str:
    """An error in one line for people, in the store's own words where it answered."""
    answer = _answer(error)
    if answer is None:
        text = f"{type(error).__name__}: {error}"
    else:
        status, code, message = answer
        text = f"{status}: {message}" if code == str(status) else f"{status} {code}: {message}"  # HEAD has no body
    return " ".join(text.split()).rstrip(": ")[:300]


class Store:
    """A folder of objects: a local directory or any fsspec URL (s3://bucket/prefix). Keys use `/`.

    Picklable, so that it travels to workers; each process opens its own connection. Every operation may raise
    StoreError once the store has not done it for `patience` seconds.
    """

    def __init__(self, url: str, **options: Any) -> None:
        scheme = url.partition("://")[0].lower() if "://" in url else "file"
        self.local = scheme == "file"
        self.url = (str(Path(url.removeprefix("file://")).absolute()) if self.local else url).rstrip("/")
        self.options = options
        self.patience = PATIENCE
        self._s3 = scheme in ("s3", "s3a")
        self._fs: Any = None
        self._root = self.url

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_fs": None}

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    @property
    def fs(self) -> Any:
        if self._fs is None:
            settings = {"config_kwargs": S3_CLIENT} if self._s3 else {}
            try:
                fs, root = fsspec.core.url_to_fs(self.url, **{**settings, **self.options})
            except (ValueError, ImportError) as error:
                raise UserError(f"output: cannot open {self.url!r}: {error}") from error
            if self._s3:
                fs.retries = 1  # botocore's tries are inside a request, ours around it; a third layer multiplies both
            self._fs, self._root = fs, root.rstrip("/")
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
        fs, _ = fsspec.core.url_to_fs(self.url, **self.options)  # with the tries of s3fs, as Ray has no others
        return arrow_fs.PyFileSystem(arrow_fs.FSSpecHandler(fs)), self._folder()

    def _folder(self) -> str:
        fs = self.fs  # resolves _root
        del fs
        return self._root

    def sub(self, prefix: str) -> "Store":
        """The store of the keys under prefix."""
        below = Store(f"{self.url}/{prefix}", **self.options)
        below.patience = self.patience
        return below

    def _patiently(self, doing: str, key: str, attempt: Callable[[], T]) -> T:
        """The attempt's result, tried again with growing delays while its error is transient; then StoreError."""
        started = time.monotonic()
        for tries, delay in enumerate(delays(), 1):
            try:
                return attempt()
            except Exception as error:
                if self.local or not transient(error):
                    raise
                spent = time.monotonic() - started
                if spent + delay > self.patience:
                    raise StoreError(
                        f"{self.url}: cannot {doing} {key!r}: tried {tries} times in {spent:.0f} s, "
                        f"the last answer: {words(error)}"
                    ) from error
                if tries == 1:
                    log.warning(
                        "%s: cannot %s %r yet, trying for %.0f s: %s",
                        self.url, doing, key, self.patience, words(error),
                    )  # fmt: skip
            time.sleep(delay)
        raise AssertionError("delays() has no end")

    @property
    def _limit(self) -> dict[str, float]:
        return {"timeout": LONGEST_ATTEMPT} if isinstance(self.fs, AsyncFileSystem) else {}

    def read(self, key: str) -> bytes:
        """The object's bytes; FileNotFoundError where there is none."""
        return self._patiently("read", key, self._reader(key))

    def _reader(self, key: str) -> Callable[[], bytes]:
        path = self._path(key)
        # One request, not a HEAD and ranges: cheaper, and an object replaced meanwhile is not read half old, half new.
        whole = {"max_concurrency": 1} if self._s3 else {}
        return lambda: self.fs.cat_file(path, **whole, **self._limit)

    def read_or_none(self, key: str) -> bytes | None:
        try:
            return self.read(key)
        except FileNotFoundError:
            return None

    def exists(self, key: str) -> bool:
        path = self._path(key)

        def look() -> bool:
            self.fs.invalidate_cache()  # a listing kept from before another machine's write would answer for the store
            try:
                self.fs.info(path, **self._limit)  # fs.exists takes any error for "no" on some file systems
            except FileNotFoundError:
                return False
            return True

        return self._patiently("look for", key, look)

    def list(self, prefix: str = "") -> Iterator[str]:
        """Keys under prefix (a folder), sorted; nothing where there is no such folder."""
        folder = self._path(prefix) if prefix else self._folder()

        def find() -> Any:
            self.fs.invalidate_cache()
            return self.fs.find(folder, **self._limit)

        for path in sorted(self._patiently("list", prefix, find)):
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

        def create() -> None:
            if self.local:
                _publish(Path(path), data, os.link)
            else:
                self.fs.pipe_file(path, data, mode="create", **self._limit)

        try:
            self._patiently("create", key, create)
        except Exception as error:
            held = self._held_after(error, key)
            if held is None:
                raise
            return held == data
        return True

    def replace(self, key: str, data: bytes) -> None:
        """Write or overwrite a derived object, whole."""
        path = self._path(key)
        if self.local:
            _publish(Path(path), data, os.replace)
            return
        try:
            self._patiently("replace", key, lambda: self.fs.pipe_file(path, data, **self._limit))
        except Exception as error:  # the second try of a finished multipart upload, say, is told that there is none
            if self._held_after(error, key) != data:
                raise

    def _held_after(self, error: Exception, key: str) -> bytes | None:
        """What the key holds after a write that ended in error; None where it holds nothing or does not tell."""
        read = self._reader(key)
        try:
            # A store that has just used up our patience is asked once more, not for as long again.
            return read() if isinstance(error, StoreError) else self._patiently("read back", key, read)
        except Exception as unread:
            log.debug("%s: %r is not read back: %s", self.url, key, unread)
            return None

    def delete(self, key: str) -> None:
        """Remove an object; for `busray gc` and for superseded checkpoints only."""
        path = self._path(key)
        self._patiently("delete", key, lambda: self.fs.rm_file(path, **self._limit))


def _publish(path: Path, data: bytes, publish: Callable[[Path, Path], None]) -> None:
    """Give path its name and its bytes at once, on the disk when this returns.

    publish is os.link (refused where there is such a name; O_EXCL alone would publish the name first) or os.replace.
    """
    unmade = [folder for folder in path.parents if not folder.exists()]
    temporary = _temporary(path, data)
    try:
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    for folder in (path.parent, *(folder.parent for folder in unmade)):
        _sync(folder)


def _sync(folder: Path) -> None:
    """A name is on the disk once its folder is: without this a power cut takes the object and leaves its record."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that know no such thing
            raise
    finally:
        os.close(handle)


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
