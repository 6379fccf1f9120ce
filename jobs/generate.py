"""ray job submit --working-dir . -- python jobs/generate.py CONFIG [--a.b=c ...]"""

import sys

from busray.cli import process

if __name__ == "__main__":
    process(["generate", *sys.argv[1:]])
