"""What may be written after `busray`: commands, their arguments and examples, settings as flags.

COMMANDS is the one table of it: the parser, each command's help and shell completion are made from
it. Only light modules are imported, since `busray --help` is answered from here.
"""

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from busray import __version__, places

EXIT_STATUS = """\
exit status:
  0    done
  1    a failure (full disk, lost store, damaged file), or a difference was found
  2    a mistake in the command, a setting, a file or a right; nothing was started
  130  stopped by Ctrl-C; 143 by SIGTERM, 129 by SIGHUP
  141  the program that reads the output ended first, such as `| head`
"""

EXPORT_FORMATS = ("huggingface", "imagefolder", "webdataset", "dicom")

SETTINGS_ARE_FLAGS = """\
Settings of the config are flags too: --sampling.steps=25 or --sampling.steps 25.
`busray config settings` lists them, `busray config settings sampling` those of a group."""


SHELLS = ("bash", "zsh", "fish")


class Command(NamedTuple):
    """A command of `busray`; its function is commands.COMMAND_FUNCTIONS[name]."""

    text: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    examples: tuple[str, ...]
    """What follows `busray`."""
    settings: str | None = "--"
    """How the settings begin that it takes as flags: `--` for all, None for none."""


# ---- types of arguments


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
        raise mistake(f"{shown}: {error}") from error
    if wrong := places.problem(place, url=url):
        raise mistake(f"{shown}: {wrong}")
    return place


# ---- arguments of the commands


def _config(command: argparse.ArgumentParser) -> None:
    command.add_argument("config", type=_local, help="YAML file, such as configs/demo.yaml")


def _run(command: argparse.ArgumentParser) -> None:
    command.add_argument("run", type=_run_place, help="folder or URL of the run")


def _doctor(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "url", type=_run_place, help="folder or URL that runs are to be under, such as s3://BUCKET/runs"
    )
    _json(command)


def _json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print it as JSON, for programs")


def _figures(command: argparse.ArgumentParser) -> None:
    _config(command)
    _json(command)


def _figures_of_run(command: argparse.ArgumentParser) -> None:
    _run(command)
    _json(command)


def _configs(command: argparse.ArgumentParser) -> None:
    either = "config file, or folder or URL of a run"
    actions = command.add_subparsers(dest="action", required=True, metavar="ACTION")
    listed = actions.add_parser("settings", help="list settings: name, default, what it takes, what it means")
    listed.add_argument("prefix", nargs="?", default="", help="only these, such as sampling or refine.steps")
    _json(listed)
    actions.add_parser("schema", help="print a JSON schema of config files, for editors")
    init = actions.add_parser("init", help="write a commented config to begin with")
    init.add_argument("data", type=_local, nargs="?", help="folder with one folder of images per class")
    init.add_argument("--to", type=_local, metavar="FILE", help="the config file; default: the folder's name and .yaml")
    show = actions.add_parser("show", help="print every setting that is in force, as a config file")
    show.set_defaults(settings="--")
    show.add_argument("config", type=_run_place, help=either)
    _json(show)
    diff = actions.add_parser("diff", help="which settings differ; exit status 1 where any does")
    diff.add_argument("a", type=_run_place, help=either)
    diff.add_argument("b", type=_run_place, help=either)
    _json(diff)


def _check(command: argparse.ArgumentParser) -> None:
    command.add_argument("data", type=_local, help="folder with one folder of images per class")
    command.add_argument(
        "--json", type=_local, metavar="FILE", help="write the findings to this file too; -: print them"
    )
    command.add_argument("--metadata", type=_local, help="CSV with the columns file, group and any others")


def _completion(command: argparse.ArgumentParser) -> None:
    command.add_argument("shell", choices=SHELLS, help="the shell that is to complete busray")


def _plan(command: argparse.ArgumentParser) -> None:
    _config(command)
    rates = command.add_mutually_exclusive_group()
    rates.add_argument("--probe", action="store_true", help="measure rates here: load the base, draw one batch")
    rates.add_argument("--rates", type=_run_place, metavar="RUN", help="take rates from this run's records")
    command.add_argument("--price", type=float, help="of a GPU-hour; prints the cost")
    _json(command)


