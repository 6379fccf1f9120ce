"""What the stream of shards does with its time, by a sampler that sleeps: scale.md's table.

    python benchmarks/drawing.py [--shards=24] [--actors=4]

Each row is a process with a Ray of its own (tests/support/sleeping.py): actors hold all CPUs of
this Ray, which are made up. Prints one line of JSON a trial: seconds from the call of
`Workers.draw` until the first commit, until as many actors had begun to draw as were asked for,
and until the end; and the commits that were there at each tenth of the draws. `--kill` sends
SIGKILL to the job when half of the shards are drawn, and counts what is kept.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from busray.storage import Store
from tests.support.paths import ROOT


def seconds_of(folder: Path) -> list[float]:
    """When the files of a folder were made, in order."""
    return sorted(path.stat().st_mtime for path in folder.rglob("*") if path.is_file())


def trial(args: argparse.Namespace, folder: Path) -> dict[str, object]:
    arguments = [f"--{name}={getattr(args, name)}" for name in ("shards", "images", "seconds", "loading", "actors")]
    command = [sys.executable, "-m", "tests.support.sleeping", str(folder), *arguments, f"--cpus={args.actors}"]
    began = time.time()
    job = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    store = Store(str(folder))
    if args.kill:
        while len(list(store.list("drawn"))) < args.shards / 2 and job.poll() is None:
            time.sleep(0.05)
        job.send_signal(signal.SIGKILL)
    job.wait()
    called = (folder / "called").stat().st_mtime
    drawn, begun = seconds_of(folder / "drawn"), seconds_of(folder / "workers")
    commits = seconds_of(folder / "commits")
    row: dict[str, object] = {"drawn": len(drawn), "committed": len(commits), "ray_start": round(called - began, 1)}
    row["first_commit"] = round(commits[0] - called, 1) if commits else None
    row["last_draw"] = round(drawn[-1] - called, 1)
    row["full_width"] = round(begun[args.actors - 1] - called, 1) if len(begun) >= args.actors else None
    row["width"] = len(begun)
    row["end"] = round(time.time() - called, 1)
    if not args.kill:
        tenths = [drawn[max(0, len(drawn) * i // 10 - 1)] for i in range(1, 11)]
        row["commits_at_tenths_of_the_draws"] = [sum(at <= limit for at in commits) for limit in tenths]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=40)
    parser.add_argument("--images", type=int, default=4, help="of a shard")
    parser.add_argument("--seconds", type=float, default=0.5, help="of an image")
    parser.add_argument("--loading", type=float, default=5.0, help="seconds until an actor can draw")
    parser.add_argument("--actors", type=int, default=4)
    parser.add_argument("--kill", action="store_true", help="when half of the shards are drawn")
    parser.add_argument("--trials", type=int, default=1)
    args = parser.parse_args()
    for _ in range(args.trials):
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(trial(args, Path(folder))), flush=True)


if __name__ == "__main__":
    main()
