"""What is known of machines before any Ray is started."""

import pytest

from busray.cluster.session import machines
from busray.config import Cluster


def test_without_an_address_the_machines_are_this_one_and_no_ray_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: object, **__: object) -> None:
        raise AssertionError("a Ray was started")

    monkeypatch.setattr("ray.init", started)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    where, ((cpus, gpus),) = machines(Cluster())
    assert where == "this machine" and cpus >= 1 and gpus == 0
