"""README is short and its code runs; the site has every page, and its links lead to files."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from busray.command_line import COMMANDS, build_parser, split_settings
from busray.settings_text import all_settings
from tests.support.paths import ROOT
from tools import docs_site

README = (ROOT / "README.md").read_text()
MOST_WORDS = 1200


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_readme_is_read_in_three_minutes_and_begins_with_its_two_commands() -> None:
    assert len(README.split()) <= MOST_WORDS
    first = blocks(README, "sh")[0]
    assert [line.split("#")[0].strip() for line in first.splitlines()] == ["make demo", "make test"]


@pytest.mark.parametrize(
    "name, place",
    [("read_with_pytorch.py", 'f"{sys.argv[1]}/train"'), ("read_with_datasets.py", "sys.argv[1]")],
)
@pytest.mark.parametrize("document", ["README.md", "docs/how-to/export-and-train.md"])
def test_the_lines_that_read_a_corpus_are_those_of_the_tested_examples(name: str, place: str, document: str) -> None:
    _, code = (ROOT / "examples" / name).read_text().split("import sys\n\n")
    shown = '"corpus/train"' if "pytorch" in name else '"runs/mine"'
    assert place in code
    assert code.replace(place, shown) in blocks((ROOT / document).read_text(), "python")


def commands_of(path: Path) -> list[str]:
    """Each command of busray in the blocks of a document."""
    lines = "".join(blocks(path.read_text(), "sh")).replace("\\\n", " ").splitlines()
    return [line.removeprefix(".venv/bin/") for line in lines if re.match(r"(\.venv/bin/)?busray ", line)]


def test_busray_takes_the_commands_of_readme_and_docs() -> None:
    parser, taken = build_parser(), 0
    for path in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for command in commands_of(path):
            own, _ = split_settings(shlex.split(command, comments=True)[1:], parser)
            parser.parse_args(own)
            taken += 1
    assert taken > 30


def test_every_link_of_the_documents_leads_to_a_file() -> None:
    assert {"README.md", "docs/index.md", "ARCHITECTURE.md", "benchmarks/busi-tiny.png"} <= set(docs_site.documents())


def test_a_link_that_leads_nowhere_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docs_site, "ROOT", tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("[a](docs/a.md#part), [b](https://example.org), `[c](d)`")
    (tmp_path / "docs" / "a.md").write_text("[back](../README.md) [gone](gone.md)")
    with pytest.raises(docs_site.BrokenLink, match=r"^docs/a\.md: gone\.md$"):
        docs_site.documents()


def test_the_site_has_every_page_of_its_menu_every_command_and_every_setting(tmp_path: Path) -> None:
    docs_site.write(tmp_path / "source")
    menu = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    pages = re.findall(r"[\w./-]+\.md", yaml.safe_dump(menu))
    assert len(pages) > 20
    for page in pages:
        assert (tmp_path / "source" / page).is_file(), page
    reference = tmp_path / "source" / docs_site.REFERENCE
    commands = (reference / "commands.md").read_text()
    for name in COMMANDS:
        assert f"\n## busray {name}\n\n```text\nusage: busray {name} " in commands
    settings = (reference / "settings.md").read_text()
    for setting in all_settings():
        assert f"\n| `{setting.name}` | " in settings
    written = {path.relative_to(tmp_path / "source").as_posix() for path in (tmp_path / "source/docs").rglob("*.md")}
    made = {f"{docs_site.REFERENCE}/{name}.md" for name in ("commands", "settings", "python")}
    assert written - made <= set(re.findall(r"[\w./-]+\.md", yaml.safe_dump(menu)))
