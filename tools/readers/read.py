"""Open what busray wrote with readers that no one here wrote, and write the table of results.

    python tools/readers/read.py FOLDER TABLE

It runs in an environment without busray (`make readers`). Each entry's code is run as it is
printed, in FOLDER. The exit status is 1 where a reader fails or finds something else than what was
released.
"""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

RELEASED = 397
"""Images of tools/readers/write.py that are not quarantined."""
BY_CLASS = {"benign": 199, "malignant": 120, "normal": 78}


class Reading(NamedTuple):
    package: str
    opened: str
    code: str
    """Python; it leaves what was found in `found`."""
    expected: str = str(RELEASED)


LABELS = f"{RELEASED} ['benign', 'malignant', 'normal']"
READINGS = (
    Reading(
        "datasets",
        "run",
        """from datasets import load_dataset
d = load_dataset("./run", split="train")
found = d.num_rows, d.features["class"].names""",
        LABELS,
    ),
    Reading(
        "datasets",
        "run, as a stream",
        """from datasets import load_dataset
rows = list(load_dataset("./run", split="train", streaming=True))
found = len(rows), len({r["class"] for r in rows[:30]}), rows[0]["image"].mode""",
        f"{RELEASED} 3 L",
    ),
    Reading(
        "datasets",
        "run-png",
        """from datasets import load_dataset
d = load_dataset("./run-png", split="train")
found = d.num_rows, d.features["class"].names""",
        LABELS,
    ),
    Reading(
        "datasets",
        "huggingface, as a stream",
        """from datasets import load_dataset
rows = list(load_dataset("./huggingface", split="train", streaming=True))
found = len(rows), len({r["class"] for r in rows[:30]}), any("<" in r["caption"] for r in rows)""",
        f"{RELEASED} 3 False",
    ),
    Reading(
        "datasets",
        "imagefolder",
        """from datasets import load_dataset
d = load_dataset("./imagefolder", split="train")
found = d.num_rows, d.features["class"].names""",
        LABELS,
    ),
    Reading(
        "datasets",
        "webdataset",
        """from datasets import load_dataset
d = load_dataset("./webdataset", split="train")
found = d.num_rows, d.features["cls"].names""",
        LABELS,
    ),
    Reading(
        "torchvision",
        "imagefolder/train",
        """from torchvision.datasets import ImageFolder
d = ImageFolder("imagefolder/train")
found = len(d), d.classes""",
        LABELS,
    ),
    Reading(
        "torchvision",
        "run-png/data",
        """from torchvision.datasets import ImageFolder
d = ImageFolder("run-png/data")
found = len(d), d.classes""",
        LABELS,
    ),
    Reading(
        "torch",
        "imagefolder/train, DataLoader with 2 workers",
        """from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import ToTensor
d = ImageFolder("imagefolder/train", ToTensor())
found = sum(len(labels) for _, labels in DataLoader(d, 32, shuffle=True, num_workers=2))""",
    ),
    Reading(
        "webdataset",
        "webdataset",
        """import webdataset
d = webdataset.WebDataset("webdataset/train-000000.tar", shardshuffle=False)
rows = list(d.decode("pil").to_tuple("png", "cls", "txt", "json"))
found = len(rows), len({cls for _, cls, _, _ in rows[:30]}), rows[0][0].size""",
        f"{RELEASED} 3 (16, 16)",
    ),
    Reading(
        "pandas",
        "huggingface",
        """import pandas
found = pandas.read_parquet("huggingface/data")["class_name"].value_counts().sort_index().to_dict()""",
        str(BY_CLASS),
    ),
    Reading(
        "pandas",
        "run",
        """import pandas
found = pandas.read_parquet("run/data", columns=["class"]).value_counts("class").sort_index().to_dict()""",
        str(BY_CLASS),
    ),
    Reading(
        "polars",
        "run",
        """import polars
d = polars.scan_parquet("run/data/*/*.parquet", missing_columns="insert").group_by("class").len().sort("class")
found = dict(d.collect().iter_rows())""",
        str(BY_CLASS),
    ),
    Reading(
        "polars",
        "huggingface",
        """import polars
d = polars.read_parquet("huggingface/data/*.parquet")
found = d.height, d.schema["class"], d.schema["birads"], d.schema["site"]""",
        f"{RELEASED} Int64 Int64 String",
    ),
    Reading(
        "duckdb",
        "run",
        """import duckdb
rows = duckdb.sql("SELECT class, count(*) FROM 'run/data/*/*.parquet' GROUP BY class ORDER BY class")
found = dict(rows.fetchall())""",
        str(BY_CLASS),
    ),
    Reading(
        "duckdb",
        "huggingface",
        """import duckdb
found = duckdb.sql("SELECT class, count(*) FROM 'huggingface/data/*.parquet' GROUP BY class ORDER BY 1").fetchall()""",
        "[(0, 199), (1, 120), (2, 78)]",
    ),
    Reading(
        "pydicom",
        "dicom",
        """from pathlib import Path
from pydicom import dcmread
files = [dcmread(path) for path in Path("dicom").rglob("*.dcm")]
found = len(files), {f.SyntheticData for f in files}, {f.pixel_array.shape for f in files}""",
        f"{RELEASED} {{'YES'}} {{(16, 16)}}",
    ),
    Reading(
        "dicom3tools",
        "dicom, 12 files by dciodvfy",
        """import subprocess, sys
from pathlib import Path
tool, files = Path(sys.executable).with_name("dciodvfy"), sorted(Path("dicom").rglob("*.dcm"))[::35]
said = [subprocess.run([tool, f], capture_output=True, text=True).stderr for f in files]
found = len(said), {"SCImage" in s for s in said}, sum("Error" in s for s in said)""",
        "12 {True} 0",
    ),
)
EXAMPLES = (("torchvision", "read_with_pytorch.py", "imagefolder"), ("datasets", "read_with_datasets.py", "run"))

