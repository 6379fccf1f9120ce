"""How many requests an S3 server gets (moto on loopback): with a page of a listing they grow, and
not with each piece that is looked for."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from busray.corpus.arms import corpora
from busray.corpus.commit import each_commit, read_commits
from busray.corpus.features import put_array
from busray.corpus.manifest import orphans, publish_manifest
from busray.corpus.plan import extend_plan, shards
from busray.identity import sha256_bytes
from busray.layout import commit_key, data_key, digest_key, features_key
from busray.records import Commit, Damaged, Execution, Shard, to_json
from busray.run.pieces import load_arrays
from busray.storage import FEW_KEYS, Store

pytest.importorskip("moto.server")

BUCKET = "busray-requests"
SECRETS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def server(one_creator_wins: None) -> Iterator[tuple[str, Counter[str]]]:
    """(address of a server of this file's own, what it was asked)."""
    import boto3
    from moto.server import ThreadedMotoServer

    seen: Counter[str] = Counter()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SECRETS.items():
            patch.setenv(name, value)
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        answer: Callable[..., Any] = server._server.app  # type: ignore[union-attr]

        def counted(environment: dict[str, Any], start: Any) -> Any:
            listing = "list-type" in environment["QUERY_STRING"]
            seen["LIST" if listing else environment["REQUEST_METHOD"]] += 1
            return answer(environment, start)

        server._server.app = counted  # type: ignore[union-attr]
        host, port = server.get_host_and_port()
        url = f"http://{host}:{port}"
        boto3.client("s3", endpoint_url=url).create_bucket(Bucket=BUCKET)
        yield url, seen
        server.stop()


@pytest.fixture
def asked(server: tuple[str, Counter[str]]) -> Counter[str]:
    server[1].clear()
    return server[1]


@pytest.fixture
def store(server: tuple[str, Counter[str]], request: pytest.FixtureRequest) -> Store:
    return Store(f"s3://{BUCKET}/{request.node.name}", endpoint_url=server[0])


def load(store: Store, objects: dict[str, bytes]) -> None:
    """Past HTTP, for the sake of time."""
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.s3.models import s3_backends

    prefix = store.url.split("/", 3)[3]
    for key, data in objects.items():
        s3_backends[DEFAULT_ACCOUNT_ID]["aws"].put_object(BUCKET, f"{prefix}/{key}", data)


def checked(key: str, data: bytes) -> dict[str, bytes]:
    return {key: data, digest_key(key, sha256_bytes(data)): b"x"}


def corpus(store: Store, count: int, *, with_digests: bool = True) -> list[Shard]:
    """A plan and records of so many shards of two images; their data are some bytes."""
    plan = shards(extend_plan(store, {"benign": 2 * count}, 2))
    objects: dict[str, bytes] = {}
    for shard in plan:
        digest = sha256_bytes(shard.name.encode())
        key = data_key(shard, digest, ".parquet")
        commit = Commit("benign", shard.first, 2, key, digest, 1, 2, (), Execution("cpu", "float32", 2, 1, {}), 1.0)
        record = to_json(commit)
        objects |= {key: b"data"}
        objects |= checked(commit_key(shard), record) if with_digests else {commit_key(shard): record}
    load(store, objects)
    return plan


def test_a_look_for_an_object_that_is_not_there_is_one_request(store: Store, asked: Counter[str]) -> None:
    assert not store.exists("commits/benign/0-2.json")
    assert asked == {"HEAD": 1}


def test_many_pieces_are_looked_for_in_the_pages_of_a_listing(store: Store, asked: Counter[str]) -> None:
    there = [f"features/x/{number:05d}.npy" for number in range(1_100)]
    load(store, dict.fromkeys(there, b"x"))
    missing = [f"features/x/{number:05d}-none.npy" for number in range(1_100)]
    asked.clear()
    assert store.present([*there, *missing]) == set(there)
    assert asked == {"LIST": 2}, "pages of a thousand keys"


def test_few_pieces_are_asked_for_one_by_one_since_a_folder_may_hold_millions(
    store: Store, asked: Counter[str]
) -> None:
    load(store, {"features/x/a.npy": b"x", "features/y/a.npy": b"x"})
    few = [f"features/x/{name}.npy" for name in ("a", "b")] + ["features/y/a.npy"]
    asked.clear()
    assert store.present(few) == {"features/x/a.npy", "features/y/a.npy"}
    assert asked == {"HEAD": 3}
    assert store.present([]) == set()


def test_folders_are_found_without_a_listing_of_what_lies_in_them(store: Store, asked: Counter[str]) -> None:
    load(store, {f"arms/{arm}/data/benign/{n:05d}": b"x" for arm in ("base", "lora") for n in range(1_200)})
    load(store, {"arms/note.txt": b"x"})
    asked.clear()
    assert store.folders("arms") == ["base", "lora"]
    assert asked == {"LIST": 1}
    assert store.folders("points") == []
    asked.clear()
    assert list(corpora(store)) == ["", "arms/base", "arms/lora"]
    assert asked["LIST"] == 3


@pytest.mark.parametrize("with_digests", [True, False], ids=["of now", "of an older busray"])
def test_records_are_read_with_one_request_each(store: Store, asked: Counter[str], with_digests: bool) -> None:
    plan = corpus(store, 50, with_digests=with_digests)
    asked.clear()
    assert [commit.shard for commit in each_commit(store, plan)] == plan
    # Where there is no digest at all, s3fs also asks whether their folder is an object.
    digests = {"LIST": 1} if with_digests else {"LIST": 2, "HEAD": 1}
    assert asked == {"GET": 50, **digests}
    asked.clear()
    assert len(read_commits(store)) == 50
    assert asked - Counter(digests) == {"GET": 50, "LIST": 1}


def test_a_changed_record_is_damaged_though_its_digest_comes_from_a_listing(store: Store) -> None:
    plan = corpus(store, FEW_KEYS + 1)
    load(store, {commit_key(plan[3]): store.read(commit_key(plan[3])) + b" "})
    with pytest.raises(Damaged, match="it is not what was stored"):
        read_commits(store)


def test_a_record_that_is_newer_than_the_listing_of_digests_is_read(store: Store) -> None:
    plan = corpus(store, FEW_KEYS + 1)
    known = store.digests_below("commits")
    key, data = "commits/benign/900-2.json", b"{}"
    store.put_checked(key, data)
    assert store.read_checked(key, known) == data
    assert set(known) == {commit_key(shard) for shard in plan}


def test_stored_arrays_are_read_with_one_request_each_in_their_order(store: Store, asked: Counter[str]) -> None:
    keys = [features_key(f"{number:064d}"[::-1], "image", "x") for number in range(40)]
    for number, key in enumerate(keys):
        put_array(store, key, np.full((2, 3), number, np.float32))
    asked.clear()
    assert [int(array[0, 0]) for array in load_arrays(store, keys)] == list(range(40))
    assert asked == {"GET": 40, "LIST": 1}
    load(store, {keys[7]: store.read(keys[8])})
    with pytest.raises(Damaged, match="it is not what was stored"):
        list(load_arrays(store, keys))


def test_a_manifest_and_orphans_of_twice_the_shards_take_no_more_than_its_records(
    store: Store, asked: Counter[str]
) -> None:
    """Both corpora are listed on one page."""
    took: dict[int, Counter[str]] = {}
    for count in (60, 120):
        folder = store.sub(str(count))
        plan = corpus(folder, count)
        asked.clear()
        publish_manifest(folder, extend_plan(folder, {"benign": 2 * count}, 2), drawn=plan)
        assert orphans(folder) == []
        took[count] = Counter(asked)
    assert took[120] - took[60] == {"GET": 60}
    assert took[60]["LIST"] < 10


def test_no_look_into_a_folder_takes_its_name_for_an_object(store: Store) -> None:
    """HEAD alone decides: a folder is none, whatever lies in it."""
    load(store, {"commits/benign/0-2.json": b"x"})
    assert not store.exists("commits")
    assert store.exists("commits/benign/0-2.json")