def _reproduce(command: argparse.ArgumentParser) -> None:
    _run(command)
    command.add_argument("image_id", help="the column image_id of a shard")


def _export(command: argparse.ArgumentParser) -> None:
    _run(command)
    command.add_argument("target", type=_run_place, help="new folder or URL; an export that was stopped goes on there")
    command.add_argument("--to", required=True, choices=EXPORT_FORMATS, help="format of the files")
    command.add_argument("--seed", type=int, default=0, help="of the images' order (default %(default)s)")
    push = "then push it to this private data set of the Hugging Face hub; its token is HF_TOKEN or `hf auth login`'s"
    command.add_argument("--push-to-hub", metavar="OWNER/NAME", help=push)


def _readers(command: argparse.ArgumentParser) -> None:
    actions = command.add_subparsers(dest="action", required=True, metavar="ACTION")
    export = actions.add_parser("export", help="write the readers' folder and, beside it, the key")
    export.set_defaults(settings="--")
    _run(export)
    export.add_argument("folder", type=_local, help="new folder for the readers; the key becomes FOLDER-key.csv")
    export.add_argument("--images", type=int, default=20, help="images per class and side (default %(default)s)")
    export.add_argument("--seed", type=int, help="of choice and order; default: a random one, which is printed")
    score = actions.add_parser("score", help="score a returned sheet")
    score.add_argument("sheets", type=_local, nargs="+", metavar="SHEET", help="filled-in sheet, one per reader")
    score.add_argument("key", type=_local, metavar="KEY", help="the study's key")


def _adapters(command: argparse.ArgumentParser) -> None:
    actions = command.add_subparsers(dest="action", required=True, metavar="ACTION")
    base = "base of the LoRA, as base.path; default: what its layers fit of those that busray knows"
    show = actions.add_parser("show", help="say what a file, or each file of a folder, holds")
    show.add_argument("file", type=_local, help="LoRA or token as .safetensors, or a folder of them")
    show.add_argument("--base", help=base)
    _json(show)
    convert = actions.add_parser("convert", help="write a LoRA or a token in another layout")
    convert.add_argument("source", type=_local, metavar="IN", help=".safetensors, or a pickle (.bin, .pt) of tensors")
    convert.add_argument("target", type=_local, metavar="OUT", help="new .safetensors file; for peft a new folder")
    layouts = "kohya is also A1111's and ComfyUI's"
    convert.add_argument("--to", choices=("diffusers", "kohya", "peft"), required=True, help=layouts)
    convert.add_argument("--base", help=base)


def _status(command: argparse.ArgumentParser) -> None:
    _run(command)
    _json(command)


def _serve(command: argparse.ArgumentParser) -> None:
    _run(command)
    command.add_argument("--port", type=int, default=0, help="of 127.0.0.1; default: a free one")


def _verify(command: argparse.ArgumentParser) -> None:
    _run(command)
    evidence = "also compare features, records, weights and the real images with their digests"
    command.add_argument("--evidence", action="store_true", help=evidence)
    _json(command)


def _repair(command: argparse.ArgumentParser) -> None:
    _run(command)
    command.add_argument("--apply", action="store_true", help="move what is listed into RUN/damaged/")


def _gc(command: argparse.ArgumentParser) -> None:
    _run(command)
    command.add_argument("--delete", action="store_true", help="delete what is listed")


