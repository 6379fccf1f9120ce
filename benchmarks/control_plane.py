"""What a shard costs the driver: the real Ray Data stream, with a sampler that sleeps.

    python benchmarks/control_plane.py

Prints tables of scale.md. Each row is a process and a Ray of its own: it plans, finds what is
pending, draws through `Workers.draw` and publishes the manifest, as `busray generate` does. Records
are real (busray.corpus.commit.commit_shard) and data objects have a few bytes. Requests are counted
by an S3 server on loopback (moto, of the development set); all else is measured on a disk.
"""

import argparse
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from busray import config
from busray.corpus import commit
from busray.corpus.commit import committed_shards
from busray.corpus.manifest import publish_manifest
from busray.corpus.plan import extend_plan, pending, shards
from busray.layout import commit_key
from busray.records import Execution, Shard
from busray.storage import Store
from busray.workers import Beat, DrawStage

CLASSES = ("benign", "malignant", "normal")
EXECUTION = Execution("none", "float32", 16, 1, {"torch": "0"})
POINTS = ((10**4, 10**3), (10**5, 10**3), (10**6, 10**3), (10**6, 10**4))
"""(images, shards) of the rows."""
ON_THE_HEAD = ("raylet", "gcs_server", "ray::Liveness", "ray::_StatsActor")
ON_S3 = (10**4, 200)
BUCKET = "busray-control-plane"
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


class SleepingDrawing:
    """A busray.workers.Drawing without pixels: a shard takes `seconds`, and its record is real."""

    def __init__(self, store: Store, seconds: float) -> None:
        self.store, self.seconds = store, seconds

    def labels(self) -> dict[str, str]:
        return {"arm": "none", "device": "none"}

    def is_committed(self, shard: Shard) -> bool:
        return self.store.exists(commit_key(shard))

    def start(self) -> Any:
        return self.draw

    def draw(self, shard: Shard, beat: Beat) -> Shard:
        time.sleep(self.seconds)
        beat(shard.count)
        return shard

    def commit(self, shard: Shard, beat: Beat) -> Any:
        # An actor may commit in several threads: this stays as it is in this process.
        commit.encode_parquet = few_bytes
        rows: Any = [shard] * shard.count
        return commit.commit_shard(self.store, shard, rows, (), {}, EXECUTION, "parquet", self.seconds)

    def quarantine(self, shard: Shard, reason: str) -> Any:
        raise AssertionError(f"{shard} was not drawn: {reason}")


def few_bytes(rows: Sequence[Shard], provenance: Any) -> bytes:
    """In place of encode_parquet: bytes that no other shard has."""
    return repr(rows[0]).encode()


