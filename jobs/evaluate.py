"""ray job submit --working-dir . -- python jobs/evaluate.py CONFIG [--a.b=c ...]"""

import sys

from busray.cli import finish, main

if __name__ == "__main__":
    finish(main(["evaluate", *sys.argv[1:]]))
