"""What an error means to the person at the terminal: one message, what to do, the exit status.

Libraries wrap an error several times and add advice of their own. The outermost error that is
known here decides; the whole chain goes to a log.
"""

import builtins
import errno
import os
import re
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from busray import __version__
from busray.records import HubError, Stopped, StoppedForGood, StoreError, UserError
from busray.storage import describe_error, store_answer
from busray.storage import is_transient as store_error_is_transient

MISTAKE, FAILED = 2, 1
"""Exit status: something that the user gave is wrong; something failed."""


@dataclass(frozen=True)
class Failure:
    """An error, explained."""

    what: str  # what happened, where, and the innermost cause
    fix: str = ""  # what to do first
    status: int = FAILED
    again: bool = False  # the same command can help, after the fix
    is_known: bool = True  # False: no cause outside busray was found, so it is busray's own error


def explain(error: BaseException) -> Failure:
    """The failure that an error is; of a chain, its outermost known error."""
    for link in _chain(error):
        if isinstance(link, UserError):
            return Failure(str(link), status=MISTAKE)
        if isinstance(link, StoppedForGood):
            return Failure(str(link), link.fix)
        if isinstance(link, Stopped):
            return _stopped(link)
        known = _known(link)
        if known is not None:
            return known
    last = [link for link in _chain(error)][-1]
    text = plain_text(last)
    return Failure(f"an error of busray itself, {type(last).__name__}{_place(last)}: {text}", is_known=False)


def missing_folder(where: str, path: Path, fix: str = "") -> UserError:
    """The mistake that `path`, which `where` (a setting, a flag) names, is no folder. fix: what
    else to say."""
    what = f"{path} is a file: give the folder that it lies in" if path.is_file() else f"no folder {path}"
    return UserError("; ".join(filter(None, (f"{where}: {what}", fix))))


def cause_in_words(error: BaseException) -> str:
    """An error's cause in one line, with the node where that is another one."""
    failure, last = explain(error), [link for link in _chain(error)][-1]
    words = failure.what if failure.is_known else f"{type(last).__name__}: {plain_text(last)}{_place(last)}"
    nodes = [getattr(link, "ip", None) for link in _chain(error)]
    node = next((ip for ip in nodes if isinstance(ip, str) and not ip.startswith("127.")), None)
    return f"on node {node}: {words}" if node else words


def _stopped(error: Stopped) -> Failure:
    """Its own words, with the fix of what it came from."""
    text = str(error)
    if isinstance(error, StoreError):
        fix = "check the store's address (AWS_ENDPOINT_URL_S3 for S3), the network, and that the store is up"
        return Failure(text, fix, again=True)
    if isinstance(error, HubError):
        return Failure(text, error.fix, again=True)
    cause = error.__cause__
    if cause is None:
        return Failure(text, again=True)
    inner = explain(cause)
    return Failure(text, inner.fix, again=inner.again, is_known=inner.is_known)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error, what it came from, and so on; Ray keeps a worker's error as `cause`."""
    found: list[BaseException] = [error]
    while found and len(found) < 50:
        link = found[-1]
        yield link
        inner = _inside(link)
        if inner is None or any(inner is seen for seen in found):
            return
        found.append(inner)


def _inside(error: BaseException) -> BaseException | None:
    workers = getattr(error, "worker_failures", None)  # of Ray Train: rank -> error
    candidates: list[Any] = [
        getattr(error, "cause", None),
        getattr(error, "error", None),  # of cluster.liveness.WorkError
        error.__cause__,
        *(workers.values() if isinstance(workers, dict) else ()),
    ]
    return next((inner for inner in candidates if isinstance(inner, BaseException)), None)


# ---- known errors ----

