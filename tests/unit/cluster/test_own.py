"""A Ray that a busy machine did not start in time. No Ray here."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from busray.cluster import own
from busray.records import Stopped


@pytest.mark.parametrize(("failures", "cause", "starts"), [(2, "timed out during startup", 3), (9, "no disk", 1)])
def test_a_ray_that_a_busy_machine_did_not_start_in_time_is_started_again(
    monkeypatch: pytest.MonkeyPatch, failures: int, cause: str, starts: int
) -> None:
    tried = []

    @contextmanager
    def one_ray(**_: object) -> Iterator[None]:
        tried.append(1)
        if len(tried) <= failures:
            raise Stopped("Ray did not start") from RuntimeError(f"the node {cause}")
        yield

    monkeypatch.setattr(own, "one_ray", one_ray)
    if cause == "no disk":
        with pytest.raises(Stopped), own.own_ray():
            pass
    else:
        with own.own_ray():
            assert len(tried) == starts
    assert len(tried) == starts
