"""A corpus as a whole: it grows without a changed byte, and whatever is not as recorded is
named."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from busray.cli import main
from busray.corpus.arms import corpora
from busray.corpus.commit import committed_shards, read_commit, read_commits, read_rows
from busray.corpus.plan import extend_plan, shards
from busray.corpus.verify import verify
from busray.identity import sha256_bytes
from busray.layout import MANIFEST, commit_key, data_key, segment_key
from busray.records import Segment, Shard, UserError, to_json
from busray.storage import Store
from tests.support.fake_corpus import FIRST, IMAGES, commit, draw, everything


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
    """Another record in place of the first shard's, as no driver would write it, without digest."""
    path = Path(store.url) / commit_key(FIRST)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    shutil.rmtree(Path(store.url) / "digests" / commit_key(FIRST))


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
    "a record is torn": (
        "png",
        lambda s: (Path(s.url) / commit_key(FIRST)).write_text("{"),
        "it is not what was stored",
    ),
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
