"""Training is started again after failures, and ends where they repeat without progress; what it
made is drawn as it was trained."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from busray.config_file import validate
from busray.corpus.draw import load_sampler
from busray.identity import sha256_bytes
from busray.layout import ADAPTERS
from busray.model.checkpoints import Checkpoint, TrainingLog, commit_adapters, put_checkpoint
from busray.records import Computing, Stopped, UserError
from busray.run.record import Run
from busray.stages import finetune as stage
from busray.stages.finetune import MAX_FAILURES, _train, finetune
from busray.stages.generate import draw_job
from busray.storage import Store
from busray.workers import TrainingFailed
from tests.support.finished import adapters, adapters_folder
from tests.support.workers import InProcessWorkers


class FailingWorkers:
    """Workers whose trainings do one action after the other: a step to keep, an error, or None
    for the end."""

    def __init__(self, store: Store, *actions: int | Exception | None) -> None:
        self.store, self.actions = store, list(actions)
        self.done: list[int] = []

    def train(self, stage: str, training: Any, *, done: int) -> None:
        self.done.append(done)
        action = self.actions.pop(0)
        if action is None:
            commit_adapters(self.store, {}, {"sha256": "a" * 64})
        elif isinstance(action, Exception):
            raise action
        else:
            put_checkpoint(self.store, Checkpoint(action, bytes([action]), TrainingLog()))
            raise TrainingFailed("a node was lost")


def train(workers: FailingWorkers) -> None:
    _train(workers.store, workers, SimpleNamespace())  # pyright: ignore[reportArgumentType]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "run"))


def test_any_number_of_failures_that_each_bring_a_checkpoint_do_not_end_training(store: Store) -> None:
    workers = FailingWorkers(store, *range(1, 8), None)
    train(workers)
    assert workers.done == list(range(8)) and store.exists(ADAPTERS)


def test_failures_in_a_row_without_a_new_checkpoint_end_training_with_the_last_cause(store: Store) -> None:
    failure = TrainingFailed("out of memory")
    workers = FailingWorkers(store, failure, failure, 3, *[failure] * MAX_FAILURES)
    with pytest.raises(Stopped, match=f"{MAX_FAILURES} failures in a row without a new checkpoint.*out of memory"):
        train(workers)
    assert workers.actions == [] and workers.done == [0, 0, 0, 3, 3, 3]


def test_a_users_mistake_ends_training_at_once(store: Store) -> None:
    with pytest.raises(UserError, match="a field"):
        train(FailingWorkers(store, UserError("a field")))


def trained(run: Run, output: Path, **adapters: Any) -> Run:
    """The checked run, stored at another place, after one step of training."""
    changes = {
        "adapters": {"method": "lora", "steps": 1, "checkpoint_every": 1, "validate_every": 1, **adapters},
        "sampling": {"batch_size": 1, "steps": 1, "guidance_scale": 1.0},
        "evaluate": {"arms": ["base", "lora"]},
    }
    tree = run.config.model_dump(mode="json")
    config = validate({**tree, **{name: {**tree[name], **change} for name, change in changes.items()}})
    run = replace(run, config=config, store=Store(str(output)))
    finetune(run, InProcessWorkers())
    return run


@pytest.fixture
def one_image_a_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the sheet of images that a validation draws."""
    monkeypatch.setattr(stage, "GRID_IMAGES", 1)


@pytest.mark.usefixtures("one_thread", "one_image_a_class")
def test_a_data_set_that_is_encoded_in_parts_trains_the_same_adapters(
    checked: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained(checked, tmp_path / "whole")
    monkeypatch.setattr(stage, "IMAGES_A_PART", 4)
    parts = trained(checked, tmp_path / "parts")
    keys = [key for key in parts.store.list("finetune") if "latents-train" in key]
    assert len(keys) == -(-len(parts.dataset.train) // 4) > 1
    assert len([key for key in whole.store.list("finetune") if "latents-train" in key]) == 1
    assert adapters(parts).sha256 == adapters(whole).sha256


@pytest.mark.usefixtures("one_image_a_class")
def test_adapters_are_drawn_with_the_noise_schedule_that_they_were_trained_for(checked: Run, tmp_path: Path) -> None:
    # In bfloat16, as on a GPU, so that the pictures of a training are drawn by mixed numbers too.
    mixed = {"precision": "bfloat16", "gradient_checkpointing": True}
    run = trained(checked, tmp_path / "run", zero_terminal_snr=True, **mixed)
    assert list(run.store.list("finetune/grids"))
    assert adapters(run).schedule == {"rescale_betas_zero_snr": True}
    adapted, bare = (load_sampler(draw_job(run, "cpu", arm), Computing("float32")) for arm in ("lora", "base"))
    assert adapted.pipe.scheduler.config.rescale_betas_zero_snr
    assert not bare.pipe.scheduler.config.rescale_betas_zero_snr
    again = {"path": adapters_folder(run), "method": "lora", "prediction": "epsilon"}
    with pytest.raises(UserError, match=r"adapters\.path: .* trained for v_prediction"):
        trained(checked, tmp_path / "again", **again)


@pytest.mark.usefixtures("one_image_a_class")
def test_a_tuned_decoder_is_part_of_the_adapters_and_drawn_with(checked: Run, tmp_path: Path) -> None:
    run = trained(checked, tmp_path / "run", decoder_steps=2, steps=1)
    (tuned,) = (key for key in run.store.list("finetune") if "decoder-" in key)
    assert adapters(run).files["vae/diffusion_pytorch_model.safetensors"] == sha256_bytes(run.store.read(tuned))
    adapted, bare = (load_sampler(draw_job(run, "cpu", arm), Computing("float32")) for arm in ("lora", "base"))
    weights = [sampler.pipe.vae.state_dict()["decoder.conv_in.weight"] for sampler in (adapted, bare)]
    assert not torch.equal(*weights)
    adopted = trained(checked, tmp_path / "adopted", path=adapters_folder(run), method="lora")
    assert adapters(adopted).sha256 == adapters(run).sha256
