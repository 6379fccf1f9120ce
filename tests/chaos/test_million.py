"""What it costs a driver to resume a run of a million images at 99 %, on a local disk and on S3:
O(remaining).

Each driver is a process of its own (benchmarks/resume.py --drive), so that its peak memory is the
driver's. Wall time is printed and not asserted.
"""

import importlib.util
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import boto3
import pytest
from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends
from moto.server import ThreadedMotoServer

from busray.corpus.manifest import published_rows
from busray.storage import Store
from tests.support.paths import ROOT

pytestmark = pytest.mark.slow

IMAGES = 1_000_000
BUCKET = "busray-million"
FIRST_CALLS = {"read plan": 4, "list commits": 1, "read commits": 3, "list digests": 3}
"""Of these, the last two look at one committed shard of each class, for the circuit breaker."""


@pytest.fixture(scope="module")
def resume() -> ModuleType:
    """benchmarks/resume.py, which makes such runs and takes the figures."""
    path = ROOT / "benchmarks" / "resume.py"
    spec = importlib.util.spec_from_file_location("resume", path)
    assert spec and spec.loader
    sys.modules["resume"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def requests(one_creator_wins: None) -> Iterator[Counter[str]]:
    """What an S3 server of this file's own was asked, as method and folder; its address is in
    the environment."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    seen: Counter[str] = Counter()
    answer: Callable[..., Any] = server._server.app  # type: ignore[union-attr]

    def counted(environment: dict[str, Any], start: Any) -> Any:
        kind = "LIST" if "list-type" in environment["QUERY_STRING"] else environment["REQUEST_METHOD"]
        key = environment["PATH_INFO"].removeprefix(f"/{BUCKET}/")
        seen[kind if kind == "LIST" else f"{kind} {folder(key)}"] += 1
        return answer(environment, start)

    server._server.app = counted  # type: ignore[union-attr]
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL_S3", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield seen
    server.stop()


def folder(key: str) -> str:
    """run/commits/benign/... -> commits; run/manifest.parquet -> manifest.parquet."""
    return key.split("/")[1] if "/" in key else key


def report(title: str, figures: dict[str, Any], requests: Counter[str] | None = None) -> None:
    print(f"\n{title}:")
    for name, value in figures.items():
        print(f"  {name}: {f'{value:.2f}' if isinstance(value, float) else value}")
    if requests is not None:
        print(f"  requests that the server saw: {dict(sorted(requests.items()))}")


def test_a_driver_resumes_a_million_images_on_a_disk_without_reading_what_is_done(
    resume: ModuleType, tmp_path: Path
) -> None:
    store, shard_size = Store(str(tmp_path / "run")), 256
    done, undone = resume.null_run(store, IMAGES, shard_size)
    assert (len(done), len(undone)) == (3870, 39)
    resume.write_local(store, done)

    first = resume.drive_apart(store.url, IMAGES, shard_size)
    report("a million images in shards of 256 resumed at 99 % on a disk", first)
    assert first["pending"] == 39
    assert first["store calls to what is pending"] == FIRST_CALLS
    assert first["peak MB"] < 500

    grown = resume.drive_apart(store.url, IMAGES + 3 * shard_size, shard_size)
    report("grown by a shard a class", grown)
    assert grown["pending"] == 3
    assert grown["store calls in all"]["read commits"] == 3 + 3
    assert grown["peak MB"] < 500
    assert sum(row["count"] for row in published_rows(store).values()) == IMAGES + 3 * shard_size


def test_a_driver_resumes_a_million_images_on_s3_with_a_listing_and_what_is_pending(
    resume: ModuleType, requests: Counter[str]
) -> None:
    """Shards of 512, for the sake of the S3 server, which is slow: its records still fill two
    pages of a listing."""
    store, shard_size, pages = Store(f"s3://{BUCKET}/run"), 512, 2
    done, undone = resume.null_run(store, IMAGES, shard_size)
    assert (len(done), len(undone)) == (1936, 20)
    backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]  # past HTTP, for the same reason
    for shard in done:
        for key, data in resume.null_objects(shard):
            backend.put_object(BUCKET, f"run/{key}", data)

    requests.clear()
    first = resume.drive_apart(store.url, IMAGES, shard_size)
    report("a million images in shards of 512 resumed at 99 % on S3", first, requests)
    assert first["pending"] == 20
    assert first["store calls to what is pending"] == FIRST_CALLS
    # The digests of all records are looked for at once; these records have none.
    assert requests["LIST"] <= pages + 4 + FIRST_CALLS["list digests"]
    assert sum(count for what, count in requests.items() if what.startswith("HEAD")) < 20
    assert requests["PUT commits"] == requests["PUT data"] == 20
    assert requests["GET commits"] == len(done) + len(undone) + 3, "each once for the manifest, one a class before"
    assert first["peak MB"] < 500

    requests.clear()
    again = resume.drive_apart(store.url, IMAGES, shard_size)
    report("again, all done", again, requests)
    assert again["digest"] == first["digest"]
    assert requests == {"LIST": pages, "GET plan": 8, "HEAD digests": 6, "GET manifest.parquet": 1}
