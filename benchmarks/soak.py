"""Random kills of one run against an S3 server on loopback; prints a row for reliability.md.

    python benchmarks/soak.py --minutes 30 --images 1000 --seed 1

A run of two classes is drawn once undisturbed and once, elsewhere in the same bucket, by drivers
that are killed: at random moments (seeded) the driver, its raylet or one of its workers gets
SIGKILL, or all of them SIGSTOP for a while with a second driver beside them. A run that ends early
gets as many images more and goes on. Needs the development set (moto).
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import boto3
import psutil
from moto.server import ThreadedMotoServer

sys.path.insert(0, str(Path(__file__).parents[1]))
from busray.corpus.manifest import orphans
from busray.corpus.verify import verify
from busray.data.phantom import write_dataset
from busray.storage import Store
from tests.support.drivers import CLASSES, Driver, copied, digest_in, run, send, write_config

BUCKET = "busray-soak"
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
STOPPED = "all stopped, a successor beside them"
FAULTS = ("driver killed", "worker killed", "raylet killed", STOPPED)
QUIET_SECONDS = (5.0, 60.0)
"""Between one fault and the next, drawn uniformly."""

MOST_LATE = 2
"""Most drivers that continue beside the newest one after a stop; older ones are killed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--images", type=int, default=1000, help="a class at first; two classes")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        with tempfile.TemporaryDirectory() as folder:
            soak(Path(folder), "http://{}:{}".format(*server.get_host_and_port()), args)
    finally:
        server.stop()


def soak(folder: Path, server: str, args: argparse.Namespace) -> None:
    os.environ.update(KEYS, AWS_ENDPOINT_URL_S3=server)
    boto3.client("s3").create_bucket(Bucket=BUCKET)
    write_dataset(folder / "images", 12, seed=5, size=(96, 96))
    config = write_config(folder / "soak.yaml", folder / "images", corpus={"shard_size": 25})
    run(["finetune", str(config), f"--output={folder / 'prepared'}"])
    prepared = Store(str(folder / "prepared"))
    copied(prepared, Store(f"s3://{BUCKET}/soaked"))
    copied(prepared, Store(f"s3://{BUCKET}/undisturbed"))

    rng, faults, images = random.Random(args.seed), Counter[str](), args.images
    drivers: list[Driver] = []
    stopped: list[Driver] = []
    began = time.monotonic()
    end = began + 60 * args.minutes
    while time.monotonic() < end:
        driver = Driver(command(config, "soaked", images))
        drivers.append(driver)
        kind = ""
        while kind != STOPPED and quiet(driver, rng, end):
            kind = rng.choice(FAULTS)
            if strike(driver, kind, rng):
                faults[kind] += 1
                print(f"{time.monotonic() - began:.0f} s: {kind}", flush=True)
        for late in stopped:
            late.go_on()
        stopped = [driver] if kind == STOPPED else []
        at_work = [d for d in drivers if d not in stopped and d.process.poll() is None]
        for late in at_work[:-MOST_LATE]:
            late.kill()  # each has a Ray of its own, and two cores are not enough for many
            faults["driver killed"] += 1
        if driver.process.poll() == 0:
            images += args.images  # done before the time is: a corpus grows
    for late in stopped:
        late.go_on()
    for driver in drivers:
        driver.wait(600)
    soaked = digest_in(run(command(config, "soaked", images)))
    undisturbed = digest_in(run(command(config, "undisturbed", images)))
    report(Store(f"s3://{BUCKET}/soaked"), faults, soaked == undisturbed, args)


def command(config: Path, name: str, images: int) -> list[str]:
    counts = [f"--classes.{class_name}.images={images}" for class_name in CLASSES]
    return ["generate", str(config), f"--output=s3://{BUCKET}/{name}", *counts]


def quiet(driver: Driver, rng: random.Random, end: float) -> bool:
    """Waits a drawn time; whether the driver still runs then."""
    until = min(end, time.monotonic() + rng.uniform(*QUIET_SECONDS))
    while time.monotonic() < until and driver.process.poll() is None:
        time.sleep(0.2)
    return driver.process.poll() is None


def strike(driver: Driver, kind: str, rng: random.Random) -> bool:
    """Does a fault to a driver; False where it has no such process now."""
    if kind == "driver killed":
        driver.kill()
        return True
    if kind == STOPPED:
        driver.stop()
        return True
    part = "ray::" if kind == "worker killed" else "raylet"
    victims = []
    for process in driver.tree():
        with suppress(psutil.NoSuchProcess):
            if part in " ".join(process.cmdline()[:1]):
                victims.append(process)
    if victims:
        send(rng.choice(victims), signal.SIGKILL)
    return bool(victims)


def report(store: Store, faults: Counter[str], same: bool, args: argparse.Namespace) -> None:
    verdict = verify(store)
    lost = verdict.planned - verdict.committed - verdict.quarantined
    told = ", ".join(f"{n} x {kind}" for kind, n in sorted(faults.items()))
    print("| minutes | seed | faults | planned | committed | lost | problems | orphans | digest as undisturbed |")
    print("|---:|---:|---|---:|---:|---:|---:|---:|---|")
    print(
        f"| {args.minutes:g} | {args.seed} | {told} | {verdict.planned} | {verdict.committed} | {lost} "
        f"| {len(verdict.problems)} | {len(orphans(store))} | {'yes' if same else 'NO'} |"
    )
    for problem in verdict.problems:
        print("problem:", problem)
    if verdict.problems or not same:
        sys.exit(1)


if __name__ == "__main__":
    main()
