"""The metadata table: what a CSV file says of the images of a folder."""

import csv
from collections import Counter
from pathlib import Path, PurePosixPath

from busray.config import hidden_character
from busray.records import UserError


def metadata_rows(path: Path, folder: Path) -> dict[str, dict[str, str]]:
    """file -> its other columns. UserError for a table that is wrong or does not fit the folder."""
    rows = _csv_rows(path)
    if not rows or "file" not in rows[0]:
        raise UserError(f"dataset.metadata: {path} needs a header with the column `file` and at least one row")
    columns_of = {}
    for row in rows:
        file = (row.pop("file") or "").strip()
        problem = hidden_character(file)
        normal = not file or str(PurePosixPath(file)) == file
        if problem or file.startswith("/") or ".." in file.split("/") or not normal:
            why = f"{problem} is in it; rename the file" if problem else "write it as CLASS/NAME, below the data folder"
            raise UserError(f"dataset.metadata: {path} names {file!a}: {why}")
        if not (folder / file).is_file():
            raise UserError(f"dataset.metadata: {path} names {file!r}, which is not in {folder}")
        if file in columns_of:
            raise UserError(f"dataset.metadata: {path} names {file!r} twice")
        columns_of[file] = {key: (value or "").strip() for key, value in row.items() if key}
    return columns_of


def _csv_rows(path: Path) -> list[dict[str, str]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)  # else `, "group"` keeps its quotes
            header = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = header
            rows = list(reader)
    except OSError as error:
        raise UserError(f"dataset.metadata: {path}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"dataset.metadata: {path} is not a CSV file in UTF-8: {error}") from error
    problems = []
    for name, n in Counter(header).items():
        # Another spelling of `group` would let a patient's images fall on both sides of a split.
        if name.lower() in ("file", "group") and not name.islower():
            problems.append(f"{name!r} must be spelt `{name.lower()}`")
        if name and n > 1:
            problems.append(f"{name!r} is there twice")
    if problems:
        raise UserError(f"dataset.metadata: {path}, header: {', '.join(problems)}")
    return rows
