"""What docs/results.md shows of a run: its table as Markdown, a picture of its first images.

    python benchmarks/show_run.py runs/busi-tiny --picture benchmarks/busi-tiny.png

The picture holds no real image. Each class is a row with the first images of its plan; of a refined
run each image is shown before and after refinement.
"""

import argparse
import json
from pathlib import Path

from busray.corpus.commit import read_commits, read_rows
from busray.report.contact_sheet import contact_sheet
from busray.report.tables import (
    by_extractor,
    class_rows,
    difference_rows,
    figures_of,
    markdown_table,
    metrics_rows,
    neighbour_rows,
    without_clean,
)
from busray.storage import Store

COLUMNS = 8
STAGES = ("image_txt2img", "image")


def first_images(store: Store) -> tuple[list[str], dict[str, list[bytes | None]]]:
    """(titles of the columns, class -> PNGs of its first images, before and after refinement)."""
    shown: dict[str, list[bytes | None]] = {}
    columns = ["image"]
    for commit in sorted(read_commits(store), key=lambda c: (c.class_name, c.first)):
        table = read_rows(store, commit)
        columns = [name for name in STAGES if name in table.column_names]
        cells = shown.setdefault(commit.class_name, [])
        room = (COLUMNS - len(cells)) // len(columns)
        cells += [row[name]["bytes"] for row in table.slice(0, room).to_pylist() for name in columns]
    titles = ["txt2img", "refined"] if len(columns) == 2 else ["txt2img"]
    return titles * (COLUMNS // len(titles)), shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    store = Store(args.run)
    report = json.loads(store.read("report.json"))
    print(f"`{report['run']['command']}`\n")
    print("".join(f"- {sentence}\n" for sentence in report["verdicts"]))
    for measured in by_extractor(figures_of(report)).values():
        figures, clean = without_clean(measured)
        print(markdown_table(*metrics_rows(figures)))
        print(markdown_table(*class_rows(figures)))
        print(markdown_table(*difference_rows(figures)))
        neighbours = neighbour_rows(figures)
        if neighbours[1]:
            print(markdown_table(*neighbours))
        if clean:
            print(f"Against test images without burned-in annotations:\n\n{markdown_table(*metrics_rows(clean))}")
    if args.picture:
        titles, shown = first_images(store)
        args.picture.write_bytes(contact_sheet(list(shown.values()), titles, row_labels=list(shown)))


if __name__ == "__main__":
    main()
