"""The driver is killed at each commit point, or stalls while another one does its work: every
image once, one truth."""

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from busray.corpus.commit import read_commits
from busray.corpus.manifest import orphans
from busray.corpus.verify import verify
from busray.storage import Store
from tests.support.drivers import Driver, copied, digest_in, run, trained_run
from tests.support.fault_proxy import DROP, FaultProxy, Request, Rule

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Store]:
    """(config, run) with a checked data set and adapters, and nothing drawn yet."""
    return trained_run(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def undisturbed(trained: tuple[Path, Store], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The manifest's digest of a run that nothing happens to."""
    config, prepared = trained
    output = copied(prepared, Store(str(tmp_path_factory.mktemp("undisturbed") / "run")))
    return digest_in(run(["generate", str(config), f"--output={output.url}"]))


def assert_each_planned_image_once(store: Store, digest: str) -> None:
    verdict = verify(store)
    assert verdict.problems == ()
    assert verdict.planned == verdict.committed + verdict.quarantined == 16
    assert verdict.digest == digest


def test_a_driver_killed_at_every_commit_point_comes_to_the_undisturbed_corpus(
    trained: tuple[Path, Store], undisturbed: str, proxy: FaultProxy, s3_server: str, bucket_url: str
) -> None:
    config, prepared = trained
    store = copied(prepared, Store(bucket_url, endpoint_url=s3_server))
    points = {
        "before data": Rule(lambda request: None, method="PUT", key="/data/", when="before"),
        "after data": Rule(lambda request: None, method="PUT", key="/data/", when="after"),
        "after record": Rule(lambda request: None, method="PUT", key="/commits/", when="after"),
        "before manifest": Rule(lambda request: None, method="PUT", key="manifest.parquet", when="before"),
    }
    for name, rule in points.items():
        driver = Driver(["generate", str(config), f"--output={bucket_url}"], proxy.url)
        rule.action = killing(driver, DROP if rule.when == "before" else None)
        proxy.add(rule)
        status, text = driver.wait()
        driver.end()
        assert rule.hits == 1 and status == -9, f"{name}: {text}"
        assert store.read_or_none("manifest.parquet") is None, f"{name}: a manifest although shards are missing"
    text = run(["generate", str(config), f"--output={bucket_url}"], proxy.url)
    assert digest_in(text) == undisturbed
    assert_each_planned_image_once(store, undisturbed)
    again = points["before data"].seen - len(read_commits(store))
    # The upload that was lost; what was uploaded and not recorded is drawn again and found to be
    # there.
    assert 1 <= again <= 6, "more than two shards in flight at each of three deaths while drawing"
    print(f"shards uploaded again: {again}")


def killing(driver: Driver, outcome: object) -> Callable[[Request], object]:
    """An action that kills the driver, and then lets the request through (None) or loses it
    (DROP)."""

    def kill(request: Request) -> object:
        driver.kill()
        return outcome

    return kill


def test_a_driver_that_stalls_and_comes_back_late_changes_nothing_that_readers_see(
    trained: tuple[Path, Store], proxy: FaultProxy, s3_server: str, bucket_url: str
) -> None:
    """The late one draws one by one on two threads, so that its bytes differ and its object is
    an orphan."""
    config, prepared = trained
    store = copied(prepared, Store(bucket_url, endpoint_url=s3_server))
    command = ["generate", str(config), f"--output={bucket_url}"]
    late = Driver([*command, "--sampling.batch_size=1", "--cluster.threads=2"], proxy.url)
    try:
        stalled = proxy.add(Rule(lambda request: late.stop(), method="PUT", key="/data/", when="after"))
        while not stalled.hits and late.process.poll() is None:
            time.sleep(0.1)
        assert stalled.hits == 1
        digest = digest_in(run(command, s3_server))
        before = {key: store.read(key) for key in store.list()}
        late.go_on()
        status, text = late.wait()
    finally:
        late.end()
    assert status == 0, text
    assert stalled.seen < 4, "the late driver drew every shard, although all were committed"
    print(f"shards uploaded again: {stalled.seen}")
    assert digest_in(text) == digest, "both drivers see one truth"
    after = {key: store.read(key) for key in store.list()}
    changed = {key for key, data in before.items() if after.get(key) != data and not key.startswith("progress/")}
    assert changed <= {"timings.json"}, "a late driver replaced what readers trust"
    assert_each_planned_image_once(store, digest)
    lost = orphans(store)
    new = {key for key in set(after) - set(before) if not key.startswith(("digests/timings.json/", "progress/"))}
    assert lost and new <= set(lost)
    live = {commit.object for commit in read_commits(store)}
    assert not live & set(lost)
    run(["gc", bucket_url, "--delete"], s3_server)
    assert set(store.list()) == set(after) - set(lost)
    assert_each_planned_image_once(store, digest)


def test_a_stage_in_which_nothing_moves_ends_with_the_command_to_go_on(
    trained: tuple[Path, Store], tmp_path: Path
) -> None:
    """No node has room for an actor. In a process of its own, which the stage that is given up
    does not outlive."""
    config, prepared = trained
    output = copied(prepared, Store(str(tmp_path / "run"))).url
    flags = ["--cluster.cpus_per_actor=64", "--cluster.hang_seconds=5", "--cluster.patience=0.005"]
    status, text = Driver(["generate", str(config), f"--output={output}", *flags]).wait()
    assert status == 1
    assert re.search(r"nothing moved for 20 s: no worker came; Ray at \S+ has 1 node,", text), text[-1500:]
    assert "\nrun the same command again to go on from here: busray generate" in text