LOCAL_FIXES = {
    errno.ENOSPC: "free space on that disk, or choose a place on another one",
    errno.EDQUOT: "your quota on that disk is used up: free space there, or choose a place on another one",
    errno.EFBIG: "raise the limit of a file's size (`ulimit -f unlimited`), or choose a disk that takes larger files",
    errno.EROFS: "that disk can only be read: choose another place",
    errno.EACCES: "give your user the right to it (`ls -ld` shows who has it), or choose another place",
    errno.EPERM: "give your user the right to it (`ls -ld` shows who has it), or choose another place",
    errno.EMFILE: "raise the limit of open files, such as `ulimit -n 65536`",
    errno.ENFILE: "the machine has too many files open: end other programs",
    errno.ENOMEM: "end other programs, or give the machine more memory",
    errno.EAGAIN: "the machine starts no more processes or threads: raise `ulimit -u`, or end other programs",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "a symbolic link there leads to itself: remove it, or name what it should lead to",
    errno.ENOTDIR: "a file stands where a folder is needed: move it, or choose another place",
    errno.EISDIR: "a folder stands where a file is needed: move it, or choose another place",
    errno.ENOENT: "check its name and the folder that it is in",
    errno.EEXIST: "move it away, or choose another place",
    errno.EIO: "the disk or its connection failed: see the system's log (`dmesg`)",
    errno.ESTALE: "the network disk was lost: mount it again",
    errno.EBUSY: "another program uses it: end that program",
    errno.EINVAL: "choose another name or place",
    errno.EXDEV: "choose a place that is on one disk",
    errno.ENOTSUP: "that file system lacks what is needed, such as hard links: choose a place on a local disk",
    errno.EMLINK: "that file system allows no more hard links: choose a place on another disk",
}
MISTAKES = {
    errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR,
    errno.ENOENT, errno.EEXIST, errno.EINVAL, errno.EXDEV, errno.ENOTSUP,
}  # fmt: skip
"""What is wrong with a place that the user named; the others are failures of the machine."""
FOR_GOOD = {errno.EIO}
"""The same command will not help before somebody repaired the machine."""
NETWORK = {
    errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE, errno.ETIMEDOUT, errno.EHOSTUNREACH,
    errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTDOWN,
}  # fmt: skip
NETWORK_FIX = "check the network, the address, and that the other side is up"
MEMORY_FIX = "lower sampling.batch_size, adapters.batch_size or cluster.actors, or end other programs"

KEY_FIX = (
    "give keys that the store accepts: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile (AWS_PROFILE), or a role"
)
CREDENTIALS = {
    "NoCredentialsError": KEY_FIX,
    "PartialCredentialsError": KEY_FIX,
    "CredentialRetrievalError": KEY_FIX,
    "MetadataRetrievalError": KEY_FIX,
    "ProfileNotFound": "set AWS_PROFILE to a profile of ~/.aws/config (`aws configure list-profiles`), or unset it",
    "ConfigNotFound": "set AWS_CONFIG_FILE to a file that is there, or unset it",
    "ConfigParseError": "correct that file, or set AWS_CONFIG_FILE to another one",
    "InvalidConfigError": "correct ~/.aws/config",
    "NoRegionError": "set AWS_DEFAULT_REGION",
    "InvalidRegionError": "correct AWS_DEFAULT_REGION",
    "ParamValidationError": "check the bucket's name: s3://BUCKET/FOLDER",
    "UnauthorizedSSOTokenError": "sign in again: `aws sso login`",
    "SSOTokenLoadError": "sign in first: `aws sso login`",
    "TokenRetrievalError": "sign in again: `aws sso login`",
    "LoginTokenLoadError": "sign in again: `aws login`",
    "InvalidProxiesConfigError": "correct the proxy's settings (HTTPS_PROXY)",
    "MissingDependencyException": "install what it names beside busray, or use keys that need no extra package",
    "DefaultCredentialsError": "sign in first: `gcloud auth application-default login`",
    "RefreshError": "sign in again: `gcloud auth application-default login`",
}
"""Errors of the stores' clients that come before any request, by class."""
CODES = {
    "ExpiredToken": "the session of these keys has ended: get new ones",
    "ExpiredTokenException": "the session of these keys has ended: get new ones",
    "TokenRefreshRequired": "the session of these keys has ended: get new ones",
    "RequestExpired": "the session of these keys has ended: get new ones",
    "InvalidToken": KEY_FIX,
    "InvalidAccessKeyId": KEY_FIX,
    "InvalidClientTokenId": KEY_FIX,
    "UnrecognizedClientException": KEY_FIX,
    "SignatureDoesNotMatch": KEY_FIX,
    "RequestTimeTooSkewed": "set this machine's clock",
    "AccessDenied": "allow this user s3:GetObject, PutObject, ListBucket and DeleteObject there; see `busray doctor`",
    "NoSuchBucket": "create the bucket, or correct its name",
    "InvalidBucketName": "correct the bucket's name: s3://BUCKET/FOLDER",
    "PermanentRedirect": "the bucket is in another region: set AWS_DEFAULT_REGION to it",
    "AuthorizationHeaderMalformed": "the bucket is in another region: set AWS_DEFAULT_REGION to it",
    "IllegalLocationConstraintException": "the bucket is in another region: set AWS_DEFAULT_REGION to it",
    "InvalidObjectState": "the object is archived: restore it first",
    "QuotaExceeded": "the store is full: free space there",
    "XMinioStorageFull": "the store is full: free space there",
    "InsufficientStorage": "the store is full: free space there",
}
"""What to do about a store's answer, by S3's code."""
STATUS_FIXES = {
    301: CODES["PermanentRedirect"],
    400: "check the address and the keys; the store in another region answers so too (AWS_DEFAULT_REGION)",
    401: KEY_FIX,
    403: CODES["AccessDenied"],
    404: CODES["NoSuchBucket"],
    507: CODES["QuotaExceeded"],
}
"""The same where the answer has no code, as that to a HEAD request."""
FAILURES_OF_STORE = {
    "ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired", "QuotaExceeded",
    "XMinioStorageFull", "InsufficientStorage",
}  # fmt: skip
"""Codes that a right setting can meet in the middle of work."""

