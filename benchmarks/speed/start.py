"""Start-up: `busray --help`, a new corpus to its first shard, and a stopped one to its next.

The commands are processes of their own. A shard here is one batch of the embedded base at 64 px.
"""

import os
import resource
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import yaml

from benchmarks.speed.contest import Limit, Seconds, scratch_folder
from benchmarks.speed.runs import BATCH, small_run

ROOT = Path(__file__).parents[2]
HELP_SECONDS = 0.15
WAIT_SECONDS = 300.0
"""After which a command that has committed nothing is given up."""


def questions() -> list[Limit]:
    scratch = scratch_folder()
    run = small_run(scratch / "run", BATCH)
    config = scratch / "config.yaml"
    settings = run.config.model_dump(mode="json") | {"corpus": {"shard_size": BATCH}}
    config.write_text(yaml.safe_dump(settings))
    # The first command of a run checks and keeps its data set, and trains: not what is asked here.
    _to_the_end("finetune", config)
    trained, stopped = scratch / "trained", scratch / "stopped"
    shutil.copytree(scratch / "run", trained)

    def cold() -> Seconds:
        _restore(trained, scratch / "run")
        return _to_first_commit(config, scratch / "run")

    def resumed() -> Seconds:
        if not stopped.exists():
            _restore(trained, scratch / "run")
            _to_the_end("generate", config)
            commits = sorted((scratch / "run" / "commits").rglob("*.json"))
            commits[-1].unlink()
            shutil.rmtree(scratch / "run" / "digests" / commits[-1].relative_to(scratch / "run"))
            shutil.copytree(scratch / "run", stopped)
        _restore(stopped, scratch / "run")
        return _to_first_commit(config, scratch / "run")

    return [
        Limit("`busray --help`, seconds of CPU", _help, HELP_SECONDS),
        Limit("`busray generate` of a new corpus, to its first shard of 8", cold, None),
        Limit("`busray generate` of a stopped corpus, to its next shard of 8", resumed, None),
    ]


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "busray", *arguments]


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def _help() -> Seconds:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(_command("--help"), env=_environment(), stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Seconds(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def _to_the_end(command: str, config: Path) -> None:
    done = subprocess.run(_command(command, str(config)), env=_environment(), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)


def _restore(kept: Path, run: Path) -> None:
    shutil.rmtree(run)
    shutil.copytree(kept, run)


def _to_first_commit(config: Path, run: Path) -> Seconds:
    """From the start of `generate` until one more record is there than before."""
    before = _commits(run)
    began = time.perf_counter()
    process = subprocess.Popen(
        _command("generate", str(config)), env=_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    while _commits(run) == before:
        if process.poll() is not None or time.perf_counter() - began > WAIT_SECONDS:
            process.kill()
            raise RuntimeError((process.communicate()[1] or b"no commit").decode())
        time.sleep(0.02)
    seconds = time.perf_counter() - began
    with suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=WAIT_SECONDS)
    return Seconds(seconds)


def _commits(run: Path) -> int:
    return len(list((run / "commits").rglob("*.json")))
