"""YAML text as plain values, with none of YAML 1.1's surprises.

An unquoted word stays a `Plain` text, because only the setting that it is for can say whether
`no`, `010` or `2024` is a text or a number. A key given twice, a tag, a second document and text
that grows by aliases are errors.
"""

import re
from typing import Any

import yaml

from busray.records import UserError

MOST_VALUES = 100_000
"""Values in one text, aliases counted as often as they are used."""
DEEPEST = 20
"""Levels of groups and lists."""

NULLS = ("", "~", "null", "Null", "NULL")
BOOLS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
HEXADECIMAL = re.compile(r"0x[0-9a-fA-F]+")
DECIMAL = re.compile(r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
SPECIAL = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
MOST_DIGITS = 400

STR_TAG = "tag:yaml.org,2002:str"
GROUP_TAGS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


class Plain(str):
    """An unquoted word: a text, a number, true, false or null."""


class _Loader(yaml.SafeLoader):
    """Composes nodes; no word becomes a number or a date."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012


def read_yaml(text: str, where: str) -> Any:
    """The value of a YAML text: dicts with text keys, lists, texts and Plain words; None if empty.

    where: what the text is, for messages. UserError names every key that is given twice, or the
    line at which the text is no YAML.
    """
    try:
        node = yaml.compose(text, Loader=_Loader)
        reader = _Reader()
        value = None if node is None else reader.value(node, 0)
    except RecursionError as error:
        raise UserError(f"{where}: it is nested too deeply") from error
    except _Unreadable as error:
        raise UserError(f"{where} is not YAML that busray reads: {error}") from error
    except yaml.MarkedYAMLError as error:
        raise UserError(f"{where} is not YAML: {_explain(error)}") from error
    except yaml.YAMLError as error:  # a character that YAML does not allow
        raise UserError(f"{where} is not YAML: {' '.join(str(error).split())}") from error
    if reader.twice:
        raise UserError("\n".join(f"{where}: {mistake}" for mistake in reader.twice))
    return value


def resolve(value: Any) -> Any:
    """The number, truth value, null or text that a Plain word is by itself; other values as are."""
    if not isinstance(value, Plain):
        return value
    if value in NULLS:
        return None
    if value in BOOLS:
        return BOOLS[value]
    if HEXADECIMAL.fullmatch(value):
        return int(value, 16)
    if len(value) <= MOST_DIGITS and INTEGER.fullmatch(value):
        return int(value)
    if SPECIAL.fullmatch(value):
        return float(value.replace(".", "", 1))
    # `010` (octal or not), `10:30` (base 60 or not) and `1_000` stay texts: readers disagree.
    return float(value) if DECIMAL.fullmatch(value) else str(value)


class _Unreadable(Exception):
    """What cannot be a setting; the message names the line."""


class _Reader:
    """Nodes to values."""

    def __init__(self) -> None:
        self.values = 0
        self.twice: list[str] = []

    def value(self, node: yaml.Node, depth: int) -> Any:
        self.values += 1
        if self.values > MOST_VALUES:
            raise _Unreadable(f"its aliases (`*name`) make it more than {MOST_VALUES} values long")
        if depth > DEEPEST:
            raise _Unreadable(f"line {_line(node)}: more than {DEEPEST} levels deep")
        if isinstance(node, yaml.ScalarNode):
            return _scalar(node)
        if node.tag not in GROUP_TAGS:
            raise _Unreadable(f"line {_line(node)}: the tag {_tag(node)} is not allowed")
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, depth + 1) for item in node.value]
        return self.mapping(node, depth)

    def mapping(self, node: yaml.Node, depth: int) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        own: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise _Unreadable(
                    f"line {_line(key_node)}: a name is a word, not a list or a group (a text with braces needs quotes)"
                )
            key = str(key_node.value)
            value = self.value(value_node, depth + 1)
            if key == "<<" and key_node.style is None:
                # Of several groups the first one counts, and what is written out counts most.
                for group in reversed(value if isinstance(value, list) else [value]):
                    if not isinstance(group, dict):
                        raise _Unreadable(f"line {_line(key_node)}: `<<` takes a group, such as `<<: *name`")
                    merged |= group
                continue
            if key in own:
                self.twice.append(
                    f"line {_line(key_node)}: {key} is given a second time, after line {lines[key]}: remove one"
                )
            else:
                lines[key] = _line(key_node)
            own[key] = value
        return {**merged, **own}


def _scalar(node: yaml.ScalarNode) -> str:
    if node.tag != STR_TAG:
        raise _Unreadable(f"line {_line(node)}: the tag {_tag(node)} is not allowed: write the value without it")
    return Plain(node.value) if node.style is None else str(node.value)


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def _tag(node: yaml.Node) -> str:
    return node.tag.replace("tag:yaml.org,2002:", "!!")


ODD_SIGNS = {
    "\u201c": "typographic quotes", "\u201d": "typographic quotes", "\u201e": "typographic quotes",
    "\u2018": "typographic quotes", "\u2019": "typographic quotes", "\u00a0": "spaces that do not break (U+00A0)",
}  # fmt: skip
"""What word processors and web pages put in the place of plain signs."""


def _explain(error: yaml.MarkedYAMLError) -> str:
    """One line with the place, and the fix of what people often write."""
    mark, problem = error.problem_mark, " ".join((error.problem or str(error)).split())
    if mark is None:
        return problem
    where, line = f"line {mark.line + 1}, column {mark.column + 1}", _text_at(mark)
    if "expected a single document" in str(error.context):
        return f"{where}: a second document begins (`---`): give one file for each run"
    fix, before = "", _text_at(mark, lines_before=1)  # where the error began, at times
    odd = next((name for sign, name in ODD_SIGNS.items() if sign in before + line), "")
    if odd:
        fix = f"; this line or the one before has {odd}: write plain ones"
    elif "<stream end>" in problem:
        fix = "; a bracket, a brace or a quote is not closed"
    elif "undefined alias" in problem:
        fix = "; a text that starts with `*` needs quotes"
    elif "\\t" in problem or line.startswith("\t"):
        fix = "; YAML takes no tabs: write spaces"
    elif "{" in line or "[" in line:
        fix = "; a text with braces or brackets needs quotes: '...'"
    elif "mapping values are not allowed" in problem:
        fix = "; a text with a colon needs quotes, and names of one group start in one column"
    elif "cannot start any token" in problem or "did not find" in problem:
        fix = "; a text that starts with a sign needs quotes: '...'"
    return f"{where}: {problem}{fix}"


def _text_at(mark: Any, lines_before: int = 0) -> str:
    """The line of the text that a mark is in, or one before it; empty where there is none."""
    buffer = mark.buffer
    if buffer is None:
        return ""
    start = buffer.rfind("\n", 0, mark.pointer) + 1
    for _ in range(lines_before):
        if not start:
            return ""
        start = buffer.rfind("\n", 0, start - 1) + 1
    return buffer[start:].split("\n", 1)[0].rstrip("\0")
