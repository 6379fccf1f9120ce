"""The `busray` command: parser and dispatch. Imports nothing heavy until needed."""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from busray import __version__
from busray.commands import COMMAND_FUNCTIONS
from busray.records import Stopped, UserError

AGAIN = "run the same command again to go on from here"

COMMANDS = {
    "doctor": "prove that a store is safe to run on: create-only, consistent, permissions",
    "check": "check a folder of labelled images: counts, duplicates, conflicts, masks, framing",
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
    "verify": "check a run's manifest against its records, objects and plan",
    "gc": "list a run's orphaned objects, or delete them",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 failed or found a difference, 2 a user's mistake, 130 interrupted."""
    parser = _parser()
    options, flags = parser.parse_known_args(arguments)
    command = shlex.join(["busray", *(sys.argv[1:] if arguments is None else arguments)])
    try:
        return COMMAND_FUNCTIONS[options.command](options, flags)
    except UserError as error:
        print(f"busray: {error}", file=sys.stderr)
        return 2
    except Stopped as error:
        print(f"busray: {error}\n{AGAIN}: {command}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"busray: interrupted; {AGAIN}", file=sys.stderr)
        return 130


def finish(status: int) -> NoReturn:
    """End the process without the interpreter's teardown, in which native threads of a library once
    aborted a finished driver: everything is stored."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def process() -> NoReturn:
    """`main` of this process's arguments, as the whole process."""
    finish(main())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="busray",
        description="From a folder of labelled breast-ultrasound images to a synthetic corpus with its evidence.",
        epilog="Settings of the config are overridden by flags such as --sampling.steps=25. See README.md.",
    )
    parser.add_argument("--version", action="version", version=f"busray {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        if name == "check":
            command.add_argument("data", type=Path, help="folder with one folder of images per class")
            command.add_argument("--json", type=Path, help="also write the findings to this file")
            command.add_argument("--metadata", type=Path, help="CSV with the columns file, group and any others")
        elif name == "doctor":
            command.add_argument("url", help="folder or URL that runs are to be under, such as s3://BUCKET/runs")
        elif name == "readers":
            _readers_parser(command)
        elif name in ("audit", "reproduce", "card", "verify", "gc"):
            command.add_argument("run", help="folder or URL of the run")
            if name == "reproduce":
                command.add_argument("image_id")
            elif name == "gc":
                command.add_argument("--delete", action="store_true", help="delete what is listed")
        elif name != "demo":
            command.add_argument("config", type=Path, help="YAML file, such as configs/demo.yaml")
    return parser


def _readers_parser(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    export = actions.add_parser("export", help="write the readers' folder and, beside it, the key")
    export.add_argument("run", help="folder or URL of the run")
    export.add_argument("folder", type=Path, help="new folder for the readers; the key becomes FOLDER-key.csv")
    export.add_argument("--images", type=int, default=20, help="images per class and side (default %(default)s)")
    export.add_argument("--seed", type=int, help="of choice and order; default: a random one, which is printed")
    score = actions.add_parser("score", help="score a returned sheet")
    score.add_argument("sheets", type=Path, nargs="+", metavar="SHEET", help="filled-in sheet, one per reader")
    score.add_argument("key", type=Path, metavar="KEY", help="the study's key")
