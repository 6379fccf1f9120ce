"""`busray status`: how far a run is, from its store alone."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from aiobotocore.client import AioBaseClient
from moto.server import ThreadedMotoServer

from busray.cli import main
from busray.corpus.plan import extend_plan
from busray.layout import CONFIG, RUN, commit_key, progress_key
from busray.records import Damaged, DriverProgress, Shard, UserError, to_json
from busray.run.progress import telling
from busray.stages import status as module
from busray.stages.status import read_status
from busray.storage import Store
from tests.support.corpora import commit_black, fill
from tests.support.pinned_run import unpack
from tests.support.runs import quiet, settings

NOW = 1_800_000_000.0


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A run of which two of four shards are drawn, a minute and twenty minutes ago."""
    store = Store(str(tmp_path / "run"))
    store.put_checked(CONFIG, to_json(settings(store.url).model_dump(mode="json")))
    extend_plan(store, {"benign": 6, "malignant": 6}, 4)
    for age, shard in ((60, Shard("benign", 0, 4)), (1200, Shard("malignant", 4, 2))):
        commit_black(store, shard, seconds=1800.0)
        os.utime(Path(store.url, commit_key(shard)), (NOW - age, NOW - age))
    return store


def test_a_half_drawn_run_says_planned_done_rate_and_what_is_left(store: Store) -> None:
    (corpus,) = read_status(store, NOW).corpora
    benign, malignant = corpus.classes
    assert (benign.planned, benign.committed, benign.per_hour) == (6, 4, 24.0)
    assert benign.hours_left == pytest.approx(2 / 24)
    assert (malignant.planned, malignant.committed, malignant.per_hour, malignant.hours_left) == (6, 2, 0.0, None)
    assert (corpus.per_hour, corpus.hours_left) == (24.0, pytest.approx(6 / 24))
    assert corpus.newest == NOW - 60 and corpus.shards == 2
    assert corpus.hours["cpu"].value == pytest.approx(1.0) and corpus.hours["cpu"].is_exact


def test_before_the_plan_the_settings_say_how_many(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "run"))
    store.put_checked(CONFIG, to_json(settings(store.url).model_dump(mode="json")))
    (corpus,) = read_status(store, NOW).corpora
    assert not corpus.is_planned
    assert [(row.class_name, row.planned, row.committed) for row in corpus.classes] == [
        ("benign", 6, 0),
        ("malignant", 6, 0),
    ]


def test_arms_are_counted_apart(store: Store) -> None:
    fill(store.sub("arms/base"), {"benign": 4, "malignant": 4})
    released, base = read_status(store, NOW).corpora
    assert (released.name, base.name) == ("released", "base")
    assert [row.committed for row in base.classes] == [4, 4]


def test_an_ablations_sub_runs_are_counted_too(store: Store) -> None:
    fill(store.sub("methods/lora"), {"benign": 4})
    fill(store.sub("points/strength-0.5/arms/base"), {"benign": 4})
    names = [corpus.name for corpus in read_status(store, NOW).corpora if corpus.shards]
    assert names == ["released", "lora", "strength-0.5 base"]


