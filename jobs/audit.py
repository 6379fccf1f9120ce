"""ray job submit --working-dir . -- python jobs/audit.py RUN [--a.b=c ...]"""

import sys

from busray.cli import process

if __name__ == "__main__":
    process(["audit", *sys.argv[1:]])
