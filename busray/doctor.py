"""Whether a store keeps its promises: what `busray doctor` proves, and the cheap part of it that a run does at start.

The whole design stands on one promise: the *store* refuses the second creation of a key. Some S3 servers ignore the
condition (If-None-Match) and overwrite without a word, and a look before the write would not notice. Only objects of
its own are written, under a fresh name, and removed.
"""

import secrets
import threading
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from busray.records import StoreError, UserError
from busray.storage import Store, words

PATIENCE = 30.0
"""Seconds an operation is tried by `examine`: a wrong address is told soon."""


ROUNDS = 5


CREATORS = 8
"""Threads that create one key at once, in each round of the race."""


S3_ACTIONS = {"write": "s3:PutObject", "read": "s3:GetObject", "list": "s3:ListBucket", "delete": "s3:DeleteObject"}


KEYS_REFUSED = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "RequestTimeTooSkewed")


NO_KEYS = ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "TokenRetrievalError")


TWICE = "two drivers of one run would overwrite each other's records without a word"


SAFE_STORE = "use a store that honours If-None-Match on writes, such as AWS S3, or a folder on a local disk"


ANOTHER_STORE = "use another store: a run cannot tell there what is done"


@dataclass(frozen=True)
class Finding:
    """One promise: held (True), broken (False), or not tried (None) as something that it needs is broken."""

    promise: str
    held: bool | None
    seen: str
    mend: str = ""


def require_create_only(store: Store) -> None:
    """Raise UserError unless the store creates an object, refuses to create it again, and deletes it: 4 requests.

    StoreError where it does not answer.
    """
    key = f"doctor-{secrets.token_hex(8)}"
    doing = "write"
    try:
        store.put_once(key, b"first")
        twice = store.put_once(key, b"second")
        doing = "delete"
        store.delete(key)
    except StoreError:
        raise
    except Exception as error:
        seen, mend = _failure(store, doing, error)
        raise UserError(f"output: {store.url}: {seen}; {mend}") from error
    if twice:
        raise UserError(
            f"output: {store.url} is unsafe: it lets an object be created twice, so that {TWICE}; {SAFE_STORE} "
            f"(`busray doctor {store.url}` tells more)"
        )


def examine(store: Store) -> list[Finding]:
    """Every promise, tried on objects of its own. What fails is told and not raised."""
    probe = store.sub(f"doctor-{secrets.token_hex(8)}")
    probe.patience = PATIENCE
    unmade = _unmade_folders(probe)
    findings: dict[str, Finding] = {}
    answers = True
    try:
        for name, check in CHECKS.items():
            broken = [need for need in check.needs if not findings[need].held]
            if not answers or broken:
                findings[name] = Finding(_named(store, name), None, "not tried")
                continue
            findings[name], answers = _tried(probe, name, check)
    finally:
        _clean_up(probe, unmade)
    if findings["write"].held and not findings["delete"].held:
        left = findings["delete"]
        findings["delete"] = Finding(
            left.promise, left.held, f"{left.seen}; its objects stay under {probe.url}", left.mend
        )
    return list(findings.values())


def complaint(store: Store, findings: Collection[Finding]) -> str | None:
    """One message that names everything that fails and the mend; None where all is well."""
    broken = [finding for finding in findings if finding.held is False]
    if not broken:
        return None
    lines = [f"{store.url} is not fit for a run:"]
    lines += [f"  {finding.promise}: {finding.seen}" for finding in broken]
    lines += [f"mend: {mend}" for mend in dict.fromkeys(finding.mend for finding in broken if finding.mend)]
    return "\n".join(lines)


class _Broken(Exception):
    """A promise is broken; the message says what was seen."""


def _may_write(probe: Store) -> None:
    probe.put_once("written", b"first")


def _may_read(probe: Store) -> None:
    with suppress(FileNotFoundError):  # where nothing could be written, this answer too means that reading is allowed
        probe.read("written")


def _may_list(probe: Store) -> None:
    list(probe.list())


def _may_delete(probe: Store) -> None:
    with suppress(FileNotFoundError):
        probe.delete("never-written")


def _reads_what_it_wrote(probe: Store) -> None:
    for i in range(ROUNDS):
        data = secrets.token_bytes(1024)
        probe.put_once(f"read-{i}", data)
        if probe.read_or_none(f"read-{i}") != data:
            raise _Broken("an object that was just written is not there, or holds other bytes")


def _creates_once(probe: Store) -> None:
    probe.put_once("created", b"first")
    if probe.put_once("created", b"second"):
        raise _Broken("an object was created twice: the store ignores the condition If-None-Match, so that " + TWICE)
    if probe.read_or_none("created") != b"first":
        raise _Broken("the second creation was refused and yet changed the object")