def one(url: str, images: int, count: int, actors: int, seconds: float) -> dict[str, Any]:
    """Draw a corpus of `images` in about `count` shards; the figures of this process."""
    from busray.cluster.pool import ray_workers

    store = Store(url)
    per_class = {name: images // len(CLASSES) + (i < images % len(CLASSES)) for i, name in enumerate(CLASSES)}
    segments = extend_plan(store, per_class, -(-images // count))
    todo = pending(shards(segments), committed_shards(store))
    cluster = config.Cluster(actors=actors, cpus_per_actor=0.5 / actors, threads=1)
    seen: list[tuple[float, int]] = []
    head: Counter[str] = Counter()

    def report(stage: str, done: int, total: int) -> None:
        if not total:  # a message
            return
        seen.append((time.perf_counter(), done))
        if done >= total:  # the actors of the head are still there
            head.clear()
            head.update(head_cpu())

    with tempfile.TemporaryDirectory() as folder, ray_workers(cluster, Path(folder) / "ray.log", report) as workers:
        workers.share(0)  # starts Ray
        before_head = head_cpu()
        before_mb, before_cpu, began = status_mb("VmRSS"), time.process_time(), time.perf_counter()
        workers.draw(DrawStage("generate corpus", SleepingDrawing(store, seconds), todo, images))
        drawn, cpu, peak = time.perf_counter(), time.process_time() - before_cpu, status_mb("VmHWM")
    published = time.perf_counter()
    publish_manifest(store, segments, drawn=todo)
    return {
        "images": images,
        "shards": len(todo),
        "first": next(at for at, done in seen if done) - began,
        "wall": drawn - began,
        "halves": halves(seen, images, len(todo)),
        "cpu_ms": 1000 * cpu / len(todo),
        "head_ms": {name: 1000 * (head[name] - before_head[name]) / len(todo) for name in sorted(head)},
        "before_mb": before_mb,
        "peak_mb": peak,
        "kb": 1024 * (peak - before_mb) / len(todo),
        "manifest": time.perf_counter() - published,
        "missing": len(missing_records(store)),
    }


def head_cpu() -> Counter[str]:
    """Seconds of CPU that the head's part of this Ray has used: raylet, GCS and the actors that
    are not the drawing ones."""
    used: Counter[str] = Counter()
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess, IndexError):
            name = Path(process.cmdline()[0]).name
            if name in ON_THE_HEAD:
                used[name.removeprefix("ray::")] += sum(process.cpu_times()[:2])
    return used


def halves(seen: Sequence[tuple[float, int]], images: int, count: int) -> list[float]:
    """Shards a second of the first and of the second half of the stream."""
    begin = max(at for at, done in seen if done == 0)
    middle, done_then = next((at, done) for at, done in seen if done >= images / 2)
    end = next(at for at, done in seen if done >= images)
    first = done_then / images * count
    return [first / (middle - begin), (count - first) / max(end - middle, 1e-9)]


def missing_records(store: Store) -> list[Shard]:
    """Planned shards without a record. `busray verify` would not do: the data are no images."""
    done = set(committed_shards(store))
    return [shard for shard in shards(extend_plan(store, {}, 1)) if shard not in done]


def status_mb(name: str) -> float:
    """VmRSS or VmHWM (the peak) of this process alone; getrusage includes who forked it."""
    (kb,) = re.findall(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kb) / 1024


def apart(arguments: Sequence[object]) -> dict[str, Any]:
    """one() in a process of its own."""
    command = [sys.executable, __file__, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


@contextmanager
def counting_server() -> Iterator[Counter[str]]:
    """An S3 server on loopback whose address is in the environment; its requests by kind."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    seen: Counter[str] = Counter()
    answer: Any = server._server.app  # type: ignore[union-attr]

    def counted(environment: dict[str, Any], start: Any) -> Any:
        kind = "LIST" if "list-type" in environment["QUERY_STRING"] else environment["REQUEST_METHOD"]
        folder = environment["PATH_INFO"].removeprefix(f"/{BUCKET}/run").lstrip("/").split("/")[0]
        seen[kind if kind == "LIST" else f"{kind} {folder}"] += 1
        return answer(environment, start)

    server._server.app = counted  # type: ignore[union-attr]
    os.environ.update(KEYS, AWS_ENDPOINT_URL_S3="http://{}:{}".format(*server.get_host_and_port()))
    try:
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        seen.clear()
        yield seen
    finally:
        server.stop()


def row(figures: dict[str, Any]) -> str:
    first, second = figures["halves"]
    cells = [
        f"{figures['images']:,}",
        f"{figures['shards']:,}",
        f"{figures['first']:.1f}",
        f"{figures['wall']:.0f}",
        f"{first:.1f}, {second:.1f}",
        f"{figures['cpu_ms']:.1f}",
        ", ".join(f"{name} {ms:.1f}" for name, ms in figures["head_ms"].items()),
        f"{figures['before_mb']:.0f}",
        f"{figures['peak_mb']:.0f}",
        f"{figures['kb']:.1f}",
        f"{figures['manifest']:.1f}",
        figures["missing"],
    ]
    return f"| {' | '.join(map(str, cells))} |"


def fit(rows: Sequence[dict[str, Any]], value: Any) -> tuple[float, float]:
    """(a, b) of value = a + b x shards, by least squares over the rows."""
    import numpy as np

    slope, constant = np.polyfit([each["shards"] for each in rows], [value(each) for each in rows], 1)
    return float(constant), float(slope)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--actors", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=0.05, help="that a shard sleeps")
    parser.add_argument("--largest", type=int, default=10**4, help="most shards of a row")
    parser.add_argument("--one", nargs=3, metavar=("URL", "IMAGES", "SHARDS"), help="one row, as JSON")
    args = parser.parse_args()
    if args.one:
        url, images, count = args.one
        print(json.dumps(one(url, int(images), int(count), args.actors, args.seconds)))
        return
    options = [f"--actors={args.actors}", f"--seconds={args.seconds}"]
    print(f"{args.actors} actors, {args.seconds} s a shard\n")
    heads = ["images", "shards", "s to first", "s", "shards a s (halves)", "driver ms CPU a shard", "others' ms"]
    heads += ["MB before", "peak MB", "kB a shard", "s manifest", "missing"]
    print(f"| {' | '.join(heads)} |\n|{'---:|' * len(heads)}", flush=True)
    rows = []
    for images, count in POINTS:
        if count <= args.largest:
            with tempfile.TemporaryDirectory() as folder:
                rows.append(apart([*options, "--one", folder, images, count]))
            print(row(rows[-1]), flush=True)
    if len({each["shards"] // 100 for each in rows}) > 1:
        constant, slope = fit(rows, lambda each: each["cpu_ms"] * each["shards"] / 1000)
        print(f"\ndriver CPU: {constant:.1f} s + {1000 * slope:.1f} ms a shard")
        constant, slope = fit(rows, lambda each: each["peak_mb"])
        print(f"driver peak: {constant:.0f} MB + {1024 * slope:.1f} kB a shard")
    with counting_server() as requests:
        figures = apart([*options, "--one", f"s3://{BUCKET}/run", *ON_S3])
    print(f"\nrequests of a run of {figures['shards']} shards, by kind and folder, a shard:")
    for kind, n in sorted(requests.items()):
        print(f"  {kind}: {n / figures['shards']:.2f}")
    print(f"  in all: {requests.total() / figures['shards']:.2f}")


if __name__ == "__main__":
    main()
