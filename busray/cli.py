"""The `busray` command: parser and dispatch.

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

from busray import __version__, places, processes

AGAIN = "run the same command again to go on from here"
REPEAT = "run the same command again"
RESUMED = ("run", "demo", "finetune", "generate", "evaluate", "ablate", "study", "audit")
"""Commands that go on where they were stopped."""
READER_GONE = 141
"""Exit status where the reader of the output ended first, such as `| head`: 128 + SIGPIPE."""
EXIT_STATUS = """\
exit status:
  0    done
  1    a failure (full disk, lost store, damaged file), or a difference was found
  2    a mistake in the command, a setting, a file or a right; nothing was started
  130  stopped by Ctrl-C; 143 by SIGTERM, 129 by SIGHUP
  141  the program that reads the output ended first, such as `| head`
"""

LEAST_MEMORY = 2**30
"""Bytes of addresses (`ulimit -v`): with 0.7 GB `busray verify` aborts within a library."""

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What ends a command: Ctrl-C; docker stop, Slurm, `ray job stop`; a terminal that is closed."""

COMMANDS = {
    "doctor": "prove that a store is safe to run on: create-only, consistent, permissions",
    "check": "check a folder of labelled images: counts, duplicates, conflicts, masks, framing",
    "plan": "say before it is spent what a config's job takes: images, GPU-hours, bytes, requests, cost",
    "run": "the whole job of a config: check, fine-tune, generate, evaluate, report",
    "demo": "the whole job on simulated images, into runs/demo",
    "finetune": "train the config's adapters",
    "generate": "draw the config's corpus",
    "evaluate": "compare the config's arms with the real images and write the report",
    "ablate": "compare base, LoRA, textual inversion and both, also refined; sweep strength and guidance",
    "study": "train classifiers with and without a run's synthetic images, test them on real ones",
    "audit": "look for copies of training images in a run's corpus; exit status 1 unless there are none",
    "reproduce": "draw one image of a run again and compare its pixels",
    "card": "write a run's data-set card; --card.license, .source, .ethics and .contact state what it says",
    "readers": "a blinded reader study: export real and synthetic images to distinguish, score a sheet",
    "status": "say from the store alone how far a run is, how fast, and whether a driver works on it",
    "verify": "check a run's manifest against its records, objects and plan; --evidence reads everything",
    "repair": "list what is damaged in a run; --apply moves it aside, so that it is made again",
    "gc": "list a run's orphaned objects, or delete them",
}

SETTINGS = {
    "doctor": None, "check": "--dataset.", "verify": "--dataset.", "repair": "--dataset.", "gc": None, "readers": None,
    "status": None,
}  # fmt: skip
"""Command -> how the settings begin that it takes; the others take all."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command's exit status (EXIT_STATUS). Any error ends here, in one message."""
    _open_standard_streams()
    given = sys.argv[1:] if arguments is None else list(arguments)
    command = shlex.join(["busray", *given])
    options, flags = argparse.Namespace(command=""), list[str]()
    try:
        parser = _parser()
        own, flags = split_settings(given, parser)
        options, rest = parser.parse_known_args(own)
        _refuse_words(rest)
        _refuse_small_memory()
        from busray.commands import COMMAND_FUNCTIONS

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


def _mistake(message: str) -> Exception:
    """A UserError."""
    from busray.records import UserError

    return UserError(message)


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


def split_settings(arguments: Sequence[str], parser: argparse.ArgumentParser) -> tuple[list[str], list[str]]:
    """(the parser's own arguments, settings as `--a.b=value`).

    A setting may be given as `--a.b value` too. UserError: a value is missing, an option of the
    command is given twice, or the command takes no settings.
    """
    options, settings = _options_of(parser, arguments)
    own: list[str] = []
    flags: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        name = argument.partition("=")[0]
        if argument == "--":
            return [*own, argument, *rest], flags
        if not argument.startswith("--"):
            own.append(argument)
        elif name in options:
            if any(other.partition("=")[0] == name for other in own):
                raise _mistake(f"{name} is given twice: leave one out")
            own.append(argument)
        elif settings is None or not name.startswith(settings):
            raise _mistake(
                f"{_shown(argument)}: this command takes no such argument{_nearest(name, options)}; see --help"
            )
        elif "=" in argument:
            flags.append(argument)
        elif not rest or rest[0].startswith("--") or rest[0] in options:
            raise _mistake(f"{argument}: its value is missing: write {argument}=VALUE")
        else:
            flags.append(f"{argument}={rest.pop(0)}")
    return own, flags


def _refuse_words(rest: Sequence[str]) -> None:
    """UserError for an argument too many. What has a dash or `=` is told as a setting."""
    for word in rest:
        if "=" not in word and word[:1] not in ("-", "–", "—", "−"):
            raise _mistake(f"{word}: one argument too many; a name with spaces needs quotes; see --help")


