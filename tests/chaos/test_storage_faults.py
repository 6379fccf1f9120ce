"""Storage that misbehaves: through the fault proxy, nothing is lost, nothing is doubled, and what
ends is said.

The waits are shortened; that the real ones are long enough is shown in
tests/unit/test_storage_retries.py.
"""

import functools
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from busray import storage
from busray.cli import main
from busray.corpus.commit import commit_shard, read_commits
from busray.corpus.encode import Row
from busray.records import ContentBox, Execution, ImageSpec, Shard, StoreError
from busray.storage import Store
from tests.support.fault_proxy import DROP, FaultProxy, Request, Rule, delay, drop, error

SHARD = Shard("benign", 0, 3)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Milliseconds in place of seconds, and one try a request, so that every try is Store's own."""
    monkeypatch.setattr(storage, "FIRST_DELAY", 0.001)
    monkeypatch.setattr(storage, "LONGEST_DELAY", 0.02)
    once = {"mode": "standard", "total_max_attempts": 1}
    monkeypatch.setattr(storage, "S3_CLIENT", {"connect_timeout": 5, "read_timeout": 20, "retries": once})


@pytest.fixture
def store(proxy: FaultProxy, bucket_url: str) -> Store:
    """Through the proxy."""
    return Store(bucket_url, endpoint_url=proxy.url)


@pytest.fixture
def witness(s3_server: str, bucket_url: str) -> Store:
    """The same folder past the proxy: what a reader elsewhere sees."""
    return Store(bucket_url, endpoint_url=s3_server)


def contents(store: Store) -> dict[str, bytes]:
    return {key: store.read(key) for key in store.list()}


def print_counts(proxy: FaultProxy) -> None:
    print({f"{method} {kind}": count for (method, kind), count in sorted(proxy.counts.items())})


# ---- every fault on every operation ----

