"""Store: the only code that touches a URL or a path of a run.

An object is written whole or not at all. `put_once` never overwrites one: of two writers of a key
the first wins, and both learn which. `replace` is for derived files only (manifest, reports).

What figures come from is written by `put_checked`, or by `put_named` where the key itself has the
digest. The SHA-256 is put first, under digests/, so no crash leaves an object without it.
`read_checked` and `read_record` refuse other bytes. What an older busray stored has no digest and
is read as it is; `busray verify --evidence` counts it.

Object storage may answer late, twice or not at all, so there are two layers of retries. botocore
retries each request within seconds. Around it, Store retries the whole operation for RETRY_SECONDS
and then raises StoreError. A local disk is asked once.
"""

import errno
import inspect
import logging
import os
import random
import secrets
import shlex
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import fsspec
from fsspec.asyn import AsyncFileSystem
from fsspec.spec import AbstractFileSystem

from busray.identity import sha256_bytes
from busray.layout import CONFIG, DIGESTS, digest_key, left_by_a_system
from busray.records import Damaged, StoreError, UserError

T = TypeVar("T")
R = TypeVar("R")

log = logging.getLogger(__name__)

TEMPORARY_PREFIX = ".tmp-"  # of unfinished files on a local disk; no listing shows them
RETRY_SECONDS = 600.0
"""How long an operation is retried: 40 refusals in a row fit in, with room for slow answers."""
LONGEST_ATTEMPT = 600.0
"""Seconds after which an attempt is given up: a dead connection must not block a worker."""
FIRST_DELAY = 0.5
"""Most seconds before the second attempt; doubled before each further one, up to LONGEST_DELAY."""
LONGEST_DELAY = 10.0

REQUEST_THREADS = 32
"""Requests of one process at once, where it has many small ones to make."""
RESULTS_AHEAD = 512
"""Most results of `in_threads` that wait for their consumer."""
FEW_KEYS = 32
"""Objects of one folder that are looked for one by one; more are looked for in a listing."""

S3_CLIENT = {
    "connect_timeout": 10,
    "read_timeout": 60,
    "retries": {"mode": "standard", "total_max_attempts": 3},
    "max_pool_connections": REQUEST_THREADS,  # botocore's 10 would let the other threads wait
}
"""botocore's settings (seconds, attempts) for one request, such as a page of a listing."""

TRANSIENT_STATUS = {408, 429, 500, 502, 503, 504}
OTHER_NETWORK_ERRORS = {
    ("requests.exceptions", "ConnectionError"),
    ("requests.exceptions", "Timeout"),
    ("google.auth.exceptions", "TransportError"),
    ("azure.core.exceptions", "ServiceRequestError"),
    ("azure.core.exceptions", "ServiceResponseError"),
}
"""Errors of gs:// and az:// that mean no answer, by name: their clients may be missing here."""
TRANSIENT_CODES = {"ConditionalRequestConflict", "IncompleteBody", "OperationAborted", "RequestTimeout", "SlowDown"}
"""S3's error codes to retry whose HTTP status (400, 409) also has permanent errors."""


