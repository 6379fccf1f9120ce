"""What commands make of a corpus: their exit status and messages."""

import json
import re
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from busray.cli import main
from busray.commands import COMMAND_FUNCTIONS, _quarantine_status
from busray.config_file import validate
from busray.layout import MANIFEST
from busray.storage import Store
from tests.support.fake_corpus import draw


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "run"))


@pytest.mark.parametrize("allowed, status", [(0.2, 0), (0.19, 1), (0.0, 1), (1.0, 0)])
def test_more_quarantined_images_than_allowed_end_the_command_with_status_1(
    store: Store, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, allowed: float, status: int
) -> None:
    """Two of ten. Drawn by this file in place of Ray, through the command."""
    run = SimpleNamespace(store=store, log_file=None)
    monkeypatch.setattr("busray.commands._opened", lambda *_, **__: nullcontext((run, SimpleNamespace(report=print))))
    monkeypatch.setattr("busray.stages.generate.generate", lambda *_: draw(store, shard_size=6, rejected=1))
    monkeypatch.setattr("busray.stages.card.write_card", lambda *_: None)
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


def test_verify_and_doctor_print_json_for_programs(store: Store, capsys: pytest.CaptureFixture) -> None:
    draw(store, rejected=1)
    assert main(["verify", store.url, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["sound"], told["corpora"]["released"]["problems"]) == (True, [])
    store.delete(next(iter(store.list("commits"))))
    assert main(["verify", "--json", store.url]) == 1
    told = json.loads(capsys.readouterr().out)
    assert not told["sound"] and told["corpora"]["released"]["problems"]
    assert main(["doctor", store.url, "--json"]) == 0
    assert all(finding["passed"] for finding in json.loads(capsys.readouterr().out)["findings"])


def test_quiet_leaves_out_what_is_neither_result_nor_error(store: Store, capsys: pytest.CaptureFixture) -> None:
    draw(store)
    assert main(["gc", store.url]) == 0
    assert "0 orphaned objects" in capsys.readouterr().err
    for arguments in (["-q", "gc", store.url], ["gc", store.url, "--quiet"]):
        assert main(arguments) == 0
        assert capsys.readouterr().err == ""


def test_verbose_shows_an_errors_traceback(
    store: Store, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(options: object, flags: object) -> int:
        raise ZeroDivisionError("unheard of")

    monkeypatch.setitem(COMMAND_FUNCTIONS, "gc", fail)
    assert main(["gc", store.url]) == 1
    assert "Traceback" not in capsys.readouterr().err
    assert main(["gc", store.url, "-v"]) == 1
    assert "Traceback" in capsys.readouterr().err