COMMANDS = {
    "doctor": Command(
        "prove that a store is safe to run on: create-only, consistent, permissions",
        _doctor,
        ("doctor runs", "doctor s3://BUCKET/runs"),
        settings=None,
    ),
    "check": Command(
        "check a folder of labelled images: counts, duplicates, conflicts, masks, framing",
        _check,
        ("check DATA", "check DATA --metadata=patients.csv --json=check.json", "check DATA --dataset.frames=all"),
        settings="--dataset.",
    ),
    "config": Command(
        "settings: list and explain them, write a config to begin with, show and compare configs",
        _configs,
        (
            "config init DATA",
            "config settings sampling",
            "config show my.yaml --sampling.steps=25",
            "config diff my.yaml runs/mine",
            "config schema > busray.schema.json",
        ),
        settings=None,
    ),
    "plan": Command(
        "say before it is spent what a config's job takes: images, GPU-hours, bytes, requests, cost",
        _plan,
        ("plan my.yaml --probe", "plan my.yaml --rates=runs/earlier --price=2.5"),
    ),
    "run": Command(
        "the whole job of a config: check, fine-tune, generate, evaluate, report",
        _figures,
        ("run my.yaml", "run my.yaml --dataset.path=DATA --output=s3://BUCKET/mine"),
    ),
    "demo": Command(
        "the whole job on simulated images, into runs/demo",
        _json,
        ("demo", "demo --output=/tmp/demo"),
    ),
    "finetune": Command("train the config's adapters", _config, ("finetune my.yaml --adapters.steps=2000",)),
    "generate": Command("draw the config's corpus", _config, ("generate my.yaml --classes.benign.images=500",)),
    "evaluate": Command(
        "compare the config's arms with the real images and write the report",
        _figures,
        ("evaluate my.yaml", "evaluate my.yaml --evaluate.whole_corpus=true"),
    ),
    "ablate": Command(
        "compare base, LoRA, textual inversion and both, also refined; sweep strength and guidance",
        _config,
        ("ablate my.yaml --ablate.strengths='[0.3, 0.5]'",),
    ),
    "study": Command(
        "train classifiers with and without a run's synthetic images, test them on real ones",
        _figures,
        ("study my.yaml --study.primary.metric=auc --study.primary.arm=mixed@0.5",),
    ),
    "audit": Command(
        "look for copies of training images in a run's corpus; exit status 1 unless there are none",
        _figures_of_run,
        ("audit runs/mine", "audit s3://BUCKET/mine --dataset.path=DATA"),
    ),
    "reproduce": Command(
        "draw one image of a run again and compare its pixels",
        _reproduce,
        ("reproduce runs/mine 0123456789ab-benign-00000000",),
    ),
    "card": Command(
        "write a run's data-set card; --card.license, .source, .ethics and .contact state what it says",
        _run,
        ("card runs/mine --card.license=cc-by-4.0",),
    ),
    "export": Command(
        "copy a run's released images in a format of other programs, mixed, in large files, and verify it",
        _export,
        (
            "export runs/mine corpus --to=huggingface",
            "export s3://BUCKET/mine s3://BUCKET/corpus --to=webdataset",
            "export runs/mine corpus --to=huggingface --push-to-hub=OWNER/NAME",
        ),
        settings=None,
    ),
    "readers": Command(
        "a blinded reader study: export real and synthetic images to distinguish, score a sheet",
        _readers,
        ("readers export runs/mine study --images=20", "readers score sheet-anna.csv sheet-ben.csv study-key.csv"),
        settings=None,
    ),
    "adapters": Command(
        "show what a file of adapters holds, or convert it between diffusers, kohya and PEFT",
        _adapters,
        (
            "adapters show runs/mine/adapters/DIGEST",
            "adapters convert lora.safetensors kohya.safetensors --to kohya",
            "adapters convert learned_embeds.bin us-benign.safetensors --to diffusers",
        ),
        settings=None,
    ),
    "status": Command(
        "say from the store alone how far a run is, how fast, and whether a driver works on it",
        _status,
        ("status runs/mine", "status s3://BUCKET/mine --json"),
        settings=None,
    ),
    "serve": Command(
        "show a run in a browser on this machine: its progress, its images and how each was made",
        _serve,
        ("serve runs/mine", "serve s3://BUCKET/mine --port=8000"),
        settings=None,
    ),
    "verify": Command(
        "check a run's manifest against its records, objects and plan; --evidence reads everything",
        _verify,
        ("verify runs/mine", "verify runs/mine --evidence"),
        settings="--dataset.",
    ),
    "repair": Command(
        "list what is damaged in a run; --apply moves it aside, so that it is made again",
        _repair,
        ("repair runs/mine", "repair runs/mine --apply"),
        settings="--dataset.",
    ),
    "gc": Command(
        "list a run's orphaned objects, or delete them",
        _gc,
        ("gc runs/mine", "gc runs/mine --delete"),
        settings=None,
    ),
    "completion": Command(
        "print the script by which a shell completes commands, settings and their values",
        _completion,
        ("completion bash > busray.bash", "completion fish"),
        settings=None,
    ),
}
"""Name -> command, in the order of the help."""


