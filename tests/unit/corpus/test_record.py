"""run.json: another corpus under the same output is refused, and so is a newer format."""

import json
from pathlib import Path
from typing import Any

import pytest

from busray.cli import main
from busray.corpus.record import claim_corpus, differences
from busray.identity import fingerprint
from busray.layout import CONFIG, FORMAT, RUN
from busray.records import UserError, to_json
from busray.storage import Store

IDENTITY: dict[str, Any] = {"seed": 7, "sampling": {"steps": 4, "scheduler": "ddim"}, "refine": None, "prompts": ["a"]}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "run"))


def test_the_record_holds_the_fingerprint_and_what_went_into_it(store: Store) -> None:
    assert claim_corpus(store, IDENTITY) == fingerprint(IDENTITY)
    record = json.loads(store.read(RUN))
    assert record["fingerprint"] == fingerprint(record["identity"])


def test_the_same_corpus_opens_again_and_rewrites_nothing(store: Store) -> None:
    claim_corpus(store, IDENTITY)
    before = store.read(RUN)
    assert claim_corpus(store, dict(reversed(IDENTITY.items()))) == fingerprint(IDENTITY)
    assert store.read(RUN) == before


def test_another_corpus_is_refused_with_each_differing_field_and_nothing_is_changed(store: Store) -> None:
    claim_corpus(store, IDENTITY)
    before = store.read(RUN)
    changed = {**IDENTITY, "seed": 8, "sampling": {"steps": 5, "scheduler": "ddim"}, "refine": {"strength": 0.3}}
    with pytest.raises(UserError) as caught:
        claim_corpus(store, changed)
    message = str(caught.value)
    assert "  seed: 7 there, 8 now\n" in message
    assert "  sampling.steps: 4 there, 5 now\n" in message
    assert "refine.strength: None there, 0.3 now" in message
    assert "scheduler" not in message and "prompts" not in message
    assert store.read(RUN) == before


def test_of_two_corpora_opened_at_once_the_first_record_decides(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    put, raced = Store.put_once, []

    def slow(self: Store, key: str, data: bytes) -> bool:
        if not raced:
            raced.append(key)
            claim_corpus(Store(self.url), {**IDENTITY, "seed": 8})
        return put(self, key, data)

    monkeypatch.setattr(Store, "put_once", slow)
    with pytest.raises(UserError, match="seed: 8 there, 7 now"):
        claim_corpus(store, IDENTITY)


def test_a_new_record_has_its_format_which_decides_no_fingerprint(store: Store) -> None:
    assert claim_corpus(store, IDENTITY) == fingerprint(IDENTITY)
    assert json.loads(store.read(RUN))["format"] == FORMAT == 2


def test_a_record_from_before_formats_is_the_first_format_and_stays_as_it_is(store: Store) -> None:
    old = to_json({"fingerprint": fingerprint(IDENTITY), "identity": IDENTITY, "busray": "0.0.9"})
    store.put_once(RUN, old)
    assert claim_corpus(store, IDENTITY) == fingerprint(IDENTITY)
    assert store.read(RUN) == old


@pytest.mark.parametrize("newer", [3, 0, "1", None])
def test_a_format_that_this_busray_does_not_know_is_refused_by_who_wrote_it(store: Store, newer: Any) -> None:
    record = {"format": newer, "fingerprint": fingerprint(IDENTITY), "identity": IDENTITY, "busray": "7.1"}
    store.put_once(RUN, to_json(record))
    with pytest.raises(
        UserError, match=rf"run\.json is of format {newer}, written by busray 7\.1, .* up to 2: install"
    ):
        claim_corpus(store, IDENTITY)


@pytest.mark.parametrize(
    "command",
    [
        "run",
        "finetune",
        "generate",
        "evaluate",
        "ablate",
        "study",
        "audit",
        "reproduce",
        "card",
        "readers",
        "verify",
        "gc",
    ],
)
def test_every_command_refuses_a_run_of_a_newer_format_and_touches_nothing(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    tree = {
        "output": str(output),
        "dataset": {"phantoms": {"images": 12}},
        "classes": {"benign": {"images": 4}, "normal": {"images": 4}},
    }
    (tmp_path / "run.yaml").write_text(json.dumps(tree))
    store = Store(str(output))
    store.put_once(RUN, to_json({"format": FORMAT + 1, "busray": "7.1"}))
    store.put_once(CONFIG, to_json({"of": "a newer busray"}))
    before = {key: store.read(key) for key in store.list()}
    takes = {
        "audit": [output],
        "reproduce": [output, "benign-0"],
        "card": [output],
        "readers": ["export", output, tmp_path / "readers"],
        "verify": [output],
        "gc": [output, "--delete"],
    }
    assert main([command, *map(str, takes.get(command, [tmp_path / "run.yaml"]))]) == 2
    assert f"run.json is of format {FORMAT + 1}, written by busray 7.1" in capsys.readouterr().err
    assert {key: store.read(key) for key in store.list()} == before


def test_long_values_are_shortened_in_the_message() -> None:
    (line,) = differences({"prompts": ["x" * 500]}, {"prompts": ["y" * 500]}).values()
    assert len(line) < 200
