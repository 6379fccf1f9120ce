"""What the stages after drawing ask of a store, and how long they take, by the number of shards.

    python benchmarks/scale_stages.py --shards 1000 10000
    python benchmarks/scale_stages.py --shards 100000 --stages resume report gc
    python benchmarks/scale_stages.py --code OLD_CHECKOUT ...    # the same stages, another version

A run is made up: a checked data set of simulated images, and shards of one image each with their
records, features and what the copy audit found in them, so that every stage finds all of its work
done. What is measured is then what it costs to find that out and to make the figures: the driver's
part of a stage. It lies in a local folder, and in a stand-in for S3 in this process, which answers
each request after --latency seconds and counts it. Each stage runs in a process of its own.
"""

import argparse
import asyncio
import bisect
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch
from xml.sax.saxutils import escape

CLASSES = ("benign", "malignant")
BUCKET = "bucket"
STAGES = ("resume", "again", "manifest", "audit", "report", "gc", "verify", "repair")
PAGE = 1000
"""Keys of a page of a listing, as S3's."""


# ---- a stand-in for S3 ----


class Server:
    """GET, HEAD, PUT (also create-only) and ListObjectsV2 of one bucket, from memory."""

    def __init__(self, latency: float) -> None:
        self.latency = latency
        self.objects: dict[str, bytes] = {}
        self.keys: list[str] = []
        self.seen: Counter[str] = Counter()
        self.url = ""
        ready = threading.Event()
        threading.Thread(target=asyncio.run, args=(self._serve(ready),), daemon=True).start()
        ready.wait()

    def load(self, objects: dict[str, bytes]) -> None:
        self.objects |= objects
        self.keys = sorted(self.objects)

    async def _serve(self, ready: threading.Event) -> None:
        from aiohttp import web

        application = web.Application(client_max_size=1 << 30)
        application.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        assert site._server is not None
        port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{port}"
        ready.set()
        await asyncio.Event().wait()

    async def _answer(self, request: Any) -> Any:
        from aiohttp import web

        await asyncio.sleep(self.latency)
        key = request.match_info["path"].removeprefix(BUCKET).lstrip("/")
        if request.method == "GET" and "list-type" in request.query:
            self.seen["LIST"] += 1
            return web.Response(body=self._page(request.query), content_type="application/xml")
        self.seen[request.method] += 1
        if request.method == "PUT":
            if "If-None-Match" in request.headers and key in self.objects:
                return web.Response(status=412, body=_error("PreconditionFailed"), content_type="application/xml")
            if key not in self.objects:
                bisect.insort(self.keys, key)
            self.objects[key] = await request.read()
            return web.Response(headers={"ETag": '"0"'})
        if request.method == "DELETE":
            if self.objects.pop(key, None) is not None:
                self.keys.remove(key)
            return web.Response(status=204)
        data = self.objects.get(key)
        if data is None:
            body = b"" if request.method == "HEAD" else _error("NoSuchKey")
            return web.Response(status=404, body=body, content_type="application/xml")
        return web.Response(body=data, headers={"ETag": '"0"', "Last-Modified": "Tue, 01 Dec 2026 00:00:00 GMT"})

    def _page(self, query: Any) -> bytes:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        most = min(PAGE, int(query.get("max-keys", PAGE)))
        at = bisect.bisect_right(self.keys, query.get("continuation-token") or prefix)
        if not query.get("continuation-token"):
            at = bisect.bisect_left(self.keys, prefix)
        parts, last, count = [], "", 0
        while at < len(self.keys) and self.keys[at].startswith(prefix) and count < most:
            key, rest = self.keys[at], self.keys[at][len(prefix) :]
            if delimiter and delimiter in rest:
                folder = prefix + rest.split(delimiter)[0] + delimiter
                parts.append(f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>")
                last = folder + "\U0010ffff"  # behind all keys of the folder
                at = bisect.bisect_left(self.keys, last)
            else:
                parts.append(
                    f"<Contents><Key>{escape(key)}</Key><Size>{len(self.objects[key])}</Size>"
                    "<LastModified>2026-12-01T00:00:00.000Z</LastModified><ETag>0</ETag></Contents>"
                )
                last, at = key, at + 1
            count += 1
        more = at < len(self.keys) and self.keys[at].startswith(prefix)
        token = f"<NextContinuationToken>{escape(last)}</NextContinuationToken>" if more else ""
        return (
            f'<?xml version="1.0"?><ListBucketResult><Name>{BUCKET}</Name><Prefix>{escape(prefix)}</Prefix>'
            f"<KeyCount>{count}</KeyCount><MaxKeys>{most}</MaxKeys><IsTruncated>{str(more).lower()}</IsTruncated>"
            f"{token}{''.join(parts)}</ListBucketResult>"
        ).encode()


def _error(code: str) -> bytes:
    return f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{code}</Message></Error>'.encode()


# ---- a made-up run ----


def settings(output: str, images: int, data: Path) -> Any:
    from busray.config_file import validate

    return validate(
        {
            "output": output,
            "dataset": {"path": str(data), "val": 0.2, "test": 0.3},
            "classes": {name: {"images": images, "token": f"<us-{name}>"} for name in CLASSES},
            "corpus": {"shard_size": 1},
            "evaluate": {"extractors": ["texture"], "arms": ["lora+ti+refine"], "geometry": None, "judge": None},
            "cluster": {"threads": 1},
        }
    )


def opened(output: str, images: int, data: Path) -> Any:
    from busray.run.checks import open_run

    return open_run(settings(output, images, data), quiet)


def quiet(*_: Any) -> None:
    """No progress."""


def make_up(folder: Path, data: Path, shards: int) -> Iterator[tuple[str, bytes]]:
    """(key, bytes) of all objects of a corpus whose work is all done. The run at `folder` has a
    checked data set, and what the audit found in real images."""
    import numpy as np

    from busray.corpus.encode import Row, encode_parquet
    from busray.data.phantom import PROBES, phantom
    from busray.evidence.copies import KINDS, SEARCH_ROW
    from busray.identity import image_id, sha256_bytes
    from busray.layout import commit_key, copies_key, data_key, digest_key, features_key
    from busray.records import Commit, ContentBox, Execution, ImageSpec, Segment, Shard, to_json
    from busray.run.pieces import load_array
    from busray.stages import audit
    from busray.stages.audit import _identity, _scans

    run = opened(str(folder), shards // len(CLASSES), data)
    name = next(iter(run.extractors))
    identity = _identity(run.dataset.hash, name, _scans(run.images, run.dataset.train)[1])
    key = next(key for key in run.store.list(f"features/{name}"))
    width = load_array(run.store, key).shape[1]
    execution = Execution("none", "float32", 8, 1, {"torch": "0"})
    fingerprint = json.loads((folder / "run.json").read_bytes())["fingerprint"]
    pixels = phantom(9_000, "benign", PROBES["demo"], (128, 128)).image
    rng = np.random.default_rng(0)
    assert audit.METHOD

    def checked(key: str, data: bytes) -> Iterator[tuple[str, bytes]]:
        digest = sha256_bytes(data)
        yield digest_key(key, digest), f"{digest}\n".encode()
        yield key, data

    for number, class_name in enumerate(CLASSES):
        count = shards // len(CLASSES)
        yield from checked(f"plan/{number:04d}.json", to_json(Segment(class_name, 0, count, 1)))
        for index in range(count):
            shard = Shard(class_name, index, 1)
            name_of_image, box = image_id(fingerprint, class_name, index), ContentBox(0, 0, 128, 128)
            spec = ImageSpec(name_of_image, class_name, index, 0, "", index, index, box)
            encoded = encode_parquet([Row(spec, pixels)], {"fingerprint": fingerprint})
            digest = sha256_bytes(encoded)
            key = data_key(shard, digest, ".parquet")
            yield key, encoded
            commit = Commit(class_name, index, 1, key, digest, len(encoded), 1, (), execution, seconds=1.0)
            yield from checked(commit_key(shard), to_json(commit))
            features = rng.standard_normal((1, width)).astype(np.float32)
            yield from checked(features_key(digest, "image", name), npy(features))
            row = np.zeros(1, SEARCH_ROW)
            row["index"], row["nearest"] = index, 0
            for kind in KINDS:
                row[f"{kind}_score"] = rng.gumbel(0.1, 0.02)
            yield from checked(copies_key(identity, digest), npy(row))


def npy(array: Any) -> bytes:
    import io

    import numpy as np

    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def prepare(folder: Path, data: Path) -> None:
    """A run with a checked data set, adapters for show, and one audited image: what all made-up
    runs have in common."""
    from busray.corpus.commit import commit_shard
    from busray.corpus.encode import Row
    from busray.corpus.record import claim_corpus
    from busray.data.phantom import PROBES, phantom, write_dataset
    from busray.identity import image_id
    from busray.layout import REPORT_JSON
    from busray.records import ContentBox, Execution, ImageSpec, Shard, to_json
    from busray.stages import audit

    write_dataset(data, 20, 3)
    run = opened(str(folder), 10, data)
    fingerprint = claim_corpus(run.store, {"seed": 7, "dataset": run.dataset.hash})
    for name in CLASSES:
        spec = ImageSpec(image_id(fingerprint, name, 0), name, 0, 0, "", 0, 0, ContentBox(0, 0, 128, 128))
        row = Row(spec, phantom(9_000, name, PROBES["demo"], (128, 128)).image)
        execution = Execution("none", "float32", 8, 1, {})
        commit_shard(run.store, Shard(name, 0, 1), [row], (), {"fingerprint": fingerprint}, execution, "parquet", 1.0)
    with patch.object(audit, "PLANTED_IMAGES", 4):
        audit.audit(run, InProcess())
    # Records of the corpus itself are made up for each number of shards.
    for name in ("commits", "data", "digests/commits"):
        shutil.rmtree(folder / name)
    for name in ("audit.json", "audit.png", REPORT_JSON, "report.html"):
        (folder / name).unlink(missing_ok=True)
    run.store.replace_checked("timings.json", to_json({"generate": 1.0}))


class InProcess:
    """Workers of this process (busray.workers), without Ray."""

    device = "cpu"
    report = staticmethod(quiet)

    def share(self, value: Any) -> Any:
        class Shared:
            def get(self) -> Any:
                return value

        return Shared()

    def map(self, stage: str, total: int, start: Callable[[], Any], items: Any, kind: str) -> None:
        print(f"{stage}: {len(items)} items were not done", file=sys.stderr)
        work = start()
        for item in items:
            work(item, quiet)


# ---- one stage, in a process of its own ----


def drive(stage: str, url: str, data: Path, shards: int) -> dict[str, Any]:
    from busray.storage import Store

    calls: Counter[str] = Counter()
    real = Store._with_retries

    def counted(self: Any, doing: str, key: str, attempt: Any) -> Any:
        calls[doing] += 1
        return real(self, doing, key, attempt)

    run = opened(url, shards // len(CLASSES), data)
    # Imports and the server's counter are not the stage's.
    work = WORK[stage](run)
    print("READY", flush=True)
    sys.stdin.readline()
    with patch.object(Store, "_with_retries", counted):
        started, cpu = time.perf_counter(), time.process_time()
        work()
        ended = time.perf_counter()
    return {"seconds": ended - started, "cpu": time.process_time() - cpu, "calls": dict(calls)}


def _resume(run: Any) -> Callable[[], Any]:
    """`generate` with nothing left to draw: the first time, and again with the manifest there."""
    from types import SimpleNamespace

    from busray.stages import generate

    job = SimpleNamespace(store=run.store, refine=None)

    def work() -> None:
        with patch.object(generate, "draw_job", lambda *_, **__: job):
            generate.generate(run, InProcess())  # type: ignore[arg-type]

    return work


def _manifest(run: Any) -> Callable[[], Any]:
    """The first manifest, from the records."""
    from busray.corpus.manifest import publish_manifest
    from busray.corpus.plan import read_segments, shards

    segments = read_segments(run.store)
    return lambda: publish_manifest(run.store, segments, drawn=shards(segments))


def _audit(run: Any) -> Callable[[], Any]:
    from busray.stages import audit

    def work() -> None:
        # Fewer than an audit compares with each other: that part does not grow with the corpus.
        with patch.object(audit, "PLANTED_IMAGES", 4), patch.object(audit, "SAMPLED_IMAGES", 20):
            audit.audit(run, InProcess())  # type: ignore[arg-type]

    return work


def _report(run: Any) -> Callable[[], Any]:
    from busray.stages import report

    return lambda: report.write_report(run, [])


def _gc(run: Any) -> Callable[[], Any]:
    from busray.corpus.arms import corpora
    from busray.corpus.manifest import orphans

    return lambda: [orphans(store) for store in corpora(run.store).values()]


def _verify(run: Any) -> Callable[[], Any]:
    from busray.corpus.verify import verify

    return lambda: verify(run.store)


def _repair(run: Any) -> Callable[[], Any]:
    from busray.corpus.damage import find_damage

    return lambda: find_damage(run.store, None)


WORK: dict[str, Callable[[Any], Callable[[], Any]]] = {
    "resume": _resume,
    "again": _resume,
    "manifest": _manifest,
    "audit": _audit,
    "report": _report,
    "gc": _gc,
    "verify": _verify,
    "repair": _repair,
}


# ---- all of it ----


def drive_apart(code: str, stage: str, url: str, data: Path, shards: int, server: Server | None) -> dict[str, Any]:
    """drive() in a process of its own, with the busray that lies in `code`."""
    environment = {**os.environ, "PYTHONPATH": code, "OMP_NUM_THREADS": "1"}
    if server is not None:
        environment |= {"AWS_ENDPOINT_URL_S3": server.url, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
        environment |= {"AWS_DEFAULT_REGION": "us-east-1"}
    words = [sys.executable, __file__, "--drive", stage, "--url", url, "--data", str(data), "--shards", str(shards)]
    child = subprocess.Popen(words, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin is not None and child.stdout is not None
    line = child.stdout.readline()
    if line.strip() != "READY":
        raise RuntimeError(f"{stage} of {url}: {line}")
    if server is not None:
        server.seen.clear()
    rest, _ = child.communicate("go\n")
    if child.returncode:
        raise RuntimeError(f"{stage} of {url} failed")
    result = json.loads(rest.splitlines()[-1])
    result["requests"] = dict(sorted(server.seen.items())) if server is not None else result.pop("calls")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, nargs="+", default=[1000])
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--stores", nargs="+", choices=("folder", "s3"), default=("folder", "s3"))
    parser.add_argument("--latency", type=float, default=0.02, help="seconds that the stand-in for S3 waits")
    parser.add_argument("--code", default=str(Path(__file__).parents[1]), help="checkout whose stages are measured")
    parser.add_argument("--drive", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.drive:
        print(json.dumps(drive(args.drive, args.url, args.data, args.shards[0])))
        return
    with tempfile.TemporaryDirectory() as name:
        base, data = Path(name) / "base", Path(name) / "data"
        prepare(base, data)
        print("| store | shards | stage | seconds | CPU s of the driver | requests |", flush=True)
        print("|---|---:|---|---:|---:|---|", flush=True)
        for shards in args.shards:
            measure(args, Path(name), base, data, shards)


def forget_settings(folder: Path) -> None:
    """The stages write them anew."""
    (folder / "config.json").unlink()
    shutil.rmtree(folder / "digests" / "config.json")


def measure(args: argparse.Namespace, scratch: Path, base: Path, data: Path, shards: int) -> None:
    folder = scratch / f"run-{shards}"
    shutil.copytree(base, folder)
    forget_settings(folder)
    for key, content in make_up(folder, data, shards):
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    forget_settings(folder)  # another version has others
    stores: dict[str, tuple[str, Server | None]] = {"folder": (str(folder), None)}
    if "s3" in args.stores:
        server = Server(args.latency)
        files = [path for path in folder.rglob("*") if path.is_file()]
        server.load({f"run/{path.relative_to(folder).as_posix()}": path.read_bytes() for path in files})
        stores["s3"] = f"s3://{BUCKET}/run", server
    for store in args.stores:
        url, server = stores[store]
        for stage in args.stages:
            got = drive_apart(args.code, stage, url, data, shards, server)
            requests = ", ".join(f"{count:,} {what}" for what, count in got["requests"].items())
            cells = [store, f"{shards:,}", stage, f"{got['seconds']:.1f}", f"{got['cpu']:.1f}", requests]
            print(f"| {' | '.join(cells)} |", flush=True)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
