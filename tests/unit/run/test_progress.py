"""A driver's word in the store: kept while it works, ended at its end, old after its death."""

import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from busray.layout import PROGRESS, progress_key
from busray.records import DriverProgress, Stopped, UserError, to_json
from busray.run import progress as module
from busray.run.progress import SILENT_AFTER, drivers, refuse_beside_drivers, telling, this_machine
from busray.storage import Store
from tests.support.runs import quiet


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "run"))


def word(**changes: object) -> DriverProgress:
    plain = DriverProgress("a" * 16, "1.0", "busray run x", "gpu-7", 12, "elsewhere", 100.0, 160.0)
    return replace(plain, **changes)  # type: ignore[arg-type]


def put(store: Store, told: DriverProgress, age: float = 0.0) -> float:
    """Store a word of this age; returns the time now."""
    key = progress_key(told.driver)
    store.replace(key, to_json(told))
    written = store.modified(PROGRESS)[key]
    assert written is not None
    return written + age


def test_a_word_is_read_back_as_it_was_written(store: Store) -> None:
    told = word(stage="generate corpus", done=3, total=9, notes=((150.0, "slow"),), ended="done")
    assert DriverProgress.from_json(to_json(told)) == told


def test_a_field_of_a_newer_busray_is_ignored() -> None:
    newer = to_json(word()).replace(b'"busray"', b'"colour": "red", "busray"')
    assert DriverProgress.from_json(newer) == word()


def test_a_driver_at_work_lives_and_its_stage_is_told(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WORD_SECONDS", 0.01)
    seen: list[tuple[str, int, int]] = []
    with telling(store, lambda *progress: seen.append(progress)) as report:
        report("generate corpus", 4, 9)
        for _ in range(1000):
            spoke = drivers(store, module.time.time())
            if spoke and spoke[0].word.done:
                break
            module.time.sleep(0.01)
        (driver,) = spoke
        assert driver.lives
        assert (driver.word.stage, driver.word.done, driver.word.total) == ("generate corpus", 4, 9)
        assert driver.word.process == os.getpid() and driver.word.machine == this_machine()
        with pytest.raises(UserError, match=r"a driver works on this run: process .* End it first"):
            refuse_beside_drivers(store)
    assert seen == [("generate corpus", 4, 9)]
    (driver,) = drivers(store, module.time.time())
    assert driver.word.ended == "done" and not driver.lives
    refuse_beside_drivers(store)


def test_a_driver_that_fails_leaves_its_error(store: Store) -> None:
    with pytest.raises(Stopped), telling(store, quiet):
        raise Stopped("generate: no disk left")
    (driver,) = drivers(store, 0.0)
    assert driver.word.ended == "generate: no disk left" and not driver.lives


def test_warnings_are_kept_with_the_word_and_still_printed(store: Store, capfd: pytest.CaptureFixture[str]) -> None:
    script = (
        "import logging, sys; from busray.run.progress import telling; from busray.storage import Store\n"
        "with telling(Store(sys.argv[1]), print):\n"
        "    for i in range(9): logging.getLogger('busray.storage').warning('the store is slow %d', i)\n"
    )
    subprocess.run([sys.executable, "-c", script, store.url], check=True)
    (driver,) = drivers(store, 0.0)
    assert [message for _, message in driver.word.notes] == [f"the store is slow {i}" for i in range(1, 9)]
    assert "the store is slow 0" in capfd.readouterr().err


def test_messages_of_stages_are_kept_in_one_plain_line_and_are_no_stage(store: Store) -> None:
    with telling(store, quiet) as report:
        report("generate corpus", 3, 9)
        report("generate corpus: \x1b[36mshard 7\x1b[39m\n  is quarantined", 0, 0)
        report("x" * 9999, 0, 0)
    (driver,) = drivers(store, 0.0)
    assert driver.word.stage == "generate corpus"
    (_, first), (_, long) = driver.word.notes
    assert first == "generate corpus: shard 7 is quarantined" and len(long) == 500


def test_a_store_that_refuses_the_word_costs_one_warning_and_not_the_work(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(self: Store, key: str, data: bytes) -> None:
        raise PermissionError(13, "Permission denied", key)

    monkeypatch.setattr(Store, "replace", refuse)
    with caplog.at_level(logging.WARNING), telling(store, quiet) as report:
        report("generate", 1, 1)
    assert caplog.text.count("the driver's progress is not stored") == 1
    assert drivers(store, 0.0) == []


def test_a_driver_on_another_machine_counts_as_gone_after_its_silence(store: Store) -> None:
    now = put(store, word(), age=SILENT_AFTER - 1)
    assert drivers(store, now)[0].lives
    assert not drivers(store, now + 2)[0].lives


def test_a_driver_of_this_machine_whose_process_is_gone_counts_as_gone_at_once(store: Store) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    now = put(store, word(machine=this_machine(), process=ended.pid))
    assert not drivers(store, now)[0].lives
    put(store, word(machine=this_machine(), process=os.getpid()))
    assert drivers(store, now)[0].lives


def test_drivers_beside_each_other_have_a_word_each_and_the_newest_come_first(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(4):
        put(store, word(driver=f"{i:016}"))
        os.utime(Path(store.url, progress_key(f"{i:016}")), (100 + i, 100 + i))
    monkeypatch.setattr(module, "DRIVERS_READ", 3)
    assert [driver.word.driver[-1] for driver in drivers(store, 104.0)] == ["3", "2", "1"]


def test_of_several_drivers_one_is_named_and_the_others_are_counted(store: Store) -> None:
    for i in range(3):
        put(store, word(driver=f"{i:016}"))
    with pytest.raises(UserError, match="process 12 on gpu-7 and 2 more"):
        refuse_beside_drivers(store)


def test_a_word_that_cannot_be_read_is_left_out_and_said(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    now = put(store, word())
    store.replace(progress_key("b" * 16), b"{")
    assert len(drivers(store, now)) == 1
    assert "a driver's progress cannot be read" in caplog.text


def test_a_run_of_an_older_busray_has_no_drivers(store: Store) -> None:
    assert drivers(store, 0.0) == []
    refuse_beside_drivers(store)
