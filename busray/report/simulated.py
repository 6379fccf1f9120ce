"""Words of a report on phantoms: what stands in for real images is called simulated."""

import re
from collections.abc import Callable
from typing import TypeVar

Text = TypeVar("Text", bound=str)

WORDS = re.compile(r'base64,[^"]*|\b[Rr]eal\b')
"""What is looked at as a whole: a picture's bytes, which stay as they are, or the word."""


def words_for(*, simulated: bool) -> Callable[[Text], Text]:
    """Calls images by what they are. simulated: phantoms stand in for real images."""
    return _simulated_words if simulated else _unchanged


def _simulated_words(text: Text) -> Text:
    """`real` as a word, also of an arm or a protocol, becomes `simulated`; markup stays markup."""
    return type(text)(WORDS.sub(_simulated_word, str(text)))


def _simulated_word(found: re.Match[str]) -> str:
    return {"real": "simulated", "Real": "Simulated"}.get(found[0], found[0])


def _unchanged(text: Text) -> Text:
    return text