LOST = {
    "WorkerCrashedError", "ActorDiedError", "ActorUnavailableError", "NodeDiedError", "ObjectLostError",
    "ObjectReconstructionFailedError", "OwnerDiedError", "LocalRayletDiedError", "RaySystemError", "RpcError",
    "ActorUnschedulableError", "ObjectFetchTimedOutError", "GetTimeoutError",
}  # fmt: skip
"""Ray's errors for a worker or a node that is gone."""
FEWEST_FILES = 1024
"""Open files that Ray's programs may need on one machine."""
NO_MEMORY = re.compile(r"can't allocate memory|[Cc]annot allocate memory|out of memory|bad_alloc|Unable to allocate")
ERRNO = re.compile(r"(?:[Ee]rrno |os error )(\d+)")
DEVICE = re.compile(
    r"CUDA error|HIP error|device-side assert|unspecified launch failure|ECC error|illegal memory access"
    r"|(?:CUDNN|CUBLAS|CUSOLVER|CUSPARSE)_STATUS_(?:INTERNAL_ERROR|EXECUTION_FAILED|MAPPING_ERROR|NOT_INITIALIZED)"
    r"|NVML|GPU is lost|fallen off the bus|no CUDA-capable device|CUDA driver|CUDA unknown error"
)
"""What CUDA and its libraries say when the GPU is broken or lost, and not only out of memory."""
DEVICE_FIX = (
    "look at that machine's GPU (`nvidia-smi -q -d ECC`, Xid in `dmesg`) and take it out of the cluster; "
    "if every machine says so, the driver or the model's code is to blame"
)
COMPILE_FIX = "draw without it (sampling.compile=false), or give that machine a C compiler (gcc, g++) and triton"
BUSY_STATUS = {408, 425, 429, 500, 502, 503, 504}
"""HTTP answers that mean: later."""
SOCKET_PATH = "AF_UNIX path"


