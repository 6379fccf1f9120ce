"""Whether a store can hold a run: `busray doctor`, and the short check when a run starts.

The whole design needs one property: the *store* refuses to create a key that exists. Some S3
servers ignore the condition (If-None-Match) and overwrite silently, so it is tried. The checks
write temporary objects under a fresh name and remove them.
"""

import secrets
import shlex
import threading
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from busray.failures import explain
from busray.records import StoreError, UserError
from busray.storage import Store, describe_error, store_answer

PROBE_RETRY_SECONDS = 30.0
"""How long `examine` retries: far less than a run, so that a wrong address is reported soon."""
ROUNDS = 5
"""Times that each check of consistency is repeated: a store that fails only sometimes is found."""
CREATORS = 8
"""Threads that create one key at the same moment, in each round of the race."""


@dataclass(frozen=True)
class _Maker:
    """How the maker of a kind of store names things."""

    actions: dict[str, str]  # check -> the permission that it needs
    keys: str  # how a user gives credentials


AWS = _Maker(
    {"write": "s3:PutObject", "read": "s3:GetObject", "list": "s3:ListBucket", "delete": "s3:DeleteObject"},
    "set AWS_ACCESS_KEY_ID and its like, or give a role",
)
GOOGLE = _Maker(
    {
        "write": "storage.objects.create",
        "read": "storage.objects.get",
        "list": "storage.objects.list",
        "delete": "storage.objects.delete",
    },
    "run `gcloud auth application-default login`, or give the machine a service account",
)
# The role Storage Blob Data Contributor has them all.
MICROSOFT = _Maker(
    {"write": "blobs/write", "read": "blobs/read", "list": "blobs/read", "delete": "blobs/delete"},
    "set AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY, or give the machine a managed identity",
)
MAKERS = {
    "s3": AWS, "s3a": AWS, "gs": GOOGLE, "gcs": GOOGLE,
    "az": MICROSOFT, "abfs": MICROSOFT, "abfss": MICROSOFT,
}  # fmt: skip
"""Scheme -> maker."""
KEYS_REFUSED = (
    "AuthenticationFailed",
    "Invalid Credentials",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "RequestTimeTooSkewed",
)
NO_KEYS = (
    "DefaultCredentialsError",
    "RefreshError",
    "ClientAuthenticationError",
    "NoCredentialsError",
    "PartialCredentialsError",
    "CredentialRetrievalError",
    "TokenRetrievalError",
)

TWICE = "two drivers of one run would overwrite each other's records silently"
SAFE_STORE = (
    "use a store that honours If-None-Match on writes, such as AWS S3, Google Cloud Storage or Azure Blob Storage, "
    "or a folder on a local disk"
)
ANOTHER_STORE = "use another store: a run on this one cannot know which shards are done"


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    check: str  # what is checked, such as `refuses to create an object twice`
    passed: bool | None  # None: not tried, because something that it needs failed
    seen: str
    fix: str = ""


def require_create_only(store: Store) -> None:
    """UserError unless the store creates an object, refuses to create it again, and deletes it;
    StoreError if it does not answer. It takes 4 requests."""
    key = f"doctor-{secrets.token_hex(8)}"
    doing = "write"
    if store.looks_then_writes:
        seen = "its client looks for an object and then writes it"
        raise UserError(f"output: {store.url} is unsafe: {seen}, so that {TWICE}; {SAFE_STORE}")
    try:
        store.put_once(key, b"first")
        created_twice = store.put_once(key, b"second")
        doing = "delete"
        store.delete(key)
    except Exception as error:
        if explain(error).again:
            raise  # a full disk, no answer: the user made no mistake, and the same command may work later
        seen, fix = _explain(store, doing, error)
        raise UserError(f"output: {store.url}: {seen}; {fix}") from error
    if created_twice:
        raise UserError(
            f"output: {store.url} is unsafe: it lets an object be created twice, so that {TWICE}; "
            f"{SAFE_STORE} (`busray doctor {shlex.quote(store.url)}` tells more)"
        )


