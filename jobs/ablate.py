"""ray job submit --working-dir . -- python jobs/ablate.py CONFIG [--a.b=c ...]"""

import sys

from busray.cli import process

if __name__ == "__main__":
    process(["ablate", *sys.argv[1:]])
