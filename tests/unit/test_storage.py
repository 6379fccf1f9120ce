"""The local store: an object is there whole or not at all, and the first writer of a key wins."""

import os
import pickle
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.asyn import AsyncFileSystem

from busray import storage
from busray.records import Damaged, UserError, json_object
from busray.storage import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "run"))


def everything(store: Store) -> list[str]:
    """Every file below the store, hidden and unfinished ones too."""
    return sorted(str(p.relative_to(store.url)) for p in Path(store.url).rglob("*") if p.is_file())


def test_what_was_put_is_read_and_listed(store: Store) -> None:
    assert store.put_once("commits/benign/a.json", b"one")
    assert store.read("commits/benign/a.json") == b"one"
    assert store.exists("commits/benign/a.json")
    assert list(store.list()) == ["commits/benign/a.json"]


def test_what_is_not_there_is_reported(store: Store) -> None:
    with pytest.raises(FileNotFoundError):
        store.read("run.json")
    assert store.read_or_none("run.json") is None
    assert not store.exists("run.json")
    assert list(store.list()) == []
    assert list(store.list("commits")) == []


def test_reading_writes_nothing(store: Store) -> None:
    store.read_or_none("run.json")
    list(store.list())
    store.exists("run.json")
    assert not Path(store.url).exists()


def test_listing_is_sorted_and_ends_at_the_folder(store: Store) -> None:
    for key in ("data/b/2", "data/a/10", "data/a/1", "data-more/x", "commits/a"):
        store.put_once(key, b"x")
    assert list(store.list("data")) == ["data/a/1", "data/a/10", "data/b/2"]
    assert list(store.list("data/a")) == ["data/a/1", "data/a/10"]


def test_put_once_creates_and_never_overwrites(store: Store) -> None:
    assert store.put_once("run.json", b"first") is True
    assert store.put_once("run.json", b"second") is False
    assert store.read("run.json") == b"first"


def test_putting_the_same_bytes_again_is_no_conflict(store: Store) -> None:
    assert store.put_once("run.json", b"first") is True
    assert store.put_once("run.json", b"first") is True


def test_of_many_writers_of_one_key_one_wins_and_all_learn_it(store: Store) -> None:
    start, answers = threading.Barrier(8), {}

    def write(i: int) -> None:
        start.wait()
        answers[i] = Store(store.url).put_once("plan/0000.json", b"writer %d" % i)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [i for i, won in answers.items() if won]
    assert len(answers) == 8
    assert len(winners) == 1
    assert store.read("plan/0000.json") == b"writer %d" % winners[0]
    assert everything(store) == ["plan/0000.json"]