class _Parser(argparse.ArgumentParser):
    """Reports a mistake as all of busray does, and takes -q and -v in every place."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # SUPPRESS: else a command's own default would undo `busray -q COMMAND`.
        self.add_argument(
            "-q", "--quiet", action="store_true", default=argparse.SUPPRESS, help="print results and errors only"
        )
        self.add_argument(
            "-v",
            "--verbose",
            action="store_true",
            default=argparse.SUPPRESS,
            help="print all tables, and of an error its traceback",
        )

    def error(self, message: str) -> NoReturn:
        raise mistake(f"{message}; see {self.prog} --help")


def build_parser() -> argparse.ArgumentParser:
    """The parser of COMMANDS. Its arguments come from split_settings, so it sees no settings."""
    parser = _Parser(
        prog="busray",
        description="From a folder of labelled breast-ultrasound images to a synthetic corpus with its evidence.",
        epilog=SETTINGS_ARE_FLAGS + "\nStart with `busray config init DATA`..\n\n" + EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"busray {__version__}")
    parser.set_defaults(quiet=False, verbose=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        below = commands.add_parser(
            name,
            help=command.text,
            description=command.text,
            epilog=_epilog(command),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        below.set_defaults(settings=command.settings)
        command.add_arguments(below)
    return parser


def _epilog(command: Command) -> str:
    parts = ["examples:\n" + "".join(f"  busray {example}\n" for example in command.examples)]
    if command.settings == "--":
        parts.append(SETTINGS_ARE_FLAGS + "\n")
    parts.append(EXIT_STATUS)
    return "\n".join(parts)


# ---- settings among the arguments


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
                raise mistake(f"{name} is given twice: leave one out")
            own.append(argument)
        elif settings is None or not name.startswith(settings):
            raise mistake(
                f"{_shown(argument)}: this command takes no such argument{_nearest(name, options)}; see --help"
            )
        elif "=" in argument:
            flags.append(argument)
        elif not rest or rest[0].startswith("--") or rest[0] in options:
            raise mistake(f"{argument}: its value is missing: write {argument}=VALUE")
        else:
            flags.append(f"{argument}={rest.pop(0)}")
    return own, flags


def refuse_words(rest: Sequence[str]) -> None:
    """UserError for an argument too many. What has a dash or `=` is told as a setting."""
    for word in rest:
        if "=" not in word and word[:1] not in ("-", "–", "—", "−"):
            raise mistake(f"{word}: one argument too many; a name with spaces needs quotes; see --help")


def _options_of(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> tuple[set[str], str | None]:
    """(the options of the command that is given, how the settings begin that it takes too)."""
    options, settings = set[str](), None
    words = [argument for argument in arguments if not argument.startswith("-")]
    level: argparse.ArgumentParser | None = parser
    while level is not None:
        settings = level.get_default("settings")
        below = None
        for action in level._actions:  # argparse has no public list of them
            options |= set(action.option_strings)
            if isinstance(action, argparse._SubParsersAction):
                named = next((word for word in words if word in action.choices), None)
                if named is None:
                    _refuse_unknown(words, list(action.choices), level.prog)
                    break
                below = action.choices[named]
                words = words[words.index(named) + 1 :]
        level = below
    return options, settings


def _refuse_unknown(words: Sequence[str], known: Sequence[str], prog: str) -> None:
    """UserError with the nearest command; nothing where no word is given, which argparse says."""
    if words:
        near = _near(words[0], known)
        raise mistake(f"{_shown(words[0])}: no such command of {prog}{near}; {prog} --help lists them")


def _nearest(name: str, options: set[str]) -> str:
    return _near(f"--{name.lstrip('-').rpartition('.')[2]}", sorted(options))


def _near(name: str, known: Sequence[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _shown(argument: str) -> str:
    return argument.partition("=")[0] if places.credentials_in(argument) else argument


def mistake(message: str) -> Exception:
    """A UserError, whose module is loaded for it only."""
    from busray.records import UserError

    return UserError(message)
