"""A command starts its own Ray while it reads the images: in processes of their own, real ones."""

import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from busray import processes

SAYS_ITS_FOLDER = """
import sys
from contextlib import contextmanager
from busray import processes
from busray.cluster import own

one_ray = own.one_ray

@contextmanager
def said(**options):
    # As nice as what runs beside it: by Ray's default of 15, workers would wait for that.
    with one_ray(_system_config={"worker_niceness": 0}, **options):
        print(processes.own_folder(), flush=True)
        yield

own.one_ray = said
"""
COMMAND = """
from busray.cli import process
process(sys.argv[1:])
"""
WORKERS = """
from pathlib import Path
from busray.cluster.pool import ray_workers
from busray.cluster.session import early_ray
from busray.config import Cluster

with early_ray(Cluster()) as early:
    early.start()
    print("beside", early.is_up.is_set(), file=sys.stderr, flush=True)
    with ray_workers(Cluster(), Path(sys.argv[1]), lambda *_: None, early.wait) as workers:
        print("worked", workers.call("task", 1, lambda beat: 7), file=sys.stderr)
"""


def ended(script: str, *arguments: object) -> tuple[int, list[str], Path]:
    """(exit status, lines of standard error, the folder of the Ray that was up); none of its
    processes is left."""
    words = [sys.executable, "-c", SAYS_ITS_FOLDER + script, *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.stdout, done.stderr
    folder = Path(done.stdout.split()[0])
    assert not folder.exists() and not processes.running(folder)
    return done.returncode, done.stderr.splitlines(), folder


def test_workers_use_the_ray_that_started_early(tmp_path: Path) -> None:
    status, lines, _ = ended(WORKERS, tmp_path / "ray.log")
    assert (status, lines) == (0, ["beside False", "worked 7"])


def test_a_mistake_in_the_images_ends_the_command_and_the_ray_that_had_started(
    tmp_path: Path, phantom_folder: Path
) -> None:
    images = tmp_path / "images"
    shutil.copytree(phantom_folder / "benign", images / "benign")
    (images / "normal").mkdir()
    shutil.copy(
        next(path for path in (phantom_folder / "normal").iterdir() if "mask" not in path.name), images / "normal"
    )
    config = tmp_path / "config.yaml"
    classes = {"benign": {"images": 6}, "normal": {"images": 6}}
    config.write_text(yaml.safe_dump({"dataset": {"path": str(images)}, "classes": classes}))
    status, lines, _ = ended(COMMAND, "generate", config, f"--output={tmp_path / 'run'}")
    assert status == 2
    assert [line for line in lines if line.startswith("busray:")] == lines[-1:]
    assert "class normal: too few images" in lines[-1]
    assert not (tmp_path / "run").exists(), "a mistake leaves nothing behind"
