"""Recall and precision of the annotation detector on hand-labelled BUSI images: annotations.md is what this prints.

.venv/bin/python benchmarks/annotations.py ../shared/data/busi
"""

import csv
import sys
from collections import Counter
from pathlib import Path

from busray.data.annotations import find_annotations
from busray.data.read import read_grey
from busray.quality.readers import wilson

LABELS = Path(__file__).parent / "annotations-busi.csv"
KINDS = ("text", "calipers")


def main(folder: Path) -> None:
    with open(LABELS, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found = {row["file"]: find_annotations(read_grey(folder / row["file"])).kinds for row in rows}
    print("| sample | images | annotation | labelled | found | both | recall [95 %] | precision [95 %] |")
    print("|---|---:|---|---:|---:|---:|---:|---:|")
    for sample in ("evaluation", "development"):
        images = [row for row in rows if row["sample"] == sample]
        for kind in KINDS:
            counts = Counter((row[kind] == "1", kind in found[row["file"]]) for row in images)
            both, missed, wrong = counts[True, True], counts[True, False], counts[False, True]
            print(
                f"| {sample} | {len(images)} | {kind} | {both + missed} | {both + wrong} | {both} "
                f"| {share(both, both + missed)} | {share(both, both + wrong)} |"
            )
    print()
    for kind in KINDS:
        for labelled, what in ((True, "Missed"), (False, "Found where none is labelled")):
            files = [
                row["file"]
                for row in rows
                if row["sample"] == "evaluation" and (row[kind] == "1") is labelled != (kind in found[row["file"]])
            ]
            print(f"{what}, {kind}, evaluation: {', '.join(files) or 'none'}.\n")


def share(part: int, whole: int) -> str:
    if not whole:
        return "–"
    low, high = wilson(part, whole)
    return f"{part / whole:.3f} [{low:.3f}, {high:.3f}]"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