HEAD = """# Readers that no one here wrote

`make readers` writes two small runs without models (tools/readers/write.py) and an export of each
format. Then it opens them in an environment of its own, which has the readers and no busray:
build/readers/venv. torch and torchvision are those of .venv, so that 6 GB are not installed twice.
Each run plans 400 images, of which 3 are quarantined. The class gate rejected a first draw. Each
image is also kept as it was before refinement, so a reader has to find {released} images. `run` and
`run-png` are runs as they are, with Parquet and PNG shards; the other folders are exports.

| reader | version | what was opened | found | as it should be |
|---|---|---|---|---|
"""


def shown(found: object) -> str:
    return " ".join(map(str, found)) if isinstance(found, tuple) else str(found)


def try_one(reading: Reading) -> tuple[str, bool]:
    """(what was found, or the error; whether it is what was expected)."""
    names: dict[str, object] = {}
    try:
        exec(reading.code, names)
    except Exception as error:  # of any library: it goes into the table
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}", False
    found = shown(names["found"])
    return found, found == reading.expected


def main(folder: Path, table: Path) -> int:
    examples, sound = Path("examples").absolute(), True
    table = table.absolute()
    os.chdir(folder)
    rows, codes = HEAD.format(released=RELEASED), "\n## The code of each\n"
    for reading in READINGS:
        found, right = try_one(reading)
        sound &= right
        line = f"| {reading.package} | {version(reading.package)} | {reading.opened} | {found} | "
        rows += line + ("yes |\n" if right else f"no: {reading.expected} |\n")
        print(line)
        codes += f"\n{reading.package}, {reading.opened}:\n\n```python\n{reading.code}\n```\n"
    for package, name, opened in EXAMPLES:
        done = subprocess.run([sys.executable, examples / name, opened], capture_output=True, text=True)
        sound &= done.returncode == 0 and "benign" in done.stdout
        last = (done.stdout if done.returncode == 0 else done.stderr).splitlines()[-1]
        right = "yes" if done.returncode == 0 else "no"
        rows += f"| {package} | {version(package)} | {opened}, by examples/{name} | `{last[:100]}` | {right} |\n"
    table.write_text(rows + codes)
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
