"""ray job submit --working-dir . -- python jobs/pipeline.py CONFIG [--a.b=c ...]"""

import sys

from busray.cli import finish, main

if __name__ == "__main__":
    finish(main(["run", *sys.argv[1:]]))
