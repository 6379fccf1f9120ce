"""A Config from a YAML file and `--a.b=c` flags; every mistake as one readable line."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from busray.config import Config, Dataset, credentials_in
from busray.records import UserError


def load_config(path: str | Path, flags: list[str] | None = None) -> Config:
    """The settings of a YAML file, overridden by flags. UserError lists every mistake."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror or error) if isinstance(error, OSError) else "not UTF-8 text"
        fix = "give a YAML file, such as configs/demo.yaml"
        raise UserError(f"config file {path}: {reason}: {fix}") from error
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"config file {path} is not YAML: {error}") from error
    if not isinstance(tree, dict):
        expected = "expected `classes:`, `dataset:` and so on"
        raise UserError(f"config file {path} holds no settings: {expected}")
    tree.setdefault("name", path.stem)
    return with_flags(tree, flags or [])


def with_flags(tree: dict[str, Any], flags: Sequence[str]) -> Config:
    """A Config from plain values, overridden by flags (`tree` is changed). Errors: as validate."""
    for flag in flags:
        _merge_flag(tree, flag)
    return validate(tree)


def dataset_settings(flags: Sequence[str]) -> Dataset:
    """The settings of `busray check`: its flags are those of `dataset`. UserError as validate."""
    tree: dict[str, Any] = {"dataset": {}}
    for flag in flags:
        if not flag.startswith("--dataset."):
            raise UserError(f"{flag}: of the settings this command takes those of `dataset` only; see --help")
        _merge_flag(tree, flag)
    try:
        return Dataset.model_validate(tree["dataset"])
    except ValidationError as error:
        problems = [{**item, "loc": ("dataset", *item["loc"])} for item in error.errors()]
        raise UserError("\n".join(map(_explain, problems))) from error


def validate(tree: dict[str, Any]) -> Config:
    """A Config from plain values. UserError has one line for each mistake."""
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        raise UserError("\n".join(_explain(item) for item in error.errors())) from error
    return config if config.output else config.model_copy(update={"output": f"runs/{config.name}"})


def _merge_flag(tree: dict[str, Any], flag: str) -> None:
    """Put the value of `--a.b=value` (YAML) into tree["a"]["b"]."""
    name, equals, text = flag.removeprefix("--").partition("=")
    if not flag.startswith("--") or not equals or not name:
        raise UserError(f"{flag}: settings are given as --a.b=value, such as --sampling.steps=25")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{flag}: the value is not YAML: {error}") from error
    *parents, leaf = name.split(".")
    for parent in parents:
        if tree.get(parent) is None:  # the file may leave out the group or set it to null
            tree[parent] = {}
        if not isinstance(tree[parent], dict):
            raise UserError(f"{flag}: {parent} is a value, not a group of settings")
        tree = tree[parent]
    tree[leaf] = value


def _explain(item: Any) -> str:
    """One of pydantic's errors as `<dotted name>: <what is wrong> (given: <value>)`."""
    location = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        known = sorted(_fields_at(item["loc"][:-1]))
        close = difflib.get_close_matches(str(item["loc"][-1]), known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known here: {', '.join(known)}"
        return f"{location}: no such setting; {hint}"
    message = item["msg"].removeprefix("Value error, ")
    if not location:
        return message
    value = repr(item["input"])
    if item["type"] == "missing" or credentials_in(value):  # a secret is not repeated in a message
        return f"{location}: {message}"
    return f"{location}: {message} (given: {value})"


def _fields_at(location: tuple[Any, ...]) -> set[str]:
    """Names of the settings in the group at this location."""
    model: Any = Config
    for part in location:  # a class's name (a key of `classes`) is no field: the group stays
        if part in model.model_fields:
            model = _model_in(model.model_fields[part].annotation) or model
    return set(model.model_fields)


def _model_in(annotation: Any) -> Any:
    """The settings class inside `X`, `X | None` or `dict[str, X]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        model = _model_in(inner)
        if model is not None:
            return model
    return None
