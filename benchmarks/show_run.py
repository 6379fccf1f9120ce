"""What the README shows of a run: its table as Markdown, and a picture of its first synthetic images.

    python benchmarks/show_run.py runs/busi-tiny --picture benchmarks/busi-tiny.png

The picture holds no real image: a class a row, the first images of its plan, each before and after refinement.
"""

import argparse
import json
from pathlib import Path

from busray.corpus.commit import read_commits, read_rows
from busray.quality.contact_sheet import contact_sheet
from busray.quality.tables import (
    by_extractor,
    class_rows,
    difference_rows,
    markdown_table,
    metrics_rows,
    neighbour_rows,
    without_clean,
)
from busray.storage import Store

IMAGES = 4


def rows(store: Store) -> dict[str, list[bytes | None]]:
    """class -> PNGs: txt2img and refined of its first images, in turn."""
    shown: dict[str, list[bytes | None]] = {}
    for commit in sorted(read_commits(store), key=lambda c: (c.class_name, c.first)):
        cells = shown.setdefault(commit.class_name, [])
        if len(cells) >= 2 * IMAGES:
            continue
        for row in read_rows(store, commit).to_pylist()[:IMAGES]:
            cells += [row.get("image_txt2img", row["image"])["bytes"], row["image"]["bytes"]]
    return {name: cells[: 2 * IMAGES] for name, cells in shown.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    store = Store(args.run)
    report = json.loads(store.read("report.json"))
    print(f"`{report['run']['command']}`\n")
    print("".join(f"- {sentence}\n" for sentence in report["verdicts"]))
    for measured in by_extractor(report["figures"]).values():
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
        shown = rows(store)
        args.picture.write_bytes(
            contact_sheet(list(shown.values()), ["txt2img", "refined"] * IMAGES, row_labels=list(shown))
        )


if __name__ == "__main__":
    main()
