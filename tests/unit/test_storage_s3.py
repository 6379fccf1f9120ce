"""The same store on S3 (moto on loopback): create-only writes, listings that are never stale."""

import functools
import os
import pickle
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from aiobotocore.client import AioBaseClient

from busray.corpus.commit import read_commit
from busray.corpus.cost import BLOCK_REQUESTS, SHARD_REQUESTS
from busray.corpus.features import put_array
from busray.layout import commit_key
from busray.records import Damaged, Shard, json_object
from busray.run.pieces import ImageBlock, block_pixels
from busray.stages.export import export_run
from busray.storage import Store
from tests.support.corpora import commit_black
from tests.support.released import RELEASED, finish
from tests.support.runs import quiet

boto3 = pytest.importorskip("boto3")
moto_server = pytest.importorskip("moto.server")

BUCKET = "busray-tests"
SECRETS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def endpoint(one_creator_wins: None) -> Iterator[str]:
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    before = {name: os.environ.get(name) for name in SECRETS}
    os.environ.update(SECRETS)
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


@pytest.fixture(scope="module")
def other(endpoint: str) -> Any:
    """A separate client, as on another machine: the store's caches do not see what it does."""
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
    client.create_bucket(Bucket=BUCKET)
    return client


@pytest.fixture
def store(endpoint: str, other: Any, request: pytest.FixtureRequest) -> Store:
    return Store(f"s3://{BUCKET}/{request.node.name}", endpoint_url=endpoint)


def test_what_was_put_is_read_and_listed(store: Store) -> None:
    key = commit_key(Shard("benign", 0, 4))
    assert store.put_once(key, b"{}") is True
    assert store.read(key) == b"{}"
    assert store.exists(key)
    assert list(store.list("commits")) == [key]


def test_what_is_not_there_is_reported(store: Store) -> None:
    with pytest.raises(FileNotFoundError):
        store.read("run.json")
    assert store.read_or_none("run.json") is None
    assert not store.exists("run.json")
    assert list(store.list("commits")) == []


def test_put_once_creates_and_never_overwrites(store: Store) -> None:
    assert store.put_once("run.json", b"first") is True
    assert store.put_once("run.json", b"second") is False
    assert store.put_once("run.json", b"first") is True
    assert store.read("run.json") == b"first"


def test_put_once_is_refused_by_the_server_and_not_by_a_look_before(store: Store, other: Any) -> None:
    """Another machine writes after this one has looked: only a conditional request refuses it."""
    assert not store.exists("run.json")
    other.put_object(Bucket=BUCKET, Key=f"{store.url.split('/', 3)[3]}/run.json", Body=b"others")
    assert store.put_once("run.json", b"ours") is False
    assert store.read("run.json") == b"others"


