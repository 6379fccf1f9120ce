"""Captions and prompts: what stands in braces, and what other programs read in a text."""

import pytest

from busray.prompt_text import plain_caption, read_literally, template_fields, template_problem


def test_template_fields_are_the_names_in_braces() -> None:
    assert template_fields("{token} of {class}, {birads} and {{no field}}") == {"token", "class", "birads"}


@pytest.mark.parametrize("text", ["{token} of {class}", "{tumor size}, {BI-RADS}", "{{a}} b", "(dark:1.3) {token}", ""])
def test_a_text_that_can_be_filled_in_is_no_problem(text: str) -> None:
    assert template_problem(text) is None


@pytest.mark.parametrize(
    "text, said",
    [
        ("{token!r}", "only a name stands in braces: write {token}"),
        ("{class:>1000000}", "only a name stands in braces: write {class}"),
        ("{class:{token}}", "only a name stands in braces: write {class}"),
        ("{token.__class__}", "no name of a column"),
        ("{token[0]}", "no name of a column"),
        ("{0}", "no name of a column"),
        ("{}", "{} names nothing"),
        ("{token} {", "write {{ and }} for braces that stay"),
        ("{token} }", "write {{ and }} for braces that stay"),
        ("{oval|round} {token}", "prompts are used in turn"),
        ("{2$$oval|round}", "prompts are used in turn"),
        ("{token} <lora:busi:0.8>", "name the adapters in adapters.path"),
    ],
)
def test_what_cannot_be_filled_in_is_refused_with_what_to_write(text: str, said: str) -> None:
    assert said in (template_problem(text) or "")


@pytest.mark.parametrize(
    "text",
    [
        "(hypoechoic:1.3)",
        "((dark))",
        "[oval|round]",
        "[oval:round:0.5]",
        "a BREAK b",
        "a AND b",
        "__shape__",
        "embedding:us",
    ],
)
def test_syntax_of_other_programs_is_told_as_read_literally(text: str) -> None:
    assert len(read_literally(f"{{token}} {text}, scan")) == 1


def test_an_ordinary_text_has_nothing_to_tell() -> None:
    assert read_literally("an (old) scan [left], BI-RADS 4: oval and dark, 3:2, Brandt") == []


@pytest.mark.parametrize(
    ("prompt", "caption"),
    [
        ("<us-benign> ultrasound image of benign breast tissue", "ultrasound image of benign breast tissue"),
        ("a photo of <us-benign>", "a photo of ultrasound, benign"),
        ("<us-benign>", "ultrasound, benign"),
        ("dark, <us-benign>, Benign", "dark, ultrasound, Benign"),
        ("benignity of <us-benign>", "benignity of ultrasound, benign"),
        ("plain words, benign", "plain words, benign"),
        ("", "benign"),
    ],
)
def test_a_caption_has_plain_words_and_the_class(prompt: str, caption: str) -> None:
    assert plain_caption(prompt, {"<us-benign>": "ultrasound"}, "benign") == caption
