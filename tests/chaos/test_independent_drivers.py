"""Independent drivers of one output: each works on a machine of its own, and none knows of another.

The first test has drivers that draw by arithmetic, so that four of them take seconds. The second
has `busray generate` with a Ray of its own each.
"""

import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from busray.corpus.commit import committed_shards
from busray.corpus.manifest import orphans
from busray.corpus.verify import verify
from busray.layout import MANIFEST
from busray.storage import Store
from tests.support.drivers import Driver, digest_in, run, trained_run
from tests.support.fake_corpus import draw
from tests.support.paths import ROOT

CLASSES, EACH = ("benign", "malignant"), 120
IMAGES = len(CLASSES) * EACH
SHARD_SIZE = 4

DRIVER = f"""
import sys, time
from random import sample
from types import SimpleNamespace
from busray.layout import commit_key
from busray.stages import generate as stage
from busray.storage import Store
from tests.support.fake_corpus import commit

store, shade = Store(sys.argv[1]), int(sys.argv[2])

class Workers:
    device = "cpu"

    def report(self, *progress):
        pass

    def draw(self, drawing):
        for shard in sample(drawing.shards, len(drawing.shards)):  # as cluster/draw.py takes them
            if not store.exists(commit_key(shard)):
                time.sleep(0.02)
                commit(store, shard, shade)  # pixels as on a machine of another kind
                print(shard.class_name, shard.name, flush=True)

stage.draw_job = lambda *_: SimpleNamespace(store=store, refine=None, gate=None)
stage.ShardSizes = lambda *_: SimpleNamespace(of=lambda refined: {SHARD_SIZE})
config = SimpleNamespace(
    classes={{name: SimpleNamespace(images={EACH}) for name in {CLASSES}}},
    corpus=SimpleNamespace(gate=None, max_quarantined=0.01),
    cluster=SimpleNamespace(max_gpu_hours=None),
)
digest = stage.generate(SimpleNamespace(config=config, store=store), Workers())
print("manifest digest", digest)
"""


class Drawing:
    """A process that draws by arithmetic into an output."""

    def __init__(self, output: Path, shade: int) -> None:
        words = [sys.executable, "-c", DRIVER, str(output), str(shade)]
        self.process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def wait(self) -> tuple[int, list[str], str]:
        """(exit status, shards that it drew, what it said last)."""
        out, err = self.process.communicate()
        lines = out.splitlines()
        drawn = [line for line in lines if not line.startswith("manifest")]
        return self.process.returncode, drawn, lines[-1] if self.process.returncode == 0 else err


def test_of_four_drivers_one_is_killed_and_the_others_end_with_one_whole_corpus(tmp_path: Path) -> None:
    output = tmp_path / "run"
    store = Store(str(output))
    drivers = [Drawing(output, shade) for shade in range(4)]
    try:
        while len(committed_shards(store)) < 12:
            assert all(driver.process.poll() is None for driver in drivers)
            time.sleep(0.01)
        drivers[0].process.send_signal(signal.SIGKILL)
        ended = [driver.wait() for driver in drivers]
    finally:
        for driver in drivers:
            driver.process.kill()
    assert ended[0][0] == -signal.SIGKILL
    assert [status for status, _, _ in ended[1:]] == [0, 0, 0], ended
    verdict = verify(store)
    assert verdict.problems == () and verdict.planned == verdict.committed == IMAGES
    assert {said for _, _, said in ended[1:]} == {f"manifest digest {verdict.digest}"}, "all publish one truth"

    drawn = Counter(shard for _, shards, _ in ended for shard in shards)
    # The killed one may have committed a shard and not have said so.
    assert IMAGES // SHARD_SIZE - 1 <= len(drawn) <= IMAGES // SHARD_SIZE
    assert all(shards for _, shards, _ in ended[1:]), "each had a part of the work"
    twice = drawn.total() - len(drawn)
    # They meet by chance, and at the end: benchmarks/independent_drivers.py expects 15.
    assert twice < len(drawn) / 2, f"{twice} of {len(drawn)} shards were drawn twice"
    print(f"{twice} of {len(drawn)} shards were drawn more than once")
    # Pixels of different machines differ here: what lost is an orphan, which gc finds.
    assert len(orphans(store)) <= twice + 1


def test_drivers_that_start_late_or_find_everything_done_end_well(tmp_path: Path) -> None:
    output = tmp_path / "run"
    draw(Store(str(output)), dict.fromkeys(CLASSES, EACH), SHARD_SIZE)
    before = Store(str(output)).read(MANIFEST)
    status, drawn, said = Drawing(output, 1).wait()
    assert (status, drawn) == (0, []), said
    assert Store(str(output)).read(MANIFEST) == before


@pytest.mark.slow
def test_three_commands_with_a_ray_of_their_own_share_a_corpus_and_one_is_killed(tmp_path: Path) -> None:
    config, store = trained_run(tmp_path)
    arguments = ["generate", str(config), f"--output={store.url}"]
    drivers = [Driver(arguments) for _ in range(3)]
    try:
        while not committed_shards(store) and drivers[0].process.poll() is None:
            time.sleep(0.1)
        drivers[0].kill()
        drivers[0].wait()
        ended = [driver.wait() for driver in drivers[1:]]
    finally:
        for driver in drivers:
            driver.end()
    assert [status for status, _ in ended] == [0, 0], ended
    verdict = verify(store)
    assert verdict.problems == () and verdict.planned == verdict.committed + verdict.quarantined == 16
    assert {digest_in(text) for _, text in ended} == {verdict.digest}
    assert digest_in(run(arguments)) == verdict.digest, "a late one finds nothing left"
