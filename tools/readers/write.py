"""Write what the readers open, without models: python -m tools.readers.write FOLDER

FOLDER gets two runs, of Parquet and of PNG shards, and an export of each format.
"""

import sys
from pathlib import Path

from busray.corpus.export_files import FORMATS
from busray.stages.export import export_run
from busray.storage import Store
from tests.support.released import finish
from tests.support.runs import quiet


def main(folder: Path) -> None:
    run = finish(Store(str(folder / "run")), images=20)
    finish(Store(str(folder / "run-png")), "png", images=20)
    for to in FORMATS:
        export_run(run.store, run.config, Store(str(folder / to)), to, 0, quiet)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
