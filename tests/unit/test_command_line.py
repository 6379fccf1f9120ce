"""The table of commands: what it says in the help is what the parser takes."""

import shlex

import pytest

from busray.cli import main
from busray.command_line import COMMANDS, EXIT_STATUS, build_parser, split_settings
from busray.config_file import with_flags

EXAMPLES = [(name, example) for name, command in COMMANDS.items() for example in command.examples]


@pytest.mark.parametrize("name, example", EXAMPLES)
def test_every_example_in_the_help_is_taken(name: str, example: str) -> None:
    own, flags = split_settings(shlex.split(example.partition(" > ")[0]), build_parser())
    assert build_parser().parse_args(own).command == name
    tree = {"dataset": {"path": "d"}, "classes": {"benign": {}}, "output": "runs/x", "study": {"primary": {"arm": "a"}}}
    if not any("primary" in flag for flag in flags):
        del tree["study"]
    with_flags(tree, flags)


def test_each_commands_help_has_examples_and_the_exit_statuses(capsys: pytest.CaptureFixture) -> None:
    parser = build_parser()
    for name in COMMANDS:
        with pytest.raises(SystemExit):
            parser.parse_args([name, "--help"])
        shown = capsys.readouterr().out
        assert f"  busray {name} " in f"{shown} " and EXIT_STATUS in shown, name


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["confg"], "confg: no such command of busray; did you mean config?"),
        (["evalute", "c.yaml"], "did you mean evaluate?"),
        (["readers", "exprt", "r", "f"], "exprt: no such command of busray readers; did you mean export?"),
        (["qqq"], "qqq: no such command of busray; busray --help lists them"),
        ([], "the following arguments are required: COMMAND; see busray --help"),
        (["run"], "the following arguments are required: config; see busray run --help"),
        (["plan", "c.yaml", "--price=x"], "argument --price: invalid float value: 'x'"),
    ],
)
def test_a_mistyped_command_or_argument_is_one_message_with_status_2(
    capsys: pytest.CaptureFixture, arguments: list[str], said: str
) -> None:
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert said in message and message.startswith("busray: ") and message.count("\n") == 1
