"""The metadata table: groups and columns, and what is said of a table that does not fit."""

from pathlib import Path

import pytest
from PIL import Image

from busray.data.read import scan
from busray.records import UserError


def save(folder: Path, *names: str) -> None:
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (10 + i, 8)).save(folder / name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(tmp_path, "data/benign/a.png", "data/benign/b.png")
    return tmp_path / "data"


def metadata(folder: Path, text: str | bytes) -> Path:
    path = folder.parent / "metadata.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_metadata_brings_groups_and_columns(folder: Path) -> None:
    path = metadata(folder, "file,group,birads\nbenign/a.png,p1,4a\nbenign/b.png,,\n")
    one, two = scan(folder, ["benign"], path).images
    assert (one.group, one.columns) == ("p1", {"birads": "4a"})
    assert (two.group, two.columns) == (None, {"birads": ""})


def test_metadata_from_a_spreadsheet_is_read(folder: Path) -> None:
    path = metadata(folder, b'\xef\xbb\xbffile,device\r\nbenign/a.png,"A, new"\r\n')
    one, two = scan(folder, ["benign"], path).images
    assert one.columns == {"device": "A, new"}
    assert two.columns == {}


def test_spaces_around_names_and_values_of_metadata_are_no_part_of_them(folder: Path) -> None:
    text = "file, group ,birads\n benign/a.png, p1,4a \nbenign/b.png,p1 ,\n"
    one, two = scan(folder, ["benign"], metadata(folder, text)).images
    assert (one.group, one.columns) == ("p1", {"birads": "4a"})
    assert (two.group, two.columns) == ("p1", {"birads": ""})
    quoted = '"file", "group", "birads"\n"benign/a.png", "p1", "4a"\n"benign/b.png", "p1", ""\n'
    assert scan(folder, ["benign"], metadata(folder, quoted)).images == (one, two)


@pytest.mark.parametrize(
    "header, said",
    [
        ("file,Group", "'Group' must be spelt `group`"),
        (" FILE ,group", "'FILE' must be spelt `file`"),
        ("File,Group", "'File' must be spelt `file`, 'Group' must be spelt `group`"),
        ("file,group, group", "'group' is there twice"),
        ("file,birads,birads", "'birads' is there twice"),
        ("file,File,birads,birads", "'File' must be spelt `file`, 'birads' is there twice"),
    ],
)
def test_a_header_that_would_switch_the_patient_rule_off_is_refused(folder: Path, header: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        scan(folder, ["benign"], metadata(folder, f"{header}\nbenign/a.png,p1,x,x\nbenign/b.png,p1,x,x\n"))
    assert str(caught.value).startswith("dataset.metadata: ")
    assert str(caught.value).endswith(f"header: {said}")


def test_empty_columns_of_a_spreadsheet_are_left_alone(folder: Path) -> None:
    one, _ = scan(folder, ["benign"], metadata(folder, "file,birads,,\nbenign/a.png,3,,\n")).images
    assert one.columns == {"birads": "3"}


@pytest.mark.parametrize(
    "text, said",
    [
        ("name\nx\n", "the column `file`"),
        ("", "the column `file`"),
        ("file\n", "at least one row"),
        ("file\nbenign/none.png\n", "'benign/none.png', which is not in"),
        ("group,file\np1\n", "names '', which is not in"),
        ("file,group\nbenign/a.png,p1\n", "has no row for 1 images, such as 'benign/b.png'"),
        ("file\nbenign/a.png\nbenign/a.png\n", "names 'benign/a.png' twice"),
        (b"file\nb\xff.png\n", "is not a CSV file in UTF-8"),
    ],
)
def test_metadata_that_does_not_fit_the_folder_is_named(folder: Path, text: str | bytes, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        scan(folder, ["benign"], metadata(folder, text))
    assert str(caught.value).startswith("dataset.metadata: ")


def test_missing_metadata_is_named(folder: Path) -> None:
    with pytest.raises(UserError, match=r"dataset.metadata: .*none\.csv: No such file"):
        scan(folder, ["benign"], folder / "none.csv")
