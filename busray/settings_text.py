"""Settings as text: what each takes and means, a JSON schema for editors, a config to begin with.

All of it is read from config.py: the text below a setting there is what a user reads here.
"""

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import yaml

from busray.config import Config

SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"
REQUIRED = "(needed)"
PLAIN = re.compile(r"[\w/~$.][\w/.+@~$-]*")
"""Texts that need no quotes, if YAML takes them for no number and no word of its own."""


class Setting(NamedTuple):
    """One setting, for people."""

    name: str
    """Dotted; `<class>` stands for any class's name."""
    takes: str
    """Such as `integer 1..256`, `a | b`, `[number, number] or null`."""
    default: str
    """As YAML writes it."""
    text: str
    """One paragraph."""
    choices: tuple[str, ...] = ()
    """The words that it takes, for shell completion; none where it takes other values."""


def schema() -> dict[str, Any]:
    """A JSON schema of config files, with the text of every setting."""
    made = Config.model_json_schema()
    # `busray run` takes the name from the file, and the data folder may come as a flag.
    return {"$schema": SCHEMA_DIALECT, **made, "title": "A config of busray"}


def all_settings() -> list[Setting]:
    """Every setting, in the order of config.py; groups themselves are none."""
    whole = schema()
    return list(_settings(whole, whole, ""))


def matching(prefix: str) -> list[Setting]:
    """The settings whose dotted name begins with the words of `prefix`, such as `sampling` or
    `refine.steps`; where none does, those with a part of that name, such as `batch_size`."""
    wanted = prefix.strip(".").removeprefix("--")
    known = all_settings()
    found = [one for one in known if not wanted or f"{one.name}.".startswith(f"{wanted}.")]
    return found or [one for one in known if wanted in one.name.split(".")]


def nearest(prefix: str) -> str:
    """`; did you mean NAME?`, or nothing."""
    names = {one.name for one in all_settings()}
    names |= {name.rpartition(".")[0] for name in names} | {name.rpartition(".")[2] for name in names}
    close = difflib.get_close_matches(prefix.strip("."), sorted(names - {""}), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _settings(group: Mapping[str, Any], whole: Mapping[str, Any], prefix: str) -> Iterator[Setting]:
    for name, one in group["properties"].items():
        inside = _group(one, whole)
        if inside is not None:
            yield from _settings(inside, whole, f"{prefix}{name}.<class>." if name == "classes" else f"{prefix}{name}.")
            continue
        default = yaml_value(one["default"]) if "default" in one else REQUIRED
        text = " ".join(one.get("description", "").split())
        yield Setting(prefix + name, _takes(one), default, text, tuple(_choices(one)))


def _group(one: Mapping[str, Any], whole: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The group of settings that a property holds: itself, or null, or one for each name."""
    for part in (one, *one.get("anyOf", ()), one.get("additionalProperties")):
        if isinstance(part, Mapping):
            reference = part.get("$ref")
            if reference:
                return whole["$defs"][reference.rpartition("/")[2]]
            if part is not one and "anyOf" in part:
                return _group(part, whole)
    return None


def _takes(one: Mapping[str, Any]) -> str:
    if "anyOf" in one:
        return " or ".join(map(_takes, one["anyOf"]))
    if "enum" in one:
        return " | ".join(one["enum"])
    if "const" in one:
        return str(one["const"])
    kind = one.get("type")
    if kind == "boolean":
        return "true | false"
    if kind == "array" and "prefixItems" in one:
        return f"[{', '.join(map(_takes, one['prefixItems']))}]"
    if kind == "array":
        return f"list of {_takes(one['items'])}"
    if kind == "object":
        return "group of values"
    if kind in ("integer", "number"):
        return f"{kind} {_bounds(one)}".strip()
    return {"string": "text"}.get(str(kind), str(kind))


def _bounds(one: Mapping[str, Any]) -> str:
    low, high = one.get("minimum"), one.get("maximum")
    above, below = one.get("exclusiveMinimum"), one.get("exclusiveMaximum")
    if low is not None and high is not None:
        return f"{low:g}..{_number(high)}"
    parts = []
    if above is not None:
        parts.append(f"above {above:g}")
    if low is not None:
        parts.append(f"at least {low:g}")
    if below is not None:
        parts.append(f"below {_number(below)}")
    if high is not None:
        parts.append(f"at most {_number(high)}")
    return ", ".join(parts)


def _number(value: float) -> str:
    return "2^63" if value == 2**63 else f"{value:,}".removesuffix(".0")


def _choices(one: Mapping[str, Any]) -> Iterator[str]:
    for part in one.get("anyOf", (one,)):
        yield from part.get("enum", ())
        if "const" in part:
            yield str(part["const"])
        if part.get("type") == "boolean":
            yield from ("true", "false")


def yaml_value(value: Any) -> str:
    """A value as a flag or a config file takes it, on one line."""
    if isinstance(value, str):
        is_plain = PLAIN.fullmatch(value) and yaml.safe_load(value) == value
        return value if is_plain else json.dumps(value, ensure_ascii=False)
    return json.dumps(value, ensure_ascii=False)


def config_yaml(config: Config) -> str:
    """Every setting of a run, as a config file that gives the same settings again."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)


# ---- a config to begin with

STARTING = """\
# A config of busray. Comments say what a setting is; `busray config settings` lists all of them.
#   busray check {data}
#   busray run {file}

dataset:
  # {dataset.path}
  path: {data}

base:
  # {base.path}
  # `tiny` is for trying out. For images of use: configs/busi-sd15.yaml (Stable Diffusion, a GPU).
  path: tiny
  size: 128
  # auto: the fastest number format of the device that draws.
  dtype: auto

# A class of images to draw. `folder` is its folder of dataset.path, if it has another name.
classes:
{classes}
# Settings that suit `tiny`; Stable Diffusion needs others (configs/busi-sd15.yaml).
adapters:
  rank: 32
  convolutions: true
  vectors: 2
  # {adapters.steps} Half an hour on two CPU cores; 300 to try.
  steps: 1800
  batch_size: 8
  learning_rate: 1.0e-3
  token_learning_rate: 5.0e-3
  ema: 0.995

sampling:
  scheduler: sde-dpmsolver++
  # {sampling.steps}
  steps: 30
  guidance_scale: 2.0

# img2img on the result; `refine: null` leaves it out.
refine:
  # {refine.strength}
  strength: 0.3
  steps: 20
  guidance_scale: 2.0
  handover: latent
"""

CLASS = """\
  {name}:
{folder}    # {classes.<class>.images}
    images: 100
    # What the images show. {token} is the word that training learns for this class.
    caption: "an ultrasound image of breast tissue, {token}"
    prompts: ["an ultrasound image of breast tissue, {token}"]
    initializer: tissue
"""


def starting_config(file: str, data: str | None, classes: Mapping[str, str]) -> str:
    """A commented config file. classes: class -> its folder; data: their folder, None where it is
    not known yet."""
    texts = {one.name: one.text for one in all_settings()}
    parts = []
    for name, folder in classes.items():
        line = "" if folder == name else f"    folder: {yaml_value(folder)}\n"
        parts.append(_filled(CLASS, {**texts, "name": yaml_value(name), "folder": line}))
    place = "FOLDER" if data is None else data
    return _filled(STARTING, {**texts, "file": file, "data": yaml_value(place), "classes": "\n".join(parts)})


def _filled(template: str, values: Mapping[str, str]) -> str:
    """`{name}` replaced; other braces stay, since settings' texts have their own."""
    for name, value in values.items():
        template = template.replace("{" + name + "}", value)
    return template
