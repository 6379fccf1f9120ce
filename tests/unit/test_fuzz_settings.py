"""Any text as a config file, any words as flags: settings or one UserError, never a traceback."""

import json
import os
import string
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, example, given, seed, settings
from hypothesis import strategies as st

from busray import places
from busray.command_line import build_parser, split_settings
from busray.config import Config, warnings
from busray.config_file import load_config, validate
from busray.records import UserError, to_json
from busray.setting_mistakes import setting_names

OFTEN = settings(
    max_examples=60, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
LONGEST_MESSAGE = 20_000
PARSER = build_parser()

NAMES = [name.replace("<class>", "benign") for name in setting_names()]
WORDS = st.sampled_from(
    [
        *("no", "yes", "true", "null", "~", "", " ", "tiny", "base", "\u202e", "a\tb", "-1", "9" * 400),
        *("010", "10:30", "1_000", "0x10", "1e-4", "1e400", ".inf", ".nan", "2.5"),
        *("[]", "[a, a]", "{}", "{a: 1, a: 2}", "[[[[", "*a", "&a [*a]", "!!python/object:x", "- a", "---"),
        *("s3://", "s3:/x", "file:/x", "~/x", "$HOME/x", "$NOT_SET", "C:\\x", "memory://x", "s3://b/x"),
        *("{token!r}", "{", "{token}", "{token} (x:1.3)"),
    ]
)
LETTERS = string.printable + "\0é乳\u0301\u200b\u202e\ufeff\ud800\U0001f9ea"
TEXTS = WORDS | st.text(LETTERS, max_size=20)
FLAGS = st.tuples(st.sampled_from(NAMES) | TEXTS, TEXTS).map(lambda pair: f"--{pair[0]}={pair[1]}")
ARGUMENTS = st.sampled_from(["run", "check", "readers", "export", "--json", "--seed", "--", "-1"]) | TEXTS
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS | st.sampled_from(NAMES), inner, max_size=3),
    max_leaves=8,
)


def good(config: Config) -> None:
    """What is accepted is stored and read back as the same settings."""
    assert validate(json.loads(to_json(config.model_dump(mode="json")))) == config
    assert warnings(config) is not None


def read(folder: Path, text: str, flags: list[str]) -> None:
    path = folder / "c.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        config = load_config(path, flags)
    except UserError as error:
        assert 0 < len(str(error)) < LONGEST_MESSAGE
    else:
        good(config)


MINIMAL = "dataset: {path: data}\nclasses: {benign: {}}\n"


@seed(1)
@OFTEN
@given(st.text(LETTERS, max_size=80) | st.lists(WORDS, max_size=6).map("\n".join))
@example("a: &a [*a]\nb: *a")
@example("classes: {? {}: 1}")
@example("9" * 5000)
def test_any_text_is_settings_or_one_message(tmp_path: Path, text: str) -> None:
    read(tmp_path, text, [])
    read(tmp_path, MINIMAL + text, [])


@seed(2)
@OFTEN
@given(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=5))
def test_any_values_of_settings_are_settings_or_one_message(tmp_path: Path, values: dict[str, Any]) -> None:
    tree: dict[str, Any] = {"dataset": {"path": "data"}, "classes": {"benign": {}}}
    for name, value in values.items():
        *parents, leaf = name.split(".")
        group = tree
        for parent in parents:
            group = group.setdefault(parent, {})
            if not isinstance(group, dict):
                return
        group[leaf] = value
    read(tmp_path, yaml.safe_dump(tree, allow_unicode=True), [])


@seed(3)
@OFTEN
@given(
    st.lists(st.tuples(st.sampled_from(NAMES) | TEXTS, TEXTS).map(lambda pair: f"--{pair[0]}={pair[1]}"), max_size=4)
)
def test_any_flags_are_settings_or_one_message(tmp_path: Path, flags: list[str]) -> None:
    read(tmp_path, MINIMAL, flags)


@seed(4)
@OFTEN
@given(
    st.lists(st.sampled_from(["run", "check", "readers", "export", "--json", "--seed", "--", "-1"]) | TEXTS, max_size=6)
)
def test_any_words_of_a_command_line_are_split_or_refused(words: list[str]) -> None:
    try:
        own, flags = split_settings(words, PARSER)
    except UserError:
        return
    # Nothing is dropped: each word is an argument, a flag, or a part of one.
    joined = [*own, *(part for flag in flags for part in (flag, *flag.split("=", 1)))]
    assert all(word in joined for word in words)


@seed(5)
@OFTEN
@given(TEXTS | st.text("s3file:/\\~$.@ abc", max_size=15), st.booleans())
def test_any_place_is_accepted_or_told_what_to_write(text: str, url: bool) -> None:
    try:
        place = places.expand(text)
    except ValueError as error:
        assert str(error)
        return
    if places.problem(place, url=url) is None:
        assert place.strip() and "\0" not in place
        if not places.is_url(place):
            os.fsencode(places.local_path(place))
