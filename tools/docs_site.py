"""The source of the documentation site: `python -m tools.docs_site FOLDER`, then `mkdocs build`.

FOLDER gets README.md, docs/ and every file of the repository that a link in them leads to, at the
same relative places, so links stay as they are. The pages of commands, settings and the Python API
are made from the program, so nothing is written twice.
"""

import contextlib
import io
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = "docs/reference"
LINK = re.compile(r"\]\(([^()\s]+)\)")


class BrokenLink(Exception):
    """A link of a document leads nowhere."""


def documents() -> list[str]:
    """Documents and what their links lead to, from ROOT. BrokenLink names all that fail."""
    todo = ["README.md", *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*.*")))]
    found: list[str] = []
    broken = []
    while todo:
        name = todo.pop(0)
        if name in found:
            continue
        found.append(name)
        if name.endswith(".md"):
            for link, target in links(name):
                if (ROOT / target).is_file():
                    todo.append(target)
                else:
                    broken.append(f"{name}: {link}")
    if broken:
        raise BrokenLink("\n".join(broken))
    return found


def links(name: str) -> Iterator[tuple[str, str]]:
    """(link as written, path from ROOT) of each relative link of a document, outside its code."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", (ROOT / name).read_text(), flags=re.DOTALL)
    for link in LINK.findall(text):
        path = link.partition("#")[0]
        if path and ":" not in path:
            yield link, os.path.normpath(Path(name).parent / path)


def commands_page() -> str:
    """Every command's help."""
    from busray.completion import levels

    parts = ["# All commands\n", "As `busray --help` and `busray COMMAND --help` print them.\n"]
    for level in levels():
        heading = "##" if len(level.words) < 2 else "###"
        parts.append(f"{heading} {' '.join(('busray', *level.words))}\n\n```text\n{_help(level.words)}\n```\n")
    return "\n".join(parts)


def _help(words: Sequence[str]) -> str:
    from busray.command_line import build_parser

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        build_parser().parse_args([*words, "--help"])
    return printed.getvalue().rstrip()


def settings_page() -> str:
    """Every setting, a table for each group."""
    from busray.settings_text import Setting, all_settings

    groups: dict[str, list[Setting]] = {}
    for one in all_settings():
        groups.setdefault(one.name.rpartition(".")[0], []).append(one)
    parts = ["# All settings\n", "As `busray config settings` prints them. Each is also a flag: `--NAME=VALUE`.\n"]
    for group, settings in groups.items():
        heading = f"`{group}`" if group else "Without a group"
        parts.append(f"## {heading}\n\n| setting | takes | default | meaning |\n|---|---|---|---|")
        for one in settings:
            parts.append(f"| `{one.name}` | {_cell(one.takes)} | {_cell(f'`{one.default}`')} | {_cell(one.text)} |")
        parts.append("")
    return "\n".join(parts)


def python_page() -> str:
    """What mkdocstrings replaces by the functions of busray.api."""
    return (
        "# Python API\n\n`import busray` has the functions behind the commands.\n\n"
        "::: busray.api\n    options:\n      show_source: false\n      show_root_toc_entry: false\n"
    )


def _cell(text: str) -> str:
    """Text as a cell of a table: `|` ends none, and `<` begins no tag. Code stays as it is."""
    parts = text.split("`")
    parts[::2] = [part.replace("|", "\\|").replace("<", "&lt;") for part in parts[::2]]
    return "`".join(parts)


def write(folder: Path) -> None:
    """Write the source anew."""
    shutil.rmtree(folder, ignore_errors=True)
    for name in documents():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    made = {"commands": commands_page(), "settings": settings_page(), "python": python_page()}
    for name, text in made.items():
        (folder / REFERENCE / f"{name}.md").write_text(text)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
