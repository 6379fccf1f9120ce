"""A Config from a YAML file and `--a.b=c` flags; every mistake as one readable line."""

import difflib
import json
import shlex
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from busray import places
from busray.config import Config, Dataset, Place, safe_name
from busray.records import UserError
from busray.setting_mistakes import explain, setting_names, shortened
from busray.yaml_text import DECIMAL, HEXADECIMAL, SPECIAL, Plain, read_yaml, resolve

T = TypeVar("T")

NULLS = ("null", "Null", "NULL")
LARGEST_FILE = 1_000_000
"""Bytes of a config file; more than that is another file."""


CHECK_ARGUMENTS = {
    "--dataset.path": "the folder as the argument: `busray check FOLDER`",
    "--dataset.metadata": "--metadata=FILE",
    "--dataset.phantoms": "the folder that is to be checked: simulated images need no check",
}
"""Settings that `busray check` has an argument of its own for."""


def load_config(path: str | Path, flags: list[str] | None = None) -> Config:
    """The settings of a YAML file, overridden by flags. UserError lists every mistake."""
    path = Path(path)
    tree = read_yaml(_read(path), f"config file {path}")
    if not isinstance(tree, dict):
        expected = "expected `classes:`, `dataset:` and so on"
        raise UserError(f"config file {path} holds no settings: {expected}")
    given = _Given()
    tree = given.read(tree, _Kind.of(Config), ())
    tree.setdefault("name", path.stem)
    given.override(tree, flags or [])
    given.refuse_nested(tree)
    return _validated(tree, given)


def with_flags(tree: dict[str, Any], flags: Sequence[str]) -> Config:
    """A Config from plain values, overridden by flags (`tree` is changed). Errors: as validate."""
    given = _Given()
    given.override(tree, flags)
    return _validated(tree, given)


def dataset_settings(flags: Sequence[str]) -> Dataset:
    """The settings of `busray check`: its flags are those of `dataset`. UserError as validate."""
    tree: dict[str, Any] = {"dataset": {}}
    given = _Given()
    for flag in flags:
        if not flag.startswith("--dataset."):
            raise UserError(f"{_shown(flag)}: of the settings this command takes those of `dataset` only; see --help")
        own = CHECK_ARGUMENTS.get(flag.partition("=")[0])
        if own:
            raise UserError(f"{_shown(flag)}: write {own}")
    given.override(tree, flags)
    return _checked(lambda: Dataset.model_validate(tree["dataset"]), given, ("dataset",))


def validate(tree: dict[str, Any]) -> Config:
    """A Config from plain values. UserError has one line for each mistake."""
    return _validated(tree, _Given())


def _validated(tree: dict[str, Any], given: "_Given") -> Config:
    config = _checked(lambda: Config.model_validate(tree), given)
    return config if config.output else config.model_copy(update={"output": f"runs/{config.name}"})


def _checked(make: Callable[[], T], given: "_Given", prefix: tuple[str, ...] = ()) -> T:
    """What make() returns. UserError lists what was found in `given`, and pydantic's errors at
    other places; prefix: the group that make() makes."""
    problems = given.problems
    lines = [*given.mistakes, *(f"{'.'.join(location)}: {problem}" for location, problem in problems.items())]
    try:
        made = make()
    except ValidationError as error:
        for item in error.errors():
            location = (*prefix, *map(str, item["loc"]))
            emptied = item["type"] == "too_short" and item["input"]  # by an item that has its own line
            if not emptied and not any(location[: len(known)] == known for known in problems):
                lines.append(explain({**item, "loc": location}))
        raise UserError("\n".join(lines)) from error
    if lines:
        raise UserError("\n".join(lines))
    return made


