"""The Frechet distance of a whole corpus through the real Ray path, on made-up features.

    python benchmarks/fid.py --folder FOLDER
    OMP_NUM_THREADS=1 python benchmarks/fid.py --arithmetic

Prints the tables of scale.md. Features [n, 2048] are made up by seed, in shards of 256 rows of
two classes, and stored as `busray evaluate` stores Inception's. Each row of the first table is a
driver and a Ray of its own: `moments_of_all` of stages/whole_corpus.py computes the moments in a
pool of workers, keeps them, and merges them. The second table compares what came out with one pass
over the same rows in one process, which sums x x' about the mean and takes no QR; the smallest size
also with torch-fidelity. FOLDER needs 9 GB for a million rows while this runs.

--arithmetic: why moments keep a factor by QR and not the sum of x x'. What each costs on one core,
and how far a distance moves when the same rows are summed in another cut and order.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil

from busray import processes
from busray.config import Cluster
from busray.corpus.features import put_array
from busray.evidence.stats.frechet import ROWS_AT_ONCE, Moments, frechet
from busray.identity import fingerprint
from busray.layout import features_key
from busray.records import CLASS_ALL
from busray.report.tables import markdown_table
from busray.run.pieces import load_array
from busray.stages.whole_corpus import COLUMN, MomentsBlock, moments_blocks, moments_of_all
from busray.storage import Store
from busray.workers import Beat

CLASSES = ("benign", "malignant")
D = 2048
SHARD = 256
RANK = 32  # of what the features of an image have in common
REFERENCE = 500
EXTRACTOR = "made-up-1"
SIZES = (10**4, 10**5, 10**6)
GROWN = 1.1  # the second size is then measured again with so many times its rows
ACTORS = 2
FEW = 20_000
"""Most rows that torch-fidelity is given: it holds all of them, in float64."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--arithmetic", action="store_true")
    parser.add_argument("--rows", type=int, nargs="+", default=SIZES)
    parser.add_argument("--child", choices=("make", "merge"))
    options = parser.parse_args()
    if options.child == "make":
        make(options.folder, options.rows)
    elif options.child == "merge":
        print(json.dumps(merge(options.folder, options.rows[0])))
    elif options.arithmetic:
        arithmetic()
    else:
        folder = options.folder / "busray-fid"
        try:
            compare(folder, sorted(options.rows))
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def compare(folder: Path, sizes: list[int]) -> None:
    """Make the features, merge each size in a process of its own, and print both tables."""
    started = time.perf_counter()
    made = [*sizes, *(int(rows * GROWN) for rows in sizes[1:2])]
    child(folder, "make", *made)
    print(f"{sizes[-1]:,} rows made up and stored in {time.perf_counter() - started:.0f} s\n", flush=True)
    lines, checks = [], []
    for rows in sizes:
        shutil.rmtree(folder / "run" / "moments", ignore_errors=True)
        shutil.rmtree(folder / "run" / "digests" / "moments", ignore_errors=True)
        lines.append(line(f"{rows:,}", child(folder, "merge", rows)))
        checks.append(check(folder, rows, fidelity=rows <= FEW))
        if len(sizes) > 1 and rows == sizes[1]:
            more = int(rows * GROWN)
            lines.append(line(f"{more:,}, of which {rows:,} were done", child(folder, "merge", more)))
        print(lines[-1], checks[-1], flush=True)
    heads = ["rows", "blocks kept", "s", "rows/s", "rows/s of CPU", "s once more", "MB kept", "MB of features"]
    heads += ["driver's peak MB", "before, MB", "largest worker, MB"]
    print("\n" + markdown_table(heads, lines))
    print(markdown_table(["rows", "FID", "by one pass", "relative difference", "of torch-fidelity"], checks))


def line(rows: str, found: dict[str, Any]) -> list[str]:
    values = [found["blocks"], f"{found['seconds']:.1f}", f"{found['rows'] / found['seconds']:,.0f}"]
    values.append(f"{found['rows'] / found['cpu']:,.0f}")
    values += [f"{found['again']:.1f}", f"{found['kept'] / 1e6:.0f}", f"{found['rows'] * D * 4 / 1e6:,.0f}"]
    return [rows, *map(str, values), f"{found['peak']:.0f}", f"{found['before']:.0f}", f"{found['worker']:.0f}"]


