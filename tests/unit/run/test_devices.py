"""cluster.gpus_per_actor=auto: a GPU is used where there is one, and it is said in one line."""

import json
from typing import Any

import pytest

from busray.cluster import session
from busray.config import Config
from busray.config_file import validate
from busray.run import devices
from busray.run.devices import choose_devices
from busray.stages.status import _asked_for


def settings(**changes: Any) -> Config:
    return validate({"dataset": {"path": "data"}, "classes": {"benign": {}}, **changes})


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def with_gpus_here(monkeypatch: pytest.MonkeyPatch, gpus: int) -> None:
    monkeypatch.setattr(devices, "gpus_here", lambda: gpus)
    monkeypatch.setattr(devices, "number_format", lambda dtype, device: f"the best of {device}")


def test_without_a_gpu_the_cpu_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus_here(monkeypatch, 0)
    config, said = choose_devices(settings())
    assert config.cluster.gpus == config.cluster.gpus_per_actor == 0
    assert said == "computes on: CPU (0 GPUs on this machine); draws in float32, batches of 8"


def test_with_a_gpu_each_actor_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus_here(monkeypatch, 1)
    config, said = choose_devices(settings(base={"dtype": "auto"}, sampling={"batch_size": 4}))
    assert config.cluster.gpus == 1
    assert said == "computes on: 1 GPU an actor (1 GPU on this machine); draws in the best of cuda, batches of 4"
    assert choose_devices(settings())[1].endswith("; base.dtype=auto draws faster on a GPU")


def test_no_more_trainings_share_a_machine_than_it_has_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {"adapters": {"num_workers": [2, 4]}}
    for gpus, workers in ((0, (2, 4)), (1, (1, 1)), (3, (2, 3)), (8, (2, 4))):
        with_gpus_here(monkeypatch, gpus)
        assert choose_devices(settings(**wanted))[0].adapters.num_workers == workers


def test_a_number_that_is_given_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus_here(monkeypatch, 8)
    for given in (0, 0.5):
        config = settings(cluster={"gpus_per_actor": given}, adapters={"num_workers": 16})
        assert choose_devices(config)[0] == config


@pytest.mark.parametrize("nodes, gpus", [([(4, 0), (8, 2)], 1.0), ([(4, 0)], 0.0), ([], 0.0)])
def test_a_cluster_that_is_named_is_asked_for_its_gpus(
    monkeypatch: pytest.MonkeyPatch, nodes: list[tuple[float, float]], gpus: float
) -> None:
    with_gpus_here(monkeypatch, 1)
    monkeypatch.setattr(devices, "machines", lambda cluster: ("the cluster at h:1 now", nodes))
    config = settings(cluster={"address": "h:1"}, adapters={"num_workers": 4}, base={"dtype": "auto"})
    chosen, said = choose_devices(config)
    assert (chosen.cluster.gpus, chosen.adapters.num_workers) == (gpus, (4, 4))
    assert "GPUs on the cluster at h:1 now" in said


def test_a_machine_without_a_drivers_file_is_not_asked_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise AssertionError("torch was asked")

    import torch

    monkeypatch.setattr(torch.cuda, "device_count", refuse)
    monkeypatch.setattr(session, "GPU_FILES", ())
    assert session.gpus_here() == 0
    monkeypatch.setattr(session, "GPU_FILES", ("/dev/null",))
    with pytest.raises(AssertionError, match="torch was asked"):
        session.gpus_here()


def test_auto_is_what_is_stored_and_status_reads_it() -> None:
    stored = json.dumps(settings().model_dump(mode="json")).encode()
    assert json.loads(stored)["cluster"]["gpus_per_actor"] == "auto"
    assert _asked_for(stored) == ({"benign": 100}, 1.0)