def test_of_many_writers_of_one_key_one_wins_and_all_learn_it(store: Store) -> None:
    start, answers = threading.Barrier(4), {}

    def write(i: int) -> None:
        start.wait()
        answers[i] = store.put_once("plan/0000.json", b"writer %d" % i)

    assert store.fs is not None  # one connection, opened before the threads start
    threads = [threading.Thread(target=write, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [i for i, won in answers.items() if won]
    assert len(answers) == 4
    assert len(winners) == 1
    assert store.read("plan/0000.json") == b"writer %d" % winners[0]


def test_a_lost_answer_is_settled_by_reading_back(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe_file = store.fs.pipe_file

    def put_and_lose_the_answer(*arguments: Any, **options: Any) -> None:
        pipe_file(*arguments, **options)
        raise TimeoutError("no answer")

    monkeypatch.setattr(store.fs, "pipe_file", put_and_lose_the_answer)
    assert store.put_once("run.json", b"ours") is True
    assert store.put_once("run.json", b"others") is False


def test_a_refusal_without_the_word_exists_is_settled_by_reading_back(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some S3 servers name no condition in their 412; s3fs then reports an invalid argument."""
    store.put_once("run.json", b"first")

    def invalid(*arguments: Any, **options: Any) -> None:
        raise OSError(22, "At least one of the pre-conditions you specified did not hold")

    monkeypatch.setattr(store.fs, "pipe_file", invalid)
    assert store.put_once("run.json", b"first") is True
    assert store.put_once("run.json", b"second") is False
    with pytest.raises(OSError, match="pre-conditions"):
        store.put_once("other.json", b"x")


def test_listing_is_sorted_and_ends_at_the_folder(store: Store) -> None:
    for key in ("data/b/2", "data/a/10", "data/a/1", "data-more/x", "commits/a"):
        store.put_once(key, b"x")
    assert list(store.list("data")) == ["data/a/1", "data/a/10", "data/b/2"]
    assert list(store.list()) == ["commits/a", "data-more/x", "data/a/1", "data/a/10", "data/b/2"]


def test_the_listing_says_when_each_object_was_written(store: Store) -> None:
    before = time.time()
    store.put_once("commits/a", b"x")
    store.put_once("commits-more/b", b"x")
    written = store.modified("commits")
    assert list(written) == ["commits/a"]
    assert written["commits/a"] == pytest.approx(before, abs=60)
    assert store.modified("nothing") == {}


def test_a_shard_and_its_features_cost_as_many_requests_as_the_plan_says(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    real = AioBaseClient._make_api_call

    async def counted(self: Any, operation: str, parameters: Any) -> Any:
        asked.append(operation)
        return await real(self, operation, parameters)

    monkeypatch.setattr(AioBaseClient, "_make_api_call", counted)
    shard = Shard("benign", 0, 4)
    assert not store.exists(commit_key(shard))  # before it is drawn
    commit_black(store, shard)
    assert len(asked) == SHARD_REQUESTS, asked
    asked.clear()
    block = ImageBlock(store, "features/x/1.npy", read_commit(store, shard), images=4)
    asked.clear()
    pixels, _ = block_pixels(block)
    put_array(store, block.key, np.zeros((len(pixels), 5), np.float32))
    assert len(asked) == BLOCK_REQUESTS, asked


def test_what_another_machine_wrote_is_seen_at_once(store: Store, other: Any) -> None:
    prefix = store.url.split("/", 3)[3]
    store.put_once("commits/a", b"x")
    assert list(store.list("commits")) == ["commits/a"]
    other.put_object(Bucket=BUCKET, Key=f"{prefix}/commits/b", Body=b"x")
    assert store.exists("commits/b")
    assert store.read_or_none("commits/b") == b"x"
    assert list(store.list("commits")) == ["commits/a", "commits/b"]
    other.delete_object(Bucket=BUCKET, Key=f"{prefix}/commits/a")
    assert not store.exists("commits/a")
    assert list(store.list("commits")) == ["commits/b"]


def test_many_objects_are_listed_over_several_pages(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "5")  # S3 itself answers a thousand at a time
    keys = [f"data/{i:04d}" for i in range(13)]
    for key in keys:
        store.put_once(key, b"x")
    assert list(store.list("data")) == keys


def test_replace_overwrites_and_delete_removes(store: Store) -> None:
    store.replace("report.json", b"old")
    store.replace("report.json", b"new")
    assert store.read("report.json") == b"new"
    store.delete("report.json")
    assert store.read_or_none("report.json") is None


def test_an_object_written_in_parts_is_create_only_too(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """s3fs writes objects of 100 MiB (here 10) in parts: the last request has the condition."""
    monkeypatch.setattr(store.fs, "pipe_file", functools.partial(store.fs.pipe_file, chunksize=5 * 2**20))
    data = bytes(10 * 2**20 + 1)
    assert store.put_once("data/large", data) is True
    assert store.put_once("data/large", b"\x01" + data[1:]) is False
    assert store.read("data/large") == data


def test_a_store_travels_to_workers(store: Store) -> None:
    store.put_once("run.json", b"x")
    assert pickle.loads(pickle.dumps(store)).read("run.json") == b"x"  # noqa: S301
    assert store.sub("arms/base").put_once("run.json", b"arm") is True
    assert store.read("arms/base/run.json") == b"arm"


def test_damage_is_seen_and_moved_aside(store: Store, other: Any) -> None:
    store.put_checked("study/a.json", b'{"seed": 1}')
    other.put_object(
        Bucket=BUCKET, Key=f"{store.url.removeprefix(f's3://{BUCKET}/')}/study/a.json", Body=b'{"seed": 2}'
    )
    with pytest.raises(Damaged, match="it is not what was stored"):
        store.read_record("study/a.json", json_object)
    store.move("study/a.json", "damaged/1/study/a.json")
    assert store.read("damaged/1/study/a.json") == b'{"seed": 2}'
    assert not store.exists("study/a.json")
    assert store.put_checked("study/a.json", b'{"seed": 1}') is True
    assert store.read_record("study/a.json", json_object) == {"seed": 1}


@pytest.mark.slow  # some hundred requests
def test_an_export_goes_from_one_object_store_to_another_and_is_verified_there(store: Store) -> None:
    run, target = finish(store.sub("run"), images=1), store.sub("corpus")
    found = export_run(run.store, run.config, target, "webdataset", 0, quiet)
    assert sum(found.images.values()) == RELEASED
    assert list(target.list()) == [
        "README.md",
        "export/batches/00000.json",
        "export/plan.json",
        "export/rows/00000.parquet",
        "export/verified.json",
        "train-000000.tar",
    ]
    assert export_run(run.store, run.config, target, "webdataset", 0, quiet) == found