def examine(store: Store) -> list[Finding]:
    """Run every check on temporary objects; failures are returned, never raised."""
    # A fresh folder: another doctor at the same time must not meet these objects.
    probe = store.sub(f"doctor-{secrets.token_hex(8)}")
    probe.retry_seconds = PROBE_RETRY_SECONDS
    deepest = Path(probe.url, "listed")  # of what a check creates on a local disk
    folders = (deepest, *deepest.parents) if probe.local else ()
    new_folders = [folder for folder in folders if not folder.exists()]
    findings: dict[str, Finding] = {}
    answers = True
    try:
        for name, check in STORE_CHECKS.items():
            if answers and all(findings[need].passed for need in check.needs):
                findings[name], answers = _run_check(probe, name, check)
            else:
                findings[name] = Finding(_title(store, name), None, "not tried")
    finally:
        _clean_up(probe, new_folders)
    # The user has to remove what the doctor could not: say where it is.
    refused = findings["delete"]
    if findings["write"].passed and not refused.passed:
        seen = f"{refused.seen}; its objects stay under {probe.url}"
        findings["delete"] = replace(refused, seen=seen)
    return list(findings.values())


def complaint(store: Store, findings: Collection[Finding]) -> str | None:
    """One message with every failed check and how to fix it; None if none failed."""
    failed = [finding for finding in findings if finding.passed is False]
    if not failed:
        return None
    seen = [f"  {finding.check}: {finding.seen}" for finding in failed]
    fixes = dict.fromkeys(f"fix: {finding.fix}" for finding in failed if finding.fix)  # each once
    return "\n".join([f"{store.url} is not fit for a run:", *seen, *fixes])


def unproven(store: Store) -> str | None:
    """What these checks cannot prove of this store; None where its maker promises it."""
    if store.decides_alone:
        return None
    return (
        f"of two writers at the same moment exactly one wins. In {ROUNDS} rounds of {CREATORS} writers it was so, "
        "but a server that looks for an object and then writes it can pass by luck. AWS S3, Google Cloud "
        "Storage and Azure Blob Storage promise it; of other servers ask the maker (If-None-Match on PutObject, "
        "atomic). Until you know, start one command at a time on a run"
    )


class _Failed(Exception):
    """A check failed; the message says what was seen."""


def _may_delete(probe: Store) -> None:
    with suppress(FileNotFoundError):
        probe.delete("never-written")


def _reads_back(probe: Store) -> None:
    for i in range(ROUNDS):
        data = secrets.token_bytes(1024)
        probe.put_once(f"read-{i}", data)
        if probe.read_or_none(f"read-{i}") != data:
            raise _Failed("an object that was just written is not there, or holds other bytes")


def _creates_once(probe: Store) -> None:
    if probe.looks_then_writes:
        seen = "its client looks for an object and then writes it: another writer fits in between"
        raise _Failed(f"{seen}, so that {TWICE}, and no test can prove that it does not happen")
    probe.put_once("created", b"first")
    if probe.put_once("created", b"second"):
        seen = "an object was created twice: the store ignores the condition If-None-Match"
        raise _Failed(f"{seen}, so that {TWICE}")
    if probe.read_or_none("created") != b"first":
        raise _Failed("the second creation was refused and yet changed the object")


def _one_wins(probe: Store) -> None:
    """Writers at once: a server that looks first and writes later passes `_creates_once`."""
    for i in range(ROUNDS):
        start = threading.Barrier(CREATORS)

        def create(creator: int, key: str = f"race-{i}", start: threading.Barrier = start) -> bool:
            start.wait()
            return probe.put_once(key, b"creator %d" % creator)

        # All threads pass the barrier together, so that their requests overlap on the server.
        with ThreadPoolExecutor(CREATORS) as pool:
            created = list(pool.map(create, range(CREATORS)))
        if sum(created) != 1:
            seen = f"{sum(created)} of {CREATORS} creators of one object"
            raise _Failed(f"{seen} got the answer that theirs is kept")
        if probe.read_or_none(f"race-{i}") != b"creator %d" % created.index(True):
            raise _Failed("the object is not the one whose creator got the answer that it is kept")


def _lists_at_once(probe: Store) -> None:
    for i in range(ROUNDS):
        probe.put_once(f"listed/{i}", b"x")
        if f"listed/{i}" not in list(probe.list("listed")):
            raise _Failed("a listing does not show an object that was just written")


def _replaces(probe: Store) -> None:
    probe.replace("replaced", b"old")
    probe.replace("replaced", b"new")
    if probe.read_or_none("replaced") != b"new":
        raise _Failed("an object that was replaced still gives its old bytes")


def _deletes(probe: Store) -> None:
    probe.put_once("deleted", b"x")
    probe.delete("deleted")
    if probe.read_or_none("deleted") is not None:
        raise _Failed("an object that was deleted is still read")
    if "deleted" in list(probe.list()):
        raise _Failed("an object that was deleted is still listed")