def retry_delays(first: float = FIRST_DELAY, most: float = LONGEST_DELAY) -> Iterator[float]:
    """Seconds to wait before each further attempt, without end: exponential back-off, jittered."""
    longest = first
    while True:
        # Jitter: workers that were throttled at the same moment must not return at the same one.
        yield random.uniform(longest / 2, longest)
        longest = min(2 * longest, most)


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later: no answer, a server error, throttling, another
    conditional write of the key in flight. Answers are not retried: no such object, an existing one
    (412), a missing permission."""
    from aiohttp import ClientError as NetworkError
    from botocore import exceptions as boto

    answer = store_answer(error)
    if answer is not None:
        return answer[0] in TRANSIENT_STATUS or answer[1] in TRANSIENT_CODES
    # Refused and closed connections, timeouts, broken bodies.
    connection = (TimeoutError, ConnectionError, boto.HTTPClientError, boto.ConnectionError)
    body = (NetworkError, boto.IncompleteReadError, boto.FlexibleChecksumError)
    if any((kind.__module__, kind.__name__) in OTHER_NETWORK_ERRORS for kind in type(error).__mro__):
        return True
    busy = (errno.EBUSY, errno.EREMOTEIO)  # s3fs's for SlowDown and InternalError
    return isinstance(error, connection + body) or getattr(error, "errno", None) in busy


def store_answer(error: BaseException) -> tuple[int, str, str] | None:
    """(HTTP status, the store's code, its message) if the store answered; else None."""
    cause, seen = error, set[int]()
    while cause is not None and id(cause) not in seen:  # s3fs translates botocore's errors and keeps them as the cause
        response = getattr(cause, "response", None)
        if isinstance(response, dict) and "Error" in response:
            answer, metadata = response["Error"], response.get("ResponseMetadata", {})
            status = metadata.get("HTTPStatusCode", 0)
            return status, answer.get("Code", ""), answer.get("Message", "")
        # gcsfs's HttpError has `code`, Azure's HttpResponseError `status_code`.
        status = getattr(cause, "status_code", None) or getattr(cause, "code", None)
        if isinstance(status, int | str) and str(status).isdigit() and 300 <= int(status) < 600:
            message = str(getattr(cause, "message", cause)).splitlines()
            return int(status), str(getattr(cause, "error_code", None) or ""), message[0] if message else ""
        seen.add(id(cause))
        cause = cause.__cause__
    return None


def describe_error(error: BaseException) -> str:
    """An error in one line for people; the store's own message if it answered."""
    answer, text = store_answer(error), f"{type(error).__name__}: {error}"
    if answer:
        status, code, message = answer
        # The answer to a HEAD request has no body: S3's code is then the status again.
        text = f"{status}: {message}" if code in (str(status), "") else f"{status} {code}: {message}"
    return " ".join(text.split()).rstrip(": ")[:300]


class Store:
    """A folder of objects: a local directory or any fsspec URL (s3://bucket/prefix). Keys use `/`.
    A Store can be pickled for a worker; each process opens its own connection. Every operation may
    raise StoreError after `retry_seconds` without success."""

    def __init__(self, url: str, **options: Any) -> None:
        scheme = url.partition("://")[0].lower() if "://" in url else "file"
        self.local = scheme == "file"
        if self.local:
            url = str(Path(url.removeprefix("file://")).absolute())
        self.url = url.rstrip("/")
        self.options = options
        self.retry_seconds = RETRY_SECONDS
        self._s3 = scheme in ("s3", "s3a")
        self._fs: Any = None
        self._root = self.url

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_fs": None}

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    @property
    def fs(self) -> Any:
        """The fsspec file system, opened at first use. UserError if the URL cannot be opened."""
        if self._fs is None:
            settings = {"config_kwargs": S3_CLIENT} if self._s3 else {}
            try:
                fs, root = fsspec.core.url_to_fs(self.url, **{**settings, **self.options})
            except (ValueError, ImportError) as error:
                raise UserError(f"output: cannot open {self.url!r}: {error}") from error
            if self._s3:
                # botocore retries inside a request and Store around the operation: a third layer
                # between them would multiply both.
                fs.retries = 1
            self._fs, self._root = fs, root.rstrip("/")
        return self._fs

    @property
    def looks_then_writes(self) -> bool:
        """Whether fsspec imitates creation (it looks for the object, then writes), so that two
        writers at once can both win. A server's own fault is not seen here."""
        return not self.local and self._create_only is None

    @property
    def _create_only(self) -> dict[str, Any] | None:
        """How the file system is told to create an object and never to overwrite one; None where it
        can only be imitated."""
        kind = type(self.fs)
        if not isinstance(self.fs, AsyncFileSystem):
            return None if kind.pipe_file is AbstractFileSystem.pipe_file else {"mode": "create"}
        options = inspect.signature(kind._pipe_file).parameters
        if "mode" in options:
            return {"mode": "create"}
        return {"overwrite": False} if "overwrite" in options else None  # adlfs

    @property
    def decides_alone(self) -> bool:
        """Whether the maker of the store promises that one of two writers at once wins: a local
        disk, Google Cloud Storage, Azure Blob Storage, and S3 at Amazon's own addresses."""
        if self.local or self.url.startswith(("gs://", "gcs://", "az://", "abfs://", "abfss://")):
            return True
        if not self._s3:
            return False
        client = getattr(self.fs, "_s3", None)  # known after the first request
        host = urlsplit(client.meta.endpoint_url).hostname if client is not None else None
        return (host or "").endswith((".amazonaws.com", ".amazonaws.com.cn"))

    def _folder(self) -> str:
        """The folder's path as fsspec names it, known once the file system is open."""
        _ = self.fs  # opening it sets _root
        return self._root

    def _path(self, key: str) -> str:
        if any(part in ("", ".", "..") for part in key.split("/")):
            raise ValueError(f"not a key: {key!r}")
        return f"{self._folder()}/{key}"

    def arrow(self) -> tuple[Any, str]:
        """(pyarrow file system, path in it) of this folder, for Ray's own bookkeeping."""
        from pyarrow import fs as arrow_fs

        if self.local:
            return arrow_fs.LocalFileSystem(), self._folder()
        # Ray does not retry by itself, so this file system keeps the retries of s3fs.
        fs, _ = fsspec.core.url_to_fs(self.url, **self.options)
        return arrow_fs.PyFileSystem(arrow_fs.FSSpecHandler(fs)), self._folder()

    def sub(self, prefix: str) -> "Store":
        """The store of the keys under prefix."""
        store = Store(f"{self.url}/{prefix}", **self.options)
        store.retry_seconds = self.retry_seconds
        return store

    def _with_retries(self, doing: str, key: str, attempt: Callable[[], T]) -> T:
        """attempt()'s result; retried while its error is transient, then StoreError."""
        started = time.monotonic()
        for tries, delay in enumerate(retry_delays(), 1):
            try:
                return attempt()
            except Exception as error:
                if self.local or not is_transient(error):
                    raise
                elapsed = time.monotonic() - started
                if elapsed + delay > self.retry_seconds:
                    tried = f"tried {tries} times in {elapsed:.0f} s"
                    answer = f"the last answer: {describe_error(error)}"
                    failed = f"{self.url}: cannot {doing} {key!r}"
                    raise StoreError(f"{failed}: {tried}, {answer}") from error
                if tries == 1:  # one line per wait, not per attempt
                    waiting = f"trying for {self.retry_seconds:.0f} s: {describe_error(error)}"
                    log.warning("%s: cannot %s %r yet, %s", self.url, doing, key, waiting)
            time.sleep(delay)
        raise AssertionError("retry_delays() has no end")

    @property
    def _limit(self) -> dict[str, float]:
        return {"timeout": LONGEST_ATTEMPT} if isinstance(self.fs, AsyncFileSystem) else {}

    def read(self, key: str) -> bytes:
        """The object's bytes; FileNotFoundError if there is none."""
        return self._with_retries("read", key, self._reader(key))

    def _reader(self, key: str) -> Callable[[], bytes]:
        path = self._path(key)
        # One request and not a HEAD and ranges: it is cheaper, and an object that is replaced
        # meanwhile cannot be read half old and half new.
        whole = {"max_concurrency": 1} if self._s3 else {}
        if self.local:
            return partial(self._read_local, key, path)
        return lambda: self.fs.cat_file(path, **whole, **self._limit)

    def _read_local(self, key: str, path: str) -> bytes:
        """The file's bytes. Damaged where something else stands in its place: a pipe would be
        waited for without end."""
        try:
            kind = os.stat(path).st_mode
            if stat.S_ISREG(kind):
                return self.fs.cat_file(path)
        except OSError as error:
            if error.errno != errno.ELOOP or not os.path.islink(path):  # a folder of the run may loop
                raise
            raise self.damaged(key, "a symbolic link to itself stands in its place") from error
        raise self.damaged(key, f"{'a folder' if stat.S_ISDIR(kind) else 'no file'} stands in its place")

    def read_or_none(self, key: str) -> bytes | None:
        """The object's bytes, or None if there is no such object."""
        try:
            return self.read(key)
        except FileNotFoundError:
            return None

    def exists(self, key: str) -> bool:
        """Whether there is an object of this key, by a request and never by a cached listing."""
        path = self._path(key)

        def info() -> None:
            if self._s3:
                # fs.info() would also list, where there is no object: it may be a folder.
                bucket, name, _ = self.fs.split_path(path)
                self.fs.call_s3("head_object", Bucket=bucket, Key=name, **self._limit)
                return
            self.fs.invalidate_cache()  # a cached listing may lack another machine's write
            # fs.exists() takes any error for "no" on some file systems; info() does not.
            self.fs.info(path, **self._limit)

        try:
            self._with_retries("look for", key, info)
        except FileNotFoundError:
            return False
        return True

    def list(self, prefix: str = "") -> Iterator[str]:
        """Keys under prefix (a folder), sorted; nothing if there is no such folder."""
        folder = self._path(prefix) if prefix else self._folder()

        def find() -> Any:
            if self.local:
                return _files_under(folder)
            self.fs.invalidate_cache()
            return self.fs.find(folder, **self._limit)

        for path in sorted(self._with_retries("list", prefix, find)):
            key = path[len(self._root) :].lstrip("/")
            if not _is_stray(key):
                yield key

    def modified(self, prefix: str) -> dict[str, float | None]:
        """key -> when it was last written, in Unix seconds by the store's clock, of the keys under
        prefix; None where the store does not say. One listing, as list()."""
        folder = self._path(prefix)

        def find() -> dict[str, Any]:
            if self.local:
                return {path: {"mtime": _mtime_or_none(path)} for path in _files_under(folder)}
            self.fs.invalidate_cache()
            return self.fs.find(folder, detail=True, **self._limit)

        times: dict[str, float | None] = {}
        for path, info in sorted(self._with_retries("list", prefix, find).items()):
            key = path[len(self._root) :].lstrip("/")
            if not _is_stray(key):
                times[key] = _written_at(info)
        return times

    def present(self, keys: Iterable[str]) -> set[str]:
        """Those of the keys that have an object. Requests grow with the pages of listings and not
        with the keys: one listing of each folder that many of them lie in."""
        by_folder: dict[str, list[str]] = {}
        for key in keys:
            by_folder.setdefault(key.rpartition("/")[0], []).append(key)
        there: set[str] = set()
        few: list[str] = []
        for folder, wanted in by_folder.items():
            if len(wanted) <= FEW_KEYS:
                few += wanted
            else:
                there |= set(wanted).intersection(self.list(folder))
        return there.union(key for key, found in zip(few, in_threads(self.exists, few)) if found)

    def folders(self, prefix: str) -> Sequence[str]:
        """Names of the folders directly under prefix, sorted. What lies in them is not listed."""
        path = self._path(prefix)

        def look() -> Sequence[str]:
            if self.local:
                return [entry.name for entry in os.scandir(path) if entry.is_dir()]
            self.fs.invalidate_cache()
            entries = self.fs.ls(path, detail=True, **self._limit)
            return [entry["name"].rstrip("/").rpartition("/")[2] for entry in entries if entry["type"] == "directory"]

        try:
            return sorted(name for name in self._with_retries("list", prefix, look) if not left_by_a_system(name))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def put_once(self, key: str, data: bytes) -> bool:
        """Create the object. True if the key now has these bytes, False if another writer's."""
        if not data:
            why = "empty objects do not count as existing"
            raise ValueError(f"refusing to write the empty object {key!r}: {why}")
        path = self._path(key)

        def create() -> None:
            if self.local:
                _publish(Path(path), data, os.link)
            else:
                # If-None-Match: *, so that the server decides. A look before the write would leave
                # a gap in which another machine can write.
                self.fs.pipe_file(path, data, **(self._create_only or {"mode": "create"}), **self._limit)

        try:
            self._with_retries("create", key, create)
        except Exception as error:
            # The answer to a write that succeeded may be lost, and some servers report "exists" in
            # an error of their own: what the key holds now decides.
            stored = self._read_after(error, key)
            if stored is None:
                raise
            return stored == data
        return True

    def replace(self, key: str, data: bytes) -> None:
        """Write or overwrite a derived object, whole."""
        path = self._path(key)
        if self.local:
            _publish(Path(path), data, os.replace)
            return
        try:
            self._with_retries("replace", key, lambda: self.fs.pipe_file(path, data, **self._limit))
        except Exception as error:
            # The retry of a multipart upload that had succeeded fails with "no such upload".
            if self._read_after(error, key) != data:
                raise

    def put_named(self, key: str, data: bytes) -> None:
        """Create an object whose key has its digest. Damaged if the key has other bytes: then
        these are not what their name says, since equal names mean equal bytes."""
        if not self.put_once(key, data):
            raise self.damaged(key, "it holds other bytes than those that its name stands for")

    def put_checked(self, key: str, data: bytes) -> bool:
        """As put_once, for an object that read_checked compares with its SHA-256."""
        # The object may be an older busray's, without a digest. It must not get that of `data`.
        if self.exists(key):
            return self.read(key) == data
        self._put_digest(key, data)
        return self.put_once(key, data)

    def replace_checked(self, key: str, data: bytes) -> None:
        """As replace, for an object that read_checked compares with its SHA-256. An older busray's
        object has no digest, and gets none."""
        if self.digests(key) or not self.exists(key):
            self._put_digest(key, data)
        self.replace(key, data)

    def _put_digest(self, key: str, data: bytes) -> None:
        digest = sha256_bytes(data)
        self.put_once(digest_key(key, digest), f"{digest}\n".encode())

    def has_digests(self) -> bool:
        """Whether this run's first record has a digest. Then all that is checked has one."""
        return bool(self.digests(CONFIG))

    def digests(self, key: str) -> set[str]:
        """The SHA-256 of each object that was put under this key with a digest."""
        return {name.rpartition("/")[2] for name in self.list(f"{DIGESTS}/{key}")}

    def digests_below(self, prefix: str) -> dict[str, set[str]]:
        """key -> its digests, of everything under prefix, by one listing. See read_checked."""
        known: dict[str, set[str]] = {}
        for name in self.list(f"{DIGESTS}/{prefix}"):
            key, _, digest = name.removeprefix(f"{DIGESTS}/").rpartition("/")
            known.setdefault(key, set()).add(digest)
        return known

    def read_checked(self, key: str, known: Mapping[str, set[str]] | None = None) -> bytes:
        """The object's bytes. Damaged where they are not those that were put. FileNotFoundError.

        known: of digests_below. It saves a request for each object that is read.
        """
        data = self.read(key)
        digest = sha256_bytes(data)
        # Nothing at all has a digest in a run that an older busray wrote.
        if known is not None and (not known or digest in known.get(key, ())):
            return data
        # The object may be newer than the listing: ask.
        if not self.exists(digest_key(key, digest)) and self.digests(key):
            raise self.damaged(key, f"it is not what was stored (its SHA-256 is now {digest[:16]}...)")
        return data

    def read_record(self, key: str, parse: Callable[[bytes], T], known: Mapping[str, set[str]] | None = None) -> T:
        """parse(the object's bytes). FileNotFoundError if there is none. Damaged where they are not
        what was stored, or no record: cut, empty, or with other fields. known: see read_checked."""
        return self.parsed(key, self.read_checked(key, known), parse)

    def read_record_or_none(self, key: str, parse: Callable[[bytes], T]) -> T | None:
        """As read_record; None if there is no such object."""
        try:
            return self.read_record(key, parse)
        except FileNotFoundError:
            return None

    def parsed(self, key: str, data: bytes, parse: Callable[[bytes], T]) -> T:
        """parse(data); Damaged, with the object's name, where parse fails on it."""
        try:
            return parse(data)
        except Damaged:
            raise
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            seen = "it is empty"
            if data.strip():
                seen = f"its {len(data)} bytes cannot be read: {' '.join(str(error).split())[:200]}"
            raise self.damaged(key, seen) from error

    def damaged(self, key: str, reason: str) -> Damaged:
        """The error that names an object, what is wrong with it, and the command that helps."""
        run = self.url.rpartition("/arms/")[0] or self.url
        fix = f"`busray repair {shlex.quote(run)}` says what is damaged, moves it aside and says what makes it again"
        error = Damaged(f"{self.url}/{key} is damaged: {reason}", fix)
        error.key, error.reason = key, reason
        return error

    def move(self, key: str, to: str) -> None:
        """Give an object another key. Only `busray repair` does."""
        source, target = self._path(key), self._path(to)

        def rename() -> None:
            if self.local:
                Path(target).parent.mkdir(parents=True, exist_ok=True)
                if os.path.isdir(source) and not os.path.islink(source):  # in the place of an object
                    os.rename(source, target)  # of folders, onto an empty one at most
                    return
                os.link(source, target)  # unlike a rename, it never overwrites
                os.unlink(source)
                return
            try:
                self.fs.cp_file(source, target, **self._limit)
                self.fs.rm_file(source, **self._limit)
            except FileNotFoundError:
                # The answer to the first attempt was lost: it is done if the target is there.
                self.fs.info(target, **self._limit)

        self._with_retries("move", key, rename)

    def _read_after(self, error: Exception, key: str) -> bytes | None:
        """The key's bytes after a failed write; None if it has none or cannot be read."""
        read = self._reader(key)
        try:
            # After a StoreError the time for retries is used up: read once more, without retries.
            return read() if isinstance(error, StoreError) else self._with_retries("read back", key, read)
        except Exception as read_error:
            log.debug("%s: %r is not read back: %s", self.url, key, read_error)
            return None

    def delete(self, key: str) -> None:
        """Remove an object. Only `busray gc` does, and doctor.py its own test objects."""
        path = self._path(key)
        self._with_retries("delete", key, lambda: self.fs.rm_file(path, **self._limit))


WRITTEN_AT = ("LastModified", "last_modified", "mtime", "updated", "created")
"""What file systems call the time of the last writing: S3, Azure, disks, Google Cloud, memory."""


def _written_at(info: Mapping[str, Any]) -> float | None:
    """Unix seconds of a listing's entry."""
    for name in WRITTEN_AT:
        value = info.get(name)
        if isinstance(value, str):
            with suppress(ValueError):
                value = datetime.fromisoformat(value)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, int | float):
            return float(value)
    return None