FAULTS: dict[str, dict[str, Any]] = {
    "lost request": {"action": drop, "when": "before"},
    "lost answer": {"action": drop, "when": "after"},
    "500, nothing done": {"action": error(500, "InternalError"), "when": "before"},
    "500, yet done": {"action": error(500, "InternalError"), "when": "after"},
    "503 SlowDown": {"action": error(503, "SlowDown"), "when": "before"},
}
WRITE_FAULTS: dict[str, dict[str, Any]] = {
    "409, nothing done": {"action": error(409, "ConditionalRequestConflict"), "when": "before"},
    "409, yet done": {"action": error(409, "ConditionalRequestConflict"), "when": "after"},
    "upload cut off": {"action": drop, "when": "body"},
}
USES: dict[str, tuple[Callable[[Store], Any], Any, dict[str, bytes]]] = {
    "read": (lambda s: s.read("data/old"), b"old", {"data/old": b"old"}),
    "read nothing": (lambda s: s.read_or_none("data/none"), None, {"data/old": b"old"}),
    "list": (lambda s: list(s.list("data")), ["data/old"], {"data/old": b"old"}),
    "exists": (lambda s: s.exists("data/old"), True, {"data/old": b"old"}),
    "create": (lambda s: s.put_once("data/new", b"new"), True, {"data/old": b"old", "data/new": b"new"}),
    "create again": (lambda s: s.put_once("data/old", b"old"), True, {"data/old": b"old"}),
    "create another's": (lambda s: s.put_once("data/old", b"new"), False, {"data/old": b"old"}),
    "replace": (lambda s: s.replace("data/old", b"new"), None, {"data/old": b"new"}),
    "delete": (lambda s: s.delete("data/old"), None, {}),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_changes_neither_the_answer_nor_the_store(
    fault: str, use: str, store: Store, witness: Store, proxy: FaultProxy
) -> None:
    act, expected, left = USES[use]
    witness.replace("data/old", b"old")
    rule = proxy.add(Rule(**FAULTS[fault], times=2))
    assert act(store) == expected
    assert rule.hits == 2
    assert contents(witness) == left


@pytest.mark.parametrize("use", ["create", "create again", "create another's"])
@pytest.mark.parametrize("fault", WRITE_FAULTS)
def test_a_fault_of_a_conditional_write_changes_neither_the_answer_nor_the_store(
    fault: str, use: str, store: Store, witness: Store, proxy: FaultProxy
) -> None:
    act, expected, left = USES[use]
    witness.replace("data/old", b"old")
    rule = proxy.add(Rule(**WRITE_FAULTS[fault], method="PUT", times=2))
    assert act(store) == expected
    assert rule.hits == 2
    assert contents(witness) == left


@pytest.mark.parametrize("use", ["read", "list", "create", "create another's"])
def test_forty_slow_downs_in_a_row_are_ridden_out(
    use: str, store: Store, witness: Store, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With short pauses; tests/unit/test_storage_retries.py holds that the real ones last."""
    pauses = functools.partial(storage.retry_delays, 0.05, 0.1)
    monkeypatch.setattr(storage, "retry_delays", pauses)
    act, expected, left = USES[use]
    witness.replace("data/old", b"old")
    rule = proxy.add(Rule(error(503, "SlowDown"), times=40))
    assert act(store) == expected
    assert rule.hits == 40
    print_counts(proxy)
    assert contents(witness) == left


def test_a_slow_answer_is_waited_for(store: Store, witness: Store, proxy: FaultProxy) -> None:
    proxy.add(Rule(delay(0.5), when="after", times=None))
    assert store.put_once("data/slow", b"x") is True
    assert proxy.counts == {("PUT", "object"): 1}
    assert contents(witness) == {"data/slow": b"x"}


def test_an_answer_that_does_not_come_in_time_is_asked_for_again(
    bucket_url: str, witness: Store, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "S3_CLIENT", {**storage.S3_CLIENT, "read_timeout": 2})
    silent = proxy.add(Rule(delay(5), method="PUT", when="after", times=1))
    assert Store(bucket_url, endpoint_url=proxy.url).put_once("data/silent", b"x") is True
    assert silent.hits == 1 and proxy.counts["PUT", "object"] > 1
    print_counts(proxy)
    assert contents(witness) == {"data/silent": b"x"}


def test_a_listing_of_many_pages_is_whole_though_pages_fail(
    store: Store, witness: Store, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "5")
    keys = [f"commits/{i:04d}" for i in range(23)]
    for key in keys:
        witness.put_once(key, b"x")
    proxy.add(Rule(error(503, "SlowDown"), kind="list", times=1, skip=2))
    proxy.add(Rule(drop, kind="list", when="after", times=1, skip=4))
    assert list(store.list("commits")) == keys
    print_counts(proxy)


def test_what_the_store_refuses_for_good_is_asked_once(store: Store, proxy: FaultProxy) -> None:
    proxy.add(Rule(error(403, "AccessDenied"), times=None))
    with pytest.raises(PermissionError, match="AccessDenied"):
        store.put_once("data/x", b"x")
    assert proxy.counts == {("PUT", "object"): 1, ("GET", "object"): 1}  # and one look at what the key holds
    with pytest.raises(PermissionError):
        store.read("data/x")
    with pytest.raises(PermissionError):
        list(store.list())
    with pytest.raises(PermissionError):
        store.exists("data/x")
    with pytest.raises(PermissionError):
        store.delete("data/x")


# ---- an upload in parts ----


@pytest.fixture
def in_parts(store: Store, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Bytes that the store writes in three parts (s3fs does so from 100 MiB on; here from 10)."""
    monkeypatch.setattr(store.fs, "pipe_file", functools.partial(store.fs.pipe_file, chunksize=5 * 2**20))
    return random.Random(3).randbytes(10 * 2**20 + 1)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("step", ["first request", "a part", "last request"])
@pytest.mark.parametrize("write", ["put_once", "replace"])
def test_a_fault_of_an_upload_in_parts_leaves_the_whole_object(
    write: str, step: str, fault: str, store: Store, in_parts: bytes, witness: Store, proxy: FaultProxy
) -> None:
    method = "PUT" if step == "a part" else "POST"
    skip = 1 if step == "last request" else 0
    rule = proxy.add(Rule(**FAULTS[fault], method=method, kind="multipart", skip=skip))
    getattr(store, write)("data/large", in_parts)
    assert rule.hits == 1
    assert contents(witness) == {"data/large": in_parts}


# ---- faults that do not end ----


@pytest.mark.parametrize("use", ["read", "list", "exists", "create", "replace", "delete"])
def test_what_never_ends_is_one_clear_error(use: str, store: Store, witness: Store, proxy: FaultProxy) -> None:
    act, _, _ = USES[use]
    witness.replace("data/old", b"old")
    proxy.add(Rule(error(503, "SlowDown"), times=None))
    store.retry_seconds = 0.5
    with pytest.raises(StoreError, match=r"tried \d+ times in \d+ s, the last answer: 503") as raised:
        act(store)
    doing = {"exists": "look for"}.get(use, use)
    assert str(raised.value).startswith(f"{store.url}: cannot {doing} 'data")
    assert contents(witness) == {"data/old": b"old"}


def test_an_answer_that_never_comes_ends_too(
    store: Store, witness: Store, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that takes the request and is silent for good, with a client that would wait for
    it."""
    monkeypatch.setattr(storage, "LONGEST_ATTEMPT", 0.5)
    over = threading.Event()
    proxy.add(Rule(lambda request: over.wait(30) and DROP, times=None))
    store.retry_seconds = 0.5
    try:
        with pytest.raises(StoreError, match="cannot create 'data/x': tried 1 times"):
            store.put_once("data/x", b"x")
    finally:
        over.set()
    assert contents(witness) == {}


@pytest.mark.usefixtures("fresh_connections")
def test_the_command_ends_with_status_1_and_says_how_to_go_on(
    bucket_url: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
    monkeypatch.setattr(storage, "RETRY_SECONDS", 0.5)
    proxy.add(Rule(error(500, "InternalError"), times=None))
    assert main(["gc", bucket_url]) == 1
    said = capsys.readouterr().err
    assert f"busray: {bucket_url}: cannot read 'run.json': tried " in said
    assert f"run the same command again: busray gc {bucket_url}" in said


# ---- no loss, no duplicate ----


def test_two_drivers_over_a_faulty_store_lose_nothing_and_double_nothing(
    s3_server: str, bucket_url: str, proxy: FaultProxy
) -> None:
    """Each of 60 keys is created by both drivers with bytes of their own while a third of all
    requests go wrong."""
    chance, lock = random.Random(20261), threading.Lock()

    def sometimes(outcome: Any) -> Callable[[Request], Any]:
        def action(request: Request) -> Any:
            with lock:
                hit = chance.random() < 0.08
            return outcome(request) if hit else None

        return action

    proxy.add(Rule(sometimes(error(500, "InternalError")), times=None))
    proxy.add(Rule(sometimes(error(503, "SlowDown")), times=None))
    proxy.add(Rule(sometimes(error(409, "ConditionalRequestConflict")), method="PUT", times=None))
    proxy.add(Rule(sometimes(drop), when="before", times=None))
    proxy.add(Rule(sometimes(drop), when="after", times=None))
    proxy.add(Rule(sometimes(delay(0.05)), when="after", times=None))
    keys = [f"commits/{i:04d}" for i in range(60)]
    drivers = [Store(bucket_url, endpoint_url=proxy.url) for _ in range(2)]

    def create(job: tuple[int, str]) -> bool:
        driver, key = job
        return drivers[driver].put_once(key, f"driver {driver} of {key}".encode())

    jobs = [(driver, key) for key in keys for driver in (0, 1)]
    assert drivers[0].fs is not None
    with ThreadPoolExecutor(8) as pool:
        won = dict(zip(jobs, pool.map(create, jobs)))
    seen = list(drivers[0].list("commits"))
    print_counts(proxy)
    held = contents(Store(bucket_url, endpoint_url=s3_server))
    assert seen == sorted(held) == keys
    for key in keys:
        winners = [driver for driver in (0, 1) if won[driver, key]]
        assert len(winners) == 1
        assert held[key] == f"driver {winners[0]} of {key}".encode()


# ---- never a partial object ----

CHILD = """
import functools, sys
from busray.storage import Store
url, endpoint, chunk, size = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
store = Store(url, endpoint_url=endpoint)
if chunk:
    store.fs.pipe_file = functools.partial(store.fs.pipe_file, chunksize=chunk)
store.put_once("data/benign/shard", bytes(size))
"""


@pytest.mark.parametrize(
    "moment, chunk, rule",
    [
        ("in the middle of a body", 0, {"method": "PUT", "when": "body"}),
        ("before the server knows of it", 0, {"method": "PUT", "when": "before"}),
        ("in the middle of a part", 5 * 2**20, {"method": "PUT", "kind": "multipart", "when": "body", "skip": 1}),
        ("between the parts and the last request", 5 * 2**20, {"method": "POST", "when": "before", "skip": 1}),
    ],
)
def test_a_process_killed_while_uploading_leaves_nothing_that_a_reader_takes(
    moment: str, chunk: int, rule: dict[str, Any], bucket_url: str, proxy: FaultProxy, witness: Store
) -> None:
    children: list[subprocess.Popen] = []
    started = threading.Event()

    def kill(request: Request) -> Any:
        started.wait(30)
        children[0].kill()
        children[0].wait()
        return DROP if rule["when"] == "before" else None  # else the proxy itself finds the client gone

    hit = proxy.add(Rule(kill, **rule))
    arguments = [bucket_url, proxy.url, str(chunk), str(32 * 2**20)]
    children.append(subprocess.Popen([sys.executable, "-c", CHILD, *arguments]))
    started.set()
    assert children[0].wait() == -signal.SIGKILL
    assert hit.hits == 1
    time.sleep(0.5)  # the server may still be at it
    assert list(witness.list()) == []
    assert witness.read_or_none("data/benign/shard") is None
    proxy.clear()
    assert witness.put_once("data/benign/shard", b"by the next driver") is True


def test_a_process_killed_between_file_and_link_leaves_nothing_that_a_reader_takes(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from busray.storage import Store\n"
        "os.link = lambda *names: os.kill(os.getpid(), signal.SIGKILL)\n"
        "Store(sys.argv[1]).put_once('data/benign/shard', b'x' * 1_000_000)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)])
    assert done.returncode == -signal.SIGKILL
    (left,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert left.stat().st_size == 1_000_000
    store = Store(str(tmp_path))
    assert list(store.list()) == []
    assert not store.exists("data/benign/shard")
    assert store.put_once("data/benign/shard", b"by the next driver") is True
    assert list(store.list()) == ["data/benign/shard"]


def rows() -> list[Row]:
    return [
        Row(
            ImageSpec(f"f-benign-{i:08d}", "benign", i, 0, "a prompt", i, i + 1, ContentBox(0, 0, 8, 8)),
            np.full((8, 8), i, np.uint8),
        )
        for i in range(SHARD.count)
    ]


def commit(store: Store, format: str) -> Any:
    return commit_shard(store, SHARD, rows(), (), {"fingerprint": "f"}, Execution("cpu", "f", 2, 1, {}), format, 1.0)


@pytest.mark.parametrize("format", ["parquet", "png"])
def test_an_exception_while_serialising_leaves_nothing(
    format: str, store: Store, witness: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = []

    def short_of_memory(*arguments: Any, **options: Any) -> bytes:
        encoded.append(arguments)
        if len(encoded) == 2:
            raise MemoryError("in the middle of the shard")
        return b"png"

    monkeypatch.setattr("busray.corpus.encode.png_bytes", short_of_memory)
    with pytest.raises(MemoryError, match="in the middle"):
        commit(store, format)
    assert len(encoded) == 2
    assert contents(witness) == {}
    assert read_commits(witness) == []


@pytest.mark.parametrize("format", ["parquet", "png"])
@pytest.mark.parametrize("write", [0, 1, -1])
def test_an_exception_while_uploading_leaves_nothing_that_a_reader_takes(
    write: int, format: str, store: Store, witness: Store, proxy: FaultProxy
) -> None:
    """The first, the second or the last of a shard's writes is refused for good."""
    writes = {"parquet": 2, "png": SHARD.count + 2}[format]
    proxy.add(Rule(error(403, "AccessDenied"), method="PUT", skip=write % writes, times=None))
    with pytest.raises(PermissionError):
        commit(store, format)
    assert read_commits(witness) == []
    proxy.clear()
    made = commit(store, format)
    assert read_commits(witness) == [made]
    assert made.rows == SHARD.count
