"""The text of captions and prompts: the names in braces, and habits of other programs."""

import re
import string
from collections.abc import Mapping

LORA_TAG = re.compile(r"<(?:lora|lyco|hypernet):[^<>]{0,200}>")

LITERAL = (
    (re.compile(r"\([^()]{1,200}:\s{0,3}\d{0,3}\.?\d{1,6}\s{0,3}\)"), "a weight"),
    (re.compile(r"\(\([^()]{1,200}\)\)|\[\[[^\[\]]{1,200}\]\]"), "a weight"),
    (re.compile(r"\[[^\[\]|:]{0,200}[|:][^\[\]]{0,200}\]"), "an alternation"),
    (re.compile(r"\b(?:BREAK|AND)\b"), "a break"),
    (re.compile(r"__[\w/*-]{1,80}__"), "a wildcard"),
    (re.compile(r"\bembedding:\S{1,80}"), "an embedding"),
)
"""Syntax of other programs -> what it means there. The text encoder reads it as plain text. Lengths
are bounded, so that a long text takes no quadratic time."""


def template_fields(template: str) -> set[str]:
    """The names in braces of a caption or prompt. ValueError if the braces do not pair."""
    return {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}


def template_problem(template: str) -> str | None:
    """Why a caption or prompt cannot be filled in, and what to write; None if it can."""
    tag = LORA_TAG.search(template)
    if tag:
        return f"{tag[0]} is not read from a prompt: name the adapters in adapters.path"
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        reason = str(error).replace("format string", "the text")
        return f"{reason}: braces name a column, as in {{token}}; write {{{{ and }}}} for braces that stay"
    for _, name, form, conversion in parts:
        if name is None:
            continue
        written = name + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
        if "|" in written or "$$" in written:
            return f"{{{written}}} is not drawn from: write each prompt out, prompts are used in turn"
        if conversion or form:
            return f"{{{written}}}: only a name stands in braces: write {{{name}}}"
        if not name.strip():
            return "{} names nothing: write {token}, {class} or a column of dataset.metadata"
        if re.search(r"[.\[\]{}!:]", name) or name.isdigit():
            return f"{{{written}}} is no name of a column: write {{token}}, {{class}} or a column of dataset.metadata"
    return None


def read_literally(template: str) -> list[str]:
    """What in a text means something in other programs, as `(dark:1.3) (a weight)`."""
    found = []
    for pattern, meaning in LITERAL:
        found += [f"{match[0]!r} ({meaning} elsewhere)" for match in pattern.finditer(template)]
    return found


def plain_caption(prompt: str, words: Mapping[str, str], class_name: str) -> str:
    """The prompt without learned tokens, which no other model knows.

    words: token -> the plain words in its place. A word that then stands twice in a row stands
    once. The class's name is added where no word says it.
    """
    for token, plain in words.items():
        prompt = prompt.replace(token, f" {plain} ")
    caption: list[str] = []
    for word in prompt.split():
        if not caption or word.lower() != caption[-1].lower():
            caption.append(word)
    text = re.sub(r" ([,.;:!?])", r"\1", " ".join(caption))
    named = re.search(rf"(?<![\w-]){re.escape(class_name)}(?![\w-])", text, re.IGNORECASE)
    return text if named else ", ".join(part for part in (text, class_name) if part)
