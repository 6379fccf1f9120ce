"""Ray's messages are written beside a run only where something went wrong."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from busray.cluster.log import (
    MESSAGES_KEPT,
    RAY_LOGGERS,
    LastMessages,
    remove_if_only_notes,
    take_over,
    written_on_error,
)


@pytest.fixture
def messages(tmp_path: Path) -> Iterator[LastMessages]:
    """Takes what Ray's loggers say, also at DEBUG, as Ray Data sets them."""
    before = {name: (logging.getLogger(name).handlers[:], logging.getLogger(name).propagate) for name in RAY_LOGGERS}
    messages = LastMessages(tmp_path / "ray.log")
    take_over(messages)
    logging.getLogger("ray.data").setLevel(logging.DEBUG)
    yield messages
    logging.getLogger("ray.data").setLevel(logging.NOTSET)
    for name, (handlers, propagate) in before.items():
        logging.getLogger(name).handlers[:] = handlers
        logging.getLogger(name).propagate = propagate


def test_nothing_is_written_where_all_goes_well(messages: LastMessages) -> None:
    with written_on_error(messages):
        logging.getLogger("ray.data").warning("slow")
    assert not messages.file.exists()


def test_an_error_of_ray_is_written_with_what_came_before_it_and_no_debug(messages: LastMessages) -> None:
    logger = logging.getLogger("ray.data.streaming")
    logger.debug("scheduled")
    logger.warning("slow")
    logger.error("lost")
    text = messages.file.read_text()
    assert "slow" in text and "lost" in text and "scheduled" not in text


def test_the_last_messages_are_written_once_where_the_work_ends_in_an_error(messages: LastMessages) -> None:
    logger = logging.getLogger("ray.train")
    with pytest.raises(ValueError), written_on_error(messages):
        for i in range(MESSAGES_KEPT + 1):
            logger.warning("message %d.", i)
        raise ValueError
    lines = messages.file.read_text().splitlines()
    assert len(lines) == MESSAGES_KEPT and lines[-1].endswith(f"message {MESSAGES_KEPT}.")
    messages.write()
    assert len(messages.file.read_text().splitlines()) == MESSAGES_KEPT


@pytest.mark.parametrize(
    ("text", "stays"),
    [
        ("\n[2026 I 1 1] logging.cc:303: Set ray log level\n", False),
        ("[2026 I 1 1] logging.cc:303: Set ray log level\nraylet: failed\n", True),
        ("", True),
    ],
)
def test_a_log_that_only_says_that_ray_started_is_removed(tmp_path: Path, text: str, stays: bool) -> None:
    file = tmp_path / "ray.log"
    remove_if_only_notes(file)
    file.write_text(text)
    remove_if_only_notes(file)
    assert file.exists() == stays
