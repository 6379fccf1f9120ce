"""A corpus as a whole, drawn by arithmetic in place of a model: grown, checked against its manifest, tidied."""

import io
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from busray.cli import main
from busray.commands import _quarantine_status
from busray.config_file import validate
from busray.corpus.arms import corpora
from busray.corpus.commit import commit_shard, committed_shards, read_commit, read_commits, read_rows
from busray.corpus.encode import Row
from busray.corpus.manifest import orphans, publish_manifest
from busray.corpus.plan import extend_plan, pending, read_segments, shards
from busray.corpus.record import claim_corpus
from busray.corpus.verify import verify
from busray.identity import image_id, sha256_bytes
from busray.layout import MANIFEST, commit_key, data_key, segment_key
from busray.records import Commit, ContentBox, Execution, ImageSpec, Segment, Shard, UserError, to_json
from busray.storage import Store

EXECUTION = Execution("cpu", "float32", 2, 1, {})
IMAGES = {"benign": 6, "malignant": 4}
FIRST = Shard("benign", 0, 4)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "run"))


def rows(fingerprint: str, shard: Shard, shade: int = 0) -> list[Row]:
    return [
        Row(
            ImageSpec(image_id(fingerprint, shard.class_name, i), shard.class_name, i, 0, "", i, i, ContentBox(0, 0, 8, 8)),
            np.full((8, 8), shade + i, np.uint8),
            np.full((8, 8), 100 + i, np.uint8),
        )
        for i in range(shard.first, shard.first + shard.count)
    ]


def commit(store: Store, shard: Shard, shade: int = 0, format: str = "parquet", rejected: int = 0) -> Commit:
    """A shard whose pixels follow from class, index and shade; its first `rejected` images are quarantined."""
    fingerprint = claim_corpus(store, {"seed": 7})
    made = rows(fingerprint, shard, shade)
    rejects = [(row.spec.image_id, "a poisoned prompt") for row in made[:rejected]]
    return commit_shard(
        store, shard, made[rejected:], rejects, {"fingerprint": fingerprint}, EXECUTION, format, seconds=float(shade)
    )


def draw(store: Store, images: Mapping[str, int] = IMAGES, shard_size: int = 4, **how: object) -> str:
    """What `generate` does; returns the manifest's digest."""
    segments = extend_plan(store, images, shard_size)
    todo = pending(shards(segments), committed_shards(store))
    for shard in todo:
        commit(store, shard, **how)  # type: ignore[arg-type]
    return publish_manifest(store, segments, drawn=todo)


def everything(store: Store) -> dict[str, bytes]:
    return {key: store.read(key) for key in store.list()}


# ---- growing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shard_size", [4, 3, 7])
def test_growing_makes_only_new_shards_and_leaves_every_old_byte(store: Store, shard_size: int) -> None:
    draw(store)
    before, old = everything(store), set(committed_shards(store))
    put, written = Store.put_once, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "put_once", lambda self, key, data: written.append(key) or put(self, key, data))
        draw(store, {"benign": 13, "malignant": 4}, shard_size, shade=50)
    after = everything(store)
    assert [key for key in before if after[key] != before[key]] == [MANIFEST]
    new = set(committed_shards(store)) - old
    assert {key for key in written if key.startswith("commits/")} == {commit_key(shard) for shard in new}
    assert sorted(i for s in new for i in range(s.first, s.first + s.count)) == list(range(6, 13))
    assert max(shard.count for shard in new) <= shard_size
    assert verify(store).problems == ()
    ids = [cell for one in read_commits(store) for cell in read_rows(store, one, ["image_id"])["image_id"].to_pylist()]
    assert len(ids) == len(set(ids)) == 17


def test_a_grown_corpus_cannot_be_lowered_and_the_refusal_changes_nothing(store: Store) -> None:
    draw(store, {"benign": 6, "malignant": 4})
    draw(store, {"benign": 9, "malignant": 4})
    before = everything(store)
    with pytest.raises(UserError, match=r"classes\.benign\.images: 8 is below the 9 already planned"):
        draw(store, {"benign": 8, "malignant": 9}, shard_size=2)
    assert everything(store) == before


# ---- one digest, whoever drew --------------------------------------------------------------------


