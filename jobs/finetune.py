"""ray job submit --working-dir . -- python jobs/finetune.py CONFIG [--a.b=c ...]"""

import sys

from busray.cli import process

if __name__ == "__main__":
    process(["finetune", *sys.argv[1:]])
