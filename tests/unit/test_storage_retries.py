"""How long and how often Store retries. The clock is simulated: the real constants are tested."""

import itertools
import pickle
import random
from collections.abc import Callable
from typing import Any

import pytest
from botocore import exceptions as boto
from botocore.exceptions import ClientError
from s3fs.errors import translate_boto_error

from busray import storage
from busray.cli import main
from busray.records import StoreError, UserError
from busray.storage import FIRST_DELAY, LONGEST_DELAY, RETRY_SECONDS, S3_CLIENT, Store, is_transient, retry_delays


class Clock:
    """Time that passes only while the code under test sleeps, or where a test says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.naps: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(storage, "time", clock)
    return clock


@pytest.fixture
def store(request: pytest.FixtureRequest) -> Store:
    return Store(f"memory://{request.node.name}")


def answered(status: int, code: str) -> OSError:
    """What s3fs raises for an error that S3 answered."""
    error = ClientError(
        {"Error": {"Code": code, "Message": "so it says"}, "ResponseMetadata": {"HTTPStatusCode": status}}, "PutObject"
    )
    return translate_boto_error(error)


def failing(times: int | None, work: Callable[..., Any], error: Exception) -> Callable[..., Any]:
    left = itertools.count() if times is None else iter(range(times))

    def attempt(*arguments: Any, **options: Any) -> Any:
        if next(left, None) is not None:
            raise error
        return work(*arguments, **options)

    return attempt


USES: dict[str, tuple[str, Callable[[Store], Any], Any]] = {
    "read": ("cat_file", lambda store: store.read("data/there"), b"there"),
    "list": ("find", lambda store: list(store.list("data")), ["data/there"]),
    "exists": ("info", lambda store: store.exists("data/there"), True),
    "put_once": ("pipe_file", lambda store: store.put_once("data/new", b"new"), True),
    "replace": ("pipe_file", lambda store: store.replace("data/there", b"new"), None),
    "delete": ("rm_file", lambda store: store.delete("data/there"), None),
}


def test_delays_double_up_to_a_bound_and_are_drawn_at_random() -> None:
    random.seed(5)
    several = [list(itertools.islice(retry_delays(), 60)) for _ in range(50)]
    bounds = [min(FIRST_DELAY * 2**i, LONGEST_DELAY) for i in range(60)]
    for drawn in several:
        assert all(bound / 2 <= delay <= bound for delay, bound in zip(drawn, bounds))
    for at_one_try in zip(*several):
        assert len(set(at_one_try)) == len(several)


def test_forty_refusals_in_a_row_fit_into_the_time_for_retries() -> None:
    longest = [min(FIRST_DELAY * 2**i, LONGEST_DELAY) for i in range(40)]
    assert sum(longest) < 0.75 * RETRY_SECONDS  # the rest is for answers that are themselves slow
    assert sum(longest) / 2 > 60  # a throttled store gets minutes to recover, not a burst of 41 requests


def test_one_attempt_on_s3_ends_long_before_the_time_for_retries() -> None:
    tries: Any = S3_CLIENT["retries"]
    assert (S3_CLIENT["connect_timeout"] + S3_CLIENT["read_timeout"]) * tries["total_max_attempts"] < RETRY_SECONDS / 2


@pytest.mark.parametrize("use", USES)
def test_forty_refusals_in_a_row_are_survived(
    use: str, store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, act, expected = USES[use]
    store.replace("data/there", b"there")
    real = getattr(store.fs, method)
    monkeypatch.setattr(store.fs, method, failing(40, real, answered(503, "SlowDown")))
    assert act(store) == expected
    assert len(clock.naps) == 40


@pytest.mark.parametrize("use", USES)
def test_refusals_without_end_are_one_clear_error_after_the_stated_time(
    use: str, store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, act, _ = USES[use]
    store.replace("data/there", b"there")
    monkeypatch.setattr(store.fs, method, failing(None, getattr(store.fs, method), answered(503, "SlowDown")))
    with pytest.raises(StoreError) as raised:
        act(store)
    message = str(raised.value)
    assert store.url in message and "'data" in message and "503 SlowDown: so it says" in message
    assert f"tried {len(clock.naps) + 1} times in {clock.now:.0f} s" in message
    assert RETRY_SECONDS - LONGEST_DELAY <= clock.now <= RETRY_SECONDS


def test_slow_failures_use_up_the_time_for_retries_too(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def slow(*arguments: Any, **options: Any) -> None:
        asked.append(arguments)
        clock.now += 200
        raise TimeoutError("no answer")

    monkeypatch.setattr(store.fs, "cat_file", slow)
    with pytest.raises(StoreError, match=r"tried 3 times in 60[0-9] s"):
        store.read("run.json")
    assert len(asked) == 3


TRANSIENT = {
    "500": answered(500, "InternalError"),
    "500 without a body": answered(500, "500"),
    "503": answered(503, "SlowDown"),
    "503 without a body": answered(503, "503"),
    "409 of a conditional write": answered(409, "ConditionalRequestConflict"),
    "400 of a body that came too slowly": answered(400, "RequestTimeout"),
    "read timeout": boto.ReadTimeoutError(endpoint_url="http://x"),
    "connect timeout": boto.ConnectTimeoutError(endpoint_url="http://x"),
    "connection refused": boto.EndpointConnectionError(endpoint_url="http://x"),
    "connection closed": boto.ConnectionClosedError(endpoint_url="http://x"),
    "reset": ConnectionResetError(104, "reset"),
    "asyncio's timeout": TimeoutError(),
}
FINAL = {
    "no object": FileNotFoundError("x"),
    "404": answered(404, "NoSuchKey"),
    "403": answered(403, "AccessDenied"),
    "403 without a body": answered(403, "403"),
    "412": answered(412, "PreconditionFailed"),
    "exists": FileExistsError("x"),
    "no permission": PermissionError("x"),
    "full disk": OSError(28, "No space left on device"),
    "wrong argument": ValueError("x"),
    "no keys": boto.NoCredentialsError(),
    "409 of another kind": answered(409, "BucketNotEmpty"),
    "short memory": MemoryError(),
}


@pytest.mark.parametrize("name", TRANSIENT)
def test_a_transient_error_is_retried(name: str) -> None:
    assert is_transient(TRANSIENT[name])


@pytest.mark.parametrize("name", FINAL)
def test_an_answer_is_not_retried(name: str, store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_transient(FINAL[name])
    monkeypatch.setattr(store.fs, "cat_file", failing(None, store.fs.cat_file, FINAL[name]))
    with pytest.raises(type(FINAL[name])):
        store.read("run.json")
    assert clock.naps == []


def test_a_local_disk_is_asked_once(tmp_path: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    store.put_once("run.json", b"{}")
    monkeypatch.setattr(store.fs, "cat_file", failing(1, store.fs.cat_file, TimeoutError("a stale mount")))
    with pytest.raises(TimeoutError):
        store.read("run.json")
    assert clock.naps == []


def test_a_write_that_arrived_though_no_answer_ever_came_is_settled_by_a_last_look(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = store.fs.pipe_file

    def put_and_lose_the_answer(path: str, data: bytes, **options: Any) -> None:
        if not store.fs.exists(path):
            pipe(path, data)
        raise TimeoutError("no answer")

    monkeypatch.setattr(store.fs, "pipe_file", put_and_lose_the_answer)
    assert store.put_once("run.json", b"ours") is True
    assert store.put_once("run.json", b"others") is False


def test_a_sub_store_retries_as_long(store: Store) -> None:
    store.retry_seconds = 7.0
    assert store.sub("arms/base").retry_seconds == 7.0
    assert pickle.loads(pickle.dumps(store)).retry_seconds == 7.0  # noqa: S301


def test_the_error_comes_back_whole_from_a_worker() -> None:
    error = pickle.loads(pickle.dumps(StoreError("s3://b/run: cannot read 'x'")))  # noqa: S301
    assert str(error) == "s3://b/run: cannot read 'x'"
    assert not isinstance(error, OSError | UserError)  # nobody takes it for a bad image or a user's mistake


def test_the_command_that_resumes_is_printed(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    s3 = Store("s3://bucket/a-run")  # fsspec gives the command the same file system
    monkeypatch.setattr(s3.fs, "cat_file", failing(None, print, answered(503, "SlowDown")))
    assert main(["gc", "s3://bucket/a-run"]) == 1
    stderr = capsys.readouterr().err
    assert "busray: s3://bucket/a-run: cannot read 'run.json': tried" in stderr
    assert stderr.splitlines()[-2].endswith("run the same command again: busray gc s3://bucket/a-run")


def test_waiting_is_logged_once_and_not_at_every_attempt(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store.replace("run.json", b"x")
    monkeypatch.setattr(store.fs, "cat_file", failing(9, store.fs.cat_file, answered(500, "InternalError")))
    store.read("run.json")
    (record,) = caplog.records
    assert "cannot read 'run.json' yet, trying for 600 s: 500 InternalError" in record.getMessage()


def test_no_attempt_lasts_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """fsspec itself ends an attempt whose connection never answers: it is given a timeout."""
    s3 = Store("s3://bucket/run", key="k", secret="s")
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(s3.fs, "cat_file", lambda path, **options: seen.append(options) or b"x")
    assert s3.read("run.json") == b"x"
    assert seen == [{"max_concurrency": 1, "timeout": storage.LONGEST_ATTEMPT}]


def test_requests_are_tried_in_two_layers_and_not_in_three() -> None:
    fs = Store("s3://bucket/run", key="k", secret="s").fs
    assert fs.retries == 1
    assert fs.config_kwargs == S3_CLIENT
    arrow_fs, path = Store("s3://bucket/run", key="k", secret="s").arrow()  # for Ray, that has no layer of its own
    assert arrow_fs.handler.fs.retries > 1 and path == "bucket/run"
