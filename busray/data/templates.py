"""Captions and prompts: templates, and the values that fill their columns."""

from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from itertools import count, islice
from math import sqrt

from busray.records import SourceImage, UserError

GOLDEN = 0.6180339887498949


def fill(template: str, *, token: str, class_name: str, columns: Mapping[str, str]) -> str:
    """The template with `{token}`, `{class}` and columns filled in; UserError names what is unknown."""
    values = {**columns, "token": token, "class": class_name}
    try:
        return template.format_map(values)
    except (KeyError, ValueError, IndexError, AttributeError) as error:
        known = ", ".join(f"{{{name}}}" for name in sorted(values))
        raise UserError(f"classes.{class_name}: cannot fill {error} in {template!r}; known here: {known}") from error


def shares(images: Iterable[SourceImage], class_name: str, column: str) -> dict[str, float]:
    """value -> share of a metadata column among a class's images; images without a value do not count."""
    counts = Counter(i.columns[column] for i in images if i.class_name == class_name and i.columns.get(column))
    if not counts:
        raise UserError(
            f"classes.{class_name}.prompts: {{{column}}} is no column of dataset.metadata with values for this class; "
            f"add it there, or give classes.{class_name}.quotas.{column}"
        )
    return {value: n / counts.total() for value, n in sorted(counts.items())}


def quota_value(shares: Mapping[str, float], index: int, seed: int, column: int = 0) -> str:
    """The value of the index-th image: by index alone, so that a grown corpus keeps what it has.

    column: the column's number among those of its class. Each has a step of its own, as with one step for all of them
    their values would go together. Among any first n images each value's count is within O(log n) of its share.
    """
    at = (seed / 2**63 + index * _step(column)) % 1.0 * sum(shares.values())
    for value, share in sorted(shares.items()):
        at -= share
        if at < 0:
            return value
    return max(shares)


@cache
def _step(column: int) -> float:
    """The golden ratio, then the fractional parts of primes' square roots: no sum of multiples of them is whole.

    Without 5, whose root is the golden ratio's, and 3: beside 2, three columns of two values strayed thrice as far.
    """
    if column == 0:
        return GOLDEN
    primes = (n for n in count(2) if n not in (3, 5) and all(n % d for d in range(2, n)))
    return sqrt(next(islice(primes, column - 1, None))) % 1.0
