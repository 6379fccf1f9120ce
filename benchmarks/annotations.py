"""Recall and precision of the annotation detector on hand-labelled BUSI images; prints
annotations.md.

.venv/bin/python benchmarks/annotations.py BUSI
"""

import csv
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from busray.data.annotations import KINDS, find_annotations
from busray.data.check import check
from busray.data.pixels import read_grey
from busray.evidence.stats.intervals import wilson
from busray.report.tables import markdown_table

LABELS = Path(__file__).parent / "annotations-busi.csv"
COLUMNS = ("sample", "images", "annotation", "labelled", "found", "both", "recall [95 %]", "precision [95 %]")


def main(folder: Path) -> None:
    with open(LABELS, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["found"] = " ".join(find_annotations(read_grey(folder / row["file"])).kinds)
    report = check(folder)
    first = {file: group[0] for group in report.duplicates for file in group}
    samples = {name: [r for r in rows if r["sample"] == name] for name in ("evaluation", "development")}
    seen = {first.get(r["file"], r["file"]) for r in samples["development"]}
    alone = {first.get(r["file"], r["file"]): r for r in reversed(samples["evaluation"])}
    distinct = [row for duplicates, row in alone.items() if duplicates not in seen]
    named = {
        "evaluation": samples["evaluation"],
        "evaluation, distinct": distinct,
        "development": samples["development"],
    }
    print(markdown_table(COLUMNS, [line(name, rows_of, kind) for name, rows_of in named.items() for kind in KINDS]))
    for kind in KINDS:
        missed = [r["file"] for r in samples["evaluation"] if r[kind] == "1" and kind not in r["found"]]
        wrong = [r["file"] for r in samples["evaluation"] if r[kind] == "0" and kind in r["found"]]
        print(
            f"Evaluation, {kind}: missed {', '.join(missed) or 'none'}; wrongly found {', '.join(wrong) or 'none'}.\n"
        )
    table = next(table for table in report.tables() if table.title.startswith("Burned-in"))
    print(f"All of BUSI, as `busray check` counts it:\n\n{markdown_table(table.columns, table.rows)}")


def line(name: str, rows: Sequence[dict[str, str]], kind: str) -> list[str]:
    counts = Counter((r[kind] == "1", kind in r["found"].split()) for r in rows)
    both, missed, wrong = counts[True, True], counts[True, False], counts[False, True]
    cells = [str(len(rows)), kind, str(both + missed), str(both + wrong), str(both)]
    return [name, *cells, share(both, both + missed), share(both, both + wrong)]


def share(part: int, whole: int) -> str:
    if not whole:
        return "–"
    low, high = wilson(part, whole)
    return f"{part / whole:.3f} [{low:.3f}, {high:.3f}]"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
