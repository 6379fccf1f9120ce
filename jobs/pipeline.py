"""ray job submit --working-dir . -- python jobs/pipeline.py CONFIG [--a.b=c ...]"""

import sys

from busray.cli import process

if __name__ == "__main__":
    process(["run", *sys.argv[1:]])
