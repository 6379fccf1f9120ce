"""What the commands print: tables, and progress on a terminal and elsewhere."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from busray import terminal
from busray.cli import main
from busray.records import Figure, Interval
from busray.report.warnings import Warned
from busray.terminal import print_figures, print_table, reporter
from tests.support.figures import arm_and_floor_figures


def test_a_table_written_to_a_file_folds_no_cell(capsys: pytest.CaptureFixture[str]) -> None:
    columns = [f"column {i} of {'many' * 3}" for i in range(12)]
    print_table("figures", columns, [["0.123456789 [0.1, 0.2]"] * 12])
    lines = capsys.readouterr().out.splitlines()
    assert any(all(column in line for column in columns) for line in lines)
    assert any(line.count("0.123456789 [0.1, 0.2]") == 12 for line in lines)


def test_figures_are_printed_with_brackets_and_each_extractor_apart(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    about = ("test", "synthetic-only")
    areas = [
        Figure("told_apart_auc", value, Interval(0.0, 1.0), 9, 9, *about, extractor, "all", "base", "letterbox", 64)
        for extractor, value in (("inception-v3-2015", 0.625), ("texture-1", 0.875))
    ]
    fid = Figure("fid", 7.0, Interval(6.0, 8.0), 9, 9, *about, "inception-v3-2015", "all", "base", "letterbox", 64, 5)
    print_figures([fid, *areas], ["said"], [Warned("Do not.", "Try.")], simulated=False)
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.endswith("said Read this first: - Do not. Try.")
    assert "FID [spread] (inception-v3-2015)" in shown and "7.0 [6.0, 8.0]" in shown
    assert "0.625 [0.000, 1.000]" in shown and "0.875 [0.000, 1.000]" in shown


def test_the_tables_of_phantoms_call_no_image_real(capsys: pytest.CaptureFixture[str]) -> None:
    print_figures(arm_and_floor_figures(), [], [], simulated=True)
    shown = capsys.readouterr().out
    assert "simulated" in shown and "real" not in shown


def test_progress_is_a_plain_line_now_and_then_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now)
    with reporter() as report:
        for done in range(101):
            report("generate", done, 100)
            now += 1.0
        report("generate", 100, 100)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "generate: 0/100" and lines[-1] == "generate: 100/100"
    assert 5 <= len(lines) <= 15
    assert all(line.endswith(f", 1.0/s, {100 - i} s left") for i, line in [(10, lines[1]), (20, lines[2])])


def test_progress_is_a_bar_a_stage_with_its_rate_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "stderr", screen)
    with reporter() as report:
        for done in range(5):
            report("finetune", done, 4)
            report("generate", 0, 12)
    shown = screen.getvalue()
    assert "finetune" in shown and "4/4" in shown and "/s" in shown
    assert "generate" in shown and "0/12" in shown


def test_check_prints_its_tables_and_keeps_them_as_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("benign", "malignant"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(3):
            pixels = rng.integers(0, 256, (40, 50), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{name} ({i}).png")
    (tmp_path / "data" / "benign" / "benign (9).png").write_bytes(b"no image")
    assert main(["check", str(tmp_path / "data"), f"--json={tmp_path / 'check.json'}"]) == 0
    found = json.loads((tmp_path / "check.json").read_text())
    shown = capsys.readouterr().out
    assert "benign (9).png" in shown and "benign (9).png" in json.dumps(found)
    assert all(f"{name}" in shown for name in ("benign", "malignant"))


def test_a_table_too_wide_for_a_terminal_is_printed_in_parts_and_no_word_is_broken(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    names = ["class", *(f"malignant-{i}" for i in range(12))]
    print_table("images", names, [["benign", *["123.4 [100.0, 200.0]"] * 12]])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    shown = "\n".join(lines)
    assert all(name in shown for name in names) and shown.count("123.4 [100.0, 200.0]") == 12
    assert shown.count("benign") > 1 and "images (more columns)" in shown


@pytest.mark.parametrize("width, parts", [(80, [[0, 1, 2]]), (30, [[0, 1], [0, 2]]), (5, [[0, 1], [0, 2]])])
def test_each_part_of_a_wide_table_has_the_first_column(width: int, parts: list[list[int]]) -> None:
    assert terminal.fitting_columns([["class", "a" * 15, "b" * 10]], width) == parts
