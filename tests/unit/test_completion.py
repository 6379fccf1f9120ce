"""Shell completion: the shells themselves are asked, with the scripts that busray prints."""

import shutil
import subprocess
from pathlib import Path

import pytest

from busray.cli import main
from busray.command_line import COMMANDS, SHELLS
from busray.completion import levels, script

# In a terminal compopt works; outside of a completion bash refuses it.
ASK_BASH = """
source "$1"
compopt() { :; }
COMP_LINE="$2" COMP_POINT=${#2}
_busray
printf '%s\\n' "${COMPREPLY[@]}"
"""
ASK_ZSH = """
compdef() { :; }
compset() { :; }
_files() { print files; }
compadd() { while [[ "$1" != -- ]]; do shift; done; shift; print -l -- "$@"; }
source "$1"
words=(${(s: :)2}) CURRENT=${#words}
[[ "$2" == *' ' ]] && { words+=(''); CURRENT=${#words}; }
_busray
"""


def ask(shell: str, line: str, folder: Path) -> list[str]:
    """What a shell offers after this line."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    file = folder / f"busray.{shell}"
    file.write_text(script(shell))
    command = {
        "bash": ["bash", "--norc", "-c", ASK_BASH, "bash", str(file), line],
        "zsh": ["zsh", "-f", "-c", ASK_ZSH, "zsh", str(file), line],
        "fish": ["fish", "--no-config", "-c", f"source {file}; complete -C '{line}'"],
    }[shell]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=True)
    assert done.stderr == ""
    return [offer.split("\t")[0] for offer in done.stdout.splitlines() if offer]


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    "line, offered",
    [
        ("busray ru", ["run"]),
        ("busray -q re", ["reproduce", "readers", "repair"]),
        ("busray config d", ["diff"]),
        ("busray completion z", ["zsh"]),
        ("busray run --sampling.st", ["--sampling.steps"]),
        ("busray run c.yaml --sampling.scheduler=dd", ["ddim"]),
        ("busray run c.yaml --corpus.format ", ["parquet", "png"]),
        ("busray config show c.yaml --adapters.dora ", ["true", "false"]),
        ("busray verify runs/x --ev", ["--evidence"]),
        ("busray check data --dataset.fra", ["--dataset.frames", "--dataset.frame"]),
    ],
)
def test_a_shell_offers_what_may_follow(shell: str, line: str, offered: list[str], tmp_path: Path) -> None:
    offers = ask(shell, line, tmp_path)
    if shell == "zsh" or (shell == "fish" and "=" in line):  # the shell itself leaves out what does not fit
        word = line.rpartition(" ")[2].rpartition("=")[2]
        offers = [offer.rpartition("=")[2] or offer for offer in offers if "=" not in line or offer]
        offers = [offer for offer in offers if offer.startswith(word)]
    assert {offer.removesuffix("=") for offer in offers} == set(offered)


@pytest.mark.parametrize("shell", SHELLS)
def test_a_command_without_settings_is_offered_none(shell: str, tmp_path: Path) -> None:
    offers = [offer for offer in ask(shell, "busray gc runs/x --", tmp_path) if offer.startswith("--")]
    assert "--delete" in offers and not any("." in offer for offer in offers)


def test_every_command_is_a_level_of_its_own() -> None:
    words = [level.words for level in levels()]
    assert {(name,) for name in COMMANDS} < set(words) and ("config", "show") in words


def test_the_script_of_a_shell_is_printed(capsys: pytest.CaptureFixture) -> None:
    assert main(["completion", "bash"]) == 0
    assert capsys.readouterr().out == script("bash")
    assert main(["completion", "csh"]) == 2
    assert "argument shell: invalid choice: 'csh'" in capsys.readouterr().err
