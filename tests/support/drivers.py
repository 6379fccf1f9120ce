"""Drivers of their own process for chaos tests: `busray` commands on one small corpus, to be
killed or stopped."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import yaml

from busray.data.phantom import write_dataset
from busray.storage import Store

CLASSES = ("benign", "malignant")


def write_config(path: Path, images: Path, **changes: Any) -> Path:
    """A config of 2 x 8 images in shards of 4, two sampling steps; one thread, so that pixels
    repeat."""
    tree: dict[str, Any] = {
        "dataset": {"path": str(images), "val": 0.2, "test": 0.3},
        "classes": {name: {"images": 8, "token": f"<us-{name}>"} for name in CLASSES},
        "adapters": {
            "steps": 4,
            "batch_size": 4,
            "checkpoint_every": 2,
            "validate_every": 4,
        },
        "sampling": {"steps": 2, "guidance_scale": 2.0, "batch_size": 4},
        "refine": None,
        "corpus": {"shard_size": 4},
        "evaluate": {"arms": ["base", "lora+ti"], "judge": None},
        "cluster": {"threads": 1},
    }
    for key, value in changes.items():
        tree[key] = {**tree[key], **value} if isinstance(value, dict) else value
    path.write_text(yaml.safe_dump(tree))
    return path


class Driver:
    """`busray ARGUMENTS`, with every process that it starts: its Ray and its workers."""

    def __init__(self, arguments: Sequence[str], endpoint: str | None = None, **environment: str) -> None:
        env = {**os.environ, **environment}
        if endpoint:
            env["AWS_ENDPOINT_URL_S3"] = endpoint
        self.process = subprocess.Popen(
            [sys.executable, "-m", "busray", *arguments],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._stopped: list[psutil.Process] = []

    def tree(self) -> list[psutil.Process]:
        """The driver and all that it started and is still there."""
        try:
            driver = psutil.Process(self.process.pid)
            return [driver, *driver.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def kill(self) -> None:
        """SIGKILL to the driver alone; its Ray notices and goes."""
        os.kill(self.process.pid, signal.SIGKILL)

    def stop(self) -> None:
        """SIGSTOP to the driver and all that it started: a machine that hangs."""
        self._stopped = self.tree()
        for process in self._stopped:
            send(process, signal.SIGSTOP)

    def go_on(self) -> None:
        for process in self._stopped:
            send(process, signal.SIGCONT)

    def wait(self) -> tuple[int, str]:
        """(exit status, what it printed); negative where a signal ended it."""
        try:
            text, _ = self.process.communicate()
        except BaseException:  # pytest's limit too
            self.end()
            raise
        return self.process.returncode, text

    def end(self) -> None:
        """Nothing of it is left running."""
        for process in {*self._stopped, *self.tree()}:
            send(process, signal.SIGKILL)


def send(process: psutil.Process, sign: signal.Signals) -> None:
    """A signal to a process that may be gone already."""
    with suppress(psutil.NoSuchProcess):
        process.send_signal(sign)


def run(arguments: Sequence[str], endpoint: str | None = None, **environment: str) -> str:
    """What a driver printed that nothing happens to; asserts that it succeeded."""
    status, text = Driver(arguments, endpoint, **environment).wait()
    assert status == 0, text
    return text


def trained_run(folder: Path) -> tuple[Path, Store]:
    """(config, run) in folder with a checked data set and adapters, and nothing drawn yet."""
    write_dataset(folder / "images", 12, seed=5, size=(96, 96))
    shutil.rmtree(folder / "images" / "normal")
    config = write_config(folder / "chaos.yaml", folder / "images")
    run(["finetune", str(config), f"--output={folder / 'run'}"])
    return config, Store(str(folder / "run"))


def digest_in(text: str) -> str:
    """The manifest's digest that `busray generate` printed."""
    return text.split("manifest digest ")[1].split()[0]


def copied(source: Store, target: Store) -> Store:
    """target with every object of source but Ray's own."""
    for key in source.list():
        if not key.startswith("ray"):
            target.put_once(key, source.read(key))
    return target
