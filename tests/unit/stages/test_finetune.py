"""Training is started again after failures, and ends where they repeat without progress; what it
made is drawn as it was trained."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from busray.config_file import validate
from busray.corpus.draw import load_sampler
from busray.evidence.val_distance import ValImages
from busray.identity import sha256_bytes
from busray.layout import ADAPTERS
from busray.model.checkpoints import Checkpoint, TrainingLog, commit_adapters, put_checkpoint
from busray.records import Computing, Stopped, UserError
from busray.run.checks import open_run
from busray.run.record import Run
from busray.stages import finetune as stage
from busray.stages.finetune import MAX_FAILURES, _train, finetune
from busray.stages.generate import draw_job
from busray.storage import Store
from busray.workers import TrainingFailed
from tests.support.finished import adapters, adapters_folder
from tests.support.runs import quiet, settings
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


def selected(output: Path, validate_every: int = 1, steps: int = 3, **adapters: Any) -> Run:
    """A run that draws at each validation, of a data set with enough val images."""
    dataset = {"phantoms": {"images": 24, "seed": 3}, "val": 0.25, "test": 0.25}
    changes = {"method": "lora", "steps": steps, "checkpoint_every": 1, "validation_images": 4, "batch_size": 2}
    quick = {"base": {"size": 64}, "sampling": {"batch_size": 4, "steps": 1, "guidance_scale": 1.0}}
    arms = {"arms": ["base", "lora"], "extractors": ["texture"], "judge": None, "geometry": None}
    config = settings(
        output,
        dataset=dataset,
        adapters={**changes, "validate_every": validate_every, **adapters},
        classes={name: {"images": 6} for name in ("benign", "malignant")},
        evaluate=arms,
        **quick,
    )
    return open_run(config, quiet)


def distances_are(monkeypatch: pytest.MonkeyPatch, *values: float) -> None:
    """The validations of a training measure these distances, the base's first."""
    left = list(values)
    monkeypatch.setattr(ValImages, "distance", lambda *_: left.pop(0))


@pytest.mark.slow
def test_the_weights_of_the_nearest_validation_become_the_adapters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    short = selected(tmp_path / "short", steps=2, validation_images=0)
    distances_are(monkeypatch, 5.0, 4.0, 1.0, 3.0)
    long = selected(tmp_path / "long")
    of_two, kept = (finetune(run, InProcessWorkers()) for run in (short, long))
    assert kept.sha256 == of_two.sha256
    assert kept.about["step"] == 2
    assert kept.about["distance"] == [[0, 5.0], [1, 4.0], [2, 1.0], [3, 3.0]]


def test_drawn_images_are_measured_before_the_first_step_and_at_each_validation(tmp_path: Path) -> None:
    record = finetune(selected(tmp_path / "run", validate_every=2), InProcessWorkers())
    assert [step for step, _ in record.about["distance"]] == [0, 2, 3]
    assert all(math.isfinite(distance) for _, distance in record.about["distance"])
    assert record.about["distance_features"] == "efficientnet-lite0"


@pytest.mark.slow
def test_training_ends_after_validations_without_a_nearer_one_and_a_resumed_one_there_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    whole = selected(tmp_path / "whole", steps=9, stop_after=2)
    distances_are(monkeypatch, 5.0, 4.0, 6.0, 7.0)
    expected = finetune(whole, InProcessWorkers())
    assert [step for step, _ in expected.about["distance"]] == [0, 1, 2, 3] and expected.about["step"] == 1
    resumed = selected(tmp_path / "resumed", steps=9, stop_after=2)
    distances_are(monkeypatch, 5.0, 4.0, 6.0)  # the third validation finds no distance, and fails
    with pytest.raises(Stopped):
        finetune(resumed, InProcessWorkers())
    distances_are(monkeypatch, 7.0)
    record = finetune(resumed, InProcessWorkers())
    assert record.sha256 == expected.sha256
    assert record.about["distance"] == expected.about["distance"]


def test_a_training_that_comes_no_nearer_than_its_base_is_warned_of_in_its_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distances_are(monkeypatch, 1.0, 2.0)
    record = finetune(selected(tmp_path / "run", steps=1), InProcessWorkers())
    assert "no nearer to the val images" in record.about["warnings"][0]
