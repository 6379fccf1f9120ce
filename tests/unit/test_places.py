"""Places as people write them: what is filled in, what is refused, and what to write instead."""

from pathlib import Path

import pytest

from busray import places
from busray.places import contains, expand, problem


@pytest.fixture
def all_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the packages of all stores were installed."""
    monkeypatch.setattr(places, "find_spec", lambda name: name)


# ---- ~ and variables ----


def test_home_and_variables_are_filled_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("DATA", "/big/data")
    monkeypatch.setenv("BUCKET", "mine")
    assert expand("~/busi") == "/home/me/busi"
    assert expand("~") == "/home/me"
    assert expand("$HOME/busi") == expand("${HOME}/busi") == "/home/me/busi"
    assert expand("$DATA/a b/$DATA") == "/big/data/a b//big/data"
    assert expand("s3://$BUCKET/runs") == "s3://mine/runs"
    assert expand("runs/~mine") == "runs/~mine"


@pytest.mark.parametrize("text", ["$NOT_SET/x", "${NOT_SET}/x", "s3://b/$NOT_SET"])
def test_a_variable_that_is_not_set_is_named(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_SET", raising=False)
    with pytest.raises(ValueError, match=r"NOT_SET\}? is not set"):
        expand(text)


def test_a_variable_that_is_empty_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMPTY", "")
    with pytest.raises(ValueError, match=r"\$EMPTY is empty"):
        expand("$EMPTY/runs")


def test_the_home_of_nobody_is_named() -> None:
    with pytest.raises(ValueError, match="no user ~nobody-here"):
        expand("~nobody-here/x")


# ---- what is a place ----


@pytest.mark.parametrize(
    "place",
    [
        "runs/mine",
        "/data/a b",
        "../x",
        "file:///data/runs",
        "s3://bucket/runs",
        "s3://bucket",
        "s3://bucket/",
        "s3a://bucket/x",
        "s3://arn:aws:s3:eu-central-1:123456789012:accesspoint/mine/run",
        "gs://bucket/runs",
        "az://container/runs",
        "abfs://c@a.dfs.core.windows.net/r",
        "Läsionen/乳腺",
        "a:b",
        "runs/10:30",
    ],
)
def test_a_place_is_accepted(place: str, all_packages: None) -> None:
    assert problem(place) is None


@pytest.mark.parametrize(
    "place, fix",
    [
        ("", "write a folder"),
        ("  ", "write a folder"),
        (" runs", "write runs"),
        ("runs\n", "write runs"),
        ("s3:x", "write s3://x"),
        ("s3:/x", "write s3://x"),
        ("S3:x", "write s3://x"),
        ("S3://bucket/x", "write s3://bucket/x"),
        ("s3://", "write s3://BUCKET/PREFIX"),
        ("s3:///x/y", "write s3://x/y"),
        ("s3://bucket//x", "write s3://bucket/x"),
        ("s3://my bucket/x", "no name of a bucket"),
        ("s3://localhost:9000/bucket/x", "set AWS_ENDPOINT_URL_S3=http://localhost:9000 and write s3://bucket/x"),
        ("file:/x", "write /x"),
        ("file:x", "write /x"),
        ("file://host/x", "write /host/x"),
        ("file://localhost/x", "write /x"),
        ("FILE:///x", "write /x"),
        ("file://", "write the folder's path"),
        ("file:///a%20b", "write /a b"),
        (r"C:\data\busi", "/mnt/c/data/busi"),
        ("D:/busi", "/mnt/d/busi"),
        (r"\\server\share", "Windows share"),
        (r"data\busi", "write data/busi"),
        (r"my\ data", "write my data"),
        ("memory://x", "memory:// is lost when the command ends"),
        ("memory:x", "write memory://x"),
        ("minio://h:9000/b/x", "set AWS_ENDPOINT_URL_S3=http://h:9000 and write s3://b/x"),
        ("hf://datasets/me/x", "upload what is finished"),
        ("https://acct.r2.cloudflarestorage.com/bucket/x", "write s3://bucket/x"),
        ("https://bucket.s3.eu-west-1.amazonaws.com/x", "write s3://bucket/x"),
        ("https://s3.amazonaws.com/bucket/x", "write s3://bucket/x"),
        ("https://storage.googleapis.com/bucket/x", "write gs://bucket/x"),
        ("https://acct.blob.core.windows.net/c/x", "AZURE_STORAGE_ACCOUNT_NAME=acct and write az://c/x"),
        ("wasbs://c@a.blob.core.windows.net/x", "az://CONTAINER/PREFIX"),
        ("sftp://host/x", "sftp:// is not supported: write a folder, or a URL of object storage: s3://"),
        ("simplecache::s3://bucket/x", "write one URL"),
        ("s3://bucket/a/../b", "write the folder that it leads to"),
        ("x" * 300, "more than 255 bytes"),
        ("x/" * 2000, "more than 3000 bytes"),
    ],
)
def test_what_is_no_place_is_refused_with_what_would_work(place: str, fix: str) -> None:
    assert fix in (problem(place) or "")


def test_a_store_whose_package_is_missing_names_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "find_spec", lambda name: None)
    for place, package, extra in (
        ("s3://b/x", "s3fs", "s3"),
        ("gs://b/x", "gcsfs", "gcs"),
        ("gcs://b/x", "gcsfs", "gcs"),
        ("az://c/x", "adlfs", "azure"),
        ("abfs://c@a.b/x", "adlfs", "azure"),
    ):
        assert f"needs the package {package}: `pip install 'busray[{extra}]'`" in (problem(place) or "")


def test_what_is_read_from_disk_takes_no_url() -> None:
    assert "`aws s3 sync s3://bucket/busi FOLDER`" in (problem("s3://bucket/busi", url=False) or "")
    assert "copy it to a folder" in (problem("https://x.org/a.zip", url=False) or "")
    assert "write /data" in (problem("file:///data", url=False) or "")
    assert problem("/data", url=False) is None


def test_a_folder_in_another_is_seen_through_links_and_dots(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    data = str(tmp_path / "data")
    assert contains(data, f"{data}/runs/x") and contains(data, data) and contains(data, str(tmp_path / "link" / "x"))
    assert not contains(data, f"{data}2") and not contains(data, f"{data}/../runs")
