"""Stores at gs:// and az://, where gcsfs and adlfs are installed: what S3 keeps, they keep too."""

import base64
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest

from busray import storage
from busray.doctor import complaint, examine, require_create_only, unproven
from busray.records import StoreError, UserError
from busray.storage import Store
from tests.support.other_stores import Azure, Google, Objects, served

KEY = base64.b64encode(b"no key").decode()
PACKAGE = {"gs": "gcsfs", "az": "adlfs"}


@pytest.fixture(params=["gs", "az"])
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Store, type[Objects]]]:
    """(an empty store, its server)."""
    scheme = request.param
    if find_spec(PACKAGE[scheme]) is None:
        pytest.skip(f"{PACKAGE[scheme]} is not installed: pip install '.[{'gcs' if scheme == 'gs' else 'azure'}]'")
    monkeypatch.setattr(storage, "FIRST_DELAY", 0.01)
    with served(Google if scheme == "gs" else Azure) as (url, kind):
        if scheme == "gs":
            monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
            yield Store("gs://bucket/run", endpoint_url=url, token="anon", skip_instance_cache=True), kind
        else:
            connection = (
                f"DefaultEndpointsProtocol=http;AccountName=account;AccountKey={KEY};BlobEndpoint={url}/account;"
            )
            yield Store("az://container/run", connection_string=connection, skip_instance_cache=True), kind


def test_a_key_is_created_once_and_everybody_learns_who_won(server: tuple[Store, Any]) -> None:
    store, kind = server
    assert store.put_once("plan/0000.json", b"first") is True
    assert store.put_once("plan/0000.json", b"second") is False
    assert store.put_once("plan/0000.json", b"first") is True
    assert store.read("plan/0000.json") == b"first"
    assert kind.objects == {"run/plan/0000.json": b"first"}
    assert not store.looks_then_writes, "the server decides, not a look before"


def test_what_is_there_is_listed_looked_for_and_deleted(server: tuple[Store, Any]) -> None:
    store, _ = server
    for key in ("data/b/2", "data/a/10", "data/a/1", "data-more/x"):
        store.put_once(key, b"x")
    assert list(store.list("data")) == ["data/a/1", "data/a/10", "data/b/2"]
    assert store.folders("data") == ["a", "b"]
    assert store.exists("data/a/1") and not store.exists("data/a/2")
    assert store.present(["data/a/1", "data/a/2"]) == {"data/a/1"}
    store.replace("data/a/1", b"y")
    assert store.read("data/a/1") == b"y"
    store.delete("data/a/1")
    assert store.read_or_none("data/a/1") is None
    assert list(store.list("nothing")) == [] and store.folders("nothing") == []


def test_what_is_put_with_a_digest_is_read_with_it(server: tuple[Store, Any]) -> None:
    store, kind = server
    store.put_checked("run.json", b"{}")
    assert store.read_checked("run.json") == b"{}"
    kind.objects["run/run.json"] = b"{ }"
    with pytest.raises(storage.Damaged):
        store.read_checked("run.json")


def test_the_doctor_finds_everything_fit_and_nothing_unproven(server: tuple[Store, Any]) -> None:
    store, kind = server
    findings = examine(store)
    assert complaint(store, findings) is None
    assert unproven(store) is None
    named = {finding.check for finding in findings}
    assert named & {"may write (storage.objects.create)", "may write (blobs/write)"}
    assert kind.objects == {}, "the doctor leaves nothing"
    require_create_only(store)


def test_a_missing_permission_is_named_as_its_maker_names_it(server: tuple[Store, Any]) -> None:
    store, kind = server
    kind.refusals.update({"DELETE": -1})
    message = complaint(store, examine(store))
    assert message is not None
    assert ("allow storage.objects.delete" in message) or ("allow blobs/delete" in message)
    with pytest.raises(UserError, match="delete"):
        require_create_only(store)


def test_a_server_that_is_busy_for_a_while_is_asked_again(server: tuple[Store, Any]) -> None:
    store, kind = server
    if store.url.startswith("az"):
        pytest.skip("Azure's own client waits 15 s and more before it asks again")
    store.put_once("a", b"x")
    kind.refusals.update({"GET": 2})
    assert store.read("a") == b"x"
    assert kind.refusals["GET"] == 0


def test_a_server_that_refuses_is_no_reason_to_wait(server: tuple[Store, Any]) -> None:
    """As is_transient sees what the two clients raise."""
    store, kind = server
    store.put_once("a", b"x")
    kind.refusals.update({"GET": -1})
    with pytest.raises(Exception) as raised:
        store.read("a")
    assert not isinstance(raised.value, StoreError)
    assert not storage.is_transient(raised.value)


@pytest.mark.parametrize(
    ("status", "again"), [(429, True), (500, True), (503, True), (400, False), (401, False), (409, False)]
)
def test_statuses_of_both_makers_are_told_apart(status: int, again: bool) -> None:
    class HttpError(Exception):  # gcsfs's
        code, message = status, "so it says"

    class HttpResponseError(Exception):  # Azure's
        status_code, error_code, message = status, "ACode", "so it says"

    for error, said in ((HttpError(), f"{status}: so it says"), (HttpResponseError(), f"{status} ACode: so it says")):
        assert storage.is_transient(error) is again
        assert storage.describe_error(error) == said


@pytest.mark.parametrize("module, name", sorted(storage.OTHER_NETWORK_ERRORS))
def test_no_answer_is_a_reason_to_wait(module: str, name: str) -> None:
    if find_spec(module.split(".")[0]) is None:
        pytest.skip(f"{module} is not installed")
    kind = getattr(pytest.importorskip(module), name)
    assert storage.is_transient(kind("no answer"))