def _mtime_or_none(path: str) -> float | None:
    try:
        return os.stat(path).st_mtime
    except FileNotFoundError:  # moved since it was listed
        return None


def in_threads(work: Callable[[T], R], items: Sequence[T], threads: int = REQUEST_THREADS) -> Iterator[R]:
    """work(item) of each item, in order. At most RESULTS_AHEAD results are in memory."""
    if not items:
        return
    with ThreadPoolExecutor(min(threads, len(items))) as pool:
        for start in range(0, len(items), RESULTS_AHEAD):
            yield from pool.map(work, items[start : start + RESULTS_AHEAD])


def _is_stray(key: str) -> bool:
    """Whether a key is no object: an unfinished file, or one that an operating system left."""
    parts = key.split("/")
    return parts[-1].startswith(TEMPORARY_PREFIX) or any(map(left_by_a_system, parts))


def _publish(path: Path, data: bytes, publish: Callable[[Path, Path], None]) -> None:
    """Write data under another name, then give it the name `path`; on the disk when this returns.
    publish is os.link, which fails if the name exists, or os.replace, which overwrites."""
    # Not open(path, O_EXCL): the name would be visible before the bytes are there.
    new_folders = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile: its files do not follow the umask.
    temporary = path.parent / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"
    try:
        with naming(path):
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            publish(temporary, path)
    finally:
        with suppress(OSError):  # the error above says why
            temporary.unlink(missing_ok=True)
    for folder in (path.parent, *(folder.parent for folder in new_folders)):
        _sync(folder)


def _files_under(folder: str) -> list[str]:
    """Paths of all files; a folder that may not be read is an error. fsspec would leave it out, and
    its objects would count as missing."""

    def fail(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    paths: list[str] = []
    for parent, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        folders[:] = [name for name in folders if not _leads_back(parent, name)]
        paths += [f"{parent}/{name}" for name in names]
    return paths


def _leads_back(parent: str, name: str) -> bool:
    """Whether a folder is a link to one that it lies in: a walk would not end."""
    path = f"{parent}/{name}"
    return os.path.islink(path) and f"{os.path.realpath(parent)}/".startswith(f"{os.path.realpath(path)}/")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An error of the system in the block names this file: writing to an open file names none."""
    try:
        yield
    except OSError as error:
        if not isinstance(error, FileExistsError):  # put_once asks what is there
            error.filename, error.filename2 = str(path), None
        raise


def _sync(folder: Path) -> None:
    """Flush a folder's names: a power cut must not lose an object whose later record is kept."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some file systems cannot sync a folder.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)
