"""What a driver says of itself in the run's store, each minute, and which drivers live.

The word is derived: a lost one costs `busray status` a line and never the work. A driver that ends
leaves an end mark. One that is killed leaves none, and its word grows old.
"""

import hashlib
import logging
import os
import re
import secrets
import shlex
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from busray import __version__
from busray.failures import explain
from busray.layout import PROGRESS, progress_key
from busray.records import Damaged, DriverProgress, UserError, to_json
from busray.storage import Store
from busray.workers import Report

log = logging.getLogger(__name__)

WORD_SECONDS = 60.0
"""Between two words of a driver."""
SILENT_AFTER = 300.0
"""Age in seconds from which a driver's word no longer shows that it lives: several words are lost
before that, and the clocks of two machines may differ by minutes."""
RETRY_SECONDS = 30.0  # a store that is away must not hold up a driver's end
NOTES_KEPT = 8
LONGEST_NOTE = 500
DRIVERS_READ = 20  # newest words that are read: a run that was restarted often has many


# ---- the driver's side


@contextmanager
def telling(store: Store, report: Report) -> Iterator[Report]:
    """Keep this driver's word in the store for the length of the block.

    Yields the report to use inside: it also notes the stage for the next word.
    """
    teller = _Teller(store)
    handler = _Warnings(teller.note)
    logger = logging.getLogger("busray")

    def noting(stage: str, done: int, total: int) -> None:
        if total:
            teller.stage = (stage, done, total)
        else:  # a message, such as of quarantined images
            teller.note(stage)
        report(stage, done, total)

    stop = threading.Event()
    thread = threading.Thread(target=_tell_each_minute, args=(teller, stop), daemon=True)
    thread.start()
    logger.addHandler(handler)
    ended = "done"
    try:
        yield noting
    except BaseException as error:
        ended = explain(error).what if isinstance(error, Exception) else type(error).__name__
        raise
    finally:
        logger.removeHandler(handler)
        stop.set()
        thread.join()
        teller.tell(ended)


class _Teller:
    """Puts the words of one driver."""

    def __init__(self, store: Store) -> None:
        self.store = store.sub(PROGRESS)
        self.store.retry_seconds = RETRY_SECONDS
        self.stage: tuple[str, int, int] = ("", 0, 0)  # (stage, done, total)
        self.notes: deque[tuple[float, str]] = deque(maxlen=NOTES_KEPT)
        self.failed = False
        now = time.time()
        self.word = DriverProgress(
            driver=secrets.token_hex(8),
            busray=__version__,
            command=shlex.join([_program(), *sys.argv[1:]]),
            host=socket.gethostname(),
            process=os.getpid(),
            machine=this_machine(),
            started=now,
            time=now,
        )

    def note(self, message: str) -> None:
        self.notes.append((time.time(), _plain(message)))

    def tell(self, ended: str | None = None) -> None:
        """Replace the word. A store that refuses it is said once: the work goes on without."""
        stage, done, total = self.stage
        now = time.time()
        ended = None if ended is None else _plain(ended)
        word = replace(self.word, time=now, stage=stage, done=done, total=total, ended=ended)
        word = replace(word, notes=tuple(self.notes))
        try:
            self.store.replace(f"{self.word.driver}.json", to_json(word))
            self.failed = False
        except Exception as error:
            if not self.failed:
                log.warning("the driver's progress is not stored: %s", explain(error).what)
            self.failed = True


def _tell_each_minute(teller: _Teller, stop: threading.Event) -> None:
    teller.tell()
    while not stop.wait(WORD_SECONDS):
        teller.tell()


class _Warnings(logging.Handler):
    """Notes busray's own warnings, such as a store that does not answer."""

    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self.note = note

    def emit(self, record: logging.LogRecord) -> None:
        self.note(record.getMessage())
        if not logging.getLogger().handlers and logging.lastResort is not None:
            logging.lastResort.handle(record)  # on standard error, as without this handler


def _plain(text: str) -> str:
    """One line without a terminal's colours, at most LONGEST_NOTE characters."""
    line = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", text).split())
    return line if len(line) <= LONGEST_NOTE else f"{line[: LONGEST_NOTE - 3]}..."


def _program() -> str:
    name = Path(sys.argv[0]).name
    return "busray" if name == "__main__.py" else name  # `python -m busray`


def this_machine() -> str:
    """Names this host, its boot and its space of process numbers (a container has its own); empty
    where the system does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
    return hashlib.sha256(f"{socket.gethostname()} {boot} {space}".encode()).hexdigest()[:16]


# ---- the reader's side


@dataclass(frozen=True)
class Driver:
    """A driver's last word, and what follows from it."""

    word: DriverProgress
    age: float  # seconds since the word, by the store's clock where it has one
    lives: bool


def drivers(store: Store, now: float) -> list[Driver]:
    """The drivers that spoke last, at most DRIVERS_READ, the newest first. now: Unix seconds.

    Empty for a run of an older busray. A word that cannot be read is left out.
    """
    written = store.modified(PROGRESS)
    newest = sorted(written, key=lambda key: written[key] or now, reverse=True)
    found: list[Driver] = []
    for key in newest[:DRIVERS_READ]:
        try:
            word = store.parsed(key, store.read(key), DriverProgress.from_json)
        except (Damaged, FileNotFoundError) as error:
            log.warning("a driver's progress cannot be read: %s", error)
            continue
        at = written[key]
        age = max(0.0, now - (word.time if at is None else at))
        found.append(Driver(word, age, _lives(word, age)))
    return found


def _lives(word: DriverProgress, age: float) -> bool:
    gone = bool(word.machine) and word.machine == this_machine() and not _is_running(word.process)
    return word.ended is None and not gone and age <= SILENT_AFTER


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def refuse_beside_drivers(store: Store) -> None:
    """UserError where a driver works on the run, for what must not happen beside one."""
    living = [driver for driver in drivers(store, time.time()) if driver.lives]
    if living:
        word, age = living[0].word, living[0].age
        others = f" and {len(living) - 1} more" if len(living) > 1 else ""
        raise UserError(
            f"{store.url}: a driver works on this run: process {word.process} on {word.host}{others}, its last word "
            f"{age:.0f} s ago ({progress_key(word.driver)}). End it first. One that was killed on another machine "
            f"counts as gone {SILENT_AFTER / 60:.0f} minutes after its last word: then the same command goes on"
        )