def _known(error: BaseException) -> Failure | None:
    """The failure that one error of a chain is by itself; None where it could be busray's fault."""
    name, text = type(error).__name__, plain_text(error)
    if isinstance(error, MemoryError) or name == "OutOfMemoryError" or NO_MEMORY.search(text):
        said = f" ({text})" if text else ""
        return Failure(f"out of memory{said}", MEMORY_FIX, again=True)
    if is_device_error(error):
        return Failure(f"the GPU failed: {text}", DEVICE_FIX, again=True)
    if is_compile_error(error):
        return Failure(f"torch.compile failed: {text}", COMPILE_FIX)
    busy = next((inner for inner in _causes(error) if _http_status(inner) in BUSY_STATUS), None)
    if busy is not None:
        fix = "wait, or give base.path as a folder that all machines have"
        return Failure(f"a server is busy or limits requests: {plain_text(busy)}", fix, again=True)
    if SOCKET_PATH in text:
        fix = "set TMPDIR to a shorter path, such as TMPDIR=/tmp: Ray's sockets lie below it"
        return Failure(f"the path of the temporary files is too long ({text})", fix, MISTAKE)
    if name == "OutOfDiskError":
        return Failure("Ray's disk is full: No space left on device", LOCAL_FIXES[errno.ENOSPC], again=True)
    if name in LOST:
        return Failure(f"a worker or its node was lost ({name}: {text})", _limit_of_files(), again=True)
    if name in CREDENTIALS:
        return Failure(f"no access to the store: {describe_error(error)}", CREDENTIALS[name], MISTAKE)
    answer = store_answer(error)
    if answer is not None:
        return _answered(error, *answer)
    if text.startswith("Invalid endpoint"):  # botocore's, of AWS_ENDPOINT_URL without a scheme
        return Failure(text, "write the address as http://HOST:PORT or https://HOST (AWS_ENDPOINT_URL)", MISTAKE)
    if isinstance(error, ImportError):
        fix = "install busray with its packages again, such as `pip install --force-reinstall busray`"
        return Failure(f"a package is missing or broken: {text}", fix)
    if "Symlink loop" in text:  # pathlib's, up to Python 3.12
        return Failure(text, LOCAL_FIXES[errno.ELOOP], MISTAKE)
    if "embedded null" in text:
        return Failure(f"a path with a NUL character ({text})", "correct the path", MISTAKE)
    if "determine home directory" in text:
        return Failure("there is no home folder", "set HOME to a folder that you may write to", MISTAKE)
    if "No usable temporary directory" in text:
        return Failure(text, "set TMPDIR to a folder that you may write to", MISTAKE)
    if isinstance(error, OSError):
        return _system_error(error, text)
    number = ERRNO.search(text)  # libraries in C and Rust say it in words only
    if number:
        return _system_error(OSError(int(number[1]), os.strerror(int(number[1]))), text)
    if _of_network(error):
        return Failure(f"no connection: {describe_error(error)}", NETWORK_FIX, again=True)
    return None


def is_device_error(error: BaseException) -> bool:
    """Whether a GPU is broken or lost: whatever this process does with it next fails too."""
    name = type(error).__name__
    return name == "AcceleratorError" or (isinstance(error, RuntimeError) and DEVICE.search(str(error)) is not None)


def is_compile_error(error: BaseException) -> bool:
    """Whether torch.compile failed on this machine."""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))


def is_transient(error: BaseException) -> bool:
    """Whether the same load may succeed later: a busy hub or store, a network that failed."""
    for link in _causes(error):
        status = _http_status(link)
        if status is not None and store_answer(link) is None:
            return status in BUSY_STATUS
        if isinstance(link, StoreError) or store_error_is_transient(link):
            return True
        if isinstance(link, OSError) and (link.errno in NETWORK or _is_network_lookup(link)):
            return True
        if _of_network(link) and store_answer(link) is None:
            return True
    return False


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what it arose from or while handling; libraries do not always say `from`."""
    link: BaseException | None = error
    seen: list[BaseException] = []
    while link is not None and link not in seen:
        yield link
        seen.append(link)
        link = _inside(link) or link.__context__


def _http_status(error: BaseException) -> int | None:
    """The status of an HTTP answer that requests, httpx or urllib raised, else None."""
    status = getattr(getattr(error, "response", None), "status_code", None) or getattr(error, "code", None)
    return status if isinstance(status, int) and 400 <= status < 600 else None


def _limit_of_files() -> str:
    """What to do about a limit of open files at which Ray's own programs die; else empty."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = soft != resource.RLIM_INFINITY and soft < FEWEST_FILES
    return f"a process may open {soft} files, too few for Ray: {LOCAL_FIXES[errno.EMFILE]}" if few else ""


def _answered(error: BaseException, status: int, code: str, message: str) -> Failure:
    """What a store answered."""
    fix = CODES.get(code) or STATUS_FIXES.get(status)
    later = code in FAILURES_OF_STORE or status in (500, 502, 503, 504, 507) or fix is None
    what = f"the store answered {describe_error(error)}"
    return Failure(what, fix or NETWORK_FIX, FAILED if later else MISTAKE, again=later)


def _of_network(error: BaseException) -> bool:
    library = type(error).__module__.partition(".")[0]
    libraries = ("botocore", "aiobotocore", "aiohttp", "urllib3", "requests", "httpx", "httpcore", "grpc", "http")
    return library in libraries or isinstance(error, ConnectionError | TimeoutError)


def _system_error(error: OSError, text: str) -> Failure:
    """An error of the operating system: file, reason, and what to do about it."""
    number = _number(error)
    if number in NETWORK or _is_network_lookup(error) or _of_network(error):
        return Failure(f"no connection: {text}", NETWORK_FIX, again=True)
    if number not in LOCAL_FIXES:
        return Failure(text)
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    reason = error.strerror or os.strerror(number)
    what = f"{' and '.join(names)}: {reason}" if names else text
    status = MISTAKE if number in MISTAKES else FAILED
    return Failure(what, LOCAL_FIXES[number], status, again=status == FAILED and number not in FOR_GOOD)


