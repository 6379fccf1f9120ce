"""Each property that a store lacks is found and named: on a disk, with a patched Store."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractFileSystem

from busray.doctor import complaint, examine, require_create_only, unproven
from busray.records import UserError
from busray.run import checks as opening
from busray.storage import Store
from tests.support.paths import ROOT


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "run"))


def overwrites(real: Callable[..., Any]) -> Callable[..., Any]:
    """Ignores the condition."""

    def put_once(self: Store, key: str, data: bytes) -> bool:
        self.replace(key, data)
        return True

    return put_once


def looks_before_it_writes(real: Callable[..., Any]) -> Callable[..., Any]:
    """Checks the condition first, writes later, as some servers: refuses one writer at a time."""

    def put_once(self: Store, key: str, data: bytes) -> bool:
        if self.exists(key):
            return self.read(key) == data
        time.sleep(0.05)
        self.replace(key, data)
        return True

    return put_once


def changes_what_it_refuses(real: Callable[..., Any]) -> Callable[..., Any]:
    def put_once(self: Store, key: str, data: bytes) -> bool:
        created = real(self, key, data)
        if not created:
            self.replace(key, data)
        return created

    return put_once


def reads_late(real: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, key: None


def lists_late(real: Callable[..., Any]) -> Callable[..., Any]:
    def listing(self: Store, prefix: str = "") -> Iterator[str]:
        return iter(())

    return listing


def does_nothing(real: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *arguments: None


FAULTS = {
    "refuses to create an object twice": ("put_once", overwrites),
    "of 8 creators at once, one wins": ("put_once", looks_before_it_writes),
    "reads back what was just written": ("read_or_none", reads_late),
    "lists a new object at once": ("list", lists_late),
    "replaces an object": ("replace", does_nothing),
    "a deleted object is gone": ("delete", does_nothing),
}


@pytest.mark.parametrize("check", FAULTS)
def test_a_missing_property_is_found_and_named(check: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    method, faulty = FAULTS[check]
    monkeypatch.setattr(Store, method, faulty(getattr(Store, method)))
    findings = {finding.check: finding for finding in examine(store)}
    assert findings[check].passed is False
    message = complaint(store, list(findings.values()))
    assert message and f"{check}: " in message and "fix: " in message


def test_a_store_that_looks_before_it_writes_is_found_by_the_race_alone(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "put_once", looks_before_it_writes(Store.put_once))
    assert [f.check for f in examine(store) if not f.passed] == ["of 8 creators at once, one wins"]


def test_a_refusal_that_changes_the_object_is_no_refusal(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "put_once", changes_what_it_refuses(Store.put_once))
    message = complaint(store, examine(store))
    assert message and "the second creation was refused and yet changed the object" in message


def test_every_check_passes_on_a_disk(store: Store) -> None:
    findings = examine(store)
    assert all(finding.passed for finding in findings)
    assert complaint(store, findings) is None
    assert not Path(store.url).exists()


def test_nothing_but_its_own_objects_is_touched(store: Store) -> None:
    store.put_once("run.json", b"x")
    before = sorted(Path(store.url).rglob("*"))
    examine(store)
    require_create_only(store)
    assert sorted(Path(store.url).rglob("*")) == before


def test_doctors_at_the_same_time_do_not_disturb_each_other(store: Store) -> None:
    complaints: list[str | None] = []
    doctors = [threading.Thread(target=lambda: complaints.append(complaint(store, examine(store)))) for _ in range(3)]
    for doctor in doctors:
        doctor.start()
    for doctor in doctors:
        doctor.join()
    assert complaints == [None] * 3


def test_the_check_at_a_runs_start_refuses_an_unsafe_store(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "put_once", overwrites(Store.put_once))
    with pytest.raises(UserError, match=r"output: .* is unsafe: it lets an object be created twice"):
        require_create_only(store)
    assert list(store.list()) == []


def test_a_disk_without_hard_links_is_refused_with_the_fix(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*names: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", no_links)
    with pytest.raises(UserError, match=r"Operation not permitted; choose a folder .* with hard links"):
        require_create_only(store)


class LooksFirst(MemoryFileSystem):
    """fsspec's own imitation of creation: it looks for the object and then writes it."""

    protocol = "looksfirst"
    pipe_file = AbstractFileSystem.pipe_file


def test_a_client_that_imitates_creation_is_unsafe_however_the_race_ends() -> None:
    fsspec.register_implementation("looksfirst", LooksFirst, clobber=True)
    store = Store("looksfirst://a/run")
    message = complaint(store, examine(store))
    assert message and "its client looks for an object and then writes it" in message
    assert "no test can prove" in message
    with pytest.raises(UserError, match="is unsafe: its client looks for an object"):
        require_create_only(store)


def test_what_cannot_be_proven_of_a_server_is_said(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert unproven(store) is None
    s3 = Store("s3://bucket/runs", key="k", secret="s")

    def at(url: str) -> None:
        monkeypatch.setattr(s3.fs, "_s3", SimpleNamespace(meta=SimpleNamespace(endpoint_url=url)))

    at("http://127.0.0.1:9000")
    assert "looks for an object and then writes it can pass by luck" in (unproven(s3) or "")
    at("https://s3.eu-west-1.amazonaws.com")
    assert unproven(s3) is None and not s3.looks_then_writes


def test_a_run_checks_the_store_before_it_writes_its_first_object(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(checked: Store) -> None:
        assert checked.url == store.url
        raise UserError("output: unsafe")

    monkeypatch.setattr(opening, "require_create_only", refused)
    config = opening.Config.model_validate(demo_settings(store))
    with pytest.raises(UserError, match="output: unsafe"):
        opening.open_run(config, lambda *progress: None, measures=False)
    simulated = "phantoms-"  # the simulated images that a local run starts from
    assert [key for key in store.list() if not key.startswith(simulated)] == []


def demo_settings(store: Store) -> dict[str, Any]:
    from busray.config_file import load_config

    demo = ROOT / "configs" / "demo.yaml"
    settings = load_config(demo, ["--dataset.phantoms.images=8"]).model_dump(mode="json")
    return {**settings, "output": store.url}
