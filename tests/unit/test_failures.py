"""What errors mean: cause, what to do, exit status, whether the same command can help; the log."""

import errno
import os
import pickle
import socket
import ssl
import stat
import sys
from pathlib import Path
from typing import Any

import botocore.exceptions as boto
import pytest

from busray.failures import cause_in_words, explain, is_device_error, is_transient, write_log
from busray.records import Damaged, Stopped, StoppedForGood, StoreError, UserError


def system_error(number: int, file: str | None = "/data/x") -> OSError:
    return OSError(number, os.strerror(number), file)


def answer(status: int, code: str) -> boto.ClientError:
    response: Any = {"Error": {"Code": code, "Message": "so it says"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return boto.ClientError(response, "GetObject")


def caused_by(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


class OutOfMemoryError(Exception):
    """As torch and Ray call theirs."""


class WorkerCrashedError(Exception):
    """As Ray's."""


class Task(Exception):
    """As Ray's RayTaskError: its text is a worker's traceback, its cause what the worker raised."""

    def __init__(self, cause: Exception, ip: str = "127.0.0.1") -> None:
        super().__init__(
            "ray::task()\nTraceback (most recent call last):\n  File x\nOSError: see DataContext.max_errors"
        )
        self.cause, self.ip = cause, ip


class Trained(Exception):
    """As Ray Train's TrainingFailedError."""

    def __init__(self, cause: Exception) -> None:
        super().__init__("Training failed due to worker errors:\nset FailureConfig")
        self.worker_failures = {0: cause}


FULL = "/data/x: No space left on device"
KNOWN: dict[str, tuple[Exception, int, str, str, bool]] = {
    "full disk": (system_error(errno.ENOSPC), 1, FULL, "free space", True),
    "full disk without a name": (system_error(errno.ENOSPC, None), 1, "No space left on device", "free space", True),
    "quota": (system_error(errno.EDQUOT), 1, "/data/x", "quota", True),
    "read-only": (system_error(errno.EROFS), 2, "/data/x: Read-only file system", "another place", False),
    "no right": (system_error(errno.EACCES), 2, "/data/x: Permission denied", "right", False),
    "open files": (system_error(errno.EMFILE), 1, "/data/x: Too many open files", "ulimit -n", True),
    "a loop": (system_error(errno.ELOOP), 2, "/data/x", "symbolic link", False),
    "pathlib's loop": (RuntimeError("Symlink loop from '/x'"), 2, "'/x'", "symbolic link", False),
    "a file as folder": (system_error(errno.ENOTDIR), 2, "/data/x: Not a directory", "file stands", False),
    "a folder as file": (system_error(errno.EISDIR), 2, "/data/x: Is a directory", "folder stands", False),
    "long name": (system_error(errno.ENAMETOOLONG), 2, "File name too long", "shorter", False),
    "file too large": (system_error(errno.EFBIG), 1, "File too large", "ulimit -f", True),
    "broken disk": (system_error(errno.EIO), 1, "Input/output error", "dmesg", False),
    "no processes": (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), 1, "unavailable", "-u", True),
    "socket path": (OSError("AF_UNIX path length cannot exceed 107 bytes: '/t/r'"), 2, "/t/r", "TMPDIR", False),
    "no home": (RuntimeError("Could not determine home directory."), 2, "home", "HOME", False),
    "no temporary folder": (
        FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']"), 2, "/tmp", "TMPDIR", False,
    ),
    "NUL in a path": (ValueError("embedded null byte"), 2, "NUL", "path", False),
    "memory": (MemoryError(), 1, "out of memory", "batch_size", True),
    "torch's memory": (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), 1,
                       "out of memory", "batch_size", True),
    "the GPU's memory": (OutOfMemoryError("CUDA out of memory. Tried to allocate"), 1, "out of memory", "batch", True),
    "a Rust library": (Exception("I/O error: No space left on device (os error 28)"), 1, "No space", "free", True),
    "a C library": (Exception("[Errno 28] Error writing bytes to file"), 1, "[Errno 28] Error writing", "free", True),
    "a package": (ImportError("No module named 'torch'"), 1, "No module named 'torch'", "install", False),
    "no keys": (boto.NoCredentialsError(), 2, "Unable to locate credentials", "AWS_ACCESS_KEY_ID", False),
    "half a key": (boto.PartialCredentialsError(provider="env", cred_var="x"), 2, "Partial", "AWS_ACCESS", False),
    "a profile": (boto.ProfileNotFound(profile="lab"), 2, "(lab) could not be found", "AWS_PROFILE", False),
    "single sign-on": (boto.UnauthorizedSSOTokenError(), 2, "expired", "aws sso login", False),
    "a region": (boto.NoRegionError(), 2, "region", "AWS_DEFAULT_REGION", False),
    "a broken config": (boto.ConfigParseError(path="/c"), 2, "/c", "correct", False),
    "an endpoint": (ValueError("Invalid endpoint: minio:9000"), 2, "minio:9000", "http://HOST", False),
    "403": (caused_by(PermissionError("Forbidden"), answer(403, "403")), 2, "403: so it says", "s3:GetObject", False),
    "AccessDenied": (answer(403, "AccessDenied"), 2, "403 AccessDenied", "busray doctor", False),
    "wrong keys": (answer(403, "SignatureDoesNotMatch"), 2, "SignatureDoesNotMatch", "keys", False),
    "old keys": (answer(400, "ExpiredToken"), 1, "ExpiredToken", "get new ones", True),
    "other region": (answer(301, "PermanentRedirect"), 2, "301", "AWS_DEFAULT_REGION", False),
    "no bucket": (caused_by(FileNotFoundError("x"), answer(404, "NoSuchBucket")), 2, "NoSuchBucket", "create", False),
    "the clock": (answer(403, "RequestTimeTooSkewed"), 2, "Skewed", "clock", False),
    "full store": (answer(507, "InsufficientStorage"), 1, "507", "full", True),
    "no endpoint": (boto.EndpointConnectionError(endpoint_url="http://h"), 1, "http://h", "network", True),
    "no certificate": (boto.SSLError(endpoint_url="https://h", error="self-signed"), 1, "self-signed", "network", True),
    "ssl": (ssl.SSLError(1, "certificate verify failed"), 1, "certificate verify", "network", True),
    "DNS": (socket.gaierror(-2, "Name or service not known"), 1, "Name or service", "network", True),
    "refused": (ConnectionRefusedError(111, "Connection refused"), 1, "refused", "network", True),
    "time": (TimeoutError("timed out"), 1, "timed out", "network", True),
    "no answer": (StoreError("s3://b: cannot read 'k': tried 4 times"), 1, "tried 4 times", "AWS_ENDPOINT", True),
    "a mistake": (UserError("seed: negative"), 2, "seed: negative", "", False),
    "a lost worker": (caused_by(Stopped("draw: gone"), WorkerCrashedError("killed")), 1, "draw: gone", "", True),
    "stalled": (Stopped("draw: nothing moved for 20 s"), 1, "nothing moved", "", True),
    "for good": (StoppedForGood("too few images", "draw others"), 1, "too few images", "draw others", False),
    "damage": (Damaged("run.json is damaged", "run `busray repair /r`"), 1, "run.json is damaged", "repair", False),
    "a worker's disk": (
        caused_by(Stopped(f"draw: {FULL}"), Task(system_error(errno.ENOSPC))), 1, f"draw: {FULL}", "free space", True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KNOWN)
def test_an_error_says_its_cause_and_what_to_do(name: str) -> None:
    error, status, what, fix, again = KNOWN[name]
    failure = explain(error)
    assert what in failure.what and fix in failure.fix and bool(failure.fix) == bool(fix)
    assert (failure.status, failure.again, failure.is_known) == (status, again, True)


def test_the_innermost_cause_of_a_worker_is_said_and_its_node() -> None:
    full = system_error(errno.ENOSPC)
    assert cause_in_words(Task(full)) == FULL
    assert cause_in_words(Task(full, ip="10.0.0.7")) == f"on node 10.0.0.7: {FULL}"
    assert cause_in_words(Trained(full)) == FULL
    assert cause_in_words(caused_by(RuntimeError("try DataContext"), Task(full))) == FULL
    assert cause_in_words(Task(RuntimeError("odd"))) == "RuntimeError: odd"


def test_an_unknown_error_is_busrays_own_and_does_not_ask_for_another_try() -> None:
    try:
        Path("x").joinpath(3)  # type: ignore[arg-type]
    except TypeError as error:
        failure = explain(caused_by(Stopped("draw: odd"), error))
        assert not failure.is_known and not failure.again and failure.status == 1
        assert "busray itself, TypeError" in explain(error).what


def test_a_circle_of_causes_ends() -> None:
    one, other = RuntimeError("one"), RuntimeError("other")
    one.__cause__, other.__cause__ = other, one
    assert not explain(one).is_known


def test_a_damage_travels_to_the_driver_with_its_fix() -> None:
    again = pickle.loads(pickle.dumps(Damaged("x is damaged", "mend it")))  # noqa: S301
    assert (str(again), again.fix) == ("x is damaged", "mend it")
    assert isinstance(again, ValueError)


def raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:
        return caught


def test_the_log_has_the_traceback_and_is_private(tmp_path: Path) -> None:
    place = tmp_path / "ray.log"
    place.write_text("Ray's own\n")
    place.chmod(0o644)
    written, why = write_log(raised(RuntimeError("odd")), "busray run c.yaml", place)
    assert (written, why) == (place, "")
    text = place.read_text()
    assert text.startswith("Ray's own\n----") and "busray run c.yaml" in text
    assert "Traceback (most recent call last)" in text and "RuntimeError: odd" in text
    assert stat.S_IMODE(place.stat().st_mode) == 0o600


def test_the_log_lies_among_the_temporary_files_where_its_place_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "link").symlink_to(tmp_path / "victim")
    for place in (None, tmp_path / "no folder" / "ray.log", tmp_path / "link"):
        written, _ = write_log(raised(RuntimeError("odd")), "busray", place)
        assert written is not None and written.parent == tmp_path and written.name.startswith("busray-")
        assert stat.S_IMODE(written.stat().st_mode) == 0o600
    assert not (tmp_path / "victim").exists()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    written, why = write_log(RuntimeError("odd"), "busray", None)
    assert written is None and why == "No such file or directory"


def test_secrets_and_values_of_the_data_are_neither_said_nor_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted/Secret+012345")
    url = "https://b.s3.amazonaws.com/x?X-Amz-Signature=abc123&sig=s1&n=1"
    texts = {
        "secret": RuntimeError("sent planted/Secret+012345 to AKIAPLANTED0000EXAMPLE"),
        "url": ConnectionError(f"cannot reach {url} nor s3://user:password1@host/x"),
        "look-up": KeyError("Mustermann^Erika"),
        "conversion": ValueError("invalid literal for int() with base 10: 'Mustermann^Erika'"),
        "remote": Task(RuntimeError("x")),
    }
    texts["remote"].args = ("Traceback (most recent call last):\n  File x\nKeyError: 'Mustermann^Erika'",)
    for name, error in texts.items():
        written, _ = write_log(raised(error), "busray", tmp_path / name)
        assert written is not None
        for text in (written.read_text(), explain(error).what, cause_in_words(error)):
            for secret in ("planted/Secret", "AKIAPLANTED", "abc123", "s1&", "password1", "Mustermann"):
                assert secret not in text, (name, text)


def test_every_fix_is_for_an_error_that_the_system_has() -> None:
    from busray.failures import LOCAL_FIXES, MISTAKES, NETWORK

    assert LOCAL_FIXES.keys() >= MISTAKES and not NETWORK & LOCAL_FIXES.keys()
    assert sys.platform.startswith("linux") or all(number in errno.errorcode for number in LOCAL_FIXES)


class Hub(OSError):
    """As requests' and httpx' errors: they keep the answer."""

    def __init__(self, status: int) -> None:
        super().__init__(f"{status} of huggingface.co")
        self.response = type("Response", (), {"status_code": status})()


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (Hub(429), True),
        (Hub(503), True),
        (Hub(401), False),
        (caused_by(OSError("cannot load the model"), Hub(429)), True),
        (answer(503, "SlowDown"), True),
        (answer(403, "AccessDenied"), False),
        (StoreError("the store failed"), True),
        (ConnectionResetError(errno.ECONNRESET, "reset"), True),
        (system_error(errno.ENOSPC), False),
        (ValueError("odd"), False),
    ],
)
def test_a_load_that_may_succeed_later_is_known(error: Exception, again: bool) -> None:
    assert is_transient(error) is again


def test_a_busy_hub_while_another_error_is_handled_is_known() -> None:
    try:
        try:
            raise Hub(429)
        except OSError:
            raise OSError("cannot find the file in the cache")  # noqa: B904 (as libraries do)
    except OSError as error:
        assert is_transient(error)


@pytest.mark.parametrize(
    ("words", "broken"),
    [
        ("CUDA error: uncorrectable ECC error encountered", True),
        ("CUDA error: device-side assert triggered", True),
        ("CUDA error: unspecified launch failure", True),
        ("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR", True),
        ("Can't initialize NVML", True),
        ("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED", False),
        ("shape '[2, 3]' is invalid for input of size 5", False),
    ],
)
def test_a_broken_device_is_told_from_a_wrong_program(words: str, broken: bool) -> None:
    error = RuntimeError(words)
    assert is_device_error(error) is broken
    assert ("the GPU failed" in explain(error).what) is broken


def test_a_hubs_limit_is_named_with_what_to_do() -> None:
    failure = explain(caused_by(OSError("cannot load"), Hub(429)))
    assert "429" in failure.what and "base.path" in failure.fix and failure.again
