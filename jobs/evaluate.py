"""ray job submit --working-dir . -- python jobs/evaluate.py CONFIG [--a.b=c ...]"""

import sys

from busray.cli import process

if __name__ == "__main__":
    process(["evaluate", *sys.argv[1:]])
