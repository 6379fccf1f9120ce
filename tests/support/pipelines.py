"""The embedded base, loaded once in a test process."""

import copy
from functools import cache
from typing import Any

from busray.config import Base
from busray.model.base import load_pipeline


@cache
def _loaded(dtype: str) -> Any:
    return load_pipeline(Base(), dtype=dtype)


def tiny_pipeline(dtype: str = "float32") -> Any:
    """A pipeline of the embedded base that the caller may change."""
    return copy.deepcopy(_loaded(dtype))
