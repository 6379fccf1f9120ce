"""Captions and prompts: templates, and the values that fill their columns."""

from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from itertools import count
from math import sqrt

from busray.records import SourceImage, UserError

GOLDEN = 0.6180339887498949  # the fractional part of the golden ratio


def fill(template: str, *, token: str, class_name: str, columns: Mapping[str, str]) -> str:
    """The template with `{token}`, `{class}` and columns filled in. UserError: unknown fields."""
    values = {**columns, "token": token, "class": class_name}
    try:
        return template.format_map(values)
    except (KeyError, ValueError, IndexError, AttributeError) as error:
        known = ", ".join(f"{{{name}}}" for name in sorted(values))
        raise UserError(f"classes.{class_name}: cannot fill {error} in {template!r}; known here: {known}") from error


def column_shares(images: Iterable[SourceImage], class_name: str, column: str) -> dict[str, float]:
    """value -> share of a metadata column among a class's images that have a value.

    UserError where none has one.
    """
    counts: Counter[str] = Counter()
    for image in images:
        if image.class_name == class_name and image.columns.get(column):
            counts[image.columns[column]] += 1
    if not counts:
        raise UserError(
            f"classes.{class_name}.prompts: {{{column}}} is no column of dataset.metadata with values for this class; "
            f"add it there, or give classes.{class_name}.quotas.{column}"
        )
    return {value: n / counts.total() for value, n in sorted(counts.items())}


def quota_value(shares: Mapping[str, float], index: int, seed: int, column: int = 0) -> str:
    """The value of the image `index`. Only the index decides, so a grown corpus keeps its values.

    column: the column's number among those of its class.
    """
    # An additive recurrence: image after image takes an irrational step around a circle of which
    # each value has its share. Among any first n images, each value's count is within O(log n) of
    # its share, far closer than independent draws. With one step for all columns, their values
    # would go together.
    at = (seed / 2**63 + index * _step(column)) % 1.0 * sum(shares.values())
    for value, share in sorted(shares.items()):
        at -= share
        if at < 0:
            return value
    return max(shares)  # rounding: the shares' sum was not quite reached


@cache
def _step(column: int) -> float:
    """The golden ratio, then square roots of primes: no sum of their multiples is a whole number.

    5 is left out, as its root is the golden ratio's. 3 is left out, as three columns of two values
    strayed from their joint shares three times as far with it.
    """
    if column == 0:
        return GOLDEN
    primes = [2, 7]
    for n in count(11):
        if len(primes) >= column:
            break
        if all(n % d for d in range(2, n)):
            primes.append(n)
    return sqrt(primes[column - 1]) % 1.0