def test_a_large_corpus_costs_a_bounded_number_of_reads(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(store.sub("arms/base"), {"benign": 40})
    monkeypatch.setattr(module, "RECORDS_READ", 3)
    read: list[str] = []
    real = Store.read

    def counted(self: Store, key: str) -> bytes:
        read.append(key)
        return real(self, key)

    monkeypatch.setattr(Store, "read", counted)
    base = read_status(store, NOW).corpora[1]
    assert sum(key.startswith("commits/") for key in read) == 2 + 3
    assert (base.hours["cpu"].n, base.hours["cpu"].of) == (3, 10)
    assert base.hours["cpu"].value == pytest.approx(10 / 3600)  # a second a shard


def test_a_damaged_record_is_named_and_the_others_counted(store: Store) -> None:
    key = commit_key(Shard("malignant", 4, 2))
    Path(store.url, key).write_bytes(b"{")
    (corpus,) = read_status(store, NOW).corpora
    assert corpus.unreadable == (key,)
    assert corpus.hours["cpu"].n == 1


def test_the_newest_checkpoint_is_named(store: Store) -> None:
    for step in (3, 6):
        store.put_once(f"finetune/checkpoints/{step:08d}.json", b"{}")
    status = read_status(store, NOW)
    assert status.checkpoint is not None and status.checkpoint[0] == 6


def test_last_errors_are_those_of_all_drivers_the_newest_first(store: Store) -> None:
    for i, ended in ((0, None), (1, "done"), (2, "the disk is full")):
        word = DriverProgress(f"{i:016}", "1", "busray run x", "h", 1, "m", 0.0, 50.0 + i, notes=((i, f"slow {i}"),))
        store.replace(progress_key(word.driver), to_json({**word.__dict__, "ended": ended}))
    told = read_status(store, NOW).notes
    assert told == [(52.0, "ended: the disk is full"), (2, "slow 2"), (1, "slow 1"), (0, "slow 0")]


def test_no_run_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run there"):
        read_status(Store(str(tmp_path / "none")), NOW)


def test_the_command_prints_a_table_and_who_works(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    word = DriverProgress("a" * 16, "1", "busray run x", "gpu-7", 42, "m", 0.0, 0.0, "generate corpus", 4, 12)
    store.replace(progress_key(word.driver), to_json(word))
    assert main(["status", store.url]) == 0
    shown = capsys.readouterr().out
    assert "process 42 on gpu-7 works" in shown and "generate corpus: 4/12" in shown
    assert "1.00 actor-hours of drawing on cpu" in shown
    assert max(map(len, shown.splitlines()[1:])) <= 80


def test_the_command_prints_json(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", store.url, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["corpora"][0]["classes"][0]["committed"] == 4
    assert told["lives"] is False


def test_settings_of_a_newer_busray_do_not_hide_the_status(store: Store) -> None:
    newer = json.loads(store.read(CONFIG))
    newer["cluster"]["colour"] = "red"
    store.replace(CONFIG, to_json(newer))
    assert read_status(store, NOW).corpora[0].shards == 2


def test_damaged_settings_are_named(store: Store) -> None:
    store.replace(CONFIG, b"{}")
    with pytest.raises(Damaged, match=r"config\.json is damaged"):
        read_status(store, NOW)


def test_a_run_of_an_older_busray_has_a_status(tmp_path: Path) -> None:
    status = read_status(unpack(tmp_path), NOW)
    released, base = status.corpora
    assert [(row.planned, row.committed) for row in (*released.classes, *base.classes)] == [(6, 6)] * 4
    assert released.quarantined.value == 1 and status.drivers == ()


# ---- in object storage


@pytest.fixture(scope="module")
def bucket(one_creator_wins: None) -> Iterator[str]:
    """URL of an empty bucket on a loopback server; its address and keys are in the environment."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL_S3", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        boto3.client("s3").create_bucket(Bucket="busray-status")
        yield "s3://busray-status"
    server.stop()


def requests_of_status(store: Store, monkeypatch: pytest.MonkeyPatch) -> int:
    asked: list[str] = []
    real = AioBaseClient._make_api_call

    async def counted(self: Any, operation: str, parameters: Any) -> Any:
        asked.append(operation)
        return await real(self, operation, parameters)

    with monkeypatch.context() as patch:
        patch.setattr(AioBaseClient, "_make_api_call", counted)
        read_status(store, time.time())
    return len(asked)


def test_of_a_run_in_object_storage_the_status_is_the_same_and_its_requests_do_not_grow(
    bucket: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(f"{bucket}/run")
    store.put_checked(CONFIG, to_json(settings(store.url).model_dump(mode="json")))
    extend_plan(store, {"benign": 400, "malignant": 400}, 4)
    monkeypatch.setattr(module, "RECORDS_READ", 5)
    counts: list[int] = []
    for shards in (range(0, 24, 4), range(24, 64, 4)):
        for first in shards:
            commit_black(store, Shard("benign", first, 4))
        counts.append(requests_of_status(store, monkeypatch))
    assert counts[0] == counts[1] <= 25
    with telling(store, quiet) as report:
        report("generate corpus", 64, 800)
    assert main(["status", store.url, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    benign = told["corpora"][0]["classes"][0]
    assert (benign["planned"], benign["committed"]) == (400, 64)
    assert benign["per_hour"] == pytest.approx(384)  # 64 in the last ten minutes
    assert told["drivers"][0]["word"]["ended"] == "done" and told["drivers"][0]["age"] < 60


def test_repair_does_not_move_anything_beside_a_living_driver(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    key = commit_key(Shard("benign", 0, 4))
    store.replace(RUN, b"{}")
    Path(store.url, key).write_bytes(b"{")
    word = DriverProgress("a" * 16, "1", "busray run x", "gpu-7", 42, "m", 0.0, 0.0)
    store.replace(progress_key(word.driver), to_json(word))
    assert main(["repair", store.url, "--apply"]) == 2
    assert "process 42 on gpu-7" in capsys.readouterr().err
    assert store.exists(key)
    store.replace(progress_key(word.driver), to_json({**word.__dict__, "ended": "done"}))
    main(["repair", store.url, "--apply"])
    assert "->" in capsys.readouterr().out
