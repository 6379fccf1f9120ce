"""The `busray` command: dispatch, and how it ends.

`--help` and a wrong argument are answered at once: the commands and the records, whose dataclasses
take longer to make than the parser, are imported where they are needed.
"""

import argparse
import os
import resource
import select
import shlex
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from busray import processes
from busray.command_line import build_parser, mistake, refuse_words, split_settings

AGAIN = "run the same command again to go on from here"
REPEAT = "run the same command again"
RESUMED = ("run", "demo", "finetune", "generate", "evaluate", "ablate", "study", "audit", "export")
"""Commands that go on where they were stopped."""
READER_GONE = 141
"""Exit status where the reader of the output ended first, such as `| head`: 128 + SIGPIPE."""
LEAST_MEMORY = 2**30
"""Bytes of addresses (`ulimit -v`): with 0.7 GB `busray verify` aborts within a library."""

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What ends a command: Ctrl-C; docker stop, Slurm, `ray job stop`; a terminal that is closed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command's exit status (EXIT_STATUS). Any error ends here, in one message."""
    _open_standard_streams()
    given = sys.argv[1:] if arguments is None else list(arguments)
    command = shlex.join(["busray", *given])
    options, flags = argparse.Namespace(command=""), list[str]()
    try:
        parser = build_parser()
        own, flags = split_settings(given, parser)
        options, rest = parser.parse_known_args(own)
        refuse_words(rest)
        _refuse_small_memory()
        from busray import terminal
        from busray.commands import COMMAND_FUNCTIONS

        terminal.talk = terminal.Talk(("-q" if options.quiet else "") or ("-v" if options.verbose else ""))
        status = COMMAND_FUNCTIONS[options.command](options, [*rest, *flags])
        sys.stdout.flush()  # a full disk or a closed pipe may show only here
        return status
    except KeyboardInterrupt:
        _say(f"busray: ended by SIGINT; {_again(options.command)}: {command}")
        return 130
    except Exception as error:
        from busray.records import UserError

        if isinstance(error, UserError):
            _say(f"busray: {error}")
            return 2
        if _reader_is_gone():
            return READER_GONE  # whoever runs `| head` has what he wanted
        return _explain(error, command, options, flags)


def _explain(error: Exception, command: str, options: argparse.Namespace, flags: list[str]) -> int:
    """Say what failed and what to do; the traceback goes to a log. Returns the exit status."""
    import traceback

    from busray.commands import log_file
    from busray.failures import explain, write_log

    if isinstance(error, OSError) and error.filename is None and _in_printing(error):
        error.filename = "standard output"
    failure = explain(error)
    lines = [f"busray: {failure.what}"]
    if failure.again:
        again = f"{_again(options.command)}: {command}"
        lines += [f"{failure.fix}; then {again}" if failure.fix else again]
    elif failure.fix:
        lines += [failure.fix]
    if "verbose" in options and options.verbose:
        lines = ["".join(traceback.format_exception(error)).rstrip(), *lines]
    log, why = write_log(error, command, log_file(options, flags))
    if not failure.is_known:
        lines += ["please report it" + (" with the log" if log else "")]
    lines += [f"log with all details: {log}" if log else f"(a log with all details could not be written: {why})"]
    _say("\n".join(lines))
    return failure.status


def _again(command: str) -> str:
    return AGAIN if command in RESUMED else REPEAT


def _say(message: str) -> None:
    """Print on standard error. Nobody can be told where that is closed: the exit status remains."""
    with suppress(OSError, ValueError):
        print(message, file=sys.stderr, flush=True)


def _open_standard_streams() -> None:
    """Make the three standard streams usable.

    A closed one (`>&-`) becomes the null device: the next file to be opened would else take its
    number, and programs that busray starts would write into it. A character that the terminal
    cannot show is written as its code.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
            os.set_inheritable(number, True)
            setattr(sys, name, open(number, mode))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)  # a notebook's streams have none
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _reader_is_gone() -> bool:
    """Whether the pipe behind standard output has lost its reader."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(events & select.POLLERR for _, events in poll.poll(0))
    except (OSError, ValueError):  # ValueError: no file behind the stream, as in a notebook
        return False


def _in_printing(error: OSError) -> bool:
    """Whether an error arose where a command prints: all other writes name their file."""
    import traceback

    files = [Path(frame.filename).name for frame in traceback.extract_tb(error.__traceback__)]
    return files[-1] in ("cli.py", "commands.py", "terminal.py")


def finish(status: int) -> NoReturn:
    """End the process without the interpreter's teardown, in which native threads of a library once
    aborted a finished driver: everything is stored."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # main() has reported it already
            stream.flush()
    os._exit(status)


def process(arguments: Sequence[str] | None = None) -> NoReturn:
    """`main` as the whole process, which SIGINT, SIGTERM and SIGHUP end at once.

    arguments: those of this process by default.
    """
    given = sys.argv[1:] if arguments is None else arguments
    _open_standard_streams()
    again = _again(given[0] if given else "")
    _end_on_signals(f"{again}: {shlex.join(['busray', *given])}")
    finish(main(given))


def _end_on_signals(again: str) -> None:
    """Each of SIGNALS ends this process and its Ray, with the command to go on.

    A thread of its own does it, since the main thread may be in a library for minutes. Nothing is
    unwound: whatever is stored is whole at any moment, and Ray's own end takes long and can fail.
    A signal that is ignored (nohup, a shell's background) stays so.
    """
    source, target = os.pipe()
    os.set_blocking(target, False)
    for sign in SIGNALS:
        if signal.getsignal(sign) != signal.SIG_IGN:
            signal.signal(sign, lambda number, frame: None)
    signal.set_wakeup_fd(target, warn_on_full_buffer=False)
    terminal = os.dup(2)  # standard error may be led elsewhere for a while
    threading.Thread(target=_await_signal, args=(source, terminal, again), daemon=True).start()


def _await_signal(source: int, terminal: int, again: str) -> None:
    number = 0
    while number not in SIGNALS:  # there may be other signals with a handler
        number = os.read(source, 1)[0]
    processes.hold_daemons()
    show_cursor = "\x1b[?25h\n" if os.isatty(terminal) else ""
    name = signal.Signals(number).name
    with suppress(OSError):  # the terminal may be gone
        os.write(terminal, f"{show_cursor}busray: ended by {name}; {again}\n".encode())
    processes.end_all()
    os._exit(128 + number)


def _refuse_small_memory() -> None:
    """UserError for a limit of memory at which native threads of libraries abort or hang."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < LEAST_MEMORY:
        raise mistake(
            f"a process may use {limit // 2**20} MiB of memory here (`ulimit -v`), too little for the libraries that "
            f"busray loads: allow at least {LEAST_MEMORY // 2**20} MiB, such as `ulimit -v unlimited`"
        )
