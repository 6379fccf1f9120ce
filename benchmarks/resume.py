"""Cost of resuming a run of a million images at 99 %: seconds, peak memory, calls of the store.

    python benchmarks/resume.py --shard-size 256

The run is made without drawing: real records, and data objects of a few bytes. Each figure is then
measured in a process of its own that does what `generate` does, except that it puts records instead
of drawing what is pending. Its seconds do not include the imports.
"""

import argparse
import contextlib
import json
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from busray.corpus.plan import extend_plan, shards
from busray.identity import fingerprint
from busray.layout import commit_key, data_key
from busray.records import Commit, Execution, Shard, to_json
from busray.storage import Store
from busray.workers import DrawStage

CLASSES = ("benign", "malignant", "normal")
EXECUTION = Execution("none", "float32", 8, 1, {"torch": "0"})
DONE = 0.99


def share_out(images: int) -> dict[str, int]:
    """images over the classes, as evenly as they go."""
    return {name: images // len(CLASSES) + (i < images % len(CLASSES)) for i, name in enumerate(CLASSES)}


def null_objects(shard: Shard) -> Iterator[tuple[str, bytes]]:
    """(key, bytes) of a shard's data object and of its record, in the order of writing."""
    digest = fingerprint([shard.class_name, shard.first, shard.count])
    key = data_key(shard, digest, ".parquet")
    yield key, digest.encode()
    commit = Commit(
        shard.class_name, shard.first, shard.count, key, digest, 64, shard.count, (), EXECUTION, seconds=0.0
    )
    yield commit_key(shard), to_json(commit)


def null_run(store: Store, images: int, shard_size: int) -> tuple[list[Shard], list[Shard]]:
    """Plan a run; (the shards to take as done, those to take as pending)."""
    plan = shards(extend_plan(store, share_out(images), shard_size))
    pending = max(1, round(len(plan) * (1 - DONE)))
    step = len(plan) // pending
    undone = set(plan[::step][:pending])
    return [shard for shard in plan if shard not in undone], [shard for shard in plan if shard in undone]


def write_local(store: Store, done: Iterable[Shard]) -> None:
    """Past Store, whose fsync of each object would take minutes."""
    for shard in done:
        for key, data in null_objects(shard):
            path = Path(store.url) / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


def drive(url: str, images: int, shard_size: int) -> dict[str, Any]:
    """`generate` on a run that is there, with a null sampler; the figures of this process."""
    from busray.stages import generate as driver

    store, calls = Store(url), Counter[str]()
    drawn: list[Shard] = []
    seconds: dict[str, float] = {}
    imported = peak_mb()

    class NullWorkers:
        """Workers that put records instead of drawing."""

        device = "cpu"

        def report(self, stage: str, done: int, total: int) -> None:
            pass

        def draw(self, stage: DrawStage) -> None:
            seconds["plan, list, find what is pending"] = time.perf_counter() - started
            seconds["peak_mb"] = peak_mb()
            calls_before.update(calls)
            drawn.extend(stage.shards)
            for shard in stage.shards:
                for key, data in null_objects(shard):
                    store.put_once(key, data)
            seconds["drawn"] = time.perf_counter()

    def counted(name: str) -> Any:
        method = getattr(Store, name)

        def call(self: Store, key: str = "", *rest: Any) -> Any:
            calls[f"{name} {key.split('/')[0]}"] += 1
            return method(self, key, *rest)

        return call

    run = SimpleNamespace(
        store=store,
        config=SimpleNamespace(
            classes={name: SimpleNamespace(images=n) for name, n in share_out(images).items()},
            corpus=SimpleNamespace(gate=None, max_quarantined=0.01),
        ),
    )
    calls_before = Counter[str]()
    with contextlib.ExitStack() as stack:
        stack.enter_context(
            patch.object(driver, "draw_job", lambda *_: SimpleNamespace(store=store, refine=None, gate=None))
        )
        sizes = SimpleNamespace(of=lambda _: shard_size)
        stack.enter_context(patch.object(driver, "ShardSizes", lambda *_: sizes))
        for name in ("read", "list", "put_once", "replace"):
            stack.enter_context(patch.object(Store, name, counted(name)))
        started = time.perf_counter()
        digest = driver.generate(run, NullWorkers())  # type: ignore[arg-type]
        ended = time.perf_counter()
    return {
        "seconds to what is pending": seconds.get("plan, list, find what is pending", ended - started),
        "store calls to what is pending": dict(calls_before or calls),
        "pending": len(drawn),
        "seconds to the manifest": ended - seconds["drawn"] if drawn else 0.0,
        "store calls in all": dict(calls),
        "peak MB when imported": imported,
        "peak MB to what is pending": seconds.get("peak_mb", peak_mb()),
        "peak MB": peak_mb(),
        "digest": digest,
    }


def peak_mb() -> float:
    """Peak resident memory of this program. getrusage would include the process that forked it."""
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(peak) / 1024


def drive_apart(url: str, images: int, shard_size: int) -> dict[str, Any]:
    """drive() in a process of its own."""
    arguments = [url, "--drive", f"--images={images}", f"--shard-size={shard_size}"]
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", nargs="?", help="where the run is put; default: a temporary folder")
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--shard-size", type=int, default=256)
    parser.add_argument("--drive", action="store_true", help="only resume the run that is at url")
    args = parser.parse_args()
    if args.drive:
        print(json.dumps(drive(args.url, args.images, args.shard_size)))
        return
    with tempfile.TemporaryDirectory() as folder:
        store = Store(args.url or folder)
        done, undone = null_run(store, args.images, args.shard_size)
        write_local(store, done)
        print(f"{args.images:,} images in {len(done) + len(undone):,} shards, {len(undone):,} pending")
        grown = args.images + len(CLASSES) * args.shard_size
        for title, images in (
            ("resumed at 99 %", args.images),
            ("again, all done", args.images),
            ("grown by a shard a class", grown),
        ):
            print(f"\n{title}:")
            for name, value in drive_apart(store.url, images, args.shard_size).items():
                print(f"  {name}: {f'{value:.2f}' if isinstance(value, float) else value}")


if __name__ == "__main__":
    main()
