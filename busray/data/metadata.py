"""The metadata table: what a CSV file says of the images of a folder.

Tables come from spreadsheets: with semicolons or tabs, in UTF-16, with backslashes or without
folders in the names of files. What names one file, whatever the spelling, is read.
"""

import csv
import io
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from busray.places import hidden_character
from busray.records import UserError

DELIMITERS = ",;\t|"
# Names of the column that says which image a row is about, without case, spaces and separators
FILE_COLUMNS = ("file", "filename", "filepath", "path", "image", "imagefile", "imagename", "imagepath")
CSV_UTF_8 = "in Excel, save it as `CSV UTF-8 (Comma delimited)`"
LFS_POINTER = b"version https://git-lfs"
SHOWN = 3  # wrong names of files that are shown; the rest is counted


def metadata_rows(path: Path, folder: Path, images: Sequence[str]) -> dict[str, dict[str, str]]:
    """file -> its other columns. UserError for a table that is wrong or does not fit the folder.

    images: the files of the folder that may be images, relative to it.
    """
    rows = _csv_rows(path)
    header = [name for name in rows[0] if name is not None] if rows else []
    column = _file_column(path, header) if rows else None
    if column is None:
        there = (
            f"; its columns are {', '.join(map(repr, header))}: rename the one that names the images" if header else ""
        )
        if any(re.search(r"/|\\|\.\w{2,5}$", name) for name in header):
            there = "; its first line looks like a row"  # which could have a patient's number in it
        raise UserError(f"dataset.metadata: {path} needs a header with the column `file` and at least one row{there}")
    find, columns_of = _Finder(folder, images), {}
    unknown: list[str] = []
    for row in rows:
        named = (row.pop(column) or "").strip()
        file = find(path, named)
        if file is None:
            unknown.append(named)
        elif file in columns_of:
            raise UserError(f"dataset.metadata: {path} names {file!r} twice")
        else:
            columns_of[file] = {key: (value or "").strip() for key, value in row.items() if key}
    if unknown:
        some = ", ".join(map(repr, unknown[:SHOWN]))
        more = f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
        like = f"; images there are named like {min(images)!r}" if images else ""
        raise UserError(f"dataset.metadata: {path} names {some}{more}, which is not in {folder}{like}")
    return columns_of


class _Finder:
    """Finds the file that a table means."""

    def __init__(self, folder: Path, images: Sequence[str]) -> None:
        self.folder, self.images = folder, frozenset(images)
        self.like: dict[str, set[str]] = defaultdict(set)
        for image in images:
            for key in _spellings(image):
                self.like[key].add(image)

    def __call__(self, table: Path, named: str) -> str | None:
        """The file relative to the folder; None where there is none, UserError for a name that
        busray does not follow or that several files have."""
        problem = hidden_character(named)
        if problem:
            raise UserError(f"dataset.metadata: {table} names {named!a}: {problem} is in it; rename the file")
        file = self._relative(named)
        if file is None:
            why = "write it as CLASS/NAME, below the data folder"
            raise UserError(f"dataset.metadata: {table} names {named!a}: {why}")
        if file in self.images or self._is_file(file):
            return file
        found = self.like.get(file.casefold(), set())
        if len(found) > 1:
            those = ", ".join(map(repr, sorted(found)[:SHOWN]))
            raise UserError(
                f"dataset.metadata: {table} names {named!r}, which may be {those}: write CLASS/NAME with its suffix"
            )
        return min(found, default=None)

    def _is_file(self, file: str) -> bool:
        try:
            return (self.folder / file).is_file()
        except OSError:  # as of a name that is too long
            return False

    def _relative(self, named: str) -> str | None:
        """named with `/`, below the folder; None where it lies elsewhere."""
        windows = "\\" in named and not self._is_file(named)
        path = PurePosixPath(PureWindowsPath(named).as_posix() if windows else named)
        if path.is_absolute():
            for folder in (self.folder, self.folder.absolute(), self.folder.resolve()):
                if path.is_relative_to(folder):
                    path = path.relative_to(folder)
                    break
        outside = path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", str(path))
        return None if outside else str(path)


def _spellings(image: str) -> set[str]:
    """Other ways to write a file: without folder, without suffix, in another case."""
    path = PurePosixPath(image)
    ways = (image, path.name, str(path.with_suffix("")), path.stem)
    return {way.casefold() for way in ways}


def _file_column(path: Path, header: Sequence[str]) -> str | None:
    if "file" in header:
        return "file"
    for known in FILE_COLUMNS:
        named = [name for name in header if plain_name(name) == known]
        if len(named) > 1:
            raise UserError(f"dataset.metadata: {path}, header: which of {named} names the image? Call it `file`")
        if named:
            return named[0]
    return None


def plain_name(column: str) -> str:
    """A column's name without case, spaces and separators."""
    return re.sub(r"[\W_]+", "", column.casefold())


def _csv_rows(path: Path) -> list[dict[str, str]]:
    text = _table(_text(path))
    try:
        first = next(iter(text.splitlines()), "")
        reader = csv.DictReader(
            io.StringIO(text, newline=""), delimiter=_delimiter(first), skipinitialspace=True
        )  # else `, "group"` keeps its quotes
        header = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = header
        rows = [row for row in reader if any(map(_has_text, row.values()))]  # a sheet's empty rows
    except csv.Error as error:
        raise UserError(f"dataset.metadata: {path} is not a CSV file in UTF-8: {error}; {CSV_UTF_8}") from error
    problems = [f"{name!r} is there twice" for name, n in Counter(header).items() if name and n > 1]
    if problems:
        raise UserError(f"dataset.metadata: {path}, header: {', '.join(problems)}")
    wide = sum(None in row for row in rows)
    if wide and _file_column(path, header) is not None:
        # A value with the delimiter in it and no quotes would move what follows into other columns.
        raise UserError(f"dataset.metadata: {path}: {wide} rows have more values than the header has columns")
    return rows


def _has_text(value: str | list[str] | None) -> bool:
    """value: of a row; a list of what goes beyond the header."""
    return any(map(str.strip, value)) if isinstance(value, list) else bool(value and value.strip())


def _table(text: str) -> str:
    """Text from its header on: without empty lines before it, and without Excel's line `sep=;`."""
    text = text.lstrip("\r\n")
    first, _, rest = text.partition("\n")
    return rest.lstrip("\r\n") if re.fullmatch(r"sep=.\r?", first, re.IGNORECASE) else text


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"dataset.metadata: {path}: {error.strerror}") from error
    if content.startswith(LFS_POINTER):
        raise UserError(f"dataset.metadata: {path} is a Git-LFS pointer, not the table: run `git lfs pull` there")
    if content.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise UserError(f"dataset.metadata: {path} is a workbook, not a CSV file: {CSV_UTF_8}")
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(
            f"dataset.metadata: {path} is not a CSV file in UTF-8 (line {line} has other bytes): {CSV_UTF_8}"
        ) from error
    if "\0" in text:
        raise UserError(f"dataset.metadata: {path} is not a CSV file in UTF-8: it has zero bytes; {CSV_UTF_8}")
    return text


def _delimiter(header: str) -> str:
    """What separates the columns of a header: of those with which it names the file, the first."""
    for delimiter in DELIMITERS:
        names = [plain_name(name) for name in header.split(delimiter)]
        if len(names) > 1 and any(name in FILE_COLUMNS for name in names):
            return delimiter
    return DELIMITERS[0]