def _refuse_small_memory() -> None:
    """UserError for a limit of memory at which native threads of libraries abort or hang."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < LEAST_MEMORY:
        raise _mistake(
            f"a process may use {limit // 2**20} MiB of memory here (`ulimit -v`), too little for the libraries that "
            f"busray loads: allow at least {LEAST_MEMORY // 2**20} MiB, such as `ulimit -v unlimited`"
        )


def _options_of(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> tuple[set[str], str | None]:
    """(the options of the command that is given, how the settings begin that it takes too)."""
    options, settings = set[str](), None
    level: argparse.ArgumentParser | None = parser
    while level is not None:
        settings = level.get_default("settings")
        below = None
        for action in level._actions:  # argparse has no public list of them
            options |= set(action.option_strings)
            if isinstance(action, argparse._SubParsersAction):
                below = next((action.choices[word] for word in arguments if word in action.choices), None)
        level = below
    return options, settings


def _nearest(name: str, options: set[str]) -> str:
    import difflib

    close = difflib.get_close_matches(f"--{name.lstrip('-').rpartition('.')[2]}", sorted(options), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _shown(argument: str) -> str:
    return argument.partition("=")[0] if places.credentials_in(argument) else argument


def _local(text: str) -> Path:
    """A path of this machine. UserError for a URL, and for a variable that is not set."""
    if os.path.lexists(text):
        return Path(text)
    return Path(_place(text, url=False))


def _run_place(text: str) -> str:
    """A run's folder or URL. UserError says what to write instead."""
    return text if os.path.lexists(text) else _place(text, url=True)


def _place(text: str, *, url: bool) -> str:
    shown = "a place" if places.credentials_in(text) else text or "''"
    try:
        place = places.expand(text)
    except ValueError as error:
        raise _mistake(f"{shown}: {error}") from error
    if wrong := places.problem(place, url=url):
        raise _mistake(f"{shown}: {wrong}")
    return place


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="busray",
        description="From a folder of labelled breast-ultrasound images to a synthetic corpus with its evidence.",
        epilog="Flags such as --sampling.steps=25 override settings of the config. See README.md.\n\n" + EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"busray {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(settings=SETTINGS.get(name, "--"))
        if SETTINGS.get(name, "--") == "--":
            command.epilog = "Settings of the config are flags too: --sampling.steps=25 or --sampling.steps 25."
        if name == "check":
            command.add_argument("data", type=_local, help="folder with one folder of images per class")
            command.add_argument("--json", type=_local, help="also write the findings to this file")
            command.add_argument("--metadata", type=_local, help="CSV with the columns file, group and any others")
        elif name == "doctor":
            command.add_argument(
                "url", type=_run_place, help="folder or URL that runs are to be under, such as s3://BUCKET/runs"
            )
        elif name == "readers":
            _readers_parser(command)
        elif name in ("audit", "reproduce", "card", "status", "verify", "repair", "gc"):
            command.add_argument("run", type=_run_place, help="folder or URL of the run")
            if name == "reproduce":
                command.add_argument("image_id")
            elif name == "status":
                command.add_argument("--json", action="store_true", help="print it as JSON")
            elif name == "verify":
                evidence = "also compare features, records, weights and the real images with their digests"
                command.add_argument("--evidence", action="store_true", help=evidence)
            elif name == "repair":
                command.add_argument("--apply", action="store_true", help="move what is listed into RUN/damaged/")
            elif name == "gc":
                command.add_argument("--delete", action="store_true", help="delete what is listed")
        elif name != "demo":
            command.add_argument("config", type=_local, help="YAML file, such as configs/demo.yaml")
        if name == "plan":
            rates = command.add_mutually_exclusive_group()
            rates.add_argument("--probe", action="store_true", help="measure rates here: load the base, draw one batch")
            rates.add_argument("--rates", type=_run_place, metavar="RUN", help="take rates from this run's records")
            command.add_argument("--price", type=float, help="of a GPU-hour; prints the cost")
            command.add_argument("--json", action="store_true", help="print it as JSON")
    return parser


def _readers_parser(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    export = actions.add_parser("export", help="write the readers' folder and, beside it, the key")
    export.set_defaults(settings="--")
    export.add_argument("run", type=_run_place, help="folder or URL of the run")
    export.add_argument("folder", type=_local, help="new folder for the readers; the key becomes FOLDER-key.csv")
    export.add_argument("--images", type=int, default=20, help="images per class and side (default %(default)s)")
    export.add_argument("--seed", type=int, help="of choice and order; default: a random one, which is printed")
    score = actions.add_parser("score", help="score a returned sheet")
    score.add_argument("sheets", type=_local, nargs="+", metavar="SHEET", help="filled-in sheet, one per reader")
    score.add_argument("key", type=_local, metavar="KEY", help="the study's key")
