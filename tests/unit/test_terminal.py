"""What the commands print where there is no terminal."""

import pytest

from busray.cli import print_table


def test_a_table_written_to_a_file_folds_no_cell(capsys: pytest.CaptureFixture[str]) -> None:
    columns = [f"column {i} of {'many' * 3}" for i in range(12)]
    print_table("figures", columns, [["0.123456789 [0.1, 0.2]"] * 12])
    lines = capsys.readouterr().out.splitlines()
    assert any(all(column in line for column in columns) for line in lines)
    assert any(line.count("0.123456789 [0.1, 0.2]") == 12 for line in lines)
