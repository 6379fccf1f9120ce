"""YAML without its surprises: words stay words, and what one reader could read otherwise ends."""

import math

import pytest

from busray.records import UserError
from busray.yaml_text import Plain, read_yaml, resolve


def refusal(text: str) -> str:
    with pytest.raises(UserError) as caught:
        read_yaml(text, "c.yaml")
    return str(caught.value)


def test_names_are_texts_and_unquoted_words_are_plain() -> None:
    value = read_yaml("no: on\n1: '2'\ntrue: [a, 0x10]\n~: |\n  text\n", "c.yaml")
    assert value == {"no": "on", "1": "2", "true": ["a", "0x10"], "~": "text\n"}
    assert isinstance(value["no"], Plain) and not isinstance(value["1"], Plain)
    assert read_yaml("", "c.yaml") is None


@pytest.mark.parametrize(
    "word, value",
    [
        ("25", 25),
        ("-3", -3),
        ("+3", 3),
        ("0", 0),
        ("0x10", 16),
        ("1e-4", 1e-4),
        ("1.0e-3", 1e-3),
        ("2.50", 2.5),
        (".5", 0.5),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        (".inf", math.inf),
        ("-.inf", -math.inf),
        ("no", "no"),
        ("on", "on"),
        ("010", "010"),
        ("0o10", "0o10"),
        ("10:30", "10:30"),
        ("1_000", "1_000"),
        ("01.5", "01.5"),
        ("2024-01-01", "2024-01-01"),
        ("=", "="),
    ],
)
def test_what_a_word_is_by_itself(word: str, value: object) -> None:
    assert resolve(Plain(word)) == value and type(resolve(Plain(word))) is type(value)
    assert resolve(word) == word  # in quotes


def test_an_integer_of_any_length_is_no_traceback() -> None:
    assert resolve(Plain("9" * 5000)) == math.inf


def test_every_name_given_twice_is_named_with_both_lines() -> None:
    message = refusal("a: 1\nb: {c: 1, c: 2}\na: 3\n")
    assert "c.yaml: line 2: c is given a second time, after line 2" in message
    assert "c.yaml: line 3: a is given a second time, after line 1" in message


def test_an_anchor_and_a_merge_are_read_and_what_is_written_out_wins() -> None:
    text = "base: &b {x: 1, y: 2}\nmine: {<<: *b, y: 3}\nboth: {<<: [*b, {x: 9, z: 4}]}\n"
    value = read_yaml(text, "c.yaml")
    assert value["mine"] == {"x": "1", "y": "3"} and value["both"] == {"x": "1", "y": "2", "z": "4"}


def test_aliases_that_grow_without_end_are_refused() -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    for name, before in zip("bcdefgh", "abcdefg", strict=True):
        lines.append(f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]")
    assert "aliases" in refusal("\n".join(lines))
    assert "levels deep" in refusal("a: &a [*a]")


@pytest.mark.parametrize(
    "text, said",
    [
        ("a: 1\n\tb: 2", "line 2, column 1: .*YAML takes no tabs: write spaces"),
        ("a: 1\n---\na: 2", "line 2, column 1: a second document begins"),
        ("prompts: [{token} scan]", "line 1.*a text with braces or brackets needs quotes"),
        ("caption: {token} scan", "line 1.*a text with braces or brackets needs quotes"),
        ("a: {b: \u201cc: {d}\u201d}", "line 1.*typographic quotes: write plain ones"),
        ("a: 1\nb:\u00a01\nc: 2", "spaces that do not break .U.00A0.: write plain ones"),
        ("caption: a: b", "line 1.*a text with a colon needs quotes"),
        ("a: @x", "line 1.*a text that starts with a sign needs quotes"),
        ("a: !!python/object/apply:os.getcwd []", "is not YAML.*line 1: the tag !!python/object/apply:os.getcwd"),
        ("a: !!int 3", "line 1: the tag !!int is not allowed"),
        ("a: !x y", "line 1: the tag !x is not allowed"),
        ("? [a]\n: b", "line 1: a name is a word"),
        ("{token}: b", "line 1: a name is a word"),
        ("a: *x", "line 1"),
        ("a: [1", "is not YAML: line"),
        ("a: \x00", "is not YAML"),
        ("<<: 3", "takes a group"),
        ("[" * 5000, "nested too deeply|levels deep"),
    ],
)
def test_what_is_no_config_is_refused_at_its_line(text: str, said: str) -> None:
    with pytest.raises(UserError, match=f"(?s)c.yaml.*{said}"):
        read_yaml(text, "c.yaml")
