"""One stage, for `ray job submit --working-dir . -- python jobs/study.py CONFIG [--a.b=c ...]`."""

import sys

from busray.cli import main

if __name__ == "__main__":
    sys.exit(main(["study", *sys.argv[1:]]))