@pytest.mark.parametrize("format", ["parquet", "png"])
def test_the_manifests_digest_follows_from_the_images_and_not_from_order_time_or_driver(
    tmp_path: Path, format: str
) -> None:
    undisturbed = Store(str(tmp_path / "undisturbed"))
    digest = draw(undisturbed, format=format)
    two = Store(str(tmp_path / "two-drivers"))
    plan = shards(extend_plan(two, IMAGES, 4))
    for shard in reversed(plan[1:]):
        commit(two, shard, format=format)
    commit(Store(two.url), plan[1], shade=9, format=format)
    assert draw(two, format=format) == digest
    assert verify(two).digest == verify(undisturbed).digest == digest
    assert verify(two).problems == ()


# ---- verify --------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["parquet", "png"])
def test_a_sound_run_with_its_arms_is_verified(store: Store, format: str, capsys: pytest.CaptureFixture) -> None:
    draw(store, format=format)
    draw(store.sub("arms/base"), {"benign": 2, "malignant": 2}, format=format, rejected=1)
    assert list(corpora(store)) == ["", "arms/base"]
    before = everything(store)
    assert main(["verify", store.url]) == 0
    told = capsys.readouterr().out
    assert "released" in told and "arms/base" in told
    assert everything(store) == before
    verdict = verify(store.sub("arms/base"))
    assert (verdict.planned, verdict.committed, verdict.quarantined, verdict.shards) == (4, 2, 2, 2)
    assert verdict.problems == ()


def first_object(store: Store) -> Path:
    return Path(store.url) / read_commit(store, FIRST).object


def a_picture(store: Store) -> Path:
    return next(first_object(store).parent.glob(f"{FIRST.name}/*.png"))


def restate(store: Store, **changes: object) -> None:
    """Another record in place of the first shard's, as no driver would write it."""
    path = Path(store.url) / commit_key(FIRST)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def put_another_shards_rows(store: Store) -> None:
    """An object with the recorded digest whose images are not the planned ones."""
    data = first_object(store).read_bytes()
    table = pq.read_table(io.BytesIO(data))
    buffer = io.BytesIO()
    pq.write_table(pa.concat_tables([table.slice(0, 3), table.slice(0, 1)]), buffer)
    digest = sha256_bytes(buffer.getvalue())
    key = data_key(FIRST, digest, ".parquet")
    store.put_once(key, buffer.getvalue())
    restate(store, object=key, digest=digest)


def restate_manifest(store: Store, column: str, value: object, stated: str | None = None) -> None:
    table = pq.read_table(io.BytesIO(store.read(MANIFEST)))
    at = table.column_names.index(column)
    table = table.set_column(at, column, [[value, *table.column(column).to_pylist()[1:]]])
    if stated:
        table = table.replace_schema_metadata({"busray": json.dumps({"digest": stated})})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    store.replace(MANIFEST, buffer.getvalue())


