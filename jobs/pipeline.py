"""The whole job, for `ray job submit --working-dir . -- python jobs/pipeline.py CONFIG [--a.b=c ...]`."""

import sys

from busray.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
