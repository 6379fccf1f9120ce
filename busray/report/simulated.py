"""Words of a report on phantoms: what stands in for real images is called simulated."""

import re
from collections.abc import Callable


def words_for(*, simulated: bool) -> Callable[[str], str]:
    """Calls images by what they are. simulated: phantoms stand in for real images."""
    return _simulated_words if simulated else _unchanged


def _simulated_words(text: str) -> str:
    """`real` as a word, also of an arm or a protocol, becomes `simulated`."""
    return re.sub(r"\breal\b", "simulated", re.sub(r"\bReal\b", "Simulated", text))


def _unchanged(text: str) -> str:
    return text
