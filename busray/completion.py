"""Scripts by which bash, zsh and fish complete `busray`: commands, options, settings, their values.

They are made from the table of commands and from the settings, and hold all words themselves:
completion starts no Python.
"""

import argparse
from collections.abc import Iterator, Sequence
from textwrap import shorten
from typing import NamedTuple

from busray.command_line import build_parser
from busray.settings_text import Setting, all_settings


class Level(NamedTuple):
    """A place where a user may be: after `busray`, after a command, after its action."""

    words: tuple[str, ...]
    """Such as () or ("config", "show")."""
    below: tuple[str, ...]
    """The commands, actions or other words that may follow."""
    options: tuple[str, ...]
    settings: str | None
    """How the settings begin that it takes; None: it takes none."""
    text: str


def script(shell: str) -> str:
    """The script of one of command_line.SHELLS."""
    # A class's own settings cannot be listed: only the config knows the names of classes.
    settings = [setting for setting in all_settings() if "<class>" not in setting.name]
    found = list(levels())
    if shell == "fish":
        return _fish(found, settings)
    return (BASH if shell == "bash" else ZSH).format(common=_common(found, settings))


def levels() -> Iterator[Level]:
    """Every place of the parser, the top first."""
    yield from _levels(build_parser(), (), "")


def _levels(parser: argparse.ArgumentParser, words: tuple[str, ...], text: str) -> Iterator[Level]:
    options: list[str] = []
    below: dict[str, argparse.ArgumentParser] = {}
    words_below: list[str] = []
    texts: dict[str, str] = {}
    for action in parser._actions:  # argparse has no public list of them
        options += [option for option in action.option_strings if option.startswith("--")]
        if isinstance(action, argparse._SubParsersAction):
            below |= action.choices
            texts |= {choice.dest: choice.help or "" for choice in action._choices_actions}
        if action.choices and not action.option_strings:
            words_below += list(action.choices)
    yield Level(words, tuple(words_below), tuple(options), parser.get_default("settings"), text)
    for name, inner in below.items():
        yield from _levels(inner, (*words, name), texts.get(name, ""))


def _names(settings: Sequence[Setting], prefix: str | None) -> list[str]:
    """As flags, those that begin so."""
    names = [f"--{setting.name}=" for setting in settings]
    return [] if prefix is None else [name for name in names if name.startswith(prefix)]


# ---- bash and zsh

COMMON = """\
_busray_values() {{  # the words that a setting takes
    case "$1" in
{values}    esac
}}

_busray_level() {{  # words before the cursor -> where we are: below, flags
    local word level='' all='{all}'
    for word in "$@"; do
        case "$level|$word" in
{steps}        esac
    done
    case "$level" in
{levels}    esac
}}
"""
"""`below`: the words that may follow; `flags`: options and settings. Both are the caller's."""

BASH = """\
# For ~/.bashrc: source <(busray completion bash)
{common}
_busray() {{
    local line current='' before=() below='' flags='' words
    # Not COMP_WORDS: bash cuts --a.b=value into three of them.
    line="${{COMP_LINE:0:COMP_POINT}}"
    read -ra before <<< "$line"
    if [ "${{line: -1}}" != " " ]; then
        current="${{before[-1]}}"
        unset "before[-1]"
    fi
    _busray_level "${{before[@]:1}}"
    words="$below"
    if [[ "$current" == --*=* ]]; then
        words="$(_busray_values "${{current%%=*}}")"
        current="${{current#*=}}"
    elif [[ "${{before[-1]}}" == --* && -n "$(_busray_values "${{before[-1]}}")" ]]; then
        words="$(_busray_values "${{before[-1]}}")"
    elif [[ "$current" == -* ]]; then
        words="$flags"
    fi
    COMPREPLY=( $(compgen -W "$words" -- "$current") )
    if [[ "${{COMPREPLY[0]}}" == *= ]]; then compopt -o nospace; fi
}}
complete -o default -F _busray busray
"""
"""Where it finds no word, bash completes names of files."""

ZSH = """\
#compdef busray
# For ~/.zshrc, after compinit: source <(busray completion zsh)
{common}
_busray() {{
    local current="${{words[CURRENT]}}" before="${{words[CURRENT-1]}}" below='' flags='' values
    _busray_level "${{(@)words[2,CURRENT-1]}}"
    if [[ "$current" == --*=* ]]; then
        values="$(_busray_values "${{current%%=*}}")"
        compset -P '*='
        if [[ -n "$values" ]]; then compadd -- ${{=values}}; else _files; fi
        return
    fi
    values="$(_busray_values "$before")"
    if [[ "$before" == --* && -n "$values" ]]; then
        compadd -- ${{=values}}
    elif [[ "$current" == -* ]]; then
        compadd -S '' -- ${{=flags}}
    elif [[ -n "$below" ]]; then
        compadd -- ${{=below}}
    else
        _files
    fi
}}
compdef _busray busray
"""


def _common(found: Sequence[Level], settings: Sequence[Setting]) -> str:
    values = steps = inside = ""
    for setting in settings:
        if setting.choices:
            values += f"        --{setting.name}) echo '{' '.join(setting.choices)}' ;;\n"
    for level in found:
        at = " ".join(level.words)
        if level.below:
            known = " | ".join(f"'{at}|{word}'" for word in level.below)
            steps += f'        {known}) level="${{level:+$level }}$word" ;;\n'
        flags = " ".join(level.options)
        if level.settings == "--":
            flags += " $all"
        elif level.settings:
            flags += " " + " ".join(_names(settings, level.settings))
        inside += f"        '{at}') below='{' '.join(level.below)}' flags=\"{flags}\" ;;\n"
    return COMMON.format(values=values, all=" ".join(_names(settings, "--")), steps=steps, levels=inside)


# ---- fish


def _fish(found: Sequence[Level], settings: Sequence[Setting]) -> str:
    lines = ["# For ~/.config/fish/config.fish: busray completion fish | source"]
    texts = {level.words: level.text for level in found}
    for level in found:
        for word in level.below:
            there = [*_seen(level.words), f"not __fish_seen_subcommand_from {' '.join(level.below)}"]
            text = texts.get((*level.words, word), "")
            lines.append(f"complete -c busray -n {_quoted('; and '.join(there))} -f -a {word} -d {_quoted(text)}")
        condition = f" -n {_quoted('; and '.join(_seen(level.words)))}" if level.words else ""
        lines += [f"complete -c busray{condition} -l {option[2:]}" for option in level.options]
    for setting in settings:
        takers = [level.words[-1] for level in found if _names([setting], level.settings)]
        condition = _quoted(f"__fish_seen_subcommand_from {' '.join(takers)}")
        values = f"-x -a {_quoted(' '.join(setting.choices))}" if setting.choices else "-r"
        text = _quoted(shorten(setting.text, 70, placeholder=" ..."))
        lines.append(f"complete -c busray -n {condition} -l {setting.name} {values} -d {text}")
    return "\n".join(lines) + "\n"


def _seen(words: Sequence[str]) -> list[str]:
    return [f"__fish_seen_subcommand_from {word}" for word in words]


def _quoted(text: str) -> str:
    """For fish, in which only these two have a meaning between single quotes."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
