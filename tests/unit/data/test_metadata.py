"""The metadata table: groups and columns, and what is said of a table that does not fit."""

from pathlib import Path

import pytest
from PIL import Image

from busray.data.metadata import metadata_rows
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
    assert (one.group, one.columns) == ("patient 1", {"birads": "4a"})
    assert (two.group, two.columns) == (None, {"birads": ""})


def test_metadata_from_a_spreadsheet_is_read(folder: Path) -> None:
    path = metadata(folder, b'\xef\xbb\xbffile,device\r\nbenign/a.png,"A, new"\r\n')
    one, two = scan(folder, ["benign"], path).images
    assert one.columns == {"device": "A, new"}
    assert two.columns == {}


def test_spaces_around_names_and_values_of_metadata_are_no_part_of_them(folder: Path) -> None:
    text = "file, group ,birads\n benign/a.png, p1,4a \nbenign/b.png,p1 ,\n"
    one, two = scan(folder, ["benign"], metadata(folder, text)).images
    assert (one.group, one.columns) == ("patient 1", {"birads": "4a"})
    assert (two.group, two.columns) == ("patient 1", {"birads": ""})
    quoted = '"file", "group", "birads"\n"benign/a.png", "p1", "4a"\n"benign/b.png", "p1", ""\n'
    assert scan(folder, ["benign"], metadata(folder, quoted)).images == (one, two)


@pytest.mark.parametrize(
    "header, said",
    [
        ("file,group, group", "'group' is there twice"),
        ("file,birads,birads", "'birads' is there twice"),
        ("file,birads,birads,group,group", "'birads' is there twice, 'group' is there twice"),
    ],
)
def test_a_column_that_is_there_twice_is_refused(folder: Path, header: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        scan(folder, ["benign"], metadata(folder, f"{header}\nbenign/a.png,p1,x,x,x\nbenign/b.png,p1,x,x,x\n"))
    assert str(caught.value).startswith("dataset.metadata: ")
    assert str(caught.value).endswith(f"header: {said}")


@pytest.mark.parametrize("header", ["file,Group", " FILE ,groups", "File,GROUP"])
def test_another_spelling_of_group_is_asked_about(folder: Path, header: str) -> None:
    with pytest.raises(UserError, match=rf"--dataset.group={header.split(',')[1]} if it is the patient"):
        scan(folder, ["benign"], metadata(folder, f"{header}\nbenign/a.png,p1\nbenign/b.png,p1\n"))


NAMES = ["benign/a.png", "benign/b (1).png", "normal/b (1).png"]


@pytest.fixture
def named(tmp_path: Path) -> Path:
    save(tmp_path / "data", *NAMES)
    return tmp_path / "data"


def rows_of(folder: Path, content: bytes) -> list[str]:
    return sorted(metadata_rows(metadata(folder, content), folder, NAMES))


@pytest.mark.parametrize("header", ["file", "filename", "File Name", "image_path", "Image"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_tables_of_spreadsheets_are_read(named: Path, header: str, separator: str, encoding: str) -> None:
    text = f"{header}{separator}größe\r\nbenign/a.png{separator}3\r\n"
    assert rows_of(named, text.encode(encoding)) == ["benign/a.png"]


@pytest.mark.parametrize(
    "text",
    [
        "sep=;\r\nfile;größe\r\nbenign/a.png;3\r\n",
        "\n\nfile,größe\nbenign/a.png,3\n",
        "file,größe\nbenign/a.png,3\n\n,,\n,\n",
        "file|größe\nbenign/a.png|3\n",
    ],
)
def test_what_spreadsheets_add_around_a_table_is_left_alone(named: Path, text: str) -> None:
    assert rows_of(named, text.encode()) == ["benign/a.png"]


@pytest.mark.parametrize(
    "written",
    [
        "benign/a.png",
        "benign\\a.png",
        "./benign/a.png",
        "a.png",
        "a",
        "benign/a",
        "BENIGN/A.PNG",
        "{folder}/benign/a.png",
    ],
)
def test_a_file_that_is_written_otherwise_is_found_where_only_one_can_be_meant(named: Path, written: str) -> None:
    assert rows_of(named, f"file\n{written.format(folder=named)}\n".encode()) == ["benign/a.png"]


@pytest.mark.parametrize(
    "content, said",
    [
        (
            b"file\nb (1)\n",
            r"names 'b \(1\)', which may be 'benign/b \(1\).png', 'normal/b \(1\).png': write CLASS/NAME",
        ),
        (b"file\nC:\\data\\benign\\a.png\n", "write it as CLASS/NAME, below the data folder"),
        (b"file\nbenign/../../a.png\n", "write it as CLASS/NAME, below the data folder"),
        (b"file\nx.png\ny.png\nz.png\nw.png\n", "names 'x.png', 'y.png', 'z.png' and 1 more, which is not in"),
        (b"file\nx.png\n", "images there are named like 'benign/a.png'"),
        (
            "file,größe\nbenign/a.png,3\n".encode("cp1252"),
            "UTF-8 .line 1 has other bytes.: in Excel, save it as `CSV UTF-8",
        ),
        (b"PK\x03\x04 a workbook", "is a workbook, not a CSV file: in Excel, save it as"),
        (b"file,birads\nbenign/a.png,4,5\n", "1 rows have more values than the header has columns"),
        (b"f\0ile\nbenign/a.png\n", "zero bytes"),
        (b"# of our ward\nfile,birads\nbenign/a.png,4\n", "the column `file` .*; its columns are '# of our ward'"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\n", "Git-LFS pointer"),
        (
            b"benign/a.png,P-4711\nbenign/b.png,P-4712\n",
            "at least one row; its first line looks like a row$",
        ),
        (b"patient,label\n1,2\n", "the column `file` and at least one row; its columns are 'patient', 'label'"),
    ],
)
def test_a_table_that_does_not_say_which_file_it_means_is_named_with_the_mend(
    named: Path, content: bytes, said: str
) -> None:
    with pytest.raises(UserError, match=said) as caught:
        rows_of(named, content)
    assert str(caught.value).startswith("dataset.metadata: ")


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
