"""The embedded base, loaded once in a test process."""

import copy
from functools import cache
from typing import Any

from busray.config import Base
from busray.model.base import load_pipeline


@cache
def loaded_pipeline(dtype: str = "float32") -> Any:
    """A pipeline of the embedded base that nobody changes."""
    return load_pipeline(Base(), dtype=dtype)


def tiny_pipeline(dtype: str = "float32") -> Any:
    """A pipeline of the embedded base that the caller may change."""
    return copy.deepcopy(loaded_pipeline(dtype))