def _number(error: OSError) -> int:
    """errno; it is missing where a library raises PermissionError("...") itself."""
    by_class = {
        PermissionError: errno.EACCES,
        FileNotFoundError: errno.ENOENT,
        FileExistsError: errno.EEXIST,
        NotADirectoryError: errno.ENOTDIR,
        IsADirectoryError: errno.EISDIR,
        ConnectionRefusedError: errno.ECONNREFUSED,
        BrokenPipeError: errno.EPIPE,
    }
    found = ERRNO.search(str(error))
    said = int(found[1]) if found else by_class.get(type(error), 0)
    return error.errno if isinstance(error.errno, int) else said


def _is_network_lookup(error: OSError) -> bool:
    import socket
    import ssl
    import urllib.error

    lookups = (socket.gaierror, socket.herror, ssl.SSLError, urllib.error.URLError, ConnectionError, TimeoutError)
    return isinstance(error, lookups)


# ---- words ----

QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
SECRET_NAME = re.compile(r"KEY|SECRET|TOKEN|PASSW|CREDENTIAL", re.IGNORECASE)
SECRETS = re.compile(
    r"(?P<name>(?:X-Amz-[A-Za-z-]+|[?&](?:sig|signature|access_token|token|key|password))=)[^&\s'\"]+"
    r"|(?P<scheme>://)[^/\s@'\"]+:[^/\s@'\"]+@"
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{12,}\b",
    re.IGNORECASE,
)
VALUE_LINE = re.compile(r"^(?P<start>.*?\b(?:KeyError|ValueError|IndexError|TypeError): )(?P<text>.*)$")


def plain_text(error: BaseException) -> str:
    """An error's message in one line, without secrets and without values of the data.

    A look-up or a conversion that failed quotes the value, which may be a patient's identifier.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # What Ray says of a worker's error is the worker's traceback, which ends with its cause.
    is_traceback = any(line.startswith("Traceback (most recent") for line in lines)
    text = lines[-1 if is_traceback else 0] if lines else ""
    if isinstance(error, LookupError | ValueError) and type(error).__module__ == builtins.__name__:
        text = QUOTED.sub("'...'", text)
    return without_secrets(VALUE_LINE.sub(_without_values, text))[:400]


def without_secrets(text: str) -> str:
    """Text without keys in URLs and without the environment's keys, tokens and passwords."""
    for name, value in os.environ.items():
        if len(value) >= 8 and SECRET_NAME.search(name) and not os.path.exists(value):
            text = text.replace(value, f"[{name}]")
    return SECRETS.sub(lambda match: f"{match['name'] or match['scheme'] or ''}[secret]", text)


def _without_values(line: re.Match[str]) -> str:
    return line["start"] + QUOTED.sub("'...'", line["text"])


def _place(error: BaseException) -> str:
    """Where in busray an error began, in brackets; empty where busray is not in its traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    here = Path(__file__).parent
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(here)]
    if not ours:
        return ""
    return f" ({Path(ours[-1].filename).relative_to(here.parent)}, line {ours[-1].lineno})"


# ---- the log ----


def write_log(error: BaseException, command: str, place: Path | None) -> tuple[Path | None, str]:
    """Append an error's whole traceback to the file `place`, else to a new temporary file.

    Returns (file, ""), or (None, why none could be written). Only its owner may read the file.
    """
    lines = "".join(traceback.format_exception(error)).splitlines()
    body = "\n".join(VALUE_LINE.sub(_without_values, line) for line in lines)
    when = time.strftime("%Y-%m-%d %H:%M:%S")
    version = f"busray {__version__}, Python {sys.version.split()[0]}"
    text = without_secrets(f"---- {when}, {version}: {command}\n{body}\n")
    data, why = text.encode(errors="backslashreplace"), ""
    for file in (place, None):
        try:
            if file is None:
                handle, name = tempfile.mkstemp(prefix="busray-", suffix=".log")
                file = Path(name)
            else:
                handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            with open(handle, "ab") as log:
                os.fchmod(log.fileno(), 0o600)
                log.write(data)
            return file, ""
        except OSError as failed:
            why = failed.strerror or str(failed)
    return None, why
