"""Event files of a run say what TensorBoard shows: read back record by record."""

import struct
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event

from busray.model.checkpoints import TrainingLog
from busray.run.events import FOLDER, put_figures, put_training
from busray.storage import Store
from tests.support.figures import difference, figure, png


def events(store: Store, name: str) -> list[tuple[str, int, float | None]]:
    """(tag, step, value) of a file's records; no value of a picture."""
    data, found = store.read(f"{FOLDER}/events.out.tfevents.{name}.busray"), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        event = Event.FromString(data[12 : 12 + length])
        for value in event.summary.value:
            number = value.simple_value if value.HasField("simple_value") else None
            found.append((value.tag, event.step, number))
        data = data[16 + length :]
    return found


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def test_each_validation_puts_the_losses_since_the_one_before_and_its_samples(store: Store) -> None:
    loss = ((10, 0.5), (20, 0.25), (30, 0.125))
    put_training(store, TrainingLog(loss[:2], ((20, 1.0),)), None, png(9))
    put_training(store, TrainingLog(loss, ((20, 1.0), (30, 2.0)), distance=((20, 8.0), (30, 4.0))), 4.0, png(9))
    assert events(store, "0000000020") == [
        ("loss/training", 10, 0.5),
        ("loss/training", 20, 0.25),
        ("loss/validation", 20, 1.0),
        ("samples", 20, None),
    ]
    assert events(store, "0000000030") == [
        ("loss/training", 30, 0.125),
        ("loss/validation", 30, 2.0),
        ("distance/validation", 30, 4.0),
        ("images_per_second", 30, 4.0),
        ("samples", 30, None),
    ]


def test_a_training_that_goes_on_from_a_checkpoint_replaces_its_files(store: Store) -> None:
    for value in (1.0, 3.0):
        put_training(store, TrainingLog(((10, 0.5),), ((20, value),)), None, png(9))
    assert len(list(store.list(FOLDER))) == 1
    assert ("loss/validation", 20, 3.0) in events(store, "0000000020")


def test_figures_stand_under_all_that_makes_them_comparable(store: Store) -> None:
    put_figures(store, [], 100)
    assert not list(store.list())
    put_figures(store, [figure("fid", 64.0, "base"), figure("fid", 32.0, "base", "benign"), difference(0.5)], 100)
    assert events(store, "figures") == [
        ("fid/inception-v3-2015/synthetic-only/test/base", 100, 64.0),
        ("fid_benign/inception-v3-2015/synthetic-only/test/base", 100, 32.0),
        ("kid_difference/inception-v3-2015/synthetic-only/test/lora_ti_-_base", 100, 0.5),
    ]
