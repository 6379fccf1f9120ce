"""ray job submit --working-dir . -- python jobs/study.py CONFIG [--a.b=c ...]"""

import sys

from busray.cli import process

if __name__ == "__main__":
    process(["study", *sys.argv[1:]])