DAMAGES: dict[str, tuple[str, Callable[[Store], object], str]] = {
    "an object is lost": ("parquet", lambda s: first_object(s).unlink(), "is not there"),
    "an object is torn": ("parquet", lambda s: first_object(s).write_bytes(b"torn"), "not what its commit records"),
    "a picture is lost": ("png", lambda s: a_picture(s).unlink(), "is not there"),
    "a picture is torn": ("png", lambda s: a_picture(s).write_bytes(b"torn"), "not what its shard records"),
    "a record is lost": ("parquet", lambda s: s.delete(commit_key(FIRST)), "the shard is not done"),
    "a record is torn": ("png", lambda s: (Path(s.url) / commit_key(FIRST)).write_text("{"), "is no commit record"),
    "a record names another shard": ("png", lambda s: restate(s, first=8), "is the record of benign/00000008-00004"),
    "a record claims fewer rows": (
        "parquet",
        lambda s: restate(s, rows=3, rejects=[["x", "y"]]),
        "4 rows, recorded are 3",
    ),
    "an image is there twice": ("parquet", put_another_shards_rows, "1 planned images are neither rows nor rejects, 1"),
    "a record is in no plan": ("parquet", lambda s: commit(s, Shard("benign", 4, 4)), "the plan has no such shard"),
    "the plan has a gap": (
        "parquet",
        lambda s: s.put_once(segment_key(2), to_json(Segment("benign", 8, 1, 4))),
        "does not begin where",
    ),
    "there is no manifest": ("parquet", lambda s: s.delete(MANIFEST), "the run is not finished"),
    "the manifest is torn": ("parquet", lambda s: s.replace(MANIFEST, b"torn"), "cannot be read"),
    "the manifest's rows are not what it states": (
        "parquet",
        lambda s: restate_manifest(s, "rows", 3),
        "its rows have the digest",
    ),
    "the manifest states another digest": (
        "parquet",
        lambda s: restate_manifest(s, "rows", 4, stated="0" * 64),
        "it states the digest 0000",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_whatever_is_not_as_recorded_is_named_and_ends_with_status_1(
    store: Store, capsys: pytest.CaptureFixture, damage: str
) -> None:
    format, do, told = DAMAGES[damage]
    draw(store, format=format)
    assert main(["verify", store.url]) == 0
    do(store)
    capsys.readouterr()
    assert main(["verify", store.url]) == 1
    assert told in capsys.readouterr().out


def test_verify_and_gc_refuse_a_folder_that_is_no_run(store: Store, capsys: pytest.CaptureFixture) -> None:
    for command in ("verify", "gc"):
        assert main([command, store.url]) == 2
        assert "no corpus there" in capsys.readouterr().err
    assert not Path(store.url).exists()


# ---- quarantine ----------------------------------------------------------------------------------


@pytest.mark.parametrize("allowed, status", [(0.2, 0), (0.19, 1), (0.0, 1), (1.0, 0)])
def test_more_quarantined_images_than_allowed_end_the_command_with_status_1(
    store: Store, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, allowed: float, status: int
) -> None:
    """Two of ten. Drawn by this file in place of Ray, through the command."""
    monkeypatch.setattr("busray.commands._open", lambda *_, **__: SimpleNamespace(store=store))
    monkeypatch.setattr("busray.stages.generate.generate", lambda run: draw(store, shard_size=6, rejected=1))
    config = Path(store.url).parent / "config.yaml"
    config.write_text(yaml.safe_dump({"dataset": {"path": "data"}, "classes": {"benign": {}, "malignant": {}}}))
    flags = [f"--output={store.url}", f"--corpus.max_quarantined={allowed}"]
    assert main(["generate", str(config), *flags]) == status
    told = capsys.readouterr()
    assert "manifest digest" in told.out and store.exists(MANIFEST)
    if status:
        assert f"2 of 10 planned images are quarantined, more than corpus.max_quarantined={allowed} allows" in told.err
        for name in ("benign", "malignant"):
            assert re.search(rf"  [0-9a-f]{{12}}-{name}-00000000: a poisoned prompt\n", told.err)
        assert f"{store.url}/commits/" in told.err
    else:
        assert "quarantined" not in told.err


def test_an_arms_quarantined_images_count_for_themselves(store: Store, capsys: pytest.CaptureFixture) -> None:
    config = validate({"output": store.url, "dataset": {"path": "data"}, "classes": {"benign": {}, "malignant": {}}})
    draw(store)
    draw(store.sub("arms/base"), rejected=1)
    assert _quarantine_status(config, released=True) == 0
    assert _quarantine_status(config, released=True, arms=True) == 1
    assert f"{store.url}/arms/base/commits/" in capsys.readouterr().err


# ---- gc ------------------------------------------------------------------------------------------


def gc(store: Store, capsys: pytest.CaptureFixture, *flags: str) -> list[str]:
    capsys.readouterr()
    assert main(["gc", store.url, *flags]) == 0
    return capsys.readouterr().out.split()


def test_two_drivers_with_different_bytes_leave_one_live_object_and_one_orphan(
    store: Store, capsys: pytest.CaptureFixture
) -> None:
    won = commit(store, FIRST)
    assert commit(Store(store.url), FIRST, shade=9) == won
    (orphan,) = gc(store, capsys)
    assert set(store.list("data")) == {won.object, orphan}
    assert gc(store, capsys, "--delete") == [orphan]
    assert list(store.list("data")) == [won.object]
    assert read_rows(store, won).num_rows == 4
    assert gc(store, capsys, "--delete") == []


def test_live_pictures_are_kept_and_the_losers_pictures_go(store: Store, capsys: pytest.CaptureFixture) -> None:
    won = commit(store, FIRST, format="png")
    live = set(store.list("data"))
    commit(store, FIRST, shade=9, format="png")
    lost = set(store.list("data")) - live
    assert len(live) == 9 and len(lost) == 5  # four pictures before refinement are the same in both
    assert set(gc(store, capsys, "--delete")) == lost
    assert set(store.list("data")) == live
    assert read_rows(store, won).num_rows == 4


@pytest.mark.parametrize("format", ["parquet", "png"])
def test_what_a_writer_has_in_flight_survives_a_deleting_gc(
    store: Store, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    """gc runs at each moment of the writer's work: before and after each of its objects, and before its record."""
    put, moments = Store.put_once, []

    def tidied_around(self: Store, key: str, data: bytes) -> bool:
        moments.append(key)
        assert main(["gc", store.url, "--delete"]) == 0
        return put(self, key, data)

    commit(store, Shard("benign", 4, 2), format=format)
    monkeypatch.setattr(Store, "put_once", tidied_around)
    made = commit(store, FIRST, format=format)
    assert len(moments) == (2 if format == "parquet" else 10)
    assert gc(store, capsys, "--delete") == []
    assert read_rows(store, made).num_rows == 4


def test_a_stalled_writer_that_wakes_after_gc_finds_the_shard_done(
    store: Store, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, stalled = Store.put_once, []

    def stalls_before_its_record(self: Store, key: str, data: bytes) -> bool:
        if key == commit_key(FIRST) and not stalled:
            stalled.append(key)
            commit(Store(store.url), FIRST, shade=9)
            assert len(gc(store, capsys, "--delete")) == 1
        return put(self, key, data)

    monkeypatch.setattr(Store, "put_once", stalls_before_its_record)
    won = commit(store, FIRST)
    assert won.seconds == 9.0
    assert list(store.list("data")) == [won.object]
    assert read_rows(store, won).num_rows == 4


@pytest.mark.parametrize("damage", ["record", "object", "metadata"])
def test_where_it_cannot_be_told_what_is_live_everything_is_kept(
    store: Store, capsys: pytest.CaptureFixture, damage: str
) -> None:
    format = "png" if damage == "metadata" else "parquet"
    won = commit(store, FIRST, format=format)
    commit(store, FIRST, shade=9, format=format)
    if damage == "record":
        (Path(store.url) / commit_key(FIRST)).write_text("{}")
    elif damage == "object":
        (Path(store.url) / won.object).unlink()
        (Path(store.url) / won.object).with_name(f"{FIRST.name}-{'0' * 16}.parquet").write_text("another")
    else:
        (Path(store.url) / won.object).write_text("torn")
    assert gc(store, capsys, "--delete") == []


def test_what_is_not_named_as_busray_names_things_is_kept(store: Store, capsys: pytest.CaptureFixture) -> None:
    commit(store, FIRST)
    for name in ("data/notes.txt", "data/benign/notes.txt", f"data/benign/{FIRST.name}-mine.parquet", "notes.txt"):
        (Path(store.url) / name).write_text("mine")
    assert gc(store, capsys, "--delete") == []


def test_arms_are_tidied_with_their_run(store: Store, capsys: pytest.CaptureFixture) -> None:
    commit(store, FIRST)
    arm = store.sub("arms/lora+ti")
    won = commit(arm, FIRST)
    commit(arm, FIRST, shade=9)
    (orphan,) = gc(store, capsys, "--delete")
    assert orphan.startswith("arms/lora+ti/data/benign/00000000-00004-")
    assert list(arm.list("data")) == [won.object]


def test_gc_reads_only_the_records_of_shards_with_more_than_one_object(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(store, {"benign": 40}, shard_size=2)
    commit(store, Shard("benign", 8, 2), shade=9)
    read, listed, keys, prefixes = Store.read, Store.list, [], []
    monkeypatch.setattr(Store, "read", lambda self, key: keys.append(key) or read(self, key))
    monkeypatch.setattr(Store, "list", lambda self, prefix="": prefixes.append(prefix) or listed(self, prefix))
    assert len(orphans(store)) == 1
    assert keys == [commit_key(Shard("benign", 8, 2))]
    assert sorted(prefixes) == ["commits", "data", "first-draws"]


def test_an_empty_store_has_no_orphans(store: Store) -> None:
    assert orphans(store) == []
    assert read_segments(store) == []