@dataclass(frozen=True)
class _Check:
    title: str
    run: Callable[[Store], object]  # raises _Failed, or the error of the store's operation
    needs: tuple[str, ...] = ()  # permissions whose lack would only be reported again
    fix: str = ANOTHER_STORE


ROUND_TRIP = ("write", "read")

STORE_CHECKS = {
    "write": _Check("may write", lambda probe: probe.put_once("written", b"first")),
    # If writing failed, the answer "no such object" too shows that reading is allowed.
    "read": _Check("may read", lambda probe: probe.read_or_none("written")),
    "list": _Check("may list", lambda probe: list(probe.list())),
    "delete": _Check("may delete", _may_delete),
    "read after write": _Check("reads back what was just written", _reads_back, ROUND_TRIP),
    "create only": _Check("refuses to create an object twice", _creates_once, ROUND_TRIP, SAFE_STORE),
    "race": _Check(f"of {CREATORS} creators at once, one wins", _one_wins, ROUND_TRIP, SAFE_STORE),
    "listing": _Check("lists a new object at once", _lists_at_once, ("write", "list")),
    "replace": _Check("replaces an object", _replaces, ROUND_TRIP),
    "gone": _Check("a deleted object is gone", _deletes, ("write", "read", "list", "delete")),
}
"""In the order in which they run."""


def _title(store: Store, name: str) -> str:
    title, action = STORE_CHECKS[name].title, _action(store, name)
    return f"{title} ({action})" if action else title


def _action(store: Store, name: str) -> str | None:
    """The permission that a check needs, as the store's maker calls it."""
    maker = _maker(store)
    return maker.actions.get(name) if maker else None


def _maker(store: Store) -> _Maker | None:
    return MAKERS.get(store.url.partition("://")[0])


def _run_check(probe: Store, name: str, check: _Check) -> tuple[Finding, bool]:
    """The finding, and whether the store answers: if not, further checks would only wait."""
    title = _title(probe, name)
    try:
        check.run(probe)
    except _Failed as failed:
        return Finding(title, False, str(failed), check.fix), True
    except Exception as error:
        no_answer = isinstance(error, (StoreError, FileNotFoundError))
        answers = not no_answer and type(error).__name__ not in NO_KEYS
        return Finding(title, False, *_explain(probe, name, error)), answers
    return Finding(title, True, "yes"), True


def _explain(store: Store, doing: str, error: Exception) -> tuple[str, str]:
    """(what was seen, how to fix it) for an error that the store or its client raised."""
    text, failure = describe_error(error), explain(error)
    if store.local:
        fix = "choose a folder that you may write to, on a file system with hard links"
        return (failure.what if failure.is_known else text), fix
    # S3 answers wrong keys with 403 too; that must not look like a missing permission.
    if any(code in text for code in KEYS_REFUSED) or type(error).__name__ in NO_KEYS:
        fix = (_maker(store) or AWS).keys
        return f"the keys are missing or not accepted ({text})", fix
    # gcsfs says Forbidden in an error of its own, Azure by the status alone.
    refused = "Forbidden:" in text or (store_answer(error) or (0,))[0] == 403
    if isinstance(error, PermissionError) or refused:
        action = _action(store, doing) or "a permission"
        fix = f"allow {action} in the bucket's or the role's policy"
        return f"no permission {action} ({text})", fix
    if isinstance(error, FileNotFoundError):
        return f"no such bucket ({text})", "create the bucket, or fix its name"
    if isinstance(error, StoreError):
        return str(error), "check the store's address (AWS_ENDPOINT_URL_S3) and that it is up"
    return (failure.what, failure.fix) if failure.fix else (text, ANOTHER_STORE)


def _clean_up(probe: Store, new_folders: list[Path]) -> None:
    # By name and not by a listing, which may be forbidden or late.
    keys = ["written", "created", "replaced", "deleted"]
    for i in range(ROUNDS):
        keys += [f"read-{i}", f"race-{i}", f"listed/{i}"]
    for key in keys:
        try:
            probe.delete(key)
        except FileNotFoundError:
            continue
        except Exception:
            break  # the store may not delete or does not answer: both are findings already
    with suppress(Exception):  # a store that mixes up concurrent writers may show an object again
        for key in list(probe.list()):
            probe.delete(key)
    for folder in new_folders:
        with suppress(OSError):  # another process uses the folder now
            folder.rmdir()
