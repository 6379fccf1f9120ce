"""Secrets in URLs are refused and not repeated; those of the environment are never stored."""

from pathlib import Path

import pytest
import yaml

from busray.cli import main
from busray.config_file import validate
from busray.corpus.record import claim_corpus as open_corpus
from busray.places import credentials_in
from busray.records import UserError
from busray.run.checks import open_run

KEY, SECRET = "AKIAPLANTED0000EXAMPLE", "planted/Secret+0123456789abcdefghijklmn"
LEAKY = [
    f"s3://{KEY}:{SECRET}@bucket/run",
    f"s3://{KEY}:{SECRET.replace('/', '')}@bucket/run",
    f"s3://{KEY}:0123/{SECRET}@bucket/run",
    f"simplecache::s3://{KEY}:{SECRET}@bucket/run",
    f"https://{SECRET.replace('/', '')}@host/run",
    f"https://user:{SECRET}@host/run",
    f"https://bucket.s3.amazonaws.com/run?X-Amz-Credential={KEY}&X-Amz-Signature={SECRET}",
    f"https://account.blob.core.windows.net/run?sv=2024&sig={SECRET}",
    f"https://host/run?access_token={SECRET}",
    f"S3://{KEY}:{SECRET}@bucket",
]
PLAIN = [
    "runs/mine",
    "/data/a@b:c/run",
    "s3://bucket/run",
    "s3://bucket/user@example.org/run",
    "s3://arn:aws:s3:eu-central-1:123456789012:accesspoint/mine/run",
    "abfs://container@account.dfs.core.windows.net/run",
    "sftp://user@host:2222/run",
    "http://[::1]:9000/run",
    "gs://bucket/run",
    "file:///data/run",
    "owner/name",
]


@pytest.mark.parametrize("url", LEAKY)
def test_credentials_in_a_url_are_found(url: str) -> None:
    assert credentials_in(url)


@pytest.mark.parametrize("url", PLAIN)
def test_a_url_without_credentials_is_accepted(url: str) -> None:
    assert not credentials_in(url)


@pytest.mark.parametrize("url", LEAKY)
@pytest.mark.parametrize(
    "field",
    ["output", "dataset.path", "dataset.metadata", "adapters.path", "base.path", "evaluate.inception", "dataset"],
)
def test_credentials_in_a_setting_are_refused_and_not_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, field: str, url: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"classes": {"benign": {}}, "dataset": {"path": "data"}}))
    assert main(["run", "c.yaml", f"--{field}={url}"]) == 2
    output = capsys.readouterr()
    assert f"{field}: " in output.err
    assert KEY not in output.err + output.out and SECRET not in output.err + output.out
    if field != "dataset":  # not a setting for a URL
        assert "instance's role" in output.err and "environment" in output.err
    assert [path.name for path in tmp_path.rglob("*")] == ["c.yaml"]


def test_secrets_of_the_environment_are_in_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What opening a run writes; the integration tests search a whole run and Ray's logs."""
    secrets = {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_SESSION_TOKEN": "planted-session-token",
        "RAY_AUTH_TOKEN": "planted-ray-token",
        "HF_TOKEN": "hf_planted",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    config = validate(
        {
            "output": str(tmp_path / "run"),
            "dataset": {"phantoms": {"images": 12}, "val": 0.2, "test": 0.3},
            "classes": {"benign": {"images": 4}, "malignant": {"images": 4}},
        }
    )
    run = open_run(config, lambda *_: None, measures=False, command="busray run c.yaml")
    open_corpus(run.store, {"settings": config.model_dump(mode="json"), "base": run.base.to_dict()})
    records = {path.name: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert {"config.json", "dataset.json", "check.json", "run.json"} <= records.keys()
    leaks = [(name, key) for name, data in records.items() for key, value in secrets.items() if value.encode() in data]
    assert leaks == []


def test_an_error_of_another_setting_repeats_no_credentials() -> None:
    """`dataset` takes no URL: a value of a wrong type is shown, unless it holds a secret."""
    with pytest.raises(UserError) as caught:
        validate({"classes": {"benign": LEAKY[0]}, "dataset": [LEAKY[1]], "seed": LEAKY[2]})
    assert SECRET not in str(caught.value) and KEY not in str(caught.value)