def child(folder: Path, what: str, *rows: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--folder", str(folder), "--child", what, "--rows", *map(str, rows)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1]) if what == "merge" else {}


# ---- made-up features


class Part(NamedTuple):
    """A shard of made-up features."""

    class_name: str
    number: int
    rows: int

    @property
    def digest(self) -> str:
        return fingerprint([self.class_name, self.number, self.rows])


def parts(rows: int) -> Iterator[Part]:
    """Half of the rows in each class; a larger corpus begins with a smaller one's full shards."""
    for name in CLASSES:
        left = rows // len(CLASSES)
        for number in range(-(-left // SHARD)):
            yield Part(name, number, min(SHARD, left - number * SHARD))


def made_up(class_name: str, number: int, rows: int) -> np.ndarray:
    """float32 [rows, D], correlated and not negative, as a network's pooled features are."""
    label = len(class_name)
    basis = np.random.default_rng(label).standard_normal((RANK, D), np.float32)
    rng = np.random.default_rng([label, number])
    own = rng.standard_normal((SHARD, D), np.float32) * np.logspace(0, -3, D, dtype=np.float32)
    common = rng.standard_normal((SHARD, RANK), np.float32) @ basis / np.float32(RANK**0.5)
    return np.abs(own + common)[:rows]


def make(folder: Path, sizes: list[int]) -> None:
    every: dict[str, Part] = {}
    for rows in sizes:
        every |= {part.digest: part for part in parts(rows)}
    with workers_of(folder) as workers:
        store = Store(str(folder / "run"))
        total = sum(part.rows for part in every.values())
        workers.map("made up", total, lambda: lambda part, beat: put(store, part, beat), list(every.values()), "core")


def put(store: Store, part: Part, beat: Beat) -> None:
    put_array(store, features_key(part.digest, COLUMN, EXTRACTOR), made_up(*part))
    beat(part.rows)


# ---- merging


def workers_of(folder: Path) -> Any:
    from busray.cluster.pool import ray_workers

    folder.mkdir(parents=True, exist_ok=True)
    cluster = Cluster(actors=ACTORS, cpus_per_actor=1, threads=1)
    return ray_workers(cluster, folder / "ray.log", lambda stage, done, total: None)


def blocks_of(store: Store, rows: int) -> list[MomentsBlock]:
    blocks: list[MomentsBlock] = []
    for name in CLASSES:
        shards = [(part.digest, part.rows) for part in parts(rows) if part.class_name == name]
        blocks += moments_blocks(store, EXTRACTOR, name, shards)
    return blocks


def merge(folder: Path, rows: int) -> dict[str, Any]:
    """What a driver does; the moments that it gets are left in the folder."""
    store = Store(str(folder / "run"))
    with workers_of(folder) as workers:
        workers.call("start", 1, nothing)  # Ray is up, and is not measured
        before, started = peak_mb(), time.perf_counter()
        blocks = blocks_of(store, rows)
        with watched() as seen:
            moments = moments_of_all(workers, blocks)
        seconds, started = time.perf_counter() - started, time.perf_counter()
        moments_of_all(workers, blocks)
        again = time.perf_counter() - started
    peak = peak_mb()
    np.save(folder / f"{rows}.npy", moments[CLASS_ALL].packed())
    kept = [path for path in (folder / "run" / "moments").rglob("*.npy")]
    return {
        "rows": rows,
        "blocks": sum(bool(block.key) for block in blocks),
        "seconds": seconds,
        "again": again,
        "kept": sum(path.stat().st_size for path in kept),
        "before": before,
        "cpu": sum(cpu for cpu, _ in seen.values()),
        "worker": max(size for _, size in seen.values()),
        "peak": peak,
    }


def nothing(beat: Beat) -> None:
    """A task that only shows that Ray runs."""


@contextmanager
def watched() -> Iterator[dict[int, tuple[float, float]]]:
    """process of a worker -> (seconds of CPU in the block, largest resident MB), twice a second."""
    seen: dict[int, tuple[float, float]] = {}
    start: dict[int, float] = {}
    ended = threading.Event()

    def look() -> None:
        folder = processes.own_folder()
        for pid in processes.running(folder) if folder else ():
            with suppress(psutil.Error, IndexError):
                process = psutil.Process(pid)
                if process.cmdline()[0].startswith("ray::"):
                    used = sum(process.cpu_times()[:2])
                    used -= start.setdefault(pid, used if first else 0.0)
                    size = process.memory_info().rss / 1024**2
                    seen[pid] = (used, max(size, seen.get(pid, (0.0, 0.0))[1]))

    def watch() -> None:
        while not ended.wait(0.5):
            look()

    first = True
    look()
    first = False
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()
        look()


def peak_mb() -> float:
    """The largest resident size that this process ever had; Linux only."""
    # Not getrusage: a new program begins there with the size of the process that started it.
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


# ---- one pass


def check(folder: Path, rows: int, *, fidelity: bool) -> list[str]:
    """FID from a made-up reference: of the workers' moments, of one pass, of torch-fidelity."""
    reference = np.concatenate([made_up("x", number, SHARD) for number in range(-(-REFERENCE // SHARD))])[:REFERENCE]
    merged = Moments.unpacked(np.load(folder / f"{rows}.npy"))
    assert merged.n == rows // len(CLASSES) * len(CLASSES)
    found, one_pass = frechet(merged, Moments.of(reference)), by_one_pass(folder, rows, reference)
    texts = [f"{rows:,}", f"{found:.9f}", f"{one_pass:.9f}", f"{abs(found / one_pass - 1):.1e}"]
    return [*texts, f"{abs(found / by_torch_fidelity(folder, rows, reference) - 1):.1e}" if fidelity else "–"]


def stored(folder: Path, rows: int) -> Iterator[np.ndarray]:
    store = Store(str(folder / "run"))
    for part in parts(rows):
        yield load_array(store, features_key(part.digest, COLUMN, EXTRACTOR)).astype(np.float64)


def by_one_pass(folder: Path, rows: int, reference: np.ndarray) -> float:
    """Sums of x and x x' about the first shard's mean, in float64; the root by eigenvalues."""
    n, total, products, centre = 0, np.zeros(D), np.zeros((D, D)), None
    for x in stored(folder, rows):
        centre = x.mean(0) if centre is None else centre
        x -= centre
        n += len(x)
        total += x.sum(0)
        products += x.T @ x
    assert centre is not None
    mean, covariance = total / n, (products - np.outer(total, total) / n) / (n - 1)
    real = reference.astype(np.float64)
    other = (real - real.mean(0)) / (len(real) - 1) ** 0.5
    root = np.sqrt(np.clip(np.linalg.eigvalsh(other @ covariance @ other.T), 0, None)).sum()
    step = mean + centre - real.mean(0)
    return float(step @ step + np.trace(covariance) + (other**2).sum() - 2 * root)


def by_torch_fidelity(folder: Path, rows: int, reference: np.ndarray) -> float:
    import torch
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    drawn = np.concatenate(list(stored(folder, rows))).astype(np.float32)
    sides = [fid_features_to_statistics(torch.from_numpy(x)) for x in (drawn, reference)]
    return fid_statistics_to_metric(sides[0], sides[1], False)["frechet_inception_distance"]


# ---- QR or sums of products


def arithmetic() -> None:
    rng = np.random.default_rng(0)
    triangle, x = np.triu(rng.standard_normal((D, D))), rng.standard_normal((ROWS_AT_ONCE, D))
    stacked = np.concatenate([triangle, x])
    speeds = []
    for name, work in (("QR", lambda: np.linalg.qr(stacked, mode="r")), ("x'x", lambda: x.T @ x)):
        started = time.process_time()
        for _ in range(3):
            work()
        speeds.append([name, f"{3 * len(x) / (time.process_time() - started):,.0f}"])
    print(markdown_table(["of 2,048 features", "rows/s of CPU"], speeds))
    lines = []
    for decades in (1, 3, 5):
        drawn, reference = steep(6000, 1, decades), steep(4000, 2, decades)
        cut = np.array_split(drawn, 7)[::-1]
        target = Moments.of(reference)
        by_qr = [frechet(Moments.merged(map(Moments.of, parts)), target) for parts in ([drawn], cut)]
        by_sums = [of_covariances(summed(parts), summed([reference])) for parts in ([drawn], cut)]
        moved = [f"{abs(values[1] / values[0] - 1):.1e}" for values in (by_qr, by_sums)]
        lines.append([str(2 * decades), f"{by_qr[0]:.6f}", *moved])
    heads = ["decades of the covariance's eigenvalues", "distance", "moves by QR", "moves by x'x"]
    print(markdown_table(heads, lines))


def steep(n: int, seed: int, decades: float, d: int = 256) -> np.ndarray:
    """[n, d] in a basis that all have, with standard deviations from 1 down to 10^-decades."""
    basis = np.linalg.qr(np.random.default_rng(99).standard_normal((d, d)))[0]
    return np.random.default_rng(seed).standard_normal((n, d)) * np.logspace(0, -decades, d) @ basis


def summed(parts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(mean, covariance) of sums about the first part's mean."""
    centre, n = parts[0].mean(0), sum(map(len, parts))
    total = sum((part - centre).sum(0) for part in parts)
    products = sum((part - centre).T @ (part - centre) for part in parts)
    return centre + total / n, (products - np.outer(total, total) / n) / (n - 1)


def of_covariances(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> float:
    """The distance with roots by eigenvalues."""
    values, vectors = np.linalg.eigh(a[1])
    half = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    root = np.sqrt(np.clip(np.linalg.eigvalsh(half @ b[1] @ half), 0, None)).sum()
    step = a[0] - b[0]
    return float(step @ step + np.trace(a[1]) + np.trace(b[1]) - 2 * root)


if __name__ == "__main__":
    main()