def _read(path: Path) -> str:
    fix = "give a YAML file, such as configs/demo.yaml"
    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST_FILE + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror or error if isinstance(error, OSError) else error
        raise UserError(f"config file {path}: {reason}: {fix}") from error
    if len(data) > LARGEST_FILE:
        raise UserError(f"config file {path}: it has more than {LARGEST_FILE} bytes: {fix}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if data.startswith((b"\xff\xfe", b"\xfe\xff")):
            fix = "it is UTF-16: save it as UTF-8"
        else:
            line = data[: error.start].count(b"\n") + 1
            fix = f"line {line} has other bytes, such as an umlaut of Latin-1: save it as UTF-8"
        raise UserError(f"config file {path}: not UTF-8 text: {fix}") from error


# ---- the kind of a setting ----


@dataclass(frozen=True)
class _Kind:
    """What a setting takes."""

    text: bool = False
    number: bool = False
    null: bool = False
    place: Place | None = None
    group: type[BaseModel] | None = None
    inner: "_Kind | None" = None  # of a list's items, or of the values under any name

    @staticmethod
    def of(annotation: Any, metadata: Sequence[Any] = ()) -> "_Kind":
        """The kind of a type, such as `Annotated[int, ...] | None`."""
        place = next((mark for mark in metadata if isinstance(mark, Place)), None)
        origin, inner = get_origin(annotation), get_args(annotation)
        if origin is Annotated:
            return _Kind.of(inner[0], (*metadata, *inner[1:]))
        if origin in (Union, types.UnionType):
            kinds = [_Kind.of(part, metadata) for part in inner if part is not type(None)]
            first = kinds[0]
            text, number = any(kind.text for kind in kinds), any(kind.number for kind in kinds)
            return _Kind(text, number, type(None) in inner, first.place, first.group, first.inner)
        if origin in (tuple, list):
            return _Kind(inner=_Kind.of(inner[0]))
        if origin is dict:
            return _Kind(inner=_Kind.of(inner[1]))
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return _Kind(group=annotation)
        return _Kind(text=annotation is str or origin is Literal, number=annotation in (int, float), place=place)

    def at(self, name: str) -> "_Kind | None":
        """The kind of the setting of this name in a group; None if there is none."""
        if self.group is None:
            return self.inner
        settings = self.group.model_fields.get(name)
        return settings and _Kind.of(settings.annotation, settings.metadata)


UNKNOWN = _Kind()


# ---- what a user gave ----


@dataclass
class _Given:
    """Reads what a user wrote as the kind of its setting, and collects what is wrong."""

    problems: dict[tuple[str, ...], str] = field(default_factory=dict)  # by location
    mistakes: list[str] = field(default_factory=list)  # of flags that have no location

    def read(self, value: Any, kind: _Kind, at: tuple[str, ...]) -> Any:
        """The value as its setting wants it: `no` is a text here and a truth value there."""
        if isinstance(value, dict):
            read = {}
            for name, part in value.items():
                read[name] = self.read(part, kind.at(name) or UNKNOWN, (*at, name))
            return read
        if isinstance(value, list):
            items = enumerate(value)
            return [self.read(item, kind.inner or UNKNOWN, (*at, str(number))) for number, item in items]
        if kind.text and not kind.number and isinstance(value, str):
            if isinstance(value, Plain) and resolve(value) is None:
                return None
            return self.place(str(value), kind.place, at) if kind.place else str(value)
        value = resolve(value)
        if kind.number and isinstance(value, bool):
            self.problems[at] = f"a number is expected (given: {str(value).lower()})"
        if kind.number and not kind.text and isinstance(value, str) and _looks_like_another_number(value):
            plain = "a number has decimal digits and a point: no `_`, `:`, comma, sign of its unit or leading zero"
            self.problems[at] = f"{plain} (given: {shortened(value)})" if not places.credentials_in(value) else plain
        return value

    def place(self, text: str, mark: Place, at: tuple[str, ...]) -> str:
        """A place with its variables filled in."""
        try:
            filled = places.expand(text)
        except ValueError as error:
            self.problems[at] = f"{error} (given: {text})" if not places.credentials_in(text) else str(error)
            return text
        if wrong := places.problem(filled, url=mark.url) if not filled.strip() else None:
            self.problems[at] = wrong
        return filled

    def override(self, tree: dict[str, Any], flags: Sequence[str]) -> None:
        """Put the values of flags into the tree."""
        given: dict[tuple[str, ...], str] = {}
        for flag in flags:
            try:
                name, text = _split(flag)
                at = _location(name, tree)
                _refuse_twice(flag, at, given)
                given[at] = flag
                # The flag replaces what the file says there, and so what is wrong with it.
                self.problems = {known: wrong for known, wrong in self.problems.items() if known[: len(at)] != at}
                _put(tree, at, self.flag_value(text, _kind_at(at), at, flag), flag)
            except UserError as error:
                self.mistakes.append(str(error))

    def flag_value(self, text: str, kind: _Kind | None, at: tuple[str, ...], flag: str) -> Any:
        """The value of a flag. A text is taken as it is: no word, colon or brace in it is YAML."""
        if kind is None:
            return text  # an unknown setting, whatever its value
        if kind.inner and kind.inner.text and text and text[0] not in "[{" and text not in NULLS:
            items = json.dumps([item.strip(" '\"") for item in text.split(",")], ensure_ascii=False)
            self.problems[at] = f"a list is expected: write {shlex.quote(f'--{_dotted(at)}={items}')}"
            return text
        if text and (not kind.text or kind.number):
            return self.read(read_yaml(text, _shown(flag)), kind, at)
        if not text:
            null = ", or null to unset it" if kind.null else ""
            self.problems[at] = f"it is empty: give a value after the `=`{null}"
            return text
        if text in NULLS or (text == "~" and not kind.place):
            return None
        if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
            text = str(read_yaml(text, _shown(flag)))
        return self.read(text, kind, at)

    def refuse_nested(self, tree: dict[str, Any]) -> None:
        """An output in the data folder would be read as a class, and the other way round."""
        dataset = tree.get("dataset")
        data = dataset.get("path") if isinstance(dataset, dict) else None
        output = tree.get("output") or f"runs/{tree['name']}"
        if tree["name"] in (".", ".."):
            return  # refused by name
        if not isinstance(data, str) or not isinstance(output, str):
            return
        if any(places.problem(place) or places.is_url(place) for place in (data, output)):
            return
        if places.contains(data, output):
            why = f"{output} lies in the data folder {data}: its files would be read as images"
        elif places.contains(output, data):
            why = f"the data folder {data} lies in {output}: a run's folder is its own"
        else:
            return
        self.problems[("output",)] = f"{why}: give --output=FOLDER beside it"


def _dotted(at: Sequence[str]) -> str:
    return ".".join(at)


def _looks_like_another_number(text: str) -> bool:
    """Whether it begins as a number and is none that all readers of YAML understand alike."""
    known = any(form.fullmatch(text) for form in (DECIMAL, HEXADECIMAL, SPECIAL))
    return text.lstrip("+-.")[:1].isdigit() and not known


# ---- flags ----


def _split(flag: str) -> tuple[str, str]:
    """(name, text) of `--a.b=text`."""
    name, equals, text = flag.removeprefix("--").partition("=")
    if flag[:1] in ("–", "—", "−"):
        raise UserError(f"{_shown(flag)}: it starts with a long dash: write --{_shown(flag.lstrip('–—−-'))}")
    if not flag.startswith("--") or not equals or not name:
        raise UserError(f"{_shown(flag)}: settings are given as --a.b=value, such as --sampling.steps=25{_near(name)}")
    return name, text


def _shown(flag: str) -> str:
    """A flag for a message, without a secret in its value."""
    return flag.partition("=")[0] if places.credentials_in(flag) else shortened(flag)


def _refuse_twice(flag: str, at: tuple[str, ...], given: dict[tuple[str, ...], str]) -> None:
    for other, written in given.items():
        shorter = min(len(at), len(other))
        if at[:shorter] == other[:shorter]:
            what = "it is given twice" if at == other else "one is inside the other"
            raise UserError(f"{_shown(written)} and {_shown(flag)}: {what}: leave one out")


def _near(name: str) -> str:
    close = difflib.get_close_matches(name.lstrip("-").replace("-", "_"), setting_names(), n=1)
    return f"; did you mean --{close[0]}=VALUE?" if close else ""


def _location(name: str, tree: dict[str, Any]) -> tuple[str, ...]:
    """The parts of a dotted name. A class's name may have dots, and the class is in the tree."""
    parts = name.split(".")
    classes = tree.get("classes")
    if parts[0] != "classes" or len(parts) < 3 or not isinstance(classes, dict) or not classes:
        return tuple(parts)
    # A folder's name with spaces stands in the file, or the safe name that it gets.
    written = {safe_name(str(key)) or str(key): str(key) for key in classes} | {str(key): str(key) for key in classes}
    for end in range(len(parts) - 1, 1, -1):
        if ".".join(parts[1:end]) in written:
            return ("classes", written[".".join(parts[1:end])], *parts[end:])
    close = difflib.get_close_matches(parts[1], list(classes), n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(classes)[:10])}"
    raise UserError(f"--{shortened(name)}: no such class: {hint}")


def _kind_at(at: tuple[str, ...]) -> _Kind | None:
    kind: _Kind | None = _Kind.of(Config)
    for name in at:
        kind = kind and kind.at(name)
    return kind


def _put(tree: dict[str, Any], at: tuple[str, ...], value: Any, flag: str) -> None:
    *parents, leaf = at
    for parent in parents:
        if tree.get(parent) is None:  # the file may leave out the group or set it to null
            tree[parent] = {}
        if not isinstance(tree[parent], dict):
            raise UserError(f"{_shown(flag)}: {parent} is a value, not a group of settings")
        tree = tree[parent]
    tree[leaf] = value