def _one_creator_wins(probe: Store) -> None:
    for i in range(ROUNDS):
        start = threading.Barrier(CREATORS)

        def create(creator: int, key: str = f"race-{i}", start: threading.Barrier = start) -> bool:
            start.wait()
            return probe.put_once(key, b"creator %d" % creator)

        with ThreadPoolExecutor(CREATORS) as pool:
            won = [creator for creator, won in enumerate(pool.map(create, range(CREATORS))) if won]
        if len(won) != 1:
            raise _Broken(f"{len(won)} of {CREATORS} creators of one object were told that theirs is kept")
        if probe.read_or_none(f"race-{i}") != b"creator %d" % won[0]:
            raise _Broken("the object is not the one whose creator was told that it is kept")


def _lists_at_once(probe: Store) -> None:
    for i in range(ROUNDS):
        probe.put_once(f"listed/{i}", b"x")
        if f"listed/{i}" not in list(probe.list("listed")):
            raise _Broken("a listing does not show an object that was just written")


def _replaces(probe: Store) -> None:
    probe.replace("replaced", b"old")
    probe.replace("replaced", b"new")
    if probe.read_or_none("replaced") != b"new":
        raise _Broken("an object that was replaced still gives its old bytes")


def _deletes(probe: Store) -> None:
    probe.put_once("deleted", b"x")
    probe.delete("deleted")
    if probe.read_or_none("deleted") is not None:
        raise _Broken("an object that was deleted is still read")
    if "deleted" in list(probe.list()):
        raise _Broken("an object that was deleted is still listed")


@dataclass(frozen=True)
class _Check:
    promise: str
    look: Callable[[Store], None]
    needs: tuple[str, ...] = ()
    mend: str = ANOTHER_STORE


CHECKS = {
    "write": _Check("may write", _may_write),
    "read": _Check("may read", _may_read),
    "list": _Check("may list", _may_list),
    "delete": _Check("may delete", _may_delete),
    "read after write": _Check("reads back what was just written", _reads_what_it_wrote, ("write", "read")),
    "create only": _Check("refuses to create an object twice", _creates_once, ("write", "read"), SAFE_STORE),
    "race": _Check(f"of {CREATORS} creators at once, one wins", _one_creator_wins, ("write", "read"), SAFE_STORE),
    "listing": _Check("lists a new object at once", _lists_at_once, ("write", "list")),
    "replace": _Check("replaces an object", _replaces, ("write", "read")),
    "gone": _Check("a deleted object is gone", _deletes, ("write", "read", "list", "delete")),
}
"""In this order; `needs` are the permissions without which a check would only tell again that they are missing."""


def _named(store: Store, name: str) -> str:
    action = S3_ACTIONS.get(name) if store.url.startswith(("s3:", "s3a:")) else None
    return f"{CHECKS[name].promise} ({action})" if action else CHECKS[name].promise


def _tried(probe: Store, name: str, check: _Check) -> tuple[Finding, bool]:
    """The finding, and whether the store is there at all: without an answer the other checks would only wait."""
    promise = _named(probe, name)
    try:
        check.look(probe)
    except _Broken as broken:
        return Finding(promise, False, str(broken), check.mend), True
    except Exception as error:
        nowhere = isinstance(error, (StoreError, FileNotFoundError)) or type(error).__name__ in NO_KEYS
        return Finding(promise, False, *_failure(probe, name, error)), not nowhere
    return Finding(promise, True, "yes"), True


def _failure(store: Store, doing: str, error: Exception) -> tuple[str, str]:
    """(what was seen, the mend) of an error that is none of the promises."""
    said = words(error)
    if store.local:
        return f"{said}", "choose a folder that you may write to, on a file system with hard links"
    if any(code in said for code in KEYS_REFUSED) or type(error).__name__ in NO_KEYS:
        return f"the keys are missing or not accepted ({said})", "set AWS_ACCESS_KEY_ID and its like, or give a role"
    if isinstance(error, PermissionError):
        action = S3_ACTIONS.get(doing, "a permission")
        return f"no permission {action} ({said})", f"allow {action} in the bucket's or the role's policy"
    if isinstance(error, FileNotFoundError):
        return f"no such bucket ({said})", "create the bucket, or mend its name"
    if isinstance(error, StoreError):
        return str(error), "check the store's address (AWS_ENDPOINT_URL_S3) and that it is up"
    return said, ANOTHER_STORE


def _unmade_folders(probe: Store) -> list[Path]:
    """On a local disk: the folders that writing the probe makes, the deepest first."""
    if not probe.local:
        return []
    return [folder for folder in (Path(probe.url, "listed"), *Path(probe.url, "listed").parents) if not folder.exists()]


def _clean_up(probe: Store, unmade: list[Path]) -> None:
    keys = ["written", "created", "replaced", "deleted"]
    keys += [f"{kind}{i}" for kind in ("read-", "race-", "listed/") for i in range(ROUNDS)]
    for key in keys:
        try:
            probe.delete(key)
        except FileNotFoundError:
            continue
        except Exception:
            break  # may not delete, or gone: both are findings by now
    with suppress(Exception):  # a store that mixes up writers at once may bring an object of the race back
        for key in list(probe.list()):
            probe.delete(key)
    for folder in unmade:
        with suppress(OSError):  # not ours alone any more
            folder.rmdir()
