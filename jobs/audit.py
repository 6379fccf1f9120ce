"""One stage, for `ray job submit --working-dir . -- python jobs/audit.py RUN`."""

import sys

from busray.cli import main

if __name__ == "__main__":
    sys.exit(main(["audit", *sys.argv[1:]]))
