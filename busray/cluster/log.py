"""Ray's messages: kept in memory, and written beside the run where something went wrong.

Ray Data says hundreds of kilobytes of what it schedules. Nobody reads them unless work fails.
"""

import logging
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MESSAGES_KEPT = 2000  # the last ones, in memory
RAY_LOGGERS = ("ray", "ray.data", "ray.train", "ray.tune")
RAYS_NOTE = b" logging.cc:"
"""In each line by which Ray's C++ part says at which level it speaks, at every start."""


class LastMessages(logging.Handler):
    """Holds messages of INFO and above. Writes them to the file when an error is among them."""

    def __init__(self, file: Path) -> None:
        super().__init__(logging.INFO)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        self.file = file
        self.held: deque[str] = deque(maxlen=MESSAGES_KEPT)

    def emit(self, record: logging.LogRecord) -> None:
        self.held.append(self.format(record))
        if record.levelno >= logging.ERROR:
            self.write()

    def write(self) -> None:
        """Append what is held to the file, once."""
        if self.held:
            with self.file.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write("".join(f"{line}\n" for line in self.held))
            self.held.clear()


@contextmanager
def written_on_error(messages: LastMessages) -> Iterator[None]:
    """What the block's messages were is written where it raises."""
    try:
        yield
    except BaseException:
        messages.write()
        raise


def take_over(messages: LastMessages) -> None:
    """Ray's loggers in this process say what they have to say to `messages` only."""
    for name in RAY_LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers[:] = [messages] if name == "ray" else []
        logger.propagate = name != "ray"


def remove_if_only_notes(file: Path) -> None:
    """Remove a log that says nothing but that Ray has started."""
    lines = file.read_bytes().splitlines() if file.is_file() else []
    if lines and all(RAYS_NOTE in line for line in lines if line):
        file.unlink()