def test_a_lost_answer_is_settled_by_reading_back(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def link_and_lose_the_answer(*paths: Any) -> None:
        link(*paths)
        raise TimeoutError("the connection dropped")

    monkeypatch.setattr(os, "link", link_and_lose_the_answer)
    assert store.put_once("run.json", b"ours") is True
    assert store.put_once("run.json", b"others") is False
    assert everything(store) == ["run.json"]


def test_a_failed_write_is_an_error_and_leaves_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        store.put_once("run.json", b"x" * 100)
    with pytest.raises(OSError, match="No space left"):
        store.replace("report.json", b"x" * 100)
    assert everything(store) == []


def test_a_failed_replacement_leaves_the_old_object(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.replace("report.json", b"old")

    def interrupted(handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.replace("report.json", b"new")
    assert store.read("report.json") == b"old"
    assert everything(store) == ["report.json"]


def test_the_name_appears_only_once_the_bytes_are_on_disk(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    fsync, link = os.fsync, os.link

    def on_fsync(handle: int) -> None:
        seen.append(f"fsync, visible: {store.exists('run.json')}")
        fsync(handle)

    def on_link(source: Any, target: Any) -> None:
        seen.append(f"link of {Path(source).read_bytes()!r}, visible: {store.exists('run.json')}")
        link(source, target)

    monkeypatch.setattr(os, "fsync", on_fsync)
    monkeypatch.setattr(os, "link", on_link)
    store.put_once("run.json", b"whole")
    assert seen == [
        "fsync, visible: False",
        "link of b'whole', visible: False",
        "fsync, visible: True",  # of the folder, and of the one above it, which is new too
        "fsync, visible: True",
    ]


def test_a_torn_write_is_never_visible(store: Store) -> None:
    """A process killed during a write leaves a file that no reader and no listing shows."""
    code = (
        "import os, sys, time\n"
        "from busray.storage import Store\n"
        "os.fsync = lambda handle: (print('writing', flush=True), time.sleep(60))\n"
        "Store(sys.argv[1]).put_once('data/benign/shard', b'x' * 1_000_000)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, store.url], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "writing\n"
        assert list(store.list()) == []
        assert store.read_or_none("data/benign/shard") is None
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert child.stdout is not None
        child.stdout.close()
    (left,) = everything(store)
    assert Path(left).name.startswith(storage.TEMPORARY_PREFIX)
    assert list(store.list()) == []
    assert store.put_once("data/benign/shard", b"again") is True
    assert list(store.list("data")) == ["data/benign/shard"]


def test_replace_overwrites(store: Store) -> None:
    store.replace("report.json", b"old and long")
    store.replace("report.json", b"new")
    assert store.read("report.json") == b"new"
    assert everything(store) == ["report.json"]


def test_deleted_objects_are_gone(store: Store) -> None:
    store.put_once("data/x", b"x")
    store.delete("data/x")
    assert not store.exists("data/x")


def test_empty_objects_are_refused(store: Store) -> None:
    with pytest.raises(ValueError, match=r"empty object 'run\.json'"):
        store.put_once("run.json", b"")
    assert everything(store) == []


@pytest.mark.parametrize("key", ["", "/etc/passwd", "../x", "a/../../x", "a//b", "a/./b", "a/"])
def test_a_key_that_could_leave_the_folder_is_refused(store: Store, key: str) -> None:
    for use in (store.read, store.exists, store.delete, lambda k: store.put_once(k, b"x")):
        with pytest.raises(ValueError, match="not a key"):
            use(key)


def test_objects_can_be_read_by_whom_the_umask_lets(store: Store) -> None:
    before = os.umask(0o022)
    try:
        store.put_once("run.json", b"x")
        store.replace("report.json", b"x")
    finally:
        os.umask(before)
    assert {(Path(store.url) / name).stat().st_mode & 0o777 for name in everything(store)} == {0o644}


def test_a_store_below_a_store_sees_its_keys_only(store: Store) -> None:
    store.put_once("run.json", b"x")
    arm = store.sub("arms/base")
    arm.put_once("run.json", b"arm")
    assert list(arm.list()) == ["run.json"]
    assert store.read("arms/base/run.json") == b"arm"


def test_a_store_travels_to_workers(store: Store) -> None:
    store.put_once("run.json", b"x")
    assert pickle.loads(pickle.dumps(store)).read("run.json") == b"x"  # noqa: S301


def test_a_relative_folder_stays_the_same_when_the_process_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store("runs/demo/")
    monkeypatch.chdir("/")
    store.put_once("run.json", b"x")
    assert (tmp_path / "runs" / "demo" / "run.json").read_bytes() == b"x"


def test_a_file_url_is_a_local_folder(tmp_path: Path) -> None:
    store = Store(f"file://{tmp_path}/run")
    store.put_once("run.json", b"x")
    assert store.local
    assert (tmp_path / "run" / "run.json").read_bytes() == b"x"


def test_an_unknown_scheme_is_a_users_mistake() -> None:
    with pytest.raises(UserError, match="output: cannot open 'nosuch://x/y'"):
        Store("nosuch://x/y").read("run.json")


# ---- digests ----


def damage(store: Store, key: str) -> None:
    path = Path(store.url) / key
    path.write_bytes(path.read_bytes()[:-1] + b"?")


def test_what_is_not_any_more_what_was_put_is_an_error_that_names_it_and_the_repair(store: Store) -> None:
    assert store.put_checked("study/a.json", b'{"seed": 1}')
    assert store.read_record("study/a.json", json_object) == {"seed": 1}
    damage(store, "study/a.json")
    with pytest.raises(Damaged, match=r"study/a\.json is damaged: it is not what was stored") as told:
        store.read_record("study/a.json", json_object)
    assert f"busray repair {store.url}" in told.value.fix


def test_of_two_writers_with_other_bytes_each_leaves_its_digest_and_the_first_is_read(store: Store) -> None:
    assert store.put_checked("features/a.npy", b"first")
    assert not store.put_checked("features/a.npy", b"second")
    assert store.put_checked("features/a.npy", b"first")
    assert store.read_checked("features/a.npy") == b"first"


def test_a_writer_that_dies_between_digest_and_object_is_in_nobodys_way(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = Store.put_once

    def dies(self: Store, key: str, data: bytes) -> bool:
        if key == "run.json":
            raise KeyboardInterrupt
        return put(self, key, data)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Store, "put_once", dies)
        store.put_checked("run.json", b"mine")
    assert store.put_checked("run.json", b"another's")
    assert store.read_checked("run.json") == b"another's"


def test_what_an_older_busray_stored_is_read_as_it_is_and_gets_no_digest(store: Store) -> None:
    store.put_once("config.json", b"{}")
    store.replace("report.json", b"{}")
    assert not store.put_checked("config.json", b'{"seed": 1}')
    store.replace_checked("report.json", b'{"n": 1}')
    assert store.read_checked("config.json") == b"{}" and store.read_checked("report.json") == b'{"n": 1}'
    assert everything(store) == ["config.json", "report.json"]


def test_a_replaced_object_is_compared_with_its_newest_bytes_too(store: Store) -> None:
    for data in (b"{}", b'{"n": 1}'):
        store.replace_checked("report.json", data)
        assert store.read_checked("report.json") == data
    damage(store, "report.json")
    with pytest.raises(Damaged):
        store.read_checked("report.json")


def test_other_bytes_under_a_key_that_has_their_digest_are_an_error_and_no_success(store: Store) -> None:
    store.put_named("data/benign/0-1-abcd.parquet", b"image")
    store.put_named("data/benign/0-1-abcd.parquet", b"image")
    damage(store, "data/benign/0-1-abcd.parquet")
    with pytest.raises(Damaged, match="it holds other bytes than"):
        store.put_named("data/benign/0-1-abcd.parquet", b"image")


def test_what_is_moved_has_its_bytes_under_the_new_key_only_and_overwrites_nothing(store: Store) -> None:
    for key in ("data/a", "damaged/data/b"):
        store.put_once(key, b"x")
    Path(store.url, "data/empty").write_bytes(b"")
    store.move("data/a", "damaged/1/data/a")
    store.move("data/empty", "damaged/1/data/empty")
    assert list(store.list()) == ["damaged/1/data/a", "damaged/1/data/empty", "damaged/data/b"]
    with pytest.raises(FileExistsError):
        store.move("damaged/1/data/a", "damaged/data/b")


@pytest.mark.parametrize("name", [".DS_Store", "Thumbs.db", "desktop.ini", "._a.json", "__MACOSX/a.json"])
def test_leftovers_of_operating_systems_are_not_listed(store: Store, name: str) -> None:
    store.put_once("commits/a.json", b"x")
    left = Path(store.url) / "commits" / name
    left.parent.mkdir(exist_ok=True)
    left.write_bytes(b"x")
    assert list(store.list()) == list(store.list("commits")) == ["commits/a.json"]


# ---- stores that create in another way ----


class Azure(AsyncFileSystem):
    """Creates as adlfs does: it knows no `mode`, and overwrites unless it is told not to."""

    protocol = "azure-like"
    objects: ClassVar[dict[str, bytes]] = {}

    async def _pipe_file(self, path: str, value: bytes, overwrite: bool = True, **_: Any) -> None:
        if path in self.objects and not overwrite:
            raise FileExistsError(path)
        self.objects[path] = value

    async def _cat_file(self, path: str, *_: Any, **__: Any) -> bytes:
        return self.objects[path]


def test_a_store_that_overwrites_unless_told_otherwise_is_told_so() -> None:
    fsspec.register_implementation("azure-like", Azure, clobber=True)
    store = Store("azure-like://container/run")
    assert store.put_once("a", b"first") and not store.put_once("a", b"second")
    assert store.read("a") == b"first" and not store.looks_then_writes


@pytest.mark.parametrize(
    "info, seconds",
    [
        ({"LastModified": datetime(2026, 12, 1, tzinfo=UTC)}, 1796083200.0),
        ({"mtime": 5.5}, 5.5),
        ({"updated": "2026-12-01T00:00:00Z"}, 1796083200.0),
        ({"last_modified": datetime(2026, 12, 1, tzinfo=UTC), "size": 3}, 1796083200.0),
        ({"size": 3}, None),
        ({"updated": "yesterday"}, None),
    ],
)
def test_the_time_of_writing_is_read_as_each_kind_of_store_says_it(info: dict[str, Any], seconds: float | None) -> None:
    assert storage._written_at(info) == seconds


def test_the_listing_of_a_folder_says_when_each_file_was_written(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.put_once("commits/a.json", b"x")
    os.utime(tmp_path / "commits/a.json", (1000, 1000))
    assert store.modified("commits") == {"commits/a.json": 1000.0}
    assert store.modified("nothing") == {}


@pytest.mark.parametrize("stands", ["a folder", "no file", "a symbolic link to itself"])
def test_what_stands_in_the_place_of_an_object_is_damage(tmp_path: Path, stands: str) -> None:
    store = Store(str(tmp_path / "my run"))
    path = tmp_path / "my run" / "a" / "b.json"
    path.parent.mkdir(parents=True)
    if stands == "a folder":
        (path / "inside").mkdir(parents=True)
    elif stands == "no file":
        os.mkfifo(path)  # which would be waited for without end
    else:
        path.symlink_to(path.name)
    with pytest.raises(Damaged, match=f"{stands} stands in its place") as caught:
        store.read("a/b.json")
    assert f"busray repair '{tmp_path / 'my run'}'" in caught.value.fix
    store.move("a/b.json", "damaged/now/a/b.json")
    assert not os.path.lexists(path) and os.path.lexists(tmp_path / "my run/damaged/now/a/b.json")


def test_a_link_that_leads_back_ends_no_listing(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.put_once("a/b", b"x")
    (tmp_path / "a" / "back").symlink_to(tmp_path)
    assert list(store.list()) == ["a/b"]
