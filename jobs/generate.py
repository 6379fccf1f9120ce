"""ray job submit --working-dir . -- python jobs/generate.py CONFIG [--a.b=c ...]"""

import sys

from busray.cli import finish, main

if __name__ == "__main__":
    finish(main(["generate", *sys.argv[1:]]))
